"""`manage.py audit export`: records as a file for a spreadsheet, a SIEM or a program."""

from __future__ import annotations

import base64
import contextlib
import getpass
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Unpack

import click
import orjson

from secure_llm_proxy.audit import (
    ExportEnd,
    ExportFormat,
    KeyLine,
    RecordLine,
    Selection,
    flat_members,
    row_of_record,
    row_writer,
    segments_of,
    select,
    size_of,
    stored_lines,
)
from secure_llm_proxy.audit.format import FormatError, Line, NewerVersion, SegmentLine, parse_line
from secure_llm_proxy.audit.reading import BodyOpener, StoredLine, opened_body
from secure_llm_proxy.audit.seal import SealBroken
from secure_llm_proxy.cli.audit_search import Question, filter_of, record_options
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.progress import Progress
from secure_llm_proxy.cli.reveals import record_reveal
from secure_llm_proxy.cli.whole_file import STANDARD_OUTPUT, whole_file
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import OperatorError

_KEY_OPENINGS = (b'{"k":"seg",', b'{"k":"key",')
_ASKED_KEPT = 200
_FORMATS = [ExportFormat.JSONL.value, ExportFormat.CSV.value, ExportFormat.CEF.value]


@click.command()
@click.option("--format", "kind", type=click.Choice(_FORMATS), default=_FORMATS[0], show_default=True)
@record_options
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path(STANDARD_OUTPUT),
    help="A new file, readable by you alone; it is there whole or not at all. Default: standard output.",
)
@click.option("--content", is_flag=True, help="Open the bodies as well (jsonl only); the look is recorded first.")
@pass_context
def export(context: CommandContext, kind: str, output: Path, *, content: bool, **question: Unpack[Question]) -> None:
    """Write the readable members of every record that fits, oldest first; the last row says whether all are there."""
    if content and kind != ExportFormat.JSONL:
        raise click.UsageError("--content goes with --format jsonl only.")
    wanted = filter_of(context, question)
    asked = {name: value for name, value in asdict(wanted).items() if isinstance(value, str)}
    with whole_file(output) as stream:
        # The file first, so that what can't be written opens no body.
        bodies = _bodies(context, asked) if content else None
        for piece in _pieces(context, wanted, ExportFormat(kind), asked, bodies):
            stream.write(piece)


def _pieces(
    context: CommandContext,
    wanted: Selection,
    kind: ExportFormat,
    asked: Mapping[str, str],
    bodies: _Bodies | None,
) -> Iterator[bytes]:
    segments = segments_of(context.settings.audit)
    told = {"exported_at": rfc3339(context.clock.now()), "by": f"host:{getpass.getuser()}", "filter": dict(asked)}
    writer = row_writer(kind, told)
    yield writer.opening()
    count = 0
    with Progress("exporting", size_of(segments)) as progress:
        lines = progress.over(stored_lines(segments))
        for line, record in select(bodies.passing(lines) if bodies else lines, wanted):
            row = row_of_record(record, line.file.number, line.raw)
            count += 1
            if bodies is None:
                yield writer.row(row)
            else:
                yield orjson.dumps(flat_members(row) | bodies.members(record), option=orjson.OPT_APPEND_NEWLINE)
    yield writer.ending(ExportEnd(records=count, complete=True))


def _bodies(context: CommandContext, asked: Mapping[str, str]) -> _Bodies:
    settings = context.audit_settings
    if settings.kek is None and settings.encryption_enabled:
        raise OperatorError("Opening bodies needs AUDIT_KEK; run this as a user who may read the audit writer's key.")
    opener = BodyOpener.of(settings)
    record_reveal(context, "export", **{f"f_{name}": value[:_ASKED_KEPT] for name, value in asked.items()})
    return _Bodies(opener)


class _Bodies:
    """Learns the keys that stand between the records, and opens what they sealed."""

    def __init__(self, opener: BodyOpener) -> None:
        self._opener = opener

    def passing(self, lines: Iterable[StoredLine]) -> Iterator[StoredLine]:
        for line in lines:
            if line.raw.startswith(_KEY_OPENINGS):
                # A key that does not unwrap shows at its records.
                with contextlib.suppress(FormatError, NewerVersion, SealBroken):
                    self._learn(parse_line(line.raw))
            yield line

    def _learn(self, line: Line) -> None:
        if isinstance(line, SegmentLine):
            self._opener.enter(line.kek_id)
        elif isinstance(line, KeyLine):
            self._opener.learn(line)

    def members(self, record: RecordLine) -> dict[str, object]:
        body, problem = opened_body(self._opener, record)
        return {"body": None if body is None else _readable(body), **({"problem": problem} if problem else {})}


def _readable(body: bytes) -> object:
    """JSON as it is, other text as text, other bytes as base64."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}
