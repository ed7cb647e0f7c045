"""How clients of each door ask, and how one tells a whole answer, a stream and an error of it from anything else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.support.clients import Answer

_OPENAI_ERROR = frozenset({"message", "type", "param", "code"})
_OK = 200


class Event(NamedTuple):
    """One server-sent event; `name` is empty where none was given."""

    name: str
    data: str


def events_in(body: bytes) -> list[Event] | None:
    """The events of a stream, strictly as the proxy writes them; None if any byte of it is something else."""
    if body and not body.endswith(b"\n\n"):
        return None
    events = []
    for block in body.decode("utf-8").removesuffix("\n\n").split("\n\n") if body else []:
        name, data = "", None
        for line in block.split("\n"):
            field_name, _, value = line.partition(": ")
            if field_name == "event" and not name and data is None:
                name = value
            elif field_name == "data" and data is None:
                data = value
            elif not line.startswith(":"):
                return None
        if data is not None:
            events.append(Event(name, data))
    return events


@dataclass(frozen=True, slots=True)
class Dialect:
    """One door as its clients know it.

    `is_end` tells the event that a whole stream ends with, `is_error` one that tells of a failure; `is_error_body` the JSON of
    an error answer; `texts` what a whole answer or an event adds to the visible text.
    """

    name: str
    door: str
    body: Callable[[str, str, bool], dict[str, object]]
    is_end: Callable[[Event], bool]
    is_error: Callable[[Event], bool]
    is_error_body: Callable[[object], bool]
    texts: Callable[[dict[str, object]], Iterator[str]]
    headers: Mapping[str, str] = field(default_factory=dict)

    def wrong_with(self, answer: Answer, *, complete: bool, stream: bool) -> str | None:
        """What is malformed in `answer`, given that the log says `complete` or not; None if nothing is."""
        if answer.status != _OK:
            if complete:
                return "an error, though the log says complete"
            if answer.status == 500:
                return "a defect of ours"
            return None if self._is_error_answer(answer.body) else "the error has not the dialect's shape"
        if not stream:
            if not complete:
                return "status 200, though the log says otherwise"
            try:
                return None if isinstance(json.loads(answer.body), dict) else "the answer is no object"
            except ValueError:
                return "the answer is no JSON"
        events = events_in(answer.body)
        if events is None:
            return "the stream is malformed"
        ends = [position for position, event in enumerate(events) if self.is_end(event)]
        errors = [position for position, event in enumerate(events) if self.is_error(event)]
        expected = ([len(events) - 1], []) if complete else ([], [len(events) - 1])
        if (ends, errors) != expected:
            return f"ends at {ends}, errors at {errors} of {len(events)} events"
        for event in events:
            if event.data != "[DONE]" and not _is_object(event.data):
                return "an event is no JSON object"
        return None

    def text_of(self, answer: Answer, *, stream: bool) -> str:
        """The visible text of a good answer."""
        if not stream:
            return "".join(self.texts(answer.json))
        events = events_in(answer.body) or []
        return "".join(
            piece for event in events if event.data != "[DONE]" for piece in self.texts(json.loads(event.data))
        )

    def _is_error_answer(self, body: bytes) -> bool:
        try:
            return self.is_error_body(json.loads(body))
        except ValueError:
            return False


def _is_object(data: str) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


def _openai_error(body: object) -> bool:
    return isinstance(body, dict) and isinstance(body.get("error"), dict) and set(body["error"]) == _OPENAI_ERROR


def _is_openai_error_event(event: Event) -> bool:
    return event.name == "error" and _openai_error(json.loads(event.data))


def _messages(model: str, text: str, stream: bool) -> dict[str, object]:  # noqa: FBT001
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}


def _chat_texts(payload: dict[str, object]) -> Iterator[str]:
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        said = choice.get("message") or choice.get("delta") or {}
        yield said.get("content") or ""


OPENAI_CHAT = Dialect(
    "openai",
    "/v1/chat/completions",
    _messages,
    is_end=lambda event: event == ("", "[DONE]"),
    is_error=_is_openai_error_event,
    is_error_body=_openai_error,
    texts=_chat_texts,
)


def _own_body(model: str, text: str, stream: bool) -> dict[str, object]:  # noqa: FBT001
    return {"model": model, "stream": stream, "prompt": text}


def _own_texts(payload: dict[str, object]) -> Iterator[str]:
    if isinstance(said := payload.get("response"), str):
        yield said
    yield from _chat_texts(payload)


OWN_CHAT = Dialect(
    "own",
    "/chat",
    _own_body,
    is_end=OPENAI_CHAT.is_end,
    is_error=_is_openai_error_event,
    is_error_body=_openai_error,
    texts=_own_texts,
)


def _response_body(model: str, text: str, stream: bool) -> dict[str, object]:  # noqa: FBT001
    return {"model": model, "stream": stream, "store": False, "input": text}


def _response_texts(payload: dict[str, object]) -> Iterator[str]:
    if payload.get("type") == "response.output_text.delta":
        yield str(payload["delta"])
    output = payload.get("output")
    for item in output if isinstance(output, list) else []:
        for part in item.get("content") or []:
            yield part.get("text") or ""


def _is_response_error(event: Event) -> bool:
    if event.name != "error":
        return False
    told = json.loads(event.data)
    return {"type", "code", "message", "param", "sequence_number"} <= set(told) and _openai_error(told)


OPENAI_RESPONSES = Dialect(
    "responses",
    "/v1/responses",
    _response_body,
    is_end=lambda event: event.name in {"response.completed", "response.incomplete"},
    is_error=_is_response_error,
    is_error_body=_openai_error,
    texts=_response_texts,
)


def _messages_body(model: str, text: str, stream: bool) -> dict[str, object]:  # noqa: FBT001
    return {**_messages(model, text, stream), "max_tokens": 64}


def _anthropic_error(body: object) -> bool:
    """As Anthropic's API reference has it, with the request's id beside it."""
    if not isinstance(body, dict) or body.get("type") != "error" or not isinstance(error := body.get("error"), dict):
        return False
    return {"type", "message"} <= set(error)


def _message_texts(payload: dict[str, object]) -> Iterator[str]:
    delta = payload.get("delta")
    if isinstance(delta, dict):
        yield delta.get("text") or ""
    content = payload.get("content")
    for block in content if isinstance(content, list) else []:
        yield block.get("text") or ""


ANTHROPIC_MESSAGES = Dialect(
    "anthropic",
    "/v1/messages",
    _messages_body,
    is_end=lambda event: event.name == "message_stop",
    is_error=lambda event: event.name == "error" and _anthropic_error(json.loads(event.data)),
    is_error_body=_anthropic_error,
    texts=_message_texts,
    headers={"anthropic-version": "2023-06-01"},
)


DIALECTS = (OWN_CHAT, OPENAI_CHAT, OPENAI_RESPONSES, ANTHROPIC_MESSAGES)
