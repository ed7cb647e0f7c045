"""Limits of the management doors over several workers: kept in Redis, and by each worker alone while that is away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from secure_llm_proxy.settings import RedisSettings, Settings, ThrottlingSettings
from secure_llm_proxy.vocabulary.events import AuditType
from tests.support.management_house import ManagementRoom, make_management_room
from tests.support.redis_server import PrivateRedis

TRY = {"token": "x", "password": "y"}


def two_workers(folder: Path, redis_url: str, *, tries: int) -> list[ManagementRoom]:
    settings = Settings(
        throttling=ThrottlingSettings(login_requests_per_minute=tries),
        redis=RedisSettings(url=SecretStr(redis_url), timeout_s=5.0),
    )
    places = [folder / "one", folder / "other"]
    for place in places:
        place.mkdir()
    return [make_management_room(place, settings) for place in places]


def spend(workers: Sequence[ManagementRoom], times: int) -> list[int]:
    """Tries of one address, by turns; what each was answered."""
    return [
        workers[number % len(workers)].client().ask("POST", "/auth/setup", TRY).status_code for number in range(times)
    ]


def assert_limited(statuses: list[int], limit: int) -> None:
    """The window slides while a test runs, so one or two more may pass than the limit says."""
    assert statuses[:limit] == [400] * limit
    assert limit <= statuses.count(400) <= limit + 2
    assert statuses.count(400) + statuses.count(429) == len(statuses)


def test_workers_count_an_addresss_tries_together(tmp_path: Path) -> None:
    with PrivateRedis(password="correct-horse-battery") as redis:
        workers = two_workers(tmp_path, redis.url, tries=6)

        statuses = spend(workers, 14)

    for worker in workers:
        worker.room.database.close()
    assert_limited(statuses, 6)


def test_while_redis_is_away_each_worker_counts_alone_and_nobody_is_unlimited(tmp_path: Path) -> None:
    with PrivateRedis(password="correct-horse-battery") as redis:
        workers = two_workers(tmp_path, redis.url, tries=4)
        before = spend(workers, 2)

    statuses = [spend([worker], 10) for worker in workers]

    for worker in workers:
        worker.room.database.close()
    assert before == [400, 400]
    for each in statuses:
        assert_limited(each, 4)


def try_from(management: ManagementRoom, address: str) -> int:
    return management.client().ask("POST", "/auth/setup", TRY, environ_base={"REMOTE_ADDR": address}).status_code


def test_nobody_known_fills_the_log_by_asking_without_end(tmp_path: Path) -> None:
    settings = Settings(throttling=ThrottlingSettings(management_requests_per_minute=5))
    management = make_management_room(tmp_path, settings)
    stranger = management.client("slp_sess_" + "x" * 43)

    statuses = [stranger.ask("GET", "/api/v1/me").status_code for _ in range(12)]

    recorded = len(management.small.journal.of(AuditType.AUTH_EVENT))
    management.room.database.close()
    assert statuses[:5] == [401] * 5
    assert statuses[-1] == 429
    assert recorded == statuses.count(401) <= 7


def test_the_addresses_of_one_ipv6_site_share_their_tries(tmp_path: Path) -> None:
    management = make_management_room(tmp_path, Settings(throttling=ThrottlingSettings(login_requests_per_minute=3)))

    one_site = [try_from(management, f"2001:db8:1:1::{number:x}") for number in range(1, 11)]
    another = try_from(management, "2001:db8:1:2::1")
    management.room.database.close()

    assert_limited(one_site, 3)
    assert another == 400


def test_no_address_of_a_try_stands_in_redis_in_clear(tmp_path: Path, redis_server: PrivateRedis) -> None:
    management, other = two_workers(tmp_path, redis_server.url, tries=3)

    statuses = [try_from(management, "203.0.113.78") for _ in range(10)]
    with redis_server.client() as client:
        names = [str(name) for name in client.scan_iter("*management*")]
    for worker in (management, other):
        worker.room.database.close()

    assert_limited(statuses, 3)
    assert names != []
    assert not [name for name in names if "203.0.113" in name]
