"""`manage.py serve`: one process that starts the others, restarts what dies, and stops all of it in order.

The audit writer starts first and stops last, so that no request ever runs without it and no record is left behind.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import Settings, SettingsError

log = logging.getLogger(__name__)

_READY_S = 60.0
_TICK_S = 0.1
_RESTART_S = (0.0, 0.5, 1.0, 1.5)
_SETTLED_S = 10.0
_HOPELESS = {2: "its settings are wrong", 3: "its workers can't start", 4: "the application can't be loaded"}
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One supervised process. `stop_s` is how long it may take to end by itself."""

    name: str
    command: list[str]
    environment: dict[str, str]
    stop_s: float
    is_up: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    failures: int = 0
    restart_at_s: float = field(default=0.0)

    def start(self) -> None:
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603  the command is ours, from start to end
            self.command,
            env=self.environment,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  one thread only
        )

    def exit_code(self) -> int | None:
        return self.process.poll() if self.process is not None else None

    def stop(self) -> None:
        """SIGTERM, patience, SIGKILL."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(self.stop_s)
        except subprocess.TimeoutExpired:
            log.warning("did not stop in time, killed", extra={"child": self.name})
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)


class Supervisor:
    """Runs until SIGTERM or SIGINT; then stops the children in reverse order and returns 0.

    `check` reads the settings anew and raises `SettingsError` or `OperatorError` when no server could run with them.
    """

    def __init__(self, settings: Settings, *, project: Path, check: Callable[[], object]) -> None:
        self._settings = settings
        self._check = check
        self._project = project
        self._stopping = False
        self._demo_port = _free_port() if settings.upstream.api_url is None else None
        self._children = self._plan()

    def run(self, on_ready: Callable[[], None]) -> int:
        """Start all, call `on_ready` once the server answers, keep all alive. Returns the exit code."""
        lock = _lock_instance(self._settings.server.instance_directory)
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._ask_to_stop)
        signal.signal(signal.SIGHUP, self._reload)
        try:
            for child in self._children:
                child.start()
                self._wait_until_up(child)
            if not self._stopping:
                on_ready()
            while not self._stopping:
                self._revive()
                time.sleep(_TICK_S)
        finally:
            for child in reversed(self._children):
                child.stop()
            lock.close()
        return 0

    def _plan(self) -> list[Child]:
        settings, python = self._settings, sys.executable
        everything = {**os.environ, "PYTHONPATH": str(self._project)}
        # Only the writer may hold the key to what was recorded.
        web = {name: value for name, value in everything.items() if name != "AUDIT_KEK"}
        children = [
            Child(
                name="audit writer",
                command=[python, "-m", "secure_llm_proxy.audit"],
                environment=everything,
                stop_s=15,
                is_up=lambda: _listens(settings.audit.socket),
            )
        ]
        if self._demo_port is not None:
            port = self._demo_port
            web["DEMO_UPSTREAM_URL"] = f"http://127.0.0.1:{port}/v1"
            children.append(
                Child(
                    name="demo upstream",
                    command=[python, "-m", "secure_llm_proxy.demo", "--port", str(port)],
                    environment={
                        name: everything[name] for name in ("PATH", "LANG", "HOME", "PYTHONPATH") if name in everything
                    },
                    stop_s=5,
                    is_up=lambda: _listens(("127.0.0.1", port)),
                )
            )
        children.append(
            Child(
                name="server",
                command=[python, "-m", "gunicorn", "-c", str(self._project / "gunicorn.conf.py"), "app:app"],
                environment=web,
                stop_s=settings.server.graceful_timeout_s + 10,
                is_up=lambda: _answers(_server_address(settings)),
            )
        )
        return children

    def _wait_until_up(self, child: Child) -> None:
        deadline = time.monotonic() + _READY_S
        while not self._stopping and not child.is_up():
            code = child.exit_code()
            if code is not None:
                raise OperatorError(
                    f"The {child.name} did not start: {_HOPELESS.get(code, f'it ended with code {code}')}."
                )
            if time.monotonic() > deadline:
                raise OperatorError(f"The {child.name} did not start within {_READY_S:.0f} s; see its log.")
            time.sleep(0.02)

    def _revive(self) -> None:
        now = time.monotonic()
        for child in self._children:
            code = child.exit_code()
            if code is None:
                if child.failures and now - child.started_s > _SETTLED_S:
                    child.failures = 0
                continue
            if child.restart_at_s <= child.started_s:
                pause = _RESTART_S[min(child.failures, len(_RESTART_S) - 1)]
                child.failures += 1
                child.restart_at_s = now + pause
                log.error("child ended, starting it again", extra={"child": child.name, "exit": code, "pause_s": pause})
            if now >= child.restart_at_s:
                child.start()

    def _ask_to_stop(self, _signal: int, _frame: object) -> None:
        self._stopping = True

    def _reload(self, _signal: int, _frame: object) -> None:
        """SIGHUP: gunicorn loads settings and application anew and lets running requests end.

        Not with wrong settings: gunicorn would end at once, and take every running request along.
        """
        try:
            self._check()
        except (SettingsError, OperatorError) as error:
            log.error("not reloaded, the settings are wrong", extra={"why": str(error)})  # noqa: TRY400  it says it all
            return
        server = self._children[-1].process
        if server is not None and server.poll() is None:
            server.send_signal(signal.SIGHUP)


def _lock_instance(directory: Path) -> IO[bytes]:
    """Hold the data directory for one `manage.py serve`; the kernel lets go of it however we end."""
    directory.joinpath("run").mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = directory.joinpath("run", "serve.lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise OperatorError(
            f"Another `manage.py serve` works on {directory}; stop it, or give this one its own INSTANCE_DIR."
        ) from None
    return lock


def require_free_address(settings: Settings) -> None:
    """Raise `OperatorError` when another process listens already where the server would."""
    address = _server_address(settings)
    if isinstance(address, Path):
        if _listens(address):
            raise OperatorError(f"Another process listens on {address}; stop it or set BIND.")
        return
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            raise OperatorError(
                f"Port {address[1]} needs privileges; choose one above 1023 with --port or PORT."
            ) from None
        except OSError as error:
            raise OperatorError(
                f"Port {address[1]} on {address[0]} is taken ({error.strerror}); choose another with --port or PORT."
            ) from None


def _server_address(settings: Settings) -> tuple[str, int] | Path:
    if settings.server.bind is not None:
        return Path(settings.server.bind.removeprefix("unix:"))
    return settings.server.host, settings.server.port


def _listens(address: tuple[str, int] | Path) -> bool:
    return _heard(address, b"") is not None


def _answers(address: tuple[str, int] | Path) -> bool:
    """gunicorn's master listens before it knows whether any worker can start: only a worker's answer tells."""
    heard = _heard(address, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return heard is not None and heard.startswith(b"HTTP/1.1 200 ")


def _heard(address: tuple[str, int] | Path, question: bytes) -> bytes | None:
    """The first bytes of the answer; None when nobody listens or answers within a second."""
    if isinstance(address, Path):
        family, target = socket.AF_UNIX, str(address)
    else:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])  # noqa: S104  a name, not a bind
        family, target = (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, address[1])  # type: ignore[assignment]
    with socket.socket(family) as probe:
        probe.settimeout(1)
        try:
            probe.connect(target)
            probe.sendall(question)
            return probe.recv(64) if question else b""
        except OSError:
            return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """A killed supervisor must not leave a server without audit writer behind (prctl(2), Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
