"""Headers of every answer. Values come from our own ids, counts and allow-listed names, never raw from a client."""

from __future__ import annotations

import re

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
_SAFE = re.compile(r"[A-Za-z0-9._:/@+-]{1,128}\Z")


def reply_headers(facts: ReplyFacts) -> list[tuple[str, str]]:
    """`X-Request-Id`, the limits' state and the data plane's `X-SLP-…` headers."""
    headers = [("X-Request-Id", facts.exchange_id), ("X-SLP-Overhead-Ms", f"{facts.overhead_ms:.3f}")]
    for name, value in (
        ("X-Correlation-ID", facts.correlation_id),
        ("X-SLP-Audit-Id", facts.audit_id),
        ("X-SLP-Provider", facts.provider),
        ("X-SLP-Model", facts.model),
    ):
        if value is not None and _SAFE.match(value):
            headers.append((name, value))
    if facts.decision is not None:
        headers += [
            ("X-RateLimit-Limit", str(facts.decision.limit)),
            ("X-RateLimit-Remaining", str(facts.decision.remaining)),
            ("X-RateLimit-Reset", str(facts.decision.reset_s)),
        ]
    return headers


def safe_id(value: str | None) -> str | None:
    """A client's own id if it is one: up to 128 characters of a harmless alphabet; anything else is dropped."""
    return value if value and _SAFE.match(value) else None
