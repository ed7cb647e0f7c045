"""PostgreSQL's connections are as many as the settings say; who finds none free is told so, and served when one is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
