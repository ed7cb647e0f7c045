# Running one of the package's looks at this host (secure_llm_proxy/cli/host) and logging what it says in one line.
# Sourced, never run; expects `root` to be the release's folder and host.sh to be sourced.
# shellcheck shell=sh
: "${root:?}" "${script_name:=}"

# The release's own Python; a clone's; else the system's, which is enough for what uses the standard library alone.
find_look_python() {
    for look_python in "$root/venv/bin/python" "$root/.venv/bin/python" "${PYTHON:-python3}"; do
        if command -v "$look_python" >/dev/null 2>&1; then
            return 0
        fi
    done
    die "there is no Python here (looked for $root/venv, $root/.venv and python3); install python3, or run scripts/install again"
}

# $1: the module; the rest are its arguments. Ends with its exit status.
look() {
    module=$1
    shift
    find_look_python
    trap 'exit 130' INT TERM
    status=0
    # What is for the log comes through a pipe: a look at full disks needs room on none of them.
    # -P: nothing is imported from the folder that this was called in. -B: nothing is left in the release's folder.
    {
        summary=$(PYTHONPATH=$root "$look_python" -B -P -s -m "$module" --root "$root" --summary /dev/fd/3 "$@" 3>&1 >&4) || status=$?
    } 4>&1
    if [ -n "$summary" ]; then
        log_line "$summary"
    fi
    exit "$status"
}
