from __future__ import annotations

import base64
import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.audit.seal import DataKey, KeyEncryptionKey, SealBroken, _derive
from secure_llm_proxy.foundation.errors import OperatorError

# c2sp.org/XAES-256-GCM, test vectors: one key for either value of the most significant bit of L.
NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"
PLAINTEXT = b"XAES-256-GCM"
VECTORS = [
    (b"\x01" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
    (b"\x03" * 32, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
]


@pytest.mark.parametrize(("key", "header", "sealed"), VECTORS)
def test_sealing_agrees_with_the_official_vectors(key: bytes, header: bytes, sealed: str) -> None:
    data_key = DataKey(key)

    assert data_key.seal(NONCE, PLAINTEXT, header).hex() == sealed
    assert data_key.open(NONCE, bytes.fromhex(sealed), header) == PLAINTEXT


@given(st.binary(max_size=300), st.binary(max_size=100), st.binary(min_size=24, max_size=24))
def test_what_was_sealed_opens_again(body: bytes, header: bytes, nonce: bytes) -> None:
    key = DataKey(b"\x07" * 32)

    assert key.open(nonce, key.seal(nonce, body, header), header) == body


def test_another_header_nonce_key_or_ciphertext_does_not_open() -> None:
    key, nonce = DataKey.generate(), os.urandom(24)
    sealed = key.seal(nonce, b"secret", b"header")

    for opener, with_nonce, ciphertext, header in (
        (DataKey.generate(), nonce, sealed, b"header"),
        (key, os.urandom(24), sealed, b"header"),
        (key, nonce, bytes([sealed[0] ^ 1]) + sealed[1:], b"header"),
        (key, nonce, sealed, b"headeR"),
        (key, nonce, b"short", b"header"),
    ):
        with pytest.raises(SealBroken):
            opener.open(with_nonce, ciphertext, header)


def test_a_key_commits_to_itself() -> None:
    key = DataKey(b"\x01" * 32)

    assert key.commitment == DataKey(b"\x01" * 32).commitment
    assert key.commitment != DataKey(b"\x02" * 32).commitment
    assert len(key.commitment) == 32


def test_a_wrapped_key_opens_only_with_its_kek_and_its_id() -> None:
    kek, other = KeyEncryptionKey(os.urandom(32)), KeyEncryptionKey(os.urandom(32))
    wrapped = kek.wrap(b"k" * 32, "sys.1")

    assert kek.unwrap(wrapped, "sys.1") == b"k" * 32
    for opener, kid, content in (
        (other, "sys.1", wrapped),
        (kek, "sys.2", wrapped),
        (kek, "sys.1", wrapped[:-1]),
        (kek, "sys.1", b""),
    ):
        with pytest.raises(SealBroken):
            opener.unwrap(content, kid)


def test_a_kek_is_read_as_hexadecimal_and_as_base64() -> None:
    secret = bytes(range(224, 256))
    texts = [
        secret.hex(),
        secret.hex().upper() + "\n",
        base64.b64encode(secret).decode(),
        base64.urlsafe_b64encode(secret).decode(),
    ]

    assert {KeyEncryptionKey.from_text(text).id for text in texts} == {KeyEncryptionKey(secret).id}


@pytest.mark.parametrize("text", ["", "geheim", "00" * 31, "zz" * 32, base64.b64encode(b"x" * 33).decode(), "ä" * 64])
def test_a_bad_kek_is_refused_with_the_way_to_make_a_good_one(text: str) -> None:
    with pytest.raises(OperatorError, match=r"AUDIT_KEK.*token_hex") as refusal:
        KeyEncryptionKey.from_text(text)

    assert not text or text not in str(refusal.value)


def test_ten_thousand_random_records_agree_with_the_official_accumulated_vector() -> None:
    """c2sp.org/XAES-256-GCM: keys, nonces, texts and headers drawn from SHAKE-128 of nothing, and a digest over what is sealed."""
    drawn, position = hashlib.shake_128(b"").digest(10_000 * (32 + 24 + 2 + 2 * 255)), 0
    sealed = hashlib.shake_128()

    def draw(size: int) -> bytes:
        nonlocal position
        position += size
        return drawn[position - size : position]

    for _ in range(10_000):
        key, nonce = draw(32), draw(24)
        plaintext = draw(draw(1)[0])
        header = draw(draw(1)[0])
        sealed.update(DataKey(key).seal(nonce, plaintext, header))

    assert sealed.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"


@pytest.mark.parametrize(
    ("key", "label", "derived"),
    [
        # RFC 5869, appendix A.3: SHA-256, no salt, no info; its first 32 bytes.
        (b"\x0b" * 22, b"", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"),
    ],
)
def test_keys_are_derived_as_in_rfc_5869(key: bytes, label: bytes, derived: str) -> None:
    assert _derive(key, label).hex() == derived
