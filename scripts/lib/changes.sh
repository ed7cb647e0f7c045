# Every change to a host goes through these functions: --dry-run then tells it instead, and a second run finds that there is
# nothing to do. Sourced after host.sh by scripts/install, scripts/uninstall and scripts/update.
# shellcheck shell=sh disable=SC2034 # the answers are for those who source this

: "${dry_run:=}" "${script_name:?}"
changes=0

# Whether the change $* (a sentence without subject: "make the user x") is to be made; tells it either way.
change() {
    changes=$((changes + 1))
    if [ -n "$dry_run" ]; then
        say "would $*"
        return 1
    fi
    say "$*"
}

# A private folder in memory for what is being made; gone with the process, a killed one's with the next. Sets `workshop`.
make_workshop() {
    workshops=/run
    [ -w "$workshops" ] || workshops=${TMPDIR:-/tmp}
    for old in "$workshops/secure-llm-$script_name".*; do
        pid=${old#"$workshops/secure-llm-$script_name."}
        if [ -d "$old" ] && ! kill -0 "${pid%%.*}" 2>/dev/null; then
            # Not where it is somebody else's.
            rm -rf "$old" 2>/dev/null || :
        fi
    done
    workshop=$(umask 077 && mktemp -d "$workshops/secure-llm-$script_name.$$.XXXXXX")
    trap 'rm -rf "$workshop"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# put_file PATH MODE OWNER GROUP, the content on standard input: afterwards PATH holds it, whole. Sets `was_written` when that
# was a change.
put_file() {
    was_written=
    cat >"$workshop/content"
    put_mode=
    if [ -f "$1" ] && cmp -s "$workshop/content" "$1"; then
        [ "$(stat -c '%a %U %G' "$1")" != "${2#0} $3 $4" ] || return 0
        put_mode=yes
    fi
    was_written=yes
    if [ -n "$put_mode" ]; then
        change "set mode and owner of $1 to $2 $3:$4" || return 0
        chown "$3:$4" "$1"
        chmod "$2" "$1"
        return 0
    fi
    change "write $1 ($2 $3:$4)" || return 0
    # Beside its place, then renamed: nobody ever sees half of it, and no secret is readable in between.
    rm -f "$1".new.*
    install -m "$2" -o "$3" -g "$4" "$workshop/content" "$1.new.$$"
    mv -f "$1.new.$$" "$1"
}

# swap_line PATH OLD NEW: the line OLD (with any indent) is NEW, everything else of the file is as it was. Tells nothing.
swap_line() {
    sed "s/^\([[:space:]]*\)$2\$/\1$3/" "$1" >"$workshop/content"
    rm -f "$1".new.*
    install -m "$(stat -c %a "$1")" -o "$(stat -c %U "$1")" -g "$(stat -c %G "$1")" "$workshop/content" "$1.new.$$"
    mv -f "$1.new.$$" "$1"
}

# put_directory PATH MODE OWNER GROUP
put_directory() {
    # What lies at the end of such a link would become its maker's.
    if [ -L "$1" ] && [ "$(stat -c %u "$1")" != 0 ]; then
        die "$1 is a link to $(readlink "$1") that $(stat -c %U "$1") has made, not root; somebody may have taken that user over (docs/operations.md). Look at what lies there, put a folder in the link's place, and start again"
    fi
    if [ -d "$1" ]; then
        [ "$(stat -L -c '%a %U %G' "$1")" != "${2#0} $3 $4" ] || return 0
    fi
    change "make the folder $1 ($2 $3:$4)" || return 0
    if [ "$(stat -c %u "${1%/*}" 2>/dev/null || echo 0)" = 0 ]; then
        install -d -m "$2" -o "$3" -g "$4" "$1"
    else
        # Whose folder this lies in may put a link here at any moment: nothing here follows one with root's rights.
        [ -d "$1" ] || mkdir -m 0700 "$1"
        chown -h "$3:$4" "$1"
        setpriv --reuid "$3" --regid "$4" --clear-groups chmod "$2" "$1"
    fi
}

# put_link PATH TARGET: afterwards PATH is a link to TARGET; never absent in between.
put_link() {
    was_written=
    [ "$(readlink "$1" 2>/dev/null || :)" != "$2" ] || return 0
    was_written=yes
    change "link $1 to $2" || return 0
    rm -f "$1".new.*
    ln -s "$2" "$1.new.$$"
    mv -fT "$1.new.$$" "$1"
}

# remove_file PATH...: those of them that are there.
remove_file() {
    for removed in "$@"; do
        if [ -e "$removed" ] || [ -L "$removed" ]; then
            ! change "remove $removed" || rm -f "$removed"
        fi
    done
}

# Whether a release that is on this host brought the unit $1. One of such a name that none did is the operator's own.
is_shipped_unit() {
    for shipped in "${root:-$SLP_CODE}" "$SLP_RELEASES"/*; do
        [ ! -f "$shipped/deploy/systemd/$1" ] || return 0
    done
    return 1
}
