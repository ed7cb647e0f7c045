"""What is refused, or fails, before or beside the corridor: one log line, a record where somebody was turned away."""

from __future__ import annotations

import logging
from collections.abc import Callable

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, InternalError, ProxyError
from secure_llm_proxy.foundation.identifiers import ExchangeId, new_record_id
from secure_llm_proxy.foundation.secret_values import pseudonym
from secure_llm_proxy.identity import login_person
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue, indexed_values
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.web.answers import Answer, status_line
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.errors import anthropic_error_body, error_body, error_headers, wants_anthropic
from secure_llm_proxy.web.house import WebHouse

log = logging.getLogger(__name__)

_RECORDED = frozenset({401, 403, 421})
_AGENT_MAX = 1024


def refuse(
    arrival: Arrival,
    error: Exception,
    endpoint: str | None,
    *,
    recorded_as: AuditType = AuditType.REFUSED,
    body_of: Callable[[ProxyError], bytes] = error_body,
) -> Answer:
    """The answer to what a door raised. An error that is none of ours is a bare 500 whose cause stands in the log.

    Below the path of Anthropic's doors it has Anthropic's shape, whether there is such a door or not; at the models' door for
    Anthropic's clients, too.
    """
    told = error if isinstance(error, ProxyError) else InternalError(detail=type(error).__name__)
    if told.status in _RECORDED:
        _record(arrival, told, endpoint, recorded_as)
    fields = {
        "request_id": arrival.exchange_id,
        "status": told.status,
        "code": told.code.value,
        "address": arrival.address,
        "edge_id": arrival.edge_id,
        "detail": told.detail,
    }
    log.log(
        logging.ERROR if told.status >= 500 else logging.INFO,  # noqa: PLR2004
        "request refused at the door",
        extra={name: value for name, value in fields.items() if value is not None},
        exc_info=error if isinstance(told, InternalError) else None,
    )
    headers = error_headers(told)
    if wants_anthropic(arrival.environ):
        headers.append(("request-id", arrival.exchange_id))
        return Answer(status_line(told.status), headers, anthropic_error_body(told, arrival.exchange_id))
    return Answer(status_line(told.status), headers, body_of(told))


def record_unread(web: WebHouse, exchange_id: ExchangeId, status: int, code: str, address: str | None) -> None:
    """What the server itself refused stands in the log as well: whatever was answered under one of our ids is on record."""
    clear: dict[str, ClearValue] = {"rt": "unread", "dec": "refuse", "http": status, "code": code}
    body = strict_json.dumps({"from": {} if address is None else {"address": address}})
    indexed = indexed_values(address=address)
    event = EventName.INVALID_REQUEST
    _post(web, AuditEvent(new_record_id(), AuditType.REFUSED, exchange_id, event, clear, body, indexed))


def _record(arrival: Arrival, told: ProxyError, endpoint: str | None, kind: AuditType) -> None:
    """A refusal before the corridor stands in the log like every other. Not waited for: it lets nothing through."""
    if isinstance(told, AuthenticationFailed):
        event = EventName.AUTHENTICATION_FAILED
    else:
        event = EventName.BLOCKED_IP if told.code is ErrorCode.ADDRESS_BLOCKED else EventName.SECURITY_EVENT
    clear: dict[str, ClearValue] = {
        "rt": endpoint or "unlisted",
        "dec": "refuse",
        "http": told.status,
        "code": told.code.value,
    }
    if told.code is ErrorCode.ADDRESS_BLOCKED:
        clear["rule"] = told.detail
    if arrival.edge_id is not None:
        clear["eid"] = arrival.edge_id
    told_body: dict[str, object] = {"from": {"address": arrival.address, "agent": arrival.user_agent[:_AGENT_MAX]}}
    if hasattr(arrival, "person"):
        told_body["username"] = arrival.person
        known = arrival.person_id if hasattr(arrival, "person_id") else login_person(arrival.person)
        clear["sub"] = pseudonym(arrival.web.house.person_key, known)
    body = strict_json.dumps(told_body)
    indexed = indexed_values(address=arrival.address, agent=arrival.user_agent)
    _post(arrival.web, AuditEvent(new_record_id(), kind, arrival.exchange_id, event, clear, body, indexed))


def _post(web: WebHouse, record: AuditEvent) -> None:
    try:
        web.house.journal.post(record)
    except ProxyError as error:
        log.error("refusal not recorded", extra={"code": error.code.value, "detail": error.detail})  # noqa: TRY400
