"""Secrets can be replaced: under which pepper each digest was made, and the keys of earlier pseudonyms.

Revision: 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_MARK = "under which pepper it was made (key_mark); null: before that was noted"
_MARKS = (
    ("users", "password_pepper"),
    ("api_keys", "pepper"),
    ("setup_tokens", "pepper"),
    ("recovery_codes", "pepper"),
    ("sessions", "pepper"),
)


def upgrade() -> None:
    for table, column in _MARKS:
        op.add_column(table, sa.Column(column, sa.String(8), comment=_MARK))
    op.create_table(
        "person_keys",
        sa.Column("mark", sa.String(8), nullable=False, comment="of the key, and tells nothing of it"),
        sa.Column("sealed_key", sa.LargeBinary(255), nullable=False, comment="sealed under ENCRYPTION_KEY"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("mark", name=op.f("pk_person_keys")),
    )


def downgrade() -> None:
    op.drop_table("person_keys")
    for table, column in reversed(_MARKS):
        op.drop_column(table, column)
