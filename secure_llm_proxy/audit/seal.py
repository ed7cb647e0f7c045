"""Sealing of record bodies: XAES-256-GCM, key commitment, and the key that wraps keys.

XAES-256-GCM (C2SP, c2sp.org/XAES-256-GCM) derives a fresh AES-256-GCM key from each 24-byte nonce, so random nonces are
safe for 2^80 records under one key; plain AES-GCM stops at 2^32 (NIST SP 800-38D). GCM does not commit to its key,
hence `commitment`, which the log announces before a key's first use: nobody can later show a second key under which
the same ciphertext opens to another text.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings

KEY_BYTES = 32
NONCE_BYTES = 24
_WRAP_NONCE_BYTES = 12

_COMMIT_LABEL = b"slp/commit"
_KEK_CHECK_LABEL = b"slp/kek-check"

# M1 and M2 of the specification with an empty nonce: counter (2 bytes), "X", 0, then 12 bytes of nonce.
_COUNTERS = int.from_bytes(b"\x00\x01X\x00" + bytes(12) + b"\x00\x02X\x00" + bytes(12), "big")
_BLOCK = (1 << 128) - 1


class SealBroken(Exception):
    """The ciphertext, its header, its nonce or the key is not what was sealed."""


def _derive(key: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=label).derive(key)


class DataKey:
    """A 32-byte data key. One ECB call and one AES-GCM object per record; K1 is computed once per key."""

    __slots__ = ("_block", "_mask", "commitment", "secret")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError("a data key has 32 bytes")
        self.secret = secret
        # ECB over single, never repeated blocks is the PRF that the specification asks for, not an encryption mode here.
        self._block = Cipher(algorithms.AES(secret), modes.ECB()).encryptor()  # noqa: S305
        first = int.from_bytes(self._block.update(bytes(16)), "big")
        subkey = ((first << 1) & _BLOCK) ^ (0x87 if first >> 127 else 0)
        self._mask = _COUNTERS ^ subkey ^ (subkey << 128)
        self.commitment = _derive(secret, _COMMIT_LABEL)

    @classmethod
    def generate(cls) -> DataKey:
        return cls(os.urandom(KEY_BYTES))

    def _cipher(self, nonce: bytes) -> AESGCM:
        if len(nonce) != NONCE_BYTES:
            raise ValueError("an XAES-256-GCM nonce has 24 bytes")
        half = int.from_bytes(nonce[:12], "big")
        return AESGCM(self._block.update((self._mask ^ half ^ (half << 128)).to_bytes(32, "big")))

    def seal(self, nonce: bytes, plaintext: bytes, header: bytes) -> bytes:
        """Return ciphertext and 16-byte tag; `header` is authenticated with them."""
        return self._cipher(nonce).encrypt(nonce[12:], plaintext, header)

    def open(self, nonce: bytes, sealed: bytes, header: bytes) -> bytes:
        """Return the plaintext, or raise `SealBroken`."""
        try:
            return self._cipher(nonce).decrypt(nonce[12:], sealed, header)
        except (InvalidTag, ValueError):
            raise SealBroken from None


class KeyEncryptionKey:
    """The operator's key. It wraps data keys with AES-256-GCM, associated data = the wrapped key's id."""

    __slots__ = ("_cipher", "id")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError("a key encryption key has 32 bytes")
        self._cipher = AESGCM(secret)
        self.id = _derive(secret, _KEK_CHECK_LABEL)[:8].hex()

    @classmethod
    def from_text(cls, text: str) -> KeyEncryptionKey:
        """Read 64 hexadecimal digits, or base64 of 32 bytes. Raises `OperatorError` that says how to make one."""
        return cls(_key_from_text(text.strip()))

    def wrap(self, secret: bytes, kid: str) -> bytes:
        nonce = os.urandom(_WRAP_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, kid.encode())

    def unwrap(self, wrapped: bytes, kid: str) -> bytes:
        """Return the wrapped key, or raise `SealBroken` when this is another key's work or altered."""
        try:
            return self._cipher.decrypt(wrapped[:_WRAP_NONCE_BYTES], wrapped[_WRAP_NONCE_BYTES:], kid.encode())
        except (InvalidTag, ValueError):
            raise SealBroken from None


class KeyRing:
    """Key-encryption keys: the current one wraps, all of them unwrap. Earlier ones stay until everything is re-wrapped."""

    __slots__ = ("_keys", "current")

    def __init__(self, current: KeyEncryptionKey, previous: Iterable[KeyEncryptionKey] = ()) -> None:
        self.current = current
        self._keys = {key.id: key for key in (*previous, current)}

    @classmethod
    def from_texts(cls, current: str, previous: str | None = None) -> KeyRing:
        """`previous` is comma separated, as in AUDIT_KEK_PREVIOUS. Raises `OperatorError` that says how to make a key."""
        earlier = [KeyEncryptionKey.from_text(text) for text in (previous or "").split(",") if text.strip()]
        return cls(KeyEncryptionKey.from_text(current), earlier)

    @classmethod
    def of(cls, settings: AuditSettings) -> KeyRing | None:
        """The keys in `settings`; None without AUDIT_KEK, as everywhere but in the audit writer."""
        if settings.kek is None:
            return None
        previous = settings.previous_keks
        return cls.from_texts(settings.kek.get_secret_value(), previous.get_secret_value() if previous else None)

    @property
    def ids(self) -> list[str]:
        """The earlier ones first."""
        return list(self._keys)

    def __contains__(self, kek_id: str) -> bool:
        return kek_id in self._keys

    def unwrap(self, wrapped: bytes, kid: str, kek_id: str | None = None) -> bytes:
        """Return the wrapped key, or raise `SealBroken`. `kek_id` says which key wrapped it; None: whichever opens it."""
        if kek_id is not None:
            if kek_id not in self._keys:
                raise SealBroken
            return self._keys[kek_id].unwrap(wrapped, kid)
        for key in reversed(self._keys.values()):
            try:
                return key.unwrap(wrapped, kid)
            except SealBroken:
                continue
        raise SealBroken


def _key_from_text(text: str) -> bytes:
    try:
        if len(text) == 2 * KEY_BYTES:
            return bytes.fromhex(text)
        secret = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
        if len(secret) == KEY_BYTES:
            return secret
    except (ValueError, binascii.Error):
        pass
    raise OperatorError(
        "AUDIT_KEK must be 32 random bytes, written as 64 hexadecimal digits or as base64. "
        "Make one with: python3 -c 'import secrets; print(secrets.token_hex(32))'"
    )
