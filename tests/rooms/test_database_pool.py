"""Connections: PostgreSQL's are as many as the settings say, and who finds none free is told so; a new SQLite file is shared."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import ErrorCode, Unavailable
from secure_llm_proxy.settings import DatabaseSettings
from secure_llm_proxy.settings.database_url import normalise_database_url
from tests.support.postgresql import PrivatePostgreSQL


@pytest.fixture
def database(postgresql: PrivatePostgreSQL) -> Iterator[Database]:
    """One connection kept, one more under load."""
    url = SecretStr(normalise_database_url(postgresql.create_database()))
    small = Database(DatabaseSettings(url=url, pool_size=1, max_overflow=1, pool_timeout_s=0.2))
    yield small
    small.close()


def test_a_full_pool_is_told_after_its_patience_and_serves_again(database: Database) -> None:
    both_busy, done = threading.Barrier(3), threading.Event()

    def hold(session: Session) -> int:
        answer: int = session.execute(text("SELECT 1")).scalar_one()
        both_busy.wait(30)
        assert done.wait(30)
        return answer

    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(database.run, hold) for _ in range(2)]
        both_busy.wait(30)
        with pytest.raises(Unavailable) as refused:
            database.run(lambda session: session.execute(text("SELECT 1")).scalar_one())
        done.set()
        answers = [future.result(30) for future in held]
    after = database.run(lambda session: session.execute(text("SELECT 2")).scalar_one())

    assert (refused.value.code, refused.value.status) == (ErrorCode.DATABASE_UNAVAILABLE, 503)
    assert answers == [1, 1]
    assert after == 2


def test_a_new_sqlite_file_that_another_program_is_writing_to_is_waited_for(tmp_path: Path) -> None:
    """As when two programs migrate it at once; SQLite itself refuses to turn on its write-ahead log meanwhile."""
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE things (name TEXT)")
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO things VALUES ('one')")
        ending = threading.Timer(0.5, lambda: other.execute("COMMIT"))
        ending.start()
        found = Database(DatabaseSettings(url=SecretStr(f"sqlite:///{path}"))).run(
            lambda session: session.execute(text("SELECT name FROM things")).scalar_one()
        )
        ending.join()
    with closing(sqlite3.connect(path)) as another:
        mode = another.execute("PRAGMA journal_mode").fetchone()

    assert found == "one"
    assert mode == ("wal",)
