"""OpenAI's chat completions as a provider's format: requests, answers, stream events, errors, read strictly. Pure.

Source: OpenAI API reference, chat completions and errors, 2026-11.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import FailureKind, InvalidRequest, UpstreamFailed
from secure_llm_proxy.upstream.formats.counts import count_of, detail_of
from secure_llm_proxy.upstream.formats.face import (
    REPORTED_ERROR,
    ReportedError,
    Written,
    read_object,
    unreadable,
    unsupported,
)
from secure_llm_proxy.upstream.formats.openai_chat_answer import CallsOfAStream, answer_of, deltas_of
from secure_llm_proxy.upstream.formats.openai_chat_request import write_conversation
from secure_llm_proxy.upstream.formats.openai_dialect import in_dialect
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import Conversation, Delta, DeltaKind
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent
    from secure_llm_proxy.vocabulary.conversation import Neutral
    from secure_llm_proxy.vocabulary.providers import ProviderKind

DONE = b"[DONE]"

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTEXT_LENGTH_CODES = frozenset({"context_length_exceeded", "string_above_max_length", "max_tokens_exceeded", "3051"})
# What an event of one text has, and nothing of it is content: of OpenAI, Azure, Groq, OpenRouter and vLLM.
_PLAIN_CHOICE = frozenset(
    {
        "index", "delta", "finish_reason", "logprobs", "content_filter_results", "native_finish_reason", "stop_reason",
        "token_ids",
    }
)  # fmt: skip
_PLAIN_EVENT = frozenset(
    {
        "id", "object", "created", "model", "choices", "system_fingerprint", "service_tier", "usage", "obfuscation",
        "x_groq", "provider",
    }
)  # fmt: skip
_CONTENT_POLICY_CODES = frozenset({"content_filter", "content_policy_violation", "invalid_prompt"})
# Only words tell it where a provider has no code for it: OpenRouter, Together AI, Mistral, vLLM.
_TOO_LONG = re.compile(
    r"maximum context length|too large for model with|tokens \+ .max_new_tokens. must be|context (?:size|window) of",
    re.IGNORECASE,
)


class OpenAiChat:
    """Chat completions as OpenAI defines them and most others copy them."""

    format = WireFormat.OPENAI_CHAT

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        dropped: tuple[str, ...] = ()
        if kind.quirks:
            payload, dropped = in_dialect(payload, kind)
        if not stream:
            return Written({**payload, "model": model, "stream": False}, dropped)
        options = payload.get("stream_options")
        if not ask_usage or kind.usage != "asked":
            return Written({**payload, "model": model, "stream": True}, dropped)
        shown = isinstance(options, dict) and options.get("include_usage") is True
        if not shown:
            options = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return Written({**payload, "model": model, "stream": True, "stream_options": options}, dropped, shown)

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        if not isinstance(neutral, Conversation):
            raise unsupported("model", "it converses, and does nothing else.")
        return write_conversation(neutral, model, kind, ask_usage=ask_usage)

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        completion = read_completion(body, model=model)
        return replace(completion, answer=answer_of(completion.payload)) if translated else completion

    def stream(self, *, translated: bool, shows_usage: bool) -> OpenAiChatStream:
        return OpenAiChatStream(translated=translated, shows_usage=shows_usage)

    def read_error(self, payload: JsonObject) -> ReportedError:
        """OpenAI's object, or what others of this format say: Mistral's stands at the top, some say `detail` alone."""
        error = payload.get("error")
        if error is None and ("message" in payload or "detail" in payload):
            error = payload
        if isinstance(error, str):
            return ReportedError(error)
        if not isinstance(error, dict):
            return ReportedError()
        code, message = error.get("code"), _message_of(error)
        kind = None
        if isinstance(code, str):
            if code in _CONTEXT_LENGTH_CODES:
                kind = FailureKind.CONTEXT_LENGTH
            elif code in _CONTENT_POLICY_CODES:
                kind = FailureKind.CONTENT_POLICY
            elif code == "insufficient_quota":
                kind = FailureKind.CREDENTIALS
        if kind is None and isinstance(message, str) and _TOO_LONG.search(message):
            kind = FailureKind.CONTEXT_LENGTH
        if kind is None and isinstance(further := error.get("metadata"), dict) and "flagged_input" in further:
            # OpenRouter's moderation; what it flagged is the client's own text and stays here
            kind = FailureKind.CONTENT_POLICY
        return ReportedError(message, error.get("param"), kind)


def _message_of(error: JsonObject) -> JsonValue:
    """The message; of a list of details, as FastAPI makes it, the first."""
    message = error.get("message", error.get("detail"))
    if isinstance(message, dict):
        message = message.get("detail")
    if isinstance(message, list) and message and isinstance(first := message[0], dict):
        place, said = first.get("loc"), first.get("msg")
        if isinstance(place, list) and isinstance(said, str):
            return f"{'.'.join(str(step) for step in place if step != 'body')}: {said}"
    return message


class OpenAiChatStream:
    """The events of one stream. It is whole when every choice that has begun has ended, or at its end mark."""

    __slots__ = ("_begun", "_calls", "_ended", "_latest", "_open", "_shows_usage", "done", "finished")

    def __init__(self, *, translated: bool, shows_usage: bool) -> None:
        self._calls = CallsOfAStream() if translated else None
        self._begun = False
        self._shows_usage = shows_usage
        # The choices by their numbers, and the one that the last event was of.
        self._open: set[int] = set()
        self._ended: set[int] = set()
        self._latest: JsonValue = None
        self.finished = False
        self.done = False

    def read(self, sent: ServerSentEvent) -> StreamEvent | None:
        data = sent.data.strip()
        if data == DONE:
            self.done = self.finished = True
            return None
        if sent.name == b"error":
            raise UpstreamFailed(
                REPORTED_ERROR, failure=FailureKind.OVERLOADED, detail="an event named error in the stream"
            )
        return self.read_object(data) if data else None

    def read_object(self, data: bytes) -> StreamEvent | None:
        event, finished = read_stream_event(data)
        choices = event.payload.get("choices")
        if type(choices) is list and (
            finished or len(choices) != 1 or choices[0].get("index") != self._latest or not self._open  # type: ignore[union-attr]  # read
        ):
            self._latest = choices[-1].get("index") if choices else None  # type: ignore[union-attr]  # read
            self.finished = all_ended(choices, self._open, self._ended)
        if self._calls is not None:
            return self._translated(event, self._calls, finished=finished)
        if event.usage is not None and not self._shows_usage:
            return without_usage(event)
        return event

    def _translated(self, event: StreamEvent, calls: CallsOfAStream, *, finished: bool) -> StreamEvent | None:
        """The event with what it adds in neutral form. None for one that adds nothing and tells no usage."""
        payload = event.payload
        deltas: tuple[Delta, ...]
        if event.only_text and event.text and not finished and self._begun:
            # the usual event
            choices = payload.get("choices")
            if type(choices) is list and type(choice := choices[0]) is dict and choice.get("logprobs") is None:
                index = choice.get("index")
                deltas = (Delta(DeltaKind.TEXT, index if type(index) is int and index > 0 else 0, 0, event.text),)
                return StreamEvent(event.data, payload, event.text, event.usage, True, b"", deltas)
        deltas = deltas_of(payload, calls)
        if not self._begun and payload.get("choices"):
            self._begun = True
            id_ = payload.get("id")
            deltas = (Delta(DeltaKind.START, id=id_ if isinstance(id_, str) and id_ else None), *deltas)
        if not deltas and event.usage is None:
            return None
        return event._replace(deltas=deltas)


def all_ended(choices: list[JsonValue], running: set[int], ended: set[int]) -> bool:
    """Note which choices an event begins and ends. True when some have ended and none runs."""
    for choice in choices:
        assert isinstance(choice, dict)
        index = choice.get("index")
        at = index if type(index) is int else 0
        if choice.get("finish_reason") is not None:
            ended.add(at)
            running.discard(at)
        elif at not in ended:
            running.add(at)
    return bool(ended) and not running


def without_usage(event: StreamEvent) -> StreamEvent:
    """The client has not asked for it: the event that carries nothing else is for us alone, of others only the usage is."""
    payload = event.payload
    if not payload.get("choices"):
        return event._replace(data=b"")
    shown = {name: value for name, value in payload.items() if name != "usage"}
    return event._replace(data=strict_json.dumps(shown), payload=shown)


def read_completion(body: bytes, *, model: str) -> Completion:
    """Return the whole answer. `model` stands in when the answer names none. Raises `UpstreamFailed`."""
    payload = read_object(body)
    if payload.get("error"):
        raise UpstreamFailed(
            REPORTED_ERROR,
            failure=FailureKind.OVERLOADED,
            detail=f"error object in a 200 answer: {error_name(payload)}",
        )
    text = _only_text(payload)
    if text is None:
        choices = _choices(payload)
        if choices is None:
            raise unreadable("the answer has no choices")
        text = "\n".join([said for choice in choices if (said := _text_of(choice.get("message"))) is not None])
    named = payload.get("model")
    return Completion(payload, text, usage_of(payload) or Usage(), named if type(named) is str and named else model)


def read_stream_event(data: bytes) -> tuple[StreamEvent, bool]:
    """Return the event and whether one of its choices is finished. Raises `UpstreamFailed`, also for an error event."""
    try:
        payload = strict_json.loads_object(data)
    except InvalidRequest as error:
        raise unreadable(f"JSON: {error.code}") from None
    if payload.get("error"):
        raise UpstreamFailed(
            REPORTED_ERROR, failure=FailureKind.OVERLOADED, detail=f"error event in the stream: {error_name(payload)}"
        )
    text, finished = "", False
    choices = payload.get("choices")
    if type(choices) is list and len(choices) == 1 and type(choice := choices[0]) is dict:
        delta = choice.get("delta")
        if (
            type(delta) is dict
            and len(delta) == 1
            and type(content := delta.get("content")) is str
            and _PLAIN_CHOICE.issuperset(choice)
            and _PLAIN_EVENT.issuperset(payload)
        ):
            # the usual event: one choice that adds text and nothing else
            written = data if b"\n" not in data else strict_json.dumps(payload)
            usage = usage_of(payload) if "usage" in payload else None
            return StreamEvent(written, payload, content, usage, True), choice.get("finish_reason") is not None
    if choices is not None:
        if not isinstance(choices, list):
            raise unreadable("choices is not a list")
        for choice in choices:
            if not isinstance(choice, dict):
                raise unreadable("a choice is not an object")
            text += _text_of(choice.get("delta")) or ""
            if choice.get("finish_reason") is not None:
                finished = True
    # data lines were joined by LF, which would end the line when the event is written again
    written = strict_json.dumps(payload) if b"\n" in data else data
    return StreamEvent(written, payload, text, usage_of(payload)), finished


def _only_text(payload: JsonObject) -> str | None:
    """The text of the usual answer: one choice, whose message has a string for content. None for any other."""
    choices = payload.get("choices")
    if type(choices) is list and len(choices) == 1 and type(choice := choices[0]) is dict:
        message = choice.get("message")
        if type(message) is dict and type(content := message.get("content")) is str:
            return content
    return None


def _choices(payload: JsonObject) -> list[JsonObject] | None:
    """Return the choices, None when there is no such key. What can't be inspected is not passed on, hence an error
    for any other shape.
    """
    value = payload.get("choices")
    if value is None:
        return None
    if not isinstance(value, list):
        raise unreadable("choices is not a list")
    choices: list[JsonObject] = []
    for choice in value:
        if not isinstance(choice, dict):
            raise unreadable("a choice is not an object")
        choices.append(choice)
    return choices


def _text_of(message: JsonValue) -> str | None:
    """The visible text of a message or delta: a string, or content parts of type text (some providers stream those)."""
    if not isinstance(message, dict):
        if message is None:
            return None
        raise unreadable("a message is not an object")
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return None


def usage_of(payload: JsonObject) -> Usage | None:
    value = payload.get("usage")
    if not isinstance(value, dict):
        return None
    return Usage(
        count_of(value, "prompt_tokens"),
        count_of(value, "completion_tokens"),
        count_of(value, "total_tokens"),
        detail_of(value, "prompt_tokens_details", "cached_tokens"),
        # OpenRouter's name; OpenAI's own cache costs nothing to write.
        detail_of(value, "prompt_tokens_details", "cache_write_tokens"),
        detail_of(value, "completion_tokens_details", "reasoning_tokens"),
    )


def error_name(payload: JsonObject) -> str:
    """The error's code or type for the operator's log; never its message, which may quote the prompt."""
    error = payload.get("error")
    if isinstance(error, dict):
        for name in ("code", "type"):
            value = error.get(name)
            if isinstance(value, str) and _IDENTIFIER.fullmatch(value):
                return value
    return "unnamed"
