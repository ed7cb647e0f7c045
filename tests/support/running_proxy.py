"""The real product, started as an operator starts it: `manage.py` commands, then `manage.py serve` in a folder of its own."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.operator_commands import run_command
from tests.support.ports import free_port
from tests.support.programs import ServerFailed, start_server, stop_server, wait_until, wait_until_up

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
_COMMAND_PATIENCE_S = 120.0
_START_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class ChildProcess:
    """A process of the product, as /proc tells of it."""

    pid: int
    parent: int
    command_line: str


class RunningProxy:
    """`manage.py serve` with its children, bound to loopback or to a unix socket in `home`.

    Its environment is `settings` over generated secrets, a patient AUDIT_PATIENCE_S and nothing of the test process but PATH;
    its working folder is `home`, so that no `.env` of a developer is read. `front_url` is where clients reach it when something
    stands in front.
    """

    def __init__(
        self,
        home: Path,
        settings: Mapping[str, str],
        *,
        on_unix_socket: bool = False,
        front_url: str | None = None,
        authority: Path | None = None,
    ) -> None:
        self.home = home
        self.instance = home / "instance"
        self.output = home / "output.log"
        self.authority = authority
        self.socket = home / "web.sock"
        self._server: subprocess.Popen[bytes] | None = None
        self._prepared = False
        address: dict[str, str]
        if on_unix_socket:
            address = {"BIND": f"unix:{self.socket}"}
            self.base_url = front_url or ""
            self._probe_port = None
        else:
            self._probe_port = free_port()
            address = {"HOST": "127.0.0.1", "PORT": str(self._probe_port)}
            self.base_url = front_url or f"http://127.0.0.1:{self._probe_port}"
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "INSTANCE_DIR": str(self.instance),
            "SECRET_KEY": secrets.token_hex(32),
            "ENCRYPTION_KEY": secrets.token_hex(32),
            "AUDIT_KEK": secrets.token_hex(32),
            # A busy disk is no fault; by default a request is refused when the writer has not synced within 2 s.
            "AUDIT_PATIENCE_S": "20",
            **address,
            **settings,
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self.stop()

    def prepare(self) -> None:
        """Bring the database to its newest form and begin the audit log: what an operator does once."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.command("db", "upgrade")
        self.command("audit", "init")
        self._prepared = True

    def start(self) -> None:
        """Serve until `stop`; returns when `/health/live` answers 200. A second start finds the first one's data."""
        if not self._prepared:
            self.prepare()
        with self.output.open("ab") as output:
            self._server = start_server(
                [sys.executable, str(ROOT / "manage.py"), "serve"],
                output=output,
                environment=self.environment,
                directory=self.home,
            )
        wait_until_up(self._server, self._is_live, log=self.output, seconds=_START_PATIENCE_S)

    def stop(self, end_signal: signal.Signals = signal.SIGTERM) -> int:
        """Stop it as an operator does and return its exit status. Raises ServerFailed when a child of it outlives it."""
        server = self._running()
        children = self.children()
        try:
            status = stop_server(server, end_signal, seconds=60)
        finally:
            self._server = None
        try:
            wait_until(lambda: not any(_still_is(child) for child in children), what="every child has ended")
        except ServerFailed:
            left = [child for child in children if _still_is(child)]
            for child in left:
                os.kill(child.pid, signal.SIGKILL)
            message = f"left behind by manage.py serve: {left}"
            raise ServerFailed(message) from None
        return status

    @property
    def pid(self) -> int:
        return self._running().pid

    def children(self) -> tuple[ChildProcess, ...]:
        """Every living descendant of `manage.py serve`, parents first."""
        return tuple(_descendants(self._running().pid))

    def writer_pid(self) -> int:
        """The audit writer's pid. Raises ServerFailed when there is not exactly one."""
        return self._only(
            [child.pid for child in self.children() if child.command_line.endswith("-m secure_llm_proxy.audit")],
            "audit writer",
        )

    def master_pid(self) -> int:
        """gunicorn's master process."""
        mine = self._running().pid
        return self._only([child.pid for child in self._gunicorn() if child.parent == mine], "gunicorn master")

    def worker_pids(self) -> tuple[int, ...]:
        """gunicorn's worker processes."""
        master = self.master_pid()
        return tuple(child.pid for child in self._gunicorn() if child.parent == master)

    def kill_writer(self) -> int:
        """SIGKILL the audit writer and return the pid that it had."""
        pid = self.writer_pid()
        os.kill(pid, signal.SIGKILL)
        return pid

    def log_text(self) -> str:
        """Everything that it wrote for operators: standard output and error, and every file in its log folder."""
        files = [self.output, *sorted((self.instance / "log").glob("*"))]
        return "\n".join(path.read_text("utf-8", "replace") for path in files if path.is_file())

    def command(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `manage.py` with the product's own environment. Raises ServerFailed when it fails, unless `check` is off."""
        done = run_command(
            arguments, environment=self.environment, directory=self.home, stdin=stdin, seconds=_COMMAND_PATIENCE_S
        )
        if check and done.returncode != 0:
            message = (
                f"manage.py {' '.join(arguments)} ended with status {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
            raise ServerFailed(message)
        return done

    def create_user(self, username: str | None = None, *, role: str = "member") -> str:
        """Make a user with a password nobody knows and return the name."""
        name = username or f"user-{secrets.token_hex(4)}"
        arguments = ("--username", name, "--email", f"{name}@example.org", "--role", role, "--password-stdin")
        self.command("create-user", *arguments, stdin=f"{secrets.token_urlsafe(24)}\n")
        return name

    def create_api_key(self, username: str | None = None, *further: str) -> str:
        """Make an API key, for a user of its own unless one is named, and return it. `further` are more flags."""
        user = username or self.create_user()
        arguments = ("--user", user, "--name", f"key-{secrets.token_hex(4)}", "--json", *further)
        key = json.loads(self.command("create-api-key", *arguments).stdout)["key"]
        assert isinstance(key, str)
        return key

    @cached_property
    def shared_api_key(self) -> str:
        """One API key for whoever does not count requests, made when first asked for."""
        return self.create_api_key()

    def client_tls(self) -> ssl.SSLContext | None:
        """What a client must verify the front with; None where it speaks plain HTTP."""
        return None if self.authority is None else ssl.create_default_context(cafile=str(self.authority))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._server is None:
            message = "the proxy is not running"
            raise ServerFailed(message)
        return self._server

    def _gunicorn(self) -> list[ChildProcess]:
        return [child for child in self.children() if "gunicorn" in child.command_line]

    def _only(self, pids: list[int], what: str) -> int:
        if len(pids) != 1:
            message = f"expected one {what}, found {pids} among {self.children()}"
            raise ServerFailed(message)
        return pids[0]

    def _is_live(self) -> bool:
        connection = (
            UnixConnection(self.socket)
            if self._probe_port is None
            else http.client.HTTPConnection("127.0.0.1", self._probe_port, timeout=5)
        )
        try:
            connection.request("GET", "/health/live")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket, as nginx speaks to the workers."""

    def __init__(self, path: Path, *, timeout: float = 5.0) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _descendants(pid: int) -> Iterator[ChildProcess]:
    for child in _children_of(pid):
        yield child
        yield from _descendants(child.pid)


def _children_of(pid: int) -> list[ChildProcess]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        child = _look_at(int(entry.name))
        if child is not None and child.parent == pid:
            found.append(child)
    return found


def _look_at(pid: int) -> ChildProcess | None:
    """The process as it is now; None when it is gone or a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent = status.rpartition(")")[2].split()[:2]
    return None if state == "Z" else ChildProcess(pid=pid, parent=int(parent), command_line=command_line)


def _still_is(child: ChildProcess) -> bool:
    """True while that very process lives: same pid and same command line."""
    now = _look_at(child.pid)
    return now is not None and now.command_line == child.command_line
