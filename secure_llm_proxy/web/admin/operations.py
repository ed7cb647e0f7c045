"""Every operation of the management API, one line each: doors, views and the OpenAPI document are made of this table.

It names permissions and no code, so that the guard's table costs no import. `name` is the key in `ENDPOINTS` of the module
`resources.<resource>`, which is loaded when the management API is asked for the first time.
"""

from __future__ import annotations

from dataclasses import dataclass

from secure_llm_proxy.identity import Permission

PREFIX = "/api/v1"


@dataclass(frozen=True, slots=True)
class Operation:
    """`path` stands below `PREFIX`, as Flask writes it. `permission` None: whoever has logged in.

    `step_up`: the second factor must have been shown in the last five minutes.
    """

    method: str
    path: str
    resource: str
    name: str
    permission: Permission | None
    summary: str
    step_up: bool = False

    @property
    def endpoint(self) -> str:
        """Flask's name of the view."""
        return f"management.{self.name}"


OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/openapi.json", "document", "read_document", None, "This document"),
    Operation("GET", "/me", "me", "read_me", None, "Who is asking, and what they may do"),
    Operation("GET", "/users", "users", "list_users", Permission.USERS_READ, "Users, oldest first"),
    Operation("GET", "/users/<user_id>", "users", "read_user", Permission.USERS_READ, "One user"),
    Operation(
        "GET", "/sessions", "sessions", "list_sessions", Permission.SESSIONS_READ, "Sessions that have not ended"
    ),
    Operation(
        "DELETE", "/sessions/<session_id>", "sessions", "end_session", Permission.SESSIONS_MANAGE, "End a session"
    ),
)
