"""Several patched processes, as gunicorn's workers are: a revoked key dies in all of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import pytest
from pydantic import SecretStr

from secure_llm_proxy.identity import IssuedKey, announce_revocation, draw_api_key
from secure_llm_proxy.settings import RedisSettings
from tests.support.identity_room import PEPPER, IdentityRoom, migrated_database
from tests.support.ports import free_port
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.programs import wait_until
from tests.support.redis_server import PrivateRedis

ROOT = Path(__file__).resolve().parents[2]

# What a worker does: an identity and its background greenlets. It answers each line, a key, with how it was identified.
_WORKER = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from pydantic import SecretStr
from sqlalchemy import event
from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.identity import Identity, listen_for_revocations
from secure_llm_proxy.settings import DatabaseSettings, IdentitySettings, RedisSettings

database_url, redis_url, cache_s, pepper = (sys.stdin.readline().strip() for _ in range(4))
settings = IdentitySettings().model_copy(update={"cache_s": float(cache_s)})
database = Database(DatabaseSettings(url=database_url))
queries = []
event.listen(database.engine, "before_cursor_execute", lambda _1, _2, statement, *_3: queries.append(statement))
identity = Identity(settings, database, bytes.fromhex(pepper), SystemClock())
if redis_url:
    gevent.spawn(listen_for_revocations, RedisSettings(url=SecretStr(redis_url)), identity.forget)
lines = gevent.get_hub().threadpool

def answer(key):
    if key == "queries":
        return str(len(queries))
    try:
        return identity.identify((key,)).key_id
    except ProxyError as error:
        return str(error.code)

while line := lines.apply(sys.stdin.readline):
    keys = line.split()
    asked = [gevent.spawn(answer, key) for key in keys]
    gevent.joinall(asked)
    print(*(greenlet.value for greenlet in asked), flush=True)
identity.flush_last_used()
"""


class Worker:
    """A worker process that says who it takes a key for."""

    def __init__(self, database_url: str, *, redis_url: str = "", cache_s: float = 5.0) -> None:
        self._head = f"{database_url}\n{redis_url}\n{cache_s}\n{PEPPER.hex()}\n"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._head)
        self._process.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                assert self._process.wait(30) == 0
            finally:
                self._process.kill()

    def ask(self, *keys: str) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(keys) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().split()


@pytest.fixture
def url(postgresql: PrivatePostgreSQL) -> str:
    return postgresql.create_database()


@contextmanager
def opened(url: str) -> Iterator[IdentityRoom]:
    database = migrated_database(url)
    room = IdentityRoom(database)
    room.make_user()
    yield room
    database.close()


def driver_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://")


def redis_settings(server: PrivateRedis) -> RedisSettings:
    return RedisSettings(url=SecretStr(server.url))


def is_dead(worker: Worker, key: IssuedKey) -> bool:
    return worker.ask(key.secret) == ["api_key_revoked"]


def is_heard(worker: Worker, key: IssuedKey, settings: RedisSettings) -> bool:
    """Announce until the worker has heard it: the listener may be connecting still."""
    announce_revocation(settings, key.api_key.kid)
    return is_dead(worker, key)


def test_without_redis_every_process_notices_a_revocation_by_itself(url: str) -> None:
    with opened(url) as room:
        key, other = room.make_key(), room.make_key()
        kid = key.api_key.kid
        with Worker(driver_url(url), cache_s=0.2) as first, Worker(driver_url(url), cache_s=0.2) as second:
            before = first.ask(key.secret) + second.ask(key.secret)

            room.revoke(key)

            for worker in (first, second):
                wait_until(partial(is_dead, worker, key), what="the key is dead")
            assert before == [kid, kid]
            assert first.ask(other.secret) == [other.api_key.kid]


def test_the_same_holds_on_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'app.db'}"
    with opened(url) as room:
        key = room.make_key()
        with Worker(url, cache_s=0.2) as worker:
            before = worker.ask(key.secret, key.secret, key.secret)

            room.revoke(key)

            wait_until(partial(is_dead, worker, key), what="the key is dead")
            assert before == [key.api_key.kid] * 3


def test_an_announcement_ends_a_key_in_every_process_long_before_its_memory_would(
    url: str, redis_server: PrivateRedis
) -> None:
    settings = redis_settings(redis_server)
    with opened(url) as room:
        key, other = room.make_key(), room.make_key()
        # An hour of memory: only the announcement can be what ended the key.
        with (
            Worker(driver_url(url), redis_url=redis_server.url, cache_s=3600) as first,
            Worker(driver_url(url), redis_url=redis_server.url, cache_s=3600) as second,
        ):
            before = [worker.ask(key.secret, other.secret) for worker in (first, second)]
            room.revoke(key)
            remembered = first.ask(key.secret)

            for worker in (first, second):
                wait_until(partial(is_heard, worker, key, settings), what="the announcement is heard")

            assert before == [[key.api_key.kid, other.api_key.kid]] * 2
            assert remembered == [key.api_key.kid]
            assert first.ask(other.secret) + second.ask(other.secret) == [other.api_key.kid] * 2


def test_a_redis_that_went_away_is_listened_to_again_when_it_is_back(url: str) -> None:
    with opened(url) as room, PrivateRedis() as server:
        first, second = room.make_key(), room.make_key()
        settings = redis_settings(server)
        with Worker(driver_url(url), redis_url=server.url, cache_s=3600) as worker:
            worker.ask(first.secret, second.secret)
            room.revoke(first)
            wait_until(lambda: is_heard(worker, first, settings), what="the first announcement is heard")

            server.kill()
            told = announce_revocation(settings, second.api_key.kid)
            alive = worker.ask(second.secret)
            server.start()
            room.revoke(second)

            wait_until(lambda: is_heard(worker, second, settings), what="the second announcement is heard")
            assert told is False
            assert alive == [second.api_key.kid]


def test_nonsense_on_the_channel_is_ignored(url: str, redis_server: PrivateRedis) -> None:
    settings = redis_settings(redis_server)
    with opened(url) as room:
        key = room.make_key()
        with Worker(driver_url(url), redis_url=redis_server.url, cache_s=3600) as worker:
            worker.ask(key.secret)
            with redis_server.client() as client:
                for nonsense in ("", "x", "\x00" * 8, "ä" * 8, "a" * 100_000, key.api_key.kid[:7]):
                    client.publish("slp:revoked", nonsense)
            remembered = worker.ask(key.secret)
            room.revoke(key)

            wait_until(lambda: is_heard(worker, key, settings), what="a right announcement is heard")
            assert remembered == [key.api_key.kid]


def test_announcing_without_redis_is_said_and_no_error() -> None:
    nobody = RedisSettings(url=SecretStr(f"redis://127.0.0.1:{free_port()}/0"))

    assert announce_revocation(RedisSettings(), "abcdefgh") is False
    assert announce_revocation(nobody, "abcdefgh") is False


def test_many_requests_with_one_key_ask_the_database_once_and_all_get_its_answer(url: str) -> None:
    with opened(url) as room:
        key, unknown = room.make_key(), draw_api_key().secret
        # An hour of memory: however long the answers take, nobody asks for changes meanwhile.
        with Worker(driver_url(url), cache_s=3600) as worker:
            answers = worker.ask(*[key.secret] * 50, *[unknown] * 50)
            (queries,) = worker.ask("queries")

        assert answers == [key.api_key.kid] * 50 + ["invalid_api_key"] * 50
        assert int(queries) == 3  # one for either, and the page of keys read along with the good one
        (used,) = room.database.run(room.keys.list_api_keys)
        assert used.last_used_at is not None


def test_workers_outlive_a_stopped_database_together() -> None:
    with PrivatePostgreSQL() as server:
        url = server.create_database()
        with opened(url) as room:
            keys = [room.make_key().secret for _ in range(3)]
            with Worker(driver_url(url), cache_s=0.01) as worker:
                before = worker.ask(*keys)
                server.stop()

                during = worker.ask(*keys * 5, draw_api_key().secret)
                server.start()

                wait_until(
                    lambda: worker.ask(draw_api_key().secret) == ["invalid_api_key"], what="the database is back"
                )
                assert during == [*before * 5, "database_unavailable"]
                assert worker.ask(*keys) == before
