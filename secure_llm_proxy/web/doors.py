"""Every endpoint with its guard, one line each. An endpoint that is not in this table answers 403."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from secure_llm_proxy.identity import Permission
from secure_llm_proxy.web.admin.operations import OPERATIONS, PREFIX
from secure_llm_proxy.web.answers import Answer
from secure_llm_proxy.web.anthropic.door import create_message
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.chat.door import answer_prompt
from secure_llm_proxy.web.openai.door import create_chat_completion
from secure_llm_proxy.web.openai.embeddings_door import create_embeddings
from secure_llm_proxy.web.openai.responses_door import create_response


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
    AUTH = "auth"
    """Anyone whom the address lists let in; few requests per address: logging in."""
    SESSION = "session"
    """Whoever has logged in, about themselves."""
    MANAGEMENT = "management"
    """Whoever has logged in, or an administration key, with the door's permission."""

    @property
    def is_managements(self) -> bool:
        """These doors are the management application's (`admin.app`), the others the data plane's."""
        return self in {Guard.AUTH, Guard.SESSION, Guard.MANAGEMENT}


@dataclass(frozen=True, slots=True)
class Door:
    """`endpoint` is Flask's name of the view, `path` as Flask writes it.

    `hot` is what the view calls, for a door that is also answered before Flask (`hot_doors`); its path is fixed.
    `permission` is asked for by `Guard.MANAGEMENT`; None: whoever has logged in. `step_up`: the second factor must have been
    shown in the last five minutes. `pending`: open also to a session that owes its second factor still.
    """

    method: str
    path: str
    endpoint: str
    guard: Guard
    hot: Callable[[Arrival], Answer] | None = None
    permission: Permission | None = None
    step_up: bool = False
    pending: bool = False


DOORS: tuple[Door, ...] = (
    Door("POST", "/chat", "chat.answer", Guard.CORRIDOR, hot=answer_prompt),
    Door("POST", "/v1/chat/completions", "openai.create_chat_completion", Guard.CORRIDOR, hot=create_chat_completion),
    Door("POST", "/v1/completions", "openai.create_completion", Guard.CORRIDOR),
    Door("POST", "/v1/embeddings", "openai.create_embeddings", Guard.CORRIDOR, hot=create_embeddings),
    Door("POST", "/v1/responses", "openai.create_response", Guard.CORRIDOR, hot=create_response),
    Door("GET", "/v1/responses/<response>", "openai.retrieve_response", Guard.CORRIDOR),
    Door("POST", "/v1/messages", "anthropic.create_message", Guard.CORRIDOR, hot=create_message),
    Door("POST", "/v1/messages/count_tokens", "anthropic.count_tokens", Guard.CORRIDOR),
    Door("GET", "/v1/models", "openai.list_models", Guard.CORRIDOR),
    Door("GET", "/v1/models/<path:model>", "openai.retrieve_model", Guard.CORRIDOR),
    Door("GET", "/health", "operations.health", Guard.OPEN),
    Door("GET", "/api/health", "operations.api_health", Guard.OPEN),
    Door("GET", "/health/live", "operations.live", Guard.OPEN),
    Door("GET", "/health/ready", "operations.ready", Guard.OPEN),
    Door("GET", "/security/status", "operations.security_status", Guard.INTERNAL),
    Door("GET", "/metrics", "operations.metrics", Guard.METRICS),
    Door("POST", "/auth/login", "auth.login", Guard.AUTH),
    Door("POST", "/auth/mfa", "auth.second_factor", Guard.AUTH),
    Door("POST", "/auth/setup", "auth.set_up", Guard.AUTH),
    Door("POST", "/auth/mfa/enrol", "auth.begin_enrolment", Guard.SESSION, pending=True),
    Door("POST", "/auth/mfa/confirm", "auth.confirm_enrolment", Guard.SESSION, pending=True),
    Door("POST", "/auth/mfa/recovery-codes", "auth.renew_recovery_codes", Guard.SESSION, step_up=True),
    Door("POST", "/auth/mfa/step-up", "auth.step_up", Guard.SESSION),
    Door("POST", "/auth/password", "auth.change_password", Guard.SESSION),
    Door("POST", "/auth/logout", "auth.logout", Guard.SESSION, pending=True),
    Door("GET", "/auth/csrf", "auth.csrf", Guard.SESSION),
    Door("GET", "/auth/me", "auth.me", Guard.SESSION),
    Door("GET", "/auth/sessions", "auth.list_sessions", Guard.SESSION),
    Door("DELETE", "/auth/sessions/<session_id>", "auth.end_session", Guard.SESSION),
    Door("GET", "/audit/export", "auditor.export", Guard.MANAGEMENT, permission=Permission.AUDIT_READ),
    Door("GET", "/audit/report", "auditor.report", Guard.MANAGEMENT, permission=Permission.AUDIT_READ),
    Door("POST", "/audit/validate", "auditor.validate_record", Guard.MANAGEMENT, permission=Permission.AUDIT_READ),
    *(
        Door(
            operation.method,
            PREFIX + operation.path,
            operation.endpoint,
            Guard.MANAGEMENT,
            permission=operation.permission,
            step_up=operation.step_up,
        )
        for operation in OPERATIONS
    ),
)

DOOR_OF: dict[str, Door] = {door.endpoint: door for door in DOORS}
GUARDS: dict[str, Guard] = {door.endpoint: door.guard for door in DOORS}
