"""What happens around every view of Flask's: guards before it, headers after it, one error shape for what none answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as HttpMethodNotAllowed

from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PermissionDenied,
    ProxyError,
    RequestTooLarge,
)
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.doors import DOOR_OF, Door, Guard
from secure_llm_proxy.web.errors import error_body
from secure_llm_proxy.web.flask_shell import arrival_of_request, as_response
from secure_llm_proxy.web.guards import check_host, check_internal, check_metrics_access
from secure_llm_proxy.web.refusals import refuse


def _nobody_may(_door: Door, _arrival: Arrival) -> None:
    raise PermissionDenied("This endpoint is not open.")


@dataclass(frozen=True, slots=True)
class Manner:
    """What the doors of management do otherwise than those of the data plane: who judges whom they let in, as what a refusal
    is recorded, and how an error looks.
    """

    judge: Callable[[Door, Arrival], None] = _nobody_may
    recorded_as: AuditType = AuditType.REFUSED
    body_of: Callable[[ProxyError], bytes] = error_body


_DATA_PLANE = Manner()


def install_hooks(app: Flask, manner: Manner = _DATA_PLANE) -> None:
    """One app-level hook reads the guard from `DOORS`; blueprint hooks would break a second create_app()."""
    app.before_request(partial(_guard, manner))
    app.after_request(_finish_headers)
    app.register_error_handler(Exception, partial(_render, manner))


def _guard(manner: Manner) -> None:
    arrival = arrival_of_request()
    door = DOOR_OF.get(request.endpoint or "")
    guard = None if door is None else door.guard
    if guard is not Guard.OPEN:
        # Balancers and `manage.py` ask for health by address.
        check_host(arrival)
    if request.routing_exception is not None:
        raise request.routing_exception
    if door is None:
        raise PermissionDenied("This endpoint is not open.")
    if guard is Guard.INTERNAL:
        check_internal(arrival)
    elif guard is Guard.METRICS:
        check_metrics_access(arrival)
    elif door.guard.is_managements:
        manner.judge(door, arrival)


def _finish_headers(response: Response) -> Response:
    response.headers.extend(arrival_of_request().missing_headers(response.headers))
    return response


def _render(manner: Manner, error: Exception) -> Response:
    answer = refuse(
        arrival_of_request(), _told(error), request.endpoint, recorded_as=manner.recorded_as, body_of=manner.body_of
    )
    if isinstance(error, HttpMethodNotAllowed) and error.valid_methods:
        answer.headers.append(("Allow", ", ".join(sorted(error.valid_methods))))  # RFC 9110 §15.5.6 asks for it
    return as_response(answer)


def _told(error: Exception) -> Exception:
    """Flask's own refusals in our words; everything else as it is."""
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
    return error
