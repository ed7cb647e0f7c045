from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.upstream.formats.anthropic_request import MAX_TOKENS_UNLESS_SAID, write_conversation
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
from tests.support.provider_formats.anthropic import CREATE_2023, VERSIONS, further_misfit
from tests.support.provider_formats.playing import misfit_of
from tests.support.provider_formats.shapes import View

_TOOL = Tool("weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string"}}})


def _asked(*parts: Part) -> Conversation:
    return Conversation((Message(Role.USER, parts or (Text("How are things?"),)),))


def _written(conversation: Conversation) -> JsonObject:
    written = write_conversation(conversation, "claude")
    assert misfit_of(CREATE_2023, written.payload) is None
    assert further_misfit(View(written.payload), VERSIONS[0]) is None
    return written.payload


def _only_blocks(conversation: Conversation) -> JsonValue:
    messages = _written(conversation)["messages"]
    assert isinstance(messages, list)
    assert isinstance(messages[-1], dict)
    return messages[-1]["content"]


def test_a_plain_question_gets_a_bound_that_nobody_asked_for() -> None:
    assert _written(_asked()) == {
        "model": "claude",
        "messages": [{"role": "user", "content": "How are things?"}],
        "max_tokens": MAX_TOKENS_UNLESS_SAID,
    }


def test_instructions_stand_in_front_wherever_they_stood() -> None:
    conversation = Conversation(
        (
            Message(Role.SYSTEM, (Text("Be brief."),)),
            Message(Role.USER, (Text("Hello"),)),
            Message(Role.ASSISTANT, (Text("Hi."),)),
            Message(Role.DEVELOPER, (Text("Now in "), Text("French."))),
            Message(Role.USER, (Text("And?"),)),
        )
    )

    payload = _written(conversation)

    assert payload["system"] == "Be brief.\n\nNow in \n\nFrench."
    assert payload["messages"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And?"},
    ]


def test_results_of_parallel_calls_stand_first_in_one_turn() -> None:
    conversation = Conversation(
        (
            Message(Role.USER, (Text("Where is it warmer?"),)),
            Message(
                Role.ASSISTANT,
                (Text("\n"), ToolCall("call_1", "weather", '{"city":"Oslo"}'), ToolCall("call_2", "weather", "")),
            ),
            Message(Role.TOOL, (ToolResult("call_1", (Text("4°"),)),)),
            Message(Role.TOOL, (ToolResult("call_2", (Text("no"), Text("idea")), is_error=True),)),
            Message(Role.USER, (Text("So?"),)),
        ),
        tools=(_TOOL,),
    )

    assert _written(conversation)["messages"] == [
        {"role": "user", "content": "Where is it warmer?"},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "4°"},
                {
                    "type": "tool_result",
                    "tool_use_id": "call_2",
                    "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "idea"}],
                    "is_error": True,
                },
                {"type": "text", "text": "So?"},
            ],
        },
    ]


def test_ids_of_another_alphabet_are_replaced_in_call_and_result_alike() -> None:
    conversation = Conversation(
        (
            Message(Role.USER, (Text("Go."),)),
            Message(Role.ASSISTANT, (ToolCall("functions.a:0", "a", "{}"), ToolCall("functions.a:1", "a", "{}"))),
            Message(Role.TOOL, (ToolResult("functions.a:0", ()), ToolResult("functions.a:1", (Text("x"),)))),
        ),
        tools=(Tool("a"),),
    )

    payload = _written(conversation)

    messages = View(payload)["messages"]
    calls = [block["id"].text for message in messages for block in message["content"] if block["id"].text]
    results = [
        block["tool_use_id"].text for message in messages for block in message["content"] if block["tool_use_id"].text
    ]
    assert calls == results
    assert len(set(calls)) == 2


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (Image(url="https://example.org/a.png"), {"type": "url", "url": "https://example.org/a.png"}),
        (Image(data="QQ==", media_type="image/png"), {"type": "base64", "media_type": "image/png", "data": "QQ=="}),
    ],
)
def test_images_are_shown_by_link_or_in_base64(part: Image, block: JsonObject) -> None:
    assert _only_blocks(_asked(Text("See"), part)) == [
        {"type": "text", "text": "See"},
        {"type": "image", "source": block},
    ]


@pytest.mark.parametrize(
    ("part", "source"),
    [
        (
            File(data="QQ==", media_type="application/pdf"),
            {"type": "base64", "media_type": "application/pdf", "data": "QQ=="},
        ),
        (
            File(data=b64encode("né".encode()).decode(), media_type="text/markdown"),
            {"type": "text", "media_type": "text/plain", "data": "né"},
        ),
        (File(url="https://example.org/a.pdf"), {"type": "url", "url": "https://example.org/a.pdf"}),
    ],
)
def test_files_are_documents(part: File, source: JsonObject) -> None:
    titled = replace(part, name="notes")

    assert _only_blocks(_asked(titled)) == [{"type": "document", "source": source, "title": "notes"}]


def test_thoughts_are_shown_to_the_one_who_signed_them_only() -> None:
    conversation = Conversation(
        (
            Message(Role.USER, (Text("Hello"),)),
            Message(
                Role.ASSISTANT,
                (
                    Reasoning("mine", signature="c2ln"),
                    Reasoning("", redacted="c2VhbGVk"),
                    Reasoning("", redacted="gemini/c2VhbGVk"),
                    Reasoning("somebody else's"),
                    Refusal("I can't say."),
                ),
            ),
            Message(Role.USER, (Text("Go on"),)),
        )
    )

    messages = _written(conversation)["messages"]

    assert isinstance(messages, list)
    assert messages[1] == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "mine", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "c2VhbGVk"},
            {"type": "text", "text": "I can't say."},
        ],
    }


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoice("auto"), {"type": "auto"}),
        (ToolChoice("auto", parallel=False), {"type": "auto", "disable_parallel_tool_use": True}),
        (ToolChoice("none", parallel=False), {"type": "none"}),
        (ToolChoice("required"), {"type": "any"}),
        (
            ToolChoice("named", "weather", parallel=False),
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_the_choice_of_tools_is_said_in_its_words(choice: ToolChoice, expected: JsonObject) -> None:
    assert _written(replace(_asked(), tools=(_TOOL,), tool_choice=choice))["tool_choice"] == expected


def test_tools_have_a_schema_of_an_object_even_without_parameters() -> None:
    tools = (_TOOL, Tool("now", strict=True, parameters={"additionalProperties": False}), Tool("bare"))

    assert _written(replace(_asked(), tools=tools))["tools"] == [
        {"name": "weather", "description": "Tells it.", "input_schema": _TOOL.parameters},
        {"name": "now", "input_schema": {"type": "object", "additionalProperties": False}, "strict": True},
        {"name": "bare", "input_schema": {"type": "object"}},
    ]


def test_parameters_stand_under_its_names() -> None:
    schema: JsonObject = {"type": "object", "additionalProperties": False}
    conversation = replace(
        _asked(),
        max_tokens=100,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        stop=("END",),
        user="u-1",
        stream=True,
        reasoning_effort="minimal",
        output=OutputFormat("schema", schema, name="answer"),
    )

    payload = _written(conversation)

    assert {name: value for name, value in payload.items() if name not in ("model", "messages")} == {
        "max_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
        "stream": True,
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": schema}},
    }


@pytest.mark.parametrize(
    ("conversation", "thinking", "bound"),
    [
        (replace(_asked(), reasoning_tokens=2048), {"type": "enabled", "budget_tokens": 2048}, 2048 + 4096),
        (
            replace(_asked(), reasoning_tokens=2048, max_tokens=3000),
            {"type": "enabled", "budget_tokens": 2048},
            3000,
        ),
        (replace(_asked(), reasoning_tokens=0), {"type": "disabled"}, 4096),
        (replace(_asked(), reasoning_effort="none"), {"type": "disabled"}, 4096),
    ],
)
def test_thinking_has_its_budget_within_the_bound(conversation: Conversation, thinking: JsonObject, bound: int) -> None:
    payload = _written(conversation)

    assert payload["thinking"] == thinking
    assert payload["max_tokens"] == bound


def test_what_only_tunes_is_left_out_and_named_by_the_client_s_names() -> None:
    conversation = replace(
        Conversation((Message(Role.USER, (Text("Hi"), Image(url="https://a.example/", detail="high")), name="bob"),)),
        seed=1,
        presence_penalty=0.0,
        frequency_penalty=1.0,
        further={"logit_bias": {}, "store": True},
    )

    written = write_conversation(conversation, "claude")

    assert written.dropped == (
        "name",
        "detail",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "store",
    )
    assert misfit_of(CREATE_2023, written.payload) is None


@pytest.mark.parametrize(
    ("conversation", "param"),
    [
        (replace(_asked(), n=2), "n"),
        (replace(_asked(), logprobs=True), "logprobs"),
        (replace(_asked(), top_logprobs=3), "top_logprobs"),
        (replace(_asked(), temperature=1.5), "temperature"),
        (replace(_asked(), output=OutputFormat("json")), "response_format"),
        (replace(_asked(), reasoning_effort="most"), "reasoning_effort"),
        (replace(_asked(), tool_choice=ToolChoice("required")), "tool_choice"),
        (_asked(Audio("QQ==", "wav")), "messages"),
        (_asked(File(file_id="file-1")), "messages"),
        (_asked(File(data="QQ==", media_type="application/zip")), "messages"),
        (_asked(File(data="//8=", media_type="text/plain")), "messages"),
        (_asked(Image(data="QQ==")), "messages"),
        (_asked(Text("")), "messages"),
        (Conversation((Message(Role.SYSTEM, (Text("Only this."),)),)), "messages"),
        (Conversation((Message(Role.SYSTEM, (Image(url="https://a.example/"),)),)), "messages"),
        (Conversation((Message(Role.ASSISTANT, (ToolCall("c", "a", "[1]"),)),)), "messages"),
        (Conversation((Message(Role.ASSISTANT, (ToolCall("c", "a", '{"a":1,"a":2}'),)),)), "messages"),
    ],
)
def test_what_changes_the_answer_and_can_t_be_said_is_refused(conversation: Conversation, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        write_conversation(conversation, "claude")

    assert refused.value.code is ErrorCode.UNSUPPORTED_PARAMETER
    assert refused.value.param == param


def test_one_choice_and_no_probabilities_are_nothing_to_refuse() -> None:
    _written(replace(_asked(), n=1, logprobs=False, top_logprobs=0, tool_choice=ToolChoice("auto")))


_words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
_user_parts: st.SearchStrategy[Part] = st.one_of(
    _words.map(Text),
    st.just(Image(data="QQ==", media_type="image/png")),
    st.just(File(data="QQ==", media_type="application/pdf", name="a.pdf")),
)


@st.composite
def _conversations(draw: st.DrawFn) -> Conversation:
    messages = [Message(Role.USER, (Text("Begin."),))]
    for turn in range(draw(st.integers(0, 4))):
        calls = [
            ToolCall(
                f"c{draw(st.sampled_from(['.', '_']))}{turn}{at}", "weather", draw(st.sampled_from(["", '{"a":[1]}']))
            )
            for at in range(draw(st.integers(0, 2)))
        ]
        said: list[Part] = [*map(Text, draw(st.lists(_words, max_size=2))), *calls]
        messages.append(Message(Role.ASSISTANT, tuple(said)))
        for call in calls:
            result = ToolResult(call.id, tuple(map(Text, draw(st.lists(_words, max_size=2)))))
            messages.append(Message(Role.TOOL, (result,)))
        if draw(st.booleans()):
            role = draw(st.sampled_from([Role.SYSTEM, Role.DEVELOPER]))
            messages.append(Message(role, (Text(draw(_words)),)))
        messages.append(Message(Role.USER, tuple(draw(st.lists(_user_parts, min_size=1, max_size=3)))))
    return Conversation(tuple(messages), tools=(_TOOL,), max_tokens=draw(st.none() | st.integers(1, 9000)))


@settings(max_examples=150, deadline=None)
@given(_conversations())
def test_whatever_is_written_is_a_request_as_documented(conversation: Conversation) -> None:
    payload = _written(conversation)

    told = str(payload)
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, Text):
                assert repr(part.text)[1:-1] in told or part.text in _strings(payload)


def _strings(value: JsonValue) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "\n".join(map(_strings, value.values()))
    return "\n".join(map(_strings, value)) if isinstance(value, list) else ""
