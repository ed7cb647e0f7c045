"""Numbers of tokens as providers tell them."""

from __future__ import annotations

from secure_llm_proxy.foundation.strict_json import JsonObject


def count_of(usage: JsonObject, name: str) -> int | None:
    """A number of tokens; None for anything that is none."""
    # by the exact type: True is an int to Python, and no number of tokens to anybody
    value = usage.get(name)
    return value if type(value) is int and value >= 0 else None


def detail_of(usage: JsonObject, group: str, name: str) -> int | None:
    """The same of a group within."""
    if group not in usage:
        return None
    details = usage[group]
    return count_of(details, name) if isinstance(details, dict) else None
