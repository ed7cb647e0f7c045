"""Sessions on both databases: opened, found, rotated, ended by every change of their user, cleaned up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, PermissionDenied, ProxyError
from secure_llm_proxy.identity import Identity, LiveSession, PasswordHash, User
from secure_llm_proxy.identity.passwords import PasswordVault
from tests.support.identity_room import PASSWORD_PEPPER, PEPPER, IdentityRoom, migrated_database, patiently
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.sign_in_room import PASSPHRASE, SignInRoom


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('sessions') / 'app.db'}"
    else:
        server = request.getfixturevalue("postgresql")
        assert isinstance(server, PrivatePostgreSQL)
        url = server.create_database()
    opened = migrated_database(url)
    yield opened
    opened.close()


@pytest.fixture
def room(database: Database) -> SignInRoom:
    return SignInRoom(database)


@pytest.fixture(scope="module")
def password() -> PasswordHash:
    return PasswordVault(PASSWORD_PEPPER).hash(PASSPHRASE)


def end_reason(room: SignInRoom, live: LiveSession) -> str | None:
    with room.database.engine.connect() as connection:
        reason: str | None = connection.execute(
            text("SELECT end_reason FROM sessions WHERE id = :id"), {"id": live.id}
        ).scalar_one()
    return reason


def test_a_session_is_found_by_its_secret_which_is_kept_nowhere(room: SignInRoom) -> None:
    user = room.make_user("operator")

    opened = room.open_session(user)
    found = room.found(opened.secret)

    assert opened.secret.startswith("slp_sess_")
    assert len(opened.secret.removeprefix("slp_sess_")) * 5.95 >= 255
    assert opened.secret not in repr(opened)
    assert found == opened.session
    assert (found.user_id, found.username, found.role, found.kind, found.state) == (
        user.id, user.username, "operator", "token", "active",
    )  # fmt: skip
    with room.database.engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM sessions WHERE id = :id"), {"id": found.id}).one()
    assert all(opened.secret.encode() not in bytes(str(value), "utf-8") for value in row)


@pytest.mark.parametrize(
    "change",
    [
        lambda secret: secret[:-1] + ("a" if secret[-1] != "a" else "b"),
        lambda secret: secret.swapcase(),
        lambda secret: f"{secret} ",
        lambda secret: f"{secret}\x00",
        lambda _secret: "",
        lambda _secret: "slp_sess_" + "A" * 43,
    ],
    ids=["one character", "case", "space", "nul", "nothing", "another"],
)
def test_only_the_whole_secret_finds_it(room: SignInRoom, change: Callable[[str], str]) -> None:
    opened = room.open_session(room.make_user())

    assert room.found(change(opened.secret)) is None


@pytest.mark.parametrize(("role", "idle_s"), [("member", 1800), ("viewer", 1800), ("admin", 900), ("owner", 900)])
def test_an_unused_session_ends_sooner_for_who_may_more(room: SignInRoom, role: str, idle_s: int) -> None:
    opened = room.open_session(room.make_user(role))

    room.clock.advance(idle_s)
    at_the_limit = room.found(opened.secret)
    room.clock.advance(1)
    beyond = room.found(opened.secret)

    assert at_the_limit is not None
    assert beyond is None


def test_a_used_session_ends_after_twelve_hours_all_the_same(room: SignInRoom) -> None:
    opened = room.open_session(room.make_user())

    for _ in range(12 * 3 - 1):
        room.clock.advance(1200)
        live = room.found(opened.secret)
        assert live is not None
        room.run(lambda session, live=live: room.sessions.touch(session, live))  # type: ignore[misc]
    room.clock.advance(1199)

    assert room.found(opened.secret) is not None
    room.clock.advance(1)
    assert room.found(opened.secret) is None


def test_its_use_is_written_once_a_minute(room: SignInRoom) -> None:
    opened = room.open_session(room.make_user())

    def touched() -> bool:
        live = room.found(opened.secret)
        assert live is not None
        return room.run(lambda session: room.sessions.touch(session, live))

    at_once = touched()
    room.clock.advance(60)
    after_a_minute, again = touched(), touched()

    assert (at_once, after_a_minute, again) == (False, True, False)


def test_a_rotated_session_has_another_secret_and_the_old_one_is_dead(room: SignInRoom) -> None:
    opened = room.open_session(room.make_user())
    room.clock.advance(100)

    rotated = room.run(lambda session: room.sessions.rotate(session, opened.session, second_factor_at=room.clock.now()))

    assert rotated.session.id == opened.session.id
    assert rotated.session.expires_at == opened.session.expires_at
    assert room.found(opened.secret) is None
    found = room.found(rotated.secret)
    assert found is not None
    assert found.is_fresh(room.clock.now() + timedelta(seconds=300))
    assert not found.is_fresh(room.clock.now() + timedelta(seconds=301))


def test_of_two_that_rotate_one_session_at_once_one_succeeds(room: SignInRoom) -> None:
    opened = room.open_session(room.make_user())
    barrier, refused, rotated = threading.Barrier(4), list[ErrorCode](), list[str]()

    def rotate() -> None:
        barrier.wait(60)
        try:
            new = patiently(
                room.database, lambda: room.run(lambda session: room.sessions.rotate(session, opened.session))
            )
            rotated.append(new.secret)
        except AuthenticationFailed as error:
            refused.append(error.code)

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert refused == [ErrorCode.SESSION_INVALID] * 3
    assert room.found(rotated[0]) is not None


def test_ended_sessions_are_not_found_and_end_once(room: SignInRoom) -> None:
    user = room.make_user()
    one, other, third = (room.open_session(user) for _ in range(3))

    ended = [room.run(lambda session: room.sessions.end(session, one.session.id, "operator")) for _ in range(2)]
    rest = room.run(lambda session: room.sessions.end_all(session, user.id, "operator", except_id=third.session.id))

    assert (ended, rest) == ([True, False], 1)
    assert [room.found(opened.secret) is None for opened in (one, other, third)] == [True, True, False]
    listed = room.run(lambda session: room.sessions.listing(session, user.id))
    assert [live.id for live in listed] == [third.session.id]


def lock(room: SignInRoom, session: Session, user: User) -> None:
    room.accounts.lock_user(session, user.username)


def lock_and_unlock(room: SignInRoom, session: Session, user: User) -> None:
    room.accounts.lock_user(session, user.username)
    room.accounts.unlock_user(session, user.username)


def disable(room: SignInRoom, session: Session, user: User) -> None:
    room.accounts.disable_user(session, user.username)


def change_role(room: SignInRoom, session: Session, user: User) -> None:
    room.accounts.update_user(session, user.username, {"role": "viewer"})


def set_password(room: SignInRoom, session: Session, user: User) -> None:
    room.accounts.set_password(session, user.username, PasswordHash("$argon2id$nobody's"))


def redeem_reset(room: SignInRoom, session: Session, user: User) -> None:
    token = room.accounts.start_password_reset(session, user.username)
    room.accounts.redeem_token(session, token.secret, PasswordHash("$argon2id$nobody's"))


def remove_second_factor(room: SignInRoom, session: Session, user: User) -> None:
    room.second_factors.remove(session, user.id)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lock, "locked"),
        (lock_and_unlock, "locked"),
        (disable, "disabled"),
        (change_role, "privileges_changed"),
        (set_password, "password_changed"),
        (redeem_reset, "password_changed"),
        (remove_second_factor, "second_factor_changed"),
    ],
)
def test_every_session_ends_with_a_change_of_its_user(
    room: SignInRoom, change: Callable[[SignInRoom, Session, User], None], reason: str
) -> None:
    user, other = room.make_user(), room.make_user()
    sessions, others = [room.open_session(user) for _ in range(2)], room.open_session(other)

    room.run(lambda session: change(room, session, user))

    assert [room.found(opened.secret) for opened in sessions] == [None, None]
    assert [end_reason(room, opened.session) for opened in sessions] == [reason, reason]
    assert room.found(others.secret) is not None


def test_every_session_ends_when_a_second_factor_begins_to_count(room: SignInRoom) -> None:
    user = room.make_user()
    opened = room.open_session(user)

    room.enrol(user)

    assert room.found(opened.secret) is None


def test_a_changed_mail_address_ends_nothing(room: SignInRoom) -> None:
    user = room.make_user()
    opened = room.open_session(user)

    room.run(lambda session: room.accounts.update_user(session, user.username, {"email": "new@example.org"}))

    assert room.found(opened.secret) is not None


def test_the_twenty_first_session_ends_the_one_unused_for_longest(room: SignInRoom) -> None:
    user = room.make_user()
    opened = []
    for _ in range(21):
        opened.append(room.open_session(user))
        room.clock.advance(1)

    assert room.found(opened[0].secret) is None
    assert all(room.found(later.secret) is not None for later in opened[1:])


def test_what_a_client_says_of_itself_is_cut_and_cannot_move_a_cursor(room: SignInRoom) -> None:
    user = room.make_user()

    opened = room.run(
        lambda session: room.sessions.open(
            session,
            user.id,
            kind="browser",
            state="pending",
            address="192.0.2.7\x00",
            agent="curl\x1b[2J" + "x" * 500,
            second_factor_at=None,
        )
    )

    assert opened.session.address == "192.0.2.7?"
    assert opened.session.agent.startswith("curl?[2Jx")
    assert len(opened.session.agent) == 200


def test_a_pending_session_waits_ten_minutes(room: SignInRoom) -> None:
    user = room.make_user()
    opened = room.run(
        lambda session: room.sessions.open(
            session, user.id, kind="token", state="pending", address="", agent="", second_factor_at=None
        )
    )

    room.clock.advance(599)
    in_time = room.found(opened.secret)
    room.clock.advance(1)

    assert in_time is not None
    assert room.found(opened.secret) is None


def test_what_nothing_needs_any_more_is_deleted_a_day_after_its_end(room: SignInRoom) -> None:
    user = room.make_user()
    kept, ended = room.open_session(user), room.open_session(user)
    room.run(lambda session: room.sessions.end(session, ended.session.id, "signed_out"))
    room.run(lambda session: room.accounts.start_setup(session, user.username))
    room.run(lambda session: room.troubles.try_at(session, user.username, "192.0.2.0/24"))
    for _ in range(10):
        room.run(lambda session: room.troubles.try_account(session, user.username))

    at_once = room.run(room.sessions.cleanup)
    room.clock.advance(3600 + 60)
    room.run(lambda session: room.sessions.touch(session, kept.session))
    room.clock.advance(24 * 3600)
    a_day_later = room.run(room.sessions.cleanup)

    assert (at_once.sessions, at_once.setup_tokens, at_once.login_troubles) == (0, 0, 0)
    assert a_day_later.sessions >= 1
    assert a_day_later.setup_tokens >= 1
    assert a_day_later.login_troubles >= 1
    with room.database.engine.connect() as connection:
        left = connection.execute(text("SELECT id FROM sessions WHERE user_id = :user"), {"user": user.id}).scalars()
        assert list(left) == [kept.session.id]
    # Ten failures of the account in a row are still counted.
    assert room.run(lambda session: room.troubles.try_account(session, user.username))
    room.clock.advance(91 * 24 * 3600)
    assert room.run(room.sessions.cleanup).login_troubles >= 1


# --- the data plane ---------------------------------------------------------------------------------------------------


def worker_of(room: SignInRoom) -> Identity:
    return Identity(room.section, room.database, PEPPER, room.clock, room.session_callers())


def refusal_of(identity: Identity, secret: str) -> ProxyError:
    with pytest.raises(ProxyError) as refused:
        identity.identify((secret,))
    return refused.value


@pytest.mark.parametrize("role", ["member", "operator", "admin", "owner"])
def test_a_sessions_token_stands_for_its_user(room: SignInRoom, role: str) -> None:
    user = room.make_user(role)
    opened = room.open_session(user)

    caller = worker_of(room).identify((opened.secret,))

    assert (caller.user_id, caller.key_id, caller.role) == (user.id, opened.session.id, role)
    assert caller.scopes == {"chat", "models"}
    assert (caller.models, caller.kind) == (None, "session")
    assert opened.secret not in repr(caller)


@pytest.mark.parametrize("role", ["viewer", "auditor"])
def test_a_role_that_may_not_chat_is_refused_by_its_role(room: SignInRoom, role: str) -> None:
    opened = room.open_session(room.make_user(role))

    refusal = refusal_of(worker_of(room), opened.secret)

    assert isinstance(refusal, PermissionDenied)
    assert refusal.code is ErrorCode.FORBIDDEN


def test_a_session_that_owes_its_second_factor_asks_no_models(room: SignInRoom) -> None:
    user = room.make_user()
    pending = room.run(
        lambda session: room.sessions.open(
            session, user.id, kind="token", state="pending", address="", agent="", second_factor_at=None
        )
    )

    refusal = refusal_of(worker_of(room), pending.secret)

    assert (refusal.status, refusal.code) == (401, ErrorCode.SECOND_FACTOR_REQUIRED)


def test_an_ended_session_is_refused_within_five_seconds(room: SignInRoom) -> None:
    opened = room.open_session(room.make_user())
    worker = worker_of(room)
    worker.identify((opened.secret,))

    room.run(lambda session: room.sessions.end(session, opened.session.id, "signed_out"))
    room.clock.advance(5)

    assert refusal_of(worker, opened.secret).code is ErrorCode.SESSION_INVALID


def test_an_announcement_makes_a_worker_ask_at_once(room: SignInRoom) -> None:
    opened = room.open_session(room.make_user())
    worker = worker_of(room)
    worker.identify((opened.secret,))
    room.run(lambda session: room.sessions.end(session, opened.session.id, "signed_out"))

    worker.forget(opened.session.id)

    assert refusal_of(worker, opened.secret).code is ErrorCode.SESSION_INVALID


def test_what_a_worker_knows_of_one_token_says_nothing_of_another(room: SignInRoom) -> None:
    opened = room.open_session(room.make_user())
    worker = worker_of(room)
    worker.identify((opened.secret,))

    for position in (20, 30, -1):
        characters = list(opened.secret)
        characters[position] = "a" if characters[position] != "a" else "b"
        refusal = refusal_of(worker, "".join(characters))

        assert refusal.code is ErrorCode.SESSION_INVALID
        assert refusal.public.startswith("Incorrect API key provided")


def test_a_known_token_is_no_good_beyond_its_sessions_end(room: SignInRoom) -> None:
    patient = SignInRoom(room.database, room.clock, {"session_absolute_s": 300, "cache_s": 5})
    opened = patient.open_session(patient.make_user())
    worker = worker_of(patient)
    room.clock.advance(297)
    worker.identify((opened.secret,))

    room.clock.advance(3)

    assert refusal_of(worker, opened.secret).code is ErrorCode.SESSION_INVALID


@pytest.mark.parametrize("everything", [False, True])
def test_a_kill_switch_stops_sessions_too(room: SignInRoom, *, everything: bool) -> None:
    user = room.make_user()
    opened = room.open_session(user)
    worker = worker_of(room)
    worker.identify((opened.secret,))
    subject = "everything" if everything else user.id

    with room.database.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO kill_switches VALUES (:subject, 'test', 'tests', CURRENT_TIMESTAMP)"),
            {"subject": subject},
        )
    try:
        room.clock.advance(5)
        refusal = refusal_of(worker, opened.secret)
    finally:
        with room.database.engine.begin() as connection:
            connection.execute(text("DELETE FROM kill_switches WHERE subject = :subject"), {"subject": subject})

    assert (refusal.status, refusal.code) == (403, ErrorCode.KILLED)


def test_a_session_and_a_key_together_are_one_credential_too_many(room: SignInRoom) -> None:
    user = room.make_user()
    opened = room.open_session(user)
    key = IdentityRoom(room.database, room.clock).make_key(user.username)

    with pytest.raises(AuthenticationFailed, match="several different"):
        worker_of(room).identify((opened.secret, key.secret))


def test_keys_are_good_beside_sessions(room: SignInRoom) -> None:
    user = room.make_user()
    key = IdentityRoom(room.database, room.clock).make_key(user.username)

    assert worker_of(room).identify((key.secret,)).key_id == key.api_key.kid


def test_the_use_on_the_data_plane_keeps_a_session_alive(room: SignInRoom) -> None:
    opened = room.open_session(room.make_user())
    worker = worker_of(room)

    for _ in range(4):
        room.clock.advance(1500)
        worker.identify((opened.secret,))

    assert room.found(opened.secret) is not None
