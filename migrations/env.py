"""Alembic's entry: runs every migration asked for in one transaction, on a connection that it is given.

`manage.py db` hands an engine over (`secure_llm_proxy/cli/database_schema.py`); Flask-Migrate's commands find theirs in
the application. A migration that fails leaves the schema as it was, on both databases.
"""

from __future__ import annotations

from typing import Literal

from alembic import context
from sqlalchemy import Connection, Engine, text

import secure_llm_proxy.admission.models
import secure_llm_proxy.audit.models
import secure_llm_proxy.identity.models
import secure_llm_proxy.routing.tables  # noqa: F401 -- the rooms' tables join Model.metadata by this
from secure_llm_proxy.foundation.database import AwareDateTime, Model

# Any constant of ours: whoever else migrates this PostgreSQL database at the same time waits for us.
_ADVISORY_LOCK = 0x736C70_6D6967


def _engine() -> Engine:
    given = context.config.attributes.get("engine")
    if given is None:
        # Only Flask-Migrate comes this way, inside an application context.
        from flask import current_app  # noqa: PLC0415

        given = current_app.extensions["migrate"].db.engine
    assert isinstance(given, Engine)
    return given


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Model.metadata,
        # SQLite can't alter most things in place: Alembic copies the table instead.
        render_as_batch=connection.dialect.name == "sqlite",
        # Alembic takes SQLite for a database without transactional DDL; with BEGIN sent by ourselves it has it.
        transactional_ddl=True,
        render_item=_render,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        context.run_migrations()
        if connection.dialect.name == "sqlite" and (
            broken := connection.execute(text("PRAGMA foreign_key_check")).all()
        ):
            raise RuntimeError(f"the migration leaves {len(broken)} rows that refer to nothing")


def _render(kind: str, item: object, _context: object) -> str | Literal[False]:
    """A generated migration names the plain column type: it must still run when our own type has moved or changed."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, AwareDateTime) else False


def _switch_foreign_keys(connection: Connection, *, on: bool) -> None:
    # A table copied by batch mode is dropped, and with foreign keys on that deletes what refers to it. The switch is
    # ignored inside a transaction, hence the raw connection.
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA foreign_keys={'ON' if on else 'OFF'}")
    cursor.close()


def run() -> None:
    if context.is_offline_mode():
        raise SystemExit("Migrations are run, not printed: use manage.py db upgrade.")
    with _engine().connect() as connection:
        if connection.dialect.name != "sqlite":
            _migrate(connection)
            return
        _switch_foreign_keys(connection, on=False)
        try:
            _migrate(connection)
        finally:
            _switch_foreign_keys(connection, on=True)


run()
