# The programs that tests and checks start, and the packages that bring them. Sourced, never run; needs packages.sh.
# shellcheck shell=sh

# Debian keeps initdb out of PATH, in one folder per major version.
has_postgresql() {
    command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1
}

# Debian keeps nginx and ip in sbin, which is not in everybody's PATH.
has_program() {
    (PATH=$PATH:/usr/sbin:/sbin && command -v "$1" >/dev/null 2>&1)
}

# Every server and tool that the tests start is installed afterwards. Fails with the list of what is missing.
need_servers() {
    missing=
    has_postgresql || missing="$missing postgresql"
    has_program redis-server || missing="$missing redis-server"
    has_program nginx || missing="$missing nginx-light"
    has_program openssl || missing="$missing openssl"
    has_program age || missing="$missing age"
    has_program curl || missing="$missing curl"
    has_program ip || missing="$missing iproute2"
    has_program sysctl || missing="$missing procps"
    { has_program setpriv && has_program unshare; } || missing="$missing util-linux"
    has_program git || missing="$missing git"
    has_program node || missing="$missing nodejs"
    has_program npm || missing="$missing npm"
    has_program cc || missing="$missing gcc libc6-dev"
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086 # one word per package
    if can_install_packages && install_packages $missing; then
        return 0
    fi
    printf 'The tests start these programs and they are not installed:%s\nInstall them (Debian and Ubuntu: apt-get install%s) and start again.\n' \
        "$missing" "$missing" >&2
    return 1
}

# What scripts/test-host makes and boots clean systems with.
need_machines() {
    missing=
    has_program mmdebstrap || missing="$missing mmdebstrap"
    has_program systemd-nspawn || missing="$missing systemd-container"
    has_program nsenter || missing="$missing util-linux"
    has_program testssl || missing="$missing testssl.sh"
    has_program buildah || missing="$missing buildah"
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086 # one word per package
    if can_install_packages && install_packages $missing; then
        return 0
    fi
    printf 'scripts/test-host boots clean Debians and builds the container image with these, and they are not installed:%s\nInstall them (Debian and Ubuntu: apt-get install%s) and start again.\n' \
        "$missing" "$missing" >&2
    return 1
}
