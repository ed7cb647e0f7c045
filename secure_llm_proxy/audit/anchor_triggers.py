"""The triggers that keep anchors as they are: rows are added, never changed, replaced or removed.

A checkpoint that could be overwritten would prove nothing. Whoever owns the tables can still drop them; who must not, connects
with a role that may only insert and select. The migrations hold their own copy; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import Connection, MetaData, event

_TABLE = "audit_anchors"
_REFUSAL = "audit anchors are kept as they are"

# REPLACE removes the old row without firing delete triggers: an anchor that is there is not inserted again.
_SQLITE = (
    f"""CREATE TRIGGER audit_anchors_keep_update BEFORE UPDATE ON audit_anchors BEGIN
    SELECT RAISE(ABORT, '{_REFUSAL}'); END""",
    f"""CREATE TRIGGER audit_anchors_keep_delete BEFORE DELETE ON audit_anchors BEGIN
    SELECT RAISE(ABORT, '{_REFUSAL}'); END""",
    """CREATE TRIGGER audit_anchors_keep_replace BEFORE INSERT ON audit_anchors
    WHEN EXISTS (SELECT 1 FROM audit_anchors WHERE log = NEW.log AND n = NEW.n) BEGIN
    SELECT RAISE(IGNORE); END""",
)
_POSTGRESQL = (
    f"""CREATE OR REPLACE FUNCTION keep_audit_anchors() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '{_REFUSAL}';
    END $$""",
    """CREATE TRIGGER audit_anchors_keep BEFORE UPDATE OR DELETE ON audit_anchors
    FOR EACH ROW EXECUTE FUNCTION keep_audit_anchors()""",
    """CREATE TRIGGER audit_anchors_keep_truncate BEFORE TRUNCATE ON audit_anchors
    FOR EACH STATEMENT EXECUTE FUNCTION keep_audit_anchors()""",
)


def install_with_tables(metadata: MetaData) -> None:
    """Whoever makes the tables from the models gets the triggers with them."""
    event.listen(metadata, "after_create", _after_create)
    event.listen(metadata, "after_drop", _after_drop)


def _after_create(_metadata: object, connection: Connection, **arguments: object) -> None:
    if _is_among(arguments["tables"]):
        for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
            connection.exec_driver_sql(statement)


def _after_drop(_metadata: object, connection: Connection, **arguments: object) -> None:
    if connection.dialect.name == "postgresql" and _is_among(arguments["tables"]):
        connection.exec_driver_sql("DROP FUNCTION IF EXISTS keep_audit_anchors()")


def _is_among(tables: object) -> bool:
    return isinstance(tables, list) and any(table.name == _TABLE for table in tables)
