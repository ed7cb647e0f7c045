"""Commands about readers: who may have the bodies of records opened through the product, with an app's code each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import click

from secure_llm_proxy.audit import (
    KeyStoreUnavailable,
    ReaderCodes,
    new_reader_seed,
    read_genesis,
    reader_uri,
    running_writer,
)
from secure_llm_proxy.audit import host_directory as host_directory_of
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import as_cell, confirm, json_option, show_json, show_table, yes_option
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.identity import qr_text

_TRIES = 3


@click.command("enroll-reader")
@click.argument("name")
@json_option
@pass_context
def enroll_reader(context: CommandContext, name: str, *, as_json: bool) -> None:
    """Let NAME open bodies through the product: a QR code for an authenticator app, whose codes are good once each."""
    with _codes(context) as codes:
        codes.require_free(name)
        seed = new_reader_seed()
        genesis = read_genesis(host_directory_of(context.audit_settings.directory, context.audit_settings.host_id))
        uri = reader_uri(name, seed, issuer=context.settings.identity.mfa_issuer, log=genesis.log)
        # JSON has standard output for itself.
        click.echo(f"Scan this with an authenticator app, for the reader {name}:", err=as_json)
        click.echo(qr_text(uri), err=as_json)
        click.echo(f"Or type it in: {_in_groups(seed)}", err=as_json)
        code = _right_code(codes, seed)
        context.recorded("audit.reader_enrol", f"reader:{name}", {}, {}, lambda: codes.enrol(name, seed, code))
    if as_json:
        show_json({"reader": name, "enrolled": True})
    else:
        click.echo(f"{name} is a reader. Every body that is opened with a code of this app is on record.")


@click.command("list-readers")
@json_option
@pass_context
def list_readers(context: CommandContext, *, as_json: bool) -> None:
    """List who may have bodies opened through the product."""
    now = context.clock.now()
    with _codes(context) as codes:
        readers = codes.readers()
    if as_json:
        show_json(
            [
                {
                    "reader": reader.name,
                    "since": _moment(reader.since),
                    "code_used_at": _moment(reader.used_at),
                    "closed_until": _moment(reader.closed_until) if reader.closed_until > now.timestamp() else None,
                }
                for reader in readers
            ]
        )
        return
    show_table(
        ("reader", "since", "code used", "closed until"),
        [
            (
                reader.name,
                _moment(reader.since),
                _moment(reader.used_at),
                _moment(reader.closed_until) if reader.closed_until > now.timestamp() else None,
            )
            for reader in readers
        ],
        empty="There is no reader. `audit enroll-reader NAME` makes one.",
    )


@click.command("remove-reader")
@click.argument("name")
@yes_option
@json_option
@pass_context
def remove_reader(context: CommandContext, name: str, *, yes: bool, as_json: bool) -> None:
    """Take the right to open bodies from NAME. Works at once; also after the phone was lost, before enrolling again."""
    confirm(f"Remove the reader {as_cell(name)}?", yes=yes)
    with _codes(context) as codes:
        codes.require_known(name)
        context.recorded("audit.reader_remove", f"reader:{name}", {}, {}, lambda: codes.remove(name))
    if as_json:
        show_json({"reader": name, "removed": True})
    else:
        click.echo(f"{name} is no reader any more.")


COMMANDS = (enroll_reader, list_readers, remove_reader)


@contextmanager
def _codes(context: CommandContext) -> Iterator[ReaderCodes]:
    """Over the key store, which a writer makes at its first start."""
    with running_writer(context.audit_settings), closing(ReaderCodes.of(context.audit_settings)) as codes:
        try:
            yield codes
        except KeyStoreUnavailable as error:
            raise OperatorError(str(error)) from None


def _right_code(codes: ReaderCodes, seed: str) -> str:
    """A code that the app has shown; three tries."""
    for left in reversed(range(_TRIES)):
        code: str = click.prompt("The six digits that the app shows", err=True)
        if codes.is_right(seed, code):
            return code
        if left:
            click.echo("The code is not right.", err=True)
    raise OperatorError(
        "The code is not right; nothing was set up. Is the clock of the phone, and of this host, right?"
    )


def _moment(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


def _in_groups(secret: str) -> str:
    return " ".join(secret[start : start + 4] for start in range(0, len(secret), 4))
