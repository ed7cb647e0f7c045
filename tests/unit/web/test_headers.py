"""No header of an answer ever carries what a client could break it with."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.gateway import ReplyFacts
from secure_llm_proxy.vocabulary.decisions import RateDecision
from secure_llm_proxy.web.headers import SECURITY_HEADERS, fixed_headers, reply_headers, safe_id

HARMLESS = set(string.ascii_letters + string.digits + "._:/@+-")
HOSTILE = [
    "a\r\nSet-Cookie: x=1", "a\nb", "a\rb", "a\x00b", "a b", "a\tb", "a\x0bb", "a\x85b", "a\u2028b", "ä", "\ud800",
    "a\n", "\na", "", " ", "x" * 129, "{}", '"', "<script>", "a;b", "a,b", "%0d%0a", "a\\r\\nb", "￿", "嘊嘍Set-Cookie:x",
]  # fmt: skip


def facts(value: str | None) -> ReplyFacts:
    decision = RateDecision(True, limit=30, remaining=4, reset_s=12, retry_after_s=0, source="process", bucket="key")
    return ReplyFacts("exc_1", value, value, value, value, decision, 1.23456)


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_a_hostile_value_is_left_out(value: str) -> None:
    names = [name for name, _ in reply_headers(facts(value))]

    assert safe_id(value) is None
    assert not {"X-Correlation-ID", "X-SLP-Audit-Id", "X-SLP-Provider", "X-SLP-Model"} & set(names)


@settings(max_examples=2000)
@given(st.text(max_size=140) | st.sampled_from(HOSTILE) | st.text(alphabet=sorted(HARMLESS), max_size=140))
def test_whatever_comes_headers_stay_within_the_harmless_alphabet(value: str) -> None:
    headers = reply_headers(facts(value))

    for name, written in headers:
        assert set(written) <= HARMLESS, name
        assert 0 < len(written) <= 128
    expected = value if 0 < len(value) <= 128 and set(value) <= HARMLESS else None
    assert safe_id(value) == expected


def test_the_limits_state_and_our_ids_are_told() -> None:
    headers = dict(reply_headers(facts("org/model-7b:2026")))

    assert headers == {
        "X-Request-Id": "exc_1",
        "X-SLP-Overhead-Ms": "1.235",
        "X-Correlation-ID": "org/model-7b:2026",
        "X-SLP-Audit-Id": "org/model-7b:2026",
        "X-SLP-Provider": "org/model-7b:2026",
        "X-SLP-Model": "org/model-7b:2026",
        "X-RateLimit-Limit": "30",
        "X-RateLimit-Remaining": "4",
        "X-RateLimit-Reset": "12",
    }


def test_before_the_limiter_has_spoken_nothing_is_said_of_limits() -> None:
    headers = reply_headers(ReplyFacts("exc_1", None, None, None, None, None, 0.0))

    assert [name for name, _ in headers] == ["X-Request-Id", "X-SLP-Overhead-Ms"]


def test_security_headers_stand_once_each() -> None:
    names = [name for name, _ in SECURITY_HEADERS]

    assert len(names) == len(set(names))
    assert {"X-Content-Type-Options", "Content-Security-Policy", "Cache-Control", "X-Frame-Options"} <= set(names)


def test_nothing_that_a_browser_could_do_with_an_answer_is_allowed() -> None:
    told = dict(SECURITY_HEADERS)
    directives = {part.strip() for part in told["Content-Security-Policy"].split(";")}

    # `object-src` and every other fetch directive falls back to `default-src` (CSP3 §6.1).
    assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} == directives
    assert told["X-Content-Type-Options"] == "nosniff"
    assert told["Referrer-Policy"] == "no-referrer"
    assert told["Cross-Origin-Resource-Policy"] == "same-origin"
    assert told["Cache-Control"] == "no-store"
    assert not [name for name in told if name.startswith("Access-Control-")]


def test_in_production_tls_is_asked_for_two_years_and_every_subdomain() -> None:
    assert ("Strict-Transport-Security", "max-age=63072000; includeSubDomains") in fixed_headers(production=True)
