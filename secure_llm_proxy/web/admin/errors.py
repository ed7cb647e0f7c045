"""Errors at the doors of management: the one shape of all doors, and the origin's fields beside it."""

from __future__ import annotations

import orjson

from secure_llm_proxy.foundation.errors import ErrorCode, ProxyError
from secure_llm_proxy.web.errors import error_object

_DOCUMENT = "docs/api.md#errors"
_HINTS: dict[ErrorCode, str] = {
    ErrorCode.MISSING_SESSION: "Log in with POST /auth/login and send its session_token as `Authorization: Bearer`.",
    ErrorCode.SESSION_INVALID: "Log in again with POST /auth/login.",
    ErrorCode.KEY_NOT_FOR_MANAGEMENT: "Log in with POST /auth/login, or use an administration key (slp_adm_…).",
    ErrorCode.CSRF_FAILED: "Get a token with GET /auth/csrf and send it as `X-CSRF-Token`.",
    ErrorCode.STEP_UP_REQUIRED: "Show the second factor with POST /auth/mfa/step-up, then repeat the request.",
    ErrorCode.STALE_VERSION: "Read it again and repeat the change with its new version.",
    ErrorCode.CONFLICT: "Choose another value, or change what is there.",
    ErrorCode.FORBIDDEN: "GET /api/v1/me lists what you may do.",
    ErrorCode.AUDIT_UNAVAILABLE: "Nothing was changed. Try again shortly.",
    ErrorCode.DATABASE_UNAVAILABLE: "Try again shortly.",
    ErrorCode.RATE_LIMIT_EXCEEDED: "Wait as long as `Retry-After` says.",
}


def management_error_object(error: ProxyError) -> dict[str, object]:
    """`hint` says what to do next, `field` is what `param` is, `docs_url` where codes are explained (in the source tree)."""
    told = error_object(error)
    inner = told["error"]
    assert isinstance(inner, dict)
    told["error"] = {**inner, "field": error.param, "hint": _HINTS.get(error.code), "docs_url": _DOCUMENT}
    return told


def management_error_body(error: ProxyError) -> bytes:
    return orjson.dumps(management_error_object(error))
