"""Keys as operators handle them, on both databases: kinds, bounds, changes, rotation, quarantine, lists."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import AuthenticationFailed, ConflictError, OperatorError, StaleError
from secure_llm_proxy.identity import (
    ApiKey,
    IssuedKey,
    KeyChanges,
    KeyKind,
    KeyStatus,
    LeakedKeys,
    draw_api_key,
    kid_of,
)
from tests.support.identity_room import IdentityRoom, migrated_database, patiently
from tests.support.postgresql import PrivatePostgreSQL

T = TypeVar("T")
_DAY_S = 86_400


@pytest.fixture(params=["sqlite", "postgresql"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[IdentityRoom]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'app.db'}"
    else:
        server = request.getfixturevalue("postgresql")
        assert isinstance(server, PrivatePostgreSQL)
        url = server.create_database()
    database = migrated_database(url)
    room = IdentityRoom(database)
    room.make_user()
    yield room
    database.close()


def run(room: IdentityRoom, work: Callable[[Session], T]) -> T:
    return room.database.run(work)


def find(room: IdentityRoom, key: IssuedKey) -> ApiKey:
    return run(room, lambda session: room.keys.find_api_key(session, key.api_key.kid))


def status_of(room: IdentityRoom, key: IssuedKey) -> KeyStatus:
    return find(room, key).status(room.clock.now())


def change(room: IdentityRoom, key: IssuedKey, changes: KeyChanges, version: int | None = None) -> ApiKey:
    return run(room, lambda session: room.keys.update_api_key(session, key.api_key.id, changes, version=version))


def rotate(
    room: IdentityRoom,
    key: IssuedKey,
    *,
    overlap_s: int = _DAY_S,
    expires_days: int | None = None,
    version: int | None = None,
) -> IssuedKey:
    return run(
        room,
        lambda session: room.keys.rotate_api_key(
            session, key.api_key.kid, overlap_s=overlap_s, expires_days=expires_days, version=version
        ),
    )


def is_good(room: IdentityRoom, key: IssuedKey) -> bool:
    """Whether a worker that has just started takes it."""
    try:
        room.worker().identify((key.secret,))
    except AuthenticationFailed:
        return False
    return True


def at_once(room: IdentityRoom, work: Callable[[], object], times: int) -> int:
    """How often the work was refused, done so many times at once."""
    barrier, refused = threading.Barrier(times), list[str]()

    def do() -> None:
        barrier.wait(30)
        try:
            patiently(room.database, work)
        except OperatorError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=do) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return len(refused)


def test_a_key_says_of_what_kind_it_is_and_only_those_who_manage_have_one_that_manages(room: IdentityRoom) -> None:
    room.make_user("olga", role="viewer")

    live, test = room.make_key(), room.make_key(kind="TEST")
    manages = room.make_key("olga", kind="adm")

    assert live.secret.startswith("slp_live_")
    assert test.secret.startswith("slp_test_")
    assert manages.secret.startswith("slp_adm_")
    for key in (live, test, manages):
        assert kid_of(key.secret) == key.api_key.kid
        assert key.api_key.kind == key.secret.split("_")[1]
    assert is_good(room, test)
    assert manages.api_key.scopes == ()
    with pytest.raises(ConflictError, match="manages nothing"):
        room.make_key(kind="adm")
    with pytest.raises(OperatorError, match="no scopes"):
        room.make_key("olga", kind="adm", scopes=("chat",))
    with pytest.raises(OperatorError, match="live, test, adm"):
        room.make_key(kind="root")


def test_a_role_that_may_not_chat_gets_no_key_that_may(room: IdentityRoom) -> None:
    room.make_user("paul", role="auditor")

    assert room.make_key("paul").api_key.scopes == ("models",)
    with pytest.raises(ConflictError, match="may not chat"):
        room.make_key("paul", scopes=("chat",))


def test_a_key_is_bound_to_networks_and_agents_in_one_form_each(room: IdentityRoom) -> None:
    key = room.make_key(
        allowed_addresses=("10.0.0.0/8", " 192.0.2.7", "2001:DB8::/32", "::ffff:10.0.0.0/104", "10.0.0.0/8"),
        allowed_agents=("OpenAI", "curl/8.*", "*bot", "openai"),
        burst=3,
        concurrent=2,
        tokens_max=100,
    ).api_key

    assert key.allowed_addresses == ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32")
    assert key.allowed_agents == ("openai", "curl/8.*", "*bot")
    assert (key.burst, key.concurrent, key.tokens_max) == (3, 2, 100)
    for addresses in (
        (),
        ("",),
        ("10.0.0.1/8",),
        ("10.0.0.0/255.0.0.0",),
        ("fe80::1%eth0",),
        ("010.0.0.1",),
        ("10.0.0.0/33",),
        ("localhost",),
        tuple(f"10.0.{number}.0/24" for number in range(101)),
    ):
        with pytest.raises(OperatorError, match=r"network|prefix|address"):
            room.make_key(allowed_addresses=addresses)
    for agents in ((), ("",), ("two words",), ("\u212aurl",), ("x" * 129,), tuple(map(str, range(51)))):
        with pytest.raises(OperatorError, match=r"agent|glob"):
            room.make_key(allowed_agents=agents)
    for number in (0, -1, 2**31):
        with pytest.raises(OperatorError, match="1 to"):
            room.make_key(burst=number)
        with pytest.raises(OperatorError, match="1 to"):
            room.make_key(concurrent=number)
        with pytest.raises(OperatorError, match="1 to"):
            room.make_key(tokens_max=number)


def test_a_key_changes_where_it_is_told_to_and_each_change_is_a_version(room: IdentityRoom) -> None:
    key = room.make_key(models=("a",), burst=5)

    first = change(room, key, {"models": ("b",), "allowed_addresses": ("10.0.0.0/8",)}, 1)
    second = change(room, key, {"models": None, "name": " other ", "scopes": ("chat",), "requests_per_minute": 7}, 2)
    same = change(room, key, {"name": "other", "burst": 5})

    assert (first.models, first.allowed_addresses, first.version) == (("b",), ("10.0.0.0/8",), 2)
    assert (second.models, second.name, second.scopes, second.version) == (None, "other", ("chat",), 3)
    assert (second.requests_per_minute, second.burst, second.allowed_addresses) == (7, 5, ("10.0.0.0/8",))
    assert same == second == find(room, key)
    with pytest.raises(StaleError):
        change(room, key, {"name": "late"}, 2)
    with pytest.raises(OperatorError, match="scope"):
        change(room, key, {"scopes": ()})
    room.revoke(key)
    with pytest.raises(ConflictError, match="revoked"):
        change(room, key, {"name": "late"})


def test_a_rotated_key_works_on_for_the_overlap_and_its_successor_as_long_as_it_did(room: IdentityRoom) -> None:
    old = room.make_key(
        kind="test",
        expires_days=30,
        scopes=("chat",),
        models=("m",),
        requests_per_minute=9,
        burst=2,
        concurrent=3,
        tokens_max=50,
        allowed_addresses=("10.0.0.0/8",),
        allowed_agents=("curl",),
    )
    room.clock.advance(10 * _DAY_S)

    new = rotate(room, old)

    was, now = find(room, old), new.api_key
    for name in (
        "kind", "user_id", "project_id", "name", "scopes", "models", "requests_per_minute", "burst", "concurrent",
        "tokens_max", "allowed_addresses", "allowed_agents",
    ):  # fmt: skip
        assert getattr(was, name) == getattr(now, name), name
    assert (now.rotated_from, now.created_at) == (was.id, room.clock.now())
    assert now.expires_at - room.clock.now() == timedelta(days=30)
    assert was.expires_at - room.clock.now() == timedelta(days=1)
    assert new.changed == (was.kid,)
    assert new.secret.startswith("slp_test_")
    assert is_good(room, old)
    assert is_good(room, new)
    room.clock.advance(_DAY_S)
    assert not is_good(room, old)
    assert is_good(room, new)


def test_the_overlap_is_none_or_a_week_at_most_and_never_lengthens_a_life(room: IdentityRoom) -> None:
    at_once_, short = room.make_key(), room.make_key(expires_days=2)
    ends = short.api_key.expires_at

    rotate(room, at_once_, overlap_s=0, expires_days=5)
    rotate(room, short, overlap_s=7 * _DAY_S)

    assert status_of(room, at_once_) is KeyStatus.REVOKED
    assert find(room, short).expires_at == ends
    for overlap_s in (-1, 7 * _DAY_S + 1):
        with pytest.raises(OperatorError, match="0 to 168 hours"):
            rotate(room, room.make_key(), overlap_s=overlap_s)


def test_a_key_is_rotated_once_and_of_one_line_two_work_at_most(room: IdentityRoom) -> None:
    first = room.make_key()
    second = rotate(room, first, overlap_s=7 * _DAY_S)

    with pytest.raises(ConflictError, match=f"rotated already, to {second.api_key.kid}"):
        rotate(room, first)
    third = rotate(room, second)

    assert [status_of(room, key) for key in (first, second, third)] == ["revoked", "active", "active"]
    assert set(third.changed) == {first.api_key.kid, second.api_key.kid}
    room.revoke(third)
    fourth = rotate(room, second)
    assert [status_of(room, key) for key in (second, fourth)] == ["active", "active"]


def test_only_an_active_key_of_an_active_user_is_rotated(room: IdentityRoom) -> None:
    revoked, expired, leaked, good = (room.make_key(expires_days=days) for days in (9, 1, 9, 9))
    room.revoke(revoked)
    run(room, lambda session: room.keys.quarantine_api_key(session, leaked.api_key.kid, "seen in a log"))
    room.clock.advance(_DAY_S)

    for key, status in ((revoked, "revoked"), (expired, "expired"), (leaked, "quarantined")):
        with pytest.raises(ConflictError, match=f"is {status}"):
            rotate(room, key)
    with pytest.raises(StaleError):
        rotate(room, good, version=2)
    run(room, lambda session: room.accounts.lock_user(session, "alice"))
    with pytest.raises(ConflictError, match="locked"):
        rotate(room, good)


def test_keys_on_their_way_out_do_not_count_and_rotation_passes_no_limit(room: IdentityRoom) -> None:
    keys = [room.make_key() for _ in range(5)]

    new = [rotate(room, key) for key in keys]
    with pytest.raises(ConflictError, match="5 active API keys"):
        room.make_key()
    room.revoke(new[0])
    with pytest.raises(ConflictError, match="5 active API keys"):
        room.make_key()
    room.revoke(keys[0])
    room.make_key()
    with pytest.raises(ConflictError, match="5 active API keys"):
        room.make_key()


def test_of_several_that_rotate_one_key_at_once_one_succeeds_and_the_limit_holds(room: IdentityRoom) -> None:
    key = room.make_key()

    refused = at_once(room, lambda: rotate(room, key), 5)
    also_refused = at_once(room, room.make_key, 8)

    assert (refused, also_refused) == (4, 4)
    assert len(run(room, lambda session: room.keys.list_api_keys(session, status="active"))) == 6


def test_a_quarantined_key_is_refused_until_it_is_released(room: IdentityRoom) -> None:
    key = room.make_key()
    keys = room.keys

    first = run(room, lambda session: keys.quarantine_api_key(session, key.api_key.kid, " seen in a log "))
    room.clock.advance(60)
    again = run(room, lambda session: keys.quarantine_api_key(session, key.api_key.id, "another"))
    quarantined = status_of(room, key)
    released = run(room, lambda session: keys.release_api_key(session, key.api_key.kid, version=2))

    assert first == again
    assert (first.quarantine_reason, first.version, quarantined) == ("seen in a log", 2, KeyStatus.QUARANTINED)
    assert (released.quarantined_at, released.quarantine_reason, released.version) == (None, None, 3)
    assert status_of(room, key) is KeyStatus.ACTIVE
    room.revoke(key)
    for late in (keys.release_api_key, partial(keys.quarantine_api_key, reason="x")):
        with pytest.raises(ConflictError, match="revoked"):
            run(room, partial(late, reference=key.api_key.kid))
    with pytest.raises(OperatorError, match="reason"):
        run(room, lambda session: keys.quarantine_api_key(session, room.make_key().api_key.kid, "a\nb"))


def test_keys_are_listed_by_each_filter_and_their_status_is_one_of_four(room: IdentityRoom) -> None:
    bank = run(room, lambda session: room.organisations.create_organisation(session, name="Bank"))
    room.make_user("bob", role="admin", organisation="bank")
    plain, tested, short = room.make_key(), room.make_key(kind="test"), room.make_key(expires_days=1)
    theirs, manages = room.make_key("bob"), room.make_key("bob", kind="adm")
    room.revoke(plain)
    run(room, lambda session: room.keys.quarantine_api_key(session, tested.api_key.kid, "x"))
    run(room, lambda session: room.keys.quarantine_api_key(session, short.api_key.kid, "x"))
    room.clock.advance(_DAY_S)

    def kids(username: str | None = None, **filters: str) -> set[str]:
        found = run(room, lambda session: room.keys.list_api_keys(session, username, **filters))  # type: ignore[arg-type]
        return {key.kid for key in found}

    of = {name: key.api_key.kid for name, key in (("plain", plain), ("tested", tested), ("short", short))}
    bobs = {theirs.api_key.kid, manages.api_key.kid}
    assert kids() == {*of.values(), *bobs}
    assert kids("ALICE") == set(of.values())
    assert kids(organisation_id=bank.id) == bobs
    assert kids(project_id=theirs.api_key.project_id) == bobs
    assert kids(kind="adm") == {manages.api_key.kid}
    assert kids(status="revoked") == {of["plain"]}
    assert kids(status="expired") == {of["short"]}
    assert kids(status="quarantined") == {of["tested"]}
    assert kids(status="active") == bobs
    assert kids(status="active", kind="live") == {theirs.api_key.kid}
    for status in KeyStatus:
        for key in run(room, partial(room.keys.list_api_keys, status=status)):
            assert key.status(room.clock.now()) is status
    for wrong in ({"status": "gone"}, {"kind": "gone"}):
        with pytest.raises(OperatorError):
            kids(**wrong)


def test_pages_of_keys_tell_everything_once_while_more_is_made(room: IdentityRoom) -> None:
    room.settings = {"keys_per_user_max": 100}
    made = {room.make_key().api_key.id for _ in range(7)}
    seen: list[str] = []

    while page := run(room, partial(room.keys.list_api_keys, after=seen[-1] if seen else None, limit=3)):
        seen += [key.id for key in page]
        if len(seen) < 12:
            room.make_key()

    assert seen == sorted(set(seen))
    assert made <= set(seen)


def test_a_key_is_recognised_by_all_of_it_and_not_by_its_public_part(room: IdentityRoom) -> None:
    ours, forged = room.make_key(), draw_api_key()
    kid = ours.api_key.kid
    body = f"slp_live_{kid}_{forged.secret[18:50]}"

    from secure_llm_proxy.identity.api_keys import checksum_of  # noqa: PLC0415  what a forger can compute as well

    known = run(
        room,
        lambda session: room.keys.recognised(session, (ours.secret, body + checksum_of(body), forged.secret)),
    )

    assert known == {ours.secret: ours.api_key}
    assert run(room, lambda session: room.keys.recognised(session, ())) == {}


def test_a_leaked_key_is_ours_while_it_works_or_could_again(room: IdentityRoom) -> None:
    forgotten = list[str]()
    leaks = LeakedKeys(room.keys, room.database, room.clock, forgotten.append)
    keys = [room.make_key(expires_days=days) for days in (1, 9, 9, 9)]
    _, revoked, quarantined, works = keys
    room.revoke(revoked)
    leaks.quarantine(quarantined.api_key.kid, "found in a body")
    room.clock.advance(_DAY_S)

    found = leaks.ours([key.secret for key in keys] + [draw_api_key(KeyKind.ADM).secret])
    leaks.quarantine(revoked.api_key.kid, "too late")
    leaks.quarantine(works.api_key.kid, "found in a url")

    assert {(key.kid, key.quarantined) for key in found} == {
        (quarantined.api_key.kid, True),
        (works.api_key.kid, False),
    }
    assert {key.user_id for key in found} == {works.api_key.user_id}
    assert forgotten == [quarantined.api_key.kid, works.api_key.kid]
    assert find(room, works).quarantine_reason == "found in a url"
    assert status_of(room, works) is KeyStatus.QUARANTINED
    assert leaks.ours(()) == ()


def test_whoever_changes_keys_and_users_at_once_waits_for_nobody_crosswise(room: IdentityRoom) -> None:
    room.settings = {"keys_per_user_max": 50}
    room.make_user("root", role="owner")
    run(room, lambda session: room.organisations.create_project(session, organisation="default", name="Desk"))
    keys = [room.make_key(name, expires_days=30) for name in ("alice", "root") * 6]
    kids = sorted(key.api_key.kid for key in keys)
    worker = room.worker()
    for key in keys:
        worker.identify((key.secret,))

    def on_alice(change: Callable[..., object], **arguments: object) -> Callable[[], object]:
        return lambda: run(room, lambda session: change(session, "alice", **arguments))

    accounts = room.accounts
    rotations = [partial(rotate, room, key) for key in keys]
    revocations = [partial(run, room, partial(room.keys.revoke_api_key, reference=kid)) for kid in reversed(kids)]
    roles = [on_alice(accounts.update_user, changes={"role": role}) for role in ("admin", "member") * 4]
    locks = [on_alice(accounts.lock_user), on_alice(accounts.unlock_user)] * 3
    projects = [
        partial(run, room, partial(room.organisations.update_project, reference="desk", changes={"status": status}))
        for status in ("inactive", "active") * 4
    ]
    trouble = list[Exception]()

    def do(steps: Sequence[Callable[[], object]]) -> None:
        for step in steps:
            try:
                patiently(room.database, step)
            except OperatorError:
                continue  # another was quicker: it is revoked, rotated or disabled already
            except Exception as error:  # noqa: BLE001  it is what is looked for
                trouble.append(error)

    works = (rotations, revocations, [*roles, *locks, on_alice(accounts.disable_user)], projects)
    threads = [threading.Thread(target=do, args=(steps,)) for steps in (*works, [worker.flush_last_used])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    assert trouble == []
    assert not any(thread.is_alive() for thread in threads)
    assert run(room, lambda session: accounts.find_user(session, "alice")).status == "disabled"
    assert run(room, lambda session: room.keys.list_api_keys(session, "alice", status="active")) == []
