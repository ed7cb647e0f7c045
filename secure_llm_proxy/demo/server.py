"""HTTP/1.1 with kept-alive connections around the demo's answers. Bodies, time and connections are bounded."""

from __future__ import annotations

import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, TypeAlias

from secure_llm_proxy.demo.answers import (
    MODEL,
    Question,
    Refusal,
    chunks,
    completion,
    encode,
    model_entry,
    model_list,
    read_question,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BODY_BYTES_MAX = 16 * 2**20
CONNECTIONS_MAX = 512
CHUNK_PAUSE_S = 0.02
# longer than the proxy keeps an idle connection, so that it is the proxy who hangs up
IDLE_TIMEOUT_S = 75.0

_Request: TypeAlias = "socket.socket | tuple[bytes, socket.socket]"

_LENGTH = re.compile(r"[0-9]{1,10}")


class DemoServer(ThreadingHTTPServer):
    """Listens when the constructor returns (`OSError` when it can't); `serve_forever` answers until `shutdown`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, host: str, port: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        """`127.0.0.1:5001`, with the port that the system chose for port 0."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def server_bind(self) -> None:
        # not HTTPServer's, which looks the host's name up
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: _Request, client_address: tuple[str, int]) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: _Request, client_address: tuple[str, int]) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: _Request, client_address: tuple[str, int]) -> None:
        """A client that hangs up is nothing to report, and a question must not reach a log."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "secure-llm-proxy-demo"
    sys_version = ""
    timeout = IDLE_TIMEOUT_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            self._guarded(lambda: self._send(200, encode(model_list())))
        elif path == f"/v1/models/{MODEL}":
            self._guarded(lambda: self._send(200, encode(model_entry())))
        elif path == "/v1/chat/completions":
            self._guarded(self._refuse_method)
        else:
            self._guarded(self._refuse_path)

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/chat/completions":
            self._guarded(self._chat)
        elif path.startswith("/v1/models"):
            self._guarded(self._refuse_method)
        else:
            self._guarded(self._refuse_path)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the base class's name
        """Silent: the proxy logs every exchange already."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses (a broken request line, an unknown method), in OpenAI's shape."""
        del explain
        self.close_connection = True
        self._send(code, Refusal(code, message or "The request was refused.").body())

    def _guarded(self, answer: Callable[[], None]) -> None:
        try:
            answer()
        except Refusal as refusal:
            if refusal.hang_up or self.command != "POST":
                self.close_connection = True
            self._send(refusal.status, refusal.body())

    def _chat(self) -> None:
        question = read_question(self._read_body())
        if question.stream:
            self._stream(question)
        else:
            self._send(200, encode(completion(question)))

    def _refuse_path(self) -> None:
        raise Refusal(404, "The demo upstream has no such URL.", hang_up=True)

    def _refuse_method(self) -> None:
        raise Refusal(405, "This URL does not take that method.", hang_up=True)

    def _read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not _LENGTH.fullmatch(length):
            raise Refusal(411, "The request needs a Content-Length.", hang_up=True)
        size_bytes = int(length)
        if size_bytes > BODY_BYTES_MAX:
            raise Refusal(413, f"The request body is larger than {BODY_BYTES_MAX} bytes.", hang_up=True)
        body = self.rfile.read(size_bytes)
        if len(body) < size_bytes:
            raise ConnectionError("the client hung up within its body")
        return body

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, question: Question) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks(question):
            self._send_chunk(b"data: " + encode(chunk) + b"\n\n")
            time.sleep(CHUNK_PAUSE_S)
        self._send_chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
