"""Syslog receivers with real sockets, for what leaves by RFC 5424."""

from __future__ import annotations

import json
import re
import socket
import threading
from pathlib import Path
from typing import Self

from tests.support.ports import free_port

_MESSAGE = re.compile(
    rb"<(?P<priority>\d+)>1 (?P<t>\S+) (?P<host>\S+) (?P<app>\S+) (?P<pid>\d+) (?P<kind>\S+) - (?P<text>.*)", re.DOTALL
)


class SyslogReceiver:
    """Takes messages until closed. `address` is what a setting holds; the same port or path can be opened again."""

    def __init__(self, transport: str, *, path: Path | None = None, port: int = 0) -> None:
        self.raw: list[bytes] = []
        self._connections: list[socket.socket] = []
        if transport == "unix":
            assert path is not None
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            self.address = str(path)
        else:
            kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
            self._socket = socket.socket(socket.AF_INET, kind)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # One of the kernel's own could be gone when a second receiver wants it.
            self._socket.bind(("127.0.0.1", port or (free_port() if transport == "tcp" else 0)))
            self.port = int(self._socket.getsockname()[1])
            self.address = f"{transport}://127.0.0.1:{self.port}"
        if transport == "tcp":
            self._socket.listen(8)
        work = self._accept if transport == "tcp" else self._receive
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """It is gone, with every connection that it had."""
        for each in (self._socket, *self._connections):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                """Not connected, or a datagram socket without a peer."""
            each.close()

    @property
    def messages(self) -> list[re.Match[bytes]]:
        found = [_MESSAGE.fullmatch(raw) for raw in list(self.raw)]
        assert all(found), self.raw
        return [each for each in found if each]

    @property
    def told(self) -> list[dict[str, object]]:
        return [json.loads(message["text"]) for message in self.messages]

    def _receive(self) -> None:
        self._socket.settimeout(0.1)
        while self._socket.fileno() >= 0:
            try:
                self.raw.append(self._socket.recv(1 << 17))
            except TimeoutError:
                continue
            except OSError:
                return

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._read_frames, args=(connection,), daemon=True).start()

    def _read_frames(self, connection: socket.socket) -> None:
        """Octet counting (RFC 6587)."""
        try:
            with connection.makefile("rb") as stream:
                while size := _size(stream.read(1), stream):
                    message = stream.read(size)
                    if len(message) == size:
                        self.raw.append(message)
        except (OSError, ValueError):
            return


def _size(first: bytes, stream: object) -> int:
    digits = first
    while digits and not digits.endswith(b" "):
        digits += stream.read(1)  # type: ignore[attr-defined]
    return int(digits) if digits else 0
