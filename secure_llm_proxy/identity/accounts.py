"""Users and API keys as operators handle them: made, listed, locked, reset, revoked.

Every function takes the session of a transaction that its caller owns, returns frozen values and never commits. What an
operator must put right is an `OperatorError` that says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.foundation.identifiers import KeyId, UserId, new_user_id, ulid
from secure_llm_proxy.identity.api_keys import DrawnKey, Kid, digest_of, draw_api_key, is_kid, kid_of, random_base62
from secure_llm_proxy.identity.models import ApiKeyRow, SetupTokenRow, UserRow
from secure_llm_proxy.identity.names import (
    DEFAULT_ORGANISATION_ID,
    DEFAULT_PROJECT_ID,
    Role,
    checked_email,
    checked_name,
    checked_username,
    normalised_username,
    role_named,
    shown,
)
from secure_llm_proxy.identity.passwords import PasswordHash, PasswordRules, PasswordVault
from secure_llm_proxy.settings import IdentitySettings
from secure_llm_proxy.vocabulary.caller import SCOPE_CHAT, SCOPE_MODELS

SCOPES = (SCOPE_CHAT, SCOPE_MODELS)
ORIGIN_SCOPES = {"chat_access": SCOPE_CHAT}
_TOKEN_PREFIX = "slp_setup_"  # noqa: S105 -- a prefix, not a secret
# 43 base62 characters hold 256 bits.
_TOKEN_SECRET_LENGTH = 43
# A reset opens an account that may hold keys already: shorter than a first setup (SECURITY §2, "reset").
_RESET_TOKEN_S_MAX = 1800
_MODELS_MAX = 100
_MODEL_LENGTH_MAX = 200
_REQUESTS_PER_MINUTE_MAX = 1_000_000


class UserStatus(StrEnum):
    ACTIVE = "active"
    LOCKED = "locked"
    DISABLED = "disabled"


class TokenPurpose(StrEnum):
    SETUP = "setup"
    PASSWORD_RESET = "password_reset"  # noqa: S105 -- a purpose, not a password


@dataclass(frozen=True, slots=True)
class User:
    id: UserId
    username: str
    email: str
    role: Role
    status: UserStatus
    has_password: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class OneTimeToken:
    """Sets a password once, until `expires_at`. `secret` exists here only."""

    user: User
    purpose: TokenPurpose
    expires_at: datetime
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What may be known of a key. `kid` is its public part; `models` None means every model."""

    id: KeyId
    kid: Kid
    user_id: UserId
    username: str
    name: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None

    def status(self, now: datetime) -> str:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at <= now else "active"


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key just made. `secret` is the whole key and exists here only."""

    api_key: ApiKey
    secret: str = field(repr=False)


class Accounts:
    """Users, passwords and keys of this deployment.

    `pepper` guards keys and one-time tokens, `password_pepper` passwords; both 32 bytes derived from SECRET_KEY.
    """

    def __init__(self, settings: IdentitySettings, clock: Clock, *, pepper: bytes, password_pepper: bytes) -> None:
        self._settings = settings
        self._clock = clock
        self._pepper = pepper
        self._rules = PasswordRules(settings)
        self._vault = PasswordVault(password_pepper)

    def hash_password(self, password: str, *, username: str, email: str) -> PasswordHash:
        """Judge a new password and return what may be stored of it.

        Apart from the functions that store it, because it takes 0.1 s and no transaction should last that long.
        Raises `OperatorError` with the rule that the password breaks.
        """
        if (refusal := self._rules.refusal(password, context=(username, email))) is not None:
            raise OperatorError(refusal)
        return self._vault.hash(password)

    def create_user(
        self,
        session: Session,
        *,
        username: str,
        email: str,
        role: str,
        password: PasswordHash | None = None,
        user_id: UserId | None = None,
    ) -> User:
        shown_name, normalised = checked_username(username)
        now = self._clock.now()
        row = UserRow(
            id=user_id or new_user_id(),
            username=shown_name,
            username_normalised=normalised,
            email=checked_email(email),
            role=role_named(role),
            status=UserStatus.ACTIVE,
            password_hash=password,
            organisation_id=DEFAULT_ORGANISATION_ID,
            created_at=now,
            updated_at=now,
        )
        if session.scalar(select(UserRow.id).where(UserRow.username_normalised == normalised)) is not None:
            raise _username_taken(shown_name)
        session.add(row)
        try:
            session.flush()
        except IntegrityError as error:  # somebody else was quicker between the question and the insert
            raise _username_taken(shown_name) from error
        return _user(row)

    def list_users(self, session: Session) -> list[User]:
        """Every user, oldest first."""
        return [_user(row) for row in session.scalars(select(UserRow).order_by(UserRow.created_at, UserRow.id))]

    def find_user(self, session: Session, username: str) -> User:
        """The user of that name, however it is written. Raises `OperatorError` when there is none."""
        return _user(_user_row(session, username))

    def lock_user(self, session: Session, username: str) -> User:
        """The user's keys are refused from now on; nothing else of the account changes. Locking twice is no error."""
        return self._change_status(session, username, UserStatus.LOCKED)

    def unlock_user(self, session: Session, username: str) -> User:
        return self._change_status(session, username, UserStatus.ACTIVE)

    def start_setup(self, session: Session, username: str) -> OneTimeToken:
        """A token with which a new user sets the first password."""
        return self._issue_token(session, _user_row(session, username), TokenPurpose.SETUP)

    def start_password_reset(self, session: Session, username: str) -> OneTimeToken:
        """A token with which the user sets a new password. The old one stays good until then."""
        row = _user_row(session, username)
        return self._issue_token(session, row, TokenPurpose.PASSWORD_RESET if row.password_hash else TokenPurpose.SETUP)

    def set_password(self, session: Session, username: str, password: PasswordHash) -> User:
        row = _user_row(session, username)
        self._store_password(session, row, password)
        return _user(row)

    def token_holder(self, session: Session, token: str) -> User:
        """Whose password `token` would set. Does not use it up. Raises `OperatorError` when it is no good (any more)."""
        row = session.scalar(
            select(SetupTokenRow)
            .options(joinedload(SetupTokenRow.user))
            .where(SetupTokenRow.digest == self._token_digest(token), SetupTokenRow.used_at.is_(None))
        )
        if row is None or row.expires_at <= self._clock.now():
            raise _token_refused()
        if row.user.status != UserStatus.ACTIVE:
            raise OperatorError(f"The account {shown(row.user.username)} is {row.user.status}; unlock it first.")
        return _user(row.user)

    def redeem_token(self, session: Session, token: str, password: PasswordHash) -> User:
        """The password is set and the token used up, both or neither. Of two that try at once one succeeds."""
        holder = self.token_holder(session, token)
        used = session.execute(
            update(SetupTokenRow)
            .where(SetupTokenRow.digest == self._token_digest(token), SetupTokenRow.used_at.is_(None))
            .values(used_at=self._clock.now())
            .returning(SetupTokenRow.id)
        ).all()
        if len(used) != 1:
            raise _token_refused()
        row = session.get_one(UserRow, holder.id)
        self._store_password(session, row, password)
        return _user(row)

    def create_api_key(
        self,
        session: Session,
        *,
        username: str,
        name: str,
        expires_days: int | None = None,
        scopes: tuple[str, ...] | None = None,
        models: tuple[str, ...] | None = None,
        requests_per_minute: int | None = None,
        drawn: DrawnKey | None = None,
    ) -> IssuedKey:
        """A key that works at once. `drawn` lets the caller record its `kid` before it exists.

        Defaults: the settings' days to live, every scope, every model, the deployment's rate.
        """
        drawn = drawn or draw_api_key()
        # The user's row is held, so that two commands at once can't pass the limit together.
        user = _user_row(session, username, hold=True)
        if user.status != UserStatus.ACTIVE:
            raise OperatorError(f"The account {shown(user.username)} is {user.status}; unlock it before it gets a key.")
        now = self._clock.now()
        self._check_key_count(session, user, now)
        row = ApiKeyRow(
            id=drawn.id,
            kid=drawn.kid,
            kind="live",
            user=user,
            project_id=DEFAULT_PROJECT_ID,
            name=checked_name(name),
            digest=digest_of(self._pepper, drawn.secret),
            scopes=list(checked_scopes(scopes)),
            models=None if models is None else list(_checked_models(models)),
            requests_per_minute=_checked_rate(requests_per_minute),
            created_at=now,
            expires_at=now + timedelta(days=self._checked_days(expires_days)),
        )
        session.add(row)
        session.flush()
        return IssuedKey(_api_key(row), drawn.secret)

    def list_api_keys(self, session: Session, username: str | None = None) -> list[ApiKey]:
        """Every key ever made, or one user's, oldest first."""
        wanted = select(ApiKeyRow).options(joinedload(ApiKeyRow.user)).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
        if username is not None:
            wanted = wanted.where(ApiKeyRow.user_id == _user_row(session, username).id)
        return [_api_key(row) for row in session.scalars(wanted)]

    def find_api_key(self, session: Session, reference: str) -> ApiKey:
        """By public part (8 characters) or `key_…` id. Raises `OperatorError`, also when given a whole key."""
        return _api_key(_api_key_row(session, reference))

    def revoke_api_key(self, session: Session, reference: str) -> ApiKey:
        """The key is refused from now on, for ever. Revoking twice keeps the first moment."""
        row = _api_key_row(session, reference)
        if row.revoked_at is None:
            row.revoked_at = self._clock.now()
            session.flush()
        return _api_key(row)

    def _change_status(self, session: Session, username: str, status: UserStatus) -> User:
        row = _user_row(session, username)
        if row.status == UserStatus.DISABLED:
            raise OperatorError(f"The account {shown(row.username)} is disabled for good; create another user instead.")
        if row.status != status:
            row.status = status
            row.updated_at = self._clock.now()
            session.flush()
        return _user(row)

    def _store_password(self, session: Session, row: UserRow, password: PasswordHash) -> None:
        now = self._clock.now()
        row.password_hash = password
        row.updated_at = now
        self._void_tokens(session, row, now)
        session.flush()

    def _issue_token(self, session: Session, row: UserRow, purpose: TokenPurpose) -> OneTimeToken:
        now = self._clock.now()
        lifetime_s = self._settings.setup_token_s
        if purpose is TokenPurpose.PASSWORD_RESET:
            lifetime_s = min(lifetime_s, _RESET_TOKEN_S_MAX)
        secret = _TOKEN_PREFIX + random_base62(_TOKEN_SECRET_LENGTH)
        expires_at = now + timedelta(seconds=lifetime_s)
        self._void_tokens(session, row, now)
        session.add(
            SetupTokenRow(
                id="tok_" + ulid(),
                user=row,
                digest=self._token_digest(secret),
                purpose=purpose,
                created_at=now,
                expires_at=expires_at,
            )
        )
        session.flush()
        return OneTimeToken(_user(row), purpose, expires_at, secret)

    def _void_tokens(self, session: Session, row: UserRow, now: datetime) -> None:
        session.execute(
            update(SetupTokenRow)
            .where(SetupTokenRow.user_id == row.id, SetupTokenRow.used_at.is_(None))
            .values(used_at=now)
        )

    def _token_digest(self, token: str) -> bytes:
        return digest_of(self._pepper, token.strip())

    def _check_key_count(self, session: Session, user: UserRow, now: datetime) -> None:
        active = session.scalar(
            select(func.count())
            .select_from(ApiKeyRow)
            .where(ApiKeyRow.user_id == user.id, ApiKeyRow.revoked_at.is_(None), ApiKeyRow.expires_at > now)
        )
        if (active or 0) >= self._settings.keys_per_user_max:
            raise OperatorError(
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


def checked_scopes(scopes: tuple[str, ...] | None) -> tuple[str, ...]:
    """The scopes in their own order, the origin's names translated; None means all of them."""
    if scopes is None:
        return SCOPES
    wanted = {ORIGIN_SCOPES.get(scope, scope) for scope in scopes}
    if not wanted:
        raise OperatorError(f"A key needs at least one scope of: {', '.join(SCOPES)}.")
    if unknown := sorted(wanted.difference(SCOPES)):
        raise OperatorError(f"There is no scope {shown(unknown[0])}; use some of: {', '.join(SCOPES)}.")
    return tuple(scope for scope in SCOPES if scope in wanted)


def _checked_models(models: tuple[str, ...]) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(model.strip() for model in models))
    if not 1 <= len(wanted) <= _MODELS_MAX:
        raise OperatorError(f"A key may name 1 to {_MODELS_MAX} models; leave --models out to allow every model.")
    for model in wanted:
        if not 1 <= len(model) <= _MODEL_LENGTH_MAX or not model.isprintable():
            raise OperatorError(f"{shown(model)} is not a model's name: 1 to {_MODEL_LENGTH_MAX} printable characters.")
    return wanted


def _checked_rate(requests_per_minute: int | None) -> int | None:
    if requests_per_minute is not None and not 1 <= requests_per_minute <= _REQUESTS_PER_MINUTE_MAX:
        raise OperatorError(f"A key's rate is 1 to {_REQUESTS_PER_MINUTE_MAX} requests per minute.")
    return requests_per_minute


def _user_row(session: Session, username: str, *, hold: bool = False) -> UserRow:
    wanted = select(UserRow).where(UserRow.username_normalised == normalised_username(username))
    row = session.scalar(wanted.with_for_update() if hold else wanted)
    if row is None:
        raise OperatorError(f"There is no user {shown(username)}; list-users shows who exists.")
    return row


def _api_key_row(session: Session, reference: str) -> ApiKeyRow:
    reference = reference.strip()
    if (kid := kid_of(reference)) is not None:
        # A whole key in an argument stands in the process list and the shell's history: say so, and take the kid only.
        raise OperatorError(
            f"That is a whole API key, which should not be typed into a command; give its public part: {kid}"
        )
    wanted = select(ApiKeyRow).options(joinedload(ApiKeyRow.user))
    wanted = wanted.where(ApiKeyRow.kid == reference if is_kid(reference) else ApiKeyRow.id == reference)
    row = session.scalar(wanted)
    if row is None:
        raise OperatorError(f"There is no API key {_harmless(reference)}; list-api-keys shows which exist.")
    return row


def _harmless(reference: str) -> str:
    """A mistyped whole key is still most of a secret, so what looks like one is not repeated."""
    return "of that form" if reference.startswith("slp_") else shown(reference)


def _username_taken(username: str) -> OperatorError:
    return OperatorError(f"A user {shown(username)} exists already; choose another name or reset that user's password.")


def _token_refused() -> OperatorError:
    # One sentence for unknown, used and expired: which of them it was is nobody's business.
    return OperatorError("The one-time token is not valid (any more); have a new one made with reset-password.")


def _user(row: UserRow) -> User:
    return User(
        id=UserId(row.id),
        username=row.username,
        email=row.email,
        role=Role(row.role),
        status=UserStatus(row.status),
        has_password=row.password_hash is not None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _api_key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=KeyId(row.id),
        kid=Kid(row.kid),
        user_id=UserId(row.user_id),
        username=row.user.username,
        name=row.name,
        scopes=tuple(row.scopes),
        models=None if row.models is None else tuple(row.models),
        requests_per_minute=row.requests_per_minute,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
