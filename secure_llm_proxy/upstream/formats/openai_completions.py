"""OpenAI's older completions: a prompt in, its continuation out. Passed through only: who has no such endpoint is asked by
chat. Pure: no socket here.

Source: OpenAI API reference, "Completions", read 2026-11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import FailureKind, InvalidRequest, UpstreamFailed
from secure_llm_proxy.upstream.formats.face import REPORTED_ERROR, read_object, unreadable, unsupported
from secure_llm_proxy.upstream.formats.openai_chat import (
    DONE,
    OpenAiChat,
    all_ended,
    error_name,
    usage_of,
    without_usage,
)
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.text_fields import Direction, says_only, table_of
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject
    from secure_llm_proxy.upstream.formats.face import ReportedError, Written
    from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent
    from secure_llm_proxy.vocabulary.conversation import Neutral
    from secure_llm_proxy.vocabulary.providers import ProviderKind

_CHAT = OpenAiChat()
_TABLE = table_of(WireFormat.OPENAI_COMPLETIONS, Direction.EVENT)


class OpenAiCompletions:
    """Parameters, usage and errors are those of chat completions."""

    format = WireFormat.OPENAI_COMPLETIONS

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        return _CHAT.adapt(payload, model, kind, stream=stream, ask_usage=ask_usage)

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del neutral, model, kind, ask_usage
        raise unsupported("model", "it continues texts, and does nothing else.")

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        """As nothing is written for it from the neutral model, no answer is read into it."""
        del translated
        payload = read_object(body)
        _raise_reported(payload)
        text = "\n".join(_texts_of(payload))
        named = payload.get("model")
        shown = named if type(named) is str and named else model
        return Completion(payload, text, usage_of(payload) or Usage(), shown, self.format)

    def stream(self, *, translated: bool, shows_usage: bool) -> OpenAiCompletionsStream:
        del translated
        return OpenAiCompletionsStream(shows_usage=shows_usage)

    def read_error(self, payload: JsonObject) -> ReportedError:
        return _CHAT.read_error(payload)


class OpenAiCompletionsStream:
    """The events of one stream. It is whole when every choice that has begun has ended, or at its end mark."""

    __slots__ = ("_ended", "_open", "_shows_usage", "done", "finished")

    def __init__(self, *, shows_usage: bool) -> None:
        self._shows_usage = shows_usage
        self._open: set[int] = set()
        self._ended: set[int] = set()
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

    def read_object(self, data: bytes) -> StreamEvent:
        try:
            payload = strict_json.loads_object(data)
        except InvalidRequest as error:
            raise unreadable(f"JSON: {error.code}") from None
        _raise_reported(payload)
        choices = payload.get("choices")
        text = "".join(_texts_of(payload)) if choices is not None else ""
        only_text = True
        if isinstance(choices, list):
            self.finished = all_ended(choices, self._open, self._ended)
            only_text = all(isinstance(choice, dict) and choice.get("logprobs") is None for choice in choices)
        only_text = only_text and says_only(payload, _TABLE, text)
        # data lines were joined by LF, which would end the line when the event is written again
        written = strict_json.dumps(payload) if b"\n" in data else data
        event = StreamEvent(written, payload, text, usage_of(payload), only_text)
        return event if event.usage is None or self._shows_usage else without_usage(event)


def _texts_of(payload: JsonObject) -> list[str]:
    """The text of each choice. What can't be inspected is not passed on, hence an error for any other shape."""
    choices = payload.get("choices")
    if not isinstance(choices, list):
        raise unreadable("the answer has no choices")
    texts = []
    for choice in choices:
        if not isinstance(choice, dict):
            raise unreadable("a choice is not an object")
        text = choice.get("text")
        if isinstance(text, str):
            texts.append(text)
        elif text is not None:
            raise unreadable("a choice's text is no text")
    return texts


def _raise_reported(payload: JsonObject) -> None:
    if payload.get("error"):
        raise UpstreamFailed(
            REPORTED_ERROR, failure=FailureKind.OVERLOADED, detail=f"error object in an answer: {error_name(payload)}"
        )
