"""Where Redis is and how it is greeted, as its URL says."""

from __future__ import annotations

import _socket
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gevent.socket import getaddrinfo
from redis.connection import SSLConnection, UnixDomainSocketConnection, parse_url

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.throttling.resp import packed

_PORT = 6379
_VERIFICATION = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_TLS_OPTIONS = frozenset(
    {
        "ssl_cert_reqs",
        "ssl_check_hostname",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_ca_data",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_password",
        "ssl_ciphers",
    }
)

SocketAddress = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes] | str


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """`path` for a unix socket, else `host` and `port`. `greeting` are the commands of a new connection, `tls` its context."""

    host: str
    port: int
    path: str | None
    greeting: tuple[bytes, ...]
    tls: ssl.SSLContext | None

    def resolved(self) -> list[tuple[int, SocketAddress]]:
        """Family and address of each place to try, in order. Waits for the resolver, but not in the event loop."""
        if self.path is not None:
            return [(socket.AF_UNIX, self.path)]
        found: Sequence[tuple[Any, ...]]
        try:
            found = _socket.getaddrinfo(self.host, self.port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
        except socket.gaierror:
            # Not a number: the interpreter's own call would hold up the whole worker.
            found = getaddrinfo(self.host, self.port, 0, socket.SOCK_STREAM)
        return [(place[0], place[4]) for place in found]


def redis_address(url: str) -> RedisAddress:
    """What `redis://`, `rediss://` (TLS) or `unix://` URLs say, read as redis-py reads them. Connects to nothing.

    Honoured options: `db`, `client_name` and those that begin with `ssl_`; the others are about redis-py's own pool. Raises
    `OperatorError`, which shows no part of the URL: it may hold the password.
    """
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        raise OperatorError(
            "REDIS_URL can't be read; write redis://host:6379/0, rediss://… for TLS, or unix:///path."
        ) from None
    kind = options.get("connection_class")
    path = None
    if kind is UnixDomainSocketConnection:
        path = options.get("path")
        if path is None:
            raise OperatorError("REDIS_URL names no path; write unix:///path.")
    return RedisAddress(
        host=options.get("host", "localhost"),
        port=options.get("port", _PORT),
        path=path,
        greeting=_greeting(options),
        tls=_tls_context(options) if kind is SSLConnection else None,
    )


def _greeting(options: dict[str, Any]) -> tuple[bytes, ...]:
    commands = []
    if options.get("username"):
        commands.append(packed("AUTH", options["username"], options.get("password", "")))
    elif options.get("password"):
        commands.append(packed("AUTH", options["password"]))
    else:
        # Redis calls a long command of somebody it does not know a protocol error; this shows that a password is missing.
        commands.append(packed("PING"))
    if options.get("client_name"):
        commands.append(packed("CLIENT", "SETNAME", options["client_name"]))
    if options.get("db"):
        commands.append(packed("SELECT", options["db"]))
    return tuple(commands)


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    """Verifies certificate and name unless the URL says otherwise."""
    if unknown := sorted(name for name in options if name.startswith("ssl_") and name not in _TLS_OPTIONS):
        raise OperatorError(f"REDIS_URL has TLS options that are not supported: {', '.join(unknown)}.")
    verification = _VERIFICATION.get(options.get("ssl_cert_reqs", "required").lower())
    if verification is None:
        raise OperatorError("REDIS_URL: ssl_cert_reqs must be required, optional or none.")
    try:
        context = ssl.create_default_context()
        context.check_hostname = verification is not ssl.CERT_NONE and bool(options.get("ssl_check_hostname", True))
        context.verify_mode = verification
        authorities = {name: options.get(f"ssl_ca_{short}") for name, short in _AUTHORITIES}
        if any(authorities.values()):
            context.load_verify_locations(**authorities)
        if "ssl_certfile" in options:
            # Without an answer OpenSSL would ask for the password at a terminal.
            password = partial(str, options.get("ssl_password", ""))
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), password)
        if "ssl_ciphers" in options:
            context.set_ciphers(options["ssl_ciphers"])
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"REDIS_URL names TLS files or options that can't be used ({type(error).__name__})."
        ) from None
    return context


_AUTHORITIES = (("cafile", "certs"), ("capath", "path"), ("cadata", "data"))
