"""The mock providers, running: OpenAI's chat completions, plain and as streams of 100 chunks, 20 a second; over TLS too."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.processes import Cores, running_on
from bench.tools import Tools
from tests.support.certificates import Certificate, make_certificate
from tests.support.ports import free_port, is_open
from tests.support.programs import find_program, start_server, stop_server, wait_until_up

ROOT = Path(__file__).resolve().parents[1]
CHUNKS_PER_STREAM = 100
_INTERVAL_MS = 50
# The first chunk of a stream goes out at once, so N chunks take N - 1 intervals.
CHUNKS_PER_S = CHUNKS_PER_STREAM * 1000 / (_INTERVAL_MS * (CHUNKS_PER_STREAM - 1))


@dataclass(frozen=True, slots=True)
class Provider:
    """Where targets find their provider. `authority` signed its certificate; None: it speaks plain HTTP."""

    port: int
    authority: Path | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/v1" if self.authority else f"http://127.0.0.1:{self.port}/v1"


class _OneProcess(ABC):
    """A server on the load's core, from `with` to the end of its block."""

    def __init__(self, cores: Cores, folder: Path, name: str) -> None:
        self.port = free_port()
        self._cores = cores
        self._log = folder / f"{name}.log"
        self._server: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str]: ...

    def __enter__(self) -> Self:
        with self._log.open("wb") as output, running_on(self._cores.load):
            self._server = start_server(self.command(), output=output, directory=ROOT)
        wait_until_up(self._server, lambda: is_open(self.port), log=self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            stop_server(self._server)
            self._server = None


class MockUpstream(_OneProcess):
    """Listens on a free port of 127.0.0.1, on the load's core."""

    def __init__(self, tools: Tools, cores: Cores, folder: Path) -> None:
        super().__init__(cores, folder, "upstream")
        self.gives_streams = tools.upstream is not None
        self._tools = tools

    def command(self) -> Sequence[str]:
        if self._tools.upstream is not None:
            return [str(self._tools.upstream), str(self.port), str(CHUNKS_PER_STREAM), str(_INTERVAL_MS)]
        return [sys.executable, "-m", "bench.python_upstream", str(self.port)]

    @property
    def provider(self) -> Provider:
        return Provider(self.port)

    def asked(self) -> int:
        """Requests answered or begun so far, streams included, over TLS or not."""
        told = _told_by(Provider(self.port), "/count")
        return int(told["plain"]) + int(told["streams"])


_TLS_FRONT = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/upstream-tls.pid;
error_log {folder}/upstream-tls.log;
events {{ worker_connections 32768; multi_accept on; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    client_body_buffer_size 64k;
    client_body_temp_path {folder}/tls-body;
    proxy_temp_path {folder}/tls-proxy;
    fastcgi_temp_path {folder}/tls-fastcgi;
    uwsgi_temp_path {folder}/tls-uwsgi;
    scgi_temp_path {folder}/tls-scgi;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.3;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    upstream mock {{ server 127.0.0.1:{upstream}; keepalive 8192; keepalive_requests 100000000; }}
    server {{ listen 127.0.0.1:{port} ssl backlog=8192; location / {{ proxy_pass http://mock; }} }}
}}
"""


class TlsFront(_OneProcess):
    """nginx before the mock upstream, on the load's core: TLS 1.3 with a certificate of an authority made for the run.

    `asked` of the mock counts what comes through here too.
    """

    def __init__(self, upstream: MockUpstream, cores: Cores, folder: Path) -> None:
        super().__init__(cores, folder, "upstream-front")
        self._folder = folder
        self.certificate = make_certificate(folder / "upstream-certificate")
        text = _TLS_FRONT.format(
            folder=folder,
            certificate=self.certificate.certificate,
            key=self.certificate.key,
            upstream=upstream.port,
            port=self.port,
        )
        if os.geteuid() == 0:
            text = "user root root;\n" + text  # its temporary folders lie where www-data may not go
        (folder / "upstream-tls.conf").write_text(text, "utf-8")

    def command(self) -> Sequence[str]:
        nginx = find_program("nginx", package="nginx-light")
        return [nginx, "-c", str(self._folder / "upstream-tls.conf"), "-e", str(self._folder / "upstream-tls.log")]

    @property
    def provider(self) -> Provider:
        return Provider(self.port, self.certificate.authority)


class MarkedUpstream(_OneProcess):
    """`bench.marked_provider`: does what each prompt says, and repeats its marker."""

    def __init__(self, cores: Cores, folder: Path, *, tls: Certificate | None = None) -> None:
        super().__init__(cores, folder, "marked-upstream")
        self._tls = tls

    def command(self) -> Sequence[str]:
        tls = () if self._tls is None else ("--tls", str(self._tls.certificate), str(self._tls.key))
        return [sys.executable, "-m", "bench.marked_provider", str(self.port), *tls]

    @property
    def provider(self) -> Provider:
        return Provider(self.port, self._tls.authority if self._tls else None)

    def report(self) -> Mapping[str, int]:
        """`asked`, `asked_again` (markers that came twice), `connections`, `pipelined`."""
        return _told_by(self.provider, "/report")


def _told_by(provider: Provider, path: str) -> Mapping[str, int]:
    tls = ssl.create_default_context(cafile=str(provider.authority)) if provider.authority else None
    connection = (
        http.client.HTTPSConnection("localhost", provider.port, timeout=30, context=tls)
        if tls is not None
        else http.client.HTTPConnection("127.0.0.1", provider.port, timeout=30)
    )
    try:
        connection.request("GET", path)
        told = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return {name: int(value) for name, value in told.items()}
