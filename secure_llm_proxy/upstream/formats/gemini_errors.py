"""How Gemini says that it will not answer. Pure.

Source: Gemini API reference "Troubleshooting", google.rpc.Status and its details (ErrorInfo, RetryInfo), read 2026-11.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation.errors import ErrorCode, FailureKind, UpstreamFailed, UpstreamRefused
from secure_llm_proxy.upstream.formats.face import REPORTED_ERROR, ReportedError

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue

PROMPT_BLOCKED = "The provider blocked the prompt under its content policy."
_STATUS = re.compile(r"[A-Z_]{1,64}")
_DELAY = re.compile(r"([0-9]{1,9})(?:\.[0-9]+)?s")
_TOO_MANY_TOKENS = re.compile(
    r"token count\b.*\bexceeds|exceeds the (?:maximum|limit).*\btoken", re.IGNORECASE | re.DOTALL
)
_KIND_OF_STATUS = {
    "RESOURCE_EXHAUSTED": FailureKind.RATE_LIMITED,
    "UNAUTHENTICATED": FailureKind.CREDENTIALS,
    "PERMISSION_DENIED": FailureKind.CREDENTIALS,
    # The free tier is not offered where the proxy stands, or billing is off.
    "FAILED_PRECONDITION": FailureKind.CREDENTIALS,
}


def reported_error(payload: JsonObject) -> ReportedError:
    error = payload.get("error")
    if not isinstance(error, dict):
        return ReportedError()
    message, status = error.get("message"), error.get("status")
    kind = _KIND_OF_STATUS.get(status) if isinstance(status, str) else None
    details = error.get("details")
    wait_s = None
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        if detail.get("reason") == "API_KEY_INVALID":
            kind = FailureKind.CREDENTIALS
        wait_s = wait_s or _whole_seconds(detail.get("retryDelay"))
    if kind is None and isinstance(message, str) and _TOO_MANY_TOKENS.search(message):
        kind = FailureKind.CONTEXT_LENGTH
    return ReportedError(message, None, kind, wait_s)


def raise_reported(payload: JsonObject) -> None:
    """Raises `UpstreamFailed` where an answer, or an event of a stream, is an error or says that the prompt was blocked."""
    error = payload.get("error")
    if error:
        status = error.get("status") if isinstance(error, dict) else None
        named = status if isinstance(status, str) and _STATUS.fullmatch(status) else "unnamed"
        kind = reported_error(payload).kind or FailureKind.OVERLOADED
        raise UpstreamFailed(REPORTED_ERROR, failure=kind, detail=f"error in a 200 answer: {named}")
    feedback = payload.get("promptFeedback")
    reason = feedback.get("blockReason") if isinstance(feedback, dict) else None
    if isinstance(reason, str) and reason != "BLOCK_REASON_UNSPECIFIED":
        raise UpstreamRefused(
            PROMPT_BLOCKED,
            status=400,
            failure=FailureKind.CONTENT_POLICY,
            code=ErrorCode.CONTENT_POLICY_VIOLATION,
            detail=f"the prompt was blocked: {reason if _STATUS.fullmatch(reason) else 'unnamed'}",
        )


def _whole_seconds(delay: JsonValue) -> int | None:
    """A duration as protocol buffers write it in JSON ("34.07s"), rounded up."""
    match = _DELAY.fullmatch(delay) if isinstance(delay, str) else None
    return None if match is None else int(match[1]) + ("." in match[0])
