"""Users of the actor's organisation; an owner's are all."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import NotFoundError
from secure_llm_proxy.identity import Role, User, UserStatus
from secure_llm_proxy.web.admin.frame import Call, Endpoint, Moment, Nothing, Told, endpoint, foreign
from secure_llm_proxy.web.admin.paging import PageQuery, page_of


class UserTold(Told):
    id: str
    username: str
    email: str
    role: Role
    status: UserStatus
    organisation_id: str
    has_password: bool
    mfa_required: bool
    version: int
    created_at: Moment
    updated_at: Moment


class UserQuery(PageQuery):
    role: Role | None = None
    status: UserStatus | None = None
    name_prefix: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None


class UserPage(Told):
    items: list[UserTold]
    next_cursor: str | None


def list_users(call: Call, asked: UserQuery) -> UserPage:
    found = call.read(
        lambda session: call.house.accounts.list_users(
            session,
            after=asked.after(),
            limit=asked.limit + 1,
            organisation_id=call.actor.reach,
            role=asked.role,
            status=asked.status,
            name_prefix=asked.name_prefix,
        )
    )
    items, cursor = page_of(found, asked.limit)
    return UserPage(items=[UserTold.model_validate(user) for user in items], next_cursor=cursor)


def read_user(call: Call, _asked: Nothing) -> UserTold:
    return UserTold.model_validate(call.read(lambda session: user_in_reach(call, session, call.path["user_id"])))


def user_in_reach(call: Call, session: Session, user_id: str) -> User:
    """Raises `NotFound` for one who is not there, and for one of another organisation."""
    try:
        user = call.house.accounts.find_user(session, user_id)
    except NotFoundError:
        raise foreign() from None
    if user.id != user_id or call.actor.reach not in {None, user.organisation_id}:
        raise foreign()
    return user


ENDPOINTS: dict[str, Endpoint] = {
    "list_users": endpoint(list_users, UserQuery, UserPage),
    "read_user": endpoint(read_user, Nothing, UserTold),
}
