# Names and places of an installed host, and what every operator's script does alike. Sourced, never run.
# shellcheck shell=sh disable=SC2034 # the names are for those who source this

# The places can be moved for a trial in a folder of one's own (tests do); the shipped units know only these.
: "${SLP_CODE:=/opt/secure_llm_proxy}"              # a link to the release in force
: "${SLP_RELEASES:=/opt/secure_llm_proxy.releases}" # one folder each: code and venv, root's own
: "${SLP_SETTINGS:=/etc/secure_llm_proxy}"          # env, audit.env, credentials/, audit-credentials/, models.yaml, tls/
: "${SLP_STATE:=/var/lib/secure_llm_proxy}"
: "${SLP_AUDIT_STATE:=/var/lib/secure-llm-audit}" # segments/, keys/
: "${SLP_AUDIT_RUN:=/run/secure-llm-audit}"       # write.sock, read.sock, control.sock
: "${SLP_LOGS:=/var/log/secure_llm_proxy}"
: "${SLP_BACKUPS:=/var/backups/secure_llm_proxy}" # database/, segments/, keys/
: "${SLP_WEB_SOCKET:=/run/secure_llm_proxy.sock}"
: "${SLP_RESTORING:=$SLP_SETTINGS.restoring}" # while it is there a restore is unfinished (units: /etc/secure_llm_proxy.restoring)
: "${SLP_LOCKS:=/run/secure-llm-locks}" # root's own: in /run/lock anybody could hold, or make, a lock of ours
web_user=secure_llm_proxy
audit_user=secure-llm-audit
web_unit=secure_llm_proxy.service
web_socket_unit=secure_llm_proxy.socket
audit_unit=secure-llm-audit.service
# A line of nginx's main file: as Debian ships it, and as scripts/install leaves it.
debians_connections='worker_connections 768;'
our_connections='worker_connections 16384; # 768 before Secure LLM Proxy'

script_name=${0##*/}

# One line for the operator, on standard error, so that what a script prints for programs stays clean.
say() {
    printf '%s\n' "$*" >&2
}

# One line that stays: in the system log (journal) where there is one, under the tag secure-llm-SCRIPT.
log_line() {
    if [ -S /dev/log ] && command -v logger >/dev/null 2>&1; then
        logger -t "secure-llm-$script_name" -- "$*" || :
    fi
}

# What went wrong, where, and what to do; said, logged, and the end.
die() {
    say "$script_name: $*"
    log_line "failed: $*"
    exit 1
}

# A mistake in how it was called.
misused() {
    say "$script_name: $*"
    say "See $script_name --help."
    exit 2
}

# A host that is half of one and half of another serves nobody, and nothing else makes sense of it.
refuse_half_restored() {
    [ ! -e "$SLP_RESTORING" ] ||
        die "a restore was begun on this host and did not come to its end ($SLP_RESTORING); run secure-llm-restore again, with the options that it was given"
}

need_root() {
    [ "$(id -u)" -eq 0 ] || die "this must be run as root (sudo $script_name ...)"
}

need_programs() {
    for needed in "$@"; do
        (PATH=$PATH:/usr/sbin:/sbin && command -v "$needed" >/dev/null 2>&1) ||
            die "the program $needed is not installed; install it and start again"
    done
}

# Opens a lock on file descriptor 9. $1: its name.
open_lock() {
    lock_file=$SLP_LOCKS/secure-llm-$1.lock
    [ -d "$SLP_LOCKS" ] || mkdir -m 0700 "$SLP_LOCKS" 2>/dev/null || [ -d "$SLP_LOCKS" ] ||
        die "the folder of locks $SLP_LOCKS cannot be made"
    exec 9>>"$lock_file" || die "cannot open the lock $lock_file"
}

# Nobody else runs the script of this name until this process ends, however it ends. $1: another name, if two share a lock.
# The lock is held on file descriptor 9; servers that a script starts must not inherit it (9>&-). Who calls another script that
# takes the same lock says so: SLP_LOCK_HELD=NAME. $2: the seconds that somebody else is waited for (default: none).
take_lock() {
    [ "${SLP_LOCK_HELD:-}" != "${1:-$script_name}" ] || return 0
    open_lock "${1:-$script_name}"
    flock -n 9 && return 0
    if [ "${2:-0}" -gt 0 ]; then
        say "another $script_name is running (lock $lock_file); waiting for it, $2 s at most"
        flock -w "$2" 9 && return 0
    fi
    die "another $script_name is running (lock $lock_file); wait for it, or look at it with: fuser $lock_file"
}
