"""Run as a program: use the product in a network whose only other host is the provider, and report every other packet.

    unshare [--map-root-user] --net --mount python -m tests.support.isolated_network FOLDER

This process lives in the provider's network namespace; the product gets a second one, joined by a pair of virtual
interfaces over which every packet must pass, name look-ups included. Prints one JSON object.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from tests.support.provider import Provider

PROVIDER, PRODUCT, RESOLVER = "10.231.0.1", "10.231.0.2", "10.231.0.9"
_ETH_P_ALL, _IPV4, _ARP = 0x0003, 0x0800, 0x0806
_SESSION_PATIENCE_S = 240
_ROOT = Path(__file__).resolve().parents[2]


class Listener:
    """Sees every frame on `interface` and keeps what is not a conversation with the provider."""

    def __init__(self, interface: str, provider_port: int) -> None:
        self.strangers: list[str] = []
        self.to_provider = 0
        self._provider_port = provider_port
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.bind((interface, 0))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            frame, address = self._socket.recvfrom(65536)
            if address[2] != socket.PACKET_OUTGOING:
                self._judge(frame)

    def _judge(self, frame: bytes) -> None:
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind == _ARP:
            target = socket.inet_ntoa(frame[38:42])
            if target != PROVIDER:
                self.strangers.append(f"looks for {target}")
        elif kind == _IPV4:
            target, protocol = socket.inet_ntoa(frame[30:34]), frame[23]
            port = struct.unpack_from("!H", frame, 14 + (frame[14] & 15) * 4 + 2)[0]
            if protocol == socket.IPPROTO_TCP and (target, port) == (PROVIDER, self._provider_port):
                self.to_provider += 1
            else:
                self.strangers.append(f"protocol {protocol} to {target}:{port}")
        else:
            self.strangers.append(f"ethertype {kind:#06x}")


def main(folder: Path) -> None:
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
    _run("mount", "--bind", str(resolver), "/etc/resolv.conf")
    _run("ip", "link", "set", "lo", "up")
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as holder:
        try:
            _join(holder.pid)
            with Provider(host=PROVIDER) as provider:
                listener = Listener("outside", provider.port)
                told = _session(holder.pid, folder, provider.base_url)
                strangers, heard = list(listener.strangers), listener.to_provider
                # The listener must be able to hear: now somebody does phone home.
                _inside(holder.pid, sys.executable, "-c", _PHONE_HOME)
                control = listener.strangers[len(strangers) :]
        finally:
            holder.kill()
    print(json.dumps({"session": told, "strangers": strangers, "to_provider": heard, "control": control}))


_PHONE_HOME = """
import socket
for attempt in (lambda: socket.create_connection(("192.0.2.1", 443), timeout=1),
                lambda: socket.getaddrinfo("telemetry.example", 443)):
    try:
        attempt()
    except OSError:
        pass
"""


def _join(pid: int) -> None:
    """`outside` here, `inside` there; in the product's namespace every route leads over it."""
    while Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
        pass
    _run("ip", "link", "add", "outside", "type", "veth", "peer", "name", "inside", "netns", str(pid))
    for namespace in ((), ("nsenter", "-t", str(pid), "-n")):
        _run(*namespace, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    _run("ip", "addr", "add", f"{PROVIDER}/24", "dev", "outside")
    _run("ip", "link", "set", "outside", "up")
    there = ("nsenter", "-t", str(pid), "-n", "ip")
    _run(*there, "link", "set", "lo", "up")
    _run(*there, "addr", "add", f"{PRODUCT}/24", "dev", "inside")
    _run(*there, "link", "set", "inside", "up")
    _run(*there, "route", "add", "default", "via", PROVIDER)


def _session(pid: int, folder: Path, provider_url: str) -> object:
    printed = _inside(pid, sys.executable, "-m", "tests.support.isolated_session", str(folder), provider_url)
    return json.loads(printed)


def _inside(pid: int, *command: str) -> str:
    done = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", *command],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=_SESSION_PATIENCE_S,
    )
    return done.stdout


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
