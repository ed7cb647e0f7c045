"""Files that a command is to read and that its user may not open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ASKED = """
import os, sys
import click
from secure_llm_proxy.cli.handed_file import HandedFile, HandedPath
kind = {"path": HandedPath(), "file": HandedFile()}[sys.argv[1]]
try:  # What is imported late is read while this user may read it.
    kind.convert("/no-such-file", None, None)
except click.BadParameter:
    pass
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    print("taken", kind.convert(sys.argv[2], None, None))
except click.BadParameter as refused:
    print(refused.message)
"""


def asked(kind: str, path: str) -> str:
    command = [sys.executable, "-c", _ASKED, kind, path]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("kind", ["path", "file"])
def test_a_file_of_roots_is_told_to_be_handed_over_on_standard_input(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "shut" / "anchors.jsonl"
    file.parent.mkdir()
    file.touch(mode=0o600)
    file.parent.chmod(0)

    told = asked(kind, str(file))

    file.parent.chmod(0o700)
    assert f"{file} may not be opened by the user " in told
    assert f"< {file}" in told


def test_a_file_that_is_not_there_is_not_there_and_standard_input_is_taken() -> None:
    missing, standard_input = asked("path", "/no-such-file"), asked("path", "-")

    assert "does not exist" in missing
    assert standard_input == "taken -\n"
