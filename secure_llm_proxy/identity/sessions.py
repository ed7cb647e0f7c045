"""Sessions: who has signed in, from where, and until when. Kept in the database in every mode.

A session's secret is shown once and kept as HMAC only. It changes at every step that gives the session more: the second
factor, a step-up, a new password (ASVS 7.2.4), and the one before is dead at once. A session ends after `SESSION_TIMEOUT`
unused (admins: `ADMIN_SESSION_TIMEOUT`), after `SESSION_ABSOLUTE_S` in any case, and with every change of what its user is
or proves himself by (ASVS 7.4.2, 7.4.3).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Row, Select, delete, or_, select, update
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode
from secure_llm_proxy.foundation.identifiers import UserId, ulid
from secure_llm_proxy.foundation.secret_values import key_mark
from secure_llm_proxy.identity.api_keys import random_base62
from secure_llm_proxy.identity.models import (
    KnownDeviceRow,
    LoginTroubleRow,
    SessionRow,
    SetupTokenRow,
    UserRow,
)
from secure_llm_proxy.identity.names import Role
from secure_llm_proxy.settings import IdentitySettings

SESSION_PREFIX = "slp_sess_"
# 43 base62 characters hold 256 bits.
_SECRET_LENGTH = 43
_FORM = re.compile(r"slp_sess_[0-9A-Za-z]{43}", re.ASCII)
# What is still owed must come soon: an app is looked at, or set up.
PENDING_S = 600
# ASVS 7.5.3: how recently a second factor must have been shown for what is dangerous.
FRESH_S = 300
_TOUCH_S = 60
_AGENT_MAX = 200
_ADDRESS_MAX = 45
_REASON_MAX = 40
# Beyond them the ones unused for longest end (ASVS 7.1.2).
_SESSIONS_PER_USER_MAX = 20
_KEPT = timedelta(days=1)
_LONG_KEPT = timedelta(days=90)
_FEW_FAILURES = 10

SessionKind = Literal["browser", "token"]
SessionState = Literal["pending", "active"]


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A session that is good at this moment. `pending`: its user still owes a second factor, and may do nothing else."""

    id: str
    user_id: UserId
    username: str
    role: Role
    organisation_id: str
    kind: SessionKind
    state: SessionState
    address: str
    agent: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    second_factor_at: datetime | None
    digest: bytes = field(default=b"", repr=False)

    def is_fresh(self, now: datetime) -> bool:
        """Whether a second factor was shown within the last 5 minutes (step-up)."""
        return self.second_factor_at is not None and now - self.second_factor_at <= timedelta(seconds=FRESH_S)


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session that was opened, or got a new secret. `secret` exists here only."""

    session: LiveSession
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CleanUp:
    """How many rows that nothing needs any more were deleted."""

    sessions: int
    setup_tokens: int
    login_troubles: int
    known_devices: int


class Sessions:
    """Sessions of this deployment. `pepper` is 32 bytes derived from SECRET_KEY; sessions opened under a previous one go on
    until they end by themselves.
    """

    def __init__(
        self, settings: IdentitySettings, clock: Clock, *, pepper: bytes, previous_peppers: Sequence[bytes] = ()
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pepper = pepper
        self._previous_peppers = tuple(previous_peppers)
        self._mark = key_mark(pepper)

    def open(
        self,
        session: Session,
        user_id: str,
        *,
        kind: SessionKind,
        state: SessionState,
        address: str,
        agent: str,
        second_factor_at: datetime | None,
    ) -> OpenedSession:
        """A new session. Of more than 20 of one user and state those that were unused for longest end."""
        _hold_user(session, user_id)
        now = self._clock.now()
        secret = SESSION_PREFIX + random_base62(_SECRET_LENGTH)
        row = SessionRow(
            id="ses_" + ulid(),
            user_id=user_id,
            digest=self.digest_of(secret),
            pepper=self._mark,
            kind=kind,
            state=state,
            address=_printable(address)[:_ADDRESS_MAX],
            agent=_printable(agent)[:_AGENT_MAX],
            created_at=now,
            last_seen_at=now,
            expires_at=now + self._lifetime(state),
            second_factor_at=second_factor_at,
        )
        session.add(row)
        session.flush()
        self._end_the_oldest(session, user_id, state, now)
        found = session.execute(_wanted().where(SessionRow.id == row.id)).one()
        return OpenedSession(_live(found), secret)

    def find(self, session: Session, secret: str) -> LiveSession | None:
        """The session with this secret; None when it is unknown, ended, too old or unused for too long, or its user is not
        active.
        """
        if _FORM.fullmatch(secret) is None:
            return None
        digests = [self.digest_of(secret), *(_digest(pepper, secret) for pepper in self._previous_peppers)]
        row = session.execute(_wanted().where(SessionRow.digest.in_(digests))).one_or_none()
        return _live(row) if row is not None and self._is_good(row, self._clock.now()) else None

    def still(self, session: Session, live: LiveSession) -> LiveSession:
        """The session as it is now. It can't end before the transaction does.

        Raises `AuthenticationFailed(session_invalid)` when it ended, or its secret changed, since it was found.
        """
        row = session.execute(
            _wanted().where(SessionRow.id == live.id, SessionRow.digest == live.digest).with_for_update(of=SessionRow)
        ).one_or_none()
        if row is None or not self._is_good(row, self._clock.now()):
            raise session_invalid()
        return _live(row)

    def touch(self, session: Session, live: LiveSession) -> bool:
        """It was used just now. Written once a minute at most; whether it was."""
        now = self._clock.now()
        if now - live.last_seen_at < timedelta(seconds=_TOUCH_S):
            return False
        touched = session.execute(
            update(SessionRow)
            .where(
                SessionRow.id == live.id,
                SessionRow.ended_at.is_(None),
                SessionRow.last_seen_at <= now - timedelta(seconds=_TOUCH_S),
            )
            .values(last_seen_at=now)
            .returning(SessionRow.id)
            .execution_options(synchronize_session=False)
        ).all()
        return bool(touched)

    def rotate(
        self,
        session: Session,
        live: LiveSession,
        *,
        state: SessionState | None = None,
        second_factor_at: datetime | None = None,
        address: str | None = None,
        agent: str | None = None,
    ) -> OpenedSession:
        """The same session with a new secret; the old one is dead at once. What is given changes with it.

        A pending session that becomes active lives from now on. Of two that rotate one session at once one succeeds, the
        other gets `AuthenticationFailed(session_invalid)`.
        """
        now = self._clock.now()
        secret = SESSION_PREFIX + random_base62(_SECRET_LENGTH)
        changes: dict[str, object] = {"digest": self.digest_of(secret), "pepper": self._mark, "last_seen_at": now}
        if second_factor_at is not None:
            changes["second_factor_at"] = second_factor_at
        if address is not None:
            changes["address"] = _printable(address)[:_ADDRESS_MAX]
        if agent is not None:
            changes["agent"] = _printable(agent)[:_AGENT_MAX]
        if state is not None and state != live.state:
            changes |= {"state": state, "created_at": now, "expires_at": now + self._lifetime(state)}
        rotated = session.execute(
            update(SessionRow)
            .where(SessionRow.id == live.id, SessionRow.digest == live.digest, SessionRow.ended_at.is_(None))
            .values(**changes)
            .returning(SessionRow.id)
            .execution_options(synchronize_session=False)
        ).all()
        if len(rotated) != 1:
            raise session_invalid()
        found = session.execute(_wanted().where(SessionRow.id == live.id)).one()
        return OpenedSession(_live(found), secret)

    def end(self, session: Session, session_id: str, reason: str) -> bool:
        """Whether there was such a session that had not ended yet. It is refused from now on."""
        ended = session.execute(
            update(SessionRow)
            .where(SessionRow.id == session_id, SessionRow.ended_at.is_(None))
            .values(ended_at=self._clock.now(), end_reason=reason[:_REASON_MAX])
            .returning(SessionRow.id)
            .execution_options(synchronize_session=False)
        ).all()
        return bool(ended)

    def end_all(self, session: Session, user_id: str, reason: str, except_id: str | None = None) -> int:
        """How many sessions of the user had not ended yet; all are refused from now on, but for `except_id`."""
        return end_sessions_of(session, user_id, reason, self._clock.now(), except_id)

    def listing(self, session: Session, user_id: str | None = None) -> list[LiveSession]:
        """Every session that is good now, or one user's, oldest first."""
        wanted = _wanted().where(SessionRow.ended_at.is_(None)).order_by(SessionRow.created_at, SessionRow.id)
        if user_id is not None:
            wanted = wanted.where(SessionRow.user_id == user_id)
        now = self._clock.now()
        return [_live(row) for row in session.execute(wanted) if self._is_good(row, now)]

    def cleanup(self, session: Session) -> CleanUp:
        """Delete what nothing needs any more, a day after it ended: sessions, one-time tokens, counted failures, devices.

        Ten and more failures of an account in a row are remembered for 90 days: its slower lock counts them.
        """
        now = self._clock.now()
        past = now - _KEPT
        idle = timedelta(seconds=self._settings.session_idle_s)
        few = LoginTroubleRow.failures < _FEW_FAILURES
        sessions = delete(SessionRow).where(
            or_(SessionRow.ended_at <= past, SessionRow.expires_at <= past, SessionRow.last_seen_at <= past - idle)
        )
        tokens = delete(SetupTokenRow).where(or_(SetupTokenRow.used_at <= past, SetupTokenRow.expires_at <= past))
        troubles = delete(LoginTroubleRow).where(
            or_(few & (LoginTroubleRow.last_at <= past), LoginTroubleRow.last_at <= now - _LONG_KEPT),
            or_(LoginTroubleRow.refused_until.is_(None), LoginTroubleRow.refused_until <= now),
        )
        devices = delete(KnownDeviceRow).where(KnownDeviceRow.expires_at <= now)
        unsynchronised = {"synchronize_session": False}
        return CleanUp(
            len(session.execute(sessions.returning(SessionRow.id), execution_options=unsynchronised).all()),
            len(session.execute(tokens.returning(SetupTokenRow.id), execution_options=unsynchronised).all()),
            len(session.execute(troubles.returning(LoginTroubleRow.subject), execution_options=unsynchronised).all()),
            len(session.execute(devices.returning(KnownDeviceRow.id), execution_options=unsynchronised).all()),
        )

    def is_secret(self, text: str) -> bool:
        """Whether it has the form of a session's secret. Says nothing about its validity."""
        return _FORM.fullmatch(text) is not None

    def digest_of(self, secret: str) -> bytes:
        """What is stored instead of a session's secret: HMAC-SHA256 of all of it under the pepper."""
        return _digest(self._pepper, secret)

    def _lifetime(self, state: SessionState) -> timedelta:
        return timedelta(seconds=PENDING_S if state == "pending" else self._settings.session_absolute_s)

    def _is_good(self, row: Row[SessionRow, str, str, str, str], now: datetime) -> bool:
        kept, _, role, _, status = row
        idle_s = self._settings.session_idle_s
        if role in {Role.ADMIN, Role.OWNER}:
            idle_s = min(idle_s, self._settings.admin_session_idle_s)
        return (
            kept.ended_at is None
            and status == "active"
            and now < kept.expires_at
            and now - kept.last_seen_at <= timedelta(seconds=idle_s)
        )

    def _end_the_oldest(self, session: Session, user_id: str, state: SessionState, now: datetime) -> None:
        # By state: who knows no more than the password must not end sessions that are more.
        beyond = (
            select(SessionRow.id)
            .where(SessionRow.user_id == user_id, SessionRow.state == state, SessionRow.ended_at.is_(None))
            .order_by(SessionRow.last_seen_at.desc(), SessionRow.id.desc())
            .offset(_SESSIONS_PER_USER_MAX)
        )
        ids = session.scalars(beyond).all()
        if ids:
            session.execute(
                update(SessionRow)
                .where(SessionRow.id.in_(ids))
                .values(ended_at=now, end_reason="too_many")
                .execution_options(synchronize_session=False)
            )


def end_sessions_of(session: Session, user_id: str, reason: str, now: datetime, except_id: str | None = None) -> int:
    """As `Sessions.end_all`, for whatever changes a user: it belongs into the changing transaction itself.

    The user's row is held by it, so that no session is opened at the same moment by what was true before.
    """
    _hold_user(session, user_id)
    wanted = update(SessionRow).where(SessionRow.user_id == user_id, SessionRow.ended_at.is_(None))
    if except_id is not None:
        wanted = wanted.where(SessionRow.id != except_id)
    ended: Sequence[object] = session.execute(
        wanted.values(ended_at=now, end_reason=reason[:_REASON_MAX])
        .returning(SessionRow.id)
        .execution_options(synchronize_session=False)
    ).all()
    return len(ended)


def _hold_user(session: Session, user_id: str) -> None:
    """Whoever changes a user, and ends the sessions for it, waits: else a session that is just being opened would be missed."""
    session.execute(select(UserRow.id).where(UserRow.id == user_id).with_for_update(key_share=True))


def _digest(pepper: bytes, secret: str) -> bytes:
    return hmac.digest(pepper, secret.encode(), "sha256")


def session_invalid() -> AuthenticationFailed:
    return AuthenticationFailed("The session is not valid (any more); sign in again.", code=ErrorCode.SESSION_INVALID)


def _wanted() -> Select[SessionRow, str, str, str, str]:
    # What another transaction of this session wrote by statement is read anew.
    return (
        select(SessionRow, UserRow.username, UserRow.role, UserRow.organisation_id, UserRow.status)
        .join(UserRow, UserRow.id == SessionRow.user_id)
        .execution_options(populate_existing=True)
    )


def _live(row: Row[SessionRow, str, str, str, str]) -> LiveSession:
    kept, username, role, organisation_id, _ = row
    return LiveSession(
        id=kept.id,
        user_id=UserId(kept.user_id),
        username=username,
        role=Role(role),
        organisation_id=organisation_id,
        kind="browser" if kept.kind == "browser" else "token",
        state="active" if kept.state == "active" else "pending",
        address=kept.address,
        agent=kept.agent,
        created_at=kept.created_at,
        last_seen_at=kept.last_seen_at,
        expires_at=kept.expires_at,
        second_factor_at=kept.second_factor_at,
        digest=kept.digest,
    )


def _printable(text: str) -> str:
    """PostgreSQL takes no NUL, and a listing no escape sequence."""
    return "".join(character if character.isprintable() else "?" for character in text)
