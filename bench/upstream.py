"""The mock provider, running: OpenAI's chat completions, plain and as streams of 100 chunks, 20 a second."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.processes import Cores, running_on
from bench.tools import Tools
from tests.support.ports import free_port, is_open
from tests.support.programs import start_server, stop_server, wait_until_up

ROOT = Path(__file__).resolve().parents[1]
CHUNKS_PER_STREAM = 100
_INTERVAL_MS = 50
# The first chunk of a stream goes out at once, so N chunks take N - 1 intervals.
CHUNKS_PER_S = CHUNKS_PER_STREAM * 1000 / (_INTERVAL_MS * (CHUNKS_PER_STREAM - 1))


class MockUpstream:
    """Listens on a free port of 127.0.0.1, on the load's core."""

    def __init__(self, tools: Tools, cores: Cores, folder: Path) -> None:
        self.port = free_port()
        self.gives_streams = tools.upstream is not None
        self._cores = cores
        self._log = folder / "upstream.log"
        self._command = (
            [str(tools.upstream), str(self.port), str(CHUNKS_PER_STREAM), str(_INTERVAL_MS)]
            if tools.upstream is not None
            else [sys.executable, "-m", "bench.python_upstream", str(self.port)]
        )
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as output, running_on(self._cores.load):
            self._server = start_server(self._command, output=output, directory=ROOT)
        wait_until_up(self._server, lambda: is_open(self.port), log=self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            stop_server(self._server)
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def asked(self) -> int:
        """Requests answered or begun so far, streams included."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/count")
            told = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return int(told["plain"]) + int(told["streams"])
