"""Users of the actor's organisation; an owner's are all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import NotFoundError
from secure_llm_proxy.foundation.identifiers import new_user_id
from secure_llm_proxy.identity import (
    ROLE_PERMISSIONS,
    ChangedUser,
    OneTimeToken,
    Role,
    User,
    UserChanges,
    UserStatus,
    may_act_on,
)
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.web.admin.frame import (
    Body,
    Call,
    Endpoint,
    Identifier,
    Moment,
    Nothing,
    Told,
    Versioned,
    endpoint,
    foreign,
    may_not_touch,
)
from secure_llm_proxy.web.admin.paging import PageQuery, page_of

Outcome = TypeVar("Outcome")

Username = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Email = Annotated[str, StringConstraints(min_length=3, max_length=254)]


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
    name_prefix: Username | None = None


class UserPage(Told):
    items: list[UserTold]
    next_cursor: str | None


class NewUser(Body):
    username: Username
    email: Email
    role: Role = Role.MEMBER
    organisation_id: Identifier | None = Field(default=None, description="Left out: the actor's own.")
    mfa_required: bool = Field(default=False, description="A second factor even where the role asks for none.")


class UserChange(Versioned):
    email: Email | None = None
    role: Role | None = None
    organisation_id: Identifier | None = Field(default=None, description="For owners only.")


class UserWithToken(Told):
    """`setup_token` is shown here only; with it the user sets a password at POST /auth/setup."""

    user: UserTold
    setup_token: str
    setup_token_expires_at: Moment


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


def create_user(call: Call, asked: NewUser) -> UserWithToken:
    accounts, user_id = call.house.accounts, new_user_id()
    organisation_id = asked.organisation_id or call.actor.organisation_id
    _require_may_give(call, asked.role)
    call.read(lambda session: require_organisation(call, session, organisation_id))

    def create(session: Session) -> OneTimeToken:
        require_organisation(call, session, organisation_id)
        accounts.create_user(
            session,
            username=asked.username,
            email=asked.email,
            role=asked.role,
            user_id=user_id,
            organisation=organisation_id,
            mfa_required=asked.mfa_required,
        )
        return accounts.start_setup(session, user_id)

    token = call.change(
        "user.create",
        user_id,
        create,
        clear={"role": asked.role, "org": organisation_id},
        body={"username": asked.username, "email": asked.email},
    )
    return _with_token(token)


def update_user(call: Call, asked: UserChange) -> UserTold:
    changes: UserChanges = {}
    clear: dict[str, ClearValue] = {}
    if asked.email is not None:
        changes["email"] = asked.email
    if asked.role is not None:
        _require_may_give(call, asked.role)
        changes["role"] = clear["role"] = asked.role
    if asked.organisation_id is not None:
        organisation_id = asked.organisation_id
        call.read(lambda session: require_organisation(call, session, organisation_id))
        changes["organisation"] = clear["org"] = organisation_id
    version = call.expected_version(asked)

    def update(session: Session, user: User) -> ChangedUser:
        return call.house.accounts.update_user(session, user.id, changes, version=version)

    changed = _changed(call, "user.update", asked, update, clear, {"email": asked.email})
    call.announce(changed.revoked)
    return UserTold.model_validate(changed.user)


def lock_user(call: Call, asked: Versioned) -> UserTold:
    version = call.expected_version(asked)

    def lock(session: Session, user: User) -> User:
        return call.house.accounts.lock_user(session, user.id, version=version)

    return _told(call, _changed(call, "user.lock", asked, lock))


def unlock_user(call: Call, asked: Versioned) -> UserTold:
    version = call.expected_version(asked)

    def unlock(session: Session, user: User) -> User:
        unlocked = call.house.accounts.unlock_user(session, user.id, version=version)
        call.house.sign_in.forget_troubles(session, unlocked)
        return unlocked

    return _told(call, _changed(call, "user.unlock", asked, unlock))


def disable_user(call: Call, _asked: Nothing) -> UserTold:
    def disable(session: Session, user: User) -> ChangedUser:
        return call.house.accounts.disable_user(session, user.id, version=call.if_match)

    changed = _changed(call, "user.disable", None, disable)
    call.announce(changed.revoked)
    return UserTold.model_validate(changed.user)


def reset_password(call: Call, asked: Versioned) -> UserWithToken:
    def reset(session: Session, user: User) -> OneTimeToken:
        _require_may_give(call, user.role)
        call.require_version(asked, user.version)
        return call.house.accounts.start_password_reset(session, user.id)

    user_id = call.path["user_id"]
    _require_may_give(call, call.read(lambda session: touchable_user(call, session, user_id)).role)
    return _with_token(_changed(call, "user.password_reset", asked, reset))


def user_in_reach(call: Call, session: Session, user_id: str) -> User:
    """Raises `NotFound` for one who is not there, and for one of another organisation."""
    try:
        user = call.house.accounts.find_user(session, user_id)
    except NotFoundError:
        raise foreign() from None
    # By id only: a name that looks like one is somebody else.
    if user.id != user_id or call.actor.reach not in {None, user.organisation_id}:
        raise foreign()
    return user


def touchable_user(call: Call, session: Session, user_id: str) -> User:
    """The user in reach whom the actor may change. Raises `PermissionDenied` for one of higher rank."""
    user = user_in_reach(call, session, user_id)
    _require_rank(call, user.role)
    return user


def require_organisation(call: Call, session: Session, organisation_id: str) -> None:
    """Raises `NotFound` for an organisation that is not there or not in reach."""
    try:
        found = call.house.organisations.find_organisation(session, organisation_id)
    except NotFoundError:
        raise foreign() from None
    if found.id != organisation_id or call.actor.reach not in {None, found.id}:
        raise foreign()


def _require_rank(call: Call, role: Role) -> None:
    if not may_act_on(call.actor.role, role):
        raise may_not_touch()


def _require_may_give(call: Call, role: Role) -> None:
    """Whoever is shown the token of an account, or makes one what it is, must not gain a right by it."""
    _require_rank(call, role)
    if not ROLE_PERMISSIONS[role] <= ROLE_PERMISSIONS[call.actor.role]:
        raise may_not_touch()


def _changed(
    call: Call,
    action: str,
    asked: Versioned | None,
    work: Callable[[Session, User], Outcome],
    clear: dict[str, ClearValue] | None = None,
    body: dict[str, object] | None = None,
) -> Outcome:
    """What can be refused is refused before it is recorded; and asked again where it is done, since time has passed."""
    user_id = call.path["user_id"]
    before = call.read(lambda session: touchable_user(call, session, user_id))
    call.require_version(asked, before.version)
    return call.change(
        action,
        user_id,
        lambda session: work(session, touchable_user(call, session, user_id)),
        clear=clear,
        body={"username": before.username, **(body or {})},
    )


def _told(call: Call, user: User) -> UserTold:
    """After a change that matters to all keys of the user: workers ask again about each."""
    keys = call.read(lambda session: call.house.keys.list_api_keys(session, user.id, status="active"))
    call.announce(key.kid for key in keys)
    return UserTold.model_validate(user)


def _with_token(token: OneTimeToken) -> UserWithToken:
    return UserWithToken(
        user=UserTold.model_validate(token.user),
        setup_token=token.secret,
        setup_token_expires_at=token.expires_at,
    )


ENDPOINTS: dict[str, Endpoint] = {
    "list_users": endpoint(list_users, UserQuery, UserPage),
    "read_user": endpoint(read_user, Nothing, UserTold),
    "create_user": endpoint(create_user, NewUser, UserWithToken, status=201, conflicts=True, also=(404,)),
    "update_user": endpoint(update_user, UserChange, UserTold, conflicts=True, versioned=True),
    "lock_user": endpoint(lock_user, Versioned, UserTold, conflicts=True, versioned=True),
    "unlock_user": endpoint(unlock_user, Versioned, UserTold, conflicts=True, versioned=True),
    "disable_user": endpoint(disable_user, Nothing, UserTold, conflicts=True, versioned=True),
    "reset_password": endpoint(reset_password, Versioned, UserWithToken, conflicts=True, versioned=True),
}
