"""How a command asks the server that runs on its host."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from secure_llm_proxy.cli.status import fetch_health
from secure_llm_proxy.settings.loading import load_settings

_SECRETS = {"SECRET_KEY": "kT9#vW2$zQ7&mN4!xR8^pL3*" * 2, "ENCRYPTION_KEY": "yB6%jH1@gF5~dS0?cV8|aZ4;" * 2}


class _Server(HTTPServer):
    asked_for: str | None = None


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self.server.asked_for = self.headers["Host"]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as listening:
        thread = Thread(target=listening.handle_request)
        thread.start()
        yield listening
        thread.join(20)


@pytest.mark.parametrize(
    ("names", "asked_for"),
    [("llm.example.org,127.0.0.1", "llm.example.org"), ("*.example.org", "localhost.example.org")],
)
def test_the_server_is_asked_by_a_name_that_it_answers_to(
    server: _Server, names: str, asked_for: str, tmp_path: Path
) -> None:
    told = {"HOST": "127.0.0.1", "PORT": str(server.server_port), "SERVER_NAMES": names}
    settings = load_settings({**_SECRETS, **told}, env_file=tmp_path / "none")

    status, answer = fetch_health(settings, "/security/status")

    assert (status, answer, server.asked_for) == (200, {}, asked_for)
