# What bench/run and bench/profile need before they start. Sourced, never run; expects `root` to be the project's folder.
# shellcheck shell=sh
: "${root:?}"
# shellcheck source=scripts/lib/packages.sh
. "$root/scripts/lib/packages.sh"
# shellcheck source=scripts/lib/python.sh
. "$root/scripts/lib/python.sh"
# shellcheck source=scripts/lib/servers.sh
. "$root/scripts/lib/servers.sh"

# Set `python` and go to the project's folder. BENCH_PYTHON names an interpreter that has the product's packages already.
# Servers and tools are installed as scripts/test does it; with --quick, --help or BENCH_PYTHON nothing is.
enter_bench() {
    # shellcheck disable=SC2034 # used by whoever sources this
    python=${BENCH_PYTHON:-}
    install=yes
    for argument in "$@"; do
        case $argument in
            --quick | -h | --help) install= ;;
        esac
    done
    if [ -n "$install" ]; then
        need_servers
        need_load_tools
    fi
    [ -n "$python" ] || enter_environment .venv requirements.txt
    cd "$root" || return
}

# The load generator wrk; need_servers has brought the compiler for ours.
need_load_tools() {
    missing=
    has_program wrk || missing="$missing wrk"
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086 # one word per package
    if can_install_packages && install_packages $missing; then
        return 0
    fi
    printf 'The bench needs these programs and they are not installed:%s\nInstall them (Debian and Ubuntu: apt-get install%s) and start again.\n' \
        "$missing" "$missing" >&2
    return 1
}
