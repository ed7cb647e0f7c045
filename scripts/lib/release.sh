# Releases on a host: one folder each under $SLP_RELEASES, with the code and its own venv, root's own; $SLP_CODE is a link to
# the one in force. Sourced after host.sh and changes.sh by scripts/install and scripts/update.
# shellcheck shell=sh

: "${SLP_CODE:?}" "${SLP_RELEASES:?}" "${web_socket_unit:?}" "${workshop:=}" "${dry_run:=}"

# What a host needs of the source; nothing else is copied.
release_parts="app.py manage.py gunicorn.conf.py requirements.txt README.md CHANGELOG.md .env.example config deploy docs migrations scripts secure_llm_proxy"

# The files of the source $1 that belong to a release, one path per line. With git: those under its care; else all but caches
# and what a first run in that folder left behind.
release_files() {
    (
        cd "$1" || exit
        if is_clone .; then
            # shellcheck disable=SC2086 # a list of names without blanks
            git_in . ls-files -- $release_parts
        else
            # shellcheck disable=SC2086
            find $release_parts -name __pycache__ -prune -o -type f ! -name '*.pyc' ! -path config/models.yaml -print
        fi
    ) | LC_ALL=C sort
}

# Itself, not a folder somewhere in another clone, which knows nothing of its files.
is_clone() {
    command -v git >/dev/null 2>&1 && git_in "$1" rev-parse --verify --quiet HEAD >/dev/null 2>&1 &&
        [ "$(git_in "$1" rev-parse --show-toplevel 2>/dev/null)" = "$(cd "$1" && pwd -P)" ]
}

# The folder may be somebody else's than root's.
git_in() (
    cd "$1" || exit
    shift
    git -c safe.directory='*' "$@"
)

# VERSION-COMMIT of the source $1 (a clone as it was committed), or VERSION-tree.DIGEST of its files: the same name is always the
# same code.
release_name() {
    version=$(sed -n 's/^__version__ = "\([0-9A-Za-z.+-]*\)"$/\1/p' "$1/secure_llm_proxy/__init__.py" 2>/dev/null) || version=
    [ -n "$version" ] || die "$1 is no source of Secure LLM Proxy: secure_llm_proxy/__init__.py with its version is missing"
    # shellcheck disable=SC2086
    if is_clone "$1" && [ -z "$(git_in "$1" status --porcelain --untracked-files=no -- $release_parts)" ]; then
        printf '%s-%s\n' "$version" "$(git_in "$1" rev-parse --short=12 HEAD)"
    else
        release_files "$1" >"$workshop/files"
        digest=$(cd "$1" && tr '\n' '\0' <"$workshop/files" | xargs -0 sha256sum | sha256sum | cut -c 1-12)
        printf '%s-tree.%s\n' "$version" "$digest"
    fi
}

# Whether the release folder $1 is whole: killed while it was made, it lacks the mark.
is_whole_release() {
    [ -f "$1/.whole" ]
}

# make_release SOURCE NAME [WHEELS]: afterwards $SLP_RELEASES/NAME is whole. Changes nothing that runs.
make_release() {
    release=$SLP_RELEASES/$2
    if is_whole_release "$release"; then
        return 0
    fi
    change "copy the code to $release" || return 0
    rm -rf "$release"
    install -d -m 0755 -o root -g root "$SLP_RELEASES" "$release"
    release_files "$1" >"$workshop/files"
    tar -C "$1" --owner=root --group=root --mode='u=rwX,go=rX' -cf "$workshop/code.tar" -T "$workshop/files"
    tar -C "$release" --no-same-owner -xpf "$workshop/code.tar"
    rm -f "$workshop/code.tar"
    change "make its Python environment ($release/venv)"
    # pip keeps nothing of it in root's home. What is compiled here nobody could keep later: the services may not write here.
    (
        umask 022
        [ -z "${3:-}" ] || export PIP_NO_INDEX=1 PIP_FIND_LINKS="$3"
        export PIP_NO_CACHE_DIR=1 &&
            /usr/bin/python3 -I "$release/scripts/lib/environment.py" --like "$SLP_CODE/venv" "$release/venv" "$release/requirements.txt" >&2 &&
            rm -f "$release/venv.lock" &&
            "$release/venv/bin/python" -I -m compileall -q "$release/secure_llm_proxy" "$release/migrations" "$release"/*.py >&2
    ) || die "the Python environment in $release/venv could not be made; the reason stands above. Nothing that runs was changed"
    : >"$release/.whole"
    # What stands under this name survives a power cut from now on.
    sync -f "$release"
}

# switch_release NAME: new starts of the services take it. Sets `was_written`.
switch_release() {
    put_link "$SLP_CODE" "$SLP_RELEASES/$1"
}

# The name of the release in force, empty when there is none.
release_in_force() {
    [ ! -L "$SLP_CODE" ] || basename "$(readlink "$SLP_CODE")"
}

# install_units RELEASE: its units, in place of those there are; units that it does not have any more go. Sets `units_written`.
# Also what we add to the units of nginx and PostgreSQL, which stay Debian's.
# Names of units that were not there before stay in `units_new` until they are enabled.
units_new=$SLP_RELEASES/.new-units
install_units() {
    units_written=
    for unit in "$1"/deploy/systemd/*.*; do
        [ -f "$unit" ] || continue
        # Noted before, so that it is enabled also by the run after one that was killed.
        [ -e "/etc/systemd/system/${unit##*/}" ] || [ -n "$dry_run" ] || printf '%s\n' "${unit##*/}" >>"$units_new"
        put_file "/etc/systemd/system/${unit##*/}" 0644 root root <"$unit"
        [ -z "$was_written" ] || units_written="$units_written ${unit##*/}"
    done
    for unit in /etc/systemd/system/secure-llm-*.* /etc/systemd/system/secure_llm_proxy*.*; do
        [ -f "$unit" ] && [ ! -f "$1/deploy/systemd/${unit##*/}" ] || continue
        is_shipped_unit "${unit##*/}" || continue
        if change "stop and remove the unit ${unit##*/}, which this release does not have"; then
            systemctl disable --now --quiet "${unit##*/}" 2>/dev/null || :
            rm -f "$unit"
        fi
        units_written="$units_written ${unit##*/}"
    done
    additions_written=
    for addition in "$1"/deploy/systemd/*.d/secure_llm_proxy.conf; do
        place=/etc/systemd/system/${addition#"$1"/deploy/systemd/}
        [ -d "${place%/*}" ] || put_directory "${place%/*}" 0755 root root
        put_file "$place" 0644 root root <"$addition"
        additions_written=$additions_written$was_written
    done
    [ -z "$units_written$additions_written" ] || [ -n "$dry_run" ] || systemctl daemon-reload
}

# Of the socket's unit what systemd listens by, kept until the next boot: another release's counts only when it listens anew,
# and then whoever asks meanwhile is refused, so that is left to the operator. To be called before its unit is written.
socket_kept=/run/secure-llm-socket
keep_socket() {
    since=$(systemctl show -P ActiveEnterTimestampMonotonic "$web_socket_unit")
    if [ ! -f "$socket_kept.$since" ] && [ -f "/etc/systemd/system/$web_socket_unit" ]; then
        rm -f "$socket_kept".*
        install -m 0644 "/etc/systemd/system/$web_socket_unit" "$socket_kept.new"
        mv -f "$socket_kept.new" "$socket_kept.$since"
    fi
}

# Tells when systemd listens by another unit than the one that is in place.
tell_socket() {
    since=$(systemctl show -P ActiveEnterTimestampMonotonic "$web_socket_unit")
    if [ -f "$socket_kept.$since" ] && ! cmp -s "$socket_kept.$since" "/etc/systemd/system/$web_socket_unit"; then
        say "Note: $web_socket_unit has changed. systemd listens by it from the next boot on, or from now with: systemctl restart $web_socket_unit. That restarts the web service, too, and refuses whoever asks in that moment."
        log_line "$web_socket_unit has changed: it counts from the next boot, or after systemctl restart $web_socket_unit"
    fi
}

# The operator's commands: links to those of the release in force that it has.
install_commands() {
    put_link /usr/local/sbin/secure-llm-proxy "$SLP_CODE/scripts/secure-llm-proxy"
    for command in health_check:health-check backup:backup restore:restore daily_check:daily-check update:update; do
        if [ -f "$1/scripts/${command%%:*}" ]; then
            put_link "/usr/local/sbin/secure-llm-${command#*:}" "$SLP_CODE/scripts/${command%%:*}"
        fi
    done
}
