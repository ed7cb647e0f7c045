"""Responses, completions and embeddings, as the official `openai` package asks for them; responses in front of other formats too."""

from __future__ import annotations

import json

import pytest

from tests.contract.conftest import Run, Told
from tests.support.provider_formats.speaking import COUNTS, PLAIN

ARGUMENTS = {"city": "Paris", "days": 7}
CALLS = [["weather", ARGUMENTS], ["forecast", ARGUMENTS]]


@pytest.fixture(scope="session", params=["sdk3", "sdk2"])
def python(run_program: Run, request: pytest.FixtureRequest) -> Told:
    """In front of OpenAI: what it asks for passes through."""
    return run_program("openai_further_calls.py", request.param, "openai")


@pytest.fixture(scope="session", params=["openai", "anthropic", "gemini"])
def behind(run_program: Run, request: pytest.FixtureRequest) -> Told:
    return run_program("openai_further_calls.py", "sdk3", request.param)


def test_completions(python: Told) -> None:
    whole = python["completion"]

    assert isinstance(whole, dict)
    assert (whole["text"], whole["object"]) == (PLAIN, "text_completion")
    assert whole["usage"]["total_tokens"] == COUNTS.total
    assert python["completion_stream"] == PLAIN
    python.case("completion_of_unknown_model").raised("NotFoundError")


def test_embeddings(python: Told) -> None:
    made, floats = python["embeddings"], python["embeddings_as_floats"]

    assert isinstance(made, dict)
    assert isinstance(floats, list)
    assert [len(vector) for vector in made["vectors"]] == [8, 8]
    assert made["usage"]["prompt_tokens"] == COUNTS.prompt
    assert len(floats) == 4
    assert made["vectors"][0][:4] == floats
    python.case("embeddings_rate_limited").raised("RateLimitError")


def test_a_response(behind: Told) -> None:
    answer = behind["response"]

    assert isinstance(answer, dict)
    assert (answer["text"], answer["status"]) == (PLAIN, "completed")
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (COUNTS.prompt, COUNTS.said)
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == COUNTS.cached


def test_a_raw_response_shows_our_headers(behind: Told) -> None:
    raw = behind["raw_response"]

    assert isinstance(raw, dict)
    assert (raw["status"], raw["text"]) == (200, PLAIN)
    assert raw["headers"]["x-request-id"].startswith("exc_")


def test_a_streamed_response_has_every_event_in_its_order(behind: Told) -> None:
    stream = behind["response_stream"]

    assert isinstance(stream, dict)
    assert (stream["text"], stream["tokens"]) == (PLAIN, COUNTS.total)
    kinds = stream["kinds"]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") > 1
    for begun, done in (("output_item.added", "output_item.done"), ("content_part.added", "content_part.done")):
        assert kinds.count(f"response.{begun}") == kinds.count(f"response.{done}") == 1


def test_tools_of_responses(behind: Told) -> None:
    for made in (behind["response_tools"], behind["response_tools_streamed"]):
        assert isinstance(made, list)
        assert [[name, json.loads(arguments)] for name, arguments in made] == CALLS
    assert behind["response_results_of_tools"] == "The tool said: sun for weather The tool said: sun for forecast"


def test_structured_responses_and_images(behind: Told) -> None:
    assert behind["response_structured"] == ARGUMENTS
    assert behind["response_image"] == "I see image image/png of 70 bytes."


@pytest.mark.parametrize(
    ("case", "raised"),
    [
        ("response_wrong_key", "AuthenticationError"),
        ("response_rate_limited", "RateLimitError"),
        ("response_of_unknown_model", "NotFoundError"),
    ],
)
def test_refusals_raise_the_right_class(behind: Told, case: str, raised: str) -> None:
    behind.case(case).raised(raised)


def test_a_response_that_breaks_off_ends_in_an_error(behind: Told) -> None:
    behind.case("response_breaks_off").raised("APIError")
