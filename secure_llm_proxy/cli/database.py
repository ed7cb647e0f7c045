"""`manage.py db`: the schema's migrations."""

from __future__ import annotations

import click

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.database_schema import current_revision, run_migrations
from secure_llm_proxy.foundation.database import Database


@click.group()
def db() -> None:
    """Migrate the database."""


@db.command()
@click.option("--revision", default="head", show_default=True)
@pass_context
def upgrade(context: CommandContext, revision: str) -> None:
    """Bring the schema up to REVISION; does nothing when it is there already."""
    database = Database(context.settings.database)
    run_migrations(database.engine, "upgrade", revision)
    click.echo(f"The database schema is at {current_revision(database.engine) or 'base'}.")


@db.command()
@click.option("--revision", default="-1", show_default=True, help="A revision, `-1` for one step back, or `base`.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def downgrade(context: CommandContext, revision: str, *, yes: bool) -> None:
    """Take the schema back to REVISION. What newer tables held is lost."""
    if not yes:
        click.confirm(f"Take the schema back to {revision}? What newer tables hold is lost.", abort=True)
    database = Database(context.settings.database)
    context.recorded("db.downgrade", revision, {}, {}, lambda: run_migrations(database.engine, "downgrade", revision))
    click.echo(f"The database schema is at {current_revision(database.engine) or 'base'}.")


@db.command()
@pass_context
def current(context: CommandContext) -> None:
    """Print the schema's revision."""
    database = Database(context.settings.database)
    click.echo(current_revision(database.engine) or "base")
