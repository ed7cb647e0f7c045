"""A private Redis on loopback that tests may stop, kill, pause and fill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from redis import Redis
from redis.exceptions import RedisError

from tests.support.ports import free_port
from tests.support.programs import find_program, start_server, stop_server, wait_until_up


class PrivateRedis:
    """A Redis that remembers nothing on disk, on a free port of 127.0.0.1 that it keeps over restarts; gone at the end.

    `maxmemory` in bytes, with `noeviction` as in production. A missing redis-server fails the test, naming its package.
    """

    def __init__(self, *, password: str | None = None, maxmemory: int | None = None) -> None:
        self._program = find_program("redis-server", package="redis-server")
        self._password = password
        self._maxmemory = maxmemory
        self._server: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.directory = Path()

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="slp-redis-"))
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._server is not None:
                self._server.send_signal(signal.SIGCONT)
                self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def url(self) -> str:
        """The URL with the right password."""
        return self.url_with(self._password)

    def url_with(self, password: str | None) -> str:
        """The URL as somebody who believes in `password` would write it."""
        credentials = "" if password is None else f":{quote(password, safe='')}@"
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        """A connection of the test's own, which waits up to 10 s; close it."""
        return Redis.from_url(self.url, socket_timeout=10.0, decode_responses=True)

    def start(self) -> None:
        """Return when it answers, empty."""
        configuration = self.directory / "redis.conf"
        configuration.touch(mode=0o600)
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {self.directory}",
            'save ""',
            "appendonly no",
            "daemonize no",
            "maxmemory-policy noeviction",
        ]
        if self._password is not None:
            # a double-quoted string of redis.conf has the escapes of JSON
            lines.append(f"requirepass {json.dumps(self._password)}")
        if self._maxmemory is not None:
            lines.append(f"maxmemory {self._maxmemory}")
        configuration.write_text("\n".join(lines) + "\n", "utf-8")
        log = self.directory / "log"
        with log.open("ab") as output:
            self._server = start_server([self._program, str(configuration)], output=output)
        wait_until_up(self._server, self._answers, log=log)

    def stop(self) -> None:
        """End it properly and return when it has ended; what it knew is gone."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it hang: connections stay, nothing is answered."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def _end(self, end_signal: signal.Signals) -> None:
        server, self._server = self._server, None
        if server is not None:
            stop_server(server, end_signal)

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False
