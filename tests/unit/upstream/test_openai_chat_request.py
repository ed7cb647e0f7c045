"""The neutral conversation in the words of every server of OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.upstream.formats.face import Written
from secure_llm_proxy.upstream.formats.openai_chat import OpenAiChat
from secure_llm_proxy.vocabulary.conversation import (
    Audio,
    Conversation,
    EmbeddingRequest,
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
    texts,
)
from secure_llm_proxy.vocabulary.providers import provider_kinds
from tests.support.chat_conversations import conversations
from tests.support.provider_formats import azure, groq, mistral, openai, openrouter, together

ASKED = Message(Role.USER, (Text("Hi."),))
CLOCK = Tool("clock")
COMPATIBLE = [
    "openai", "azure", "azure_deployments", "groq", "openrouter", "mistral", "together", "openai_compatible",
]  # fmt: skip
PLAYED = {
    "openai": openai.PROVIDER,
    "azure": azure.PROVIDER,
    "groq": groq.PROVIDER,
    "openrouter": openrouter.PROVIDER,
    "mistral": mistral.PROVIDER,
    "together": together.PROVIDER,
}


def write(conversation: Conversation, kind: str = "openai", *, ask_usage: bool = True) -> Written:
    return OpenAiChat().write(conversation, "m", provider_kinds()[kind], ask_usage=ask_usage)


def payload_of(kind: str = "openai", **fields: Any) -> JsonObject:  # noqa: ANN401  any field of a conversation
    return write(Conversation(**{"messages": (ASKED,), **fields}), kind).payload


def messages_of(*messages: Message, kind: str = "openai") -> list[JsonValue]:
    told = payload_of(kind, messages=messages)["messages"]
    assert isinstance(told, list)
    return told


def user(*parts: Part) -> Message:
    return Message(Role.USER, parts)


def refusal_of(kind: str, **fields: Any) -> InvalidRequest:  # noqa: ANN401  any field of a conversation
    with pytest.raises(InvalidRequest) as refused:
        payload_of(kind, **fields)
    assert refused.value.code is ErrorCode.UNSUPPORTED_PARAMETER
    return refused.value


def test_a_request_holds_what_was_asked_and_no_more() -> None:
    assert write(Conversation((ASKED,))) == Written(
        {"model": "m", "messages": [{"role": "user", "content": "Hi."}], "stream": False}
    )


def test_every_parameter_has_openai_s_name() -> None:
    payload = payload_of(
        max_tokens=9, temperature=0.5, top_p=1, stop=("a", "b"), seed=7, presence_penalty=1, frequency_penalty=-1, n=2,
        logprobs=True, top_logprobs=3, reasoning_effort="xhigh", user="u", stream=True,
        further={"verbosity": "low", "metadata": {"a": "b"}},
    )  # fmt: skip

    assert payload == {
        "model": "m", "messages": [{"role": "user", "content": "Hi."}], "max_completion_tokens": 9, "temperature": 0.5,
        "top_p": 1, "stop": ["a", "b"], "seed": 7, "presence_penalty": 1, "frequency_penalty": -1, "n": 2,
        "logprobs": True, "top_logprobs": 3, "reasoning_effort": "xhigh", "user": "u", "stream": True,
        "verbosity": "low", "metadata": {"a": "b"}, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_what_only_tunes_and_is_unknown_is_left_out_and_named() -> None:
    conversation = Conversation(
        (ASKED,), seed=7, user="u", top_k=3, reasoning_tokens=100, reasoning_effort="high",
        further={"cache_control": {}, "logit_bias": {}, "store": True},
    )  # fmt: skip

    assert write(conversation).dropped == ("top_k", "reasoning_tokens", "cache_control")
    assert write(conversation, "groq").dropped == ("top_k", "reasoning_tokens", "cache_control", "logit_bias", "store")
    told = write(conversation, "mistral")
    assert told.dropped == ("user", "reasoning_tokens", "cache_control", "logit_bias", "store")
    assert told.payload["random_seed"] == 7
    assert told.payload["top_k"] == 3


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("openai", "max_completion_tokens"),
        ("azure", "max_completion_tokens"),
        ("groq", "max_completion_tokens"),
        ("mistral", "max_tokens"),
        ("together", "max_tokens"),
        ("openai_compatible", "max_tokens"),
    ],
)
def test_the_bound_has_the_name_that_the_kind_knows(kind: str, name: str) -> None:
    payload = payload_of(kind, max_tokens=9)

    assert {told: payload.get(told) for told in ("max_tokens", "max_completion_tokens")} == {
        "max_tokens": None,
        "max_completion_tokens": None,
        name: 9,
    }


@pytest.mark.parametrize(("kind", "asked"), [("openai", True), ("mistral", False), ("together", False)])
def test_a_stream_s_usage_is_asked_for_where_it_must_be(kind: str, asked: bool) -> None:  # noqa: FBT001  of a table
    told = write(Conversation((ASKED,), stream=True), kind)

    assert ("stream_options" in told.payload) is asked
    assert told.shows_usage
    assert "stream_options" not in write(Conversation((ASKED,), stream=True), kind, ask_usage=False).payload


def test_a_budget_of_thoughts_is_told_where_there_is_a_word_for_it() -> None:
    assert payload_of("openrouter", reasoning_tokens=2000)["reasoning"] == {"max_tokens": 2000}
    assert payload_of("openrouter", reasoning_tokens=0)["reasoning"] == {"enabled": False}


def test_an_effort_is_told_in_words_that_the_kind_has() -> None:
    assert payload_of("groq", reasoning_effort="minimal")["reasoning_effort"] == "low"
    told = write(Conversation((ASKED,), reasoning_effort="none"), "together")
    assert "reasoning_effort" not in told.payload
    assert told.dropped == ("reasoning_effort",)


@pytest.mark.parametrize(
    ("choice", "kind", "told"),
    [
        (None, "openai", {}),
        (ToolChoice(), "openai", {"tool_choice": "auto"}),
        (ToolChoice("required"), "openai", {"tool_choice": "required"}),
        (ToolChoice("required"), "mistral", {"tool_choice": "any"}),
        (ToolChoice("none", parallel=True), "together", {"tool_choice": "none"}),
        (ToolChoice("auto", parallel=False), "groq", {"tool_choice": "auto", "parallel_tool_calls": False}),
        (
            ToolChoice("named", "clock"),
            "openai",
            {"tool_choice": {"type": "function", "function": {"name": "clock"}}},
        ),
    ],
)
def test_the_choice_among_tools_is_told(choice: ToolChoice | None, kind: str, told: JsonObject) -> None:
    payload = payload_of(kind, tools=(CLOCK,), tool_choice=choice)

    assert {name: payload[name] for name in ("tool_choice", "parallel_tool_calls") if name in payload} == told


def test_a_tool_without_parameters_has_none_at_openai_and_an_empty_schema_elsewhere() -> None:
    assert payload_of(tools=(CLOCK,))["tools"] == [{"type": "function", "function": {"name": "clock"}}]
    assert payload_of("mistral", tools=(Tool("clock", "Tells.", None, True),))["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "clock",
                "description": "Tells.",
                "parameters": {"type": "object", "properties": {}},
                "strict": True,
            },
        }
    ]


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (OutputFormat("json"), {"type": "json_object"}),
        (
            OutputFormat("schema", {"type": "object"}, "place", "Where.", True),
            {
                "type": "json_schema",
                "json_schema": {
                    "name": "place",
                    "description": "Where.",
                    "schema": {"type": "object"},
                    "strict": True,
                },
            },
        ),
        (
            OutputFormat("schema", {"type": "object"}),
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        ),
    ],
)
def test_the_form_of_the_answer_is_told(output: OutputFormat, told: JsonObject) -> None:
    assert payload_of(output=output)["response_format"] == told


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("groq", {"n": 2}, "n"),
        ("groq", {"logprobs": True}, "logprobs"),
        ("together", {"top_logprobs": 2}, "top_logprobs"),
        ("openai", {"stop": ("a", "b", "c", "d", "e")}, "stop"),
        ("openai", {"tool_choice": ToolChoice("required")}, "tool_choice"),
        ("together", {"tools": (CLOCK,), "tool_choice": ToolChoice(parallel=False)}, "parallel_tool_calls"),
        ("groq", {"messages": (user(File(file_id="f")),)}, "messages"),
        ("groq", {"messages": (user(Audio("UklGRg==", "wav")),)}, "messages"),
        ("openai", {"messages": (user(File(url="https://x.example/a.pdf")),)}, "messages"),
        ("openai", {"messages": (user(Image(data="iVBORw==")),)}, "messages"),
        ("openai", {"messages": (Message(Role.SYSTEM, (Image(url="https://x.example/a.png"),)),)}, "messages"),
        ("openai", {"messages": (Message(Role.ASSISTANT, (Image(url="https://x.example/a.png"),)),)}, "messages"),
    ],
)
def test_what_changes_the_answer_and_can_t_be_told_is_refused(kind: str, fields: JsonObject, param: str) -> None:
    assert refusal_of(kind, **fields).param == param


def test_something_else_than_a_conversation_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        OpenAiChat().write(EmbeddingRequest(("a",)), "m", provider_kinds()["openai"], ask_usage=True)

    assert refused.value.code is ErrorCode.UNSUPPORTED_PARAMETER


def test_openai_s_own_roles_and_fields_are_used_where_they_are_known() -> None:
    said = (
        Message(Role.DEVELOPER, (Text("Be kind."), Text("Be short."))),
        Message(Role.ASSISTANT, (Reasoning("Hm."), Text("Well, "), Refusal("no.")), "bot"),
    )

    assert messages_of(*said) == [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be short."}],
        },
        {"role": "assistant", "content": "Well, ", "refusal": "no.", "name": "bot"},
    ]
    assert messages_of(*said, kind="together") == [
        {"role": "system", "content": "Be kind.\n\nBe short."},
        {"role": "assistant", "content": "Well, no.", "name": "bot"},
    ]
    told = write(Conversation(said), "mistral")
    assert told.payload["messages"] == [
        {"role": "system", "content": "Be kind.\n\nBe short."},
        {"role": "assistant", "content": "Well, no."},
    ]
    assert told.dropped == ("name",)


def test_calls_and_results_keep_together_and_each_result_has_its_message() -> None:
    said = (
        Message(Role.ASSISTANT, (ToolCall("call_1", "clock", ""), ToolCall("call_2", "clock", "{}"))),
        Message(
            Role.TOOL,
            (ToolResult("call_1", (Text("Noon"), Text("sharp."))), ToolResult("call_2", (), is_error=True)),
        ),
    )

    told = write(Conversation(said), "groq")

    assert told.payload["messages"] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
                {"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Noon\nsharp."},
        {"role": "tool", "tool_call_id": "call_2", "content": ""},
    ]
    assert told.dropped == ("is_error",)


def test_ids_of_calls_have_nine_characters_where_they_must_and_results_find_theirs() -> None:
    said = (
        Message(Role.ASSISTANT, (ToolCall("toolu_01ABC", "clock", "{}"), ToolCall("abcDEF123", "clock", "{}"))),
        Message(Role.TOOL, (ToolResult("toolu_01ABC", (Text("Noon."),)), ToolResult("abcDEF123", (Text("One."),)))),
    )

    called, *results = messages_of(*said, kind="mistral")

    assert isinstance(called, dict)
    calls = called["tool_calls"]
    assert isinstance(calls, list)
    ids = [call["id"] for call in calls if isinstance(call, dict)]
    assert [len(str(one)) for one in ids] == [9, 9]
    assert ids[1] == "abcDEF123"
    assert [result["tool_call_id"] for result in results if isinstance(result, dict)] == ids


def test_an_id_that_is_too_long_for_openai_is_another_and_its_result_finds_it() -> None:
    long = "call_" + "x" * 60

    called, result = messages_of(
        Message(Role.ASSISTANT, (ToolCall(long, "clock", "{}"),)),
        Message(Role.TOOL, (ToolResult(long, (Text("Noon."),)),)),
    )

    assert isinstance(called, dict)
    assert isinstance(result, dict)
    assert isinstance(called["tool_calls"], list)
    assert isinstance(called["tool_calls"][0], dict)
    assert called["tool_calls"][0]["id"] == result["tool_call_id"]
    assert len(str(result["tool_call_id"])) <= 40


def test_what_a_tool_showed_follows_its_turn_in_a_message_of_the_user_s() -> None:
    shown = Image(data="iVBORw==", media_type="image/png")

    told = messages_of(
        Message(Role.TOOL, (ToolResult("call_1", (Text("Look."), shown)),)),
        Message(Role.TOOL, (ToolResult("call_2", (shown,)),)),
        Message(Role.ASSISTANT, (Text("I see."),)),
    )

    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    assert told == [
        {"role": "tool", "tool_call_id": "call_1", "content": "Look."},
        {"role": "tool", "tool_call_id": "call_2", "content": ""},
        {"role": "user", "content": [picture, picture]},
        {"role": "assistant", "content": "I see."},
    ]


@pytest.mark.parametrize(
    ("kind", "part", "told"),
    [
        (
            "openai",
            Image(url="https://x.example/a.png", detail="low"),
            {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}},
        ),
        (
            "openai",
            File(data="JVBERg==", media_type="application/pdf"),
            {
                "type": "file",
                "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
            },
        ),
        ("openai", File(file_id="file-1"), {"type": "file", "file": {"file_id": "file-1"}}),
        (
            "openrouter",
            File(url="https://x.example/a.pdf", name="a.pdf"),
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "https://x.example/a.pdf"}},
        ),
        (
            "mistral",
            File(data="JVBERg==", media_type="application/pdf", name="a.pdf"),
            {
                "type": "document_url",
                "document_url": "data:application/pdf;base64,JVBERg==",
                "document_name": "a.pdf",
            },
        ),
        ("mistral", File(file_id="file-1"), {"type": "file", "file_id": "file-1"}),
        ("mistral", Audio("UklGRg==", "wav"), {"type": "input_audio", "input_audio": "UklGRg=="}),
        (
            "openai",
            Audio("UklGRg==", "wav"),
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        ),
    ],
)
def test_media_is_put_as_the_kind_wants_it(kind: str, part: Part, told: JsonObject) -> None:
    assert messages_of(user(part), kind=kind) == [{"role": "user", "content": [told]}]


def written_or_refused(conversation: Conversation, kind: str) -> Written | None:
    """None where it is refused as what can't be said."""
    try:
        return write(conversation, kind)
    except InvalidRequest as error:
        if error.code is not ErrorCode.UNSUPPORTED_PARAMETER:
            raise
        return None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


@given(st.sampled_from(COMPATIBLE), conversations(media=False))
def test_any_conversation_fits_the_kind_s_documentation_and_loses_no_text(
    kind: str, conversation: Conversation
) -> None:
    told = written_or_refused(conversation, kind)

    if told is None:
        return
    if kind in PLAYED:
        assert PLAYED[kind].chat.misfit(told.payload, ()) is None
    written = "\0".join(_strings(told.payload))
    for name in ("messages", "tools", "stop"):
        for path, text in texts(getattr(conversation, name)):
            if "name" not in told.dropped or path[-1] != "name":
                # blank arguments of a call are an empty object
                assert text.strip() in written
