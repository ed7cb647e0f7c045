"""scripts/restore on an installed host, up to where it would change anything, and what it shares with scripts/backup."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def restore(folder: Path, releases: Path) -> subprocess.CompletedProcess[str]:
    """As root of a host whose places lie in `folder`."""
    (folder / "settings").mkdir()
    (folder / "settings" / "env").touch()
    (folder / "locks").mkdir()
    (folder / "identity").touch()
    with (folder / "locks" / "secure-llm-host-change.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        return subprocess.run(
            [
                *([] if os.geteuid() == 0 else ["unshare", "--map-root-user"]),
                ROOT / "scripts" / "restore", "--identity", folder / "identity", "--no-start",
            ],
            env={
                "PATH": os.environ["PATH"], "PYTHON": sys.executable, "SLP_RELEASES": str(releases),
                "SLP_SETTINGS": str(folder / "settings"), "SLP_LOCKS": str(folder / "locks"),
                "SLP_BACKUPS": str(folder / "none"), "SLP_CODE": str(folder / "code"),
            },
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


def test_a_restore_does_not_begin_while_the_host_is_being_changed(tmp_path: Path) -> None:
    done = restore(tmp_path, ROOT.parent)

    assert (done.returncode, "secure-llm-host-change.lock" in done.stderr) == (1, True), done.stderr


def test_a_clone_on_a_host_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    done = restore(tmp_path, tmp_path / "releases")

    assert (done.returncode, "secure-llm-restore" in done.stderr) == (1, True), done.stderr
    assert "host-change" not in done.stderr


def in_library(program: str, *, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    sourced = f". {ROOT}/scripts/lib/host.sh; . {ROOT}/scripts/lib/backups.sh; {program}"
    return subprocess.run(
        ["/bin/sh", "-euc", sourced], env={"PATH": path, **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_timers_that_an_earlier_restore_left_stopped_are_started_again(tmp_path: Path) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        "#!/bin/sh\n"
        'case "$*" in *list-unit-files*--state=enabled*timer*path*) ;; *) exit 0 ;; esac\n'
        "printf '%s\\n' 'secure-llm-backup.timer enabled enabled' 'secure-llm-egress-places.path enabled enabled'\n"
    )
    systemctl.chmod(0o755)

    found = in_library("enabled_triggers", path=f"{tmp_path}:{os.environ['PATH']}")

    assert found.stdout.split() == ["secure-llm-backup.timer", "secure-llm-egress-places.path"]


@pytest.fixture
def trial() -> str:
    return f"trial-{secrets.token_hex(4)}"


def test_what_a_killed_run_leaves_of_secrets_goes_with_the_next_run(tmp_path: Path, trial: str) -> None:
    program = 'script_name=$TRIAL; make_workshop; echo secret >"$workshop/secret"; echo "$workshop"; '
    where = {"path": os.environ["PATH"], "TMPDIR": str(tmp_path), "TRIAL": trial}
    killed = in_library(f"{program} kill -KILL $$", **where)
    left = Path(killed.stdout.strip())

    try:
        assert (left / "secret").exists()
        after = in_library(f'{program} ls -d "${{workshop%%.*}}".*', **where)
        there = after.stdout.split()
        assert (there, after.returncode) == ([there[0]] * 2, 0)
        assert not left.exists()
        assert not Path(there[0]).exists()
    finally:
        shutil.rmtree(left, ignore_errors=True)
