"""What servers of OpenAI's formats want otherwise than OpenAI: a request that came in such a format, put so. Pure.

Which parameters, roles and words those are is a fact about the provider's kind (`vocabulary/providers.toml`).
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from secure_llm_proxy.foundation.errors import InvalidRequest

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.vocabulary.providers import ProviderKind

# OpenAI's own bound.
_CALL_ID_MAX: Final = 40
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_EMPTY: Final[tuple[JsonValue, ...]] = (None, "", [], {})


def in_dialect(payload: JsonObject, kind: ProviderKind) -> tuple[JsonObject, tuple[str, ...]]:
    """The payload as this kind wants it, and the names of what was left out. `payload` itself stays as it is.

    What is null says nothing, and its loss is not told. Raises `InvalidRequest` where two names of one thing differ.
    """
    if kind.quirks.isdisjoint(payload):
        return payload, ()
    told: JsonObject = {}
    dropped: dict[str, None] = {}
    for name, value in payload.items():
        if name in kind.drops:
            if value not in _EMPTY:
                dropped[name] = None
        elif name in kind.renames:
            if value is not None:
                _put(told, kind.renames[name], value, payload, name)
        elif name == "tool_choice" and isinstance(value, str):
            told[name] = kind.tool_choices.get(value, value)
        elif name == "messages" and isinstance(value, list):
            told[name] = [_message(message, kind, dropped) for message in value]
        elif value is not None or name not in told:
            told[name] = value
    return told, tuple(dropped)


def call_id(told: str, kind: ProviderKind) -> str:
    """The id as this kind takes it: the same one for a call and its result, in every turn."""
    if _NINE.fullmatch(told) or (kind.call_ids == "any" and len(told) <= _CALL_ID_MAX):
        return told
    number = int.from_bytes(sha256(told.encode("utf-8", "surrogatepass")).digest())
    digits = []
    for _ in range(9):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)


def _put(told: JsonObject, name: str, value: JsonValue, payload: JsonObject, before: str) -> None:
    """Two names for one parameter may both be given only if they say the same."""
    other = payload.get(name)
    if other is not None and other != value:
        raise InvalidRequest(f"Invalid `{before}`: it differs from `{name}`, which means the same.", param=before)
    told[name] = value


def _message(message: JsonValue, kind: ProviderKind, dropped: dict[str, None]) -> JsonValue:
    if not isinstance(message, dict):
        return message
    told: JsonObject = {}
    for name, value in message.items():
        # The name of a tool belongs to its result.
        if f"messages.{name}" in kind.drops and message.get("role") != "tool":
            if value not in _EMPTY:
                dropped[f"messages.{name}"] = None
        elif name == "role" and isinstance(value, str):
            told[name] = kind.roles.get(value, value)
        elif name == "tool_call_id" and isinstance(value, str):
            told[name] = call_id(value, kind)
        elif name == "tool_calls" and isinstance(value, list):
            told[name] = [_call(call, kind) for call in value]
        else:
            told[name] = value
    return told


def _call(call: JsonValue, kind: ProviderKind) -> JsonValue:
    if isinstance(call, dict) and isinstance(told := call.get("id"), str):
        return {**call, "id": call_id(told, kind)}
    return call
