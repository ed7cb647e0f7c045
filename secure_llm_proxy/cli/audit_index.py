"""`manage.py audit reindex`: the index of the log in the database, made anew from the segments of this host."""

from __future__ import annotations

import sys

import click

from secure_llm_proxy.audit import AuditReader, Tail
from secure_llm_proxy.audit.index_shipping import IndexRebuilder, Rebuilt
from secure_llm_proxy.audit.segment_reader import SegmentReader
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import json_option, show_json, warn
from secure_llm_proxy.cli.progress import Progress
from secure_llm_proxy.foundation.errors import Unavailable


@click.command()
@click.option("--afresh", is_flag=True, help="Begin with the first line, also when a rebuilding was broken off before.")
@json_option
@pass_context
def reindex(context: CommandContext, *, afresh: bool, as_json: bool) -> None:
    """Make the index of this host's log anew from its segments. Searches find something meanwhile.

    What was broken off is gone on with. Exit 1 when the log is damaged or forked: what is good of it is in the index then.
    """
    files = SegmentReader(context.audit_settings)
    name = str(files.state()["log"])
    rebuilt = context.recorded("audit.reindex", name, {"afresh": afresh}, {}, lambda: _rebuild(context, files, afresh))
    if as_json:
        show_json(
            {
                "log": rebuilt.log,
                "first_line": rebuilt.first,
                "next_line": rebuilt.next_n,
                "records": rebuilt.rows,
                "troubles": list(rebuilt.troubles),
            }
        )
    else:
        click.echo(
            f"The index of {rebuilt.log} was made anew from line {rebuilt.first} to {rebuilt.next_n - 1}: {rebuilt.rows} records."
        )
    for sentence in rebuilt.troubles:
        warn(sentence)
    if rebuilt.troubles:
        sys.exit(1)


def _rebuild(context: CommandContext, files: SegmentReader, afresh: bool) -> Rebuilt:  # noqa: FBT001  as it was given
    sizes = files.sizes()
    before = {number: sum(sizes[each] for each in sizes if each < number) for number in sizes}
    with Progress("indexing", sum(sizes.values())) as progress:

        def show(_rows: int, tail: Tail) -> None:
            if tail.rows:
                place = tail.rows[-1].place
                progress.at(before.get(place.segment, 0) + place.offset, place.n)

        source = _reader_of_what_is_synced(context) or files
        return IndexRebuilder(context.database, context.clock).rebuild(source, afresh=afresh, progress=show)


def _reader_of_what_is_synced(context: CommandContext) -> AuditReader | None:
    """Where a writer runs it is asked: only it knows which of the newest lines can't vanish any more."""
    reader = AuditReader(context.audit_settings)
    try:
        return reader if reader.state()["lines"] is not None else None
    except Unavailable:
        return None
