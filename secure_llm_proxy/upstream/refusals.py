"""What a provider says when it does not answer with 200: the error that the client is told, and what may be tried instead."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    FailureKind,
    InvalidRequest,
    ProxyError,
    UpstreamFailed,
    UpstreamRefused,
)

if TYPE_CHECKING:
    from datetime import datetime

    from secure_llm_proxy.foundation.strict_json import JsonObject
    from secure_llm_proxy.upstream.formats.face import ProviderFormat
    from secure_llm_proxy.upstream.http1 import AnswerHead
    from secure_llm_proxy.upstream.wording import Scrubber

REFUSED_CREDENTIALS = "The provider refused the proxy's credentials."
BUSY = "The provider limits the rate of the proxy's requests. Try again later."
REFUSED = "The provider refused the request."
FAILED = "The provider failed to answer the request."

_RETRY_AFTER_S_MAX = 3_600
_PASSED_ON = frozenset({400, 404, 409, 413, 422})
# Cohere's: the request or the answer holds a word of a deny list.
_DENY_LISTED = 498
# 529 is Anthropic's "overloaded".
_SAYS_WHEN = frozenset({503, 529})


def error_of(
    head: AnswerHead, body: bytes, *, wire_format: ProviderFormat, scrubber: Scrubber, now: datetime
) -> ProxyError:
    """What a client may learn of an answer that is not 200. `body` may be cut, empty or nonsense."""
    status = head.status
    detail = f"the provider answered {status}"
    reported = wire_format.read_error(_object_of(body))
    if status in (401, 402) or (status == 403 and reported.kind is not FailureKind.CONTENT_POLICY):  # noqa: PLR2004
        return UpstreamFailed(REFUSED_CREDENTIALS, failure=FailureKind.CREDENTIALS, detail=detail)
    if status == 429:  # noqa: PLR2004 — HTTP's own number
        wait_s = _retry_after_s(head.headers.get("retry-after"), now) or _bounded(reported.retry_after_s) or 1
        return UpstreamRefused(
            BUSY,
            status=status,
            failure=reported.kind or FailureKind.RATE_LIMITED,
            code=ErrorCode.UPSTREAM_RATE_LIMITED,
            detail=detail,
            retry_after_s=wait_s,
        )
    if status in _PASSED_ON or reported.kind is FailureKind.CONTENT_POLICY or status == _DENY_LISTED:
        kind = reported.kind or (FailureKind.CONTENT_POLICY if status == _DENY_LISTED else FailureKind.REJECTED)
        if kind is FailureKind.CREDENTIALS:
            # Of our account, not of the request: Anthropic tells an empty one so, Google a wrong key.
            return UpstreamFailed(REFUSED_CREDENTIALS, failure=kind, detail=detail)
        return UpstreamRefused(
            scrubber.message(reported.message) or REFUSED,
            # Together AI answers 422 and OpenRouter 403 where OpenAI's SDKs know a 400.
            status=400 if kind in _CODE_OF_KIND else status,
            failure=kind,
            code=_CODE_OF_KIND.get(kind, ErrorCode.UPSTREAM_REJECTED),
            param=scrubber.parameter(reported.param),
            detail=detail,
        )
    retry_after_s = None
    if status in _SAYS_WHEN:
        retry_after_s = _retry_after_s(head.headers.get("retry-after"), now) or _bounded(reported.retry_after_s)
    return UpstreamFailed(FAILED, failure=FailureKind.OVERLOADED, detail=detail, retry_after_s=retry_after_s)


_CODE_OF_KIND = {
    FailureKind.CONTEXT_LENGTH: ErrorCode.CONTEXT_LENGTH_EXCEEDED,
    FailureKind.CONTENT_POLICY: ErrorCode.CONTENT_POLICY_VIOLATION,
}


def _object_of(body: bytes) -> JsonObject:
    """The object of the body, or the first of a list of them (so Google refuses some streams)."""
    try:
        value = strict_json.loads(body)
    except InvalidRequest:
        return {}
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, dict) else {}


def _retry_after_s(value: str | None, now: datetime) -> int | None:
    """Seconds or an HTTP date (RFC 9110 §10.2.3) as whole seconds from 1 to 3,600; None when absent or unreadable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        seconds = int(value[:10])
    else:
        try:
            seconds = int((parsedate_to_datetime(value) - now).total_seconds())
        except (TypeError, ValueError, OverflowError):
            return None
    return _bounded(seconds)


def _bounded(seconds: int | None) -> int | None:
    return None if seconds is None else min(max(seconds, 1), _RETRY_AFTER_S_MAX)
