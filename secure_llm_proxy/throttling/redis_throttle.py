"""Limits in Redis: exact across all workers and hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from greenlet import getcurrent

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling import lua
from secure_llm_proxy.throttling.buckets import (
    Limit,
    Standing,
    address_bucket,
    decide,
    key_bucket,
    limit_of,
    require_limits,
)
from secure_llm_proxy.throttling.holds import Hold
from secure_llm_proxy.throttling.process import Account
from secure_llm_proxy.throttling.redis_address import redis_address
from secure_llm_proxy.throttling.redis_away import RedisAway
from secure_llm_proxy.throttling.redis_link import RedisLinks
from secure_llm_proxy.throttling.resp import Script, bulk, packed
from secure_llm_proxy.vocabulary.caller import RateClass

RATE_KEY = "slp:rate_limit:rate:"
IN_FLIGHT_KEY = "slp:rate_limit:in_flight:"
HOSTS_KEY = "slp:hosts"

_HOST_TTL_US = 20_000_000
_IDS_AT_ONCE = 1000

_TAKE = Script(lua.TAKE)
_RELEASE = Script(lua.RELEASE)
_SETTLE = Script(lua.SETTLE)
_COUNT_HOSTS = Script(lua.COUNT_HOSTS)

_TAKE_OPENING = _TAKE.opening(keys=4, arguments=11)
_RELEASE_OPENING = _RELEASE.opening(keys=2, arguments=1)
_NO_CLOCK = bulk("")


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
        self._links = RedisLinks(redis_address(url), redis.timeout_s)
        self._slot_ttl_us = int(settings.slot_ttl_s * 1_000_000)
        self._packed_slot_ttl = bulk(self._slot_ttl_us)
        self._clock_us = clock_us

    def take(
        self, *, key_id: str, key_class: RateClass, address: str, address_class: RateClass, exchange_id: str
    ) -> Hold:
        key, client = key_bucket(key_id), address_bucket(address)
        limit, client_limit = limit_of(key_class), limit_of(address_class)
        question = b"".join(
            (
                _TAKE_OPENING,
                _packed_keys(key),
                _packed_keys(client),
                _NO_CLOCK if self._clock_us is None else bulk(self._clock_us()),
                bulk(exchange_id),
                self._packed_slot_ttl,
                _packed_limit(limit),
                _packed_limit(client_limit),
            )
        )
        granted, debt, in_flight, client_debt, client_in_flight = _integers(self._links.here().ask(question, _TAKE), 5)
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

    def release(self, hold: Hold, on_lost: Callable[[Hold, RedisAway], None] | None = None) -> None:
        """Give the slots back. With `on_lost` it does not wait for the answer: what went wrong is told there, in the loop.

        It waits all the same in the main greenlet of a thread (commands, tests): nobody knows when the loop turns next.
        """
        if not hold.buckets:
            return
        key, client = hold.buckets
        frame = b"".join((_RELEASE_OPENING, _packed_slots(key), _packed_slots(client), bulk(hold.exchange_id)))
        link = self._links.here()
        if on_lost is None or getcurrent().parent is None:
            link.ask(frame, _RELEASE)
        else:
            tell_lost = on_lost
            link.tell(frame, _RELEASE, lambda away: tell_lost(hold, away))

    def settle(self, accounts: Sequence[Account], ended: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        """Add what was granted without Redis; give back the slots of exchanges (id, buckets) that ended meanwhile."""
        commands: list[tuple[bytes, Script | None]] = []
        for account in accounts:
            ids = account.exchange_ids
            for start in range(0, max(1, len(ids)), _IDS_AT_ONCE):
                call = _SETTLE.call(
                    [RATE_KEY + account.name, IN_FLIGHT_KEY + account.name],
                    [
                        self._now(),
                        self._slot_ttl_us,
                        account.limit.refill,
                        account.limit.size,
                        account.debt if start == 0 else 0,
                        *ids[start : start + _IDS_AT_ONCE],
                    ],
                )
                commands.append((call, _SETTLE))
        for exchange_id, buckets in ended:
            commands += [(packed("ZREM", IN_FLIGHT_KEY + name, exchange_id), None) for name in buckets]
        self._links.here().ask_all(commands)

    def count_hosts(self, host_id: str) -> int:
        """How many hosts called this within 20 s, `host_id` included. It writes, so it proves that Redis can."""
        call = _COUNT_HOSTS.call([HOSTS_KEY], [self._now(), host_id, _HOST_TTL_US])
        return _integers([self._links.here().ask(call, _COUNT_HOSTS)], 1)[0]

    def close(self) -> None:
        """Hang up once Redis has been told of every slot given back."""
        self._links.close()

    def _now(self) -> int | str:
        return "" if self._clock_us is None else self._clock_us()


@lru_cache(maxsize=8192)
def _packed_keys(bucket: str) -> bytes:
    return bulk(RATE_KEY + bucket) + bulk(IN_FLIGHT_KEY + bucket)


@lru_cache(maxsize=8192)
def _packed_slots(bucket: str) -> bytes:
    return bulk(IN_FLIGHT_KEY + bucket)


@lru_cache(maxsize=1024)
def _packed_limit(limit: Limit) -> bytes:
    return b"".join(map(bulk, (limit.refill, limit.request, limit.size, limit.concurrent)))


def _integers(reply: object, count: int) -> list[int]:
    if not isinstance(reply, list) or len(reply) != count or {*map(type, reply)} != {int}:
        # Something else than the script returns.
        raise RedisAway("InvalidResponse")
    return reply
