"""The form of an API key: `slp_<kind>_<kid>_<secret><checksum>`.

`kind` is live, test or adm (`KeyKind`); `kid` is 8 base62 characters, public and indexed; `secret` is 32 (190 bits); the
checksum is the CRC-32 of everything before it as 6 base62 characters, so that a typing mistake, and a scanner's find, is
judged without a database. The underscores let a double click take the whole key. Source: SECURITY §2, D14; GitHub's token
format (2021-04-05).
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType
from zlib import crc32

from secure_llm_proxy.foundation.identifiers import KeyId, new_key_id

Kid = NewType("Kid", str)

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Of a live or test key, which the hot path meets; an adm key is one character shorter.
KEY_LENGTH = 56
# The rule for secret scanners too; a find is one of ours only if its checksum is right.
SCANNER_RULE = r"slp_(?:live|test|adm)_([0-9A-Za-z]{8})_[0-9A-Za-z]{38}"
_FORM = re.compile(SCANNER_RULE, re.ASCII)
_KID_FORM = re.compile(r"[0-9A-Za-z]{8}", re.ASCII)
_CHECKSUM_LENGTH = 6
_PLACE_2, _PLACE_3 = 62**2, 62**3


class KeyKind(StrEnum):
    """What a key is for, readable in the key itself. Live and test ask models and differ in name only; adm manages."""

    LIVE = "live"
    TEST = "test"
    ADM = "adm"


@dataclass(frozen=True, slots=True)
class DrawnKey:
    """A new key that no database knows yet. `secret` is the whole key, to be shown once."""

    id: KeyId
    kid: Kid
    secret: str = field(repr=False)

    @property
    def kind(self) -> KeyKind:
        return KeyKind(self.secret.split("_", 2)[1])


def draw_api_key(kind: KeyKind = KeyKind.LIVE) -> DrawnKey:
    """A fresh key from the system's random source."""
    kid = Kid(random_base62(8))
    body = f"slp_{kind}_{kid}_{random_base62(32)}"
    return DrawnKey(new_key_id(), kid, body + checksum_of(body))


def kid_of(credential: str) -> Kid | None:
    """The public part of a well-formed key; None when form or checksum is wrong. Says nothing about its validity."""
    if not KEY_LENGTH - 1 <= len(credential) <= KEY_LENGTH or (match := _FORM.fullmatch(credential)) is None:
        return None
    if checksum_of(credential[:-_CHECKSUM_LENGTH]) != credential[-_CHECKSUM_LENGTH:]:
        return None
    return Kid(match[1])


def is_kid(text: str) -> bool:
    return _KID_FORM.fullmatch(text) is not None


def digest_of(pepper: bytes, credential: str) -> bytes:
    """What is stored instead of a key or a one-time token: HMAC-SHA256 of all of it under the pepper."""
    return hmac.digest(pepper, credential.encode(), "sha256")


def checksum_of(body: str) -> str:
    value = crc32(body.encode())
    high, low = divmod(value, _PLACE_3)
    # Six digits in one expression: 0.4 instead of 0.8 µs by a loop.
    return (
        BASE62[high // _PLACE_2]
        + BASE62[high // 62 % 62]
        + BASE62[high % 62]
        + BASE62[low // _PLACE_2]
        + BASE62[low // 62 % 62]
        + BASE62[low % 62]
    )


def random_base62(length: int) -> str:
    return "".join(secrets.choice(BASE62) for _ in range(length))
