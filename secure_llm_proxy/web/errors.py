"""Errors in their wire shape, rendered here and nowhere else.

OpenAI's error object (platform.openai.com/docs/guides/error-codes, read 2026-11): official SDKs choose their exception
class by the status, and some clients read `type` and `code`. At Anthropic's doors, and at the models' for its clients,
Anthropic's (platform.claude.com/docs/en/api/errors, read 2026-11-21): its SDKs choose by the status too, read `type` for
`error.type`, and `details.error_code` for `error_code`; our `code` stands there, and where it stands everywhere else.
"""

from __future__ import annotations

from typing import Final
from wsgiref.types import WSGIEnvironment

import orjson

from secure_llm_proxy.foundation.errors import ProxyError


def error_object(error: ProxyError) -> dict[str, object]:
    told: dict[str, object] = {
        "error": {"message": error.public, "type": error.type, "param": error.param, "code": error.code.value}
    }
    if error.status == 429 and error.retry_after_s is not None:  # noqa: PLR2004  the origin's clients read it here
        told["retry_after"] = error.retry_after_s
    return told


def error_body(error: ProxyError) -> bytes:
    return orjson.dumps(error_object(error))


_TYPE_OF_STATUS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
_ANTHROPIC: Final = "/v1/messages"
_BELOW_ANTHROPIC: Final = _ANTHROPIC + "/"
_MODELS: Final = "/v1/models"
_BELOW_MODELS: Final = _MODELS + "/"


def is_anthropic(path: str) -> bool:
    """True for the doors whose clients speak Anthropic's format."""
    return path == _ANTHROPIC or path.startswith(_BELOW_ANTHROPIC)


def wants_anthropic(environ: WSGIEnvironment) -> bool:
    """True where an error must have Anthropic's shape: at its doors, and at the models' for clients that name its version.
    deploy/nginx tells them apart in the same way.
    """
    path: str = environ["PATH_INFO"]
    if "HTTP_ANTHROPIC_VERSION" in environ and (path == _MODELS or path.startswith(_BELOW_MODELS)):
        return True
    return is_anthropic(path)


def anthropic_error_body(error: ProxyError, request_id: str) -> bytes:
    kind = _TYPE_OF_STATUS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")  # noqa: PLR2004
    code = error.code.value
    told = {"type": kind, "message": error.public, "details": {"error_code": code}, "code": code, "param": error.param}
    return orjson.dumps({"type": "error", "error": told, "request_id": request_id})


def anthropic_error_event(error: ProxyError, request_id: str) -> bytes:
    """A final `error` event in Anthropic's shape."""
    return b"event: error\ndata: %b\n\n" % anthropic_error_body(error, request_id)


def error_headers(error: ProxyError) -> list[tuple[str, str]]:
    headers = [("Content-Type", "application/json")]
    if error.status in {429, 503} or (error.status == 401 and error.retry_after_s is not None):  # noqa: PLR2004
        headers.append(("Retry-After", str(error.retry_after_s or 1)))
    if error.status == 401:  # noqa: PLR2004  RFC 9110 §11.6.1 asks for it
        headers.append(("WWW-Authenticate", 'Bearer realm="Secure LLM Proxy"'))
    return headers
