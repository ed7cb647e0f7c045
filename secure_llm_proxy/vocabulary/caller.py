"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

KIND_LIVE = "live"
KIND_TEST = "test"
KIND_ADMINISTRATION = "adm"
KIND_SESSION = "session"


@dataclass(frozen=True, slots=True)
class RateClass:
    """Limits of one bucket: `requests` per `window_s` seconds refill it, `burst` is its size, `concurrent` bounds what is
    in flight.
    """

    requests: int
    burst: int
    concurrent: int
    window_s: int = 60


class Caller(NamedTuple):
    """An identified caller, and what its key is bound to.

    `key_id` is the public part of the key, safe in logs. `kind` is the key's (`live`, `test`, `adm`), or `session` for a
    person who has logged in; then `key_id` is the session's id. `models` None means every model, `allowed_addresses` and
    `allowed_agents` None whoever may use the proxy, a rate, burst or concurrency of None the deployment's
    (`requests_per_minute` is the key's own or else its project's), `tokens_max` None whatever is asked for.

    A tuple, because whoever has very many keys in use makes one for most requests: a frozen dataclass takes 1.5 µs.
    """

    user_id: str
    key_id: str
    role: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None
    requests_per_minute: int | None = None
    expires_at: datetime | None = None
    project_id: str = ""
    organisation_id: str = ""
    kind: str = KIND_LIVE
    burst: int | None = None
    concurrent: int | None = None
    tokens_max: int | None = None
    allowed_addresses: tuple[str, ...] | None = None
    allowed_agents: tuple[str, ...] | None = None


ANONYMOUS_KEY_ID = "anonymous"
SCOPE_CHAT = "chat"
SCOPE_MODELS = "models"
