"""With a DSN, what we log as an error really arrives at the named collector, stripped; nothing goes anywhere else."""

from __future__ import annotations

import gzip
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest

CANARY = "canary-91d7"

PROGRAM = """
import logging, sys
from pydantic import SecretStr
from secure_llm_proxy.settings import TelemetrySettings
from secure_llm_proxy.telemetry import configure_logs, start_error_reports
settings = TelemetrySettings(sentry_dsn=SecretStr(sys.argv[1]))
configure_logs(settings)
assert start_error_reports(settings, environment="embedded")
log = logging.getLogger("secure_llm_proxy.gateway.closing")
def fail(prompt):
    raise ValueError("the prompt was " + prompt)
try:
    fail("canary-91d7")
except ValueError as error:
    log.error("unexpected error in the corridor", exc_info=error, extra={"request_id": "exc_1", "detail": "canary-91d7"})
log.warning("canary-91d7 is only a warning")
logging.getLogger("urllib3").error("canary-91d7 of a library")
import sentry_sdk
sentry_sdk.flush(10)
"""


class Collector(http.server.BaseHTTPRequestHandler):
    """Keeps what it is sent, as a Sentry server would."""

    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[str]:
    Collector.received.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://public@127.0.0.1:{server.server_port}/1"
        server.shutdown()
        thread.join(10)


def test_an_error_arrives_with_its_sentence_class_and_place_and_without_its_words(collector: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, collector], capture_output=True, check=True, timeout=60)

    [envelope] = Collector.received
    event = json.loads(envelope.splitlines()[-1])
    assert event["logentry"] == {"message": "unexpected error in the corridor"}
    [exception] = event["exception"]["values"]
    assert exception["type"] == "ValueError"
    assert exception["stacktrace"]["frames"][-1]["function"] == "fail"
    assert CANARY.encode() not in envelope
