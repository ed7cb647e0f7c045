"""Every error has one shape on the wire: OpenAI's error object, the right status, and the headers that go with it."""

from __future__ import annotations

import json

import pytest

from secure_llm_proxy.foundation import errors
from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    InternalError,
    ProxyError,
    RateLimited,
    Unavailable,
    UpstreamRefused,
)
from secure_llm_proxy.web.errors import error_body, error_headers, error_object

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, ProxyError)
    and kind not in {ProxyError, InternalError, UpstreamRefused}
]


@pytest.mark.parametrize("code", list(ErrorCode))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_code_of_every_error_is_told_in_openais_shape(kind: type[ProxyError], code: ErrorCode) -> None:
    error = kind("What is wrong.", code=code, param="model", detail="canary-5c1e", retry_after_s=7)

    told = json.loads(error_body(error))

    assert told["error"] == {"message": "What is wrong.", "type": kind.type, "param": "model", "code": code.value}
    assert set(told) <= {"error", "retry_after"}
    assert "canary" not in json.dumps(told)


def test_only_a_429_tells_its_pause_in_the_body() -> None:
    assert error_object(RateLimited("x", retry_after_s=7))["retry_after"] == 7
    assert "retry_after" not in error_object(Unavailable("x", retry_after_s=7))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_headers_go_with_the_status(kind: type[ProxyError]) -> None:
    with_pause = dict(error_headers(kind("x", retry_after_s=7)))
    without = dict(error_headers(kind("x")))

    assert with_pause["Content-Type"] == without["Content-Type"] == "application/json"
    assert with_pause.get("Retry-After") == ("7" if kind.status in {401, 429, 503} else None)
    assert without.get("Retry-After") == ("1" if kind.status in {429, 503} else None)
    assert ("WWW-Authenticate" in without) is (kind.status == 401)


def test_a_providers_429_carries_its_pause_too() -> None:
    error = UpstreamRefused("x", status=429, code=ErrorCode.UPSTREAM_RATE_LIMITED, retry_after_s=30)

    assert dict(error_headers(error))["Retry-After"] == "30"
    assert error_object(error)["retry_after"] == 30


def test_a_defect_is_told_without_its_cause() -> None:
    told = json.loads(error_body(InternalError(detail="KeyError: canary")))

    assert told == {
        "error": {
            "message": "The proxy failed to handle this request.",
            "type": "internal_error",
            "param": None,
            "code": "internal_error",
        }
    }
