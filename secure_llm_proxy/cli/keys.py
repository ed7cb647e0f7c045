"""Commands about API keys: made, listed, changed, rotated, quarantined, revoked, looked for where they leak."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, BinaryIO, TypedDict, TypeVar, Unpack, cast

import click
from sqlalchemy.orm import Session

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.handed_file import HandedFile
from secure_llm_proxy.cli.output import as_cell, confirm, json_option, show_json, show_table, yes_option
from secure_llm_proxy.identity import (
    OVERLAP_S_DEFAULT,
    OVERLAP_S_MAX,
    SCOPES,
    ApiKey,
    IssuedKey,
    KeyChanges,
    KeyKind,
    KeyStatus,
    draw_api_key,
    keys_in_stream,
)
from secure_llm_proxy.vocabulary.audit import ClearValue

Command = TypeVar("Command", bound=Callable[..., Any])

_HOUR_S = 3600
_KINDS = click.Choice([kind.value for kind in KeyKind])
_STATUSES = click.Choice([status.value for status in KeyStatus])


class _Bounds(TypedDict):
    """What the options that making and changing a key share give."""

    scopes: tuple[str, ...]
    models: tuple[str, ...]
    addresses: tuple[str, ...]
    agents: tuple[str, ...]
    requests_per_minute: int | None
    burst: int | None
    concurrent: int | None
    tokens_max: int | None


def _lists_and_limits(command: Command) -> Command:
    """The options that making and changing a key share."""
    options = (
        click.option(
            "--scopes",
            "--permissions",
            "scopes",
            multiple=True,
            help=f"What it may do, comma list: {', '.join(SCOPES)} (chat_access is chat). Default: all.",
        ),
        click.option("--models", multiple=True, help="Models it may use, comma list. Default: all."),
        click.option("--allow-ip", "addresses", multiple=True, help="Networks that may use it, comma list of CIDR."),
        click.option("--allow-agent", "agents", multiple=True, help="Agents that may use it, comma list of globs."),
        click.option("--rpm", "requests_per_minute", type=int, help="Requests per minute."),
        click.option("--burst", type=int, help="Requests that may come at once."),
        click.option("--concurrent", type=int, help="Requests in flight."),
        click.option("--max-tokens", "tokens_max", type=int, help="Most tokens that a request may ask for."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _key_argument(command: Command) -> Command:
    """KEY, or the origin's --key-id."""
    named = click.option("--key-id", help="The same as KEY.")(command)
    return click.argument("key", required=False)(named)


@click.command("create-api-key")
@click.option("--user", "--username", "username", required=True, help="Whose key it is.")
@click.option("--name", required=True, help="What the key is for.")
@click.option("--kind", type=_KINDS, default="live", show_default=True, help="live and test ask models, adm manages.")
@click.option("--project", help="Its project; by default the first of the user's organisation.")
@click.option("--expires", "days", type=int, help="Days that it lives; by default API_KEY_EXPIRY_DAYS.")
@_lists_and_limits
@json_option
@pass_context
def create_api_key(
    context: CommandContext,
    /,
    username: str,
    name: str,
    kind: str,
    project: str | None,
    days: int | None,
    *,
    as_json: bool,
    **bounds: Unpack[_Bounds],
) -> None:
    """Make an API key, which works at once, and print it. It is shown this once and kept nowhere."""
    owner = context.database.run(lambda session: context.accounts.find_user(session, username))
    drawn = draw_api_key(KeyKind(kind))
    properties = _properties(bounds)
    clear: dict[str, ClearValue] = {
        "user": owner.id,
        "key_id": drawn.id,
        "kind": kind,
        "days": days,
        "rpm": bounds["requests_per_minute"],
    }
    issued = context.change(
        "key.create",
        drawn.kid,
        clear,
        {"username": owner.username, "name": name, "project": project, **properties},
        lambda session: context.keys.create_api_key(
            session,
            username=owner.id,
            name=name,
            kind=kind,
            project=project,
            expires_days=days,
            drawn=drawn,
            **properties,
        ),
    )
    _show_issued(issued, as_json=as_json)


@click.command("list-api-keys")
@click.option("--user", "--username", "username", help="Only this user's keys.")
@click.option("--project", help="Only keys of this project.")
@click.option("--status", type=_STATUSES, help="Only keys that are so now.")
@click.option("--kind", type=_KINDS, help="Only keys of this kind.")
@json_option
@pass_context
def list_api_keys(
    context: CommandContext,
    username: str | None,
    project: str | None,
    status: str | None,
    kind: str | None,
    *,
    as_json: bool,
) -> None:
    """List API keys: their public parts, never the keys."""

    def read(session: Session) -> list[ApiKey]:
        project_id = None if project is None else context.organisations.find_project(session, project).id
        return context.keys.list_api_keys(session, username, project_id=project_id, status=status, kind=kind)

    keys = context.database.run(read)
    now = context.clock.now()
    if as_json:
        show_json([_told(key, key.status(now)) for key in keys])
        return
    show_table(
        ("key", "user", "name", "kind", "status", "scopes", "models", "rpm", "expires", "last used", "id"),
        [
            (
                key.kid,
                key.username,
                key.name,
                key.kind,
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


@click.command("update-api-key")
@_key_argument
@click.option("--name", help="What the key is for.")
@_lists_and_limits
@click.option(
    "--no-limit",
    "cleared",
    multiple=True,
    type=click.Choice(["models", "allow-ip", "allow-agent", "rpm", "burst", "concurrent", "max-tokens"]),
    help="Take this limit or list away; may be repeated.",
)
@json_option
@pass_context
def update_api_key(
    context: CommandContext,
    /,
    key: str | None,
    key_id: str | None,
    name: str | None,
    cleared: tuple[str, ...],
    *,
    as_json: bool,
    **bounds: Unpack[_Bounds],
) -> None:
    """Change the name, scopes, models, limits or lists of the API key KEY. What is not given stays."""
    found = _find(context, key, key_id)
    given = {column: value for column, value in _properties(bounds).items() if value is not None}
    if name is not None:
        given["name"] = name
    for limit in cleared:
        column = _COLUMNS.get(limit, limit)
        if column in given:
            raise click.UsageError(f"--no-limit {limit} contradicts the other option about it.")
        given[column] = None
    if not given:
        raise click.UsageError("Say what is to change.")
    changes = cast("KeyChanges", given)
    updated = context.change(
        "key.update",
        found.kid,
        {"user": found.user_id, "key_id": found.id},
        {"username": found.username, **given},
        lambda session: context.keys.update_api_key(session, found.id, changes, version=found.version),
    )
    context.announce_revocation(found.kid)
    if as_json:
        show_json(_told(updated, updated.status(context.clock.now())))
        return
    click.echo(f"{updated.kid} ({as_cell(updated.name)}) of {updated.username} is changed.")


@click.command("rotate-api-key")
@_key_argument
@click.option(
    "--overlap",
    "overlap_hours",
    type=click.FloatRange(0, OVERLAP_S_MAX / _HOUR_S),
    default=OVERLAP_S_DEFAULT / _HOUR_S,
    show_default=True,
    help="Hours for which the old key works on; 0 revokes it at once.",
)
@click.option("--expires", "days", type=int, help="Days that the new key lives; by default as long as the old one did.")
@yes_option
@json_option
@pass_context
def rotate_api_key(
    context: CommandContext,
    key: str | None,
    key_id: str | None,
    overlap_hours: float,
    days: int | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Make a successor of the API key KEY with the same properties, and print it once. The old key ends with the overlap."""
    found = _find(context, key, key_id)
    overlap_s = round(overlap_hours * _HOUR_S)
    if not overlap_s:
        confirm(f"Revoke {found.kid} ({as_cell(found.name)}) of {found.username} at once?", yes=yes)
    drawn = draw_api_key(found.kind)
    issued = context.change(
        "key.rotate",
        found.kid,
        {
            "user": found.user_id,
            "key_id": found.id,
            "new": drawn.kid,
            "new_key_id": drawn.id,
            "overlap_s": overlap_s,
            "days": days,
        },
        {"username": found.username, "name": found.name},
        lambda session: context.keys.rotate_api_key(
            session, found.id, overlap_s=overlap_s, expires_days=days, drawn=drawn
        ),
    )
    for kid in issued.changed:
        context.announce_revocation(kid)
    _show_issued(issued, as_json=as_json)
    if not as_json:
        click.echo(f"{found.kid} {'works for ' + f'{overlap_hours:g} h more' if overlap_s else 'is revoked'}.")


@click.command("quarantine-api-key")
@_key_argument
@click.option("--reason", required=True, help="Why, as it stands in lists and in the log.")
@pass_context
def quarantine_api_key(context: CommandContext, key: str | None, key_id: str | None, reason: str) -> None:
    """Refuse the API key KEY from now on, until release-api-key: it may have leaked."""
    found = _find(context, key, key_id)
    context.change(
        "key.quarantine",
        found.kid,
        {"user": found.user_id, "key_id": found.id},
        {"username": found.username, "name": found.name, "reason": reason},
        lambda session: context.keys.quarantine_api_key(session, found.id, reason),
    )
    context.announce_revocation(found.kid)
    click.echo(f"{found.kid} is quarantined.")


@click.command("release-api-key")
@_key_argument
@yes_option
@pass_context
def release_api_key(context: CommandContext, key: str | None, key_id: str | None, *, yes: bool) -> None:
    """Let the quarantined API key KEY work again. One that has leaked is to be rotated or revoked instead."""
    found = _find(context, key, key_id)
    confirm(f"Let {found.kid} ({as_cell(found.name)}) of {found.username} work again?", yes=yes)
    context.change(
        "key.release",
        found.kid,
        {"user": found.user_id, "key_id": found.id},
        {"username": found.username, "name": found.name, "reason": found.quarantine_reason},
        lambda session: context.keys.release_api_key(session, found.id),
    )
    context.announce_revocation(found.kid)
    click.echo(f"{found.kid} is released.")


@click.command("revoke-api-key")
@_key_argument
@yes_option
@pass_context
def revoke_api_key(context: CommandContext, key: str | None, key_id: str | None, *, yes: bool) -> None:
    """Revoke the API key KEY (its public part or key_… id) for ever. It is refused everywhere within seconds."""
    found = _find(context, key, key_id)
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


@click.command("check-leaks")
@click.argument("files", nargs=-1, required=True, type=HandedFile("rb"))
@json_option
@pass_context
def check_leaks(context: CommandContext, files: tuple[BinaryIO, ...], *, as_json: bool) -> None:
    """Look for API keys of ours in FILES (- is standard input). Exit 1 when one is found that works."""
    found = [
        (getattr(file, "name", "-"), line, credential) for file in files for line, credential in keys_in_stream(file)
    ]
    credentials = list(dict.fromkeys(credential for _, _, credential in found))
    known = context.database.run(lambda session: context.keys.recognised(session, credentials))
    now = context.clock.now()
    told = [
        {
            "file": name,
            "line": line,
            "key": credential.split("_")[2],
            "status": known[credential].status(now).value if credential in known else "not ours",
            "username": known[credential].username if credential in known else None,
        }
        for name, line, credential in found
    ]
    if as_json:
        show_json(told)
    else:
        show_table(
            ("file", "line", "key", "status", "user"),
            [(row["file"], row["line"], row["key"], row["status"], row["username"]) for row in told],
            empty="No API key was found.",
        )
    if any(row["status"] == KeyStatus.ACTIVE for row in told):
        if not as_json:
            click.echo("Refuse each that works: manage.py quarantine-api-key KEY --reason REASON", err=True)
        sys.exit(1)


COMMANDS = (
    create_api_key,
    list_api_keys,
    update_api_key,
    rotate_api_key,
    quarantine_api_key,
    release_api_key,
    revoke_api_key,
    check_leaks,
)

_COLUMNS = {
    "allow-ip": "allowed_addresses",
    "allow-agent": "allowed_agents",
    "rpm": "requests_per_minute",
    "max-tokens": "tokens_max",
}


def _properties(bounds: _Bounds) -> dict[str, Any]:
    """The shared options under the names that the identity room has for them; None where nothing was given."""
    return {
        "scopes": _split(bounds["scopes"]),
        "models": _split(bounds["models"]),
        "allowed_addresses": _split(bounds["addresses"]),
        "allowed_agents": _split(bounds["agents"]),
        "requests_per_minute": bounds["requests_per_minute"],
        "burst": bounds["burst"],
        "concurrent": bounds["concurrent"],
        "tokens_max": bounds["tokens_max"],
    }


def _find(context: CommandContext, key: str | None, key_id: str | None) -> ApiKey:
    reference = key or key_id
    if reference is None or (key and key_id):
        raise click.UsageError("Name one key: its public part or its key_… id.")
    return context.database.run(lambda session: context.keys.find_api_key(session, reference))


def _show_issued(issued: IssuedKey, *, as_json: bool) -> None:
    key = issued.api_key
    if as_json:
        show_json({**_told(key, KeyStatus.ACTIVE), "key": issued.secret})
        return
    click.echo(f"API key {key.kid} ({as_cell(key.name)}) of {key.username}, good until {as_cell(key.expires_at)}.")
    click.echo("Shown once, keep it now:")
    click.echo(f"    {issued.secret}")


def _split(values: Iterable[str]) -> tuple[str, ...] | None:
    """Comma lists and repeated options alike; None when the option was not given."""
    given = tuple(values)
    if not given:
        return None
    return tuple(part.strip() for value in given for part in value.split(",") if part.strip())


def _told(key: ApiKey, status: KeyStatus) -> dict[str, object]:
    return {**asdict(key), "status": status}
