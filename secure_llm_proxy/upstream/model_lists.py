"""A provider's own list of its models. Source: the vendors' references of "list models", 2026-11."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import InvalidRequest
from secure_llm_proxy.upstream.formats.face import read_object, unreadable

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonValue

_MODELS_MAX = 10_000
_MODEL_NAME = re.compile(r"[!-~]{1,256}")


def read_models(body: bytes, shape: Literal["openai", "array", "gemini", "cohere"] = "openai") -> tuple[str, ...]:
    """The names in the provider's order, each once; names that no header or log could carry are left out.

    Raises `UpstreamFailed`.
    """
    names: list[JsonValue]
    match shape:
        case "array":
            names = [entry.get("id") for entry in _array(body) if isinstance(entry, dict)]
        case "openai":
            names = [entry.get("id") for entry in _listed(body, "data") if isinstance(entry, dict)]
        case "gemini":
            listed = [entry.get("name") for entry in _listed(body, "models") if isinstance(entry, dict)]
            names = [name.removeprefix("models/") if isinstance(name, str) else None for name in listed]
        case "cohere":
            names = [entry.get("name") for entry in _listed(body, "models") if isinstance(entry, dict)]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and _MODEL_NAME.fullmatch(name)))


def _listed(body: bytes, key: str) -> list[JsonValue]:
    listed = read_object(body).get(key)
    if not isinstance(listed, list):
        raise unreadable(f"the model list has no {key}")
    return listed[:_MODELS_MAX]


def _array(body: bytes) -> list[JsonValue]:
    """Together's list, which is no object."""
    try:
        listed = strict_json.loads(body)
    except InvalidRequest as error:
        raise unreadable(f"JSON: {error.code}") from None
    if not isinstance(listed, list):
        raise unreadable("the model list is no array")
    return listed[:_MODELS_MAX]
