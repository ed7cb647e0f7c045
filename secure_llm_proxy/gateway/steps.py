"""The corridor's steps. Each asks one room and writes the answer on the docket; a refusal is raised."""

from __future__ import annotations

import logging
from collections.abc import Callable

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ErrorCode,
    InvalidRequest,
    NotQueued,
    PermissionDenied,
    RateLimited,
    Unavailable,
)
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.gateway.docket import Docket, House
from secure_llm_proxy.gateway.leaks import keys_in_body, quarantine_ours
from secure_llm_proxy.gateway.provenance import clear_identity, origin_of
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.caller import Caller, RateClass
from secure_llm_proxy.vocabulary.chat import ChatRequest, Route
from secure_llm_proxy.vocabulary.events import AuditType, EventName

log = logging.getLogger(__name__)


def admit(house: House, docket: Docket) -> None:
    """May this address and agent knock?"""
    verdict = house.admission.admit(docket.inbound.address, docket.inbound.user_agent)
    if not verdict.allowed:
        docket.rule = verdict.rule
        raise PermissionDenied("Access from this client is not allowed.", code=verdict.code)


def identify(house: House, docket: Docket, scope: str) -> Caller:
    """Who is it, and may its key do this at all?"""
    if docket.inbound.key_in_url:
        _quarantine_keys_in_url(house, docket)
        raise AuthenticationFailed(
            "An API key stands in the URL, where logs would keep it. Send it as `Authorization: Bearer`, and replace this key.",
            code=ErrorCode.API_KEY_IN_URL,
        )
    caller = house.identity.identify(docket.inbound.credentials)
    docket.caller = caller
    if scope not in caller.scopes:
        raise PermissionDenied(f"This API key lacks the scope `{scope}`.", code=ErrorCode.SCOPE_MISSING)
    return caller


def throttle(house: House, docket: Docket, caller: Caller) -> None:
    """How fast? Takes a slot that closing gives back."""
    default = house.key_class
    key_class = (
        default
        if caller.requests_per_minute is None
        else RateClass(caller.requests_per_minute, default.burst, default.concurrent)
    )
    hold = house.throttle.take(
        key_id=caller.key_id,
        key_class=key_class,
        address=docket.inbound.address,
        address_class=house.address_class,
        exchange_id=docket.inbound.exchange_id,
    )
    docket.decision = decision = hold.decision
    if not decision.allowed:
        docket.rule = decision.bucket
        at_once = decision.code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
        raise RateLimited(
            "Too many requests at once; wait for one to end." if at_once else "Rate limit reached; slow down.",
            code=decision.code,
            retry_after_s=max(1, decision.retry_after_s),
        )
    docket.hold = hold


def read(house: House, docket: Docket, read_request: Callable[[JsonObject], ChatRequest]) -> ChatRequest:
    """From bytes to a request, strictly: what a policy sees is what the provider will get. No key of ours is in it."""
    body = docket.inbound.read_body()
    request = read_request(strict_json.loads_object(body))
    if (found := keys_in_body(body, request.payload)) and quarantine_ours(house, docket, found, "body"):
        raise InvalidRequest(
            "The body holds an API key of this proxy, which is refused from now on. Take it out, and replace the key.",
            code=ErrorCode.API_KEY_IN_BODY,
        )
    docket.request = request
    return request


def plan_route(house: House, docket: Docket, caller: Caller, request: ChatRequest) -> Route:
    """Where could it go?"""
    route = house.routing.plan(request.model)
    if caller.models is not None and route.model not in caller.models:
        raise PermissionDenied(
            "This API key may not use the requested model.", code=ErrorCode.MODEL_NOT_ALLOWED, param="model"
        )
    docket.route = route
    return route


def audit_intent(house: House, docket: Docket, payload: bytes) -> None:
    """Record durably what is about to leave. Raises `Unavailable(audit_unavailable)`: then nothing leaves."""
    record = new_record_id()
    docket.audit_id = docket.started_record = record
    inbound = docket.inbound
    body = b'{"request":%s,"from":%s}' % (payload, strict_json.dumps(origin_of(docket)))
    docket.clear_identity = clear_identity(house, docket)
    clear = {**docket.clear_identity, "dec": "allow", "n_in": len(payload)}
    if docket.request is not None:
        clear["str"] = docket.request.stream
    try:
        house.journal.record(
            AuditEvent(record, AuditType.LLM_START, inbound.exchange_id, EventName.CHAT_REQUEST, clear, body)
        )
    except NotQueued:
        # Nothing will ever stand in the log, so there is nothing to end.
        docket.started_record = None
        raise


def _quarantine_keys_in_url(house: House, docket: Docket) -> None:
    try:
        quarantine_ours(house, docket, docket.inbound.keys_in_url, "url")
    except Unavailable as error:
        # The request is refused all the same.
        log.error(  # noqa: TRY400  the code says it all
            "leaked API key NOT quarantined",
            extra={"request_id": docket.inbound.exchange_id, "where": "url", "code": error.code.value},
        )
