"""What happens around every view: guards before it, headers after it, one error shape for what no view answered."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as HttpMethodNotAllowed

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ErrorCode,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    Misdirected,
    NotFound,
    PermissionDenied,
    ProxyError,
    RequestTooLarge,
)
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.web.doors import GUARDS, Guard
from secure_llm_proxy.web.errors import error_body, error_headers
from secure_llm_proxy.web.headers import SECURITY_HEADERS, safe_id
from secure_llm_proxy.web.house import the_house
from secure_llm_proxy.web.inbound import client_address, exchange_id_of_request

log = logging.getLogger(__name__)

_RECORDED = frozenset({401, 403, 421})


def install_hooks(app: Flask) -> None:
    """One app-level hook reads the guard from `DOORS`; blueprint hooks would break a second create_app()."""
    app.before_request(_guard)
    app.after_request(_finish_headers)
    app.register_error_handler(Exception, _render)


def _guard() -> None:
    g.started_s = time.monotonic()
    guard = GUARDS.get(request.endpoint or "")
    if guard is not Guard.OPEN:
        # Balancers and `manage.py` ask for health by address.
        _check_host()
    if request.routing_exception is not None:
        raise request.routing_exception
    if guard is None:
        raise PermissionDenied("This endpoint is not open.")
    if guard is Guard.INTERNAL and not _is_internal(client_address()):
        raise PermissionDenied("This endpoint is open to the internal network only.")
    if guard is Guard.METRICS:
        _check_metrics_access()


_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?\Z")


def _check_host() -> None:
    names = the_house().settings.limits.server_names
    if not names:
        return
    told = _HOST.match(request.headers.get("Host", ""))
    host = told[1].lower() if told else ""
    if not any(host == name.lower() or (name.startswith("*.") and host.endswith(name[1:].lower())) for name in names):
        raise Misdirected("This server does not answer for that host name.")


def _is_internal(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or any(parsed in network for network in _INTERNAL)


_INTERNAL = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))


def _check_metrics_access() -> None:
    if ipaddress.ip_address(client_address()).is_loopback:
        return
    token = the_house().settings.telemetry.metrics_token
    given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    if token is None or not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise AuthenticationFailed("Metrics are open to loopback, or to the bearer token METRICS_TOKEN.")


def _finish_headers(response: Response) -> Response:
    for name, value in SECURITY_HEADERS:
        response.headers.setdefault(name, value)
    if the_house().settings.is_production:
        response.headers.setdefault("Strict-Transport-Security", "max-age=63072000; includeSubDomains")
    response.headers.setdefault("X-Request-Id", exchange_id_of_request())
    if correlation := safe_id(request.headers.get("X-Correlation-ID")):
        response.headers.setdefault("X-Correlation-ID", correlation)
    return response


def _render(error: Exception) -> Response:
    told = _told(error)
    if told.status in _RECORDED:
        _record_refusal(told)
    level = logging.ERROR if told.status >= 500 else logging.INFO  # noqa: PLR2004
    fields = {
        "request_id": exchange_id_of_request(),
        "status": told.status,
        "code": told.code.value,
        "address": client_address(),
        "detail": told.detail,
    }
    log.log(
        level,
        "request refused at the door",
        extra={name: value for name, value in fields.items() if value is not None},
        exc_info=error if isinstance(told, InternalError) else None,
    )
    headers = error_headers(told)
    if isinstance(error, HttpMethodNotAllowed) and error.valid_methods:
        headers.append(("Allow", ", ".join(sorted(error.valid_methods))))  # RFC 9110 §15.5.6 asks for it
    return Response(error_body(told), told.status, headers=headers)


def _record_refusal(told: ProxyError) -> None:
    """A refusal before the corridor stands in the log like every other. Not waited for: it lets nothing through."""
    event = EventName.AUTHENTICATION_FAILED if isinstance(told, AuthenticationFailed) else EventName.SECURITY_EVENT
    clear: dict[str, ClearValue] = {
        "rt": request.endpoint or "unlisted",
        "dec": "refuse",
        "http": told.status,
        "code": told.code.value,
    }
    body = strict_json.dumps(
        {"from": {"address": client_address(), "agent": request.headers.get("User-Agent", "")[:1024]}}
    )
    record = AuditEvent(new_record_id(), AuditType.REFUSED, exchange_id_of_request(), event, clear, body)
    try:
        the_house().house.journal.post(record)
    except ProxyError as error:
        log.error("refusal not recorded", extra={"code": error.code.value, "detail": error.detail})  # noqa: TRY400


def _told(error: Exception) -> ProxyError:
    if isinstance(error, ProxyError):
        return error
    if isinstance(error, HTTPException) and error.code is not None and error.code < 500:  # noqa: PLR2004
        match error.code:
            case 404 | 308:
                return NotFound(f"There is no {request.method} endpoint at this path.")
            case 405:
                return MethodNotAllowed("This endpoint does not answer that method.")
            case 413:
                return RequestTooLarge("The request is too large.")
            case _:
                return InvalidRequest("The request is malformed.", code=ErrorCode.MALFORMED_REQUEST)
    return InternalError(detail=type(error).__name__)
