# What scripts/backup and scripts/restore share. Sourced behind host.sh, never run; $root is the release's folder.
# shellcheck shell=sh disable=SC2154 # root and script_name are theirs who source this

# The interpreter of this release: its own on an installed host, the one of scripts/run in a clone. PYTHON names another.
find_interpreter() {
    for python in "${PYTHON:-}" "$root/venv/bin/python" "$root/.venv/bin/python" "$root/.venv-dev/bin/python"; do
        [ -n "$python" ] && [ -x "$python" ] && return 0
    done
    die "there is no interpreter in $root/venv or $root/.venv; run this from an installed release, or run scripts/run once"
}

# Afterwards $workshop is a folder that nobody else can look into; it goes when the script ends.
make_workshop() {
    place=${TMPDIR:-/tmp}
    # In memory: copies of secrets are made in there.
    [ "$(id -u)" -ne 0 ] || [ ! -w /run ] || place=/run
    # A killed run's goes with the next one.
    for old in "$place/slp-$script_name".*; do
        pid=${old#"$place/slp-$script_name."}
        pid=${pid%%.*}
        case $pid in
            '' | *[!0-9]*) continue ;;
        esac
        if [ -d "$old" ] && ! kill -0 "$pid" 2>/dev/null; then
            # Not where it is somebody else's.
            rm -rf "$old" 2>/dev/null || :
        fi
    done
    workshop=$(umask 077 && mktemp -d "$place/slp-$script_name.$$.XXXXXX") || die "no temporary folder can be made in $place"
    trap 'rm -rf "$workshop"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# manage.py host-backup ARGUMENTS; the sentence that it fails with stands in $workshop/told afterwards.
host_backup() {
    (cd "$root" && SLP_TOLD="$workshop/told" PYTHONDONTWRITEBYTECODE=1 "$python" "$root/manage.py" host-backup "$@")
}

# What was told, on one line, for the log.
told() {
    if [ -s "$workshop/told" ]; then
        tr '\n' ' ' <"$workshop/told"
    else
        printf 'an unexpected error, see its output'
    fi
}

# What is to run on this host by itself, on one line: also what a restore that failed, or --no-start, has left stopped.
enabled_triggers() {
    systemctl list-unit-files --plain --no-legend --state=enabled 'secure-llm-*.timer' 'secure-llm-*.path' |
        awk '{ printf "%s%s", separator, $1; separator = " " }'
}

# On an installed host the commands that finish the work are those of its releases; a clone's would fail half way.
require_release() {
    releases=$(readlink -f -- "$SLP_RELEASES") || releases=$SLP_RELEASES
    case $root in
        "$releases"/*) ;;
        *) die "$root is none of this host's releases ($SLP_RELEASES); on an installed host the command is secure-llm-$script_name" ;;
    esac
}

absolute() {
    case $1 in
        /*) printf '%s' "$1" ;;
        *) printf '%s/%s' "$(pwd)" "$1" ;;
    esac
}
