"""Requests of Anthropic's Messages API in neutral form."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.upstream.formats.anthropic_request import write_conversation
from secure_llm_proxy.vocabulary.conversation import (
    Conversation,
    File,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Role,
    Text,
    TokenCountRequest,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    texts,
)
from secure_llm_proxy.vocabulary.providers import Capability
from secure_llm_proxy.vocabulary.text_fields import Direction, table_of, texts_of
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.anthropic.conversation import read_conversation, read_token_count
from secure_llm_proxy.web.anthropic.wire import needs_of, read_messages, read_prompt_to_count
from secure_llm_proxy.web.openai.chat_request import read_conversation as read_chat
from tests.support.provider_formats.anthropic import CREATE_2023
from tests.support.provider_formats.playing import misfit_of

_CACHE: JsonObject = {"cache_control": {"type": "ephemeral"}}
_THREE: list[JsonValue] = [{"role": "user", "content": "x"}] * 3
_WEATHER: JsonObject = {"name": "weather", "description": "Tells it.", "input_schema": {"type": "object"}}


def _asked(*messages: JsonValue, **parameters: JsonValue) -> JsonObject:
    given: list[JsonValue] = [*messages] or [{"role": "user", "content": "Hi"}]
    return {"model": "small", "max_tokens": 100, "messages": given, **parameters}


def _user(*blocks: JsonValue) -> JsonObject:
    return {"role": "user", "content": [*blocks]}


def _read(*messages: JsonValue, **parameters: JsonValue) -> Conversation:
    payload = _asked(*messages, **parameters)
    assert misfit_of(CREATE_2023, payload) is None, "the test asks for nothing that Anthropic would refuse"
    return read_conversation(payload)


def _parts(*blocks: JsonValue) -> tuple[Part, ...]:
    (message,) = _read(_user(*blocks)).messages
    return message.parts


def _refused(payload: JsonObject) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        read_conversation(payload)
    return refused.value


def test_every_parameter_has_its_neutral_field() -> None:
    conversation = _read(
        {"role": "user", "content": "Hi"},
        system="Be brief.",
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        stop_sequences=["END"],
        stream=True,
        thinking={"type": "enabled", "budget_tokens": 2048},
        metadata={"user_id": "u-1"},
        tools=[_WEATHER, {**_WEATHER, "name": "now", "type": "custom", "strict": True}],
        tool_choice={"type": "tool", "name": "now", "disable_parallel_tool_use": True},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    )

    assert conversation == Conversation(
        messages=(Message(Role.SYSTEM, (Text("Be brief."),)), Message(Role.USER, (Text("Hi"),))),
        tools=(
            Tool("weather", "Tells it.", {"type": "object"}),
            Tool("now", "Tells it.", {"type": "object"}, strict=True),
        ),
        tool_choice=ToolChoice("named", "now", parallel=False),
        output=OutputFormat("schema", {"type": "object"}, name="answer", strict=True),
        max_tokens=100,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        stop=("END",),
        reasoning_effort="low",
        reasoning_tokens=2048,
        user="u-1",
        stream=True,
    )


def test_a_conversation_with_tools_keeps_its_order() -> None:
    conversation = _read(
        {"role": "user", "content": "Where is it warmer?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "thinking", "thinking": "another's", "signature": ""},
                {"type": "redacted_thinking", "data": "c2VhbGVk"},
                {"type": "text", "text": "I'll look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}},
            ],
        },
        _user(
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "4°", "is_error": False},
            {"type": "text", "text": "And?"},
        ),
        {"role": "system", "content": [{"type": "text", "text": "Answer now."}]},
        {"role": "assistant", "content": "In"},
    )

    assert conversation.messages == (
        Message(Role.USER, (Text("Where is it warmer?"),)),
        Message(
            Role.ASSISTANT,
            (
                Reasoning("hm", signature="c2ln"),
                Reasoning("another's"),
                Reasoning("", redacted="c2VhbGVk"),
                Text("I'll look."),
                ToolCall("toolu_1", "weather", '{"city":"Oslo"}'),
            ),
        ),
        Message(Role.TOOL, (ToolResult("toolu_1", (Text("4°"),), name="weather"),)),
        Message(Role.USER, (Text("And?"),)),
        Message(Role.SYSTEM, (Text("Answer now."),)),
        Message(Role.ASSISTANT, (Text("In"),)),
    )


def test_a_result_may_be_an_error_and_hold_more_than_text() -> None:
    (message,) = _read(
        _user(
            {"type": "tool_result", "tool_use_id": "a", "is_error": True},
            {
                "type": "tool_result",
                "tool_use_id": "b",
                "content": [
                    {"type": "text", "text": "See"},
                    {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
                ],
            },
        )
    ).messages

    assert message.parts == (
        ToolResult("a", (), is_error=True),
        ToolResult("b", (Text("See"), Image(url="https://a.example/b.png"))),
    )


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}},
            (Image(data="QQ==", media_type="image/png"),),
        ),
        (
            {
                "type": "document",
                "title": "notes",
                "context": "Of last year.",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "QQ=="},
            },
            (Text("Of last year."), File(data="QQ==", media_type="application/pdf", name="notes")),
        ),
        (
            {"type": "document", "source": {"type": "url", "url": "https://a.example/b.pdf"}},
            (File(url="https://a.example/b.pdf"),),
        ),
        (
            {
                "type": "document",
                "title": "notes",
                "context": "Of last year.",
                "source": {"type": "text", "media_type": "text/plain", "data": "It rained."},
            },
            (Text("notes\n\nOf last year.\n\nIt rained."),),
        ),
        (
            {
                "type": "document",
                "title": "notes",
                "source": {"type": "content", "content": [{"type": "text", "text": "It rained."}]},
            },
            (Text("notes"), Text("It rained.")),
        ),
        (
            {"type": "document", "source": {"type": "content", "content": "It rained."}},
            (Text("It rained."),),
        ),
        (
            {
                "type": "search_result",
                "title": "Weather",
                "source": "https://a.example",
                "content": [{"type": "text", "text": "It rained."}],
                "citations": {"enabled": False},
            },
            (Text("Weather\nhttps://a.example"), Text("It rained.")),
        ),
    ],
)
def test_what_is_shown_to_the_model_is_shown_to_others(block: JsonObject, parts: tuple[Part, ...]) -> None:
    assert _parts(block) == parts


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, ToolChoice("auto")),
        ({"type": "auto", "disable_parallel_tool_use": False}, ToolChoice("auto")),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required", parallel=False)),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "tool", "name": "weather"}, ToolChoice("named", "weather")),
    ],
)
def test_the_choice_of_tools_has_its_neutral_words(choice: JsonObject, expected: ToolChoice) -> None:
    assert _read(tools=[_WEATHER], tool_choice=choice).tool_choice == expected


@pytest.mark.parametrize(
    ("effort", "neutral"), [("low", "low"), ("medium", "medium"), ("high", None), ("xhigh", "xhigh"), ("max", "xhigh")]
)
def test_effort_has_the_others_words_and_the_usual_one_says_nothing(effort: str, neutral: str | None) -> None:
    assert _read(output_config={"effort": effort}).reasoning_effort == neutral


def test_what_a_coding_agent_sends_is_understood_and_its_cache_marks_are_told_as_left_out() -> None:
    conversation = read_conversation(
        _asked(
            _user({"type": "text", "text": "Look.", **_CACHE}),
            {"role": "system", "content": [{"type": "text", "text": "A reminder.", **_CACHE}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "weather", "input": {}, **_CACHE}],
            },
            _user(
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "text", "text": "x", **_CACHE}],
                    **_CACHE,
                }
            ),
            system=[{"type": "text", "text": "You are an agent.", **_CACHE}, {"type": "text", "text": "Be good."}],
            tools=[{**_WEATHER, "eager_input_streaming": True, **_CACHE}],
            thinking={"type": "adaptive", "display": "omitted"},
            metadata={"user_id": "user_" + "a" * 64 + "_account__session_1"},
            context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            output_config={"effort": "high"},
            service_tier="standard_only",
        )
    )

    assert set(conversation.further) == {
        "cache_control",
        "tools.eager_input_streaming",
        "thinking",
        "metadata.user_id",
        "context_management",
        "service_tier",
    }
    assert conversation.messages[0] == Message(Role.SYSTEM, (Text("You are an agent."), Text("Be good.")))
    assert conversation.further["service_tier"] == "default"
    assert conversation.user is None


def test_an_empty_system_prompt_is_none() -> None:
    assert len(_read().messages) == len(read_conversation(_asked(system="")).messages) == 1
    assert len(read_conversation(_asked(system=[])).messages) == 1


def test_a_format_in_the_place_of_the_beta_is_taken() -> None:
    schema: JsonObject = {"type": "object"}
    conversation = read_conversation(_asked(output_format={"type": "json_schema", "schema": schema}))

    assert conversation.output == OutputFormat("schema", schema, name="answer", strict=True)


@pytest.mark.parametrize(
    ("payload", "param"),
    [
        (_asked(container="c"), "container"),
        (_asked(mcp_servers=[{"name": "m"}]), "mcp_servers"),
        (_asked(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "tools.0"),
        (_asked(tools=[{**_WEATHER, "defer_loading": True}]), "tools.0.defer_loading"),
        (_asked(_user({"type": "container_upload", "file_id": "f"})), "messages.0.content.0"),
        (_asked(_user({"type": "from_tomorrow"})), "messages.0.content.0"),
        (
            _asked(_user({"type": "image", "source": {"type": "file", "file_id": "f"}})),
            "messages.0.content.0.source",
        ),
        (
            _asked(_user({"type": "document", "source": {"type": "file", "file_id": "f"}})),
            "messages.0.content.0.source",
        ),
        (
            _asked(
                _user(
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": "x"},
                        "citations": {"enabled": True},
                    }
                )
            ),
            "messages.0.content.0.citations",
        ),
        (
            _asked(_user({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_reference"}]})),
            "messages.0.content.0.content.0",
        ),
        (_asked(output_config={"format": {"type": "regex"}}), "output_config.format.type"),
    ],
)
def test_what_only_anthropic_can_do_is_refused(payload: JsonObject, param: str) -> None:
    refused = _refused(payload)

    assert refused.code is ErrorCode.UNSUPPORTED_PARAMETER
    assert refused.param == param


@pytest.mark.parametrize(
    ("payload", "param"),
    [
        (_asked({"role": "robot", "content": "x"}), "messages.0.role"),
        (_asked({"role": "user"}), "messages.0.content"),
        (_asked(_user({"text": "x"})), "messages.0.content.0.type"),
        (_asked(_user({"type": "text"})), "messages.0.content.0.text"),
        (_asked(_user({"type": "text", "text": 7})), "messages.0.content.0.text"),
        (
            _asked({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": "{}"}]}),
            "messages.0.content.0.input",
        ),
        (_asked(_user({"type": "tool_result"})), "messages.0.content.0.tool_use_id"),
        (_asked(system=[{"type": "image"}]), "system.0.type"),
        (_asked(system=7), "system"),
        (_asked(tools=[{"name": "x"}]), "tools.0.input_schema"),
        (_asked(tool_choice={"type": "any"}), "tool_choice"),
        (_asked(tool_choice={"type": "some"}, tools=[_WEATHER]), "tool_choice.type"),
        (_asked(tool_choice={"type": "tool", "name": "x"}, tools=[_WEATHER]), "tool_choice.name"),
        (_asked(output_config={"effort": "most"}), "output_config.effort"),
        (_asked(stop_sequences=[7]), "stop_sequences.0"),
        (_asked(temperature="hot"), "temperature"),
        (_asked(thinking={"type": "enabled", "budget_tokens": "all"}), "budget_tokens"),
        ({**_asked(), "messages": []}, "messages"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(payload: JsonObject, param: str) -> None:
    refused = _refused(payload)

    assert refused.param == param
    assert refused.code in {ErrorCode.MISSING_PARAMETER, ErrorCode.INVALID_TYPE, ErrorCode.INVALID_VALUE}


# --- at the door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [7]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages.0.content"),
        ({"stream": "yes"}, "stream"),
        ({"model": ""}, "model"),
        ({"system": 7}, "system"),
        ({"tools": [7]}, "tools.0"),
        ({"metadata": 7}, "metadata"),
    ],
)
def test_the_door_refuses_what_is_no_request(changes: JsonObject, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_messages({**_asked(), **changes}, messages_max=10)

    assert refused.value.param == param


def test_the_door_needs_a_bound_and_lets_what_it_does_not_know_pass() -> None:
    payload = _asked(from_tomorrow={"a": 1}, stream=True)
    request = read_messages(payload, messages_max=10)

    assert (request.model, request.stream) == ("small", True)
    assert request.payload is payload
    assert request.read is not None
    assert isinstance(request.read(payload), Conversation)
    with pytest.raises(InvalidRequest) as refused:
        read_messages({"messages": [{"role": "user", "content": "x"}]}, messages_max=10)
    assert (refused.value.code, refused.value.param) == (ErrorCode.MISSING_PARAMETER, "max_tokens")
    with pytest.raises(InvalidRequest):
        read_messages(_asked(*_THREE), messages_max=2)


def test_a_prompt_to_count_needs_no_bound() -> None:
    payload: JsonObject = {"model": "small", "messages": [{"role": "user", "content": "x"}], "system": "s"}
    request = read_prompt_to_count(payload, messages_max=10)

    assert not request.stream
    assert request.read is not None
    assert request.read(payload) == read_token_count(payload) == TokenCountRequest(read_conversation(payload))
    with pytest.raises(InvalidRequest):
        read_prompt_to_count({"messages": 7}, messages_max=10)
    with pytest.raises(InvalidRequest):
        read_prompt_to_count(_asked(*_THREE), messages_max=2)


@pytest.mark.parametrize(
    ("payload", "needs"),
    [
        (_asked(), set()),
        (_asked(tools=[]), set()),
        (_asked(tools=[_WEATHER]), {Capability.TOOLS}),
        (_asked(output_config={"effort": "low"}), set()),
        (_asked(output_config={"format": {"type": "json_schema", "schema": {}}}), {Capability.JSON_SCHEMA}),
        (_asked(output_format={"type": "json_schema"}), {Capability.JSON_SCHEMA}),
        (_asked(_user({"type": "image"}, {"type": "text"})), {Capability.IMAGES}),
        (_asked(_user({"type": "document", "source": {"type": "url"}})), {Capability.FILES}),
        (_asked(_user({"type": "document", "source": {"type": "text"}})), set()),
        (_asked(_user({"type": "tool_result", "content": [{"type": "image"}]})), {Capability.IMAGES}),
        (_asked(_user({"type": "tool_result", "content": "x"}, {"type": 7}, 7)), set()),
    ],
)
def test_what_a_model_must_be_able_to_do(payload: JsonObject, needs: set[Capability]) -> None:
    assert needs_of(payload) == needs


# --- nothing said is lost on the way ----------------------------------------------------------------------------------

_words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10).filter(lambda text: bool(text.strip()))
_marks: st.SearchStrategy[JsonObject] = st.sampled_from([{}, _CACHE])


@st.composite
def _block_of_user(draw: st.DrawFn) -> JsonObject:
    words = draw(_words)
    blocks: list[JsonObject] = [
        {"type": "text", "text": words},
        {
            "type": "document",
            "title": draw(_words),
            "source": {"type": "text", "media_type": "text/plain", "data": words},
        },
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": words}]}},
        {
            "type": "document",
            "context": words,
            "source": {"type": "base64", "media_type": "application/pdf", "data": "QQ=="},
        },
        {
            "type": "search_result",
            "title": words,
            "source": draw(_words),
            "content": [{"type": "text", "text": draw(_words)}],
        },
    ]
    return {**draw(st.sampled_from(blocks)), **draw(_marks)}


@st.composite
def _requests(draw: st.DrawFn) -> JsonObject:
    messages: list[JsonValue] = [_user(draw(_block_of_user()))]
    for at in range(draw(st.integers(0, 3))):
        arguments = draw(st.dictionaries(_words, _words, max_size=2))
        used: JsonObject = {
            "type": "tool_use",
            "id": f"t{at}",
            "name": "weather",
            "input": {**arguments},
            **draw(_marks),
        }
        said: JsonObject = {"type": "text", "text": draw(_words)}
        thought: JsonObject = {"type": "thinking", "thinking": draw(_words), "signature": "c2ln"}
        messages.append({"role": "assistant", "content": [thought, said, used]})
        result: JsonObject = {"type": "tool_result", "tool_use_id": f"t{at}", "content": draw(_words), **draw(_marks)}
        messages.append(_user(result, *draw(st.lists(_block_of_user(), max_size=2))))
    schema: JsonObject = {"type": "object", "properties": {draw(_words): {"description": draw(_words)}}}
    return _asked(
        *messages,
        system=[{"type": "text", "text": draw(_words), **draw(_marks)}],
        tools=[{"name": "weather", "description": draw(_words), "input_schema": schema}],
        stop_sequences=[draw(_words)],
    )


_TABLE = table_of(WireFormat.ANTHROPIC_MESSAGES, Direction.REQUEST)


def _told(conversation: Conversation) -> str:
    """Every text of the neutral form; arguments of tools read as JSON, in which they stand."""
    told = [text for _, text in texts(conversation)]
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, ToolCall) and part.arguments:
                told += [text for _, text in texts(json.loads(part.arguments))]
    return "\0".join(told)


@settings(max_examples=150, deadline=None)
@given(_requests())
def test_no_text_is_lost_in_translation_nor_on_the_way_back(payload: JsonObject) -> None:
    neutral = read_conversation(payload)
    back = read_conversation(write_conversation(neutral, "claude").payload)

    told, told_back = _told(neutral), _told(back)
    for field in texts_of(payload, _TABLE):
        assert field.text in told
        assert field.text in told_back
    assert back.tools == neutral.tools
    assert back.stop == neutral.stop
    assert [part for message in back.messages for part in message.parts if isinstance(part, ToolCall)] == [
        part for message in neutral.messages for part in message.parts if isinstance(part, ToolCall)
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "developer"]), _words), max_size=6), _words)
def test_a_chat_in_openai_s_words_keeps_every_text_in_anthropic_s(turns: list[tuple[str, str]], last: str) -> None:
    messages: list[JsonValue] = [{"role": role, "content": words} for role, words in turns]
    call: JsonObject = {
        "id": "c.1",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps({"q": last})},
    }
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c.1", "content": last},
        {"role": "user", "content": [{"type": "text", "text": last}]},
    ]

    written = write_conversation(read_chat({"messages": messages}), "claude").payload
    told = _told(read_conversation(written))

    assert all(words in told for _, words in turns)
    assert told.count(last) >= 3
