"""The schema on real databases: up, down, equal to the models, safe when two start at once."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import flask
import flask_migrate
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import CheckConstraint, inspect, text
from sqlalchemy.exc import DatabaseError

import secure_llm_proxy.admission.models
import secure_llm_proxy.audit.models
import secure_llm_proxy.identity.models
import secure_llm_proxy.routing.tables
from secure_llm_proxy.cli.database_schema import (
    MIGRATIONS,
    current_revision,
    newest_revision,
    require_current_schema,
    run_migrations,
)
from secure_llm_proxy.foundation.database import Database, Model
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import DatabaseSettings
from secure_llm_proxy.settings.database_url import normalise_database_url
from tests.support.postgresql import PrivatePostgreSQL

ROOT = MIGRATIONS.parent
TABLES = {
    "users", "api_keys", "setup_tokens", "identity_revision", "identity_changes", "organisations", "projects",
    "project_members", "kill_switches", "totp_factors", "recovery_codes", "sessions", "login_troubles", "known_devices",
    "address_rules", "address_rules_revision", "audit_index", "audit_anchors", "audit_index_state",
    "providers", "providers_revision", "person_keys",
}  # fmt: skip
KEPT_WHILE_REFERRED_TO = {"api_keys", "users", "projects"}
assert secure_llm_proxy.identity.models  # the tables join Model.metadata when the module is imported


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'app.db'}"
    server = request.getfixturevalue("postgresql")
    assert isinstance(server, PrivatePostgreSQL)
    return normalise_database_url(server.create_database())


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(DatabaseSettings.model_validate({"url": database_url}))
    yield opened
    opened.close()


def tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names()) - {"alembic_version"}


def test_the_schema_goes_up_down_and_up_again(database: Database) -> None:
    run_migrations(database.engine, "upgrade", "head")
    after_first_upgrade = tables(database)
    run_migrations(database.engine, "downgrade", "base")
    after_downgrade = tables(database)
    run_migrations(database.engine, "upgrade", "head")

    assert after_first_upgrade == tables(database) == TABLES
    assert after_downgrade == set()
    assert current_revision(database.engine) == newest_revision()


def test_every_revision_goes_up_and_down_one_step_at_a_time(database: Database) -> None:
    run_migrations(database.engine, "upgrade", "+1")
    while current_revision(database.engine) != newest_revision():
        run_migrations(database.engine, "downgrade", "-1")
        run_migrations(database.engine, "upgrade", "+1")
        run_migrations(database.engine, "upgrade", "+1")

    while current_revision(database.engine) is not None:
        run_migrations(database.engine, "downgrade", "-1")

    assert tables(database) == set()


def test_the_migrated_schema_is_the_models_own(database: Database) -> None:
    run_migrations(database.engine, "upgrade", "head")

    with database.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Model.metadata)

    assert differences == []


def test_the_migrated_schema_holds_what_the_comparison_does_not_look_at(database: Database) -> None:
    run_migrations(database.engine, "upgrade", "head")

    inspector = inspect(database.engine)
    for name in TABLES:
        table = Model.metadata.tables[name]
        named = {check["name"] for check in inspector.get_check_constraints(name)}
        assert named == {constraint.name for constraint in table.constraints if isinstance(constraint, CheckConstraint)}
        assert inspector.get_pk_constraint(name)["name"] == f"pk_{name}"
        for key in inspector.get_foreign_keys(name):
            assert key["options"].get("ondelete") == ("RESTRICT" if name in KEPT_WHILE_REFERRED_TO else "CASCADE")
        if not database.is_sqlite:
            told = {column["name"]: column.get("comment") for column in inspector.get_columns(name)}
            assert told == {column.name: column.comment for column in table.columns}


def triggers(database: Database) -> set[tuple[str, str]]:
    """Every trigger and function of ours with its text."""
    listed = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        if database.is_sqlite
        else "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal "
        "UNION ALL SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    )
    with database.engine.connect() as connection:
        return {(name, body) for name, body in connection.execute(text(listed))}


def test_tables_made_from_the_models_have_the_migrated_schemas_triggers(database: Database) -> None:
    run_migrations(database.engine, "upgrade", "head")
    migrated = triggers(database)
    run_migrations(database.engine, "downgrade", "base")
    after_downgrade = triggers(database)

    Model.metadata.create_all(database.engine)
    made = triggers(database)
    with database.engine.connect() as connection:
        revision = connection.execute(text("SELECT revision FROM identity_revision")).scalar_one()
    Model.metadata.drop_all(database.engine)

    assert made == migrated
    assert len(made) == (14 if database.is_sqlite else 12)
    assert revision == 1
    assert after_downgrade == triggers(database) == set()


def test_users_and_keys_survive_the_revision_that_notes_their_changes_both_ways(database: Database) -> None:
    run_migrations(database.engine, "upgrade", "0001")
    moment = "2026-11-21 00:00:00.000000"
    with database.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO users VALUES ('usr_1', 'a', 'a', 'a@example.org', 'member', 'active', NULL, :at, :at)"),
            {"at": moment},
        )
        connection.execute(
            text(
                "INSERT INTO api_keys VALUES "
                "('key_1', 'kidaaaaa', 'usr_1', 'k', 'd', '[]', NULL, NULL, :at, :at, NULL, NULL)"
            ),
            {"at": moment},
        )

    run_migrations(database.engine, "upgrade", "0002")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE api_keys SET requests_per_minute = 7"))
        noted = connection.execute(text("SELECT subject, revision FROM identity_changes")).all()
    run_migrations(database.engine, "downgrade", "0001")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE users SET status = 'locked'"))
        left = connection.execute(text("SELECT kid, requests_per_minute, status FROM api_keys, users")).all()

    assert [tuple(row) for row in noted] == [("kidaaaaa", 2)]
    assert [tuple(row) for row in left] == [("kidaaaaa", 7, "locked")]


def test_users_and_keys_join_the_first_project_and_what_0002_cannot_say_is_revoked(database: Database) -> None:
    run_migrations(database.engine, "upgrade", "0002")
    moment = "2026-11-21 00:00:00.000000"
    with database.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO users VALUES ('usr_1', 'a', 'a', 'a@example.org', 'member', 'active', NULL, :at, :at)"),
            {"at": moment},
        )
        for number in (1, 2, 3):
            connection.execute(
                text(
                    "INSERT INTO api_keys VALUES (:id, :kid, 'usr_1', 'k', 'd', '[]', NULL, NULL, :at, :at, NULL, NULL)"
                ),
                {"id": f"key_{number}", "kid": f"kidaaaa{number}", "at": moment},
            )

    run_migrations(database.engine, "upgrade", "0003")
    with database.engine.begin() as connection:
        joined = connection.execute(text("SELECT DISTINCT project_id, kind, version FROM api_keys")).all()
        connection.execute(text("UPDATE api_keys SET allowed_addresses = '[]' WHERE id = 'key_1'"))
        connection.execute(
            text("INSERT INTO kill_switches VALUES ('key_2', 'lost laptop', 'host:root', :at)"), {"at": moment}
        )
        noted = connection.execute(text("SELECT subject FROM identity_changes ORDER BY subject")).scalars().all()
    run_migrations(database.engine, "downgrade", "0002")
    with database.engine.begin() as connection:
        alive = connection.execute(text("SELECT id FROM api_keys WHERE revoked_at IS NULL")).scalars().all()
        connection.execute(text("DELETE FROM identity_changes"))
        connection.execute(text("UPDATE api_keys SET requests_per_minute = 7 WHERE id = 'key_3'"))
        noted_again = connection.execute(text("SELECT subject FROM identity_changes")).scalars().all()

    assert [tuple(row) for row in joined] == [("prj_00000000000000000000000000", "live", 1)]
    assert noted == ["*", "kidaaaa1"]
    assert alive == ["key_3"]
    assert noted_again == ["kidaaaa3"]


ANCHOR = (
    "INTO audit_anchors (log, n, root, note, t, first_seen) VALUES "
    "('slp.default/host', 8, :root, 'note', '2026-11-21 00:00:00.000000', '2026-11-21 00:00:10.000000')"
)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_anchors SET root = 'other'",
        "UPDATE audit_anchors SET first_seen = '2026-11-20 00:00:00.000000'",
        "DELETE FROM audit_anchors",
        "TRUNCATE audit_anchors",
        ANCHOR.replace(":root", "'other'").join(("INSERT ", " ON CONFLICT (log, n) DO UPDATE SET root = 'other'")),
        ANCHOR.replace(":root", "'other'").join(("REPLACE ", "")),
    ],
)
def test_an_anchor_is_never_changed_replaced_or_removed(database: Database, change: str) -> None:
    run_migrations(database.engine, "upgrade", "head")
    with database.engine.begin() as connection:
        connection.execute(text(f"INSERT {ANCHOR}"), {"root": "first"})

    # What the other database alone knows is refused as a mistake in its language.
    with contextlib.suppress(DatabaseError), database.engine.begin() as connection:
        connection.execute(text(change))

    with database.engine.connect() as connection:
        kept = connection.execute(text("SELECT root, first_seen FROM audit_anchors")).all()
    assert [(row[0], str(row[1])[:19]) for row in kept] == [("first", "2026-11-21 00:00:10")]


def test_upgrading_what_is_current_changes_nothing(database: Database) -> None:
    run_migrations(database.engine, "upgrade", "head")
    run_migrations(database.engine, "upgrade", "head")

    require_current_schema(database)


def test_a_migration_that_fails_leaves_the_schema_as_it_was(database: Database) -> None:
    with database.engine.begin() as connection:
        # Takes the name of the last index that the migration makes.
        connection.execute(text("CREATE TABLE in_the_way (id INTEGER)"))
        connection.execute(text("CREATE INDEX ix_setup_tokens_user_id ON in_the_way (id)"))

    with pytest.raises(OperatorError):
        run_migrations(database.engine, "upgrade", "head")

    assert tables(database) == {"in_the_way"}
    assert current_revision(database.engine) is None


def test_commands_say_what_to_do_about_an_empty_a_stale_and_a_foreign_schema(database: Database) -> None:
    with pytest.raises(OperatorError, match=r"manage\.py db upgrade"):
        require_current_schema(database)

    run_migrations(database.engine, "upgrade", "head")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(OperatorError, match="newer release"):
        require_current_schema(database)
    with pytest.raises(OperatorError, match="9999"):
        run_migrations(database.engine, "upgrade", "head")


def test_an_unknown_revision_is_one_sentence(database: Database) -> None:
    with pytest.raises(OperatorError, match="nonsense"):
        run_migrations(database.engine, "upgrade", "nonsense")


def test_two_upgrades_at_once_both_end_well(database: Database, database_url: str) -> None:
    program = (
        "import sys\n"
        "from secure_llm_proxy.cli.database_schema import run_migrations\n"
        "from secure_llm_proxy.foundation.database import Database\n"
        "from secure_llm_proxy.settings import DatabaseSettings\n"
        "run_migrations(Database(DatabaseSettings(url=sys.stdin.read())).engine, 'upgrade', 'head')\n"
    )

    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
        )
        for _ in range(3)
    ]
    ends = [racer.communicate(database_url, timeout=120) for racer in racers]

    assert [(racer.returncode, end[1]) for racer, end in zip(racers, ends, strict=True)] == [(0, "")] * 3
    require_current_schema(database)


# Forks a migration for each number and kills it (SIGKILL) behind so many statements; 0: before it commits.
_KILLED_MIGRATIONS = """
import os, signal, sys
from sqlalchemy import event
from secure_llm_proxy.cli.database_schema import current_revision, run_migrations
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.settings import DatabaseSettings
url, *numbers = sys.stdin.read().split()
engine = Database(DatabaseSettings(url=url)).engine

def migrate(number):
    seen = 0
    def count(_connection, _cursor, statement, *_):
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
    def look(_connection):
        if seen > 60:
            os.kill(os.getpid(), signal.SIGKILL)
    event.listen(engine, "after_cursor_execute", count)
    event.listen(engine, "commit", look)
    run_migrations(engine, "upgrade", "head")

for number in map(int, numbers):
    if not (pid := os.fork()):
        migrate(number)
        os._exit(0)
    end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(end, current_revision(engine), flush=True)
    engine.dispose()
"""


def test_a_migration_that_is_killed_is_as_if_it_had_not_begun_and_the_next_run_completes_it(
    database: Database, database_url: str
) -> None:
    run_migrations(database.engine, "upgrade", "0002")
    moment = "2026-11-21 00:00:00.000000"
    with database.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO users VALUES ('usr_1', 'a', 'a', 'a@example.org', 'member', 'active', NULL, :at, :at)"),
            {"at": moment},
        )
    killed_at = (5, 20, 60, 0)

    told = subprocess.run(
        [sys.executable, "-c", _KILLED_MIGRATIONS],
        input=" ".join(map(str, (database_url, *killed_at))), capture_output=True, text=True, cwd=ROOT, check=True, timeout=120,
    ).stdout  # fmt: skip
    run_migrations(database.engine, "upgrade", "head")
    with database.engine.begin() as connection:
        users = connection.execute(text("SELECT id FROM users")).scalars().all()

    assert told.splitlines() == ["-9 0002"] * len(killed_at)
    require_current_schema(database)
    assert users == ["usr_1"]


def test_flask_migrate_runs_the_same_migrations(database: Database, database_url: str) -> None:
    application = flask.Flask("test")
    application.config["SQLALCHEMY_DATABASE_URI"] = database_url
    extension = SQLAlchemy(application, metadata=Model.metadata, disable_autonaming=True)
    flask_migrate.Migrate(application, extension, directory=str(MIGRATIONS))

    with application.app_context():
        flask_migrate.upgrade(directory=str(MIGRATIONS))
        revision = current_revision(database.engine)
        flask_migrate.downgrade(directory=str(MIGRATIONS), revision="base")
        extension.engine.dispose()

    assert revision == newest_revision()
    assert tables(database) == set()


def test_a_database_that_is_away_is_one_sentence_without_its_address(tmp_path: Path) -> None:
    away = Database(DatabaseSettings.model_validate({"url": "postgresql+psycopg2://someone:hidden@127.0.0.1:1/x"}))

    with pytest.raises(OperatorError, match="does not answer") as caught:
        run_migrations(away.engine, "upgrade", "head")

    assert "hidden" not in str(caught.value)
    assert "someone" not in str(caught.value)
    assert not list(tmp_path.iterdir())
