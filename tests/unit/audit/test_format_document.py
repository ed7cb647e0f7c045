"""docs/audit-format.md says what the code does: names that a verifier needs are all in it."""

from __future__ import annotations

import pytest

from secure_llm_proxy.audit.format import ALGORITHMS_CLEAR, ALGORITHMS_SEALED, FEATURES, RESERVED_NAMES
from secure_llm_proxy.audit.segments import GENESIS_NAME, LINK_NAME, LOCK_NAME, SegmentState
from secure_llm_proxy.vocabulary.events import AuditType
from tests.support.audit_log import REPOSITORY

TEXT = (REPOSITORY / "docs" / "audit-format.md").read_text()


@pytest.mark.parametrize(
    "name",
    [
        *AuditType,
        *SegmentState,
        ALGORITHMS_CLEAR,
        ALGORITHMS_SEALED,
        GENESIS_NAME,
        LINK_NAME,
        LOCK_NAME,
        "slp/commit",
        "slp/kek-check",
        "secure-llm-proxy audit genesis v1",
        "secure-llm-proxy audit key roll v1",
        *FEATURES,
    ],
)
def test_the_document_names_it(name: str) -> None:
    assert name in TEXT


def test_the_document_lists_exactly_the_names_that_metadata_may_not_use() -> None:
    (listed,) = [line for line in TEXT.splitlines() if "Not allowed:" in line]

    assert set(listed.split("Not allowed: `")[1].split("`")[0].split()) == RESERVED_NAMES
