"""Commands about API keys: made, listed, revoked."""

from __future__ import annotations

from dataclasses import asdict

import click

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import as_cell, confirm, json_option, show_json, show_table, yes_option
from secure_llm_proxy.identity import SCOPES, ApiKey, draw_api_key
from secure_llm_proxy.vocabulary.audit import ClearValue


@click.command("create-api-key")
@click.option("--user", "--username", "username", required=True, help="Whose key it is.")
@click.option("--name", required=True, help="What the key is for.")
@click.option("--expires", "days", type=int, help="Days that it lives; by default API_KEY_EXPIRY_DAYS.")
@click.option(
    "--scopes",
    "--permissions",
    "scopes",
    multiple=True,
    help=f"What it may do, comma list: {', '.join(SCOPES)} (chat_access is chat). Default: all.",
)
@click.option("--models", multiple=True, help="Models it may use, comma list. Default: all.")
@click.option("--rpm", "requests_per_minute", type=int, help="Requests per minute; by default the deployment's limit.")
@json_option
@pass_context
def create_api_key(
    context: CommandContext,
    username: str,
    name: str,
    days: int | None,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    requests_per_minute: int | None,
    *,
    as_json: bool,
) -> None:
    """Make an API key, which works at once, and print it. It is shown this once and kept nowhere."""
    owner = context.database.run(lambda session: context.accounts.find_user(session, username))
    drawn = draw_api_key()
    clear: dict[str, ClearValue] = {"user": owner.id, "key_id": drawn.id, "days": days, "rpm": requests_per_minute}
    body = {"username": owner.username, "name": name, "scopes": _split(scopes), "models": _split(models)}
    issued = context.change(
        "key.create",
        drawn.kid,
        clear,
        body,
        lambda session: context.keys.create_api_key(
            session,
            username=owner.username,
            name=name,
            expires_days=days,
            scopes=_split(scopes),
            models=_split(models),
            requests_per_minute=requests_per_minute,
            drawn=drawn,
        ),
    )
    key = issued.api_key
    if as_json:
        show_json({**_told(key, "active"), "key": issued.secret})
        return
    click.echo(f"API key {key.kid} ({as_cell(key.name)}) of {key.username}, good until {as_cell(key.expires_at)}.")
    click.echo("Shown once, keep it now:")
    click.echo(f"    {issued.secret}")


@click.command("list-api-keys")
@click.option("--user", "--username", "username", help="Only this user's keys.")
@json_option
@pass_context
def list_api_keys(context: CommandContext, username: str | None, *, as_json: bool) -> None:
    """List API keys: their public parts, never the keys."""
    keys = context.database.run(lambda session: context.keys.list_api_keys(session, username))
    now = context.clock.now()
    if as_json:
        show_json([_told(key, key.status(now)) for key in keys])
        return
    show_table(
        ("key", "user", "name", "status", "scopes", "models", "rpm", "expires", "last used", "id"),
        [
            (
                key.kid,
                key.username,
                key.name,
                key.status(now),
                key.scopes,
                "all" if key.models is None else key.models,
                key.requests_per_minute,
                key.expires_at,
                "never" if key.last_used_at is None else key.last_used_at,
                key.id,
            )
            for key in keys
        ],
        empty="There are no API keys; make one with: manage.py create-api-key",
    )


@click.command("revoke-api-key")
@click.argument("key", required=False)
@click.option("--key-id", help="The same as KEY.")
@yes_option
@pass_context
def revoke_api_key(context: CommandContext, key: str | None, key_id: str | None, *, yes: bool) -> None:
    """Revoke the API key KEY (its public part or key_… id) for ever. It is refused everywhere within seconds."""
    reference = key or key_id
    if reference is None or (key and key_id):
        raise click.UsageError("Name one key: its public part or its key_… id.")
    found = context.database.run(lambda session: context.keys.find_api_key(session, reference))
    if found.revoked_at is not None:
        context.announce_revocation(found.kid)
        click.echo(f"{found.kid} was revoked already, at {as_cell(found.revoked_at)}.")
        return
    confirm(f"Revoke {found.kid} ({as_cell(found.name)}) of {found.username} for ever?", yes=yes)
    context.change(
        "key.revoke",
        found.kid,
        {"user": found.user_id, "key_id": found.id},
        {"username": found.username, "name": found.name},
        lambda session: context.keys.revoke_api_key(session, found.id),
    )
    context.announce_revocation(found.kid)
    click.echo(f"{found.kid} is revoked.")


COMMANDS = (create_api_key, list_api_keys, revoke_api_key)


def _split(values: tuple[str, ...]) -> tuple[str, ...] | None:
    """Comma lists and repeated options alike; None when the option was not given."""
    if not values:
        return None
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _told(key: ApiKey, status: str) -> dict[str, object]:
    return {**asdict(key), "status": status}
