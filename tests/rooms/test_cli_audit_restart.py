"""A log whose signing key is lost goes on by its owner's word, and nobody else's."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_llm_proxy.audit.format import base64_text
from tests.rooms.test_cli_first_run import STRONG
from tests.support.operator_commands import run_command


def manage(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **settings}
    return run_command(arguments, environment=environment, directory=folder, seconds=60)


def _begun(folder: Path) -> str:
    """A log with one change on record; returns the owner's private key."""
    begun = manage(folder, "audit", "init", **STRONG)
    assert manage(folder, "db", "upgrade", **STRONG).returncode == 0
    assert _add_organisation(folder, "first") == 0, begun.stderr
    found = re.search(r"private half .*\n +(\S{44})\n", begun.stdout)
    assert found, begun.stdout
    return found[1]


def _add_organisation(folder: Path, name: str) -> int:
    return manage(folder, "organisations", "create", name, **STRONG).returncode


def test_a_lost_signing_key_is_replaced_by_the_owner_and_told_by_the_verifier(tmp_path: Path) -> None:
    owner = _begun(tmp_path)
    (tmp_path / "owner.key").write_text(owner + "\n")
    (tmp_path / "instance" / "audit-keys" / "epoch.key").unlink()

    refused = manage(tmp_path, "organisations", "create", "second", **STRONG)
    done = manage(tmp_path, "audit", "restart", "--owner-key", "owner.key", **STRONG)

    assert (refused.returncode, done.returncode) == (1, 0), done.stderr
    assert "audit restart --owner-key" in refused.stderr
    assert _add_organisation(tmp_path, "third") == 0
    verified = manage(tmp_path, "audit", "verify", **STRONG)
    assert verified.returncode == 0, verified.stdout
    assert "the owner put a new epoch key in force" in verified.stdout
    assert owner not in done.stdout + done.stderr


def test_nobody_restarts_a_log_that_is_well_or_not_theirs(tmp_path: Path) -> None:
    owner = _begun(tmp_path)
    other = base64_text(Ed25519PrivateKey.generate().private_bytes_raw())

    for text, message in (
        (owner, "the log's signing key is there"),
        (other, "owner key of another log"),
        ("nonsense", "no owner key"),
        ("", "no owner key"),
    ):
        (tmp_path / "owner.key").write_text(text)
        refused = manage(tmp_path, "audit", "restart", "--owner-key", "owner.key", **STRONG)

        assert refused.returncode == 1
        assert message in refused.stderr.lower().replace("\n", " "), refused.stderr
    assert manage(tmp_path, "audit", "verify", **STRONG).returncode == 0
