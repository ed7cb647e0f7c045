"""Who may administer: everybody with a second factor, nobody with a name or a token from an example."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.orm import Session

from secure_llm_proxy.cli.context import CommandContext
from secure_llm_proxy.cli.host.check import Check, failed, ok, warning
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.identity import User

_POWERFUL = frozenset({"owner", "admin"})
_EXAMPLES = frozenset({"test", "demo", "example", "guest", "default", "user"})


def people_checks(context: CommandContext) -> Iterator[Check]:
    if context.settings.identity.mfa_required == "none":
        yield failed("second factor", "MFA_REQUIRED=none", "remove MFA_REQUIRED; production refuses it")

    def read(session: Session) -> list[tuple[User, bool]]:
        users = [user for user in context.accounts.list_users(session) if user.status == "active"]
        return [(user, context.second_factors.state(session, user.id).enrolled) for user in users]

    try:
        users = context.database.run(read)
    except (OperatorError, ProxyError) as error:
        yield failed("administrators", "the database is not usable", str(error))
        return
    powerful = [(user, enrolled) for user, enrolled in users if user.role in _POWERFUL]
    if not powerful:
        yield failed("administrators", "there is none", "manage.py create-admin --username NAME --email ADDRESS")
    lacking = [user.username for user, enrolled in powerful if user.has_password and not enrolled]
    waiting = [user.username for user, _ in powerful if not user.has_password]
    if lacking:
        fix = "let them sign in and enrol; or manage.py lock-user NAME"
        yield failed("second factor", f"not enrolled yet: {', '.join(lacking)}", fix)
    elif powerful and len(waiting) < len(powerful):
        yield ok("second factor", f"{len(powerful) - len(waiting)} administrators, all enrolled")
    if waiting:
        fix = "let them use their setup token (manage.py reset-password makes a new one), or disable them"
        yield warning("setup tokens", f"not set up yet: {', '.join(waiting)}", fix)
    if examples := [user.username for user, _ in users if user.username.lower() in _EXAMPLES]:
        yield failed("example accounts", ", ".join(examples), "manage.py disable-user NAME")
    else:
        yield ok("example accounts", "none")
