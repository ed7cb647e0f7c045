"""Tables of the identity room, private to it. Rows never leave: the room gives frozen values (`accounts.py`)."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from secure_llm_proxy.foundation.database import Model, PrimaryKey, Timestamp
from secure_llm_proxy.identity.change_triggers import install_with_tables

_MARK = "under which pepper it was made (key_mark); null: before that was noted"


class OrganisationRow(Model):
    """Who owns projects and users. Nobody but an owner sees beyond the own one."""

    __tablename__ = "organisations"

    id: Mapped[PrimaryKey]
    name: Mapped[str] = mapped_column(String(100), comment="as the operator typed it")
    name_normalised: Mapped[str] = mapped_column(
        String(200), unique=True, comment="NFKC, casefolded: what makes two names the same"
    )
    version: Mapped[int] = mapped_column(default=1, comment="advances with every change made by an operator")
    created_at: Mapped[Timestamp]
    updated_at: Mapped[Timestamp]


class ProjectRow(Model):
    """What keys are made for: limits and reports are kept by project."""

    __tablename__ = "projects"
    __table_args__ = (
        UniqueConstraint("organisation_id", "name_normalised"),
        CheckConstraint("status IN ('active', 'inactive')", name="status"),
        CheckConstraint("requests_per_minute IS NULL OR requests_per_minute > 0", name="requests_per_minute"),
    )

    id: Mapped[PrimaryKey]
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisations.id", ondelete="RESTRICT"), index=True)
    name: Mapped[str] = mapped_column(String(100), comment="as the operator typed it")
    name_normalised: Mapped[str] = mapped_column(String(200), comment="NFKC, casefolded")
    status: Mapped[str] = mapped_column(String(16))
    requests_per_minute: Mapped[int | None] = mapped_column(
        comment="of its keys that have no rate of their own; null: the deployment's"
    )
    version: Mapped[int] = mapped_column(default=1, comment="advances with every change made by an operator")
    created_at: Mapped[Timestamp]
    updated_at: Mapped[Timestamp]


class ProjectMemberRow(Model):
    """Who may see a project and have keys in it."""

    __tablename__ = "project_members"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True)
    created_at: Mapped[Timestamp]


class UserRow(Model):
    """A person or a service that keys belong to."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("role IN ('owner', 'admin', 'operator', 'auditor', 'viewer', 'member')", name="role"),
        CheckConstraint("status IN ('active', 'locked', 'disabled')", name="status"),
    )

    id: Mapped[PrimaryKey]
    username: Mapped[str] = mapped_column(String(64), comment="as the operator typed it")
    username_normalised: Mapped[str] = mapped_column(
        String(128), unique=True, comment="NFKC, casefolded: what makes two names the same"
    )
    email: Mapped[str] = mapped_column(String(254))
    role: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    password_hash: Mapped[str | None] = mapped_column(
        String(255), comment="Argon2id of an HMAC of the password; null until one is set"
    )
    password_pepper: Mapped[str | None] = mapped_column(String(8), comment=_MARK)
    mfa_required: Mapped[bool] = mapped_column(
        default=False, comment="must have a second factor whatever the deployment asks of the role"
    )
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisations.id", ondelete="RESTRICT"), index=True)
    version: Mapped[int] = mapped_column(default=1, comment="advances with every change made by an operator")
    created_at: Mapped[Timestamp]
    updated_at: Mapped[Timestamp]

    api_keys: Mapped[list[ApiKeyRow]] = relationship(back_populates="user")
    setup_tokens: Mapped[list[SetupTokenRow]] = relationship(back_populates="user")


class SetupTokenRow(Model):
    """A token that sets a password once. The token itself is shown once and kept nowhere."""

    __tablename__ = "setup_tokens"
    __table_args__ = (CheckConstraint("purpose IN ('setup', 'password_reset')", name="purpose"),)

    id: Mapped[PrimaryKey]
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True, comment="HMAC-SHA256 of the token")
    pepper: Mapped[str | None] = mapped_column(String(8), comment=_MARK)
    purpose: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[Timestamp]
    expires_at: Mapped[Timestamp]
    used_at: Mapped[Timestamp | None] = mapped_column(comment="used, or made void by a newer one")

    user: Mapped[UserRow] = relationship(back_populates="setup_tokens")


class ApiKeyRow(Model):
    """An API key: its public part, what it may do, and a digest that recognises it."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("requests_per_minute IS NULL OR requests_per_minute > 0", name="requests_per_minute"),
        CheckConstraint("burst IS NULL OR burst > 0", name="burst"),
        CheckConstraint("concurrent IS NULL OR concurrent > 0", name="concurrent"),
        CheckConstraint("tokens_max IS NULL OR tokens_max > 0", name="tokens_max"),
        CheckConstraint("kind IN ('live', 'test', 'adm')", name="kind"),
    )

    id: Mapped[PrimaryKey]
    kid: Mapped[str] = mapped_column(String(8), unique=True, comment="public part of the key, 8 base62 characters")
    kind: Mapped[str] = mapped_column(String(4), comment="its prefix: live and test ask models, adm manages")
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"), index=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="RESTRICT"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), comment="HMAC-SHA256 of the whole key")
    pepper: Mapped[str | None] = mapped_column(String(8), comment=_MARK)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True), comment="null: every model")
    requests_per_minute: Mapped[int | None] = mapped_column(comment="null: the project's or the deployment's limit")
    burst: Mapped[int | None] = mapped_column(comment="null: the deployment's")
    concurrent: Mapped[int | None] = mapped_column(comment="requests in flight; null: the deployment's")
    tokens_max: Mapped[int | None] = mapped_column(comment="most that a request may ask for; null: as asked")
    allowed_addresses: Mapped[list[str] | None] = mapped_column(
        JSON(none_as_null=True), comment="networks that may use it; null: those that may use the proxy"
    )
    allowed_agents: Mapped[list[str] | None] = mapped_column(
        JSON(none_as_null=True), comment="globs of product tokens; null: those that may use the proxy"
    )
    rotated_from: Mapped[str | None] = mapped_column(String(40), comment="id of the key that this one replaces")
    version: Mapped[int] = mapped_column(default=1, comment="advances with every change made by an operator")
    created_at: Mapped[Timestamp]
    expires_at: Mapped[Timestamp]
    revoked_at: Mapped[Timestamp | None]
    quarantined_at: Mapped[Timestamp | None] = mapped_column(comment="refused because it was seen where keys leak")
    quarantine_reason: Mapped[str | None] = mapped_column(String(200))
    last_used_at: Mapped[Timestamp | None] = mapped_column(comment="written in batches, up to a minute late")

    user: Mapped[UserRow] = relationship(back_populates="api_keys")


class KillSwitchRow(Model):
    """Who is stopped at once: a key, user or project by its id, or `everything`."""

    __tablename__ = "kill_switches"

    subject: Mapped[str] = mapped_column(String(40), primary_key=True)
    reason: Mapped[str] = mapped_column(String(200))
    created_by: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[Timestamp]


class TotpFactorRow(Model):
    """A person's second factor. Being enrolled while `confirmed_at` is null."""

    __tablename__ = "totp_factors"

    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    sealed_secret: Mapped[bytes] = mapped_column(LargeBinary(255), comment="sealed under ENCRYPTION_KEY for this user")
    last_step: Mapped[int] = mapped_column(BigInteger, comment="the newest time step whose code was used; 0: none yet")
    created_at: Mapped[Timestamp]
    confirmed_at: Mapped[Timestamp | None]


class RecoveryCodeRow(Model):
    """A code that stands in for the second factor once."""

    __tablename__ = "recovery_codes"

    id: Mapped[PrimaryKey]
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True, comment="HMAC-SHA256 of user and code")
    pepper: Mapped[str | None] = mapped_column(String(8), comment=_MARK)
    created_at: Mapped[Timestamp]
    used_at: Mapped[Timestamp | None]


class SessionRow(Model):
    """A person who has logged in, or is about to (`pending`: the second factor is still owed)."""

    __tablename__ = "sessions"
    __table_args__ = (
        CheckConstraint("kind IN ('browser', 'token')", name="kind"),
        CheckConstraint("state IN ('pending', 'active')", name="state"),
    )

    id: Mapped[PrimaryKey]
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True, comment="HMAC-SHA256 of the session's secret")
    pepper: Mapped[str | None] = mapped_column(String(8), comment=_MARK)
    kind: Mapped[str] = mapped_column(String(8), comment="browser: a cookie; token: a header")
    state: Mapped[str] = mapped_column(String(8))
    address: Mapped[str] = mapped_column(String(45))
    agent: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[Timestamp]
    last_seen_at: Mapped[Timestamp] = mapped_column(comment="up to a minute late")
    expires_at: Mapped[Timestamp] = mapped_column(index=True, comment="whatever is done with it")
    second_factor_at: Mapped[Timestamp | None] = mapped_column(comment="when a second factor was shown last")
    ended_at: Mapped[Timestamp | None]
    end_reason: Mapped[str | None] = mapped_column(String(40))


class LoginTroubleRow(Model):
    """Tries to sign in that did not succeed yet: by account and place, by account, or for a second factor."""

    __tablename__ = "login_troubles"

    subject: Mapped[str] = mapped_column(
        String(64), primary_key=True, comment="half an HMAC-SHA256 of the account and half of what is counted, hex"
    )
    failures: Mapped[int]
    last_at: Mapped[Timestamp] = mapped_column(index=True)
    refused_until: Mapped[Timestamp | None]


class KnownDeviceRow(Model):
    """A browser or tool, or a place, from which somebody has signed in: the account's slower lock does not hold it up."""

    __tablename__ = "known_devices"

    id: Mapped[PrimaryKey]
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    digest: Mapped[bytes] = mapped_column(
        LargeBinary(32), unique=True, comment="HMAC-SHA256 of the device's token, or of user and place"
    )
    created_at: Mapped[Timestamp]
    expires_at: Mapped[Timestamp] = mapped_column(index=True)


class PersonKeyRow(Model):
    """What once made pseudonyms of persons, so that they are found, and can be erased, in older records of the audit log."""

    __tablename__ = "person_keys"

    mark: Mapped[str] = mapped_column(String(8), primary_key=True, comment="of the key, and tells nothing of it")
    sealed_key: Mapped[bytes] = mapped_column(LargeBinary(255), comment="sealed under ENCRYPTION_KEY")
    created_at: Mapped[Timestamp]


class IdentityRevisionRow(Model):
    """The one row that every change that matters for identification advances. Written by triggers only."""

    __tablename__ = "identity_revision"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(BigInteger, comment="advances with every change that matters to a caller")


class IdentityChangeRow(Model):
    """Which key or user changed last at which revision. Written by triggers only; at most a row for each of them."""

    __tablename__ = "identity_changes"

    subject: Mapped[str] = mapped_column(
        String(40), primary_key=True, comment="the public part of a key, the id of a user, or * for every key"
    )
    revision: Mapped[int] = mapped_column(BigInteger, index=True, comment="at which it changed last")


install_with_tables(Model.metadata)
