"""How often may management be asked? Few tries at secrets from one address, and a bound for each person.

Sliding windows of Flask-Limiter, kept in Redis where there is one. While Redis is away each worker counts by itself: neither
an outage nor without a limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from flask import Flask
from flask_limiter import Limiter, RateLimitExceeded
from flask_login import current_user
from redis import BlockingConnectionPool, RedisError

from secure_llm_proxy.foundation.errors import RateLimited
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling import address_bucket
from secure_llm_proxy.web.flask_shell import arrival_of_request

_CONNECTIONS = 8
_WINDOW_S = 60


class ManagementRates:
    def __init__(self, app: Flask, limits: ThrottlingSettings, redis: RedisSettings) -> None:
        url = redis.connection_url()
        options: dict[str, object] = {}
        if url is not None:
            options["connection_pool"] = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=redis.timeout_s,
                socket_timeout=redis.timeout_s,
                socket_connect_timeout=redis.timeout_s,
            )
        self._limiter = Limiter(
            _address,
            app=app,
            storage_uri="memory://" if url is None else "redis://",
            storage_options=options,  # type: ignore[arg-type]  # its own annotation knows texts only; `limits` takes a pool
            strategy="sliding-window-counter",
            in_memory_fallback_enabled=True,
            key_prefix="slp:management",
        )
        spend_try = self._limiter.shared_limit(f"{limits.login_requests_per_minute}/minute", scope="auth")
        spend_request = self._limiter.shared_limit(
            f"{limits.management_requests_per_minute}/minute", scope="user", key_func=_person
        )
        # A scope of its own: a page that asks with an ended session must not eat up the tries to log in again.
        spend_refusal = self._limiter.shared_limit(f"{limits.management_requests_per_minute}/minute", scope="refused")
        self._spend_try = spend_try(_nothing_to_try)
        self._spend_refusal = spend_refusal(_nothing_refused)
        self._spend_request = spend_request(_nothing_to_ask)

    def spend_try(self) -> None:
        """One of the address's tries at a secret. Raises `RateLimited`."""
        self._spend(self._spend_try)

    def spend_refusal(self) -> None:
        """One of the requests of the address that come from nobody known: each is recorded. Raises `RateLimited`."""
        self._spend(self._spend_refusal)

    def spend_request(self) -> None:
        """One of the person's requests. Raises `RateLimited`."""
        self._spend(self._spend_request)

    def _spend(self, spend: Callable[[], None]) -> None:
        try:
            spend()
        except RateLimitExceeded:
            raise RateLimited("Too many requests; slow down.", retry_after_s=self._wait_s()) from None

    def _wait_s(self) -> int:
        """Whole seconds until the window has moved on; a whole window when Redis left just now."""
        limit = self._limiter.current_limit
        try:
            # Both are rounded away from each other, which may be a second more than the window.
            return _WINDOW_S if limit is None else min(max(1, limit.reset_at - int(time.time())), _WINDOW_S)
        except (RedisError, OSError):
            return _WINDOW_S


def _address() -> str:
    """A pseudonym, as everywhere in Redis; of IPv6 the /64, whose addresses one client can change at will."""
    return address_bucket(arrival_of_request().address)


def _person() -> str:
    return str(current_user.get_id())


def _nothing_to_try() -> None:
    """Flask-Limiter counts calls of this."""


def _nothing_refused() -> None:
    """Flask-Limiter counts calls of this."""


def _nothing_to_ask() -> None:
    """Flask-Limiter counts calls of this."""
