"""The tree of errors is closed, and says of each what a client is told."""

from __future__ import annotations

from secure_llm_proxy.foundation import errors
from secure_llm_proxy.foundation.errors import ErrorCode, InternalError, ProxyError, UpstreamRefused


def _tree(root: type[ProxyError]) -> list[type[ProxyError]]:
    return [root, *(below for child in root.__subclasses__() for below in _tree(child))]


def test_every_error_has_a_status_that_http_knows_and_a_type() -> None:
    for kind in _tree(ProxyError):
        assert 400 <= kind.status <= 599, kind
        assert kind.type.replace("_", "").isalpha(), kind
        assert isinstance(kind.default_code, ErrorCode), kind


def test_the_drawing_of_the_tree_names_every_error_with_its_status() -> None:
    drawing = errors.__doc__ or ""

    for kind in _tree(ProxyError):
        lines = [line for line in drawing.splitlines() if line.strip(" │├└─").partition(" ")[0] == kind.__name__]
        assert lines, kind
        if kind not in {ProxyError, UpstreamRefused}:
            assert str(kind.status) in lines[0], kind


def test_codes_are_words_that_a_client_can_compare() -> None:
    for code in ErrorCode:
        assert code.value == code.name.lower()
        assert code.value.replace("_", "").isalpha()


def test_a_defect_is_always_told_in_the_same_words() -> None:
    error = InternalError(detail="KeyError in a place with a secret")

    assert (error.status, error.code) == (500, ErrorCode.INTERNAL_ERROR)
    assert "KeyError" not in error.public
    assert error.public == InternalError(detail="something else").public


def test_a_providers_refusal_keeps_the_status_it_is_given() -> None:
    assert UpstreamRefused("no", status=422).status == 422
    assert UpstreamRefused.status == 502
