"""gunicorn's stock gevent worker, with two of its habits changed: what it says itself, and how it stops."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gunicorn.http import errors as refusals
from gunicorn.workers.ggevent import GeventWorker

from secure_llm_proxy.foundation.identifiers import ExchangeId, new_exchange_id
from secure_llm_proxy.vocabulary.connection import UNREAD, UnreadRecord

log = logging.getLogger(__name__)

_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
}
# The master kills with SIGKILL when GRACEFUL_TIMEOUT_S is over, counted from the same moment: the stock worker, which gives
# its requests just as long, never gets to end them. This much (at most half) is ours, to end them and let go.
_CLOSING_S = 5
# A front that keeps connections may send its next request in the moment in which we hang up, and answers 502. One that is in
# use is therefore left until its next answer, which says `Connection: close`; one that has been silent for so long is not
# in use (nginx takes the connection used last first, and ours gives up what was idle for 2 s: deploy/nginx).
_SILENT_S = 4.0
# nginx takes 32 kB at most. gunicorn's own limit, 819 kB, is held against the whole head: looking through that much again with
# each byte that comes would cost 5 ms a time.
_HEAD_BYTES_MAX = 64 * 1024
_DRAINED_BYTES_MAX = 16 * 2**20
_DRAINED_S = 5.0
_DRAINED_AT_ONCE = 2048
_BODY = '{"error":{"message":"%s","type":"%s","param":null,"code":"%s"}}'  # no client text goes in: nothing to escape
# As web/headers.py has them, which the server does not import; a test holds the two together (ASVS 3.4.3 to 3.4.6).
_HEADERS = (
    "X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\n"
    "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\nPermissions-Policy: camera=(), geolocation=(), microphone=()\r\n"
    "Cache-Control: no-store\r\nVary: Authorization, Cookie\r\n"
)


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn ships no types
    """Refusals of gunicorn's own parser in the one error shape, and an orderly stop that does not wait for idle
    keep-alive connections. A request that its parser refuses never reaches the route: it stands in the worker's log, and
    on record if the application keeps an `UnreadRecord`.

    `send_timeout_s` bounds every write while a request is answered, so that a client that stops reading does not hold a
    provider's answer for ever.
    """

    send_timeout_s: float | None = None
    notify_socket: str | None = None
    """Where systemd hears `READY=1`; None when it is not asked for."""
    end_running: Callable[[], None] = staticmethod(lambda: None)
    """Tells those whose requests still run that the server stops; asked when the time for them is over."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_since_s: dict[socket.socket, float] = {}
        self._patience_s = 0
        self._stopping_since_s: float | None = None

    def init_process(self) -> None:
        """Runs in the worker, after the fork; returns when the worker has ended."""
        whole_s = self.cfg.graceful_timeout
        closing_s = min(_CLOSING_S, whole_s // 2)
        self._patience_s = whole_s - closing_s
        # A second for clients to hear of it, where there is one to spare.
        self.cfg.set("graceful_timeout", self._patience_s + closing_s // _CLOSING_S)
        super().init_process()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        if type(client) is gevent.socket.socket:
            client = PatientSocket(client)
        self._idle_since_s[client] = time.monotonic()
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle_since_s.pop(client, None)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        self._idle_since_s.pop(sock, None)
        # Whoever sends request behind request never makes us wait, and so nobody else would have a turn.
        gevent.sleep(0)
        sock.settimeout(self.send_timeout_s)
        if isinstance(sock, PatientSocket):
            sock.reads_head = False
        try:
            try:
                # Not gevent's: it forgets that the greenlet is to end, and would take the next request.
                super(GeventWorker, self).handle_request(listener_name, req, sock, addr)
            except StopIteration:
                # The connection ends with this answer, which is lost on whoever still sends when we hang up.
                _is_read_to_its_end(req.body)
                raise
            if not _is_read_to_its_end(req.body):
                raise StopIteration
        except (gevent.GreenletExit, SystemExit):
            raise StopIteration from None
        except TimeoutError:
            log.warning("client hung up on: it stopped reading", extra={"address": addr[0] if addr else "unix"})
            raise StopIteration from None
        finally:
            sock.settimeout(None)
            if isinstance(sock, PatientSocket):
                sock.reads_head, sock.head_bytes = True, 0
            self._idle_since_s[sock] = time.monotonic()

    def notify(self) -> None:
        """Called once a second by gunicorn, for the first time when connections are accepted: then systemd is told so.
        While stopping, tell idle connections that no request will be read, and at last the others that theirs must end.
        """
        super().notify()
        if self.alive:
            if self.notify_socket is not None:
                _say_ready(self.notify_socket)
                self.notify_socket = None
        else:
            now_s = time.monotonic()
            if self._stopping_since_s is None:
                self._stopping_since_s = now_s
            if now_s - self._stopping_since_s >= self._patience_s:
                self.end_running()
            silent_since_s = now_s - _SILENT_S
            for client in [client for client, since_s in self._idle_since_s.items() if since_s <= silent_since_s]:
                try:
                    if not _has_bytes(client):
                        client.shutdown(socket.SHUT_RD)
                except OSError:
                    self._idle_since_s.pop(client, None)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what never became a request. Neither answer nor log quotes a byte of it: it may hold a key."""
        if isinstance(exc, gevent.GreenletExit | SystemExit):
            # The worker is being stopped while a head was being read: nothing was asked yet.
            return
        status, kind, code, message = _refusal_of(exc)
        exchange = new_exchange_id()
        log.warning(
            "request refused by the worker",
            extra={
                "request_id": exchange,
                "status": status,
                "code": code,
                "address": addr[0] if addr else "unix",
                "why": type(exc).__name__,
            },
            exc_info=exc if status == 500 else None,  # noqa: PLR2004
        )
        if not isinstance(exc, OSError):
            # A connection that broke asked for nothing, and nobody hears the answer.
            self._record_unread(exchange, status, code, addr[0] if addr else None)
        body = (_BODY % (message, kind, code)).encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-Id: {exchange}\r\n{_HEADERS}\r\n"
        )
        try:
            client.settimeout(self.send_timeout_s)
            client.sendall(head.encode() + body)
        except OSError:
            log.debug("client left before its refusal", extra={"request_id": exchange})

    def _record_unread(self, exchange: ExchangeId, status: int, code: str, address: str | None) -> None:
        application = getattr(self, "wsgi", None)
        record: UnreadRecord | None = getattr(application, "extensions", {}).get(UNREAD)
        if record is not None:
            record(exchange, status, code, address)


def _say_ready(address: str) -> None:
    """sd_notify(3). Whoever can't be told will say that we did not start in time."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.connect("\0" + address[1:] if address.startswith("@") else address)
        line.send(b"READY=1")


class PatientSocket(gevent.socket.socket):
    """Takes `client` over for gunicorn's own path, and gives out again what was already received from it.

    Everybody else has a turn before each read: gevent reads without one while bytes are there, and gunicorn reads a head
    until it is whole, so that its time limit would never be looked at. A head has `_HEAD_BYTES_MAX`, then
    `LimitRequestHeaders` is raised.
    """

    def __init__(self, client: gevent.socket.socket, received: bytes = b"") -> None:
        family, kind, protocol = client.family, client.type, client.proto
        super().__init__(family, kind, protocol, fileno=client.detach())
        self._received = received
        self.reads_head = True
        self.head_bytes = 0

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        received: bytes
        if flags:
            received = super().recv(bufsize, flags)
            return received
        if self._received:
            received, self._received = self._received[:bufsize], self._received[bufsize:]
        else:
            gevent.sleep(0)
            received = super().recv(bufsize)
        if self.reads_head:
            self.head_bytes += len(received)
            if self.head_bytes > _HEAD_BYTES_MAX:
                raise refusals.LimitRequestHeaders("max buffer headers")
        return received


def _is_read_to_its_end(body: Any) -> bool:
    """Read what is left of a body that nobody wants, within bounds, so that the answer is seen before the hanging up.
    gunicorn would read without bounds, and without giving anybody else a turn while bytes are there.
    """
    left = _DRAINED_BYTES_MAX
    try:
        with gevent.Timeout(_DRAINED_S):
            while left > 0:
                dropped = len(body.read(_DRAINED_AT_ONCE))
                if not dropped:
                    return True
                left -= dropped
                gevent.sleep(0)
    except gevent.Timeout:
        return False
    except Exception:  # noqa: BLE001  the parser's own errors: where the next request starts is unknown
        return False
    return False


def _has_bytes(client: Any) -> bool:
    """A request that has arrived is answered; gevent's shutdown would throw its reader out."""
    try:
        return bool(client._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))  # noqa: SLF001  gevent's own would wait
    except OSError:
        return False


def _refusal_of(exc: BaseException) -> tuple[int, str, str, str]:
    invalid = "invalid_request_error"
    ours = 500, "internal_error", "internal_error", "The proxy failed to handle this request."
    match exc:
        case refusals.ConfigurationProblem() | refusals.InvalidResponseHeader() | refusals.InvalidResponseHeaderName():
            return ours
        case refusals.LimitRequestLine():
            return 414, invalid, "malformed_request", "The request line is too long."
        case refusals.LimitRequestHeaders():
            return 431, invalid, "malformed_request", "The request headers are too large."
        case refusals.ExpectationFailed():
            return 417, invalid, "malformed_request", "The Expect header cannot be met."
        case refusals.UnsupportedTransferCoding():
            return 501, invalid, "malformed_request", "This transfer coding is not supported."
        case refusals.ForbiddenProxyRequest():
            return 403, "permission_error", "forbidden", "The request is not allowed."
        case refusals.ParseException() | OSError():
            return 400, invalid, "malformed_request", "The request is not valid HTTP/1.1."
        case _:
            return ours
