"""The official OpenAI SDK in front of Gemini and Cohere: the same program, another model's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessage

from tests.support.clients import ask, records_of, sdk
from tests.support.format_server import FormatServer
from tests.support.provider_formats.speaking import COUNTS, PLAIN, SIGNATURE, vector
from tests.support.running_proxy import RunningProxy

_MODELS = {
    "gemini": {"chat": "gemini-2.5-flash", "newest": "gemini-3-pro", "embedding": "gemini-embedding-001"},
    "cohere": {"chat": "command-a-03-2025", "embedding": "embed-v4.0"},
}
_FAILURES = ("rate-limited", "context-length", "content-policy", "authentication", "overloaded", "mid-stream")
_BOTH = pytest.mark.parametrize("provider", ["gemini", "cohere"])
# What an SDK is given: its own types of requests are many, and not what is tested here.
_TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
        },
    },
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
]
_ASKED: Any = [{"role": "user", "content": "Is all well?"}]


@pytest.fixture(scope="module")
def far_end() -> Iterator[FormatServer]:
    with FormatServer() as played:
        yield played


@pytest.fixture(scope="module")
def proxy(far_end: FormatServer, short_folder: Path) -> Iterator[RunningProxy]:
    home = short_folder / "gemini-cohere"
    home.mkdir(parents=True)
    models = home / "models.yaml"
    models.write_text(json.dumps(_models_file(far_end)))  # JSON is YAML
    settings = {
        "MODELS_FILE": str(models),
        "RATE_LIMIT_PER_MINUTE": "100000",
        "RATE_LIMIT_BURST": "10000",
        "CIRCUIT_FAILURES": "0",
        "LLM_RETRIES": "0",
        **{f"PLAYED_{name.upper()}": far_end.key(name) for name in _MODELS},
    }
    with RunningProxy(home, settings) as running:
        yield running


def _models_file(far_end: FormatServer) -> dict[str, object]:
    """Each provider's models as `gemini-chat`, and one that fails in each way as `gemini-fails-overloaded`."""
    providers = {
        name: {"kind": name, "base_url": far_end.url(name), "api_keys": f"env:PLAYED_{name.upper()}"}
        for name in _MODELS
    }
    models = {
        f"{name}-{purpose}": {"routes": [{"provider": name, "model": model}]}
        for name, known in _MODELS.items()
        for purpose, model in [*known.items(), *((f"fails-{failure}", f"fail-{failure}") for failure in _FAILURES)]
    }
    return {"providers": providers, "models": models}


@pytest.fixture(autouse=True)
def _asked_as_documented(far_end: FormatServer) -> Iterator[None]:
    """What a test counts at the far end is its own, whichever test came before."""
    far_end.clear()
    yield
    assert [one for one in far_end.refused if "fail" not in one.path] == []


@pytest.fixture
def client(proxy: RunningProxy) -> Iterator[openai.OpenAI]:
    with sdk(proxy, proxy.shared_api_key) as made:
        yield made


@_BOTH
def test_a_completion_passes_through_the_whole_route(
    proxy: RunningProxy, far_end: FormatServer, client: openai.OpenAI, provider: str
) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model=f"{provider}-chat",
        messages=[{"role": "system", "content": "Be brief."}, *_ASKED],
        logit_bias={"5": 1},
        user="ann",
    )

    completion = answer.parse()
    assert completion.choices[0].message.content == PLAIN
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == f"{provider}-chat"
    assert completion.usage is not None
    assert completion.usage.total_tokens == COUNTS.total
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == COUNTS.cached
    assert answer.headers["x-slp-dropped-params"] == "user, logit_bias"
    kinds = [record["ty"] for record in records_of(proxy, answer.headers["x-request-id"])]
    assert kinds == ["llm.start", "llm.end"]
    assert len(far_end.asked(provider)) == 1


@_BOTH
def test_a_stream_arrives_with_its_usage(client: openai.OpenAI, provider: str) -> None:
    events = list(
        client.chat.completions.create(
            model=f"{provider}-chat",
            messages=_ASKED,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == PLAIN
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "stop"
    (usage,) = [event.usage for event in events if event.usage]
    assert usage.total_tokens == COUNTS.total


@_BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_heard(client: openai.OpenAI, provider: str, stream: bool) -> None:  # noqa: FBT001  a parameter of the matrix
    model = "gemini-newest" if provider == "gemini" else "cohere-chat"
    asked: Any = [{"role": "user", "content": "Weather and time in Paris?"}]
    message: ChatCompletionMessage
    if stream:
        with client.chat.completions.stream(model=model, messages=asked, tools=_TOOLS) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(model=model, messages=asked, tools=_TOOLS).choices[0].message
    calls: Any = message.tool_calls or []
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name} is fine"} for call in calls
    ]

    said: Any = message.model_dump(exclude_none=True, exclude={"parsed"})
    answer = client.chat.completions.create(model=model, messages=[*asked, said, *results], tools=_TOOLS)

    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("get_weather", {"town": "Paris"}),
        ("get_time", {}),
    ]
    assert answer.choices[0].message.content == "The tool said: get_weather is fine The tool said: get_time is fine"


@_BOTH
def test_answers_keep_to_a_schema_and_images_are_seen(client: openai.OpenAI, provider: str) -> None:
    schema: Any = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
    shaped = client.chat.completions.create(
        model=f"{provider}-chat",
        messages=_ASKED,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": schema}},
    )
    link: Any = {"url": "data:image/png;base64,iVBORw0KGgo="}
    seen = client.chat.completions.create(
        model=f"{provider}-chat",
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": link}]}],
    )

    assert json.loads(shaped.choices[0].message.content or "") == {"town": "Paris"}
    assert seen.choices[0].message.content == "I see image image/png of 8 bytes."


@_BOTH
@pytest.mark.parametrize(
    ("failure", "raised", "code"),
    [
        ("rate-limited", openai.RateLimitError, "upstream_rate_limited"),
        ("context-length", openai.BadRequestError, "context_length_exceeded"),
        ("authentication", openai.InternalServerError, "upstream_error"),
        ("overloaded", openai.InternalServerError, "upstream_error"),
    ],
)
def test_a_refusing_provider_raises_the_sdk_s_own_class(
    client: openai.OpenAI, provider: str, failure: str, raised: type[openai.APIStatusError], code: str
) -> None:
    for stream in (False, True):
        with pytest.raises(raised) as refused:
            client.chat.completions.create(model=f"{provider}-fails-{failure}", messages=_ASKED, stream=stream)

        assert refused.value.code == code
        assert "played" not in str(refused.value)


def test_a_prompt_that_gemini_blocks_and_its_limit_are_told(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as blocked:
        client.chat.completions.create(model="gemini-fails-content-policy", messages=_ASKED)
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model="gemini-fails-rate-limited", messages=_ASKED)

    assert blocked.value.code == "content_policy_violation"
    assert limited.value.response.headers["retry-after"] == "2"


@_BOTH
def test_a_stream_that_fails_in_its_midst_ends_in_an_error(client: openai.OpenAI, provider: str) -> None:
    said = ""
    stream = client.chat.completions.create(model=f"{provider}-fails-mid-stream", messages=_ASKED, stream=True)

    with pytest.raises(openai.APIError) as failed:  # noqa: PT012  the stream breaks while it is read
        for event in stream:
            said += event.choices[0].delta.content or ""

    assert said
    assert PLAIN.startswith(said)
    assert failed.value.code == "upstream_error"


def test_what_cohere_cannot_say_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="cohere-chat",
            messages=_ASKED,
            logprobs=True,
            top_logprobs=2,
        )

    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "top_logprobs")


@_BOTH
def test_the_responses_api_is_answered_too(client: openai.OpenAI, provider: str) -> None:
    plain = client.responses.create(model=f"{provider}-chat", input="Is all well?", store=False)
    with client.responses.stream(model=f"{provider}-chat", input="Is all well?", store=False) as events:
        streamed = events.get_final_response()

    for response in (plain, streamed):
        assert response.output_text == PLAIN
        assert response.usage is not None
        assert response.usage.total_tokens == COUNTS.total


@pytest.mark.parametrize("provider", _MODELS)
def test_texts_become_vectors_and_prompts_are_continued(client: openai.OpenAI, provider: str) -> None:
    # The SDK asks for base64 unasked, and makes numbers of it.
    unasked = client.embeddings.create(model=f"{provider}-embedding", input=["alpha", "beta"])
    numbers = client.embeddings.create(model=f"{provider}-embedding", input=["alpha", "beta"], encoding_format="float")
    whole = client.completions.create(model=f"{provider}-chat", prompt="Is all well?")
    stream = client.completions.create(model=f"{provider}-chat", prompt="Is all well?", stream=True)

    assert len(unasked.data) == 2
    for one, other in zip(unasked.data, numbers.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)
    assert whole.choices[0].text == "".join(choice.text for chunk in stream for choice in chunk.choices)
    assert whole.choices[0].text


def test_a_signature_of_gemini_s_comes_back_with_its_call(client: openai.OpenAI, far_end: FormatServer) -> None:
    """The Responses API's clients keep sealed thoughts, so that the model thinks on where it stopped."""
    tools: Any = [{"type": "function", "strict": False, **_TOOLS[0]["function"]}]
    asked: Any = [{"role": "user", "content": "Weather in Paris?"}]
    first = client.responses.create(model="gemini-newest", input=asked, tools=tools, store=False)
    (call,) = [item for item in first.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "fine"}
    said: Any = [*asked, *first.output, result]

    second = client.responses.create(model="gemini-newest", input=said, tools=tools, store=False)

    assert second.output_text == "The tool said: fine"
    assert SIGNATURE in far_end.asked("gemini")[-1].body.decode()


def test_anthropic_s_clients_keep_the_signature_in_a_sealed_thought(proxy: RunningProxy, far_end: FormatServer) -> None:
    tool = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"town": {"type": "string"}}}}
    asked: Any = {
        "model": "gemini-newest",
        "max_tokens": 100,
        "tools": [tool],
        "messages": [{"role": "user", "content": "Weather in Paris?"}],
    }
    first: Any = ask(proxy, "POST", "/v1/messages", key=proxy.shared_api_key, body=asked).json
    call = first["content"][-1]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "fine"}
    turns = [{"role": "assistant", "content": first["content"]}, {"role": "user", "content": [result]}]

    asked["messages"] += turns
    second: Any = ask(proxy, "POST", "/v1/messages", key=proxy.shared_api_key, body=asked).json

    assert [block["type"] for block in first["content"]] == ["redacted_thinking", "tool_use"]
    assert second["content"] == [{"type": "text", "text": "The tool said: fine"}]
    assert SIGNATURE in far_end.asked("gemini")[-1].body.decode()


def test_gemini_counts_tokens_for_anthropic_s_clients(proxy: RunningProxy) -> None:
    asked = {"model": "gemini-chat", "system": "Be brief.", "messages": [{"role": "user", "content": "Is all well?"}]}

    counted = ask(proxy, "POST", "/v1/messages/count_tokens", key=proxy.shared_api_key, body=asked)

    assert counted.json == {"input_tokens": COUNTS.prompt}


@_BOTH
def test_texts_become_vectors(client: openai.OpenAI, provider: str) -> None:
    texts = ["one", "two"]

    unasked = client.embeddings.create(model=f"{provider}-embedding", input=texts, dimensions=4)
    numbers = client.embeddings.create(
        model=f"{provider}-embedding", input=texts, dimensions=4, encoding_format="float"
    )

    for answer in (unasked, numbers):
        assert [entry.embedding for entry in answer.data] == [vector("one", 4), vector("two", 4)]
        assert answer.model == f"{provider}-embedding"


@_BOTH
def test_old_completions_are_answered_too(client: openai.OpenAI, provider: str) -> None:
    plain = client.completions.create(model=f"{provider}-chat", prompt="Is all well?")
    stream = client.completions.create(model=f"{provider}-chat", prompt="Is all well?", stream=True)

    assert plain.choices[0].text == PLAIN
    assert "".join(event.choices[0].text for event in stream if event.choices) == PLAIN
