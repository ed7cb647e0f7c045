"""The arithmetic of a bucket, the same for Redis and for a process.

An exact token bucket without fractions. Time is in whole microseconds; a request costs as many *drops* as its window has
microseconds; a bucket of `requests` per window refills that many drops per microsecond. What is kept is the *debt*: the
drops that were spent and have not refilled yet; a request is granted while debt + cost <= size. Hence in any window at
most `requests` + `burst` are granted, and under steady demand no refill is lost. For one of n workers that divide a limit
a request costs n times as many drops: fractions of a rate stay exact, too.

All figures stay below 2^53, the integers that Lua's doubles hold exactly, because `RATE_MAX` and `_SIZE_MAX` bound them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from secure_llm_proxy.foundation.errors import ErrorCode, OperatorError
from secure_llm_proxy.settings import ThrottlingSettings
from secure_llm_proxy.vocabulary.caller import RateClass
from secure_llm_proxy.vocabulary.decisions import RateDecision

RATE_MAX = 100_000_000
"""Largest rate, burst or concurrency that is counted; more is the same."""

_SIZE_MAX = 2**52
_SECOND_US = 1_000_000
_CONCURRENCY_RETRY_S = 1


@dataclass(frozen=True, slots=True)
class Limit:
    """A `RateClass` at a share. `refill` is drops per microsecond, `request` and `size` are drops."""

    per_minute: int
    refill: int
    request: int
    size: int
    concurrent: int
    shares: int


@lru_cache(maxsize=1024)
def limit_of(rate_class: RateClass, shares: int = 1) -> Limit:
    """One of `shares` equal parts of a class. There is no unlimited class: whatever is below 1 counts as 1.

    Burst and concurrency are whole: at least 1 per share, so with more shares than burst they add up to the shares.
    """
    rate = _bounded(rate_class.requests)
    request = max(1, rate_class.window_s) * _SECOND_US * shares
    burst = min(_bounded(rate_class.burst) // shares, _SIZE_MAX // request)
    return Limit(
        per_minute=max(1, rate * 60 // max(1, rate_class.window_s) // shares),
        refill=rate,
        request=request,
        size=max(1, burst) * request,
        concurrent=max(1, _bounded(rate_class.concurrent) // shares),
        shares=shares,
    )


def require_limits(settings: ThrottlingSettings) -> None:
    """Raise `OperatorError` naming every limit below 1 or otherwise unusable: there is no unlimited mode."""
    names = (
        "key_requests_per_minute",
        "key_burst",
        "key_concurrent",
        "address_requests_per_minute",
        "address_burst",
        "address_concurrent",
        "workers",
    )
    wrong = [name for name in names if getattr(settings, name) < 1]
    if settings.slot_ttl_s < 1:
        wrong.append("slot_ttl_s")
    if wrong:
        raise OperatorError(f"Every limit must be at least 1, none means unlimited; wrong: {', '.join(wrong)}.")


class Standing(NamedTuple):
    """Where a bucket stands before a request: `side` is "key" or "address", `debt` drops, `in_flight` slots."""

    side: str
    limit: Limit
    debt: int
    in_flight: int


def decide(standings: Sequence[Standing | tuple[str, Limit, int, int]], *, source: str) -> RateDecision:
    """The strictest bucket's answer: when allowed the one with the fewest remaining, else the longest to wait for.

    `limit` is always requests per minute; `remaining` counts free slots as well, since no more could follow at once.
    """
    least = -1
    strictest = standings[0]
    by_slots = False
    for standing in standings:
        _, limit, debt, in_flight = standing
        requests = (limit.size - debt) // limit.request - 1
        remaining = slots = limit.concurrent - in_flight - 1
        if requests <= slots:
            remaining = requests
        if remaining < 0:
            return max([refusal for each in standings for refusal in _refusals(each, source)], key=_retry_after)
        if least < 0 or remaining < least:
            least, strictest, by_slots = remaining, standing, requests > slots
    side, limit, debt, _ = strictest
    reset_s = -(-(debt + limit.request) // (limit.refill * _SECOND_US))
    return _granted(limit.per_minute, least, reset_s, source, f"{side}_concurrent" if by_slots else f"{side}_rate")


@lru_cache(maxsize=4096)
def _granted(limit: int, remaining: int, reset_s: int, source: str, bucket: str) -> RateDecision:
    """One for all equal grants: most are like another, and making one takes longer than finding it."""
    # by position: keywords would cost as much as the fields themselves
    return RateDecision(True, limit, remaining, reset_s, 0, source, bucket)


def _retry_after(decision: RateDecision) -> int:
    return decision.retry_after_s


def _refusals(standing: Standing | tuple[str, Limit, int, int], source: str) -> list[RateDecision]:
    side, limit, debt, in_flight = standing
    reset_s = _seconds(debt, limit)
    refusals = []
    lacking = debt + limit.request - limit.size
    if lacking > 0:
        refusals.append(
            RateDecision(
                allowed=False,
                limit=limit.per_minute,
                remaining=0,
                reset_s=reset_s,
                retry_after_s=_seconds(lacking, limit),
                source=source,
                bucket=f"{side}_rate",
                code=ErrorCode.RATE_LIMIT_EXCEEDED,
            )
        )
    if in_flight >= limit.concurrent:
        # nobody knows when a running request ends
        refusals.append(
            RateDecision(
                allowed=False,
                limit=limit.per_minute,
                remaining=0,
                reset_s=reset_s,
                retry_after_s=_CONCURRENCY_RETRY_S,
                source=source,
                bucket=f"{side}_concurrent",
                code=ErrorCode.CONCURRENCY_LIMIT_EXCEEDED,
            )
        )
    return refusals


def _seconds(drops: int, limit: Limit) -> int:
    """Whole seconds, rounded up, until `drops` have refilled."""
    return -(-drops // (limit.refill * _SECOND_US))


def _bounded(value: int) -> int:
    return min(max(1, value), RATE_MAX)


def key_bucket(key_id: str) -> str:
    """The bucket of an API key; its id is public (safe in logs), so operators find it by grep."""
    return f"key:{key_id}"


@lru_cache(maxsize=8192)
def address_bucket(address: str) -> str:
    """The bucket of a client address, named by 80 bits of SHA-256 under a label of ours.

    No address stands in clear in Redis; who holds all buckets can still try all IPv4 addresses, so this is a
    pseudonym, not anonymity. An IPv6 client is its /64: that is the least one site holds (RFC 6177), and it could
    otherwise take a new address for each request.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        text = address
    else:
        text = parsed.compressed
        if isinstance(parsed, IPv6Address):
            text = IPv6Address(int(parsed) >> 64 << 64).compressed + "/64"
    return (
        "address:" + sha256(b"secure-llm-proxy rate_limit address\x00" + text.encode(errors="replace")).hexdigest()[:20]
    )
