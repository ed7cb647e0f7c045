"""Servers that tests start: found, started as children that cannot outlive the test run, waited for, stopped by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

# Debian keeps nginx and ip out of an ordinary user's PATH, and PostgreSQL's programs in one folder per major version.
_FURTHER_PLACES = ("/usr/sbin", "/sbin", "/usr/local/sbin")
_POLL_S = 0.02


class ServerMissing(Exception):
    """A program that tests need is not installed. Never a reason to skip."""


class ServerFailed(Exception):
    """A server that a test started did not come up or did not stop; holds its last words."""


def find_program(name: str, *, package: str, places: Sequence[str] = ()) -> str:
    """Path of the program `name`. Raises `ServerMissing` with the Debian package that brings it."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_FURTHER_PLACES, *places])
    found = shutil.which(name, path=path)
    if found is None:
        message = f"{name} is not installed (Debian and Ubuntu: apt-get install {package}); scripts/test installs it when run as root"
        raise ServerMissing(message)
    return found


def start_server(
    command: Sequence[str],
    *,
    output: IO[bytes],
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    end_signal: str = "TERM",
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own; it gets `end_signal` when the test process dies, however that dies.

    As `user` when that is given and we are root. It inherits `pass_fds` under their numbers.
    """
    setpriv = find_program("setpriv", package="util-linux")
    other = user if os.geteuid() == 0 else None
    return subprocess.Popen(
        [setpriv, f"--pdeathsig={end_signal}", "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=None if environment is None else dict(environment),
        cwd=directory,
        start_new_session=True,
        user=other,
        group=other,
        extra_groups=None if other is None else [],
        pass_fds=pass_fds,
    )


def wait_until(condition: Callable[[], bool], *, what: str, seconds: float = 30.0) -> None:
    """Return when `condition()` is true. Raises `ServerFailed` naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            message = f"{what}: not after {seconds:.0f} s"
            raise ServerFailed(message)
        time.sleep(_POLL_S)


def wait_until_up(
    server: subprocess.Popen[bytes], condition: Callable[[], bool], *, log: Path, seconds: float = 60.0
) -> None:
    """Return when `condition()` is true; raise `ServerFailed` with the end of `log` when the server ends first or time is up."""
    name = Path(str(server.args[3])).name if isinstance(server.args, list) else "server"

    def up_or_ended() -> bool:
        return server.poll() is not None or condition()

    try:
        wait_until(up_or_ended, what=f"{name} is up", seconds=seconds)
        if server.poll() is not None:
            message = f"{name} ended with status {server.returncode}"
            raise ServerFailed(message)  # noqa: TRY301 - both ways out get the log added below
    except ServerFailed as failure:
        last_words = log.read_text("utf-8", "replace")[-4000:] if log.exists() else ""
        failure.add_note(f"--- end of {log.name}\n{last_words}")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        raise


def stop_server(
    server: subprocess.Popen[bytes], end_signal: signal.Signals = signal.SIGTERM, *, seconds: float = 40.0
) -> int:
    """End it and return its status. What does not end in time is killed with all its children and raises `ServerFailed`."""
    if server.poll() is None:
        server.send_signal(end_signal)
        try:
            server.wait(seconds)
        except subprocess.TimeoutExpired as slow:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(seconds)
            message = f"{server.args!r} did not end within {seconds:.0f} s of {end_signal.name}"
            raise ServerFailed(message) from slow
    return server.returncode
