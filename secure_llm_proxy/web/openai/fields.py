"""Fields of a request's JSON by their types. What is wrong raises `InvalidRequest`, which names the parameter by its path
and never quotes its value. null is what was left out.
"""

from __future__ import annotations

from typing import NoReturn

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.web.wire import shown_path


def note_others(told: JsonObject, known: frozenset[str], path: str, further: JsonObject) -> None:
    """Every field that the neutral model has no place for, with all of its values, so that its loss can be told."""
    if known.issuperset(told):
        return
    for name, value in told.items():
        if name not in known and value not in (None, [], {}, ""):
            values = further.setdefault(f"{path}.{name}", [])
            if isinstance(values, list):
                values.append(value)


def object_of(value: JsonValue, path: str) -> JsonObject:
    if isinstance(value, dict):
        return value
    return missing(path) if value is None else wrong_type(path, "an object")


def object_or_none(holder: JsonObject, name: str, path: str | None = None) -> JsonObject | None:
    value = holder.get(name)
    return None if value is None else object_of(value, _join(path, name))


def list_of(value: JsonValue, path: str, *, empty: bool = False) -> list[JsonValue]:
    if isinstance(value, list):
        return value
    if value is None:
        return [] if empty else missing(path)
    return wrong_type(path, "a list")


def text_of(value: JsonValue, path: str) -> str:
    if isinstance(value, str):
        return value
    return missing(path) if value is None else wrong_type(path, "a string")


def word_of(value: JsonValue, path: str) -> str:
    """A text that is not empty."""
    return text_of(value, path) or invalid_value(path, "it is empty.")


def text_or_none(holder: JsonObject, name: str, path: str | None = None) -> str | None:
    value = holder.get(name)
    return None if value is None else text_of(value, _join(path, name))


def flag_or_none(holder: JsonObject, name: str, path: str | None = None) -> bool | None:
    value = holder.get(name)
    if value is None or isinstance(value, bool):
        return value
    return wrong_type(_join(path, name), "true or false")


def integer_or_none(holder: JsonObject, name: str) -> int | None:
    value = holder.get(name)
    # by the exact type: True is an int to Python
    if value is None or type(value) is int:
        return value
    return wrong_type(name, "an integer")


def number_or_none(holder: JsonObject, name: str) -> float | None:
    value = holder.get(name)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return wrong_type(name, "a number")


def stop_of(payload: JsonObject) -> tuple[str, ...]:
    """`stop`, which may be one text or a list of them."""
    stop = payload.get("stop")
    if stop is None:
        return ()
    if isinstance(stop, str):
        return (stop,)
    return tuple(text_of(word, f"stop.{at}") for at, word in enumerate(list_of(stop, "stop")))


def stream_options_of(payload: JsonObject) -> JsonObject:
    """What stands in `stream_options` beside `include_usage`, which is our own doors' to heed, by its path."""
    options = object_or_none(payload, "stream_options") or {}
    return {
        f"stream_options.{name}": value
        for name, value in options.items()
        if name != "include_usage" and value is not None
    }


def _join(path: str | None, name: str) -> str:
    return name if path is None else f"{path}.{name}"


def missing(path: str) -> NoReturn:
    shown = shown_path(path)
    raise InvalidRequest(f"You must provide `{shown}`.", code=ErrorCode.MISSING_PARAMETER, param=shown)


def wrong_type(path: str, wanted: str) -> NoReturn:
    shown = shown_path(path)
    raise InvalidRequest(f"Invalid `{shown}`: it must be {wanted}.", code=ErrorCode.INVALID_TYPE, param=shown)


def invalid_value(path: str, why: str) -> NoReturn:
    shown = shown_path(path)
    raise InvalidRequest(f"Invalid `{shown}`: {why}", code=ErrorCode.INVALID_VALUE, param=shown)


def unsupported(param: str, why: str, path: str | None = None) -> NoReturn:
    raise InvalidRequest(
        f"The provider behind this model does not support `{param}`: {why}",
        code=ErrorCode.UNSUPPORTED_PARAMETER,
        param=shown_path(path or param),
    )
