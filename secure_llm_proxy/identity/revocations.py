"""Revocations announced over Redis, so that every worker forgets a key at once instead of within `cache_s`.

An announcement carries the public part of a key only, or who else a change is about: an id, or `everything`. It can be
missed (Redis away, listener reconnecting): then the worker's cache age is what bounds the key's life. It can be forged by
who reaches Redis: that costs one database lookup.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import gevent
import redis

from secure_llm_proxy.identity.api_keys import is_kid
from secure_llm_proxy.identity.kill_switches import is_announced_subject
from secure_llm_proxy.settings import RedisSettings

log = logging.getLogger(__name__)

CHANNEL = "slp:revoked"
_CONNECT_TIMEOUT_S = 2.0
_PING_INTERVAL_S = 5.0
# A connection that died without a word is noticed after this long.
_SILENCE_MAX_S = 15.0
_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.1, 5.0


def announce_revocation(settings: RedisSettings, subject: str) -> bool:
    """Tell every listening worker to forget `subject` (a key's public part, an id, `everything`).

    False when there is no Redis or it does not answer. Never raises.
    """
    url = settings.connection_url()
    if url is None:
        return False
    try:
        with redis.Redis.from_url(
            url, socket_timeout=_CONNECT_TIMEOUT_S, socket_connect_timeout=_CONNECT_TIMEOUT_S
        ) as connection:
            connection.publish(CHANNEL, subject)
    except (redis.RedisError, OSError, ValueError) as error:
        log.warning(
            "revocation could not be announced, workers notice by themselves", extra={"cause": type(error).__name__}
        )
        return False
    return True


def listen_for_revocations(settings: RedisSettings, forget: Callable[[str], None]) -> None:
    """Call `forget(subject)` for every announcement, for ever; returns at once when no Redis is configured.

    For a greenlet of its own in a patched process. Never raises: a lost connection is made again after 0.1 to 5 s.
    """
    url = settings.connection_url()
    if url is None:
        return
    backoff_s = _BACKOFF_MIN_S
    while True:
        try:
            for subject in _announcements(url):
                backoff_s = _BACKOFF_MIN_S
                if subject is not None:
                    forget(subject)
        except (redis.RedisError, OSError) as error:
            log.warning("listening for revocations was interrupted", extra={"cause": type(error).__name__})
        except Exception:
            log.exception("listening for revocations failed")
        gevent.sleep(backoff_s)
        backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)


def _announcements(url: str) -> Iterator[str | None]:
    """Every announced subject as it comes, None when a second passed without one. Raises when Redis falls silent."""
    with (
        redis.Redis.from_url(
            url, socket_timeout=_CONNECT_TIMEOUT_S, socket_connect_timeout=_CONNECT_TIMEOUT_S, socket_keepalive=True
        ) as connection,
        connection.pubsub() as subscription,
    ):
        subscription.subscribe(CHANNEL)
        heard_s = pinged_s = time.monotonic()
        while True:
            message = subscription.get_message(timeout=1.0)
            now_s = time.monotonic()
            if message is not None:
                heard_s = now_s
            if now_s - heard_s > _SILENCE_MAX_S:
                raise redis.TimeoutError("no answer to pings")
            if now_s - pinged_s > _PING_INTERVAL_S:
                subscription.ping()
                pinged_s = now_s
            yield _subject_in(message)


def _subject_in(message: dict[str, object] | None) -> str | None:
    if message is None or message["type"] != "message" or not isinstance(message["data"], bytes):
        return None
    subject = message["data"].decode("ascii", "replace")
    return subject if is_kid(subject) or is_announced_subject(subject) else None
