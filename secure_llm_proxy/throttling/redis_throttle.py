"""Limits in Redis: exact across all workers and hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from redis import Redis
from redis.connection import BlockingConnectionPool
from redis.exceptions import ResponseError

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling import lua
from secure_llm_proxy.throttling.buckets import (
    Standing,
    address_bucket,
    decide,
    key_bucket,
    limit_of,
    require_limits,
)
from secure_llm_proxy.throttling.holds import Hold
from secure_llm_proxy.throttling.process import Account
from secure_llm_proxy.vocabulary.caller import RateClass

RATE_KEY = "slp:rate_limit:rate:"
IN_FLIGHT_KEY = "slp:rate_limit:in_flight:"
HOSTS_KEY = "slp:hosts"

_HOST_TTL_US = 20_000_000
_CONNECTIONS_MAX = 64
_IDS_AT_ONCE = 1000

Answer = TypeVar("Answer")


class RedisAway(Exception):
    """Redis did not do what was asked of it: unreachable, slow, full, read-only, locked or speaking nonsense.

    `reason` is the kind of the error alone, fit for everybody's eyes: no host, no password. Whether it was done all the
    same is unknown after a timeout.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RedisThrottle:
    """Takes and gives back in Redis, one round trip each. Every method raises `RedisAway`; see `FallbackThrottle`.

    Keys: `slp:rate_limit:rate:{bucket}` is "debt time", and goes when the bucket is full again;
    `slp:rate_limit:in_flight:{bucket}` is a sorted set of exchange ids by the time their slot expires. `clock_us`
    replaces Redis' own clock; in service it is None.
    """

    def __init__(
        self, settings: ThrottlingSettings, redis: RedisSettings, *, clock_us: Callable[[], int] | None = None
    ) -> None:
        require_limits(settings)
        url = redis.connection_url()
        if url is None:
            raise OperatorError("REDIS_URL is not set.")
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS_MAX,
                timeout=redis.timeout_s,
                socket_timeout=redis.timeout_s,
                socket_connect_timeout=redis.timeout_s,
                driver_info=None,
            )
        except ValueError:
            # the text of the error may hold parts of the URL, and with them the password
            raise OperatorError(
                "REDIS_URL can't be read; write redis://host:6379/0, rediss://… for TLS, or unix:///path."
            ) from None
        self._client: Redis = Redis(connection_pool=pool)
        self._take = self._client.register_script(lua.TAKE)
        self._release = self._client.register_script(lua.RELEASE)
        self._settle = self._client.register_script(lua.SETTLE)
        self._count_hosts = self._client.register_script(lua.COUNT_HOSTS)
        self._slot_ttl_us = int(settings.slot_ttl_s * 1_000_000)
        self._clock_us = clock_us

    def take(
        self, *, key_id: str, key_class: RateClass, address: str, address_class: RateClass, exchange_id: str
    ) -> Hold:
        key, client = key_bucket(key_id), address_bucket(address)
        limit, client_limit = limit_of(key_class), limit_of(address_class)
        granted, debt, in_flight, client_debt, client_in_flight = self._ask(
            lambda: _integers(
                self._take(
                    keys=[RATE_KEY + key, IN_FLIGHT_KEY + key, RATE_KEY + client, IN_FLIGHT_KEY + client],
                    args=[
                        self._now(),
                        exchange_id,
                        self._slot_ttl_us,
                        limit.refill,
                        limit.request,
                        limit.size,
                        limit.concurrent,
                        client_limit.refill,
                        client_limit.request,
                        client_limit.size,
                        client_limit.concurrent,
                    ],
                ),
                5,
            )
        )
        decision = decide(
            (
                Standing("key", limit, debt, in_flight),
                Standing("address", client_limit, client_debt, client_in_flight),
            ),
            source="redis",
        )
        if decision.allowed != bool(granted):
            raise RedisAway("InvalidResponse")
        return Hold(decision, exchange_id, (key, client) if granted else ())

    def release(self, hold: Hold) -> None:
        if hold.buckets:
            self._ask(
                lambda: self._release(keys=[IN_FLIGHT_KEY + name for name in hold.buckets], args=[hold.exchange_id])
            )

    def settle(self, accounts: Sequence[Account], ended: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        """Add what was granted without Redis; give back the slots of exchanges (id, buckets) that ended meanwhile."""

        def send() -> None:
            with self._client.pipeline(transaction=False) as pipeline:
                for account in accounts:
                    ids = account.exchange_ids
                    for start in range(0, max(1, len(ids)), _IDS_AT_ONCE):
                        self._settle(
                            keys=[RATE_KEY + account.name, IN_FLIGHT_KEY + account.name],
                            args=[
                                self._now(),
                                self._slot_ttl_us,
                                account.limit.refill,
                                account.limit.size,
                                account.debt if start == 0 else 0,
                                *ids[start : start + _IDS_AT_ONCE],
                            ],
                            client=pipeline,
                        )
                for exchange_id, buckets in ended:
                    for name in buckets:
                        pipeline.zrem(IN_FLIGHT_KEY + name, exchange_id)
                pipeline.execute()

        if accounts or ended:
            self._ask(send)

    def count_hosts(self, host_id: str) -> int:
        """How many hosts called this within 20 s, `host_id` included. It writes, so it proves that Redis can."""
        return self._ask(
            lambda: _integers([self._count_hosts(keys=[HOSTS_KEY], args=[self._now(), host_id, _HOST_TTL_US])], 1)[0]
        )

    def close(self) -> None:
        self._client.connection_pool.disconnect()

    def _now(self) -> int | str:
        return "" if self._clock_us is None else self._clock_us()

    @staticmethod
    def _ask(question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except Exception as error:
            # Not only RedisError: the library lets others through as well (OSError, AttributeError of a socket that was
            # closed meanwhile), and none of them may cost a request. Cancellation is a BaseException and passes.
            raise RedisAway(_reason(error)) from error


def _reason(error: Exception) -> str:
    """`TimeoutError`, `ReadOnlyError`; for errors that the library has no class of, Redis' own code: `MISCONF`."""
    code = str(error).partition(" ")[0]
    return code if type(error) is ResponseError and code.isalpha() and code.isupper() else type(error).__name__


def _integers(reply: object, count: int) -> list[int]:
    if not isinstance(reply, list) or len(reply) != count or not all(isinstance(number, int) for number in reply):
        raise TypeError("Redis answered something else than the script returns")
    return reply
