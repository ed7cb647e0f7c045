"""Commands about sessions: who has signed in, and ending that."""

from __future__ import annotations

from dataclasses import asdict

import click
from sqlalchemy.orm import Session

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import confirm, json_option, show_json, show_table, yes_option
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.identity import LiveSession


@click.command("list-sessions")
@click.option("--username", "--user", "username", help="Only this user's sessions.")
@json_option
@pass_context
def list_sessions(context: CommandContext, username: str | None, *, as_json: bool) -> None:
    """List who has signed in: from where, since when, until when."""

    def listed(session: Session) -> list[LiveSession]:
        user_id = None if username is None else context.accounts.find_user(session, username).id
        return context.sessions.listing(session, user_id)

    sessions = context.database.run(listed)
    if as_json:
        show_json([_told(live) for live in sessions])
        return
    show_table(
        ("session", "user", "role", "kind", "state", "address", "agent", "since", "last seen", "until"),
        [
            (s.id, s.username, s.role, s.kind, s.state, s.address, s.agent, s.created_at, s.last_seen_at, s.expires_at)
            for s in sessions
        ],
        empty="Nobody is signed in.",
    )


@click.command("end-session")
@click.argument("session_id", metavar="[ID]", required=False)
@click.option("--username", "--user", "username", help="Whose sessions end, with --all.")
@click.option("--all", "every", is_flag=True, help="Every session of that user.")
@yes_option
@json_option
@pass_context
def end_session(
    context: CommandContext, session_id: str | None, username: str | None, *, every: bool, yes: bool, as_json: bool
) -> None:
    """End the session ID (ses_…), or all sessions of a user. They are refused everywhere within seconds."""
    if session_id is not None and username is None and not every:
        ended = _end_one(context, session_id, yes=yes)
    elif session_id is None and username is not None and every:
        ended = _end_all(context, username, yes=yes)
    else:
        raise click.UsageError("Name one session by its id, or a user with --username NAME --all.")
    if as_json:
        show_json({"ended": ended})
        return
    click.echo(f"{ended} {'session has' if ended == 1 else 'sessions have'} ended.")


@click.command("cleanup-sessions")
@json_option
@pass_context
def cleanup_sessions(context: CommandContext, *, as_json: bool) -> None:
    """Delete what nothing needs any more: sessions and one-time tokens a day after their end, old failures, old devices."""
    deleted = context.change("sessions.cleanup", "sessions", {}, {}, context.sessions.cleanup)
    if as_json:
        show_json(asdict(deleted))
        return
    click.echo(
        f"Deleted: {deleted.sessions} sessions, {deleted.setup_tokens} one-time tokens, "
        f"{deleted.login_troubles} counts of failures, {deleted.known_devices} known devices."
    )


COMMANDS = (list_sessions, end_session, cleanup_sessions)


def _end_one(context: CommandContext, session_id: str, *, yes: bool) -> int:
    found = [live for live in context.database.run(context.sessions.listing) if live.id == session_id]
    if not found:
        raise OperatorError("There is no such session (any more); list-sessions shows which there are.")
    live = found[0]
    confirm(f"End the session of {live.username} from {live.address}?", yes=yes)
    ended = context.change(
        "session.end",
        live.id,
        {"user": live.user_id},
        {"username": live.username},
        lambda session: context.sessions.end(session, live.id, "operator"),
    )
    context.announce_revocation(live.id)
    return int(ended)


def _end_all(context: CommandContext, username: str, *, yes: bool) -> int:
    user = context.database.run(lambda session: context.accounts.find_user(session, username))
    confirm(f"End every session of {user.username}?", yes=yes)
    ended = context.change(
        "session.end_all",
        user.id,
        {},
        {"username": user.username},
        lambda session: context.sessions.end_all(session, user.id, "operator"),
    )
    context.announce_revocation(user.id)
    return ended


def _told(live: LiveSession) -> dict[str, object]:
    told = asdict(live)
    del told["digest"]
    return told
