"""Requests that two servers may read as one or as two: each is one by any honest reading, and holds a second one inside.

`payloads` are of the families CL.TE, TE.CL, TE.TE, CL.0, of lengths and chunks written oddly, of bare line ends and HTTP/0.9.
Whoever answers one of them twice, or passes its inside on as a request, can be made to give one client's answer to another.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from tests.support.http_corpus import CODINGS, LENGTHS

# Long enough for an answer of a server that means to give one; then we hang up, and it stops waiting for the rest.
_SILENCE_S = 1.0
_STATUS_LINE = b"HTTP/1.1 "
INNER = b"GET /v1/models/smuggled HTTP/1.1\r\nHost: localhost\r\n@AUTH@X-Correlation-ID: smuggled\r\n\r\n"


def payloads(authorization: bytes = b"") -> tuple[bytes, ...]:
    """Every one holds `INNER` where only a misreading finds a request; `authorization` is a header line with its end."""
    inner = INNER.replace(b"@AUTH@", authorization)
    size = len(inner)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (size, inner)

    def post(*lines: bytes, body: bytes, start: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
        head = [start, b"Host: localhost", *([authorization.strip()] if authorization else []), *lines, b"", b""]
        return b"\r\n".join(head) + body

    made = [
        # CL.TE and TE.CL: both headers, whichever comes first, whichever is the longer reading
        *(post(b"Content-Length: %d" % len(chunked), b"Transfer-Encoding: " + coding, body=chunked) for coding in CODINGS),
        *(post(b"Transfer-Encoding: " + coding, b"Content-Length: %d" % len(chunked), body=chunked) for coding in CODINGS),
        *(post(b"Content-Length: 4", b"Transfer-Encoding: " + coding, body=chunked) for coding in CODINGS),
        # TE.TE: one of the two is hidden
        *(
            post(b"Transfer-Encoding: chunked", hidden, body=chunked)
            for hidden in (
                b"Transfer-Encoding: cow", b"Transfer-encoding: identity", b"Transfer-Encoding : chunked",
                b" Transfer-Encoding: identity", b"X: y\nTransfer-Encoding: identity", b"Transfer-Encoding:\x0bidentity",
                b"Transfer_Encoding: identity", b"Transfer-Encoding\x00: identity", b"Content_Length: 5",
            )
        ),
        # a length that only one of two readers takes for one
        *(
            post(b"Content-Length: " + odd, body=inner)
            for odd in (
                *(length for length in LENGTHS if not length.strip(b" \t\r").isdigit()),
                b"%d\r" % size, b"+%d" % size, b"%d, %d" % (size, size), b"%d,0" % size, b"0,%d" % size, b"0x%x" % size,
                b"%d_0" % (size // 10),
            )
        ),
        post(b"Content-Length: %d" % size, b"Content-Length: 0", body=inner),
        post(b"Content-Length: 0", b"Content-Length: %d" % size, body=inner),
        post(b"Content-Length: %d" % size, b"Content_Length: 0", body=inner),
        post(b"Content-Length: %d" % size, b"Content-Length : 0", body=inner),
        post(b"Content-Length: %d" % size, b"X: y\rContent-Length: 0", body=inner),
        # to who takes bare line feeds the head ends before the second length, which belongs to the body then
        post(b"Content-Length: %d" % (size + 21), b"X: y\n\nContent-Length: 0", body=inner),
        # CL.0: where no body is expected
        *(
            post(b"Content-Length: %d" % size, body=inner, start=start)
            for start in (
                b"GET /v1/models HTTP/1.1", b"HEAD /health/live HTTP/1.1", b"OPTIONS /chat HTTP/1.1", b"DELETE /chat HTTP/1.1",
                b"GET /health/live HTTP/1.1", b"POST /nowhere HTTP/1.1", b"POST /health HTTP/1.1", b"POST // HTTP/1.1",
                b"POST /chat HTTP/1.0", b"TRACE / HTTP/1.1", b"POST /v1/../chat HTTP/1.1", b"POST /%2e%2e/chat HTTP/1.1",
            )
        ),
        *(
            post(b"Content-Length: %d" % size, header, body=inner)
            for header in (
                b"Expect: 100-continue", b"Expect: 200-ok", b"Connection: Content-Length", b"Connection: close, Content-Length",
                b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
                b"Connection: upgrade\r\nUpgrade: websocket", b"X-HTTP-Method-Override: GET", b"Content-Encoding: gzip",
                b"Content-Type: application/json\r\nContent-Type: text/plain",
            )
        ),
        # chunks whose size one reader takes for another
        *(
            post(b"Transfer-Encoding: chunked", body=odd)
            for odd in (
                b"%x;ext\r\n%b\r\n0\r\n\r\n" % (size, inner), b"%x;a=%b\r\n%b\r\n0\r\n\r\n" % (size, b"b" * 40, inner),
                b"%x;\n%b\r\n0\r\n\r\n" % (size, inner), b"%x\n%b\n0\n\n" % (size, inner), b"%x\r%b\r\n0\r\n\r\n" % (size, inner),
                b"0x%x\r\n%b\r\n0\r\n\r\n" % (size, inner), b"+%x\r\n%b\r\n0\r\n\r\n" % (size, inner),
                b"-%x\r\n%b\r\n0\r\n\r\n" % (size, inner), b" %x\r\n%b\r\n0\r\n\r\n" % (size, inner),
                b"%x \r\n%b\r\n0\r\n\r\n" % (size, inner), b"00000000000000000%x\r\n%b\r\n0\r\n\r\n" % (size, inner),
                b"%x_0\r\n%b\r\n0\r\n\r\n" % (size // 16, inner), b"10000000000000000%x\r\n%b\r\n0\r\n\r\n" % (size, inner),
                b"%x\r\n%bX\r\n0\r\n\r\n" % (size, inner), b"%x\r\n%b0\r\n\r\n" % (size, inner), b"g\r\n" + inner,
                b"\r\n" + inner, b"%x;\r\r\n%b\r\n0\r\n\r\n" % (size, inner), b"ffffffffffffffff\r\n" + inner,
                b"%x\r\n%b\r\n0;%b" % (size, inner, inner), b'%x;"\r\n%b\r\n0\r\n\r\n' % (size, inner),
                b"%x\x00\r\n%b\r\n0\r\n\r\n" % (size, inner), b"%x,%x\r\n%b\r\n0\r\n\r\n" % (size, size, inner),
            )
        ),
        post(b"Transfer-Encoding: chunked", body=chunked, start=b"POST /chat HTTP/1.0"),
        # line ends that one reader takes for the end of the head, and a head inside a header
        *(
            b"GET /v1/models HTTP/1.1" + end + b"Host: localhost" + end + b"X: y" + before + inner
            for end, before in (
                (b"\r\n", b"\r\r"), (b"\r\n", b"\n\r"), (b"\r\n", b"\x0b\x0b"), (b"\r\n", b"\x00\r\n\x00\r\n"),
                (b"\r", b"\r\r"),
            )
        ),
        b"GET /v1/models\r\n" + inner,
        b"GET /v1/models HTTP/0.9\r\n" + inner,
        b"GET /v1/models HTTP/1.1 HTTP/1.1\r\nHost: localhost\r\nX: " + inner,
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: y\r\n " + inner,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + inner,
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + inner,
    ]  # fmt: skip
    return tuple(dict.fromkeys(made))


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go: TLS at a port, or a unix socket."""

    address: tuple[str, int] | Path
    tls: ssl.SSLContext | None = None

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        if isinstance(self.address, Path):
            with socket.socket(socket.AF_UNIX) as plain:
                plain.settimeout(60)
                plain.connect(str(self.address))
                yield plain
            return
        with socket.create_connection(self.address, 60) as plain:
            if self.tls is None:
                yield plain
                return
            with self.tls.wrap_socket(plain, server_hostname="localhost") as line:
                yield line


def answers_to(server: Server, payload: bytes, *, first_within_s: float = _SILENCE_S) -> bytes:
    """Everything that comes back until the server hangs up or is silent. Whoever is sure of an answer gives it more time."""
    received = b""
    with suppress(OSError), server.connection() as line:
        with suppress(OSError):
            line.sendall(payload)
        line.settimeout(first_within_s)
        while piece := line.recv(65536):
            received += piece
            line.settimeout(_SILENCE_S)
    return received


def count_of(received: bytes) -> int:
    """Answers in what came back, interim ones (100) left out. No answer of ours holds a status line in its body."""
    return received.count(_STATUS_LINE) - received.count(b"HTTP/1.1 100 ")


@dataclass(slots=True)
class Campaign:
    """Attackers and ordinary clients at once. What must not be is in `second_answers` and `mix_ups`."""

    server: Server
    authorization: bytes
    statuses: Counter[str] = field(default_factory=Counter)
    second_answers: list[bytes] = field(default_factory=list)
    mix_ups: list[str] = field(default_factory=list)
    attacks: int = 0
    ordinary: int = 0

    def run(self, requests: int, *, clients: int, share_of_attacks: float) -> None:
        """`requests` in all, by `clients` at a time; every payload is sent at least once when there is room for it."""
        attacks = payloads(self.authorization)
        wanted = max(int(requests * share_of_attacks), 1)
        queue = [attacks[number % len(attacks)] for number in range(wanted)]
        random.Random(requests).shuffle(queue)
        pieces = [queue[number::clients] for number in range(clients)]
        each = (requests - wanted) // clients
        with ThreadPoolExecutor(2 * clients) as pool:
            running = [pool.submit(self._attack, piece) for piece in pieces]
            running += [pool.submit(self._ask, f"{requests}-{number}", each) for number in range(clients)]
            for one in running:
                one.result(3600)

    def _attack(self, queue: list[bytes]) -> None:
        for payload in queue:
            received = answers_to(self.server, payload)
            self.attacks += 1
            self.statuses[received[9:12].decode("ascii", "replace") or "none"] += 1
            if count_of(received) > 1 or b"smuggled" in received:
                self.second_answers.append(payload)

    def _ask(self, name: str, times: int) -> None:
        """Ordinary requests over kept connections, each with a mark that its answer must repeat."""
        done = 0
        while done < times:
            with suppress(OSError), self.server.connection() as line, line.makefile("rb") as answers:
                while done < times:
                    mark = f"mark-{name}-{done}"
                    done += 1
                    self._exchange(line, cast("BinaryIO", answers), mark)

    def _exchange(self, line: socket.socket, answers: BinaryIO, mark: str) -> None:
        asked = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n%bX-Correlation-ID: %b\r\n\r\n"
        line.sendall(asked % (self.authorization, mark.encode()))
        headers = _headers_of(answers)
        self.ordinary += 1
        self.statuses[f"ordinary {headers.get('status')}"] += 1
        if headers.get("x-correlation-id") != mark:
            self.mix_ups.append(f"{mark} was answered {headers}")


def _headers_of(answers: BinaryIO) -> dict[str, str]:
    """One answer's status and headers; its body is read away."""
    first = answers.readline()
    if not first:
        raise ConnectionResetError
    headers = {"status": first.split()[1].decode("ascii")}
    while (raw := answers.readline()) not in {b"\r\n", b""}:
        name, _, value = raw.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        while size := int(answers.readline(), 16):
            answers.read(size + 2)
        answers.readline()
    else:
        answers.read(int(headers.get("content-length", "0")))
    return headers
