"""The suite's own way of running in several processes: what happens in any of them is told, and nothing is run twice."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _run(folder: Path, *processes: str, **files: str) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text, "utf-8")
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "tests.support.side_by_side"]
    return subprocess.run(
        [sys.executable, *command, *processes, "-W", "error", "-c", "/dev/null", "--rootdir", str(folder), str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_what_fails_in_any_process_at_any_time_fails_the_run_and_is_told(tmp_path: Path) -> None:
    told = _run(
        tmp_path,
        "--processes", "3",
        good="def test_good():\n    pass\n",
        wrong="def test_wrong():\n    print('said before')\n    assert 1 == 2\n",
        torn="import pytest\n\n@pytest.fixture(scope='session')\ndef server():\n    yield\n    raise OSError('not stopped')\n\n"
        "def test_torn(server):\n    pass\n",
        open="def test_open():\n    circle = [open(__file__)]\n    circle.append(circle)\n",
    )  # fmt: skip

    assert told.returncode == 1, told.stdout
    assert "1 == 2" in told.stdout
    assert "said before" in told.stdout
    assert "not stopped" in told.stdout
    assert "unclosed file" in told.stdout


def test_a_process_that_dies_fails_the_run_and_its_test_is_named(tmp_path: Path) -> None:
    told = _run(
        tmp_path,
        "--processes", "2",
        deadly="import os, signal\n\ndef test_deadly():\n    os.kill(os.getpid(), signal.SIGKILL)\n",
        good="def test_good():\n    pass\n",
    )  # fmt: skip

    assert told.returncode == 1, told.stdout
    assert re.search(r"The process that ran \S*test_deadly\.py::test_deadly died", told.stdout)


def test_each_test_runs_once_in_one_of_the_processes_which_share_no_port(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    body = (
        "import pytest\n"
        "from tests.support.ports import free_port\n"
        "@pytest.mark.parametrize('number', range(20))\n"
        "def test_notes(number, tmp_path):\n"
        "    print('never told')\n"
        f"    with open({str(noted)!r}, 'a') as file:\n"
        "        file.write(f'{__name__} {number} {free_port()}\\n')\n"
    )

    told = _run(tmp_path, "--processes", "3", **{f"part{number}": body for number in range(6)})

    assert told.returncode == 0, told.stdout
    assert "120 passed" in told.stdout
    assert "never told" not in told.stdout
    lines = [line.split() for line in noted.read_text("utf-8").splitlines()]
    assert len({(module, number) for module, number, _ in lines}) == len(lines) == 120
    assert len({port for _, _, port in lines}) == 120
