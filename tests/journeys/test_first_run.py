"""A stranger's first five minutes: `scripts/run` in an empty folder, an answer, a stop, a second start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
_INSTALL_PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would hand out, uncommitted work included."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return folder


class Run:
    """`scripts/run` as a terminal shows it: a process group of its own, and its lines as they come."""

    def __init__(self, clone: Path, port: int) -> None:
        environment = {name: os.environ[name] for name in os.environ if not name.startswith(("PYTEST", "FLASK"))}
        self.process = subprocess.Popen(
            [str(clone / "scripts" / "run"), "--port", str(port)],
            cwd=clone,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if "Stop with Ctrl-C" in line:
                self._ready.set()
        self._ready.set()

    def close(self) -> None:
        """The process has ended: read what is left and let go of its output."""
        self._reader.join(30)
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_until_ready(self) -> None:
        assert self._ready.wait(_INSTALL_PATIENCE_S), self.text
        assert self.process.poll() is None, self.text


@contextmanager
def running(clone: Path, port: int, end: signal.Signals) -> Iterator[Run]:
    run = Run(clone, port)
    try:
        run.wait_until_ready()
        yield run
        if end is signal.SIGINT:
            os.killpg(run.process.pid, end)  # Ctrl-C reaches the whole foreground group
        else:
            run.process.send_signal(end)
        assert run.process.wait(60) == 0, run.text
    finally:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait(10)
        run.close()


def _chat(port: int, key: str) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/chat",
        data=b'{"prompt": "Hello, who are you?"}',
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        told = json.load(answer)
    assert isinstance(told, dict)
    return told


def _pasted(run: Run) -> dict[str, object]:
    """Paste the printed request into a shell, as it stands."""
    start = next(number for number, line in enumerate(run.lines) if "curl -s" in line)
    pasted = "\n".join(run.lines[start : start + 2])
    answered = subprocess.run(["sh", "-c", pasted], capture_output=True, text=True, check=True, timeout=60)
    told = json.loads(answered.stdout)
    assert isinstance(told, dict)
    return told


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_stranger_gets_from_nothing_to_an_answer_twice(clone: Path) -> None:
    port = free_port()

    with running(clone, port, signal.SIGINT) as first:
        key = re.search(r"slp_live_\w+", first.text)
        assert key is not None, first.text
        told = _chat(port, key[0])
        assert told["status"] == "success"
        assert "demo" in str(told["response"]).lower()
        assert _pasted(first)["model_used"] == "demo"
        assert "OpenAI(base_url=" in first.text
        assert f"http://127.0.0.1:{port}/health" in first.text
        assert "owner key" in first.text
        assert "setup token" in first.text
    assert _nobody_listens(port)
    env = clone / ".env"
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    secrets_before = env.read_bytes()

    with running(clone, port, signal.SIGTERM) as second:
        assert _chat(port, key[0])["status"] == "success"
        assert "slp_live_" not in second.text
        assert "owner key" not in second.text
        busy = subprocess.run(
            [str(clone / "scripts" / "run"), "--port", str(port)],
            cwd=clone,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert busy.returncode == 1
        assert f"Port {port} on 127.0.0.1 is taken" in busy.stderr
        assert "Traceback" not in busy.stderr + busy.stdout
    assert _nobody_listens(port)
    assert env.read_bytes() == secrets_before
