"""`manage.py audit retire` and `backup`: what would be retired, and how the backup stands."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping

import click

from secure_llm_proxy.audit import Backup, BackupStanding, Candidate, backup_of, find_log, retention_of
from secure_llm_proxy.audit.control import WriterControl
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import json_option, show_json, show_table
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings

_LOOK_S = 0.05


@click.command("retire")
@click.option(
    "--dry-run", is_flag=True, help="Required: the audit writer retires by itself, every hour and at its start."
)
@json_option
@pass_context
def retire(context: CommandContext, *, dry_run: bool, as_json: bool) -> None:
    """Tell which segments are older than AUDIT_RETENTION_DAYS and go at the writer's next look, and which are held back."""
    if not dry_run:
        raise OperatorError("The audit writer retires old segments by itself; with --dry-run this tells which.")
    settings = context.settings.audit
    log = find_log(settings.directory, settings.host_id, settings.fallback_directory)
    retention = retention_of(settings, log, backup_of(settings, log))
    if retention is None:
        raise OperatorError("AUDIT_RETENTION_DAYS is not set: every segment is kept.")
    found = retention.candidates()
    if as_json:
        show_json([_candidate_values(candidate) for candidate in found])
        return
    show_table(
        ("segment", "ended", "KiB", "held back"),
        [(each.segment.name, each.ended, each.size // 1024, each.held_back) for each in found],
        empty=f"No segment is older than {settings.retention_days} days.",
    )


def _candidate_values(candidate: Candidate) -> dict[str, object]:
    return {
        "segment": candidate.segment.name,
        "ended": candidate.ended,
        "bytes": candidate.size,
        "held_back": candidate.held_back,
    }


@click.command("backup")
@click.option("--now", is_flag=True, help="Let the audit writer back up first, and wait for it.")
@click.option("--status", "wants_status", is_flag=True, help="Compare log and backup.")
@json_option
@pass_context
def backup(context: CommandContext, *, now: bool, wants_status: bool, as_json: bool) -> None:
    """Tell what of this host's log is in the backup. Exit 1 when something finished is not, or is not the same."""
    if not (now or wants_status):
        raise OperatorError(
            "The audit writer backs up by itself every AUDIT_BACKUP_INTERVAL_S; --now makes it begin, --status tells "
            "how the backup stands."
        )
    made = _backup(context)
    if now:
        _back_up_now(context.settings.audit)
    standing = made.standing()
    if as_json:
        show_json(_standing_values(standing))
    else:
        _tell(standing)
    if standing.missing or standing.differing:
        sys.exit(1)


def _backup(context: CommandContext) -> Backup:
    settings = context.settings.audit
    made = backup_of(settings, find_log(settings.directory, settings.host_id, settings.fallback_directory))
    if made is None:
        raise OperatorError("AUDIT_BACKUP_ENABLED is false: no backup is made.")
    return made


def _back_up_now(settings: AuditSettings) -> None:
    """Return when a run that began after this call has ended. Raises `OperatorError` with what went wrong in it."""
    with contextlib.closing(WriterControl(settings.control_address)) as control:
        before = control.ask("backup", now=True)
        # One that was under way began before.
        wanted = _number(before, "runs") + (2 if before["running_since"] else 1)
        while True:
            state = control.ask("backup")
            if _number(state, "runs") >= wanted:
                break
            time.sleep(_LOOK_S)
    troubles = state["troubles"]
    if isinstance(troubles, list) and troubles:
        raise OperatorError(" ".join(map(str, troubles)))


def _number(state: Mapping[str, object], name: str) -> int:
    value = state[name]
    assert isinstance(value, int)
    return value


def _tell(standing: BackupStanding) -> None:
    click.echo(
        f"{standing.held} of {standing.held + len(standing.missing)} finished segments are in {standing.directory}."
    )
    click.echo(f"Newest copy of the log: {standing.newest or 'none'}.")
    click.echo(f"Newest snapshot of the key store: {standing.snapshot or 'none'} of {standing.snapshots}.")
    for name in standing.missing:
        click.echo(f"Not there: {name}")
    for name in standing.differing:
        click.echo(f"Not the same: {name}. One of the two was altered; run `manage.py audit verify` on both.")


def _standing_values(standing: BackupStanding) -> dict[str, object]:
    return {
        "directory": str(standing.directory),
        "held": standing.held,
        "missing": list(standing.missing),
        "differing": list(standing.differing),
        "newest": standing.newest,
        "key_store_snapshots": standing.snapshots,
        "newest_key_store_snapshot": standing.snapshot,
    }
