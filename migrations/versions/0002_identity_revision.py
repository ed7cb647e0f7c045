"""A revision of who is who: triggers note every change that matters for identification, so that workers may remember keys.

Revision: 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY_COLUMNS = "kid, user_id, digest, scopes, models, requests_per_minute, expires_at, revoked_at"
_USER_COLUMNS = "id, role, status"


def _noted_on_sqlite(subjects: str) -> str:
    return f"""
    UPDATE identity_revision SET revision = revision + 1;
    DELETE FROM identity_changes WHERE subject IN ({subjects});
    INSERT INTO identity_changes (subject, revision)
        SELECT changed.subject, identity_revision.revision FROM ({subjects}) AS changed, identity_revision;
    """  # noqa: S608 -- constants of this file


# REPLACE INTO removes rows without firing delete triggers, hence those before an insert.
_SQLITE = (
    f"""CREATE TRIGGER identity_notes_key_update AFTER UPDATE OF {_KEY_COLUMNS} ON api_keys BEGIN
    {_noted_on_sqlite("SELECT OLD.kid AS subject UNION SELECT NEW.kid")} END""",
    f"""CREATE TRIGGER identity_notes_key_delete AFTER DELETE ON api_keys BEGIN
    {_noted_on_sqlite("SELECT OLD.kid AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_key_replace BEFORE INSERT ON api_keys
    WHEN EXISTS (SELECT 1 FROM api_keys WHERE kid = NEW.kid OR id = NEW.id) BEGIN
    {_noted_on_sqlite("SELECT kid AS subject FROM api_keys WHERE kid = NEW.kid OR id = NEW.id")} END""",  # noqa: S608
    f"""CREATE TRIGGER identity_notes_user_update AFTER UPDATE OF {_USER_COLUMNS} ON users BEGIN
    {_noted_on_sqlite("SELECT OLD.id AS subject UNION SELECT NEW.id")} END""",
    f"""CREATE TRIGGER identity_notes_user_delete AFTER DELETE ON users BEGIN
    {_noted_on_sqlite("SELECT OLD.id AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_user_replace BEFORE INSERT ON users
    WHEN EXISTS (SELECT 1 FROM users WHERE id = NEW.id OR username_normalised = NEW.username_normalised) BEGIN
    {
        _noted_on_sqlite(
            "SELECT id AS subject FROM users WHERE id = NEW.id OR username_normalised = NEW.username_normalised"
        )
    } END""",  # noqa: S608
)

# The revision advances once per transaction (xmin): a thousand versions of one row in one transaction would cost
# quadratic time. Row triggers run after all rows of their statement are locked, so the revision is locked last.
_POSTGRESQL = (
    """CREATE OR REPLACE FUNCTION note_identity_change(subjects varchar[]) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE identity_revision SET revision = revision + 1 WHERE xmin <> pg_current_xact_id()::xid;
        INSERT INTO identity_changes (subject, revision)
            SELECT DISTINCT changed.subject, identity_revision.revision
            FROM unnest(subjects) AS changed(subject), identity_revision
            ON CONFLICT (subject) DO UPDATE SET revision = excluded.revision;
    END $$""",
    """CREATE OR REPLACE FUNCTION note_api_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'TRUNCATE' THEN
            PERFORM note_identity_change(ARRAY(SELECT kid FROM api_keys));
        ELSIF TG_OP = 'UPDATE' THEN
            PERFORM note_identity_change(ARRAY[OLD.kid, NEW.kid]);
        ELSE
            PERFORM note_identity_change(ARRAY[OLD.kid]);
        END IF;
        RETURN NULL;
    END $$""",
    """CREATE OR REPLACE FUNCTION note_user_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' THEN
            PERFORM note_identity_change(ARRAY[OLD.id, NEW.id]);
        ELSE
            PERFORM note_identity_change(ARRAY[OLD.id]);
        END IF;
        RETURN NULL;
    END $$""",
    f"""CREATE TRIGGER identity_notes_key AFTER UPDATE OF {_KEY_COLUMNS} OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION note_api_key_change()""",
    """CREATE TRIGGER identity_notes_key_truncate BEFORE TRUNCATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION note_api_key_change()""",
    f"""CREATE TRIGGER identity_notes_user AFTER UPDATE OF {_USER_COLUMNS} OR DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION note_user_change()""",
)
_FUNCTIONS = ("note_api_key_change()", "note_user_change()", "note_identity_change(varchar[])")
_SQLITE_TRIGGERS = (
    "identity_notes_key_update",
    "identity_notes_key_delete",
    "identity_notes_key_replace",
    "identity_notes_user_update",
    "identity_notes_user_delete",
    "identity_notes_user_replace",
)
_POSTGRESQL_TRIGGERS = (
    ("identity_notes_key", "api_keys"),
    ("identity_notes_key_truncate", "api_keys"),
    ("identity_notes_user", "users"),
)


def upgrade() -> None:
    op.create_table(
        "identity_revision",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "revision", sa.BigInteger(), nullable=False, comment="advances with every change that matters to a caller"
        ),
        sa.CheckConstraint("id = 1", name=op.f("ck_identity_revision_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity_revision")),
    )
    op.create_table(
        "identity_changes",
        sa.Column("subject", sa.String(40), nullable=False, comment="the public part of a key, or the id of a user"),
        sa.Column("revision", sa.BigInteger(), nullable=False, comment="at which it changed last"),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_identity_changes")),
    )
    op.create_index(op.f("ix_identity_changes_revision"), "identity_changes", ["revision"])
    connection = op.get_bind()
    connection.exec_driver_sql("INSERT INTO identity_revision (id, revision) VALUES (1, 1)")
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        for trigger in _SQLITE_TRIGGERS:
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
    else:
        for trigger, table in _POSTGRESQL_TRIGGERS:
            connection.exec_driver_sql(f"DROP TRIGGER {trigger} ON {table}")
        for function in _FUNCTIONS:
            connection.exec_driver_sql(f"DROP FUNCTION {function}")
    op.drop_table("identity_changes")
    op.drop_table("identity_revision")
