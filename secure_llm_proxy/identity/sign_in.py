"""How somebody signs in: password, second factor, session. The same for tools, browsers and commands.

Several short transactions with the slow work (Argon2) between them; what was judged before is looked at again in the one
that opens a session. Whatever is wrong (no such user, password, code, locked account, too many tries) is answered by one
sentence with one code after the same work, so that nobody learns who exists (ASVS 6.3.8); `detail` tells it to the
operator's log. How long to wait after too many tries is told, computed for unknown names as for others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ErrorCode,
    InvalidRequest,
    OperatorError,
    PermissionDenied,
)
from secure_llm_proxy.identity.accounts import Accounts, Credentials, User, UserStatus
from secure_llm_proxy.identity.known_devices import KnownDevices
from secure_llm_proxy.identity.login_troubles import LoginTroubles, Trial, place_of
from secure_llm_proxy.identity.names import normalised_username
from secure_llm_proxy.identity.passwords import PasswordCheck, PasswordHash
from secure_llm_proxy.identity.second_factors import LOGIN_REFUSED, Enrolment, SecondFactors
from secure_llm_proxy.identity.sessions import FRESH_S, LiveSession, OpenedSession, SessionKind, Sessions
from secure_llm_proxy.settings import IdentitySettings

# No user's id: what is asked about unknown names is asked under it.
_NOBODY = "usr_nobody"
_NAME_MAX = 128


@dataclass(frozen=True, slots=True)
class SignedIn:
    """An active session. `device` is a new device's token, to be kept and shown at the next sign-in; None when it is known.

    `recovery_codes_left` is set when a recovery code was used, which its owner should be told of.
    """

    session: LiveSession
    secret: str = field(repr=False)
    device: str | None = field(default=None, repr=False)
    recovery_codes_left: int | None = None


@dataclass(frozen=True, slots=True)
class SecondFactorWanted:
    """The password is right; the pending session waits 10 minutes for `SignIn.second_factor`."""

    session: LiveSession
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EnrolmentWanted:
    """The password is right; the user must set up a second factor first, within 10 minutes, and may do nothing else."""

    session: LiveSession
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A try that has been counted."""

    name: str
    credentials: Credentials | None
    counted_at: str
    wait_s: int | None
    refusal: str | None

    @property
    def user_id(self) -> str:
        return _NOBODY if self.credentials is None else self.credentials.user.id


class SignIn:
    """Signs users in and out, and lets them change what they prove themselves by. `pepper` is 32 bytes of SECRET_KEY; devices
    and places known under a previous one are known. Failures are counted anew under a new pepper.
    """

    def __init__(
        self,
        settings: IdentitySettings,
        clock: Clock,
        database: Database,
        accounts: Accounts,
        second_factors: SecondFactors,
        sessions: Sessions,
        *,
        pepper: bytes,
        previous_peppers: Sequence[bytes] = (),
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._database = database
        self._accounts = accounts
        self._second_factors = second_factors
        self._sessions = sessions
        self._troubles = LoginTroubles(settings, clock, pepper=pepper)
        self._devices = KnownDevices(clock, pepper=pepper, previous_peppers=previous_peppers)

    def password(
        self,
        username: str,
        password: str,
        *,
        mfa_code: str | None = None,
        recovery_code: str | None = None,
        address: str,
        agent: str,
        kind: SessionKind,
        device: str | None = None,
    ) -> SignedIn | SecondFactorWanted | EnrolmentWanted:
        """A session for who knows the password, and the second factor where there is one.

        Raises `AuthenticationFailed(login_failed)`, with `retry_after_s` when the next try has to wait.
        """
        name = normalised_username(username)
        place = place_of(address)
        attempt = self._database.run(lambda session: self._count(session, name, place, device))
        credentials = attempt.credentials if attempt.refusal is None else None
        stored = None if credentials is None else credentials.password_hash
        check = self._accounts.check_password(stored, password)
        if credentials is None or stored is None or check is PasswordCheck.WRONG or _may_not(credentials.user):
            self._second_factors.check_in_vain(mfa_code or "")
            raise _login_failed(_reason(attempt, check), attempt.wait_s)
        if check is PasswordCheck.OUTDATED or not credentials.has_mark:
            stored = self._hashed_again(credentials.user, stored, password)
        user, known = credentials.user, stored
        code, by_recovery = (recovery_code, True) if mfa_code is None else (mfa_code, False)
        if code is not None:
            wanted = self._database.run(lambda session: self._try_if_enrolled(session, user.id, attempt.name))
            if wanted is not None and not wanted.allowed:
                self._second_factors.check_in_vain(code)
                raise _login_failed("too many second factors", wanted.wait_s)

        def finish(session: Session) -> SignedIn | SecondFactorWanted | EnrolmentWanted:
            # As the user is now: who was promoted meanwhile owes what the new role owes.
            user = self._same(session, attempt.name, known)
            enrolled = self._second_factors.state(session, user.id).enrolled
            if enrolled and code is not None:
                left = self._show(session, user.id, code, by_recovery=by_recovery, wait_s=attempt.wait_s)
                shown_at = self._second_factor_moment(by_recovery=by_recovery)
                return self._signed_in(session, attempt, kind, address, agent, device, shown_at, left)
            owed = self._accounts.owes_second_factor(user.role, mfa_required=user.mfa_required)
            if not enrolled and not owed:
                return self._signed_in(session, attempt, kind, address, agent, device, None, None)
            # The password was right, so nothing failed at this place; the account's own count waits for the rest.
            self._troubles.forget_place(session, attempt.name, attempt.counted_at)
            opened = self._sessions.open(
                session, user.id, kind=kind, state="pending", address=address, agent=agent, second_factor_at=None
            )
            if enrolled:
                return SecondFactorWanted(opened.session, opened.secret)
            return EnrolmentWanted(opened.session, opened.secret)

        return self._database.run(finish)

    def second_factor(
        self,
        pending_secret: str,
        *,
        mfa_code: str | None = None,
        recovery_code: str | None = None,
        address: str,
        agent: str,
        device: str | None = None,
    ) -> SignedIn:
        """The pending session becomes an active one under a new secret.

        Raises `AuthenticationFailed`: `session_invalid` when there is no such pending session (any more), `login_failed`
        for a wrong or used code and for too many tries.
        """
        code, by_recovery = (recovery_code or "", True) if mfa_code is None else (mfa_code, False)

        def count(session: Session) -> tuple[LiveSession | None, Trial | None]:
            live = self._sessions.find(session, pending_secret)
            if live is None or live.state != "pending":
                return None, None
            return live, self._troubles.try_second_factor(session, normalised_username(live.username))

        live, trial = self._database.run(count)
        if live is None or trial is None:
            raise _pending_invalid()
        if not trial.allowed:
            self._second_factors.check_in_vain(code)
            raise _login_failed("too many second factors", trial.wait_s)

        def finish(session: Session) -> SignedIn:
            current = self._sessions.still(session, live)
            left = self._show(session, live.user_id, code, by_recovery=by_recovery, wait_s=trial.wait_s)
            shown_at = self._second_factor_moment(by_recovery=by_recovery)
            opened = self._sessions.rotate(
                session, current, state="active", second_factor_at=shown_at, address=address, agent=agent
            )
            return self._welcome(session, opened, device, left)

        return self._database.run(finish)

    def begin_enrolment(self, live: LiveSession) -> Enrolment:
        """What an authenticator app is given. Counts from `confirm_enrolment` on.

        For a pending session that owes a second factor, and for an active one whose user signed in within the last five
        minutes: else whoever finds an open session could make it his own. Raises `PermissionDenied(step_up_required)`,
        `InvalidRequest(second_factor_exists)`, `AuthenticationFailed(session_invalid)`.
        """

        def begin(session: Session) -> Enrolment:
            current = self._sessions.still(session, live)
            if self._clock.now() - current.created_at > timedelta(seconds=FRESH_S) and current.state == "active":
                raise PermissionDenied(
                    "Sign in again: a second factor is set up within 5 minutes of signing in.",
                    code=ErrorCode.STEP_UP_REQUIRED,
                )
            return self._second_factors.begin(session, live.user_id)

        return self._database.run(begin)

    def confirm_enrolment(self, live: LiveSession, code: str) -> tuple[SignedIn, tuple[str, ...]]:
        """The second factor counts from now on. Every session of the user ends; a new one takes this one's place.

        Returns it and the recovery codes, shown once. Raises as `second_factor` does.
        """
        trial = self._database.run(
            lambda session: self._troubles.try_second_factor(session, normalised_username(live.username))
        )
        if not trial.allowed:
            self._second_factors.check_in_vain(code)
            raise _login_failed("too many second factors", trial.wait_s)

        def confirm(session: Session) -> tuple[SignedIn, tuple[str, ...]]:
            current = self._sessions.still(session, live)
            codes = self._second_factors.confirm(session, live.user_id, code)
            opened = self._sessions.open(
                session,
                live.user_id,
                kind=current.kind,
                state="active",
                address=current.address,
                agent=current.agent,
                second_factor_at=self._clock.now(),
            )
            return self._welcome(session, opened, None, None), codes

        try:
            return self._database.run(confirm)
        except AuthenticationFailed as error:
            error.retry_after_s = trial.wait_s
            raise

    def step_up(self, live: LiveSession, mfa_code: str) -> OpenedSession:
        """The session with a new secret and a second factor shown just now: good for 5 minutes of what is dangerous.

        Recovery codes do not serve. Raises `PermissionDenied(second_factor_missing)` when the user has none.
        """
        trial = self._database.run(
            lambda session: self._try_if_enrolled(session, live.user_id, normalised_username(live.username))
        )
        if trial is None:
            raise PermissionDenied(
                "The account has no second factor; set one up first.", code=ErrorCode.SECOND_FACTOR_MISSING
            )
        if not trial.allowed:
            self._second_factors.check_in_vain(mfa_code)
            raise _login_failed("too many second factors", trial.wait_s)

        def finish(session: Session) -> OpenedSession:
            current = self._active(session, live)
            self._show(session, live.user_id, mfa_code, by_recovery=False, wait_s=trial.wait_s)
            self._troubles.forget_second_factor(session, normalised_username(live.username))
            return self._sessions.rotate(session, current, second_factor_at=self._clock.now())

        return self._database.run(finish)

    def change_password(self, live: LiveSession, old: str, new: str) -> SignedIn:
        """The new password counts; every session of the user ends, a new one takes this one's place.

        Raises `AuthenticationFailed(login_failed)` when `old` is not the password, counted like a login from there, and
        `InvalidRequest(password_refused)` when `new` may not be one.
        """
        name = normalised_username(live.username)
        place = place_of(live.address)

        def count(session: Session) -> tuple[_Attempt, bool]:
            self._active(session, live)
            enrolled = self._second_factors.state(session, live.user_id).enrolled
            return self._count(session, name, place, None, known=True), enrolled

        attempt, enrolled = self._database.run(count)
        credentials = attempt.credentials if attempt.refusal is None else None
        stored = None if credentials is None else credentials.password_hash
        check = self._accounts.check_password(stored, old)
        if credentials is None or stored is None or check is PasswordCheck.WRONG:
            raise _login_failed(_reason(attempt, check), attempt.wait_s)
        hashed, before = self._hashed(new, credentials.user, enrolled=enrolled), stored

        def change(session: Session) -> SignedIn:
            current = self._active(session, live)
            if self._accounts.change_password(session, live.user_id, before, hashed) is None:
                raise _login_failed("the password was changed meanwhile", None)
            opened = self._sessions.open(
                session,
                live.user_id,
                kind=current.kind,
                state="active",
                address=current.address,
                agent=current.agent,
                second_factor_at=current.second_factor_at,
            )
            self._troubles.forget_place(session, attempt.name, attempt.counted_at)
            self._troubles.forget_account(session, attempt.name)
            return SignedIn(opened.session, opened.secret)

        return self._database.run(change)

    def replace_password(self, user: User, old: str, new: str) -> User:
        """As `change_password`, for the host's shell, where there is no session and nothing is counted.

        Raises `OperatorError` with what is wrong.
        """

        def look(session: Session) -> tuple[Credentials | None, bool]:
            found = self._accounts.credentials_of(session, normalised_username(user.username))
            return found, self._second_factors.state(session, user.id).enrolled

        found, enrolled = self._database.run(look)
        before = None if found is None else found.password_hash
        if self._accounts.check_password(before, old) is PasswordCheck.WRONG or before is None:
            raise OperatorError(f"That is not the password of {user.username}; nothing was changed.")
        owed = enrolled or self._accounts.owes_second_factor(user.role, mfa_required=user.mfa_required)
        hashed = self._accounts.hash_password(new, username=user.username, email=user.email, with_second_factor=owed)
        changed = self._database.run(lambda session: self._accounts.change_password(session, user.id, before, hashed))
        if changed is None:
            raise OperatorError(
                f"{user.username} is not active, or the password was changed meanwhile; nothing was changed."
            )
        return changed

    def set_up(self, token: str, password: str) -> User:
        """The password is set and the one-time token used up. Nobody is signed in by it: that takes the second factor too.

        Raises `InvalidRequest`: `setup_token_invalid`, the same for every token that is no good, or `password_refused`.
        """

        def look(session: Session) -> tuple[User, bool]:
            holder = self._accounts.token_holder(session, token)
            return holder, self._second_factors.state(session, holder.id).enrolled

        def redeem(session: Session) -> User:
            user = self._accounts.redeem_token(session, token, hashed)
            self._troubles.forget_account(session, normalised_username(user.username))
            return user

        try:
            holder, enrolled = self._database.run(look)
        except OperatorError as error:
            raise _token_invalid() from error
        hashed = self._hashed(password, holder, enrolled=enrolled)
        try:
            return self._database.run(redeem)
        except OperatorError as error:
            raise _token_invalid() from error

    def sign_out(self, live: LiveSession) -> None:
        """The session has ended. Signing out twice is no error."""
        self._database.run(lambda session: self._sessions.end(session, live.id, "signed_out"))

    def forget_troubles(self, session: Session, user: User) -> None:
        """An operator unlocked the account: nothing counts against it any more, wherever it was tried from."""
        self._troubles.forget_everything(session, normalised_username(user.username))

    def _count(self, session: Session, name: str, place: str, device: str | None, *, known: bool = False) -> _Attempt:
        """Count a try before it is judged. `known`: it comes from a session, so the account's slower lock is not asked."""
        credentials = self._accounts.credentials_of(session, name) if _could_be_a_name(name) else None
        user_id = _NOBODY if credentials is None else credentials.user.id
        by_device = self._devices.knows_device(session, user_id, device)
        by_place = self._devices.knows_place(session, user_id, place)
        # A device that is known is counted by itself: whoever shares its network can't hold it up.
        counted_at = f"device {device}" if by_device else place
        trial = self._troubles.try_at(session, name, counted_at)
        refusal, wait_s = None, trial.wait_s
        if not trial.allowed:
            refusal = "too many failures from this place"
        elif not self._troubles.try_account(session, name):
            # The same wait for everybody: else it would tell from where somebody signs in, and whether he exists.
            wait_s = self._settings.lockout_s
            if not (known or by_device or by_place):
                refusal = "too many failures of this account"
        return _Attempt(name, credentials, counted_at, wait_s, refusal)

    def _try_if_enrolled(self, session: Session, user_id: str, name: str) -> Trial | None:
        if not self._second_factors.state(session, user_id).enrolled:
            return None
        return self._troubles.try_second_factor(session, name)

    def _second_factor_moment(self, *, by_recovery: bool) -> datetime | None:
        """When the second factor was shown, for step-ups. A recovery code signs in and opens nothing that is dangerous."""
        return None if by_recovery else self._clock.now()

    def _same(self, session: Session, name: str, stored: PasswordHash) -> User:
        """The user, who may still sign in with the password that was judged. Held until the transaction ends."""
        current = self._accounts.credentials_of(session, name, hold=True)
        if current is None or current.password_hash != stored or _may_not(current.user):
            raise _login_failed("the account changed meanwhile", None)
        return current.user

    def _active(self, session: Session, live: LiveSession) -> LiveSession:
        current = self._sessions.still(session, live)
        if current.state != "active":
            raise AuthenticationFailed(
                "The session still owes its second factor.", code=ErrorCode.SECOND_FACTOR_REQUIRED
            )
        return current

    def _show(self, session: Session, user_id: str, code: str, *, by_recovery: bool, wait_s: int | None) -> int | None:
        """Use up the code; how many recovery codes are left, if it was one."""
        show: Callable[[Session, str, str], bool] = (
            self._second_factors.use_recovery_code if by_recovery else self._second_factors.check
        )
        if not show(session, user_id, code):
            raise _login_failed("wrong recovery code" if by_recovery else "wrong second factor", wait_s)
        return self._second_factors.state(session, user_id).recovery_codes_left if by_recovery else None

    def _signed_in(
        self,
        session: Session,
        attempt: _Attempt,
        kind: SessionKind,
        address: str,
        agent: str,
        device: str | None,
        second_factor_at: datetime | None,
        recovery_codes_left: int | None,
    ) -> SignedIn:
        opened = self._sessions.open(
            session,
            attempt.user_id,
            kind=kind,
            state="active",
            address=address,
            agent=agent,
            second_factor_at=second_factor_at,
        )
        self._troubles.forget_place(session, attempt.name, attempt.counted_at)
        return self._welcome(session, opened, device, recovery_codes_left)

    def _welcome(
        self, session: Session, opened: OpenedSession, device: str | None, recovery_codes_left: int | None
    ) -> SignedIn:
        """Nothing counts against the account any more, and where it was opened from is known."""
        live = opened.session
        name = normalised_username(live.username)
        self._troubles.forget_account(session, name)
        self._troubles.forget_second_factor(session, name)
        new_device = self._devices.remember(session, live.user_id, device, place_of(live.address))
        return SignedIn(live, opened.secret, new_device, recovery_codes_left)

    def _hashed(self, password: str, user: User, *, enrolled: bool) -> PasswordHash:
        owed = enrolled or self._accounts.owes_second_factor(user.role, mfa_required=user.mfa_required)
        try:
            return self._accounts.hash_password(
                password, username=user.username, email=user.email, with_second_factor=owed
            )
        except OperatorError as error:
            raise InvalidRequest(str(error), code=ErrorCode.PASSWORD_REFUSED, param="password") from error

    def _hashed_again(self, user: User, stored: PasswordHash, password: str) -> PasswordHash:
        again = self._accounts.hash_again(password)
        renewed = self._database.run(lambda session: self._accounts.renew_hash(session, user.id, stored, again))
        return again if renewed else stored


def _may_not(user: User) -> bool:
    return user.status != UserStatus.ACTIVE


def _could_be_a_name(name: str) -> bool:
    """PostgreSQL takes neither NUL nor half a surrogate pair; nobody is called so."""
    return len(name) <= _NAME_MAX and name.isprintable()


def _reason(attempt: _Attempt, check: PasswordCheck) -> str:
    if attempt.refusal is not None:
        return attempt.refusal
    if attempt.credentials is None:
        return "unknown user"
    if check is PasswordCheck.WRONG:
        return "wrong password" if attempt.credentials.password_hash is not None else "no password set yet"
    return f"the account is {attempt.credentials.user.status}"


def _login_failed(detail: str, wait_s: int | None) -> AuthenticationFailed:
    return AuthenticationFailed(LOGIN_REFUSED, code=ErrorCode.LOGIN_FAILED, detail=detail, retry_after_s=wait_s)


def _pending_invalid() -> AuthenticationFailed:
    return AuthenticationFailed(
        "There is no sign-in that waits for this code (any more); start again with the password.",
        code=ErrorCode.SESSION_INVALID,
    )


def _token_invalid() -> InvalidRequest:
    return InvalidRequest(
        "The one-time token is not valid (any more); ask for a new one.", code=ErrorCode.SETUP_TOKEN_INVALID
    )
