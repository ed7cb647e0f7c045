"""Every form of DATABASE_URL that the origins used reaches the same database."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url

from secure_llm_proxy.settings.database_url import normalise_database_url


@pytest.mark.parametrize(
    "scheme",
    [
        "postgres",
        "postgresql",
        "postgresql+asyncpg",
        "postgresql+psycopg",
        "postgresql+psycopg2",
        "PostgreSQL",
        "POSTGRES",
    ],
)
def test_every_postgresql_scheme_becomes_psycopg2s(scheme: str) -> None:
    url = make_url(normalise_database_url(f"{scheme}://user:word@db.internal:5433/slp"))

    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "user",
        "word",
        "db.internal",
        5433,
        "slp",
    )


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("true", "require"), ("1", "require"), ("TRUE", "require"), ("false", "disable"), ("0", "disable"),
        ("require", "require"), ("verify-full", "verify-full"), ("prefer", "prefer"),
    ],
)  # fmt: skip
def test_ssl_of_the_async_driver_is_told_in_libpqs_words(given: str, mode: str) -> None:
    url = make_url(normalise_database_url(f"postgresql+asyncpg://u@h/db?ssl={given}&application_name=a%20b"))

    assert dict(url.query) == {"sslmode": mode, "application_name": "a b"}


@pytest.mark.parametrize("password", ["p%40ss", "p%2Fss", "p%3Fss", "p%23ss", "p?ss", "p#ss", "p%25ss", "pä"])
def test_a_password_survives_whatever_it_holds(password: str) -> None:
    given = make_url(f"postgresql://u:{password}@h/db?sslmode=require")

    url = make_url(normalise_database_url(f"postgres://u:{password}@h/db?ssl=true"))

    assert (url.password, url.host, url.database) == (given.password, "h", "db")
    assert dict(url.query) == {"sslmode": "require"}


def test_debians_form_over_a_unix_socket_keeps_its_empty_host() -> None:
    url = make_url(normalise_database_url("postgresql:///slp?host=/run/postgresql&port=5432"))

    assert (url.host, url.database) == (None, "slp")
    assert dict(url.query) == {"host": "/run/postgresql", "port": "5432"}


def test_ipv6_hosts_are_kept() -> None:
    assert make_url(normalise_database_url("postgres://u:p@[::1]:5432/db")).host == "::1"


@pytest.mark.parametrize(
    ("given", "database"),
    [
        ("sqlite:///app.db", "app.db"),
        ("sqlite:////var/lib/app.db", "/var/lib/app.db"),
        ("sqlite+aiosqlite:////var/lib/app.db", "/var/lib/app.db"),
        ("sqlite+pysqlite:///app.db", "app.db"),
        ("sqlite://", None),
    ],
)
def test_sqlite_keeps_its_path(given: str, database: str | None) -> None:
    url = make_url(normalise_database_url(given))

    assert (url.drivername, url.database) == ("sqlite", database)


@pytest.mark.parametrize("given", ["mysql://u@h/db", "app.db", "", "postgresql", "oracle+cx://h"])
def test_what_is_neither_is_left_for_the_check_to_refuse(given: str) -> None:
    assert normalise_database_url(given) == given


@pytest.mark.parametrize(
    "given", ["postgres://u:p@h/db?ssl=true", "postgresql:///db?host=/run", "sqlite+aiosqlite:///a.db"]
)
def test_once_normalised_it_stays(given: str) -> None:
    once = normalise_database_url(given)

    assert normalise_database_url(once) == once
