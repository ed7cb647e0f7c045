"""Bytes to and from the provider, over TCP or TLS, with a deadline on every wait and an interruption from outside.

Blocking sockets with timeouts: under gevent's monkey patching each wait lets the other greenlets run, without it the
thread blocks. TLS runs in memory (`ssl.SSLObject` over two BIOs) above the same socket, so that every wait, also one
in the midst of a handshake or of a TLS record, obeys the one deadline; it was also the cheapest way measured.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_llm_proxy.upstream.endpoint import Endpoint

_READ_BYTES = 65_536
_WRITE_BYTES = 262_144
_ADDRESSES_MAX = 8

_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


class WireBroken(Exception):
    """The connection can't be made or is gone. The text is for the operator."""


class WireTimedOut(Exception):
    """The deadline of one wait passed."""


class Wire:
    """One connection. `reused` is True when it has carried a whole exchange before.

    Used by one greenlet or thread at a time; only `interrupt` may be called by another.
    """

    __slots__ = (
        "_decrypted",
        "_encrypted",
        "_endpoint",
        "_interrupted",
        "_resolved",
        "_socket",
        "_tls",
        "_tls_context",
        "idle_since_s",
        "reused",
    )

    def __init__(self, endpoint: Endpoint, tls_context: ssl.SSLContext | None) -> None:
        self._endpoint = endpoint
        self._tls_context = tls_context
        self._socket: socket.socket | None = None
        self._tls: ssl.SSLObject | None = None
        self._decrypted = ssl.MemoryBIO()
        self._encrypted = ssl.MemoryBIO()
        self._interrupted = False
        self._resolved = threading.Event()
        self.reused = False
        self.idle_since_s = 0.0

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def open(self, deadline_s: float) -> None:
        """Look the name up, connect, and shake hands, all before `deadline_s` (monotonic).

        Raises `WireBroken` or `WireTimedOut`.
        The addresses are tried in the resolver's order, each with its even share of the time that is left.
        """
        addresses = self._addresses(deadline_s)
        failure: WireBroken | WireTimedOut = WireBroken("the provider's name has no address")
        for position, address in enumerate(addresses):
            share_s = _left(deadline_s) / (len(addresses) - position)
            try:
                self._connect(address, share_s)
            except (WireBroken, WireTimedOut) as error:
                failure = error
            else:
                break
        else:
            raise failure
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
            self._send_raw(self._encrypted.read(), deadline_s)

    def receive(self, deadline_s: float) -> bytes:
        """Return what has arrived, at least one byte; b"" when the provider closed the connection in good order.

        Over TLS a close without its close_notify is `WireBroken`: who cuts the line must not be able to end an answer.
        """
        if self._tls is None:
            return self._receive_raw(deadline_s)
        while True:
            try:
                return self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                self._flush(deadline_s)
                self._feed_tls(deadline_s)
            except ssl.SSLError as error:
                raise WireBroken(f"TLS: {_tls_reason(error)}") from None

    def is_quiet(self) -> bool:
        """True when nothing has come since the last answer: neither a close nor bytes that nobody asked for."""
        if self._socket is None or self._interrupted or self._decrypted.pending:
            return False
        if self._tls is not None and self._tls.pending():
            return False
        try:
            self._socket.settimeout(0)
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def interrupt(self) -> None:
        """Make every present and future wait of this wire end at once. Never blocks, never raises."""
        self._interrupted = True
        self._resolved.set()
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up. May be called twice."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._say_goodbye()
        with contextlib.suppress(OSError):
            self._socket.close()
        self._socket = None

    def _addresses(self, deadline_s: float) -> list[_Address]:
        host, port = self._endpoint.host, self._endpoint.port
        if self._endpoint.is_literal:
            return [(socket.AF_INET6, (host, port, 0, 0)) if ":" in host else (socket.AF_INET, (host, port))]
        found: list[_Address] = []
        failures: list[str] = []

        def look_up() -> None:
            # the resolver knows no timeout, hence a thread (a greenlet under the patch) that may be left behind
            try:
                for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                    if family in (socket.AF_INET, socket.AF_INET6):
                        found.append((family, address))  # type: ignore[arg-type]
            except (OSError, UnicodeError) as error:
                failures.append(str(error))
            finally:
                self._resolved.set()

        threading.Thread(target=look_up, name="upstream-name-lookup", daemon=True).start()
        if not self._resolved.wait(_left(deadline_s)):
            raise WireTimedOut
        if self._interrupted:
            raise WireBroken("interrupted")
        if failures:
            raise WireBroken(f"name lookup: {failures[0]}")
        return found[:_ADDRESSES_MAX]

    def _connect(self, address: _Address, timeout_s: float) -> None:
        family, where = address
        # known to `interrupt` before it blocks
        self._socket = connection = socket.socket(family, socket.SOCK_STREAM)
        if self._interrupted:
            self.close()
            raise WireBroken("interrupted")
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.settimeout(timeout_s)
            connection.connect(where)
        except TimeoutError:
            self.close()
            raise WireTimedOut from None
        except OSError as error:
            self.close()
            raise WireBroken(f"connect: {error}") from None

    def _shake_hands(self, context: ssl.SSLContext, deadline_s: float) -> None:
        self._tls = context.wrap_bio(self._decrypted, self._encrypted, server_hostname=self._endpoint.host)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush(deadline_s)
                self._feed_tls(deadline_s)
            except ssl.SSLError as error:
                with contextlib.suppress(OSError, WireBroken, WireTimedOut):
                    self._flush(deadline_s)  # the alert that tells the other side why
                raise WireBroken(f"TLS: {_tls_reason(error)}") from None
        self._flush(deadline_s)

    def _feed_tls(self, deadline_s: float) -> None:
        received = self._receive_raw(deadline_s)
        if received:
            self._decrypted.write(received)
        else:
            self._decrypted.write_eof()

    def _flush(self, deadline_s: float) -> None:
        if self._encrypted.pending:
            self._send_raw(self._encrypted.read(), deadline_s)

    def _send_raw(self, payload: bytes, deadline_s: float) -> None:
        connection = self._connected()
        rest = memoryview(payload)
        try:
            while rest:
                connection.settimeout(_left(deadline_s))
                rest = rest[connection.send(rest) :]
        except TimeoutError:
            raise WireTimedOut from None
        except OSError as error:
            raise WireBroken(f"send: {error}") from None

    def _receive_raw(self, deadline_s: float) -> bytes:
        connection = self._connected()
        try:
            connection.settimeout(_left(deadline_s))
            return connection.recv(_READ_BYTES)
        except TimeoutError:
            raise WireTimedOut from None
        except OSError as error:
            raise WireBroken(f"receive: {error}") from None

    def _connected(self) -> socket.socket:
        if self._socket is None or self._interrupted:
            raise WireBroken("interrupted")
        return self._socket

    def _say_goodbye(self) -> None:
        if self._tls is None or self._socket is None or self._interrupted:
            return
        # close_notify, if it fits into the kernel's buffer; unwrap() then wants the other side's, which nobody awaits
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        if self._encrypted.pending:
            self._socket.settimeout(0)
            self._socket.send(self._encrypted.read())


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
