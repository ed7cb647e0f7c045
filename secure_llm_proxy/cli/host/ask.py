"""One question to the running product over HTTP: through its socket, or at a URL."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_ANSWER_BYTES_MAX = 1 << 20
# No agent list looks at the doors of health; a name of our own keeps it so if somebody lists programs by their libraries.
AGENT = "secure-llm-health-check"


class NotAnswered(Exception):
    """Nobody answered as the product does. Says what happened."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where to knock. `host` is the name that is asked for; with `verify` a certificate must be trusted and fit it."""

    shown: str
    socket: Path | None = None
    url: str = ""
    connect: tuple[str, int] | None = None
    host: str = "localhost"
    authority: Path | None = None
    verify: bool = True


def ask(door: Door, path: str, *, timeout_s: float) -> tuple[int, dict[str, Any]]:
    """The answer's status and its JSON object. Raises `NotAnswered`; `PermissionError` where this user may not knock."""
    status, _, body = _exchange(door, path, timeout_s)
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise NotAnswered(f"answers {status}, and not as the product does")
    return status, told


def headers_of(door: Door, path: str, *, timeout_s: float) -> tuple[int, Message]:
    """The answer's status and headers, whoever answers. Raises as `ask` does."""
    status, headers, _ = _exchange(door, path, timeout_s)
    return status, headers


def _exchange(door: Door, path: str, timeout_s: float) -> tuple[int, Message, bytes]:
    connection = _connection(door, timeout_s)
    try:
        connection.request("GET", path, headers={"Host": door.host, "User-Agent": AGENT, "Accept": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read(_ANSWER_BYTES_MAX)
    except PermissionError:
        raise
    except ssl.SSLCertVerificationError as error:
        raise NotAnswered(f"its certificate is refused: {error.verify_message}") from error
    except TimeoutError:
        raise NotAnswered(f"no answer within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise NotAnswered(getattr(error, "strerror", None) or type(error).__name__) from error
    finally:
        connection.close()


def door_at(url: str, *, authority: Path | None = None, verify: bool = True) -> Door:
    """Raises `ValueError` for what is no http or https URL."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError(f"{url} is no http:// or https:// URL with a host")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    bare = f"{parts.scheme}://{parts.netloc}"
    return Door(bare, url=bare, connect=(parts.hostname, port), host=parts.netloc, authority=authority, verify=verify)


def _connection(door: Door, timeout_s: float) -> http.client.HTTPConnection:
    if door.socket is not None:
        return _UnixConnection(door.socket, timeout_s)
    assert door.connect is not None
    host, port = door.connect
    if not door.url.startswith("https:"):
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    context = ssl.create_default_context(cafile=None if door.authority is None else str(door.authority))
    if not door.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return _NamedConnection(host, port, _host_of(door.host), context, timeout_s)


def _host_of(netloc: str) -> str:
    return urlsplit(f"//{netloc}").hostname or netloc


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _NamedConnection(http.client.HTTPConnection):
    """TLS to an address under another name than the address."""

    def __init__(self, host: str, port: int, name: str, context: ssl.SSLContext, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._name = name
        self._context = context

    def connect(self) -> None:
        super().connect()
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)
