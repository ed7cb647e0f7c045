"""The official `openai` package, of two generations in Python and npm's: only the base URL differs, and all of it works."""

from __future__ import annotations

import json

import pytest

from tests.contract.conftest import Run, Told
from tests.support.provider_formats.speaking import COUNTS, PLAIN

ARGUMENTS = {"city": "Paris", "days": 7}
CALLS = [["weather", ARGUMENTS], ["forecast", ARGUMENTS]]
PYTHON = ["sdk3", "sdk2"]


@pytest.fixture(scope="session", params=PYTHON)
def python(run_program: Run, request: pytest.FixtureRequest) -> Told:
    return run_program("openai_calls.py", request.param)


@pytest.fixture(scope="session")
def node(run_program: Run) -> Told:
    return run_program("openai_node.cjs", "node")


@pytest.fixture(scope="session", params=[*PYTHON, "node"])
def sdk(run_program: Run, request: pytest.FixtureRequest) -> Told:
    program = "openai_node.cjs" if request.param == "node" else "openai_calls.py"
    return run_program(program, request.param)


def test_both_generations_in_python_are_run(run_program: Run) -> None:
    generations = [str(run_program("openai_calls.py", environment)["version"])[0] for environment in PYTHON]

    assert generations == ["3", "2"]


def test_a_plain_answer(sdk: Told) -> None:
    answer = sdk["plain"]

    assert isinstance(answer, dict)
    assert answer["choices"][0]["message"]["content"] == PLAIN
    assert answer["usage"]["total_tokens"] == COUNTS.total
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == COUNTS.cached


def test_a_raw_response_shows_our_headers(sdk: Told) -> None:
    raw = sdk["raw_response"]

    assert isinstance(raw, dict)
    assert (raw["status"], raw["text"]) == (200, PLAIN)
    assert raw["headers"]["x-request-id"].startswith("exc_")
    assert raw["headers"]["x-slp-model"] == "gpt-6"


def test_a_streaming_response_is_read_as_bytes(python: Told) -> None:
    answer = python["streaming_response"]

    assert isinstance(answer, dict)
    assert answer["type"] == "application/json"
    assert answer["bytes"] > 100


def test_a_stream(sdk: Told) -> None:
    stream = sdk["stream"]

    assert isinstance(stream, dict)
    assert (stream["text"], stream["finish"]) == (PLAIN, "stop")


def test_a_stream_tells_its_usage_to_those_who_ask_and_to_nobody_else(python: Told) -> None:
    asked, unasked = python["stream_with_usage"], python["stream"]

    assert isinstance(asked, dict)
    assert isinstance(unasked, dict)
    assert asked["choices"] == 0
    assert asked["usage"]["total_tokens"] == COUNTS.total
    assert not any(unasked["usage"])


def test_a_stream_tells_its_usage_in_node(node: Told) -> None:
    usage = node["stream_with_usage"]

    assert isinstance(usage, dict)
    assert usage["total_tokens"] == COUNTS.total


def test_several_choices_and_log_probabilities(python: Told) -> None:
    assert python["several_choices"] == [PLAIN, PLAIN]
    assert python["log_probabilities"] == len(PLAIN.split(" "))


def test_a_bound_and_a_stop_sequence_end_the_answer(python: Told) -> None:
    assert python["cut_short"] == ["All is well,", "length"]
    assert python["stopped"] == ["All is well", "stop"]


def test_tools_are_called_in_parallel(sdk: Told) -> None:
    choice = sdk["tools_in_parallel"]

    assert isinstance(choice, dict)
    assert choice["finish_reason"] == "tool_calls"
    made = [call["function"] for call in choice["message"]["tool_calls"]]
    assert [[call["name"], json.loads(call["arguments"])] for call in made] == CALLS


def test_a_tool_can_be_forced(sdk: Told) -> None:
    assert sdk["forced_tool"] == ["forecast"]


def test_tools_one_at_a_time_or_not_at_all(python: Told) -> None:
    assert python["one_tool_at_a_time"] == ["weather"]
    assert python["no_tool"] == PLAIN


def test_arguments_of_tools_are_streamed(python: Told, node: Told) -> None:
    streamed = python["streamed_tools"]

    assert isinstance(streamed, dict)
    assert streamed["deltas"] > len(CALLS)
    for calls in (streamed["calls"], node["streamed_tools"]):
        assert isinstance(calls, list)
        assert [[name, json.loads(arguments)] for name, arguments in calls] == CALLS


def test_results_of_tools_reach_the_model(sdk: Told) -> None:
    assert sdk["results_of_tools"] == "The tool said: sun for weather The tool said: sun for forecast"


def test_structured_output_is_parsed(sdk: Told) -> None:
    assert sdk["structured"] == ARGUMENTS


def test_structured_output_is_parsed_from_a_stream(python: Told) -> None:
    assert python["streamed_structured"] == ARGUMENTS


def test_json_mode(python: Told) -> None:
    assert python["json_mode"] == json.dumps({"answer": PLAIN})


def test_an_image_arrives_whole(sdk: Told) -> None:
    assert sdk["image"] == "I see image image/png of 70 bytes."


def test_system_and_developer_messages(python: Told) -> None:
    assert python["roles"] == PLAIN


def test_models(sdk: Told) -> None:
    listed = sdk["models"]

    assert isinstance(listed, list)
    assert "gpt-6" in listed


def test_one_model(python: Told) -> None:
    assert python["one_model"] == "gpt-6"


def test_the_asynchronous_client(python: Told) -> None:
    assert python["asynchronous"] == [PLAIN, PLAIN]


def test_responses_in_node(node: Told) -> None:
    assert node["response"] == {"text": PLAIN, "tokens": COUNTS.total}
    assert node["response_streamed"] == PLAIN


def test_a_client_that_leaves_a_stream_early_is_left_alone(node: Told) -> None:
    assert node["left_early"] == "chat.completion.chunk"


@pytest.mark.parametrize(
    ("case", "raised", "code"),
    [
        ("wrong_key", "AuthenticationError", "invalid_api_key"),
        ("unknown_model", "NotFoundError", "model_not_found"),
        ("no_messages", "BadRequestError", "invalid_value"),
    ],
)
def test_our_own_refusals_raise_the_right_class(sdk: Told, case: str, raised: str, code: str) -> None:
    assert sdk.case(case).raised(raised)["code"] == code


def test_an_unknown_path_raises_not_found(python: Told) -> None:
    assert python.case("unknown_path").raised("NotFoundError")["code"] == "not_found"


def test_what_the_provider_does_not_know_is_refused_in_its_words(python: Told) -> None:
    error = python.case("unknown_parameter").raised("BadRequestError")

    assert error["code"] == "upstream_rejected"
    assert "Unknown parameter: 'surplus'" in str(error["message"])


def test_the_clients_own_patience_ends_in_its_own_error(python: Told, node: Told) -> None:
    python.case("impatient").raised("APITimeoutError")
    node.case("impatient").raised("APIConnectionTimeoutError")


def test_nobody_there_raises_a_connection_error(sdk: Told) -> None:
    sdk.case("unreachable").raised("APIConnectionError")


FAILURES = {
    "authentication": ("InternalServerError", "upstream_error"),
    "permission": ("InternalServerError", "upstream_error"),
    "not-found": ("NotFoundError", "upstream_rejected"),
    "rate-limited": ("RateLimitError", "upstream_rate_limited"),
    "quota": ("RateLimitError", "upstream_rate_limited"),
    "context-length": ("BadRequestError", "context_length_exceeded"),
    "content-policy": ("BadRequestError", "content_policy_violation"),
    "too-large": ("APIStatusError", "upstream_rejected"),
    "overloaded": ("InternalServerError", "upstream_error"),
    "server": ("InternalServerError", "upstream_error"),
}


@pytest.mark.parametrize("streamed", ["", "_streamed"])
@pytest.mark.parametrize("failure", FAILURES)
def test_every_documented_refusal_of_the_provider_raises_the_right_class(
    python: Told, failure: str, streamed: str
) -> None:
    raised, code = FAILURES[failure]

    error = python.case(f"fail_{failure}{streamed}").raised(raised)

    assert error["code"] == code
    assert "played" not in str(error["message"])


def test_refusals_raise_the_right_class_in_node(node: Told) -> None:
    assert node.case("rate_limited").raised("RateLimitError")["code"] == "upstream_rate_limited"
    assert node.case("context_length").raised("BadRequestError")["code"] == "context_length_exceeded"
    assert node.case("server").raised("InternalServerError")["code"] == "upstream_error"


def test_a_failure_in_mid_stream_is_raised_where_the_stream_is_read(python: Told, node: Told) -> None:
    assert python.case("fail_mid-stream_streamed").raised("APIError")["code"] == "upstream_error"
    assert node.case("mid_stream").raised("APIError")["code"] == "upstream_error"
