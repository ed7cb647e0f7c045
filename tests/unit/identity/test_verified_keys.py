from __future__ import annotations

import gc
from datetime import UTC, datetime

import pytest

from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.identity.api_keys import Kid
from secure_llm_proxy.identity.names import DEFAULT_ORGANISATION_ID, DEFAULT_PROJECT_ID
from secure_llm_proxy.identity.verified_keys import KeyRecord, RefusedKeys, VerifiedKeys, key_record, known_key
from secure_llm_proxy.vocabulary.caller import Caller

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def record(digest: bytes = A, /, **columns: str) -> KeyRecord:
    row = {
        "user": "usr_1",
        "role": "member",
        "status": "active",
        "organisation": "",
        "kind": "",
        "project": "",
        "project_status": "",
        "scopes": '["chat"]',
        "models": "",
        "rate": "",
        "burst": "",
        "concurrent": "",
        "tokens": "",
        "addresses": "",
        "agents": "",
        "expires": "2027-01-01 00:00:00.000000",
        "stopped": "",
    }
    return key_record(digest, "\x1f".join({**row, **columns}.values()))


def test_a_record_says_what_the_row_said() -> None:
    known = known_key(
        Kid("kidaaaaa"),
        record(role="operator", models='["demo", "gpt-4o"]', rate="7", expires="2027-01-01 02:00:00+02"),
    )

    moment = datetime(2027, 1, 1, tzinfo=UTC)
    assert known.caller == Caller(
        user_id="usr_1",
        key_id="kidaaaaa",
        role="operator",
        scopes=frozenset({"chat"}),
        models=frozenset({"demo", "gpt-4o"}),
        requests_per_minute=7,
        expires_at=moment,
        project_id=DEFAULT_PROJECT_ID,
        organisation_id=DEFAULT_ORGANISATION_ID,
    )
    assert (known.digest, known.refusal, known.expires_at) == (A, None, moment)


@pytest.mark.parametrize(
    ("columns", "refusal"),
    [
        ({"stopped": "revoked"}, ErrorCode.API_KEY_REVOKED),
        ({"status": "locked"}, ErrorCode.ACCOUNT_LOCKED),
        ({"status": "disabled"}, ErrorCode.ACCOUNT_LOCKED),
        ({"status": "locked", "stopped": "revoked"}, ErrorCode.API_KEY_REVOKED),
        ({"stopped": "killed"}, ErrorCode.KILLED),
        ({"stopped": "quarantined", "status": "locked"}, ErrorCode.API_KEY_QUARANTINED),
        ({"project_status": "inactive"}, ErrorCode.PROJECT_INACTIVE),
        ({"project_status": "inactive", "status": "locked"}, ErrorCode.ACCOUNT_LOCKED),
    ],
)
def test_a_record_remembers_why_its_key_is_refused(columns: dict[str, str], refusal: ErrorCode) -> None:
    assert known_key(Kid("kidaaaaa"), record(**columns)).refusal is refusal


def test_a_record_says_what_its_key_is_bound_to() -> None:
    caller = known_key(
        Kid("kidaaaaa"),
        record(
            organisation="org_2",
            kind="test",
            project="prj_2",
            burst="3",
            concurrent="2",
            tokens="50",
            addresses='["10.0.0.0/8", "fc00::/7"]',
            agents='["openai*"]',
        ),
    ).caller

    assert (caller.organisation_id, caller.project_id, caller.kind) == ("org_2", "prj_2", "test")
    assert (caller.burst, caller.concurrent, caller.tokens_max) == (3, 2, 50)
    assert (caller.allowed_addresses, caller.allowed_agents) == (("10.0.0.0/8", "fc00::/7"), ("openai*",))


@pytest.mark.parametrize("listed", ['"10.0.0.0/8"', "[7]", "{}", "[null]", "nonsense", '["a"]\x1f["b"]'])
def test_a_list_that_is_none_opens_nothing(listed: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        known_key(Kid("kidaaaaa"), record(addresses=listed))
    assert known_key(Kid("kidaaaaa"), record(addresses="null")).caller.allowed_addresses is None
    assert known_key(Kid("kidaaaaa"), record(addresses="[]")).caller.allowed_addresses == ()


def test_every_model_and_no_model_are_different() -> None:
    assert known_key(Kid("kidaaaaa"), record(models="null")).caller.models is None
    assert known_key(Kid("kidaaaaa"), record(models="[]")).caller.models == frozenset()
    assert known_key(Kid("kidaaaaa"), record(scopes="[]")).caller.scopes == frozenset()


def test_keys_that_may_do_the_same_share_it() -> None:
    first = known_key(Kid("kidaaaaa"), record(models='["demo"]')).caller
    second = known_key(Kid("kidbbbbb"), record(models='["demo"]')).caller

    assert first.scopes is second.scopes
    assert first.models is second.models


def test_the_oldest_key_makes_room_unless_it_was_used_lately() -> None:
    keys = VerifiedKeys(keys_max=2, bytes_max=2**20)
    keys.put_page({Kid("kidaaaaa"): record(A)})
    keys.put(Kid("kidbbbbb"), record(B))

    keys.put(Kid("kidccccc"), record(C))

    assert len(keys) == 2
    assert keys.get(Kid("kidaaaaa"), A) is None
    assert keys.get(Kid("kidbbbbb"), B) is not None
    assert keys.get(Kid("kidccccc"), C) is not None


def test_when_all_were_used_lately_the_oldest_of_them_makes_room() -> None:
    keys = VerifiedKeys(keys_max=2, bytes_max=2**20)

    for kid in ("kidaaaaa", "kidbbbbb", "kidccccc"):
        keys.put(Kid(kid), record())

    assert len(keys) == 2
    assert "kidaaaaa" not in keys.ready
    assert keys.get(Kid("kidccccc"), A) is not None


def test_memory_is_bounded_whatever_the_keys_name() -> None:
    keys = VerifiedKeys(keys_max=1_000_000, bytes_max=2**20)
    models = '["' + "m" * 20_000 + '"]'

    for number in range(500):
        keys.put(Kid(f"{number:08d}"), record(models=models))

    assert keys.size_bytes <= 2**20
    assert 20 < len(keys) < 60
    assert len(keys.ready) <= len(keys)
    assert sum(len(known.caller.models or ()) for known in keys.ready.values()) <= 60


def test_what_is_read_along_drops_nothing_to_make_room() -> None:
    keys = VerifiedKeys(keys_max=32, bytes_max=2**20)
    keys.put(Kid("kidaaaaa"), record())

    keys.put_page({Kid(f"{number:08d}"): record() for number in range(100)})

    assert keys.is_full
    assert len(keys) <= 32
    assert keys.get(Kid("kidaaaaa"), A) is not None


def test_a_hundred_thousand_keys_are_tens_of_megabytes_that_the_garbage_collector_does_not_walk() -> None:
    keys = VerifiedKeys(keys_max=200_000, bytes_max=2**26)
    gc.collect()
    before = len(gc.get_objects())

    keys.put_page({Kid(f"{number:08d}"): record(user=f"usr_{number:026d}") for number in range(100_000)})

    gc.collect()
    assert len(keys) == 100_000
    assert keys.size_bytes < 32 * 2**20
    assert len(gc.get_objects()) - before < 1_000


def test_a_dropped_key_is_gone_and_dropping_it_again_or_a_stranger_is_no_error() -> None:
    keys = VerifiedKeys(keys_max=2, bytes_max=2**20)
    keys.put(Kid("kidaaaaa"), record())

    keys.drop("kidaaaaa")
    keys.drop("kidaaaaa")
    keys.drop("stranger")

    assert keys.get(Kid("kidaaaaa"), A) is None
    assert (len(keys), len(keys.ready), keys.size_bytes) == (0, 0, 0)


def test_everything_can_be_forgotten() -> None:
    keys = VerifiedKeys(keys_max=2, bytes_max=2**20)
    keys.put(Kid("kidaaaaa"), record())

    keys.clear()

    assert keys.get(Kid("kidaaaaa"), A) is None
    assert (len(keys), len(keys.ready), keys.size_bytes) == (0, 0, 0)


def test_a_key_looked_up_again_replaces_what_was_known() -> None:
    keys = VerifiedKeys(keys_max=2, bytes_max=2**20)
    keys.put(Kid("kidaaaaa"), record(role="member"))
    size_bytes = keys.size_bytes

    keys.put(Kid("kidaaaaa"), record(role="viewer"))

    known = keys.get(Kid("kidaaaaa"), A)
    assert known is not None
    assert known.caller.role == "viewer"
    assert (len(keys), keys.size_bytes) == (1, size_bytes)


def test_only_the_whole_digest_opens_a_record_ready_or_not() -> None:
    keys = VerifiedKeys(keys_max=4, bytes_max=2**20)
    keys.put(Kid("kidaaaaa"), record(A))
    keys.put_page({Kid("kidbbbbb"): record(A)})

    for kid in ("kidaaaaa", "kidbbbbb"):
        for digest in (b"a" * 31 + b"b", b"b" + b"a" * 31, b"a" * 20, b""):
            assert keys.get(Kid(kid), digest) is None


def test_a_refusal_is_remembered_for_its_time_and_their_number_is_bounded() -> None:
    refused = RefusedKeys(size_max=2, keep_s=5.0)

    for first in (b"a", b"b", b"c"):
        refused.put(first * 32, 10.0)

    assert len(refused) == 2
    assert not refused.holds(b"a" * 32, 10.0)
    assert refused.holds(b"b" * 32, 14.9)
    assert not refused.holds(b"b" * 32, 15.0)
