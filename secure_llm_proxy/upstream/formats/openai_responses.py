"""OpenAI's Responses API, read strictly: answers, the named events of its streams, errors. Pure: no socket here.

It is only passed through: each provider that offers it offers chat completions too, so nothing is ever put into this format.

Source: OpenAI API reference, "Responses" and "Streaming events", read 2026-11. The reference has the `error` event's fields at
its top, the service sends them under `error` (openai/openai-dotnet issue 881): both are read.
"""

from __future__ import annotations

import re
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
from secure_llm_proxy.upstream.formats.openai_chat import DONE, OpenAiChat
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.sealed_reasoning import is_ours
from secure_llm_proxy.vocabulary.text_fields import Direction, holds_unknown_text, table_of
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent
    from secure_llm_proxy.vocabulary.conversation import Neutral
    from secure_llm_proxy.vocabulary.providers import ProviderKind

_TEXT = "response.output_text.delta"
_WHOLE = frozenset({"response.completed", "response.incomplete"})
_FAILED = frozenset({"error", "response.failed"})
_IS_UNDER_WAY = frozenset({"response.created", "response.queued", "response.in_progress"})
# The other pieces that a stream grows by, each with the place of its piece in the item.
_PIECES = {
    "response.refusal.delta": "content_index",
    "response.reasoning_text.delta": "content_index",
    "response.reasoning_summary_text.delta": "summary_index",
    "response.function_call_arguments.delta": None,
}
# What repeats all of such pieces: under which name, and of which kind of piece.
_REPEATED = {
    "response.output_text.done": ("text", _TEXT, "content_index"),
    "response.refusal.done": ("refusal", "response.refusal.delta", "content_index"),
    "response.reasoning_text.done": ("text", "response.reasoning_text.delta", "content_index"),
    "response.reasoning_summary_text.done": ("text", "response.reasoning_summary_text.delta", "summary_index"),
    "response.function_call_arguments.done": ("arguments", "response.function_call_arguments.delta", None),
}
_PARTS = {
    "response.content_part.added": "content_index",
    "response.content_part.done": "content_index",
    "response.reasoning_summary_part.added": "summary_index",
    "response.reasoning_summary_part.done": "summary_index",
}
_PART_KINDS = {
    "output_text": ("text", _TEXT),
    "refusal": ("refusal", "response.refusal.delta"),
    "reasoning_text": ("text", "response.reasoning_text.delta"),
    "summary_text": ("text", "response.reasoning_summary_text.delta"),
}
_EVENT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TABLE = table_of(WireFormat.OPENAI_RESPONSES, Direction.EVENT)
# What a piece of text has, and nothing of it is content.
_PLAIN_TEXT = frozenset(
    {"type", "item_id", "output_index", "content_index", "delta", "logprobs", "sequence_number", "obfuscation"}
)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHAT = OpenAiChat()

_Place = tuple[str, int, int]
"""Kind of piece, index of the item, index in the item (0 where there is one only)."""


class OpenAiResponses:
    """The Responses API of OpenAI and Azure OpenAI."""

    format = WireFormat.OPENAI_RESPONSES

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        """Thoughts of another provider's model, from earlier in the conversation, are left out: OpenAI refuses them."""
        del kind, ask_usage  # its streams always tell their usage
        written: JsonObject = {**payload, "model": model, "stream": stream}
        items = payload.get("input")
        if isinstance(items, list) and any(is_ours(item) for item in items):
            written["input"] = [item for item in items if not is_ours(item)]
        return Written(written)

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del neutral, model, kind, ask_usage
        raise unsupported("model", "it speaks another wire format than this endpoint.")

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        del translated
        payload = read_object(body)
        status = payload.get("status")
        if payload.get("error") or status in {"failed", "cancelled"}:
            raise _reported(payload)
        output = payload.get("output")
        if not isinstance(output, list):
            raise unreadable("the answer has no output")
        text = "\n".join([said for item in output if (said := _text_of(item)) is not None])
        named = payload.get("model")
        named = named if type(named) is str and named else model
        return Completion(payload, text, _usage(payload) or Usage(), named, WireFormat.OPENAI_RESPONSES)

    def stream(self, *, translated: bool, shows_usage: bool) -> OpenAiResponsesStream:
        del translated, shows_usage
        return OpenAiResponsesStream()

    def read_error(self, payload: JsonObject) -> ReportedError:
        return _CHAT.read_error(payload)


class OpenAiResponsesStream:
    """The events of one stream, in order.

    Texts come in pieces and are repeated at the end of their part, of their item and of the answer. What has come is kept, so
    that a repetition is known as one (`only_text`), and a "repetition" that says something else is not.
    """

    __slots__ = ("_calls", "_items", "_pieces", "done", "finished")

    def __init__(self) -> None:
        self.finished = False
        self.done = False
        self._pieces: dict[_Place, list[str]] = {}
        self._items: list[JsonValue] = []
        self._calls: dict[int, tuple[JsonValue, JsonValue]] = {}

    def read(self, sent: ServerSentEvent) -> StreamEvent | None:
        if self.done:
            # Nothing follows the last event, whatever its provider says.
            return None
        data = sent.data.strip()
        if data == DONE:
            # Of some servers, behind the last event; it is none itself.
            self.done = True
            return None
        return self._read(data, sent.name) if data else None

    def read_object(self, data: bytes) -> StreamEvent | None:
        return self._read(data, b"")

    def _read(self, data: bytes, name: bytes) -> StreamEvent | None:
        try:
            payload = strict_json.loads_object(data)
        except InvalidRequest as error:
            raise unreadable(f"JSON: {error.code}") from None
        kind = payload.get("type")
        if kind == _TEXT:
            written = data if b"\n" not in data else strict_json.dumps(payload)
            text = payload.get("delta")
            if type(text) is not str:
                raise unreadable("a piece of text is no string")
            place = self._add(_TEXT, payload, "content_index", text)
            only_text = place is not None and (
                _PLAIN_TEXT.issuperset(payload) or not holds_unknown_text(payload, _TABLE)
            )
            return StreamEvent(written, payload, text, None, only_text, b"response.output_text.delta")
        if type(kind) is not str:
            # Clients go by `type`; only where there is none by the event's name.
            kind = name.decode("ascii", "replace") if name and name != b"message" else None
            if kind is None:
                if payload.get("error"):
                    raise _reported(payload)
                raise unreadable("an event has no type")
        if not _EVENT_NAME.fullmatch(kind):
            raise unreadable("the type of an event is no name")
        if kind in _FAILED:
            raise _reported(payload)
        return self._other(kind, data, payload)

    def _other(self, kind: str, data: bytes, payload: JsonObject) -> StreamEvent:
        usage, text = None, ""
        if kind in _WHOLE:
            response = payload.get("response")
            if not isinstance(response, dict):
                raise unreadable("the last event has no response")
            usage = _usage(response)
            self.finished = self.done = True
            repeats = response.get("output") == self._items
        elif kind in _IS_UNDER_WAY:
            response = payload.get("response")
            repeats = isinstance(response, dict) and not response.get("output")
        elif kind in _PIECES:
            piece = payload.get("delta")
            if type(piece) is str:
                self._add(kind, payload, _PIECES[kind], piece)
            repeats = False
        elif kind in _REPEATED:
            field, piece_kind, index = _REPEATED[kind]
            whole = payload.get(field)
            if piece_kind == _TEXT and type(whole) is str and _place_of(_TEXT, payload, index) not in self._pieces:
                # Some servers send no pieces.
                text = whole
                self._add(_TEXT, payload, index, whole)
            repeats = self._has(piece_kind, payload, index, whole)
        elif kind in _PARTS:
            repeats = self._has_part(payload.get("part"), payload, _PARTS[kind])
        elif kind == "response.output_item.added":
            item = payload.get("item")
            repeats = _is_empty(item)
            if isinstance(item, dict) and type(at := payload.get("output_index")) is int:
                self._calls[at] = (item.get("name"), item.get("call_id"))
        elif kind == "response.output_item.done":
            item = payload.get("item")
            self._items.append(item)
            repeats = self._has_item(item, payload)
        else:
            repeats = False
        # data lines were joined by LF, which would end the line when the event is written again
        written = data if b"\n" not in data else strict_json.dumps(payload)
        repeats = repeats and not holds_unknown_text(payload, _TABLE)
        return StreamEvent(written, payload, text, usage, repeats, kind.encode("ascii"))

    def _add(self, kind: str, payload: JsonObject, index: str | None, piece: str) -> _Place | None:
        place = _place_of(kind, payload, index)
        if place is not None:
            if place in self._pieces:
                self._pieces[place].append(piece)
            else:
                self._pieces[place] = [piece]
        return place

    def _has(self, kind: str, payload: JsonObject, index: str | None, whole: JsonValue) -> bool:
        """Is `whole` what has come in pieces?"""
        place = _place_of(kind, payload, index)
        return place is not None and whole == "".join(self._pieces.get(place, ()))

    def _has_part(self, part: JsonValue, payload: JsonObject, index: str) -> bool:
        if not isinstance(part, dict) or part.get("annotations"):
            return False
        known = _PART_KINDS.get(str(part.get("type")))
        return known is not None and (
            part.get(known[0]) == "" or self._has(known[1], payload, index, part.get(known[0]))
        )

    def _has_item(self, item: JsonValue, payload: JsonObject) -> bool:
        if not isinstance(item, dict) or item.get("encrypted_content"):
            return False
        if item.get("type") == "function_call":
            place = _place_of("response.function_call_arguments.delta", payload, None)
            same = place is not None and self._calls.get(place[1]) == (item.get("name"), item.get("call_id"))
            return same and self._has("response.function_call_arguments.delta", payload, None, item.get("arguments"))
        if item.get("type") not in {"message", "reasoning"}:
            return False
        return all(
            self._has_part(part, {**payload, index: at}, index)
            for field, index in (("content", "content_index"), ("summary", "summary_index"))
            for at, part in enumerate(_list(item.get(field)))
        )


def _place_of(kind: str, payload: JsonObject, index: str | None) -> _Place | None:
    """None where it is not told, or not by numbers."""
    item, within = payload.get("output_index"), 0 if index is None else payload.get(index)
    return (kind, item, within) if type(item) is int and type(within) is int else None


def _is_empty(item: JsonValue) -> bool:
    """A message or a thought that is only begun. A call has its name already."""
    return (
        isinstance(item, dict)
        and item.get("type") in {"message", "reasoning"}
        and not (item.get("content") or item.get("summary") or item.get("encrypted_content"))
    )


def _text_of(item: JsonValue) -> str | None:
    """The visible text of an item of the output; None where it is no message."""
    if not isinstance(item, dict):
        raise unreadable("an item of the output is not an object")
    if item.get("type") != "message":
        return None
    return "".join(_texts(_list(item.get("content"))))


def _texts(parts: list[JsonValue]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "output_text" and type(text := part.get("text")) is str:
            yield text


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _usage(payload: JsonObject) -> Usage | None:
    value = payload.get("usage")
    if not isinstance(value, dict):
        return None
    return Usage(
        count_of(value, "input_tokens"),
        count_of(value, "output_tokens"),
        count_of(value, "total_tokens"),
        detail_of(value, "input_tokens_details", "cached_tokens"),
        detail_of(value, "input_tokens_details", "cache_write_tokens"),
        detail_of(value, "output_tokens_details", "reasoning_tokens"),
    )


def _reported(payload: JsonObject) -> UpstreamFailed:
    """What an event or an answer with 200 says of a failure: its code, for the operator; never its message, which may quote
    the prompt.
    """
    response = payload.get("response")
    error = payload.get("error")
    if not isinstance(error, dict) and isinstance(response, dict):
        error = response.get("error")
    told: JsonObject = error if isinstance(error, dict) else payload
    code = told.get("code")
    if not isinstance(code, str):
        # Of an event it is what kind of event it is.
        code = told.get("type") if told is not payload else None
    failure = _CHAT.read_error({"error": {"code": code}}).kind
    if failure is None:
        failure = FailureKind.RATE_LIMITED if code == "rate_limit_exceeded" else FailureKind.OVERLOADED
    named = code if isinstance(code, str) and _IDENTIFIER.fullmatch(code) else "unnamed"
    return UpstreamFailed(REPORTED_ERROR, failure=failure, detail=f"the provider reports an error: {named}")
