"""SIGHUP to gunicorn's master: whatever is wrong by then, those who serve go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.activated_gunicorn import ActivatedGunicorn, Master
from tests.support.gunicorn_server import get, rest_of
from tests.support.programs import wait_until

# Fails while a file of that name is there.
_APPLICATION = """
import os, pathlib
if pathlib.Path("broken").exists():
    raise RuntimeError("broken application")
from tests.support.worker_applications import application
pathlib.Path(f"loaded-{os.getpid()}").touch()
"""
# Nobody connects to either.
_FOR_TWO = {
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "DATABASE_URL": "postgresql://nobody:nothing@127.0.0.1:1/none",
}


@pytest.fixture
def activated(short_folder: Path, tmp_path: Path) -> Iterator[ActivatedGunicorn]:
    with ActivatedGunicorn(short_folder / tmp_path.name) as holder:
        (holder.folder / "trial.py").write_text(_APPLICATION)
        yield holder


def test_a_reload_takes_leave_of_nobody_while_the_new_workers_can_not_start(activated: ActivatedGunicorn) -> None:
    master = activated.start(application="trial:application", private=False, WORKERS="2", **_FOR_TWO)
    assert master.is_ready()
    wait_until(lambda: len(list(activated.folder.glob("loaded-*"))) == 2, what="both workers serve")
    served_by = _workers(master)
    (activated.folder / "broken").touch()

    os.kill(master.process.pid, signal.SIGHUP)
    wait_until(lambda: "a new worker did not start" in activated.log_text(), what="the reload is given up")

    assert "broken application" in activated.log_text()
    assert _workers(master) == served_by
    assert _answers(activated)

    os.kill(min(served_by), signal.SIGKILL)
    wait_until(lambda: "The others serve on." in activated.log_text(), what="nobody comes in its place")
    assert _answers(activated)

    (activated.folder / "broken").unlink()
    wait_until(lambda: len(_workers(master)) == 2, what="somebody does")
    os.kill(master.process.pid, signal.SIGHUP)
    wait_until(lambda: not _workers(master) & served_by, what="all of the old ones have left")
    assert _answers(activated)


def test_a_reload_refuses_wrong_settings_and_leaves_to_the_next_start_what_it_can_not_take(
    activated: ActivatedGunicorn,
) -> None:
    file = activated.folder / ".env"
    master = activated.start(application="trial:application")
    assert master.is_ready()
    served_by = _workers(master)
    file.write_text("LOG_LEVLE=DEBUG\n")

    os.kill(master.process.pid, signal.SIGHUP)
    wait_until(lambda: "did you mean LOG_LEVEL?" in activated.log_text(), what="the mistake is told")

    assert _workers(master) == served_by
    assert _answers(activated)

    file.write_text("BIND=unix:/nowhere/web.sock\nAUDIT_SOCKET=/nowhere/write.sock\n")
    os.kill(master.process.pid, signal.SIGHUP)
    wait_until(lambda: not _workers(master) & served_by, what="a new worker serves alone")

    assert "not taken by a reload, counts from the next start: AUDIT_SOCKET, BIND" in activated.log_text()
    assert _answers(activated)


def _workers(master: Master) -> set[int]:
    children = Path(f"/proc/{master.process.pid}/task/{master.process.pid}/children")
    return {int(pid) for pid in children.read_text().split()}


def _answers(activated: ActivatedGunicorn) -> bool:
    with activated.connect() as line:
        line.sendall(get("/ignore", b"Connection: close"))
        return rest_of(line).endswith(b"ignored")
