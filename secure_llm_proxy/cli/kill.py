"""Commands of the kill switch: who is stopped at once, everywhere, running answers included."""

from __future__ import annotations

import getpass

import click

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import as_cell, confirm, json_option, show_json, show_table, yes_option
from secure_llm_proxy.identity import EVERYTHING, KillSubject, KillSwitch, KillSwitches
from secure_llm_proxy.identity.kill_switches import checked_reason

_subject_argument = click.argument("subject")


@click.command("kill")
@_subject_argument
@click.option("--reason", required=True, help="Why, for the audit log and whoever comes next.")
@yes_option
@json_option
@pass_context
def kill(context: CommandContext, subject: str, reason: str, *, yes: bool, as_json: bool) -> None:
    """Stop SUBJECT within 5 s, running answers too: a key, user, project or organisation (id or name), or `everything`."""
    switches = KillSwitches(context.clock)
    found = context.database.run(lambda session: switches.find_subject(session, subject))
    why = checked_reason(reason)
    if found.id == EVERYTHING:
        confirm("Stop every key and every session of this deployment?", yes=yes)
    by = f"host:{getpass.getuser()}"
    switch = context.change(
        "kill",
        found.id,
        {"kind": found.kind},
        {"name": found.name, "reason": why},
        lambda session: switches.kill(session, found.id, why, by),
    )
    _announce(context, found)
    if as_json:
        show_json(_told(switch))
        return
    click.echo(f"{_worded(found)} is stopped. Let go again with: manage.py unkill {found.id}")


@click.command("unkill")
@_subject_argument
@pass_context
def unkill(context: CommandContext, subject: str) -> None:
    """Let SUBJECT go again: what another kill switch still stops stays stopped."""
    switches = KillSwitches(context.clock)
    found = context.database.run(lambda session: switches.find_stopped(session, subject))
    context.change(
        "unkill",
        found.id,
        {"kind": found.kind},
        {"name": found.name},
        lambda session: switches.unkill(session, found.id),
    )
    _announce(context, found)
    click.echo(f"{_worded(found)} is no longer stopped.")


@click.command("kill-switches")
@json_option
@pass_context
def kill_switches(context: CommandContext, *, as_json: bool) -> None:
    """List who is stopped by a kill switch."""
    listed = context.database.run(KillSwitches(context.clock).listing)
    if as_json:
        show_json([_told(switch) for switch in listed])
        return
    show_table(
        ("stopped", "name", "since", "by", "reason", "id"),
        [
            (each.subject.kind, each.subject.name, each.created_at, each.created_by, each.reason, each.subject.id)
            for each in listed
        ],
        empty="Nobody is stopped.",
    )


COMMANDS = (kill, unkill, kill_switches)


def _announce(context: CommandContext, subject: KillSubject) -> None:
    context.announce_revocation(subject.id)


def _worded(subject: KillSubject) -> str:
    return "Everything" if subject.id == EVERYTHING else f"The {subject.kind} {as_cell(subject.name)}"


def _told(switch: KillSwitch) -> dict[str, object]:
    return {
        "subject": switch.subject.id,
        "kind": switch.subject.kind,
        "name": switch.subject.name,
        "organisation_id": switch.subject.organisation_id,
        "reason": switch.reason,
        "created_by": switch.created_by,
        "created_at": switch.created_at,
    }
