"""Limits in the memory of one process: the whole limit where there is one worker, its share where Redis is away.

A `take` and `release` cost 2.9 µs in a patched worker (Python 3.11, 2026-11; 5.0 before equal grants became one object
and the classes of the last request were remembered). The lock is the interpreter's, which saves 0.7 µs.
"""

from __future__ import annotations

import logging
from _thread import LockType
from collections import OrderedDict
from dataclasses import dataclass

from gevent.monkey import get_original

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.settings import ThrottlingSettings
from secure_llm_proxy.throttling.buckets import (
    Limit,
    address_bucket,
    decide,
    key_bucket,
    limit_of,
    require_limits,
)
from secure_llm_proxy.throttling.holds import Hold
from secure_llm_proxy.throttling.shares import Shares
from secure_llm_proxy.vocabulary.caller import RateClass

log = logging.getLogger(__name__)

BUCKETS_MAX = 100_000
"""So many buckets are remembered, about 400 bytes each."""

_EXAMINED = 2
_EXAMINED_WHEN_FULL = 32


@dataclass(slots=True)
class _Bucket:
    """`debt` drops at `at_us`, in the unit of `shares`; `refill` as it was last asked for; exchange -> slot's end."""

    debt: int
    at_us: int
    shares: int
    refill: int
    in_flight: dict[str, int]

    def debt_at(self, now_us: int, refill: int, shares: int) -> int:
        """Drops owed now in the unit of `shares`; what refilled since the last grant counts at the slower of both."""
        debt = self.debt
        if not debt:
            return 0
        # a clock that ran backwards neither refills nor spends
        refilled = (now_us - self.at_us) * refill if now_us > self.at_us else 0
        if shares == self.shares:
            return debt - refilled if debt > refilled else 0
        if shares > self.shares:
            return max(0, -(-debt * shares // self.shares) - refilled)
        return -(-max(0, debt - refilled) * shares // self.shares)

    def in_flight_at(self, now_us: int) -> int:
        """Slots that have not expired; the others are dropped. All live equally long, so the oldest stand first."""
        in_flight = self.in_flight
        while in_flight:
            for exchange_id, until_us in in_flight.items():  # noqa: B007  the first of them
                break
            if until_us > now_us:
                break
            del in_flight[exchange_id]
        return len(in_flight)

    def standing_at(self, now_us: int, limit: Limit) -> tuple[int, int]:
        """`debt_at` and `in_flight_at`, as a request finds them."""
        slots = self.in_flight_at(now_us) if self.in_flight else 0
        if self.debt and limit.shares == self.shares and now_us > self.at_us:
            debt = self.debt - (now_us - self.at_us) * limit.refill
            return max(0, debt), slots
        return self.debt_at(now_us, limit.refill, limit.shares), slots

    def spend(self, limit: Limit, debt: int, now_us: int) -> None:
        """One request more than `debt`, which is owed at `now_us`; at most down to an empty bucket."""
        spent = debt + limit.request
        if spent > limit.size:
            spent = max(limit.size, debt)
        self.debt = spent
        self.at_us = now_us
        self.shares = limit.shares
        self.refill = limit.refill

    def is_idle(self, now_us: int) -> bool:
        return not self.debt_at(now_us, self.refill, self.shares) and not self.in_flight_at(now_us)


@dataclass(frozen=True, slots=True)
class Account:
    """What a bucket holds now: `debt` in drops of the undivided limit, and the exchanges in flight."""

    name: str
    limit: Limit
    debt: int
    exchange_ids: tuple[str, ...]


class ProcessThrottle:
    """A `Throttle` without Redis. `shares` divides every limit; 1 is the whole limit.

    It remembers at most `buckets_max` buckets. Only idle ones (full, nothing in flight) are forgotten, which forgives
    nothing; when as many are busy at once, the least indebted of the longest unused, which is logged once.
    """

    def __init__(
        self,
        settings: ThrottlingSettings,
        *,
        clock: Clock,
        shares: Shares | None = None,
        source: str = "process",
        buckets_max: int = BUCKETS_MAX,
    ) -> None:
        require_limits(settings)
        self._slot_ttl_us = int(settings.slot_ttl_s * 1_000_000)
        self._clock = clock
        self._shares = shares or Shares(workers=1)
        self._source = source
        self._buckets_max = buckets_max
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        # The interpreter's own, a tenth of gevent's price: nothing that is done under it lets another greenlet run.
        self._lock: LockType = get_original("_thread", "allocate_lock")()
        no_class = RateClass(1, 1, 1)
        self._last_limits = (no_class, no_class, 0, (limit_of(no_class), limit_of(no_class)))
        self._crowded = False
        self._told = False

    def __len__(self) -> int:
        """How many buckets are remembered."""
        return len(self._buckets)

    def take(
        self, *, key_id: str, key_class: RateClass, address: str, address_class: RateClass, exchange_id: str
    ) -> Hold:
        shares = self._shares.count
        key_limit, address_limit = self._limits_of(key_class, address_class, shares)
        key_name, address_name = key_bucket(key_id), address_bucket(address)
        buckets = self._buckets
        with self._lock:
            now_us = int(self._clock.monotonic_s() * 1_000_000)
            key, client = buckets.get(key_name), buckets.get(address_name)
            key_debt, key_slots = (0, 0) if key is None else key.standing_at(now_us, key_limit)
            debt, slots = (0, 0) if client is None else client.standing_at(now_us, address_limit)
            decision = decide(
                (("key", key_limit, key_debt, key_slots), ("address", address_limit, debt, slots)), source=self._source
            )
            if not decision.allowed:
                return Hold(decision, exchange_id, ())
            if key is None or client is None:
                # each that is made may push another out
                self._spend(key_name, key_limit, key_debt, exchange_id, now_us)
                self._spend(address_name, address_limit, debt, exchange_id, now_us)
            else:
                until_us = now_us + self._slot_ttl_us
                key.spend(key_limit, key_debt, now_us)
                key.in_flight[exchange_id] = until_us
                buckets.move_to_end(key_name)
                client.spend(address_limit, debt, now_us)
                client.in_flight[exchange_id] = until_us
                buckets.move_to_end(address_name)
        if self._crowded:
            self._warn_once()
        return Hold(decision, exchange_id, (key_name, address_name))

    def charge(
        self, *, key_id: str, key_class: RateClass, address: str, address_class: RateClass, exchange_id: str
    ) -> None:
        """Spend what somebody else has granted already, down to an empty bucket."""
        shares = self._shares.count
        with self._lock:
            now_us = self._now_us()
            for name, rate_class in ((key_bucket(key_id), key_class), (address_bucket(address), address_class)):
                limit, bucket = limit_of(rate_class, shares), self._buckets.get(name)
                debt = 0 if bucket is None else bucket.debt_at(now_us, limit.refill, limit.shares)
                self._spend(name, limit, debt, exchange_id, now_us)
        if self._crowded:
            self._warn_once()

    def release(self, hold: Hold) -> None:
        with self._lock:
            for name in hold.buckets:
                bucket = self._buckets.get(name)
                if bucket is not None:
                    bucket.in_flight.pop(hold.exchange_id, None)

    def account(self, name: str, rate_class: RateClass) -> Account:
        """What is spent and in flight in the bucket `name`; nothing when it was forgotten."""
        limit = limit_of(rate_class)
        with self._lock:
            bucket = self._buckets.get(name)
            if bucket is None:
                return Account(name, limit, 0, ())
            now_us = self._now_us()
            bucket.in_flight_at(now_us)
            return Account(name, limit, bucket.debt_at(now_us, limit.refill, 1), tuple(bucket.in_flight))

    def heartbeat(self) -> None:
        """Nothing to do: there are no other hosts."""

    def trouble(self) -> str | None:
        return None

    def close(self) -> None:
        """Nothing to hang up."""

    def _now_us(self) -> int:
        return int(self._clock.monotonic_s() * 1_000_000)

    def _limits_of(self, key_class: RateClass, address_class: RateClass, shares: int) -> tuple[Limit, Limit]:
        """Both classes are mostly those of the last request, the same objects: to hash them would cost 1 µs."""
        last = self._last_limits
        if last[0] is key_class and last[1] is address_class and last[2] == shares:
            return last[3]
        limits = (limit_of(key_class, shares), limit_of(address_class, shares))
        self._last_limits = (key_class, address_class, shares, limits)
        return limits

    def _spend(self, name: str, limit: Limit, debt: int, exchange_id: str, now_us: int) -> None:
        bucket = self._buckets.get(name)
        if bucket is None:
            self._make_room(now_us)
            bucket = self._buckets[name] = _Bucket(0, now_us, limit.shares, limit.refill, {})
        else:
            self._buckets.move_to_end(name)
        bucket.spend(limit, debt, now_us)
        bucket.in_flight[exchange_id] = now_us + self._slot_ttl_us

    def _make_room(self, now_us: int) -> None:
        """Before one more is remembered, look at some of the longest unused: the idle go, the others go to the end."""
        full = len(self._buckets) >= self._buckets_max
        busy: list[str] = []
        for _ in range(min(len(self._buckets), _EXAMINED_WHEN_FULL if full else _EXAMINED)):
            name = next(iter(self._buckets))
            if self._buckets[name].is_idle(now_us):
                del self._buckets[name]
            else:
                self._buckets.move_to_end(name)
                busy.append(name)
        if len(self._buckets) >= self._buckets_max:
            del self._buckets[min(busy, key=self._claim)]
            self._crowded = not self._told

    def _warn_once(self) -> None:
        # Not under the lock: writing a log may let another greenlet run.
        self._crowded, self._told = False, True
        log.warning("more rate limit buckets are busy than are remembered", extra={"buckets": self._buckets_max})

    def _claim(self, name: str) -> tuple[bool, int]:
        bucket = self._buckets[name]
        return bool(bucket.in_flight), bucket.debt
