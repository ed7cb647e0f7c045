"""How many violations a network has within the window: counted in this process, or in Redis by all workers together."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import redis

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.settings import RedisSettings

log = logging.getLogger(__name__)

NETWORKS_REMEMBERED = 50_000
_REDIS_PATIENCE_S = 2.0
_KEY = "violations:"
# A key lives for the window that begins with its first violation; the count and its end are made in one step.
_ADD = """
local count = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('TTL', KEYS[1]) < 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return count
"""


def violations_key(network: str) -> str:
    """Named by 80 bits of SHA-256 under a label of ours, so that no address stands in clear in Redis: a pseudonym, since
    who holds the keys can try all IPv4 addresses.
    """
    return _KEY + hashlib.sha256(f"slp:violations:{network}".encode()).hexdigest()[:20]


class Tally(Protocol):
    def add(self, violations: Mapping[str, int]) -> dict[str, int]:
        """Count so many more of each network; the counts since the window of each began. Never raises."""
        ...

    def close(self) -> None: ...


class ProcessTally:
    """In the memory of one process; beyond `networks_max` the one that violated least lately is forgotten."""

    def __init__(self, window_s: float, clock: Clock, *, networks_max: int = NETWORKS_REMEMBERED) -> None:
        self._window_s = window_s
        self._clock = clock
        self._networks_max = networks_max
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, violations: Mapping[str, int]) -> dict[str, int]:
        now_s = self._clock.monotonic_s()
        added = {}
        for network, more in violations.items():
            count, until_s = self._counts.get(network, (0, 0.0))
            if until_s <= now_s:
                count, until_s = 0, now_s + self._window_s
            added[network] = count + more
            self._counts[network] = (count + more, until_s)
            self._counts.move_to_end(network)
            if len(self._counts) > self._networks_max:
                self._counts.popitem(last=False)
        return added

    def close(self) -> None:
        """Nothing to hang up."""


class RedisTally:
    """In Redis, one key per network, which ends with its window. While Redis is away this process counts alone."""

    def __init__(
        self, settings: RedisSettings, window_s: int, alone: ProcessTally, *, patience_s: float = _REDIS_PATIENCE_S
    ) -> None:
        self._redis = redis.Redis.from_url(
            settings.connection_url() or "",
            socket_timeout=patience_s,
            socket_connect_timeout=patience_s,
            decode_responses=True,
        )
        self._window_s = window_s
        self._alone = alone
        self._away = False

    def add(self, violations: Mapping[str, int]) -> dict[str, int]:
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for network, more in violations.items():
                    pipeline.eval(_ADD, 1, violations_key(network), more, self._window_s)
                counts = pipeline.execute()
            self._away = False
            return dict(zip(violations, map(int, counts), strict=True))
        except (redis.RedisError, OSError) as error:
            if not self._away:
                log.warning("violations are counted by each worker alone", extra={"cause": type(error).__name__})
            self._away = True
            return self._alone.add(violations)

    def close(self) -> None:
        self._redis.close()
