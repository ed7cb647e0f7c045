"""Organisations, projects, second factors, sessions, kill switches, and what a key may be bound to.

Revision: 0003. Every user and key that stands there already joins the first organisation and its project.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_EVERY_KEY = "*"
_KEY_COLUMNS = (
    "kid, kind, user_id, project_id, digest, scopes, models, requests_per_minute, burst, concurrent, tokens_max, "
    "allowed_addresses, allowed_agents, expires_at, revoked_at, quarantined_at"
)
_USER_COLUMNS = "id, role, status, organisation_id"
_PROJECT_COLUMNS = "id, organisation_id, status, requests_per_minute"


def _noted_on_sqlite(subjects: str) -> str:
    # Not INSERT OR REPLACE: the conflict clause of the statement that fired the trigger would overrule it.
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
    f"""CREATE TRIGGER identity_notes_project_update AFTER UPDATE OF {_PROJECT_COLUMNS} ON projects BEGIN
    {_noted_on_sqlite(f"SELECT '{_EVERY_KEY}' AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_project_delete AFTER DELETE ON projects BEGIN
    {_noted_on_sqlite(f"SELECT '{_EVERY_KEY}' AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_kill AFTER INSERT ON kill_switches BEGIN
    {_noted_on_sqlite(f"SELECT '{_EVERY_KEY}' AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_kill_update AFTER UPDATE ON kill_switches BEGIN
    {_noted_on_sqlite(f"SELECT '{_EVERY_KEY}' AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_unkill AFTER DELETE ON kill_switches BEGIN
    {_noted_on_sqlite(f"SELECT '{_EVERY_KEY}' AS subject")} END""",
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
    f"""CREATE OR REPLACE FUNCTION note_change_of_every_key() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM note_identity_change(ARRAY['{_EVERY_KEY}']);
        RETURN NULL;
    END $$""",
    f"""CREATE TRIGGER identity_notes_project AFTER UPDATE OF {_PROJECT_COLUMNS} OR DELETE OR TRUNCATE ON projects
    FOR EACH STATEMENT EXECUTE FUNCTION note_change_of_every_key()""",
    """CREATE TRIGGER identity_notes_kill AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON kill_switches
    FOR EACH STATEMENT EXECUTE FUNCTION note_change_of_every_key()""",
)
# The first organisation and its project: everybody's, until an operator makes others. Their ids sort before all others.
_DEFAULT_ORGANISATION_ID = "org_00000000000000000000000000"
_DEFAULT_PROJECT_ID = "prj_00000000000000000000000000"
_FIRST_ROWS = (
    f"""INSERT INTO organisations (id, name, name_normalised, version, created_at, updated_at)
    VALUES ('{_DEFAULT_ORGANISATION_ID}', 'Default', 'default', 1, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)""",
    f"""INSERT INTO projects (id, organisation_id, name, name_normalised, status, version, created_at, updated_at)
    VALUES ('{_DEFAULT_PROJECT_ID}', '{_DEFAULT_ORGANISATION_ID}', 'Default', 'default', 'active', 1, CURRENT_TIMESTAMP,
        CURRENT_TIMESTAMP)""",
)


_BEFORE_KEY_COLUMNS = "kid, user_id, digest, scopes, models, requests_per_minute, expires_at, revoked_at"
_BEFORE_USER_COLUMNS = "id, role, status"
_SQLITE_BEFORE = tuple(
    statement.replace(_KEY_COLUMNS, _BEFORE_KEY_COLUMNS).replace(_USER_COLUMNS, _BEFORE_USER_COLUMNS)
    for statement in _SQLITE
    if " ON users" in statement or " ON api_keys" in statement
)
_POSTGRESQL_BEFORE = (
    f"""CREATE TRIGGER identity_notes_key AFTER UPDATE OF {_BEFORE_KEY_COLUMNS} OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION note_api_key_change()""",
    f"""CREATE TRIGGER identity_notes_user AFTER UPDATE OF {_BEFORE_USER_COLUMNS} OR DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION note_user_change()""",
    """CREATE TRIGGER identity_notes_key_truncate BEFORE TRUNCATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION note_api_key_change()""",
)
_SQLITE_TRIGGERS_BEFORE = (
    "identity_notes_key_update",
    "identity_notes_key_delete",
    "identity_notes_key_replace",
    "identity_notes_user_update",
    "identity_notes_user_delete",
    "identity_notes_user_replace",
)
_NEW_CHECKS_OF_KEYS = {
    "ck_api_keys_burst": "burst IS NULL OR burst > 0",
    "ck_api_keys_concurrent": "concurrent IS NULL OR concurrent > 0",
    "ck_api_keys_tokens_max": "tokens_max IS NULL OR tokens_max > 0",
    "ck_api_keys_kind": "kind IN ('live', 'test', 'adm')",
}
_SESSION_TABLES = (
    "kill_switches",
    "known_devices",
    "login_troubles",
    "project_members",
    "recovery_codes",
    "sessions",
    "totp_factors",
)


def upgrade() -> None:
    connection = op.get_bind()
    _drop_triggers_before(connection)
    op.create_table(
        "kill_switches",
        sa.Column("subject", sa.String(40), nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_kill_switches")),
    )
    op.create_table(
        "login_troubles",
        sa.Column("subject", sa.String(64), nullable=False, comment="half an HMAC-SHA256 of the account and half of what is counted, hex"),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("refused_until", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_login_troubles")),
    )
    op.create_index(op.f("ix_login_troubles_last_at"), "login_troubles", ["last_at"])

    op.create_table(
        "organisations",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(100), nullable=False, comment="as the operator typed it"),
        sa.Column(
            "name_normalised", sa.String(200), nullable=False, comment="NFKC, casefolded: what makes two names the same"
        ),
        sa.Column("version", sa.Integer(), nullable=False, comment="advances with every change made by an operator"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organisations")),
        sa.UniqueConstraint("name_normalised", name=op.f("uq_organisations_name_normalised")),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("organisation_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(100), nullable=False, comment="as the operator typed it"),
        sa.Column("name_normalised", sa.String(200), nullable=False, comment="NFKC, casefolded"),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column(
            "requests_per_minute",
            sa.Integer(),
            comment="of its keys that have no rate of their own; null: the deployment's",
        ),
        sa.Column("version", sa.Integer(), nullable=False, comment="advances with every change made by an operator"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('active', 'inactive')", name=op.f("ck_projects_status")),
        sa.CheckConstraint(
            "requests_per_minute IS NULL OR requests_per_minute > 0", name=op.f("ck_projects_requests_per_minute")
        ),
        sa.ForeignKeyConstraint(
            ["organisation_id"],
            ["organisations.id"],
            name=op.f("fk_projects_organisation_id_organisations"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("organisation_id", "name_normalised", name=op.f("uq_projects_organisation_id")),
    )
    op.create_index(op.f("ix_projects_organisation_id"), "projects", ["organisation_id"])

    op.create_table(
        "known_devices",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, comment="HMAC-SHA256 of the device's token, or of user and place"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_known_devices_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_known_devices")),
        sa.UniqueConstraint("digest", name=op.f("uq_known_devices_digest")),
    )
    op.create_index(op.f("ix_known_devices_expires_at"), "known_devices", ["expires_at"])
    op.create_index(op.f("ix_known_devices_user_id"), "known_devices", ["user_id"])

    op.create_table(
        "project_members",
        sa.Column("project_id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_project_members_project_id_projects"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_project_members_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "user_id", name=op.f("pk_project_members")),
    )
    op.create_index(op.f("ix_project_members_user_id"), "project_members", ["user_id"])

    op.create_table(
        "recovery_codes",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, comment="HMAC-SHA256 of user and code"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_recovery_codes_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recovery_codes")),
        sa.UniqueConstraint("digest", name=op.f("uq_recovery_codes_digest")),
    )
    op.create_index(op.f("ix_recovery_codes_user_id"), "recovery_codes", ["user_id"])

    op.create_table(
        "sessions",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, comment="HMAC-SHA256 of the session's secret"),
        sa.Column("kind", sa.String(8), nullable=False, comment="browser: a cookie; token: a header"),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("address", sa.String(45), nullable=False),
        sa.Column("agent", sa.String(200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False, comment="up to a minute late"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False, comment="whatever is done with it"),
        sa.Column("second_factor_at", sa.DateTime(timezone=True), comment="when a second factor was shown last"),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("end_reason", sa.String(40)),
        sa.CheckConstraint("kind IN ('browser', 'token')", name=op.f("ck_sessions_kind")),
        sa.CheckConstraint("state IN ('pending', 'active')", name=op.f("ck_sessions_state")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("digest", name=op.f("uq_sessions_digest")),
    )
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"])
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"])

    op.create_table(
        "totp_factors",
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column(
            "sealed_secret", sa.LargeBinary(255), nullable=False, comment="sealed under ENCRYPTION_KEY for this user"
        ),
        sa.Column(
            "last_step",
            sa.BigInteger(),
            nullable=False,
            comment="the newest time step whose code was used; 0: none yet",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("confirmed_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_totp_factors_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_totp_factors")),
    )
    for statement in _FIRST_ROWS:
        connection.exec_driver_sql(statement)
    _widen(connection)
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)


def _widen(connection: sa.Connection) -> None:
    with op.batch_alter_table("users") as users:
        users.add_column(
            sa.Column("organisation_id", sa.String(40), nullable=False, server_default=_DEFAULT_ORGANISATION_ID)
        )
        users.add_column(
            sa.Column(
                "mfa_required",
                sa.Boolean(),
                nullable=False,
                server_default=sa.false(),
                comment="must have a second factor whatever the deployment asks of the role",
            )
        )
        users.add_column(
            sa.Column(
                "version",
                sa.Integer(),
                nullable=False,
                server_default="1",
                comment="advances with every change made by an operator",
            )
        )
    with op.batch_alter_table("users") as users:
        users.alter_column("organisation_id", existing_type=sa.String(40), existing_nullable=False, server_default=None)
        users.alter_column("version", existing_type=sa.Integer(), existing_nullable=False, server_default=None)
        users.alter_column("mfa_required", existing_type=sa.Boolean(), existing_nullable=False, server_default=None)
        users.create_index(op.f("ix_users_organisation_id"), ["organisation_id"])
        users.create_foreign_key(
            op.f("fk_users_organisation_id_organisations"),
            "organisations",
            ["organisation_id"],
            ["id"],
            ondelete="RESTRICT",
        )
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(
            sa.Column(
                "kind",
                sa.String(4),
                nullable=False,
                server_default="live",
                comment="its prefix: live and test ask models, adm manages",
            )
        )
        keys.add_column(sa.Column("project_id", sa.String(40), nullable=False, server_default=_DEFAULT_PROJECT_ID))
        keys.add_column(sa.Column("burst", sa.Integer(), comment="null: the deployment's"))
        keys.add_column(sa.Column("concurrent", sa.Integer(), comment="requests in flight; null: the deployment's"))
        keys.add_column(
            sa.Column("tokens_max", sa.Integer(), comment="most that a request may ask for; null: as asked")
        )
        keys.add_column(
            sa.Column(
                "allowed_addresses",
                sa.JSON(none_as_null=True),
                comment="networks that may use it; null: those that may use the proxy",
            )
        )
        keys.add_column(
            sa.Column(
                "allowed_agents",
                sa.JSON(none_as_null=True),
                comment="globs of product tokens; null: those that may use the proxy",
            )
        )
        keys.add_column(sa.Column("rotated_from", sa.String(40), comment="id of the key that this one replaces"))
        keys.add_column(
            sa.Column(
                "version",
                sa.Integer(),
                nullable=False,
                server_default="1",
                comment="advances with every change made by an operator",
            )
        )
        keys.add_column(
            sa.Column(
                "quarantined_at", sa.DateTime(timezone=True), comment="refused because it was seen where keys leak"
            )
        )
        keys.add_column(sa.Column("quarantine_reason", sa.String(200)))
        keys.alter_column(
            "requests_per_minute",
            existing_type=sa.Integer(),
            existing_nullable=True,
            existing_comment="null: the deployment's own limit",
            comment="null: the project's or the deployment's limit",
        )
    with op.batch_alter_table("api_keys") as keys:
        for name, kind in (("kind", sa.String(4)), ("project_id", sa.String(40)), ("version", sa.Integer())):
            keys.alter_column(name, existing_type=kind, existing_nullable=False, server_default=None)
        for name, rule in _NEW_CHECKS_OF_KEYS.items():
            keys.create_check_constraint(op.f(name), rule)
        keys.create_index(op.f("ix_api_keys_project_id"), ["project_id"])
        keys.create_foreign_key(
            op.f("fk_api_keys_project_id_projects"), "projects", ["project_id"], ["id"], ondelete="RESTRICT"
        )
    if connection.dialect.name != "sqlite":
        op.alter_column(
            "identity_changes",
            "subject",
            existing_type=sa.String(40),
            existing_nullable=False,
            existing_comment="the public part of a key, or the id of a user",
            comment="the public part of a key, the id of a user, or * for every key",
        )


def _drop_triggers_before(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        for trigger in _SQLITE_TRIGGERS_BEFORE:
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
    else:
        connection.exec_driver_sql("DROP TRIGGER identity_notes_key ON api_keys")
        connection.exec_driver_sql("DROP TRIGGER identity_notes_key_truncate ON api_keys")
        connection.exec_driver_sql("DROP TRIGGER identity_notes_user ON users")


def downgrade() -> None:
    """Keys that management made narrower than 0002 can say are revoked; what only 0003 knows is lost."""
    connection = op.get_bind()
    _drop_triggers_before(connection)
    if connection.dialect.name == "sqlite":
        for trigger in ("project_update", "project_delete", "kill", "kill_update", "unkill"):
            connection.exec_driver_sql(f"DROP TRIGGER identity_notes_{trigger}")
    else:
        connection.exec_driver_sql("DROP TRIGGER identity_notes_project ON projects")
        connection.exec_driver_sql("DROP TRIGGER identity_notes_kill ON kill_switches")
        connection.exec_driver_sql("DROP FUNCTION note_change_of_every_key()")
    # Nothing that is refused today may work after it.
    connection.exec_driver_sql(
        "UPDATE api_keys SET revoked_at = CURRENT_TIMESTAMP WHERE revoked_at IS NULL AND ("
        "kind <> 'live' OR quarantined_at IS NOT NULL OR allowed_addresses IS NOT NULL OR allowed_agents IS NOT NULL "
        "OR tokens_max IS NOT NULL OR project_id IN (SELECT id FROM projects WHERE status <> 'active') "
        "OR EXISTS (SELECT 1 FROM kill_switches WHERE subject IN ('everything', api_keys.id, api_keys.user_id, api_keys.project_id)))"
    )
    with op.batch_alter_table("users") as users:
        users.drop_constraint(op.f("fk_users_organisation_id_organisations"), type_="foreignkey")
        users.drop_index(op.f("ix_users_organisation_id"))
        users.drop_column("version")
        users.drop_column("mfa_required")
        users.drop_column("organisation_id")
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_constraint(op.f("fk_api_keys_project_id_projects"), type_="foreignkey")
        keys.drop_index(op.f("ix_api_keys_project_id"))
        for name in _NEW_CHECKS_OF_KEYS:
            keys.drop_constraint(op.f(name), type_="check")
        for name in (
            "quarantine_reason",
            "quarantined_at",
            "version",
            "rotated_from",
            "allowed_agents",
            "allowed_addresses",
            "tokens_max",
            "concurrent",
            "burst",
            "project_id",
            "kind",
        ):
            keys.drop_column(name)
    for table in (*_SESSION_TABLES, "projects", "organisations"):
        op.drop_table(table)
    for statement in _SQLITE_BEFORE:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(statement)
    if connection.dialect.name != "sqlite":
        for statement in _POSTGRESQL_BEFORE:
            connection.exec_driver_sql(statement)
