"""Closing a docket: once, whatever happened. Audit, slots, metrics, one log line.

After a started exchange the end record is made durable before the last byte of the answer is released; when that is
impossible the answer becomes 503 and the record stays queued for the writer's return.
"""

from __future__ import annotations

import logging

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import (
    ClientGone,
    ErrorCode,
    InternalError,
    ProxyError,
    UpstreamFailed,
    UpstreamTimeout,
)
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.gateway.docket import Docket, House
from secure_llm_proxy.gateway.provenance import clear_identity, indexed_origin, origin_of
from secure_llm_proxy.telemetry import ExchangeFacts
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.chat import Completion
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus, EventName

log = logging.getLogger(__name__)

_SERVER_ERROR = 500
_PROCESSING_TIME = EventName.PROCESSING_TIME.value
_EVENT_OF_CODE = {
    ErrorCode.ADDRESS_BLOCKED: EventName.BLOCKED_IP,
    ErrorCode.AGENT_BLOCKED: EventName.SECURITY_EVENT,
    ErrorCode.API_KEY_IN_URL: EventName.SECURITY_EVENT,
    ErrorCode.API_KEY_IN_BODY: EventName.SECURITY_EVENT,
    ErrorCode.KILLED: EventName.SECURITY_EVENT,
    ErrorCode.PROJECT_INACTIVE: EventName.SECURITY_EVENT,
    ErrorCode.WRONG_KEY_KIND: EventName.SECURITY_EVENT,
    ErrorCode.ADDRESS_NOT_ALLOWED: EventName.BLOCKED_IP,
    ErrorCode.AGENT_NOT_ALLOWED: EventName.SECURITY_EVENT,
    ErrorCode.SCOPE_MISSING: EventName.SECURITY_EVENT,
    ErrorCode.MODEL_NOT_ALLOWED: EventName.SECURITY_EVENT,
    ErrorCode.RATE_LIMIT_EXCEEDED: EventName.RATE_LIMIT_EXCEEDED,
    ErrorCode.CONCURRENCY_LIMIT_EXCEEDED: EventName.RATE_LIMIT_EXCEEDED,
    ErrorCode.MISSING_API_KEY: EventName.AUTHENTICATION_FAILED,
    ErrorCode.INVALID_API_KEY: EventName.AUTHENTICATION_FAILED,
    ErrorCode.API_KEY_EXPIRED: EventName.AUTHENTICATION_FAILED,
    ErrorCode.API_KEY_QUARANTINED: EventName.AUTHENTICATION_FAILED,
    ErrorCode.SESSION_INVALID: EventName.AUTHENTICATION_FAILED,
    ErrorCode.SECOND_FACTOR_REQUIRED: EventName.AUTHENTICATION_FAILED,
    ErrorCode.FORBIDDEN: EventName.SECURITY_EVENT,
    ErrorCode.API_KEY_REVOKED: EventName.AUTHENTICATION_FAILED,
    ErrorCode.ACCOUNT_LOCKED: EventName.AUTHENTICATION_FAILED,
}


def close_completed(house: House, docket: Docket, completion: Completion) -> None:
    """Record a whole plain answer. Raises `Unavailable` when it can't be recorded: then it is not released.

    Raises as well what the exchange was stopped with, if that was just before its answer was whole.
    """
    docket.usage = completion.usage
    if docket.stopped is not None:
        raise docket.stopped
    body = b'{"answer":%s}' % strict_json.dumps(completion.payload if completion.record is None else completion.record)
    record_end(house, docket, EndStatus.COMPLETE, status=200, code=None, body=body)
    finish(house, docket, status=200, code=None, event=EventName.CHAT_REQUEST)


def close_failed(house: House, docket: Docket, error: Exception) -> ProxyError:
    """Record a refusal or a failure and return the error that the client is told."""
    told = told_of(docket, error)
    if docket.closed:
        return told
    house.violations.note_refusal(docket.inbound.address, told.code)
    event = _EVENT_OF_CODE.get(
        told.code, EventName.INVALID_REQUEST if told.status < _SERVER_ERROR else EventName.CHAT_REQUEST
    )
    try:
        if docket.started_record is None:
            _record_refusal(house, docket, told, event)
        else:
            record_end(
                house,
                docket,
                end_status_of(docket, told),
                status=told.status,
                code=told.code,
                body=_detail_body(told),
                wait=told.code is not ErrorCode.AUDIT_UNAVAILABLE,
            )
    except Exception as failure:  # noqa: BLE001  the slot must come back whatever the journal does
        # A refusal lets nothing through, so it stands even when its record is late; an outcome is withheld.
        unrecorded = as_proxy_error(failure)
        log.error("record not durable", extra={"request_id": docket.inbound.exchange_id, "code": unrecorded.code})  # noqa: TRY400  the code says it all
        if docket.started_record is not None:
            told = unrecorded
    finally:
        finish(house, docket, status=told.status, code=told.code, event=event, detail=told.detail)
    return told


def close_interrupted(house: House, docket: Docket, body: bytes = b"{}") -> None:
    """The worker is being stopped: queue the end without waiting, since the greenlet is on its way out."""
    if docket.closed:
        return
    if docket.started_record is not None:
        try:
            record_end(
                house,
                docket,
                EndStatus.SERVER_STOP if docket.sent else EndStatus.NOT_SENT,
                status=503,
                code=ErrorCode.SERVER_STOP,
                body=body,
                wait=False,
            )
        except ProxyError:
            log.error("record not queued", extra={"request_id": docket.inbound.exchange_id})  # noqa: TRY400  the code says it all
    finish(house, docket, status=503, code=ErrorCode.SERVER_STOP, event=EventName.CHAT_REQUEST)


def record_end(
    house: House,
    docket: Docket,
    end: EndStatus,
    *,
    status: int,
    code: ErrorCode | None,
    body: bytes,
    wait: bool = True,
) -> None:
    """Hand `llm.end` to the journal; with `wait`, return when it is durable. Does nothing the second time."""
    if docket.ended:
        return
    docket.ended = True
    clear: dict[str, ClearValue] = {
        **clear_identity(house, docket),
        "sid": docket.started_record,
        "st": end.value,
        "http": status,
        "ms": round(docket.elapsed_s() * 1000),
    }
    if code is not None:
        clear["code"] = code.value
    if docket.attempts > 1 and docket.target is not None:
        # The intent has the first one.
        clear["try"] = docket.attempts
        clear["up"] = docket.target.provider
    if docket.upstream_s is not None:
        clear["ums"] = round(docket.upstream_s * 1000)
    if docket.usage.prompt_tokens is not None:
        clear["tin"] = docket.usage.prompt_tokens
    if docket.usage.completion_tokens is not None:
        clear["tout"] = docket.usage.completion_tokens
    elif docket.said_events:
        clear["evs"] = docket.said_events
    event = AuditEvent(new_record_id(), AuditType.LLM_END, docket.inbound.exchange_id, None, clear, body)
    if wait:
        house.journal.record(event)
    else:
        house.journal.post(event)


def finish(
    house: House,
    docket: Docket,
    *,
    status: int,
    code: ErrorCode | None,
    event: EventName,
    detail: str | None = None,
) -> None:
    """Give the slot back, count, and write the exchange's one log line. Does nothing the second time."""
    if docket.closed:
        return
    docket.closed = True
    house.running.pop(docket.inbound.exchange_id, None)
    if docket.hold is not None:
        house.throttle.release(docket.hold)
    if docket.sent and docket.target is not None:
        house.routing.ended(docket.target)
    inbound, caller, usage = docket.inbound, docket.caller, docket.usage
    target, model = docket.target, docket.served_model
    code_value = code.value if code is not None else None
    elapsed_s = docket.elapsed_s()
    overhead_s = max(0.0, elapsed_s - (docket.upstream_s or 0.0))
    house.metrics.closed(
        ExchangeFacts(
            inbound.door,
            status,
            code_value,
            model,
            elapsed_s,
            docket.upstream_s,
            overhead_s,
            usage.prompt_tokens,
            usage.completion_tokens,
        )
    )
    fields = {
        "request_id": inbound.exchange_id,
        "audit_id": docket.audit_id,
        "edge_id": inbound.edge_id,
        "correlation_id": inbound.correlation_id,
        "endpoint": inbound.door,
        "status": status,
        "code": code_value,
        "address": inbound.address,
        "user": caller.user_id if caller is not None else None,
        "key": caller.key_id if caller is not None else None,
        "model": model,
        "provider": target.provider if target is not None else None,
        "attempts": docket.attempts if docket.attempts > 1 else None,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "rule": docket.rule,
        "detail": detail,
        "overhead_ms": round(overhead_s * 1000, 3),
        _PROCESSING_TIME: round(elapsed_s * 1000, 3),
    }
    log.info(event.value, extra={name: value for name, value in fields.items() if value is not None})


def as_proxy_error(error: Exception) -> ProxyError:
    """What the client is told: our own errors as they are, anything untyped as a bare 500."""
    if isinstance(error, ProxyError):
        return error
    log.error("unexpected error in the corridor", exc_info=error)
    return InternalError(detail=type(error).__name__)


def told_of(docket: Docket, error: Exception) -> ProxyError:
    """`as_proxy_error`; of an exchange that was stopped from our side, why: that is what broke its connections."""
    told = as_proxy_error(error)
    if docket.stopped is not None and isinstance(told, UpstreamFailed | ClientGone):
        return docket.stopped
    return told


def end_status_of(docket: Docket, error: ProxyError) -> EndStatus:
    if not docket.sent:
        return EndStatus.NOT_SENT
    if error is docket.stopped:
        return EndStatus.SERVER_STOP if error.code is ErrorCode.SERVER_STOP else EndStatus.KILLED
    if isinstance(error, ClientGone):
        return EndStatus.CLIENT_ABORT
    if isinstance(error, UpstreamTimeout):
        return EndStatus.UPSTREAM_TIMEOUT
    if isinstance(error, UpstreamFailed):
        return EndStatus.UPSTREAM_ERROR
    return EndStatus.INTERNAL_ERROR


def _record_refusal(house: House, docket: Docket, error: ProxyError, event: EventName) -> None:
    record = new_record_id()
    docket.audit_id = record
    clear: dict[str, ClearValue] = {
        **clear_identity(house, docket),
        "dec": "refuse",
        "http": error.status,
        "code": error.code.value,
        "ms": round(docket.elapsed_s() * 1000),
    }
    if docket.rule is not None:
        clear["rule"] = docket.rule
    if docket.inbound.edge_id is not None:
        clear["eid"] = docket.inbound.edge_id
    body = strict_json.dumps({"from": origin_of(docket)})
    exchange = docket.inbound.exchange_id
    house.journal.record(AuditEvent(record, AuditType.REFUSED, exchange, event, clear, body, indexed_origin(docket)))


def _detail_body(error: ProxyError) -> bytes:
    return strict_json.dumps({"error": error.public, "detail": error.detail})
