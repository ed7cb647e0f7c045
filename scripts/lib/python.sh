# Finding a Python and making a virtual environment with it. Sourced, never run; expects `root` to be the project's folder
# and packages.sh to be sourced.
# shellcheck shell=sh
: "${root:?}"

python_is_new_enough() {
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Debian ships `venv` without `ensurepip` until python3-venv is installed, so both are asked for.
python_makes_environments() {
    "$1" -I -c 'import ensurepip, venv' >/dev/null 2>&1
}

# Set `python` to a Python >= 3.11 that can make virtual environments; install what it lacks when root.
# `PYTHON` names the one to use. Fails with one sentence.
find_python() {
    python=
    incomplete=
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.13 python3.12 python3.11 python3 python
    fi
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        python_is_new_enough "$candidate" || continue
        if python_makes_environments "$candidate"; then
            python=$(command -v "$candidate")
            return 0
        fi
        [ -n "$incomplete" ] || incomplete=$(command -v "$candidate")
    done
    if [ -z "$incomplete" ]; then
        if [ -n "${PYTHON:-}" ]; then
            printf 'PYTHON=%s is not a Python 3.11 or newer.\n' "$PYTHON" >&2
        elif command -v python3 >/dev/null 2>&1; then
            printf 'Python 3.11 or newer is needed; this machine has %s. Install one (Debian and Ubuntu: apt-get install python3 python3-venv) and start again.\n' \
                "$(python3 -V 2>&1 | head -n 1)" >&2
        else
            printf 'Python 3.11 or newer is needed and none was found. Install one (Debian and Ubuntu: apt-get install python3 python3-venv) and start again.\n' >&2
        fi
        return 1
    fi
    package=$("$incomplete" -I -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if can_install_packages && install_packages "$package" && python_makes_environments "$incomplete"; then
        python=$incomplete
        return 0
    fi
    printf '%s cannot make virtual environments: its venv and pip parts are missing. Install them (Debian and Ubuntu: apt-get install %s) and start again.\n' \
        "$incomplete" "$package" >&2
    return 1
}

# Make sure that the virtual environment $1 holds exactly what the lock file $2 names, and set `python` to its interpreter.
# Nothing is looked for and nothing fetched when it already does.
enter_environment() {
    python=$root/$1/bin/python
    if [ ! -x "$python" ] || ! "$python" -I "$root/scripts/lib/environment.py" --check "$root/$1" "$root/$2" 2>/dev/null; then
        find_python || return 1
        "$python" -I "$root/scripts/lib/environment.py" "$root/$1" "$root/$2" || return 1
        python=$root/$1/bin/python
    fi
}
