"""OpenAI's wire format, read strictly: completions, stream events, model lists, errors. Pure: no socket here.

Source: OpenAI API reference, chat completions, models and errors, 2026-11.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest, ProxyError, UpstreamFailed, UpstreamRefused
from secure_llm_proxy.upstream.exchange import UNREADABLE
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage

if TYPE_CHECKING:
    from datetime import datetime

    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.upstream.http1 import AnswerHead
    from secure_llm_proxy.upstream.wording import Scrubber

DONE = b"[DONE]"

REPORTED_ERROR = "The provider reported an error while it answered."
REFUSED_CREDENTIALS = "The provider refused the proxy's credentials."
BUSY = "The provider limits the rate of the proxy's requests. Try again later."
REFUSED = "The provider refused the request."
FAILED = "The provider failed to answer the request."

_RETRY_AFTER_S_MAX = 3_600
_MODELS_MAX = 10_000
_MODEL_NAME = re.compile(r"[!-~]{1,256}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTEXT_LENGTH_CODES = frozenset({"context_length_exceeded", "string_above_max_length", "max_tokens_exceeded"})
_PASSED_ON = frozenset({400, 404, 409, 413, 422})


def read_completion(body: bytes, *, model: str) -> Completion:
    """Return the whole answer. `model` stands in when the answer names none. Raises `UpstreamFailed`."""
    payload = _read_object(body)
    if payload.get("error"):
        raise UpstreamFailed(REPORTED_ERROR, detail=f"error object in a 200 answer: {_error_name(payload)}")
    text = _only_text(payload)
    if text is None:
        choices = _choices(payload)
        if choices is None:
            raise _unreadable("the answer has no choices")
        text = "\n".join([said for choice in choices if (said := _text_of(choice.get("message"))) is not None])
    named = payload.get("model")
    return Completion(payload, text, _usage(payload) or Usage(), named if type(named) is str and named else model)


def read_stream_event(data: bytes) -> tuple[StreamEvent, bool]:
    """Return the event and whether one of its choices is finished. Raises `UpstreamFailed`, also for an error event."""
    try:
        payload = strict_json.loads_object(data)
    except InvalidRequest as error:
        raise _not_json(error) from None
    if payload.get("error"):
        raise UpstreamFailed(REPORTED_ERROR, detail=f"error event in the stream: {_error_name(payload)}")
    text, finished = "", False
    choices = payload.get("choices")
    if type(choices) is list and len(choices) == 1 and type(choice := choices[0]) is dict:
        delta = choice.get("delta")
        if type(delta) is dict and len(delta) == 1 and type(content := delta.get("content")) is str:
            # the usual event: one choice that adds text and nothing else
            written = data if b"\n" not in data else strict_json.dumps(payload)
            usage = _usage(payload) if "usage" in payload else None
            return StreamEvent(written, payload, content, usage, True), choice.get("finish_reason") is not None
    if choices is not None:
        if not isinstance(choices, list):
            raise _unreadable("choices is not a list")
        for choice in choices:
            if not isinstance(choice, dict):
                raise _unreadable("a choice is not an object")
            text += _text_of(choice.get("delta")) or ""
            if choice.get("finish_reason") is not None:
                finished = True
    # data lines were joined by LF, which would end the line when the event is written again
    written = strict_json.dumps(payload) if b"\n" in data else data
    return StreamEvent(written, payload, text, _usage(payload)), finished


def read_models(body: bytes) -> tuple[str, ...]:
    """Return the names in the provider's order, each once; names that no header or log could carry are left out."""
    payload = _read_object(body)
    listed = payload.get("data")
    if not isinstance(listed, list):
        raise _unreadable("the model list has no data")
    names = [entry.get("id") for entry in listed[:_MODELS_MAX] if isinstance(entry, dict)]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and _MODEL_NAME.fullmatch(name)))


def error_of(head: AnswerHead, body: bytes, *, scrubber: Scrubber, now: datetime) -> ProxyError:
    """Return what a client may learn of an answer that is not 200. `body` may be cut, empty or nonsense."""
    status = head.status
    detail = f"the provider answered {status}"
    if status in (401, 403):
        return UpstreamFailed(REFUSED_CREDENTIALS, detail=detail)
    if status == 429:  # noqa: PLR2004 — HTTP's own number
        wait_s = _retry_after_s(head.headers.get("retry-after"), now) or 1
        return UpstreamRefused(
            BUSY, status=status, code=ErrorCode.UPSTREAM_RATE_LIMITED, detail=detail, retry_after_s=wait_s
        )
    if status in _PASSED_ON:
        error = _error_object(body)
        too_long = error.get("code") in _CONTEXT_LENGTH_CODES
        return UpstreamRefused(
            scrubber.message(error.get("message")) or REFUSED,
            status=status,
            code=ErrorCode.CONTEXT_LENGTH_EXCEEDED if too_long else ErrorCode.UPSTREAM_REJECTED,
            param=scrubber.parameter(error.get("param")),
            detail=detail,
        )
    retry_after_s = _retry_after_s(head.headers.get("retry-after"), now) if status == 503 else None  # noqa: PLR2004
    return UpstreamFailed(FAILED, detail=detail, retry_after_s=retry_after_s)


def _read_object(body: bytes) -> JsonObject:
    try:
        return strict_json.loads_object(body)
    except InvalidRequest as error:
        raise _not_json(error) from None


def _not_json(error: InvalidRequest) -> UpstreamFailed:
    # its text speaks of the client's request, and may quote what the provider wrote
    return _unreadable(f"JSON: {error.code}")


def _unreadable(detail: str) -> UpstreamFailed:
    return UpstreamFailed(UNREADABLE, detail=detail)


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
        raise _unreadable("choices is not a list")
    choices: list[JsonObject] = []
    for choice in value:
        if not isinstance(choice, dict):
            raise _unreadable("a choice is not an object")
        choices.append(choice)
    return choices


def _text_of(message: JsonValue) -> str | None:
    """The visible text of a message or delta: a string, or content parts of type text (some providers stream those)."""
    if not isinstance(message, dict):
        if message is None:
            return None
        raise _unreadable("a message is not an object")
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return None


def _usage(payload: JsonObject) -> Usage | None:
    value = payload.get("usage")
    if not isinstance(value, dict):
        return None
    prompt, completion, total = value.get("prompt_tokens"), value.get("completion_tokens"), value.get("total_tokens")
    # by the exact type: True is an int to Python, and no number of tokens to anybody
    return Usage(
        prompt if type(prompt) is int and prompt >= 0 else None,
        completion if type(completion) is int and completion >= 0 else None,
        total if type(total) is int and total >= 0 else None,
    )


def _error_object(body: bytes) -> JsonObject:
    try:
        error = strict_json.loads_object(body).get("error")
    except InvalidRequest:
        return {}
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _error_name(payload: JsonObject) -> str:
    """The error's code or type for the operator's log; never its message, which may quote the prompt."""
    error = payload.get("error")
    if isinstance(error, dict):
        for name in ("code", "type"):
            value = error.get(name)
            if isinstance(value, str) and _IDENTIFIER.fullmatch(value):
                return value
    return "unnamed"


def _retry_after_s(value: str | None, now: datetime) -> int | None:
    """Seconds or an HTTP date (RFC 9110 §10.2.3) as whole seconds from 1 to 3,600; None when absent or unreadable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        seconds = int(value[:10])
    else:
        try:
            seconds = int((parsedate_to_datetime(value) - now).total_seconds())
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(seconds, 1), _RETRY_AFTER_S_MAX)
