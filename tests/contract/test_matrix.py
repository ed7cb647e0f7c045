"""docs/providers.md shows what is tested, no more and no less."""

from __future__ import annotations

from secure_llm_proxy.vocabulary.providers import provider_kinds
from tests.contract.matrix import DOCUMENT, PROVIDERS, collected, in_document, table


def test_the_matrix_of_providers_is_made_of_the_tests_that_there_are() -> None:
    """After a change: python -m tests.contract.matrix --write"""
    assert in_document(DOCUMENT.read_text("utf-8")) == table(collected())


def test_every_kind_of_provider_stands_in_the_matrix() -> None:
    """An OpenAI-compatible server is whatever the operator runs: it is asked like OpenAI."""
    assert provider_kinds().keys() - {"openai_compatible"} == PROVIDERS.keys()
