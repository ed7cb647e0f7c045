"""The corridor's steps. Each asks one room and writes the answer on the docket; a refusal is raised."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from secure_llm_proxy.admission import admit_for
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
from secure_llm_proxy.gateway.provenance import clear_identity, indexed_origin, origin_of, recorded
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.caller import KIND_ADMINISTRATION, KIND_SESSION, Caller, RateClass
from secure_llm_proxy.vocabulary.chat import ChatRequest, Route, UpstreamRequest
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

log = logging.getLogger(__name__)
# The parameter by which each format bounds an answer, the first where none is named; the others generate nothing.
_CEILINGS_OF = {
    WireFormat.OPENAI_CHAT: ("max_completion_tokens", "max_tokens"),
    WireFormat.OPENAI_COMPLETIONS: ("max_tokens",),
    WireFormat.OPENAI_RESPONSES: ("max_output_tokens",),
    WireFormat.ANTHROPIC_MESSAGES: ("max_tokens",),
}
# vLLM, llama.cpp, Ollama, TGI and the Responses API, read 2026-11.
_CEILINGS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_new_tokens",
    "max_tokens_to_sample",
    "n_predict",
    "num_predict",
)
# By which some providers, and other proxies, answer with another model than `model`: OpenRouter ("Model fallbacks", "Presets"),
# LiteLLM ("Client-side fallbacks"), read 2026-11-21.
_OTHER_MODELS = ("models", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "preset")
_BOUND = frozenset({"model", *_CEILINGS, *_OTHER_MODELS})


def admit(house: House, docket: Docket) -> None:
    """May this address and agent knock?"""
    verdict = house.admission.admit(docket.inbound.address, docket.inbound.user_agent)
    if not verdict.allowed:
        docket.rule = verdict.rule
        raise PermissionDenied("Access from this client is not allowed.", code=verdict.code)


def identify(house: House, docket: Docket, scope: str) -> Caller:
    """Who is it, and may its key do this at all, from here? From now on it is stopped with its key (`stopping`)."""
    if docket.inbound.key_in_url:
        _quarantine_keys_in_url(house, docket)
        raise AuthenticationFailed(
            "An API key stands in the URL, where logs would keep it. Send it as `Authorization: Bearer`, and replace this key.",
            code=ErrorCode.API_KEY_IN_URL,
        )
    caller = house.identity.identify(docket.inbound.credentials)
    docket.caller = caller
    # Nothing has waited since it was identified, so whoever looks after running exchanges misses no change.
    house.running[docket.inbound.exchange_id] = docket
    if caller.kind == KIND_ADMINISTRATION:
        raise PermissionDenied("An administration key can't ask models.", code=ErrorCode.WRONG_KEY_KIND)
    if caller.allowed_addresses is not None or caller.allowed_agents is not None:
        _require_allowed_origin(docket, caller)
    if scope not in caller.scopes:
        raise PermissionDenied(f"This API key lacks the scope `{scope}`.", code=ErrorCode.SCOPE_MISSING)
    return caller


def _require_allowed_origin(docket: Docket, caller: Caller) -> None:
    """Addresses and agents that the key itself may be used from."""
    inbound = docket.inbound
    verdict = admit_for(caller.allowed_addresses, caller.allowed_agents, inbound.address, inbound.user_agent)
    if not verdict.allowed:
        docket.rule = verdict.rule
        raise PermissionDenied("This API key may not be used from this client.", code=verdict.code)


@lru_cache(maxsize=4096)
def _own_class(default: RateClass, requests: int | None, burst: int | None, concurrent: int | None) -> RateClass:
    """One object for all keys that are alike: throttling knows the last one by its identity."""
    return RateClass(
        default.requests if requests is None else requests,
        default.burst if burst is None else burst,
        default.concurrent if concurrent is None else concurrent,
        default.window_s if requests is None else 60,
    )


def throttle(house: House, docket: Docket, caller: Caller) -> None:
    """How fast? Takes a slot that closing gives back."""
    key_class = house.key_class
    if caller.requests_per_minute is not None or caller.burst is not None or caller.concurrent is not None:
        key_class = _own_class(key_class, caller.requests_per_minute, caller.burst, caller.concurrent)
    hold = house.throttle.take(
        # One bucket for all sessions of a person: signing in again is no way to a fresh one.
        key_id=caller.user_id if caller.kind == KIND_SESSION else caller.key_id,
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
    caller = docket.caller
    if caller is not None and (caller.models is not None or caller.tokens_max is not None):
        _refuse_other_spellings(request.payload)
        if caller.tokens_max is not None:
            request = _within_ceiling(request, caller.tokens_max)
    docket.request = request
    return request


def _refuse_other_spellings(payload: JsonObject) -> None:
    """What a key is bound to has one name. Servers written in Go (Ollama) read `MODEL` as `model`, and the last one counts
    (its package encoding/json, 2026-11).
    """
    for name in payload:
        if name not in _BOUND and (meant := name.casefold()) in _BOUND:
            raise InvalidRequest(
                f"Write `{meant}` in small letters: some providers take other spellings for the same.",
                code=ErrorCode.INVALID_VALUE,
                param=meant,
            )


def _within_ceiling(request: ChatRequest, ceiling: int) -> ChatRequest:
    """The request if it asks for no more tokens than that, per choice; one that names no number gets the ceiling.

    Parameters by which some providers' servers take the same wish are judged as well: what is unknown passes, and their
    servers heed it.
    """
    payload = request.payload
    asked = [name for name in _CEILINGS if payload.get(name) is not None]
    for name in asked:
        wish = payload[name]
        if type(wish) is not int or not 0 < wish <= ceiling:
            raise InvalidRequest(
                f"This API key may ask for at most {ceiling} tokens.", code=ErrorCode.MAX_TOKENS_EXCEEDED, param=name
            )
    bounds = _CEILINGS_OF.get(request.format, ())
    if bounds and not set(bounds).intersection(asked):
        # A null is taken in place of what it stands for: a server of old knows no other name.
        name = next((name for name in reversed(bounds) if name in payload), bounds[0])
        return replace(request, payload={**payload, name: ceiling})
    return request


def plan_route(house: House, docket: Docket, caller: Caller, request: ChatRequest) -> Route:
    """Where could it go?"""
    tags = docket.inbound.tags
    if tags is None:
        raise InvalidRequest(
            "X-SLP-Require must look like `region=eu, data=restricted`, with at most 16 tags.",
            code=ErrorCode.INVALID_VALUE,
            param="X-SLP-Require",
        )
    route = house.routing.plan(request, tags)
    # A key may name the model itself or the alias that was asked for.
    if caller.models is not None:
        if route.model not in caller.models and request.model not in caller.models:
            raise PermissionDenied(
                "This API key may not use the requested model.", code=ErrorCode.MODEL_NOT_ALLOWED, param="model"
            )
        for name in _OTHER_MODELS:
            if request.payload.get(name):
                raise PermissionDenied(
                    f"This API key may use certain models only, and `{name}` could have another one answer.",
                    code=ErrorCode.MODEL_NOT_ALLOWED,
                    param=name,
                )
    docket.route = route
    return route


def write(house: House, docket: Docket, route: Route, request: ChatRequest) -> UpstreamRequest:
    """The bytes for the first of the route's targets to which the request can be put. Raises `InvalidRequest` if there is
    none, with what was wrong at the first.
    """
    headers = docket.inbound.passed_headers
    wrong: InvalidRequest | None = None
    for target in route.targets:
        if not docket.may_ask(target):
            continue
        try:
            docket.written = written = house.upstream.write(target, request, headers)
        except InvalidRequest as error:
            wrong = wrong or error
            continue
        docket.target = target
        return written
    if wrong is None:
        # The model itself is out of reach for the moment, and its fallbacks are not for this key.
        raise Unavailable(
            "The provider of this model is unavailable.", code=ErrorCode.PROVIDER_UNAVAILABLE, retry_after_s=1
        )
    raise wrong


def audit_intent(house: House, docket: Docket, written: UpstreamRequest) -> None:
    """Record durably what is about to leave. Raises `Unavailable(audit_unavailable)`: then nothing leaves."""
    record = new_record_id()
    docket.audit_id = docket.started_record = record
    inbound = docket.inbound
    body = b'{%b,"from":%b}' % (recorded(written), strict_json.dumps(origin_of(docket)))
    docket.clear_identity = clear_identity(house, docket)
    clear = {**docket.clear_identity, "dec": "allow", "n_in": len(written.body)}
    if docket.request is not None:
        clear["str"] = docket.request.stream
    if inbound.edge_id is not None:
        # By it `audit reconcile` finds the line of nginx's log, also where nginx never saw an answer's id.
        clear["eid"] = inbound.edge_id
    try:
        house.journal.record(
            AuditEvent(
                record,
                AuditType.LLM_START,
                inbound.exchange_id,
                EventName.CHAT_REQUEST,
                clear,
                body,
                indexed_origin(docket),
            )
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
