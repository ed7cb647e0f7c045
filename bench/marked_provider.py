"""A provider that does what the prompt says, and says whose prompt it was: for the mix-up hunt and the outside clock.

    python -m bench.marked_provider PORT [--tls CERTIFICATE KEY]

A prompt holds `mk-<16 hex> do=<Deed> hold_ms=<n> pieces=<n> events=<n>`. Every answer repeats the marker and its own
number; plain ones tell `held_ns=`, the nanoseconds from the request's last byte to the answer's first. `GET /report` tells
what was asked. asyncio's clock is good to about a millisecond, which `held_ns` accounts for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

MARKER = re.compile(rb"mk-[0-9a-f]{16}")
_ORDER = re.compile(rb"(mk-[0-9a-f]{16}) do=([a-z_]+) hold_ms=(\d+) pieces=(\d+) events=(\d+)")
_PIECE_PAUSE_S = 0.0005
_EVENT_PAUSE_S = 0.002
_SURPLUS_MARKER = "mk-ffffffffffffffff"


class Deed(StrEnum):
    """What the provider does with a request."""

    ANSWER = "answer"
    CHUNKED = "chunked"
    STREAM = "stream"
    CLOSE = "close"  # announces that it closes, and does
    QUIT = "quit"  # closes a kept connection without a word
    SURPLUS = "surplus"  # sends a second answer that nobody asked for, in the same breath
    LATE_SURPLUS = "late_surplus"  # the same a moment later: what HTTP/1.1 cannot exclude on a kept connection
    EARLY = "early"  # hangs up before the first byte
    RESET = "reset"  # the same by reset
    HALF = "half"  # hangs up in the midst of the body
    HALF_RESET = "half_reset"
    HALF_STREAM = "half_stream"
    STALL = "stall"  # never answers
    STALL_STREAM = "stall_stream"  # begins a stream and falls silent
    ERROR = "error"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Order:
    """A deed and whose it is. `pieces` are sent apart; `events` are those of a stream."""

    marker: str
    deed: Deed
    hold_ms: int = 0
    pieces: int = 1
    events: int = 3

    def __str__(self) -> str:
        return f"{self.marker} do={self.deed} hold_ms={self.hold_ms} pieces={self.pieces} events={self.events}"


@dataclass
class _Report:
    """`by_marker` counts how often each marker was asked for: once, unless somebody sent it again."""

    by_marker: Counter[str]
    connections: int = 0
    pipelined: int = 0

    def as_json(self) -> bytes:
        again = sum(count - 1 for count in self.by_marker.values())
        told = {
            "asked": self.by_marker.total(),
            "asked_again": again,
            "connections": self.connections,
            "pipelined": self.pipelined,
        }
        return json.dumps(told).encode()


class _Connection(asyncio.Protocol):
    """One connection of the product's. Asked for more before it has answered, it counts that and answers in order."""

    def __init__(self, report: _Report) -> None:
        self._report = report
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._busy = False
        self._dice = random.Random()  # noqa: S311  where pieces are cut is no secret

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._report.connections += 1

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._report.pipelined += self._busy
        self._unread += data
        if not self._busy:
            self._take()

    def _take(self) -> None:
        """Begin to answer the next whole request, if there is one."""
        head, ended, rest = self._unread.partition(b"\r\n\r\n")
        if not ended:
            return
        _, named, after = head.lower().partition(b"\r\ncontent-length:")
        size = int(after.split(b"\r\n", 1)[0]) if named else 0
        if len(rest) < size:
            return
        body, self._unread = rest[:size], rest[size:]
        self._busy = True
        if head.startswith(b"GET /report "):
            self._send([_whole(200, self._report.as_json())], self._done)
            return
        found = _ORDER.search(body)
        if found is None:
            self._send([_whole(400, b'{"error":{"message":"no order in the prompt"}}')], self._done)
            return
        order = Order(found[1].decode(), Deed(found[2].decode()), int(found[3]), int(found[4]), int(found[5]))
        self._report.by_marker[order.marker] += 1
        asked_ns = time.perf_counter_ns()
        if order.hold_ms:
            asyncio.get_running_loop().call_later(order.hold_ms / 1000, self._carry_out, order, asked_ns)
        else:
            self._carry_out(order, asked_ns)

    def _carry_out(self, order: Order, asked_ns: int) -> None:
        deed, marker = order.deed, order.marker
        if deed in {Deed.STREAM, Deed.HALF_STREAM, Deed.STALL_STREAM}:
            self._stream(order)
            return
        if deed is Deed.STALL:
            return
        if deed in {Deed.EARLY, Deed.RESET}:
            self._hang_up(reset=deed is Deed.RESET)
            return
        if deed in {Deed.ERROR, Deed.BUSY}:
            told = json.dumps({"error": {"message": f"not now, {marker}", "type": "server_error"}}).encode()
            self._send(self._cut(_whole(500 if deed is Deed.ERROR else 429, told), order.pieces), self._done)
            return
        body = completion(marker, f"{marker} n=0 held_ns={time.perf_counter_ns() - asked_ns}")
        if deed in {Deed.HALF, Deed.HALF_RESET}:
            whole = _whole(200, body)
            self._send([whole[: -len(body) // 2]], lambda: self._hang_up(reset=deed is Deed.HALF_RESET))
            return
        if deed is Deed.CHUNKED:
            self._send(self._cut(_chunked(self._cut(body, 3)), order.pieces), self._done)
            return
        whole = _whole(200, body, closing=deed is Deed.CLOSE)
        surplus = _whole(200, completion(_SURPLUS_MARKER, f"{_SURPLUS_MARKER} n=0"))
        match deed:
            case Deed.SURPLUS:
                self._send([whole + surplus], self._done)
            case Deed.LATE_SURPLUS:
                self._send([whole, surplus], self._done, pause_s=0.003)
            case Deed.CLOSE | Deed.QUIT:
                self._send(self._cut(whole, order.pieces), self._hang_up)
            case _:
                self._send(self._cut(whole, order.pieces), self._done)

    def _stream(self, order: Order) -> None:
        events = [_event(order.marker, {"content": f"{order.marker} n={number}"}) for number in range(order.events)]
        last = [_event(order.marker, {}, finish="stop"), b"data: [DONE]\n\n"]
        pieces = [_STREAM_HEAD + _chunk(events[0]), *map(_chunk, events[1:])]
        if order.deed is Deed.HALF_STREAM:
            self._send(pieces, self._hang_up, pause_s=_EVENT_PAUSE_S)
        elif order.deed is Deed.STALL_STREAM:
            self._send(pieces, lambda: None, pause_s=_EVENT_PAUSE_S)
        else:
            ended = [*pieces[:-1], pieces[-1] + b"".join(map(_chunk, last)) + b"0\r\n\r\n"]
            cut = [part for piece in ended for part in self._cut(piece, order.pieces)]
            self._send(cut, self._done, pause_s=_PIECE_PAUSE_S if order.pieces > 1 else _EVENT_PAUSE_S)

    def _cut(self, whole: bytes, pieces: int) -> list[bytes]:
        places = sorted(self._dice.sample(range(1, len(whole)), min(pieces - 1, len(whole) - 1))) if pieces > 1 else []
        return [whole[begin:end] for begin, end in zip([0, *places], [*places, len(whole)], strict=True)]

    def _send(self, pieces: Sequence[bytes], then: Callable[[], None], *, pause_s: float = _PIECE_PAUSE_S) -> None:
        if self._transport is None:
            return
        self._transport.write(pieces[0])
        if len(pieces) > 1:
            asyncio.get_running_loop().call_later(pause_s, lambda: self._send(pieces[1:], then, pause_s=pause_s))
        else:
            then()

    def _done(self) -> None:
        self._busy = False
        self._take()

    def _hang_up(self, *, reset: bool = False) -> None:
        if self._transport is None:
            return
        if reset:
            held = self._transport.get_extra_info("socket")
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()


def completion(marker: str, text: str) -> bytes:
    """A plain answer of OpenAI's form."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps(
        {
            "id": f"chatcmpl-{marker}",
            "object": "chat.completion",
            "created": 1763600000,
            "model": "gpt-4o-mini",
            "choices": [choice],
            "usage": {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28},
        }
    ).encode()


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _event(marker: str, delta: dict[str, str], *, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    told = {
        "id": f"chatcmpl-{marker}",
        "object": "chat.completion.chunk",
        "created": 1763600000,
        "model": "gpt-4o-mini",
        "choices": [choice],
    }
    return b"data: %s\n\n" % json.dumps(told).encode()


def _whole(status: int, body: bytes, *, closing: bool = False) -> bytes:
    close = b"Connection: close\r\n" if closing else b""
    head = b"HTTP/1.1 %d Told\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
    return head % (status, close, len(body)) + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _chunked(pieces: Sequence[bytes]) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(map(_chunk, pieces)) + b"0\r\n\r\n"


async def main() -> None:
    parser = argparse.ArgumentParser(description="A provider that does what the prompt says.")
    parser.add_argument("port", type=int)
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"))
    given = parser.parse_args()
    tls = None
    if given.tls:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*given.tls)
    report = _Report(Counter())
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(report), "127.0.0.1", given.port, ssl=tls, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
