"""gunicorn with one of our worker classes and an application made for tests, as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.ports import free_port
from tests.support.programs import start_server, stop_server, wait_until_up

ROOT = Path(__file__).resolve().parents[2]
STOCK = "secure_llm_proxy.server.worker.Worker"
HOT = "secure_llm_proxy.server.hot_worker.HotWorker"
_PATIENCE_S = 30.0


class GunicornServer:
    """Serves `tests.support.worker_applications` with the options of gunicorn.conf.py that the workers look at."""

    def __init__(self, folder: Path, worker: str, *, on_unix_socket: bool = False, **options: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.log"
        self.path = folder / "web.sock"
        self.port = free_port()
        self.on_unix_socket = on_unix_socket
        send_timeout_s = options.pop("send_timeout_s", 60.0)
        settings: dict[str, object] = {
            "bind": f"unix:{self.path}" if on_unix_socket else f"127.0.0.1:{self.port}",
            "worker_class": worker,
            "http_parser": "python",
            "header_map": "refuse",
            "forwarder_headers": "",
            "forwarded_allow_ips": "",
            "limit_request_line": 8190,
            "limit_request_field_size": 8190,
            "limit_request_fields": 100,
            "keepalive": 75,
            "graceful_timeout": 10,
            "control_socket_disable": True,
            **options,
        }
        lines = [f"{name} = {value!r}" for name, value in settings.items()]
        lines += ["def post_fork(server, worker):", f"    worker.send_timeout_s = {send_timeout_s!r}"]
        self._configuration = folder / "gunicorn.py"
        self._configuration.write_text("\n".join(lines) + "\n")
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.output.open("ab") as output:
            self._server = start_server(
                [
                    sys.executable,
                    "-m",
                    "gunicorn",
                    "-c",
                    str(self._configuration),
                    "tests.support.worker_applications:application",
                ],
                output=output,
                environment={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        wait_until_up(self._server, self._answers, log=self.output)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            stop_server(self._server)

    @property
    def pid(self) -> int:
        """gunicorn's master."""
        assert self._server is not None
        return self._server.pid

    def worker_pids(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def has_ended(self) -> bool:
        return self._server is None or self._server.poll() is not None

    def log_text(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def connect(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX if self.on_unix_socket else socket.AF_INET)
        line.settimeout(_PATIENCE_S)
        try:
            line.connect(str(self.path) if self.on_unix_socket else ("127.0.0.1", self.port))
        except OSError:
            line.close()
            raise
        return line

    def exchange(self, *pieces: bytes) -> bytes:
        """Send `pieces`, nothing more, and return everything that comes until the server hangs up."""
        with self.connect() as line:
            # A server that has refused already may have reset the connection; what it said is there to be read all the same.
            with contextlib.suppress(OSError):
                for piece in pieces:
                    line.sendall(piece)
                line.shutdown(socket.SHUT_WR)
            return rest_of(line)

    def told(self) -> list[str]:
        """What the application noted since it was asked last."""
        _, _, body = self.exchange(get("/tell", b"Connection: close")).partition(b"\r\n\r\n")
        told = json.loads(body)
        assert isinstance(told, list)
        return told

    def _answers(self) -> bool:
        try:
            return self.exchange(get("/ignore", b"Connection: close")).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def get(target: str, *lines: bytes) -> bytes:
    return b"\r\n".join([b"GET %b HTTP/1.1" % target.encode(), b"Host: a.example", *lines, b"", b""])


def post(target: str, body: bytes, *lines: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"POST %b HTTP/1.1" % target.encode(), b"Host: a.example", length, *lines, b"", body])


def rest_of(line: socket.socket) -> bytes:
    """Everything until the other side hangs up, however it does."""
    received = bytearray()
    try:
        while piece := line.recv(1 << 20):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def answer_of(line: socket.socket) -> bytes:
    """One answer with a length from a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(line)
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    assert found is not None, head
    while len(body) < int(found[1]):
        body += _some(line)
    return head + b"\r\n\r\n" + body


def _some(line: socket.socket) -> bytes:
    piece = line.recv(1 << 16)
    assert piece, "the server hung up"
    return piece
