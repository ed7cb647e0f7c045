"""Every form of DATABASE_URL that the origins used, in the one that SQLAlchemy and psycopg2 understand."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

_DRIVERS = {
    "postgres": "postgresql+psycopg2",
    "postgresql": "postgresql+psycopg2",
    "postgresql+asyncpg": "postgresql+psycopg2",
    "postgresql+psycopg": "postgresql+psycopg2",
    "postgresql+psycopg2": "postgresql+psycopg2",
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
}
_SSL_MODES = {"true": "require", "1": "require", "false": "disable", "0": "disable"}


def normalise_database_url(url: str) -> str:
    """`postgres://`, async drivers and `?ssl=true` become libpq's words; an unknown scheme is returned as it is."""
    scheme, separator, rest = url.partition("://")
    driver = _DRIVERS.get(scheme.lower())
    if not separator or driver is None:
        return url
    if driver == "sqlite":
        return f"sqlite://{rest}"
    # Taken apart by hand: urlunsplit() drops the `//` of `postgresql:///name?host=/run/postgresql`, and a password may
    # hold `?` or `#`.
    credentials, at, target = rest.rpartition("@")
    target, mark, query = target.partition("?")
    options = [
        ("sslmode", _SSL_MODES.get(value.lower(), value)) if name == "ssl" else (name, value)
        for name, value in parse_qsl(query, keep_blank_values=True)
    ]
    return f"{driver}://{credentials}{at}{target}{mark}{urlencode(options)}"
