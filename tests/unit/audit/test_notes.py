"""Checkpoints are C2SP signed notes, and there is one text for each."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secure_llm_proxy.audit.notes import (
    Checkpoint,
    NoteBroken,
    key_id,
    read_checkpoint,
    sign_checkpoint,
    verify_checkpoint,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
CHECKPOINT = Checkpoint("slp.default/host", 8123, bytes(range(32)), "2026-11-21T00:12:03.104233Z")


def test_the_published_example_of_a_signed_note_verifies_with_our_key_id() -> None:
    """The note, its key and its id are those of the format's reference documentation (PeterNeumann+c74f20a3)."""
    public = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )

    assert public[:1] == b"\x01"
    assert key_id("PeterNeumann", public[1:]).hex() == "c74f20a3"
    assert signature[:4].hex() == "c74f20a3"
    Ed25519PublicKey.from_public_bytes(public[1:]).verify(signature[4:], text)


def test_a_signature_is_that_of_rfc_8032() -> None:
    """Test 1 of RFC 8032 §7.1: the empty message."""
    key = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )

    assert key.public_key().public_bytes_raw().hex() == (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )


def test_a_checkpoint_comes_back_out_of_its_note() -> None:
    note = sign_checkpoint(CHECKPOINT, KEY)

    assert note.startswith(
        "slp.default/host\n8123\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n2026-11-21T00:12:03.104233Z\n\n— "
    )
    assert verify_checkpoint(note, PUBLIC) == CHECKPOINT
    assert read_checkpoint(note) == CHECKPOINT


def test_every_altered_character_is_found() -> None:
    note = sign_checkpoint(CHECKPOINT, KEY)

    for place, character in enumerate(note):
        for other in {"A", "0", "\n", " ", "é"} - {character}:
            with pytest.raises(NoteBroken):
                verify_checkpoint(note[:place] + other + note[place + 1 :], PUBLIC)


def test_every_bit_of_the_signature_counts() -> None:
    note = sign_checkpoint(CHECKPOINT, KEY)
    start = note.rindex(" ") + 1
    blob = base64.b64decode(note[start:-1])

    for bit in range(len(blob) * 8):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NoteBroken):
            verify_checkpoint(note[:start] + base64.b64encode(flipped).decode() + "\n", PUBLIC)


@pytest.mark.parametrize(
    "alter",
    [
        lambda note: note + note.splitlines(keepends=True)[-1],
        lambda note: note + "\n",
        lambda note: note[:-1],
        lambda note: note.replace("\n8123\n", "\n08123\n"),
        lambda note: note.replace("\n8123\n", "\n+8123\n"),
        lambda note: note.replace("\n8123\n", "\n-1\n"),
        lambda note: note.replace("Z\n\n", "Z\nmore\n\n"),
        lambda note: note.replace("— slp.default/host", "— slp.default/other"),
        lambda note: note.replace("\n", "\r\n"),
        lambda _note: "",
    ],
)
def test_another_text_for_a_checkpoint_is_refused(alter: object) -> None:
    assert callable(alter)

    with pytest.raises(NoteBroken):
        read_checkpoint(alter(sign_checkpoint(CHECKPOINT, KEY)))


def test_another_key_is_named_as_the_reason() -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()

    with pytest.raises(NoteBroken, match="another key"):
        verify_checkpoint(sign_checkpoint(CHECKPOINT, KEY), other)
