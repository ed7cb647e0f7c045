"""What the server lends to a door while one request is answered, and what a door may give it in return."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from secure_llm_proxy.foundation.identifiers import ExchangeId

CONNECTION = "slp.connection"
"""The key of a WSGI environ under which a `ClientConnection` stands; absent under a server that is not ours."""


UNREAD = "slp.unread"
"""The key in `extensions` of an application under which it keeps an `UnreadRecord`."""


class UnreadRecord(Protocol):
    """Leaves a record of what the server refused because it was no request. Neither waits nor raises."""

    def __call__(self, exchange_id: ExchangeId, status: int, code: str, address: str | None) -> None: ...


class ClientConnection(Protocol):
    """The client's side of one request."""

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """Call `on_gone` once, in the event loop, when the client leaves before its answer is out. None ends it.

        It is heard only once the request's body has been read: until then bytes are expected.
        """
        ...

    def hang_up(self) -> None:
        """End the connection in both directions: whoever waits for the client, or for it to read, goes on at once."""
        ...


class StreamSink(Protocol):
    """Where a running answer goes; it does the framing."""

    def send(self, piece: bytes) -> bool:
        """Hand over `piece` without waiting; may be called in the event loop. Raises `OSError` when the client is gone.

        False when the client reads more slowly than we send: then nothing more may be sent before `flush`.
        """
        ...

    def flush(self) -> None:
        """Wait until everything is sent. Raises `TimeoutError` after SEND_TIMEOUT_S, `OSError` when the client is gone."""
        ...


class RelayedBody(Protocol):
    """A WSGI body that can be iterated, as any, or asked to send itself from the event loop."""

    def __iter__(self) -> Iterator[bytes]: ...

    def relay(self, sink: StreamSink) -> None:
        """Send everything; return when the last byte is handed over. The server calls `close()` afterwards in any case."""
        ...

    def close(self) -> None: ...
