"""The audit index: what the log says in clear, searchable; its checkpoints as anchors that nobody changes.

Revision: 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SEARCHED = ("usr", "sub", "ak", "prj", "sbj", "mdl", "ev", "dec", "ipx", "uax", "emx")
_SQLITE = (
    """CREATE TRIGGER audit_anchors_keep_update BEFORE UPDATE ON audit_anchors BEGIN
    SELECT RAISE(ABORT, 'audit anchors are kept as they are'); END""",
    """CREATE TRIGGER audit_anchors_keep_delete BEFORE DELETE ON audit_anchors BEGIN
    SELECT RAISE(ABORT, 'audit anchors are kept as they are'); END""",
    """CREATE TRIGGER audit_anchors_keep_replace BEFORE INSERT ON audit_anchors
    WHEN EXISTS (SELECT 1 FROM audit_anchors WHERE log = NEW.log AND n = NEW.n) BEGIN
    SELECT RAISE(IGNORE); END""",
)
_POSTGRESQL = (
    """CREATE OR REPLACE FUNCTION keep_audit_anchors() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'audit anchors are kept as they are';
    END $$""",
    """CREATE TRIGGER audit_anchors_keep BEFORE UPDATE OR DELETE ON audit_anchors
    FOR EACH ROW EXECUTE FUNCTION keep_audit_anchors()""",
    """CREATE TRIGGER audit_anchors_keep_truncate BEFORE TRUNCATE ON audit_anchors
    FOR EACH STATEMENT EXECUTE FUNCTION keep_audit_anchors()""",
)


def upgrade() -> None:
    op.create_table(
        "audit_index",
        sa.Column("log", sa.String(140), nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False, comment="place in the log"),
        sa.Column("seg", sa.BigInteger(), nullable=False, comment="number of the segment"),
        sa.Column("off", sa.BigInteger(), nullable=False, comment="first byte of the line in its segment"),
        sa.Column("len", sa.Integer(), nullable=False, comment="bytes of the line, without its newline"),
        sa.Column("t", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ty", sa.String(41), nullable=False, comment="type: llm.start, admin.intent …"),
        sa.Column("ev", sa.String(64), comment="the operators' event name"),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("rid", sa.String(64), nullable=False, comment="the request, or the change, that it is part of"),
        sa.Column("usr", sa.String(64), comment="whose request it was: `usr`, else the user in `by`"),
        sa.Column("sub", sa.String(64), comment="pseudonym of the person that an application named"),
        sa.Column("ak", sa.String(64), comment="public part of the API key, or id of the session"),
        sa.Column("prj", sa.String(64), comment="the key's project"),
        sa.Column("sbj", sa.String(128), comment="who was acted on: `user`, else `subject`"),
        sa.Column("mdl", sa.String(200), comment="model"),
        sa.Column("up", sa.String(64), comment="provider"),
        sa.Column("dec", sa.String(16), comment="decision: allow, refuse"),
        sa.Column("code", sa.String(64), comment="error code that the client was told"),
        sa.Column("st", sa.String(32), comment="how an exchange ended"),
        sa.Column("http", sa.Integer(), comment="status of the answer"),
        sa.Column("tin", sa.BigInteger(), comment="tokens of the prompt"),
        sa.Column("tout", sa.BigInteger(), comment="tokens of the answer"),
        sa.Column("ms", sa.BigInteger(), comment="how long it took, milliseconds"),
        sa.Column("rt", sa.String(128), comment="door"),
        sa.Column("ipx", sa.String(32), comment="blind index of the address"),
        sa.Column("uax", sa.String(32), comment="blind index of the user agent"),
        sa.Column("emx", sa.String(32), comment="blind index of the e-mail address"),
        sa.Column("by", sa.String(128), comment="who changed something: user:usr_…, host:root"),
        sa.Column("act", sa.String(64), comment="what was changed"),
        sa.Column("h", sa.LargeBinary(32), nullable=False, comment="leaf hash of the line"),
        sa.Column("rest", sa.JSON(), comment="other clear members"),
        sa.PrimaryKeyConstraint("log", "n", name=op.f("pk_audit_index")),
    )
    for column in ("t", "id", "rid"):
        op.create_index(op.f(f"ix_audit_index_{column}"), "audit_index", [column])
    op.create_index(op.f("ix_audit_index_ty"), "audit_index", ["ty", "t"])
    for column in _SEARCHED:
        has_it = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            op.f(f"ix_audit_index_{column}"),
            "audit_index",
            [column, "t"],
            postgresql_where=has_it,
            sqlite_where=has_it,
        )
    op.create_table(
        "audit_anchors",
        sa.Column("log", sa.String(140), nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False, comment="lines that it covers"),
        sa.Column("root", sa.String(44), nullable=False, comment="root of the tree, base64"),
        sa.Column("note", sa.String(1024), nullable=False, comment="the signed note (C2SP)"),
        sa.Column("t", sa.DateTime(timezone=True), nullable=False, comment="when it was signed"),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False, comment="when it was put here"),
        sa.PrimaryKeyConstraint("log", "n", name=op.f("pk_audit_anchors")),
    )
    op.create_table(
        "audit_index_state",
        sa.Column("log", sa.String(140), nullable=False),
        sa.Column(
            "next_n", sa.BigInteger(), nullable=False, comment="first line of the log that is not looked at yet"
        ),
        sa.Column("lease_holder", sa.String(64), comment="the one who may add rows"),
        sa.Column("lease_until", sa.DateTime(timezone=True), comment="from then on somebody else may"),
        sa.Column(
            "rebuilt_n",
            sa.BigInteger(),
            comment="first line that a rebuilding under way has not come to; null: none is",
        ),
        sa.Column("trouble", sa.String(300), comment="what an operator must look into; null: nothing"),
        sa.CheckConstraint("next_n >= 0", name=op.f("ck_audit_index_state_next_n")),
        sa.PrimaryKeyConstraint("log", name=op.f("pk_audit_index_state")),
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("audit_index_state")
    op.drop_table("audit_anchors")
    op.drop_table("audit_index")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION keep_audit_anchors()")
