"""Users as operators handle them: made, listed, changed, locked, reset, disabled when they leave.

Every function takes the session of a transaction that its caller owns, returns frozen values and never commits. Errors,
cursors and versions are those of `organisations.py`. A user is meant by id or by name, however that is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypedDict

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import ConflictError, OperatorError
from secure_llm_proxy.foundation.identifiers import OrganisationId, UserId, new_user_id, ulid
from secure_llm_proxy.foundation.secret_values import key_mark
from secure_llm_proxy.identity.api_keys import Kid, digest_of, random_base62
from secure_llm_proxy.identity.key_rules import objection_to
from secure_llm_proxy.identity.models import ApiKeyRow, ProjectMemberRow, ProjectRow, SetupTokenRow, UserRow
from secure_llm_proxy.identity.names import (
    DEFAULT_ORGANISATION_ID,
    Role,
    checked_email,
    checked_username,
    normalised_username,
    role_named,
    shown,
)
from secure_llm_proxy.identity.organisations import checked_page
from secure_llm_proxy.identity.passwords import PasswordCheck, PasswordHash, PasswordRules, PasswordVault
from secure_llm_proxy.identity.rows import (
    advance,
    held_keys,
    held_owners,
    organisation_row,
    require_version,
    revoke_rows,
    user_row,
)
from secure_llm_proxy.identity.sessions import end_sessions_of
from secure_llm_proxy.settings import IdentitySettings

_TOKEN_PREFIX = "slp_setup_"  # noqa: S105 -- a prefix, not a secret
# 43 base62 characters hold 256 bits.
_TOKEN_SECRET_LENGTH = 43
# A reset opens an account that may hold keys already: shorter than a first setup (SECURITY §2, "reset").
_RESET_TOKEN_S_MAX = 1800


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
    organisation_id: OrganisationId
    has_password: bool
    version: int
    created_at: datetime
    updated_at: datetime
    mfa_required: bool = False


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a password is judged by. Never leaves the room."""

    user: User
    password_hash: PasswordHash | None = field(repr=False)
    has_mark: bool = True


@dataclass(frozen=True, slots=True)
class OneTimeToken:
    """Sets a password once, until `expires_at`. `secret` exists here only."""

    user: User
    purpose: TokenPurpose
    expires_at: datetime
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChangedUser:
    """A user after a change, and the public parts of the keys that it revoked, to be announced."""

    user: User
    revoked: tuple[Kid, ...]


class UserChanges(TypedDict, total=False):
    """What is to change; what is left out stays. `organisation` is an id or a name."""

    email: str
    role: str
    organisation: str


class Accounts:
    """Users and passwords of this deployment.

    `pepper` guards one-time tokens, `password_pepper` passwords; both 32 bytes derived from SECRET_KEY. What was made under
    the previous ones is good too.
    """

    def __init__(
        self,
        settings: IdentitySettings,
        clock: Clock,
        *,
        pepper: bytes,
        password_pepper: bytes,
        previous_peppers: Sequence[bytes] = (),
        previous_password_peppers: Sequence[bytes] = (),
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._peppers = (pepper, *previous_peppers)
        self._mark = key_mark(pepper)
        self._password_mark = key_mark(password_pepper)
        self._rules = PasswordRules(settings)
        self._vault = PasswordVault(password_pepper, previous_password_peppers)

    def hash_password(
        self, password: str, *, username: str, email: str, with_second_factor: bool = False
    ) -> PasswordHash:
        """Judge a new password and return what may be stored of it.

        Apart from the functions that store it, because it takes 0.1 s and no transaction should last that long.
        `with_second_factor`: the user has, or must have, one, and the password may be shorter.
        Raises `OperatorError` with the rule that the password breaks.
        """
        refusal = self._rules.refusal(password, context=(username, email), with_second_factor=with_second_factor)
        if refusal is not None:
            raise OperatorError(refusal)
        return self._vault.hash(password)

    def hash_again(self, password: str) -> PasswordHash:
        """Of a password that is the right one already, with today's parameters and pepper."""
        return self._vault.hash(password)

    def check_password(self, stored: PasswordHash | None, password: str) -> PasswordCheck:
        """Takes as long as `hash_password`, also without a stored hash (no such user)."""
        return self._vault.check(stored, password)

    def owes_second_factor(self, role: Role, *, mfa_required: bool) -> bool:
        """Whether a user must have a second factor: by MFA_REQUIRED, or by himself."""
        required = self._settings.mfa_required
        return mfa_required or required == "all" or (required == "admins" and role in {Role.OWNER, Role.ADMIN})

    def credentials_of(self, session: Session, normalised: str, *, hold: bool = False) -> Credentials | None:
        """Of the user of that normalised name, held until the transaction ends if `hold`."""
        wanted = select(UserRow).where(UserRow.username_normalised == normalised)
        # The key stays shared: rows that only refer to the user may be made meanwhile, by whoever holds what we want next.
        row = session.scalar(wanted.with_for_update(key_share=True) if hold else wanted)
        return (
            None
            if row is None
            else Credentials(
                _user(row),
                PasswordHash(row.password_hash) if row.password_hash else None,
                row.password_pepper is not None,
            )
        )

    def create_user(
        self,
        session: Session,
        *,
        username: str,
        email: str,
        role: str,
        password: PasswordHash | None = None,
        user_id: UserId | None = None,
        organisation: str = DEFAULT_ORGANISATION_ID,
        mfa_required: bool = False,
    ) -> User:
        """`organisation` is an id or a name."""
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
            password_pepper=None if password is None else self._password_mark,
            organisation_id=organisation_row(session, organisation).id,
            version=1,
            mfa_required=mfa_required,
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

    def list_users(
        self,
        session: Session,
        *,
        after: str | None = None,
        limit: int | None = None,
        organisation_id: str | None = None,
        role: str | None = None,
        status: str | None = None,
        name_prefix: str | None = None,
    ) -> list[User]:
        """In the order of ids, which is that of their making."""
        which: list[ColumnElement[bool]] = []
        if after is not None:
            which.append(UserRow.id > after)
        if organisation_id is not None:
            which.append(UserRow.organisation_id == organisation_id)
        if role is not None:
            which.append(UserRow.role == role_named(role))
        if status is not None:
            which.append(UserRow.status == _checked_status(status))
        if name_prefix is not None:
            which.append(UserRow.username_normalised.startswith(normalised_username(name_prefix), autoescape=True))
        wanted = select(UserRow).where(*which).order_by(UserRow.id).limit(checked_page(limit))
        return [_user(row) for row in session.scalars(wanted)]

    def find_user(self, session: Session, username: str) -> User:
        """The user of that name, however it is written, or id. Raises `NotFoundError` when there is none."""
        return _user(user_row(session, username))

    def has_owner(self, session: Session) -> bool:
        """Whether anybody may make organisations. The first administrator of a deployment without an owner becomes it."""
        return bool(held_owners(session))

    def update_user(
        self, session: Session, username: str, changes: UserChanges, *, version: int | None = None
    ) -> ChangedUser:
        """Another e-mail address, role or organisation.

        With role or organisation all sessions of the user end, and keys that the user could not be given any more are
        revoked. Raises `ConflictError` for the last active owner, and for another organisation while keys work.
        """
        owners = held_owners(session)
        row = self._held(session, username, version)
        email = checked_email(changes["email"]) if "email" in changes else row.email
        role = role_named(changes["role"]) if "role" in changes else Role(row.role)
        organisation_id = row.organisation_id
        if "organisation" in changes:
            organisation_id = organisation_row(session, changes["organisation"]).id
        if (email, role, organisation_id) == (row.email, row.role, row.organisation_id):
            return ChangedUser(_user(row), ())
        if role is not Role.OWNER:
            _require_another_owner(owners, row)
        now = self._clock.now()
        revoked: tuple[Kid, ...] = ()
        keys = held_keys(session, ApiKeyRow.user_id == row.id, ApiKeyRow.revoked_at.is_(None))
        if organisation_id != row.organisation_id:
            if any(key.expires_at > now for key in keys):
                raise ConflictError(
                    f"{shown(row.username)} has API keys in projects of the present organisation; revoke them first."
                )
            _leave_projects(session, row.id)
        if (role, organisation_id) != (row.role, row.organisation_id):
            end_sessions_of(session, row.id, "privileges_changed", now)
            # Whoever was shown one for the old role must not come in by it as the new one.
            self._void_tokens(session, row, now)
        row.email, row.role, row.organisation_id = email, role, organisation_id
        with session.no_autoflush:
            revoked = revoke_rows([key for key in keys if _is_lost(session, row, key)], now)
        advance(row, now)
        session.flush()
        return ChangedUser(_user(row), revoked)

    def lock_user(self, session: Session, username: str, *, version: int | None = None) -> User:
        """The user's keys are refused from now on, and every session has ended. Locking twice is no error."""
        return self._change_status(session, username, UserStatus.LOCKED, version)

    def unlock_user(self, session: Session, username: str, *, version: int | None = None) -> User:
        return self._change_status(session, username, UserStatus.ACTIVE, version)

    def disable_user(self, session: Session, username: str, *, version: int | None = None) -> ChangedUser:
        """The user has left, for good: keys revoked, sessions ended, memberships gone, tokens void. The name stays taken.

        Raises `ConflictError` for the last active owner. Disabling twice is no error.
        """
        owners = held_owners(session)
        row = user_row(session, username, hold=True)
        require_version(row, version)
        if row.status == UserStatus.DISABLED:
            return ChangedUser(_user(row), ())
        _require_another_owner(owners, row)
        now = self._clock.now()
        keys = held_keys(session, ApiKeyRow.user_id == row.id, ApiKeyRow.revoked_at.is_(None))
        _leave_projects(session, row.id)
        end_sessions_of(session, row.id, UserStatus.DISABLED, now)
        self._void_tokens(session, row, now)
        row.status = UserStatus.DISABLED
        advance(row, now)
        revoked = revoke_rows(keys, now)
        session.flush()
        return ChangedUser(_user(row), revoked)

    def start_setup(self, session: Session, username: str) -> OneTimeToken:
        """A token with which a new user sets the first password."""
        return self._issue_token(session, user_row(session, username), TokenPurpose.SETUP)

    def start_password_reset(self, session: Session, username: str) -> OneTimeToken:
        """A token with which the user sets a new password. The old one stays good until then."""
        row = user_row(session, username)
        return self._issue_token(session, row, TokenPurpose.PASSWORD_RESET if row.password_hash else TokenPurpose.SETUP)

    def set_password(self, session: Session, username: str, password: PasswordHash) -> User:
        """Every session of the user ends, as with every new password."""
        row = user_row(session, username)
        self._store_password(session, row, password)
        return _user(row)

    def token_holder(self, session: Session, token: str) -> User:
        """Whose password `token` would set. Does not use it up. Raises `OperatorError` when it is no good (any more)."""
        row = session.scalar(
            select(SetupTokenRow)
            .options(joinedload(SetupTokenRow.user))
            .where(SetupTokenRow.digest.in_(self._token_digests(token)), SetupTokenRow.used_at.is_(None))
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
            .where(SetupTokenRow.digest.in_(self._token_digests(token)), SetupTokenRow.used_at.is_(None))
            .values(used_at=self._clock.now())
            .returning(SetupTokenRow.id)
        ).all()
        if len(used) != 1:
            raise _token_refused()
        row = session.get_one(UserRow, holder.id)
        self._store_password(session, row, password)
        return _user(row)

    def change_password(
        self, session: Session, user_id: UserId, before: PasswordHash, password: PasswordHash
    ) -> User | None:
        """The user with the new password; None, and nothing changed, when `before` is not what is stored any more."""
        row = session.scalar(select(UserRow).where(UserRow.id == user_id).with_for_update())
        if row is None or row.password_hash != before or row.status != UserStatus.ACTIVE:
            return None
        self._store_password(session, row, password)
        return _user(row)

    def renew_hash(self, session: Session, user_id: UserId, before: PasswordHash, again: PasswordHash) -> bool:
        """The same password, hashed with today's parameters and pepper: nothing ends by it."""
        renewed = session.execute(
            update(UserRow)
            .where(UserRow.id == user_id, UserRow.password_hash == before)
            .values(password_hash=again, password_pepper=self._password_mark)
            .returning(UserRow.id)
            .execution_options(synchronize_session=False)
        ).all()
        return bool(renewed)

    def _change_status(self, session: Session, username: str, status: UserStatus, version: int | None) -> User:
        owners = held_owners(session)
        row = self._held(session, username, version)
        if row.status != status:
            if status is not UserStatus.ACTIVE:
                _require_another_owner(owners, row)
            row.status = status
            advance(row, self._clock.now())
            session.flush()
        if status != UserStatus.ACTIVE:
            end_sessions_of(session, row.id, status, self._clock.now())
        return _user(row)

    def _held(self, session: Session, username: str, version: int | None) -> UserRow:
        row = user_row(session, username, hold=True)
        require_version(row, version)
        if row.status == UserStatus.DISABLED:
            raise ConflictError(f"The account {shown(row.username)} is disabled for good; create another user instead.")
        return row

    def _store_password(self, session: Session, row: UserRow, password: PasswordHash) -> None:
        now = self._clock.now()
        row.password_hash, row.password_pepper = password, self._password_mark
        row.updated_at = now
        self._void_tokens(session, row, now)
        session.flush()
        end_sessions_of(session, row.id, "password_changed", now)

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
                digest=self._token_digests(secret)[0],
                pepper=self._mark,
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

    def _token_digests(self, token: str) -> list[bytes]:
        """Under the present pepper, then under those before it."""
        return [digest_of(pepper, token.strip()) for pepper in self._peppers]


def _require_another_owner(owners: set[str], row: UserRow) -> None:
    if owners == {row.id}:
        raise ConflictError(
            f"{shown(row.username)} is the last active owner; make somebody else owner first (update-user --role owner)."
        )


def _leave_projects(session: Session, user_id: str) -> None:
    session.execute(delete(ProjectMemberRow).where(ProjectMemberRow.user_id == user_id))


def _is_lost(session: Session, user: UserRow, key: ApiKeyRow) -> bool:
    project = session.get_one(ProjectRow, key.project_id)
    return objection_to(session, user, kind=key.kind, scopes=key.scopes, project=project) is not None


def _checked_status(status: str) -> UserStatus:
    try:
        return UserStatus(status)
    except ValueError:
        raise OperatorError(f"There is no status {shown(status)}; use one of: {', '.join(UserStatus)}.") from None


def _username_taken(username: str) -> ConflictError:
    return ConflictError(f"A user {shown(username)} exists already; choose another name or reset that user's password.")


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
        organisation_id=OrganisationId(row.organisation_id),
        has_password=row.password_hash is not None,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
        mfa_required=row.mfa_required,
    )
