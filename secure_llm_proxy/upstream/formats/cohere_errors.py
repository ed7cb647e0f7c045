"""How Cohere says that it will not answer: `{"message": …}`. Pure. Source: Cohere API v2 reference, errors, read 2026-11."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.foundation.errors import FailureKind
from secure_llm_proxy.upstream.formats.face import ReportedError

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject

_TOO_MANY_TOKENS = "too many tokens"
# The same words stand before what asks for too long an answer, which no larger context mends.
_TOO_LONG_AN_ANSWER = "max tokens must be"


def reported_error(payload: JsonObject) -> ReportedError:
    message = payload.get("message")
    kind = None
    if isinstance(message, str):
        lower = message.lower()
        if _TOO_MANY_TOKENS in lower and _TOO_LONG_AN_ANSWER not in lower:
            kind = FailureKind.CONTEXT_LENGTH
    return ReportedError(message, None, kind)
