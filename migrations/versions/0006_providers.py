"""Providers that operators configure by command, their keys sealed.

Revision: 0006.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "providers",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("base_url", sa.String(500), nullable=False),
        sa.Column("query", sa.String(200), nullable=False),
        sa.Column(
            "needs_key", sa.Boolean(), nullable=False, comment="it is not asked while it needs a key and has none"
        ),
        sa.Column(
            "sealed_keys",
            sa.LargeBinary(),
            comment="AES-256-GCM, bound to name and origin; null: none, or erased with a change of the URL",
        ),
        sa.Column("models", sa.JSON(), nullable=False, comment="on offer; empty: its own list"),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column(
            "patience", sa.JSON(), nullable=False, comment="seconds; what is absent is as the settings have it"
        ),
        sa.Column("formats", sa.JSON(), comment="paths by wire format; null: those of its kind"),
        sa.Column("usage_in_streams", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, comment="advances with every change of the row"),
        sa.CheckConstraint("needs_key OR sealed_keys IS NULL", name=op.f("ck_providers_sealed_keys")),
        sa.CheckConstraint("version > 0", name=op.f("ck_providers_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_providers")),
        sa.UniqueConstraint("name", name=op.f("uq_providers_name")),
    )
    op.create_table(
        "providers_revision",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "revision",
            sa.BigInteger(),
            nullable=False,
            comment="advances in every transaction that changes providers",
        ),
        sa.CheckConstraint("id = 1", name=op.f("ck_providers_revision_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_providers_revision")),
    )


def downgrade() -> None:
    op.drop_table("providers_revision")
    op.drop_table("providers")
