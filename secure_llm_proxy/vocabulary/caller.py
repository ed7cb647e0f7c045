"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class RateClass:
    """Limits of one bucket: `requests` per `window_s` seconds refill it, `burst` is its size, `concurrent` bounds what is
    in flight.
    """

    requests: int
    burst: int
    concurrent: int
    window_s: int = 60


@dataclass(frozen=True, slots=True)
class Caller:
    """An identified caller. `key_id` is the public part of the key, safe in logs. `models` None means every model."""

    user_id: str
    key_id: str
    role: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None
    requests_per_minute: int | None = None
    expires_at: datetime | None = None


ANONYMOUS_KEY_ID = "anonymous"
SCOPE_CHAT = "chat"
SCOPE_MODELS = "models"
