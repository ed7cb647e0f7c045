"""Waiting clients against the audit writer: each has one record on its way at any time, and sends the next when it is durable.

Spoken on the writer's own socket, four connections as of four workers, so that the client's cost is small and the writer's is
what is seen. A client's records are those of an exchange: a start and an end, in turn, with metadata like the product's.
"""

from __future__ import annotations

import os
import select
import socket
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from secure_llm_proxy.audit.frames import COUNTER, MAGIC, REFUSED, frame

_CONNECTIONS = 4
_PATIENCE_S = 30.0
_START = (
    b'{"ty":"llm.start","ev":"CHAT_REQUEST","id":"%s","rid":"%s","sub":"s_%016x","org":"o_default","prj":"p_default",'
    b'"ak":"key_6qs3MPEC","mdl":"gpt-4o-mini","rt":"/v1/chat/completions","stream":false,"dec":"allow","size":2048}'
)
_END = (
    b'{"ty":"llm.end","ev":"CHAT_REQUEST","id":"%s","rid":"%s","sub":"s_%016x","sid":"%s","st":"complete","http":200,'
    b'"ti":512,"to":388,"ms":812,"up":"upstream","size":1604}'
)
# Each has a data key of its own, announced once in a segment.
_PEOPLE = 50


class RecordRefused(Exception):
    """The writer refused a record, or hung up: the figures would be worth nothing."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the clients saw of one run."""

    records: int
    seconds: float
    latencies_s: list[float]


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    counter: int = 0
    durable: int = 0
    waiting: deque[tuple[float, int]] = field(default_factory=deque)
    buffer: bytes = b""


class WaitingClients:
    """`clients` of them on `address`. With `records_per_s` they wait their turn, else nobody waits but for the writer."""

    def __init__(self, address: Path, *, clients: int, body_bytes: int, records_per_s: float | None = None) -> None:
        self._body = os.urandom(body_bytes)
        self._rate = records_per_s
        self._open: list[bytes | None] = [None] * clients
        self._exchanges: list[bytes] = [b""] * clients
        self._idle = deque(range(clients))
        self._made = 0
        self._connections = [self._connected(address) for _ in range(min(clients, _CONNECTIONS))]
        self._poll = select.epoll()
        self._by_descriptor = {}
        for connection in self._connections:
            self._poll.register(connection.socket.fileno(), select.EPOLLIN)
            self._by_descriptor[connection.socket.fileno()] = connection
        self._latencies: list[float] = []

    @property
    def sent(self) -> int:
        """Records so far; after `finish`, all of them durable."""
        return self._made

    def close(self) -> None:
        self._poll.close()
        for connection in self._connections:
            connection.socket.close()

    def run(self, seconds: float) -> Told:
        """Load for `seconds`; what was on its way before counts too. Raises `RecordRefused`. May be called again."""
        began_s = time.perf_counter()
        self._turn_until(began_s + seconds)
        took_s = time.perf_counter() - began_s
        latencies, self._latencies = self._latencies, []
        return Told(len(latencies), took_s, latencies)

    def finish(self) -> None:
        """Afterwards nothing is on its way, and each exchange has its end."""
        self._rate = None
        self._settle()
        self._idle = deque(client for client in self._idle if self._open[client] is not None)
        self._send_idle(time.perf_counter())
        self._settle()

    def _settle(self) -> None:
        deadline = time.perf_counter() + _PATIENCE_S
        while any(connection.waiting for connection in self._connections):
            if time.perf_counter() > deadline:
                raise RecordRefused("the writer does not acknowledge")
            self._take(0.1)

    def _turn_until(self, end_s: float) -> None:
        due_s = time.perf_counter()
        while (now := time.perf_counter()) < end_s:
            if self._rate is None:
                self._send_idle(now)
                self._take(end_s - now)
                continue
            while due_s <= now and self._idle:
                self._send_one(self._idle.popleft(), now)
                due_s += 1 / self._rate
            self._take(min(max(due_s - now, 0.0), end_s - now))

    def _send_idle(self, now: float) -> None:
        """All that may go, in one send for each connection."""
        out: list[list[bytes]] = [[] for _ in self._connections]
        while self._idle:
            client = self._idle.popleft()
            place = client % len(self._connections)
            out[place].append(self._next_of(client, self._connections[place], now))
        for connection, frames in zip(self._connections, out, strict=True):
            if frames:
                connection.socket.sendall(b"".join(frames))

    def _send_one(self, client: int, now: float) -> None:
        connection = self._connections[client % len(self._connections)]
        connection.socket.sendall(self._next_of(client, connection, now))

    def _next_of(self, client: int, connection: _Connection, now: float) -> bytes:
        self._made += 1
        connection.counter += 1
        identifier = b"R%025d" % self._made
        start = self._open[client]
        if start is None:
            self._exchanges[client] = b"exc_%022d" % self._made
            metadata = _START % (identifier, self._exchanges[client], client % _PEOPLE)
            self._open[client] = identifier
        else:
            metadata = _END % (identifier, self._exchanges[client], client % _PEOPLE, start)
            self._open[client] = None
        connection.waiting.append((now, client))
        return frame(connection.counter, metadata, self._body)

    def _take(self, seconds: float) -> None:
        for descriptor, _ in self._poll.poll(max(seconds, 0.0)):
            connection = self._by_descriptor[descriptor]
            arrived = connection.socket.recv(65_536)
            if not arrived:
                raise RecordRefused("the writer hung up")
            content = connection.buffer + arrived
            whole = len(content) - len(content) % COUNTER.size
            connection.buffer = content[whole:]
            now = time.perf_counter()
            for position in range(0, whole, COUNTER.size):
                (answer,) = COUNTER.unpack_from(content, position)
                if answer >= REFUSED >> 1:
                    raise RecordRefused(f"the writer refused a record (answer {answer:#x})")
                for _ in range(answer - connection.durable):
                    sent_s, client = connection.waiting.popleft()
                    self._latencies.append(now - sent_s)
                    self._idle.append(client)
                connection.durable = max(connection.durable, answer)

    @staticmethod
    def _connected(address: Path) -> _Connection:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(_PATIENCE_S)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        made.connect(str(address))
        made.sendall(MAGIC + uuid.uuid4().bytes)
        if COUNTER.unpack(made.recv(COUNTER.size, socket.MSG_WAITALL))[0] != 0:
            raise RecordRefused("the writer knows a worker that never was")
        return _Connection(made)
