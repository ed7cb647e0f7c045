"""`manage.py` commands, each in a process of its own, without the second that Python takes to import the product.

The processes are forked from one that has imported it. What runs there is manage.py itself, with the environment, folder and
standard streams that it is given: only what Python reads while it starts (PYTHONPATH, LD_PRELOAD, LANG, …) must be as there,
else it is started anew. That `python manage.py` starts at all is shown by `serve` and by the tests of the first run.

Why: imports were 1.0 of the 1.2 CPU seconds of a command, and commands half of all CPU seconds of the journeys (2026-11-22).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import re
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.programs import ServerFailed

ROOT = Path(__file__).resolve().parents[2]
MANAGE = ROOT / "manage.py"
_ORDER_BYTES_MAX = 150_000
_STREAMS = 3
# What Python and the C library read while a process starts; `_ORIGIN` is what the forked ones were started with.
_READ_AT_START = re.compile(r"PYTHON.|LD_|LANG|LC_|TZ|MALLOC_|GLIBC_")
_ORIGIN = {"LANG": "C.UTF-8"}


def run_command(
    arguments: Sequence[str], *, environment: Mapping[str, str], directory: Path, stdin: str = "", seconds: float
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` of manage.py with these returns, whatever its status. Raises TimeoutExpired after `seconds`."""
    if {name: value for name, value in environment.items() if _READ_AT_START.match(name)} != _ORIGIN:
        return subprocess.run(
            [sys.executable, str(MANAGE), *arguments],
            env=environment, cwd=directory, input=stdin, capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip
    order = json.dumps([list(arguments), dict(environment), str(directory)]).encode()
    assert len(order) <= _ORDER_BYTES_MAX, len(order)
    with _memory_file(stdin) as read, _memory_file() as output, _memory_file() as errors:
        status = _origin().run(order, (read, output, errors), seconds)
        if status is None:
            raise subprocess.TimeoutExpired([str(MANAGE), *arguments], seconds)
        return subprocess.CompletedProcess(
            [str(MANAGE), *arguments], status, stdout=_text_of(output), stderr=_text_of(errors)
        )


def _memory_file(text: str = "") -> IO[bytes]:
    file = os.fdopen(os.memfd_create("stream"), "w+b")
    file.write(text.encode())
    file.seek(0)
    return file


def _text_of(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


class _Origin:
    """The process that has imported the product, as the tests speak to it: one message per command, with its streams and the
    socket that its status is wanted on. It ends with the test process.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the test process
        with theirs:
            # No signal at its parent's death, as servers get: that would be the end of the thread which started it.
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.support.operator_commands", str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, cwd=ROOT, start_new_session=True,
                env={"PATH": os.environ.get("PATH", os.defpath), **_ORIGIN}, pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        atexit.register(self._end)

    def run(self, order: bytes, streams: tuple[IO[bytes], ...], seconds: float) -> int | None:
        """The exit status, negative for a signal's; None when it had to be killed after `seconds`."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with mine:
            with theirs:
                descriptors = [*(stream.fileno() for stream in streams), theirs.fileno()]
                socket.send_fds(self._control, [order], descriptors)
            mine.settimeout(seconds)
            try:
                told = mine.recv(16)
            except TimeoutError:
                return None
        if not told:
            last_words = os.pread(self._log.fileno(), 10_000, 0).decode("utf-8", "replace")
            message = f"the process that commands are forked from has ended:\n{last_words}"
            raise ServerFailed(message)
        return int(told)

    def _end(self) -> None:
        self._control.close()
        self._server.wait(60)
        self._log.close()


_starting = threading.Lock()
_running: list[_Origin] = []


def _origin() -> _Origin:
    with _starting:
        if not _running:
            _running.append(_Origin())
        return _running[0]


@dataclass(frozen=True, slots=True)
class _Order:
    """A command as its own, just forked process gets it."""

    arguments: list[str]
    environment: dict[str, str]
    directory: str

    def become(self) -> None:
        """Be the process that runs it; returns or raises as manage.py does."""
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.directory)
        sys.argv = [str(MANAGE), *self.arguments]
        runpy.run_path(str(MANAGE), run_name="__main__")


@dataclass(frozen=True, slots=True)
class _Child:
    """A command that runs: its pid, a descriptor that tells of its end, and the socket that its status is wanted on."""

    pid: int
    process: int
    answer: socket.socket

    def let_go(self) -> None:
        os.close(self.process)
        self.answer.close()


class _Children:
    """Forks a process per order until the control socket closes; then every child is killed and it is over."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: set[_Child] = set()
        self._events = selectors.DefaultSelector()
        self._events.register(control, selectors.EVENT_READ)

    def next_order(self) -> _Order | None:
        """Returns in each child with its order; in the parent only at the end, with None."""
        while True:
            # One event at a time: what it leads to may make the others untrue, and those that are true come again.
            event = self._events.select()[0][0]
            if event.data is not None:
                self._settle(event.data)
                continue
            message, descriptors, _, _ = socket.recv_fds(self._control, _ORDER_BYTES_MAX, _STREAMS + 1)
            if not message:
                for child in self._children:
                    os.kill(child.pid, signal.SIGKILL)
                return None
            order = self._fork(message, descriptors)
            if order is not None:
                return order

    def _fork(self, message: bytes, descriptors: list[int]) -> _Order | None:
        *streams, answer = descriptors
        pid = os.fork()
        if pid == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for child in self._children:
                child.let_go()
            self._events.close()
            self._control.close()
        for stream in streams:
            os.close(stream)
        if pid == 0:
            os.close(answer)
            return _Order(*json.loads(message))
        child = _Child(pid, os.pidfd_open(pid), socket.socket(fileno=answer))
        self._children.add(child)
        self._events.register(child.process, selectors.EVENT_READ, child)
        self._events.register(child.answer, selectors.EVENT_READ, child)
        return None

    def _settle(self, child: _Child) -> None:
        """Tell the status of one that has ended. Where nobody waits for it any more, it ends now."""
        self._children.remove(child)
        self._events.unregister(child.process)
        self._events.unregister(child.answer)
        ended, status = os.waitpid(child.pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(OSError):  # whoever waited has gone in this very moment
                child.answer.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        else:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        child.let_go()


def _import_everything() -> None:
    from secure_llm_proxy.cli.program import COMMANDS  # noqa: PLC0415 - in this process only

    for module in {module for module, _, _ in COMMANDS.values()}:
        importlib.import_module(f"secure_llm_proxy.cli.{module}")
    gc.collect()
    gc.freeze()


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    _import_everything()
    order = _Children(control).next_order()
    if order is not None:
        order.become()


if __name__ == "__main__":
    main()
