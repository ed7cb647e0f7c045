"""gunicorn as systemd starts it: a listening socket that somebody else holds, and a socket to say READY=1 to."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.programs import start_server, stop_server

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = "tests.support.worker_applications:application"
_PATIENCE_S = 30.0
# LISTEN_PID is the process's own, so it can only be set there; the passed sockets begin at 3.
_TAKE_OVER = """
import os, sys
for wanted, given in enumerate(sys.argv[1].split(","), start=3):
    os.dup2(int(given), wanted)
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), str(len(sys.argv[1].split(",")))
os.execv(sys.executable, [sys.executable, "-P", "-m", "gunicorn", *sys.argv[2:]])
"""


@dataclass(frozen=True, slots=True)
class Master:
    """One gunicorn with the product's own gunicorn.conf.py."""

    process: subprocess.Popen[bytes]
    notices: socket.socket

    def is_ready(self, *, within_s: float = _PATIENCE_S) -> bool:
        """Whether it has said READY=1 to systemd; waits for that."""
        self.notices.settimeout(within_s)
        try:
            return self.notices.recv(4096) == b"READY=1"
        except TimeoutError:
            return False

    def ended(self) -> int:
        return self.process.wait(_PATIENCE_S)


class ActivatedGunicorn:
    """Holds the listening sockets `web.sock` (and `private.sock`) in `folder`; masters come and go."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "web.sock"
        self.private_path = folder / "private.sock"
        self.output = folder / "output.log"
        self._holding = contextlib.ExitStack()
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self._web, self._private = (self._listener(path) for path in (self.path, self.private_path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holding.close()

    def start(self, *, application: str = APPLICATION, private: bool = False, **settings: str) -> Master:
        """One more master on the same socket; on the private one as well when asked."""
        passed = [self._web, *([self._private] if private else [])]
        notices = self._holding.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        address = str(self.folder / f"notify-{next(self._numbers)}")
        notices.bind(address)
        with self.output.open("ab") as output:
            process = start_server(
                [
                    sys.executable, "-c", _TAKE_OVER, ",".join(str(line.fileno()) for line in passed),
                    "-c", str(ROOT / "gunicorn.conf.py"), application,
                ],
                output=output,
                environment={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "PYTHONPATH": str(ROOT),
                    "INSTANCE_DIR": str(self.folder / "instance"),
                    "NOTIFY_SOCKET": address,
                    "SECRET_KEY": secrets.token_hex(32),
                    "ENCRYPTION_KEY": secrets.token_hex(32),
                    **settings,
                },
                directory=self.folder,
                pass_fds=[line.fileno() for line in passed],
            )  # fmt: skip
        self._holding.callback(stop_server, process)
        return Master(process, notices)

    def connect(self, path: Path | None = None) -> socket.socket:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.settimeout(_PATIENCE_S)
        line.connect(str(path or self.path))
        return line

    def log_text(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def _listener(self, path: Path) -> socket.socket:
        listener = self._holding.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        listener.listen(1024)
        return listener
