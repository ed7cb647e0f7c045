"""Who is stopped and why, as a worker's identity sees it on both databases: kill switches, quarantine, projects, bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import ErrorCode, OperatorError, ProxyError
from secure_llm_proxy.identity import (
    DEFAULT_ORGANISATION_ID,
    DEFAULT_PROJECT_ID,
    EVERYTHING,
    Identity,
    IssuedKey,
    KillSwitch,
    KillSwitches,
)
from secure_llm_proxy.identity.models import ApiKeyRow, OrganisationRow, ProjectRow, SessionRow, UserRow
from secure_llm_proxy.vocabulary.caller import ANONYMOUS_KEY_ID, KIND_SESSION, Caller
from tests.support.identity_room import IdentityRoom, migrated_database
from tests.support.postgresql import PrivatePostgreSQL

WITHIN_S = 5.0
ORGANISATION, PROJECT = "org_01KAHG0000000000000000TEST", "prj_01KAHG0000000000000000TEST"


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
def keys(room: IdentityRoom) -> dict[str, IssuedKey]:
    """Two of alice's and one of bob's, who belongs to another organisation and works in a project of it."""
    for username in ("alice", "bob"):
        room.make_user(username)
    made = {"first": room.make_key("alice"), "second": room.make_key("alice"), "bobs": room.make_key("bob")}

    def move(session: Session) -> None:
        now = room.clock.now()
        common = {"version": 1, "created_at": now, "updated_at": now}
        session.add(OrganisationRow(id=ORGANISATION, name="Other", name_normalised="other", **common))
        session.flush()
        session.add(
            ProjectRow(
                id=PROJECT, organisation_id=ORGANISATION, name="Büro", name_normalised="büro", status="active", **common
            )
        )
        session.flush()
        session.execute(update(UserRow).where(UserRow.username == "bob").values(organisation_id=ORGANISATION))

    room.database.run(move)
    set_key(room, made["bobs"], project_id=PROJECT)
    return made


def set_key(room: IdentityRoom, key: IssuedKey, **columns: object) -> None:
    room.database.run(
        lambda session: session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key.api_key.id).values(**columns))
    )


def run_sql(room: IdentityRoom, statement: str, **parameters: object) -> None:
    with room.database.engine.begin() as connection:
        connection.execute(text(statement), parameters)


def kill(room: IdentityRoom, subject: str, reason: str = "an exercise") -> KillSwitch:
    return room.database.run(lambda session: KillSwitches(room.clock).kill(session, subject, reason, "host:test"))


def unkill(room: IdentityRoom, subject: str) -> KillSwitch:
    return room.database.run(lambda session: KillSwitches(room.clock).unkill(session, subject))


def told(identity: Identity, key: IssuedKey) -> str:
    """`good`, or the code."""
    try:
        identity.identify((key.secret,))
    except ProxyError as error:
        return error.code.value
    return "good"


def all_told(identity: Identity, keys: dict[str, IssuedKey]) -> dict[str, str]:
    return {name: told(identity, key) for name, key in keys.items()}


def expected(*killed: str) -> dict[str, str]:
    return {name: "killed" if name in killed else "good" for name in ("first", "second", "bobs")}


@pytest.mark.parametrize(
    ("subject", "killed"),
    [
        ("the first key's id", ("first",)),
        ("the first key's kid", ("first",)),
        ("alice", ("first", "second")),
        ("ALICE", ("first", "second")),
        (PROJECT, ("bobs",)),
        ("büro", ("bobs",)),
        (DEFAULT_PROJECT_ID, ("first", "second")),
        (ORGANISATION, ("bobs",)),
        ("other", ("bobs",)),
        (DEFAULT_ORGANISATION_ID, ("first", "second")),
        (EVERYTHING, ("first", "second", "bobs")),
    ],
)
def test_a_kill_stops_those_it_names_in_a_worker_that_remembers_them_and_an_unkill_lets_them_go(
    room: IdentityRoom, keys: dict[str, IssuedKey], subject: str, killed: tuple[str, ...]
) -> None:
    first = keys["first"].api_key
    subject = {"the first key's id": first.id, "the first key's kid": first.kid}.get(subject, subject)
    worker = room.worker()
    before = all_told(worker, keys)

    kill(room, subject)
    room.clock.advance(WITHIN_S)
    stopped = all_told(worker, keys)
    fresh = all_told(room.worker(), keys)
    unkill(room, subject)
    room.clock.advance(WITHIN_S)

    assert before == expected()
    assert stopped == fresh == expected(*killed)
    assert all_told(worker, keys) == expected()


def test_running_callers_are_judged_as_new_ones_are(room: IdentityRoom, keys: dict[str, IssuedKey]) -> None:
    worker = room.worker()
    callers = [worker.identify((key.secret,)) for key in keys.values()]
    heard = worker.hear_of_changes()
    nothing = worker.stopped(callers)

    kill(room, "alice")
    room.clock.advance(1)
    changed = worker.hear_of_changes()
    stopped = worker.stopped(callers)

    again = told(worker, keys["second"])

    assert nothing == {}
    assert again == "killed"
    assert changed != heard
    assert {key_id: error.code for key_id, error in stopped.items()} == {
        keys["first"].api_key.kid: ErrorCode.KILLED,
        keys["second"].api_key.kid: ErrorCode.KILLED,
    }
    assert worker.hear_of_changes() == changed


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("UPDATE api_keys SET revoked_at = '2026-11-21 00:00:00.000000'", ErrorCode.API_KEY_REVOKED),
        ("UPDATE api_keys SET quarantined_at = '2026-11-21 00:00:00.000000'", ErrorCode.API_KEY_QUARANTINED),
        ("UPDATE users SET status = 'locked'", ErrorCode.ACCOUNT_LOCKED),
        ("UPDATE projects SET status = 'inactive'", ErrorCode.PROJECT_INACTIVE),
        ("DELETE FROM api_keys", ErrorCode.INVALID_API_KEY),
        ("UPDATE api_keys SET expires_at = '2026-11-21 00:00:00.000000'", None),
        ("UPDATE api_keys SET models = '[]'", None),
    ],
)
def test_a_running_caller_is_stopped_by_whatever_stops_a_new_one_but_age_and_limits(
    room: IdentityRoom, keys: dict[str, IssuedKey], statement: str, code: ErrorCode | None
) -> None:
    worker = room.worker()
    caller = worker.identify((keys["first"].secret,))
    heard = worker.hear_of_changes()

    run_sql(room, statement)
    room.clock.advance(1)

    assert worker.hear_of_changes() != heard
    assert [error.code for error in worker.stopped([caller]).values()] == ([] if code is None else [code])


def test_who_begins_while_a_change_is_heard_of_is_looked_at_again(
    room: IdentityRoom, keys: dict[str, IssuedKey]
) -> None:
    worker = room.worker()
    worker.identify((keys["bobs"].secret,))
    heard = worker.hear_of_changes()
    worker.forget(keys["first"].api_key.kid)

    changed = worker.hear_of_changes()
    run_sql(room, "DELETE FROM identity_changes")
    for subject in (EVERYTHING, "usr_" + "0" * 26):
        worker.forget(subject)

    assert heard != changed != worker.hear_of_changes()


def test_a_revision_skipped_while_nothing_was_remembered_counts_as_heard_of(
    room: IdentityRoom, keys: dict[str, IssuedKey]
) -> None:
    worker = room.worker()
    caller = worker.identify((keys["first"].secret,))
    kill(room, EVERYTHING)
    room.clock.advance(1)
    worker.hear_of_changes()
    unkill(room, EVERYTHING)
    room.clock.advance(1)
    heard = worker.hear_of_changes()
    room.revoke(keys["first"])

    worker.identify((keys["bobs"].secret,))

    assert worker.hear_of_changes() != heard
    assert [error.code for error in worker.stopped([caller]).values()] == [ErrorCode.API_KEY_REVOKED]


def test_the_first_of_several_reasons_is_told(room: IdentityRoom, keys: dict[str, IssuedKey]) -> None:
    key = keys["first"]
    worst_first: list[tuple[str, Callable[[], object]]] = [
        ("killed", lambda: unkill(room, key.api_key.kid)),
        ("api_key_revoked", lambda: set_key(room, key, revoked_at=None)),
        ("api_key_quarantined", lambda: set_key(room, key, quarantined_at=None)),
        ("api_key_expired", lambda: set_key(room, key, expires_at=datetime(2027, 1, 1, tzinfo=UTC))),
        ("account_locked", lambda: run_sql(room, "UPDATE users SET status = 'active'")),
        ("project_inactive", lambda: run_sql(room, "UPDATE projects SET status = 'active'")),
    ]
    past = datetime(2026, 1, 1, tzinfo=UTC)
    kill(room, key.api_key.kid)
    set_key(room, key, revoked_at=past, quarantined_at=past, expires_at=past)
    run_sql(room, "UPDATE users SET status = 'disabled'")
    run_sql(room, "UPDATE projects SET status = 'inactive'")
    worker = room.worker()

    for code, repair in worst_first:
        assert told(worker, key) == code
        repair()
        room.clock.advance(WITHIN_S)

    assert told(worker, key) == "good"


def test_a_caller_carries_what_the_key_is_bound_to_and_the_rate_of_its_project(
    room: IdentityRoom, keys: dict[str, IssuedKey]
) -> None:
    run_sql(room, "UPDATE projects SET requests_per_minute = 77 WHERE id = :id", id=PROJECT)
    networks, agents = ["10.0.0.0/8", "::1"], ["curl/*", "Büro\x1f\",'\u2028\\"]
    set_key(room, keys["bobs"], kind="test", burst=3, concurrent=2, tokens_max=50)
    set_key(room, keys["bobs"], allowed_addresses=networks, allowed_agents=agents)
    set_key(room, keys["first"], requests_per_minute=5)

    bobs, first = (room.worker().identify((keys[name].secret,)) for name in ("bobs", "first"))

    assert (bobs.project_id, bobs.organisation_id, bobs.kind) == (PROJECT, ORGANISATION, "test")
    assert (bobs.requests_per_minute, bobs.burst, bobs.concurrent, bobs.tokens_max) == (77, 3, 2, 50)
    assert (bobs.allowed_addresses, bobs.allowed_agents) == (tuple(networks), tuple(agents))
    assert (first.project_id, first.organisation_id) == (DEFAULT_PROJECT_ID, DEFAULT_ORGANISATION_ID)
    assert (first.requests_per_minute, first.allowed_addresses, first.tokens_max) == (5, None, None)


@pytest.mark.parametrize(
    "hostile", ["\x1f", "a\x1fkilled", '"]\x1f["', "\x1f" * 16, "\\u001f", "'; DROP TABLE users; --", "\u202e"]
)
def test_no_text_of_a_row_can_shift_the_columns_of_a_record(
    room: IdentityRoom, keys: dict[str, IssuedKey], hostile: str
) -> None:
    plain = room.worker().identify((keys["first"].secret,))
    set_key(
        room, keys["first"], models=[hostile], allowed_agents=[hostile], name=hostile[:100], quarantine_reason=hostile
    )

    caller = room.worker().identify((keys["first"].secret,))

    assert caller == plain._replace(models=frozenset({hostile}), allowed_agents=(hostile,))


def test_another_secret_of_the_same_public_part_inherits_nothing(
    room: IdentityRoom, keys: dict[str, IssuedKey]
) -> None:
    worker = room.worker()
    worker.identify((keys["first"].secret,))
    other = keys["bobs"].secret
    forged = other.replace(other[9:17], keys["first"].api_key.kid)

    with pytest.raises(ProxyError) as caught:
        worker.identify((forged,))

    assert caught.value.code is ErrorCode.INVALID_API_KEY


def test_a_killed_key_asks_the_database_no_more_than_a_good_one(room: IdentityRoom, keys: dict[str, IssuedKey]) -> None:
    kill(room, EVERYTHING)
    worker = room.worker()
    told(worker, keys["first"])
    room.database.close()

    assert [told(worker, keys["first"]) for _ in range(5)] == ["killed"] * 5


def test_without_authentication_everything_is_stopped_with_everything(room: IdentityRoom) -> None:
    room.settings["authentication_required"] = False
    worker = room.worker()
    caller = worker.identify(())
    kill(room, EVERYTHING)
    room.clock.advance(WITHIN_S)

    with pytest.raises(ProxyError) as caught:
        worker.identify(())
    stopped = worker.stopped([caller])
    unkill(room, EVERYTHING)
    room.clock.advance(WITHIN_S)

    assert caught.value.code is ErrorCode.KILLED
    assert set(stopped) == {ANONYMOUS_KEY_ID}
    assert worker.identify(()) == caller


def test_a_session_that_ends_or_whose_person_is_stopped_may_not_go_on(
    room: IdentityRoom, keys: dict[str, IssuedKey]
) -> None:
    user_id, now = keys["first"].api_key.user_id, room.clock.now()
    session_ids = ["ses_" + str(number) * 26 for number in range(2)]
    callers = [Caller(user_id, each, "member", frozenset(), kind=KIND_SESSION) for each in session_ids]
    room.database.run(
        lambda session: session.add_all(
            SessionRow(
                id=each, user_id=user_id, digest=each.encode()[:32].ljust(32), kind="token", state="active", address="::1",
                agent="", created_at=now, last_seen_at=now, expires_at=now,
            )
            for each in session_ids
        )
    )  # fmt: skip
    worker = room.worker()
    before = worker.stopped(callers)

    run_sql(room, "UPDATE sessions SET ended_at = created_at WHERE id = :id", id=session_ids[0])
    ended = worker.stopped(callers)
    run_sql(room, "UPDATE users SET status = 'locked'")
    locked = worker.stopped(callers)
    kill(room, "alice")
    killed = worker.stopped(callers)

    assert before == {}
    assert set(ended) == {session_ids[0]}
    assert {key_id: error.code for key_id, error in locked.items()}[session_ids[1]] is ErrorCode.ACCOUNT_LOCKED
    assert {error.code for error in killed.values()} == {ErrorCode.KILLED}


def test_killing_twice_keeps_the_first_and_the_list_tells_all(room: IdentityRoom, keys: dict[str, IssuedKey]) -> None:
    first = kill(room, "alice")
    room.clock.advance(60)
    second = kill(room, "alice")
    kill(room, EVERYTHING)
    kill(room, PROJECT)
    run_sql(room, "INSERT INTO kill_switches VALUES ('prj_gone', 'why', 'who', '2020-01-01 00:00:00')")

    listed = room.database.run(KillSwitches(room.clock).listing)
    gone = unkill(room, "prj_gone")

    assert second == first
    assert [(each.subject.kind, each.subject.name, each.subject.organisation_id) for each in listed] == [
        ("gone", "prj_gone", None),
        ("user", "alice", DEFAULT_ORGANISATION_ID),
        (EVERYTHING, EVERYTHING, None),
        ("project", "Büro", ORGANISATION),
    ]
    assert gone.subject.id == "prj_gone"


def test_a_name_of_several_is_refused_and_an_id_is_always_who_bears_it(
    room: IdentityRoom, keys: dict[str, IssuedKey]
) -> None:
    alice = keys["first"].api_key.user_id
    with pytest.raises(OperatorError, match="another"):  # nobody may be called by the id of somebody
        room.make_user(alice)
    for squatter in ("everything", "other", keys["bobs"].api_key.kid):
        room.make_user(squatter)

    assert kill(room, alice).subject.name == "alice"
    assert kill(room, "Everything").subject.id == EVERYTHING
    for ambiguous in ("other", keys["bobs"].api_key.kid):
        with pytest.raises(OperatorError, match="is the name of several"):
            kill(room, ambiguous)


@pytest.mark.parametrize("subject", ["nobody", "", "key_" + "0" * 26, "*", "%", "slp_live_half"])
def test_a_subject_that_nobody_is_stops_nobody(room: IdentityRoom, keys: dict[str, IssuedKey], subject: str) -> None:
    with pytest.raises(OperatorError, match="There is no key"):
        kill(room, subject)
    with pytest.raises(OperatorError, match=r"There is no key"):
        unkill(room, subject)
    assert all_told(room.worker(), keys) == expected()


def test_a_whole_key_is_not_repeated_and_a_reason_is_needed(room: IdentityRoom, keys: dict[str, IssuedKey]) -> None:
    with pytest.raises(OperatorError) as caught:
        kill(room, keys["first"].secret)
    assert keys["first"].secret[18:] not in str(caught.value)
    for reason in ("", " ", "x" * 201, "a\nb"):
        with pytest.raises(OperatorError, match="reason"):
            kill(room, "alice", reason)
    with pytest.raises(OperatorError, match="not stopped"):
        unkill(room, "alice")
