"""`manage.py audit reconcile`: does nginx's access log tell of the same requests as the audit log?"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

import click

from secure_llm_proxy.audit import segments_of, size_of
from secure_llm_proxy.audit.reconciliation import STANDARD_INPUT, Difference, Reconciliation, Terms, reconcile
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.handed_file import HandedPath
from secure_llm_proxy.cli.moments import MOMENT, check_order
from secure_llm_proxy.cli.output import as_cell, json_option, show_json
from secure_llm_proxy.cli.progress import Progress
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import SettingsError

_DIFFERS, _NOT_COMPARED = 1, 2
_LISTED_MAX = 100_000


@click.command(name="reconcile")
@click.option(
    "--access-log",
    "access_logs",
    type=HandedPath(),
    multiple=True,
    required=True,
    help="nginx's JSON access log, rotated ones too, also packed (.gz); - is standard input. May be repeated; in any order.",
)
@click.option(
    "--since", type=MOMENT, help="Requests that began from this time on: 2026-11-21, 2026-11-21T14:05Z, 24h (ago)."
)
@click.option("--until", type=MOMENT, help="Requests that began before this time.")
@click.option(
    "--grace",
    type=click.IntRange(0, 3600),
    default=60,
    show_default=True,
    help="So many seconds after its end nginx's line of a request may still be missing: its client reads slowly.",
)
@click.option("--all-through-nginx", is_flag=True, help="What came around nginx is a difference, too.")
@click.option(
    "--limit", type=click.IntRange(0, _LISTED_MAX), default=100, show_default=True, help="List so many differences."
)
@json_option
@pass_context
def reconcile_logs(
    context: CommandContext,
    access_logs: tuple[Path, ...],
    since: str | None,
    until: str | None,
    grace: int,
    limit: int,
    *,
    all_through_nginx: bool,
    as_json: bool,
) -> None:
    """Hold nginx's access log to the audit log of this host: every request that a worker answered is on record, begun and ended
    or refused, with the same status; and nothing is on record that nginx did not see.

    What is under way when the logs are read is no difference. Exit code 0 they agree, 1 they differ, 2 they could not be compared.
    """
    check_order(since, until)
    terms = Terms(_unix(since), _unix(until), float(grace), all_through_nginx=all_through_nginx, listed_max=limit)
    try:
        segments = segments_of(context.settings.audit)
        total = size_of(segments) + sum(path.stat().st_size for path in access_logs if path != STANDARD_INPUT)
        with Progress("comparing", total) as progress:
            told = reconcile(access_logs, segments, terms, must_be_recorded=_recorded_doors(), watch=progress.over)
    except (OperatorError, SettingsError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(_NOT_COMPARED)
    except OSError as error:
        click.echo(f"Error: {error.filename or 'A log'} cannot be read: {error.strerror or error}.", err=True)
        sys.exit(_NOT_COMPARED)
    if as_json:
        show_json(_values(told))
    else:
        _tell(told)
    sys.exit(0 if told.agrees else _DIFFERS)


def _recorded_doors() -> Callable[[str, str], bool]:
    """Says of a method and a path, escaped as the client sent it, whether it is one of the corridor's that leave a record
    whatever happens: those that something is sent to. (Asking for the list of models leaves one only when it is refused.)
    """
    # The doors bring the whole of the product's edge with them, which no other audit command needs.
    from secure_llm_proxy.web.doors import DOORS, Guard  # noqa: PLC0415

    pattern = "|".join(
        re.sub(r"<path:[^>]+>", ".+", re.sub(r"<[^:>]+>", "[^/]+", door.path))
        for door in DOORS
        if door.guard is Guard.CORRIDOR and door.method == "POST"
    )
    matches = re.compile(pattern).fullmatch
    return lambda method, path: method == "POST" and matches(unquote(path)) is not None


def _unix(moment: str | None) -> float | None:
    return None if moment is None else datetime.fromisoformat(moment).timestamp()


def _tell(told: Reconciliation) -> None:
    total = told.counts.total()
    click.echo(
        f"{'AGREE' if told.agrees else f'DIFFER in {total}'}: {told.requests} requests of the data plane reached a worker, "
        f"{told.agreeing} are on record as nginx saw them."
    )
    click.echo(
        f"{told.files} access logs of {told.lines} lines, {told.first or '-'} to {told.last or '-'}; "
        f"{told.exchanges} exchanges of that time in the audit log."
    )
    for count, sentence in (
        (told.under_way, "were under way when the logs were read."),
        (told.around_nginx, "exchanges came around nginx (they name no request of its)."),
        (told.answered_by_nginx, "requests were answered by nginx alone."),
        (
            told.unanswered,
            "requests were neither answered nor recorded by a worker: it was away, or the client left at once.",
        ),
        (told.refused_unrecorded, "requests were refused with 503 and not recorded: the audit log took nothing then."),
        (told.before_log, "requests are older than what is left of the audit log."),
    ):
        if count:
            click.echo(f"{count} {sentence}")
    for kind, count in told.counts.most_common():
        click.echo(f"{kind.value}: {count}")
    for difference in told.differences:
        click.echo(_line(difference))
    if total > len(told.differences):
        click.echo(f"… and {total - len(told.differences)} more differences (--limit).")


def _line(found: Difference) -> str:
    named = (found.at, found.exchange, found.edge_id and f"edge {found.edge_id}", found.place)
    return as_cell(f"    {found.kind.value}: {found.what}: " + ", ".join(part for part in named if part))


def _values(told: Reconciliation) -> dict[str, object]:
    return {
        "agree": told.agrees,
        "access_logs": told.files,
        "lines": told.lines,
        "first": told.first,
        "last": told.last,
        "exchanges": told.exchanges,
        "requests": told.requests,
        "agreeing": told.agreeing,
        "under_way": told.under_way,
        "around_nginx": told.around_nginx,
        "answered_by_nginx": told.answered_by_nginx,
        "unanswered": told.unanswered,
        "refused_unrecorded": told.refused_unrecorded,
        "before_log": told.before_log,
        "differences_total": told.counts.total(),
        "counts": {kind.value: count for kind, count in told.counts.items()},
        "differences": [
            {
                "kind": found.kind.value,
                "what": found.what,
                "time": found.at,
                "exchange": found.exchange,
                "edge_id": found.edge_id,
                "status": found.status,
                "recorded_status": found.recorded_status,
                "place": found.place,
            }
            for found in told.differences
        ],
    }
