"""Anthropic's Messages API: requests, answers, streams and errors. Pure: no socket here.

Source: Claude API reference (Create a Message, Streaming messages, Errors, Handling stop reasons), with the types of the
official Python SDK 2.11 as the list of fields, read 2026-11-21.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import FailureKind, InvalidRequest, UpstreamFailed, UpstreamTimeout
from secure_llm_proxy.upstream.formats.anthropic_request import write_conversation
from secure_llm_proxy.upstream.formats.counts import count_of
from secure_llm_proxy.upstream.formats.face import (
    REPORTED_ERROR,
    ReportedError,
    Written,
    read_object,
    unreadable,
    unsupported,
)
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    SEALED_BY_GEMINI,
    Answer,
    Choice,
    Conversation,
    Delta,
    DeltaKind,
    Finish,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
)
from secure_llm_proxy.vocabulary.text_fields import Direction, says_only, table_of
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent
    from secure_llm_proxy.vocabulary.conversation import Neutral, Part
    from secure_llm_proxy.vocabulary.providers import ProviderKind

_FINISH: Final = {
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP_SEQUENCE,
    "max_tokens": Finish.LENGTH,
    "model_context_window_exceeded": Finish.LENGTH,
    "tool_use": Finish.TOOL_CALLS,
    "refusal": Finish.REFUSAL,
    "pause_turn": Finish.PAUSE,
}
_KIND_OF_TYPE: Final = {
    "overloaded_error": FailureKind.OVERLOADED,
    "api_error": FailureKind.OVERLOADED,
    "timeout_error": FailureKind.TIMEOUT,
    "rate_limit_error": FailureKind.RATE_LIMITED,
    "authentication_error": FailureKind.CREDENTIALS,
    "permission_error": FailureKind.CREDENTIALS,
    "billing_error": FailureKind.CREDENTIALS,
    "invalid_request_error": FailureKind.REJECTED,
    "request_too_large": FailureKind.REJECTED,
    "not_found_error": FailureKind.REJECTED,
}
# Words of messages that tell more than their type, which is `invalid_request_error` for all of them.
_KIND_OF_WORDS: Final = (
    ("prompt is too long", FailureKind.CONTEXT_LENGTH),
    ("exceed context limit", FailureKind.CONTEXT_LENGTH),
    ("exceeds the context window", FailureKind.CONTEXT_LENGTH),
    ("content filtering policy", FailureKind.CONTENT_POLICY),
    ("credit balance is too low", FailureKind.CREDENTIALS),
    ("reached your specified api usage limits", FailureKind.CREDENTIALS),
)
_SPENT: Final = "enforced_spend_limit_reached"
_FIELD = re.compile(r"([a-z_]+(?:\.[a-z0-9_]+){0,8}): ")
_TYPE = re.compile(r"[a-z_]{1,64}")
_TABLE: Final = table_of(WireFormat.ANTHROPIC_MESSAGES, Direction.EVENT)


class AnthropicMessages:
    """Messages as Anthropic defines them."""

    format = WireFormat.ANTHROPIC_MESSAGES

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        del kind, ask_usage
        return Written({**without_foreign_thinking(payload), "model": model, "stream": stream})

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del kind, ask_usage
        if not isinstance(neutral, Conversation):
            raise unsupported("model", "it answers conversations only.")
        return write_conversation(neutral, model)

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        payload = read_object(body)
        if payload.get("type") == "error":
            raise _reported(payload.get("error"))
        blocks = payload.get("content")
        if not isinstance(blocks, list):
            raise unreadable("the answer has no content")
        said: list[str] = []
        for block in blocks:
            if not isinstance(block, dict):
                raise unreadable("a content block is not an object")
            if isinstance(text := block.get("text"), str):
                said.append(text)
        named = payload.get("model")
        return Completion(
            payload,
            "".join(said),
            _usage(payload.get("usage"), None) or Usage(),
            named if type(named) is str and named else model,
            WireFormat.ANTHROPIC_MESSAGES,
            _answer(payload, blocks) if translated else None,
        )

    def stream(self, *, translated: bool, shows_usage: bool) -> AnthropicStream:
        del shows_usage
        return AnthropicStream(translated=translated)

    def read_error(self, payload: JsonObject) -> ReportedError:
        return read_error(payload)


def without_foreign_thinking(payload: JsonObject) -> JsonObject:
    """The payload without thinking that bears no signature, or that Gemini has sealed: another provider thought it, in this
    same conversation, and Anthropic refuses the whole request for it. The payload itself where there is none.
    """
    messages = payload.get("messages")
    if not isinstance(messages, list):
        return payload
    kept: list[JsonValue] = []
    changed = False
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(message, dict) and isinstance(content, list) and message.get("role") == "assistant":
            own = [block for block in content if not _is_foreign_thinking(block)]
            if len(own) != len(content):
                changed = True
                if own:
                    kept.append({**message, "content": own})
                continue
        kept.append(message)
    return {**payload, "messages": kept} if changed else payload


def _is_foreign_thinking(block: JsonValue) -> bool:
    if not isinstance(block, dict):
        return False
    match block.get("type"):
        case "thinking":
            return block.get("signature") == ""
        case "redacted_thinking":
            return _word(block, "data").startswith(SEALED_BY_GEMINI)
    return False


class AnthropicStream:
    """The events of one stream. `message_stop` is held back: the door says it once the exchange is on record.

    The usage comes in two events: the prompt's tokens in the first, all of it in the last. The few tokens of an answer that the
    first one tells are no count of what a client gets who leaves before the last.
    """

    __slots__ = ("_blocks", "_calls", "_translated", "_usage", "done", "finished")

    def __init__(self, *, translated: bool) -> None:
        self._translated = translated
        self._usage: Usage | None = None
        self._calls = 0
        # Of each open call's block: its number, and whether arguments of it have come.
        self._blocks: dict[JsonValue, list[int]] = {}
        self.finished = False
        self.done = False

    def read(self, sent: ServerSentEvent) -> StreamEvent | None:
        # Some keep a connection alive by events without data.
        return self._read(sent.data, sent.name) if sent.data.strip() else None

    def read_object(self, data: bytes) -> StreamEvent | None:
        return self._read(data, b"")

    def _read(self, data: bytes, name: bytes) -> StreamEvent | None:
        if name == b"ping":
            return None
        try:
            payload = strict_json.loads_object(data)
        except InvalidRequest as error:
            raise unreadable(f"JSON: {error.code}") from None
        # Some servers that copy the format leave the names out; the type says the same.
        kind = payload.get("type")
        if b"\n" in data:
            # Data lines were joined by LF, which would end the line when the event is written again.
            data = strict_json.dumps(payload)
        if kind == "content_block_delta":
            delta = payload.get("delta")
            if (
                type(delta) is dict
                and delta.get("type") == "text_delta"
                and len(delta) == 2  # noqa: PLR2004  its type and its text
                and type(text := delta.get("text")) is str
                and len(payload) == 3  # noqa: PLR2004  its type, its index and the delta
                and type(payload.get("index")) is int
            ):
                # the usual event: text, and nothing else
                deltas = (Delta(DeltaKind.TEXT, 0, 0, text),) if self._translated else ()
                return StreamEvent(data, payload, text, None, True, b"content_block_delta", deltas)
            return self._delta(data, payload, delta)
        match kind:
            case "ping":
                return None
            case "error":
                raise _reported(payload.get("error"))
            case "message_start":
                return self._start(data, payload)
            case "content_block_start":
                return self._block_start(data, payload)
            case "content_block_stop":
                return self._block_stop(data, payload)
            case "message_delta":
                return self._end(data, payload)
            case "message_stop":
                # Whether the answer is whole was said before, with why it stopped.
                self.done = True
                return None
        if type(kind) is not str or not _TYPE.fullmatch(kind):
            raise unreadable("an event of the stream has no type")
        # One that is newer than this: nobody knows whether it is text.
        return StreamEvent(data, payload, "", None, False, kind.encode())

    def _start(self, data: bytes, payload: JsonObject) -> StreamEvent:
        message = payload.get("message")
        if not isinstance(message, dict):
            raise unreadable("the stream starts without a message")
        told = _usage(message.get("usage"), None)
        self._usage = usage = told and told._replace(completion_tokens=None, total_tokens=None, reasoning_tokens=None)
        named = message.get("id")
        only_text = says_only(payload, _TABLE, "")
        if not self._translated:
            return StreamEvent(data, payload, "", usage, only_text, b"message_start")
        start = Delta(DeltaKind.START, id=named if type(named) is str else None)
        return StreamEvent(data, payload, "", usage, only_text, b"message_start", (start,))

    def _block_start(self, data: bytes, payload: JsonObject) -> StreamEvent:
        block = payload.get("content_block")
        if not isinstance(block, dict):
            raise unreadable("a content block starts without one")
        told = block.get("text")
        text = told if isinstance(told, str) else ""
        only_text = block.get("type") == "text" and says_only(payload, _TABLE, text)
        deltas: tuple[Delta, ...] = ()
        if self._translated:
            deltas = self._of_block(block, text, payload.get("index"))
        return StreamEvent(data, payload, text, None, only_text, b"content_block_start", deltas)

    def _of_block(self, block: JsonObject, text: str, index: JsonValue) -> tuple[Delta, ...]:
        match block.get("type"):
            case "text":
                return (Delta(DeltaKind.TEXT, text=text),) if text else ()
            case "thinking":
                thought = block.get("thinking")
                return (Delta(DeltaKind.REASONING, text=thought),) if isinstance(thought, str) and thought else ()
            case "redacted_thinking":
                sealed = block.get("data")
                return (Delta(DeltaKind.REDACTED_REASONING, text=sealed if isinstance(sealed, str) else ""),)
            case "tool_use":
                call, self._calls = self._calls, self._calls + 1
                began = Delta(DeltaKind.TOOL_CALL, call=call, id=_word(block, "id"), name=_word(block, "name"))
                given = block.get("input")
                whole = isinstance(given, dict) and bool(given)
                self._blocks[_index(index)] = [call, int(whole)]
                if not whole:
                    return (began,)
                arguments = strict_json.dumps(given).decode()
                return (began, Delta(DeltaKind.TOOL_ARGUMENTS, call=call, text=arguments))
        return ()

    def _delta(self, data: bytes, payload: JsonObject, delta: JsonValue) -> StreamEvent:
        if not isinstance(delta, dict):
            raise unreadable("a delta is not an object")
        told = delta.get("text")
        text = told if isinstance(told, str) else ""
        deltas: tuple[Delta, ...] = ()
        if self._translated:
            deltas = self._of_delta(delta, text, payload.get("index"))
        return StreamEvent(data, payload, text, None, False, b"content_block_delta", deltas)

    def _of_delta(self, delta: JsonObject, text: str, index: JsonValue) -> tuple[Delta, ...]:
        match delta.get("type"):
            case "input_json_delta":
                piece = delta.get("partial_json")
                block = self._blocks.get(_index(index))
                if block is None or not isinstance(piece, str) or not piece:
                    return ()
                block[1] = 1
                return (Delta(DeltaKind.TOOL_ARGUMENTS, 0, block[0], piece),)
            case "thinking_delta":
                piece = delta.get("thinking")
                return (Delta(DeltaKind.REASONING, 0, 0, piece),) if isinstance(piece, str) and piece else ()
            case "signature_delta":
                piece = delta.get("signature")
                return (Delta(DeltaKind.SIGNATURE, 0, 0, piece),) if isinstance(piece, str) and piece else ()
        return (Delta(DeltaKind.TEXT, 0, 0, text),) if text else ()

    def _block_stop(self, data: bytes, payload: JsonObject) -> StreamEvent:
        block = self._blocks.pop(_index(payload.get("index")), None) if self._blocks else None
        deltas: tuple[Delta, ...] = ()
        if block is not None and not block[1]:
            # A tool without parameters is called with nothing; others write an empty object.
            deltas = (Delta(DeltaKind.TOOL_ARGUMENTS, call=block[0], text="{}"),)
        return StreamEvent(data, payload, "", None, says_only(payload, _TABLE, ""), b"content_block_stop", deltas)

    def _end(self, data: bytes, payload: JsonObject) -> StreamEvent:
        self._usage = usage = _usage(payload.get("usage"), self._usage)
        delta = payload.get("delta")
        reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        if reason is None:
            return StreamEvent(data, payload, "", usage, says_only(payload, _TABLE, ""), b"message_delta")
        self.finished = True
        assert isinstance(delta, dict)
        deltas: tuple[Delta, ...] = ()
        if self._translated:
            words = _refusal_words(delta) if reason == "refusal" else ""
            said = (Delta(DeltaKind.REFUSAL, text=words),) if words else ()
            stopped_at = _word(delta, "stop_sequence")
            deltas = (*said, Delta(DeltaKind.FINISH, text=stopped_at, finish=_finish(reason)))
        only_text = says_only(payload, _TABLE, "")
        return StreamEvent(data, payload, "", usage, only_text, b"message_delta", deltas)


def read_error(payload: JsonObject) -> ReportedError:
    """The body of an answer that is not 200, of any of Anthropic's endpoints."""
    error = payload.get("error")
    if not isinstance(error, dict):
        return ReportedError()
    message = error.get("message")
    words = message if isinstance(message, str) else ""
    field = _FIELD.match(words)
    return ReportedError(message, field[1] if field else None, _kind(error, words))


def _kind(error: JsonObject, words: str) -> FailureKind | None:
    small = words.lower()
    for phrase, kind in _KIND_OF_WORDS:
        if phrase in small:
            return kind
    details = error.get("details")
    if isinstance(details, dict) and details.get("error_code") == _SPENT:
        return FailureKind.CREDENTIALS
    named = error.get("type")
    return _KIND_OF_TYPE.get(named) if isinstance(named, str) else None


def _reported(error: JsonValue) -> UpstreamFailed:
    """An error in an answer or stream that began with 200. Its message may quote the prompt, so only its type is told."""
    named = error.get("type") if isinstance(error, dict) else None
    detail = f"the provider reported {named if isinstance(named, str) and _TYPE.fullmatch(named) else 'an error'}"
    words = error.get("message") if isinstance(error, dict) else None
    kind = _kind(error, words if isinstance(words, str) else "") if isinstance(error, dict) else None
    if kind is FailureKind.TIMEOUT:
        return UpstreamTimeout(REPORTED_ERROR, detail=detail)
    return UpstreamFailed(REPORTED_ERROR, failure=kind or FailureKind.OVERLOADED, detail=detail)


def _answer(payload: JsonObject, blocks: list[JsonValue]) -> Answer:
    parts: list[Part] = []
    for block in blocks:
        assert isinstance(block, dict)
        match block.get("type"):
            case "text":
                parts.append(Text(_word(block, "text")))
            case "thinking":
                parts.append(Reasoning(_word(block, "thinking"), _word(block, "signature") or None))
            case "redacted_thinking":
                parts.append(Reasoning("", redacted=_word(block, "data")))
            case "tool_use":
                given = strict_json.dumps(block.get("input") or {}).decode()
                parts.append(ToolCall(_word(block, "id"), _word(block, "name"), given))
    reason = payload.get("stop_reason")
    if reason == "refusal" and (words := _refusal_words(payload)):
        parts.append(Refusal(words))
    named = payload.get("id")
    choice = Choice(tuple(parts), _finish(reason), _word(payload, "stop_sequence") or None)
    return Answer((choice,), id=named if type(named) is str else None)


def _refusal_words(told: JsonObject) -> str:
    """Why the model declines, where Anthropic says so in words."""
    details = told.get("stop_details")
    return _word(details, "explanation") if isinstance(details, dict) else ""


def _finish(reason: JsonValue) -> Finish:
    return _FINISH.get(reason, Finish.STOP) if isinstance(reason, str) else Finish.STOP


def _usage(value: JsonValue, before: Usage | None) -> Usage | None:
    """Anthropic counts the parts of a prompt apart, and later events repeat what is known by then."""
    if not isinstance(value, dict):
        return before
    fresh, cached, written = (
        count_of(value, "input_tokens"),
        count_of(value, "cache_read_input_tokens"),
        count_of(value, "cache_creation_input_tokens"),
    )
    said = count_of(value, "output_tokens")
    details = value.get("output_tokens_details")
    thought = count_of(details, "thinking_tokens") if isinstance(details, dict) else None
    if before is not None:
        cached = before.cached_tokens if cached is None else cached
        written = before.cache_write_tokens if written is None else written
        said = before.completion_tokens if said is None else said
        thought = before.reasoning_tokens if thought is None else thought
    prompt = before.prompt_tokens if before is not None else None
    if fresh is not None:
        prompt = fresh + (cached or 0) + (written or 0)
    total = None if prompt is None or said is None else prompt + said
    return Usage(prompt, said, total, cached, written, thought)


def _word(told: JsonObject, name: str) -> str:
    value = told.get(name)
    return value if isinstance(value, str) else ""


def _index(value: JsonValue) -> int:
    if type(value) is not int:
        raise unreadable("a content block has no index")
    return value
