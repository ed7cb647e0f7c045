"""Errors in their wire shape, rendered here and nowhere else.

OpenAI's error object (platform.openai.com/docs/guides/error-codes, read 2026-11): official SDKs choose their exception
class by the status, and some clients read `type` and `code`.
"""

from __future__ import annotations

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


def error_headers(error: ProxyError) -> list[tuple[str, str]]:
    headers = [("Content-Type", "application/json")]
    if error.status in {429, 503} or (error.status == 401 and error.retry_after_s is not None):  # noqa: PLR2004
        headers.append(("Retry-After", str(error.retry_after_s or 1)))
    if error.status == 401:  # noqa: PLR2004  RFC 9110 §11.6.1 asks for it
        headers.append(("WWW-Authenticate", 'Bearer realm="Secure LLM Proxy"'))
    return headers
