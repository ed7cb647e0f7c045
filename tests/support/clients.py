"""Clients of the running product: the official OpenAI SDK, and plain HTTP for what an SDK would never send."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import httpx2
import openai

if TYPE_CHECKING:
    from tests.support.running_proxy import RunningProxy

CLIENT_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> dict[str, object]:
        error = self.json["error"]
        assert isinstance(error, dict)
        return error

    @property
    def error_code(self) -> object:
        return self.error["code"]


class Door(Protocol):
    """Where clients knock: a proxy that a test has started, or one installed on a machine."""

    @property
    def base_url(self) -> str: ...

    def client_tls(self) -> ssl.SSLContext | None:
        """What clients trust; None where plain HTTP is spoken."""
        ...


def sdk(proxy: Door, key: str, **options: float) -> openai.OpenAI:
    """The official SDK with nothing changed but base URL, key and the trusted authority. It does not retry."""
    verify = proxy.client_tls() or True
    return openai.OpenAI(
        base_url=f"{proxy.base_url}/v1",
        api_key=key,
        max_retries=0,
        timeout=options.get("timeout", CLIENT_PATIENCE_S),
        http_client=httpx2.Client(verify=verify, trust_env=False),
    )


def ask(
    proxy: Door,
    method: str,
    path: str,
    *,
    key: str | None = None,
    body: bytes | object | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request over a connection of its own; a body that isn't bytes is sent as JSON."""
    sent = dict(headers or {})
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    if data is not None:
        sent.setdefault("Content-Type", "application/json")
    if key is not None:
        sent.setdefault("Authorization", f"Bearer {key}")
    with connection_to(proxy) as connection:
        connection.connect()
        # Whoever is refused early may find the line cut while still speaking; the answer is there to be read all the same.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body=data, headers=sent)
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


@contextmanager
def connection_to(proxy: Door) -> Iterator[http.client.HTTPConnection]:
    parts = urlsplit(proxy.base_url)
    assert parts.hostname is not None
    context = proxy.client_tls()
    connection = (
        http.client.HTTPSConnection(parts.hostname, parts.port, timeout=CLIENT_PATIENCE_S, context=context)
        if context is not None
        else http.client.HTTPConnection(parts.hostname, parts.port, timeout=CLIENT_PATIENCE_S)
    )
    try:
        yield connection
    finally:
        connection.close()


def send_raw(proxy: Door, data: bytes) -> bytes:
    """Send bytes as they are and return everything that comes back until the server hangs up."""
    parts = urlsplit(proxy.base_url)
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 443), timeout=CLIENT_PATIENCE_S) as plain:
        context = proxy.client_tls()
        with context.wrap_socket(plain, server_hostname=parts.hostname) if context else plain as line:
            # A server that has refused already may have reset the connection; what it said is there to be read.
            with suppress(OSError):
                line.sendall(data)
            received = b""
            try:
                while chunk := line.recv(65536):
                    received += chunk
            except (ConnectionResetError, ssl.SSLEOFError):
                return received
            return received


def audit_lines(proxy: RunningProxy) -> list[dict[str, object]]:
    """Every line of the audit log as `manage.py audit cat` prints it."""
    printed = proxy.command("audit", "cat").stdout
    return [json.loads(line) for line in printed.splitlines()]


def records_of(proxy: RunningProxy, request_id: str) -> list[dict[str, object]]:
    return [line for line in audit_lines(proxy) if line.get("rid") == request_id]


def audit_text(proxy: RunningProxy) -> str:
    return "\n".join(
        path.read_text("utf-8", "replace")
        for path in sorted((proxy.instance / "audit").rglob("*.jsonl*"))
        if not path.is_symlink()
    )
