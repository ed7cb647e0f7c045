from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_llm_proxy.audit.epoch import EpochKeys
from secure_llm_proxy.audit.format import base64_text, strict_base64
from secure_llm_proxy.audit.genesis import (
    GenesisBroken,
    find_host_id,
    initialise,
    read_genesis,
)
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import audit_settings, write_log


def test_a_new_log_gets_an_owner_key_that_is_stored_nowhere(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, deployment="blue")

    genesis = initialise(settings)

    assert genesis.owner_private_key is not None
    owner = Ed25519PrivateKey.from_private_bytes(strict_base64(genesis.owner_private_key))
    assert base64_text(owner.public_key().public_bytes_raw()) == genesis.owner_public_key
    assert genesis.log == "slp.blue/host"
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(stored) == 3
    for path in stored:
        assert genesis.owner_private_key.encode() not in path.read_bytes()
        assert strict_base64(genesis.owner_private_key) not in path.read_bytes()
    assert genesis.owner_private_key not in repr(genesis)


def test_the_epoch_key_is_stored_wrapped_and_private(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)

    genesis = initialise(settings)

    path = settings.keys_directory / "epoch.key"
    stored = EpochKeys.of(settings).check()
    assert stored is not None
    epoch = stored.private
    assert path.stat().st_mode & 0o777 == 0o600
    assert settings.keys_directory.stat().st_mode & 0o777 == 0o700
    assert genesis.directory.stat().st_mode & 0o777 == 0o750
    assert base64_text(epoch.public_key().public_bytes_raw()) == genesis.epoch_public_key
    assert epoch.private_bytes_raw() not in path.read_bytes()
    assert base64_text(epoch.private_bytes_raw()).encode() not in path.read_bytes()


def test_a_second_initialisation_changes_nothing_and_gives_no_secret(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    first = initialise(settings)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    again, without_key = initialise(settings), initialise(audit_settings(tmp_path, kek=None))

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert again.owner_private_key is None
    assert without_key.owner_public_key == again.owner_public_key == first.owner_public_key


def test_no_log_is_begun_over_the_signing_key_of_one_that_is_away(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    initialise(settings)
    key = (settings.keys_directory / "epoch.key").read_bytes()
    settings.directory.rename(tmp_path / "not mounted")

    with pytest.raises(OperatorError, match="is the log's disk mounted"):
        initialise(settings)

    assert (settings.keys_directory / "epoch.key").read_bytes() == key
    assert not list(settings.directory.rglob("genesis.json"))


def test_no_single_bit_of_genesis_is_free(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path))
    path = genesis.directory / "genesis.json"
    path.chmod(0o600)
    original = path.read_bytes()

    for position in range(len(original) * 8):
        flipped = bytearray(original)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(GenesisBroken):
            read_genesis(genesis.directory)

    path.write_bytes(original)
    assert read_genesis(genesis.directory).owner_public_key == genesis.owner_public_key


def test_another_kek_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    initialise(audit_settings(tmp_path))

    with pytest.raises(OperatorError, match="another AUDIT_KEK"):
        initialise(audit_settings(tmp_path, kek="00" * 32))


def test_without_a_kek_an_encrypted_log_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="AUDIT_KEK is missing"):
        initialise(audit_settings(tmp_path, kek=None))

    assert not list(tmp_path.rglob("epoch.key"))


def test_a_log_without_encryption_needs_no_kek(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, kek=None, encryption_enabled=False)

    initialise(settings)

    assert EpochKeys.of(settings).check()


def test_a_lost_half_of_the_root_of_trust_is_never_remade(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    genesis = write_log(tmp_path)

    (settings.keys_directory / "epoch.key").rename(tmp_path / "kept")
    with pytest.raises(OperatorError, match="epoch key is lost"):
        initialise(settings)

    (tmp_path / "kept").rename(settings.keys_directory / "epoch.key")
    (genesis.directory / "genesis.json").unlink()
    with pytest.raises(OperatorError, match="segments beside it"):
        initialise(settings)


def test_a_crash_before_genesis_was_written_leaves_a_second_try(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    first = initialise(settings)
    (first.directory / "genesis.json").unlink()
    key = settings.keys_directory / "epoch.key"
    key.rename(key.with_name("epoch.key.next"))

    second = initialise(settings)

    assert second.owner_private_key is not None
    assert EpochKeys.of(settings).check()


def test_a_crash_behind_genesis_leaves_a_log_that_the_second_try_finishes(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    first = initialise(settings)
    key = settings.keys_directory / "epoch.key"
    key.rename(key.with_name("epoch.key.next"))

    initialise(settings)

    stored = EpochKeys.of(settings).check()
    assert stored is not None
    assert base64_text(stored.public) == first.epoch_public_key


def test_the_host_id_is_the_configured_one_else_the_existing_else_the_hosts_name(tmp_path: Path) -> None:
    unset = audit_settings(tmp_path, host_id="")

    assert find_host_id(audit_settings(tmp_path, host_id="configured")) == "configured"
    assert find_host_id(unset).lower() in socket.gethostname().lower()

    initialise(audit_settings(tmp_path, host_id="older"))
    (unset.directory / "lost+found").mkdir()
    assert find_host_id(unset) == "older"

    initialise(audit_settings(tmp_path, host_id="another", keys_directory=tmp_path / "keys of another"))
    with pytest.raises(OperatorError, match="another, older"):
        find_host_id(unset)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a b", "x" * 65])
def test_a_name_that_is_no_directory_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OperatorError, match="AUDIT_HOST_ID"):
        initialise(audit_settings(tmp_path, host_id=name))
    with pytest.raises(OperatorError, match="AUDIT_DEPLOYMENT"):
        initialise(audit_settings(tmp_path, deployment=name))


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")

    with pytest.raises(OperatorError, match="could not be set up"):
        initialise(audit_settings(tmp_path))
