"""Who is asking."""

from __future__ import annotations

from typing import Literal

from secure_llm_proxy.identity import Permission, Role
from secure_llm_proxy.web.admin.frame import Call, Endpoint, Moment, Nothing, Told, endpoint


class Me(Told):
    user_id: str
    username: str
    role: Role
    organisation_id: str
    permissions: list[Permission]
    by: Literal["session", "key"]
    second_factor_at: Moment | None


def read_me(call: Call, _asked: Nothing) -> Me:
    actor = call.actor
    return Me(
        user_id=actor.user_id,
        username=actor.username,
        role=actor.role,
        organisation_id=actor.organisation_id,
        permissions=[permission for permission in Permission if actor.may(permission)],
        by="key" if actor.session is None else "session",
        second_factor_at=None if actor.session is None else actor.session.second_factor_at,
    )


ENDPOINTS: dict[str, Endpoint] = {"read_me": endpoint(read_me, Nothing, Me)}
