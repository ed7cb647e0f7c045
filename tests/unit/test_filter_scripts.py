"""What scripts/egress and scripts/firewall refuse before they look at the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / command[0]), *command[1:]], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("egress",), "say what to do"),
        (("egress", "open"), "no command open"),
        (("egress", "show", "--dry-run"), "show does not know --dry-run"),
        (("egress", "refresh", "--places", "x"), "refresh does not know --places"),
        (("egress", "apply", "--places"), "--places wants a file"),
        (("firewall", "open"), "there is no open"),
        (("firewall", "--from"), "--from wants a value"),
        (("firewall", "--from", "10.0.0.0/8,anywhere"), "not anywhere"),
        (("firewall", "--from", "10.0.0.0/8;reboot"), "not 10.0.0.0/8;reboot"),
        (("firewall", "--from", "10.0.0.0/33"), "not 10.0.0.0/33"),
        (("firewall", "--from", "fd00::/8,fd00::/129"), "not fd00::/129"),
        (("firewall", "--from", "::/0"), "leave --from away"),
        (("firewall", "--others", "reject"), "keep or drop"),
        (("firewall", "--backend", "pf"), "not pf"),
        (("firewall", "--ssh-port", "70000"), "not 70000"),
        (("firewall", "--ssh-port", "22/tcp"), "not 22/tcp"),
    ],
)
def test_what_was_not_meant_is_a_mistake_of_usage_told_by_its_word(command: tuple[str, ...], words: str) -> None:
    ended = run(*command)

    assert ended.returncode == 2
    assert words in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("script", ["egress", "firewall"])
def test_help_is_told_to_anybody(script: str) -> None:
    ended = run(script, "--help")

    assert ended.returncode == 0
    assert ended.stdout.startswith(f"usage: scripts/{script} ")
