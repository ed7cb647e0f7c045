"""Keys derived from the operator's secrets, one per purpose (HKDF-SHA256, RFC 5869)."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def derive_key(secret: str, label: str) -> bytes:
    """32 bytes that only `secret` and `label` together give. Of SECRET_KEY: `slp/key-pepper`, `slp/password-pepper`,
    `slp/session-pepper`, `slp/recovery-pepper`, `slp/login-pepper`, `slp/person`, `slp/throttling`; of ENCRYPTION_KEY:
    `slp/totp`, `slp/provider-keys`.
    """
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=label.encode()).derive(secret.encode())


def pseudonym(person_key: bytes, person: str) -> str:
    """What a person is called where it can be read: `s_` and 16 hexadecimal digits (HMAC-SHA256), the same everywhere.

    `person` is a user's id, what an application calls its user, or `login:` and a username that somebody typed;
    `person_key` is derived from SECRET_KEY (`slp/person`).
    """
    return "s_" + hmac.digest(person_key, person.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:16]
