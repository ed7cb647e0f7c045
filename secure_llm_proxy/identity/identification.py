"""Which caller does this key stand for? The only question the hot route asks of this room.

A worker asks the database once per key, and then only what changed (docs/decisions/0005). A remembered key takes 2 µs,
8 µs when it is one of very many in use (2026-11-21; it was 3.9 µs, and 0.7 to 1 ms for most of 100,000 in use).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hmac import compare_digest
from typing import TypeVar

import gevent
from gevent.event import AsyncResult

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ErrorCode,
    PermissionDenied,
    ProxyError,
    Unavailable,
)
from secure_llm_proxy.foundation.secret_values import key_mark
from secure_llm_proxy.identity.accounts import UserStatus
from secure_llm_proxy.identity.api_keys import KEY_LENGTH, Kid, digest_of, is_kid, kid_of
from secure_llm_proxy.identity.key_register import LAST_USES_AT_ONCE, FoundKey, KeyRegister, Renewal
from secure_llm_proxy.identity.kill_switches import EVERYTHING, STOPPED, is_announced_subject
from secure_llm_proxy.identity.names import Role
from secure_llm_proxy.identity.session_callers import SessionCallers
from secure_llm_proxy.identity.sessions import SESSION_PREFIX
from secure_llm_proxy.identity.verified_keys import (
    KeyRecord,
    KnownKey,
    RefusedKeys,
    VerifiedKeys,
    known_key,
    renewed,
)
from secure_llm_proxy.settings import IdentitySettings
from secure_llm_proxy.vocabulary.caller import ANONYMOUS_KEY_ID, KIND_SESSION, SCOPE_CHAT, SCOPE_MODELS, Caller

T = TypeVar("T")

log = logging.getLogger(__name__)

# A key takes some 300 bytes, one that names models more.
_KEYS_REMEMBERED = 200_000
_MEMORY_BYTES_MAX = 64 * 2**20
_REFUSALS_REMEMBERED = 16_384
# Changes are asked for at a quarter of `cache_s`: by one request, while the others still need not wait for it.
_ASK_AT_PART = 0.25
# Keys read along with one that is looked up. Of several looked up at once only one brings others, so it brings more; the
# largest page holds a worker up for 5 ms.
_PAGE_SIZE = 256
_PAGE_SIZE_MAX = 2048
# A database that doesn't answer at all must not hold every request as long as TCP is patient.
_LOOKUP_PATIENCE_S = 3.0
# While the database is away one request a second asks it again; the others don't wait.
_PROBE_INTERVAL_S = 1.0

_ANONYMOUS = Caller(
    user_id=ANONYMOUS_KEY_ID,
    key_id=ANONYMOUS_KEY_ID,
    role=Role.MEMBER,
    scopes=frozenset({SCOPE_CHAT, SCOPE_MODELS}),
)
_REASONS = {
    ErrorCode.API_KEY_REVOKED: "it has been revoked",
    ErrorCode.API_KEY_QUARANTINED: "it has been quarantined, since it was seen where keys leak",
    ErrorCode.API_KEY_EXPIRED: "it has expired",
    ErrorCode.ACCOUNT_LOCKED: "the account it belongs to is locked",
}
_FORBIDDEN = {
    ErrorCode.KILLED: STOPPED,
    ErrorCode.PROJECT_INACTIVE: "The project of this API key is not active.",
}
# Told also of a key that has expired besides.
_BEFORE_EXPIRY = frozenset({ErrorCode.KILLED, ErrorCode.API_KEY_REVOKED, ErrorCode.API_KEY_QUARANTINED})
# Who looks after running exchanges hears of changes at least so often.
_HEARING_INTERVAL_S = 1.0


class Identity:
    """Identifies callers by API key, or by a session's token. One per worker; greenlets share it.

    What the database said of a key is believed while changes were asked for `cache_s` ago at most; while the database is
    away, `cache_stale_s`. Nobody asks without a request. With a key that was looked up, others are read along page by page
    until all are remembered or the memory is full.
    """

    def __init__(
        self,
        settings: IdentitySettings,
        database: Database,
        pepper: bytes,
        clock: Clock,
        session_callers: SessionCallers | None = None,
        previous_peppers: Sequence[bytes] = (),
    ) -> None:
        """Without `session_callers` a session's token is no good. Keys stored under one of `previous_peppers` are good too, and
        stored under `pepper` from their next use on.
        """
        self._settings = settings
        self._session_callers = session_callers
        self._register = KeyRegister(database)
        self._pepper = pepper
        self._mark = key_mark(pepper)
        self._previous_peppers = tuple(previous_peppers)
        self._renewals: dict[Kid, Renewal] = {}
        self._clock = clock
        self._known = VerifiedKeys(_KEYS_REMEMBERED, _MEMORY_BYTES_MAX)
        self._ready = self._known.ready
        self._refused = RefusedKeys(_REFUSALS_REMEMBERED, settings.cache_s)
        self._anonymous_is_killed: bool | None = None
        self._flights: dict[bytes, AsyncResult[KnownKey | None]] = {}
        # All that is remembered was so at this revision, or later, and at this moment.
        self._revision = 0
        self._confirmed_s = float("-inf")
        self._ask_at_s = float("-inf")
        self._question: AsyncResult[None] | None = None
        # Where the next page of keys begins; None when there is none to read, or somebody is reading it.
        self._page_after: str | None = ""
        self._forgotten = 0
        # Advances whenever somebody who was identified before might not be any more.
        self._heard = 0
        self._away = False
        self._probe_at_s = 0.0
        self._last_used: dict[Kid, datetime] = {}

    def identify(self, credentials: tuple[str, ...]) -> Caller:
        """The caller that the one key, or session token, in `credentials` stands for.

        Raises `AuthenticationFailed` (its text begins "Incorrect API key provided", which some SDK users read, and
        never repeats the key), `PermissionDenied` when the key is good and its holder or project is stopped, or, when the
        database is away and the key not remembered, `Unavailable`. Of several reasons the first is told: killed, revoked,
        quarantined, expired, account locked, project inactive.
        """
        credential = credentials[0] if len(credentials) == 1 else _only_one(credentials)
        known = self._ready.get(credential[9:17])
        # A digest that matches says more than form and checksum: of a remembered key they need not be looked at.
        if (
            known is None
            or self._clock.monotonic_s() > self._ask_at_s
            or len(credential) != KEY_LENGTH
            or not credential.isascii()
            or not compare_digest(known.digest, digest_of(self._pepper, credential))
        ):
            if not credential:
                return self._without_key()
            if credential.startswith(SESSION_PREFIX) and self._session_callers is not None:
                return self._session_callers.identify(credential)
            known = self._recognise(credential)
        now = self._clock.now()
        if known.refusal is not None or known.expires_at <= now:
            refusal = known.refusal
            if refusal is None or (known.expires_at <= now and refusal not in _BEFORE_EXPIRY):
                refusal = ErrorCode.API_KEY_EXPIRED
            raise _refused(refusal)
        self._last_used[known.kid] = now
        return known.caller

    def forget(self, subject: str) -> None:
        """The next request with that key asks the database; of anybody else's id, the next request asks for changes.

        Called when a key, or what it stands for, changed. What is neither is ignored.
        """
        if is_kid(subject):
            self._known.drop(subject)
        elif is_announced_subject(subject):
            self._ask_at_s = float("-inf")
            if self._session_callers is not None:
                self._session_callers.forget()
        else:
            return
        self._forgotten += 1
        self._heard += 1

    def hear_of_changes(self) -> int:
        """Ask the database for changes, unless that was done within a second. The answer differs from the last one when
        somebody who was identified before might not be any more. Raises `Unavailable` when the database is away.
        """
        now_s = self._clock.monotonic_s()
        if self._question is not None:
            self._question.get()
        elif now_s - self._confirmed_s >= _HEARING_INTERVAL_S:
            if self._away and now_s < self._probe_at_s:
                raise _away("not asked again yet")
            self._ask_for_changes_for_all()
        return self._heard

    def stopped(self, callers: Collection[Caller]) -> dict[str, ProxyError]:
        """Which of these callers, who were identified before, may not go on now: their `key_id` and what they are told.

        Asks the database. Expiry stops nobody who has begun. Raises `Unavailable` when the database is away.
        """
        kinds = {caller.key_id: caller for caller in callers}
        sessions = {key_id: caller for key_id, caller in kinds.items() if caller.kind == KIND_SESSION}
        kids = kinds.keys() - sessions.keys() - {ANONYMOUS_KEY_ID}
        codes: dict[str, ErrorCode] = {}
        if kids:
            records = self._asked(lambda: self._register.standings(kids))
            for kid in kids:
                if (code := _standing(Kid(kid), records.get(Kid(kid)))) is not None:
                    codes[kid] = code
        if sessions:
            codes.update(self._stopped_sessions(sessions))
        if ANONYMOUS_KEY_ID in kinds and self._asked(lambda: self._register.killed_of([EVERYTHING])):
            codes[ANONYMOUS_KEY_ID] = ErrorCode.KILLED
        if codes:
            # Nobody who is cut shall be let in again by what is remembered: the next request asks for changes first.
            self._ask_at_s = float("-inf")
        return {key_id: _refused(code) for key_id, code in codes.items()}

    def _stopped_sessions(self, sessions: Mapping[str, Caller]) -> dict[str, ErrorCode]:
        """Sessions that have ended, or whose persons are stopped."""
        whose = {
            key_id: {EVERYTHING, caller.user_id, caller.project_id, caller.organisation_id}
            for key_id, caller in sessions.items()
        }
        still_open = self._asked(lambda: self._register.open_sessions(sessions))
        killed = self._asked(lambda: self._register.killed_of(set().union(*whose.values())))
        codes = {}
        for key_id in sessions:
            if whose[key_id] & killed:
                codes[key_id] = ErrorCode.KILLED
            elif key_id not in still_open:
                codes[key_id] = ErrorCode.INVALID_API_KEY
            elif still_open[key_id] != UserStatus.ACTIVE:
                codes[key_id] = ErrorCode.ACCOUNT_LOCKED
        return codes

    def flush_last_used(self) -> int:
        """Write when keys were last used, a thousand in a transaction; how many were written. Before that, keys that were
        found under a previous pepper are stored under the present one.

        Database away: nothing is lost, the next flush writes it.
        """
        if not self._flush_renewals():
            return 0
        batch, self._last_used = self._last_used, {}
        uses = sorted(batch.items())
        for begin in range(0, len(uses), LAST_USES_AT_ONCE):
            try:
                self._register.write_last_uses(uses[begin : begin + LAST_USES_AT_ONCE], self._mark)
            except Unavailable as error:
                self._last_used = {**dict(uses[begin:]), **self._last_used}
                log.warning("last use of keys could not be written, kept for later", extra={"cause": error.detail})
                return begin
        return len(uses)

    def _flush_renewals(self) -> bool:
        batch, self._renewals = self._renewals, {}
        renewals = sorted(batch.items())
        for begin in range(0, len(renewals), LAST_USES_AT_ONCE):
            try:
                self._register.write_renewals(renewals[begin : begin + LAST_USES_AT_ONCE], self._mark)
            except Unavailable as error:
                self._renewals = {**dict(renewals[begin:]), **self._renewals}
                log.warning(
                    "keys could not be stored under the new pepper, kept for later", extra={"cause": error.detail}
                )
                return False
        return True

    def _without_key(self) -> Caller:
        if not self._settings.authentication_required:
            self._require_that_not_everything_is_killed()
            return _ANONYMOUS
        raise AuthenticationFailed(
            "You didn't provide an API key. Send it in the Authorization header as 'Bearer YOUR_KEY', "
            f"or in the {self._settings.api_key_header} header.",
            code=ErrorCode.MISSING_API_KEY,
        )

    def _require_that_not_everything_is_killed(self) -> None:
        """Who brings no key is stopped with everything. Remembered as keys are; asked with a database that is away: no."""
        now_s = self._clock.monotonic_s()
        if self._anonymous_is_killed is not None and now_s > self._ask_at_s:
            self._ask_for_changes(now_s)
        if self._anonymous_is_killed is None:
            heard = self._heard
            killed = bool(self._asked(lambda: self._register.killed_of([EVERYTHING])))
            if heard == self._heard:
                self._anonymous_is_killed = killed
            else:
                self._heard += 1
        else:
            killed = self._anonymous_is_killed
        if killed:
            raise _refused(ErrorCode.KILLED)

    def _recognise(self, credential: str) -> KnownKey:
        """What is remembered of the key if that may be believed, else what the database says."""
        if (kid := kid_of(credential)) is None:
            raise _incorrect()
        digest = digest_of(self._pepper, credential)
        earlier = tuple(digest_of(pepper, credential) for pepper in self._previous_peppers)
        heard = self._heard
        try:
            return self._recognised(kid, digest, earlier)
        finally:
            # A change heard of while we waited may be of this key, whose answer may be the one from before: who looks after
            # running exchanges has to look again, since ours begins only now.
            if heard != self._heard:
                self._heard += 1

    def _recognised(self, kid: Kid, digest: bytes, earlier: tuple[bytes, ...]) -> KnownKey:
        now_s = self._clock.monotonic_s()
        known = self._remembered(kid, digest, earlier)
        if known is not None and now_s > self._ask_at_s:
            self._ask_for_changes(now_s)
            known = self._remembered(kid, digest, earlier)
        if known is None:
            known = self._looked_up(kid, digest, earlier, now_s)
        if known is None:
            raise _incorrect()
        return known

    def _remembered(self, kid: Kid, digest: bytes, earlier: tuple[bytes, ...]) -> KnownKey | None:
        known = self._known.get(kid, digest)
        for old in earlier:
            if known is None and (record := self._known.record(kid, old)) is not None:
                self._renewals[kid] = Renewal(old, digest)
                known = self._known.put(kid, renewed(record, digest))
        return known

    def _ask_for_changes(self, now_s: float) -> None:
        """What is still remembered afterwards may be believed. Raises `Unavailable` when the database is away too long."""
        age_s = now_s - self._confirmed_s
        believable = age_s <= self._settings.cache_stale_s
        question = self._question
        if question is not None and (age_s <= self._settings.cache_s or (self._away and believable)):
            return
        try:
            if self._away and now_s < self._probe_at_s:
                raise _away("not asked again yet")
            if question is not None:
                question.get()
            else:
                self._ask_for_changes_for_all()
        except Unavailable:
            if not believable:
                raise

    def _ask_for_changes_for_all(self) -> None:
        """One greenlet asks; the others wait for it only when what they know is too old."""
        question = self._question = AsyncResult()
        asked_s = self._clock.monotonic_s()
        try:
            changes = self._asked(lambda: self._register.changes(self._revision))
            if changes.kids is None or changes.revision != self._revision:
                self._heard += 1
            if changes.kids is None:
                self._known.clear()
                self._anonymous_is_killed = None
                self._page_after = ""
                if self._session_callers is not None:
                    self._session_callers.forget()
            else:
                for kid in changes.kids:
                    self._known.drop(kid)
            self._revision = changes.revision
            self._confirm(asked_s)
        except Exception as error:
            question.set_exception(error)
            raise
        except BaseException:
            question.set_exception(_away("the question was given up"))
            raise
        finally:
            self._question = None
        question.set(None)

    def _confirm(self, asked_s: float) -> None:
        self._confirmed_s = asked_s
        self._ask_at_s = asked_s + _ASK_AT_PART * self._settings.cache_s

    def _looked_up(self, kid: Kid, digest: bytes, earlier: tuple[bytes, ...], now_s: float) -> KnownKey | None:
        if self._refused.holds(digest, now_s):
            return None
        if self._away and now_s < self._probe_at_s:
            raise _away("not asked again yet")
        flight = self._flights.get(digest)
        return flight.get() if flight is not None else self._look_up_for_all(kid, digest, earlier)

    def _look_up_for_all(self, kid: Kid, digest: bytes, earlier: tuple[bytes, ...]) -> KnownKey | None:
        """One greenlet asks; whoever brings the same key meanwhile gets the same answer."""
        flight: AsyncResult[KnownKey | None] = AsyncResult()
        self._flights[digest] = flight
        try:
            known = self._look_up(kid, digest, earlier)
        except Exception as error:
            flight.set_exception(error)
            raise
        except BaseException:
            flight.set_exception(_away("the lookup was given up"))
            raise
        finally:
            del self._flights[digest]
        flight.set(known)
        return known

    def _look_up(self, kid: Kid, digest: bytes, earlier: tuple[bytes, ...]) -> KnownKey | None:
        asked_s = self._clock.monotonic_s()
        forgotten = self._forgotten
        after, self._page_after = self._page_after, None
        size = min(_PAGE_SIZE * len(self._flights), _PAGE_SIZE_MAX)
        try:
            found = self._asked(lambda: self._register.find(kid, digest, after=after, page_size=size))
            for old in earlier:
                if found is None:
                    found = self._found_earlier(kid, digest, old, after, size)
        except BaseException:
            self._turn_page(after)
            raise
        if found is None:
            self._turn_page(after)
            self._refused.put(digest, asked_s)
            return None
        if after is not None:
            self._turn_page(found.page.last if found.page is not None else after)
        # A key that changed while we asked must not be remembered as it was before.
        if forgotten != self._forgotten or found.revision < self._revision:
            return known_key(kid, found.record)
        return self._remember(kid, found, asked_s)

    def _found_earlier(self, kid: Kid, digest: bytes, old: bytes, after: str | None, size: int) -> FoundKey | None:
        """The key as if it were stored under the present pepper already, which the next flush sees to."""
        found = self._asked(lambda: self._register.find(kid, old, after=after, page_size=size))
        if found is None:
            return None
        self._renewals[kid] = Renewal(old, digest)
        return replace(found, record=renewed(found.record, digest))

    def _remember(self, kid: Kid, found: FoundKey, asked_s: float) -> KnownKey:
        if not self._known and found.revision != self._revision:
            # Nothing remembered can be wrong, but who is being answered was identified before.
            self._heard += 1
            self._anonymous_is_killed = None
            self._revision = found.revision
        if found.revision == self._revision and asked_s > self._confirmed_s:
            self._confirm(asked_s)
        known = self._known.put(kid, found.record)
        if found.page is not None and found.page.revision >= self._revision:
            self._known.put_page(found.page.records)
        return known

    def _turn_page(self, after: str | None) -> None:
        """Only who took the page's place puts another in it, unless all was forgotten meanwhile or the memory is full."""
        if after is not None and self._page_after is None and not self._known.is_full:
            self._page_after = after

    def _asked(self, question: Callable[[], T]) -> T:
        """The database's answer. Raises `Unavailable`, also when it doesn't come in time, and notes that it is away."""
        self._probe_at_s = self._clock.monotonic_s() + _PROBE_INTERVAL_S
        patience = gevent.Timeout(_LOOKUP_PATIENCE_S)
        try:
            with patience:
                answer = question()
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            self._note_away()
            raise _away("no answer in time") from None
        except Unavailable:
            self._note_away()
            raise
        self._away = False
        return answer

    def _note_away(self) -> None:
        self._away = True
        self._probe_at_s = self._clock.monotonic_s() + _PROBE_INTERVAL_S


def _only_one(credentials: tuple[str, ...]) -> str:
    """The one credential that is given, perhaps in several headers; empty when there is none."""
    given = {credential for credential in credentials if credential}
    if len(given) > 1:
        raise AuthenticationFailed("Incorrect API key provided: the request carries several different keys.")
    return given.pop() if given else ""


def _refused(code: ErrorCode) -> ProxyError:
    if code in _FORBIDDEN:
        return PermissionDenied(_FORBIDDEN[code], code=code)
    reason = _REASONS.get(code, "it is not good any more")
    return AuthenticationFailed(f"Incorrect API key provided: {reason}.", code=code)


def _standing(kid: Kid, record: KeyRecord | None) -> ErrorCode | None:
    """Why a key that was good once isn't now, other than by its age."""
    if record is None:
        return ErrorCode.INVALID_API_KEY
    try:
        return known_key(kid, record).refusal
    except ValueError:
        # Somebody wrote nonsense into its row: nobody can say what it may do.
        log.warning("a key's row can't be read", extra={"key": kid})
        return ErrorCode.INVALID_API_KEY


def _incorrect() -> AuthenticationFailed:
    # The same words whatever is wrong with it: form, checksum, unknown kid or secret.
    return AuthenticationFailed("Incorrect API key provided.", code=ErrorCode.INVALID_API_KEY)


def _away(detail: str) -> Unavailable:
    return Unavailable(
        "The proxy's database is unavailable; try again shortly.",
        code=ErrorCode.DATABASE_UNAVAILABLE,
        detail=detail,
        retry_after_s=2,
    )
