"""Official Anthropic SDKs, two generations in Python and npm's: in front of Anthropic, and of providers of other formats."""

from __future__ import annotations

import pytest

from tests.contract.conftest import Run, Told
from tests.support.provider_formats.speaking import COUNTS, PLAIN

ARGUMENTS = {"city": "Paris", "days": 7}
CALLS = [["weather", ARGUMENTS], ["forecast", ARGUMENTS]]
# In front of Anthropic a request passes through; in front of the others it is translated.
BEHIND = [("sdk3", "anthropic"), ("sdk2", "anthropic"), ("sdk3", "openai"), ("sdk3", "gemini")]


@pytest.fixture(scope="session", params=BEHIND, ids=["anthropic", "anthropic-0", "openai", "gemini"])
def python(run_program: Run, request: pytest.FixtureRequest) -> Told:
    environment, provider = request.param
    return run_program("anthropic_calls.py", environment, provider)


@pytest.fixture(scope="session")
def untranslated(run_program: Run) -> Told:
    return run_program("anthropic_calls.py", "sdk3", "anthropic")


@pytest.fixture(scope="session")
def node(run_program: Run) -> Told:
    return run_program("anthropic_node.cjs", "node", "anthropic")


def test_both_generations_are_run(run_program: Run) -> None:
    """The newer one sends its key as Bearer and asks for API version 2026-10-21."""
    generations = [
        str(run_program("anthropic_calls.py", environment, "anthropic")["version"])[0]
        for environment in ("sdk3", "sdk2")
    ]

    assert generations == ["2", "0"]


def test_a_plain_answer(python: Told) -> None:
    answer = python["plain"]

    assert isinstance(answer, dict)
    assert [block["text"] for block in answer["content"] if block["type"] == "text"] == [PLAIN]
    assert (answer["role"], answer["stop_reason"]) == ("assistant", "end_turn")
    usage = answer["usage"]
    assert usage["cache_read_input_tokens"] == COUNTS.cached
    assert usage["output_tokens"] == COUNTS.said


def test_every_token_of_the_prompt_is_counted_once(python: Told) -> None:
    """Anthropic counts fresh, cached and written tokens apart; others count the cached ones among all."""
    answer = python["plain"]

    assert isinstance(answer, dict)
    usage = answer["usage"]
    parts = [usage["input_tokens"], usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"] or 0]
    assert sum(parts) == COUNTS.prompt


def test_a_plain_answer_in_node(node: Told) -> None:
    answer = node["plain"]

    assert isinstance(answer, dict)
    assert answer["content"][0]["text"] == PLAIN


def test_a_raw_response_shows_our_headers(python: Told) -> None:
    raw = python["raw_response"]

    assert isinstance(raw, dict)
    assert (raw["status"], raw["text"]) == (200, PLAIN)
    assert raw["headers"]["x-request-id"].startswith("exc_")


def test_clients_of_the_older_api_version_are_served(untranslated: Told) -> None:
    assert untranslated["older_version"] == PLAIN


def test_a_stream_has_every_event_in_its_order(python: Told, node: Told) -> None:
    for stream in (python["stream"], node["stream"]):
        assert isinstance(stream, dict)
        kinds = [kind for kind in stream["kinds"] if kind not in {"ping", "text"}]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert set(kinds[2:-3]) == {"content_block_delta"}
        assert (stream["text"], stream["stop"]) == (PLAIN, "end_turn")
        assert stream["usage"]["output_tokens"] == COUNTS.said


def test_a_stream_read_event_by_event(python: Told) -> None:
    events = python["raw_stream"]

    assert isinstance(events, list)
    assert (events[0], events[-1]) == ("message_start", "message_stop")


def test_a_bound_and_a_stop_sequence_end_the_answer(python: Told, untranslated: Told) -> None:
    assert python["cut_short"] == ["All is well,", "max_tokens"]
    assert untranslated["stopped"] == ["All is well", "stop_sequence"]
    stopped = python["stopped"]
    assert isinstance(stopped, list)
    # others do not tell whether it was a stop sequence
    assert stopped[0] == "All is well"
    assert stopped[1] in {"stop_sequence", "end_turn"}


def test_tools_are_called_in_parallel(python: Told, node: Told) -> None:
    for answer in (python["tools_in_parallel"], node["tools_in_parallel"]):
        assert answer == {"calls": CALLS, "stop": "tool_use"}


def test_a_tool_can_be_forced_and_tools_called_one_at_a_time(python: Told, untranslated: Told) -> None:
    assert python["forced_tool"] == ["forecast"]
    assert untranslated["one_tool_at_a_time"] == ["weather"]


def test_arguments_of_tools_are_streamed(python: Told, node: Told) -> None:
    streamed = python["streamed_tools"]

    assert isinstance(streamed, dict)
    assert streamed["pieces"] >= len(CALLS)
    assert streamed["calls"] == node["streamed_tools"] == CALLS


def test_results_of_tools_reach_the_model(python: Told, node: Told) -> None:
    expected = "The tool said: sun for weather The tool said: sun for forecast"

    assert python["results_of_tools"] == node["results_of_tools"] == expected


def test_structured_output_is_parsed(python: Told) -> None:
    assert python["structured"] == ARGUMENTS


def test_an_image_arrives_whole(python: Told, node: Told) -> None:
    assert python["image"] == node["image"] == "I see image image/png of 70 bytes."


def test_tokens_are_counted(untranslated: Told, node: Told) -> None:
    assert untranslated["counted"] == node["counted"] == COUNTS.prompt


def test_tokens_are_counted_or_estimated_in_front_of_others(python: Told) -> None:
    counted = python["counted"]

    assert isinstance(counted, int)
    assert counted > 0


def test_models_are_listed(untranslated: Told, node: Told) -> None:
    for listed in (untranslated["models"], node["models"]):
        assert isinstance(listed, list)
        assert "anthropic" in listed


def test_the_asynchronous_client(python: Told) -> None:
    assert python["asynchronous"] == PLAIN


@pytest.mark.parametrize(
    ("case", "raised"),
    [("wrong_key", "AuthenticationError"), ("unknown_model", "NotFoundError"), ("no_messages", "BadRequestError")],
)
def test_our_own_refusals_raise_the_right_class(python: Told, node: Told, case: str, raised: str) -> None:
    python.case(case).raised(raised)
    node.case(case).raised(raised)


def test_the_clients_own_patience_ends_in_its_own_error(untranslated: Told, node: Told) -> None:
    untranslated.case("impatient").raised("APITimeoutError")
    node.case("impatient").raised("APIConnectionTimeoutError")


FAILURES = {
    "authentication": "InternalServerError",
    "not-found": "NotFoundError",
    "rate-limited": "RateLimitError",
    "context-length": "BadRequestError",
    "overloaded": "InternalServerError",
    "server": "InternalServerError",
}


@pytest.mark.parametrize("streamed", ["", "_streamed"])
@pytest.mark.parametrize("failure", FAILURES)
def test_every_documented_refusal_of_the_provider_raises_the_right_class(
    python: Told, failure: str, streamed: str
) -> None:
    error = python.case(f"fail_{failure}{streamed}").raised(FAILURES[failure])

    assert "played" not in str(error["message"])


def test_refusals_raise_the_right_class_in_node(node: Told) -> None:
    node.case("rate_limited").raised("RateLimitError")
    node.case("server").raised("InternalServerError")


def test_a_failure_in_mid_stream_is_raised_where_the_stream_is_read(python: Told, node: Told) -> None:
    python.case("fail_mid-stream_streamed").raised("APIStatusError")
    node.case("mid_stream").raised("APIError")
