from __future__ import annotations

from datetime import UTC, datetime

from secure_llm_proxy.identity.api_keys import Kid
from secure_llm_proxy.identity.verified_keys import KnownKey, RefusedKeys, VerifiedKeys
from secure_llm_proxy.vocabulary.caller import Caller


def known(kid: str, seen_s: float = 0.0) -> KnownKey:
    caller = Caller(user_id="usr_1", key_id=kid, role="member", scopes=frozenset({"chat"}))
    return KnownKey(Kid(kid), caller, datetime(2027, 1, 1, tzinfo=UTC), None, seen_s)


def test_the_least_recently_used_key_makes_room() -> None:
    keys = VerifiedKeys(size_max=2)
    keys.put(b"a" * 32, known("kidaaaaa"))
    keys.put(b"b" * 32, known("kidbbbbb"))

    keys.get(b"a" * 32)
    keys.put(b"c" * 32, known("kidccccc"))

    assert len(keys) == 2
    assert keys.get(b"b" * 32) is None
    assert keys.get(b"a" * 32) is not None
    assert keys.get(b"c" * 32) is not None


def test_a_dropped_key_is_gone_and_dropping_it_again_or_a_stranger_is_no_error() -> None:
    keys = VerifiedKeys(size_max=2)
    keys.put(b"a" * 32, known("kidaaaaa"))

    keys.drop(Kid("kidaaaaa"))
    keys.drop(Kid("kidaaaaa"))
    keys.drop(Kid("stranger"))

    assert keys.get(b"a" * 32) is None
    assert len(keys) == 0


def test_a_key_looked_up_again_replaces_what_was_known() -> None:
    keys = VerifiedKeys(size_max=2)
    keys.put(b"a" * 32, known("kidaaaaa", 1.0))
    keys.put(b"a" * 32, known("kidaaaaa", 2.0))

    assert len(keys) == 1
    assert keys.get(b"a" * 32) == known("kidaaaaa", 2.0)


def test_digests_that_begin_alike_are_different_keys() -> None:
    keys = VerifiedKeys(size_max=4)
    keys.put(b"a" * 32, known("kidaaaaa"))

    assert keys.get(b"a" * 31 + b"b") is None
    assert keys.get(b"a" * 20) is None


def test_a_refusal_is_remembered_for_its_time_and_their_number_is_bounded() -> None:
    refused = RefusedKeys(size_max=2, keep_s=5.0)

    for first in (b"a", b"b", b"c"):
        refused.put(first * 32, 10.0)

    assert len(refused) == 2
    assert not refused.holds(b"a" * 32, 10.0)
    assert refused.holds(b"b" * 32, 14.9)
    assert not refused.holds(b"b" * 32, 15.0)
