"""Stopping a key, a user, a project, an organisation or everything at once, and letting go again.

A kill switch is one row. Its triggers note a change of every key, so each worker forgets what it remembers; what a key's
record says then includes every switch that applies to it. Nothing of the account, project or key is changed, so an unkill
leaves everything as it was. Sessions of transactions belong to the caller; nothing is committed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.identity.api_keys import is_kid, kid_of
from secure_llm_proxy.identity.models import ApiKeyRow, KillSwitchRow, OrganisationRow, ProjectRow, UserRow
from secure_llm_proxy.identity.names import normalised_username, shown

EVERYTHING = "everything"
STOPPED = "Requests like this one have been stopped by an operator."
_ID_FORM = re.compile(r"(?:key|usr|prj|org|ses)_[0-9A-Z]{26}", re.ASCII)
_REASON_LENGTH_MAX = 200
_BY_LENGTH_MAX = 100


@dataclass(frozen=True, slots=True)
class KillSubject:
    """Who can be stopped. `id` is `everything` or the id of a key, user, project or organisation; `name` is for people.

    `organisation_id` is whose it is, None for everything.
    """

    id: str
    kind: str
    name: str
    organisation_id: str | None


@dataclass(frozen=True, slots=True)
class KillSwitch:
    """Who is stopped, since when, by whom and why."""

    subject: KillSubject
    reason: str
    created_by: str
    created_at: datetime


class KillSwitches:
    """The kill switches of this deployment."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def find_subject(self, session: Session, reference: str) -> KillSubject:
        """`everything`; an id; or a key's public part, a username, or the name of a project or an organisation.

        Raises `OperatorError` when nobody or more than one is called so, and for a whole key.
        """
        text = reference.strip()
        if text.casefold() == EVERYTHING:
            return KillSubject(EVERYTHING, EVERYTHING, EVERYTHING, None)
        if (kid := kid_of(text)) is not None:
            raise OperatorError(
                f"That is a whole API key, which should not be typed into a command; give its public part: {kid}"
            )
        name = normalised_username(text)
        found = [
            *_keys(session, text, by_kid=is_kid(text)),
            *_users(session, text, name),
            *_projects(session, text, name),
            *_organisations(session, text, name),
        ]
        # An id is never taken for somebody who calls himself so.
        found = [subject for subject in found if subject.id == text] or found
        if not found:
            raise OperatorError(
                f"There is no key, user, project or organisation {_harmless(text)}; give an id, a public part or a name."
            )
        if len(found) > 1:
            choices = ", ".join(f"{subject.kind} {subject.id}" for subject in found)
            raise OperatorError(f"{shown(text)} is the name of several; give one by its id: {choices}.")
        return found[0]

    def kill(self, session: Session, subject: str, reason: str, by: str) -> KillSwitch:
        """`subject` is stopped from now on, everywhere within 5 s, running exchanges included.

        Killing twice is no error: the first moment, reason and author stay.
        """
        found = self.find_subject(session, subject)
        checked = checked_reason(reason)
        dialect = session.get_bind().dialect.name
        new_row = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(KillSwitchRow)
        if session.get(KillSwitchRow, found.id) is None:
            # Somebody else may be quicker.
            session.execute(
                new_row.values(
                    subject=found.id, reason=checked, created_by=by[:_BY_LENGTH_MAX], created_at=self._clock.now()
                ).on_conflict_do_nothing()
            )
        return _switch(session.get_one(KillSwitchRow, found.id), found)

    def find_stopped(self, session: Session, reference: str) -> KillSubject:
        """`find_subject`; a kill switch whose subject is gone is found by its id."""
        row = session.get(KillSwitchRow, reference.strip())
        return self.find_subject(session, reference) if row is None else self._subject_of(session, row.subject)

    def unkill(self, session: Session, subject: str) -> KillSwitch:
        """The switch that stopped `subject` is gone; returns what it said. Raises `OperatorError` when there was none.

        Other switches that apply to it (its user's, everything's) still do.
        """
        found = self.find_stopped(session, subject)
        removed = session.execute(
            delete(KillSwitchRow)
            .where(KillSwitchRow.subject == found.id)
            .returning(KillSwitchRow.reason, KillSwitchRow.created_by, KillSwitchRow.created_at)
        ).one_or_none()
        if removed is None:
            raise OperatorError(
                f"{shown(found.name)} is not stopped by a kill switch; kill-switches lists those that are."
            )
        return KillSwitch(found, removed.reason, removed.created_by, removed.created_at)

    def stops(self, session: Session, *subjects: str) -> bool:
        """Whether there is a switch for one of these ids."""
        stopped = select(KillSwitchRow.subject).where(KillSwitchRow.subject.in_(subjects)).limit(1)
        return session.scalar(stopped) is not None

    def listing(self, session: Session) -> list[KillSwitch]:
        """Every switch, oldest first. One whose subject is gone is listed with its id as its name."""
        rows = session.scalars(select(KillSwitchRow).order_by(KillSwitchRow.created_at, KillSwitchRow.subject)).all()
        return [_switch(row, self._subject_of(session, row.subject)) for row in rows]

    def _subject_of(self, session: Session, subject_id: str) -> KillSubject:
        try:
            return self.find_subject(session, subject_id)
        except OperatorError:
            return KillSubject(subject_id, "gone", subject_id, None)


def is_announced_subject(text: str) -> bool:
    """`everything`, or what has the form of an id."""
    return text == EVERYTHING or _ID_FORM.fullmatch(text) is not None


def checked_reason(reason: str) -> str:
    """1 to 200 printable characters. Raises `OperatorError`."""
    text = reason.strip()
    if not 1 <= len(text) <= _REASON_LENGTH_MAX or not text.isprintable():
        raise OperatorError(f"Give a reason of 1 to {_REASON_LENGTH_MAX} printable characters with --reason.")
    return text


def _keys(session: Session, text: str, *, by_kid: bool) -> list[KillSubject]:
    rows = session.execute(
        select(ApiKeyRow.id, ApiKeyRow.kid, UserRow.organisation_id)
        .join(UserRow, UserRow.id == ApiKeyRow.user_id)
        .where(ApiKeyRow.kid == text if by_kid else ApiKeyRow.id == text)
    )
    return [KillSubject(row.id, "key", row.kid, row.organisation_id) for row in rows]


def _users(session: Session, text: str, name: str) -> list[KillSubject]:
    rows = session.execute(
        select(UserRow.id, UserRow.username, UserRow.organisation_id).where(
            (UserRow.id == text) | (UserRow.username_normalised == name)
        )
    )
    return [KillSubject(row.id, "user", row.username, row.organisation_id) for row in rows]


def _projects(session: Session, text: str, name: str) -> list[KillSubject]:
    rows = session.execute(
        select(ProjectRow.id, ProjectRow.name, ProjectRow.organisation_id).where(
            (ProjectRow.id == text) | (ProjectRow.name_normalised == name)
        )
    )
    return [KillSubject(row.id, "project", row.name, row.organisation_id) for row in rows]


def _organisations(session: Session, text: str, name: str) -> list[KillSubject]:
    rows = session.execute(
        select(OrganisationRow.id, OrganisationRow.name).where(
            (OrganisationRow.id == text) | (OrganisationRow.name_normalised == name)
        )
    )
    return [KillSubject(row.id, "organisation", row.name, row.id) for row in rows]


def _harmless(reference: str) -> str:
    """A mistyped whole key is still most of a secret, so what looks like one is not repeated."""
    return "of that form" if reference.startswith("slp_") else shown(reference)


def _switch(row: KillSwitchRow, subject: KillSubject) -> KillSwitch:
    return KillSwitch(subject, row.reason, row.created_by, row.created_at)
