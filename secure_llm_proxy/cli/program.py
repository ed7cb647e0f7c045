"""All commands under one program."""

from __future__ import annotations

import sys

import click

from secure_llm_proxy import __version__
from secure_llm_proxy.cli import audit, database, doctor, keys, serve, settings, status, users
from secure_llm_proxy.cli.context import CommandContext
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.settings import SettingsError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="Secure LLM Proxy")
@click.pass_context
def program(context: click.Context) -> None:
    """Operate Secure LLM Proxy on this host."""
    context.obj = CommandContext()


for command in (
    *users.COMMANDS,
    *keys.COMMANDS,
    database.db,
    audit.audit,
    serve.serve,
    serve.first_run,
    settings.settings,
    status.show_status,
    status.show_events,
    doctor.doctor,
):
    program.add_command(command)


def main() -> None:
    """Run a command. What an operator can put right is one sentence on standard error and exit 1."""
    try:
        program.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        click.echo("Aborted.", err=True)
        sys.exit(1)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (OperatorError, SettingsError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except ProxyError as error:
        click.echo(f"Error: {error.public} ({error.detail or error.code})", err=True)
        sys.exit(1)
