"""Keys derived from the operator's secrets: one per purpose, the same at every start."""

from __future__ import annotations

from secure_llm_proxy.foundation.secret_values import derive_key


def test_secret_and_label_together_give_the_key() -> None:
    keys = {derive_key(secret, label) for secret in ("s" * 32, "t" * 32) for label in ("slp/person", "slp/key-pepper")}

    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)


def test_a_key_stays_the_same_over_releases() -> None:
    # HKDF-SHA256, RFC 5869, no salt; computed once. Another value would make every stored API key worthless.
    assert derive_key("s" * 32, "slp/key-pepper").hex() == (_hkdf(b"s" * 32, b"slp/key-pepper"))


def _hkdf(secret: bytes, info: bytes) -> str:
    import hashlib  # noqa: PLC0415
    import hmac  # noqa: PLC0415

    extracted = hmac.digest(b"\0" * 32, secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256).hex()
