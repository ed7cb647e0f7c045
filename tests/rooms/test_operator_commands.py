"""The commands that tests give, forked instead of started: they say, return and end as `python manage.py` does."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.operator_commands import MANAGE, run_command


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "INSTANCE_DIR": str(folder / "instance")}


def test_a_forked_command_says_what_a_started_one_says(tmp_path: Path) -> None:
    command = ("check-leaks", "--json", "-")
    started = subprocess.run(
        [sys.executable, str(MANAGE), *command],
        cwd=tmp_path, env=_environment(tmp_path), input="nichts, gar nichts: 零\n", capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip

    forked = run_command(
        command, environment=_environment(tmp_path), directory=tmp_path, stdin="nichts, gar nichts: 零\n", seconds=120
    )

    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)
    assert forked.stderr


def test_each_of_several_at_once_gets_its_own_folder_and_its_own_answer(tmp_path: Path) -> None:
    def look(number: int) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"there-{number}").touch()
        names = (f"there-{number}", f"missing-{number}")
        return run_command(("check-leaks", *names), environment=_environment(tmp_path), directory=folder, seconds=120)

    with ThreadPoolExecutor(4) as several:
        answers = list(several.map(look, range(8)))

    assert [answer.returncode for answer in answers] == [answers[0].returncode] * 8 != [0] * 8
    for number, answer in enumerate(answers):
        assert f"missing-{number}" in answer.stderr
        assert f"there-{number}" not in answer.stderr


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    waits = tmp_path / "waits"
    os.mkfifo(waits)  # whoever opens it to read waits for somebody who writes

    with pytest.raises(subprocess.TimeoutExpired):
        run_command(("check-leaks", str(waits)), environment=_environment(tmp_path), directory=tmp_path, seconds=0.5)

    assert (
        run_command(("--version",), environment=_environment(tmp_path), directory=tmp_path, seconds=120).returncode == 0
    )
