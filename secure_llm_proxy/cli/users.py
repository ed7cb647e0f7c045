"""Commands about users: made, listed, locked, given a way to a new password."""

from __future__ import annotations

from dataclasses import asdict

import click
from sqlalchemy.orm import Session

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import (
    SecretInput,
    as_cell,
    ask_new_password,
    confirm,
    json_option,
    show_json,
    show_table,
    warn,
    yes_option,
)
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.foundation.identifiers import new_user_id
from secure_llm_proxy.identity import (
    DEFAULT_ORGANISATION_ID,
    OneTimeToken,
    PasswordHash,
    Role,
    User,
    UserChanges,
    UserStatus,
    role_named,
)
from secure_llm_proxy.vocabulary.audit import ClearValue

_organisation_option = click.option("--organisation", help="Whose user it is; by default the first organisation's.")
_username_option = click.option("--username", "--user", "username", required=True, help="The user's name.")
_email_option = click.option("--email", required=True, help="The user's e-mail address.")
_password_stdin_option = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, one line."
)
_set_password_option = click.option("--set-password", is_flag=True, help="Ask for the password, without echo.")
_password_option = click.option("--password", help="The password itself. Visible to others: use one of the other ways.")


@click.command("create-admin")
@_username_option
@_email_option
@_set_password_option
@_password_stdin_option
@_password_option
@json_option
@pass_context
def create_admin(
    context: CommandContext,
    username: str,
    email: str,
    password: str | None,
    *,
    set_password: bool,
    password_stdin: bool,
    as_json: bool,
) -> None:
    """Make an administrator: ready with a password, else with a one-time setup token that is printed once.

    The first one, as long as there is no owner, becomes owner.
    """
    chosen = _password_from(password, password_stdin=password_stdin, set_password=set_password)
    role = Role.ADMIN if context.database.run(context.accounts.has_owner) else Role.OWNER
    _create(context, username, email, role, None, chosen, as_json=as_json)


@click.command("create-user")
@_username_option
@_email_option
@click.option("--role", default="member", show_default=True, help=f"One of: {', '.join(Role)}; user, readonly.")
@_organisation_option
@click.option(
    "--mfa/--no-mfa",
    "mfa",
    default=None,
    help="Whether the user must have a second factor; by default as MFA_REQUIRED asks of the role.",
)
@_set_password_option
@_password_stdin_option
@_password_option
@json_option
@pass_context
def create_user(
    context: CommandContext,
    username: str,
    email: str,
    role: str,
    organisation: str | None,
    password: str | None,
    *,
    mfa: bool | None,
    set_password: bool,
    password_stdin: bool,
    as_json: bool,
) -> None:
    """Make a user: ready with a password, else with a one-time setup token that is printed once."""
    named = role_named(role)
    if mfa is False and context.accounts.owes_second_factor(named, mfa_required=False):
        raise OperatorError(f"--no-mfa can't be: MFA_REQUIRED asks every {named} for a second factor.")
    chosen = _password_from(password, password_stdin=password_stdin, set_password=set_password)
    _create(context, username, email, named, organisation, chosen, mfa_required=mfa is True, as_json=as_json)


@click.command("list-users")
@click.option("--organisation", help="Only users of this organisation.")
@click.option("--role", help="Only users of this role.")
@click.option("--status", type=click.Choice([status.value for status in UserStatus]), help="Only these.")
@click.option("--prefix", help="Only users whose name begins so.")
@json_option
@pass_context
def list_users(
    context: CommandContext,
    organisation: str | None,
    role: str | None,
    status: str | None,
    prefix: str | None,
    *,
    as_json: bool,
) -> None:
    """List every user."""

    def read(session: Session) -> tuple[list[User], dict[str, str]]:
        organisations = context.organisations
        names = {str(found.id): found.name for found in organisations.list_organisations(session)}
        its_id = None if organisation is None else organisations.find_organisation(session, organisation).id
        users = context.accounts.list_users(
            session, organisation_id=its_id, role=role, status=status, name_prefix=prefix
        )
        return users, names

    users, names = context.database.run(read)
    if as_json:
        show_json([asdict(user) for user in users])
        return
    show_table(
        ("username", "role", "status", "organisation", "password", "e-mail", "created", "id"),
        [
            (
                user.username,
                user.role,
                user.status,
                names[user.organisation_id],
                "set" if user.has_password else "not set",
                user.email,
                user.created_at,
                user.id,
            )
            for user in users
        ],
        empty="There is no such user; make the first with: manage.py create-admin",
    )


@click.command("update-user")
@_username_option
@click.option("--email", help="The user's e-mail address.")
@click.option("--role", help=f"One of: {', '.join(Role)}; user, readonly.")
@click.option("--organisation", help="Whose user it is.")
@json_option
@pass_context
def update_user(
    context: CommandContext,
    username: str,
    email: str | None,
    role: str | None,
    organisation: str | None,
    *,
    as_json: bool,
) -> None:
    """Change a user's e-mail address, role or organisation. What is not given stays.

    With role or organisation the user's sessions end, and keys that the new role may not have are revoked.
    """
    changes: UserChanges = {}
    if email is not None:
        changes["email"] = email
    if role is not None:
        changes["role"] = role_named(role)
    if organisation is not None:
        changes["organisation"] = organisation
    if not changes:
        raise click.UsageError("Say what is to change: --email, --role or --organisation.")
    user = _find(context, username)
    changed = context.change(
        "user.update",
        user.id,
        {"role": changes.get("role")},
        {**_named(user), **changes},
        lambda session: context.accounts.update_user(session, user.id, changes, version=user.version),
    )
    _announce(context, user.id)
    if as_json:
        show_json({**asdict(changed.user), "revoked_keys": changed.revoked})
        return
    click.echo(f"{changed.user.username} is changed; keys revoked: {len(changed.revoked)}.")


@click.command("disable-user")
@_username_option
@yes_option
@json_option
@pass_context
def disable_user(context: CommandContext, username: str, *, yes: bool, as_json: bool) -> None:
    """Disable a user who leaves, for good: keys are revoked, sessions end, the user belongs to no project."""
    user = _find(context, username)
    confirm(f"Disable {user.username} for ever, and revoke all keys of the account?", yes=yes)
    changed = context.change(
        "user.disable", user.id, {}, _named(user), lambda session: context.accounts.disable_user(session, user.id)
    )
    _announce(context, user.id)
    if as_json:
        show_json({**asdict(changed.user), "revoked_keys": changed.revoked})
        return
    click.echo(f"{user.username} is disabled; keys revoked: {len(changed.revoked)}.")


@click.command("lock-user")
@_username_option
@yes_option
@json_option
@pass_context
def lock_user(context: CommandContext, username: str, *, yes: bool, as_json: bool) -> None:
    """Lock a user: every key of the account is refused until unlock-user, and every session has ended."""
    user = _find(context, username)
    confirm(f"Lock {user.username}, refuse all keys of the account and end its sessions?", yes=yes)
    locked = context.change(
        "user.lock", user.id, {}, _named(user), lambda session: context.accounts.lock_user(session, username)
    )
    _announce(context, username)
    _show_status(locked, as_json=as_json)


@click.command("unlock-user")
@_username_option
@json_option
@pass_context
def unlock_user(context: CommandContext, username: str, *, as_json: bool) -> None:
    """Unlock a user: the keys of the account work again, and failed sign-ins are forgotten."""
    user = _find(context, username)

    def unlock(session: Session) -> User:
        context.sign_in.forget_troubles(session, user)
        return context.accounts.unlock_user(session, username)

    unlocked = context.change("user.unlock", user.id, {}, _named(user), unlock)
    _announce(context, username)
    _show_status(unlocked, as_json=as_json)


@click.command("reset-password")
@_username_option
@_set_password_option
@_password_stdin_option
@_password_option
@json_option
@pass_context
def reset_password(
    context: CommandContext,
    username: str,
    password: str | None,
    *,
    set_password: bool,
    password_stdin: bool,
    as_json: bool,
) -> None:
    """Print a one-time token with which the user sets a new password, or set one that is given here."""
    user = _find(context, username)
    chosen = _password_from(password, password_stdin=password_stdin, set_password=set_password)
    if chosen is None:
        token = context.change(
            "user.password_reset",
            user.id,
            {},
            _named(user),
            lambda session: context.accounts.start_password_reset(session, username),
        )
        _show_user(token.user, token, as_json=as_json)
        return
    hashed = _hashed(context, user, chosen)
    user = _set_password(context, user, hashed)
    _show_user(user, None, as_json=as_json)


@click.command("change-password")
@_username_option
@click.option(
    "--password-stdin", is_flag=True, help="Read both passwords from standard input: the old one, then the new one."
)
@json_option
@pass_context
def change_password(context: CommandContext, username: str, *, password_stdin: bool, as_json: bool) -> None:
    """Change a password by showing the old one. Every session of the user ends. reset-password does without the old one."""
    user = _find(context, username)
    stdin = SecretInput()
    old = stdin.read("old password") if password_stdin else click.prompt("Present password", hide_input=True, err=True)
    new = stdin.read("new password") if password_stdin else ask_new_password()
    changed = context.recorded(
        "user.password_set",
        user.id,
        {"with": "old password"},
        _named(user),
        lambda: context.sign_in.replace_password(user, old, new),
    )
    _show_user(changed, None, as_json=as_json)


@click.command("setup-password")
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input, one line, before the password.")
@click.option("--token", help="The token itself, instead of the question for it.")
@_password_stdin_option
@_password_option
@pass_context
def setup_password(
    context: CommandContext, token: str | None, password: str | None, *, token_stdin: bool, password_stdin: bool
) -> None:
    """Set a password with a one-time token, which is used up by it."""
    _at_most_one(("--token", token is not None), ("--token-stdin", token_stdin))
    stdin = SecretInput()
    if token_stdin:
        token = stdin.read("token")
    elif token is None:
        token = click.prompt("One-time token", hide_input=True, err=True)
    given = token
    user = context.database.run(lambda session: context.accounts.token_holder(session, given))
    chosen = _password_from(password, password_stdin=password_stdin, set_password=False, stdin=stdin)
    hashed = _hashed(context, user, ask_new_password() if chosen is None else chosen)
    context.change(
        "user.password_set",
        user.id,
        {"with": "token"},
        _named(user),
        lambda session: context.accounts.redeem_token(session, given, hashed),
    )
    click.echo(f"The password of {user.username} is set; the token is used up.")


COMMANDS = (
    create_admin,
    create_user,
    list_users,
    update_user,
    lock_user,
    unlock_user,
    disable_user,
    reset_password,
    change_password,
    setup_password,
)


def _create(
    context: CommandContext,
    username: str,
    email: str,
    role: Role,
    organisation: str | None,
    password: str | None,
    *,
    mfa_required: bool = False,
    as_json: bool,
) -> None:
    accounts, user_id = context.accounts, new_user_id()
    owed = accounts.owes_second_factor(role, mfa_required=mfa_required)
    hashed = None
    if password is not None:
        hashed = accounts.hash_password(password, username=username, email=email, with_second_factor=owed)
    clear: dict[str, ClearValue] = {"role": role, "password": hashed is not None, "mfa_required": mfa_required}
    body = {"username": username, "email": email, "organisation": organisation}

    def apply(session: Session) -> tuple[User, OneTimeToken | None]:
        user = accounts.create_user(
            session,
            username=username,
            email=email,
            role=role,
            password=hashed,
            user_id=user_id,
            organisation=organisation or DEFAULT_ORGANISATION_ID,
            mfa_required=mfa_required,
        )
        return user, None if hashed is not None else accounts.start_setup(session, username)

    user, token = context.change("user.create", user_id, clear, body, apply)
    _show_user(user, token, as_json=as_json)


def _hashed(context: CommandContext, user: User, password: str) -> PasswordHash:
    """Judged by whether the user signs in with the password alone."""
    owed = context.accounts.owes_second_factor(user.role, mfa_required=user.mfa_required)
    enrolled = context.database.run(lambda session: context.second_factors.state(session, user.id).enrolled)
    return context.accounts.hash_password(
        password, username=user.username, email=user.email, with_second_factor=owed or enrolled
    )


def _show_status(user: User, *, as_json: bool) -> None:
    if as_json:
        show_json(asdict(user))
    else:
        click.echo(f"{user.username} is {user.status}.")


def _set_password(context: CommandContext, user: User, hashed: PasswordHash) -> User:
    return context.change(
        "user.password_set",
        user.id,
        {"with": "host"},
        _named(user),
        lambda session: context.accounts.set_password(session, user.username, hashed),
    )


def _show_user(user: User, token: OneTimeToken | None, *, as_json: bool) -> None:
    if as_json:
        told = asdict(user)
        if token is not None:
            told["setup_token"] = token.secret
            told["setup_token_expires_at"] = token.expires_at
        show_json(told)
        return
    click.echo(
        f"User {user.username} ({user.role}, {user.id}): password {'set' if user.has_password else 'not set yet'}."
    )
    if token is not None:
        click.echo(f"One-time token, shown once, good until {as_cell(token.expires_at)}:")
        click.echo(f"    {token.secret}")
        click.echo("The user sets the password with: manage.py setup-password")


def _password_from(
    password: str | None, *, password_stdin: bool, set_password: bool, stdin: SecretInput | None = None
) -> str | None:
    """The password by whichever way was chosen; None when none was."""
    _at_most_one(
        ("--password", password is not None), ("--password-stdin", password_stdin), ("--set-password", set_password)
    )
    if password is not None:
        warn("--password shows the password in the process list and the shell's history; --password-stdin does not.")
        return password
    if password_stdin:
        return (stdin or SecretInput()).read("password")
    return ask_new_password() if set_password else None


def _at_most_one(*options: tuple[str, bool]) -> None:
    given = [name for name, is_given in options if is_given]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other.")


def _find(context: CommandContext, username: str) -> User:
    return context.database.run(lambda session: context.accounts.find_user(session, username))


def _named(user: User) -> dict[str, object]:
    return {"username": user.username}


def _announce(context: CommandContext, username: str) -> None:
    """Running workers ask again about every key of the account."""
    for key in context.database.run(lambda session: context.keys.list_api_keys(session, username)):
        context.announce_revocation(key.kid)
