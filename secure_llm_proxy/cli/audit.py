"""`manage.py audit`: begin, verify, print and open the sealed log."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click
import orjson

from secure_llm_proxy.audit import (
    BodyOpener,
    Opened,
    VerificationReport,
    find_log,
    initialise,
    open_records,
    read_anchors,
    restart_log,
    segments_of,
    size_of,
    stored_lines,
    verify,
)
from secure_llm_proxy.cli.audit_export import export
from secure_llm_proxy.cli.audit_index import reindex
from secure_llm_proxy.cli.audit_keeping import backup, retire
from secure_llm_proxy.cli.audit_keys import erase, rotate_keys
from secure_llm_proxy.cli.audit_proof import anchors, check, prove_record
from secure_llm_proxy.cli.audit_readers import COMMANDS as READER_COMMANDS
from secure_llm_proxy.cli.audit_reconcile import reconcile_logs
from secure_llm_proxy.cli.audit_search import search
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.handed_file import HandedFile, HandedPath
from secure_llm_proxy.cli.output import as_cell, json_option, show_json
from secure_llm_proxy.cli.progress import Progress
from secure_llm_proxy.cli.reveals import record_reveal
from secure_llm_proxy.cli.whole_file import STANDARD_OUTPUT, whole_file
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import SettingsError
from secure_llm_proxy.vocabulary.events import AuditType

_IDENTIFIER = re.compile(r"[0-9A-Za-z_-]{1,64}")
_USAGE, _UNDECIDABLE = 2, 4


@click.group()
def audit() -> None:
    """The sealed audit log."""


for command in (
    search, export, prove_record, check, anchors, reindex, backup, retire, erase, rotate_keys, reconcile_logs, *READER_COMMANDS,
):  # fmt: skip
    audit.add_command(command)


@audit.command()
@pass_context
def init(context: CommandContext) -> None:
    """Begin the log: make its owner key (shown once, keep it offline) and its first epoch key. Again: changes nothing."""
    genesis = initialise(context.audit_settings)
    if genesis.owner_private_key is None:
        click.echo(f"The log {genesis.log} has begun already in {genesis.directory}.")
    else:
        click.echo(f"The log {genesis.log} begins in {genesis.directory}.")
        click.echo("Owner key, private half (shown once; keep it offline, a restored log needs it):")
        click.echo(f"    {genesis.owner_private_key}")
    click.echo("Owner key, public half (give it to auditors; `audit verify --genesis` takes it):")
    click.echo(f"    {genesis.owner_public_key}")


@audit.command()
@click.option(
    "--owner-key",
    type=HandedFile(),
    required=True,
    help="File with the owner's private key as `audit init` showed it once; - is standard input.",
)
@click.option("--force", is_flag=True, help="Also when the signing key in force is not lost.")
@pass_context
def restart(context: CommandContext, owner_key: TextIO, *, force: bool) -> None:
    """Go on with a log whose signing key is lost, as after a restore: the owner signs a new one, and verifiers are told.

    Stop the service first.
    """
    genesis = restart_log(context.audit_settings, owner_key.read(4096), force=force)
    click.echo(f"The log {genesis.log} goes on with a new signing key, which its owner has signed.")


@audit.command(name="verify")
@click.argument("directory", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--genesis", help="The owner's public key as you know it; without it the one beside the log is believed.")
@click.option(
    "--anchors",
    "anchors_file",
    type=HandedPath(),
    help="Checkpoints that were kept elsewhere, as `audit anchors` prints them: the log must begin with what they say. - is "
    "standard input.",
)
@click.option(
    "--also",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The log's second directory; default AUDIT_FALLBACK_DIR when DIRECTORY is not given.",
)
@click.option("--content", is_flag=True, help="Also open every body; needs AUDIT_KEK.")
@json_option
@click.pass_obj
def verify_log(
    context: CommandContext,
    directory: Path | None,
    genesis: str | None,
    anchors_file: Path | None,
    also: Path | None,
    *,
    content: bool,
    as_json: bool,
) -> None:
    """Check the whole log in DIRECTORY (default AUDIT_DIR), offline and without any secret.

    Exit code 0 intact, 1 tampered, 2 usage or no log there, 3 incomplete, 4 undecidable or not to be read.
    """
    with _no_finding():
        report = _verified(context, directory, genesis, anchors_file, also, content=content)
    if as_json:
        show_json(_report_values(report))
    else:
        _tell(report)
    sys.exit(report.exit_code)


def _verified(
    context: CommandContext,
    directory: Path | None,
    genesis: str | None,
    anchors_file: Path | None,
    also: Path | None,
    *,
    content: bool,
) -> VerificationReport:
    opener = None
    if content:
        if context.audit_settings.kek is None:
            raise OperatorError("--content needs AUDIT_KEK, the key of the audit writer.")
        opener = BodyOpener.of(context.audit_settings)
    place = directory or context.settings.audit.directory
    host_id = "" if directory else context.settings.audit.host_id
    anchors = read_anchors(anchors_file) if anchors_file else []
    if directory is None and also is None:
        also = context.settings.audit.fallback_directory
    with Progress("verifying", size_of(find_log(place, host_id, also).segments())) as progress:
        return verify(
            place,
            genesis_public_key=genesis,
            progress=progress.at,
            opener=opener,
            host_id=host_id,
            anchors=anchors,
            also=also,
        )


@contextlib.contextmanager
def _no_finding() -> Iterator[None]:
    """What keeps a log from being verified is told by an exit code of its own: 1 would say that it was tampered with."""
    try:
        yield
    except (OperatorError, SettingsError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(_USAGE)
    except OSError as error:
        click.echo(f"Error: {error.filename or 'The log'} cannot be read: {error.strerror or error}.", err=True)
        sys.exit(_UNDECIDABLE)


def _tell(report: VerificationReport) -> None:
    click.echo(
        f"{report.outcome.value.upper()}: log {report.log or 'unknown'}, {report.segments} segments, {report.lines} lines, "
        f"{report.records} records, {report.first_time or '-'} to {report.last_time or '-'}."
    )
    click.echo(
        f"{report.checkpoints} checkpoints and {report.key_rolls} key rolls were checked, {report.anchors_met} anchors met."
    )
    if report.bodies_opened:
        click.echo(f"{report.bodies_opened} bodies were opened.")
    if report.open_exchanges:
        click.echo(f"{report.open_exchanges} exchanges were under way.")
    for finding in report.findings:
        click.echo(as_cell(str(finding)))
    if report.findings_total > len(report.findings):
        click.echo(f"… and {report.findings_total - len(report.findings)} more findings.")


def _report_values(report: VerificationReport) -> dict[str, object]:
    return {
        "outcome": report.outcome.value,
        "directory": str(report.directory),
        "log": report.log,
        "owner_public_key": report.owner_public_key,
        "segments": report.segments,
        "lines": report.lines,
        "records": report.records,
        "bodies_opened": report.bodies_opened,
        "open_exchanges": report.open_exchanges,
        "checkpoints": report.checkpoints,
        "key_rolls": report.key_rolls,
        "anchors_met": report.anchors_met,
        "first_time": report.first_time,
        "last_time": report.last_time,
        "findings_total": report.findings_total,
        "findings": [
            {"severity": found.severity.value, "file": found.file, "line": found.line, "what": found.what}
            for found in report.findings
        ],
    }


@audit.command()
@pass_context
def cat(context: CommandContext) -> None:
    """Print every line of the log, oldest first, bodies sealed: made for grep and jq."""
    settings = context.settings.audit
    with whole_file(Path(STANDARD_OUTPUT)) as out:
        for line in stored_lines(segments_of(settings)):
            out.write(line.raw + b"\n")


@audit.command()
@click.argument("identifier")
@json_option
@pass_context
def show(context: CommandContext, identifier: str, *, as_json: bool) -> None:
    """Open the records of IDENTIFIER, a record's or an exchange's id. The look itself is recorded first."""
    if not _IDENTIFIER.fullmatch(identifier):
        raise OperatorError(f"No record can have the id {as_cell(identifier[:64])}.")
    settings = context.audit_settings
    if settings.kek is None and settings.encryption_enabled:
        raise OperatorError("Opening a record needs AUDIT_KEK; run this as a user who may read the audit writer's key.")
    record_reveal(context, identifier)
    with Progress("looking for the record", size_of(segments_of(settings))) as progress:
        opened = open_records(
            settings.directory,
            identifier,
            BodyOpener.of(settings),
            host_id=settings.host_id,
            also=settings.fallback_directory,
            watch=progress.over,
        )
    opened = [found for found in opened if found.record.type != AuditType.REVEAL]
    if not opened:
        raise OperatorError(f"No record has the id {as_cell(identifier)}.")
    if as_json:
        show_json([_values(found) for found in opened])
        return
    for found in opened:
        click.echo(f"{found.file}:{found.number}  {found.record.type}  {found.record.id}")
        for name, value in _values(found).items():
            click.echo(f"    {name}: {_readable(value)}")


def _values(found: Opened) -> dict[str, object]:
    body: object = None
    if found.body is not None:
        try:
            body = orjson.loads(found.body)
        except orjson.JSONDecodeError:
            body = found.body.decode("utf-8", "replace")
    record = found.record
    return {
        "time": record.t,
        "exchange": record.exchange_id,
        "event": record.event,
        **record.clear,
        "body": body,
        **({"problem": found.problem} if found.problem else {}),
    }


def _readable(value: object) -> str:
    if isinstance(value, dict | list):
        return as_cell(orjson.dumps(value).decode())
    return as_cell(value)
