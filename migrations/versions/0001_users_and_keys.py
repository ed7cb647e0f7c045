"""Users, their API keys, and the one-time tokens with which passwords are set.

Revision: 0001, the first.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("username", sa.String(64), nullable=False, comment="as the operator typed it"),
        sa.Column(
            "username_normalised",
            sa.String(128),
            nullable=False,
            comment="NFKC, casefolded: what makes two names the same",
        ),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column(
            "password_hash", sa.String(255), comment="Argon2id of an HMAC of the password; null until one is set"
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "role IN ('owner', 'admin', 'operator', 'auditor', 'viewer', 'member')", name=op.f("ck_users_role")
        ),
        sa.CheckConstraint("status IN ('active', 'locked', 'disabled')", name=op.f("ck_users_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("username_normalised", name=op.f("uq_users_username_normalised")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("kid", sa.String(8), nullable=False, comment="public part of the key, 8 base62 characters"),
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, comment="HMAC-SHA256 of the whole key"),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("models", sa.JSON(none_as_null=True), comment="null: every model"),
        sa.Column("requests_per_minute", sa.Integer(), comment="null: the deployment's own limit"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.Column("last_used_at", sa.DateTime(timezone=True), comment="written in batches, up to a minute late"),
        sa.CheckConstraint(
            "requests_per_minute IS NULL OR requests_per_minute > 0", name=op.f("ck_api_keys_requests_per_minute")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id_users"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("kid", name=op.f("uq_api_keys_kid")),
    )
    op.create_index(op.f("ix_api_keys_user_id"), "api_keys", ["user_id"])
    op.create_table(
        "setup_tokens",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, comment="HMAC-SHA256 of the token"),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), comment="used, or made void by a newer one"),
        sa.CheckConstraint("purpose IN ('setup', 'password_reset')", name=op.f("ck_setup_tokens_purpose")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_setup_tokens_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_setup_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_setup_tokens_digest")),
    )
    op.create_index(op.f("ix_setup_tokens_user_id"), "setup_tokens", ["user_id"])


def downgrade() -> None:
    op.drop_table("setup_tokens")
    op.drop_table("api_keys")
    op.drop_table("users")
