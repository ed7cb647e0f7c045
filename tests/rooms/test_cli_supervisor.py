"""The supervisor with children of the tests' own: started, revived, reloaded, stopped in order."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import wait_until

if TYPE_CHECKING:
    from secure_llm_proxy.server.supervisor import ChildPlan

ROOT = Path(__file__).resolve().parents[2]
# Writes what happens to it into a diary; listens on a unix socket and answers everybody.
_CHILD = """
import os, signal, socket, sys
name, address, diary = sys.argv[1:]
def note(what):
    with open(diary, "a") as file:
        file.write(f"{name} {what} {os.getpid()}\\n")
def stop(*_):
    note("stops")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, lambda *_: note("reloads"))
if os.path.exists(address):
    os.unlink(address)
listener = socket.socket(socket.AF_UNIX)
listener.bind(address)
listener.listen()
note("starts with " + ",".join(sorted(n for n in os.environ if n.startswith("T_"))))
while True:
    peer, _ = listener.accept()
    with peer:
        try:
            if peer.recv(100):
                peer.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        except OSError:
            pass  # whoever asked has waited a second and gone
"""


@pytest.fixture
def folder(short_folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=short_folder))


class Supervised:
    def __init__(self, process: subprocess.Popen[str], diary: Path, output: Path) -> None:
        self.process = process
        self._diary = diary
        self._output = output

    def diary(self) -> list[tuple[str, str, int]]:
        lines = self._diary.read_text().splitlines() if self._diary.exists() else []
        return [(line.split()[0], " ".join(line.split()[1:-1]), int(line.split()[-1])) for line in lines]

    def said(self) -> str:
        return self._output.read_text()


@contextmanager
def supervised(
    folder: Path, children: list[ChildPlan], check: str = "", *, inherits_orphans: bool = False
) -> Iterator[Supervised]:
    reader, writer = os.pipe()
    plan = {
        "children": children,
        "check": [sys.executable, "-c", check],
        "ready": "All is up.",
        "log_format": "text",
        "log_level": "INFO",
    }
    with os.fdopen(writer, "w") as pipe:
        json.dump(plan, pipe)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "T_SHARED": "1", "T_SECRET": "2"}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "secure_llm_proxy.server.supervisor", str(reader)],
            env=environment, cwd=folder, stdout=output, stderr=output, text=True, pass_fds=(reader,),
            preexec_fn=_inherit_orphans if inherits_orphans else None,  # noqa: PLW1509  one thread only
        )  # fmt: skip
    os.close(reader)
    try:
        yield Supervised(process, folder / "diary", folder / "output")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def _inherit_orphans() -> None:
    """As process 1 of a container does (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1)


def child(folder: Path, name: str, *, without: list[str] | None = None, code: str = _CHILD) -> ChildPlan:
    address = str(folder / f"{name}.sock")
    return {
        "name": name,
        "command": [sys.executable, "-c", code, name, address, str(folder / "diary")],
        "added": {"T_ADDED": "3"},
        "without": without or [],
        "only": None,
        "stop_s": 10,
        "address": address,
        "answers": True,
    }


def test_children_are_stopped_in_the_opposite_order(folder: Path) -> None:
    children = [child(folder, "writer"), child(folder, "server", without=["T_SECRET"])]

    with supervised(folder, children) as run:
        wait_until(lambda: "All is up." in run.said(), what="it is ready")
        run.process.send_signal(signal.SIGTERM)
        status = run.process.wait(30)

    assert status == 0
    assert {what[:2] for what in run.diary()[:2]} == {
        ("writer", "starts with T_ADDED,T_SECRET,T_SHARED"),
        ("server", "starts with T_ADDED,T_SHARED"),
    }
    assert [what[:2] for what in run.diary()[2:]] == [("server", "stops"), ("writer", "stops")]
    assert run.said() == "All is up.\n"


def test_a_killed_child_comes_back(folder: Path) -> None:
    with supervised(folder, [child(folder, "writer"), child(folder, "server")]) as run:
        wait_until(lambda: "All is up." in run.said(), what="it is ready")
        (first,) = [pid for name, _, pid in run.diary() if name == "writer"]

        os.kill(first, signal.SIGKILL)

        wait_until(lambda: len([1 for name, _, _ in run.diary() if name == "writer"]) == 2, what="it came back")
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(30) == 0
    assert (
        "ERROR secure_llm_proxy.server.supervisor child ended, starting it again child=writer exit=-9 pause_s=0.0"
        in run.said()
    )


def test_orphans_that_fall_to_it_are_reaped(folder: Path) -> None:
    orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', '']); open(sys.argv[1], 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {orphan!r}, sys.argv[2] + '.left'])"

    with supervised(folder, [child(folder, "writer", code=parent + _CHILD)], inherits_orphans=True) as run:
        wait_until(lambda: "All is up." in run.said(), what="it is ready")
        assert (folder / "writer.sock.left").exists()
        children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
        (ours,) = [pid for name, _, pid in run.diary() if name == "writer"]

        wait_until(lambda: children.read_text().split() == [str(ours)], what="only the child is left")
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0


def test_a_child_that_can_not_start_is_named_and_the_others_are_stopped(folder: Path) -> None:
    children = [child(folder, "writer", code="raise SystemExit(2)"), child(folder, "server")]

    with supervised(folder, children) as run:
        status = run.process.wait(30)

    assert status == 1
    assert run.said() == "Error: The writer did not start: its settings are wrong.\n"
    started = [pid for _, _, pid in run.diary()]
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


def test_only_the_last_child_is_reloaded_and_only_after_the_check(folder: Path) -> None:
    (folder / "wrong").touch()
    check = f"import os, sys; sys.exit('Error: two\\nlines' if os.path.exists({str(folder / 'wrong')!r}) else 0)"

    with supervised(folder, [child(folder, "writer"), child(folder, "server")], check) as run:
        wait_until(lambda: "All is up." in run.said(), what="it is ready")
        run.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded" in run.said(), what="the refusal is told")
        refused = run.diary()
        (folder / "wrong").unlink()
        run.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(run.diary()) > len(refused), what="a child reloads")
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0

    assert "not reloaded, the settings are wrong why=two\\nlines\n" in run.said()
    assert [what[:2] for what in run.diary()[len(refused) :]] == [
        ("server", "reloads"),
        ("server", "stops"),
        ("writer", "stops"),
    ]
