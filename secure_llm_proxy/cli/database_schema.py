"""The schema's migrations, driven without a web application: up, down, and where it stands.

Source of the migrations: the folder `migrations/` beside the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import OperatorError

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def run_migrations(engine: Engine, action: Literal["upgrade", "downgrade"], revision: str) -> None:
    """The schema stands at `revision` (`head`, `base`, `-1`, an id), or is as it was and `OperatorError` says why.

    All steps are one transaction. Two at once on one database: the second waits and then finds nothing to do.
    """
    current_revision(engine)
    config = _config(engine)
    try:
        if action == "upgrade":
            command.upgrade(config, revision)
        else:
            command.downgrade(config, revision)
    except CommandError as error:
        raise OperatorError(f"The schema can't be taken to {revision!r}: {error}.") from error
    except DBAPIError as error:
        first_line = str(error.orig).strip().partition("\n")[0]
        raise OperatorError(f"The migration failed and the schema is as it was: {first_line}.") from error


def current_revision(engine: Engine) -> str | None:
    """Where the schema stands; None when no migration ever ran. Raises `OperatorError` when the database is away."""
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    except OperationalError as error:
        raise _unreachable(error) from error


def newest_revision() -> str:
    """The revision that this release's code wants."""
    revision = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert revision is not None
    return revision


def require_current_schema(database: Database) -> None:
    """Raise `OperatorError` unless the schema is exactly the one that this release's code wants."""
    current, newest = current_revision(database.engine), newest_revision()
    if current == newest:
        return
    if current is None:
        raise OperatorError("The database is empty; run: manage.py db upgrade")
    known = {script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()}
    if current not in known:
        raise OperatorError(
            f"The database was migrated by a newer release (revision {current}, this one knows up to {newest}); "
            "start that release, or downgrade with it first."
        )
    raise OperatorError(
        f"The database stands at revision {current}, this release needs {newest}; run: manage.py db upgrade"
    )


def _config(engine: Engine | None) -> Config:
    config = Config(MIGRATIONS / "alembic.ini")
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["engine"] = engine
    return config


def _unreachable(error: OperationalError) -> OperatorError:
    # The driver's own words may hold a user's name and a host's: the class of the failure is enough here.
    return OperatorError(
        f"The database does not answer ({type(error.orig).__name__}); look at DATABASE_URL and whether the server runs."
    )
