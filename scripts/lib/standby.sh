# A second web service for a while: a release's own unit, with its real path, on a socket of its own or beside the one in force
# on the socket that nginx reaches. Runtime units: a reboot forgets them. Sourced by scripts/update.
# shellcheck shell=sh

: "${SLP_CODE:?}" "${SLP_RELEASES:?}" "${web_unit:?}" "${web_socket_unit:?}"

standby=secure_llm_proxy-standby
standby_socket=/run/secure_llm_proxy-standby.sock
standby_place=${SLP_RUNTIME_UNITS:-/run/systemd/system}

# start_standby RELEASE alone|beside: afterwards it accepts requests; `beside` those of clients, too. Fails when it does not.
start_standby() {
    install -d -m 0755 "$standby_place"
    cat >"$standby_place/$standby.socket" <<TEXT
[Unit]
Description=Secure LLM Proxy, where a release is asked for its health before it serves

[Socket]
ListenStream=$standby_socket
SocketMode=0600
RemoveOnStop=yes
TEXT
    sockets=$standby.socket
    [ "$2" = alone ] || sockets="$web_socket_unit $sockets"
    sed -e "/^\(Exec[A-Za-z]*\|WorkingDirectory\)=/s#$SLP_CODE\(/\|\$\)#$SLP_RELEASES/$1\1#" \
        -e '/^\(Sockets\|Restart\|RestartSec\)=/d' -e "s#^\[Service\]#&\nSockets=$sockets\nRestart=no#" \
        -e 's/^Description=.*/Description=Secure LLM Proxy, web service of a release that is being put in force/' \
        -e '/^\[Install\]/,$d' "$SLP_RELEASES/$1/deploy/systemd/$web_unit" >"$standby_place/$standby.service"
    # What this host's operator changed of the unit holds for this one as well.
    rm -rf "${standby_place:?}/$standby.service.d"
    for place in /etc/systemd/system /run/systemd/system; do
        if [ -d "$place/$web_unit.d" ]; then
            install -d -m 0755 "$standby_place/$standby.service.d"
            find "$place/$web_unit.d" -maxdepth 1 -name '*.conf' -exec cp -t "$standby_place/$standby.service.d" '{}' +
        fi
    done
    systemctl daemon-reload
    systemctl reset-failed "$standby.service" 2>/dev/null || :
    if ! { systemctl start "$standby.socket" && systemctl restart "$standby.service"; }; then
        journalctl -u "$standby.service" -n 15 --no-pager -o cat >&2 || :
        return 1
    fi
}

# It ends what it does, and is forgotten.
stop_standby() {
    [ -f "$standby_place/$standby.service" ] || return 0
    # It says that the socket of the service in force could start it again: it is not what that socket starts.
    systemctl stop "$standby.service" "$standby.socket" 2>/dev/null || :
    rm -rf "${standby_place:?}/$standby.service" "${standby_place:?}/$standby.socket" "${standby_place:?}/$standby.service.d"
    systemctl daemon-reload
    systemctl reset-failed "$standby.service" 2>/dev/null || :
}
