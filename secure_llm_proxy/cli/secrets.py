"""Commands about the operator's two secrets: what still depends on one that is being replaced, and freeing it of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
from sqlalchemy.orm import Session

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import json_option, show_json, show_table
from secure_llm_proxy.foundation.sealed_columns import Sealing
from secure_llm_proxy.foundation.secret_values import key_mark
from secure_llm_proxy.identity import PepperUse, PepperUses

_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class _Standing:
    """What stands under which secret, in one transaction."""

    uses: Sequence[PepperUse]
    sealings: dict[str, Sealing]
    person_keys_owed: int


@dataclass(frozen=True, slots=True)
class _Sealed:
    """How much was sealed again, and how many keys of earlier pseudonyms were kept."""

    second_factors: int
    provider_keys: int
    person_keys: int
    person_keys_kept: int


@click.group()
def secrets() -> None:
    """Replace SECRET_KEY and ENCRYPTION_KEY while everything goes on.

    Put the new key into ..._PREVIOUS and restart every host; let the two change places and restart every host; run
    `secrets rotate`; when `secrets status` says so, remove ..._PREVIOUS. docs/operations.md has every step.
    """


@secrets.command("status")
@json_option
@pass_context
def secrets_status(context: CommandContext, *, as_json: bool) -> None:
    """Tell what is known or sealed only under a key that is being replaced, and whether that key can be removed.

    PRESENT stands under the key itself, PREVIOUS under one of ..._PREVIOUS, LOST under none of them: nobody can use it any
    more. UNMARKED was made by a release that did not note it, and is noted when it is used next.
    """
    _show(context, as_json=as_json)


@secrets.command("rotate")
@json_option
@pass_context
def secrets_rotate(context: CommandContext, *, as_json: bool) -> None:
    """Seal under ENCRYPTION_KEY whatever stands under ENCRYPTION_KEY_PREVIOUS, and keep what finds persons in older records.

    Nobody is signed out and no request fails by it. It may be interrupted, and run again.
    """

    def apply(session: Session) -> _Sealed:
        return _Sealed(
            context.second_factors.seal_again(session),
            context.stored_providers.seal_again(session),
            context.kept_person_keys.seal_again(session),
            context.kept_person_keys.keep(session, context.secret_key.previous_keys("slp/person")),
        )

    done = context.change("secrets.rotate", "secrets", {}, {}, apply)
    if not as_json:
        click.echo(
            f"Sealed again: {done.second_factors} second factors, keys of {done.provider_keys} providers, "
            f"{done.person_keys} person keys. Newly kept: {done.person_keys_kept} person keys."
        )
    _show(context, as_json=as_json, rotated=done)


def _show(context: CommandContext, *, as_json: bool, rotated: _Sealed | None = None) -> None:
    standing = context.database.run(lambda session: _standing(context, session))
    secret_key, encryption_key = context.secret_key, context.encryption_key
    secret_key_is_free = not standing.person_keys_owed and not any(_bound(use) for use in standing.uses)
    encryption_key_is_free = not any(sealing.previous for sealing in standing.sealings.values())
    if as_json:
        told: dict[str, object] = {
            "SECRET_KEY": {
                "previous": len(secret_key.previous),
                "removable": secret_key_is_free,
                "person_keys_owed": standing.person_keys_owed,
                "uses": [_told(use) for use in standing.uses],
            },
            "ENCRYPTION_KEY": {
                "previous": len(encryption_key.previous),
                "removable": encryption_key_is_free,
                "columns": [{"what": what, **asdict(sealing)} for what, sealing in standing.sealings.items()],
            },
        }
        show_json(told if rotated is None else {"sealed_again": asdict(rotated), **told})
        return
    rows: list[tuple[object, ...]] = [
        ("SECRET_KEY", use.what, use.present, use.previous, use.unknown, use.unmarked) for use in standing.uses
    ]
    rows += [
        ("ENCRYPTION_KEY", what, sealing.present, sealing.previous, sealing.unreadable, 0)
        for what, sealing in standing.sealings.items()
    ]
    show_table(("secret", "what", "present", "previous", "lost", "unmarked"), rows, empty="")
    for use in standing.uses:
        if use.waiting:
            names = ", ".join(use.waiting[:_NAMES_SHOWN]) + (" …" if len(use.waiting) > _NAMES_SHOWN else "")
            click.echo(f"Not under SECRET_KEY yet: {use.what} of {names}")
    for name, count, free, owed in (
        ("SECRET_KEY", len(secret_key.previous), secret_key_is_free, standing.person_keys_owed),
        ("ENCRYPTION_KEY", len(encryption_key.previous), encryption_key_is_free, False),
    ):
        if not count:
            click.echo(f"{name}_PREVIOUS is not set.")
        elif free:
            click.echo(f"{name}_PREVIOUS can be removed: nothing depends on it.")
        elif owed or name == "ENCRYPTION_KEY":
            click.echo(f"{name}_PREVIOUS must stay: run `manage.py secrets rotate`.")
        else:
            click.echo(f"{name}_PREVIOUS must stay: what is not under the present key would end with it.")


def _standing(context: CommandContext, session: Session) -> _Standing:
    kept = context.kept_person_keys.marks(session)
    owed = {key_mark(key) for key in context.secret_key.previous_keys("slp/person")} - kept
    return _Standing(
        PepperUses(context.secret_key).counted(session, context.clock.now()),
        {
            "second factors": context.second_factors.sealing(session),
            "provider keys": context.stored_providers.sealing(session),
            "person keys": context.kept_person_keys.sealing(session),
        },
        len(owed),
    )


def _bound(use: PepperUse) -> int:
    """What would end with the previous keys: also what nobody can tell of."""
    return use.previous + use.unmarked


def _told(use: PepperUse) -> dict[str, object]:
    told = asdict(use)
    told["lost"] = told.pop("unknown")
    return told
