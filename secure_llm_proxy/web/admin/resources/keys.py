"""API keys: an administrator's view of everybody's in reach, and each person's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import Field, StrictInt, StringConstraints
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import OperatorError, PermissionDenied
from secure_llm_proxy.identity import (
    OVERLAP_S_DEFAULT,
    OVERLAP_S_MAX,
    ROLE_PERMISSIONS,
    ApiKey,
    IssuedKey,
    KeyChanges,
    KeyKind,
    KeyStatus,
    Permission,
    draw_api_key,
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
from secure_llm_proxy.web.admin.resources.users import touchable_user, user_in_reach

Outcome = TypeVar("Outcome")

Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Names = Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=200)]], Field(max_length=100)]
Positive = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)]
Days = Annotated[StrictInt, Field(ge=1, le=365)]
_InQuery = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,64}$")]


class KeyTold(Told):
    """A key without its secret. null in a list or limit: nothing of its own."""

    id: str
    kid: str
    kind: KeyKind
    status: KeyStatus
    user_id: str
    username: str
    organisation_id: str
    project_id: str
    name: str
    scopes: list[str]
    models: list[str] | None
    requests_per_minute: int | None
    burst: int | None
    concurrent: int | None
    tokens_max: int | None
    allowed_addresses: list[str] | None
    allowed_agents: list[str] | None
    rotated_from: str | None
    version: int
    created_at: Moment
    expires_at: Moment
    revoked_at: Moment | None
    quarantined_at: Moment | None
    quarantine_reason: str | None
    last_used_at: Moment | None


class KeyQuery(PageQuery):
    user_id: _InQuery | None = None
    project_id: _InQuery | None = None
    status: KeyStatus | None = None
    kind: KeyKind | None = None


class OwnKeyQuery(PageQuery):
    status: KeyStatus | None = None


class KeyPage(Told):
    items: list[KeyTold]
    next_cursor: str | None


class Limits(Body):
    models: Names | None = None
    requests_per_minute: Positive | None = None
    burst: Positive | None = None
    concurrent: Positive | None = None
    tokens_max: Positive | None = None
    allowed_addresses: Names | None = None
    allowed_agents: Names | None = None


class NewOwnKey(Limits):
    name: Name
    kind: KeyKind = KeyKind.LIVE
    project_id: Identifier | None = None
    expires_days: Days | None = None
    scopes: Names | None = None


class NewKey(NewOwnKey):
    user_id: Identifier


class KeyChange(Versioned, Limits):
    """What is left out stays; null takes a limit or list away."""

    name: Name | None = None
    scopes: Names | None = None


class Rotation(Versioned):
    overlap_s: Annotated[StrictInt, Field(ge=0, le=OVERLAP_S_MAX)] = OVERLAP_S_DEFAULT
    expires_days: Days | None = None


class Quarantine(Versioned):
    reason: Reason


class NewKeyTold(Told):
    """`key` is the whole key, shown here only."""

    api_key: KeyTold
    key: str
    status: Literal["success"] = "success"


def list_keys(call: Call, asked: KeyQuery) -> KeyPage:
    def find(session: Session) -> list[ApiKey]:
        if asked.user_id is not None:
            user_in_reach(call, session, asked.user_id)
        return call.house.keys.list_api_keys(
            session,
            asked.user_id,
            after=asked.after(),
            limit=asked.limit + 1,
            organisation_id=call.actor.reach,
            project_id=asked.project_id,
            status=asked.status,
            kind=asked.kind,
        )

    return _page(call, call.read(find), asked.limit)


def read_key(call: Call, _asked: Nothing) -> KeyTold:
    return _told(call, call.read(lambda session: _in_reach(call, session)))


def create_key(call: Call, asked: NewKey) -> NewKeyTold:
    return _create(call, asked, asked.user_id)


def update_key(call: Call, asked: KeyChange) -> KeyTold:
    changes = _changes(asked)
    version = call.expected_version(asked)
    # Which limits change is told; a list of networks or a name may tell more than that, so values are sealed.
    clear: dict[str, ClearValue] = {"fields": ",".join(sorted(changes))}

    def update(session: Session, key: ApiKey) -> ApiKey:
        return call.house.keys.update_api_key(session, key.id, changes, version=version)

    return _told(call, _changed(call, "key.update", asked, _touchable, update, clear, {"changes": dict(changes)}))


def rotate_key(call: Call, asked: Rotation) -> NewKeyTold:
    return _rotate(call, asked, _touchable)


def quarantine_key(call: Call, asked: Quarantine) -> KeyTold:
    version = call.expected_version(asked)

    def quarantine(session: Session, key: ApiKey) -> ApiKey:
        return call.house.keys.quarantine_api_key(session, key.id, asked.reason, version=version)

    return _told(call, _changed(call, "key.quarantine", asked, _touchable, quarantine, body={"reason": asked.reason}))


def release_key(call: Call, asked: Versioned) -> KeyTold:
    version = call.expected_version(asked)

    def release(session: Session, key: ApiKey) -> ApiKey:
        return call.house.keys.release_api_key(session, key.id, version=version)

    return _told(call, _changed(call, "key.release", asked, _touchable, release))


def revoke_key(call: Call, _asked: Nothing) -> KeyTold:
    return _revoke(call, _touchable)


def list_own_keys(call: Call, asked: OwnKeyQuery) -> KeyPage:
    found = call.read(
        lambda session: call.house.keys.list_api_keys(
            session, call.actor.user_id, after=asked.after(), limit=asked.limit + 1, status=asked.status
        )
    )
    return _page(call, found, asked.limit)


def create_own_key(call: Call, asked: NewOwnKey) -> NewKeyTold:
    """Its rates are the project's or the deployment's: only who manages keys sets others."""
    rates = (asked.requests_per_minute, asked.burst, asked.concurrent)
    if any(rate is not None for rate in rates) and not call.actor.may(Permission.KEYS_MANAGE):
        raise PermissionDenied("The rates of a key are set by who manages keys; leave them out.")
    return _create(call, asked, call.actor.user_id)


def rotate_own_key(call: Call, asked: Rotation) -> NewKeyTold:
    return _rotate(call, asked, _own)


def revoke_own_key(call: Call, _asked: Nothing) -> KeyTold:
    return _revoke(call, _own)


Chosen = Callable[[Call, Session], ApiKey]


def _create(call: Call, asked: NewOwnKey, user_id: str) -> NewKeyTold:
    # Drawn before it exists, so that the intent names it.
    drawn = draw_api_key(asked.kind)
    call.read(lambda session: _require_may_hold(call, session, user_id, asked.kind))

    def create(session: Session) -> IssuedKey:
        _require_may_hold(call, session, user_id, asked.kind)
        return call.house.keys.create_api_key(
            session,
            username=user_id,
            name=asked.name,
            kind=asked.kind,
            project=asked.project_id,
            expires_days=asked.expires_days,
            scopes=asked.scopes,
            models=asked.models,
            requests_per_minute=asked.requests_per_minute,
            burst=asked.burst,
            concurrent=asked.concurrent,
            tokens_max=asked.tokens_max,
            allowed_addresses=asked.allowed_addresses,
            allowed_agents=asked.allowed_agents,
            drawn=drawn,
        )

    issued = call.change(
        "key.create",
        drawn.kid,
        create,
        clear={"user": user_id, "key_id": drawn.id, "kind": asked.kind},
        body={"name": asked.name},
    )
    return _issued(call, issued)


def _rotate(call: Call, asked: Rotation, chosen: Chosen) -> NewKeyTold:
    before = call.read(lambda session: chosen(call, session))
    call.read(lambda session: _require_may_hold(call, session, before.user_id, before.kind))
    drawn = draw_api_key(before.kind)
    version = call.expected_version(asked)

    def rotate(session: Session, key: ApiKey) -> IssuedKey:
        return call.house.keys.rotate_api_key(
            session, key.id, overlap_s=asked.overlap_s, expires_days=asked.expires_days, version=version, drawn=drawn
        )

    clear: dict[str, ClearValue] = {"successor": drawn.kid, "overlap_s": asked.overlap_s}
    return _issued(call, _changed(call, "key.rotate", asked, chosen, rotate, clear))


def _revoke(call: Call, chosen: Chosen) -> KeyTold:
    def revoke(session: Session, key: ApiKey) -> ApiKey:
        return call.house.keys.revoke_api_key(session, key.id, version=call.if_match)

    return _told(call, _changed(call, "key.revoke", None, chosen, revoke))


def _changed(
    call: Call,
    action: str,
    asked: Versioned | None,
    chosen: Chosen,
    work: Callable[[Session, ApiKey], Outcome],
    clear: dict[str, ClearValue] | None = None,
    body: dict[str, object] | None = None,
) -> Outcome:
    """As `users._changed`; then workers ask again about the key."""
    before = call.read(lambda session: chosen(call, session))
    call.require_version(asked, before.version)
    outcome = call.change(
        action,
        before.kid,
        lambda session: work(session, chosen(call, session)),
        clear={"user": before.user_id, "key_id": before.id, **(clear or {})},
        body=body,
    )
    call.announce((before.kid,))
    return outcome


def _in_reach(call: Call, session: Session) -> ApiKey:
    reference = call.path["key_id"]
    try:
        key = call.house.keys.find_api_key(session, reference)
    except OperatorError:
        raise foreign() from None
    if call.actor.reach not in {None, key.organisation_id}:
        raise foreign()
    return key


def _touchable(call: Call, session: Session) -> ApiKey:
    key = _in_reach(call, session)
    if key.user_id != call.actor.user_id:
        touchable_user(call, session, key.user_id)
    return key


def _own(call: Call, session: Session) -> ApiKey:
    key = _in_reach(call, session)
    if key.user_id != call.actor.user_id:
        raise foreign()
    return key


def _require_may_hold(call: Call, session: Session, user_id: str, kind: KeyKind) -> None:
    """Raises unless the actor may be shown a new key of that user: of an administration key the actor must have every right
    that comes with it, or a key would give what the role does not.
    """
    if user_id == call.actor.user_id:
        return
    user = touchable_user(call, session, user_id)
    if kind is KeyKind.ADM and not ROLE_PERMISSIONS[user.role] <= ROLE_PERMISSIONS[call.actor.role]:
        raise may_not_touch()


def _changes(asked: KeyChange) -> KeyChanges:
    """What the client sent, null included; what it left out is not in it. A name and scopes can't be taken away."""
    given = asked.model_dump(include=asked.model_fields_set - {"version"})
    changes = KeyChanges()
    if asked.name is not None:
        changes["name"] = asked.name
    if asked.scopes is not None:
        changes["scopes"] = asked.scopes
    for name in Limits.model_fields:
        if name in given:
            changes[name] = given[name]  # type: ignore[literal-required]  # the fields of both are the same, by a test
    return changes


def _page(call: Call, found: list[ApiKey], limit: int) -> KeyPage:
    items, cursor = page_of(found, limit)
    return KeyPage(items=[_told(call, key) for key in items], next_cursor=cursor)


def _told(call: Call, key: ApiKey) -> KeyTold:
    now = call.house.clock.now()
    told = {name: getattr(key, name) for name in KeyTold.model_fields if name != "status"}
    return KeyTold.model_validate({**told, "status": key.status(now)})


def _issued(call: Call, issued: IssuedKey) -> NewKeyTold:
    call.announce(issued.changed)
    return NewKeyTold(api_key=_told(call, issued.api_key), key=issued.secret)


ENDPOINTS: dict[str, Endpoint] = {
    "list_keys": endpoint(list_keys, KeyQuery, KeyPage, also=(404,)),
    "read_key": endpoint(read_key, Nothing, KeyTold),
    "create_key": endpoint(create_key, NewKey, NewKeyTold, status=201, conflicts=True, also=(404,)),
    "update_key": endpoint(update_key, KeyChange, KeyTold, conflicts=True, versioned=True),
    "rotate_key": endpoint(rotate_key, Rotation, NewKeyTold, status=201, conflicts=True, versioned=True),
    "quarantine_key": endpoint(quarantine_key, Quarantine, KeyTold, conflicts=True, versioned=True),
    "release_key": endpoint(release_key, Versioned, KeyTold, conflicts=True, versioned=True),
    "revoke_key": endpoint(revoke_key, Nothing, KeyTold, conflicts=True, versioned=True),
    "list_own_keys": endpoint(list_own_keys, OwnKeyQuery, KeyPage),
    "create_own_key": endpoint(create_own_key, NewOwnKey, NewKeyTold, status=201, conflicts=True, also=(404,)),
    "rotate_own_key": endpoint(rotate_own_key, Rotation, NewKeyTold, status=201, conflicts=True, versioned=True),
    "revoke_own_key": endpoint(revoke_own_key, Nothing, KeyTold, conflicts=True, versioned=True),
}
