"""Seals what a column must not show (AES-256-GCM), bound to the row it stands in; opens what was sealed under earlier keys.

A sealed value is one byte for its form, 12 of nonce, and the ciphertext. `bound` is whatever must not change without making
it unreadable: purpose, row, place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORM = b"\x01"
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Opened:
    """What was sealed, and whether under the present key."""

    content: bytes = field(repr=False)
    is_present: bool


class Seal:
    """Seals under `key`; opens under it and under `previous_keys`. Keys are 32 bytes."""

    def __init__(self, key: bytes, previous_keys: Sequence[bytes] = ()) -> None:
        self._present = AESGCM(key)
        self._all = (self._present, *map(AESGCM, previous_keys))

    def sealed(self, content: bytes, bound: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return _FORM + nonce + self._present.encrypt(nonce, content, _FORM + bound)

    def opened(self, sealed: bytes, bound: bytes) -> Opened | None:
        """None when it was sealed for another row, or under a key that is not here."""
        form, nonce, box = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        for cipher in self._all:
            try:
                return Opened(cipher.decrypt(nonce, box, form + bound), cipher is self._present)
            except (InvalidTag, ValueError):
                continue
        return None


@dataclass(frozen=True, slots=True)
class Sealing:
    """How many values stand under the present key, under a previous one, and under none that is here."""

    present: int
    previous: int
    unreadable: int


def sealing_of(opened: Iterable[Opened | None]) -> Sealing:
    """Counted from what opening each of them gave."""
    each = [None if one is None else one.is_present for one in opened]
    return Sealing(each.count(True), each.count(False), each.count(None))
