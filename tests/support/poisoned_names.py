"""Run as a program: connect to providers by names whose answers are forged, and report where connections arrived.

    unshare [--map-root-user] --net --mount python -m tests.support.poisoned_names FOLDER

The namespace's loopback carries public, private, link-local and metadata addresses, a server listens on all of them, and the
resolver's only server is ours. Nothing of the product is replaced: lookups and connections are the system's. Prints one
JSON object.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from secure_llm_proxy.upstream.destinations import read_own_hosts
from secure_llm_proxy.upstream.egress_list import NO_EGRESS_LIST, EgressList
from secure_llm_proxy.upstream.endpoint import parse_endpoint, tls_context
from secure_llm_proxy.upstream.wire import Wire, WireBroken, WireTimedOut
from tests.support.certificates import Certificate, make_certificate
from tests.support.clients import ask
from tests.support.running_proxy import RunningProxy

PUBLIC, PUBLIC_2, PUBLIC_6 = "93.184.216.34", "93.184.216.35", "2606:2800::34"
FORBIDDEN = (
    "10.0.0.7", "127.0.0.1", "192.168.7.7", "100.64.0.7", "169.254.169.254", "169.254.0.7", "100.100.100.200",
    "168.63.129.16", "::1", "fd00::7", "fd00:ec2::254", "::ffff:10.0.0.7", "::ffff:169.254.169.254", "::10.0.0.7",
    "64:ff9b::a00:7", "64:ff9b::a9fe:a9fe", "2002:a00:7::1", "2001:0:4136:e378:8000:63bf:f5ff:fff8", "0.0.0.0", "::",  # noqa: S104
)  # fmt: skip
# The kernel refuses to send there, as it does where the egress filter of a host refuses.
REFUSED = "93.184.217"
METADATA = ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16")
KEY = "sk-poisoned-7Q2xW9"
_A, _AAAA = 1, 28
_ANSWER = b'{"object":"chat.completion","model":"test-model","choices":[{"index":0,"message":{"role":"assistant","content":"ok"}}]}'
_PATIENCE_S = 30.0


class Names:
    """The only DNS server. `zone` holds for each name the answers to successive lookups, the last of which is repeated:
    addresses, or one of the words `servfail`, `nxdomain`, `silence`, `garbage`, `other-name`.
    """

    def __init__(self) -> None:
        self.zone: dict[str, list[tuple[str, ...]]] = {}
        self._asked: dict[tuple[str, int], int] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            answer = self._answer(query)
            if answer is not None:
                self._socket.sendto(answer, client)

    def _answer(self, query: bytes) -> bytes | None:
        name, end = _read_name(query)
        (kind,) = struct.unpack_from("!H", query, end)
        question = query[12 : end + 4]
        rounds = self.zone.get(name, [("nxdomain",)])
        number = self._asked[name, kind] = self._asked.get((name, kind), -1) + 1
        said = rounds[min(number, len(rounds) - 1)]
        if said == ("silence",):
            return None
        if said == ("garbage",):
            return query[:2] + b"\x81\x80" + b"\xff" * 40
        if said in (("servfail",), ("nxdomain",)):
            return query[:2] + (b"\x81\x82" if said == ("servfail",) else b"\x81\x83") + b"\0\1\0\0\0\0\0\0" + question
        owner = b"\xc0\x0c"
        if said == ("other-name",):
            owner, said = b"\5other\7example\0", (PUBLIC,)
        wanted = [address for address in said if (":" in address) == (kind == _AAAA)] if kind in (_A, _AAAA) else []
        records = b""
        for address in wanted:
            packed = socket.inet_pton(socket.AF_INET6 if kind == _AAAA else socket.AF_INET, address)
            records += owner + struct.pack("!HHIH", kind, 1, 0, len(packed)) + packed
        return query[:2] + b"\x81\x80" + struct.pack("!HHHH", 1, len(wanted), 0, 0) + question + records


def _read_name(query: bytes) -> tuple[str, int]:
    labels, position = [], 12
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode("ascii").lower())
        position += 1 + length
    return ".".join(labels), position + 1


@dataclass(frozen=True, slots=True)
class Arrival:
    address: str
    received: bytes


class Provider:
    """Answers on every address of this namespace, closes after each answer, and notes which address was connected to."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._arrivals: list[Arrival] = []
        self._listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def taken(self) -> list[Arrival]:
        """What has arrived since the last time."""
        arrived, self._arrivals = self._arrivals, []
        return arrived

    def _accept(self) -> None:
        while True:
            raw, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        address, received = raw.getsockname()[0].removeprefix("::ffff:"), b""
        raw.settimeout(_PATIENCE_S)
        with suppress(OSError), raw:
            try:
                connection = self._tls.wrap_socket(raw, server_side=True) if self._tls else raw
                with connection:
                    received = connection.recv(65_536)
                    if received:
                        connection.sendall(
                            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
                            b"Content-Length: %d\r\n\r\n%b" % (len(_ANSWER), _ANSWER)
                        )
            finally:
                self._arrivals.append(Arrival(address, received))


def main(folder: Path) -> None:
    _own_resolver(folder)
    _own_addresses()
    names = Names()
    certificate = make_certificate(folder / "certificate", names="DNS:*.llm.example,DNS:gpu.internal,DNS:localhost")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate.certificate, certificate.key)
    secure, plain = Provider(server), Provider(None)
    wire = _Wires(names, secure, plain, certificate)
    told = {
        "control": wire.control(),
        "forbidden": {address: wire.to("api.llm.example", [(address,)]) for address in FORBIDDEN},
        "hosts_file": wire.opened("https://listed-in-hosts.llm.example"),
        "several": wire.to("api.llm.example", [("10.0.0.7", PUBLIC, "169.254.169.254", "fd00::7", "::ffff:127.0.0.1")]),
        "own": {address: wire.to("gpu.internal", [(address,)]) for address in ("10.0.0.7", "fd00::7", *METADATA)},
        "listed": wire.to("api.llm.example", [("10.0.0.7",)], own=("*.llm.example",)),
        "listed_metadata": {
            address: wire.to("api.llm.example", [(address,)], own=("*.llm.example", "169.254.0.0/16", "fd00::/8"))
            for address in METADATA
        },
        "literal": {
            address: wire.opened(f"http://[{address}]" if ":" in address else f"http://{address}")
            for address in ("10.0.0.7", "169.254.169.254", "fd00:ec2::254")
        },
        "plain": wire.to("gpu.internal", [(PUBLIC,)], scheme="http"),
        "rebinding": wire.rebinding(),
        "absolute": wire.absolute(),
        "failing": {
            word: wire.to(f"{word}.llm.example", [(word,)])
            for word in ("servfail", "nxdomain", "silence", "garbage", "other-name")
        },
        "nothing": wire.to("nothing.llm.example", [()]),
        "filtered": wire.filtered(folder),
        "product": _product(folder, names, secure, certificate),
    }
    print(json.dumps(told))


class _Wires:
    """Opens connections of the upstream room, one after the other, and tells what came of each."""

    def __init__(self, names: Names, secure: Provider, plain: Provider, certificate: Certificate) -> None:
        self._names = names
        self._secure, self._plain = secure, plain
        self._context = tls_context(verify=True, ca_file=certificate.authority)
        self._count = 0

    def control(self) -> dict[str, list[str]]:
        """Every address can be reached by who is not held back; else silence would prove nothing."""
        reached: dict[str, list[str]] = {"reached": [], "expected": [PUBLIC, PUBLIC_2, PUBLIC_6, *FORBIDDEN]}
        for address in reached["expected"]:
            with suppress(OSError), socket.create_connection((address, self._plain.port), timeout=_PATIENCE_S):
                reached["reached"].append(address)
        # Each is noted when its connection has ended. What came later would count for the next one.
        noted, until_s = 0, time.monotonic() + _PATIENCE_S
        while noted < len(reached["reached"]) and time.monotonic() < until_s:
            time.sleep(0.01)
            noted += len(self._plain.taken())
        return reached

    def to(
        self, name: str, rounds: list[tuple[str, ...]], *, own: tuple[str, ...] = (), scheme: str = "https"
    ) -> dict[str, object]:
        """Open one connection to a fresh name that is answered so."""
        self._count += 1
        host = f"h{self._count}-{name}" if name.endswith(".llm.example") else name
        self._names.zone[host] = rounds
        return self.opened(f"{scheme}://{host}", own=own)

    def filtered(self, folder: Path) -> dict[str, object]:
        """Where a filter refuses every address but those that it lists, for a name that leads to another one each time."""
        rounds: list[tuple[str, ...]] = [(f"{REFUSED}.{number}",) for number in range(1, 21)]
        file, wanted = folder / "let-through.json", folder / "wanted"
        told: dict[str, object] = {}
        cases: tuple[tuple[str, list[str] | None, float, list[tuple[str, ...]]], ...] = (
            ("no list", None, 0, rounds),
            ("listed", [PUBLIC], 0, rounds),
            ("listed partly", [PUBLIC], 0, [(f"{REFUSED}.1", PUBLIC_2, PUBLIC)]),
            ("listed another", [PUBLIC_2, PUBLIC_6], 0, rounds[:1]),
            ("none listed", [], 0, rounds[:1]),
            ("listed and forbidden", ["10.0.0.7", "169.254.169.254", "::1"], 0, rounds[:1]),
            ("rebound", [PUBLIC], 0, [("10.0.0.7",)]),
            ("left behind", [PUBLIC], 9999, [(PUBLIC_2,)]),
        )
        for case, listed, age_s, answers in cases:
            self._count += 1
            host = f"h{self._count}-filtered.llm.example"
            self._names.zone[host] = answers
            wanted.unlink(missing_ok=True)
            if listed is not None:
                _publish(file, host, self._secure.port, listed, age_s)
            egress_list = EgressList(file if listed is not None else None, wanted=wanted)
            outcomes = [self.opened(f"https://{host}", egress_list=egress_list) for _ in answers]
            told[case] = {"outcomes": outcomes, "wanted": wanted.exists()}
        return told

    def opened(
        self, url: str, *, own: tuple[str, ...] = (), egress_list: EgressList = NO_EGRESS_LIST
    ) -> dict[str, object]:
        provider = self._secure if url.startswith("https") else self._plain
        endpoint = parse_endpoint(f"{url}:{provider.port}/v1", read_own_hosts(own))
        wire = Wire(endpoint, self._context if endpoint.secure else None, egress_list)
        failure = None
        try:
            wire.open(time.monotonic() + _PATIENCE_S)
            wire.send(b"GET / HTTP/1.1\r\n\r\n", time.monotonic() + _PATIENCE_S)
            wire.receive(time.monotonic() + _PATIENCE_S)
        except WireBroken as error:
            failure = str(error)
        except WireTimedOut:
            failure = "timed out"
        finally:
            wire.close()
        return {"failure": failure, "reached": _settled(provider, expected=failure is None)}

    def absolute(self) -> dict[str, object]:
        """A name with the dot of the root behind it."""
        self._names.zone["absolute.llm.example"] = [(PUBLIC,)]
        return self.opened("https://absolute.llm.example.")

    def rebinding(self) -> list[dict[str, object]]:
        """A name that leads to the world at first, then home, then to the world again."""
        rounds = [(PUBLIC,), ("169.254.169.254",), (PUBLIC_2, "127.0.0.1"), ("10.0.0.7", "::1"), (PUBLIC_6,)]
        self._names.zone["rebinding.llm.example"] = rounds
        return [self.opened("https://rebinding.llm.example") for _ in rounds]


def _publish(file: Path, host: str, port: int, addresses: list[str], age_s: float) -> None:
    """As scripts/egress does."""
    now_s = time.monotonic()
    until_s = dict.fromkeys(addresses, now_s + 3600)
    told = {
        "format": 1,
        "looked_s": now_s - age_s,
        "places": [{"host": host, "port": port, "until_s": until_s}],
    }
    draft = file.with_name("draft.json")
    draft.write_text(json.dumps(told), "utf-8")
    draft.replace(file)


def _settled(provider: Provider, *, expected: bool) -> list[str]:
    """Where connections arrived; who expects one waits for it."""
    arrived: list[Arrival] = []
    until_s = time.monotonic() + _PATIENCE_S
    while not arrived and expected and time.monotonic() < until_s:
        time.sleep(0.01)
        arrived = provider.taken()
    return [arrival.address for arrival in [*arrived, *provider.taken()]]


def _product(folder: Path, names: Names, provider: Provider, certificate: Certificate) -> dict[str, object]:
    """The whole product with a provider whose name is turned to a metadata service while it runs."""
    names.zone["turned.llm.example"] = [(PUBLIC,)]
    settings = {
        "LLM_API_URL": f"https://turned.llm.example:{provider.port}/v1",
        "LLM_API_KEY": KEY,
        "LLM_CA_FILE": str(certificate.authority),
        "LLM_MODELS": "test-model",
        "EGRESS_LIST": str(folder / "let-through.json"),
        # Of what fails once, it says so once.
        "LLM_RETRIES": "0",
    }
    _publish(folder / "let-through.json", "another.llm.example", 443, [PUBLIC], 0)
    body = {"model": "test-model", "messages": [{"role": "user", "content": "a secret question"}]}
    told: dict[str, object] = {}
    with RunningProxy(folder / "product", settings) as proxy:
        key = proxy.create_api_key()
        provider.taken()
        before = ask(proxy, "POST", "/v1/chat/completions", key=key, body=body)
        told["before"] = {"status": before.status, "reached": _settled(provider, expected=True)}
        after = {}
        for address in ("169.254.169.254", "127.0.0.1", "::ffff:10.0.0.7"):
            names.zone["turned.llm.example"] = [(address,)]
            answer = ask(
                proxy, "POST", "/v1/chat/completions", key=key, body={**body, "stream": address == "127.0.0.1"}
            )
            after[address] = {
                "status": answer.status,
                "headers": dict(answer.headers),
                "body": answer.body.decode(),
                "reached": _settled(provider, expected=False),
            }
        told["after"] = after
        names.zone["turned.llm.example"] = [(f"{REFUSED}.1",)]
        told["refused"] = ask(proxy, "POST", "/v1/chat/completions", key=key, body=body).status
        names.zone["turned.llm.example"] = [(PUBLIC,)]
        again = ask(proxy, "POST", "/v1/chat/completions", key=key, body=body)
        told["again"] = {"status": again.status, "reached": _settled(provider, expected=True)}
    # Lines are written together; the last of them when it stops.
    told["log"] = proxy.log_text()
    return told


def _own_resolver(folder: Path) -> None:
    for place, content in (
        ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
        ("hosts", "127.0.0.1 localhost\n10.0.0.7 listed-in-hosts.llm.example\n"),
    ):
        (folder / place).write_text(content, "utf-8")
        Path("/etc", place).touch()
        _run("mount", "--bind", str(folder / place), f"/etc/{place}")


def _own_addresses() -> None:
    _run("ip", "link", "set", "lo", "up")
    for address in (PUBLIC, PUBLIC_2, PUBLIC_6, *FORBIDDEN):
        if address not in ("127.0.0.1", "::1", "0.0.0.0", "::") and not address.startswith(("::ffff:", "::10.")):  # noqa: S104
            _run("ip", "addr", "add", f"{address}/{128 if ':' in address else 32}", "dev", "lo")
    _run("ip", "addr", "add", "::10.0.0.7/128", "dev", "lo")
    _run("ip", "route", "add", "prohibit", f"{REFUSED}.0/24")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
