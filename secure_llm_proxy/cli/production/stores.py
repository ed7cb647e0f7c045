"""PostgreSQL and Redis: who is let in, and from where."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import psycopg2
import redis

from secure_llm_proxy.cli.host.check import Check, failed, ok, unknown, warning
from secure_llm_proxy.cli.host.places import Places
from secure_llm_proxy.settings import Settings

_PATIENCE_S = 3
_STRONG = frozenset({"scram-sha-256", "peer", "ident", "cert", "gss", "sspi", "reject", "ldap", "radius", "pam"})
_HBA_WORDS = {"local": 3, "host": 4, "hostssl": 4, "hostnossl": 4, "hostgssenc": 4, "hostnogssenc": 4}
_ENCRYPTED = frozenset({"require", "verify-ca", "verify-full"})


def is_local(host: str | None) -> bool:
    """Whether a URL's host is this machine: a socket, loopback, or its name."""
    if not host or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def postgresql_checks(settings: Settings, places: Places) -> Iterator[Check]:
    url = settings.database.url.get_secret_value()
    if url.startswith("sqlite:"):
        yield failed(
            "PostgreSQL", "SQLite serves one worker", "set DATABASE_URL to PostgreSQL; scripts/install does it"
        )
        return
    scheme, _, rest = url.partition("://")
    plain = f"{scheme.partition('+')[0]}://{rest}"
    try:
        connection = psycopg2.connect(plain, connect_timeout=_PATIENCE_S)
    except psycopg2.Error as error:
        yield failed("PostgreSQL", f"not usable ({type(error).__name__})", "manage.py doctor says why")
        return
    with contextlib.closing(connection):
        yield from _server_settings(connection)
    parts = urlsplit(plain)
    host = parts.hostname or next(iter(parse_qs(parts.query).get("host", [])), None)
    if is_local(host):
        yield from _hba_files(places.machine)
    else:
        mode = next(iter(parse_qs(parts.query).get("sslmode", [])), "prefer")
        if mode not in _ENCRYPTED:
            fix = "add ?sslmode=verify-full to DATABASE_URL"
            yield failed("PostgreSQL's connection", f"sslmode={mode}: it may cross the network in clear", fix)
        yield unknown("PostgreSQL's pg_hba.conf", f"it lies on {host}", "there: only scram-sha-256, no trust, no md5")


def _server_settings(connection: psycopg2.extensions.connection) -> Iterator[Check]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('password_encryption'), current_setting('listen_addresses'),"
                       " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)")  # fmt: skip
        found = cursor.fetchone()
    assert found is not None
    encryption, listens, is_superuser = found
    if encryption == "scram-sha-256":
        yield ok("PostgreSQL's passwords", "scram-sha-256")
    else:
        fix = "password_encryption = 'scram-sha-256', then set the role's password anew"
        yield failed("PostgreSQL's passwords", f"kept as {encryption}", fix)
    if beyond := [each.strip() for each in listens.split(",") if each.strip() and not is_local(each.strip())]:
        fix = "listen_addresses = 'localhost', then systemctl restart postgresql"
        yield failed("PostgreSQL's addresses", f"listens on {', '.join(beyond)}", fix)
    else:
        yield ok("PostgreSQL's addresses", listens or "sockets only")
    if is_superuser:
        yield failed("PostgreSQL's role", "the product's role is a superuser", "ALTER ROLE … NOSUPERUSER")
    else:
        yield ok("PostgreSQL's role", "no superuser")


def _hba_files(machine: Path) -> Iterator[Check]:
    what = "PostgreSQL's pg_hba.conf"
    files = sorted(machine.glob("etc/postgresql/*/*/pg_hba.conf"))
    if not files:
        yield unknown(
            what, "none in /etc/postgresql", "find it with: SHOW hba_file; only scram-sha-256, no trust, no md5"
        )
        return
    weak = [f"{path}:{line}: {method}" for path in files for line, method in weak_entries(path.read_text("utf-8"))]
    if weak:
        fix = "replace the method by scram-sha-256 (peer for local root), then systemctl reload postgresql"
        yield failed(what, "; ".join(weak), fix)
    else:
        yield ok(what, f"{len(files)} read: nobody is trusted, no md5")


def weak_entries(text: str) -> Iterable[tuple[int, str]]:
    """Line and method of each entry that lets somebody in by less than SCRAM (pg_hba.conf, PostgreSQL manual §20.1)."""
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"#.*", "", line).split()
        if not words or words[0] not in _HBA_WORDS:
            continue
        at = _HBA_WORDS[words[0]]
        # An address may be followed by a mask of its own.
        if at < len(words) and words[0] != "local" and re.fullmatch(r"[0-9.:a-f]+", words[at]) and "/" not in words[3]:
            at += 1
        method = words[at] if at < len(words) else ""
        if method not in _STRONG:
            yield number, method or "no method"


# --- Redis ------------------------------------------------------------------------------------------------------------


def redis_checks(settings: Settings) -> Iterator[Check]:
    url = settings.redis.connection_url()
    if url is None:
        yield warning(
            "Redis", "not used: one worker", "set REDIS_URL for more than one worker; scripts/install does it"
        )
        return
    try:
        with _client(url) as client:
            client.ping()
            yield from _redis_settings(client, url)
    except (redis.RedisError, ValueError, OSError) as error:
        yield failed("Redis", f"not usable ({type(error).__name__})", "manage.py doctor says why")
        return
    yield _without_password(url)


def _redis_settings(client: redis.Redis, url: str) -> Iterator[Check]:
    told = {}
    try:
        for name in ("maxmemory-policy", "bind"):
            answer = client.config_get(name)
            if isinstance(answer, dict):
                told.update(answer)
    except redis.ResponseError:
        yield unknown(
            "Redis' settings",
            "CONFIG is not allowed to this user",
            "there: maxmemory-policy noeviction, bind 127.0.0.1",
        )
        return
    policy = told.get("maxmemory-policy", "")
    if policy == "noeviction":
        yield ok("Redis' memory", "noeviction")
    else:
        fix = "maxmemory-policy noeviction: eviction forgets limits and kill switches"
        yield failed("Redis' memory", f"maxmemory-policy {policy or 'unknown'}", fix)
    if not is_local(urlsplit(url).hostname):
        return
    # A leading minus: an address that need not be there (redis.conf, bind).
    beyond = [each for each in told.get("bind", "*").split() if not is_local(each.lstrip("-"))]
    if beyond or not told.get("bind"):
        yield failed("Redis' addresses", f"listens on {' '.join(beyond) or 'every address'}", "bind 127.0.0.1 -::1")
    else:
        yield ok("Redis' addresses", told["bind"])


def _without_password(url: str) -> Check:
    parts = urlsplit(url)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    try:
        with _client(bare) as client:
            client.ping()
    except redis.AuthenticationError:
        return ok("Redis' password", "asked for")
    except (redis.RedisError, OSError) as error:
        if "NOAUTH" in str(error) or "AUTH" in str(error).upper():
            return ok("Redis' password", "asked for")
        return unknown(
            "Redis' password", f"without one it answers {type(error).__name__}", "see requirepass in redis.conf"
        )
    return failed(
        "Redis' password", "none is asked for", "requirepass in redis.conf, and REDIS_PASSWORD as a credential"
    )


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S, decode_responses=True
    )
