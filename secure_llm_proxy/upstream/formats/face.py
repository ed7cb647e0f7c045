"""What each wire format of a provider can do: write a request, read an answer, a stream and an error. All of it is pure."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import ErrorCode, FailureKind, InvalidRequest, UpstreamFailed
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.upstream.exchange import UNREADABLE
from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent
from secure_llm_proxy.vocabulary.conversation import Neutral
from secure_llm_proxy.vocabulary.providers import ProviderKind
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

REPORTED_ERROR = "The provider reported an error while it answered."


class Written(NamedTuple):
    """A request in the provider's words. `dropped` are parameters, by the client's names, that it can't be told.

    `shows_usage` False: a stream will carry its usage only because we asked for it.
    """

    payload: JsonObject
    dropped: tuple[str, ...] = ()
    shows_usage: bool = True


class ReportedError(NamedTuple):
    """What stands in the body of an answer that is not 200, None where it says nothing. `kind` is set where the body tells
    more than the status does, `retry_after_s` where it says when to come again (a header that says so too comes first).
    """

    message: JsonValue = None
    param: JsonValue = None
    kind: FailureKind | None = None
    retry_after_s: int | None = None


class StreamReader(Protocol):
    """Reads the events of one stream, in order.

    `finished`: the answer is whole as the format has it, each of its choices; `done`: nothing follows, because that was said.
    A stream that ends, or says that it does, before it is finished has broken off.
    """

    finished: bool
    done: bool

    def read(self, sent: ServerSentEvent) -> StreamEvent | None:
        """The event to pass on; None for what is nothing to a client (a keep-alive, an end mark). Raises `UpstreamFailed`,
        also for an error that the provider reports.
        """
        ...

    def read_object(self, data: bytes) -> StreamEvent | None:
        """`read` for the data of an event without a name that is in braces."""
        ...


class ProviderFormat(Protocol):
    """One wire format, without state."""

    format: WireFormat

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        """A request that came in this very format, with the model's name at this provider, and as its kind wants it.

        `ask_usage`: a stream is to carry its usage. Never changes `payload` itself. Raises `InvalidRequest`.
        """
        ...

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        """A request from the neutral model. Raises `InvalidRequest(unsupported_parameter)` for what changes the answer and
        can't be said; what only tunes is `dropped`.
        """
        ...

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        """A whole answer, with its neutral form if it is `translated`. `model` stands in when it names none.

        Raises `UpstreamFailed`.
        """
        ...

    def stream(self, *, translated: bool, shows_usage: bool) -> StreamReader: ...

    def read_error(self, payload: JsonObject) -> ReportedError:
        """The body of an answer that is not 200, or {} when that is no JSON object."""
        ...


def read_object(body: bytes) -> JsonObject:
    """One strictly read JSON object of the provider's. Raises `UpstreamFailed`."""
    try:
        return strict_json.loads_object(body)
    except InvalidRequest as error:
        # its text speaks of the client's request, and may quote what the provider wrote
        raise unreadable(f"JSON: {error.code}") from None


def unreadable(detail: str) -> UpstreamFailed:
    return UpstreamFailed(UNREADABLE, detail=detail)


def unsupported(param: str, why: str) -> InvalidRequest:
    """A parameter that this route's provider can't honour, and whose loss would change the answer."""
    return InvalidRequest(
        f"The provider behind this model does not support `{param}`: {why}",
        code=ErrorCode.UNSUPPORTED_PARAMETER,
        param=param,
    )
