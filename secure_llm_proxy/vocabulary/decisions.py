"""Answers of gatekeepers."""

from __future__ import annotations

from dataclasses import dataclass

from secure_llm_proxy.foundation.errors import ErrorCode


@dataclass(frozen=True, slots=True)
class Verdict:
    """May it pass? When not: the code for the client and the rule that matched, for log and audit."""

    allowed: bool
    code: ErrorCode | None = None
    rule: str | None = None


ALLOWED = Verdict(allowed=True)


@dataclass(frozen=True, slots=True)
class RateDecision:
    """What the strictest of several buckets says.

    `limit` is requests per minute, `remaining` how many could follow at once, `reset_s` whole seconds until the bucket
    is full again, `retry_after_s` whole seconds (0 when allowed). `source` is "redis", "process" or "local_share".
    """

    allowed: bool
    limit: int
    remaining: int
    reset_s: int
    retry_after_s: int
    source: str
    bucket: str
    code: ErrorCode | None = None
