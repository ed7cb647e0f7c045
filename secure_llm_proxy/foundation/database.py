"""One database engine for the process, and the one way to use it: a function of a session, run as one transaction.

`Database.run(work)` rather than a `with` block, because two things must hold whatever a caller writes (why:
docs/decisions/0002): on SQLite the whole transaction runs in one dedicated thread, since a write lock held over a
greenlet switch would freeze the event loop; and no transaction, on any database, spans I/O to somewhere else.
PostgreSQL runs in the caller's greenlet: psycopg2 waits through gevent when the process is patched.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar, cast

import gevent
import psycopg2.extensions
from gevent import monkey
from gevent.socket import wait_read, wait_write
from gevent.threadpool import ThreadPool
from sqlalchemy import Connection, DateTime, MetaData, String, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor, Dialect
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column
from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from sqlalchemy.types import TypeDecorator

from secure_llm_proxy.foundation.errors import ErrorCode, Unavailable
from secure_llm_proxy.settings import DatabaseSettings

T = TypeVar("T")

_SQLITE_PATIENCE_S = 5
_SQLITE_LOOK_S = 0.02
_PRIMARY_CODE = 0xFF  # of a result code of SQLite's; the rest says more about it


class AwareDateTime(TypeDecorator[datetime]):
    """Aware UTC on both databases. SQLite keeps no zone, so it is put on and taken off here; naive values are refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime must not reach the database")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Timestamp = Annotated[datetime, mapped_column(AwareDateTime())]
PrimaryKey = Annotated[str, mapped_column(String(40), primary_key=True)]


class Model(DeclarativeBase):
    """Base of every table. Constraint names are fixed so that migrations can name them on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Database:
    """Owns the engine. Make one per process, after the fork."""

    def __init__(self, settings: DatabaseSettings) -> None:
        url = make_url(settings.url.get_secret_value())
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if url.database and url.database != ":memory:":
                Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # SQLite makes its files as readable as the umask allows; users and key digests are nobody else's.
                Path(url.database).touch(mode=0o600)
            self.engine = create_engine(url, poolclass=NullPool if url.database else None)
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_immediate)
        else:
            self.engine = create_engine(
                url,
                pool_size=settings.pool_size,
                max_overflow=settings.max_overflow,
                pool_timeout=settings.pool_timeout_s,
                pool_recycle=settings.pool_recycle_s,
                pool_pre_ping=True,
                connect_args={"connect_timeout": 5, "application_name": "secure_llm_proxy"},
            )
            if monkey.is_module_patched("socket"):
                psycopg2.extensions.set_wait_callback(_wait_in_greenlet)
        self._thread: ThreadPool | None = None

    def run(self, work: Callable[[Session], T]) -> T:
        """Run `work(session)` in one transaction: commit when it returns, roll back when it raises.

        Raises `Unavailable(database_unavailable)` when the database is away, whatever its driver calls that.
        """
        try:
            if self.is_sqlite and monkey.is_module_patched("threading"):
                if self._thread is None:
                    self._thread = ThreadPool(1)
                result, error = self._thread.apply(self._outcome, (work,))
                if error is not None:
                    raise error
                return cast("T", result)
            return self._transact(work)
        except (OperationalError, PoolTimeout) as error:
            raise _unavailable(error) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise _unavailable(error) from error
            raise

    def trouble(self) -> str | None:
        """A sentence for the operator when the database does not answer, else None."""
        try:
            with gevent.Timeout(3):
                self.run(lambda session: session.execute(text("SELECT 1")).scalar_one())
        except Unavailable as error:
            return f"the database does not answer ({error.detail})"
        except gevent.Timeout:
            return "the database does not answer within 3 s"
        return None

    def close(self) -> None:
        self.engine.dispose()

    def _outcome(self, work: Callable[[Session], object]) -> tuple[object, BaseException | None]:
        """For the thread: gevent would print whatever is raised in there, also what its caller expects."""
        try:
            return self._transact(work), None
        except BaseException as error:  # noqa: BLE001  it is raised again where it was asked for
            return None, error

    def _transact(self, work: Callable[[Session], T]) -> T:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            return work(session)


def _unavailable(error: Exception) -> Unavailable:
    # The driver's own words name hosts and users: only its class goes into the log.
    cause = getattr(error, "orig", None) or error
    return Unavailable(
        "The proxy's database is unavailable; try again shortly.",
        code=ErrorCode.DATABASE_UNAVAILABLE,
        detail=type(cause).__name__,
        retry_after_s=2,
    )


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # pysqlite's own transaction handling is off, so that BEGIN IMMEDIATE below is the one that counts.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={_SQLITE_PATIENCE_S * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _write_ahead(cursor)
    cursor.close()


def _write_ahead(cursor: DBAPICursor) -> None:
    """Only the first connection to a file has something to change; of several at once SQLite refuses all but one, and for
    this alone `busy_timeout` does not let them wait.
    """
    deadline_s = time.monotonic() + _SQLITE_PATIENCE_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & _PRIMARY_CODE == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline_s:
                raise
            time.sleep(_SQLITE_LOOK_S)
        else:
            return


def _begin_immediate(connection: Connection) -> None:
    # A deferred transaction that turns into a write fails at once when another process wrote meanwhile.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _wait_in_greenlet(connection: psycopg2.extensions.connection) -> None:
    """Let other greenlets run while libpq waits (psycopg 2.9 documentation, "Coroutine support")."""
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        if state == psycopg2.extensions.POLL_READ:
            wait_read(connection.fileno())
        elif state == psycopg2.extensions.POLL_WRITE:
            wait_write(connection.fileno())
        else:
            raise psycopg2.OperationalError(f"unexpected poll state {state}")
