"""Organisations, their projects and who belongs to those.

Every function takes the session of a transaction that its caller owns, returns frozen values and never commits. What is
wrong is told by one family of errors (`foundation.errors`), whose sentences commands and the management API show alike:
`NotFoundError` (404), `ConflictError` (409: a name is taken, it is inactive), `StaleError` (412: `version` is given and no
longer the one that stands there) and plain `OperatorError` (400: a value that can't be).

Lists come in the order of ids. `after` is the id of the last one seen and `limit` how many are wanted at most: what stood
there when the first page was read is told exactly once, whatever is added meanwhile at most once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypedDict

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import ConflictError, NotFoundError, OperatorError
from secure_llm_proxy.foundation.identifiers import (
    OrganisationId,
    ProjectId,
    UserId,
    new_organisation_id,
    new_project_id,
)
from secure_llm_proxy.identity.api_keys import Kid
from secure_llm_proxy.identity.key_rules import checked_rate, needs_membership
from secure_llm_proxy.identity.models import ApiKeyRow, OrganisationRow, ProjectMemberRow, ProjectRow, UserRow
from secure_llm_proxy.identity.names import (
    Role,
    checked_unique_name,
    default_project_of,
    normalised_name,
    shown,
)
from secure_llm_proxy.identity.rows import (
    advance,
    held_keys,
    organisation_row,
    project_row,
    require_version,
    revoke_rows,
    user_row,
)

_FIRST_PROJECT = "Default"


class ProjectStatus(StrEnum):
    ACTIVE = "active"
    INACTIVE = "inactive"


@dataclass(frozen=True, slots=True)
class Organisation:
    id: OrganisationId
    name: str
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Project:
    """`requests_per_minute` is of its keys that have no rate of their own; None: the deployment's."""

    id: ProjectId
    organisation_id: OrganisationId
    name: str
    status: ProjectStatus
    requests_per_minute: int | None
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Member:
    project_id: ProjectId
    user_id: UserId
    username: str
    role: Role
    member_since: datetime


class ProjectChanges(TypedDict, total=False):
    """What is to change; what is left out stays."""

    name: str
    status: str
    requests_per_minute: int | None


class Organisations:
    """Organisations, projects and members of this deployment."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def create_organisation(
        self, session: Session, *, name: str, organisation_id: OrganisationId | None = None
    ) -> Organisation:
        """An organisation with its first project, in which each of its users may have keys."""
        text, normalised = checked_unique_name(name, of="organisation")
        now = self._clock.now()
        row = OrganisationRow(
            id=organisation_id or new_organisation_id(),
            name=text,
            name_normalised=normalised,
            created_at=now,
            updated_at=now,
            version=1,
        )
        _require_free_organisation(session, text, normalised)
        session.add(row)
        _flush(session, _organisation_taken(text))
        self._add_project(session, row.id, ProjectId(default_project_of(row.id)), _FIRST_PROJECT, None)
        return _organisation(row)

    def find_organisation(self, session: Session, reference: str) -> Organisation:
        """By `org_…` id or name."""
        return _organisation(organisation_row(session, reference))

    def list_organisations(
        self,
        session: Session,
        *,
        after: str | None = None,
        limit: int | None = None,
        name_prefix: str | None = None,
        organisation_id: str | None = None,
    ) -> list[Organisation]:
        """`organisation_id` leaves that one only, for those who see no other."""
        which: list[ColumnElement[bool]] = []
        if after is not None:
            which.append(OrganisationRow.id > after)
        if name_prefix is not None:
            which.append(OrganisationRow.name_normalised.startswith(normalised_name(name_prefix), autoescape=True))
        if organisation_id is not None:
            which.append(OrganisationRow.id == organisation_id)
        wanted = select(OrganisationRow).where(*which).order_by(OrganisationRow.id).limit(checked_page(limit))
        return [_organisation(row) for row in session.scalars(wanted)]

    def rename_organisation(
        self, session: Session, reference: str, name: str, *, version: int | None = None
    ) -> Organisation:
        text, normalised = checked_unique_name(name, of="organisation")
        row = organisation_row(session, reference, hold=True)
        require_version(row, version)
        if row.name != text:
            if row.name_normalised != normalised:
                _require_free_organisation(session, text, normalised)
            advance(row, self._clock.now())
            row.name, row.name_normalised = text, normalised
            _flush(session, _organisation_taken(text))
        return _organisation(row)

    def create_project(
        self,
        session: Session,
        *,
        organisation: str,
        name: str,
        requests_per_minute: int | None = None,
        project_id: ProjectId | None = None,
    ) -> Project:
        """An active project without members. `organisation` is an id or a name."""
        owner = organisation_row(session, organisation)
        return _project(self._add_project(session, owner.id, project_id or new_project_id(), name, requests_per_minute))

    def find_project(self, session: Session, reference: str, *, organisation_id: str | None = None) -> Project:
        """By `prj_…` id or name. A name that several organisations use is a `ConflictError` unless one is given."""
        return _project(project_row(session, reference, organisation_id=organisation_id))

    def list_projects(
        self,
        session: Session,
        *,
        after: str | None = None,
        limit: int | None = None,
        organisation_id: str | None = None,
        name_prefix: str | None = None,
        status: str | None = None,
        member_id: str | None = None,
    ) -> list[Project]:
        """`member_id` leaves the projects of which that user is a member."""
        which: list[ColumnElement[bool]] = []
        if after is not None:
            which.append(ProjectRow.id > after)
        if organisation_id is not None:
            which.append(ProjectRow.organisation_id == organisation_id)
        if name_prefix is not None:
            which.append(ProjectRow.name_normalised.startswith(normalised_name(name_prefix), autoescape=True))
        if status is not None:
            which.append(ProjectRow.status == _checked_status(status))
        if member_id is not None:
            its_projects = select(ProjectMemberRow.project_id).where(ProjectMemberRow.user_id == member_id)
            which.append(ProjectRow.id.in_(its_projects))
        wanted = select(ProjectRow).where(*which).order_by(ProjectRow.id).limit(checked_page(limit))
        return [_project(row) for row in session.scalars(wanted)]

    def update_project(
        self, session: Session, reference: str, changes: ProjectChanges, *, version: int | None = None
    ) -> Project:
        """Rename it, set its rate, or make it inactive (all its keys are refused) and active again."""
        row = project_row(session, reference, hold=True)
        require_version(row, version)
        name, normalised = row.name, row.name_normalised
        if "name" in changes:
            name, normalised = checked_unique_name(changes["name"], of="project")
        status = _checked_status(changes.get("status", row.status))
        rate = checked_rate(changes.get("requests_per_minute", row.requests_per_minute), of="project")
        if (name, status, rate) == (row.name, row.status, row.requests_per_minute):
            return _project(row)
        if normalised != row.name_normalised:
            _require_free_project(session, row.organisation_id, name, normalised)
        advance(row, self._clock.now())
        row.name, row.name_normalised, row.status, row.requests_per_minute = name, normalised, status, rate
        _flush(session, _project_taken(name))
        return _project(row)

    def add_member(self, session: Session, project: str, user: str) -> Member:
        """That user may have keys in the project. Adding a member again changes nothing.

        Raises `ConflictError` when the two belong to different organisations, or the user has left.
        """
        member = user_row(session, user, hold=True)
        row = project_row(session, project)
        if member.organisation_id != row.organisation_id:
            raise ConflictError(f"{shown(member.username)} belongs to another organisation than {shown(row.name)}.")
        if member.status == "disabled":
            raise ConflictError(f"The account {shown(member.username)} is disabled for good.")
        link = session.get(ProjectMemberRow, (row.id, member.id))
        if link is None:
            link = ProjectMemberRow(project_id=row.id, user_id=member.id, created_at=self._clock.now())
            session.add(link)
            session.flush()
        return _member(link, member)

    def remove_member(self, session: Session, project: str, user: str) -> tuple[Kid, ...]:
        """The user is no member any more; keys that members only may have are revoked, and their public parts returned.

        Raises `NotFoundError` when the user is no member.
        """
        member = user_row(session, user, hold=True)
        row = project_row(session, project)
        link = session.get(ProjectMemberRow, (row.id, member.id))
        if link is None:
            raise NotFoundError(f"{shown(member.username)} is not a member of the project {shown(row.name)}.")
        keys = []
        if needs_membership(member, row.id):
            keys = held_keys(session, ApiKeyRow.user_id == member.id, ApiKeyRow.project_id == row.id)
        session.delete(link)
        revoked = revoke_rows(keys, self._clock.now())
        session.flush()
        return revoked

    def members(
        self, session: Session, project: str, *, after: str | None = None, limit: int | None = None
    ) -> list[Member]:
        """In the order of the users' ids; `after` is such an id."""
        row = project_row(session, project)
        wanted = (
            select(ProjectMemberRow, UserRow)
            .join(UserRow, UserRow.id == ProjectMemberRow.user_id)
            .where(ProjectMemberRow.project_id == row.id)
            .order_by(ProjectMemberRow.user_id)
            .limit(checked_page(limit))
        )
        if after is not None:
            wanted = wanted.where(ProjectMemberRow.user_id > after)
        return [_member(link, user) for link, user in session.execute(wanted)]

    def _add_project(
        self, session: Session, organisation_id: str, project_id: ProjectId, name: str, requests_per_minute: int | None
    ) -> ProjectRow:
        text, normalised = checked_unique_name(name, of="project")
        now = self._clock.now()
        row = ProjectRow(
            id=project_id,
            organisation_id=organisation_id,
            name=text,
            name_normalised=normalised,
            status=ProjectStatus.ACTIVE,
            requests_per_minute=checked_rate(requests_per_minute, of="project"),
            created_at=now,
            updated_at=now,
            version=1,
        )
        _require_free_project(session, organisation_id, text, normalised)
        session.add(row)
        _flush(session, _project_taken(text))
        return row


def checked_page(limit: int | None) -> int | None:
    """How many rows a list may give; None: all."""
    if limit is not None and limit < 1:
        raise OperatorError("A page has at least one row.")
    return limit


def _checked_status(status: str) -> ProjectStatus:
    try:
        return ProjectStatus(status)
    except ValueError:
        raise OperatorError(f"There is no status {shown(status)}; use one of: {', '.join(ProjectStatus)}.") from None


def _flush(session: Session, taken: ConflictError) -> None:
    try:
        session.flush()
    except IntegrityError as error:  # somebody else was quicker between the question and the change
        raise taken from error


def _require_free_organisation(session: Session, name: str, normalised: str) -> None:
    if session.scalar(select(OrganisationRow.id).where(OrganisationRow.name_normalised == normalised)) is not None:
        raise _organisation_taken(name)


def _require_free_project(session: Session, organisation_id: str, name: str, normalised: str) -> None:
    of_that_name = select(ProjectRow.id).where(
        ProjectRow.organisation_id == organisation_id, ProjectRow.name_normalised == normalised
    )
    if session.scalar(of_that_name) is not None:
        raise _project_taken(name)


def _organisation_taken(name: str) -> ConflictError:
    return ConflictError(f"An organisation {shown(name)} exists already; choose another name.")


def _project_taken(name: str) -> ConflictError:
    return ConflictError(f"A project {shown(name)} exists already in that organisation; choose another name.")


def _organisation(row: OrganisationRow) -> Organisation:
    return Organisation(OrganisationId(row.id), row.name, row.version, row.created_at, row.updated_at)


def _project(row: ProjectRow) -> Project:
    return Project(
        id=ProjectId(row.id),
        organisation_id=OrganisationId(row.organisation_id),
        name=row.name,
        status=ProjectStatus(row.status),
        requests_per_minute=row.requests_per_minute,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _member(link: ProjectMemberRow, user: UserRow) -> Member:
    return Member(ProjectId(link.project_id), UserId(user.id), user.username, Role(user.role), link.created_at)
