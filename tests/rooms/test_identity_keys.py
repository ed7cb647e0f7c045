"""Who a key stands for: on SQLite and PostgreSQL, remembered, forgotten, expired, and while the database is away."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from sqlalchemy import event, text

from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, Unavailable
from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, DEFAULT_PROJECT_ID, Identity, IssuedKey, draw_api_key
from secure_llm_proxy.identity.api_keys import BASE62, checksum_of
from secure_llm_proxy.vocabulary.caller import ANONYMOUS_KEY_ID, Caller
from tests.support.identity_room import PEPPER, IdentityRoom, migrated_database
from tests.support.postgresql import PrivatePostgreSQL


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
def key(room: IdentityRoom) -> IssuedKey:
    room.make_user()
    return room.make_key()


def refusal_of(identity: Identity, *credentials: str) -> AuthenticationFailed:
    with pytest.raises(AuthenticationFailed) as caught:
        identity.identify(credentials)
    return caught.value


def count_queries(room: IdentityRoom) -> list[str]:
    statements: list[str] = []
    event.listen(
        room.database.engine, "before_cursor_execute", lambda _c, _cu, statement, *_: statements.append(statement)
    )
    return statements


def with_another_secret(key: IssuedKey) -> str:
    body = f"slp_live_{key.api_key.kid}_" + draw_api_key().secret[18:50]
    return body + checksum_of(body)


def test_a_key_identifies_its_owner_and_what_it_may_do(room: IdentityRoom) -> None:
    room.make_user("alice", "operator")
    key = room.make_key(scopes=("chat",), models=("gpt-4o", "demo"), requests_per_minute=7, expires_days=3)

    caller = room.worker().identify((key.secret,))

    assert caller == Caller(
        user_id=key.api_key.user_id,
        key_id=key.api_key.kid,
        role="operator",
        scopes=frozenset({"chat"}),
        models=frozenset({"gpt-4o", "demo"}),
        requests_per_minute=7,
        expires_at=room.clock.now() + timedelta(days=3),
        project_id=DEFAULT_PROJECT_ID,
        organisation_id=DEFAULT_ORGANISATION_ID,
    )
    assert caller.key_id != ANONYMOUS_KEY_ID


def test_the_same_key_in_two_headers_is_one_key(room: IdentityRoom, key: IssuedKey) -> None:
    caller = room.worker().identify((key.secret, "", key.secret))

    assert caller.key_id == key.api_key.kid
    assert caller.scopes == {"chat", "models"}
    assert caller.models is None


def test_different_keys_in_one_request_are_refused_though_both_are_good(room: IdentityRoom, key: IssuedKey) -> None:
    other = room.make_key()

    refusal = refusal_of(room.worker(), key.secret, other.secret)

    assert refusal.code is ErrorCode.INVALID_API_KEY
    assert refusal.public.startswith("Incorrect API key provided")


@pytest.mark.parametrize("credentials", [(), ("",), ("", "")])
def test_a_request_without_a_key_is_told_where_to_put_it(
    sqlite_room: IdentityRoom, credentials: tuple[str, ...]
) -> None:
    sqlite_room.settings = {"api_key_header": "X-Our-Key"}

    refusal = refusal_of(sqlite_room.worker(), *credentials)

    assert refusal.code is ErrorCode.MISSING_API_KEY
    assert (refusal.status, refusal.type) == (401, "authentication_error")
    assert "Authorization" in refusal.public
    assert "X-Our-Key" in refusal.public


def test_without_required_authentication_a_caller_without_a_key_is_anonymous_and_a_bad_key_is_refused(
    sqlite_room: IdentityRoom,
) -> None:
    sqlite_room.settings = {"authentication_required": False}
    worker = sqlite_room.worker()

    caller = worker.identify(())

    assert caller.key_id == ANONYMOUS_KEY_ID
    assert (caller.role, caller.scopes) == ("member", frozenset({"chat", "models"}))
    assert refusal_of(worker, "whatever").code is ErrorCode.INVALID_API_KEY


def test_a_malformed_key_is_refused_before_anything_is_looked_up(sqlite_room: IdentityRoom) -> None:
    worker, statements = sqlite_room.worker(), count_queries(sqlite_room)
    good = draw_api_key().secret

    for bad in (
        "x",
        "sk-abc",
        good[:-1],
        good[:-1] + ("a" if good[-1] != "a" else "b"),
        good + "0",
        "ключ",
        "\x00" * 56,
    ):
        refusal = refusal_of(worker, bad)
        assert refusal.code is ErrorCode.INVALID_API_KEY
        assert bad not in refusal.public + str(refusal.detail)

    assert statements == []


def test_unknown_keys_and_wrong_secrets_are_refused_in_the_same_words(room: IdentityRoom, key: IssuedKey) -> None:
    worker = room.worker()
    unknown = draw_api_key().secret
    guessed = with_another_secret(key)

    refusals = [refusal_of(worker, credential) for credential in (unknown, guessed, "sk-abc")]

    assert {refusal.public for refusal in refusals} == {"Incorrect API key provided."}
    assert {refusal.code for refusal in refusals} == {ErrorCode.INVALID_API_KEY}
    assert worker.identify((key.secret,)).key_id == key.api_key.kid


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(position=strategies.integers(18, 49), replacement=strategies.sampled_from(BASE62))
def test_a_secret_with_one_character_changed_and_its_checksum_mended_is_refused(
    sqlite_room: IdentityRoom, position: int, replacement: str
) -> None:
    if not sqlite_room.database.run(sqlite_room.accounts.list_users):
        sqlite_room.make_user()
    sqlite_room.settings = {"keys_per_user_max": 10_000}
    key = sqlite_room.make_key()

    changed = key.secret[:position] + replacement + key.secret[position + 1 : 50]
    changed += checksum_of(changed)

    if changed != key.secret:
        assert refusal_of(sqlite_room.worker(), changed).code is ErrorCode.INVALID_API_KEY


def test_a_verified_key_is_never_looked_up_again_only_changes_are_asked_for(room: IdentityRoom, key: IssuedKey) -> None:
    worker = room.worker()
    worker.identify((key.secret,))
    statements = count_queries(room)

    room.clock.advance(1.25)
    worker.identify((key.secret,))
    at_once = list(statements)
    room.clock.advance(0.1)
    for _ in range(3):
        worker.identify((key.secret,))
    soon = [statement for statement in statements if statement != "BEGIN IMMEDIATE"]
    room.clock.advance(86_400)
    worker.identify((key.secret,))

    assert at_once == []
    assert len(soon) == 1
    assert "FROM identity_revision" in soon[0]
    assert not any("FROM api_keys" in statement for statement in statements)


def test_a_revoked_key_dies_within_the_cache_age(room: IdentityRoom, key: IssuedKey) -> None:
    worker = room.worker()
    worker.identify((key.secret,))

    room.revoke(key)
    room.clock.advance(5.01)

    refusal = refusal_of(worker, key.secret)
    assert refusal.code is ErrorCode.API_KEY_REVOKED
    assert refusal.public.startswith("Incorrect API key provided")


def test_a_forgotten_key_is_asked_about_at_once(room: IdentityRoom, key: IssuedKey) -> None:
    worker = room.worker()
    worker.identify((key.secret,))
    room.revoke(key)

    worker.forget("not a kid")
    still = worker.identify((key.secret,))
    worker.forget(key.api_key.kid)

    assert still.key_id == key.api_key.kid
    assert refusal_of(worker, key.secret).code is ErrorCode.API_KEY_REVOKED


def test_a_key_dies_the_moment_it_expires_though_remembered(room: IdentityRoom) -> None:
    room.make_user()
    key = room.make_key(expires_days=1)
    worker = room.worker()
    room.clock.advance(86_400 - 1)
    worker.identify((key.secret,))

    room.clock.advance(1)

    assert refusal_of(worker, key.secret).code is ErrorCode.API_KEY_EXPIRED


def test_keys_of_a_locked_account_are_refused_until_it_is_unlocked(room: IdentityRoom, key: IssuedKey) -> None:
    worker, accounts = room.worker(), room.accounts

    room.database.run(lambda session: accounts.lock_user(session, "alice"))
    locked = refusal_of(worker, key.secret)
    room.database.run(lambda session: accounts.unlock_user(session, "alice"))
    worker.forget(key.api_key.kid)

    assert locked.code is ErrorCode.ACCOUNT_LOCKED
    assert worker.identify((key.secret,)).key_id == key.api_key.kid


def test_the_state_of_a_key_is_told_only_to_who_has_the_whole_key(room: IdentityRoom, key: IssuedKey) -> None:
    room.revoke(key)

    assert refusal_of(room.worker(), with_another_secret(key)).code is ErrorCode.INVALID_API_KEY


def test_the_same_wrong_key_is_looked_up_once_in_a_while(room: IdentityRoom, key: IssuedKey) -> None:
    worker, guessed, unknown = room.worker(), with_another_secret(key), draw_api_key().secret
    refusal_of(worker, guessed)
    refusal_of(worker, unknown)
    statements = count_queries(room)

    for _ in range(10):
        refusal_of(worker, guessed)
        refusal_of(worker, unknown)
    remembered = len(statements)
    room.clock.advance(5.0)
    refusal_of(worker, guessed)

    assert remembered == 0
    assert len(statements) > 0


def test_keys_that_share_a_long_beginning_are_never_confused(room: IdentityRoom, key: IssuedKey) -> None:
    worker = room.worker()
    worker.identify((key.secret,))
    body = key.secret[:49] + ("a" if key.secret[49] != "a" else "b")

    assert refusal_of(worker, body + checksum_of(body)).code is ErrorCode.INVALID_API_KEY


def test_the_database_holds_a_digest_under_the_pepper_and_nothing_of_the_key(
    room: IdentityRoom, key: IssuedKey
) -> None:
    with room.database.engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM api_keys")).mappings().one()

    stored = bytes(row["digest"])
    assert stored == hmac.digest(PEPPER, key.secret.encode(), hashlib.sha256)
    for value in row.values():
        assert key.secret[18:50] not in str(value)


def test_a_worker_with_another_pepper_knows_nobody(room: IdentityRoom, key: IssuedKey) -> None:
    stranger = Identity(room.worker()._settings, room.database, b"x" * 32, room.clock)

    assert refusal_of(stranger, key.secret).code is ErrorCode.INVALID_API_KEY


def test_last_use_is_written_in_one_batch_and_never_goes_back(room: IdentityRoom, key: IssuedKey) -> None:
    other = room.make_key()
    early, late = room.worker(), room.worker()
    early.identify((key.secret,))
    room.clock.advance(1)
    moment = room.clock.now()
    late.identify((key.secret,))
    late.identify((other.secret,))

    written = (late.flush_last_used(), early.flush_last_used(), late.flush_last_used())

    assert written == (2, 1, 0)
    assert [found.last_used_at for found in room.database.run(room.keys.list_api_keys)] == [moment, moment]


def test_a_refused_key_was_not_used(room: IdentityRoom, key: IssuedKey) -> None:
    worker = room.worker()
    room.revoke(key)

    refusal_of(worker, key.secret)

    assert worker.flush_last_used() == 0


def test_while_the_sqlite_file_is_away_remembered_keys_stay_good_for_a_minute(
    sqlite_room: IdentityRoom, tmp_path: Path
) -> None:
    sqlite_room.make_user()
    remembered = sqlite_room.make_key()
    worker = sqlite_room.worker()
    worker.identify((remembered.secret,))
    stranger = sqlite_room.make_key()
    file, aside = tmp_path / "app.db", tmp_path / "aside.db"
    file.rename(aside)
    file.mkdir()

    sqlite_room.clock.advance(60.0)
    caller = worker.identify((remembered.secret,))
    with pytest.raises(Unavailable) as strangers:
        worker.identify((stranger.secret,))
    unwritten = worker.flush_last_used()
    sqlite_room.clock.advance(0.1)
    with pytest.raises(Unavailable) as too_old:
        worker.identify((remembered.secret,))
    file.rmdir()
    aside.rename(file)
    sqlite_room.clock.advance(1.1)
    back = worker.identify((stranger.secret,))

    assert caller.key_id == remembered.api_key.kid
    assert strangers.value.code is too_old.value.code is ErrorCode.DATABASE_UNAVAILABLE
    assert (strangers.value.status, strangers.value.retry_after_s) == (503, 2)
    assert unwritten == 0
    assert back.key_id == stranger.api_key.kid
    assert worker.flush_last_used() == 2


def test_a_stopped_postgresql_is_survived_and_its_return_noticed() -> None:
    with PrivatePostgreSQL() as server:
        database = migrated_database(server.create_database())
        room = IdentityRoom(database)
        room.make_user()
        key = room.make_key()
        worker = room.worker()
        worker.identify((key.secret,))
        other = room.make_key()
        server.stop()

        room.clock.advance(30)
        during = [worker.identify((key.secret,)) for _ in range(3)]
        with pytest.raises(Unavailable):
            worker.identify((other.secret,))
        server.start()
        room.revoke(key)
        room.clock.advance(5.1)
        after = refusal_of(worker, key.secret)
        others = worker.identify((other.secret,))
        database.close()

    assert {caller.key_id for caller in during} == {key.api_key.kid}
    assert after.code is ErrorCode.API_KEY_REVOKED
    assert others.key_id == other.api_key.kid


def test_a_key_announced_as_revoked_while_the_database_is_away_is_not_good_any_more(
    sqlite_room: IdentityRoom, tmp_path: Path
) -> None:
    sqlite_room.make_user()
    key = sqlite_room.make_key()
    worker = sqlite_room.worker()
    worker.identify((key.secret,))
    (tmp_path / "app.db").rename(tmp_path / "aside.db")
    (tmp_path / "app.db").mkdir()

    worker.forget(key.api_key.kid)

    with pytest.raises(Unavailable):
        worker.identify((key.secret,))


def test_a_key_forgotten_while_an_absent_database_is_asked_is_not_good_any_more(
    sqlite_room: IdentityRoom, tmp_path: Path
) -> None:
    sqlite_room.make_user()
    key = sqlite_room.make_key()
    worker = sqlite_room.worker()
    worker.identify((key.secret,))
    (tmp_path / "app.db").rename(tmp_path / "aside.db")
    (tmp_path / "app.db").mkdir()
    event.listen(sqlite_room.database.engine, "do_connect", lambda *_: worker.forget(key.api_key.kid))

    sqlite_room.clock.advance(5.1)

    with pytest.raises(Unavailable):
        worker.identify((key.secret,))


def test_an_absent_database_is_asked_by_one_request_a_second(sqlite_room: IdentityRoom, tmp_path: Path) -> None:
    sqlite_room.make_user()
    keys = [sqlite_room.make_key().secret for _ in range(3)]
    worker = sqlite_room.worker()
    for key in keys:
        worker.identify((key,))
    (tmp_path / "app.db").rename(tmp_path / "aside.db")
    (tmp_path / "app.db").mkdir()
    attempts: list[object] = []
    event.listen(sqlite_room.database.engine, "do_connect", lambda *_: attempts.append(None))

    sqlite_room.clock.advance(10)
    for key in keys * 5:
        worker.identify((key,))
    in_the_first_second = len(attempts)
    sqlite_room.clock.advance(1.0)
    for key in keys * 5:
        worker.identify((key,))

    assert in_the_first_second == 1
    assert len(attempts) == 2


def test_a_key_forgotten_while_it_is_looked_up_is_looked_up_again(room: IdentityRoom, key: IssuedKey) -> None:
    worker = room.worker()
    statements = count_queries(room)

    def forget_meanwhile(*_: object) -> None:
        worker.forget(key.api_key.kid)

    event.listen(room.database.engine, "after_cursor_execute", forget_meanwhile)
    worker.identify((key.secret,))
    event.remove(room.database.engine, "after_cursor_execute", forget_meanwhile)
    asked = len(statements)
    worker.identify((key.secret,))

    assert len(statements) > asked


def test_an_unknown_kid_and_a_wrong_secret_cost_the_same_work(room: IdentityRoom, key: IssuedKey) -> None:
    worker, statements = room.worker(), count_queries(room)

    refusal_of(worker, with_another_secret(key))
    for_wrong_secret = list(statements)
    statements.clear()
    refusal_of(worker, draw_api_key().secret)

    assert for_wrong_secret == statements
    assert len([statement for statement in statements if "FROM api_keys" in statement]) == 1
    assert "digest = " in "".join(statements)  # no row comes back either way
