"""scripts/install: what it is told on its command line is judged before it looks at the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_INSTALL = Path(__file__).resolve().parents[2] / "scripts" / "install"


def install(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As on a dry run, wherever that ends."""
    command = ["sh", str(_INSTALL), *map(str, arguments), "--dry-run"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "name", ["one.example two.example", "one.example\ntwo.example", "one.example;id", "192.0.2.1", "-x"]
)
def test_a_domain_that_is_no_host_name_is_refused(name: str) -> None:
    told = install("--self-signed", "--domain", name)

    assert told.returncode == 2
    assert f"--domain {name}" in told.stderr


def test_a_certificates_path_may_hold_blanks_and_wildcards(tmp_path: Path) -> None:
    folder = tmp_path / "my * files"
    folder.mkdir()
    for name in ("certificate.pem", "key.pem"):
        (folder / name).touch()

    told = install("--domain", "llm.example", "--tls-cert", folder / "certificate.pem", "--tls-key", folder / "key.pem")
    gone = install("--domain", "llm.example", "--tls-cert", folder / "none.pem", "--tls-key", folder / "key.pem")

    assert "cannot be read" not in told.stderr
    assert gone.returncode == 1
    assert f"{folder}/none.pem cannot be read" in gone.stderr
