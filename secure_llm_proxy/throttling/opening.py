"""Which throttle a configuration calls for."""

from __future__ import annotations

from collections.abc import Callable

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling.fallback import FallbackThrottle
from secure_llm_proxy.throttling.holds import Throttle
from secure_llm_proxy.throttling.process import ProcessThrottle
from secure_llm_proxy.throttling.redis_throttle import RedisThrottle
from secure_llm_proxy.throttling.shares import Shares


def open_throttle(
    settings: ThrottlingSettings,
    redis: RedisSettings,
    *,
    host_id: str,
    clock: Clock,
    on_fallback: Callable[[], None],
) -> Throttle:
    """Redis with the worker's share behind it; without a Redis URL this process alone, which one worker may be.

    Connects to nothing yet. `host_id` tells hosts apart (all workers of a host give the same); `on_fallback` is called
    for each request that was decided by the share. Raises `OperatorError` for several workers without Redis.
    """
    if redis.url is None:
        if settings.workers > 1:
            raise OperatorError(
                "More than one worker needs REDIS_URL: limits in process memory would hold per worker only."
            )
        return ProcessThrottle(settings, clock=clock)
    shares = Shares(workers=settings.workers)
    return FallbackThrottle(
        RedisThrottle(settings, redis),
        ProcessThrottle(settings, clock=clock, shares=shares, source="local_share"),
        shares,
        host_id=host_id,
        clock=clock,
        on_fallback=on_fallback,
    )
