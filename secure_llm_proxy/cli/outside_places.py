"""Every place outside a process that the settings name, apart from providers: what a firewall must let through with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from redis.connection import parse_url
from sqlalchemy import make_url

from secure_llm_proxy.audit.anchors import anchor_address
from secure_llm_proxy.audit.syslog import SyslogAddress, Transport
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings, DatabaseSettings, RedisSettings, Settings, TelemetrySettings

_POSTGRESQL_PORT, _REDIS_PORT = 5432, 6379
# `[fd00::7]:5432`, `name:5432`; an IPv6 address without brackets is all host
_HOST_AND_PORT = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::([^:]*))?")
_REPORTS_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, order=True)
class OutsidePlace:
    """`by` says which of the two processes goes there: the workers or the audit writer."""

    host: str
    port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    by: Literal["web", "audit"] = "web"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{'/udp' if self.protocol == 'udp' else ''}"


def named_places(settings: Settings) -> Iterator[tuple[OutsidePlace, str]]:
    """Each place with what is there. Unix sockets are no places. Raises `OperatorError`, which shows no URL."""
    for place in _of_database(settings.database):
        yield place, "database"
    for place in _of_redis(settings.redis):
        yield place, "redis"
    for place in _of_error_reports(settings.telemetry):
        yield place, "error reports"
    yield from _of_audit(settings.audit)


def _of_database(settings: DatabaseSettings) -> Iterator[OutsidePlace]:
    url = make_url(settings.url.get_secret_value())
    if url.get_backend_name() != "postgresql":
        return
    # libpq takes several hosts, each with its port, the port once for all, or a folder of unix sockets; and `hostaddr`
    # instead of looking the name up.
    said = url.query.get("hostaddr") or url.query.get("host") or url.host or ""
    hosts = [each for text in ([said] if isinstance(said, str) else said) for each in text.split(",")]
    ports = str(url.query.get("port") or url.port or _POSTGRESQL_PORT).split(",")
    for position, host in enumerate(hosts):
        if not host or host.startswith(("/", "@")):
            continue
        bracketed = _HOST_AND_PORT.fullmatch(host)
        name, port = (bracketed[1] or bracketed[2], bracketed[3]) if bracketed else (host, None)
        try:
            yield OutsidePlace(name.lower(), int(port or ports[position if len(ports) > 1 else 0]))
        except (ValueError, IndexError):
            raise OperatorError("DATABASE_URL names a port that is no number, or fewer ports than hosts.") from None


def _of_redis(settings: RedisSettings) -> Iterator[OutsidePlace]:
    url = settings.connection_url()
    if url is None:
        return
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        raise OperatorError("REDIS_URL can't be read.") from None
    if "path" not in options:
        yield OutsidePlace(options.get("host", "localhost").lower(), options.get("port", _REDIS_PORT))


def _of_error_reports(settings: TelemetrySettings) -> Iterator[OutsidePlace]:
    if settings.sentry_dsn is None:
        return
    try:
        parts = urlsplit(settings.sentry_dsn.get_secret_value())
        port = parts.port or _REPORTS_PORT.get(parts.scheme)
    except ValueError:
        port = None
    if port is None or not parts.hostname:
        raise OperatorError("SENTRY_DSN can't be read.")
    yield OutsidePlace(parts.hostname, port)


def _of_audit(settings: AuditSettings) -> Iterator[tuple[OutsidePlace, str]]:
    kind, _, where = settings.sink.partition(":")
    sink = SyslogAddress.parse(where, "AUDIT_SINK") if kind == "syslog" else None
    for address, what in ((sink, "audit sink"), (anchor_address(settings), "audit anchors")):
        if address is not None and address.transport is not Transport.UNIX:
            protocol: Literal["tcp", "udp"] = "udp" if address.transport is Transport.UDP else "tcp"
            yield OutsidePlace(address.host.lower(), address.port, protocol, "audit"), what
