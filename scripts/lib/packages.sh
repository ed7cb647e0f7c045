# Installing system packages through apt. Sourced, never run.
# shellcheck shell=sh

# True when packages can be installed here: root, on a system with apt.
can_install_packages() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1
}

# Install the named packages. The package lists are fetched only when the install does not succeed without.
# What a package would start at once and at every boot (a database, a web server) is left stopped and disabled: the
# caller wants the program, and starts instances of its own.
install_packages() {
    printf 'Installing system packages: %s\n' "$*"
    packages_log=$(mktemp)
    if ! { apt_install "$@" || { apt-get update && apt_install "$@"; }; } >"$packages_log" 2>&1; then
        tail -n 20 "$packages_log" >&2
        rm -f "$packages_log"
        printf 'apt could not install %s; its last words stand above.\n' "$*" >&2
        return 1
    fi
    rm -f "$packages_log"
    if [ -d /run/systemd/system ]; then
        for package in "$@"; do
            case $package in
                postgresql) systemctl disable --now postgresql.service ;;
                redis-server) systemctl disable --now redis-server.service ;;
                nginx-light) systemctl disable --now nginx.service ;;
            esac
        done
    fi
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
}
