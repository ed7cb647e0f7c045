"""Redis dies, hangs, forgets, fills up, locks itself: limits stay, no request fails, and all is well afterwards."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.exceptions import RedisError

from secure_llm_proxy.foundation.clock import Clock, SystemClock
from secure_llm_proxy.foundation.errors import ErrorCode, OperatorError
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling import Hold, ProcessThrottle, Throttle, open_throttle, run_heartbeat
from secure_llm_proxy.vocabulary.caller import RateClass
from tests.support.programs import wait_until
from tests.support.redis_server import PrivateRedis

ROOMY = RateClass(requests=1_000_000, burst=1_000_000, concurrent=1_000_000)
# nothing refills while a test runs
FIVE = RateClass(requests=1, burst=5, concurrent=1000)
ONE_AT_ONCE = RateClass(requests=1_000_000, burst=1_000_000, concurrent=1)


class ManualClock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic_s(self) -> float:
        return self.seconds


class Worker:
    """A worker's throttle, as `services` makes it, and what it reported."""

    def __init__(
        self,
        url: str,
        *,
        workers: int = 1,
        host: str = "host-a",
        clock: Clock | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self.fallbacks = 0
        self.throttle: Throttle = open_throttle(
            ThrottlingSettings(workers=workers),
            RedisSettings(url=SecretStr(url), timeout_s=timeout_s),
            host_id=host,
            clock=clock or SystemClock(),
            on_fallback=self._count,
        )
        self._name = f"{host}-{id(self)}"
        self._asked = 0

    def _count(self) -> None:
        self.fallbacks += 1

    def knock(self, rate_class: RateClass, *, key: str = "key_a") -> Hold:
        self._asked += 1
        return self.throttle.take(
            key_id=key,
            key_class=rate_class,
            address="192.0.2.1",
            address_class=ROOMY,
            exchange_id=f"exc_{self._name}_{threading.get_ident()}_{self._asked}",
        )

    def visit(self, rate_class: RateClass, *, key: str = "key_a") -> bool:
        """Knock and leave."""
        hold = self.knock(rate_class, key=key)
        self.throttle.release(hold)
        return hold.decision.allowed

    def source(self) -> str:
        """Where a request is decided now."""
        hold = self.knock(ROOMY, key="key_of_nobody_else")
        self.throttle.release(hold)
        return hold.decision.source

    def wait_for(self, source: str) -> None:
        """Knock until requests are decided by `source`: 5 s are promised, 30 s are given."""
        waiting = threading.Event()
        for _ in range(300):
            if self.source() == source:
                return
            waiting.wait(0.1)
        pytest.fail(f"requests are not decided by {source}")


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    with PrivateRedis(password="secret-of-redis") as running:
        yield running


@pytest.fixture
def worker(server: PrivateRedis) -> Iterator[Worker]:
    made = Worker(server.url)
    yield made
    made.throttle.close()


def slots_in(server: PrivateRedis, key: str = "key_a") -> set[str]:
    with server.client() as client:
        return {str(name) for name, _ in client.zscan_iter(f"slp:rate_limit:in_flight:key:{key}")}


def test_while_redis_answers_nothing_falls_back(worker: Worker) -> None:
    assert worker.source() == "redis"

    assert worker.fallbacks == 0
    assert worker.throttle.trouble() is None


def test_a_killed_redis_costs_no_request_and_is_used_again_when_it_is_back(
    server: PrivateRedis, worker: Worker
) -> None:
    worker.wait_for("redis")

    server.kill()

    assert [worker.source() for _ in range(20)] == ["local_share"] * 20
    assert worker.fallbacks == 20
    trouble = worker.throttle.trouble()
    assert trouble is not None
    assert "Redis is away" in trouble
    assert "127.0.0.1" not in trouble
    assert "secret-of-redis" not in trouble

    server.start()
    worker.wait_for("redis")
    assert worker.throttle.trouble() is None


def test_what_redis_granted_is_not_granted_again_without_it(server: PrivateRedis, worker: Worker) -> None:
    assert [worker.visit(FIVE) for _ in range(6)] == [True] * 5 + [False]

    server.kill()

    assert [worker.visit(FIVE) for _ in range(3)] == [False] * 3
    assert worker.fallbacks == 3


def test_what_was_granted_without_redis_is_not_granted_again_by_it(server: PrivateRedis, worker: Worker) -> None:
    server.stop()
    assert [worker.visit(FIVE) for _ in range(6)] == [True] * 5 + [False]

    server.start()
    worker.wait_for("redis")

    refused = worker.knock(FIVE)
    assert refused.decision.source == "redis"
    assert refused.decision.code is ErrorCode.RATE_LIMIT_EXCEEDED


def test_requests_in_flight_are_counted_on_both_sides_of_an_outage(server: PrivateRedis, worker: Worker) -> None:
    begun_with_redis = worker.knock(ONE_AT_ONCE, key="key_a")
    server.kill()
    begun_without = worker.knock(ONE_AT_ONCE, key="key_b")
    assert begun_without.decision.source == "local_share"

    assert worker.knock(ONE_AT_ONCE, key="key_a").decision.code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
    server.start()
    worker.wait_for("redis")

    # this Redis is a new and empty one: it learnt of key_b, which was used meanwhile
    assert worker.knock(ONE_AT_ONCE, key="key_b").decision.code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
    worker.throttle.release(begun_with_redis)
    worker.throttle.release(begun_without)
    worker.throttle.release(begun_without)
    assert worker.visit(ONE_AT_ONCE, key="key_a")
    assert worker.visit(ONE_AT_ONCE, key="key_b")
    assert slots_in(server, "key_a") | slots_in(server, "key_b") == set()


def test_a_redis_that_hangs_leaves_no_slot_that_nobody_gives_back(server: PrivateRedis) -> None:
    worker = Worker(server.url, timeout_s=2.0)
    begun_before = worker.knock(ONE_AT_ONCE, key="key_b")
    server.pause()
    # it may be carried out when Redis goes on, though its answer comes too late
    uncertain = worker.knock(ONE_AT_ONCE)
    assert uncertain.decision.source == "local_share"
    worker.throttle.release(uncertain)
    worker.throttle.release(begun_before)

    server.resume()
    worker.wait_for("redis")

    assert worker.visit(ONE_AT_ONCE)
    assert worker.visit(ONE_AT_ONCE, key="key_b")
    assert slots_in(server) | slots_in(server, "key_b") == set()
    worker.throttle.close()


def test_one_request_a_second_asks_a_redis_that_does_not_answer() -> None:
    clock = ManualClock()
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:

        def accept() -> None:
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except OSError:
                    return

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        worker = Worker(f"redis://127.0.0.1:{listener.getsockname()[1]}", clock=clock, timeout_s=0.25)

        seconds = []
        for second in range(3):
            assert {worker.source() for _ in range(100)} == {"local_share"}
            wait_until(lambda second=second: len(accepted) > second, what="it was asked")  # type: ignore[misc]
            seconds.append(len(accepted))
            clock.seconds += 1.0

        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(30)
    for connection in accepted:
        connection.close()
    worker.throttle.close()
    assert seconds == [1, 2, 3]
    assert worker.fallbacks == 300


def test_something_else_than_redis_is_as_good_as_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            except OSError:
                return

        thread = threading.Thread(target=answer)
        thread.start()
        worker = Worker(f"redis://127.0.0.1:{listener.getsockname()[1]}")

        assert worker.source() == "local_share"

        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    worker.throttle.close()


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_password_is_the_local_share(server: PrivateRedis, password: str | None) -> None:
    worker = Worker(server.url_with(password))
    worker.throttle.heartbeat()

    assert [worker.visit(FIVE) for _ in range(6)] == [True] * 5 + [False]

    assert worker.source() == "local_share"
    trouble = worker.throttle.trouble()
    assert trouble is not None
    assert "AuthenticationError" in trouble
    worker.throttle.close()


def _fill(server: PrivateRedis) -> Callable[[], None]:
    with server.client() as client:
        client.config_set("maxmemory", 1)

    def empty() -> None:
        with server.client() as client:
            client.config_set("maxmemory", 0)

    return empty


def _make_replica(server: PrivateRedis) -> Callable[[], None]:
    with server.client() as client:
        # of a port where nobody is
        client.slaveof("127.0.0.1", 1)

    def promote() -> None:
        with server.client() as client:
            client.slaveof("NO", "ONE")

    return promote


def _keep_busy(server: PrivateRedis) -> Callable[[], None]:
    def loop() -> None:
        with server.client() as client, pytest.raises(RedisError):
            client.eval("while true do end", 0)

    with server.client() as client:
        client.config_set("busy-reply-threshold", 50)
    thread = threading.Thread(target=loop)
    thread.start()

    def kill_script() -> None:
        with server.client() as client:
            client.script_kill()
        thread.join(30)

    return kill_script


def _require_replicas(server: PrivateRedis) -> Callable[[], None]:
    with server.client() as client:
        client.config_set("min-replicas-to-write", 3)

    def relax() -> None:
        with server.client() as client:
            client.config_set("min-replicas-to-write", 0)

    return relax


@pytest.mark.parametrize("break_it", [_fill, _make_replica, _keep_busy, _require_replicas])
def test_a_redis_that_does_not_take_writes_is_away_until_it_does(
    server: PrivateRedis, worker: Worker, break_it: Callable[[PrivateRedis], Callable[[], None]]
) -> None:
    worker.wait_for("redis")

    mend = break_it(server)
    try:
        worker.wait_for("local_share")
        assert [worker.visit(FIVE) for _ in range(6)] == [True] * 5 + [False]
        assert worker.throttle.trouble() is not None
    finally:
        mend()

    worker.wait_for("redis")
    assert worker.throttle.trouble() is None
    assert not worker.visit(FIVE)


def test_a_redis_that_is_flushed_costs_one_burst_and_no_request(server: PrivateRedis, worker: Worker) -> None:
    held = worker.knock(FIVE)
    assert [worker.visit(FIVE) for _ in range(6)] == [True] * 4 + [False] * 2

    with server.client() as client:
        client.flushall()

    assert [worker.visit(FIVE) for _ in range(8)] == [True] * 5 + [False] * 3
    worker.throttle.release(held)
    assert worker.fallbacks == 0


def test_hosts_and_workers_divide_the_limit_while_redis_is_away(server: PrivateRedis) -> None:
    twelve = RateClass(requests=1, burst=12, concurrent=1000)
    workers = [Worker(server.url, workers=2, host=host) for host in ("host-a", "host-a", "host-b", "host-b")]
    for worker in workers * 2:
        worker.throttle.heartbeat()

    server.kill()

    answers = [[worker.visit(twelve) for _ in range(6)] for worker in workers]
    assert answers == [[True] * 3 + [False] * 3] * 4
    trouble = workers[0].throttle.trouble()
    assert trouble is not None
    assert "1/4 of every limit" in trouble
    # the last number of hosts is kept
    for worker in workers:
        worker.throttle.heartbeat()
    assert not any(worker.visit(twelve) for worker in workers)
    for worker in workers:
        worker.throttle.close()


def test_the_shares_of_all_workers_end_in_one_bucket_again(server: PrivateRedis) -> None:
    twelve = RateClass(requests=1, burst=12, concurrent=1000)
    workers = [Worker(server.url, workers=2) for _ in range(2)]
    server.stop()
    granted = sum(worker.visit(twelve) for worker in workers for _ in range(4))
    assert granted == 8

    server.start()
    for worker in workers:
        worker.wait_for("redis")

    assert [workers[0].visit(twelve) for _ in range(6)] == [True] * 4 + [False] * 2
    for worker in workers:
        worker.throttle.close()


def test_a_heartbeat_alone_notices_that_redis_went_and_came_back(server: PrivateRedis) -> None:
    clock = ManualClock()
    worker = Worker(server.url, clock=clock, timeout_s=10.0)
    worker.throttle.heartbeat()
    assert worker.throttle.trouble() is None

    server.kill()
    worker.throttle.heartbeat()
    assert worker.throttle.trouble() is not None

    server.start()
    worker.throttle.heartbeat()
    assert worker.throttle.trouble() is not None
    clock.seconds += 5.0
    worker.throttle.heartbeat()
    assert worker.throttle.trouble() is None
    assert worker.fallbacks == 0
    worker.throttle.close()


def test_the_heartbeat_runs_until_it_is_stopped(server: PrivateRedis) -> None:
    worker = Worker(server.url)
    stop = threading.Event()
    beating = threading.Thread(target=run_heartbeat, args=(worker.throttle, stop), kwargs={"every_s": 0.05})
    beating.start()
    waiting = threading.Event()

    seen = []
    with server.client() as client:
        for _ in range(200):
            score = client.zscore("slp:hosts", "host-a")
            if score is not None and score not in seen:
                seen.append(score)
            if len(seen) >= 3:
                break
            waiting.wait(0.05)
    stop.set()
    beating.join(30)

    assert len(seen) >= 3
    assert not beating.is_alive()
    worker.throttle.close()


def test_threads_under_restarts_never_see_an_error_and_never_exceed_the_limit(server: PrivateRedis) -> None:
    rate, burst = 600, 20
    rate_class = RateClass(rate, burst, 50)
    worker = Worker(server.url)
    clock = SystemClock()
    granted_s: list[float] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def hammer() -> None:
        try:
            while not stop.wait(0.005):
                hold = worker.knock(rate_class)
                if hold.decision.allowed:
                    granted_s.append(clock.monotonic_s())
                worker.throttle.release(hold)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    started_s = clock.monotonic_s()
    for thread in threads:
        thread.start()
    for breakdown in (server.kill, server.stop):
        stop.wait(1.5)
        breakdown()
        stop.wait(1.0)
        server.start()
        stop.wait(1.5)
    worker.wait_for("redis")
    stop.set()
    for thread in threads:
        thread.join(30)
    span_s = clock.monotonic_s() - started_s

    assert errors == []
    # what threads had asked when Redis died may count twice: one per thread and breakdown
    assert len(granted_s) <= burst + rate / 60 * span_s + 2 * len(threads)
    assert worker.fallbacks > 0
    # a request that ended in the very moment in which another thread found Redis back is left to the next beat
    worker.throttle.heartbeat()
    assert slots_in(server) == set()
    worker.throttle.close()


CANCELLED = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from gevent.event import Event
from pydantic import SecretStr
from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling import open_throttle, run_heartbeat
from secure_llm_proxy.vocabulary.caller import RateClass
url = sys.stdin.readline().strip()
throttle = open_throttle(
    ThrottlingSettings(), RedisSettings(url=SecretStr(url), timeout_s=20.0), host_id="h", clock=SystemClock(),
    on_fallback=lambda: None)
many, roomy = RateClass(1000000, 1000000, 40), RateClass(1000000, 1000000, 1000000)
def visit(number):
    hold = throttle.take(
        key_id="key_a", key_class=many, address="192.0.2.1", address_class=roomy, exchange_id=f"e{number}")
    gevent.sleep(0.01)
    throttle.release(hold)
    return hold.decision.allowed
assert all(greenlet.get() for greenlet in [gevent.spawn(visit, number) for number in range(40)])
print("warm", flush=True)
sys.stdin.readline()
waiting = [gevent.spawn(visit, 100 + number) for number in range(30)]
gevent.sleep(0.2)
gevent.killall(waiting)
print("cancelled", flush=True)
sys.stdin.readline()
stop = Event()
beat = gevent.spawn(run_heartbeat, throttle, stop, every_s=0.1)
gevent.sleep(0.5)
stop.set()
beat.get(timeout=20)
print(all(greenlet.get() for greenlet in [gevent.spawn(visit, 200 + number) for number in range(40)]), flush=True)
"""


def test_requests_cancelled_while_they_wait_for_redis_leave_no_slot(server: PrivateRedis) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CANCELLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(server.url + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "warm\n"

    server.pause()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "cancelled\n"
    server.resume()
    rest, _ = process.communicate("\n", timeout=60)

    assert rest == "True\n"
    assert process.returncode == 0
    assert slots_in(server) == set()


def test_without_redis_one_worker_has_the_whole_limit() -> None:
    throttle = open_throttle(
        ThrottlingSettings(), RedisSettings(), host_id="h", clock=SystemClock(), on_fallback=lambda: None
    )

    assert isinstance(throttle, ProcessThrottle)


def test_without_redis_several_workers_do_not_start() -> None:
    with pytest.raises(OperatorError, match="REDIS_URL"):
        open_throttle(
            ThrottlingSettings(workers=2), RedisSettings(), host_id="h", clock=SystemClock(), on_fallback=lambda: None
        )
