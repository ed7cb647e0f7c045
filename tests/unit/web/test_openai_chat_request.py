"""A chat completion request in neutral form: what it asks for is kept, told as left out, or refused by name."""

from __future__ import annotations

import pytest

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.vocabulary.conversation import (
    Audio,
    Conversation,
    File,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Refusal,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from secure_llm_proxy.vocabulary.providers import Capability
from secure_llm_proxy.web.openai.chat_request import needs_of, read_conversation

USER: JsonObject = {"role": "user", "content": "Hi."}
SCHEMA: JsonObject = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: JsonObject = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CLOCK: JsonObject = {"type": "function", "function": {"name": "clock"}}


def read(*messages: JsonObject, **parameters: JsonValue) -> Conversation:
    return read_conversation({"model": "m", "messages": list(messages or (USER,)), **parameters})


def parts_of(content: JsonValue) -> tuple[Part, ...]:
    return read({"role": "user", "content": content}).messages[0].parts


def test_messages_keep_their_order_and_roles() -> None:
    conversation = read(
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi.", "name": "ann"},
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]},
        {"role": "assistant", "content": "Hello.", "reasoning_content": "They greet."},
    )

    assert conversation.messages == (
        Message(Role.SYSTEM, (Text("Be kind."),)),
        Message(Role.USER, (Text("Hi."),), "ann"),
        Message(Role.DEVELOPER, (Text("Be "), Text("short."))),
        Message(Role.ASSISTANT, (Reasoning("They greet."), Text("Hello."))),
    )


def test_calls_and_their_results_keep_their_ids() -> None:
    conversation = read(
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
                {"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": "{not json"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "Noon."}]},
        tools=[WEATHER, CLOCK],
    )

    assert conversation.messages[1].parts == (
        ToolCall("call_1", "weather", '{"city":"Rome"}'),
        ToolCall("call_2", "clock", "{not json"),
    )
    assert conversation.messages[2:] == (
        Message(Role.TOOL, (ToolResult("call_1", (Text("Sunny."),)),)),
        Message(Role.TOOL, (ToolResult("call_2", (Text("Noon."),)),)),
    )
    assert conversation.tools == (Tool("weather", None, SCHEMA), Tool("clock"))


def test_the_older_functions_are_tools_whose_calls_get_ids() -> None:
    conversation = read(
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": "{}"}},
        {"role": "function", "name": "clock", "content": "Noon."},
        functions=[{"name": "clock", "description": "Tells the time."}],
        function_call={"name": "clock"},
    )

    assert conversation.messages[1].parts == (ToolCall("call_1", "clock", "{}"),)
    assert conversation.messages[2].parts == (ToolResult("call_1", (Text("Noon."),), name="clock"),)
    assert conversation.tools == (Tool("clock", "Tells the time."),)
    assert conversation.tool_choice == ToolChoice("named", "clock")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", (Text(""),)),
        (
            [{"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}}],
            (Image(url="https://x.example/a.png", detail="low"),),
        ),
        (
            [{"type": "image_url", "image_url": {"url": "data:image/PNG;base64,iVBORw=="}}],
            (Image(data="iVBORw==", media_type="image/png"),),
        ),
        ([{"type": "image_url", "image_url": "https://x.example/a.png"}], (Image(url="https://x.example/a.png"),)),
        ([{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}], (Audio("UklGRg==", "wav"),)),
        ([{"type": "file", "file": {"file_id": "file-1"}}], (File(file_id="file-1"),)),
        (
            [{"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}}],
            (File(data="JVBERg==", media_type="application/pdf", name="a.pdf"),),
        ),
        (
            [{"type": "file", "file": {"filename": "a.pdf", "file_data": "JVBERg=="}}],
            (File(data="JVBERg==", media_type="application/pdf", name="a.pdf"),),
        ),
    ],
)
def test_every_kind_of_part_is_kept(content: JsonValue, parts: tuple[Part, ...]) -> None:
    assert parts_of(content) == parts


def test_a_refusal_is_kept_as_one() -> None:
    as_part = read(USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, USER)
    as_field = read(USER, {"role": "assistant", "content": None, "refusal": "No."}, USER)

    assert as_part.messages[1].parts == as_field.messages[1].parts == (Refusal("No."),)


def test_parameters_with_a_field_stand_in_it() -> None:
    conversation = read(
        temperature=0.5, top_p=1, top_k=40, max_completion_tokens=9, stop=["a", "b"], seed=7, presence_penalty=-1.5,
        frequency_penalty=2, n=3, logprobs=True, top_logprobs=4, reasoning_effort="low", user="u-1", stream=True,
    )  # fmt: skip

    assert conversation == Conversation(
        messages=(Message(Role.USER, (Text("Hi."),)),), temperature=0.5, top_p=1, top_k=40, max_tokens=9, stop=("a", "b"),
        seed=7, presence_penalty=-1.5, frequency_penalty=2, n=3, logprobs=True, top_logprobs=4, reasoning_effort="low",
        user="u-1", stream=True,
    )  # fmt: skip


def test_one_stop_sequence_may_be_a_bare_text_and_the_older_bound_still_counts() -> None:
    conversation = read(stop="END", max_tokens=5, safety_identifier="s-1")

    assert conversation.stop == ("END",)
    assert conversation.max_tokens == 5
    assert conversation.user == "s-1"


def test_what_has_no_field_is_kept_by_its_name_and_null_is_nothing() -> None:
    conversation = read(
        {"role": "user", "content": [{"type": "text", "text": "Hi.", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "Yes?", "annotations": [], "audio": None, "mood": "calm"},
        logit_bias={"1": -100}, metadata={"team": "blue"}, store=None, safety_identifier="s", user="u",
        stream_options={"include_usage": True, "include_obfuscation": False}, made_up=[1],
    )  # fmt: skip

    assert conversation.further == {
        "logit_bias": {"1": -100},
        "metadata": {"team": "blue"},
        "made_up": [1],
        "stream_options.include_obfuscation": False,
        "safety_identifier": "s",
        "messages.content.cache_control": [{"type": "ephemeral"}],
        "messages.mood": ["calm"],
    }


@pytest.mark.parametrize(
    ("wish", "tools", "choice"),
    [
        ({"tool_choice": "auto"}, 2, ToolChoice()),
        ({"tool_choice": "none"}, 2, ToolChoice("none")),
        ({"tool_choice": "required", "parallel_tool_calls": False}, 2, ToolChoice("required", parallel=False)),
        ({"parallel_tool_calls": True}, 2, ToolChoice(parallel=True)),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, 2, ToolChoice("named", "clock")),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [CLOCK]},
                }
            },
            1,
            ToolChoice("required"),
        ),
        ({}, 2, None),
    ],
)
def test_the_choice_among_tools_is_kept(wish: JsonObject, tools: int, choice: ToolChoice | None) -> None:
    conversation = read(tools=[WEATHER, CLOCK], **wish)

    assert len(conversation.tools) == tools
    assert conversation.tool_choice == choice


def test_a_choice_without_tools_is_no_choice() -> None:
    assert read(tool_choice="auto").tool_choice is None
    assert read(tool_choice="none", parallel_tool_calls=True).tool_choice is None


@pytest.mark.parametrize(
    ("wish", "output"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, OutputFormat("json")),
        (
            {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}},
            OutputFormat("schema", SCHEMA, "place", None, True),
        ),
    ],
)
def test_the_form_of_the_answer_is_kept(wish: JsonObject, output: OutputFormat | None) -> None:
    assert read(response_format=wish).output == output


CUSTOM: JsonObject = {"type": "custom", "custom": {"name": "canary"}}


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "canary"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tools": [CUSTOM]}, "tools.0"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [CLOCK], "tool_choice": {"type": "custom", "custom": {"name": "canary"}}}, "tool_choice"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"messages": [USER, {"role": "assistant", "audio": {"id": "canary"}}]}, "messages.1.audio"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "c", **CUSTOM}]}]},
            "messages.1.tool_calls.0",
        ),
    ],
)
def test_what_changes_the_answer_and_only_openai_can_do_is_refused(parameters: JsonObject, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_conversation({"messages": [USER], **parameters})

    assert (refused.value.code, refused.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, param)
    assert "canary" not in refused.value.public


@pytest.mark.parametrize(
    ("parameters", "code", "param"),
    [
        ({"messages": None}, ErrorCode.MISSING_PARAMETER, "messages"),
        ({"messages": []}, ErrorCode.INVALID_VALUE, "messages"),
        ({"messages": ["canary"]}, ErrorCode.INVALID_TYPE, "messages.0"),
        ({"messages": [{"role": "canary", "content": ""}]}, ErrorCode.INVALID_VALUE, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, ErrorCode.MISSING_PARAMETER, "messages.0.content"),
        ({"messages": [{"role": "assistant"}]}, ErrorCode.MISSING_PARAMETER, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 7}]}, ErrorCode.INVALID_TYPE, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{}]}]}, ErrorCode.MISSING_PARAMETER, "messages.0.content.0.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "canary"}]}]},
            ErrorCode.INVALID_VALUE,
            "messages.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "canary"}}]}]},
            ErrorCode.INVALID_VALUE,
            "messages.0.content.0.image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:canary"}}]}]},
            ErrorCode.INVALID_VALUE,
            "messages.0.content.0.image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
            ErrorCode.INVALID_VALUE,
            "messages.0.content.0.file",
        ),
        ({"messages": [{"role": "tool", "content": ""}]}, ErrorCode.MISSING_PARAMETER, "messages.0.tool_call_id"),
        (
            {"messages": [{"role": "function", "name": "canary", "content": ""}]},
            ErrorCode.INVALID_VALUE,
            "messages.0.name",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "n"}}]}]},
            ErrorCode.MISSING_PARAMETER,
            "messages.0.tool_calls.0.function.arguments",
        ),
        ({"tools": [{"type": "function"}]}, ErrorCode.MISSING_PARAMETER, "tools.0.function"),
        ({"tools": [CLOCK, CLOCK]}, ErrorCode.INVALID_VALUE, "tools"),
        ({"tool_choice": "canary"}, ErrorCode.INVALID_VALUE, "tool_choice"),
        ({"tool_choice": "required"}, ErrorCode.INVALID_VALUE, "tool_choice"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "canary"}}},
            ErrorCode.INVALID_VALUE,
            "tool_choice",
        ),
        ({"response_format": {"type": "json_schema"}}, ErrorCode.MISSING_PARAMETER, "response_format.json_schema"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, ErrorCode.INVALID_VALUE, "max_completion_tokens"),
        ({"reasoning_effort": "canary"}, ErrorCode.INVALID_VALUE, "reasoning_effort"),
        ({"stop": [1]}, ErrorCode.INVALID_TYPE, "stop.0"),
        ({"seed": "canary"}, ErrorCode.INVALID_TYPE, "seed"),
        ({"seed": True}, ErrorCode.INVALID_TYPE, "seed"),
        ({"temperature": True}, ErrorCode.INVALID_TYPE, "temperature"),
        ({"logprobs": 1}, ErrorCode.INVALID_TYPE, "logprobs"),
    ],
)
def test_what_is_wrong_is_named_and_not_quoted(parameters: JsonObject, code: ErrorCode, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_conversation({"messages": [USER], **parameters})

    assert (refused.value.code, refused.value.param) == (code, param)
    assert "canary" not in refused.value.public


@pytest.mark.parametrize(
    ("parameters", "needs"),
    [
        ({}, set()),
        ({"tools": [], "n": 1, "logprobs": False, "response_format": {"type": "json_object"}}, set()),
        ({"tools": [CLOCK]}, {Capability.TOOLS}),
        ({"functions": [{"name": "clock"}]}, {Capability.TOOLS}),
        ({"response_format": {"type": "json_schema"}}, {Capability.JSON_SCHEMA}),
        ({"n": 2}, {Capability.SEVERAL_CHOICES}),
        ({"logprobs": True}, {Capability.LOGPROBS}),
        ({"modalities": ["audio"]}, {Capability.AUDIO}),
        ({"messages": [{"content": [{"type": "image_url"}, {"type": "text"}]}]}, {Capability.IMAGES}),
        (
            {"messages": [USER, {"content": [{"type": "file"}, {"type": "input_audio"}]}], "tools": [CLOCK]},
            {Capability.FILES, Capability.AUDIO, Capability.TOOLS},
        ),
        ({"messages": [7, {"content": [7, {"type": 7}]}], "tools": 7, "n": "2", "modalities": 7}, {Capability.TOOLS}),
    ],
)
def test_a_request_tells_what_a_model_must_be_able_to_do(parameters: JsonObject, needs: set[str]) -> None:
    assert needs_of({"messages": [USER], **parameters}) == needs
