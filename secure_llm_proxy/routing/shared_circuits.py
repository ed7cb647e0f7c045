"""Circuits told among workers through Redis, so that what one has learned by failures costs the others none.

Nothing here stands in a request's way: one greenlet tells what this worker's circuits did, another listens, and looks every
few seconds at what it may have missed. Redis away: each worker knows what it met itself. Who can write to Redis can have
models left alone, for eight times CIRCUIT_OPEN_S at most each time.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Iterator
from queue import Full, Queue

import gevent
import redis

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import InvalidRequest
from secure_llm_proxy.routing.circuits import CircuitKey, Circuits
from secure_llm_proxy.settings import RedisSettings

log = logging.getLogger(__name__)

CHANNEL = "slp:circuits:changes"
KEY = "slp:circuits:open"
_TIMEOUT_S = 2.0
_LOOK_S = 5.0
# A connection that died without a word is noticed after this long.
_SILENCE_MAX_S = 15.0
_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.1, 5.0
_WAITING_MAX = 1000
_NAME_MAX = 256
_MS = 1000
# Times are Redis' own, so that hosts need not agree about theirs. ARGV: field, milliseconds (0: closed), message.
_TELL = f"""
local now = redis.call('TIME')
local ms = tonumber(ARGV[2])
if ms > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], now[1] * 1000 + math.floor(now[2] / 1000) + ms)
  redis.call('PEXPIRE', KEYS[1], 3600000)
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return redis.call('PUBLISH', '{CHANNEL}', ARGV[3])
"""
_LOOK = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local found = redis.call('HGETALL', KEYS[1])
local open = {}
for at = 1, #found, 2 do
  local left = tonumber(found[at + 1]) - ms
  if left > 0 then
    open[#open + 1] = found[at]
    open[#open + 1] = left
  else
    redis.call('HDEL', KEYS[1], found[at])
  end
end
return open
"""


class SharedCircuits:
    """Keeps `circuits` and those of the other workers together. `tell` and `listen` run for ever, each in its greenlet."""

    def __init__(self, settings: RedisSettings, circuits: Circuits) -> None:
        self._url = settings.connection_url() or ""
        self._circuits = circuits
        self._mine = secrets.token_hex(8)
        self._waiting: Queue[tuple[CircuitKey, float]] = Queue(_WAITING_MAX)
        # When this worker's own newest change of each circuit was told, or given up, by the monotonic clock; infinity: not yet.
        self._told_s: dict[CircuitKey, float] = {}
        circuits.on_change = self._changed

    def tell(self) -> None:
        """Tell each change as it happens. What can't be told is not told: the others meet it themselves."""
        while True:
            key, for_s = self._waiting.get()
            field = strict_json.dumps(list(key))
            message = strict_json.dumps([self._mine, *key, round(for_s * _MS)])
            try:
                with self._connection() as connection:
                    connection.eval(_TELL, 1, KEY, field, str(round(for_s * _MS)), message)
            except (redis.RedisError, OSError, ValueError) as error:
                log.warning(
                    "a circuit was not told to the other workers",
                    extra={"provider": key.provider, "cause": type(error).__name__},
                )
            if not any(key == later for later, _ in self._waiting.queue):
                self._told_s[key] = time.monotonic()

    def listen(self) -> None:
        """Heed what other workers tell. A lost connection is made again after 0.1 to 5 s."""
        backoff_s = _BACKOFF_MIN_S
        while True:
            try:
                for message in self._heard():
                    backoff_s = _BACKOFF_MIN_S
                    if message is not None:
                        self._heed(message)
            except (redis.RedisError, OSError, ValueError) as error:
                log.warning("listening for circuits was interrupted", extra={"cause": type(error).__name__})
            except Exception:
                log.exception("listening for circuits failed")
            gevent.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    def _changed(self, key: CircuitKey, for_s: float) -> None:
        try:
            self._waiting.put_nowait((key, for_s))
            if len(self._told_s) >= _WAITING_MAX:
                # Redis has been away for long, and nobody looks.
                self._told_s.clear()
            self._told_s[key] = math.inf
        except Full:
            log.warning("too many circuits change for all of them to be told")

    def _connection(self) -> redis.Redis:
        return redis.Redis.from_url(
            self._url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, socket_keepalive=True
        )

    def _heard(self) -> Iterator[bytes | None]:
        """Every message as it comes, None when a second passed without one. Raises when Redis falls silent."""
        with self._connection() as connection, connection.pubsub() as subscription:
            subscription.subscribe(CHANNEL)
            heard_s, looked_s = time.monotonic(), float("-inf")
            while True:
                message = subscription.get_message(timeout=1.0)
                now_s = time.monotonic()
                if message is not None:
                    heard_s = now_s
                if now_s - heard_s > _SILENCE_MAX_S:
                    raise redis.TimeoutError("no answer to pings")
                if now_s - looked_s > _LOOK_S:
                    self._look(connection)
                    subscription.ping()
                    looked_s = now_s
                data = message["data"] if message is not None and message["type"] == "message" else None
                yield data if isinstance(data, bytes) else None

    def _look(self, connection: redis.Redis) -> None:
        """What is open by now, whoever said so, and when. Of what this worker changed itself meanwhile, or has not told yet, it
        knows more than Redis did.
        """
        began_s = time.monotonic()
        found = connection.eval(_LOOK, 1, KEY)
        own = {key for key, told_s in self._told_s.items() if told_s >= began_s}
        self._told_s = {key: self._told_s[key] for key in own}
        if not isinstance(found, list):
            return
        for field, left_ms in zip(found[::2], found[1::2], strict=False):
            key = _key_of(_parts(field))
            if key is not None and key not in own and isinstance(left_ms, int):
                self._circuits.opened_elsewhere(key, left_ms / _MS)

    def _heed(self, message: bytes) -> None:
        parts = _parts(message)
        key = _key_of(parts[1:3])
        if len(parts) != 4 or key is None or parts[0] == self._mine:  # noqa: PLR2004  who, provider, model, how long
            return
        left_ms = parts[3]
        if isinstance(left_ms, int) and not isinstance(left_ms, bool) and left_ms > 0:
            self._circuits.opened_elsewhere(key, left_ms / _MS)
        elif left_ms == 0:
            self._circuits.closed_elsewhere(key)


def _parts(data: object) -> list[strict_json.JsonValue]:
    """What was told, [] for what is none of ours."""
    if not isinstance(data, bytes):
        return []
    try:
        parts = strict_json.loads(data)
    except InvalidRequest:
        return []
    return parts if isinstance(parts, list) else []


def _key_of(parts: list[strict_json.JsonValue]) -> CircuitKey | None:
    if len(parts) != len(CircuitKey._fields):
        return None
    provider, model = parts
    if not isinstance(provider, str) or not isinstance(model, str):
        return None
    return CircuitKey(provider, model) if max(len(provider), len(model)) <= _NAME_MAX else None
