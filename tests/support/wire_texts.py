"""Every string of a JSON value, keys and values."""

from __future__ import annotations

from collections.abc import Iterator


def strings_in(value: object) -> set[str]:
    return set(_strings(value))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
