"""The worker's end: events go to the writer in order, and `record` returns when they are on disk.

One connection per process. All frames of one loop turn leave in one send; one 8-byte acknowledgement wakes every
greenlet whose record it covers. While the connection is away, frames queue up (bounded) and the journal reconnects
every 50 ms; what the writer does not have yet is sent again, in order. Nothing here ever gives up a queued record.

Works in patched workers and unpatched commands alike: sockets are the interpreter's own, non-blocking, and waiting is
done by gevent's hub. A journal belongs to the thread that used it first; it may be made before a fork (it holds
nothing until its first use, and a child that inherits a used one starts afresh).
"""

from __future__ import annotations

import _socket
import logging
import os
import time
import uuid
import weakref
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

import orjson
from gevent import get_hub
from gevent.event import Event
from greenlet import getcurrent

from secure_llm_proxy.audit.blind_indexes import NAMES, VALUES_BYTES_MAX, values_to_index
from secure_llm_proxy.audit.format import BODY_BYTES_MAX, METADATA_BYTES_MAX, RefusedMetadata, check_metadata
from secure_llm_proxy.audit.frames import COUNTER, MAGIC, NO_ROOM, REFUSED, TAKEN_WITHOUT_ROOM, frame
from secure_llm_proxy.foundation.errors import ErrorCode, InternalError, NotQueued, Unavailable
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.vocabulary.events import AuditType

if TYPE_CHECKING:
    from greenlet import greenlet

    from secure_llm_proxy.settings import AuditSettings
    from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue

log = logging.getLogger(__name__)

_RECONNECT_S = 0.05
# A worker that ends has no more: what it could not hand over, its start being on record, the writer closes itself.
_LAST_WAIT_S = 2.0
_TICK_S = 0.25
_SILENCE_S = 1.0
# Whoever heard that there is no room asks again after this long, not with every request.
_NO_ROOM_S = 0.25
_ACK_BYTES = COUNTER.size
_SEND_BUFFER_BYTES = 1 << 20
_FRAME_OVERHEAD_BYTES = 200
_FIXED_NAMES = frozenset({"ty", "ev", "id", "rid", "parts"}) | NAMES


class _Outcome(Enum):
    DURABLE = "durable"
    REFUSED = "refused"
    NO_ROOM = "no_room"
    LATE = "late"


class _Queued:
    """A record on its way. `size` counts against the cap until the writer has answered, whoever waits or not."""

    __slots__ = ("counter", "frame", "since_s", "size", "waiter")

    def __init__(self, counter: int, content: bytes, since_s: float) -> None:
        self.counter = counter
        self.frame = content
        self.size = len(content) + _FRAME_OVERHEAD_BYTES
        self.since_s = since_s
        self.waiter: greenlet | None = None


class SocketJournal:
    """`vocabulary.AuditJournal` over the writer's unix socket. Fails closed: no writer, no record, no request."""

    def __init__(self, settings: AuditSettings) -> None:
        self._settings = settings
        self._line: _Line | None = None

    def record(self, event: AuditEvent) -> None:
        """See `AuditJournal.record`. Raises `InternalError` when the event itself may not enter the log."""
        line = self._own_line()
        line.wait(line.enqueue(_frames_of(event), event.type))

    def post(self, event: AuditEvent) -> None:
        """See `AuditJournal.post`. May be called from a callback of the event loop."""
        self._own_line().enqueue(_frames_of(event), event.type)

    def trouble(self) -> str | None:
        return self._own_line().trouble()

    @property
    def handed_over(self) -> int:
        """How many records this process has handed over so far."""
        line = self._line
        return 0 if line is None or line.pid != os.getpid() else line.handed_over

    def close(self) -> None:
        line, self._line = self._line, None
        if line is not None and line.pid == os.getpid():
            line.close()

    def _own_line(self) -> _Line:
        line = self._line
        if line is None or line.pid != os.getpid():
            # First use in this process. What a parent had queued is the parent's to send: it has its own counter.
            line = self._line = _Line(self._settings)
        return line


def _frames_of(event: AuditEvent) -> list[tuple[bytes, bytes, bytes]]:
    """Metadata, body and values to index of each record that `event` becomes; a big body travels ahead in parts."""
    clear = event.clear
    if not _FIXED_NAMES.isdisjoint(clear):
        raise InternalError(detail="an audit event's clear fields use a name that the journal sets")
    members: dict[str, ClearValue] = {"ty": event.type.value}
    if event.event is not None:
        members["ev"] = event.event.value
    members |= {"id": event.id, "rid": event.exchange_id, **clear}
    indexed = values_to_index(event.indexed)
    if len(indexed) > VALUES_BYTES_MAX:
        raise InternalError(detail="an audit event is indexed by more than 255 bytes")
    if len(event.body) <= BODY_BYTES_MAX:
        return [(_written(members), event.body, indexed)]
    starts = range(0, len(event.body), BODY_BYTES_MAX)
    records = []
    for number, start in enumerate(starts):
        part: dict[str, ClearValue] = {
            "ty": AuditType.LLM_PART.value,
            "id": new_record_id(),
            "rid": event.exchange_id,
            "pt_of": event.id,
            "seq": number,
            "last": number == len(starts) - 1,
        }
        for name in ("dir", "sub"):
            if name in clear:
                part[name] = clear[name]
        records.append((_written(part), event.body[start : start + BODY_BYTES_MAX], b""))
    members["parts"] = len(starts)
    return [*records, (_written(members), b"", indexed)]


def _written(members: dict[str, Any]) -> bytes:
    try:
        content = orjson.dumps(check_metadata(members))
    except (RefusedMetadata, orjson.JSONEncodeError) as error:
        raise InternalError(detail=f"an audit event's metadata may not enter the log: {error}") from None
    if len(content) > METADATA_BYTES_MAX:
        raise InternalError(detail="an audit event's metadata is longer than 16 KiB")
    return content


_PUBLIC = "The audit log cannot be written now, so the request was refused. Try again shortly."


def _unavailable(detail: str) -> Unavailable:
    return Unavailable(_PUBLIC, code=ErrorCode.AUDIT_UNAVAILABLE, detail=detail, retry_after_s=2)


def _not_queued(detail: str) -> NotQueued:
    return NotQueued(_PUBLIC, code=ErrorCode.AUDIT_UNAVAILABLE, detail=detail, retry_after_s=2)


_NO_ROOM_DETAIL = "the disk of the audit log has no room"


_lines: weakref.WeakSet[_Line] = weakref.WeakSet()


def _leave_lines_to_parent() -> None:
    for line in list(_lines):
        line.abandon()


# A forked child shares its parent's sockets: it must neither send its parent's frames nor read its answers.
os.register_at_fork(after_in_child=_leave_lines_to_parent)


class _Line:
    """One process's connection, its queue, and whoever waits. All callbacks run in the hub."""

    def __init__(self, settings: AuditSettings) -> None:
        self.pid = os.getpid()
        self._address = str(settings.socket)
        self._patience_s = settings.patience_s
        self._cap_bytes = settings.unacknowledged_bytes_max
        self._hub = get_hub()
        self._loop = self._hub.loop
        self._worker = uuid.uuid4().bytes
        self._counter = 0
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._out: list[bytes] = []
        self._stuck = memoryview(b"")
        self._flush_armed = False
        self._inbox = b""
        self._socket: _socket.socket | None = None
        self._welcomed = False
        self._reader: Any = None
        self._sender: Any = None
        self._tick: Any = self._loop.timer(_TICK_S, _TICK_S)
        self._reconnect: Any = self._loop.timer(_RECONNECT_S, _RECONNECT_S)
        self._closed = False
        self._ready = Event()
        self._drained = Event()
        self._drained.set()
        self._away_since_s = time.monotonic()
        self._told = False
        self._no_room_until_s = 0.0
        _lines.add(self)
        self._connect()

    # --- what the journal asks ----------------------------------------------------------------------------------------

    def enqueue(self, records: list[tuple[bytes, bytes, bytes]], kind: AuditType) -> _Queued:
        """Queue all of them or none; returns the last. Raises `NotQueued` when too much is unacknowledged, or when the
        writer said a moment ago that its disk has no room for what is new.

        The end of an exchange may use as much again: its start is on record, and no more starts are let in meanwhile.
        """
        if self._closed:
            raise _not_queued("the audit journal is closed")
        if kind not in TAKEN_WITHOUT_ROOM and time.monotonic() < self._no_room_until_s:
            raise _not_queued(_NO_ROOM_DETAIL)
        if self._queued_bytes >= self._cap_bytes * (2 if kind is AuditType.LLM_END else 1):
            # Not counting this event: the biggest answer must fit, so one event may overshoot the cap.
            raise _not_queued(f"{self._queued_bytes} bytes of audit records are unacknowledged")
        now = time.monotonic()
        for metadata, body, indexed in records:
            self._counter += 1
            queued = _Queued(self._counter, frame(self._counter, metadata, body, indexed), now)
            # In the queue even when nobody waits: its bytes must come off the cap when it is acknowledged.
            self._queue.append(queued)
            self._queued_bytes += queued.size
            if self._welcomed:
                self._out.append(queued.frame)
        self._drained.clear()
        if not self._tick.active:
            self._tick.start(self._on_tick)
        if self._welcomed and not self._flush_armed:
            self._flush_armed = True
            self._loop.run_callback(self._flush)
        return queued

    def wait(self, queued: _Queued) -> None:
        """Sleep until `queued` is durable. It stays queued when this raises `Unavailable`."""
        if getcurrent() is self._hub:
            raise InternalError(detail="a record was awaited inside a callback of the event loop")
        queued.waiter = getcurrent()
        try:
            outcome = self._hub.switch()
            while not isinstance(outcome, _Outcome):
                outcome = self._hub.switch()
        finally:
            # A greenlet that was woken by something else must not be switched to by a later acknowledgement.
            queued.waiter = None
        if outcome is _Outcome.LATE:
            raise _unavailable(f"the audit writer did not acknowledge within {self._patience_s:g} s")
        if outcome is _Outcome.REFUSED:
            raise InternalError(detail="the audit writer refused a record; its log says why")
        if outcome is _Outcome.NO_ROOM:
            raise _not_queued(_NO_ROOM_DETAIL)

    @property
    def handed_over(self) -> int:
        return self._counter

    def trouble(self) -> str | None:
        if not self._welcomed and getcurrent() is not self._hub:
            # The first use of a journal: connecting takes one turn of the loop.
            self._ready.wait(_TICK_S)
        if not self._welcomed:
            return f"The audit writer does not answer on {self._address}."
        if self._queue:
            silence = time.monotonic() - self._queue[0].since_s
            if silence > _SILENCE_S:
                return f"The audit writer has not acknowledged a record for {silence:.1f} s."
        if self._queued_bytes > self._cap_bytes * 9 // 10:
            return f"{self._queued_bytes} bytes of audit records are unacknowledged."
        return None

    def close(self) -> None:
        if not self._drained.wait(min(self._patience_s, _LAST_WAIT_S)):
            log.error(
                "Audit records were not acknowledged before the journal was closed",
                extra={"records": len(self._queue), "bytes": self._queued_bytes},
            )
        self._closed = True
        self._hang_up()
        self._tick.close()
        self._reconnect.close()
        queue, self._queue = self._queue, deque()
        for queued in queue:
            self._wake(queued, _Outcome.LATE)

    def abandon(self) -> None:
        """Forget everything without a word to the writer; the process that made this line still uses it."""
        self._closed = True
        self._hang_up()
        self._tick.stop()
        self._reconnect.stop()
        self._queue.clear()

    # --- connection ---------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Try once; a unix socket answers at once. Whether it worked shows in `_socket`."""
        peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        try:
            peer.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            peer.connect(self._address)
            hello = MAGIC + self._worker
            if peer.send(hello) != len(hello):
                raise OSError  # noqa: TRY301 - an empty buffer takes 24 bytes, or the peer is gone
        except OSError:
            peer.close()
            if not self._reconnect.active:
                self._reconnect.start(self._on_reconnect)
            return
        self._socket = peer
        self._reader = self._loop.io(peer.fileno(), 1)
        self._sender = self._loop.io(peer.fileno(), 2)
        self._reader.start(self._on_readable)
        self._reconnect.stop()

    def _on_reconnect(self) -> None:
        if self._socket is None:
            self._connect()

    def _hang_up(self) -> None:
        peer, self._socket = self._socket, None
        if peer is not None:
            for watcher in (self._reader, self._sender):
                watcher.stop()
                watcher.close()
            self._reader = self._sender = None
            peer.close()
        self._welcomed = False
        self._ready.clear()
        self._inbox = b""
        self._out.clear()
        self._stuck = memoryview(b"")

    def _lost(self) -> None:
        """The connection broke. Everything unanswered stays queued and goes out again after the next welcome."""
        self._hang_up()
        if not self._told:
            self._told = True
            self._away_since_s = time.monotonic()
            log.warning("The connection to the audit writer is lost", extra={"records_waiting": len(self._queue)})
        if not self._closed and not self._reconnect.active:
            self._reconnect.start(self._on_reconnect)

    def _on_welcome(self, durable: int) -> None:
        self._welcomed = True
        self._answered(durable)
        if self._socket is None:
            return
        self._out = [queued.frame for queued in self._queue]
        self._ready.set()
        self._flush()

    # --- sending ------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_armed = False
        if not self._welcomed or self._stuck or not self._out:
            # What is stuck goes first, and takes ours along.
            return
        content = memoryview(b"".join(self._out))
        self._out.clear()
        self._send(content)

    def _send(self, content: memoryview) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(content)
        except BlockingIOError:
            sent = 0
        except OSError:
            # Raised inside a callback it would only be printed, and everybody would sleep through the patience.
            self._lost()
            return
        self._stuck = content[sent:]
        if self._stuck:
            if not self._sender.active:
                self._sender.start(self._on_writable)
        elif self._sender.active:
            self._sender.stop()

    def _on_writable(self) -> None:
        if self._stuck:
            self._send(self._stuck)
        if not self._stuck:
            self._flush()

    # --- answers ------------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._socket is None:
            return
        try:
            arrived = self._socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            arrived = b""
        if not arrived:
            self._lost()
            return
        inbox = self._inbox + arrived
        whole = len(inbox) - len(inbox) % _ACK_BYTES
        self._inbox = inbox[whole:]
        peer = self._socket
        for position in range(0, whole, _ACK_BYTES):
            if self._socket is not peer:
                # A greenlet that we woke closed the journal, or a send in between found the connection broken.
                return
            (answer,) = COUNTER.unpack_from(inbox, position)
            if not self._welcomed:
                self._on_welcome(answer)
            elif answer & REFUSED:
                self._answered((answer & ~REFUSED) - 1)
                self._refused(answer & ~REFUSED)
            elif answer & NO_ROOM:
                self._not_taken(answer & ~NO_ROOM)
            else:
                self._answered(answer)

    def _answered(self, durable: int) -> None:
        queue = self._queue
        if self._told and (not queue or queue[0].counter <= durable):
            # Not at the welcome: a writer whose disk is full lets us in and out again every half second.
            self._told = False
            log.warning(
                "The connection to the audit writer is back",
                extra={"away_s": round(time.monotonic() - self._away_since_s, 3), "records_waiting": len(queue)},
            )
        while queue and queue[0].counter <= durable:
            self._take_off(_Outcome.DURABLE)
        if not queue:
            self._drained.set()

    def _refused(self, counter: int) -> None:
        if self._queue and self._queue[0].counter == counter:
            log.error("The audit writer refused a record", extra={"counter": counter})
            self._take_off(_Outcome.REFUSED)
        if not self._queue:
            self._drained.set()

    def _not_taken(self, counter: int) -> None:
        """One record, wherever it stands in the queue, was not written and will not be."""
        self._no_room_until_s = time.monotonic() + _NO_ROOM_S
        for position, queued in enumerate(self._queue):
            if queued.counter == counter:
                del self._queue[position]
                self._queued_bytes -= queued.size
                self._wake(queued, _Outcome.NO_ROOM)
                break
        if not self._queue:
            self._drained.set()

    def _take_off(self, outcome: _Outcome) -> None:
        queued = self._queue.popleft()
        self._queued_bytes -= queued.size
        self._wake(queued, outcome)

    @staticmethod
    def _wake(queued: _Queued, outcome: _Outcome) -> None:
        waiter, queued.waiter = queued.waiter, None
        if waiter is not None:
            # We are in the hub: the greenlet runs now and comes back here at its next wait.
            waiter.switch(outcome)

    def _on_tick(self) -> None:
        if not self._queue:
            self._tick.stop()
            return
        late = time.monotonic() - self._patience_s
        for queued in list(self._queue):
            if queued.since_s > late:
                break
            self._wake(queued, _Outcome.LATE)
