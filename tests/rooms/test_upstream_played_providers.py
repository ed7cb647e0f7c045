"""What the upstream room writes for each kind of provider, held to that provider's documentation, and what it reads back.

The provider is played by `FormatServer`, strict about every field. The neutral requests are the same for all of them, and so
are the answers that are expected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import FailureKind, ProxyError, UpstreamFailed, UpstreamRefused
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.upstream.formats import FORMATS
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion, Target, UpstreamRequest
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Conversation,
    DeltaKind,
    File,
    Finish,
    Image,
    Message,
    Neutral,
    OutputFormat,
    Part,
    Reasoning,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from secure_llm_proxy.vocabulary.providers import Capability, ProviderDefinition, provider_kinds
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.format_server import FormatServer
from tests.support.provider_formats.playing import Failure
from tests.support.provider_formats.speaking import COUNTS, PLAIN, THOUGHT

MODELS = {
    "openai": "gpt-6",
    "anthropic": "claude-opus-5-5",
    "gemini": "gemini-3-pro",
    "cohere": "command-a-03-2025",
    "mistral": "mistral-large-latest",
    "groq": "llama-3.3-70b-versatile",
    "openrouter": "openai/gpt-6",
    "together": "meta-llama/Llama-4-Maverick",
    "azure": "my-gpt-deployment",
    "azure_deployments": "my-gpt-deployment",
}
_OPENAI_LIKE = sorted(name for name in MODELS if WireFormat.OPENAI_CHAT in provider_kinds()[name].formats)
# Kinds whose own format is written from the neutral model.
TRANSLATED = ["anthropic", "gemini", "cohere", *_OPENAI_LIKE]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA: JsonObject = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", "The weather now", SCHEMA), Tool("forecast", "The weather to come", SCHEMA))
HELLO = Message(Role.USER, (Text("How are things?"),))


@pytest.fixture(scope="module")
def server() -> Iterator[FormatServer]:
    with FormatServer() as played:
        yield played


@pytest.fixture(scope="module")
def providers(server: FormatServer) -> Iterator[Providers]:
    definitions = []
    for name, kind in provider_kinds().items():
        if name not in MODELS:
            continue
        played = "azure" if name == "azure_deployments" else name
        url = server.origin(played) if kind.base_url is None else server.url(played)
        query = "api-version=2024-10-21" if name == "azure_deployments" else ""
        definitions.append(ProviderDefinition(name, name, url, (SecretStr(server.key(played)),), query=query))
    made = Providers(UpstreamSettings(), definitions)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _forgetful(server: FormatServer) -> None:
    server.clear()


def put(providers: Providers, kind: str, neutral: Neutral, *, model: str | None = None) -> UpstreamRequest:
    """The request as it leaves, written from the neutral model: the client's format is one that the provider lacks."""
    other = WireFormat.OPENAI_CHAT if kind not in _OPENAI_LIKE else WireFormat.ANTHROPIC_MESSAGES
    streamed = isinstance(neutral, Conversation) and neutral.stream
    request = ChatRequest(model, streamed, {}, other, read=lambda _: neutral)
    return providers.write(Target(kind, model or MODELS[kind]), request)


def complete(providers: Providers, kind: str, conversation: Conversation, *, model: str | None = None) -> Completion:
    return providers.complete(put(providers, kind, conversation, model=model), Cancellation())


def parts_of(completion: Completion) -> tuple[Part, ...]:
    assert isinstance(completion.answer, Answer)
    return completion.answer.choices[0].parts


def finish_of(completion: Completion) -> Finish | None:
    assert isinstance(completion.answer, Answer)
    return completion.answer.choices[0].finish


def text_of(completion: Completion) -> str:
    return "".join(part.text for part in parts_of(completion) if isinstance(part, Text))


def calls_of(completion: Completion) -> list[tuple[str, object]]:
    return [(part.name, json.loads(part.arguments)) for part in parts_of(completion) if isinstance(part, ToolCall)]


@pytest.mark.parametrize("kind", TRANSLATED)
def test_a_plain_answer_with_its_usage(server: FormatServer, providers: Providers, kind: str) -> None:
    completion = complete(providers, kind, Conversation((HELLO,)))

    assert server.refused == []
    assert text_of(completion) == PLAIN
    assert finish_of(completion) is Finish.STOP
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (
        COUNTS.prompt,
        COUNTS.said,
        COUNTS.cached,
    )


@pytest.mark.parametrize("kind", TRANSLATED)
def test_roles_and_turns(server: FormatServer, providers: Providers, kind: str) -> None:
    messages = (
        Message(Role.SYSTEM, (Text("Be kind."),)),
        Message(Role.DEVELOPER, (Text("Be brief."),)),
        HELLO,
        Message(Role.ASSISTANT, (Text("Fine."),)),
        Message(Role.USER, (Text("Really?"),)),
        Message(Role.USER, (Text("And the weather?"),)),
    )

    completion = complete(providers, kind, Conversation(messages))

    assert server.refused == []
    assert text_of(completion) == PLAIN


@pytest.mark.parametrize("kind", TRANSLATED)
def test_what_tunes_an_answer_is_said_or_dropped(server: FormatServer, providers: Providers, kind: str) -> None:
    conversation = Conversation(
        (HELLO,),
        max_tokens=40,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        user="somebody",
        presence_penalty=0.25,
        further={"metadata": {"a": "b"}, "store": False, "service_tier": "auto", "surplus": 1},
    )

    completion = complete(providers, kind, conversation)

    assert server.refused == []
    assert text_of(completion) == PLAIN


@pytest.mark.parametrize("kind", TRANSLATED)
def test_a_bound_and_a_stop_sequence(server: FormatServer, providers: Providers, kind: str) -> None:
    short = complete(providers, kind, Conversation((HELLO,), max_tokens=3))
    stopped = complete(providers, kind, Conversation((HELLO,), stop=(",",)))

    assert server.refused == []
    assert (text_of(short), finish_of(short)) == ("All is well,", Finish.LENGTH)
    assert text_of(stopped) == "All is well"
    assert finish_of(stopped) in {Finish.STOP, Finish.STOP_SEQUENCE}


@pytest.mark.parametrize("kind", TRANSLATED)
def test_tools_in_parallel_and_one_alone(server: FormatServer, providers: Providers, kind: str) -> None:
    both = complete(providers, kind, Conversation((HELLO,), TOOLS, ToolChoice("required")))
    forced = complete(providers, kind, Conversation((HELLO,), TOOLS, ToolChoice("named", name="forecast")))
    silent = complete(providers, kind, Conversation((HELLO,), TOOLS, ToolChoice("none")))

    assert server.refused == []
    arguments = {"city": "Paris", "days": 7}
    assert calls_of(both) == [("weather", arguments), ("forecast", arguments)]
    assert finish_of(both) is Finish.TOOL_CALLS
    assert calls_of(forced) == [("forecast", arguments)]
    assert text_of(silent) == PLAIN


@pytest.mark.parametrize("kind", TRANSLATED)
def test_results_of_tools(server: FormatServer, providers: Providers, kind: str) -> None:
    asked = Conversation((HELLO,), TOOLS)
    called = parts_of(complete(providers, kind, asked))
    results = tuple(
        ToolResult(part.id, (Text(f"sun for {part.name}"),), name=part.name)
        for part in called
        if isinstance(part, ToolCall)
    )
    messages = (HELLO, Message(Role.ASSISTANT, called), *(Message(Role.TOOL, (result,)) for result in results))

    completion = complete(providers, kind, Conversation(messages, TOOLS))

    assert server.refused == []
    assert text_of(completion) == "The tool said: sun for weather The tool said: sun for forecast"


@pytest.mark.parametrize("kind", TRANSLATED)
def test_calls_of_another_provider_and_several_results_in_one_message(
    server: FormatServer, providers: Providers, kind: str
) -> None:
    calls = (ToolCall("call_Abc123", "weather", '{"city": "Rome", "days": 2}'), ToolCall("toolu_01X", "forecast", "{}"))
    results = (
        ToolResult("call_Abc123", (Text("hot"),), name="weather"),
        ToolResult("toolu_01X", (Text("no forecast"),), is_error=True, name="forecast"),
    )
    messages = (
        HELLO,
        Message(Role.ASSISTANT, (Text("I look."), *calls)),
        Message(Role.TOOL, results),
    )

    completion = complete(providers, kind, Conversation(messages, TOOLS))

    assert server.refused == []
    assert text_of(completion) == "The tool said: hot The tool said: no forecast"


@pytest.mark.parametrize("kind", TRANSLATED)
def test_a_schema_bounds_the_answer(server: FormatServer, providers: Providers, kind: str) -> None:
    closed = complete(
        providers, kind, Conversation((HELLO,), output=OutputFormat("schema", SCHEMA, "weather", strict=True))
    )

    assert server.refused == []
    assert json.loads(text_of(closed)) == {"city": "Paris", "days": 7}


@pytest.mark.parametrize("kind", TRANSLATED)
def test_images(server: FormatServer, providers: Providers, kind: str) -> None:
    picture = Message(Role.USER, (Text("What is this?"), Image(data=PIXEL, media_type="image/png")))

    completion = complete(providers, kind, Conversation((picture,)))

    assert server.refused == []
    assert text_of(completion) == "I see image image/png of 70 bytes."


@pytest.mark.parametrize("kind", [name for name in TRANSLATED if Capability.FILES not in provider_kinds()[name].lacks])
def test_files(server: FormatServer, providers: Providers, kind: str) -> None:
    document = File(data="JVBERi0xLjQK", media_type="application/pdf", name="a.pdf")

    completion = complete(providers, kind, Conversation((Message(Role.USER, (Text("Read."), document)),)))

    assert server.refused == []
    assert text_of(completion) == "I see file application/pdf of 9 bytes."


@pytest.mark.parametrize("kind", TRANSLATED)
def test_a_stream_adds_up_to_the_same(server: FormatServer, providers: Providers, kind: str) -> None:
    text, usage, finish = "", None, None
    stream = providers.stream(put(providers, kind, Conversation((HELLO,), stream=True)), Cancellation())
    for event in stream:
        usage = event.usage or usage
        for delta in event.deltas:
            text += delta.text if delta.kind is DeltaKind.TEXT else ""
            finish = delta.finish or finish

    assert server.refused == []
    assert (text, finish) == (PLAIN, Finish.STOP)
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (COUNTS.prompt, COUNTS.said)


@pytest.mark.parametrize("kind", TRANSLATED)
def test_streamed_calls_add_up_to_the_same(server: FormatServer, providers: Providers, kind: str) -> None:
    calls: list[list[str]] = []
    for event in providers.stream(put(providers, kind, Conversation((HELLO,), TOOLS, stream=True)), Cancellation()):
        for delta in event.deltas:
            if delta.kind is DeltaKind.TOOL_CALL:
                assert delta.call == len(calls)
                calls.append([delta.name or "", ""])
            elif delta.kind is DeltaKind.TOOL_ARGUMENTS:
                calls[delta.call][1] += delta.text

    assert server.refused == []
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        ("weather", {"city": "Paris", "days": 7}),
        ("forecast", {"city": "Paris", "days": 7}),
    ]


@pytest.mark.parametrize("kind", TRANSLATED)
def test_thoughts_are_asked_for_and_come_back(server: FormatServer, providers: Providers, kind: str) -> None:
    conversation = Conversation((HELLO,), max_tokens=8_000, reasoning_effort="high")

    completion = complete(providers, kind, conversation, model=f"{MODELS[kind]}-thinking")

    assert server.refused == []
    assert text_of(completion) == PLAIN
    thoughts = [part.text for part in parts_of(completion) if isinstance(part, Reasoning)]
    assert thoughts in ([], [THOUGHT])
    if kind != "cohere":
        assert completion.usage.reasoning_tokens == COUNTS.thought


def refused_request(providers: Providers, kind: str) -> UpstreamRequest:
    if kind not in _OPENAI_LIKE:
        return put(providers, kind, Conversation((HELLO,)))
    payload: JsonObject = {"model": "x", "messages": [{"role": "user", "content": "Hello"}]}
    return providers.write(Target(kind, MODELS[kind]), ChatRequest("x", stream=False, payload=payload))


FAILURES = {
    Failure.AUTHENTICATION: FailureKind.CREDENTIALS,
    Failure.RATE_LIMITED: FailureKind.RATE_LIMITED,
    Failure.CONTEXT_LENGTH: FailureKind.CONTEXT_LENGTH,
    Failure.OVERLOADED: FailureKind.OVERLOADED,
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("kind", TRANSLATED)
def test_documented_refusals_are_told_apart(
    server: FormatServer, providers: Providers, kind: str, failure: Failure
) -> None:
    request = refused_request(providers, kind)
    server.fail(failure)

    with pytest.raises(ProxyError) as caught:
        providers.complete(request, Cancellation())

    assert isinstance(caught.value, UpstreamFailed | UpstreamRefused)
    assert caught.value.failure is FAILURES[failure]
    assert server.origin("openai").removeprefix("http://").partition("/")[0] not in caught.value.public


@pytest.mark.parametrize("kind", ["openai", "azure", "azure_deployments", "openrouter", "groq", "anthropic", "gemini"])
def test_a_breach_of_the_providers_policy_is_a_bad_request_everywhere(
    server: FormatServer, providers: Providers, kind: str
) -> None:
    """Cohere, Mistral and Together AI document no way to tell it."""
    request = refused_request(providers, kind)
    server.fail(Failure.CONTENT_POLICY)

    with pytest.raises(UpstreamRefused) as caught:
        providers.complete(request, Cancellation())

    assert caught.value.failure is FailureKind.CONTENT_POLICY
    assert caught.value.status == 400


@pytest.mark.parametrize("kind", TRANSLATED)
def test_a_stream_that_ends_in_an_error_raises(server: FormatServer, providers: Providers, kind: str) -> None:
    request = put(providers, kind, Conversation((HELLO,), stream=True), model="fail-mid-stream")

    with pytest.raises(UpstreamFailed):
        list(providers.stream(request, Cancellation()))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", _OPENAI_LIKE)
def test_a_client_of_openai_s_format_may_say_what_it_always_says(
    server: FormatServer,
    providers: Providers,
    kind: str,
    streamed: bool,  # noqa: FBT001 - a parameter of the matrix
) -> None:
    """The same format on both sides: only what this kind is known not to take is renamed or dropped."""
    payload: JsonObject = {
        "model": "ours",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ],
        "max_completion_tokens": 40,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["\n\n"],
        "user": "somebody",
        "metadata": {"a": "b"},
        "logit_bias": {"50256": -100},
        "presence_penalty": 0.25,
        "frequency_penalty": 0.25,
        "service_tier": "auto",
        "store": False,
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "description": "x"}}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        **({"stream": True, "stream_options": {"include_usage": True}} if streamed else {}),
    }
    request = providers.write(Target(kind, MODELS[kind]), ChatRequest("ours", streamed, payload))

    if streamed:
        usage = [event.usage for event in providers.stream(request, Cancellation()) if event.usage]
        assert usage[-1].total_tokens == COUNTS.total
    else:
        assert providers.complete(request, Cancellation()).usage.total_tokens == COUNTS.total
    assert server.refused == []


def test_every_format_of_the_room_is_spoken_by_a_kind() -> None:
    spoken = {wire_format for kind in provider_kinds().values() for wire_format in kind.formats}

    assert set(FORMATS) <= spoken
