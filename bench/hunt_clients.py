"""Clients of the mix-up hunt: they ask, pipeline, dawdle, give up and leave, and check every byte that comes back.

A request's marker is drawn anew each time; whatever arrives on its connection while it is the one being answered may hold
that marker and no other. asyncio and plain sockets, so that hundreds of clients share one core.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from bench.marked_provider import MARKER, Deed, Order

_PATIENCE_S = 30.0
_EVENT_NUMBER = re.compile(rb"(mk-[0-9a-f]{16}) n=(\d+)")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 [1-5]\d\d ")
_REQUEST_ID = re.compile(rb"\r\nx-request-id: ([^\r]+)\r\n", re.IGNORECASE)
# Deeds by how often they are asked for; a stall costs its client the product's patience, so it is rare.
_DEEDS: tuple[tuple[Deed, int], ...] = (
    (Deed.ANSWER, 420),
    (Deed.CHUNKED, 120),
    (Deed.STREAM, 260),
    (Deed.CLOSE, 30),
    (Deed.QUIT, 20),
    (Deed.SURPLUS, 10),
    (Deed.EARLY, 20),
    (Deed.RESET, 20),
    (Deed.HALF, 20),
    (Deed.HALF_RESET, 20),
    (Deed.HALF_STREAM, 20),
    (Deed.STALL, 1),
    (Deed.STALL_STREAM, 1),
    (Deed.ERROR, 20),
    (Deed.BUSY, 10),
)
_WHOLE = frozenset({Deed.ANSWER, Deed.CHUNKED, Deed.STREAM, Deed.CLOSE, Deed.QUIT, Deed.SURPLUS, Deed.LATE_SURPLUS})
_STREAMED = frozenset({Deed.STREAM, Deed.HALF_STREAM, Deed.STALL_STREAM})
_LONGEST_HOLD_MS = 12
_CHAT_SHARE = 0.2
_PIPELINED_MAX = 5


@dataclass(frozen=True, slots=True)
class Mixup:
    """What went wrong with one answer: `what`, whose request it was, and a piece of what was read."""

    what: str
    marker: str
    seen: str


@dataclass
class Findings:
    """`answered` maps the request id of each whole 200 answer to its marker; `tally` counts what became of the requests."""

    asked: int = 0
    answered: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    tally: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    mixups: list[Mixup] = field(default_factory=list)
    request_ids: set[str] = field(default_factory=set)

    def blame(self, what: str, marker: str, seen: bytes) -> None:
        self.mixups.append(Mixup(what, marker, seen[:400].decode("utf-8", "replace")))


@dataclass(frozen=True, slots=True)
class Door:
    """Where the product is asked. `late_surplus`: the provider also sends what HTTP/1.1 can't exclude."""

    host: str
    port: int
    keys: Sequence[str]
    tls: ssl.SSLContext | None = None
    late_surplus: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    order: Order
    is_chat: bool
    """At the origin's door, whose last event repeats all that the stream said."""
    wire: bytes

    @property
    def marker(self) -> bytes:
        return self.order.marker.encode()


async def hunt(
    door: Door, *, requests: int, clients: int, seed: int, progress: Callable[[Findings], None] | None = None
) -> Findings:
    """Send `requests` marked requests over `clients` clients at once; what they found. The audit log is somebody else's to check."""
    findings = Findings()
    everyone = [_Client(door, findings, requests, random.Random(f"{seed}/{n}"), n) for n in range(clients)]  # noqa: S311  repeatable on purpose
    reporter = asyncio.create_task(_report(findings, progress)) if progress else None
    try:
        async with asyncio.TaskGroup() as group:
            for client in everyone:
                group.create_task(client.run())
    finally:
        if reporter is not None:
            reporter.cancel()
    return findings


async def _report(findings: Findings, progress: Callable[[Findings], None]) -> None:
    while True:
        await asyncio.sleep(5)
        progress(findings)


class _Client:
    """One client after the other's manner, chosen anew for each request; most of the time over a kept connection."""

    def __init__(self, door: Door, findings: Findings, requests: int, dice: random.Random, number: int) -> None:
        self._door = door
        self._findings = findings
        self._requests = requests
        self._dice = dice
        self._key = door.keys[number % len(door.keys)]
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        deeds = (*_DEEDS, (Deed.LATE_SURPLUS, 20)) if door.late_surplus else _DEEDS
        self._deeds, self._deed_weights = zip(*deeds, strict=True)
        self._habits = (
            (self._ask, 620),
            (self._pipeline, 90),
            (self._leave, 90),
            (self._give_up, 80),
            (self._dawdle, 50),
            (self._leave_in_midst_of_asking, 20),
            (self._pause, 50),
        )

    async def run(self) -> None:
        habits, weights = zip(*self._habits, strict=True)
        while self._findings.asked < self._requests:
            [habit] = self._dice.choices(habits, weights)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    keeps = await habit()
            except TimeoutError:
                self._findings.blame(f"no answer within {_PATIENCE_S:g} s ({habit.__name__})", "-", b"")
                keeps = False
            except (OSError, EOFError) as error:
                self._count(f"broken: {type(error).__name__}")
                keeps = False
            if not keeps:
                self._drop()
        self._drop()

    # --- habits: each True when the connection can be used again -------------------------------------------------------

    async def _ask(self) -> bool:
        reader, writer = await self._connection()
        request = self._new_request()
        writer.write(request.wire)
        self._count("asked and read")
        return await self._read(reader, request)

    async def _pipeline(self) -> bool:
        reader, writer = await self._connection()
        requests = [self._new_request() for _ in range(self._dice.randint(2, _PIPELINED_MAX))]
        writer.write(b"".join(request.wire for request in requests))
        self._count("pipelined", len(requests))
        for request in requests:
            if not await self._read(reader, request):
                return False
        return True

    async def _leave(self) -> bool:
        """Hang up, or reset, before or while the answer comes."""
        reader, writer = await self._connection()
        request = self._new_request()
        writer.write(request.wire)
        self._count("left")
        await asyncio.sleep(self._dice.random() * 0.02)
        # no wait for more: what is there already must be this request's
        seen = await self._what_is_there(reader)
        self._check_part(request, seen)
        if self._dice.random() < 0.5:  # noqa: PLR2004  half of them
            held = writer.get_extra_info("socket")
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return False

    async def _give_up(self) -> bool:
        """A client's own timeout: it waits a moment for the whole answer, then hangs up."""
        reader, writer = await self._connection()
        request = self._new_request()
        writer.write(request.wire)
        self._count("timed out by the client, or read")
        try:
            async with asyncio.timeout(0.005 + self._dice.random() * 0.04):
                return await self._read(reader, request)
        except TimeoutError:
            return False

    async def _dawdle(self) -> bool:
        """Send the request in pieces."""
        reader, writer = await self._connection()
        request = self._new_request()
        places = sorted(self._dice.sample(range(1, len(request.wire)), 3))
        for begin, end in zip([0, *places], [*places, len(request.wire)], strict=True):
            writer.write(request.wire[begin:end])
            await asyncio.sleep(0.001)
        self._count("sent in pieces")
        return await self._read(reader, request)

    async def _leave_in_midst_of_asking(self) -> bool:
        _, writer = await self._connection()
        request = self._new_request()
        writer.write(request.wire[: self._dice.randrange(1, len(request.wire))])
        self._count("left in the midst of asking")
        await asyncio.sleep(0.002)
        return False

    async def _pause(self) -> bool:
        """Ask over a connection that was idle for a while."""
        await self._connection()
        await asyncio.sleep(self._dice.random() * 0.05)
        return await self._ask()

    # --- connection and request ---------------------------------------------------------------------------------------

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._pair is None:
            self._pair = await asyncio.open_connection(
                self._door.host, self._door.port, ssl=self._door.tls, limit=2**20
            )
            self._count("connections", 1)
        return self._pair

    def _drop(self) -> None:
        if self._pair is not None:
            self._pair[1].close()
            self._pair = None

    def _new_request(self) -> _Request:
        self._findings.asked += 1
        [deed] = self._dice.choices(self._deeds, self._deed_weights)
        order = Order(
            marker=f"mk-{self._dice.getrandbits(64):016x}",
            deed=deed,
            hold_ms=self._dice.choice((0, 0, 0, 1, 3, self._dice.randrange(_LONGEST_HOLD_MS))),
            pieces=self._dice.choice((1, 1, 2, 4)),
            events=self._dice.randint(1, 8),
        )
        streamed = deed in _STREAMED
        is_chat = self._dice.random() < _CHAT_SHARE
        prompt = f"Please: {order}"
        asked = {"prompt": prompt} if is_chat else {"messages": [{"role": "user", "content": prompt}]}
        body = {"model": "gpt-4o-mini", **asked, "stream": streamed}
        sent = json.dumps(body).encode()
        head = (
            f"POST {'/chat' if is_chat else '/v1/chat/completions'} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        )
        return _Request(order, is_chat, head.encode() + sent)

    # --- answers ------------------------------------------------------------------------------------------------------

    async def _read(self, reader: asyncio.StreamReader, request: _Request) -> bool:
        """Read one whole answer and check it. True when the connection is kept. Raises `EOFError` when it breaks off."""
        head = b""
        parts: list[bytes] = []
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lowered = head.lower()
            _, named, after = lowered.partition(b"\r\ncontent-length:")
            if named:
                parts.append(await reader.readexactly(int(after.split(b"\r\n", 1)[0])))
            elif b"\r\ntransfer-encoding: chunked\r\n" in lowered:
                while size := int(await reader.readline(), 16):
                    parts.append(await reader.readexactly(size))
                    await reader.readexactly(2)
                await reader.readexactly(2)
            else:
                parts.append(await reader.read())
        except asyncio.IncompleteReadError as broken:
            self._check_part(request, head + b"".join(parts) + broken.partial)
            raise
        except (ValueError, asyncio.LimitOverrunError):
            self._findings.blame("not an answer", request.order.marker, head + b"".join(parts))
            return False
        if _STATUS_LINE.match(head) is None:
            self._findings.blame("not an answer", request.order.marker, head)
            return False
        self._check_whole(request, head, b"".join(parts))
        return b"\r\nconnection: close\r\n" not in lowered

    async def _what_is_there(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(0.001):
                return await reader.read(2**16)
        except (TimeoutError, OSError):
            return b""

    def _check_part(self, request: _Request, seen: bytes) -> None:
        if foreign := set(MARKER.findall(seen)) - {request.marker}:
            self._findings.blame(f"holds {min(foreign).decode()}", request.order.marker, seen)

    def _check_whole(self, request: _Request, head: bytes, body: bytes) -> None:
        findings, order = self._findings, request.order
        self._check_part(request, head + body)
        status = int(head[9:12])
        found = _REQUEST_ID.search(head)
        request_id = found[1].decode() if found else ""
        if not request_id or request_id in findings.request_ids:
            findings.blame("request id missing or given twice", order.marker, head)
        findings.request_ids.add(request_id)
        if status != HTTPStatus.OK:
            findings.refused += 1
            findings.refusals[f"{order.deed} → {status}"] += 1
            return
        findings.answered[request_id] = order.marker
        numbers = [int(number) for _, number in _EVENT_NUMBER.findall(body)]
        whole = b"data: [DONE]" in body if order.deed in _STREAMED else True
        if order.deed not in _WHOLE:
            if order.deed not in _STREAMED:
                findings.blame("answered with 200 what the provider never answered", order.marker, body)
            elif whole and b"error" not in body:
                findings.blame("ended a stream that the provider broke off as if it were whole", order.marker, body)
            findings.refusals[f"{order.deed} → 200, then an error"] += 1
            return
        if b'"error"' in body and order.deed in _STREAMED:
            findings.refusals[f"{order.deed} → 200, then an error"] += 1
            return
        expected = list(range(order.events)) if order.deed in _STREAMED else [0]
        if request.is_chat and order.deed in _STREAMED:
            expected = expected * 2
        if numbers != expected or not whole:
            findings.blame(f"said {numbers}, not {expected}", order.marker, body)

    def _count(self, what: str, times: int = 1) -> None:
        self._findings.tally[what] += times
