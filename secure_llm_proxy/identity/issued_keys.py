"""API keys as operators handle them: made, listed, changed, rotated, quarantined, revoked.

Every function takes the session of a transaction that its caller owns, returns frozen values and never commits. Errors,
cursors and versions are those of `organisations.py`. A key is meant by its public part or its `key_…` id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypedDict

from sqlalchemy import ColumnElement, Select, and_, func, not_, select
from sqlalchemy.orm import Session, aliased

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import ConflictError, OperatorError
from secure_llm_proxy.foundation.identifiers import KeyId, OrganisationId, ProjectId, UserId
from secure_llm_proxy.foundation.secret_values import key_mark
from secure_llm_proxy.identity.api_keys import DrawnKey, KeyKind, Kid, digest_of, draw_api_key
from secure_llm_proxy.identity.key_rules import (
    checked_addresses,
    checked_agents,
    checked_burst,
    checked_concurrent,
    checked_kind,
    checked_models,
    checked_rate,
    checked_scopes,
    checked_tokens_max,
    objection_to,
)
from secure_llm_proxy.identity.models import ApiKeyRow, ProjectRow, UserRow
from secure_llm_proxy.identity.names import Role, checked_name, default_project_of, shown
from secure_llm_proxy.identity.organisations import checked_page
from secure_llm_proxy.identity.rows import (
    advance,
    api_key_row,
    held_keys,
    held_user,
    keys_and_users,
    project_row,
    require_version,
    revoke_rows,
    user_row,
)
from secure_llm_proxy.settings import IdentitySettings

OVERLAP_S_DEFAULT = 24 * 3600
OVERLAP_S_MAX = 7 * 24 * 3600
_REASON_LENGTH_MAX = 200


class KeyStatus(StrEnum):
    """The first that holds, in this order."""

    REVOKED = "revoked"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What may be known of a key. `kid` is its public part; None in a list or limit means: nothing of its own.

    `organisation_id` is its user's, and its project's. `rotated_from` is the id of the key that it replaces.
    """

    id: KeyId
    kid: Kid
    kind: KeyKind
    user_id: UserId
    username: str
    organisation_id: OrganisationId
    project_id: ProjectId
    name: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    requests_per_minute: int | None
    burst: int | None
    concurrent: int | None
    tokens_max: int | None
    allowed_addresses: tuple[str, ...] | None
    allowed_agents: tuple[str, ...] | None
    rotated_from: KeyId | None
    version: int
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    quarantined_at: datetime | None
    quarantine_reason: str | None
    last_used_at: datetime | None

    def status(self, now: datetime) -> KeyStatus:
        if self.revoked_at is not None:
            return KeyStatus.REVOKED
        if self.expires_at <= now:
            return KeyStatus.EXPIRED
        return KeyStatus.QUARANTINED if self.quarantined_at is not None else KeyStatus.ACTIVE


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key just made. `secret` is the whole key and exists here only. `changed` are public parts of other keys that
    changed with it, to be announced.
    """

    api_key: ApiKey
    secret: str = field(repr=False)
    changed: tuple[Kid, ...] = ()


class KeyChanges(TypedDict, total=False):
    """What is to change; what is left out stays. None takes a limit or list away."""

    name: str
    scopes: Sequence[str]
    models: Sequence[str] | None
    requests_per_minute: int | None
    burst: int | None
    concurrent: int | None
    tokens_max: int | None
    allowed_addresses: Sequence[str] | None
    allowed_agents: Sequence[str] | None


class ApiKeys:
    """The keys of this deployment. `pepper` guards them, 32 bytes derived from SECRET_KEY; those stored under a previous one
    are recognised too.
    """

    def __init__(
        self, settings: IdentitySettings, clock: Clock, *, pepper: bytes, previous_peppers: Sequence[bytes] = ()
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pepper = pepper
        self._previous_peppers = tuple(previous_peppers)
        self._mark = key_mark(pepper)

    def create_api_key(
        self,
        session: Session,
        *,
        username: str,
        name: str,
        kind: str = KeyKind.LIVE,
        project: str | None = None,
        expires_days: int | None = None,
        scopes: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        requests_per_minute: int | None = None,
        burst: int | None = None,
        concurrent: int | None = None,
        tokens_max: int | None = None,
        allowed_addresses: Sequence[str] | None = None,
        allowed_agents: Sequence[str] | None = None,
        drawn: DrawnKey | None = None,
    ) -> IssuedKey:
        """A key that works at once. `drawn` lets the caller record its `kid` before it exists, and is of that `kind`.

        Defaults: the first project of the user's organisation, the settings' days to live, every scope that the role
        gives, every model, the project's or deployment's limits. `username` may be an id, `project` is an id or a name.
        """
        kind = checked_kind(kind)
        drawn = drawn or draw_api_key(kind)
        if drawn.kind is not kind:
            raise AssertionError("a key was drawn of another kind than it is made")
        # The user's row is held, so that two commands at once can't pass the limit together.
        user = user_row(session, username, hold=True)
        _require_active(user)
        role = Role(user.role)
        # Another organisation's project is none that exists.
        place = project_row(
            session, project or default_project_of(user.organisation_id), organisation_id=user.organisation_id
        )
        now = self._clock.now()
        row = ApiKeyRow(
            id=drawn.id,
            kid=drawn.kid,
            kind=kind,
            user_id=user.id,
            project_id=place.id,
            name=checked_name(name),
            digest=digest_of(self._pepper, drawn.secret),
            pepper=self._mark,
            scopes=checked_scopes(scopes, kind, role),
            models=checked_models(models),
            requests_per_minute=checked_rate(requests_per_minute),
            burst=checked_burst(burst),
            concurrent=checked_concurrent(concurrent),
            tokens_max=checked_tokens_max(tokens_max),
            allowed_addresses=checked_addresses(allowed_addresses),
            allowed_agents=checked_agents(allowed_agents),
            version=1,
            created_at=now,
            expires_at=now + timedelta(days=self._checked_days(expires_days)),
        )
        _require_allowed(session, user, row, place)
        _require_open(place)
        self._check_key_count(session, user, now)
        row.user = user
        session.add(row)
        session.flush()
        return IssuedKey(_api_key(row), drawn.secret)

    def list_api_keys(
        self,
        session: Session,
        username: str | None = None,
        *,
        after: str | None = None,
        limit: int | None = None,
        organisation_id: str | None = None,
        project_id: str | None = None,
        status: str | None = None,
        kind: str | None = None,
    ) -> list[ApiKey]:
        """In the order of ids, which is that of their making. `username` may be an id; `status` is as of now."""
        which: list[ColumnElement[bool]] = []
        if username is not None:
            which.append(ApiKeyRow.user_id == user_row(session, username).id)
        if after is not None:
            which.append(ApiKeyRow.id > after)
        if organisation_id is not None:
            which.append(ApiKeyRow.user.has(UserRow.organisation_id == organisation_id))
        if project_id is not None:
            which.append(ApiKeyRow.project_id == project_id)
        if kind is not None:
            which.append(ApiKeyRow.kind == checked_kind(kind))
        if status is not None:
            which.append(_has_status(_checked_status(status), self._clock.now()))
        wanted = keys_and_users().where(*which).order_by(ApiKeyRow.id).limit(checked_page(limit))
        return [_api_key(row) for row in session.scalars(wanted)]

    def find_api_key(self, session: Session, reference: str) -> ApiKey:
        """By public part (8 characters) or `key_…` id. Raises `OperatorError`, also when given a whole key."""
        return _api_key(api_key_row(session, reference))

    def update_api_key(
        self, session: Session, reference: str, changes: KeyChanges, *, version: int | None = None
    ) -> ApiKey:
        """Name, scopes, models, limits and lists may change; kind, user, project and life may not. A dead key stays."""
        user, row, _ = _held_with_user(session, reference)
        require_version(row, version)
        if row.revoked_at is not None:
            raise ConflictError(f"{row.kid} is revoked; nothing about it can change any more.")
        wanted: dict[str, object] = {}
        if "name" in changes:
            wanted["name"] = checked_name(changes["name"])
        if "scopes" in changes:
            wanted["scopes"] = checked_scopes(changes["scopes"], KeyKind(row.kind), Role(user.role))
        if "models" in changes:
            wanted["models"] = checked_models(changes["models"])
        if "requests_per_minute" in changes:
            wanted["requests_per_minute"] = checked_rate(changes["requests_per_minute"])
        if "burst" in changes:
            wanted["burst"] = checked_burst(changes["burst"])
        if "concurrent" in changes:
            wanted["concurrent"] = checked_concurrent(changes["concurrent"])
        if "tokens_max" in changes:
            wanted["tokens_max"] = checked_tokens_max(changes["tokens_max"])
        if "allowed_addresses" in changes:
            wanted["allowed_addresses"] = checked_addresses(changes["allowed_addresses"])
        if "allowed_agents" in changes:
            wanted["allowed_agents"] = checked_agents(changes["allowed_agents"])
        differing = {column: value for column, value in wanted.items() if getattr(row, column) != value}
        if differing:
            for column, value in differing.items():
                setattr(row, column, value)
            if "scopes" in differing:
                with session.no_autoflush:
                    _require_allowed(session, user, row, session.get_one(ProjectRow, row.project_id))
            advance(row, self._clock.now())
            session.flush()
        return _api_key(row)

    def rotate_api_key(
        self,
        session: Session,
        reference: str,
        *,
        overlap_s: int = OVERLAP_S_DEFAULT,
        expires_days: int | None = None,
        version: int | None = None,
        drawn: DrawnKey | None = None,
    ) -> IssuedKey:
        """A successor with the same properties and, unless `expires_days` says otherwise, as long a life.

        The old key is good for `overlap_s` more at most; 0 revokes it at once. Of one line two keys work at most: the
        overlap of the key before the old one ends now. A key that has a successor already, or is not active, can't be
        rotated.
        """
        if not 0 <= overlap_s <= OVERLAP_S_MAX:
            raise OperatorError(f"Two keys overlap for 0 to {OVERLAP_S_MAX // 3600} hours.")
        user, old, before = _held_with_user(session, reference)
        require_version(old, version)
        now = self._clock.now()
        if (status := _api_key(old).status(now)) is not KeyStatus.ACTIVE:
            raise ConflictError(f"{old.kid} is {status}; make a new key instead of rotating it.")
        successor = session.scalar(_living_successor(old.id))
        if successor is not None:
            raise ConflictError(f"{old.kid} was rotated already, to {successor}; rotate or revoke that one.")
        _require_active(user)
        place = session.get_one(ProjectRow, old.project_id)
        _require_allowed(session, user, old, place)
        _require_open(place)
        life = min(old.expires_at - old.created_at, timedelta(days=self._settings.key_days_max))
        if expires_days is not None:
            life = timedelta(days=self._checked_days(expires_days))
        drawn = drawn or draw_api_key(KeyKind(old.kind))
        if drawn.kind != old.kind:
            raise AssertionError("a successor was drawn of another kind than the key before it")
        row = ApiKeyRow(
            id=drawn.id,
            kid=drawn.kid,
            kind=old.kind,
            user=user,
            project_id=old.project_id,
            name=old.name,
            digest=digest_of(self._pepper, drawn.secret),
            pepper=self._mark,
            scopes=old.scopes,
            models=old.models,
            requests_per_minute=old.requests_per_minute,
            burst=old.burst,
            concurrent=old.concurrent,
            tokens_max=old.tokens_max,
            allowed_addresses=old.allowed_addresses,
            allowed_agents=old.allowed_agents,
            rotated_from=old.id,
            version=1,
            created_at=now,
            expires_at=now + life,
        )
        session.add(row)
        ended = revoke_rows([] if before is None or before.expires_at <= now else [before], now)
        if overlap_s:
            old.expires_at = min(old.expires_at, now + timedelta(seconds=overlap_s))
            advance(old, now)
        else:
            revoke_rows([old], now)
        session.flush()
        return IssuedKey(_api_key(row), drawn.secret, (Kid(old.kid), *ended))

    def quarantine_api_key(
        self, session: Session, reference: str, reason: str, *, version: int | None = None
    ) -> ApiKey:
        """The key is refused from now on, until it is released. Doing so twice keeps the first moment and reason."""
        row = api_key_row(session, reference, hold=True)
        require_version(row, version)
        if row.revoked_at is not None:
            raise ConflictError(f"{row.kid} is revoked already.")
        if row.quarantined_at is None:
            row.quarantined_at, row.quarantine_reason = self._clock.now(), checked_reason(reason)
            advance(row, row.quarantined_at)
            session.flush()
        return _api_key(row)

    def release_api_key(self, session: Session, reference: str, *, version: int | None = None) -> ApiKey:
        """A quarantined key works again. Releasing one that is not quarantined changes nothing."""
        row = api_key_row(session, reference, hold=True)
        require_version(row, version)
        if row.revoked_at is not None:
            raise ConflictError(f"{row.kid} is revoked for ever.")
        if row.quarantined_at is not None:
            row.quarantined_at = row.quarantine_reason = None
            advance(row, self._clock.now())
            session.flush()
        return _api_key(row)

    def revoke_api_key(self, session: Session, reference: str, *, version: int | None = None) -> ApiKey:
        """The key is refused from now on, for ever. Revoking twice keeps the first moment."""
        row = api_key_row(session, reference, hold=True)
        require_version(row, version)
        if row.revoked_at is None:
            revoke_rows([row], self._clock.now())
            session.flush()
        return _api_key(row)

    def recognised(self, session: Session, credentials: Sequence[str]) -> dict[str, ApiKey]:
        """Which of these whole keys are of this deployment, by the key: known by all of it, not by its public part."""
        peppers = (self._pepper, *self._previous_peppers)
        digests = {digest_of(pepper, credential): credential for pepper in peppers for credential in credentials}
        if not digests:
            return {}
        kids = [credential.split("_", 3)[2] for credential in credentials]
        rows = session.scalars(keys_and_users().where(ApiKeyRow.kid.in_(kids)))
        return {digests[row.digest]: _api_key(row) for row in rows if row.digest in digests}

    def _check_key_count(self, session: Session, user: UserRow, now: datetime) -> None:
        """A key whose successor works already is on its way out and does not count."""
        successor = aliased(ApiKeyRow)
        is_replaced = (
            select(successor.id)
            .where(successor.rotated_from == ApiKeyRow.id, successor.revoked_at.is_(None), successor.expires_at > now)
            .exists()
        )
        active = session.scalar(
            select(func.count())
            .select_from(ApiKeyRow)
            .where(
                ApiKeyRow.user_id == user.id, ApiKeyRow.revoked_at.is_(None), ApiKeyRow.expires_at > now, ~is_replaced
            )
        )
        if (active or 0) >= self._settings.keys_per_user_max:
            raise ConflictError(
                f"{shown(user.username)} has {active} active API keys already, the most allowed "
                "(MAX_API_KEYS_PER_USER); revoke one first."
            )

    def _checked_days(self, days: int | None) -> int:
        longest = self._settings.key_days_max
        if days is None:
            return min(self._settings.key_days_default, longest)
        if not 1 <= days <= longest:
            raise OperatorError(f"A key lives 1 to {longest} days (API_KEY_EXPIRY_DAYS_MAX), not {days}.")
        return days


def checked_reason(reason: str) -> str:
    """A reason as it may stand in a table: printable, 1 to 200 characters."""
    text = reason.strip()
    if not 1 <= len(text) <= _REASON_LENGTH_MAX or not text.isprintable():
        raise OperatorError(f"A reason has 1 to {_REASON_LENGTH_MAX} printable characters.")
    return text


def _held_with_user(session: Session, reference: str) -> tuple[UserRow, ApiKeyRow, ApiKeyRow | None]:
    """The user, the key, and the key that it replaced if there is one: all held, the user first, as everywhere."""
    seen = api_key_row(session, reference)
    user = held_user(session, seen.user_id)
    rows = {row.id: row for row in held_keys(session, ApiKeyRow.id.in_((seen.id, seen.rotated_from)))}
    return user, rows[seen.id], rows.get(seen.rotated_from or "")


def _require_active(user: UserRow) -> None:
    if user.status != "active":
        raise ConflictError(f"The account {shown(user.username)} is {user.status}; unlock it before it gets a key.")


def _require_open(project: ProjectRow) -> None:
    if project.status != "active":
        raise ConflictError(f"The project {shown(project.name)} is inactive; make it active before it gets a key.")


def _require_allowed(session: Session, user: UserRow, row: ApiKeyRow, project: ProjectRow) -> None:
    objection = objection_to(session, user, kind=row.kind, scopes=row.scopes, project=project)
    if objection is not None:
        raise ConflictError(objection)


def _living_successor(key_id: str) -> Select[str]:
    return select(ApiKeyRow.kid).where(ApiKeyRow.rotated_from == key_id, ApiKeyRow.revoked_at.is_(None)).limit(1)


def _checked_status(status: str) -> KeyStatus:
    try:
        return KeyStatus(status)
    except ValueError:
        raise OperatorError(f"There is no status {shown(status)}; use one of: {', '.join(KeyStatus)}.") from None


def _has_status(status: KeyStatus, now: datetime) -> ColumnElement[bool]:
    is_revoked, is_expired = ApiKeyRow.revoked_at.is_not(None), ApiKeyRow.expires_at <= now
    is_quarantined = ApiKeyRow.quarantined_at.is_not(None)
    match status:
        case KeyStatus.REVOKED:
            return is_revoked
        case KeyStatus.EXPIRED:
            return and_(not_(is_revoked), is_expired)
        case KeyStatus.QUARANTINED:
            return and_(not_(is_revoked), not_(is_expired), is_quarantined)
        case KeyStatus.ACTIVE:
            return and_(not_(is_revoked), not_(is_expired), not_(is_quarantined))


def _api_key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=KeyId(row.id),
        kid=Kid(row.kid),
        kind=KeyKind(row.kind),
        user_id=UserId(row.user_id),
        username=row.user.username,
        organisation_id=OrganisationId(row.user.organisation_id),
        project_id=ProjectId(row.project_id),
        name=row.name,
        scopes=tuple(row.scopes),
        models=_tuple(row.models),
        requests_per_minute=row.requests_per_minute,
        burst=row.burst,
        concurrent=row.concurrent,
        tokens_max=row.tokens_max,
        allowed_addresses=_tuple(row.allowed_addresses),
        allowed_agents=_tuple(row.allowed_agents),
        rotated_from=None if row.rotated_from is None else KeyId(row.rotated_from),
        version=row.version,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        quarantined_at=row.quarantined_at,
        quarantine_reason=row.quarantine_reason,
        last_used_at=row.last_used_at,
    )


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
