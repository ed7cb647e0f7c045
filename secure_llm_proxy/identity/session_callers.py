"""Which caller does this session token stand for? The data plane's other credential, beside API keys.

A worker believes what the database said of a token for `cache_s` (5 s), under its whole digest; so an ended session, a
locked user and a thrown kill switch are refused everywhere within that. While the database is away, nobody new: 503.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

import gevent
from sqlalchemy import select
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ErrorCode,
    PermissionDenied,
    ProxyError,
    Unavailable,
)
from secure_llm_proxy.identity.kill_switches import EVERYTHING, STOPPED
from secure_llm_proxy.identity.models import KillSwitchRow
from secure_llm_proxy.identity.permissions import Permission, may
from secure_llm_proxy.identity.sessions import LiveSession, Sessions
from secure_llm_proxy.settings import IdentitySettings
from secure_llm_proxy.vocabulary.caller import KIND_SESSION, SCOPE_CHAT, SCOPE_MODELS, Caller

_REMEMBERED_MAX = 4096
# As for keys: a database that doesn't answer at all must not hold requests as long as TCP is patient.
_LOOKUP_PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database said, and until when that is believed."""

    answer: Caller | ErrorCode
    until_s: float
    expires_at: datetime | None


class SessionCallers:
    """Identifies callers by session token. One per worker; greenlets share it."""

    def __init__(self, settings: IdentitySettings, sessions: Sessions, database: Database, clock: Clock) -> None:
        self._settings = settings
        self._sessions = sessions
        self._database = database
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def identify(self, secret: str) -> Caller:
        """The user who signed in, by the session's id instead of a key's.

        Only an active session counts: one that still owes its second factor asks no models. Raises
        `AuthenticationFailed` (its text begins as that for keys does, which some SDK users read), `PermissionDenied` for a
        role that may not chat, `Unavailable` when the database is away.
        """
        if not self._sessions.is_secret(secret):
            raise _refusal(ErrorCode.SESSION_INVALID)
        digest = self._sessions.digest_of(secret)
        now_s = self._clock.monotonic_s()
        known = self._known.get(digest)
        if known is None or now_s >= known.until_s:
            known = self._look_up(secret, now_s)
            self._known[digest] = known
            self._known.move_to_end(digest)
            if len(self._known) > _REMEMBERED_MAX:
                self._known.popitem(last=False)
        if isinstance(known.answer, Caller):
            if known.expires_at is None or self._clock.now() < known.expires_at:
                return known.answer
            raise _refusal(ErrorCode.SESSION_INVALID)
        raise _refusal(known.answer)

    def forget(self) -> None:
        """The next request of each asks the database. Called when somebody is killed, locked, or signed out elsewhere."""
        self._known.clear()

    def _look_up(self, secret: str, now_s: float) -> _Known:
        patience = gevent.Timeout(_LOOKUP_PATIENCE_S)
        try:
            with patience:
                live, killed = self._database.run(lambda session: self._found(session, secret))
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            raise Unavailable(
                "The proxy's database is unavailable; try again shortly.",
                code=ErrorCode.DATABASE_UNAVAILABLE,
                detail="no answer in time",
                retry_after_s=2,
            ) from None
        until_s = now_s + self._settings.cache_s
        if live is None:
            return _Known(ErrorCode.SESSION_INVALID, until_s, None)
        return _Known(_answer(live, killed=killed), until_s, live.expires_at)

    def _found(self, session: Session, secret: str) -> tuple[LiveSession | None, bool]:
        live = self._sessions.find(session, secret)
        if live is None:
            return None, False
        self._sessions.touch(session, live)
        subjects = (live.user_id, live.organisation_id, EVERYTHING)
        stopped = select(KillSwitchRow.subject).where(KillSwitchRow.subject.in_(subjects)).limit(1)
        return live, session.scalar(stopped) is not None


def _answer(live: LiveSession, *, killed: bool) -> Caller | ErrorCode:
    if killed:
        return ErrorCode.KILLED
    if live.state != "active":
        return ErrorCode.SECOND_FACTOR_REQUIRED
    if not may(live.role, live.organisation_id, Permission.CHAT):
        return ErrorCode.FORBIDDEN
    return Caller(
        user_id=live.user_id,
        key_id=live.id,
        role=live.role,
        scopes=frozenset({SCOPE_CHAT, SCOPE_MODELS}),
        expires_at=live.expires_at,
        organisation_id=live.organisation_id,
        kind=KIND_SESSION,
    )


def _refusal(code: ErrorCode) -> ProxyError:
    if code is ErrorCode.FORBIDDEN:
        return PermissionDenied("Your role may not ask models.", code=code)
    if code is ErrorCode.KILLED:
        return PermissionDenied(STOPPED, code=code)
    reasons = {
        ErrorCode.SESSION_INVALID: "the session is not valid (any more); sign in again.",
        ErrorCode.SECOND_FACTOR_REQUIRED: "the session still owes its second factor.",
    }
    return AuthenticationFailed(f"Incorrect API key provided: {reasons[code]}", code=code)
