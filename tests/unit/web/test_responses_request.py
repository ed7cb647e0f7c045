"""A request of the Responses API: its types at the door, and what is read of it for another format."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.vocabulary.chat import ChatRequest
from secure_llm_proxy.vocabulary.conversation import (
    Audio,
    Conversation,
    File,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    Refusal,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    texts,
)
from secure_llm_proxy.vocabulary.providers import Capability
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.openai.responses_request import needs_of, read_conversation, read_response_request

LOOK_UP: JsonObject = {"type": "function", "name": "look_up", "parameters": {"type": "object"}}
ADD: JsonObject = {"type": "function", "name": "add", "description": "Adds.", "parameters": {}, "strict": True}


def read(**payload: JsonValue) -> Conversation:
    return read_conversation({"input": "Hi.", **payload})


def item(**fields: JsonValue) -> tuple[Message, ...]:
    return read(input=[fields]).messages


def user(*parts: JsonValue) -> Message:
    [message] = item(role="user", content=[*parts])
    return message


def refusal_of(body: JsonObject) -> InvalidRequest:
    request = read_response_request(body, items_max=5)
    assert request.read is not None
    with pytest.raises(InvalidRequest) as caught:
        request.read(request.payload)
    assert "canary" not in caught.value.public
    return caught.value


# --- at the door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"input": 7}, ErrorCode.INVALID_TYPE, "input"),
        ({"input": ["canary"]}, ErrorCode.INVALID_TYPE, "input.0"),
        ({"input": [{}] * 6}, ErrorCode.INVALID_VALUE, "input"),
        ({"model": ""}, ErrorCode.INVALID_VALUE, "model"),
        ({"model": {"canary": 1}}, ErrorCode.INVALID_TYPE, "model"),
        ({"stream": "canary"}, ErrorCode.INVALID_TYPE, "stream"),
        ({"instructions": ["canary"]}, ErrorCode.INVALID_TYPE, "instructions"),
        ({"max_output_tokens": 0}, ErrorCode.INVALID_VALUE, "max_output_tokens"),
        ({"temperature": "canary"}, ErrorCode.INVALID_TYPE, "temperature"),
        ({"tools": "canary"}, ErrorCode.INVALID_TYPE, "tools"),
        ({"tools": [LOOK_UP] * 129}, ErrorCode.INVALID_VALUE, "tools"),
        ({"text": "canary"}, ErrorCode.INVALID_TYPE, "text"),
        ({"reasoning": []}, ErrorCode.INVALID_TYPE, "reasoning"),
        ({"background": True}, ErrorCode.UNSUPPORTED_PARAMETER, "background"),
    ],
)
def test_a_wrong_type_is_refused_and_named_whoever_the_provider_is(
    change: JsonObject, code: ErrorCode, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_response_request({"input": "Hi.", **change}, items_max=5)

    assert (caught.value.code, caught.value.param) == (code, param)
    assert "canary" not in caught.value.public


def test_the_payload_keeps_everything_and_says_its_format() -> None:
    body: JsonObject = {
        "input": "Hi.",
        "model": "m",
        "stream": True,
        "previous_response_id": "resp_1",
        "new": {"a": []},
    }
    before = copy.deepcopy(body)

    request = read_response_request(body, items_max=5)

    assert request == ChatRequest("m", True, before, WireFormat.OPENAI_RESPONSES, read_conversation)
    assert body == before


@pytest.mark.parametrize(
    ("payload", "needs"),
    [
        ({"input": "Hi."}, set()),
        ({"input": "Hi.", "tools": [], "text": {"format": {"type": "text"}}, "include": []}, set()),
        ({"tools": [LOOK_UP]}, {Capability.TOOLS}),
        ({"text": {"format": {"type": "json_schema"}}}, {Capability.JSON_SCHEMA}),
        ({"include": ["message.output_text.logprobs"]}, {Capability.LOGPROBS}),
        ({"top_logprobs": 3}, {Capability.LOGPROBS}),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, {Capability.IMAGES}),
        (
            {"input": [{"type": "function_call_output", "output": [{"type": "input_image"}, {"type": "input_file"}]}]},
            {Capability.IMAGES, Capability.FILES},
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, {Capability.AUDIO}),
        (
            {"input": [7, {"content": 7}, {"content": [7, {"type": []}]}], "text": 7, "include": {}, "tools": None},
            set(),
        ),
    ],
)
def test_needs_are_found_and_nonsense_is_none(payload: JsonObject, needs: set[Capability]) -> None:
    assert needs_of(payload) == needs


# --- input ------------------------------------------------------------------------------------------------------------


def test_a_string_is_what_the_user_says_after_the_instructions() -> None:
    assert read(instructions="Be brief.").messages == (
        Message(Role.SYSTEM, (Text("Be brief."),)),
        Message(Role.USER, (Text("Hi."),)),
    )


def test_messages_keep_their_roles_and_their_order() -> None:
    conversation = read(
        input=[
            {"role": "developer", "content": "d"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
            {"role": "assistant", "content": "a"},
            {"type": "message", "role": "system", "content": "s"},
        ]
    )

    assert conversation.messages == (
        Message(Role.DEVELOPER, (Text("d"),)),
        Message(Role.USER, (Text("u"),)),
        Message(Role.ASSISTANT, (Text("a"),)),
        Message(Role.SYSTEM, (Text("s"),)),
    )


def test_the_items_of_one_turn_are_one_message_and_each_result_is_its_own() -> None:
    conversation = read(
        input=[
            {"role": "user", "content": "What is 1 + 2, and who is Ada?"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Two calls."}]},
            {
                "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
            },
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": '{"a":1,"b":2}'},
            {"type": "function_call", "call_id": "c2", "name": "look_up", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "3"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "a poet's child"}]},
            {"role": "assistant", "content": "3."},
            {"role": "assistant", "content": "And Ada is a poet's child."},
        ]
    )  # fmt: skip

    assert conversation.messages == (
        Message(Role.USER, (Text("What is 1 + 2, and who is Ada?"),)),
        Message(
            Role.ASSISTANT,
            (
                Reasoning("Two calls."),
                Text("Let me see."),
                ToolCall("c1", "add", '{"a":1,"b":2}'),
                ToolCall("c2", "look_up", ""),
            ),
        ),
        Message(Role.TOOL, (ToolResult("c1", (Text("3"),), name="add"),)),
        Message(Role.TOOL, (ToolResult("c2", (Text("a poet's child"),), name="look_up"),)),
        Message(Role.ASSISTANT, (Text("3."),)),
        Message(Role.ASSISTANT, (Text("And Ada is a poet's child."),)),
    )
    assert conversation.further == {}


@pytest.mark.parametrize(
    ("part", "read_as"),
    [
        ({"type": "input_text", "text": "t"}, Text("t")),
        ({"type": "refusal", "refusal": "no"}, Refusal("no")),
        ({"type": "input_image", "image_url": "https://a.test/b"}, Image(url="https://a.test/b")),
        (
            {"type": "input_image", "image_url": "data:image/PNG;base64,AAAA", "detail": "low"},
            Image(data="AAAA", media_type="image/png", detail="low"),
        ),
        (
            {"type": "input_file", "file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"},
            File(data="AAAA", media_type="application/pdf", name="a.pdf"),
        ),
        (
            {"type": "input_file", "file_data": "AAAA", "filename": "A.PDF"},
            File(data="AAAA", media_type="application/pdf", name="A.PDF"),
        ),
        ({"type": "input_file", "file_data": "AAAA"}, File(data="AAAA")),
        ({"type": "input_file", "file_url": "https://a.test/b.pdf"}, File(url="https://a.test/b.pdf")),
        ({"type": "input_file", "file_id": "file_1"}, File(file_id="file_1")),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, Audio("AAAA", "wav")),
    ],
)
def test_each_kind_of_part_is_read(part: JsonObject, read_as: object) -> None:
    assert user(part).parts == (read_as,)


@pytest.mark.parametrize(
    ("thought", "parts"),
    [
        ({"summary": []}, ()),
        ({"summary": [], "encrypted_content": "gAAAA-of-openai"}, ()),
        ({"summary": [{"type": "summary_text", "text": "a"}], "encrypted_content": "gAAAA"}, (Reasoning("a"),)),
        (
            {
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "a"}, {"type": "reasoning_text", "text": "b"}],
            },
            (Reasoning("a\n\nb"),),
        ),
        (
            {"summary": [{"type": "summary_text", "text": "a"}], "encrypted_content": "slp1-s-proof"},
            (Reasoning("a", "proof"),),
        ),
        ({"summary": [], "encrypted_content": "slp1-r-hidden"}, (Reasoning("", redacted="hidden"),)),
    ],
)
def test_a_thought_comes_back_with_the_proof_that_was_ours_to_give(
    thought: JsonObject, parts: tuple[Reasoning, ...]
) -> None:
    [message] = read(
        input=[{"type": "reasoning", "id": "rs", **thought}, {"role": "assistant", "content": "A."}]
    ).messages

    assert message == Message(Role.ASSISTANT, (*parts, Text("A.")))


def test_a_reference_to_a_thought_of_ours_is_left_out_and_told() -> None:
    conversation = read(
        input=[
            {"role": "user", "content": "Hi."},
            {"type": "item_reference", "id": "rs_01M7ZQ67B0Z7KDR13P625MV5HC_0"},
            {"role": "assistant", "content": "A."},
        ]
    )

    assert [message.role for message in conversation.messages] == [Role.USER, Role.ASSISTANT]
    assert conversation.further == {"input.item_reference": ["rs_01M7ZQ67B0Z7KDR13P625MV5HC_0"]}


@pytest.mark.parametrize(
    ("items", "code", "param"),
    [
        (None, ErrorCode.MISSING_PARAMETER, "input"),
        ([], ErrorCode.INVALID_VALUE, "input"),
        ([{}], ErrorCode.UNSUPPORTED_PARAMETER, "input.0"),
        ([{"type": "item_reference", "id": "canary"}], ErrorCode.UNSUPPORTED_PARAMETER, "input.0"),
        ([{"id": "canary"}], ErrorCode.UNSUPPORTED_PARAMETER, "input.0"),
        ([{"type": "computer_call"}], ErrorCode.UNSUPPORTED_PARAMETER, "input.0"),
        ([{"type": "compaction", "encrypted_content": "canary"}], ErrorCode.UNSUPPORTED_PARAMETER, "input.0"),
        ([{"type": ["canary"]}], ErrorCode.UNSUPPORTED_PARAMETER, "input.0"),
        ([{"role": "canary", "content": ""}], ErrorCode.INVALID_VALUE, "input.0.role"),
        ([{"role": "user"}], ErrorCode.MISSING_PARAMETER, "input.0.content"),
        ([{"role": "user", "content": 7}], ErrorCode.INVALID_TYPE, "input.0.content"),
        ([{"role": "user", "content": [{"type": "canary"}]}], ErrorCode.INVALID_VALUE, "input.0.content.0.type"),
        (
            [{"role": "user", "content": [{"type": "input_text"}]}],
            ErrorCode.MISSING_PARAMETER,
            "input.0.content.0.text",
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "file_id": "file_canary"}]}],
            ErrorCode.UNSUPPORTED_PARAMETER,
            "input.0.content.0.file_id",
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///canary"}]}],
            ErrorCode.INVALID_VALUE,
            "input.0.content.0.image_url",
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "data:canary"}]}],
            ErrorCode.INVALID_VALUE,
            "input.0.content.0.image_url",
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_id": "a", "file_data": "b"}]}],
            ErrorCode.INVALID_VALUE,
            "input.0.content.0",
        ),
        ([{"type": "function_call", "name": "f", "arguments": "{}"}], ErrorCode.MISSING_PARAMETER, "input.0.call_id"),
        ([{"type": "function_call", "call_id": "c", "name": "f"}], ErrorCode.MISSING_PARAMETER, "input.0.arguments"),
        ([{"type": "function_call_output", "call_id": "c"}], ErrorCode.MISSING_PARAMETER, "input.0.output"),
        (
            [{"type": "function_call_output", "call_id": "c", "output": [{"type": "refusal", "refusal": "canary"}]}],
            ErrorCode.INVALID_VALUE,
            "input.0.output",
        ),
    ],
)
def test_an_item_that_can_t_be_read_is_refused_and_named(items: JsonValue, code: ErrorCode, param: str) -> None:
    refused = refusal_of({"input": items})

    assert (refused.code, refused.param) == (code, param)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_what_is_asked_has_its_place() -> None:
    conversation = read(
        max_output_tokens=7,
        temperature=0.5,
        top_p=1,
        reasoning={"effort": "low", "summary": "auto"},
        user="u",
        stream=True,
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        top_logprobs=2,
        store=False,
        background=False,
        truncation="disabled",
        stream_options={"include_obfuscation": False},
        metadata={},
        previous_response_id=None,
    )

    assert conversation == Conversation(
        messages=(Message(Role.USER, (Text("Hi."),)),),
        max_tokens=7,
        temperature=0.5,
        top_p=1,
        reasoning_effort="low",
        user="u",
        stream=True,
        logprobs=True,
        top_logprobs=2,
    )


def test_what_only_tunes_is_kept_by_name_so_that_its_loss_can_be_told() -> None:
    conversation = read(
        metadata={"a": "b"},
        service_tier="flex",
        store=True,
        truncation="auto",
        stream_options={"include_obfuscation": True},
        include=["web_search_call.results"],
        prompt_cache_key="k",
        text={"verbosity": "low", "odd": 1},
        reasoning={"context": "all"},
        user="u",
        safety_identifier="s",
        new_parameter=[1],
        tools=[{**LOOK_UP, "defer_loading": True}],
        input=[{"role": "user", "phase": "commentary", "content": [{"type": "input_text", "text": "t", "odd": 1}]}],
    )

    assert conversation.further == {
        "metadata": {"a": "b"},
        "service_tier": "flex",
        "store": True,
        "truncation": "auto",
        "stream_options.include_obfuscation": True,
        "include": ["web_search_call.results"],
        "prompt_cache_key": "k",
        "verbosity": "low",
        "text.odd": [1],
        "reasoning.context": ["all"],
        "safety_identifier": "s",
        "new_parameter": [1],
        "tools.defer_loading": [True],
        "input.phase": ["commentary"],
        "input.content.odd": [1],
    }


def test_the_end_user_is_named_by_either_parameter() -> None:
    assert read(user="u").user == "u"
    assert read(safety_identifier="s").user == "s"
    assert read(safety_identifier="s").further == {}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_canary"}, "previous_response_id"),
        ({"conversation": {"id": "canary"}}, "conversation"),
        ({"prompt": {"id": "canary"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [LOOK_UP, {"type": "file_search", "vector_store_ids": ["canary"]}]}, "tools.1"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools.0"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools.0"),
        ({"tools": [{"type": "mcp", "server_url": "https://canary"}]}, "tools.0"),
        ({"tools": [{"type": "image_generation"}]}, "tools.0"),
        ({"tools": [{"type": "custom", "name": "canary"}]}, "tools.0"),
        ({"tools": [LOOK_UP], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        (
            {"tools": [LOOK_UP], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
            "tool_choice.tools.0",
        ),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"n": 2}, "n"),
        ({"stop": "canary"}, "stop"),
        ({"messages": [{"role": "user", "content": "canary"}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_only_openai_can_do_is_refused_and_named(change: JsonObject, param: str) -> None:
    refused = refusal_of({"input": "Hi.", **change})

    assert (refused.code, refused.param) == (ErrorCode.UNSUPPORTED_PARAMETER, param)


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ({}, None),
        ({"format": {"type": "text"}}, None),
        ({"format": {"type": "json_object"}}, OutputFormat("json")),
        (
            {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
            OutputFormat("schema", {"type": "object"}, "n", None, True),
        ),
    ],
)
def test_the_form_of_the_answer_is_read(text: JsonObject, output: OutputFormat | None) -> None:
    assert read(text=text).output == output


LOOK_UP_TOOL = Tool("look_up", None, {"type": "object"})
ADD_TOOL = Tool("add", "Adds.", {}, True)
BOTH: list[JsonValue] = [LOOK_UP, ADD]


@pytest.mark.parametrize(
    ("payload", "tools", "choice"),
    [
        ({"tools": BOTH}, (LOOK_UP_TOOL, ADD_TOOL), None),
        ({"tools": BOTH, "parallel_tool_calls": False}, (LOOK_UP_TOOL, ADD_TOOL), ToolChoice(parallel=False)),
        ({"parallel_tool_calls": False, "tool_choice": "auto"}, (), None),
        ({"tools": BOTH, "tool_choice": "none"}, (LOOK_UP_TOOL, ADD_TOOL), ToolChoice("none")),
        (
            {"tools": BOTH, "tool_choice": "required", "parallel_tool_calls": True},
            (LOOK_UP_TOOL, ADD_TOOL),
            ToolChoice("required", parallel=True),
        ),
        (
            {"tools": BOTH, "tool_choice": {"type": "function", "name": "add"}},
            (LOOK_UP_TOOL, ADD_TOOL),
            ToolChoice("named", "add"),
        ),
        (
            {
                "tools": BOTH,
                "tool_choice": {
                    "type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}],
                },
            },
            (ADD_TOOL,),
            ToolChoice("required"),
        ),
    ],
)  # fmt: skip
def test_tools_and_the_choice_among_them_are_read(
    payload: JsonObject, tools: tuple[Tool, ...], choice: ToolChoice | None
) -> None:
    conversation = read(**payload)

    assert (conversation.tools, conversation.tool_choice) == (tools, choice)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"tools": [LOOK_UP, LOOK_UP]}, ErrorCode.INVALID_VALUE, "tools"),
        ({"tools": [{"type": "function"}]}, ErrorCode.MISSING_PARAMETER, "tools.0.name"),
        ({"tools": [{**LOOK_UP, "parameters": "canary"}]}, ErrorCode.INVALID_TYPE, "tools.0.parameters"),
        ({"tool_choice": "canary"}, ErrorCode.INVALID_VALUE, "tool_choice"),
        ({"tool_choice": "required"}, ErrorCode.INVALID_VALUE, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "canary"}}, ErrorCode.INVALID_VALUE, "tool_choice.name"),
        ({"tool_choice": 7}, ErrorCode.INVALID_TYPE, "tool_choice"),
        ({"include": [7]}, ErrorCode.INVALID_TYPE, "include.0"),
        ({"reasoning": {"effort": "canary"}}, ErrorCode.INVALID_VALUE, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, ErrorCode.MISSING_PARAMETER, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, ErrorCode.MISSING_PARAMETER, "text.format.name"),
    ],
)
def test_a_parameter_that_can_t_be_read_is_refused_and_named(change: JsonObject, code: ErrorCode, param: str) -> None:
    refused = refusal_of({"input": "Hi.", **change})

    assert (refused.code, refused.param) == (code, param)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["input", "tools", "tool_choice", "text", "reasoning", "include", "stream_options", "instructions", "new"]


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5))
def test_nonsense_is_refused_and_never_a_defect(body: dict[str, JsonValue]) -> None:
    needs_of(body)

    try:
        request = read_response_request(body, items_max=5)
        assert request.read is not None
        conversation = request.read(request.payload)
    except InvalidRequest:
        return
    assert isinstance(conversation, Conversation)
    list(texts(conversation))
