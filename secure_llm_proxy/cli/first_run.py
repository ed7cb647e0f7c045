"""The first run behind `scripts/run`: what is missing is made, told, and served."""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path

import click
from dotenv import dotenv_values

from secure_llm_proxy import __version__
from secure_llm_proxy.audit import initialise, running_writer
from secure_llm_proxy.cli.context import CommandContext
from secure_llm_proxy.cli.database_schema import run_migrations
from secure_llm_proxy.cli.serve import address_of, check_and_serve, host_option, override_address, port_option
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.identifiers import new_user_id
from secure_llm_proxy.identity import Role, draw_api_key
from secure_llm_proxy.server.start import require_free_address
from secure_llm_proxy.settings import Settings

_ADMIN = "admin"
_FIRST_KEY = "first key"
_GENERATED = ("SECRET_KEY", "ENCRYPTION_KEY", "AUDIT_KEK")


@click.command(name="first-run", hidden=True)
@host_option
@port_option
@click.option("--no-serve", is_flag=True, help="Stop when everything is made: what is shown once goes into no log.")
def first_run(host: str | None, port: int | None, *, no_serve: bool) -> None:
    """Make what is missing (secrets, database, first admin and key, audit log), then serve. Called by scripts/run."""
    env_file = Path(os.environ.get("ENV_FILE", ".env"))
    made_env = write_env(env_file) or complete_env(env_file)
    override_address(host, port)
    context = CommandContext()
    settings = context.settings
    if not no_serve:
        require_free_address(settings)
    if made_env:
        click.echo(f"Secrets were generated into {made_env} (readable by you alone).")
    database = Database(settings.database)
    run_migrations(database.engine, "upgrade", "head")
    genesis = initialise(context.audit_settings)
    # Each secret is told as soon as it exists: what comes after it may fail, and it is kept nowhere.
    if genesis.owner_private_key is not None:
        click.echo("Audit owner key (shown once; keep it offline, a restored log needs it):")
        click.echo(f"    {genesis.owner_private_key}")
    with running_writer(context.audit_settings):
        key = _first_admin_and_key(context)
    if no_serve:
        click.echo(
            "All is set up; `serve` starts it." if key else "There are users already: no admin and no key was made."
        )
        return
    check_and_serve(settings, _how_to_ask(settings, key))


def write_env(path: Path) -> Path | None:
    """Write `.env` with generated secrets, mode 0600, whole or not at all; None when it is there already."""
    if path.exists():
        return None
    text = "# Made by scripts/run. Keep it: without these secrets keys are void and the audit log can't be read.\n"
    text += "".join(f"{name}={secrets.token_hex(32)}\n" for name in _GENERATED if not os.environ.get(name))
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    except FileExistsError:
        return None
    finally:
        part.unlink()
    return path


def complete_env(path: Path) -> Path | None:
    """Add the secrets to an `.env` that somebody wrote before the first start; None when it has them.

    Only while there is no data: made anew beside a database or a log, they would void every key and close every record.
    """
    values = dotenv_values(path, interpolate=False)
    missing = [name for name in _GENERATED if not values.get(name) and not os.environ.get(name)]
    instance = Path(os.environ.get("INSTANCE_DIR") or values.get("INSTANCE_DIR") or "instance")
    used = values.get("DATABASE_URL") or os.environ.get("DATABASE_URL") or (instance / "audit").exists()
    if not missing or used or (instance / "app.db").exists():
        return None
    with path.open("a", encoding="utf-8") as file:
        file.write("\n# Added by scripts/run. Keep them: without these secrets keys are void.\n")
        file.write("".join(f"{name}={secrets.token_hex(32)}\n" for name in missing))
    path.chmod(0o600)
    return path


def _first_admin_and_key(context: CommandContext) -> str | None:
    """Make and tell the first admin and key when there is no user yet; the key is returned once and stored nowhere."""
    if context.database.run(context.accounts.list_users):
        return None
    accounts = context.accounts
    user_id, drawn = new_user_id(), draw_api_key()
    context.change(
        "user.create",
        user_id,
        {"role": Role.OWNER},
        {"username": _ADMIN},
        lambda session: accounts.create_user(
            session, username=_ADMIN, email="admin@localhost", role=Role.OWNER, user_id=user_id
        ),
    )
    token = context.change(
        "user.setup_token", user_id, {}, {"username": _ADMIN}, lambda session: accounts.start_setup(session, _ADMIN)
    )
    click.echo(f"First admin: {_ADMIN}. One-time setup token (1 h; set a password with: manage.py setup-password):")
    click.echo(f"    {token.secret}")
    issued = context.change(
        "key.create",
        drawn.kid,
        {"user": user_id, "key_id": drawn.id},
        {"username": _ADMIN, "name": _FIRST_KEY},
        lambda session: context.keys.create_api_key(session, username=_ADMIN, name=_FIRST_KEY, drawn=drawn),
    )
    click.echo("API key (shown once):")
    click.echo(f"    {issued.secret}")
    return issued.secret


def _how_to_ask(settings: Settings, key: str | None) -> str:
    address = address_of(settings)
    told = key or "YOUR_API_KEY"
    demo = not settings.upstream.names_a_provider
    model = "demo" if demo else (settings.upstream.default_model or "a model that GET /v1/models lists")
    lines = [
        "",
        f"Secure LLM Proxy {__version__} is ready.",
        *(["No provider is configured (docs/providers.md), so the local model `demo` answers."] if demo else []),
        "",
        "Ask it:",
        f"    curl -s {shlex.quote(address + '/chat')} -H 'Authorization: Bearer {told}' \\",
        "        -H 'Content-Type: application/json' -d '{\"prompt\": \"Hello, who are you?\"}'",
        "",
        "With an OpenAI SDK:",
        f'    client = OpenAI(base_url="{address}/v1", api_key="{told}")',
        f'    client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])',
        "",
        f"Health: {address}/health",
        *(
            []
            if key
            else [
                "The API key was shown at the first start; make another: .venv/bin/python manage.py create-api-key --user admin --name NAME"
            ]
        ),
        "Stop with Ctrl-C.",
    ]
    return "\n".join(lines)
