"""Commands about second factors: set up from the host's shell, taken away from who lost theirs."""

from __future__ import annotations

import click
from sqlalchemy.orm import Session

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import confirm, json_option, show_json, yes_option
from secure_llm_proxy.foundation.errors import AuthenticationFailed, OperatorError
from secure_llm_proxy.identity import SecondFactorState, User, qr_text

_TRIES = 3
_username_option = click.option("--username", "--user", "username", required=True, help="The user's name.")


class _WrongCode(OperatorError):
    def __init__(self) -> None:
        super().__init__(
            "The code is not right; nothing was set up. Is the clock of the phone, and of this host, right?"
        )


@click.command("enroll-mfa")
@_username_option
@json_option
@pass_context
def enroll_mfa(context: CommandContext, username: str, *, as_json: bool) -> None:
    """Set up a user's second factor here: a QR code for an authenticator app, then recovery codes, shown once."""
    user, state = _found(context, username)
    if state.enrolled:
        raise OperatorError(
            f"{user.username} has a second factor already; reset-mfa removes it when the phone that holds it is lost."
        )
    enrolment = context.change(
        "user.mfa_begin", user.id, {}, _named(user), lambda session: context.second_factors.begin(session, user.id)
    )
    # JSON has standard output for itself.
    click.echo(f"Scan this with an authenticator app, for {user.username}:", err=as_json)
    click.echo(qr_text(enrolment.uri), err=as_json)
    click.echo(f"Or type it in: {_in_groups(enrolment.secret_base32)}", err=as_json)
    codes = _confirmed(context, user)
    if as_json:
        show_json({"username": user.username, "recovery_codes": codes})
        return
    click.echo(f"{user.username} has a second factor. Sessions of the account have ended.")
    click.echo("Recovery codes, each good once instead of a code of the app. Shown this once, keep them apart:")
    for code in codes:
        click.echo(f"    {code}")


@click.command("reset-mfa")
@_username_option
@yes_option
@json_option
@pass_context
def reset_mfa(context: CommandContext, username: str, *, yes: bool, as_json: bool) -> None:
    """Remove a user's second factor and recovery codes, and end every session. Only this command can do so for others."""
    user, state = _found(context, username)
    confirm(f"Remove the second factor of {user.username} and end every session of the account?", yes=yes)

    def remove(session: Session) -> bool:
        removed = context.second_factors.remove(session, user.id)
        context.sign_in.forget_troubles(session, user)
        return removed

    removed = context.change("user.mfa_reset", user.id, {"enrolled": state.enrolled}, _named(user), remove)
    context.announce_revocation(user.id)
    if as_json:
        show_json({"username": user.username, "removed": removed})
        return
    owed = context.accounts.owes_second_factor(user.role, mfa_required=user.mfa_required)
    click.echo(
        f"{user.username} has no second factor{' any more' if removed else ''}"
        + ("; the next sign-in asks to set one up." if owed else ".")
    )


COMMANDS = (enroll_mfa, reset_mfa)


def _found(context: CommandContext, username: str) -> tuple[User, SecondFactorState]:
    def find(session: Session) -> tuple[User, SecondFactorState]:
        user = context.accounts.find_user(session, username)
        return user, context.second_factors.state(session, user.id)

    return context.database.run(find)


def _confirmed(context: CommandContext, user: User) -> tuple[str, ...]:
    """The recovery codes, once a code of the app was right; three tries, each of them recorded."""

    def confirmed(session: Session) -> tuple[str, ...]:
        try:
            return context.second_factors.confirm(session, user.id, code)
        except AuthenticationFailed:
            raise _WrongCode from None

    tries = 0
    while True:
        code: str = click.prompt("The six digits that the app shows", err=True)
        try:
            return context.change("user.mfa_enrol", user.id, {}, _named(user), confirmed)
        except _WrongCode as error:
            tries += 1
            if tries == _TRIES:
                raise
            click.echo(str(error), err=True)


def _named(user: User) -> dict[str, object]:
    return {"username": user.username}


def _in_groups(secret: str) -> str:
    return " ".join(secret[start : start + 4] for start in range(0, len(secret), 4))
