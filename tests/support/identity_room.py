"""A clock that tests turn, and an identity room over a real, migrated database."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TypeVar

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812 - the name of a class
from sqlalchemy.engine import URL

from secure_llm_proxy.cli.database_schema import run_migrations
from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import Unavailable
from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, Accounts, ApiKeys, Identity, IssuedKey, Organisations
from secure_llm_proxy.settings import DatabaseSettings, IdentitySettings
from secure_llm_proxy.settings.database_url import normalise_database_url

T = TypeVar("T")

PEPPER = b"key pepper of a test, 32 bytes.."
PASSWORD_PEPPER = b"password pepper of a test, 32 b."
EMAIL = "someone@example.org"
_BUSY_S = 45.0


class ManualClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
        self._monotonic_s = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic_s += seconds


def migrated_database(url: str) -> Database:
    """Open the database with the schema of today.

    An empty one becomes a copy of one that was migrated once: 0.01 (SQLite) and 0.1 instead of 0.15 and 0.3 s of CPU. That the
    migrations themselves work on both is shown by tests/rooms/test_migrations.py.
    """
    database = _open(normalise_database_url(url))
    if database.is_sqlite:
        path = Path(database.engine.url.database or "")
        if path.stat().st_size == 0:
            path.write_bytes(_migrated_file())
            return database
    elif _became_a_copy(database.engine.url):
        return database
    run_migrations(database.engine, "upgrade", "head")
    return database


def _open(url: str) -> Database:
    return Database(DatabaseSettings.model_validate({"url": url}))


@cache
def _migrated_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "migrated.db"
        database = _open(f"sqlite:///{path}")
        run_migrations(database.engine, "upgrade", "head")
        database.close()
        with closing(sqlite3.connect(path)) as connection:
            return connection.serialize()


def _became_a_copy(url: URL) -> bool:
    """False when something is in the database already. The original stays on that server, under a name of its own."""
    name, original = url.database, "migrated"
    with _connected(url) as cursor:
        cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        if cursor.fetchone() != (0,):
            return False
    with _connected(url.set(database="postgres")) as cursor:
        cursor.execute("SELECT count(*) FROM pg_database WHERE datname = %s", (original,))
        if cursor.fetchone() == (0,):
            cursor.execute(f"CREATE DATABASE {original}")
            first = _open(url.set(database=original).render_as_string(hide_password=False))
            run_migrations(first.engine, "upgrade", "head")
            first.close()
        # Copying files is the cheaper way here, and the only one before PostgreSQL 15.
        strategy = "STRATEGY file_copy" if cursor.connection.server_version >= 150_000 else ""
        cursor.execute(f"DROP DATABASE {name}")
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {original} {strategy}")
    return True


@contextmanager
def _connected(url: URL) -> Iterator[Cursor]:
    with closing(
        psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    ) as connection:
        connection.autocommit = True
        with connection.cursor() as made:
            yield made


def patiently(database: Database, work: Callable[[], T]) -> T:
    """What `work` returns, which is asked again while SQLite is too busy.

    SQLite lets one writer in at a time, in no order, and refuses whoever has waited for 5 s: on a slow disk that may be
    one of several at once. On PostgreSQL a refusal may be a deadlock, which tests look for, and is raised.
    """
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            return work()
        except Unavailable:
            if not database.is_sqlite or time.monotonic() > deadline:
                raise


def make_accounts(clock: Clock, **settings: object) -> Accounts:
    return Accounts(IdentitySettings.model_validate(settings), clock, pepper=PEPPER, password_pepper=PASSWORD_PEPPER)


@dataclass(slots=True)
class IdentityRoom:
    """Organisations, accounts, keys and one worker's identity over one database."""

    database: Database
    clock: ManualClock = field(default_factory=ManualClock)
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def accounts(self) -> Accounts:
        return make_accounts(self.clock, **self.settings)

    @property
    def organisations(self) -> Organisations:
        return Organisations(self.clock)

    @property
    def keys(self) -> ApiKeys:
        return ApiKeys(IdentitySettings.model_validate(self.settings), self.clock, pepper=PEPPER)

    def worker(self) -> Identity:
        """A worker with a memory of its own."""
        return Identity(IdentitySettings.model_validate(self.settings), self.database, PEPPER, self.clock)

    def make_user(
        self, username: str = "alice", role: str = "member", organisation: str = DEFAULT_ORGANISATION_ID
    ) -> str:
        accounts = self.accounts
        user = self.database.run(
            lambda session: accounts.create_user(
                session, username=username, email=EMAIL, role=role, organisation=organisation
            )
        )
        return user.username

    def make_key(
        self,
        username: str = "alice",
        *,
        name: str = "test key",
        kind: str = "live",
        project: str | None = None,
        expires_days: int | None = None,
        scopes: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        requests_per_minute: int | None = None,
        burst: int | None = None,
        concurrent: int | None = None,
        tokens_max: int | None = None,
        allowed_addresses: Sequence[str] | None = None,
        allowed_agents: Sequence[str] | None = None,
    ) -> IssuedKey:
        keys = self.keys
        return self.database.run(
            lambda session: keys.create_api_key(
                session,
                username=username,
                name=name,
                kind=kind,
                project=project,
                expires_days=expires_days,
                scopes=scopes,
                models=models,
                requests_per_minute=requests_per_minute,
                burst=burst,
                concurrent=concurrent,
                tokens_max=tokens_max,
                allowed_addresses=allowed_addresses,
                allowed_agents=allowed_agents,
            )
        )

    def revoke(self, key: IssuedKey) -> None:
        keys = self.keys
        self.database.run(lambda session: keys.revoke_api_key(session, key.api_key.kid))
