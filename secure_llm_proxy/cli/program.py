"""All commands under one program. A command's module is imported when the command is used.

`manage.py serve` and `--help` would else import every part of the product: 0.5 s and 74 MB (2026-11-21).
"""

from __future__ import annotations

import errno
import importlib
import sys

import click

from secure_llm_proxy import __version__
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError

# name: module, attribute, first paragraph of its docstring (a test holds them together)
COMMANDS = {
    "address-rules": (
        "address_rules",
        "address_rules",
        "Networks that are blocked or allowed beside BLOCKED_IPS and ALLOWED_IPS, without a restart.",
    ),
    "audit": ("audit", "audit", "The sealed audit log."),
    "change-password": (
        "users",
        "change_password",
        "Change a password by showing the old one. Every session of the user ends. reset-password does without the old one.",
    ),
    "cleanup-sessions": (
        "sessions",
        "cleanup_sessions",
        "Delete what nothing needs any more: sessions and one-time tokens a day after their end, old failures, old devices.",
    ),
    "check-leaks": (
        "keys",
        "check_leaks",
        "Look for API keys of ours in FILES (- is standard input). Exit 1 when one is found that works.",
    ),
    "create-admin": (
        "users",
        "create_admin",
        "Make an administrator: ready with a password, else with a one-time setup token that is printed once.",
    ),
    "create-api-key": (
        "keys",
        "create_api_key",
        "Make an API key, which works at once, and print it. It is shown this once and kept nowhere.",
    ),
    "create-user": (
        "users",
        "create_user",
        "Make a user: ready with a password, else with a one-time setup token that is printed once.",
    ),
    "db": ("database", "db", "Migrate the database."),
    "disable-user": (
        "users",
        "disable_user",
        "Disable a user who leaves, for good: keys are revoked, sessions end, the user belongs to no project.",
    ),
    "doctor": (
        "doctor",
        "doctor",
        "Look at everything this product stands on, and tell what to do about what is wrong. Exit 1 when something is.",
    ),
    "end-session": (
        "sessions",
        "end_session",
        "End the session ID (ses_…), or all sessions of a user. They are refused everywhere within seconds.",
    ),
    "enroll-mfa": (
        "second_factors",
        "enroll_mfa",
        "Set up a user's second factor here: a QR code for an authenticator app, then recovery codes, shown once.",
    ),
    "kill": (
        "kill",
        "kill",
        "Stop SUBJECT within 5 s, running answers too: a key, user, project or organisation (id or name), or `everything`.",
    ),
    "kill-switches": ("kill", "kill_switches", "List who is stopped by a kill switch."),
    "list-api-keys": ("keys", "list_api_keys", "List API keys: their public parts, never the keys."),
    "list-sessions": (
        "sessions",
        "list_sessions",
        "List who has signed in: from where, since when, until when.",
    ),
    "list-users": ("users", "list_users", "List every user."),
    "lock-user": (
        "users",
        "lock_user",
        "Lock a user: every key of the account is refused until unlock-user, and every session has ended.",
    ),
    "models": ("models", "models", "Models: which are on offer, and which way a request goes."),
    "organisations": ("projects", "organisations", "Organisations: who owns projects and users."),
    "projects": ("projects", "projects", "Projects: what keys are made for, and who may have keys in them."),
    "providers": (
        "providers",
        "providers",
        "Providers: which there are, whether they answer, and those that are kept in the database.",
    ),
    "quarantine-api-key": (
        "keys",
        "quarantine_api_key",
        "Refuse the API key KEY from now on, until release-api-key: it may have leaked.",
    ),
    "release-api-key": (
        "keys",
        "release_api_key",
        "Let the quarantined API key KEY work again. One that has leaked is to be rotated or revoked instead.",
    ),
    "reset-mfa": (
        "second_factors",
        "reset_mfa",
        "Remove a user's second factor and recovery codes, and end every session. Only this command can do so for others.",
    ),
    "reset-password": (
        "users",
        "reset_password",
        "Print a one-time token with which the user sets a new password, or set one that is given here.",
    ),
    "revoke-api-key": (
        "keys",
        "revoke_api_key",
        "Revoke the API key KEY (its public part or key_… id) for ever. It is refused everywhere within seconds.",
    ),
    "rotate-api-key": (
        "keys",
        "rotate_api_key",
        "Make a successor of the API key KEY with the same properties, and print it once. The old key ends with the overlap.",
    ),
    "secrets": ("secrets", "secrets", "Replace SECRET_KEY and ENCRYPTION_KEY while everything goes on."),
    "serve": (
        "serve",
        "serve",
        "Start the audit writer and the server, keep them alive, stop them on Ctrl-C or SIGTERM.",
    ),
    "settings": (
        "settings",
        "settings",
        "Print every setting: docs/configuration.md and .env.example are made of this.",
    ),
    "setup-password": ("users", "setup_password", "Set a password with a one-time token, which is used up by it."),
    "show-events": ("status", "show_events", "Print the newest events of the audit log; contents stay sealed."),
    "show-status": (
        "status",
        "show_status",
        "Tell whether the server answers, what it stands on, and which settings are relaxed.",
    ),
    "unkill": ("kill", "unkill", "Let SUBJECT go again: what another kill switch still stops stays stopped."),
    "unlock-user": (
        "users",
        "unlock_user",
        "Unlock a user: the keys of the account work again, and failed sign-ins are forgotten.",
    ),
    "update-api-key": (
        "keys",
        "update_api_key",
        "Change the name, scopes, models, limits or lists of the API key KEY. What is not given stays.",
    ),
    "update-user": (
        "users",
        "update_user",
        "Change a user's e-mail address, role or organisation. What is not given stays.",
    ),
}
# Asked by programs of ours, not by people.
HIDDEN_COMMANDS = {
    "check-settings": ("serve", "check_settings"),
    "first-run": ("first_run", "first_run"),
    "host-backup": ("host_backup.commands", "host_backup"),
}
_WITHOUT_CONTEXT = {"serve", "settings", *HIDDEN_COMMANDS}


class _Program(click.Group):
    """A group whose commands are imported when they are asked for, and listed without."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  as above
        if cmd_name in COMMANDS:
            module, attribute, _ = COMMANDS[cmd_name]
        elif cmd_name in HIDDEN_COMMANDS:
            module, attribute = HIDDEN_COMMANDS[cmd_name]
        else:
            return None
        command = getattr(importlib.import_module(f"secure_llm_proxy.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  as above
        """As `click.Group` does."""
        room = formatter.width - 6 - max(map(len, COMMANDS))
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, click.Command(name, help=summary).get_short_help_str(room))
                    for name, (_, _, summary) in sorted(COMMANDS.items())
                ]
            )


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="Secure LLM Proxy")
@click.pass_context
def program(context: click.Context) -> None:
    """Operate Secure LLM Proxy on this host."""
    if context.invoked_subcommand not in _WITHOUT_CONTEXT:
        from secure_llm_proxy.cli.context import CommandContext  # noqa: PLC0415  it imports database, audit, identity

        context.obj = CommandContext()


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
    except OperatorError as error:
        _fail(str(error))
    except ProxyError as error:
        _fail(f"{error.public} ({error.detail or error.code})")
    except OSError as error:
        # A file or directory that this user may not read, or whose disk fails. Anything else is a defect of ours.
        if error.filename is None and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            _fail(
                f"{error.strerror}: the output, or a file, could not be written whole. What was asked for may be done all "
                "the same; look before you repeat it."
            )
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}.")
    except Exception as error:
        from secure_llm_proxy.settings import SettingsError  # noqa: PLC0415  80 ms, and only a failure asks for it

        if not isinstance(error, SettingsError):
            raise
        _fail(str(error))


def _fail(sentence: str) -> None:
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(1)
