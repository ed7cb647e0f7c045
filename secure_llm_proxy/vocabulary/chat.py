"""A request to a model and what comes back, as the corridor sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from secure_llm_proxy.foundation.errors import FailureKind
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.vocabulary.conversation import Delta, Neutral, NeutralAnswer
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from secure_llm_proxy.vocabulary.wire_formats import WireFormat


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`payload` is the whole request in the client's `format`, unknown parameters kept.

    `model` None means that the caller named none: routing takes the default. `read` makes the neutral form of a payload of
    this format; it is asked only where the provider speaks another one, and raises `InvalidRequest`. `needs` are the
    capabilities without which a model can't answer it (`Capability`).
    """

    model: str | None
    stream: bool
    payload: JsonObject
    format: WireFormat = WireFormat.OPENAI_CHAT
    read: Callable[[JsonObject], Neutral] | None = None
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Target:
    """One place that can answer: a configured provider, and the model's name in that provider's words.

    `served_as` is our name of the model that it stands for, empty where that is the route's. `max_output_tokens` is all that
    the model can answer with, where the operator says so.
    """

    provider: str
    model: str
    served_as: str = ""
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request for `model` (our name) goes: `targets` in the order in which they are tried.

    `fallbacks` are further targets, each after a failure of its kind only; `None` is for every kind that has none of its own.
    All of them obey the tags that were asked for.
    """

    model: str
    targets: tuple[Target, ...]
    fallbacks: Mapping[FailureKind | None, tuple[Target, ...]] = field(default_factory=dict)


class Attempt(NamedTuple):
    """What to try next, after a pause."""

    target: Target
    pause_s: float = 0.0


class Failure(NamedTuple):
    """What was tried, and how it failed. `retry_after_s` is the provider's own wish.

    `passed_over`: the target was not asked at all, since the request can't be put to it; `kind` is why the one before failed.
    """

    target: Target
    kind: FailureKind
    retry_after_s: int | None = None
    passed_over: bool = False


class UpstreamRequest(NamedTuple):
    """What leaves: `body` exactly as it is sent to `target`, in the provider's `format`.

    `translated` says that the client speaks another format, so that the answer is read into the neutral form too.
    `dropped` are the client's parameters that this provider can't be told. `shows_usage` False: the client did not ask for
    the usage event of a stream, which we did, so it stays with us. `headers` are the client's own that go along. It is
    sent only while the provider is the one that it was `written_for`; `vectors` are how many a translated request asks for.
    Where `answered` is set nothing leaves: that is our own answer, and `body` what it answers.

    A tuple for what it saves each request: 0.9 µs.
    """

    target: Target
    format: WireFormat
    body: bytes
    stream: bool
    translated: bool = False
    dropped: tuple[str, ...] = ()
    shows_usage: bool = True
    headers: tuple[tuple[str, str], ...] = ()
    written_for: ProviderDefinition | None = None
    vectors: int | None = None
    answered: NeutralAnswer | None = None


class Usage(NamedTuple):
    """Model tokens, as the provider counted them; None where it did not say.

    `prompt_tokens` are all of the prompt's, `cached_tokens` (read from the provider's cache) and `cache_write_tokens` among
    them; `reasoning_tokens` are among `completion_tokens`.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `payload` is the provider's JSON object in its `format`, `text` the text of its choices in order.

    `answer` is the neutral form, made when the request was translated. `record` is what the audit log keeps of the payload,
    where that holds what nobody would read there (vectors); None: all of it.
    """

    payload: JsonObject
    text: str
    usage: Usage
    model: str
    format: WireFormat = WireFormat.OPENAI_CHAT
    answer: NeutralAnswer | None = None
    record: JsonObject | None = None


class StreamEvent(NamedTuple):
    """One server-sent event of a stream: the `data` as it came (one JSON object, without the field name), parsed.

    `text` is what its choices add to the visible answer; `usage` is set on the event that carries it. `only_text` True
    says that its choices are known to add nothing else (no tool calls, no reasoning); False, that nobody looked. `name` is
    the event's, empty where the format gives none. `deltas` are what it adds in neutral form, made when the request was
    translated, and then `data` may be empty.

    A tuple, because there is one for each chunk: a frozen dataclass takes four times as long to make.
    """

    data: bytes
    payload: JsonObject
    text: str
    usage: Usage | None
    only_text: bool = False
    name: bytes = b""
    deltas: tuple[Delta, ...] = ()


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
