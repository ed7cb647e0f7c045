"""What is measured: each a set of processes on one core that answers chat completions, started and stopped each round."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.plants import plant_audit_log, plant_keys
from bench.processes import Cores, running_on, tree
from bench.upstream import Provider
from tests.support.certificates import make_certificate
from tests.support.nginx import Flood, PrivateNginx
from tests.support.ports import free_port
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.programs import find_program, start_server, stop_server
from tests.support.redis_server import PrivateRedis
from tests.support.running_proxy import RunningProxy

MODEL = "gpt-4o-mini"
_START_PATIENCE_S = 120.0
# Roomy: one client address and one key carry the whole load, and a 429 would make the run invalid.
_ROOMY = {
    "RATE_LIMIT_PER_MINUTE": "60000000",
    "RATE_LIMIT_BURST": "1000000",
    "CONCURRENT_REQUESTS_PER_KEY": "100000",
    "ADDRESS_RATE_LIMIT_PER_MINUTE": "60000000",
    "ADDRESS_RATE_LIMIT_BURST": "1000000",
    "CONCURRENT_REQUESTS_PER_ADDRESS": "100000",
    "WORKER_CONNECTIONS": "20000",
    "UPSTREAM_CONNECTIONS_MAX": "20000",
}
_MEMORY = Path("/dev/shm")  # noqa: S108  Linux's own memory file system; folders in it are made by mkdtemp


class TargetFailed(Exception):
    """It did not start, or stopped answering; says what and quotes its log's end."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how a target is asked."""

    port: int
    path: str = "/v1/chat/completions"
    model: str = MODEL
    tls: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    keys: Path | None = None
    """API keys, one a line: the load takes a random one for each request, instead of the header's."""

    @property
    def host(self) -> str:
        return "localhost" if self.tls else "127.0.0.1"

    def asked(self, system: str, question: str) -> dict[str, object]:
        """The question in the words of the door: the origin's takes a `prompt`, Anthropic's a `system` of its own."""
        user = {"role": "user", "content": question}
        if self.path == "/chat":
            return {"prompt": f"{system}\n{question}" if system else question}
        if self.path == "/v1/messages":
            return {**({"system": system} if system else {}), "messages": [user]}
        return {"messages": [*([{"role": "system", "content": system}] if system else []), user]}


class Target(ABC):
    """`endpoint` is valid after `prepare`, `parts` while it runs. Streams are asked for at `stream_endpoint`, never more
    than `streams_max` at once: above that a slow target only shows its queue. `clients_max` is what it is set up for.
    """

    name: str
    title: str
    streams_max = 10_000
    clients_max = 10_000

    @abstractmethod
    def start(self) -> None:
        """Start the processes. Need not wait until they answer."""

    @abstractmethod
    def stop(self) -> None:
        """They are gone afterwards."""

    @property
    @abstractmethod
    def endpoint(self) -> Endpoint: ...

    @property
    def stream_endpoint(self) -> Endpoint | None:
        return self.endpoint

    @abstractmethod
    def parts(self) -> Mapping[str, tuple[int, ...]]:
        """Its processes by the part they play; together they are what it costs."""

    def aside(self) -> Mapping[str, tuple[int, ...]]:
        """Servers that it asks: shown, not counted."""
        return {}

    def audit_records(self) -> int | None:
        """Records of exchanges in its audit log so far; None when it keeps none."""
        return None

    def prepare(self) -> None:  # noqa: B027  most need nothing
        """What is done once, before the first round."""

    def discard(self) -> None:  # noqa: B027  most leave nothing
        """Undo `prepare`."""

    def last_words(self) -> str:
        return ""

    def has_ended(self) -> bool:
        """True when its process is gone by itself."""
        return False

    def await_first_answer(self) -> None:
        """Return when a chat is answered with 200. Raises `TargetFailed` after two minutes."""
        deadline_s = time.monotonic() + _START_PATIENCE_S
        seen = ""
        while time.monotonic() < deadline_s and not self.has_ended():
            try:
                status, body = _ask(self.endpoint)
                if status == http.HTTPStatus.OK:
                    return
                seen = f"{status} {body[:300]!r}"
            except (OSError, http.client.HTTPException) as error:
                seen = repr(error)
            time.sleep(0.01)
        raise TargetFailed(f"{self.name} does not answer: {seen}\n{self.last_words()[-2000:]}")


class Direct(Target):
    """The load asks the mock upstream itself: what every other latency is compared with. No process of it is counted."""

    def __init__(self, provider: Provider) -> None:
        tls = provider.authority is not None
        self.name = "direct-tls" if tls else "direct"
        self.title = "direct (no proxy), TLS" if tls else "direct (no proxy)"
        self._endpoint = Endpoint(provider.port, tls=tls)

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    @property
    def stream_endpoint(self) -> Endpoint | None:
        return None if self._endpoint.tls else self._endpoint

    def parts(self) -> Mapping[str, tuple[int, ...]]:
        return {}


class OneServer(Target):
    """A target that is one command with its children. `write` makes its files and returns command and environment."""

    def __init__(self, cores: Cores, folder: Path) -> None:
        self.folder = folder / self.name
        self.port = free_port()
        self._cores = cores
        self._server: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str]: ...

    def environment(self) -> Mapping[str, str]:
        return {}

    def prepare(self) -> None:
        self.folder.mkdir(parents=True)

    def start(self) -> None:
        everything = {**os.environ, **self.environment()}
        with (self.folder / "output.log").open("wb") as output, running_on(self._cores.proxy):
            self._server = start_server(self.command(), output=output, environment=everything, directory=self.folder)

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        left = tree(server.pid)
        stop_server(server)
        for pid in left:  # children of our own child that it left behind
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == server.pid:
                    os.kill(pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        return self._server is None or self._server.poll() is not None

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.port)

    def parts(self) -> Mapping[str, tuple[int, ...]]:
        return {self.name.removesuffix("-tls"): tree(self.pid)}

    def last_words(self) -> str:
        log = self.folder / "output.log"
        return log.read_text("utf-8", "replace") if log.exists() else ""


_NGINX = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 32768; multi_accept on; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    client_body_buffer_size 64k;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    {tls}
    upstream provider {{ server 127.0.0.1:{upstream}; keepalive 8192; keepalive_requests 100000000; }}
    server {{ listen 127.0.0.1:{port} backlog=8192; location / {{ proxy_pass {scheme}://provider; }} }}
    server {{ listen 127.0.0.1:{stream_port} backlog=8192; location / {{ proxy_buffering off; proxy_pass {scheme}://provider; }} }}
}}
"""
_NGINX_TLS = (
    "proxy_ssl_verify on; proxy_ssl_trusted_certificate {authority}; proxy_ssl_name localhost; proxy_ssl_server_name on; "
    "proxy_ssl_protocols TLSv1.3;"
)


class BareNginx(OneServer):
    """proxy_pass and nothing else: what moving the bytes costs."""

    def __init__(self, cores: Cores, folder: Path, provider: Provider) -> None:
        tls = provider.authority is not None
        self.name = "nginx-tls" if tls else "nginx"
        self.title = "nginx proxy_pass, TLS upstream" if tls else "nginx proxy_pass"
        super().__init__(cores, folder)
        self._stream_port = free_port()
        self._provider = provider

    def prepare(self) -> None:
        super().prepare()
        authority = self._provider.authority
        text = _NGINX.format(
            folder=self.folder,
            upstream=self._provider.port,
            port=self.port,
            stream_port=self._stream_port,
            scheme="https" if authority else "http",
            tls=_NGINX_TLS.format(authority=authority) if authority else "",
        )
        if os.geteuid() == 0:
            text = "user root root;\n" + text  # its temporary folders lie where www-data may not go
        (self.folder / "nginx.conf").write_text(text, "utf-8")

    def command(self) -> Sequence[str]:
        nginx = find_program("nginx", package="nginx-light")
        return [nginx, "-c", str(self.folder / "nginx.conf"), "-e", str(self.folder / "error.log")]

    @property
    def stream_endpoint(self) -> Endpoint | None:
        return Endpoint(self._stream_port)


@dataclass(frozen=True, slots=True)
class ProductShape:
    """How the product is set up. `door` is where it is asked; `settings` come on top of the bench's own.

    `keys` and `audit_gib` are how many API keys its database and how much sealed log its audit directory hold beforehand;
    `random_keys` has the load use all of them. More than one worker takes both cores, the load's too.
    """

    name: str
    title: str
    audit_in_memory: bool = False
    with_servers: bool = False
    behind_nginx: bool = False
    workers: int = 1
    both_cores: bool = False
    door: str = "/v1/chat/completions"
    keys: int = 1
    random_keys: bool = False
    audit_gib: float = 0.0
    settings: Mapping[str, str] = field(default_factory=dict)


class Product(Target):
    """Secure LLM Proxy as `manage.py serve` runs it, with every control on."""

    def __init__(self, shape: ProductShape, *, cores: Cores, folder: Path, provider: Provider) -> None:
        self.shape = shape
        self.name, self.title = shape.name, shape.title
        # The nginx of the tests holds 1,024 connections, two for each client.
        self.clients_max = 400 if shape.behind_nginx else 10_000
        self._cores = cores
        self._folder = folder / shape.name
        self._provider = provider
        self._held = contextlib.ExitStack()
        self._running: contextlib.ExitStack | None = None
        self._servers: dict[str, Callable[[], int]] = {}
        self._proxy: RunningProxy | None = None
        self._front: PrivateNginx | None = None
        self._audit = _AuditCount()
        self._key = ""
        self._keys: Path | None = None

    def prepare(self) -> None:
        shape = self.shape
        self._folder.mkdir(parents=True)
        settings = {**_ROOMY, "LLM_API_URL": self._provider.url, "LLM_API_KEY": "sk-bench", "LLM_MODELS": MODEL}
        if self._provider.authority is not None:
            settings["LLM_CA_FILE"] = str(self._provider.authority)
        if shape.audit_in_memory:
            memory = tempfile.mkdtemp(prefix="slp-bench-", dir=_MEMORY)
            self._held.callback(shutil.rmtree, memory, ignore_errors=True)
            settings["AUDIT_DIR"] = str(Path(memory) / "audit")
        if shape.with_servers:
            with running_on(self._cores.load):
                redis = self._held.enter_context(PrivateRedis(password="bench"))  # noqa: S106  it lives for the run, on loopback
                postgresql = self._held.enter_context(PrivatePostgreSQL())
            settings |= {"REDIS_URL": redis.url, "DATABASE_URL": postgresql.create_database()}
            self._servers = {
                "redis": lambda: _listener_of(redis.directory, "redis-server"),
                "postgresql": lambda: _listener_of(postgresql.directory, "postgres"),
            }
        if shape.workers > 1:
            settings["WORKERS"] = str(shape.workers)
        if shape.behind_nginx:
            certificate = make_certificate(self._folder / "certificates")
            flood = Flood(requests_per_second=1_000_000, burst=1_000_000)
            self._front = PrivateNginx(
                self._folder / "nginx", certificate, socket=self._folder / "home" / "web.sock", flood=flood
            )
        settings |= shape.settings
        self._proxy = proxy = RunningProxy(self._folder / "home", settings, on_unix_socket=shape.behind_nginx)
        proxy.prepare()
        keys = plant_keys(proxy.environment, shape.keys)
        self._key = keys[0]
        if shape.random_keys:
            self._keys = self._folder / "keys"
            self._keys.write_text("\n".join(keys) + "\n", "ascii")
        if shape.audit_gib:
            plant_audit_log(proxy.environment, proxy.instance, shape.audit_gib)
        self._audit.directory = Path(settings.get("AUDIT_DIR", str(proxy.instance / "audit")))
        self._audit.skip_what_is_there()

    def start(self) -> None:
        proxy = self._product
        cores = (self._cores.proxy, self._cores.load) if self.shape.both_cores else (self._cores.proxy,)
        with running_on(*cores), contextlib.ExitStack() as started:
            started.enter_context(proxy)
            if self._front is not None:
                started.enter_context(self._front)
            self._running = started.pop_all()

    def stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def discard(self) -> None:
        self._held.close()

    @property
    def running(self) -> RunningProxy:
        """For what load alone can't tell: further keys, the audit log. Valid after `prepare`."""
        return self._product

    @property
    def _product(self) -> RunningProxy:
        assert self._proxy is not None
        return self._proxy

    @property
    def endpoint(self) -> Endpoint:
        headers = {"Authorization": f"Bearer {self._key}"}
        if self._front is not None:
            return Endpoint(self._front.port, self.shape.door, tls=True, headers=headers, keys=self._keys)
        port = int(self._product.base_url.rpartition(":")[2])
        return Endpoint(port, self.shape.door, headers=headers, keys=self._keys)

    @property
    def stream_endpoint(self) -> Endpoint | None:
        return None if self._front is not None else self.endpoint

    def parts(self) -> Mapping[str, tuple[int, ...]]:
        proxy = self._product
        parts = {
            "worker": proxy.worker_pids(),
            "master": (proxy.master_pid(),),
            "audit writer": (proxy.writer_pid(),),
            "supervisor": (proxy.pid,),
        }
        if self._front is not None:
            parts["nginx"] = tree(int((self._front.directory / "nginx.pid").read_text("ascii")))
        return parts

    def aside(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tree(pid_of()) for name, pid_of in self._servers.items()}

    def audit_records(self) -> int | None:
        return self._audit.records()

    def last_words(self) -> str:
        return self._product.log_text()[-3000:]


@dataclass
class _AuditCount:
    """Counts starts and ends of exchanges in an audit log, reading only what is new since the last look."""

    directory: Path = Path()
    _read_to: dict[int, int] = field(default_factory=dict)
    _found: int = 0

    def skip_what_is_there(self) -> None:
        """Nothing written so far is ever counted, nor read: a log may hold gigabytes from before."""
        for path in self.directory.glob("*/*.jsonl*"):
            if not path.is_symlink():
                told = path.stat()
                self._read_to[told.st_ino] = told.st_size

    def records(self) -> int:
        for path in self.directory.glob("*/*.jsonl*"):
            if path.is_symlink():
                continue
            with path.open("rb") as segment:
                inode = os.fstat(segment.fileno()).st_ino
                segment.seek(self._read_to.get(inode, 0))
                new, newline, _ = segment.read().rpartition(b"\n")
                self._read_to[inode] = self._read_to.get(inode, 0) + len(new) + len(newline)
                self._found += len(_EXCHANGE_RECORD.findall(new))
        return self._found


_EXCHANGE_RECORD = re.compile(rb'"ty":"llm\.(?:start|end)"')


def _listener_of(directory: Path, program: str) -> int:
    """The pid of the child server of ours that works in `directory`."""
    for pid in tree(os.getpid()):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            named = any(os.fsencode(directory) in argument for argument in command)
            # redis rewrites its command line, and works in its folder; PostgreSQL names its own
            works_there = Path(f"/proc/{pid}/cwd").resolve().is_relative_to(directory)
            if program.encode() in command[0] and (named or works_there):
                return pid
    raise TargetFailed(f"no {program} of ours is running")


def _ask(endpoint: Endpoint) -> tuple[int, bytes]:
    connection = (
        http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=30, context=_unverified())
        if endpoint.tls
        else http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=30)
    )
    body = json.dumps({"model": endpoint.model, "max_tokens": 400, **endpoint.asked("", "Hello.")})
    try:
        connection.request("POST", endpoint.path, body, {"Content-Type": "application/json", **endpoint.headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
