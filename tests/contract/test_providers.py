"""Every provider behind the one door, asked by OpenAI's SDK through nginx: what each can do is shown here, test by test.

The matrix of docs/providers.md is made of the names of these tests (tests/contract/matrix.py), so a provider that lacks one is
"not offered" there, for the reason that `NOT_OFFERED` gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.contract.matrix import NOT_OFFERED, PROVIDERS
from tests.support.clients import sdk
from tests.support.format_server import FormatServer
from tests.support.provider_formats.playing import Failure
from tests.support.provider_formats.speaking import COUNTS, PLAIN
from tests.support.running_proxy import RunningProxy

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
HELLO: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How are things?"},
]
TOOLS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": SCHEMA}}
    for name in ("weather", "forecast")
]
CALLS = [("weather", {"city": "Paris", "days": 7}), ("forecast", {"city": "Paris", "days": 7})]


def offering(column: str) -> list[str]:
    """The providers that offer what the column is about."""
    return [provider for provider in PROVIDERS if (provider, column) not in NOT_OFFERED]


@pytest.fixture(scope="session")
def client(front: RunningProxy) -> Iterator[openai.OpenAI]:
    with sdk(front, front.shared_api_key) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_undocumented_is_sent(played: FormatServer) -> Iterator[None]:
    """Whatever reaches a provider fits its documentation."""
    before = len(played.refused)
    yield
    assert played.refused[before:] == []


@pytest.mark.parametrize("provider", offering("chat"))
def test_chat(client: openai.OpenAI, played: FormatServer, provider: str) -> None:
    answer = client.chat.completions.create(model=provider, messages=HELLO, max_tokens=40, temperature=0.5)

    assert answer.choices[0].message.content == PLAIN
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert len(played.asked("azure" if provider.startswith("azure") else provider)) > 0


@pytest.mark.parametrize("provider", offering("stream"))
def test_stream(client: openai.OpenAI, provider: str) -> None:
    chunks = list(client.chat.completions.create(model=provider, messages=HELLO, max_tokens=40, stream=True))

    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == PLAIN
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert len(chunks) > 4
    assert not any(chunk.usage for chunk in chunks if chunk.choices and not chunk.choices[0].finish_reason)


@pytest.mark.parametrize("provider", offering("tools"))
def test_tools(client: openai.OpenAI, provider: str) -> None:
    """In parallel, forced, streamed, and their results."""
    asked = client.chat.completions.create(model=provider, messages=HELLO, max_tokens=400, tools=TOOLS)
    message = asked.choices[0].message
    forced = client.chat.completions.create(
        model=provider,
        messages=HELLO,
        max_tokens=400,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "forecast"}},
    )
    with client.chat.completions.stream(model=provider, messages=HELLO, max_tokens=400, tools=TOOLS) as events:
        streamed = events.get_final_completion().choices[0].message
    results: list[ChatCompletionMessageParam] = [
        {"role": "tool", "tool_call_id": call.id, "content": f"sun, call {at}"}
        for at, call in enumerate(message.tool_calls or [])
    ]
    said: ChatCompletionMessageParam = {
        "role": "assistant",
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls or []
            if call.type == "function"
        ],
    }
    answer = client.chat.completions.create(
        model=provider, messages=[*HELLO, said, *results], max_tokens=400, tools=TOOLS
    )

    assert asked.choices[0].finish_reason == "tool_calls"
    assert _calls(message.tool_calls) == _calls(streamed.tool_calls) == CALLS
    assert _calls(forced.choices[0].message.tool_calls) == CALLS[1:]
    assert answer.choices[0].message.content == "The tool said: sun, call 0 The tool said: sun, call 1"


def _calls(calls: object) -> list[tuple[str, object]]:
    assert isinstance(calls, list)
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


@pytest.mark.parametrize("provider", offering("JSON schema"))
def test_json_schema(client: openai.OpenAI, provider: str) -> None:
    answer = client.chat.completions.create(
        model=provider,
        messages=HELLO,
        max_tokens=400,
        response_format={"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}},
    )

    assert json.loads(answer.choices[0].message.content or "") == {"city": "Paris", "days": 7}


@pytest.mark.parametrize("provider", offering("images"))
def test_images(client: openai.OpenAI, provider: str) -> None:
    picture: list[ChatCompletionMessageParam] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            ],
        }
    ]

    answer = client.chat.completions.create(model=provider, messages=picture, max_tokens=400)

    assert answer.choices[0].message.content == "I see image image/png of 70 bytes."


@pytest.mark.parametrize("provider", offering("embeddings"))
def test_embeddings(client: openai.OpenAI, provider: str) -> None:
    floats = client.embeddings.create(model=f"{provider}-embedding", input=["a", "b"], encoding_format="float")
    packed = client.embeddings.create(model=f"{provider}-embedding", input=["a", "b"])

    assert len(floats.data[0].embedding) == 8
    assert [one.embedding for one in floats.data] == [one.embedding for one in packed.data]
    assert floats.data[0].embedding != floats.data[1].embedding


@pytest.mark.parametrize("provider", offering("usage"))
def test_usage(client: openai.OpenAI, provider: str) -> None:
    """Plain and streamed alike, whatever the provider calls its tokens and wherever it tells them."""
    plain = client.chat.completions.create(model=provider, messages=HELLO, max_tokens=400).usage
    *_, last = client.chat.completions.create(
        model=provider, messages=HELLO, max_tokens=400, stream=True, stream_options={"include_usage": True}
    )

    for usage in (plain, last.usage):
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
            COUNTS.prompt,
            COUNTS.said,
            COUNTS.total,
        )
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == COUNTS.cached


@pytest.mark.parametrize("provider", offering("errors"))
def test_errors(client: openai.OpenAI, played: FormatServer, provider: str) -> None:
    """Each documented refusal raises the class that the SDK has for it, and no word leads to the provider's host."""
    raised: dict[Failure, openai.APIStatusError] = {}
    for failure in (Failure.RATE_LIMITED, Failure.CONTEXT_LENGTH, Failure.SERVER, Failure.AUTHENTICATION):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=f"{provider}-fail-{failure}", messages=HELLO, max_tokens=400)
        raised[failure] = caught.value
    with pytest.raises(openai.APIError) as broken:
        list(
            client.chat.completions.create(
                model=f"{provider}-fail-mid-stream", messages=HELLO, max_tokens=400, stream=True
            )
        )

    assert isinstance(raised[Failure.RATE_LIMITED], openai.RateLimitError)
    assert isinstance(raised[Failure.CONTEXT_LENGTH], openai.BadRequestError)
    assert raised[Failure.CONTEXT_LENGTH].code == "context_length_exceeded"
    assert isinstance(raised[Failure.SERVER], openai.InternalServerError)
    assert isinstance(raised[Failure.AUTHENTICATION], openai.InternalServerError)
    for error in (*raised.values(), broken.value):
        assert "played" not in str(error)
        assert str(played.port) not in str(error)
