"""Blind indexes: a sealed address, user agent or e-mail can be searched for by who holds the index key, and by nobody else.

A record's clear metadata holds `HMAC-SHA256(index key, name ‖ 0 ‖ value)`, its first 16 bytes as base64url without padding.
Equal values have equal indexes, which is all that they tell. The worker sends the values beside the metadata; the writer,
which alone holds the key, replaces them. Source: Vault's audit devices.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from functools import lru_cache

import orjson

NAMES = frozenset({"ipx", "uax", "emx"})
"""Address, user agent, e-mail: members of clear metadata that only the writer sets."""

VALUES_BYTES_MAX = 255
# Three values with their names fit into 255 bytes, whatever they are.
_VALUE_BYTES_MAX = 72
_KNOWN = 4096


def indexable(value: str) -> str:
    """What stands for `value`: itself, or its SHA-256 where it would take too much room (as most user agents do)."""
    if len(orjson.dumps(value)) <= _VALUE_BYTES_MAX:
        return value
    return "sha256:" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()


def values_to_index(values: Mapping[str, str]) -> bytes:
    """`values` by their names, as a frame carries them; empty for none."""
    return orjson.dumps({name: _indexable(value) for name, value in values.items()}) if values else b""


class BlindIndexes:
    """The writer's side. What is the same in record after record is worked out once."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known = lru_cache(maxsize=_KNOWN)(self._work_out)

    def of(self, name: str, value: str) -> str:
        """The index under which records with this value stand; `name` is one of `NAMES`."""
        return self._of_indexable(name, indexable(value))

    def members(self, values: bytes) -> dict[str, str]:
        """The members of clear metadata for what a frame carries. Raises `ValueError` when that is malformed. Not to be changed."""
        return self._known(values)

    def forget(self) -> None:
        """Nothing that a person is known by is left in this memory."""
        self._known.cache_clear()

    def _work_out(self, values: bytes) -> dict[str, str]:
        given = orjson.loads(values)
        if not isinstance(given, dict) or not given.keys() <= NAMES:
            raise ValueError("it indexes by what this version does not know")
        if not all(isinstance(value, str) for value in given.values()):
            raise ValueError("what it is indexed by is no text")
        return {name: self._of_indexable(name, value) for name, value in given.items()}

    def _of_indexable(self, name: str, value: str) -> str:
        digest = hmac.digest(self._key, name.encode() + b"\0" + value.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode()


_indexable = lru_cache(maxsize=1024)(indexable)
