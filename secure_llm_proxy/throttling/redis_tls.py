"""TLS between a LoopSocket and whoever speaks through it."""

from __future__ import annotations

import ssl

from secure_llm_proxy.foundation.loop_socket import LoopSocket

_READ_BYTES = 16_384


class TlsSession:
    """One connection's session, by memory buffers: the waiting stays LoopSocket's, in the event loop's callbacks too."""

    __slots__ = ("_incoming", "_outgoing", "_session")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def shake_hands(self, link: LoopSocket, deadline_s: float) -> None:
        while True:
            try:
                self._session.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            finally:
                # The alert that says why it failed as well.
                content = self._outgoing.read()
                if content:
                    link.send(content, deadline_s)
            if done:
                return
            arrived = link.receive(_READ_BYTES, deadline_s)
            if not arrived:
                raise ConnectionResetError
            self._incoming.write(arrived)

    def sealed(self, content: bytes) -> bytes:
        self._session.write(content)
        return self._outgoing.read()

    def opened(self, arrived: bytes) -> bytes:
        """What can be read by now, maybe nothing. Raises `ssl.SSLError`, also at the other side's proper end."""
        self._incoming.write(arrived)
        pieces: list[bytes] = []
        while True:
            try:
                piece = self._session.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                return b"".join(pieces)
            if not piece:
                raise ConnectionResetError
            pieces.append(piece)
