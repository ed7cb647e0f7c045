"""Who may open a door of management: asked before the view, for every door of the table alike."""

from __future__ import annotations

from urllib.parse import unquote

from flask import request
from flask_wtf.csrf import CSRFProtect

from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, PermissionDenied
from secure_llm_proxy.web.admin.actor import Actor
from secure_llm_proxy.web.admin.csrf import require_own_origin, require_own_page
from secure_llm_proxy.web.admin.house import ManagementHouse
from secure_llm_proxy.web.admin.loader import the_actor
from secure_llm_proxy.web.admin.rates import ManagementRates
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.doors import Door, Guard

_READING = frozenset({"GET", "HEAD"})


class ManagementGuard:
    def __init__(self, house: ManagementHouse, rates: ManagementRates, csrf: CSRFProtect) -> None:
        self._house = house
        self._rates = rates
        self._csrf = csrf

    def __call__(self, door: Door, arrival: Arrival) -> None:
        """Raises the error that the client gets; returns when the view may answer.

        In this order: address lists (not those of agents), rates of the address, who it is, that their own page asks, rates
        of the person, permission, step-up. A foreign object is the view's question: it puts the actor's reach into its query.
        """
        _require_clean_url(arrival)
        _admit(arrival)
        changes = request.method not in _READING
        if changes and door.guard is not Guard.MANAGEMENT:
            self._rates.spend_try()
        if door.guard is Guard.AUTH:
            require_own_origin(arrival)
            return
        try:
            actor = the_actor()
        except AuthenticationFailed:
            self._rates.spend_refusal()
            raise
        arrival.person, arrival.person_id = actor.username, actor.user_id
        if changes and actor.by_cookie:
            require_own_page(self._csrf, arrival)
        self._rates.spend_request()
        self._judge(door, actor)

    def _judge(self, door: Door, actor: Actor) -> None:
        if actor.is_pending and not door.pending:
            raise AuthenticationFailed("The second factor is still owed.", code=ErrorCode.SECOND_FACTOR_REQUIRED)
        if door.guard is Guard.SESSION:
            actor.own_session()
        if door.permission is not None:
            actor.require(door.permission)
        if door.step_up:
            actor.require_step_up(self._house.clock.now())


def _require_clean_url(arrival: Arrival) -> None:
    environ = arrival.environ
    target: str = environ.get("RAW_URI") or f"{environ.get('PATH_INFO', '')}?{environ.get('QUERY_STRING', '')}"
    if "slp_" in unquote(unquote(target)):
        raise AuthenticationFailed(
            "A key or token stands in the URL, where logs would keep it. Send it in a header, and replace this one.",
            code=ErrorCode.API_KEY_IN_URL,
        )


def _admit(arrival: Arrival) -> None:
    verdict = arrival.web.house.admission.admit(arrival.address, "")
    # The agent is not looked at: tools manage, too (DESIGN §7).
    if verdict.code is ErrorCode.ADDRESS_BLOCKED:
        raise PermissionDenied("Access from this client is not allowed.", code=verdict.code, detail=verdict.rule)
