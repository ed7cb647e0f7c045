"""Is the client still there? Its leaving must stop the provider's work, also while nothing is being written."""

from __future__ import annotations

import contextlib
import socket
from functools import partial
from typing import Any, Protocol
from wsgiref.types import WSGIEnvironment

import gevent

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.vocabulary.connection import CONNECTION, ClientConnection

_TCP_ESTABLISHED = 1  # include/net/tcp_states.h of Linux
_LOOK_S = 0.25


_GONE = "client_gone"


class Presence(Protocol):
    """Raises the exchange's cancellation when the client leaves between `start()` (the body is read) and `stop()` (the
    answer is out). After `stop()` it never starts again.
    """

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def hang_up(self) -> None:
        """End the client's connection, whatever it does or doesn't read. Never raises."""
        ...


def watch_client(environ: WSGIEnvironment, cancellation: Cancellation) -> Presence:
    """By our worker's own watcher where there is one, which costs nothing while nobody leaves (4 µs less a request)."""
    return LentWatch(environ[CONNECTION], cancellation) if CONNECTION in environ else ClientWatch(environ, cancellation)


class LentWatch:
    """Presence as our worker tells it."""

    __slots__ = ("_cancellation", "_connection", "_started", "_stopped")

    def __init__(self, connection: ClientConnection, cancellation: Cancellation) -> None:
        self._connection = connection
        self._cancellation = cancellation
        self._started = False
        self._stopped = False

    def start(self) -> None:
        if not self._started and not self._stopped:
            self._started = True
            self._connection.watch(partial(self._cancellation.raise_, _GONE))

    def stop(self) -> None:
        # Once: by a second time the connection may be at its next request already.
        if self._started and not self._stopped:
            self._connection.watch(None)
        self._stopped = True

    def hang_up(self) -> None:
        self._connection.hang_up()


class ClientWatch:
    """Watches the client's socket between `start()` (the body is read) and `stop()` (the answer is out).

    Readable and empty means gone; behind nginx, that nginx saw its client go. Bytes mean that the client sends its
    next request already. Without a socket (no gunicorn around) it does nothing.
    """

    def __init__(self, environ: WSGIEnvironment, cancellation: Cancellation) -> None:
        client = environ.get("gunicorn.socket")
        # gevent's socket would switch greenlets in recv(); the one below it answers at once.
        self._client: socket.socket | None = getattr(client, "_sock", client)
        self._cancellation = cancellation
        self._watcher: Any = None
        self._stopped = False

    def start(self) -> None:
        if self._client is None or self._watcher is not None or self._stopped:
            return
        self._watcher = gevent.get_hub().loop.io(self._client.fileno(), 1)
        self._watcher.start(self._readable)

    def stop(self) -> None:
        self._stopped = True
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None

    def hang_up(self) -> None:
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)

    def _readable(self) -> None:
        if self._client is None or self._watcher is None:
            return
        try:
            left = not self._client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            left = True
        self._watcher.stop()
        if left:
            self._cancellation.raise_(_GONE)
        elif self._client.family != socket.AF_UNIX and hasattr(socket, "TCP_INFO"):
            # Bytes of a next request hide the end behind them; TCP itself knows it. (nginx never sends ahead.)
            self._watcher.close()
            self._watcher = gevent.get_hub().loop.timer(_LOOK_S, _LOOK_S)
            self._watcher.start(self._look_at_connection)

    def _look_at_connection(self) -> None:
        if self._client is None or self._watcher is None:
            return
        try:
            left = self._client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED
        except OSError:
            left = True
        if left:
            self._watcher.stop()
            self._cancellation.raise_(_GONE)
