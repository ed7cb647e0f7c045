"""Headers of every answer. Values come from our own ids, counts and allow-listed names, never raw from a client."""

from __future__ import annotations

import re
from functools import lru_cache

from secure_llm_proxy.gateway import ReplyFacts

SECURITY_HEADERS: tuple[tuple[str, str], ...] = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    ("Cache-Control", "no-store"),
    ("Vary", "Authorization, Cookie"),
)
_STRICT_TRANSPORT = ("Strict-Transport-Security", "max-age=63072000; includeSubDomains")
_NAMES_MAX = 32
_is_name = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}\Z").match
_is_safe = re.compile(r"[A-Za-z0-9._:/@+-]{1,128}\Z").match


def fixed_headers(*, production: bool) -> tuple[tuple[str, str], ...]:
    """What every answer of one deployment carries alike."""
    return (*SECURITY_HEADERS, _STRICT_TRANSPORT) if production else SECURITY_HEADERS


def reply_headers(facts: ReplyFacts) -> list[tuple[str, str]]:
    """`X-Request-Id`, the limits' state and the data plane's `X-SLP-…` headers."""
    headers = [("X-Request-Id", facts.exchange_id), ("X-SLP-Overhead-Ms", f"{facts.overhead_ms:.3f}")]
    correlation, audit, decision = facts.correlation_id, facts.audit_id, facts.decision
    if correlation and _is_safe(correlation):
        headers += (("X-Correlation-ID", correlation),)
    if audit and _is_safe(audit):
        headers += (("X-SLP-Audit-Id", audit),)
    headers += _route_headers(facts.provider, facts.model)
    if facts.dropped:
        headers.append(("X-SLP-Dropped-Params", _dropped(facts.dropped)))
    if decision is not None:
        headers += (
            ("X-RateLimit-Limit", str(decision.limit)),
            ("X-RateLimit-Remaining", str(decision.remaining)),
            ("X-RateLimit-Reset", str(decision.reset_s)),
        )
    return headers


@lru_cache(maxsize=256)
def _route_headers(provider: str | None, model: str | None) -> tuple[tuple[str, str], ...]:
    """Routes are few, and the same ones come again and again."""
    told = (("X-SLP-Provider", safe_id(provider)), ("X-SLP-Model", safe_id(model)))
    return tuple((name, value) for name, value in told if value is not None)


def _dropped(names: tuple[str, ...]) -> str:
    """Names of parameters, which a client may have made up: those that are none are counted."""
    named = [name for name in names[:_NAMES_MAX] if _is_name(name)]
    others = len(names) - len(named)
    return ", ".join([*named, f"and {others} more"] if others else named)


def safe_id(value: str | None) -> str | None:
    """A client's own id if it is one: up to 128 characters of a harmless alphabet; anything else is dropped."""
    return value if value and _is_safe(value) else None
