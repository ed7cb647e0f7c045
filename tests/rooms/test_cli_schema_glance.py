"""A glance at the schema says yes only where the long look would, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from secure_llm_proxy.cli import database_schema
from secure_llm_proxy.cli.schema_glance import is_surely_current, newest_revision
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.settings import DatabaseSettings
from secure_llm_proxy.settings.database_url import normalise_database_url
from tests.support.postgresql import PrivatePostgreSQL

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PrivatePostgreSQL]:
    with PrivatePostgreSQL() as server:
        yield server


def section(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(normalise_database_url(url)))


def migrate(settings: DatabaseSettings, *, back: bool = False) -> None:
    database = Database(settings)
    try:
        database_schema.run_migrations(database.engine, "downgrade" if back else "upgrade", "base" if back else "head")
    finally:
        database.close()


def test_the_newest_revision_is_the_one_that_alembic_finds() -> None:
    assert newest_revision(ROOT / "migrations" / "versions") == database_schema.newest_revision()


def test_of_several_revisions_the_newest_is_the_one_nobody_builds_on(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('revision = "0001"\ndown_revision = None\n')
    (tmp_path / "b.py").write_text('revision: str = "0002"\ndown_revision: str | None = "0001"\n')

    assert newest_revision(tmp_path) == "0002"


@pytest.mark.parametrize(
    "further",
    [
        'revision = "0002"\ndown_revision = None\n',  # two heads
        'revision = "0002"\ndown_revision = ("0001", "0000")\n',  # a merge
        'revision = "0002"\ndown_revision = "0000"\n',  # built on something that is not there
        "revision = compute()\n",
    ],
)
def test_revisions_that_are_not_plain_are_a_doubt(tmp_path: Path, further: str) -> None:
    (tmp_path / "a.py").write_text('revision = "0001"\ndown_revision = None\n')
    (tmp_path / "b.py").write_text(further)

    assert newest_revision(tmp_path) is None


def test_sqlite_is_current_after_the_upgrade_and_in_no_other_state(tmp_path: Path) -> None:
    file = tmp_path / "what a name#.db"
    settings = section(f"sqlite:///{file}")

    absent = is_surely_current(settings)
    was_made = file.exists()
    migrate(settings)
    upgraded = is_surely_current(settings)
    migrate(settings, back=True)
    taken_back = is_surely_current(settings)
    file.write_bytes(b"no database at all" * 100)

    assert (absent, was_made, upgraded, taken_back) == (False, False, True, False)
    assert not is_surely_current(settings)


def test_postgresql_is_current_after_the_upgrade_and_in_no_other_state(postgresql: PrivatePostgreSQL) -> None:
    url = postgresql.create_database()
    settings = section(url)

    empty = is_surely_current(settings)
    migrate(settings)
    upgraded = is_surely_current(settings)
    migrate(settings, back=True)

    assert (empty, upgraded) == (False, True)
    assert not is_surely_current(settings)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///file?mode=ro",
        "postgresql://user:p@ss@127.0.0.1:1/name",
        "postgresql://user:p?ss@127.0.0.1:1/name",
        "postgresql://user:password@127.0.0.1:1/nobody-listens",
        "mysql://user:password@127.0.0.1/name",
    ],
)
def test_what_is_absent_or_can_be_read_in_two_ways_is_a_doubt(url: str) -> None:
    assert not is_surely_current(section(url))


def test_a_server_is_not_started_on_an_older_schema(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "INSTANCE_DIR": str(tmp_path / "instance"), "SECRET_KEY": "s" * 40}
    environment |= {"ENCRYPTION_KEY": "e" * 40, "AUDIT_KEK": "ab" * 32}
    settings = section(f"sqlite:///{tmp_path}/instance/app.db")
    migrate(settings)
    migrate(settings, back=True)

    refused = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "serve"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert (refused.returncode, refused.stdout) == (1, "")
    assert "manage.py db upgrade" in refused.stderr
    assert not (tmp_path / "instance" / "run" / "serve.lock").exists()
