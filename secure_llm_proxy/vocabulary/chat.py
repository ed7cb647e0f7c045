"""A chat request and what comes back, in the words of the OpenAI wire format of 2026-11."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from secure_llm_proxy.foundation.strict_json import JsonObject


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`payload` is the whole request as it will be written anew for the provider, unknown parameters kept.

    `model` None means that the caller named none: routing takes the default.
    """

    model: str | None
    stream: bool
    payload: JsonObject


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: the provider's name in our words, and the model's name in the provider's."""

    provider: str
    model: str


class Usage(NamedTuple):
    """Model tokens, as the provider counted them; None where it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `payload` is the provider's JSON object, `text` the text of its choices joined in order."""

    payload: JsonObject
    text: str
    usage: Usage
    model: str


class StreamEvent(NamedTuple):
    """One server-sent event of a stream: the `data` as it came (one JSON object, without the field name), parsed.

    `text` is what its choices add to the visible answer; `usage` is set on the event that carries it. `only_text` True
    says that its choices are known to add nothing else (no tool calls, no reasoning); False, that nobody looked.

    A tuple, because there is one for each chunk: a frozen dataclass takes four times as long to make.
    """

    data: bytes
    payload: JsonObject
    text: str
    usage: Usage | None
    only_text: bool = False


class CompletionStream(Protocol):
    """A running answer whose first event has arrived already (so that an error could still choose the status).

    Iteration ends at the provider's `[DONE]`; it raises `UpstreamFailed`/`UpstreamTimeout` when the stream breaks off,
    and `ClientGone` when the exchange was cancelled. `close()` ends the provider's work at once, may be called twice.
    """

    def __iter__(self) -> Iterator[StreamEvent]: ...

    def pump(self, take: Callable[[StreamEvent], bool]) -> bool:
        """Give each event to `take` as it arrives, from the event loop, without a greenlet switch per event.

        Sleeps meanwhile. Returns True when `take` answered False (it wants a pause; call again to go on, no event is lost)
        and False at the end of the stream. Raises as iteration does, and whatever `take` raises. `take` must not wait.
        """
        ...

    def close(self) -> None: ...
