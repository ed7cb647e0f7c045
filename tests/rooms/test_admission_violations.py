"""Violations counted by several workers together in Redis, and by each alone while it is away."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from pydantic import SecretStr

from secure_llm_proxy.admission.rules import CountedViolations, ProcessTally, RedisTally, canonical_network
from secure_llm_proxy.admission.violation_tallies import violations_key
from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.settings import RedisSettings
from tests.support.house import LogCapture, ManualClock
from tests.support.redis_server import PrivateRedis

WINDOW_S = 300
AFTER = 20


def fresh_network() -> str:
    """One that no other test counts: they share a Redis."""
    return canonical_network(f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::/64")


def tally_in(redis: PrivateRedis) -> RedisTally:
    settings = RedisSettings(url=SecretStr(redis.url))
    # A busy machine is not a Redis that is away.
    return RedisTally(settings, WINDOW_S, ProcessTally(WINDOW_S, ManualClock()), patience_s=30.0)


@pytest.fixture
def workers(redis_server: PrivateRedis) -> Iterator[tuple[RedisTally, RedisTally]]:
    with closing(tally_in(redis_server)) as first, closing(tally_in(redis_server)) as second:
        yield first, second


def test_two_workers_share_the_count(workers: tuple[RedisTally, RedisTally]) -> None:
    network, other = fresh_network(), fresh_network()

    counts = [worker.add({network: 3, other: 1}) for worker in workers * 2]

    assert counts == [{network: 3 * times, other: times} for times in (1, 2, 3, 4)]


def test_a_count_ends_with_its_window_however_often_it_grows(
    workers: tuple[RedisTally, RedisTally], redis_server: PrivateRedis
) -> None:
    network = fresh_network()
    key = violations_key(network)

    workers[0].add({network: 1})
    with redis_server.client() as client:
        first = client.ttl(key)
        client.expire(key, 100)
        workers[1].add({network: 1})
        second = client.ttl(key)
        client.persist(key)  # as if whoever made it had died in between
        workers[1].add({network: 1})
        third = client.ttl(key)

    assert WINDOW_S - 60 <= first <= WINDOW_S
    assert 0 < second <= 100
    assert WINDOW_S - 60 <= third <= WINDOW_S


def test_no_address_stands_in_redis_in_clear(
    workers: tuple[RedisTally, RedisTally], redis_server: PrivateRedis
) -> None:
    workers[0].add({"203.0.113.77/32": 1})

    with redis_server.client() as client:
        names = [str(name) for name in client.scan_iter("violations:*")]
    assert violations_key("203.0.113.77/32") in names
    assert not any("203.0.113" in name or "/" in name for name in names)


def test_exactly_one_of_many_workers_makes_each_block(redis_server: PrivateRedis) -> None:
    network = fresh_network()
    address = network.removesuffix("/64") + "1"
    made: list[tuple[str, int]] = []

    def violate(_worker: int) -> None:
        with closing(tally_in(redis_server)) as tally:
            violations = CountedViolations(
                AFTER, tally, lambda _address: False, lambda *block: made.append((block[0], block[1]))
            )
            for _ in range(25):
                violations.note_refusal(address, ErrorCode.MISSING_API_KEY)
                violations.work()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(violate, range(4)))

    assert sorted(made) == [(network, AFTER * times) for times in (1, 2, 3, 4, 5)]


def test_while_redis_is_away_a_worker_counts_alone_and_says_so_once() -> None:
    with PrivateRedis(password="violations-away") as redis, closing(tally_in(redis)) as tally, LogCapture() as logged:
        before = tally.add({"a": 5})
        redis.kill()
        during = [tally.add({"a": 1, "b": 2}) for _ in range(3)]
        redis.start()
        after = tally.add({"a": 1})

    assert before == {"a": 5}
    assert during == [{"a": times, "b": 2 * times} for times in (1, 2, 3)]
    assert after == {"a": 1}
    said = [record for record in logged.records if "counted by each worker alone" in record.getMessage()]
    assert len(said) == 1
    assert "violations-away" not in str([vars(record) for record in logged.records])
