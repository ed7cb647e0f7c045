"""JSON that means the same to us and to the provider, or is refused.

Two parsers may read one text differently (duplicate keys, NaN, lone surrogates, numbers out of range), and then a
policy would judge another request than the one that leaves. So `loads` refuses every such text, and what leaves is
always written anew by `dumps`. Tried 2026-11: orjson takes the last of two equal keys in silence, hence the standard
library's parser with hooks on the way in. It is asked only when the text is not, but for white space, what `dumps` would
write: then nothing can have been lost or read differently, and orjson alone is enough. 1.7 instead of 5.4 µs for a request
of 1 kB as official SDKs send it, 1.0 instead of 4.3 µs for one event of a stream (2026-11).
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn, TypeAlias

import orjson

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = "dict[str, JsonValue]"

MAX_DEPTH = 64
_WHITE_SPACE = b" \t\r\n"
_INT64 = range(-(2**63), 2**64)


def loads_object(body: bytes, *, max_depth: int = MAX_DEPTH) -> JsonObject:
    """Return the object that `body` holds, or raise `InvalidRequest` with the code of what is wrong with it."""
    value = loads(body, max_depth=max_depth)
    if not isinstance(value, dict):
        raise InvalidRequest("The request body must be a JSON object.", code=ErrorCode.INVALID_TYPE)
    return value


def loads(body: bytes, *, max_depth: int = MAX_DEPTH) -> JsonValue:
    """Parse UTF-8 JSON strictly: no byte order mark, no duplicate keys, no NaN or infinity, no lone surrogates,
    integers within 64 bits, at most `max_depth` levels of arrays and objects.
    """
    try:
        value: JsonValue = orjson.loads(body)
        written = orjson.dumps(value)
        # White space is left out on both sides, inside of texts too, which orjson has read as they are. A key that stood
        # twice, or a number that was read as another, is missing or different in what is left.
        if written == body or written.translate(None, _WHITE_SPACE) == body.translate(None, _WHITE_SPACE):
            if body.count(b"{") + body.count(b"[") > max_depth:
                _check_depth(value, max_depth)
            return value
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        # What is wrong with it is found, and said, by the parser below.
        pass
    return _loads_slowly(body, max_depth)


def _loads_slowly(body: bytes, max_depth: int) -> JsonValue:
    if not body.strip(_WHITE_SPACE):
        raise InvalidRequest("The request body is empty; send a JSON object.", code=ErrorCode.EMPTY_BODY)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The request body is not valid UTF-8 (byte {error.start}).", code=ErrorCode.INVALID_ENCODING
        ) from None
    if text.startswith("\ufeff"):
        raise InvalidRequest(
            "The request body starts with a byte order mark; leave it out.", code=ErrorCode.INVALID_ENCODING
        )
    try:
        value: JsonValue = _DECODER.decode(text)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"The request body is not valid JSON (line {error.lineno}, column {error.colno}).",
            code=ErrorCode.INVALID_JSON,
        ) from None
    except ValueError:
        # int() refuses more than 4,300 digits (CVE-2020-10735)
        raise _bad_number() from None
    if body.count(b"{") + body.count(b"[") > max_depth:
        _check_depth(value, max_depth)
    if "\\u" in text:
        # Only an escape can spell a lone surrogate: UTF-8 that holds one was refused above.
        dumps(value)
    return value


def dumps(value: object) -> bytes:
    """Compact UTF-8 JSON. Raises `InvalidRequest` for a lone surrogate, of which `loads` never returns one."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise InvalidRequest(
            "The request body holds a lone UTF-16 surrogate, which is not a character.", code=ErrorCode.INVALID_ENCODING
        ) from None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                shown = name[:64].encode("unicode_escape").decode("ascii")
                raise InvalidRequest(
                    f"The key `{shown}` stands twice in one JSON object.", code=ErrorCode.DUPLICATE_KEY, param=shown
                )
            seen.add(name)
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _bad_number()
    return number


def _integer(text: str) -> int:
    number = int(text)
    if number not in _INT64:
        raise _bad_number()
    return number


def _no_constant(_name: str) -> NoReturn:
    raise InvalidRequest("NaN and Infinity are not JSON numbers.", code=ErrorCode.INVALID_NUMBER)


def _bad_number() -> InvalidRequest:
    return InvalidRequest("A number in the request body is out of range.", code=ErrorCode.INVALID_NUMBER)


def _too_deep(max_depth: int) -> InvalidRequest:
    return InvalidRequest(
        f"The request body is nested more than {max_depth} levels deep.", code=ErrorCode.NESTED_TOO_DEEPLY
    )


def _check_depth(value: JsonValue, max_depth: int) -> None:
    level: list[JsonValue] = [value]
    for _ in range(max_depth):
        below: list[JsonValue] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    if any(isinstance(item, dict | list) for item in level):
        raise _too_deep(max_depth)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_without_duplicates, parse_float=_finite, parse_int=_integer, parse_constant=_no_constant
)
