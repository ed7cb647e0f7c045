"""Bytes to and from the provider, over TCP or TLS, with a deadline on every wait and an interruption from outside.

On `LoopSocket`: one watcher for the connection's life, no timer per wait, deadlines kept to within 0.1 s. Under gevent's
patch and without it each wait runs the event loop of the thread that opened the connection. TLS runs in memory
(`ssl.SSLObject` over two BIOs) above the same socket, so that every wait, also one in the midst of a handshake or of a
TLS record, obeys the one deadline; it was also the cheapest way measured.

A plain answer costs the room 37 µs, 47 over TLS, its JSON included; on gevent's sockets it was 60 and 72 (medians of three
alternated rounds, 16 at once, a busy machine, 2026-11). An open stream holds 9 kB, 51 over TLS (14 and 54).
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

from gevent import get_hub
from gevent.monkey import get_original

from secure_llm_proxy.foundation.loop_socket import LoopSocket
from secure_llm_proxy.upstream.egress_list import NO_EGRESS_LIST
from secure_llm_proxy.upstream.name_lookup import lookup_of

if TYPE_CHECKING:
    import select
    from collections.abc import Callable

    from secure_llm_proxy.upstream.egress_list import EgressList
    from secure_llm_proxy.upstream.endpoint import Endpoint
    from secure_llm_proxy.upstream.name_lookup import Address

_READ_BYTES = 65_536
# no record holds more
_RECORD_BYTES = 16_384
_WRITE_BYTES = 262_144
_ADDRESSES_MAX = 8
_POLLIN = 1


class WireBroken(Exception):
    """The connection can't be made or is gone. The text is for the operator."""


class _WireRefused(WireBroken):
    """Not even the host that we run on let the connection out."""


class WireTimedOut(Exception):
    """The deadline of one wait passed."""


class Wire:
    """One connection. `reused` is True when it has carried a whole exchange before. `postpone` moves the deadline (its
    argument, monotonic) of the wait that is under way. `hub` is that of the thread that opened it, whose event loop its
    waits run.

    Used by one greenlet at a time, in the thread that opened it; only `interrupt` and `close` may be called by another.
    """

    __slots__ = (
        "_egress_list",
        "_endpoint",
        "_incoming",
        "_interrupted",
        "_loop_socket",
        "_on_stirred",
        "_outgoing",
        "_poll",
        "_receive_raw",
        "_resolved",
        "_rest",
        "_stirred",
        "_tls",
        "_tls_context",
        "hub",
        "idle_since_s",
        "postpone",
        "reused",
    )

    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO
    _poll: select.poll
    _receive_raw: Callable[[int], bytes]
    postpone: Callable[[float], None]

    def __init__(
        self, endpoint: Endpoint, tls_context: ssl.SSLContext | None, egress_list: EgressList = NO_EGRESS_LIST
    ) -> None:
        self._endpoint = endpoint
        self._egress_list = egress_list
        self._tls_context = tls_context
        self.hub = get_hub()
        self._loop_socket: LoopSocket | None = None
        self._tls: ssl.SSLObject | None = None
        self._rest: bytes | WireBroken | None = None
        self._interrupted = False
        self._stirred = False
        self._on_stirred: Callable[[Wire], None] | None = None
        self._resolved: threading.Event | None = None
        self.reused = False
        self.idle_since_s = 0.0

    def open(self, deadline_s: float) -> None:
        """Look the name up, connect, and shake hands, all before `deadline_s` (monotonic).

        Raises `WireBroken` or `WireTimedOut`.
        The addresses are tried in the resolver's order, those that the host's egress filter is known to let through before
        others, each with its even share of the time that is left; only those to which the name may lead (`destinations.py`).
        """
        addresses = self._addresses(deadline_s)
        failure: WireBroken | WireTimedOut | None = None
        for position, address in enumerate(addresses):
            share_s = _left(deadline_s) / (len(addresses) - position)
            try:
                self._connect(address, time.monotonic() + share_s)
            except (WireBroken, WireTimedOut) as error:
                # what an address said for itself tells more
                if failure is None or not isinstance(error, _WireRefused):
                    failure = error
            else:
                break
        else:
            raise failure or WireBroken("the provider's name has no address")
        if self._tls_context is not None:
            self._shake_hands(self._tls_context, deadline_s)

    def send(self, payload: bytes, deadline_s: float) -> None:
        """Hand all of `payload` to the kernel."""
        if self._tls is None:
            self._send_raw(payload, deadline_s)
            return
        for start in range(0, len(payload), _WRITE_BYTES):
            try:
                self._tls.write(payload[start : start + _WRITE_BYTES])
            except ssl.SSLError as error:
                raise WireBroken(f"TLS: {_tls_reason(error)}") from None
            self._send_raw(self._outgoing.read(), deadline_s)

    def receive(self, deadline_s: float) -> bytes:
        """Return what arrives, at least one byte; b"" when the provider closed the connection in good order.

        Over TLS a close without its close_notify is `WireBroken`: who cuts the line must not be able to end an answer.
        """
        while True:
            loop_socket = self._loop_socket
            if loop_socket is None or self._interrupted:
                raise WireBroken("interrupted")
            try:
                loop_socket.wait(deadline_s)
            except TimeoutError:
                raise WireTimedOut from None
            except OSError as error:
                raise WireBroken(f"receive: {error}") from None
            received = self.receive_now(_READ_BYTES)
            if received is not None:
                return received

    def wait(self, deadline_s: float, handler: Callable[[], bool]) -> None:
        """Sleep until something may be read. `handler` is as `LoopSocket.wait` has it, and must not raise."""
        loop_socket = self._connected()
        try:
            loop_socket.wait(deadline_s, handler)
        except TimeoutError:
            raise WireTimedOut from None
        except OSError as error:
            raise WireBroken(f"receive: {error}") from None

    def receive_now(self, bytes_max: int) -> bytes | None:
        """Return what is here, as `receive` does, without waiting; None when that is nothing.

        At most `bytes_max` are taken from the kernel, and what they hold is given whole: what is not given here stands
        in the kernel, which wakes the next wait.
        """
        if self._rest is not None:
            if isinstance(self._rest, WireBroken):
                raise self._rest
            return self._rest
        try:
            received = self._receive_raw(bytes_max)
        except BlockingIOError:
            return None
        except OSError as error:
            raise WireBroken(f"receive: {error}") from None
        return received if self._tls is None else self._decrypt(self._tls, received)

    def wake(self) -> bool:
        """Somebody wants to use the idle connection again. False when it is of no use: something has come since the last
        answer, a close or bytes that nobody asked for.

        The event loop tells most of it (`idle`), the kernel is asked for the rest (0.3 µs): in a command the loop runs
        only while somebody waits. What remains: an unasked answer that arrives between this look and the sending of the
        request, some microseconds later, which HTTP/1.1 gives nobody the means to tell from the answer.
        """
        loop_socket = self._loop_socket
        if loop_socket is None or self._interrupted or self._stirred:
            return False
        self._on_stirred = None
        loop_socket.on_stir = None
        if self._tls is not None and (self._rest is not None or self._incoming.pending or self._tls.pending()):
            return False
        return not self._poll.poll(0)

    def idle(self, on_stirred: Callable[[Wire], None]) -> None:
        """Nobody uses the connection now: `on_stirred` is called in the event loop as soon as anything arrives."""
        if self._loop_socket is not None:
            self._on_stirred = on_stirred
            self._loop_socket.on_stir = self._stir
            self._loop_socket.watch()

    def interrupt(self) -> None:
        """Make every present and future wait of this wire end at once. Any thread; never blocks, never raises."""
        self._interrupted = True
        resolved, loop_socket = self._resolved, self._loop_socket
        if resolved is not None:
            resolved.set()
        if loop_socket is not None:
            loop_socket.interrupt()

    def close(self) -> None:
        """Hang up. May be called twice. Another thread's event loop is asked to do it, if it still runs."""
        if self.hub is get_hub() or self.hub.dead:
            self._close()
        elif self._loop_socket is not None:
            self.interrupt()
            self.hub.loop.run_callback_threadsafe(self._close)

    def _close(self) -> None:
        loop_socket, self._loop_socket = self._loop_socket, None
        if loop_socket is None:
            return
        self._on_stirred = None
        if self._tls is not None and not self._interrupted:
            self._say_goodbye(self._tls, loop_socket)
        loop_socket.close()

    def _stir(self) -> None:
        self._stirred = True
        if self._on_stirred is not None:
            self._on_stirred(self)

    def _addresses(self, deadline_s: float) -> list[Address]:
        host, port = self._endpoint.host, self._endpoint.port
        if self._endpoint.is_literal:
            return [(socket.AF_INET6, (host, port, 0, 0)) if ":" in host else (socket.AF_INET, (host, port))]
        self._resolved = resolved = threading.Event()
        lookup = lookup_of(host, port)
        lookup.tell(resolved)
        try:
            # an interruption before the event was made known has left its flag
            in_time = self._interrupted or resolved.wait(_left(deadline_s))
        finally:
            lookup.waiting.pop(resolved, None)
            self._resolved = None
        if self._interrupted:
            raise WireBroken("interrupted")
        if not in_time:
            raise WireTimedOut
        if lookup.failure is not None:
            raise WireBroken(f"name lookup: {lookup.failure}")
        # for this connection, and by the numbers that were judged: the next lookup may be answered otherwise
        addresses, refusal = self._endpoint.destinations.checked(lookup.found)
        if refusal is not None and not addresses:
            raise WireBroken(f"address refused: {refusal}")
        return self._egress_list.ordered(self._endpoint.destinations, port, addresses)[:_ADDRESSES_MAX]

    def _connect(self, address: Address, deadline_s: float) -> None:
        family, where = address
        raw = _socket.socket(family, socket.SOCK_STREAM)
        # known to `interrupt` before it waits
        self._loop_socket = loop_socket = LoopSocket(raw)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            failure = raw.connect_ex(where)
            if failure == errno.EINPROGRESS:
                self._connected().wait_writable(deadline_s)
                failure = raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._connected()
        except TimeoutError:
            self._close()
            raise WireTimedOut from None
        except OSError as error:
            self._close()
            raise self._not_connected(address, error.errno or 0, str(error)) from None
        except BaseException:
            self._close()
            raise
        if failure:
            self._close()
            raise self._not_connected(address, failure, os.strerror(failure))
        self._receive_raw = raw.recv
        self.postpone = loop_socket.postpone
        self._poll = get_original("select", "poll")()
        self._poll.register(raw.fileno(), _POLLIN)

    def _not_connected(self, address: Address, failure: int, said: str) -> WireBroken:
        endpoint = self._endpoint
        remark = self._egress_list.remark(endpoint.host, endpoint.port, address[1][0], failure)
        return WireBroken(f"connect: {said}") if remark is None else _WireRefused(f"connect: {said}: {remark}")

    def _shake_hands(self, context: ssl.SSLContext, deadline_s: float) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        # an absolute name is the same name to TLS, which knows no dot at its end (RFC 6066 §3)
        name = self._endpoint.host.removesuffix(".")
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush(deadline_s)
                # self._tls is not set yet: these are the bytes as they came
                if received := self.receive(deadline_s):
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError as error:
                with contextlib.suppress(WireBroken, WireTimedOut):
                    self._flush(deadline_s)  # the alert that tells the other side why
                raise WireBroken(f"TLS: {_tls_reason(error)}") from None
        self._flush(deadline_s)
        self._tls = tls

    def _decrypt(self, tls: ssl.SSLObject, received: bytes) -> bytes | None:
        """Return all that `received` completes; None when that is nothing, b"" at the end in good order."""
        incoming = self._incoming
        if received:
            incoming.write(received)
        else:
            incoming.write_eof()
        content = b""
        try:
            content = tls.read(_RECORD_BYTES)
            # asking once more, to be told by an exception that there is no more, would cost 3 to 4 µs
            while content and (incoming.pending or tls.pending()):
                more = tls.read(_RECORD_BYTES)
                if not more:
                    self._keep_for_next(b"")
                    break
                content += more
        except ssl.SSLWantReadError:
            # the rest of a record is on its way, or it was a message of TLS itself; what that wants answered (a new key)
            # goes out in front of the next request, as RFC 8446 §4.6.3 has it
            return content or None
        except ssl.SSLError as error:
            broken = WireBroken(f"TLS: {_tls_reason(error)}")
            if not content:
                raise broken from None
            self._keep_for_next(broken)
        return content

    def _keep_for_next(self, rest: bytes | WireBroken) -> None:
        """What stood behind the content comes with the next look, which the kernel now reports as due."""
        self._rest = rest
        if self._loop_socket is not None:
            with contextlib.suppress(OSError):
                self._loop_socket.raw.shutdown(socket.SHUT_RD)

    def _flush(self, deadline_s: float) -> None:
        if self._outgoing.pending:
            self._send_raw(self._outgoing.read(), deadline_s)

    def _send_raw(self, payload: bytes, deadline_s: float) -> None:
        loop_socket = self._loop_socket
        if loop_socket is None or self._interrupted:
            raise WireBroken("interrupted")
        try:
            loop_socket.send(payload, deadline_s)
        except TimeoutError:
            raise WireTimedOut from None
        except OSError as error:
            raise WireBroken(f"send: {error}") from None

    def _connected(self) -> LoopSocket:
        if self._loop_socket is None or self._interrupted:
            raise WireBroken("interrupted")
        return self._loop_socket

    def _say_goodbye(self, tls: ssl.SSLObject, loop_socket: LoopSocket) -> None:
        # close_notify, if it fits into the kernel's buffer; unwrap() then wants the other side's, which nobody awaits
        with contextlib.suppress(ssl.SSLError):
            tls.unwrap()
        if self._outgoing.pending:
            with contextlib.suppress(OSError):
                loop_socket.try_send(self._outgoing.read())


def _left(deadline_s: float) -> float:
    """Seconds until `deadline_s`; raises `WireTimedOut` when none are left (0 would mean "do not block")."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise WireTimedOut
    return left_s


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "the connection ended without close_notify"
    return error.reason or str(error)
