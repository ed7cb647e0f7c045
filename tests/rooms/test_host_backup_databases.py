"""The database's part of a backup, on PostgreSQL itself: out, and back in place of what is there."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from secure_llm_proxy.cli.database_schema import run_migrations
from secure_llm_proxy.cli.host_backup.databases import BackedUpDatabase, PostgreSQL, database_of
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import DatabaseSettings
from secure_llm_proxy.settings.database_url import normalise_database_url
from tests.support.postgresql import PrivatePostgreSQL

# Every character that a file of passwords or a connection string could break at.
PASSWORD = r"a:b\c'd e"


class Taken:
    """Takes a dump as age would."""

    def __init__(self) -> None:
        self.content = io.BytesIO()

    def write(self, piece: bytes) -> int:
        return self.content.write(piece)


@pytest.fixture
def url(postgresql: PrivatePostgreSQL) -> Iterator[str]:
    """A migrated database that an owner of little power works with, as scripts/install makes it."""
    superuser = postgresql.create_database()
    name = make_url(superuser).database
    with closing(psycopg2.connect(superuser)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("DROP ROLE IF EXISTS host_backup")
            cursor.execute("CREATE ROLE host_backup LOGIN PASSWORD %s", (PASSWORD,))
            cursor.execute(f"ALTER DATABASE {name} OWNER TO host_backup")
        own = make_url(superuser).set(username="host_backup", password=PASSWORD).render_as_string(hide_password=False)
        own = normalise_database_url(own)
        run_migrations(Database(DatabaseSettings(url=own)).engine, "upgrade", "head")  # type: ignore[arg-type]
        yield own
        with connection.cursor() as cursor:
            cursor.execute(f"REASSIGN OWNED BY host_backup TO postgres; ALTER DATABASE {name} OWNER TO postgres")


def dumped(database: BackedUpDatabase) -> io.BytesIO:
    taken = Taken()
    database.dump(taken)  # type: ignore[arg-type]
    taken.content.seek(0)
    return taken.content


def organisations(url: str, schema: str = "public") -> list[str]:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT name FROM {schema}.organisations ORDER BY name")  # noqa: S608  a name of ours
        return [name for (name,) in cursor.fetchall()]


def rename_organisation(url: str, name: str) -> None:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE organisations SET name = %s", (name,))
        connection.commit()


def test_a_database_comes_back_and_what_was_there_is_kept_beside_it(url: str) -> None:
    database = database_of(url)
    rename_organisation(url, "before")
    dump = dumped(database)
    rename_organisation(url, "after")

    kept = database.put_back(dump, "20261121T120000Z")

    assert organisations(url) == ["before"]
    assert kept == "schema slp_before_20261121t120000z of the same database"
    assert organisations(url, "slp_before_20261121t120000z") == ["after"]
    # What is kept is no part of the next backup, which comes back as the first did.
    again = dumped(database)
    assert b"slp_before" not in again.getvalue()
    assert "tables with data" in PostgreSQL.check_dump(io.BytesIO(again.getvalue()))
    database.put_back(again, "20261121T130000Z")
    assert organisations(url) == ["before"]


def test_a_dump_that_cannot_be_restored_leaves_the_database_as_it_was(url: str) -> None:
    database = database_of(url)
    dump = dumped(database).getvalue()
    rename_organisation(url, "after")

    for broken in (dump[: len(dump) // 2], b"", b"no dump at all"):
        with pytest.raises(OperatorError, match="pg_restore could not restore the database"):
            database.put_back(io.BytesIO(broken), "20261121T120000Z")

    assert organisations(url) == ["after"]


class Killing(io.BytesIO):
    """A dump whose reader is killed when it comes to the second half."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(len(self.getvalue()) // 2)


def test_a_restore_that_is_killed_in_the_middle_of_the_dump_loses_nothing_and_the_next_one_completes(url: str) -> None:
    database = database_of(url)
    rename_organisation(url, "before")
    dump = dumped(database).getvalue()
    rename_organisation(url, "after")

    child = os.fork()
    if child == 0:
        try:
            database.put_back(Killing(dump), "20261121T120000Z")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    database.put_back(io.BytesIO(dump), "20261121T130000Z")

    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert organisations(url) == ["before"]
    assert organisations(url, "slp_before_20261121t120000z") == ["after"]


def test_rows_that_can_be_made_anew_stay_out_of_a_dump_and_the_checkpoints_do_not(url: str) -> None:
    entries = PostgreSQL.check_dump(dumped(database_of(url)))

    with_data = int(entries.split(", ")[1].split()[0])
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'")
        row = cursor.fetchone()
    assert row is not None
    assert with_data == row[0] - 2
