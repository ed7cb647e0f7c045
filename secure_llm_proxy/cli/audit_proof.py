"""`manage.py audit prove`, `check-proof` and `anchors`: what others need to believe the log without believing us."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import orjson

from secure_llm_proxy.audit import (
    ProofBroken,
    ProofNewer,
    Proven,
    RecordLine,
    check_proof,
    checkpoints,
    host_directory,
    prove,
    segments_of,
    size_of,
)
from secure_llm_proxy.audit.format import FormatError, base64_text, strict_base64
from secure_llm_proxy.audit.index import AuditIndex
from secure_llm_proxy.audit.notes import Checkpoint
from secure_llm_proxy.audit.proof import PROOF_BYTES_MAX
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.handed_file import HandedPath
from secure_llm_proxy.cli.output import as_cell, json_option, show_json
from secure_llm_proxy.cli.progress import Progress
from secure_llm_proxy.cli.whole_file import STANDARD_OUTPUT, whole_file
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import OperatorError

_IDENTIFIER = re.compile(r"[0-9A-Za-z_-]{1,64}")
_PUBLIC_KEY_BYTES = 32
_REFUSED, _UNDECIDABLE = 1, 4
_PAGE = 1000


@click.command("prove")
@click.argument("identifier", metavar="ID")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path(STANDARD_OUTPUT),
    help="A new file for the proof; it is there whole or not at all. Default: standard output.",
)
@click.option(
    "--lines",
    "lines_least",
    type=click.IntRange(0, (1 << 62) - 1),
    default=0,
    help="Prove it to a checkpoint over at least so many lines, as for one that others hold. Default: the first there is.",
)
@pass_context
def prove_record(context: CommandContext, identifier: str, output: Path, lines_least: int) -> None:
    """Make a proof of the record ID: one file with which a stranger sees that it stands in this log, unaltered since then.

    The file holds the record's line, so its readable members, with the body sealed.
    """
    if not _IDENTIFIER.fullmatch(identifier):
        raise OperatorError(f"No record can have the id {as_cell(identifier[:64])}.")
    settings = context.settings.audit
    host, segments = host_directory(settings.directory, settings.host_id), segments_of(settings)
    with whole_file(output) as stream:
        with Progress("looking for the record", size_of(segments)) as progress:
            document = prove(host, segments, identifier, lines_least=lines_least, watch=progress.over)
        stream.write(document)


class _PublicKey(click.ParamType[str]):
    name = "key"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            key = strict_base64(value.strip())
        except (FormatError, UnicodeEncodeError):
            key = b""
        if len(key) != _PUBLIC_KEY_BYTES:
            self.fail("an owner's public key is base64 of 32 bytes, as `audit init` prints it.", param, ctx)
        return base64_text(key)


@click.command("check-proof")
@click.argument("file", type=HandedPath())
@click.option(
    "--genesis",
    "owner",
    type=_PublicKey(),
    required=True,
    help="The log owner's public key, as you know it from elsewhere.",
)
@json_option
def check(file: Path, owner: str, *, as_json: bool) -> None:
    """Check the proof in FILE (- is standard input) with nothing but the owner's public key: no log, no settings, no network.

    Exit code 0 proven, 1 refused, 2 usage, 4 made by a later version.
    """
    document = _read(file)
    try:
        proven = check_proof(document, owner)
    except ProofBroken as error:
        _end(_REFUSED, "refused", str(error), as_json=as_json)
    except ProofNewer as error:
        _end(_UNDECIDABLE, "undecidable", str(error), as_json=as_json)
    else:
        _tell(proven, as_json=as_json)


def _read(file: Path) -> bytes:
    try:
        with click.open_file(str(file), "rb") as stream:
            return bytes(stream.read(PROOF_BYTES_MAX + 1))
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}.") from None


def _end(code: int, outcome: str, problem: str, *, as_json: bool) -> None:
    if as_json:
        show_json({"outcome": outcome, "problem": problem})
    else:
        click.echo(f"{outcome.upper()}: {problem}.")
    sys.exit(code)


def _tell(proven: Proven, *, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "outcome": "proven",
                "log": proven.log,
                "n": proven.n,
                "lines_signed": proven.size,
                "signed_at": proven.signed_at,
                "owner_public_key": proven.owner_public_key,
                "epoch_public_key": proven.epoch_public_key,
                "key_rolls": proven.key_rolls,
                "owner_restarts": proven.restarts,
                "line": proven.raw.decode(),
            }
        )
        return
    click.echo(
        f"PROVEN: this line is number {proven.n} of the log {proven.log}, "
        f"as signed at {proven.signed_at} over its first {proven.size} lines."
    )
    click.echo(
        f"    owner key {proven.owner_public_key}, signing key {proven.epoch_public_key} after {proven.key_rolls} rolls"
    )
    for n in proven.restarts:
        click.echo(
            f"    at line {n} the owner put a new signing key in force: the one before was lost, as after a restore"
        )
    if isinstance(proven.line, RecordLine):
        record = proven.line
        told = {"time": record.t, "type": record.type, "event": record.event, "record": record.id}
        for name, value in {**told, "request": record.exchange_id, **record.clear}.items():
            click.echo(f"    {name}: {as_cell(value)}")
    click.echo("The line, as it stands in the log:")
    click.echo(as_cell(proven.raw.decode()))


@click.command()
@click.option("--last", is_flag=True, help="Only the newest.")
@click.option(
    "--from-database", is_flag=True, help="Those that the database keeps (of every host) instead of those in the log."
)
@pass_context
def anchors(context: CommandContext, *, last: bool, from_database: bool) -> None:
    """Print the log's signed checkpoints as JSON lines, oldest first: kept elsewhere, `audit verify --anchors` takes them."""
    with whole_file(Path(STANDARD_OUTPUT)) as out:
        newest: dict[str, bytes] = {}
        for checkpoint, note in _kept(context) if from_database else _signed(context):
            line = _anchor(checkpoint, note)
            if last:
                newest[checkpoint.log] = line
            else:
                out.write(line)
        out.writelines(newest.values())


def _signed(context: CommandContext) -> Iterator[tuple[Checkpoint, str]]:
    settings = context.settings.audit
    host, segments = host_directory(settings.directory, settings.host_id), segments_of(settings)
    with Progress("reading", size_of(segments)) as progress:
        yield from checkpoints(host, segments, watch=progress.over)


def _kept(context: CommandContext) -> Iterator[tuple[Checkpoint, str]]:
    index = AuditIndex()
    for state in context.database.run(index.states):
        after = -1
        while page := context.database.run(partial(index.anchors, log=state.log, after=after, limit=_PAGE)):
            after = page[-1].n
            for each in page:
                yield Checkpoint(each.log, each.n, strict_base64(each.root), rfc3339(each.t)), each.note


def _anchor(checkpoint: Checkpoint, note: str) -> bytes:
    told = {"t": checkpoint.t, "log": checkpoint.log, "n": checkpoint.size, "root": base64_text(checkpoint.root)}
    return orjson.dumps({**told, "note": note}, option=orjson.OPT_APPEND_NEWLINE)
