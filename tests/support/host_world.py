"""The network around an installed machine: a provider with TLS, a name server, and strangers that it must not reach.

It lives in the network namespace of the tests (scripts/test-host makes one that leads nowhere else): a bridge with the
addresses of a provider and of strangers; machines are plugged in.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.certificates import Certificate, make_certificate
from tests.support.provider import Provider

BRIDGE = "world0"
NETWORK = "10.231.7"
PROVIDER = f"{NETWORK}.1"
STRANGER = f"{NETWORK}.200"
# What clients call the installed machines, and where they are.
MACHINES = {
    "llm.example.test": f"{NETWORK}.10",
    "second.example.test": f"{NETWORK}.11",
    "updated.example.test": f"{NETWORK}.12",
    # Stands in for the first one when that is lost.
    "replacement.example.test": f"{NETWORK}.13",
}
# Where the provider answers too while its name rotates.
ROTATION = f"{NETWORK}.96/27"
METADATA = "169.254.169.254"
PROVIDER_NAME = "llm.provider.test"
PROVIDER6 = "fd00:231:7::1"
STRANGER6 = "fd00:231:7::200"
_A, _AAAA, _IN = 1, 28, 1
_NOT_THERE = 3


@dataclass(slots=True)
class World:
    """`with World(folder) as world:` stands until the block ends. Needs to be root in a network namespace of its own."""

    folder: Path
    provider: Provider
    certificate: Certificate
    names: NameServer

    @classmethod
    def make(cls, folder: Path) -> Self:
        if os.environ.get("TEST_HOST_NETWORK") != NETWORK:
            raise RuntimeError("The host tests run in a network of their own: start them by scripts/test-host.")
        # What `ip netns` leaves in there must not meet what another run left.
        Path("/run/netns").mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True, timeout=30)
        _ip("link", "set", "lo", "up")
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("link", "set", BRIDGE, "up")
        for address in (f"{PROVIDER}/24", f"{STRANGER}/24", f"{METADATA}/32"):
            _ip("addr", "add", address, "dev", BRIDGE)
        for address in (f"{PROVIDER6}/64", f"{STRANGER6}/64"):
            _ip("-6", "addr", "add", address, "dev", BRIDGE, "nodad")
        hosts = folder / "hosts"
        hosts.write_text(
            "127.0.0.1 localhost\n" + "".join(f"{where} {name}\n" for name, where in MACHINES.items()), "ascii"
        )
        subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True, timeout=30)
        certificate = make_certificate(folder / "provider", names=f"DNS:{PROVIDER_NAME}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        # At every address of this network that nobody else answers at: its name may rotate.
        provider = Provider(host="0.0.0.0", tls=context)  # noqa: S104
        return cls(folder, provider, certificate, NameServer({PROVIDER_NAME: PROVIDER}))

    @contextmanager
    def moved(self, name: str, where: str) -> Iterator[None]:
        """Within the block clients that ask for the machine `name` come to the address of another."""
        hosts = self.folder / "hosts"
        before = hosts.read_bytes()
        # Written over, not replaced: the file is mounted where the resolver reads it.
        hosts.write_bytes(before.replace(f"{MACHINES[name]} {name}".encode(), f"{MACHINES[where]} {name}".encode()))
        try:
            yield
        finally:
            hosts.write_bytes(before)

    @contextmanager
    def rotating(self, each_s: float = 1.0) -> Iterator[list[str]]:
        """Within the block the provider's name leads to another address each second, and to that alone; all of them answer, also
        afterwards: who asks may know them for a day.

        Yields those that were named so far.
        """
        named: list[str] = []
        over = threading.Event()
        addresses = cycle(str(address) for address in IPv4Network(ROTATION).hosts())

        def turn() -> None:
            while not over.is_set():
                self.names.names[PROVIDER_NAME] = address = next(addresses)
                named.append(address)
                over.wait(each_s)

        # One route for all of them: the kernel answers for each.
        _ip("route", "replace", "local", ROTATION, "dev", BRIDGE)
        turning = threading.Thread(target=turn, daemon=True)
        turning.start()
        try:
            yield named
        finally:
            over.set()
            turning.join(20)
            self.names.names[PROVIDER_NAME] = PROVIDER

    @property
    def provider_url(self) -> str:
        return f"https://{PROVIDER_NAME}:{self.provider.port}/v1"

    def __enter__(self) -> Self:
        self.provider.__enter__()
        self.names.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.names.__exit__(kind, error, trace)
        self.provider.stop()
        _ip("link", "delete", BRIDGE)


class NameServer:
    """Answers for IPv4 addresses of `names` over UDP, on the provider's address; every other name does not exist.

    `names` may be changed at any time. While `silent`, nobody gets an answer. `asked` are the names that were asked for.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.silent = False
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._socket.bind((PROVIDER, 53))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A thread in recvfrom is not woken by close; an empty datagram is.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", (PROVIDER, 53))
        self._thread.join(20)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, who = self._socket.recvfrom(4096)
            if not question:
                return
            if not self.silent and len(question) > 12:
                self._socket.sendto(self._answer(question), who)

    def _answer(self, question: bytes) -> bytes:
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode("ascii", "replace"))
            at += 1 + question[at]
        kind, _ = struct.unpack_from("!HH", question, at + 1)
        asked, name = question[12 : at + 5], ".".join(labels).lower()
        self.asked.append(name)
        address = self.names.get(name)
        if address is None:
            return question[:2] + struct.pack("!HHHHH", 0x8180 | _NOT_THERE, 1, 0, 0, 0) + asked
        if kind != _A:
            return question[:2] + struct.pack("!HHHHH", 0x8180, 1, 0, 0, 0) + asked
        record = struct.pack("!HHHIH", 0xC00C, _A, _IN, 5, 4) + socket.inet_aton(address)
        return question[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + asked + record


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30)
