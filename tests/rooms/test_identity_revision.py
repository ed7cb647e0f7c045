"""What changes in the database reaches a worker that remembers keys, whoever changes it; what doesn't matter doesn't."""

from __future__ import annotations

import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, insert, make_url, text

from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, Unavailable
from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, DEFAULT_PROJECT_ID, Identity, IssuedKey
from secure_llm_proxy.identity.api_keys import checksum_of, digest_of
from secure_llm_proxy.identity.models import ApiKeyRow, UserRow
from secure_llm_proxy.settings.database_url import normalise_database_url
from tests.support.identity_room import PEPPER, IdentityRoom, migrated_database
from tests.support.postgresql import PrivatePostgreSQL

# Somebody else's program, which knows nothing of ours: the address, then a statement, on its standard input.
_ELSEWHERE = """
import sys
address, statement = sys.stdin.read().split("\\n", 1)
if address.startswith("postgresql"):
    import psycopg2 as driver
else:
    import sqlite3 as driver
connection = driver.connect(address)
connection.cursor().execute(statement)
connection.commit()
connection.close()
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[IdentityRoom]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'app.db'}"
    else:
        server = request.getfixturevalue("postgresql")
        assert isinstance(server, PrivatePostgreSQL)
        url = server.create_database()
    database = migrated_database(url)
    yield IdentityRoom(database)
    database.close()


@pytest.fixture
def sqlite_room(tmp_path: Path) -> Iterator[IdentityRoom]:
    database = migrated_database(f"sqlite:///{tmp_path / 'app.db'}")
    yield IdentityRoom(database)
    database.close()


@pytest.fixture
def postgresql_room(postgresql: PrivatePostgreSQL) -> Iterator[IdentityRoom]:
    database = migrated_database(normalise_database_url(postgresql.create_database()))
    yield IdentityRoom(database)
    database.close()


@pytest.fixture
def key(room: IdentityRoom) -> IssuedKey:
    room.make_user()
    return room.make_key()


def run_sql(room: IdentityRoom, statement: str, **parameters: object) -> None:
    with room.database.engine.begin() as connection:
        connection.execute(text(statement), parameters)


def run_sql_elsewhere(room: IdentityRoom, statement: str) -> None:
    url = room.database.engine.url
    if room.database.is_sqlite:
        assert url.database is not None
        address = url.database
    else:
        address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run(
        [sys.executable, "-c", _ELSEWHERE], input=f"{address}\n{statement}", text=True, check=True, timeout=60
    )


def revision_of(room: IdentityRoom) -> int:
    with room.database.engine.connect() as connection:
        return int(connection.execute(text("SELECT revision FROM identity_revision")).scalar_one())


def changes_of(room: IdentityRoom) -> dict[str, int]:
    with room.database.engine.connect() as connection:
        return {
            subject: int(at)
            for subject, at in connection.execute(text("SELECT subject, revision FROM identity_changes"))
        }


def refusal_of(identity: Identity, key: IssuedKey) -> ErrorCode:
    with pytest.raises(AuthenticationFailed) as caught:
        identity.identify((key.secret,))
    return caught.value.code


def count_queries(room: IdentityRoom) -> list[str]:
    statements: list[str] = []
    event.listen(
        room.database.engine, "before_cursor_execute", lambda _c, _cu, statement, *_: statements.append(statement)
    )
    return statements


@pytest.mark.parametrize(
    "assignment",
    [
        "digest = digest",
        "scopes = '[\"chat\"]'",
        "models = '[\"demo\"]'",
        "requests_per_minute = 7",
        "expires_at = '2027-01-01 00:00:00.000000'",
        "revoked_at = '2026-11-21 00:00:00.000000'",
        "user_id = user_id",
        "kid = 'abcdefgh'",
        "last_used_at = NULL, requests_per_minute = 7",
    ],
)
def test_each_column_of_a_key_that_matters_advances_the_revision_and_names_the_key(
    room: IdentityRoom, key: IssuedKey, assignment: str
) -> None:
    before = revision_of(room)

    run_sql(room, f"UPDATE api_keys SET {assignment}")  # noqa: S608

    assert revision_of(room) > before
    assert changes_of(room)[key.api_key.kid] == revision_of(room)


@pytest.mark.parametrize("assignment", ["role = 'viewer'", "status = 'locked'"])
def test_each_column_of_a_user_that_matters_advances_the_revision_and_names_the_user(
    room: IdentityRoom, key: IssuedKey, assignment: str
) -> None:
    before = revision_of(room)

    run_sql(room, f"UPDATE users SET {assignment}")  # noqa: S608

    assert revision_of(room) > before
    assert changes_of(room) == {key.api_key.user_id: revision_of(room)}


def test_what_identification_does_not_read_advances_nothing(room: IdentityRoom, key: IssuedKey) -> None:
    before, worker = revision_of(room), room.worker()

    run_sql(room, "UPDATE api_keys SET last_used_at = '2026-11-21 00:00:00.000000'")
    run_sql(room, "UPDATE api_keys SET name = 'another'")
    run_sql(
        room,
        "UPDATE users SET email = 'b@example.org', username = 'Alice', password_hash = 'x', updated_at = updated_at",
    )
    worker.identify((key.secret,))
    room.clock.advance(86_400)
    worker.identify((key.secret,))
    written = worker.flush_last_used()
    room.make_user("bob")
    room.make_key("bob")

    assert written == 1
    assert revision_of(room) == before
    assert changes_of(room) == {}


def test_a_change_rolled_back_is_none(room: IdentityRoom, key: IssuedKey) -> None:
    before = revision_of(room)

    with room.database.engine.connect() as connection:
        connection.execute(text("UPDATE api_keys SET requests_per_minute = 7"))
        connection.rollback()

    assert revision_of(room) == before
    assert key.api_key.kid not in changes_of(room)


@pytest.mark.parametrize(
    ("statement", "refusal"),
    [
        ("UPDATE api_keys SET revoked_at = '2026-11-21 00:00:00.000000'", ErrorCode.API_KEY_REVOKED),
        ("UPDATE api_keys SET expires_at = '2026-11-21 00:00:00.000000'", ErrorCode.API_KEY_EXPIRED),
        ("UPDATE api_keys SET kid = 'abcdefgh'", ErrorCode.INVALID_API_KEY),
        ("DELETE FROM api_keys", ErrorCode.INVALID_API_KEY),
        ("UPDATE users SET status = 'locked' WHERE username_normalised = 'alice'", ErrorCode.ACCOUNT_LOCKED),
        (
            "UPDATE api_keys SET user_id = (SELECT id FROM users WHERE status = 'locked')",
            ErrorCode.ACCOUNT_LOCKED,
        ),
    ],
)
def test_what_another_process_changes_by_sql_is_seen_within_five_seconds(
    room: IdentityRoom, key: IssuedKey, statement: str, refusal: ErrorCode
) -> None:
    room.make_user("mallory")
    run_sql(room, "UPDATE users SET status = 'locked' WHERE username_normalised = 'mallory'")
    worker = room.worker()
    worker.identify((key.secret,))

    run_sql_elsewhere(room, statement)
    room.clock.advance(5.0)

    assert refusal_of(worker, key) is refusal


def test_a_change_of_one_key_costs_the_others_nothing(room: IdentityRoom, key: IssuedKey) -> None:
    others = [room.make_key() for _ in range(3)]
    worker = room.worker()
    for each in (key, *others):
        worker.identify((each.secret,))
    room.revoke(key)
    room.clock.advance(2)
    statements = count_queries(room)

    for each in others:
        worker.identify((each.secret,))
    asked = [statement for statement in statements if "digest" in statement]

    assert asked == []
    assert refusal_of(worker, key) is ErrorCode.API_KEY_REVOKED


def test_a_new_role_and_new_rights_are_seen(room: IdentityRoom, key: IssuedKey) -> None:
    worker = room.worker()
    before = worker.identify((key.secret,))

    run_sql(room, "UPDATE users SET role = 'viewer'")
    run_sql(room, "UPDATE api_keys SET models = '[\"demo\"]', scopes = '[\"models\"]', requests_per_minute = 3")
    room.clock.advance(2)
    after = worker.identify((key.secret,))

    assert (before.role, before.models, before.requests_per_minute) == ("member", None, None)
    assert (after.role, after.models, after.requests_per_minute) == ("viewer", frozenset({"demo"}), 3)
    assert after.scopes == {"models"}


def test_locking_and_unlocking_a_user_is_seen_for_every_key_of_that_user_and_no_other(
    room: IdentityRoom, key: IssuedKey
) -> None:
    second = room.make_key()
    room.make_user("bob")
    bobs = room.make_key("bob")
    worker, accounts = room.worker(), room.accounts
    for each in (key, second, bobs):
        worker.identify((each.secret,))

    room.database.run(lambda session: accounts.lock_user(session, "alice"))
    room.clock.advance(2)
    locked = [refusal_of(worker, each) for each in (key, second)]
    bob = worker.identify((bobs.secret,))
    room.database.run(lambda session: accounts.unlock_user(session, "alice"))
    room.clock.advance(2)

    assert locked == [ErrorCode.ACCOUNT_LOCKED] * 2
    assert bob.key_id == bobs.api_key.kid
    assert worker.identify((second.secret,)).key_id == second.api_key.kid


def test_a_key_of_a_locked_user_is_read_along_as_locked(room: IdentityRoom, key: IssuedKey) -> None:
    room.make_user("bob")
    bobs = room.make_key("bob")
    accounts, worker = room.accounts, room.worker()
    room.database.run(lambda session: accounts.lock_user(session, "bob"))

    worker.identify((key.secret,))

    assert refusal_of(worker, bobs) is ErrorCode.ACCOUNT_LOCKED


def test_a_key_expires_without_any_change_though_only_read_along(room: IdentityRoom, key: IssuedKey) -> None:
    short = room.make_key(expires_days=1)
    worker = room.worker()
    worker.identify((key.secret,))
    room.clock.advance(86_399)
    alive = worker.identify((short.secret,))

    room.clock.advance(1)

    assert alive.key_id == short.api_key.kid
    assert refusal_of(worker, short) is ErrorCode.API_KEY_EXPIRED


def test_a_key_made_after_the_others_were_read_works_at_once(room: IdentityRoom, key: IssuedKey) -> None:
    worker = room.worker()
    worker.identify((key.secret,))

    made = room.make_key()

    assert worker.identify((made.secret,)).key_id == made.api_key.kid


def test_a_key_put_in_place_of_another_is_seen(sqlite_room: IdentityRoom) -> None:
    sqlite_room.make_user()
    key = sqlite_room.make_key()
    worker = sqlite_room.worker()
    worker.identify((key.secret,))

    run_sql(
        sqlite_room,
        "REPLACE INTO api_keys (id, kid, kind, user_id, project_id, name, digest, scopes, version, created_at, expires_at, "
        "revoked_at) SELECT id, kid, kind, user_id, project_id, name, digest, scopes, version, created_at, expires_at, "
        "'2026-11-21 00:00:00.000000' FROM api_keys",
    )
    sqlite_room.clock.advance(2)

    assert refusal_of(worker, key) is ErrorCode.API_KEY_REVOKED


def test_the_clause_of_a_statement_about_conflicts_silences_no_trigger(sqlite_room: IdentityRoom) -> None:
    sqlite_room.make_user()
    key = sqlite_room.make_key()
    worker = sqlite_room.worker()
    worker.identify((key.secret,))
    run_sql(sqlite_room, "UPDATE api_keys SET requests_per_minute = 5")

    run_sql(sqlite_room, "UPDATE OR IGNORE api_keys SET revoked_at = '2026-11-21 00:00:00.000000'")
    sqlite_room.clock.advance(2)

    assert refusal_of(worker, key) is ErrorCode.API_KEY_REVOKED


def test_a_table_emptied_at_once_is_seen(postgresql_room: IdentityRoom) -> None:
    postgresql_room.make_user()
    key = postgresql_room.make_key()
    worker = postgresql_room.worker()
    worker.identify((key.secret,))

    run_sql(postgresql_room, "TRUNCATE api_keys")
    postgresql_room.clock.advance(2)

    assert refusal_of(worker, key) is ErrorCode.INVALID_API_KEY


def test_a_change_committed_late_is_seen_though_the_key_was_looked_up_meanwhile(postgresql_room: IdentityRoom) -> None:
    postgresql_room.make_user()
    key = postgresql_room.make_key()
    worker = postgresql_room.worker()

    with postgresql_room.database.engine.connect() as connection:
        connection.execute(text("UPDATE users SET status = 'locked'"))
        meanwhile = worker.identify((key.secret,))
        postgresql_room.clock.advance(2)
        worker.identify((key.secret,))
        connection.commit()
    postgresql_room.clock.advance(2)

    assert meanwhile.key_id == key.api_key.kid
    assert refusal_of(worker, key) is ErrorCode.ACCOUNT_LOCKED


def test_an_answer_older_than_a_change_already_heard_of_is_not_remembered(postgresql_room: IdentityRoom) -> None:
    room = postgresql_room
    room.make_user()
    steady = room.make_key()
    worker = room.worker()
    worker.identify((steady.secret,))
    late = room.make_key()
    happened: list[str] = []

    def revoke_and_hear_of_it(_c: object, _cu: object, statement: str, *_: object) -> None:
        if "digest = " in statement and not happened:
            happened.append(statement)
            room.revoke(late)
            room.clock.advance(2)
            worker.identify((steady.secret,))

    event.listen(room.database.engine, "after_cursor_execute", revoke_and_hear_of_it)
    asked_before = worker.identify((late.secret,))

    assert happened
    assert asked_before.key_id == late.api_key.kid
    assert refusal_of(worker, late) is ErrorCode.API_KEY_REVOKED


def test_a_thousand_changes_in_one_transaction_are_one_revision_on_postgresql(postgresql_room: IdentityRoom) -> None:
    plant_keys(postgresql_room, 1000)
    before = revision_of(postgresql_room)

    run_sql(postgresql_room, "UPDATE api_keys SET requests_per_minute = 7")

    assert revision_of(postgresql_room) == before + 1
    assert set(changes_of(postgresql_room).values()) == {before + 1}


def test_a_worker_that_missed_very_many_changes_forgets_everything_and_stays_right(room: IdentityRoom) -> None:
    keys = plant_keys(room, 10_500)
    worker = room.worker()
    before = worker.identify((keys[0],))

    run_sql(room, "UPDATE api_keys SET requests_per_minute = 7")
    room.clock.advance(2)
    after = [worker.identify((key,)).requests_per_minute for key in keys[:5]]

    assert before.requests_per_minute is None
    assert after == [7] * 5


@pytest.mark.parametrize("loss", ["UPDATE identity_revision SET revision = 0", "DELETE FROM identity_revision"])
def test_a_revision_that_was_lost_or_set_back_makes_workers_forget(
    room: IdentityRoom, key: IssuedKey, loss: str
) -> None:
    run_sql(room, "UPDATE api_keys SET requests_per_minute = 7")
    worker = room.worker()
    worker.identify((key.secret,))

    run_sql(room, loss)
    run_sql(room, "UPDATE api_keys SET revoked_at = '2026-11-21 00:00:00.000000'")
    room.clock.advance(2)

    assert refusal_of(worker, key) is ErrorCode.API_KEY_REVOKED


def test_without_requests_nobody_asks_and_after_hours_only_changes_are_asked_for(
    room: IdentityRoom, key: IssuedKey
) -> None:
    worker = room.worker()
    worker.identify((key.secret,))
    statements = count_queries(room)

    room.clock.advance(36_000)
    idle = list(statements)
    worker.identify((key.secret,))

    assert idle == []
    assert [statement for statement in statements if "digest" in statement] == []


def test_after_hours_without_requests_an_absent_database_makes_no_key_good(
    sqlite_room: IdentityRoom, tmp_path: Path
) -> None:
    sqlite_room.make_user()
    key = sqlite_room.make_key()
    worker = sqlite_room.worker()
    worker.identify((key.secret,))
    (tmp_path / "app.db").rename(tmp_path / "aside.db")
    (tmp_path / "app.db").mkdir()

    sqlite_room.clock.advance(36_000)

    with pytest.raises(Unavailable):
        worker.identify((key.secret,))


def test_keys_read_along_are_good_for_a_minute_while_the_database_is_away(
    sqlite_room: IdentityRoom, tmp_path: Path
) -> None:
    sqlite_room.make_user()
    used, read_along = sqlite_room.make_key(), sqlite_room.make_key()
    worker = sqlite_room.worker()
    worker.identify((used.secret,))
    (tmp_path / "app.db").rename(tmp_path / "aside.db")
    (tmp_path / "app.db").mkdir()

    sqlite_room.clock.advance(60)
    caller = worker.identify((read_along.secret,))
    sqlite_room.clock.advance(0.1)

    assert caller.key_id == read_along.api_key.kid
    with pytest.raises(Unavailable) as too_old:
        worker.identify((read_along.secret,))
    assert too_old.value.status == 503


def test_of_a_hundred_thousand_keys_those_in_use_are_looked_up_page_by_page_and_once(room: IdentityRoom) -> None:
    keys = plant_keys(room, 100_000)
    worker, statements = room.worker(), count_queries(room)
    order = random.Random(20_261_121)
    used = order.sample(keys, 20_000)

    for key in used:
        worker.identify((key,))
    first_pass = len(statements)
    order.shuffle(used)
    for key in used:
        worker.identify((key,))
    second_pass = len(statements) - first_pass
    written = worker.flush_last_used()
    flush = len(statements) - first_pass - second_pass

    assert first_pass < 1500
    assert second_pass == 0
    assert written == 20_000
    assert flush <= 40


def plant_keys(room: IdentityRoom, count: int) -> list[str]:
    """`count` keys of one user, of a cheaper make than the product's own."""
    now = room.clock.now()
    user = {
        "id": "usr_planted",
        "username": "planted",
        "username_normalised": "planted",
        "email": "p@example.org",
        "organisation_id": DEFAULT_ORGANISATION_ID,
    }
    keys, rows = [], []
    for number in range(count):
        kid = f"{secrets.token_hex(2)[:3]}{number:05d}"
        body = f"slp_live_{kid}_{secrets.token_hex(16)}"
        keys.append(body + checksum_of(body))
        rows.append(
            {
                "id": f"key_{number}",
                "kid": kid,
                "kind": "live",
                "user_id": user["id"],
                "project_id": DEFAULT_PROJECT_ID,
                "name": "planted",
                "digest": digest_of(PEPPER, keys[-1]),
                "scopes": ["chat"],
                "created_at": now,
                "expires_at": now + timedelta(days=90),
            }
        )
    with room.database.engine.begin() as connection:
        connection.execute(
            insert(UserRow), [{**user, "role": "member", "status": "active", "created_at": now, "updated_at": now}]
        )
        for begin in range(0, count, 5000):
            connection.execute(insert(ApiKeyRow), rows[begin : begin + 5000])
    return keys
