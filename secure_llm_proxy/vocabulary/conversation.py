"""The neutral model: what a request asks and what an answer says, in no provider's words.

A door reads its wire format into it, a provider's format is written from it, and back. Only requests whose client and
provider speak different formats pass through it. It holds what at least two formats can say; what only one can say is in
`Conversation.further`, by the client's own parameter names, so that nobody loses it without being told.

Every text that a person or a model wrote stands in a field of type `str` (or inside a JSON object) of these values, and
`texts` lists them with their paths.

Source: OpenAI API reference (chat completions, responses), Anthropic Messages API, Gemini API (generateContent), Cohere
API v2 (chat), all read 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue


class Role(StrEnum):
    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """Exactly one of `url` (http, https) and `data` (base64, with its `media_type`). `detail` is OpenAI's wish."""

    url: str | None = None
    data: str | None = None
    media_type: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A document: exactly one of `data` (base64), `url` and `file_id` (kept by the provider, so only it knows it)."""

    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    media_type: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    """`data` is base64; `format` the container's name, `wav` or `mp3`."""

    data: str
    format: str


SEALED_BY_GEMINI = "gemini/"
"""Looks like base64, as all sealed thought does, and no other provider's begins so."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a model thought before it answered. `signature` proves it to the provider that made it; `redacted` is sealed
    thought that only the provider can read, and then `text` is empty. Gemini's begins with `SEALED_BY_GEMINI`, all other
    is Anthropic's: neither takes what the other has sealed.
    """

    text: str
    signature: str | None = None
    redacted: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is the JSON text as the model wrote it, which need not be valid."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the tool that was called with `call_id` said: `Text`, `Image` and `File` parts."""

    call_id: str
    parts: tuple[Text | Image | File, ...]
    is_error: bool = False
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The model declines, in its own words."""

    text: str


Part = Text | Image | File | Audio | Reasoning | ToolCall | ToolResult | Refusal


@dataclass(frozen=True, slots=True)
class Message:
    """`TOOL` messages hold `ToolResult` parts and nothing else; several results may share one message."""

    role: Role
    parts: tuple[Part, ...]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`named` asks for the tool `name`. `parallel` False allows one call at a time; None: the provider's own habit."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None
    parallel: bool | None = None


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """`json`: any JSON object; `schema`: one that `schema` allows."""

    kind: Literal["json", "schema"]
    schema: JsonObject | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request for an answer. None means: not said, the provider's own default.

    `messages` keep their order, system and developer messages among them. `max_tokens` bounds each choice.
    `reasoning_effort` is none, minimal, low, medium, high or xhigh; `reasoning_tokens` a budget in tokens. `user` is the
    end user's opaque id. `further` holds every parameter that has no field here, by the client's name for it.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    output: OutputFormat | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    reasoning_tokens: int | None = None
    user: str | None = None
    stream: bool = False
    further: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """`inputs` are texts, or texts as lists of tokens (which only the provider that made them can read).

    `kind` is what the vectors are for (`search_document`, `search_query`, `classification`, `clustering`), where the
    client can say so.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    base64: bool = False
    kind: str | None = None
    user: str | None = None
    further: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenCountRequest:
    """How many tokens would this conversation be?"""

    conversation: Conversation


Neutral = Conversation | EmbeddingRequest | TokenCountRequest


class Finish(StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    PAUSE = "pause"
    """The provider wants to be asked to go on (Anthropic's `pause_turn`)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`logprobs` is OpenAI's object, passed on as it came; `stop_sequence` the one that was met."""

    parts: tuple[Part, ...]
    finish: Finish | None
    stop_sequence: str | None = None
    logprobs: JsonValue = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `id` is the provider's, None where it gives none; `created` is seconds since 1970."""

    choices: tuple[Choice, ...]
    id: str | None = None
    created: int | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input, in order; base64 of little-endian float32 where it was asked for and offered."""

    vectors: tuple[tuple[float, ...] | str, ...]


@dataclass(frozen=True, slots=True)
class TokenCount:
    """`estimated` says that nobody counted: it was worked out from the length."""

    tokens: int
    estimated: bool = False


NeutralAnswer = Answer | Embeddings | TokenCount


class DeltaKind(StrEnum):
    """What one step of a stream adds."""

    START = "start"
    """The answer begins: `id` is the provider's."""
    TEXT = "text"
    REASONING = "reasoning"
    SIGNATURE = "signature"
    """`text` signs the reasoning that stands before it."""
    REDACTED_REASONING = "redacted_reasoning"
    REFUSAL = "refusal"
    TOOL_CALL = "tool_call"
    """A call begins: `id`, `name`; `call` counts the calls of the choice from 0. Its arguments follow."""
    TOOL_ARGUMENTS = "tool_arguments"
    """The next piece of the JSON text of that `call`."""
    LOGPROBS = "logprobs"
    """`value` is OpenAI's object for the text of this same event."""
    FINISH = "finish"
    """The choice is over: `finish`, `text` is the stop sequence that was met."""


class Delta(NamedTuple):
    """One step of a stream, of choice `choice`."""

    kind: DeltaKind
    choice: int = 0
    call: int = 0
    text: str = ""
    id: str | None = None
    name: str | None = None
    finish: Finish | None = None
    value: JsonValue = None


Path = tuple[str | int, ...]

# Base64 of media, ids, and words of a closed set: nothing that a person wrote or a model reads as language.
_NOT_TEXT = frozenset({"data", "media_type", "detail", "file_id", "format", "signature", "redacted", "call_id", "id"})


def texts(value: object, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text of a neutral value with its path, in order: field names, indexes and keys of objects.

    Names of tools and properties, descriptions, arguments, stop sequences, links and all that stands in `further` are texts;
    so are the keys of JSON objects, under the path of the object itself.
    """
    if isinstance(value, str):
        if not isinstance(value, StrEnum):
            yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield path, key
            yield from texts(item, (*path, key))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from texts(item, (*path, at))
    elif is_dataclass(value):
        for slot in fields(value):
            if slot.name not in _NOT_TEXT:
                yield from texts(getattr(value, slot.name), (*path, slot.name))
