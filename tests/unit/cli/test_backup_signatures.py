"""Who made a set: what a signature shows of a manifest, and whom a restore trusts."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_llm_proxy.cli.host_backup.sets import Manifest, Store, StoredFile
from secure_llm_proxy.cli.host_backup.signing import (
    SIGNING_KEY,
    Origin,
    Trust,
    drawn_signing_key,
    named,
    public_text,
    signer_of,
    signers_in,
    signing_key_of,
)
from secure_llm_proxy.foundation.errors import OperatorError

KEY = Ed25519PrivateKey.generate()
STAMPS = ("20261121T120000Z", "20261121T130000Z")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two sets that one host has signed."""
    store = Store(tmp_path / "Sicherungen (März) 備份")
    store.prepare()
    for stamp in STAMPS:
        store.write(made(stamp), KEY)
    return store


def made(stamp: str, log: str = "main/host") -> Manifest:
    def stored(path: str) -> StoredFile:
        return StoredFile(path, 1, "0" * 64)

    return Manifest(
        stamp, "0.1.0", "sqlite", log, "host", "A" * 43 + "=", ("age1x",),
        stored(f"database/{stamp}.sqlite.age"), stored(f"segments/{stamp}.tar.age"), stored(f"keys/{stamp}.tar.age"), (),
    )  # fmt: skip


def manifest_of(store: Store, stamp: str) -> Path:
    return store.directory / "sets" / f"{stamp}.json"


def signature_of(store: Store, stamp: str) -> Path:
    return store.directory / "sets" / f"{stamp}.sig"


def test_a_set_tells_who_signed_it_wherever_it_lies(store: Store) -> None:
    found = [store.find(stamp) for stamp in STAMPS]

    assert [signed.origin for signed in found] == [Origin(public_text(KEY))] * 2
    assert store.find("latest").manifest == made(STAMPS[1])


def test_a_manifest_that_was_changed_by_a_byte_is_signed_by_nobody(store: Store) -> None:
    whole = manifest_of(store, STAMPS[0]).read_bytes()

    for altered in (whole.replace(b'"size": 1', b'"size": 2', 1), whole + b"\n", whole.replace(b"0.1.0", b"0.1.1")):
        manifest_of(store, STAMPS[0]).write_bytes(altered)

        assert store.find(STAMPS[0]).origin.signer is None


def test_the_signature_of_another_set_is_none_of_this_one(store: Store) -> None:
    signature_of(store, STAMPS[1]).write_bytes(signature_of(store, STAMPS[0]).read_bytes())

    found = store.find(STAMPS[1])

    assert found.origin.signer is None
    assert "its signature is wrong" in found.origin.trouble


def test_a_set_under_the_name_of_another_is_refused_with_its_own_signature(store: Store) -> None:
    for path in (manifest_of, signature_of):
        path(store, STAMPS[1]).write_bytes(path(store, STAMPS[0]).read_bytes())

    with pytest.raises(OperatorError, match="the manifest of another set"):
        store.find(STAMPS[1])


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b"{" * 5000,
        orjson.dumps({"v": 2, "signer": public_text(KEY), "signature": ""}),
        orjson.dumps({"v": 1, "signer": 1, "signature": ""}),
        orjson.dumps({"v": 1, "signer": "A" * 43 + "=", "signature": "AA=="}),
        orjson.dumps({"v": 1, "signer": public_text(KEY), "signature": ["a"]}),
        orjson.dumps({"v": 1, "signer": public_text(KEY), "signature": "ä"}),
    ],
)  # fmt: skip
def test_what_is_no_signature_shows_nothing(content: bytes, store: Store) -> None:
    signature_of(store, STAMPS[0]).write_bytes(content)

    found = store.find(STAMPS[0])

    assert found.origin.signer is None
    assert found.origin.trouble


def test_a_stranger_can_sign_for_himself_and_for_nobody_else(store: Store) -> None:
    stranger = Ed25519PrivateKey.generate()
    store.write(made(STAMPS[1], log="forged"), stranger)
    trust = Trust((public_text(KEY),))

    as_himself = trust.judge(store.find(STAMPS[1]).origin)
    told = orjson.loads(signature_of(store, STAMPS[1]).read_bytes())
    signature_of(store, STAMPS[1]).write_bytes(orjson.dumps({**told, "signer": public_text(KEY)}))
    as_us = trust.judge(store.find(STAMPS[1]).origin)

    assert as_himself == (False, f"by {public_text(stranger)}, and you trust {public_text(KEY)}")
    assert as_us[0] is False


def test_nobody_is_trusted_unless_named_and_everybody_only_when_said() -> None:
    signed, unsigned = Origin(public_text(KEY)), Origin(None, "not signed")

    assert Trust((public_text(KEY),)).judge(signed)[0]
    assert not Trust(()).judge(signed)[0]
    assert not Trust((public_text(KEY),)).judge(unsigned)[0]
    assert [Trust((), unsigned=True).judge(origin)[0] for origin in (signed, unsigned)] == [True, True]
    assert "(--unsigned)" in Trust((), unsigned=True).judge(unsigned)[1]


def test_a_signature_goes_with_its_set_and_so_does_one_without_any(store: Store) -> None:
    orphan = signature_of(store, "20261120T120000Z")
    orphan.write_bytes(b"of a run that was killed before its manifest")

    gone = store.clear_out(1, store.find("latest").manifest.made_at.replace(year=2027))

    assert gone == [STAMPS[0]]
    assert sorted(path.name for path in (store.directory / "sets").iterdir()) == [
        f"{STAMPS[1]}.json",
        f"{STAMPS[1]}.sig",
    ]


def test_the_identitys_file_names_the_signers_among_other_comments(tmp_path: Path) -> None:
    other = public_text(Ed25519PrivateKey.generate())
    identity = tmp_path / "identity.txt"
    identity.write_text(f"# created: 2026\r\n{named([public_text(KEY), other])}\r\nAGE-SECRET-KEY-1\r\n# Schlüssel\r\n")

    assert signers_in(identity) == (public_text(KEY), other)


@pytest.mark.parametrize(
    "text", ["", "A" * 44, "age1xyz", public_text(KEY)[:-1], f"{public_text(KEY)} x", "AGE-SECRET-KEY-1"]
)
def test_what_is_no_signer_is_told_as_such(text: str, tmp_path: Path) -> None:
    (tmp_path / "identity.txt").write_text(f"# backup signer: {text}\n")

    with pytest.raises(OperatorError, match="is no signer of backups"):
        signers_in(tmp_path / "identity.txt")
    with pytest.raises(OperatorError, match="is no signer of backups"):
        signer_of(text)


def test_a_drawn_key_is_the_same_ever_after_and_nobody_elses_to_read(tmp_path: Path) -> None:
    path = tmp_path / SIGNING_KEY

    first, second = drawn_signing_key(path), drawn_signing_key(path)

    assert public_text(first) == public_text(second)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"no key", b"A" * 40, b"\xff" * 44, b"A" * 44 + b"AAAA"])
def test_a_key_that_is_none_is_told_with_its_place(content: bytes) -> None:
    with pytest.raises(OperatorError, match="backup-signing-key is no key that signs backups"):
        signing_key_of(content, SIGNING_KEY)
