"""Limits in one process, with a clock that the test drives."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.errors import ErrorCode, OperatorError
from secure_llm_proxy.settings import ThrottlingSettings
from secure_llm_proxy.throttling import Hold, ProcessThrottle, Shares
from secure_llm_proxy.vocabulary.caller import RateClass

ROOMY = RateClass(requests=1_000_000, burst=1_000_000, concurrent=1_000_000)
MINUTE_US = 60_000_000


class ManualClock:
    """Stands still until told; in microseconds, so that no float rounds a test."""

    def __init__(self) -> None:
        self.now_us = 0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_us / 1e6, UTC)

    def monotonic_s(self) -> float:
        # half a microsecond up, so that int() gives exactly what was set
        return (self.now_us + 0.5) / 1e6


class Door:
    """Knocks at a throttle with one key and one address."""

    def __init__(
        self,
        rate_class: RateClass,
        *,
        address_class: RateClass = ROOMY,
        shares: int = 1,
        slot_ttl_s: float = 900,
        buckets_max: int = 100_000,
    ) -> None:
        self.clock = ManualClock()
        self.shares = Shares(workers=shares)
        self.throttle = ProcessThrottle(
            ThrottlingSettings(slot_ttl_s=slot_ttl_s), clock=self.clock, shares=self.shares, buckets_max=buckets_max
        )
        self.rate_class = rate_class
        self.address_class = address_class
        self._count = 0

    def knock(self, key: str = "key_a", address: str = "192.0.2.1") -> Hold:
        self._count += 1
        return self.throttle.take(
            key_id=key,
            key_class=self.rate_class,
            address=address,
            address_class=self.address_class,
            exchange_id=f"exc_{self._count}",
        )

    def is_let_in(self, key: str = "key_a", address: str = "192.0.2.1") -> bool:
        """Knock and leave at once."""
        hold = self.knock(key, address)
        self.throttle.release(hold)
        return hold.decision.allowed


def most_in_a_minute(granted_us: list[int]) -> int:
    """The most grants in any half-open window of 60 s; a fullest one begins at a grant."""
    return max(
        (sum(1 for later in granted_us if start <= later < start + MINUTE_US) for start in granted_us), default=0
    )


@settings(max_examples=200, deadline=None)
@given(
    rate=st.integers(1, 40),
    burst=st.integers(1, 12),
    shares=st.sampled_from([1, 1, 2, 3, 7]),
    pauses_us=st.lists(
        st.one_of(st.integers(0, 3), st.integers(0, 5_000_000), st.integers(0, 70_000_000)), max_size=150
    ),
)
def test_no_window_of_a_minute_grants_more_than_limit_plus_burst(
    rate: int, burst: int, shares: int, pauses_us: list[int]
) -> None:
    door = Door(RateClass(rate, burst, 1000), shares=shares)
    granted_us: list[int] = []

    for pause_us in pauses_us:
        door.clock.now_us += pause_us
        if door.is_let_in():
            granted_us.append(door.clock.now_us)

    # a half-open window misses the refill that completes at its end
    assert most_in_a_minute(granted_us) <= rate / shares + max(1, burst // shares)


@settings(max_examples=25, deadline=None)
@given(rate=st.integers(1, 300), burst=st.integers(1, 20), step_us=st.integers(20_000, 60_000))
def test_steady_demand_gets_at_least_98_percent_of_its_limit(rate: int, burst: int, step_us: int) -> None:
    door = Door(RateClass(rate, burst, 1000))
    minutes = 3
    granted = 0

    for _ in range(minutes * MINUTE_US // step_us):
        door.clock.now_us += step_us
        granted += door.is_let_in()

    # a bucket of one loses up to a step per request: it can't save what refills while it is full
    reachable = min(rate, MINUTE_US / step_us) * minutes
    waiting = minutes * rate * step_us / MINUTE_US * rate if burst == 1 else 0
    assert granted >= 0.98 * reachable - waiting - 1
    assert granted <= rate * minutes + burst


def test_a_burst_passes_at_once_and_then_the_rate_counts() -> None:
    door = Door(RateClass(requests=30, burst=5, concurrent=50))

    assert [door.is_let_in() for _ in range(7)] == [True] * 5 + [False] * 2
    door.clock.now_us += 1_999_999
    assert not door.is_let_in()
    door.clock.now_us += 1
    assert door.is_let_in()
    assert not door.is_let_in()
    door.clock.now_us += 3600 * 1_000_000
    assert [door.is_let_in() for _ in range(7)] == [True] * 5 + [False] * 2


def test_refused_requests_spend_nothing_anywhere() -> None:
    door = Door(RateClass(60, 2, 50), address_class=RateClass(60, 4, 50))
    assert [door.is_let_in("key_a") for _ in range(2)] == [True, True]

    for _ in range(100):
        assert door.knock("key_a").decision.bucket == "key_rate"

    # the address kept the two that the refused ones did not take, and no slot is held
    assert [door.is_let_in("key_b") for _ in range(3)] == [True, True, False]
    assert door.knock("key_b").decision.bucket == "key_rate"
    door.clock.now_us += 2_000_000
    assert [door.is_let_in("key_a") for _ in range(2)] == [True, True]


def test_an_address_is_limited_over_all_its_keys() -> None:
    door = Door(ROOMY, address_class=RateClass(60, 3, 50))

    answers = [door.knock(f"key_{number}").decision for number in range(5)]

    assert [answer.allowed for answer in answers] == [True] * 3 + [False] * 2
    assert answers[-1].bucket == "address_rate"
    assert door.is_let_in("key_9", "192.0.2.2")


def test_slots_are_held_until_released_and_releasing_twice_frees_one() -> None:
    door = Door(RateClass(6000, 1000, 2))
    first, second = door.knock(), door.knock()

    refused = door.knock()
    assert refused.decision.code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
    assert refused.buckets == ()
    door.throttle.release(refused)
    assert not door.is_let_in()

    door.throttle.release(first)
    door.throttle.release(first)
    third = door.knock()
    assert third.decision.allowed
    assert not door.knock().decision.allowed
    door.throttle.release(second)
    door.throttle.release(third)
    assert door.is_let_in()


def test_a_slot_nobody_gives_back_frees_itself() -> None:
    door = Door(RateClass(6000, 1000, 1), slot_ttl_s=10)
    lost = door.knock()

    door.clock.now_us += 9_999_999
    assert not door.knock().decision.allowed
    door.clock.now_us += 1
    assert door.knock().decision.allowed
    door.throttle.release(lost)
    assert not door.knock().decision.allowed


def test_a_clock_that_runs_backwards_neither_forgives_nor_locks_out() -> None:
    door = Door(RateClass(60, 2, 50))
    door.clock.now_us = 7200 * 1_000_000
    assert [door.is_let_in() for _ in range(3)] == [True, True, False]

    door.clock.now_us -= 3600 * 1_000_000

    assert not door.is_let_in()
    door.clock.now_us += 2_000_000
    # the step back was seen when nothing could be written; from the next grant on, time counts as before
    allowed = [door.is_let_in() for _ in range(3)]
    assert sum(allowed) <= 2


def test_a_share_grants_its_part_of_the_rate() -> None:
    door = Door(RateClass(30, 5, 50), shares=4)
    granted = 0

    for _ in range(10 * 60):
        door.clock.now_us += 1_000_000
        granted += door.is_let_in()

    # 30 / 4 = 7.5 a minute
    assert 75 <= granted <= 76
    decision = door.knock().decision
    assert (decision.limit, decision.source) == (7, "process")


def test_more_hosts_shrink_the_share_without_forgiving_debts() -> None:
    door = Door(RateClass(60, 12, 50))
    assert [door.is_let_in() for _ in range(13)] == [True] * 12 + [False]

    door.shares.hosts = 3

    assert not door.is_let_in()
    # 12 requests of debt refill at 20 a minute; a bucket of 4 has room again after 9 of them
    door.clock.now_us += 26_999_999
    assert not door.is_let_in()
    door.clock.now_us += 1
    assert door.is_let_in()


def test_idle_buckets_are_forgotten_and_busy_ones_are_not() -> None:
    door = Door(RateClass(60, 1, 50), address_class=RateClass(60, 1, 50), buckets_max=1000)
    door.clock.now_us = 1

    for number in range(5000):
        # each of them is full again after a second
        door.clock.now_us += 100_000
        assert door.is_let_in(f"key_{number}", f"10.0.{number // 256}.{number % 256}")

    assert len(door.throttle) < 100
    assert not door.is_let_in("key_4999", "10.9.9.9")


def test_memory_is_bounded_even_when_all_buckets_are_busy() -> None:
    door = Door(RateClass(1, 1, 50), address_class=RateClass(1, 1, 50), buckets_max=1000)

    for number in range(5000):
        assert door.is_let_in(f"key_{number}", f"10.0.{number // 256}.{number % 256}")

    assert len(door.throttle) == 1000
    assert not door.is_let_in("key_4999", "10.9.9.9")


def test_buckets_with_requests_in_flight_are_the_last_to_be_forgotten() -> None:
    door = Door(RateClass(600, 2, 1), address_class=RateClass(600, 2, 5), buckets_max=100)
    held = door.knock("key_held", "10.9.9.9")
    door.clock.now_us += MINUTE_US

    for number in range(2000):
        assert door.is_let_in(f"key_{number}", f"10.0.{number // 256}.{number % 256}")

    assert door.knock("key_held", "10.9.9.9").decision.code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
    door.throttle.release(held)
    assert door.is_let_in("key_held", "10.9.9.9")


def test_a_charge_spends_what_others_granted_down_to_an_empty_bucket() -> None:
    door = Door(RateClass(60, 3, 50))
    for number in range(10):
        door.throttle.charge(
            key_id="key_a",
            key_class=door.rate_class,
            address="192.0.2.1",
            address_class=ROOMY,
            exchange_id=f"other_{number}",
        )

    assert not door.is_let_in()
    door.clock.now_us += 1_000_000
    assert door.is_let_in()
    account = door.throttle.account("key:key_a", door.rate_class)
    assert account.debt == 3 * MINUTE_US
    assert len(account.exchange_ids) == 10


def test_threads_of_one_process_share_one_bucket() -> None:
    throttle = ProcessThrottle(ThrottlingSettings(), clock=SystemClock())
    slow = RateClass(requests=1, burst=50, concurrent=1000)
    granted: list[bool] = []

    def hammer(number: int) -> None:
        for turn in range(40):
            hold = throttle.take(
                key_id="key_a",
                key_class=slow,
                address="192.0.2.1",
                address_class=ROOMY,
                exchange_id=f"exc_{number}_{turn}",
            )
            granted.append(hold.decision.allowed)
            throttle.release(hold)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # one more may refill while they run
    assert 50 <= sum(granted) <= 51
    assert len(granted) == 320


def test_it_has_no_trouble_of_its_own() -> None:
    throttle = Door(ROOMY).throttle

    throttle.heartbeat()
    throttle.close()

    assert throttle.trouble() is None


def test_it_refuses_to_be_made_without_limits() -> None:
    unlimited = ThrottlingSettings.model_construct(**{**ThrottlingSettings().model_dump(), "key_concurrent": 0})

    with pytest.raises(OperatorError, match="key_concurrent"):
        ProcessThrottle(unlimited, clock=SystemClock())
