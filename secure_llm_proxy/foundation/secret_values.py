"""Keys derived from the operator's secrets, one per purpose (HKDF-SHA256, RFC 5869)."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def derive_key(secret: str, label: str) -> bytes:
    """32 bytes that only `secret` and `label` together give. Of SECRET_KEY: `slp/key-pepper`, `slp/password-pepper`,
    `slp/session-pepper`, `slp/recovery-pepper`, `slp/login-pepper`, `slp/person`, `slp/throttling`; of ENCRYPTION_KEY:
    `slp/totp`.
    """
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=label.encode()).derive(secret.encode())
