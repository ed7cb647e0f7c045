"""A worker that speaks to the audit writer byte by byte."""

from __future__ import annotations

import socket
import uuid
from typing import Self

from secure_llm_proxy.audit.frames import COUNTER, MAGIC
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import WAIT_S


class Peer:
    """Speaks to the writer byte by byte, as a worker that someone else took over might."""

    def __init__(self, settings: AuditSettings, worker: uuid.UUID | None = None, *, hello: bytes | None = None) -> None:
        self.worker = worker or uuid.uuid4()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WAIT_S)
        try:
            self.socket.connect(str(settings.socket))
            self.socket.sendall(MAGIC + self.worker.bytes if hello is None else hello)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def answer(self) -> int:
        content = b""
        while len(content) < COUNTER.size:
            arrived = self.socket.recv(COUNTER.size - len(content))
            assert arrived, "the writer hung up"
            content += arrived
        return int(COUNTER.unpack(content)[0])

    def was_hung_up_on(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
