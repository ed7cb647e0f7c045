"""Redis while it answers, this worker's share of every limit while it doesn't."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.throttling.buckets import address_bucket, key_bucket
from secure_llm_proxy.throttling.holds import Hold
from secure_llm_proxy.throttling.process import Account, ProcessThrottle
from secure_llm_proxy.throttling.redis_away import RedisAway
from secure_llm_proxy.throttling.redis_throttle import RedisThrottle
from secure_llm_proxy.throttling.shares import Shares
from secure_llm_proxy.vocabulary.caller import RateClass

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""So long Redis is left alone after a failure, and requests don't pay its timeout."""

_OWED_MAX = 10_000
_ACCOUNTS_AT_ONCE = 200
_ENDED_AT_ONCE = 500
_ROUNDS_MAX = 50

Owed = TypeVar("Owed")


class FallbackThrottle:
    """A `Throttle` over Redis that neither fails nor opens when Redis does.

    `local` is charged with everything Redis grants, so that its share is not a fresh bucket when Redis goes. Until
    Redis is back, what was granted and what ended meanwhile is *owed*: it is told to Redis before the first request is
    asked there again, so that neither a burst is won nor a slot lost by an outage (a request whose answer timed out may
    hold a slot in Redis that nobody knows of). At most 10,000 buckets and 10,000 exchanges are owed; of what is beyond,
    the buckets count as full and the slots expire by themselves.
    """

    def __init__(
        self,
        primary: RedisThrottle,
        local: ProcessThrottle,
        shares: Shares,
        *,
        host_id: str,
        clock: Clock,
        on_fallback: Callable[[], None],
    ) -> None:
        self._primary = primary
        self._local = local
        self._shares = shares
        self._host_id = host_id
        self._clock = clock
        self._on_fallback = on_fallback
        self._away: str | None = None
        self._retry_at_s = 0.0
        self._probing = False
        self._settling = 0
        # exchanges in flight whose slots may be in Redis
        self._remote: set[str] = set()
        self._owed_buckets: dict[str, RateClass] = {}
        self._owed_releases: dict[str, tuple[str, ...]] = {}

    def take(
        self, *, key_id: str, key_class: RateClass, address: str, address_class: RateClass, exchange_id: str
    ) -> Hold:
        if self._away is None or self._is_back():
            self._remote.add(exchange_id)
            try:
                hold = self._primary.take(
                    key_id=key_id,
                    key_class=key_class,
                    address=address,
                    address_class=address_class,
                    exchange_id=exchange_id,
                )
            except RedisAway as away:
                self._note(away)
            except BaseException:
                # the exchange was cancelled while it waited: nobody will release what it may hold
                self._remote.discard(exchange_id)
                self._owe_release(exchange_id, (key_bucket(key_id), address_bucket(address)))
                raise
            else:
                if hold.decision.allowed:
                    self._local.charge(
                        key_id=key_id,
                        key_class=key_class,
                        address=address,
                        address_class=address_class,
                        exchange_id=exchange_id,
                    )
                else:
                    self._remote.discard(exchange_id)
                return hold
        self._on_fallback()
        hold = self._local.take(
            key_id=key_id, key_class=key_class, address=address, address_class=address_class, exchange_id=exchange_id
        )
        if hold.decision.allowed:
            self._owe_bucket(hold.buckets[0], key_class)
            self._owe_bucket(hold.buckets[1], address_class)
        elif exchange_id in self._remote:
            self._remote.discard(exchange_id)
            self._owe_release(exchange_id, (key_bucket(key_id), address_bucket(address)))
        return hold

    def release(self, hold: Hold) -> None:
        if not hold.buckets:
            return
        self._local.release(hold)
        if hold.exchange_id not in self._remote:
            return
        self._remote.discard(hold.exchange_id)
        if self._away is None and not self._settling:
            try:
                self._primary.release(hold, self._note_lost_release)
            except RedisAway as away:
                self._note(away)
            else:
                return
        self._owe_release(hold.exchange_id, hold.buckets)

    def heartbeat(self) -> None:
        """Count the hosts, settle what is owed, notice that Redis went or is back. Never raises; call it every 5 s."""
        if self._away is not None:
            self._is_back()
            return
        try:
            self._settle()
        except RedisAway as away:
            self._note(away)

    def trouble(self) -> str | None:
        if self._away is None:
            return None
        return f"Redis is away ({self._away}): each worker grants 1/{self._shares.count} of every limit."

    def close(self) -> None:
        self._primary.close()

    def _is_back(self) -> bool:
        """Ask Redis, at most once per second and by one request at a time; the others don't wait for the answer."""
        if self._probing or self._clock.monotonic_s() < self._retry_at_s:
            return False
        self._probing = True
        try:
            self._settle()
        except RedisAway as away:
            self._note(away)
            return False
        finally:
            self._probing = False
        self._away = None
        log.info("Redis is back; limits are shared again")
        return True

    def _note(self, away: RedisAway) -> None:
        self._retry_at_s = self._clock.monotonic_s() + RETRY_S
        if self._away is None:
            log.warning(
                "Redis is away; this worker grants its share of the limits",
                extra={"reason": away.reason, "shares": self._shares.count},
            )
        self._away = away.reason

    def _note_lost_release(self, hold: Hold, away: RedisAway) -> None:
        """Redis was told of an end, and did not say that it heard. Telling it again does no harm."""
        self._owe_release(hold.exchange_id, hold.buckets)
        self._note(away)

    def _settle(self) -> None:
        """Count the hosts and tell Redis what is owed. While this runs, exchanges that end are owed, too: their slot
        may be on its way to Redis.
        """
        self._settling += 1
        try:
            self._shares.hosts = self._primary.count_hosts(self._host_id)
            # under load more comes to be owed during each round; the rest waits for the next heartbeat
            for _ in range(_ROUNDS_MAX):
                if not self._owed_buckets and not self._owed_releases:
                    return
                self._settle_some()
        finally:
            self._settling -= 1

    def _settle_some(self) -> None:
        buckets = _popped(self._owed_buckets, _ACCOUNTS_AT_ONCE)
        releases = _popped(self._owed_releases, _ENDED_AT_ONCE)
        accounts: list[Account] = []
        for name, rate_class in buckets:
            account = self._local.account(name, rate_class)
            self._remote.update(account.exchange_ids)
            accounts.append(account)
        try:
            self._primary.settle(accounts, releases)
        except RedisAway:
            for name, rate_class in buckets:
                self._owe_bucket(name, rate_class)
            for exchange_id, names in releases:
                self._owe_release(exchange_id, names)
            raise

    def _owe_bucket(self, name: str, rate_class: RateClass) -> None:
        if len(self._owed_buckets) < _OWED_MAX or name in self._owed_buckets:
            self._owed_buckets[name] = rate_class

    def _owe_release(self, exchange_id: str, names: tuple[str, ...]) -> None:
        if len(self._owed_releases) < _OWED_MAX:
            self._owed_releases[exchange_id] = names


def _popped(owed: dict[str, Owed], count: int) -> list[tuple[str, Owed]]:
    return [owed.popitem() for _ in range(min(count, len(owed)))]
