"""The operators' door of the writer: one JSON object per line each way, for who may open a socket of mode 0600.

Requests are `{"op":…, …}`; the answer is one line, `{"end":true, …}` or `{"error":{"code":…,"text":…}}`. An operation runs
between two batches of records, so it must be short; what is long is asked for in pieces. Nothing here waits for a peer.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from secure_llm_proxy.foundation.errors import OperatorError

Operation = Callable[[Mapping[str, object]], Mapping[str, object]]

_CONNECTIONS_MAX = 16
_LINE_BYTES_MAX = 1 << 20
_READ_BYTES = 64 << 10


class ControlRefused(Exception):
    """The operation can't be done. The text is a sentence for the operator, without a secret."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class _Peer:
    socket: socket.socket
    inbox: bytes = b""
    unsent: bytes = b""
    ending: bool = False


class ControlDoor:
    """The writer's side. `listener` is bound, listening and non-blocking; `operations` may be added to at any time."""

    def __init__(self, listener: socket.socket, report: Callable[..., None]) -> None:
        self.operations: dict[str, Operation] = {}
        self._listener = listener
        self._report = report
        self._epoll: select.epoll | None = None
        self._peers: dict[int, _Peer] = {}

    def watch(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        epoll.register(self._listener.fileno(), select.EPOLLIN)

    def hear(self, descriptor: int) -> bool:
        """Whether the event was for us; it is dealt with then."""
        if descriptor == self._listener.fileno():
            self._accept()
        elif descriptor in self._peers:
            self._serve(self._peers[descriptor])
        else:
            return False
        return True

    def close(self) -> None:
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if self._epoll is None or len(self._peers) >= _CONNECTIONS_MAX:
                connection.close()
                return
            connection.setblocking(False)
            self._peers[connection.fileno()] = _Peer(connection)
            self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _serve(self, peer: _Peer) -> None:
        try:
            if peer.unsent:
                self._send(peer)
                return
            arrived = peer.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            arrived = b""
        if not arrived:
            self._drop(peer)
            return
        peer.inbox += arrived
        line, found, rest = peer.inbox.partition(b"\n")
        if len(line) > _LINE_BYTES_MAX:
            line, found, peer.ending = b"", b"\n", True
        if found:
            # One at a time: who sends more before the answer has it read afterwards.
            peer.inbox = rest
            peer.unsent = orjson.dumps(self._answer(line)) + b"\n"
            self._send(peer)

    def _answer(self, line: bytes) -> Mapping[str, object]:
        try:
            request = orjson.loads(line)
            name = request["op"]
            operation = self.operations[name]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return _error("unknown_operation", "The audit writer knows no such operation.")
        try:
            return {"end": True, **operation(request)}
        except ControlRefused as error:
            return _error(error.code, str(error))
        except Exception as error:  # noqa: BLE001 - the writer goes on whatever an operation runs into
            self._report("operation_failed", operation=name, error=type(error).__name__)
            return _error("operation_failed", f"The operation failed ({type(error).__name__}); see the writer's log.")

    def _send(self, peer: _Peer) -> None:
        try:
            sent = peer.socket.send(peer.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(peer)
            return
        peer.unsent = peer.unsent[sent:]
        if peer.ending and not peer.unsent:
            self._drop(peer)
        elif self._epoll is not None:
            self._epoll.modify(peer.socket.fileno(), select.EPOLLOUT if peer.unsent else select.EPOLLIN)

    def _drop(self, peer: _Peer) -> None:
        del self._peers[peer.socket.fileno()]
        peer.socket.close()


def _error(code: str, text: str) -> Mapping[str, object]:
    return {"error": {"code": code, "text": text}}


class WriterControl:
    """A command's connection to the writer that runs. Raises `OperatorError` when it isn't there, or refuses."""

    def __init__(self, address: Path, *, patience_s: float = 30.0) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience_s)
        self._inbox = b""
        try:
            self._socket.connect(str(address))
        except PermissionError:
            self.close()
            raise OperatorError(
                f"{address} is for the audit writer's user and root; run this as one of them."
            ) from None
        except OSError as error:
            self.close()
            raise OperatorError(
                f"The audit writer does not answer its operator on {address} ({error.strerror})."
            ) from None

    def ask(self, operation: str, **members: object) -> dict[str, object]:
        """The members of the answer."""
        try:
            self._socket.sendall(orjson.dumps({"op": operation, **members}) + b"\n")
            while b"\n" not in self._inbox:
                arrived = self._socket.recv(_READ_BYTES)
                if not arrived:
                    raise OperatorError(f"The audit writer hung up before it had answered `{operation}`.")
                self._inbox += arrived
        except OSError as error:
            raise OperatorError(
                f"The audit writer did not answer `{operation}` on {self._address} ({error.strerror or error})."
            ) from None
        line, _, self._inbox = self._inbox.partition(b"\n")
        answer = orjson.loads(line)
        if "error" in answer:
            raise OperatorError(str(answer["error"]["text"]))
        return {name: value for name, value in answer.items() if name != "end"}

    def close(self) -> None:
        self._socket.close()
