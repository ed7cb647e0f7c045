"""The writer's loop: workers' frames come in, durable lines go out, and only then an acknowledgement.

One thread, one epoll, no timer on the way of a record. A turn takes what has arrived (at most 256 frames), numbers,
seals and chains it, writes it with one system call, syncs once, and acknowledges each worker with one number. While
the sync runs, the next batch piles up in the sockets; that is the whole group commit. What may take long is done beside it:
sinks, anchors, backups and retention in threads, readers in a process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import orjson

from secure_llm_proxy.audit.alarms import Alarm, Alarms, Subject
from secure_llm_proxy.audit.anchors import Anchors
from secure_llm_proxy.audit.appender import Appender, Entry, LogUnavailable
from secure_llm_proxy.audit.blind_indexes import NAMES as INDEX_NAMES
from secure_llm_proxy.audit.blind_indexes import BlindIndexes
from secure_llm_proxy.audit.carry import OPEN_BYTES_MAX, entry_bytes
from secure_llm_proxy.audit.control import ControlDoor
from secure_llm_proxy.audit.format import (
    BODY_BYTES_MAX,
    METADATA_BYTES_MAX,
    RefusedMetadata,
    check_metadata,
    subject_in,
)
from secure_llm_proxy.audit.frames import (
    COUNTER,
    FRAME_BYTES_MAX,
    HEAD,
    HELLO_BYTES,
    MAGIC,
    NO_ROOM,
    REFUSED,
    TAKEN_WITHOUT_ROOM,
)
from secure_llm_proxy.audit.keeping import Keeper
from secure_llm_proxy.audit.key_care import KeyCare
from secure_llm_proxy.audit.keystore import KeyStoreUnavailable
from secure_llm_proxy.audit.reader_child import ReaderChild
from secure_llm_proxy.audit.rooms import Rooms
from secure_llm_proxy.audit.sinks import SecondSink
from secure_llm_proxy.audit.state import StateFile
from secure_llm_proxy.foundation.clock import SystemClock, rfc3339
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.foundation.identifiers import new_record_id, ulid
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus, EventName

BATCH_FRAMES_MAX = 256
_READ_BYTES = 512 << 10
_CONNECTIONS_MAX = 512
_RETRY_S = 0.5
_LOOK_S = 1.0
_DRAIN_S = 1.0
_UNSENT_BYTES_MAX = 64 << 10
# More than fit into a worker's queue: what it was refused must not pass for durable after a reconnect.
_REFUSED_KEPT = 65_536
_TURNED_AWAY_KEPT = 65_536
_ANCHORS = {"file": Subject.ANCHOR_FILE, "syslog": Subject.ANCHOR_SYSLOG}
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def report(event: str, **fields: object) -> None:
    """One line of JSON on stderr. Never holds content of a record."""
    line = json.dumps({"t": rfc3339(SystemClock().now()), "event": event, **fields}) + "\n"
    # The disk that is full may be the one that holds this too; not being heard must not end the writer.
    with contextlib.suppress(OSError):
        os.write(2, line.encode())


class StopRequest:
    """SIGTERM or SIGINT was received. Made before anybody is told that the writer is there; wakes the loop by a pipe."""

    def __init__(self) -> None:
        self.made = False
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.made = True

    def fileno(self) -> int:
        return self._woken

    def hear(self) -> None:
        os.read(self._woken, 64)


class Wake:
    """Ends the loop's sleep; may be called from any thread."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __call__(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._descriptor, 1)

    def fileno(self) -> int:
        return self._descriptor

    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)


class _Refused(Exception):
    """The record may not enter the log."""


class _SinkAway(Exception):
    """What is in the log is not in the second sink, and must be before anybody is told that it is recorded."""


class _NoRoom(Exception):
    """The record is for a time when the disk has room again."""


@dataclass(slots=True, eq=False)
class _Connection:
    """`worker` is empty until its hello was read; `taken` is the counter of the last frame taken from this connection."""

    socket: socket.socket
    worker: str = ""
    welcomed: bool = False
    taken: int = 0
    buffer: bytes = b""
    offset: int = 0
    ended: bool = False
    acks: list[int] = field(default_factory=list)
    unsent: bytes = b""
    watched_out: bool = False

    def has_frame(self) -> bool:
        available = len(self.buffer) - self.offset
        if available < HEAD.size:
            return False
        return available >= HEAD.size + int(HEAD.unpack_from(self.buffer, self.offset)[0])


@dataclass(slots=True)
class _Opened:
    """Exchanges that a batch opens; the carry learns of them when they are durable. `size` is theirs in a `seg` line."""

    exchanges: dict[str, tuple[str, str]] = field(default_factory=dict)
    size: int = 0


class Writer:
    """Serves `listener` (bound, listening, non-blocking) until a stop is requested or the parent has ended."""

    def __init__(
        self,
        appender: Appender,
        listener: socket.socket,
        stop: StopRequest,
        *,
        orphan_grace_s: float,
        room: Rooms,
        alarms: Alarms,
        anchors: Anchors,
        state: StateFile,
        wake: Wake,
        sink: SecondSink | None = None,
        parent: int | None = None,
        reader: ReaderChild | None = None,
        indexes: BlindIndexes | None = None,
        keeper: Keeper | None = None,
        control: ControlDoor | None = None,
        key_care: KeyCare | None = None,
    ) -> None:
        self._appender = appender
        self._reader = reader
        self._room = room
        self._alarms = alarms
        self._anchors = anchors
        self._state = state
        self._wake = wake
        self._sink = sink
        # Nobody is let in until the second sink has everything that is in the log.
        self._held = sink is not None and sink.needed
        self._listener = listener
        self._stop_request = stop
        self._grace_s = orphan_grace_s
        self._indexes = indexes
        self._control = control
        self._key_care = key_care
        if control is not None and key_care is not None:
            control.operations |= key_care.operations(self)
        if control is not None and keeper is not None:
            control.operations |= keeper.operations()
        self._parent = parent
        self._keeper = keeper
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._by_worker: dict[str, _Connection] = {}
        # Connections with a whole frame in their buffer: they are served before anything more is read from them.
        self._ready: dict[_Connection, None] = {}
        self._hellos: list[_Connection] = []
        # Counters that were answered with REFUSED or NO_ROOM, by worker.
        self._refused: dict[str, dict[int, int]] = {}
        self._turned_away: list[tuple[_Connection, int]] = []
        # Exchanges whose start found no room: their ends have nothing to end.
        self._never_started: dict[str, None] = {}
        self._arrived_bytes = 0
        self._woken = False
        self._had_room = True
        self._look_at_s = 0.0
        self._told_version = -1
        # When the open exchanges of a worker that is not connected become orphans (monotonic seconds).
        self._deadlines: dict[str, float] = {}
        self._seen_leaving: set[str] = set()
        self._retry_at_s: float | None = None
        self._identity = uuid.uuid4().hex
        self._counter = 0
        self._read_buffer = bytearray(_READ_BYTES)

    def run(self) -> None:
        """Returns after a clean stop, with the segment closed."""
        for descriptor in (self._stop_request.fileno(), self._listener.fileno(), self._wake.fileno()):
            self._epoll.register(descriptor, select.EPOLLIN)
        if self._parent is not None:
            self._epoll.register(self._parent, select.EPOLLIN)
        if self._reader is not None:
            self._reader.watch(self._epoll)
        if self._keeper is not None:
            self._epoll.register(self._keeper.errands.fileno(), select.EPOLLIN)
            self._keeper.start()
        if self._control is not None:
            self._control.watch(self._epoll)
        self._open()
        if self._sink is not None:
            self._sink.start(self._appender.settled)
        self._anchors.start()
        # Health is asked as soon as we listen.
        self._turn()
        notify("READY=1")
        while not self._stop_request.made:
            for descriptor, _ in self._epoll.poll(self._patience_s()):
                if descriptor == self._stop_request.fileno():
                    self._stop_request.hear()
                elif descriptor == self._wake.fileno():
                    self._wake.hear()
                    self._woken = True
                elif descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor == self._parent:
                    self._hear_parent()
                elif self._keeper is not None and descriptor == self._keeper.errands.fileno():
                    self._keeper.errands.hear()
                elif self._reader is not None and self._reader.hear(descriptor):
                    continue
                elif self._control is None or not self._control.hear(descriptor):
                    self._receive(descriptor)
            self._turn()
            self._tell_reader()
        self._stop()

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        # Room may be seen to be back between two looks; the next shortage is another trouble than the last.
        looks = self._woken or self._room.has_room != self._had_room or time.monotonic() >= self._look_at_s
        if looks:
            self._look_around()
        self._work()
        if self._sink is not None:
            self._sink.tell(self._appender.settled)
        if looks or self._alarms.version != self._told_version or not self._state.due_s():
            self._told_version = self._alarms.version
            backups = self._keeper.state.runs if self._keeper else 0
            self._state.tell((self._told_version, self._anchors.standing, backups), self._told_of_state)

    def _work(self) -> None:
        if self._retry_at_s is not None:
            if time.monotonic() < self._retry_at_s:
                return
            self._open()
            if self._retry_at_s is not None:
                return
        if self._sink is not None and self._sink.needed and not self._held and self._sink.trouble is not None:
            # Known to be away: nothing is written that could not be acknowledged.
            self._hold()
        try:
            if not self._held or self._sink_is_back():
                self._write_arrived()
                self._write_orphans()
                self._record_alarms(self._alarms.due())
            self._serve_keeper()
            self._keep_rhythm()
        except LogUnavailable as error:
            self._fail_closed(error)
        except _SinkAway:
            self._hold()

    def _look_around(self) -> None:
        """What is wrong around the log becomes an alarm, and what is right again ends it: every second, and when woken."""
        alarms = self._alarms
        self._room.look()
        self._had_room = self._room.has_room
        alarms.set(Subject.ROOM, self._room.trouble)
        alarms.set(Subject.SECOND_DIRECTORY, self._appender.second_in_use)
        if self._sink is not None:
            for missed in self._sink.missed():
                alarms.set(Subject.SINK, missed)
            alarms.set(Subject.SINK, self._sink.trouble)
        for place, trouble in self._anchors.troubles():
            alarms.set(_ANCHORS[place], trouble)
        self._woken, self._look_at_s = False, time.monotonic() + _LOOK_S

    def _told_of_state(self) -> Mapping[str, object]:
        """Members of the state file."""
        last, sink = self._appender.last_checkpoint, self._sink
        return {
            "n": self._appender.settled.n,
            "checkpoint": {"n": last[0].size, "t": last[0].t} if last else None,
            "note": last[1] if last else None,
            "free_bytes": self._room.free_bytes,
            "room": self._room.has_room,
            "no_room": self._room.trouble,
            "sinks": {sink.name: sink.state()} if sink else {},
            "anchors": self._anchors.state(),
            "backup": self._keeper.state.values() if self._keeper else {},
            "troubles": self._alarms.lasting(),
        }

    def _write_arrived(self) -> None:
        batch = self._take()
        if self._turned_away:
            # Before anything later of the same worker can become durable, and this pass for durable with it.
            self._tell_turned_away()
        if batch:
            self._commit(batch)
            self._tell_reader()
            if self._sink is not None and self._sink.needed and not self._sink.has_taken(self._appender.settled):
                raise _SinkAway
        for connection in list(self._connections.values()):
            if connection.acks or connection.unsent:
                self._acknowledge(connection)
            if connection.ended and connection not in self._ready:
                self._drop(connection)
        hellos, self._hellos = self._hellos, []
        for connection in hellos:
            self._welcome(connection)

    def _patience_s(self) -> float:
        """Seconds that the loop may sleep."""
        if self._ready or self._hellos:
            return 0.0
        waits = [self._state.due_s()]
        if self._reader is not None and self._reader.due_s is not None:
            waits.append(self._reader.due_s)
        if self._sink is not None and self._sink.behind:
            # It may hang, which only time tells.
            waits.append(_LOOK_S)
        if self._retry_at_s is not None:
            return max(0.0, min([self._retry_at_s - time.monotonic(), *waits]))
        waits += [deadline - time.monotonic() for deadline in self._deadlines.values()]
        # Without room nothing goes on record that can wait.
        due_s = self._alarms.due_s() if self._room.has_room else _LOOK_S
        waits += [due for due in (self._appender.due_s, due_s) if due is not None]
        # epoll counts in milliseconds and wants no busy last one
        return max(0.0, min(waits)) + 0.001

    def _tell_reader(self) -> None:
        """Before an acknowledgement goes out: who was told that a record is durable finds it."""
        if self._reader is not None:
            self._reader.tick(self._appender.synced)

    def _hear_parent(self) -> None:
        """Whoever started us for its own needs holds the other end of this pipe; when it is gone, so are we."""
        if self._parent is not None and not os.read(self._parent, 4096):
            self._stop_request.made = True

    # --- connections --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of file descriptors: the backlog keeps the peer, and it must not keep us spinning.
                report("accept_failed", error=error.strerror)
                time.sleep(0.05)
                return
            if self._retry_at_s is not None or self._held or len(self._connections) >= _CONNECTIONS_MAX:
                peer.close()
                continue
            peer.setblocking(False)
            self._connections[peer.fileno()] = _Connection(peer)
            self._epoll.register(peer.fileno(), select.EPOLLIN)

    def _receive(self, descriptor: int) -> None:
        connection = self._connections.get(descriptor)
        if connection is None or connection in self._ready or connection.ended:
            return
        try:
            # recv(n) would map, trim and unmap n bytes every turn
            size = connection.socket.recv_into(self._read_buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            connection.ended = True
            return
        arrived = bytes(memoryview(self._read_buffer)[:size])
        connection.buffer = connection.buffer[connection.offset :] + arrived
        connection.offset = 0
        if not connection.worker and not self._read_hello(connection):
            return
        if len(connection.buffer) >= HEAD.size and HEAD.unpack_from(connection.buffer)[0] > FRAME_BYTES_MAX:
            self._break_off(connection, "frame_too_long")
        elif connection.welcomed and connection.has_frame():
            self._ready[connection] = None

    def _read_hello(self, connection: _Connection) -> bool:
        if len(connection.buffer) < HELLO_BYTES:
            return False
        if not connection.buffer.startswith(MAGIC):
            self._break_off(connection, "not_our_protocol")
            return False
        connection.worker = connection.buffer[len(MAGIC) : HELLO_BYTES].hex()
        connection.buffer = connection.buffer[HELLO_BYTES:]
        self._hellos.append(connection)
        return True

    def _welcome(self, connection: _Connection) -> None:
        """Answered after the batch, so that what an older connection of the same worker sent is counted."""
        if connection.ended:
            return
        older = self._by_worker.get(connection.worker)
        if older is not None:
            self._drop(older)
        self._by_worker[connection.worker] = connection
        self._deadlines.pop(connection.worker, None)
        self._seen_leaving.discard(connection.worker)
        durable = self._appender.carry.seen.get(connection.worker, 0)
        refused = self._refused.get(connection.worker)
        # A refused record must not pass for durable because later ones are: the worker sends it again, and is told.
        known = min(durable, min(refused) - 1) if refused else durable
        connection.welcomed = True
        self._send(connection, COUNTER.pack(known))
        if connection.has_frame():
            self._ready[connection] = None

    def _acknowledge(self, connection: _Connection) -> None:
        acks, connection.acks = connection.acks, []
        self._send(connection, b"".join([COUNTER.pack(ack) for ack in acks]))

    def _send(self, connection: _Connection, content: bytes) -> None:
        """A worker that does not read its answers hurts itself only: they wait here, and then it is hung up on."""
        content = connection.unsent + content
        try:
            sent = connection.socket.send(content) if content else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            connection.ended = True
            return
        connection.unsent = content[sent:]
        if len(connection.unsent) > _UNSENT_BYTES_MAX:
            connection.ended = True
        if connection.watched_out != bool(connection.unsent):
            connection.watched_out = bool(connection.unsent)
            events = select.EPOLLIN | select.EPOLLOUT if connection.unsent else select.EPOLLIN
            self._epoll.modify(connection.socket.fileno(), events)

    def _break_off(self, connection: _Connection, why: str) -> None:
        report("peer_broken_off", why=why, worker=connection.worker)
        connection.ended = True
        self._ready.pop(connection, None)

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.socket.fileno(), None)
        self._ready.pop(connection, None)
        connection.ended = True
        connection.socket.close()
        if self._by_worker.get(connection.worker) is connection:
            del self._by_worker[connection.worker]
            self._seen_leaving.add(connection.worker)
            self._deadlines[connection.worker] = time.monotonic() + self._grace_s

    # --- frames -------------------------------------------------------------------------------------------------------

    def _take(self) -> list[Entry]:
        """At most 256 frames, in order of each worker, the connections in turn. Known and refused ones are only acked."""
        batch: list[Entry] = []
        opened = _Opened()
        room = BATCH_FRAMES_MAX
        for connection in list(self._ready):
            if room <= 0:
                break
            del self._ready[connection]
            share = room
            while share and connection.has_frame():
                share -= 1
                self._take_frame(connection, batch, opened)
            room = share
            if connection.has_frame():
                # To the end of the queue: one worker's backlog must not keep the others waiting.
                self._ready[connection] = None
        return batch

    def _take_frame(self, connection: _Connection, batch: list[Entry], opened: _Opened) -> None:
        length, counter = HEAD.unpack_from(connection.buffer, connection.offset)[:2]
        start = connection.offset
        connection.offset = end = start + HEAD.size + length
        worker = connection.worker
        refused = self._refused.get(worker)
        if refused and counter in refused:
            if refused[counter] == NO_ROOM:
                self._turned_away.append((connection, counter))
            else:
                connection.acks.append(counter | REFUSED)
            return
        if counter <= max(connection.taken, self._appender.carry.seen.get(worker, 0)):
            _acknowledge_with_the_batch(connection, counter)
            return
        connection.taken = counter
        try:
            indexed, metadata, body = _contents(connection.buffer[start:end])
            batch.append(self._entry(worker, counter, indexed, metadata, body, opened))
        except (_Refused, RefusedMetadata) as error:
            report("record_refused", worker=worker, counter=counter, why=str(error))
            self._remember_refused(worker, counter, REFUSED)
            connection.acks.append(counter | REFUSED)
        except _NoRoom:
            self._alarms.set(Subject.ROOM, self._room.trouble)
            self._alarms.refused(Subject.ROOM)
            self._remember_refused(worker, counter, NO_ROOM)
            self._turned_away.append((connection, counter))
        else:
            self._arrived_bytes += end - start
            _acknowledge_with_the_batch(connection, counter)

    def _remember_refused(self, worker: str, counter: int, answer: int) -> None:
        kept = self._refused.setdefault(worker, {})
        kept[counter] = answer
        if len(kept) > _REFUSED_KEPT:
            del kept[next(iter(kept))]

    def _tell_turned_away(self) -> None:
        turned_away, self._turned_away = self._turned_away, []
        answers: dict[_Connection, list[bytes]] = {}
        for connection, counter in turned_away:
            answers.setdefault(connection, []).append(COUNTER.pack(counter | NO_ROOM))
        for connection, told in answers.items():
            self._send(connection, b"".join(told))

    def _entry(self, worker: str, counter: int, indexed: bytes, metadata: bytes, body: bytes, opened: _Opened) -> Entry:
        """The record as it will stand in the log, or `_Refused`/`RefusedMetadata`."""
        members = _members(metadata)
        if not INDEX_NAMES.isdisjoint(members):
            raise _Refused("it sets a blind index, which only the writer can")
        if indexed and self._indexes is not None:
            try:
                members |= self._indexes.members(indexed)
            except ValueError as error:
                raise _Refused(str(error)) from None
        clear = check_metadata(members)
        written = orjson.dumps(clear)
        if len(written) > METADATA_BYTES_MAX:
            raise _Refused("its metadata is too long")
        kind, identifier, exchange = str(clear["ty"]), str(clear["id"]), str(clear["rid"])
        if not self._room.has_room and kind not in TAKEN_WITHOUT_ROOM:
            if kind == AuditType.LLM_START:
                self._never_started[identifier] = None
                if len(self._never_started) > _TURNED_AWAY_KEPT:
                    del self._never_started[next(iter(self._never_started))]
            raise _NoRoom
        carry = self._appender.carry
        start = None
        if kind == AuditType.LLM_START:
            if identifier in opened.exchanges or identifier in carry.open:
                raise _Refused("its id is that of an open exchange")
            size = opened.size + entry_bytes(identifier, exchange)
            if carry.open_bytes + size > OPEN_BYTES_MAX:
                raise _Refused("too many exchanges are open")
            opened.exchanges[identifier] = (exchange, worker)
            opened.size = size
        elif kind == AuditType.LLM_END:
            start = str(clear["sid"])
            if start in self._never_started:
                raise _NoRoom
            owner = opened.exchanges.get(start) or carry.open.get(start)
            if owner is not None and owner != (exchange, worker):
                raise _Refused("the exchange that it ends is another's")
        return Entry(worker, counter, written, body, kind, identifier, exchange, start, subject_in(clear))

    # --- exchanges whose worker died ----------------------------------------------------------------------------------

    def _write_orphans(self, *, stopping: bool = False) -> None:
        now = time.monotonic()
        due = set(self._seen_leaving) if stopping else {w for w, deadline in self._deadlines.items() if deadline <= now}
        if not due:
            return
        orphans = [
            self._orphan(start, exchange)
            for start, (exchange, worker) in self._appender.carry.open.items()
            if worker in due and worker not in self._by_worker
        ]
        for first in range(0, len(orphans), BATCH_FRAMES_MAX):
            self._commit(orphans[first : first + BATCH_FRAMES_MAX])
        for worker in due:
            self._deadlines.pop(worker, None)
            self._seen_leaving.discard(worker)
            self._refused.pop(worker, None)
        if orphans:
            report("orphans_closed", exchanges=len(orphans), workers=len(due))

    def _orphan(self, start: str, exchange: str) -> Entry:
        return self._own_entry(AuditType.LLM_END, exchange, {"sid": start, "st": EndStatus.ORPHAN.value}, start=start)

    def _own_entry(
        self,
        kind: AuditType,
        exchange: str,
        clear: Mapping[str, ClearValue],
        *,
        event: EventName | None = None,
        body: bytes = b"",
        start: str | None = None,
    ) -> Entry:
        """A record that the writer itself makes."""
        self._counter += 1
        identifier = new_record_id()
        named = {"ty": kind.value, "ev": event.value} if event else {"ty": kind.value}
        metadata = orjson.dumps({**named, "id": identifier, "rid": exchange, **clear})
        return Entry(self._identity, self._counter, metadata, body, kind.value, identifier, exchange, start)

    # --- what threads ask for -----------------------------------------------------------------------------------------

    def _serve_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.errands.serve(self)
            self._alarms.set(Subject.BACKUP, self._keeper.backup_trouble)
            self._alarms.set(Subject.RETENTION, self._keeper.retention_trouble)

    def close_records(self) -> None:
        if self._appender.holds_records:
            try:
                self._appender.rotate(self._by_worker)
            except LogUnavailable as error:
                self._reopen_in_reserve(error)

    def record(self, kind: AuditType, clear: Mapping[str, ClearValue]) -> None:
        self._commit([self._own_entry(kind, "aud_" + ulid(), clear)])

    # --- when the disk is full or away, and the end -------------------------------------------------------------------

    def _commit(self, batch: Sequence[Entry]) -> None:
        """As `Appender.commit`. A full disk costs the reserve first: what was taken in is to be written."""
        self._room.written(self._arrived_bytes)
        self._arrived_bytes = 0
        try:
            self._appender.commit(batch, self._by_worker)
        except LogUnavailable as error:
            self._reopen_in_reserve(error)
            self._appender.commit(batch, self._by_worker)

    def _keep_rhythm(self) -> None:
        try:
            self._appender.keep_rhythm(self._by_worker)
        except LogUnavailable as error:
            self._reopen_in_reserve(error)

    def _reopen_in_reserve(self, error: LogUnavailable) -> None:
        """Go on in the space of the reserve if the disk is full and there is one; else raise `error` again."""
        if not self._made_room(error.__context__):
            raise error
        if not self._appender.is_open:
            try:
                self._appender.open_segment(self._by_worker)
            except OSError as second:
                raise LogUnavailable(str(second)) from None

    def _made_room(self, cause: BaseException | None) -> bool:
        """Whether `cause` is a full disk, and there was a reserve to give up."""
        if isinstance(cause, KeyStoreUnavailable):
            made = cause.is_for_want_of_room and self._room.release()
        else:
            made = isinstance(cause, OSError) and cause.errno in _FULL and self._room.release()
        self._alarms.set(Subject.ROOM, self._room.trouble)
        return made

    def _open_segment(self) -> None:
        """As `Appender.open_segment`; a full disk costs the reserve first."""
        try:
            self._appender.open_segment(self._by_worker)
        except OSError as error:
            if not self._made_room(error):
                raise
            self._appender.open_segment(self._by_worker)

    def _open(self) -> None:
        try:
            try:
                self._appender.check_keys()
            except LogUnavailable as error:
                if not self._made_room(error.__context__):
                    raise
                self._appender.check_keys()
            if not self._appender.is_open:
                # It still is when only a key could not be made.
                self._open_segment()
        except OSError as error:
            self._fail_closed(LogUnavailable(error.strerror or str(error)))
            return
        except LogUnavailable as error:
            self._fail_closed(error)
            return
        if self._retry_at_s is not None:
            report("log_back")
        self._alarms.set(Subject.LOG, None)
        self._retry_at_s = None
        self._tell_erased()
        self._renew_grace()

    def _renew_grace(self) -> None:
        """Whoever has something open gets the whole grace to come (back)."""
        self._deadlines = {
            worker: time.monotonic() + self._grace_s
            for _, worker in self._appender.carry.open.values()
            if worker not in self._by_worker
        }

    def _hold(self) -> None:
        """What is in the log is not in the second sink: nobody is told that it is recorded, and nobody is let in, until it is."""
        if not self._held:
            report("sink_away", sink=self._sink.name if self._sink else None)
        self._held = True
        self._hang_up()

    def _sink_is_back(self) -> bool:
        if self._sink is None or self._sink.has_taken(self._appender.settled, 0.0):
            self._held = False
            self._renew_grace()
        return not self._held

    # --- what operators ask for ---------------------------------------------------------------------------------------

    @property
    def takes_records(self) -> bool:
        return self._retry_at_s is None and self._appender.is_open

    def record_own(self, kind: AuditType, exchange: str, clear: dict[str, ClearValue]) -> int:
        """See `key_care.OwnLog`."""
        if not self.takes_records:
            raise LogUnavailable("it is away")
        try:
            self._commit([self._own_entry(kind, exchange, clear)])
        except LogUnavailable as error:
            self._fail_closed(error)
            raise
        return self._appender.last_n

    def sign_now(self) -> str | None:
        """See `key_care.OwnLog`."""
        try:
            return self._appender.checkpoint(self._by_worker)
        except LogUnavailable as error:
            if not self._appender.is_open:
                self._fail_closed(error)
            raise

    def _tell_erased(self) -> None:
        """Whose keys were destroyed just before the writer died, or the log was away."""
        if self._key_care is not None:
            with contextlib.suppress(LogUnavailable):
                self._key_care.tell_erased(self)

    def _fail_closed(self, error: LogUnavailable) -> None:
        """No record can become durable: hang up on everybody without an acknowledgement, and try again."""
        if self._retry_at_s is None:
            report("log_unavailable", error=str(error))
        self._alarms.set(Subject.LOG, f"The audit log cannot be written: {error}.")
        self._retry_at_s = time.monotonic() + _RETRY_S
        self._hang_up()

    def _hang_up(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._ready.clear()
        self._hellos.clear()
        self._turned_away.clear()

    def _record_alarms(self, alarms: Sequence[Alarm]) -> None:
        """What was wrong goes on record when it is over, and there is room for it."""
        if not alarms or not self._room.has_room:
            return
        self._commit(
            [
                self._own_entry(
                    AuditType.AUDIT_TROUBLE,
                    "aud_" + ulid(),
                    alarm.clear(),
                    event=EventName.SECURITY_EVENT,
                    body=orjson.dumps({"why": alarm.why}),
                )
                for alarm in alarms
            ]
        )
        for alarm in alarms:
            self._alarms.recorded(alarm)

    def _stop(self) -> None:
        """Take what has arrived (for a second at most), close the segment."""
        notify("STOPPING=1")
        deadline = time.monotonic() + _DRAIN_S
        try:
            while self._retry_at_s is None and not self._held and time.monotonic() < deadline:
                arrived = [descriptor for descriptor, _ in self._epoll.poll(0) if descriptor in self._connections]
                if not arrived and not self._ready:
                    break
                for descriptor in arrived:
                    self._receive(descriptor)
                try:
                    self._write_arrived()
                except _SinkAway:
                    self._hold()
            if self._appender.is_open:
                # Their processes have ended before us: nobody will come to close these exchanges.
                self._write_orphans(stopping=True)
                self._record_alarms(self._alarms.due(stopping=True))
                self._appender.close_segment("stop")
        except (OSError, LogUnavailable) as error:
            report("stop_incomplete", error=str(error))
        if self._sink is not None:
            self._sink.stop(self._appender.settled)
        self._anchors.stop()
        self._state.remove()
        if self._reader is not None:
            self._reader.stop()
        if self._control is not None:
            self._control.close()


def _contents(whole: bytes) -> tuple[bytes, bytes, bytes]:
    """Values to index, metadata and body of a frame."""
    _, counter, flags, indexed_length, metadata_length = HEAD.unpack_from(whole)
    if flags or not 0 < counter < NO_ROOM:
        raise _Refused("it asks for what this version does not know")
    begin = HEAD.size + indexed_length
    split = begin + metadata_length
    if split > len(whole) or metadata_length > METADATA_BYTES_MAX or len(whole) - split > BODY_BYTES_MAX:
        raise _Refused("its metadata or body is too long")
    return whole[HEAD.size : begin], whole[begin:split], whole[split:]


def _members(metadata: bytes) -> dict[str, object]:
    try:
        members = orjson.loads(metadata)
    except orjson.JSONDecodeError:
        raise _Refused("its metadata is not JSON") from None
    if not isinstance(members, dict):
        raise _Refused("its metadata is no object")
    return members


def _acknowledge_with_the_batch(connection: _Connection, counter: int) -> None:
    acks = connection.acks
    if acks and not acks[-1] & REFUSED:
        acks[-1] = max(acks[-1], counter)
    else:
        acks.append(counter)


def listen(path: Path, setting: str = "AUDIT_SOCKET", *, mode: int = 0o660) -> socket.socket:
    """A listening socket at `path`. Whoever calls holds the log's lock, so what lies there is stale."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        previous = os.umask(0o777 ^ mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(previous)
        listener.listen(_CONNECTIONS_MAX)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        # Python raises this one without an errno.
        reason = error.strerror or str(error)
        hint = "; choose a path below 100 characters" if error.errno in {None, errno.ENAMETOOLONG} else ""
        raise OperatorError(f"The audit writer cannot listen on {setting}={path}: {reason}{hint}.") from None
    return listener


def notify(state: str) -> None:
    """Tell systemd, where it asked to be told (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
