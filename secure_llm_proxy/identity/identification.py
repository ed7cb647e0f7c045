"""Which caller does this key stand for? The only question the hot route asks of this room."""

from __future__ import annotations

import hmac
import logging
import secrets
from datetime import datetime

import gevent
from gevent.event import AsyncResult
from sqlalchemy import LargeBinary, func, literal, select, update
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, Unavailable
from secure_llm_proxy.identity.accounts import UserStatus
from secure_llm_proxy.identity.api_keys import Kid, digest_of, is_kid, kid_of
from secure_llm_proxy.identity.models import ApiKeyRow, UserRow
from secure_llm_proxy.identity.names import Role
from secure_llm_proxy.identity.verified_keys import KnownKey, RefusedKeys, VerifiedKeys
from secure_llm_proxy.settings import IdentitySettings
from secure_llm_proxy.vocabulary.caller import ANONYMOUS_KEY_ID, SCOPE_CHAT, SCOPE_MODELS, Caller

log = logging.getLogger(__name__)

# About 1 kB each: 16 MB of a worker at most.
_KEYS_REMEMBERED = 16_384
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
    ErrorCode.API_KEY_EXPIRED: "it has expired",
    ErrorCode.ACCOUNT_LOCKED: "the account it belongs to is locked",
}


class Identity:
    """Identifies callers by API key. One per worker; greenlets share it.

    A verified key is believed for `cache_s` and then looked up again; while the database is away, for `cache_stale_s`.
    """

    def __init__(self, settings: IdentitySettings, database: Database, pepper: bytes, clock: Clock) -> None:
        self._settings = settings
        self._database = database
        self._pepper = pepper
        self._clock = clock
        self._known = VerifiedKeys(_KEYS_REMEMBERED)
        self._refused = RefusedKeys(_KEYS_REMEMBERED, settings.cache_s)
        self._flights: dict[bytes, AsyncResult[KnownKey | None]] = {}
        self._forgotten = 0
        self._away = False
        self._probe_at_s = 0.0
        self._last_used: dict[Kid, datetime] = {}
        # Compared with when a kid is unknown, so that a wrong secret and an unknown kid take the same work.
        self._decoy = secrets.token_bytes(32)

    def identify(self, credentials: tuple[str, ...]) -> Caller:
        """The caller that the one key in `credentials` stands for.

        Raises `AuthenticationFailed` (its text begins "Incorrect API key provided", which some SDK users read, and
        never repeats the key) or, when the database is away and the key not remembered, `Unavailable`.
        """
        given = {credential for credential in credentials if credential}
        if not given:
            return self._without_key()
        if len(given) > 1:
            raise AuthenticationFailed("Incorrect API key provided: the request carries several different keys.")
        (credential,) = given
        kid = kid_of(credential)
        if kid is None:
            raise _incorrect()
        known = self._recognise(kid, digest_of(self._pepper, credential))
        if known is None:
            raise _incorrect()
        now = self._clock.now()
        refusal = known.refusal or (ErrorCode.API_KEY_EXPIRED if known.expires_at <= now else None)
        if refusal is not None:
            raise AuthenticationFailed(f"Incorrect API key provided: {_REASONS[refusal]}.", code=refusal)
        self._last_used[kid] = now
        return known.caller

    def forget(self, kid: str) -> None:
        """The next request with that key asks the database. Called when a key or its account changed."""
        if is_kid(kid):
            self._forgotten += 1
            self._known.drop(Kid(kid))

    def flush_last_used(self) -> int:
        """Write when keys were last used, in one transaction; how many were written.

        Database away: nothing is lost, the next flush writes it.
        """
        batch, self._last_used = self._last_used, {}
        if not batch:
            return 0
        try:
            self._database.run(lambda session: _write_last_used(session, batch))
        except Unavailable as error:
            self._last_used = {**batch, **self._last_used}
            log.warning("last use of keys could not be written, kept for later", extra={"cause": error.detail})
            return 0
        return len(batch)

    def _without_key(self) -> Caller:
        if not self._settings.authentication_required:
            return _ANONYMOUS
        raise AuthenticationFailed(
            "You didn't provide an API key. Send it in the Authorization header as 'Bearer YOUR_KEY', "
            f"or in the {self._settings.api_key_header} header.",
            code=ErrorCode.MISSING_API_KEY,
        )

    def _recognise(self, kid: Kid, digest: bytes) -> KnownKey | None:
        """What is remembered of the key if that is fresh enough, else what the database says; None when it is no key."""
        now_s = self._clock.monotonic_s()
        known = self._known.get(digest)
        age_s = now_s - known.seen_s if known is not None else 0.0
        if known is not None and age_s <= self._settings.cache_s:
            return known
        stale = known if age_s <= self._settings.cache_stale_s else None
        if stale is None and self._refused.holds(digest, now_s):
            return None
        flight = self._flights.get(digest)
        if self._away and (now_s < self._probe_at_s or (flight is not None and stale is not None)):
            if stale is not None:
                return stale
            raise _away("not asked again yet")
        try:
            return flight.get() if flight is not None else self._look_up_for_all(kid, digest)
        except Unavailable:
            # Unless it was forgotten while we asked: then what we knew is not good any more.
            if stale is not None and self._known.get(digest) is stale:
                return stale
            raise

    def _look_up_for_all(self, kid: Kid, digest: bytes) -> KnownKey | None:
        """One greenlet asks; whoever brings the same key meanwhile gets the same answer."""
        flight: AsyncResult[KnownKey | None] = AsyncResult()
        self._flights[digest] = flight
        self._probe_at_s = self._clock.monotonic_s() + _PROBE_INTERVAL_S
        try:
            known = self._look_up(kid, digest)
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

    def _look_up(self, kid: Kid, digest: bytes) -> KnownKey | None:
        seen_s = self._clock.monotonic_s()
        forgotten = self._forgotten
        patience = gevent.Timeout(_LOOKUP_PATIENCE_S)
        try:
            with patience:
                known = self._database.run(lambda session: self._read(session, kid, digest, seen_s))
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            self._note_away()
            raise _away("no answer in time") from None
        except Unavailable:
            self._note_away()
            raise
        self._away = False
        if known is None:
            self._refused.put(digest, seen_s)
        elif forgotten == self._forgotten:  # a key revoked while we asked must not be remembered as it was before
            self._known.put(digest, known)
        return known

    def _note_away(self) -> None:
        self._away = True
        self._probe_at_s = self._clock.monotonic_s() + _PROBE_INTERVAL_S

    def _read(self, session: Session, kid: Kid, digest: bytes, seen_s: float) -> KnownKey | None:
        # Always one row of 32 bytes, whether the kid exists or not; the rest is read only after the HMAC matched.
        stored_digest = select(ApiKeyRow.digest).where(ApiKeyRow.kid == kid).scalar_subquery()
        stored = session.execute(select(func.coalesce(stored_digest, literal(self._decoy, LargeBinary)))).scalar_one()
        if not hmac.compare_digest(stored, digest):
            return None
        row = session.execute(
            select(
                ApiKeyRow.scopes,
                ApiKeyRow.models,
                ApiKeyRow.requests_per_minute,
                ApiKeyRow.expires_at,
                ApiKeyRow.revoked_at,
                UserRow.id,
                UserRow.role,
                UserRow.status,
            )
            .join(ApiKeyRow.user)
            .where(ApiKeyRow.kid == kid)
        ).one()
        refusal = None
        if row.revoked_at is not None:
            refusal = ErrorCode.API_KEY_REVOKED
        elif row.status != UserStatus.ACTIVE:
            refusal = ErrorCode.ACCOUNT_LOCKED
        caller = Caller(
            user_id=row.id,
            key_id=kid,
            role=row.role,
            scopes=frozenset(row.scopes),
            models=None if row.models is None else frozenset(row.models),
            requests_per_minute=row.requests_per_minute,
            expires_at=row.expires_at,
        )
        return KnownKey(kid, caller, row.expires_at, refusal, seen_s)


def _write_last_used(session: Session, batch: dict[Kid, datetime]) -> None:
    # In one order everywhere: two workers that write the same keys must not wait for each other crosswise.
    for kid in sorted(batch):
        session.execute(
            update(ApiKeyRow)
            .where(
                ApiKeyRow.kid == kid,
                ApiKeyRow.last_used_at.is_(None) | (ApiKeyRow.last_used_at < batch[kid]),
            )
            .values(last_used_at=batch[kid])
            .execution_options(synchronize_session=False)
        )


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
