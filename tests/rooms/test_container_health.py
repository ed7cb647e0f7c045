"""The image's health check, which asks without curl: what it says of a part that works, one that does not, and none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.support.ports import free_port

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "docker" / "healthcheck.py"


@pytest.fixture
def folder(short_folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=short_folder))


def health(*arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *arguments],
        env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.strip() or done.stderr.strip()


@contextmanager
def answering(status: int, body: bytes, path: Path | None = None) -> Iterator[int]:
    """A server that answers /health/ready on a port of loopback, or on the unix socket `path`; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ready = self.path == "/health/ready"
            self.send_response(status if ready else 404)
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "-"

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=path is None)
    if path is not None:
        server.socket.close()
        server.socket = socket.socket(socket.AF_UNIX)
        server.socket.bind(str(path))
        server.socket.listen()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port if path is None else 0
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()


def test_a_service_that_is_ready_is_healthy_on_a_port_and_on_a_socket(folder: Path) -> None:
    with answering(200, b"{}") as port, answering(200, b"{}", folder / "web.sock"):
        on_port = health(HOST="0.0.0.0", PORT=str(port))  # noqa: S104  what the image listens on
        on_socket = health("web", BIND=f"unix:{folder}/web.sock")

    assert (on_port, on_socket) == ((0, ""), (0, ""))


def test_what_a_service_lacks_is_told() -> None:
    body = b'{"status": "not_ready", "dependencies": {"database": "ok", "audit": "unreachable"}}'

    with answering(503, body) as port:
        told = health(PORT=str(port))

    assert told == (1, "unhealthy: /health/ready says 503: audit is unreachable")


def test_an_answer_that_is_no_json_is_unhealthy_all_the_same() -> None:
    with answering(502, b"<html>") as port:
        assert health(PORT=str(port)) == (1, "unhealthy: /health/ready says 502")


def test_nobody_there_is_unhealthy(folder: Path) -> None:
    port = free_port()

    assert health(HOST="127.0.0.1", PORT=str(port))[0] == 1
    assert health(BIND=f"unix:{folder}/none.sock")[1].startswith(f"unhealthy: nobody answers at {folder}/none.sock")
    assert health("audit-writer", AUDIT_SOCKET=f"{folder}/none.sock")[0] == 1
    assert health("audit-writer") == (1, "unhealthy: AUDIT_SOCKET is not set")
    assert health("nginx") == (1, "usage: health [web|audit-writer]")


def test_an_audit_writer_that_listens_is_healthy(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/write.sock")
        listener.listen()

        told = health("audit-writer", AUDIT_SOCKET=f"{folder}/write.sock")

    assert told == (0, "")
