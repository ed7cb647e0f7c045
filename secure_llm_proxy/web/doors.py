"""Every endpoint with its guard, one line each. An endpoint that is not in this table answers 403."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from secure_llm_proxy.web.answers import Answer
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.chat.door import answer_prompt
from secure_llm_proxy.web.openai.door import create_chat_completion


class Guard(StrEnum):
    """Who may open a door."""

    CORRIDOR = "corridor"
    """The data plane: the corridor admits, identifies and throttles, and records refusals."""
    OPEN = "open"
    """Anyone, exempt from address and agent lists: health."""
    INTERNAL = "internal"
    """Loopback and private networks (RFC 1918, RFC 4193)."""
    METRICS = "metrics"
    """Loopback, or the bearer token METRICS_TOKEN."""


@dataclass(frozen=True, slots=True)
class Door:
    """`endpoint` is Flask's name of the view, `path` as Flask writes it.

    `hot` is what the view calls, for a door that is also answered before Flask (`hot_doors`); its path is fixed.
    """

    method: str
    path: str
    endpoint: str
    guard: Guard
    hot: Callable[[Arrival], Answer] | None = None


DOORS: tuple[Door, ...] = (
    Door("POST", "/chat", "chat.answer", Guard.CORRIDOR, hot=answer_prompt),
    Door("POST", "/v1/chat/completions", "openai.create_chat_completion", Guard.CORRIDOR, hot=create_chat_completion),
    Door("GET", "/v1/models", "openai.list_models", Guard.CORRIDOR),
    Door("GET", "/v1/models/<path:model>", "openai.retrieve_model", Guard.CORRIDOR),
    Door("GET", "/health", "operations.health", Guard.OPEN),
    Door("GET", "/api/health", "operations.api_health", Guard.OPEN),
    Door("GET", "/health/live", "operations.live", Guard.OPEN),
    Door("GET", "/health/ready", "operations.ready", Guard.OPEN),
    Door("GET", "/security/status", "operations.security_status", Guard.INTERNAL),
    Door("GET", "/metrics", "operations.metrics", Guard.METRICS),
)

GUARDS: dict[str, Guard] = {door.endpoint: door.guard for door in DOORS}
