"""Organisations, projects, members, and users who change or leave, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import (
    ConflictError,
    NotFoundError,
    OperatorError,
    StaleError,
    client_error_of,
)
from secure_llm_proxy.identity import (
    DEFAULT_ORGANISATION_ID,
    DEFAULT_PROJECT_ID,
    KeyStatus,
    Organisation,
    Project,
    ProjectChanges,
    ProjectStatus,
    Role,
    User,
    UserChanges,
    UserStatus,
)
from tests.support.identity_room import IdentityRoom, migrated_database, patiently
from tests.support.postgresql import PrivatePostgreSQL

T = TypeVar("T")


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


def run(room: IdentityRoom, work: Callable[[Session], T]) -> T:
    return room.database.run(work)


def make_organisation(room: IdentityRoom, name: str) -> Organisation:
    return run(room, lambda session: room.organisations.create_organisation(session, name=name))


def make_project(room: IdentityRoom, name: str, organisation: str = DEFAULT_ORGANISATION_ID) -> Project:
    return run(room, lambda session: room.organisations.create_project(session, organisation=organisation, name=name))


def change_project(room: IdentityRoom, project: str, changes: ProjectChanges, version: int | None = None) -> Project:
    return run(room, lambda session: room.organisations.update_project(session, project, changes, version=version))


def find_user(room: IdentityRoom, name: str) -> User:
    return run(room, lambda session: room.accounts.find_user(session, name))


def change_user(room: IdentityRoom, name: str, changes: UserChanges, version: int | None = None) -> tuple[str, ...]:
    changed = run(room, lambda session: room.accounts.update_user(session, name, changes, version=version))
    assert changed.user == find_user(room, name)
    return changed.revoked


def log_in(room: IdentityRoom, name: str) -> None:
    """A session of that user, as sign-in would begin it."""
    user = find_user(room, name)
    statement = text(
        "INSERT INTO sessions (id, user_id, digest, kind, state, address, agent, created_at, last_seen_at, expires_at)"
        " VALUES (:id, :user, :digest, 'token', 'active', '127.0.0.1', 'x', :now, :now, :now)"
    )
    now = room.clock.now()
    values = {"id": f"ses_{name}", "user": user.id, "digest": name.encode().ljust(32), "now": now.replace(tzinfo=None)}
    run(room, lambda session: session.execute(statement, values))


def sessions_open(room: IdentityRoom) -> set[str]:
    with room.database.engine.connect() as connection:
        return set(connection.execute(text("SELECT id FROM sessions WHERE ended_at IS NULL")).scalars())


def at_once(room: IdentityRoom, *works: Callable[[], object]) -> list[Exception]:
    """What the works raised, done at the same time."""
    barrier, raised = threading.Barrier(len(works)), list[Exception]()

    def do(work: Callable[[], object]) -> None:
        barrier.wait(30)
        try:
            patiently(room.database, work)
        except OperatorError as error:
            raised.append(error)

    threads = [threading.Thread(target=do, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return raised


def test_an_organisation_has_a_first_project_in_which_its_users_have_keys(room: IdentityRoom) -> None:
    made = make_organisation(room, " Bank ")
    room.make_user("bob", organisation="bank")

    key = room.make_key("bob").api_key
    (first,) = run(room, lambda session: room.organisations.list_projects(session, organisation_id=made.id))

    assert (made.name, made.version, made.created_at) == ("Bank", 1, room.clock.now())
    assert (first.name, first.status, first.requests_per_minute) == ("Default", ProjectStatus.ACTIVE, None)
    assert key.project_id == first.id
    assert key.organisation_id == find_user(room, "bob").organisation_id == made.id
    assert room.make_user("alice")
    assert room.make_key("alice").api_key.project_id == DEFAULT_PROJECT_ID


def test_a_name_of_an_organisation_is_taken_once_however_it_is_written(room: IdentityRoom) -> None:
    make_organisation(room, "Bank")
    other = make_organisation(room, "Other")

    for again in ("bank", "BANK", " bank ", "\uff22\uff21\uff2e\uff2b"):
        with pytest.raises(ConflictError, match="exists already"):
            make_organisation(room, again)
        with pytest.raises(ConflictError, match="exists already"):
            run(room, partial(room.organisations.rename_organisation, reference=other.id, name=again))

    assert len(run(room, room.organisations.list_organisations)) == 3


def test_a_name_of_a_project_is_taken_once_in_its_organisation(room: IdentityRoom) -> None:
    bank = make_organisation(room, "Bank")
    ours = make_project(room, "Loan  desk")
    theirs = make_project(room, "loan desk", bank.id)

    with pytest.raises(ConflictError, match="exists already"):
        make_project(room, "LOAN DESK")
    with pytest.raises(ConflictError, match=r"prj_…"):
        run(room, lambda session: room.organisations.find_project(session, "loan desk"))
    found = run(room, lambda session: room.organisations.find_project(session, "Loan desk", organisation_id=bank.id))

    assert found == theirs
    assert run(room, lambda session: room.organisations.find_project(session, ours.id)) == ours


def test_of_two_that_take_one_name_at_once_one_gets_it(room: IdentityRoom) -> None:
    raised = at_once(room, *[lambda: make_project(room, "One")] * 4, *[lambda: make_organisation(room, "Two")] * 4)

    assert len(raised) == 6
    assert all(isinstance(error, ConflictError) for error in raised)


def test_names_that_nobody_could_read_or_keep_are_refused(room: IdentityRoom) -> None:
    for name in ("", "  ", "a\nb", "x" * 101, "ops\ufe0f", "\u200b", "\ufdfa" * 50):
        with pytest.raises(OperatorError, match="printable characters"):
            make_organisation(room, name)
        with pytest.raises(OperatorError, match="printable characters"):
            make_project(room, name)


def test_a_project_is_renamed_limited_stopped_and_started_and_each_change_is_a_version(room: IdentityRoom) -> None:
    made = make_project(room, "Desk")
    room.clock.advance(60)

    renamed = change_project(room, made.id, {"name": "Loans"}, made.version)
    limited = change_project(room, "loans", {"requests_per_minute": 30}, renamed.version)
    stopped = change_project(room, "loans", {"status": "inactive"}, limited.version)
    same = change_project(room, "loans", {"status": "inactive", "name": "Loans"})
    started = change_project(room, "loans", {"status": "active", "requests_per_minute": None})

    assert [project.version for project in (made, renamed, limited, stopped, same, started)] == [1, 2, 3, 4, 4, 5]
    assert (stopped.name, stopped.status, stopped.requests_per_minute) == ("Loans", ProjectStatus.INACTIVE, 30)
    assert (started.status, started.requests_per_minute) == (ProjectStatus.ACTIVE, None)
    assert renamed.updated_at == room.clock.now() > made.updated_at == made.created_at
    for wrong in ({"status": "gone"}, {"requests_per_minute": 0}, {"name": ""}):
        with pytest.raises(OperatorError):
            change_project(room, "loans", wrong)  # type: ignore[arg-type]  # what a client might send


def test_a_change_to_a_version_that_is_gone_changes_nothing(room: IdentityRoom) -> None:
    made = make_project(room, "Desk")
    room.make_user("alice")
    change_project(room, made.id, {"name": "Loans"}, made.version)
    change_user(room, "alice", {"email": "other@example.org"}, 1)

    for late in (
        lambda: change_project(room, made.id, {"name": "Late"}, made.version),
        lambda: change_user(room, "alice", {"role": "admin"}, 1),
        lambda: run(room, lambda session: room.accounts.lock_user(session, "alice", version=1)),
        lambda: run(room, lambda session: room.accounts.disable_user(session, "alice", version=1)),
        lambda: run(
            room,
            lambda session: room.organisations.rename_organisation(session, DEFAULT_ORGANISATION_ID, "Late", version=7),
        ),
    ):
        with pytest.raises(StaleError, match="Read it again"):
            late()

    assert run(room, lambda session: room.organisations.find_project(session, made.id)).name == "Loans"
    assert find_user(room, "alice").role is Role.MEMBER


def test_of_several_changes_to_one_version_at_once_one_is_made(room: IdentityRoom) -> None:
    made = make_project(room, "Desk")

    raised = at_once(room, *[partial(change_project, room, made.id, {"name": f"Name {n}"}, 1) for n in range(5)])

    assert [type(error) for error in raised] == [StaleError] * 4
    assert run(room, lambda session: room.organisations.find_project(session, made.id)).version == 2


def test_what_is_missing_conflicts_or_is_stale_has_its_own_status_for_clients(room: IdentityRoom) -> None:
    statuses: dict[int, int] = {}
    for work in (
        lambda session: room.organisations.find_project(session, "nobody's"),
        lambda session: room.organisations.find_organisation(session, "org_x"),
        lambda session: room.accounts.find_user(session, "nobody"),
        lambda session: room.keys.find_api_key(session, "key_none"),
        lambda session: room.organisations.create_organisation(session, name="DEFAULT"),
        lambda session: room.organisations.update_project(session, DEFAULT_PROJECT_ID, {}, version=9),
        lambda session: room.organisations.create_organisation(session, name=""),
    ):
        with pytest.raises(OperatorError) as caught:
            run(room, work)
        told = client_error_of(caught.value)
        assert told.public == str(caught.value)
        statuses[told.status] = statuses.get(told.status, 0) + 1

    assert statuses == {404: 4, 409: 1, 412: 1, 400: 1}


def test_members_join_once_are_listed_and_leave(room: IdentityRoom) -> None:
    project = make_project(room, "Desk")
    for name in ("alice", "bob", "carol"):
        room.make_user(name)
    organisations = room.organisations

    first = run(room, lambda session: organisations.add_member(session, "desk", "ALICE"))
    room.clock.advance(60)
    again = run(room, lambda session: organisations.add_member(session, project.id, first.user_id))
    for name in ("bob", "carol"):
        run(room, partial(organisations.add_member, project="desk", user=name))
    pages = [run(room, lambda session: organisations.members(session, "desk", limit=2))]
    pages.append(run(room, lambda session: organisations.members(session, "desk", after=pages[0][-1].user_id, limit=2)))
    run(room, lambda session: organisations.remove_member(session, "desk", "bob"))

    assert first == again
    assert [len(page) for page in pages] == [2, 1]
    assert {member.username for page in pages for member in page} == {"alice", "bob", "carol"}
    left = run(room, lambda session: organisations.members(session, "desk"))
    assert {member.username for member in left} == {"alice", "carol"}
    its = run(room, lambda session: organisations.list_projects(session, member_id=first.user_id))
    assert [found.id for found in its] == [project.id]
    with pytest.raises(NotFoundError, match="not a member"):
        run(room, lambda session: organisations.remove_member(session, "desk", "bob"))


def test_who_belongs_to_another_organisation_joins_no_project_and_gets_no_key_there(room: IdentityRoom) -> None:
    bank = make_organisation(room, "Bank")
    theirs = make_project(room, "Desk", bank.id)
    room.make_user("alice", role="owner")

    with pytest.raises(ConflictError, match="another organisation"):
        run(room, lambda session: room.organisations.add_member(session, theirs.id, "alice"))
    for project in (theirs.id, "desk"):
        with pytest.raises(NotFoundError, match="no project"):
            room.make_key(project=project)


def test_a_member_has_keys_in_a_project_until_leaving_it(room: IdentityRoom) -> None:
    make_project(room, "Desk")
    room.make_user("alice")
    with pytest.raises(ConflictError, match="not a member"):
        room.make_key(project="desk")
    run(room, lambda session: room.organisations.add_member(session, "desk", "alice"))
    inside, outside = room.make_key(project="Desk").api_key, room.make_key().api_key

    revoked = run(room, lambda session: room.organisations.remove_member(session, "desk", "alice"))

    assert revoked == (inside.kid,)
    statuses = {key.kid: key.status(room.clock.now()) for key in run(room, room.keys.list_api_keys)}
    assert statuses == {inside.kid: KeyStatus.REVOKED, outside.kid: KeyStatus.ACTIVE}


def test_who_sees_every_project_needs_no_membership_for_a_key(room: IdentityRoom) -> None:
    project = make_project(room, "Desk")
    room.make_user("olga", role="operator")
    run(room, lambda session: room.organisations.add_member(session, "desk", "olga"))

    key = room.make_key("olga", project="desk").api_key
    revoked = run(room, lambda session: room.organisations.remove_member(session, "desk", "olga"))

    assert key.project_id == project.id
    assert revoked == ()


def test_an_inactive_project_gets_no_key(room: IdentityRoom) -> None:
    room.make_user("alice")
    change_project(room, DEFAULT_PROJECT_ID, {"status": "inactive"})

    with pytest.raises(ConflictError, match="inactive"):
        room.make_key()


def test_a_user_who_leaves_takes_keys_sessions_and_memberships_along(room: IdentityRoom) -> None:
    make_project(room, "Desk")
    for name in ("alice", "bob"):
        room.make_user(name)
        run(room, partial(room.organisations.add_member, project="desk", user=name))
        log_in(room, name)
    keys = {room.make_key("alice").api_key.kid, room.make_key("alice", project="desk").api_key.kid}
    others = room.make_key("bob").api_key
    token = run(room, lambda session: room.accounts.start_setup(session, "alice"))

    left = run(room, lambda session: room.accounts.disable_user(session, "alice"))
    again = run(room, lambda session: room.accounts.disable_user(session, "alice"))

    assert (left.user.status, set(left.revoked), again.revoked) == (UserStatus.DISABLED, keys, ())
    statuses = {key.kid: key.status(room.clock.now()) for key in run(room, room.keys.list_api_keys)}
    assert statuses == {**dict.fromkeys(keys, KeyStatus.REVOKED), others.kid: KeyStatus.ACTIVE}
    assert sessions_open(room) == {"ses_bob"}
    members = run(room, lambda session: room.organisations.members(session, "desk"))
    assert [member.username for member in members] == ["bob"]
    for late in (
        lambda session: room.accounts.unlock_user(session, "alice"),
        lambda session: room.accounts.update_user(session, "alice", {"role": "owner"}),
        lambda session: room.organisations.add_member(session, "desk", "alice"),
        lambda session: room.keys.create_api_key(session, username="alice", name="late"),
    ):
        with pytest.raises(ConflictError, match="disabled"):
            run(room, late)
    with pytest.raises(OperatorError, match="not valid"):
        run(room, lambda session: room.accounts.token_holder(session, token.secret))
    with pytest.raises(ConflictError, match="exists already"):
        room.make_user("ALICE")


def test_the_last_active_owner_stays_one(room: IdentityRoom) -> None:
    assert not run(room, room.accounts.has_owner)
    room.make_user("root", role="owner")
    room.make_user("second", role="owner")
    assert run(room, room.accounts.has_owner)
    run(room, lambda session: room.accounts.lock_user(session, "second"))

    for end in (
        lambda session: room.accounts.lock_user(session, "root"),
        lambda session: room.accounts.disable_user(session, "root"),
        lambda session: room.accounts.update_user(session, "root", {"role": "admin"}),
    ):
        with pytest.raises(ConflictError, match="last active owner"):
            run(room, end)
    run(room, lambda session: room.accounts.unlock_user(session, "second"))
    change_user(room, "root", {"role": "admin"})

    assert find_user(room, "root").role is Role.ADMIN


def test_of_owners_who_demote_each_other_at_once_one_stays(room: IdentityRoom) -> None:
    names = [f"owner{number}" for number in range(4)]
    for name in names:
        room.make_user(name, role="owner")

    raised = at_once(room, *[partial(change_user, room, name, {"role": "member"}) for name in names])

    assert [type(error) for error in raised] == [ConflictError]
    owners = run(room, lambda session: room.accounts.list_users(session, role="owner"))
    assert len(owners) == 1


def test_with_another_role_sessions_end_and_keys_that_it_may_not_have_are_revoked(room: IdentityRoom) -> None:
    make_project(room, "Desk")
    room.make_user("root", role="owner")
    room.make_user("olga", role="operator")
    log_in(room, "olga")
    manages, inside, plain = (
        room.make_key("olga", kind="adm").api_key.kid,
        room.make_key("olga", project="desk").api_key.kid,
        room.make_key("olga").api_key.kid,
    )

    kept = change_user(room, "olga", {"email": "new@example.org"})
    still_open = sessions_open(room)
    revoked = change_user(room, "olga", {"role": "user"})

    assert (kept, still_open) == ((), {"ses_olga"})
    assert (set(revoked), sessions_open(room)) == ({manages, inside}, set())
    assert find_user(room, "olga").email == "new@example.org"
    active = run(room, lambda session: room.keys.list_api_keys(session, status="active"))
    assert [key.kid for key in active] == [plain]
    assert change_user(room, "olga", {"role": "auditor"}) == (plain,)


def test_a_user_changes_organisation_only_without_keys_and_leaves_the_projects(room: IdentityRoom) -> None:
    bank = make_organisation(room, "Bank")
    make_project(room, "Desk")
    room.make_user("alice")
    run(room, lambda session: room.organisations.add_member(session, "desk", "alice"))
    key = room.make_key()

    with pytest.raises(ConflictError, match="revoke them first"):
        change_user(room, "alice", {"organisation": "bank"})
    room.revoke(key)
    change_user(room, "alice", {"organisation": "bank"})

    assert find_user(room, "alice").organisation_id == bank.id
    assert run(room, lambda session: room.organisations.members(session, "desk")) == []
    assert room.make_key().api_key.organisation_id == bank.id


def test_users_are_found_by_id_and_none_is_named_like_one(room: IdentityRoom) -> None:
    room.make_user("alice")
    alice = find_user(room, "alice")

    assert find_user(room, alice.id) == alice
    with pytest.raises(OperatorError, match="form of a user's id"):
        room.make_user(alice.id)


def test_users_are_listed_by_each_filter(room: IdentityRoom) -> None:
    bank = make_organisation(room, "Bank")
    room.make_user("root", role="owner")
    room.make_user("Ann_1", role="viewer")
    room.make_user("ann1")
    room.make_user("bob", organisation=bank.id)
    run(room, lambda session: room.accounts.lock_user(session, "bob"))

    def names(**filters: str) -> set[str]:
        users = run(room, lambda session: room.accounts.list_users(session, **filters))  # type: ignore[arg-type]
        return {user.username for user in users}

    assert names() == {"root", "Ann_1", "ann1", "bob"}
    assert names(organisation_id=bank.id) == {"bob"}
    assert names(role="readonly") == {"Ann_1"}
    assert names(status="locked") == {"bob"}
    assert names(name_prefix="ANN") == {"Ann_1", "ann1"}
    assert names(name_prefix="ann_") == {"Ann_1"}
    assert names(name_prefix="%") == set()
    assert names(name_prefix="ann", role="member") == {"ann1"}
    for wrong in ({"status": "gone"}, {"role": "king"}):
        with pytest.raises(OperatorError):
            names(**wrong)


def test_projects_and_organisations_are_listed_by_each_filter(room: IdentityRoom) -> None:
    bank = make_organisation(room, "Bank_1")
    make_organisation(room, "Bank2")
    desk, loans = make_project(room, "Desk", bank.id), make_project(room, "Loans", bank.id)
    change_project(room, loans.id, {"status": "inactive"})
    organisations = room.organisations

    def names(**filters: str) -> list[str]:
        found = run(room, lambda session: organisations.list_projects(session, organisation_id=bank.id, **filters))  # type: ignore[arg-type]
        return sorted(project.name for project in found)

    assert names() == ["Default", "Desk", "Loans"]
    assert names(status="inactive") == ["Loans"]
    assert names(status="active", name_prefix="DE") == ["Default", "Desk"]
    everything = run(room, organisations.list_projects)
    assert len(everything) == 5
    prefixed = run(room, lambda session: organisations.list_organisations(session, name_prefix="bank_"))
    assert [found.name for found in prefixed] == ["Bank_1"]
    own = run(room, lambda session: organisations.list_organisations(session, organisation_id=bank.id))
    assert own == [bank]
    # Of two that are made within one millisecond, either may stand last.
    assert run(room, lambda session: organisations.list_projects(session, after=everything[-1].id)) == []
    assert desk.organisation_id == bank.id


def test_pages_tell_everything_once_while_more_is_added(room: IdentityRoom) -> None:
    made = [make_project(room, f"p{number}") for number in range(7)]
    seen: list[Project] = []

    while True:
        after = seen[-1].id if seen else None
        page = run(room, partial(room.organisations.list_projects, after=after, limit=2))
        if not page:
            break
        seen += page
        if len(seen) < 10:
            make_project(room, f"late{len(seen)}")

    ids = [project.id for project in seen]
    assert ids == sorted(set(ids))
    assert {project.id for project in made} <= set(ids)
    with pytest.raises(OperatorError, match="at least one row"):
        run(room, lambda session: room.organisations.list_projects(session, limit=0))
