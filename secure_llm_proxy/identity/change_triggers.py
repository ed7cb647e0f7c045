"""The triggers that note every change of a user or key that matters for identification, whoever makes it.

Each change advances the one row of `identity_revision` and stamps the key (or user) in `identity_changes` with it, in the
changing transaction itself. On PostgreSQL that row's lock orders such transactions by their commit: who reads revision R
sees every change up to R, which a sequence would not promise. `last_used_at`, names and passwords advance nothing, and
neither does a new key, which nobody can remember yet. What touches very many keys at once (a project, a kill switch) is
noted as a change of every key.

The migrations hold their own copy; a test compares the two. Source: docs/decisions/0005.
"""

from __future__ import annotations

from sqlalchemy import Connection, MetaData, event

from secure_llm_proxy.identity.names import DEFAULT_ORGANISATION_ID, DEFAULT_PROJECT_ID

EVERY_KEY = "*"
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
    {_noted_on_sqlite(f"SELECT '{EVERY_KEY}' AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_project_delete AFTER DELETE ON projects BEGIN
    {_noted_on_sqlite(f"SELECT '{EVERY_KEY}' AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_kill AFTER INSERT ON kill_switches BEGIN
    {_noted_on_sqlite(f"SELECT '{EVERY_KEY}' AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_kill_update AFTER UPDATE ON kill_switches BEGIN
    {_noted_on_sqlite(f"SELECT '{EVERY_KEY}' AS subject")} END""",
    f"""CREATE TRIGGER identity_notes_unkill AFTER DELETE ON kill_switches BEGIN
    {_noted_on_sqlite(f"SELECT '{EVERY_KEY}' AS subject")} END""",
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
        PERFORM note_identity_change(ARRAY['{EVERY_KEY}']);
        RETURN NULL;
    END $$""",
    f"""CREATE TRIGGER identity_notes_project AFTER UPDATE OF {_PROJECT_COLUMNS} OR DELETE OR TRUNCATE ON projects
    FOR EACH STATEMENT EXECUTE FUNCTION note_change_of_every_key()""",
    """CREATE TRIGGER identity_notes_kill AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON kill_switches
    FOR EACH STATEMENT EXECUTE FUNCTION note_change_of_every_key()""",
)
_FUNCTIONS = (
    "note_api_key_change()",
    "note_user_change()",
    "note_change_of_every_key()",
    "note_identity_change(varchar[])",
)
_TABLES = {"organisations", "projects", "users", "api_keys", "kill_switches", "identity_revision", "identity_changes"}
_FIRST_ROWS = (
    f"""INSERT INTO organisations (id, name, name_normalised, version, created_at, updated_at)
    VALUES ('{DEFAULT_ORGANISATION_ID}', 'Default', 'default', 1, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)""",  # noqa: S608 -- constants of ours
    f"""INSERT INTO projects (id, organisation_id, name, name_normalised, status, version, created_at, updated_at)
    VALUES ('{DEFAULT_PROJECT_ID}', '{DEFAULT_ORGANISATION_ID}', 'Default', 'default', 'active', 1, CURRENT_TIMESTAMP,
        CURRENT_TIMESTAMP)""",  # noqa: S608 -- constants of ours
    "INSERT INTO identity_revision (id, revision) VALUES (1, 1)",
)


def install_with_tables(metadata: MetaData) -> None:
    """Whoever makes the tables from the models gets the triggers and the first rows with them."""
    event.listen(metadata, "after_create", _after_create)
    event.listen(metadata, "after_drop", _after_drop)


def _after_create(_metadata: object, connection: Connection, **arguments: object) -> None:
    if not _made(arguments["tables"]) >= _TABLES:
        return
    for statement in _FIRST_ROWS:
        connection.exec_driver_sql(statement)
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)


def _after_drop(_metadata: object, connection: Connection, **arguments: object) -> None:
    if connection.dialect.name == "postgresql" and _made(arguments["tables"]) >= _TABLES:
        for function in _FUNCTIONS:
            connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {function}")


def _made(tables: object) -> set[str]:
    return {table.name for table in tables} if isinstance(tables, list) else set()
