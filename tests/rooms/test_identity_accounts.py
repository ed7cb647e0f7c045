"""Users, one-time tokens and keys as operators handle them, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.identity import Accounts, OneTimeToken, PasswordHash, TokenPurpose, UserStatus, draw_api_key
from secure_llm_proxy.identity.passwords import PasswordCheck, PasswordVault
from tests.support.identity_room import EMAIL, PASSWORD_PEPPER, IdentityRoom, migrated_database, patiently
from tests.support.postgresql import PrivatePostgreSQL

T = TypeVar("T")
PASSPHRASE = "violet tram over nine hedges"


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
def accounts(room: IdentityRoom) -> Accounts:
    room.make_user()
    return room.accounts


@pytest.fixture(scope="module")
def password() -> PasswordHash:
    return PasswordVault(PASSWORD_PEPPER).hash(PASSPHRASE)


def run(room: IdentityRoom, work: Callable[[Session], T]) -> T:
    return room.database.run(work)


def stored_password(room: IdentityRoom) -> str | None:
    with room.database.engine.connect() as connection:
        stored: str | None = connection.execute(text("SELECT password_hash FROM users")).scalar_one()
    return stored


def start_reset(room: IdentityRoom) -> OneTimeToken:
    accounts = room.accounts
    return run(room, lambda session: accounts.start_password_reset(session, "alice"))


def test_users_are_found_however_their_name_is_written(room: IdentityRoom) -> None:
    room.make_user("Älice")
    accounts = room.accounts

    found = run(room, lambda session: accounts.find_user(session, " ÄLICE "))

    assert found.username == "Älice"
    assert (found.status, found.has_password, found.email) == (UserStatus.ACTIVE, False, EMAIL)
    assert found.created_at == found.updated_at == room.clock.now()
    assert run(room, accounts.list_users) == [found]


@pytest.mark.parametrize("again", ["alice", "ALICE", " alice ", "\uff41\uff4c\uff49\uff43\uff45"])
def test_a_name_is_taken_once(room: IdentityRoom, accounts: Accounts, again: str) -> None:
    with pytest.raises(OperatorError, match="exists already"):
        room.make_user(again)

    assert len(run(room, accounts.list_users)) == 1


def test_two_that_take_one_name_at_once_make_one_user(room: IdentityRoom) -> None:
    barrier, refused = threading.Barrier(4), list[str]()

    def make() -> None:
        barrier.wait(30)
        try:
            patiently(room.database, room.make_user)
        except OperatorError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(refused) == 3
    assert all("exists already" in sentence for sentence in refused)


def test_an_unknown_user_is_told_from_a_listed_one(room: IdentityRoom, accounts: Accounts) -> None:
    with pytest.raises(OperatorError, match="list-users"):
        run(room, lambda session: accounts.find_user(session, "bob\x1b[31m"))
    with pytest.raises(OperatorError, match="no user"):
        room.make_key("bob")


def test_locking_and_unlocking_twice_are_no_errors(room: IdentityRoom, accounts: Accounts) -> None:
    room.clock.advance(60)

    locked = [run(room, lambda session: accounts.lock_user(session, "alice")) for _ in range(2)]
    unlocked = [run(room, lambda session: accounts.unlock_user(session, "alice")) for _ in range(2)]

    assert {user.status for user in locked} == {UserStatus.LOCKED}
    assert {user.status for user in unlocked} == {UserStatus.ACTIVE}
    assert locked[0].updated_at == room.clock.now() > locked[0].created_at


def test_a_locked_user_gets_no_new_key(room: IdentityRoom, accounts: Accounts) -> None:
    run(room, lambda session: accounts.lock_user(session, "alice"))

    with pytest.raises(OperatorError, match="unlock"):
        room.make_key()


def test_a_password_is_stored_as_argon2id_under_its_own_pepper(
    room: IdentityRoom, accounts: Accounts, password: PasswordHash
) -> None:
    user = run(room, lambda session: accounts.set_password(session, "alice", password))

    stored = stored_password(room)
    assert user.has_password
    assert stored is not None
    assert stored.startswith("$argon2id$")
    assert PASSPHRASE not in stored
    assert PasswordVault(PASSWORD_PEPPER).check(stored, PASSPHRASE) is PasswordCheck.RIGHT


def test_a_bad_password_is_refused_before_it_is_hashed(accounts: Accounts) -> None:
    with pytest.raises(OperatorError, match="too short"):
        accounts.hash_password("short", username="alice", email=EMAIL)
    with pytest.raises(OperatorError, match="name of yours"):
        accounts.hash_password("someone@example.org", username="alice", email=EMAIL)


def test_a_first_token_and_a_reset_differ_in_purpose_and_life(
    room: IdentityRoom, accounts: Accounts, password: PasswordHash
) -> None:
    first = run(room, lambda session: accounts.start_setup(session, "alice"))
    run(room, lambda session: accounts.set_password(session, "alice", password))
    reset = start_reset(room)

    assert (first.purpose, first.expires_at - room.clock.now()) == (TokenPurpose.SETUP, timedelta(hours=1))
    assert (reset.purpose, reset.expires_at - room.clock.now()) == (TokenPurpose.PASSWORD_RESET, timedelta(minutes=30))
    assert first.secret.startswith("slp_setup_")
    assert len(first.secret) == 53
    assert first.secret not in repr(first)


def test_a_token_sets_the_password_once(room: IdentityRoom, accounts: Accounts, password: PasswordHash) -> None:
    token = start_reset(room)

    holder = run(room, lambda session: accounts.token_holder(session, f" {token.secret}\n"))
    user = run(room, lambda session: accounts.redeem_token(session, token.secret, password))

    assert holder.id == user.id
    assert user.has_password
    with pytest.raises(OperatorError, match="not valid"):
        run(room, lambda session: accounts.redeem_token(session, token.secret, password))


def test_of_several_that_redeem_one_token_at_once_one_succeeds(
    room: IdentityRoom, accounts: Accounts, password: PasswordHash
) -> None:
    token = start_reset(room)
    barrier, outcomes = threading.Barrier(6), list[bool]()

    def redeem() -> None:
        barrier.wait(30)
        try:
            patiently(
                room.database, lambda: run(room, lambda session: accounts.redeem_token(session, token.secret, password))
            )
        except OperatorError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    threads = [threading.Thread(target=redeem) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(outcomes) == [False] * 5 + [True]


def test_a_token_ends_by_time_by_a_newer_one_and_by_a_password_set_otherwise(
    room: IdentityRoom, accounts: Accounts, password: PasswordHash
) -> None:
    timed_out = start_reset(room)
    room.clock.advance(3600)
    replaced = start_reset(room)
    overtaken = start_reset(room)
    run(room, lambda session: accounts.set_password(session, "alice", password))

    for token in (timed_out, replaced, overtaken):
        with pytest.raises(OperatorError, match="not valid"):
            run(room, partial(accounts.redeem_token, token=token.secret, password=password))
    with pytest.raises(OperatorError, match="not valid"):
        run(room, lambda session: accounts.token_holder(session, "slp_setup_" + "a" * 43))


def test_a_locked_account_is_not_opened_by_a_token(
    room: IdentityRoom, accounts: Accounts, password: PasswordHash
) -> None:
    token = start_reset(room)
    run(room, lambda session: accounts.lock_user(session, "alice"))

    with pytest.raises(OperatorError, match="locked"):
        run(room, lambda session: accounts.redeem_token(session, token.secret, password))

    assert stored_password(room) is None


def test_a_token_is_stored_as_a_digest_only(room: IdentityRoom, accounts: Accounts) -> None:
    token = run(room, lambda session: accounts.start_setup(session, "alice"))

    with room.database.engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM setup_tokens")).mappings().one()

    assert len(bytes(row["digest"])) == 32
    assert all(token.secret[10:] not in str(value) for value in row.values())


def test_a_key_lives_its_default_days_and_at_most_the_longest(room: IdentityRoom, accounts: Accounts) -> None:
    assert accounts
    default, longest = room.make_key(), room.make_key(expires_days=365)

    assert default.api_key.expires_at - room.clock.now() == timedelta(days=90)
    assert longest.api_key.expires_at - room.clock.now() == timedelta(days=365)
    for days in (0, -1, 366):
        with pytest.raises(OperatorError, match="1 to 365 days"):
            room.make_key(expires_days=days)


def test_a_shorter_longest_life_also_bounds_the_default(room: IdentityRoom, accounts: Accounts) -> None:
    assert accounts
    room.settings = {"key_days_max": 30}

    assert room.make_key().api_key.expires_at - room.clock.now() == timedelta(days=30)


def test_a_user_has_at_most_five_active_keys_and_dead_ones_do_not_count(room: IdentityRoom, accounts: Accounts) -> None:
    assert accounts
    keys = [room.make_key(expires_days=1 if number == 0 else 2) for number in range(5)]

    with pytest.raises(OperatorError, match="revoke one first"):
        room.make_key()
    room.revoke(keys[1])
    room.make_key()
    room.clock.advance(86_400)
    room.make_key()
    with pytest.raises(OperatorError, match="5 active API keys"):
        room.make_key()


def test_the_limit_of_keys_holds_when_several_are_made_at_once(room: IdentityRoom, accounts: Accounts) -> None:
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait(30)
        try:
            patiently(room.database, room.make_key)
        except OperatorError:
            return

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(run(room, room.keys.list_api_keys)) == 5


def test_scopes_are_ours_or_the_origins_and_never_others(room: IdentityRoom, accounts: Accounts) -> None:
    assert accounts
    assert room.make_key().api_key.scopes == ("chat", "models")
    assert room.make_key(scopes=("models", "chat_access")).api_key.scopes == ("chat", "models")
    for scopes in ((), ("admin",), ("chat", "user_management")):
        with pytest.raises(OperatorError, match="scope"):
            room.make_key(scopes=scopes)


def test_models_and_rates_are_checked(room: IdentityRoom, accounts: Accounts) -> None:
    assert accounts
    assert room.make_key(models=("b", "a", "b ")).api_key.models == ("b", "a")
    for models in ((), ("",), ("a\nb",), ("x" * 201,), tuple(map(str, range(101)))):
        with pytest.raises(OperatorError, match="model"):
            room.make_key(models=models)
    for rate in (0, -5, 1_000_001):
        with pytest.raises(OperatorError, match="requests per minute"):
            room.make_key(requests_per_minute=rate)


def test_a_key_is_revoked_by_either_name_and_the_first_moment_stays(room: IdentityRoom, accounts: Accounts) -> None:
    by_kid, by_id = room.make_key().api_key, room.make_key().api_key
    moment = room.clock.now()
    run(room, lambda session: room.keys.revoke_api_key(session, by_kid.kid))
    run(room, lambda session: room.keys.revoke_api_key(session, by_id.id))
    room.clock.advance(5)

    again = run(room, lambda session: room.keys.revoke_api_key(session, by_kid.kid))

    assert again.revoked_at == moment
    assert {key.status(room.clock.now()) for key in run(room, room.keys.list_api_keys)} == {"revoked"}


def test_a_whole_key_is_not_taken_where_its_name_belongs_and_not_repeated(
    room: IdentityRoom, accounts: Accounts
) -> None:
    secret = draw_api_key().secret

    for given in (secret, secret[:-1]):
        with pytest.raises(OperatorError) as caught:
            run(room, partial(room.keys.revoke_api_key, reference=given))
        assert secret[18:40] not in str(caught.value)


def test_keys_are_listed_of_all_or_of_one_user(room: IdentityRoom, accounts: Accounts) -> None:
    room.make_user("bob")
    alices, bobs = room.make_key("alice"), room.make_key("BOB")

    everybody = run(room, room.keys.list_api_keys)
    only_bob = run(room, lambda session: room.keys.list_api_keys(session, "bob"))

    assert {key.kid for key in everybody} == {alices.api_key.kid, bobs.api_key.kid}
    assert only_bob == [bobs.api_key]
    assert only_bob[0].username == "bob"
