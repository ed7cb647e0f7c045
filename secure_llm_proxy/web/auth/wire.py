"""What `/auth` takes and gives. Names are the origin's where it had them (`username`, `password`, `mfa_code`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StringConstraints

from secure_llm_proxy.identity import LiveSession, Role
from secure_llm_proxy.web.admin.frame import Body, Moment, Told

Secret = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=1024)]
Code = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]


class LoginRequest(Body):
    username: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128)]
    password: Secret = Field(repr=False)
    mfa_code: Code | None = Field(default=None, repr=False)
    recovery_code: Code | None = Field(default=None, repr=False)
    cookie: StrictBool = False
    device_token: Code | None = Field(default=None, repr=False)


class SecondFactorRequest(Body):
    pending_token: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128)] = Field(repr=False)
    mfa_code: Code | None = Field(default=None, repr=False)
    recovery_code: Code | None = Field(default=None, repr=False)
    device_token: Code | None = Field(default=None, repr=False)


class CodeRequest(Body):
    mfa_code: Code = Field(repr=False)


class PasswordRequest(Body):
    old_password: Secret = Field(repr=False)
    new_password: Secret = Field(repr=False)


class SetupRequest(Body):
    token: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=256)] = Field(repr=False)
    password: Secret = Field(repr=False)


class UserTold(Told):
    id: str
    username: str
    role: Role
    organisation_id: str


class SessionTold(Told):
    id: str
    user_id: str
    username: str
    kind: Literal["browser", "token"]
    state: Literal["pending", "active"]
    address: str
    agent: str
    created_at: Moment
    last_seen_at: Moment
    expires_at: Moment
    second_factor_at: Moment | None


def user_of(live: LiveSession) -> UserTold:
    return UserTold(id=live.user_id, username=live.username, role=live.role, organisation_id=live.organisation_id)
