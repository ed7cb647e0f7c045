"""One connection to Redis per event loop, shared by everybody who asks there at the same time.

The commands of one loop turn leave in one send; answers come in the order of the questions, and each wakes its asker
straight from the loop's callback. Worker CPU per `take` and `release` in Redis, the local charge included (Python 3.11,
2 cores shared, Redis 7.0 over loopback): 1 greenlet 33 µs, 16 greenlets 17 µs, 64 greenlets 16 µs; by redis-py's pooled
connections 91, 112 and 110 µs.

When it fails: everybody is told at once (`RedisAway`), and the next question connects anew; one greenlet connects,
whoever asks meanwhile waits with it. An answer that is late by `timeout_s` (kept to within 0.1 s) breaks the connection:
what follows it would be late as well, and may be an answer to a question that somebody has given up.
Source: DESIGN §8; the idea of one flush per loop turn is the audit journal's.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
import hiredis
from gevent import get_hub
from gevent.monkey import get_original
from greenlet import getcurrent

from secure_llm_proxy.foundation.loop_socket import LoopSocket
from secure_llm_proxy.throttling.redis_address import RedisAddress, SocketAddress
from secure_llm_proxy.throttling.redis_away import RedisAway, reason_of, reason_of_reply
from secure_llm_proxy.throttling.redis_tls import TlsSession
from secure_llm_proxy.throttling.resp import Script, packed

if TYPE_CHECKING:
    from greenlet import greenlet

_WRITE = 2
_READ_BYTES = 16_384
_RESOLVE_S = 5.0
_PING = packed("PING")
# A script that was not known is called once more, behind what came after it.
_ROUNDS_AT_CLOSE = 3

# A node that lost its role or its memory of us may say so for as long as we stay with it: the next connection may reach another.
_NOT_THE_ONE = frozenset({"NOAUTH", "READONLY", "MASTERDOWN"})

Lost = Callable[[RedisAway], None]


class _Pending:
    """No answer yet: Redis answers None, too."""


class _Question:
    """A command on its way, in its place until it is answered, whether anybody still waits or not."""

    __slots__ = ("answer", "due_s", "frame", "lost", "patient", "script", "waiter")

    def __init__(self, frame: bytes, script: Script | None, due_s: float, lost: Lost | None) -> None:
        self.frame = frame
        self.script = script
        self.due_s = due_s
        self.lost = lost
        self.patient = False
        self.waiter: greenlet | None = None
        self.answer: object = _Pending


class RedisLink:
    """Belongs to the thread that made it. Connects at its first use, and again at the next after it broke or was closed."""

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._hub = get_hub()
        self._loop = self._hub.loop
        # Of the present connection, or of the attempt at one; None when there is neither.
        self._life: object | None = None
        self._ready = False
        self._connect_due_s = inf
        self._socket: LoopSocket | None = None
        self._raw: _socket.socket | None = None
        self._tls: TlsSession | None = None
        self._writer: Any = None
        self._reader = _new_reader()
        self._questions: deque[_Question] = deque()
        self._out: list[bytes] = []
        self._stuck: memoryview | None = None
        self._flush_armed = False
        _links.append(weakref.ref(self, _links.remove))

    def ask(self, frame: bytes, script: Script | None = None) -> object:
        """Redis' answer to one packed command. `script` is what it calls by hash. Raises `RedisAway`."""
        asker = getcurrent()
        if asker.parent is None:
            self._notice_end()
        return self._wait(self._enqueue(frame, script, None), asker)

    def ask_all(self, commands: Sequence[tuple[bytes, Script | None]]) -> list[object]:
        """The answers to many commands sent as one, which may take `timeout_s` each. Raises `RedisAway` when any failed."""
        asker = getcurrent()
        if asker.parent is None:
            self._notice_end()
        questions = []
        for frame, script in commands:
            question = self._enqueue(frame, script, None)
            question.patient = True
            questions.append(question)
        try:
            # Mostly all others are answered when the last one is.
            for question in questions[-1:]:
                self._wait(question, asker)
            return [self._wait(question, asker) for question in questions]
        finally:
            if not self._ready and self._questions:
                # None of them is sent later, when nobody would read the answers.
                given_up = set(map(id, questions))
                kept = [question for question in self._questions if id(question) not in given_up]
                self._questions.clear()
                self._questions.extend(kept)

    def tell(self, frame: bytes, script: Script | None, lost: Lost) -> None:
        """Send a packed command in this turn of the loop, and wait for nothing. Not from a greenlet that never lets it turn.

        `lost` is called, in the loop, when it was refused or it is unknown whether it was carried out.
        """
        self._enqueue(frame, script, lost)

    def close(self) -> None:
        """Hang up, once what was told has been answered."""
        if getcurrent() is not self._hub:
            with contextlib.suppress(RedisAway):
                for _ in range(_ROUNDS_AT_CLOSE):
                    if not self._questions:
                        break
                    self.ask(_PING)
        self._hang_up("ConnectionError")

    def interrupt(self) -> None:
        """As if Redis had hung up. Any thread."""
        link = self._socket
        if link is not None:
            link.interrupt()

    def abandon(self) -> list[_Question]:
        """Let go without a word to Redis or to those who wait: their thread or process is not this one. Gives what was open."""
        link, self._socket, self._raw, self._tls = self._socket, None, None, None
        self._life = None
        self._ready = self._flush_armed = False
        self._stop_writer()
        if link is not None and not link.is_closed:
            link.detach().close()
        questions = list(self._questions)
        self._forget()
        return questions

    # --- questions ----------------------------------------------------------------------------------------------------

    def _enqueue(self, frame: bytes, script: Script | None, lost: Lost | None) -> _Question:
        question = _Question(frame, script, monotonic() + self._timeout_s, lost)
        questions = self._questions
        if self._ready:
            if not questions and self._socket is not None:
                self._socket.postpone(question.due_s)
            questions.append(question)
            self._out.append(frame)
            if not self._flush_armed:
                self._flush_armed = True
                self._loop.run_callback(self._flush)
        else:
            questions.append(question)
            if self._life is None:
                self._life = life = object()
                gevent.spawn(self._live, life)
        return question

    def _wait(self, question: _Question, asker: greenlet) -> object:
        if question.answer is _Pending:
            if asker is self._hub:
                raise RuntimeError("Redis was asked inside a callback of the event loop")
            question.waiter = asker
            try:
                if not self._ready:
                    self._wait_for_connection(question)
                while question.answer is _Pending:
                    self._hub.switch()
            finally:
                # A greenlet that was woken by something else must not be switched to by the answer.
                question.waiter = None
        answer = question.answer
        if answer.__class__ is RedisAway:
            raise answer
        return answer

    def _wait_for_connection(self, question: _Question) -> None:
        """Return when it stands; its own deadline covers everybody from then on. Raises `RedisAway` after `timeout_s`."""
        late = TimeoutError()
        limit = gevent.Timeout.start_new(self._timeout_s, late)
        try:
            while question.answer is _Pending:
                self._hub.switch()
        except BaseException as error:
            if error is late and self._ready:
                return
            if question in self._questions and not self._ready:
                # Not sent yet: nobody would read the answer.
                self._questions.remove(question)
            if error is not late:
                raise
            if monotonic() >= self._connect_due_s:
                self._hang_up("TimeoutError")
            raise RedisAway("TimeoutError") from None
        finally:
            limit.close()

    # --- one connection's life, in a greenlet of its own --------------------------------------------------------------

    def _live(self, life: object) -> None:
        try:
            link = self._connected(life)
            if link is None:
                return
            while True:
                questions = self._questions
                try:
                    link.wait(questions[0].due_s if questions else inf, self._on_readable)
                except TimeoutError:
                    # It may have come while this process had no time to look.
                    if not questions or not _has_arrived(link.raw):
                        raise
        except BaseException as error:  # noqa: BLE001  whatever it is, everybody who waits must be told
            if self._life is life:
                self._hang_up(reason_of(error))

    def _connected(self, life: object) -> LoopSocket | None:
        """Connect, greet, and send what was asked meanwhile; None when nobody wants it any more."""
        # A slow resolver is waited for by nobody, but what it says is used by the next who asks.
        self._connect_due_s = inf
        with gevent.Timeout(_RESOLVE_S, TimeoutError()):
            places = self._address.resolved()
        self._connect_due_s = deadline_s = monotonic() + self._timeout_s
        link = None
        for number, (family, address) in enumerate(places, start=1):
            if self._life is not life:
                return None
            try:
                link = self._opened(family, address, deadline_s)
                break
            except OSError:
                if number == len(places) or self._life is not life:
                    raise
        if link is None:
            raise OSError("no address")
        tls = self._address.tls
        self._tls = None if tls is None else TlsSession(tls, self._address.host)
        self._reader = _new_reader()
        if self._tls is not None:
            self._tls.shake_hands(link, deadline_s)
        if self._address.greeting:
            self._greet(link, deadline_s)
        self._raw = link.raw
        self._ready = True
        self._out = [question.frame for question in self._questions]
        due_s = monotonic() + self._timeout_s
        for question in self._questions:
            question.due_s = due_s
        self._flush()
        return link

    def _opened(self, family: int, address: SocketAddress, deadline_s: float) -> LoopSocket:
        raw = _socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        link = self._socket = LoopSocket(raw)
        try:
            if family != socket.AF_UNIX:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                raw.connect(address)
            except BlockingIOError:
                link.wait_writable(deadline_s)
                if code := raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, os.strerror(code)) from None
        except BaseException:
            link.close()
            raise
        return link

    def _greet(self, link: LoopSocket, deadline_s: float) -> None:
        content = b"".join(self._address.greeting)
        link.send(content if self._tls is None else self._tls.sealed(content), deadline_s)
        for command in self._address.greeting:
            while (answer := self._reader.gets()) is False:
                arrived = link.receive(_READ_BYTES, deadline_s)
                if not arrived:
                    raise ConnectionResetError
                self._reader.feed(arrived if self._tls is None else self._tls.opened(arrived))
            if isinstance(answer, hiredis.ReplyError):
                raise RedisAway("AuthenticationError" if b"AUTH" in command[:16] else reason_of_reply(answer))

    # --- callbacks of the loop ----------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_armed = False
        if not self._ready or self._stuck is not None or not self._out:
            # What is stuck goes first, and takes ours along.
            return
        out = self._out
        content = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._send(content if self._tls is None else self._tls.sealed(content))

    def _send(self, content: bytes | memoryview) -> None:
        link = self._socket
        if link is None:
            return
        try:
            self._stuck = link.try_send(content)
        except OSError:
            # Raised inside a callback it would only be printed, and everybody would sleep until the deadline.
            self._hang_up("ConnectionError")
            return
        if self._stuck is None:
            self._stop_writer()
        elif self._writer is None:
            writer = self._writer = self._loop.io(link.raw.fileno(), _WRITE)
            writer.start(self._on_writable)

    def _on_writable(self) -> None:
        if self._stuck is not None:
            self._send(self._stuck)
        if self._stuck is None:
            self._flush()

    def _on_readable(self) -> bool:
        life, raw, link = self._life, self._raw, self._socket
        if raw is None or link is None:
            raise ConnectionResetError
        try:
            arrived = raw.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        if not arrived:
            raise ConnectionResetError
        reader, questions = self._reader, self._questions
        reader.feed(arrived if self._tls is None else self._tls.opened(arrived))
        while (answer := reader.gets()) is not False:
            # An answer that nobody asked for ends in the IndexError that breaks the connection.
            question = questions.popleft()
            if answer.__class__ is hiredis.ReplyError:
                self._refused(question, answer)
            else:
                question.answer = answer
                waiter = question.waiter
                if waiter is not None:
                    try:
                        # We are in the hub: the greenlet runs now and comes back here at its next wait.
                        waiter.switch()
                    except BaseException:  # noqa: BLE001  its own affair, not that of those behind it
                        self._hub.handle_error(waiter, *sys.exc_info())
            if self._life is not life:
                return True
        if questions:
            head = questions[0]
            if head.patient:
                head.due_s = monotonic() + self._timeout_s
            link.postpone(head.due_s)
        else:
            link.postpone(inf)
        return True

    def _refused(self, question: _Question, answer: Exception) -> None:
        code = str(answer).partition(" ")[0]
        script = question.script
        if code == "NOSCRIPT" and script is not None:
            question.script = None
            if question.waiter is not None or question.lost is not None or question.patient:
                question.frame = script.spelt_out(question.frame)
                question.due_s = monotonic() + self._timeout_s
                self._questions.append(question)
                self._out.append(question.frame)
                if not self._flush_armed:
                    self._flush_armed = True
                    self._loop.run_callback(self._flush)
            return
        self._lose(question, reason_of_reply(answer))
        if code in _NOT_THE_ONE:
            self._hang_up(reason_of_reply(answer))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _notice_end(self) -> None:
        """A program that never lets the loop turn learns only now that Redis has hung up since the last answer."""
        if self._ready and not self._questions and self._raw is not None:
            try:
                ended = not self._raw.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return
            except OSError:
                ended = True
            if ended:
                self._hang_up("ConnectionError")

    def _hang_up(self, reason: str) -> None:
        link, self._socket, self._raw, self._tls = self._socket, None, None, None
        self._life = None
        self._ready = False
        self._stop_writer()
        if link is not None:
            link.close()
        questions = list(self._questions)
        self._forget()
        for question in questions:
            self._lose(question, reason)

    def _forget(self) -> None:
        # The same deque: a callback further up may hold it.
        self._questions.clear()
        self._out = []
        self._stuck = None

    def _stop_writer(self) -> None:
        writer: Any = self._writer
        self._writer = None
        if writer is not None:
            writer.stop()
            writer.close()

    def _lose(self, question: _Question, reason: str) -> None:
        question.answer = away = RedisAway(reason)
        if question.lost is not None:
            question.lost(away)
        if question.waiter is not None:
            # We may not be in the hub, and it is the hub that a waking greenlet goes back to.
            self._loop.run_callback(self._wake, question)

    @staticmethod
    def _wake(question: _Question) -> None:
        if question.waiter is not None:
            question.waiter.switch()


class RedisLinks:
    """A link for each thread that asks; a worker has one."""

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        # In a patched process `threading.local` is one per greenlet.
        self._local: Any = get_original("threading", "local")()
        self._made: list[weakref.ref[RedisLink]] = []

    def here(self) -> RedisLink:
        try:
            link: RedisLink = self._local.link
        except AttributeError:
            link = self._local.link = RedisLink(self._address, self._timeout_s)
            self._local.keeper = _Keeper(link)
            self._made.append(weakref.ref(link, self._made.remove))
        return link

    def close(self) -> None:
        own: RedisLink | None = getattr(self._local, "link", None)
        if own is not None:
            own.close()
        for link in [made() for made in self._made]:
            if link is not None and link is not own:
                link.interrupt()


class _Keeper:
    """Lets go of a link when its thread, or the throttle that it belongs to, is no more."""

    __slots__ = ("_link",)

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    def __del__(self) -> None:
        # The loop may be gone already, and nobody would hear of the error.
        with contextlib.suppress(Exception):
            for question in self._link.abandon():
                if question.lost is not None:
                    question.lost(RedisAway("ConnectionError"))


def _new_reader() -> hiredis.Reader:
    return hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=hiredis.ReplyError)


def _has_arrived(raw: _socket.socket) -> bool:
    try:
        return bool(raw.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


_links: list[weakref.ref[RedisLink]] = []


def _leave_links_to_parent() -> None:
    for link in [made() for made in _links]:
        if link is not None:
            link.abandon()


# A forked child shares its parent's sockets: it must neither ask there nor read what its parent is answered.
os.register_at_fork(after_in_child=_leave_links_to_parent)
