"""The worker's fast lane: plain requests are read, answered and awaited with as little as possible around the application.

One receive, one parse, one send for a request. Everything that is not plain goes, with its untouched bytes, to the stock
worker (worker.py), which keeps that connection until it closes; so the lane accepts nothing that gunicorn would refuse.
"""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import time
from contextlib import AbstractContextManager
from typing import Any, Final

import gevent
import gevent.socket
from greenlet import getcurrent
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.message import HeaderPolicy
from gunicorn.http.wsgi import base_environ
from gunicorn.util import close

from secure_llm_proxy.foundation.loop_socket import LoopSocket
from secure_llm_proxy.server.answer_writer import AnswerWriter, Preambles
from secure_llm_proxy.server.client_connection import ArrivingBytes, WatchedClient
from secure_llm_proxy.server.request_reader import PlainRequest, RequestReader, Verdict
from secure_llm_proxy.server.worker import PatientSocket, Worker, _is_read_to_its_end
from secure_llm_proxy.vocabulary.connection import CONNECTION

log = logging.getLogger(__name__)

_RECEIVED_BYTES_MAX: Final = 64 * 1024
_HEAD_BYTES_MAX: Final = 8190  # gunicorn's own largest request line and, by default, header
_FIELDS_MAX: Final = 32768
_LEFT: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


class HotWorker(Worker):
    """The stock worker with a lane for plain requests in front.

    A request costs 19 to 22 µs of CPU, the kernel's part included, where the stock worker's costs 115 to 127 (constant
    application, 15 headers, 16 kept connections, four rounds, Python 3.11, 2026-11-21). gunicorn's `pre_request` and
    `post_request` hooks are not called. The lane is shut with `keepalive = 0`, TLS, an access log, the PROXY protocol,
    cleartext HTTP/2 or SCRIPT_NAME.
    """

    alive: bool
    nr: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  gunicorn's own
        super().__init__(*args, **kwargs)
        self._preambles = Preambles()
        self._head_deadlines_s: dict[object, float] = {}

    def handle(self, listener: Any, client: Any, addr: Any) -> None:  # noqa: ANN401  gunicorn ships no types
        """One connection, in a greenlet of its own."""
        if not self._lane_is_open():
            super().handle(listener, client, addr)
            return
        unusual = None
        try:
            unusual = self._serve_plain(listener, client, addr)
        finally:
            self._idle_since_s.pop(client, None)
            if unusual is None:
                close(client)
        if unusual is not None:
            received, deadline_s = unusual
            self._head_deadlines_s[getcurrent()] = deadline_s
            try:
                super().handle(listener, PatientSocket(client, received), addr)
            finally:
                self._head_deadlines_s.pop(getcurrent(), None)

    def timeout_ctx(self) -> AbstractContextManager[object]:
        """Called by gunicorn for each head: for one that we handed over, what is left of its time."""
        deadline_s = self._head_deadlines_s.pop(getcurrent(), None)
        if deadline_s is None:
            context: AbstractContextManager[object] = super().timeout_ctx()
            return context
        return gevent.Timeout(max(0.01, deadline_s - time.monotonic()), False)  # type: ignore[arg-type]  # gevent: end silently

    def _lane_is_open(self) -> bool:
        cfg = self.cfg
        return bool(
            cfg.keepalive
            and not cfg.is_ssl
            and cfg.proxy_protocol == "off"
            and getattr(cfg, "protocol", "http") == "http"
            and cfg.http2_cleartext == "off"
            and not self.log.access_log_enabled
            and not os.environ.get("SCRIPT_NAME")
        )

    def _serve_plain(self, listener: Any, client: Any, addr: Any) -> tuple[bytes, float] | None:  # noqa: ANN401
        """Answer plain requests until the connection has to be closed (None) or one comes that is not plain.

        Then: its bytes so far, and the time (monotonic) at which its head must be there.
        """
        connection = LoopSocket(client._sock)  # noqa: SLF001  gevent's own would start watchers for every wait
        watched = WatchedClient(connection)
        answer = AnswerWriter(connection, self.cfg, self._preambles, self.send_timeout_s)
        client.settimeout(self.send_timeout_s)
        try:
            environ = _environ_of(self.cfg, listener.getsockname(), client, addr)
            environ[CONNECTION] = watched
            environ["wsgi.early_hints"] = answer.early_hints
            reader = _reader(self.cfg, listener.getsockname(), addr, environ)
            return self._answer_all(client, connection, watched, reader, answer)
        except TimeoutError:
            log.warning("client hung up on: it stopped reading", extra={"address": addr[0] if addr else "unix"})
        except OSError as error:
            if error.errno not in _LEFT:
                self.log.exception("Socket error processing request.")
        except (gevent.GreenletExit, SystemExit):
            self.log.debug("Connection ended by the worker's own end.")
        except BaseException as error:  # as gunicorn: an application's timeout is an error like others
            if answer.headers_sent:
                self.log.exception("Error handling request")
            else:
                self.handle_error(None, client, addr, error)
        finally:
            watched.watch(None)
            connection.detach()
        return None

    def _answer_all(
        self,
        client: Any,  # noqa: ANN401  gevent's socket
        connection: LoopSocket,
        watched: WatchedClient,
        reader: RequestReader,
        answer: AnswerWriter,
    ) -> tuple[bytes, float] | None:
        idle_since_s, keepalive_s, application = self._idle_since_s, self.cfg.keepalive, self.wsgi
        read, receive, monotonic = reader.read, connection.receive, time.monotonic
        begin, start_response, send = answer.begin, answer.start_response, answer.send
        # Python 3.11 looks a member of an enumeration up slowly.
        unfinished, received = Verdict.UNFINISHED, b""
        while True:
            now_s = monotonic()
            deadline_s = now_s + keepalive_s
            idle_since_s[client] = now_s
            if received:
                # Whoever sends request behind request never makes us wait, and so nobody else would have a turn.
                gevent.sleep(0)
            request: PlainRequest | Verdict = read(received) if received else unfinished
            while request is unfinished:
                try:
                    more = receive(_RECEIVED_BYTES_MAX, deadline_s)
                except TimeoutError:
                    return None
                if not more:
                    return None
                received = received + more if received else more
                request = read(received)
            if type(request) is not PlainRequest:
                return received, deadline_s
            if client in idle_since_s:
                del idle_since_s[client]
            environ, body_at, length, closes = request
            end = body_at + length
            arriving: ArrivingBytes | None = None
            body: Any
            if len(received) >= end:
                body = io.BytesIO(received[body_at:end])
                received = received[end:]
            else:
                arriving = ArrivingBytes(
                    connection,
                    watched,
                    begun=received[body_at:],
                    length=length,
                    read_timeout_s=math.inf if self.send_timeout_s is None else self.send_timeout_s,
                )
                body = Body(LengthReader(arriving, length))
            environ["wsgi.input"] = body
            self.nr += 1
            if self.nr >= self.max_requests:
                self._end_after_this()
            begin(environ["REQUEST_METHOD"], closes=closes or not self.alive)
            answered = application(environ, start_response)
            try:
                send(answered)
            finally:
                if type(answered) is not tuple and hasattr(answered, "close"):
                    answered.close()
            if watched.on_gone is not None:
                watched.watch(None)
            # Also before hanging up: whoever still sends then never sees his answer.
            if (arriving is not None and not _is_read_to_its_end(body)) or answer.closes:
                return None
            if arriving is not None:
                received = arriving.surplus()

    def _end_after_this(self) -> None:
        if self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False


def _environ_of(
    cfg: Any,  # noqa: ANN401  gunicorn ships no types
    server: tuple[str, int] | str,
    client: gevent.socket.socket | None,
    addr: Any,  # noqa: ANN401  a tuple, or "" behind a unix socket
) -> dict[str, object]:
    """What the environs of a connection have in common; the same keys and values that `gunicorn.http.wsgi.create` makes."""
    environ: dict[str, object] = base_environ(cfg)
    environ |= {
        "gunicorn.socket": client,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
        "wsgi.multithread": True,
        "wsgi.url_scheme": "http",
        "wsgi.input": None,
        **dict.fromkeys(("REQUEST_METHOD", "RAW_URI", "PATH_INFO", "QUERY_STRING"), ""),
    }
    if isinstance(addr, tuple):
        environ |= {"REMOTE_ADDR": addr[0], "REMOTE_PORT": str(addr[1])}
    else:
        environ["REMOTE_ADDR"] = addr.decode() if isinstance(addr, bytes) else addr
    name, port = [*server.split(":"), ""][:2] if isinstance(server, str) else server[:2]
    return environ | {"SERVER_NAME": name, "SERVER_PORT": str(port)}


def _reader(
    cfg: Any,  # noqa: ANN401  gunicorn ships no types
    server: tuple[str, int] | str,
    addr: Any,  # noqa: ANN401  a tuple, or "" behind a unix socket
    base: dict[str, object],
) -> RequestReader:
    policy = HeaderPolicy()
    policy.cfg, policy.peer_addr = cfg, addr
    scheme_headers, _ = policy._peer_trusted_for_forwarded()  # noqa: SLF001  gunicorn's own judgement of this peer
    limits = [limit for limit in (cfg.limit_request_line, cfg.limit_request_field_size) if limit > 0]
    return RequestReader(
        base,
        # No line of a head can be longer than the head.
        head_bytes_max=min([_HEAD_BYTES_MAX, *limits]),
        fields_max=min(cfg.limit_request_fields, _FIELDS_MAX) if cfg.limit_request_fields > 0 else _FIELDS_MAX,
        scheme_headers={f"HTTP_{name.replace('-', '_')}": secure for name, secure in scheme_headers.items()},
        host_names_server=isinstance(server, str) and ":" not in server,
    )
