"""A writer for as long as a command needs one: the service's own, or one of the command's."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from secure_llm_proxy.audit.handover import settings_line
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings

_START_S = 15.0
_STOP_S = 15.0
_LOOK_S = 0.02
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


@contextlib.contextmanager
def running_writer(settings: AuditSettings) -> Iterator[None]:
    """Inside the block a writer listens on `settings.socket`.

    If none does yet, a child of ours does, with exactly these settings (the key-encryption key, which commands do not
    hold, it reads from the environment itself); it is stopped at the end, and ends by itself should we die. Raises
    `OperatorError` with the writer's own words when it cannot start.
    """
    if listens(settings):
        yield
        return
    with transient_writer(settings):
        yield


@contextlib.contextmanager
def transient_writer(settings: AuditSettings, stderr: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A writer process of ours, listening; stopped at the end of the block. Its log lines go to `stderr`, else away."""
    with contextlib.ExitStack() as stack:
        if stderr is None:
            stderr = stack.enter_context(tempfile.TemporaryFile())
        child = subprocess.Popen(
            [sys.executable, "-m", "secure_llm_proxy.audit", "--parent"],
            stdin=subprocess.PIPE,
            stderr=stderr,
            # The command may have been started from anywhere.
            env={**os.environ, "PYTHONPATH": os.pathsep.join([_PACKAGE_ROOT, *_search_path()])},
            # Ctrl-C is for the command; it stops the writer once its own records are safe.
            start_new_session=True,
        )
        stack.callback(_stop, child)
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                # Kept open: its end tells the child that we are gone.
                child.stdin.write(settings_line(settings))
                child.stdin.flush()
        _await(child, settings, stderr)
        yield child


def listens(settings: AuditSettings) -> bool:
    """Whether a writer accepts connections on the socket now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(settings.socket))
        except OSError:
            return False
        return True


def _await(child: subprocess.Popen[bytes], settings: AuditSettings, stderr: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while not listens(settings):
        if child.poll() is not None:
            raise OperatorError(_last_words(stderr) or f"The audit writer ended with exit code {child.returncode}.")
        if time.monotonic() > deadline:
            raise OperatorError(f"The audit writer does not listen on {settings.socket} after {_START_S:g} s.")
        time.sleep(_LOOK_S)


def _last_words(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    said = [line for line in stderr.read().decode(errors="replace").splitlines() if line and not line.startswith("{")]
    return " ".join(said)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
    child.terminate()
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(_STOP_S)


def _search_path() -> list[str]:
    inherited = os.environ.get("PYTHONPATH", "")
    return inherited.split(os.pathsep) if inherited else []
