"""Globs over the products that a User-Agent names."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.admission import AGENT_CHARACTERS_MAX, AgentList, AgentTooLong
from secure_llm_proxy.admission.agents import glob_matches
from secure_llm_proxy.foundation.errors import OperatorError

GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"


@pytest.mark.parametrize(
    ("entry", "user_agent", "matches"),
    [
        ("curl", "curl/8.5", True),
        ("curl", "curl/8.5.0 (x86_64-pc-linux-gnu) libcurl/8.5.0 OpenSSL/3.0.13", True),
        ("curl", "CURL/8.5", True),
        ("CURL", "curl/8.5", True),
        ("curl", "libcurl/8.5", False),
        ("curl", "curl", True),
        ("curl", "curl2/1.0", False),
        ("bot", "chatbot/1.0", False),
        ("*bot", "chatbot/1.0", True),
        ("*bot", GOOGLEBOT, True),
        ("googlebot", GOOGLEBOT, True),
        ("bot", GOOGLEBOT, False),
        ("bot", "bot/1.0", True),
        ("bot*", "bot-net/1.0", True),
        ("*", "", True),
        ("*", "anything", True),
        ("?*", "", False),
        ("curl", "", False),
        ("c?rl", "curl/1", True),
        ("c?rl", "crl/1", False),
        ("python-requests", "python-requests/2.34.2", True),
        ("python-*", "python-requests/2.34.2", True),
        ("python", "python-requests/2.34.2", False),
        ("openai", "OpenAI/Python 3.52.0", True),
        ("curl/7.*", "curl/7.88.1", True),
        ("curl/7.*", "curl/8.5", False),
        ("curl/8.5", "curl/8.5", True),
        ("curl", "Mozilla/5.0 (curl)", True),
        ("curl", "Mozilla/5.0 (a;curl/8)", True),
        ("curl", "Mozilla/5.0 (((curl", True),
        ("curl", "x\tcurl/8", True),
        ("curl", "x,curl/8", True),
        ("curl", '"curl"/8', True),
        ("curl", "\u00a0curl/8", True),
        ("curl", "é curl/8 \U0001f600", True),
        ("curl", "\u212aurl cur\u0131 /curl", False),
        ("chrome", BROWSER, True),
        ("curl", BROWSER, False),
        ("*crawler*", "My-Web-Crawler-X/1", True),
    ],
)
def test_a_glob_covers_a_whole_product_token(entry: str, user_agent: str, matches: bool) -> None:  # noqa: FBT001
    assert AgentList((entry,)).match(user_agent) == (entry if matches else None)


def test_asking_twice_answers_the_same() -> None:
    agents = AgentList(("curl", "*bot"))

    answers = [[agents.match(agent) for agent in ("curl/8", GOOGLEBOT, BROWSER)] for _ in range(3)]

    assert answers == [["curl", "*bot", None]] * 3


def test_a_flood_of_different_agents_is_answered_and_not_hoarded() -> None:
    agents = AgentList(("curl",))

    for number in range(5000):
        assert agents.match(f"agent-{number}/1.0") is None

    assert agents.match("curl/8") == "curl"


def test_an_empty_list_matches_nothing_of_any_length() -> None:
    assert AgentList(()).match("curl/8" * 10_000) is None


def test_a_header_too_long_to_be_searched_is_reported_rather_than_half_read() -> None:
    agents = AgentList(("curl",))

    assert agents.match("x " * (AGENT_CHARACTERS_MAX // 2 - 4) + "curl/8") == "curl"
    with pytest.raises(AgentTooLong):
        agents.match("x" * (AGENT_CHARACTERS_MAX + 1))


def test_hostile_globs_and_headers_cost_no_more_than_their_product() -> None:
    agents = AgentList(["*a*a*a*a*a*a*a*a*b", "a*" * 60 + "b"])

    # backtracking into every star would not end before the universe does
    assert agents.match("a" * AGENT_CHARACTERS_MAX) is None


_pattern = st.text(alphabet="ab*?", max_size=10)


@given(pattern=_pattern, text=st.text(alphabet="ab", max_size=10))
def test_the_matcher_agrees_with_the_standard_library(pattern: str, text: str) -> None:
    assert glob_matches(pattern, text) == fnmatchcase(text, pattern)


@given(user_agent=st.text(max_size=200))
def test_no_header_breaks_it(user_agent: str) -> None:
    agents = AgentList(("curl", "*bot", "a?c*"))

    assert agents.match(user_agent) in {None, "curl", "*bot", "a?c*"}


@pytest.mark.parametrize("entry", ["", " ", "two words", "a(b", "a;b", "a[bc]", "x" * 129, "é", "a,b"])
def test_an_entry_that_is_no_glob_stops_the_start_and_is_named(entry: str) -> None:
    with pytest.raises(OperatorError) as caught:
        AgentList(("curl", entry), setting="BLOCKED_USER_AGENTS")

    assert repr(entry) in str(caught.value)
    assert "BLOCKED_USER_AGENTS" in str(caught.value)
