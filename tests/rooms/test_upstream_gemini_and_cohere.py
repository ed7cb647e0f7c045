"""Gemini and Cohere through the upstream room, played by a server that holds requests to their documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import FailureKind, UpstreamFailed, UpstreamRefused
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion, StreamEvent, Target, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Conversation,
    DeltaKind,
    EmbeddingRequest,
    Embeddings,
    Finish,
    Message,
    Neutral,
    OutputFormat,
    Reasoning,
    Role,
    Text,
    TokenCount,
    TokenCountRequest,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.conversations import CLOCK, WEATHER, assistant, called_two_tools, system, talk, user
from tests.support.format_server import FormatServer
from tests.support.provider_formats.playing import Failure
from tests.support.provider_formats.speaking import COUNTS, PLAIN, THOUGHT, vector

_MODELS = {"gemini": "gemini-2.5-flash", "cohere": "command-a-03-2025"}
_BOTH = pytest.mark.parametrize("provider", ["gemini", "cohere"])


@pytest.fixture(scope="module")
def server() -> Iterator[FormatServer]:
    with FormatServer() as played:
        yield played


@pytest.fixture
def far_end(server: FormatServer) -> Iterator[FormatServer]:
    yield server
    refused = [one for one in server.refused if "fail" not in one.path]
    server.clear()
    assert refused == []


@pytest.fixture
def providers(far_end: FormatServer) -> Iterator[Providers]:
    settings = UpstreamSettings.model_validate(
        {"first_byte_timeout_s": 20.0, "idle_timeout_s": 20.0, "total_timeout_s": 40.0}
    )
    definitions = [
        ProviderDefinition(name, name, far_end.url(name), (SecretStr(far_end.key(name)),)) for name in _MODELS
    ]
    known = Providers(settings, definitions)
    yield known
    known.close()


def asked(neutral: Neutral, *, stream: bool = False) -> ChatRequest:
    """What a door makes of a request in OpenAI's format that reads as `neutral`."""
    client = {
        Conversation: WireFormat.OPENAI_CHAT,
        EmbeddingRequest: WireFormat.OPENAI_EMBEDDINGS,
        TokenCountRequest: WireFormat.ANTHROPIC_COUNT_TOKENS,
    }[type(neutral)]
    read: Callable[[object], Neutral] = lambda _payload: neutral  # noqa: E731
    return ChatRequest("any", stream, {}, client, read)


def complete(providers: Providers, provider: str, neutral: Neutral, model: str | None = None) -> Completion:
    target = Target(provider, model or _MODELS[provider])
    return providers.complete(providers.write(target, asked(neutral)), Cancellation())


def stream(
    providers: Providers, provider: str, conversation: Conversation, model: str | None = None
) -> list[StreamEvent]:
    target = Target(provider, model or _MODELS[provider])
    request = providers.write(target, asked(conversation, stream=True))
    running = providers.stream(request, Cancellation())
    try:
        return list(running)
    finally:
        running.close()


def answer_of(completion: Completion) -> Answer:
    assert isinstance(completion.answer, Answer)
    return completion.answer


def streamed_parts(events: list[StreamEvent]) -> tuple[str, str, dict[int, list[str]], Finish | None]:
    """Text, thought, calls (id, name, arguments) and the end, put together from their steps."""
    text, thought, finish = "", "", None
    calls: dict[int, list[str]] = {}
    for delta in [delta for event in events for delta in event.deltas]:
        match delta.kind:
            case DeltaKind.TEXT:
                text += delta.text
            case DeltaKind.REASONING:
                thought += delta.text
            case DeltaKind.TOOL_CALL:
                calls[delta.call] = [delta.id or "", delta.name or "", ""]
            case DeltaKind.TOOL_ARGUMENTS:
                calls[delta.call][2] += delta.text
            case DeltaKind.FINISH:
                finish = delta.finish
            case _:
                pass
    return text, thought, calls, finish


@_BOTH
def test_a_conversation_is_answered(providers: Providers, provider: str) -> None:
    said = talk(system("Be brief."), user("How are you?"), assistant("Well."), user("And the weather?"))

    completion = complete(providers, provider, said)

    assert completion.text == PLAIN
    assert answer_of(completion).choices[0].finish is Finish.STOP
    assert completion.usage[:4] == (COUNTS.prompt, COUNTS.said, COUNTS.total, COUNTS.cached)


@_BOTH
def test_a_stream_says_what_the_plain_answer_says(providers: Providers, provider: str) -> None:
    events = stream(providers, provider, talk(stream=True))

    text, _, _, finish = streamed_parts(events)
    assert text == PLAIN == "".join(event.text for event in events)
    assert finish is Finish.STOP
    (usage,) = [event.usage for event in events if event.usage is not None]
    assert usage[:4] == (COUNTS.prompt, COUNTS.said, COUNTS.total, COUNTS.cached)


@_BOTH
def test_tools_are_called_and_their_results_are_heard(providers: Providers, provider: str) -> None:
    question = user("Weather and time in Paris?")
    tools = (WEATHER, CLOCK)

    (choice,) = answer_of(complete(providers, provider, talk(question, tools=tools))).choices
    calls = [part for part in choice.parts if isinstance(part, ToolCall)]
    results = tuple(ToolResult(call.id, (Text(f"{call.name} is fine"),)) for call in calls)
    turns = (question, Message(Role.ASSISTANT, choice.parts), Message(Role.TOOL, results))
    completion = complete(providers, provider, talk(*turns, tools=tools))

    assert [(call.name, call.arguments) for call in calls] == [("get_weather", '{"town":"Paris"}'), ("get_time", "{}")]
    assert choice.finish is Finish.TOOL_CALLS
    assert completion.text == "The tool said: get_weather is fine The tool said: get_time is fine"


@_BOTH
def test_calls_are_streamed(providers: Providers, provider: str) -> None:
    events = stream(providers, provider, talk(tools=(WEATHER, CLOCK), stream=True))

    _, _, calls, finish = streamed_parts(events)
    assert [call[1:] for call in calls.values()] == [["get_weather", '{"town":"Paris"}'], ["get_time", "{}"]]
    assert all(call[0] for call in calls.values())
    assert finish is Finish.TOOL_CALLS


@_BOTH
def test_a_tool_can_be_forced_and_tools_forbidden(providers: Providers, provider: str) -> None:
    tools = (WEATHER, CLOCK)

    forced = complete(providers, provider, talk(tools=tools, tool_choice=ToolChoice("named", "get_time")))
    silent = complete(providers, provider, talk(tools=tools, tool_choice=ToolChoice("none")))

    assert [part.name for part in answer_of(forced).choices[0].parts if isinstance(part, ToolCall)] == ["get_time"]
    assert silent.text == PLAIN


@_BOTH
def test_answers_keep_to_a_schema(providers: Providers, provider: str) -> None:
    schema: JsonObject = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}

    shaped = complete(providers, provider, talk(output=OutputFormat("schema", schema, "place")))
    loose = complete(providers, provider, talk(output=OutputFormat("json")))

    assert shaped.text == '{"town": "Paris"}'
    assert loose.text == f'{{"answer": "{PLAIN}"}}'


@_BOTH
def test_images_are_seen_and_failed_tools_are_told(providers: Providers, provider: str) -> None:
    conversation = called_two_tools()

    text = complete(providers, provider, conversation).text

    assert text == "The tool said: 22 degrees The tool said: no clock there I see image image/png of 8 bytes."


@_BOTH
def test_thought_is_kept_apart(providers: Providers, provider: str) -> None:
    model = {"gemini": "gemini-2.5-flash-thinking", "cohere": "command-a-reasoning-thinking"}[provider]
    conversation = talk(reasoning_tokens=100)

    plain = complete(providers, provider, conversation, model)
    text, thought, _, _ = streamed_parts(stream(providers, provider, talk(reasoning_tokens=100, stream=True), model))

    assert answer_of(plain).choices[0].parts == (Reasoning(THOUGHT), Text(PLAIN))
    assert (text, thought) == (PLAIN, THOUGHT)


def test_later_geminis_get_their_signatures_back_and_a_stand_in_for_calls_of_others(providers: Providers) -> None:
    question, tools = user("Weather in Paris?"), (WEATHER,)
    (choice,) = answer_of(complete(providers, "gemini", talk(question, tools=tools), "gemini-3-pro")).choices
    (call,) = [part for part in choice.parts if isinstance(part, ToolCall)]
    result = Message(Role.TOOL, (ToolResult(call.id, (Text("fine"),)),))

    signed = talk(question, Message(Role.ASSISTANT, choice.parts), result, tools=tools)
    unsigned = talk(question, Message(Role.ASSISTANT, (call,)), result, tools=tools)

    for conversation in (signed, unsigned):
        assert complete(providers, "gemini", conversation, "gemini-3-pro").text == "The tool said: fine"


def test_gemini_gives_several_choices(providers: Providers) -> None:
    completion = complete(providers, "gemini", talk(n=2))

    assert [choice.parts for choice in answer_of(completion).choices] == [(Text(PLAIN),), (Text(PLAIN),)]


@_BOTH
def test_stop_sequences_and_the_length_end_an_answer(providers: Providers, provider: str) -> None:
    cut = answer_of(complete(providers, provider, talk(max_tokens=2))).choices[0]
    stopped = complete(providers, provider, talk(stop=(",",)))

    assert (cut.parts, cut.finish) == ((Text("All is"),), Finish.LENGTH)
    assert stopped.text == "All is well"


@_BOTH
def test_texts_become_vectors(providers: Providers, provider: str) -> None:
    model = {"gemini": "gemini-embedding-001", "cohere": "embed-v4.0"}[provider]

    completion = complete(providers, provider, EmbeddingRequest(("one", "two"), dimensions=4), model)

    assert completion.answer == Embeddings((tuple(vector("one", 4)), tuple(vector("two", 4))))


def test_gemini_counts_tokens_and_what_cohere_cannot_is_estimated(providers: Providers) -> None:
    request = TokenCountRequest(called_two_tools())

    assert complete(providers, "gemini", request).answer == TokenCount(COUNTS.prompt)
    assert providers.can_answer(Target("cohere", "command-a"), asked(request))
    estimated = complete(providers, "cohere", request).answer
    assert isinstance(estimated, TokenCount)
    assert estimated.estimated


@_BOTH
def test_models_are_listed(providers: Providers, provider: str) -> None:
    assert _MODELS[provider] in providers.list_models(provider, Cancellation())


_KINDS = [
    (Failure.AUTHENTICATION, FailureKind.CREDENTIALS),
    (Failure.PERMISSION, FailureKind.CREDENTIALS),
    (Failure.RATE_LIMITED, FailureKind.RATE_LIMITED),
    (Failure.CONTEXT_LENGTH, FailureKind.CONTEXT_LENGTH),
    (Failure.NOT_FOUND, FailureKind.REJECTED),
    (Failure.OVERLOADED, FailureKind.OVERLOADED),
    (Failure.SERVER, FailureKind.OVERLOADED),
]


@_BOTH
@pytest.mark.parametrize(("failure", "kind"), _KINDS)
def test_refusals_are_told_by_their_kind(
    providers: Providers, provider: str, failure: Failure, kind: FailureKind
) -> None:
    model = f"fail-{failure}"

    with pytest.raises(UpstreamFailed) as plain:
        complete(providers, provider, talk(), model)
    with pytest.raises(UpstreamFailed) as streamed:
        stream(providers, provider, talk(stream=True), model)

    assert plain.value.failure is streamed.value.failure is kind


def test_gemini_says_how_long_its_limit_lasts_and_that_a_prompt_is_blocked(providers: Providers) -> None:
    with pytest.raises(UpstreamRefused) as limited:
        complete(providers, "gemini", talk(), "fail-rate-limited")
    with pytest.raises(UpstreamRefused) as blocked:
        stream(providers, "gemini", talk(stream=True), "fail-content-policy")

    assert limited.value.retry_after_s == 2
    assert (blocked.value.status, blocked.value.failure) == (400, FailureKind.CONTENT_POLICY)


@_BOTH
def test_an_error_in_mid_stream_is_told_after_what_came_before(providers: Providers, provider: str) -> None:
    request = providers.write(Target(provider, "fail-mid-stream"), asked(talk(stream=True), stream=True))
    running = providers.stream(request, Cancellation())
    said = ""

    with pytest.raises(UpstreamFailed) as failed:  # noqa: PT012  the stream breaks while it is read
        for event in running:
            said += event.text

    assert said
    assert PLAIN.startswith(said)
    assert failed.value.failure is FailureKind.OVERLOADED


@_BOTH
def test_a_key_is_sent_where_the_provider_wants_it_and_nowhere_else(
    providers: Providers, far_end: FormatServer, provider: str
) -> None:
    complete(providers, provider, talk())

    (request,) = far_end.asked(provider)
    carrying = [name for name, value in request.headers.items() if far_end.key(provider) in value]
    assert carrying == [{"gemini": "x-goog-api-key", "cohere": "authorization"}[provider]]
    assert far_end.key(provider) not in request.path


def test_paths_of_the_operator_s_own_are_asked_for_streams_too(far_end: FormatServer) -> None:
    usual = "/models/{model}:generateContent"
    before, base = "/v1beta", far_end.origin("gemini")
    keys = (SecretStr(far_end.key("gemini")),)
    definitions = [
        ProviderDefinition("fewer", "gemini", base + before, keys, formats={WireFormat.GEMINI_GENERATE: usual}),
        ProviderDefinition("behind", "gemini", base, keys, formats={WireFormat.GEMINI_GENERATE: before + usual}),
    ]
    known = Providers(UpstreamSettings(), definitions)

    for name in ("fewer", "behind"):
        events = stream(known, name, talk(stream=True), "gemini-2.5-flash")
        assert "".join(event.text for event in events) == PLAIN

    known.close()


def test_usage_counts_thought_among_what_was_said(providers: Providers) -> None:
    completion = complete(providers, "gemini", talk(reasoning_tokens=100), "gemini-2.5-flash-thinking")

    assert completion.usage == Usage(COUNTS.prompt, COUNTS.said, COUNTS.total, COUNTS.cached, None, COUNTS.thought)
