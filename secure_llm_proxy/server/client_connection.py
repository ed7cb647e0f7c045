"""The client's side of a connection in the fast lane: its bodies, and whether it is still there."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, Final

from gevent import get_hub
from gunicorn.http.unreader import Unreader

from secure_llm_proxy.foundation.loop_socket import LoopSocket

_TCP_ESTABLISHED: Final = 1  # include/net/tcp_states.h of Linux
_LOOK_S: Final = 0.25
_RECEIVED_BYTES_MAX: Final = 1024 * 1024


class WatchedClient:
    """A `ClientConnection`. Readable and empty means gone; behind nginx, that nginx saw its client go. Bytes mean that the
    client sends its next request already.

    Costs nothing while nothing stirs: the connection's own watcher is heard, none is made for a request.
    """

    __slots__ = ("_body_is_read", "_look", "_socket", "on_gone")

    def __init__(self, loop_socket: LoopSocket) -> None:
        self._socket = loop_socket
        self.on_gone: Callable[[], None] | None = None
        """Who is told; `watch` sets it."""
        self._body_is_read = True
        self._look: Any = None

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        self.on_gone = on_gone
        if on_gone is None:
            self._socket.on_stir = None
            if self._look is not None:
                self._stop_looking()
        elif self._body_is_read:
            self._listen()

    def hang_up(self) -> None:
        self._socket.interrupt()

    def body_is_awaited(self) -> None:
        """From now on bytes are expected: they tell nothing."""
        self._body_is_read = False
        self._socket.on_stir = None

    def body_is_read(self) -> None:
        """From now on whatever stirs does."""
        self._body_is_read = True
        if self.on_gone is not None:
            self._listen()

    def _listen(self) -> None:
        self._socket.on_stir = self._stirred
        # It may have stirred before: then its watcher has stopped, and tells at once when it starts again.
        self._socket.watch()

    def _stirred(self) -> None:
        raw = self._socket.raw
        try:
            left = not raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._socket.watch()
            return
        except OSError:
            left = True
        if left:
            self._tell()
        elif raw.family != socket.AF_UNIX and hasattr(socket, "TCP_INFO"):
            # Bytes of a next request hide the end behind them; TCP itself knows it. (nginx never sends ahead.)
            self._stop_looking()
            self._look = get_hub().loop.timer(_LOOK_S, _LOOK_S)
            self._look.start(self._look_at_connection)

    def _look_at_connection(self) -> None:
        try:
            state = self._socket.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            left = state != _TCP_ESTABLISHED
        except OSError:
            left = True
        if left:
            self._tell()

    def _tell(self) -> None:
        on_gone = self.on_gone
        self.watch(None)
        if on_gone is not None:
            on_gone()

    def _stop_looking(self) -> None:
        look, self._look = self._look, None
        if look is not None:
            look.stop()
            look.close()


class ArrivingBytes(Unreader):  # type: ignore[misc]  # gunicorn ships no types
    """What gunicorn's `Body` reads a body from that was not there with its head; early ends and all reads are as ever.

    It waits for each read, `read_timeout_s` at most (`TimeoutError`), and so gives everybody else a turn. `surplus` is what
    came behind the body.
    """

    def __init__(
        self,
        loop_socket: LoopSocket,
        client: WatchedClient,
        *,
        begun: bytes,
        length: int,
        read_timeout_s: float,
    ) -> None:
        super().__init__()
        self.unread(begun)
        self._socket = loop_socket
        self._client = client
        self._missing_bytes = length - len(begun)
        self._read_timeout_s = read_timeout_s
        client.body_is_awaited()

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Called by gunicorn; b"" is the client's end."""
        size = min(max(size_hint or 0, 8192), _RECEIVED_BYTES_MAX)
        received = self._socket.receive(size, time.monotonic() + self._read_timeout_s)
        self._missing_bytes -= len(received)
        if self._missing_bytes <= 0:
            self._client.body_is_read()
        return received

    def surplus(self) -> bytes:
        taken: bytes = self.take_buffered()
        return taken
