"""Address rules: networks that operators, or too many violations, block or allow while the product runs.

Revision: 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "address_rules",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("list", sa.String(16), nullable=False),
        sa.Column("network", sa.String(43), nullable=False, comment="CIDR in its canonical form, v4-mapped as v4"),
        sa.Column("note", sa.String(200), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), comment="ignored from then on; null: never"),
        sa.Column("version", sa.Integer(), nullable=False, comment="advances with every change of the row"),
        sa.CheckConstraint("list IN ('blocked', 'allowed')", name=op.f("ck_address_rules_list")),
        sa.CheckConstraint("source IN ('operator', 'violations')", name=op.f("ck_address_rules_source")),
        sa.CheckConstraint("version > 0", name=op.f("ck_address_rules_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_address_rules")),
        sa.UniqueConstraint("list", "network", name=op.f("uq_address_rules_list")),
    )
    op.create_index(op.f("ix_address_rules_expires_at"), "address_rules", ["expires_at"])
    op.create_table(
        "address_rules_revision",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "revision", sa.BigInteger(), nullable=False, comment="advances in every transaction that changes rules"
        ),
        sa.CheckConstraint("id = 1", name=op.f("ck_address_rules_revision_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_address_rules_revision")),
    )


def downgrade() -> None:
    op.drop_table("address_rules_revision")
    op.drop_table("address_rules")
