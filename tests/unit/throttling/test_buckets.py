"""The arithmetic of limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import ErrorCode, OperatorError
from secure_llm_proxy.settings import ThrottlingSettings
from secure_llm_proxy.throttling.buckets import (
    RATE_MAX,
    Standing,
    address_bucket,
    decide,
    key_bucket,
    limit_of,
    require_limits,
)
from secure_llm_proxy.vocabulary.caller import RateClass

PER_KEY = RateClass(requests=30, burst=5, concurrent=50)
PER_ADDRESS = RateClass(requests=300, burst=50, concurrent=500)
REQUEST = 60_000_000


def standings(
    key_debt: int = 0, key_in_flight: int = 0, address_debt: int = 0, address_in_flight: int = 0
) -> tuple[Standing, Standing]:
    return (
        Standing("key", limit_of(PER_KEY), key_debt, key_in_flight),
        Standing("address", limit_of(PER_ADDRESS), address_debt, address_in_flight),
    )


def test_a_fresh_bucket_grants_and_shows_the_strictest_limit() -> None:
    decision = decide(standings(), source="process")

    assert decision.allowed
    assert (decision.limit, decision.remaining, decision.reset_s, decision.retry_after_s) == (30, 4, 2, 0)
    assert (decision.bucket, decision.source, decision.code) == ("key_rate", "process", None)


def test_the_address_is_shown_when_less_of_it_remains() -> None:
    decision = decide(standings(address_debt=48 * REQUEST), source="process")

    assert (decision.bucket, decision.limit, decision.remaining, decision.reset_s) == ("address_rate", 300, 1, 10)


def test_free_slots_bound_what_remains() -> None:
    decision = decide(standings(key_in_flight=48), source="process")

    assert (decision.bucket, decision.limit, decision.remaining) == ("key_concurrent", 30, 1)


def test_an_empty_bucket_says_when_the_next_request_has_refilled() -> None:
    decision = decide(standings(key_debt=5 * REQUEST - 1), source="redis")

    assert not decision.allowed
    assert (decision.remaining, decision.retry_after_s, decision.reset_s) == (0, 2, 10)
    assert (decision.bucket, decision.code) == ("key_rate", ErrorCode.RATE_LIMIT_EXCEEDED)


def test_one_drop_short_is_refused_and_an_exact_fit_is_granted() -> None:
    assert decide(standings(key_debt=4 * REQUEST), source="redis").allowed
    assert not decide(standings(key_debt=4 * REQUEST + 1), source="redis").allowed
    assert decide(standings(key_debt=4 * REQUEST + 1), source="redis").retry_after_s == 1


def test_full_slots_refuse_with_a_code_of_their_own() -> None:
    decision = decide(standings(address_in_flight=500), source="redis")

    assert (decision.bucket, decision.code) == ("address_concurrent", ErrorCode.CONCURRENCY_LIMIT_EXCEEDED)
    assert (decision.limit, decision.remaining, decision.retry_after_s) == (300, 0, 1)


def test_of_several_refusals_the_longest_wait_is_told() -> None:
    decision = decide(
        standings(key_debt=5 * REQUEST, key_in_flight=50, address_debt=50 * REQUEST, address_in_flight=500),
        source="redis",
    )

    assert (decision.bucket, decision.retry_after_s) == ("key_rate", 2)


@pytest.mark.parametrize("value", [0, -1, -(10**12)])
def test_no_class_is_unlimited(value: int) -> None:
    limit = limit_of(RateClass(requests=value, burst=value, concurrent=value))

    assert limit == limit_of(RateClass(requests=1, burst=1, concurrent=1))


def test_figures_stay_within_what_lua_counts_exactly() -> None:
    limit = limit_of(RateClass(requests=10**30, burst=10**30, concurrent=10**30))

    assert limit == limit_of(RateClass(requests=RATE_MAX, burst=RATE_MAX, concurrent=RATE_MAX))
    assert limit.size + limit.request < 2**53


@given(
    rate=st.integers(1, 10_000), burst=st.integers(1, 1000), concurrent=st.integers(1, 1000), shares=st.integers(1, 500)
)
def test_shares_add_up_to_the_limit(rate: int, burst: int, concurrent: int, shares: int) -> None:
    share = limit_of(RateClass(rate, burst, concurrent), shares)

    # requests per minute of all shares together, without rounding
    assert shares * share.refill * REQUEST == rate * share.request
    assert shares * (share.size // share.request) <= max(burst, shares)
    assert shares * share.concurrent <= max(concurrent, shares)
    assert share.size >= share.request
    assert share.concurrent >= 1


@pytest.mark.parametrize(
    "settings",
    [
        ThrottlingSettings.model_construct(**{**ThrottlingSettings().model_dump(), name: value})
        for name in (
            "key_requests_per_minute",
            "key_burst",
            "key_concurrent",
            "address_requests_per_minute",
            "address_burst",
            "address_concurrent",
            "workers",
            "slot_ttl_s",
        )
        for value in (0, -1)
    ],
)
def test_settings_without_a_limit_are_refused(settings: ThrottlingSettings) -> None:
    with pytest.raises(OperatorError, match="at least 1"):
        require_limits(settings)


def test_addresses_stand_in_no_name_in_clear() -> None:
    for address in ("203.0.113.9", "2001:db8::9", "nonsense"):
        name = address_bucket(address)
        assert name.startswith("address:")
        assert address not in name
        assert name == address_bucket(address)


def test_an_ipv6_client_is_its_64_and_an_ipv4_client_its_address() -> None:
    assert address_bucket("2001:db8:0:1::1") == address_bucket("2001:db8:0:1:ffff:ffff:ffff:ffff")
    assert address_bucket("2001:db8:0:1::1") != address_bucket("2001:db8:0:2::1")
    assert address_bucket("203.0.113.9") != address_bucket("203.0.113.8")


def test_buckets_of_keys_are_found_by_the_keys_public_id() -> None:
    assert key_bucket("key_01KAHG") == "key:key_01KAHG"


def test_a_rate_over_an_hour_stays_exact() -> None:
    hundred_an_hour = RateClass(requests=100, burst=5, concurrent=50, window_s=3600)

    limit = limit_of(hundred_an_hour)

    assert limit.request / limit.refill == 36_000_000  # one request each 36 s, in microseconds
    assert limit.size == 5 * limit.request
    assert limit_of(RateClass(1, 100_000_000, 1, window_s=86_400)).size < 2**53
