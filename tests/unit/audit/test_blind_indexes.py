from __future__ import annotations

import base64
import hashlib
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.audit.blind_indexes import (
    NAMES,
    VALUES_BYTES_MAX,
    BlindIndexes,
    indexable,
    values_to_index,
)
from secure_llm_proxy.vocabulary.audit import indexed_values

KEY = b"k" * 32
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36"


def test_an_index_is_the_hmac_that_the_format_says() -> None:
    indexes = BlindIndexes(KEY)

    index = indexes.of("ipx", "192.0.2.7")

    expected = hmac.new(KEY, b"ipx\x00192.0.2.7", hashlib.sha256).digest()[:16]
    assert index == base64.urlsafe_b64encode(expected).decode().rstrip("=")
    assert re.fullmatch(r"[0-9A-Za-z_-]{22}", index)
    assert index != indexes.of("uax", "192.0.2.7")
    assert index != BlindIndexes(b"K" * 32).of("ipx", "192.0.2.7")


def test_what_a_reader_asks_for_is_what_the_worker_sent() -> None:
    indexes = BlindIndexes(KEY)
    values = indexed_values(address="2001:db8::1", agent=AGENT, email=" Ana@Example.ORG")

    members = indexes.members(values_to_index(values))

    assert members == {name: indexes.of(name, value) for name, value in values.items()}
    assert members["emx"] == indexes.of("emx", "ana@example.org")
    assert set(members) == NAMES
    indexes.forget()
    assert indexes.members(values_to_index(values)) == members


@given(st.text(max_size=2000), st.text(max_size=2000), st.text(max_size=2000))
def test_any_three_values_fit_into_a_frame(address: str, agent: str, email: str) -> None:
    values = {"ipx": address, "uax": agent, "emx": email}

    content = values_to_index(values)

    assert len(content) <= VALUES_BYTES_MAX
    assert set(BlindIndexes(KEY).members(content)) == NAMES


def test_long_values_differ_by_their_last_letter() -> None:
    assert indexable(AGENT) != indexable(AGENT[:-1])
    assert indexable("curl/8.5.0") == "curl/8.5.0"
    assert values_to_index({}) == b""


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"sub":"x"}', b'{"ipx":1}', b'{"ipx":null}', b'"ipx"', b"\xff"])
def test_what_no_journal_sends_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of them will do
        BlindIndexes(KEY).members(content)
