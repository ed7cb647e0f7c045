"""Tables of the identity room, private to it. Rows never leave: the room gives frozen values (`accounts.py`)."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from secure_llm_proxy.foundation.database import Model, PrimaryKey, Timestamp
from secure_llm_proxy.identity.change_triggers import install_with_tables


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
    )

    id: Mapped[PrimaryKey]
    kid: Mapped[str] = mapped_column(String(8), unique=True, comment="public part of the key, 8 base62 characters")
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), comment="HMAC-SHA256 of the whole key")
    scopes: Mapped[list[str]] = mapped_column(JSON)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True), comment="null: every model")
    requests_per_minute: Mapped[int | None] = mapped_column(comment="null: the deployment's own limit")
    created_at: Mapped[Timestamp]
    expires_at: Mapped[Timestamp]
    revoked_at: Mapped[Timestamp | None]
    last_used_at: Mapped[Timestamp | None] = mapped_column(comment="written in batches, up to a minute late")

    user: Mapped[UserRow] = relationship(back_populates="api_keys")


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
        String(40), primary_key=True, comment="the public part of a key, or the id of a user"
    )
    revision: Mapped[int] = mapped_column(BigInteger, index=True, comment="at which it changed last")


install_with_tables(Model.metadata)
