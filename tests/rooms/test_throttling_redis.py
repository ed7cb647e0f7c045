"""Limits in a real Redis: exact over processes, and the same as in one process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from redis import Redis

from secure_llm_proxy.foundation.errors import ErrorCode, OperatorError
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling import Hold, ProcessThrottle, RedisAway, RedisThrottle
from secure_llm_proxy.throttling.buckets import address_bucket
from secure_llm_proxy.throttling.process import Account
from secure_llm_proxy.throttling.redis_throttle import HOSTS_KEY, IN_FLIGHT_KEY, RATE_KEY
from secure_llm_proxy.vocabulary.caller import RateClass
from tests.support.redis_server import PrivateRedis

ROOMY = RateClass(requests=1_000_000, burst=1_000_000, concurrent=1_000_000)
# 2021 and on: a time in microseconds that tostring() of Lua would round
START_US = 1_600_000_000_000_001


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateRedis]:
    with PrivateRedis(password="it's a secret") as running:
        yield running


@pytest.fixture
def redis(server: PrivateRedis) -> Iterator[Redis]:
    """The test's own eyes on an empty Redis."""
    with server.client() as client:
        client.flushall()
        yield client


def throttle_over(server: PrivateRedis, *, slot_ttl_s: float = 900, now_us: list[int] | None = None) -> RedisThrottle:
    """With `now_us`, its only item is the time."""
    return RedisThrottle(
        ThrottlingSettings(slot_ttl_s=slot_ttl_s),
        RedisSettings(url=SecretStr(server.url), timeout_s=10.0),
        clock_us=None if now_us is None else lambda: now_us[0],
    )


def knock(
    throttle: RedisThrottle | ProcessThrottle,
    exchange_id: str,
    rate_class: RateClass,
    *,
    key: str = "key_a",
    address: str = "192.0.2.1",
    address_class: RateClass = ROOMY,
) -> Hold:
    return throttle.take(
        key_id=key, key_class=rate_class, address=address, address_class=address_class, exchange_id=exchange_id
    )


class DrivenClock:
    """Shows the time that the test keeps in a list."""

    def __init__(self, now_us: list[int]) -> None:
        self._now_us = now_us

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._now_us[0] / 1e6, UTC)

    def monotonic_s(self) -> float:
        return (self._now_us[0] - START_US + 0.5) / 1e6


_small = st.builds(RateClass, st.integers(1, 120), st.integers(1, 6), st.integers(1, 4))
_step = st.tuples(
    st.one_of(st.integers(0, 2), st.integers(0, 3_000_000), st.integers(0, 90_000_000)),
    st.sampled_from(["key_a", "key_b"]),
    st.sampled_from(["192.0.2.1", "2001:db8::1"]),
    st.booleans(),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(key_class=_small, address_class=_small, steps=st.lists(_step, max_size=40))
def test_redis_and_a_process_give_the_same_answers(
    server: PrivateRedis,
    redis: Redis,
    key_class: RateClass,
    address_class: RateClass,
    steps: list[tuple[int, str, str, bool]],
) -> None:
    redis.flushall()
    now_us = [START_US]
    in_redis = throttle_over(server, slot_ttl_s=60, now_us=now_us)
    in_process = ProcessThrottle(ThrottlingSettings(slot_ttl_s=60), clock=DrivenClock(now_us), source="redis")
    held: list[tuple[Hold, Hold]] = []

    for number, (pause_us, key, address, leaves) in enumerate(steps):
        now_us[0] += pause_us
        there = knock(in_redis, f"exc_{number}", key_class, key=key, address=address, address_class=address_class)
        here = knock(in_process, f"exc_{number}", key_class, key=key, address=address, address_class=address_class)
        assert there == here
        held.append((there, here))
        if leaves:
            for_redis, for_process = held.pop(0)
            in_redis.release(for_redis)
            in_process.release(for_process)

    in_redis.close()


@pytest.mark.usefixtures("redis")
def test_a_burst_passes_at_once_and_then_the_rate_counts(server: PrivateRedis) -> None:
    slow = RateClass(requests=1, burst=3, concurrent=50)
    throttle = throttle_over(server)

    decisions = [knock(throttle, f"exc_{number}", slow).decision for number in range(5)]

    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2
    assert [decision.remaining for decision in decisions] == [2, 1, 0, 0, 0]
    assert decisions[-1].code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert 55 <= decisions[-1].retry_after_s <= 60
    assert decisions[-1].source == "redis"
    throttle.close()


def test_a_refusal_writes_nothing(server: PrivateRedis, redis: Redis) -> None:
    slow = RateClass(requests=1, burst=1, concurrent=50)
    throttle = throttle_over(server)
    knock(throttle, "exc_1", slow)
    before = {name: redis.dump(name) for name in redis.scan_iter("slp:rate_limit:*:key:*")}

    refused = knock(throttle, "exc_2", slow, address="192.0.2.99", address_class=slow)

    assert refused.buckets == ()
    assert {name: redis.dump(name) for name in redis.scan_iter("slp:rate_limit:*:key:*")} == before
    # the other address has not even got a bucket
    assert set(redis.scan_iter("*rate_limit*:address:*")).isdisjoint(
        {RATE_KEY + address_bucket("192.0.2.99"), IN_FLIGHT_KEY + address_bucket("192.0.2.99")}
    )
    throttle.close()


def test_operators_find_the_keys_and_no_address_in_clear(server: PrivateRedis, redis: Redis) -> None:
    throttle = throttle_over(server)

    knock(throttle, "exc_1", RateClass(1, 5, 5), address="203.0.113.77")

    names = sorted(redis.scan_iter("*"))
    assert all("rate_limit" in name for name in names)
    assert RATE_KEY + "key:key_a" in names
    assert IN_FLIGHT_KEY + "key:key_a" in names
    assert not any("203.0.113" in name for name in names)
    # all of it goes by itself; a bucket of a million a minute is full, and gone (-2), within two milliseconds
    lives_ms = [int(str(redis.pttl(name))) for name in names]
    assert all(life_ms == -2 or 0 <= life_ms <= 901_000 for life_ms in lives_ms)
    throttle.close()


def test_a_full_bucket_leaves_nothing_behind(server: PrivateRedis, redis: Redis) -> None:
    throttle = throttle_over(server)

    hold = knock(throttle, "exc_1", RateClass(60_000, 5, 5))
    throttle.release(hold)
    throttle.release(hold)

    assert list(redis.scan_iter(IN_FLIGHT_KEY + "*")) == []
    for name in list(redis.scan_iter(RATE_KEY + "*")):
        # a request of 60,000 a minute refills within a millisecond
        assert int(str(redis.pttl(name))) <= 2
    throttle.close()


@pytest.mark.usefixtures("redis")
def test_slots_are_counted_over_all_workers(server: PrivateRedis) -> None:
    few = RateClass(requests=60_000, burst=1000, concurrent=2)
    one, other = throttle_over(server), throttle_over(server)
    first, second = knock(one, "exc_1", few), knock(other, "exc_2", few)

    assert knock(one, "exc_3", few).decision.code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
    other.release(first)
    assert knock(one, "exc_4", few).decision.allowed
    assert not knock(one, "exc_5", few).decision.allowed
    other.release(second)
    one.close()
    other.close()


@pytest.mark.usefixtures("redis")
def test_a_slot_frees_itself_at_the_microsecond_its_time_is_over(server: PrivateRedis) -> None:
    now_us = [START_US]
    one_at_once = RateClass(requests=60_000, burst=1000, concurrent=1)
    throttle = throttle_over(server, slot_ttl_s=60, now_us=now_us)
    lost = knock(throttle, "exc_1", one_at_once)

    now_us[0] += 59_999_999
    assert not knock(throttle, "exc_2", one_at_once).decision.allowed
    now_us[0] += 1
    assert knock(throttle, "exc_3", one_at_once).decision.allowed

    throttle.release(lost)
    assert not knock(throttle, "exc_4", one_at_once).decision.allowed
    throttle.close()


def test_scripts_that_redis_forgot_are_loaded_again(server: PrivateRedis, redis: Redis) -> None:
    throttle = throttle_over(server)
    first = knock(throttle, "exc_1", RateClass(60, 5, 5))

    redis.script_flush()
    throttle.release(first)
    redis.script_flush()
    second = knock(throttle, "exc_2", RateClass(60, 5, 5))
    redis.script_flush()

    assert second.decision.allowed
    assert throttle.count_hosts("host-a") == 1
    throttle.close()


def test_hosts_are_counted_while_they_beat(server: PrivateRedis, redis: Redis) -> None:
    now_us = [START_US]
    throttle = throttle_over(server, now_us=now_us)

    assert [throttle.count_hosts(host) for host in ("a", "b", "b", "c")] == [1, 2, 2, 3]
    now_us[0] += 15_000_000
    assert throttle.count_hosts("a") == 3
    now_us[0] += 15_000_000

    assert throttle.count_hosts("b") == 2
    assert int(str(redis.pttl(HOSTS_KEY))) > 0
    throttle.close()


def test_settling_adds_debts_and_slots_and_ends_others(server: PrivateRedis, redis: Redis) -> None:
    now_us = [START_US]
    throttle = throttle_over(server, now_us=now_us)
    slow = RateClass(requests=60, burst=4, concurrent=3)
    gone = knock(throttle, "exc_gone", slow)
    here = ProcessThrottle(ThrottlingSettings(), clock=DrivenClock(now_us))
    for exchange_id in ("exc_1", "exc_2"):
        assert knock(here, exchange_id, slow).decision.allowed
    account = here.account("key:key_a", slow)
    assert isinstance(account, Account)

    throttle.settle([account], [("exc_gone", gone.buckets)])

    assert {str(name) for name, _ in redis.zscan_iter(IN_FLIGHT_KEY + "key:key_a")} == {"exc_1", "exc_2"}
    last = knock(throttle, "exc_3", slow)
    assert (last.decision.allowed, last.decision.remaining) == (True, 0)
    throttle.release(last)
    assert knock(throttle, "exc_4", slow).decision.code is ErrorCode.RATE_LIMIT_EXCEEDED
    throttle.close()


@pytest.mark.usefixtures("redis")
def test_settling_never_owes_more_than_an_empty_bucket(server: PrivateRedis) -> None:
    now_us = [START_US]
    throttle = throttle_over(server, now_us=now_us)
    slow = RateClass(requests=60, burst=4, concurrent=1000)
    here = ProcessThrottle(ThrottlingSettings(), clock=DrivenClock(now_us))
    for number in range(4):
        knock(here, f"exc_{number}", slow)

    for _ in range(5):
        throttle.settle([here.account("key:key_a", slow)], [])

    assert not knock(throttle, "exc_5", slow).decision.allowed
    now_us[0] += 1_000_000
    assert knock(throttle, "exc_6", slow).decision.allowed
    throttle.close()


HAMMER = """
import json, sys, threading, time
from pydantic import SecretStr
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling import RedisThrottle
from secure_llm_proxy.vocabulary.caller import RateClass
name, rate, burst, concurrent, ttl_s, seconds = sys.argv[1], *map(int, sys.argv[2:7])
url = sys.stdin.readline().strip()
throttle = RedisThrottle(ThrottlingSettings(slot_ttl_s=ttl_s), RedisSettings(url=SecretStr(url), timeout_s=20.0))
rate_class, roomy = RateClass(rate, burst, concurrent), RateClass(1000000, 1000000, 1000000)
granted, asked, lock = [], 0, threading.Lock()
def take(exchange_id):
    return throttle.take(
        key_id="key_a", key_class=rate_class, address="192.0.2.1", address_class=roomy, exchange_id=exchange_id
    )
if not seconds:
    held = [take(f"{name}_{turn}").decision.allowed for turn in range(concurrent)]
    print(json.dumps(held), flush=True)
    time.sleep(120)
def hammer(thread, until):
    global asked
    turn = 0
    while time.monotonic() < until:
        hold = take(f"{name}_{thread}_{turn}")
        turn += 1
        with lock:
            asked += 1
            if hold.decision.allowed:
                granted.append(time.time())
        throttle.release(hold)
        time.sleep(0.005)
until = time.monotonic() + seconds
threads = [threading.Thread(target=hammer, args=(thread, until)) for thread in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"asked": asked, "granted": granted}))
"""


def start_hammer(server: PrivateRedis, name: str, *numbers: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HAMMER, name, *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    # not as an argument: it holds the password
    process.stdin.write(server.url + "\n")
    process.stdin.flush()
    return process


def test_three_processes_of_threads_get_one_limit_together(server: PrivateRedis, redis: Redis) -> None:
    rate, burst, seconds = 300, 5, 6

    processes = [start_hammer(server, f"worker{number}", rate, burst, 50, 900, seconds) for number in range(3)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]

    granted = sorted(moment for answer in answers for moment in answer["granted"])
    span_s = granted[-1] - granted[0]
    assert all(process.returncode == 0 for process in processes)
    assert sum(answer["asked"] for answer in answers) > 3 * len(granted)
    # the moments are the clients': a second of slack for the way back
    assert len(granted) <= burst + rate / 60 * (span_s + 1)
    assert len(granted) >= 0.98 * rate / 60 * (span_s - 1)
    assert list(redis.scan_iter(IN_FLIGHT_KEY + "*")) == []


@pytest.mark.usefixtures("redis")
def test_slots_of_a_killed_process_free_themselves(server: PrivateRedis) -> None:
    few = RateClass(requests=60_000, burst=1000, concurrent=3)
    throttle = throttle_over(server, slot_ttl_s=2)
    process = start_hammer(server, "doomed", 60_000, 1000, 3, 2, 0)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == [True] * 3

    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)

    waiting = threading.Event()
    answers = []
    for number in range(100):
        answers.append(knock(throttle, f"exc_{number}", few))
        if answers[-1].decision.allowed:
            break
        assert answers[-1].decision.code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
        waiting.wait(0.1)
    assert answers[-1].decision.allowed
    throttle.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "127.0.0.1:6379", "redis://u:hunter2@127.0.0.1:port/0"])
def test_a_url_that_cannot_be_read_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(OperatorError, match="REDIS_URL") as caught:
        RedisThrottle(ThrottlingSettings(), RedisSettings(url=SecretStr(url)))

    assert "hunter2" not in str(caught.value)


def test_the_throttle_over_redis_alone_says_when_it_is_away() -> None:
    with PrivateRedis() as server:
        throttle = throttle_over(server)
        server.kill()

        with pytest.raises(RedisAway, match="ConnectionError"):
            knock(throttle, "exc_1", ROOMY)
        throttle.close()
