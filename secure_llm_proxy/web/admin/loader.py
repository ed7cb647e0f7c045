"""From a request to its actor: the cookie of a browser, or what a tool sends in a header."""

from __future__ import annotations

from flask import Request
from flask_login import LoginManager, current_user
from sqlalchemy.orm import Session

from secure_llm_proxy.admission import admit_for
from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, PermissionDenied
from secure_llm_proxy.identity import LiveSession, Role
from secure_llm_proxy.web.admin.actor import Actor, nobody
from secure_llm_proxy.web.admin.cookies import session_cookie
from secure_llm_proxy.web.admin.house import the_management
from secure_llm_proxy.web.flask_shell import arrival_of_request
from secure_llm_proxy.web.inbound import credentials_of

_SESSION_HEADER = "HTTP_X_SESSION_TOKEN"
_MANAGEMENT_KEY = "slp_adm_"
_OTHER_KEYS = ("slp_live_", "slp_test_")


def make_login_manager() -> LoginManager:
    """Flask-Login with our one loader. It keeps nothing: sessions are the identity room's."""
    manager = LoginManager()
    manager.session_protection = None
    manager.request_loader(load_actor)
    return manager


def load_actor(_request: Request) -> Actor | None:
    """Who asks; None when nothing was sent that could tell. Raises `AuthenticationFailed` when what was sent is no good."""
    arrival = arrival_of_request()
    if (secret := session_cookie(arrival)) is not None:
        return _by_session(secret, by_cookie=True)
    given = credentials_of(arrival.environ, (*arrival.web.key_variables, _SESSION_HEADER))
    if not given:
        return None
    if len(given) > 1:
        raise AuthenticationFailed("Several different credentials were sent.", code=ErrorCode.SESSION_INVALID)
    (credential,) = given
    if credential.startswith(_OTHER_KEYS):
        raise AuthenticationFailed("API keys don't manage: log in instead.", code=ErrorCode.KEY_NOT_FOR_MANAGEMENT)
    if credential.startswith(_MANAGEMENT_KEY):
        return _by_key(credential)
    return _by_session(credential, by_cookie=False)


def the_actor() -> Actor:
    """Whoever the guard has let in. Raises `AuthenticationFailed` where there is nobody."""
    found = current_user._get_current_object()  # noqa: SLF001  werkzeug's documented way to what a proxy stands for
    if not isinstance(found, Actor):
        raise nobody()
    return found


def actor_of(live: LiveSession, *, by_cookie: bool) -> Actor:
    return Actor(
        user_id=live.user_id,
        username=live.username,
        role=live.role,
        organisation_id=live.organisation_id,
        session=live,
        by_cookie=by_cookie,
    )


def _by_session(secret: str, *, by_cookie: bool) -> Actor:
    house = the_management()

    def find(session: Session) -> tuple[LiveSession | None, bool]:
        live = house.sessions.find(session, secret)
        if live is None:
            return None, False
        house.sessions.touch(session, live)
        # Not a switch for everything, and an owner by no organisation's: somebody must be able to let go of it.
        subjects = (live.user_id,) if live.role is Role.OWNER else (live.user_id, live.organisation_id)
        return live, house.kill_switches.stops(session, *subjects)

    live, is_stopped = house.database.run(find)
    kind = "browser" if by_cookie else "token"
    # A stolen cookie sent as a header would pass by CSRF; a token set as a cookie would be sent by itself.
    if live is None or (live.kind != kind and live.state == "active"):
        raise AuthenticationFailed("The session is not valid (any more); log in again.", code=ErrorCode.SESSION_INVALID)
    if is_stopped:
        raise PermissionDenied("You have been stopped by an operator.", code=ErrorCode.KILLED)
    return actor_of(live, by_cookie=by_cookie)


def _by_key(key: str) -> Actor:
    """An administration key acts as its user. Its prefix is part of what its digest proves."""
    house = the_management()
    caller = house.identify((key,))
    arrival = arrival_of_request()
    verdict = admit_for(caller.allowed_addresses, caller.allowed_agents, arrival.address, arrival.user_agent)
    if not verdict.allowed:
        raise PermissionDenied("This key may not be used from here.", code=verdict.code, detail=verdict.rule)
    user = house.database.run(lambda session: house.accounts.find_user(session, caller.user_id))
    return Actor(
        user_id=user.id,
        username=user.username,
        role=user.role,
        organisation_id=user.organisation_id,
        key_id=caller.key_id,
    )
