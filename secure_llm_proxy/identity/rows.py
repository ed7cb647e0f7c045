"""Rows by what operators call them. `hold` keeps a row against other changes until the transaction ends.

Rows are held in one order everywhere (owners, the user, the project, keys by their public part), and changed only when all
are held, so that no two transactions wait for each other crosswise: the triggers lock the revision with the first change.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TypeVar

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session, joinedload

from secure_llm_proxy.foundation.errors import ConflictError, NotFoundError, OperatorError, StaleError
from secure_llm_proxy.identity.api_keys import Kid, is_kid, kid_of
from secure_llm_proxy.identity.models import (
    ApiKeyRow,
    OrganisationRow,
    ProjectMemberRow,
    ProjectRow,
    UserRow,
)
from secure_llm_proxy.identity.names import Role, is_user_id, normalised_name, normalised_username, shown

Versioned = TypeVar("Versioned", OrganisationRow, ProjectRow, UserRow, ApiKeyRow)
Row = TypeVar("Row", OrganisationRow, ProjectRow, UserRow, ApiKeyRow)


def organisation_row(session: Session, reference: str, *, hold: bool = False) -> OrganisationRow:
    """By `org_…` id or name. Raises `NotFoundError`."""
    row = _first(
        session, select(OrganisationRow), OrganisationRow, OrganisationRow.id == reference.strip(), hold=hold
    ) or _first(
        session,
        select(OrganisationRow),
        OrganisationRow,
        OrganisationRow.name_normalised == normalised_name(reference),
        hold=hold,
    )
    if row is None:
        raise NotFoundError(f"There is no organisation {shown(reference)}; organisations list shows which exist.")
    return row


def project_row(
    session: Session, reference: str, *, organisation_id: str | None = None, hold: bool = False
) -> ProjectRow:
    """By `prj_…` id or name. Raises `NotFoundError`, and `ConflictError` when several organisations have that name."""
    wanted = select(ProjectRow)
    if organisation_id is not None:
        wanted = wanted.where(ProjectRow.organisation_id == organisation_id)
    row = _first(session, wanted, ProjectRow, ProjectRow.id == reference.strip(), hold=hold)
    if row is not None:
        return row
    named = wanted.where(ProjectRow.name_normalised == normalised_name(reference)).order_by(ProjectRow.id).limit(2)
    rows = session.scalars(_held(named, ProjectRow) if hold else named).all()
    if not rows:
        raise NotFoundError(f"There is no project {shown(reference)}; projects list shows which exist.")
    if len(rows) > 1:
        raise ConflictError(f"Several organisations have a project {shown(reference)}; name it by its prj_… id.")
    return rows[0]


def user_row(session: Session, reference: str, *, hold: bool = False) -> UserRow:
    """By `usr_…` id, or by name, however it is written. Raises `NotFoundError`."""
    which = (
        UserRow.id == reference.strip()
        if is_user_id(reference.strip())
        else UserRow.username_normalised == normalised_username(reference)
    )
    row = _first(session, select(UserRow), UserRow, which, hold=hold)
    if row is None:
        raise NotFoundError(f"There is no user {shown(reference)}; list-users shows who exists.")
    return row


def api_key_row(session: Session, reference: str, *, hold: bool = False) -> ApiKeyRow:
    """By public part (8 characters) or `key_…` id. Raises `NotFoundError`, and `OperatorError` when given a whole key."""
    reference = reference.strip()
    if (kid := kid_of(reference)) is not None:
        # A whole key in an argument stands in the process list and the shell's history: say so, and take the kid only.
        raise OperatorError(
            f"That is a whole API key, which should not be typed into a command; give its public part: {kid}"
        )
    row = _first(
        session,
        keys_and_users(),
        ApiKeyRow,
        ApiKeyRow.kid == reference if is_kid(reference) else ApiKeyRow.id == reference,
        hold=hold,
    )
    if row is None:
        raise NotFoundError(f"There is no API key {_harmless(reference)}; list-api-keys shows which exist.")
    return row


def keys_and_users() -> Select[ApiKeyRow]:
    return select(ApiKeyRow).options(joinedload(ApiKeyRow.user, innerjoin=True))


def held_user(session: Session, user_id: str) -> UserRow:
    return session.scalars(_held(select(UserRow).where(UserRow.id == user_id), UserRow)).one()


def held_keys(session: Session, *which: ColumnElement[bool]) -> list[ApiKeyRow]:
    """The keys that are meant, held."""
    wanted = keys_and_users().where(*which).order_by(ApiKeyRow.kid)
    return list(session.scalars(_held(wanted, ApiKeyRow)))


def held_owners(session: Session) -> set[str]:
    """Ids of the active owners, none of whom ceases to be one before the transaction ends."""
    wanted = select(UserRow).where(UserRow.role == Role.OWNER, UserRow.status == "active").order_by(UserRow.id)
    return {row.id for row in session.scalars(_held(wanted, UserRow))}


def require_version(row: Versioned, version: int | None) -> None:
    """The change that follows is made to what its maker saw. Raises `StaleError` when that is another version by now."""
    if version is not None and row.version != version:
        raise StaleError(
            f"Somebody else has changed it: it is at version {row.version}, not {version}. Read it again, then decide."
        )


def advance(row: Versioned, now: datetime) -> None:
    row.version += 1
    if not isinstance(row, ApiKeyRow):
        row.updated_at = now


def revoke_rows(rows: Iterable[ApiKeyRow], now: datetime) -> tuple[Kid, ...]:
    """Held keys are revoked, but for those that are already; the public parts of the others, to be announced."""
    revoked = []
    for row in rows:
        if row.revoked_at is None:
            row.revoked_at = now
            advance(row, now)
            revoked.append(Kid(row.kid))
    return tuple(revoked)


def is_member(session: Session, project_id: str, user_id: str) -> bool:
    return session.get(ProjectMemberRow, (project_id, user_id)) is not None


def _first(
    session: Session, wanted: Select[Row], table: type[Row], which: ColumnElement[bool], *, hold: bool
) -> Row | None:
    wanted = wanted.where(which)
    return session.scalar(_held(wanted, table) if hold else wanted)


def _held(wanted: Select[Row], table: type[Row]) -> Select[Row]:
    # What was read before the wait may have changed since. New keys of a held user or project need not wait.
    return wanted.with_for_update(of=table, key_share=True).execution_options(populate_existing=True)


def _harmless(reference: str) -> str:
    """A mistyped whole key is still most of a secret, so what looks like one is not repeated."""
    return "of that form" if reference.startswith("slp_") else shown(reference)
