"""Libraries that stand on the official SDKs: LangChain, LiteLLM, Pydantic AI, Instructor, LlamaIndex, and Vercel's `ai`."""

from __future__ import annotations

import json

import pytest

from tests.contract.conftest import Run, Told
from tests.support.provider_formats.speaking import COUNTS, PLAIN

ARGUMENTS = {"city": "Paris", "days": 7}


@pytest.fixture(scope="session")
def langchain(run_program: Run) -> Told:
    return run_program("langchain_calls.py", "sdk2")


@pytest.fixture(scope="session")
def litellm(run_program: Run) -> Told:
    return run_program("litellm_calls.py", "sdk2")


@pytest.fixture(scope="session")
def pydantic_ai(run_program: Run) -> Told:
    return run_program("pydantic_ai_calls.py", "sdk2")


@pytest.fixture(scope="session")
def ai_sdk(run_program: Run) -> Told:
    return run_program("ai_sdk_node.cjs", "node")


def test_langchain_asks_plainly_and_by_stream(langchain: Told) -> None:
    plain, stream = langchain["plain"], langchain["stream"]

    assert isinstance(plain, dict)
    assert isinstance(stream, dict)
    assert (plain["text"], plain["finish"]) == (PLAIN, "stop")
    assert plain["usage"]["total_tokens"] == stream["usage"]["total_tokens"] == COUNTS.total
    assert plain["usage"]["input_token_details"]["cache_read"] == COUNTS.cached
    assert stream["text"] == PLAIN
    assert stream["chunks"] > 2
    assert langchain["asynchronous"] == PLAIN


def test_langchain_calls_tools_and_reports_their_results(langchain: Told) -> None:
    calls = [["weather", {"city": "Paris"}], ["forecast", ARGUMENTS]]

    assert langchain["tools"] == calls
    assert langchain["streamed_tools"] == calls
    assert langchain["results_of_tools"] == ("The tool said: sun in Paris The tool said: rain in Paris for 7 days")


def test_langchain_calls_tools_by_responses(langchain: Told) -> None:
    assert langchain["responses"] == [["weather", {"city": "Paris"}], ["forecast", ARGUMENTS]]


def test_langchain_parses_structure_and_sends_images(langchain: Told) -> None:
    assert langchain["structured"] == ARGUMENTS
    assert langchain["image"] == "I see image image/png of 70 bytes."


def test_langchain_raises_the_sdks_own_classes(langchain: Told) -> None:
    langchain.case("wrong_key").raised("AuthenticationError")
    langchain.case("rate_limited").raised("RateLimitError")


def test_litellm_asks_plainly_and_by_stream(litellm: Told) -> None:
    plain, stream = litellm["plain"], litellm["stream"]

    assert isinstance(plain, dict)
    assert isinstance(stream, dict)
    assert plain["text"] == stream["text"] == litellm["asynchronous"] == PLAIN
    assert plain["usage"]["total_tokens"] == stream["usage"]["total_tokens"] == COUNTS.total


def test_litellm_calls_tools_and_parses_structure(litellm: Told) -> None:
    for made in (litellm["tools"], litellm["streamed_tools"]):
        assert isinstance(made, list)
        assert [[name, json.loads(arguments)] for name, arguments in made] == [
            ["weather", ARGUMENTS],
            ["forecast", ARGUMENTS],
        ]
    assert litellm["structured"] == ARGUMENTS


def test_litellm_speaks_anthropics_format(litellm: Told) -> None:
    assert litellm["messages"] == PLAIN


@pytest.mark.parametrize(
    ("case", "raised"),
    [
        ("wrong_key", "AuthenticationError"),
        ("rate_limited", "RateLimitError"),
        ("context_length", "ContextWindowExceededError"),
        ("unknown_model", "NotFoundError"),
    ],
)
def test_litellm_raises_its_own_classes(litellm: Told, case: str, raised: str) -> None:
    litellm.case(case).raised(raised)


def test_pydantic_ai_asks_plainly_and_by_stream(pydantic_ai: Told) -> None:
    assert pydantic_ai["plain"] == {"text": PLAIN, "input": COUNTS.prompt, "output": COUNTS.said}
    stream = pydantic_ai["stream"]
    assert isinstance(stream, dict)
    assert stream["text"] == PLAIN
    assert stream["pieces"] > 2


def test_pydantic_ai_calls_tools_and_parses_structure(pydantic_ai: Told) -> None:
    assert pydantic_ai["tools"] == {"called": ["Paris"], "text": "The tool said: sun in Paris"}
    assert pydantic_ai["structured"] == pydantic_ai["structured_by_tool"] == ARGUMENTS
    assert pydantic_ai["image"] == "I see image image/png of 20 bytes."


def test_pydantic_ai_speaks_every_format(pydantic_ai: Told) -> None:
    assert pydantic_ai["responses"] == pydantic_ai["messages"] == PLAIN


def test_pydantic_ai_raises_its_own_class_with_our_status(pydantic_ai: Told) -> None:
    assert pydantic_ai.case("wrong_key").raised("ModelHTTPError")["status"] == 401
    assert pydantic_ai.case("rate_limited").raised("ModelHTTPError")["status"] == 429


def test_instructor_gets_structure_by_tools_and_by_schema(run_program: Run) -> None:
    told = run_program("instructor_calls.py", "sdk2")

    assert told["by_tools"] == told["by_schema"] == ARGUMENTS


def test_llama_index_chats(run_program: Run) -> None:
    told = run_program("llama_index_calls.py", "sdk2")

    assert told["plain"] == told["stream"] == PLAIN
    told.case("wrong_key").raised("AuthenticationError")


def test_the_ai_sdk_asks_plainly_and_by_stream(ai_sdk: Told) -> None:
    for answer in (ai_sdk["plain"], ai_sdk["stream"]):
        assert isinstance(answer, dict)
        assert (answer["text"], answer["finishReason"]) == (PLAIN, "stop")
        assert answer["usage"]["inputTokens"] == COUNTS.prompt
        assert answer["usage"]["outputTokens"] == COUNTS.said


def test_the_ai_sdk_calls_tools_and_goes_on_with_their_results(ai_sdk: Told) -> None:
    for answer in (ai_sdk["tools"], ai_sdk["streamed_tools"]):
        assert answer == {"text": "The tool said: sun in Paris", "calls": [["weather", {"city": "Paris"}]]}


def test_the_ai_sdk_parses_structure_and_sends_images(ai_sdk: Told) -> None:
    assert ai_sdk["structured"] == ARGUMENTS
    assert ai_sdk["image"] == "I see image image/png of 70 bytes."


def test_the_ai_sdk_speaks_every_format(ai_sdk: Told) -> None:
    for case in ("responses", "messages"):
        answer = ai_sdk[case]
        assert isinstance(answer, dict)
        assert answer["text"] == ai_sdk[f"{case}_streamed"] == PLAIN
        assert answer["usage"]["inputTokens"] == COUNTS.prompt
        assert ai_sdk[f"{case}_tools"] == "The tool said: sun in Paris"
    for case in ("messages_translated", "messages_translated_streamed"):
        assert ai_sdk[case] == "The tool said: sun in Paris"


def test_the_ai_sdk_raises_its_own_class_with_our_status(ai_sdk: Told) -> None:
    assert ai_sdk.case("wrong_key").raised("APICallError")["status"] == 401
    assert ai_sdk.case("rate_limited").raised("APICallError")["status"] == 429
