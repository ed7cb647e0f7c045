"""Circuits of several patched processes, as gunicorn's workers are, over a real Redis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from redis import Redis

from secure_llm_proxy.routing.shared_circuits import CHANNEL, KEY
from tests.support.ports import free_port
from tests.support.programs import wait_until
from tests.support.redis_server import PrivateRedis

ROOT = Path(__file__).resolve().parents[2]

# What a worker does: circuits and their greenlets. Each line is `fail MODEL`, `answer MODEL`, `lets MODEL` or `views`.
_WORKER = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from pydantic import SecretStr
from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.errors import FailureKind
from secure_llm_proxy.routing.circuits import Circuits
from secure_llm_proxy.routing.shared_circuits import SharedCircuits
from secure_llm_proxy.settings import RedisSettings, UpstreamSettings
from secure_llm_proxy.vocabulary.chat import Target

redis_url, open_s, tells = sys.stdin.readline().split()
settings = UpstreamSettings(circuit_failures=3, circuit_open_s=float(open_s))
circuits = Circuits(settings, SystemClock())
shared = SharedCircuits(RedisSettings(url=SecretStr(redis_url)), circuits)
if tells == "True":
    gevent.spawn(shared.tell)
gevent.spawn(shared.listen)
lines = gevent.get_hub().threadpool
print("up", flush=True)

while line := lines.apply(sys.stdin.readline):
    word, _, model = line.strip().partition(" ")
    target = Target("provider", model)
    if word == "fail":
        circuits.failed(target, FailureKind.TIMEOUT)
    elif word == "answer":
        circuits.answered(target)
    told = circuits.lets(target) if word == "lets" else [view.model for view in circuits.views()]
    print(told, flush=True)
"""

NONSENSE = (
    "", "x", "[]", "{}", '["a","provider","m"]', '["a","provider","m",true]', '["a","provider",1,9]',
    '["a","provider","m",-5]', '["a","provider","m","9"]', f'["a","{"p" * 300}","m",9]', b"\xed\xa0\x80",
)  # fmt: skip


class Worker:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def lets(self, model: str) -> bool:
        return self.ask(f"lets {model}") == "True"

    def fail(self, model: str, times: int = 3) -> None:
        for _ in range(times):
            self.ask(f"fail {model}")


@contextmanager
def worker(redis_url: str, open_s: float = 600.0, *, tells: bool = True) -> Iterator[Worker]:
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            made = Worker(process)
            assert made.ask(f"{redis_url} {open_s} {tells}") == "up"
            yield made
        finally:
            process.kill()


@pytest.fixture
def redis() -> Iterator[PrivateRedis]:
    with PrivateRedis(password="correct-horse") as server:
        yield server


def test_what_one_worker_opens_all_leave_alone_until_one_is_answered(redis: PrivateRedis) -> None:
    with worker(redis.url, 0.2) as first, worker(redis.url, 600) as second:
        wait_until(lambda: _listeners(redis) == 2, what="both listen")

        second.fail("m")
        wait_until(lambda: first.ask("views") == "['m']", what="the other one hears of it")

        # The first one believes in short pauses, so it tries first; its answer counts for both.
        wait_until(lambda: first.lets("m") and first.ask("answer m") == "[]", what="its pause is over")
        wait_until(lambda: second.lets("m"), what="the other one hears of it")
        assert first.ask("views") == second.ask("views") == "[]"


def test_who_comes_later_learns_what_is_open(redis: PrivateRedis) -> None:
    with worker(redis.url) as first:
        first.fail("m")
        first.fail("n")
        with redis.client() as client:
            wait_until(lambda: client.hlen(KEY) == 2, what="both are told")

        with worker(redis.url) as later:
            wait_until(lambda: later.ask("views") == "['m', 'n']", what="it has looked")


def test_what_a_worker_has_closed_and_not_told_yet_it_does_not_open_again(redis: PrivateRedis) -> None:
    """Redis may be looked at in the very moment of a change: what it says then is older."""
    with worker(redis.url) as first, worker(redis.url, 0.2, tells=False) as silent, redis.client() as client:
        wait_until(lambda: _listeners(redis) == 2, what="both listen")
        first.fail("m")
        wait_until(lambda: silent.ask("views") == "['m']", what="the other one hears of it")
        wait_until(lambda: silent.lets("m") and silent.ask("answer m") == "[]", what="its pause is over")
        looked = _looks(client)

        wait_until(lambda: _looks(client) >= looked + 4, what="both have looked again")
        assert silent.ask("views") == "[]"
        assert first.ask("views") == "['m']"


def test_without_redis_each_worker_knows_what_it_met(redis: PrivateRedis) -> None:
    with worker(f"redis://127.0.0.1:{free_port()}/0") as alone:
        alone.fail("m")

        assert not alone.lets("m")

    with worker(redis.url) as first, worker(redis.url) as second:
        redis.stop()
        first.fail("m")
        assert not first.lets("m")
        assert second.lets("m")

        redis.start()
        wait_until(lambda: _listeners(redis) == 2, what="both listen again")
        second.fail("n")
        wait_until(lambda: not first.lets("n"), what="the other one hears of it")


def test_nonsense_in_redis_opens_nothing_and_silences_nobody(redis: PrivateRedis) -> None:
    with worker(redis.url) as listening, redis.client() as client:
        wait_until(lambda: _listeners(redis) == 1, what="it listens")
        for message in NONSENSE:
            client.publish(CHANNEL, message)
        client.hset(KEY, mapping={"x": "9999999999999", '["p"]': "9999999999999"})
        client.publish(CHANNEL, '["a","provider","last",60000]')

        wait_until(lambda: listening.ask("views") != "[]", what="it hears what makes sense")
        assert listening.ask("views") == "['last']"


def _looks(client: Redis) -> int:
    counted = cast("dict[str, dict[str, int]]", client.info("commandstats"))
    return counted["cmdstat_eval"]["calls"]


def _listeners(redis: PrivateRedis) -> int:
    with redis.client() as client:
        [(_, count)] = client.pubsub_numsub(CHANNEL)
        return int(count)
