"""Who asks at the doors of management, and what they may reach."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from flask_login import UserMixin

from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, PermissionDenied
from secure_llm_proxy.identity import LiveSession, Permission, Role, may


@dataclass(frozen=True, slots=True)
class Actor(UserMixin):  # type: ignore[misc]  # Flask-Login ships no types
    """A person by a session, or by an administration key of theirs. `by_cookie`: a browser, so CSRF counts."""

    user_id: str
    username: str
    role: Role
    organisation_id: str
    session: LiveSession | None = None
    key_id: str | None = None
    by_cookie: bool = False

    @property
    def is_pending(self) -> bool:
        """The second factor is still owed."""
        return self.session is not None and self.session.state == "pending"

    @property
    def name_in_log(self) -> str:
        return f"user:{self.user_id}"

    @property
    def reach(self) -> str | None:
        """The organisation that bounds what this person sees and touches; None: an owner, whom nothing bounds."""
        return None if self.role is Role.OWNER else self.organisation_id

    def may(self, permission: Permission) -> bool:
        return may(self.role, self.organisation_id, permission)

    def require(self, permission: Permission) -> None:
        """Raises `PermissionDenied`."""
        if not self.may(permission):
            raise PermissionDenied(f"The role {self.role} lacks the permission {permission}.")

    def require_step_up(self, now: datetime) -> None:
        """Raises `PermissionDenied(step_up_required)` unless the second factor was shown in the last five minutes.

        A key never shows one: what takes a step-up is not for tools.
        """
        if self.session is None:
            raise PermissionDenied("An administration key can't do this; log in.", code=ErrorCode.STEP_UP_REQUIRED)
        if not self.session.is_fresh(now):
            raise PermissionDenied(
                "This takes a second factor shown within the last 5 minutes.", code=ErrorCode.STEP_UP_REQUIRED
            )

    def own_session(self) -> LiveSession:
        """Raises `PermissionDenied` for a key: it has no session to speak of."""
        if self.session is None:
            raise PermissionDenied("This is for people who have logged in, not for keys.")
        return self.session

    def get_id(self) -> str:
        return self.user_id


def nobody() -> AuthenticationFailed:
    return AuthenticationFailed("You are not logged in.", code=ErrorCode.MISSING_SESSION)
