"""What a door of a wire format adds to the corridor: how an answer, a stream and an error look to its clients."""

from __future__ import annotations

from typing import Protocol

from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.gateway import Reply
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent
from secure_llm_proxy.web.errors import error_body

DONE = b"data: [DONE]\n\n"


class StreamWriter(Protocol):
    """Writes one stream, as whole frames of server-sent events. Must not wait."""

    def event(self, event: StreamEvent) -> bytes:
        """The frames that this event adds, b"" for none."""
        ...

    def end(self) -> bytes:
        """What stands last in an answer that is whole and on record."""
        ...

    def error(self, error: ProxyError) -> bytes:
        """What stands last in an answer that broke off."""
        ...


class ClientFormat(Protocol):
    """One wire format as clients of a door speak it."""

    def whole(self, completion: Completion, reply: Reply) -> object:
        """The JSON of a plain answer. `completion.answer` is set where the provider spoke another format."""
        ...

    def stream(self, reply: Reply, *, translated: bool) -> StreamWriter:
        """`translated`: the events carry `deltas`; else they are events of this very format."""
        ...

    def error_body(self, error: ProxyError) -> bytes: ...


class PassedOn:
    """A `StreamWriter` for events of OpenAI's chat format that leave as they came."""

    __slots__ = ()

    def event(self, event: StreamEvent) -> bytes:
        data = event.data
        return b"data: %b\n\n" % data if data else b""

    def end(self) -> bytes:
        return DONE

    def error(self, error: ProxyError) -> bytes:
        return error_event(error)


def error_event(error: ProxyError) -> bytes:
    """A final `error` event in OpenAI's shape."""
    return b"event: error\ndata: %b\n\n" % error_body(error)
