from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.upstream.endpoint import parse_endpoint
from secure_llm_proxy.upstream.wording import Scrubber

_KEY = "sk-Secret.Key+1"
_SCRUBBER = Scrubber(parse_endpoint("https://llm.internal.example:8443/v1"), _KEY)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("  fine\r\n\ttext ", "fine   text"),
        (f"key {_KEY}!", "key [removed]!"),
        (f"key {_KEY.upper()}!", "key [removed]!"),
        ("key sk-Sec\u200bret.K\u0000ey+1!", "key [removed]!"),
        (f"Bearer{_KEY}{_KEY}x", "Bearer[removed][removed]x"),
        ("see https://llm.internal.example:8443/v1/chat", "see [removed]/chat"),
        ("LLM.INTERNAL.EXAMPLE:8443 is busy", "[removed] is busy"),
        ("llm.internal.example is busy", "[removed] is busy"),
        ("\u202eright to left\x1b[31m", "right to left[31m"),
        ("\x00\u200b", None),
        ("", None),
        (7, None),
        (None, None),
    ],
)
def test_a_message_is_shown_without_key_host_and_control_characters(
    message: str | int | None, shown: str | None
) -> None:
    assert _SCRUBBER.message(message) == shown


def test_a_host_that_is_a_common_word_is_removed_as_a_whole_word_only() -> None:
    scrubber = Scrubber(parse_endpoint("http://llm:8000/v1"))

    assert scrubber.message("llm:8000 says: llms and my-llm-2 are not llm") == (
        "[removed] says: llms and my-llm-2 are not [removed]"
    )


def test_a_key_at_the_cut_is_removed_before_the_cut() -> None:
    shown = _SCRUBBER.message("x" * 490 + _KEY)

    assert shown == "x" * 490 + "[removed]"
    assert len(_SCRUBBER.message("y" * 9_000) or "") == 500


@given(
    before=st.text(max_size=40), after=st.text(max_size=40), hidden=st.text("\u200b\u202e\x00\x07\ufeff", max_size=3)
)
def test_neither_key_nor_host_nor_control_characters_ever_leave(before: str, after: str, hidden: str) -> None:
    secret = _KEY[:5] + hidden + _KEY[5:]

    shown = _SCRUBBER.message(f"{before}{secret} https://llm.internal.example:8443/v1 {after}") or ""

    assert _KEY.lower() not in shown.lower()
    assert "llm.internal.example" not in shown.lower()
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in shown)
    assert len(shown) <= 500


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("messages[0].content", "messages[0].content"),
        ("max_tokens", "max_tokens"),
        ("x" * 65, None),
        ("with space", None),
        ("line\n", None),
        ("llm.internal.example", None),
        ("", None),
        (7, None),
        (None, None),
    ],
)
def test_a_parameter_is_shown_only_when_it_is_a_short_name(value: str | int | None, shown: str | None) -> None:
    assert _SCRUBBER.parameter(value) == shown
