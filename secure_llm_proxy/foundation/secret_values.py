"""Keys derived from the operator's secrets, one per purpose (HKDF-SHA256, RFC 5869)."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import SecretSettings


def derive_key(secret: str, label: str) -> bytes:
    """32 bytes that only `secret` and `label` together give. Of SECRET_KEY: `slp/key-pepper`, `slp/password-pepper`,
    `slp/session-pepper`, `slp/recovery-pepper`, `slp/login-pepper`, `slp/person`, `slp/csrf`; of ENCRYPTION_KEY:
    `slp/totp`, `slp/provider-keys`, `slp/person-keys`.
    """
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=label.encode()).derive(secret.encode())


@dataclass(frozen=True, slots=True)
class RotatedSecret:
    """A secret of the operator's and those accepted beside it: all is made under `present`, and read under each of them.

    So a secret is replaced without a failed request: the new one is accepted everywhere first, then it changes places.
    """

    present: str = field(repr=False)
    previous: tuple[str, ...] = field(default=(), repr=False)

    def key(self, label: str) -> bytes:
        return derive_key(self.present, label)

    def previous_keys(self, label: str) -> tuple[bytes, ...]:
        return tuple(derive_key(secret, label) for secret in self.previous)


def secret_key_of(secrets: SecretSettings) -> RotatedSecret:
    """SECRET_KEY and SECRET_KEY_PREVIOUS. Raises `OperatorError` when it is missing."""
    return _rotated("SECRET_KEY", secrets.secret_key, secrets.secret_keys_previous)


def encryption_key_of(secrets: SecretSettings) -> RotatedSecret:
    """ENCRYPTION_KEY and ENCRYPTION_KEY_PREVIOUS. Raises `OperatorError` when it is missing."""
    return _rotated("ENCRYPTION_KEY", secrets.encryption_key, secrets.encryption_keys_previous)


def _rotated(name: str, present: SecretStr | None, previous: SecretStr | None) -> RotatedSecret:
    if present is None:
        raise OperatorError(f"{name} is missing; make one with: openssl rand -hex 32")
    secret = present.get_secret_value()
    others = previous.get_secret_value().split(",") if previous is not None else []
    told = dict.fromkeys(other.strip() for other in others)
    return RotatedSecret(secret, tuple(other for other in told if other not in ("", secret)))


def key_mark(key: bytes) -> str:
    """By which of several keys something was made: 8 hexadecimal digits that tell nothing of the key."""
    return hmac.digest(key, b"slp/mark", hashlib.sha256).hex()[:8]


def pseudonym(person_key: bytes, person: str) -> str:
    """What a person is called where it can be read: `s_` and 16 hexadecimal digits (HMAC-SHA256), the same everywhere.

    `person` is a user's id, what an application calls its user, or `login:` and a username that somebody typed;
    `person_key` is derived from SECRET_KEY (`slp/person`).
    """
    return "s_" + hmac.digest(person_key, person.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:16]
