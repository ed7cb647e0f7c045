"""Answers from the neutral model as chat completions, whole and in chunks."""

from __future__ import annotations

import json

import pytest

from secure_llm_proxy.foundation.errors import UpstreamFailed
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.gateway import Reply, ReplyFacts
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Choice,
    Delta,
    DeltaKind,
    Finish,
    Image,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
)
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.openai.door import ChatFormat

ERROR = UpstreamFailed("It broke.")
USED = Usage(5, 3, 8)


def reply_to(completion: Completion | None = None, payload: JsonObject | None = None) -> Reply:
    facts = ReplyFacts("exc_1", None, None, "tested", "our-model", None, 0.0)
    return Reply(facts, completion or ERROR, ChatRequest("our-model", stream=False, payload=payload or {}))


def completion_of(*choices: Choice, usage: Usage = USED, id_: str | None = "msg_1") -> Completion:
    return Completion({}, "", usage, "theirs", WireFormat.ANTHROPIC_MESSAGES, Answer(choices, id_, 1_795_219_200))


def whole(*choices: Choice, usage: Usage = USED, payload: JsonObject | None = None) -> dict[str, JsonValue]:
    completion = completion_of(*choices, usage=usage)
    told = ChatFormat().whole(completion, reply_to(completion, payload))
    assert isinstance(told, dict)
    return told


def choice_of(
    *parts: Part, finish: Finish | None = Finish.STOP, payload: JsonObject | None = None
) -> dict[str, JsonValue]:
    choices = whole(Choice(parts, finish), payload=payload)["choices"]
    assert isinstance(choices, list)
    assert isinstance(choices[0], dict)
    return choices[0]


def events(data: bytes) -> list[JsonObject]:
    """The chunks of frames of server-sent events; the end mark as {"done": true}."""
    frames = data.decode().split("\n\n")
    assert frames.pop() == ""
    return [{"done": True} if frame == "data: [DONE]" else json.loads(frame.removeprefix("data: ")) for frame in frames]


def streamed(*steps: tuple[Delta, ...] | Usage, **payload: JsonValue) -> list[JsonObject]:
    """All chunks of a stream of which each step is one event: its deltas, or the usage alone."""
    writer = ChatFormat().stream(reply_to(payload=payload), translated=True)
    written = b""
    for step in steps:
        deltas, usage = ((), step) if isinstance(step, Usage) else (step, None)
        written += writer.event(StreamEvent(b"{}", {}, "", usage, deltas=deltas))
    return events(written + writer.end())


def deltas_of(chunks: list[JsonObject]) -> list[JsonValue]:
    """What each chunk with a choice adds."""
    found: list[JsonValue] = []
    for chunk in chunks:
        choices = chunk.get("choices")
        if isinstance(choices, list) and choices:
            assert isinstance(choices[0], dict)
            found.append(choices[0]["delta"])
    return found


def test_an_answer_in_openai_s_own_format_leaves_as_it_came() -> None:
    completion = Completion({"as": "it came"}, "", USED, "m")

    assert ChatFormat().whole(completion, reply_to(completion)) == {"as": "it came"}


def test_an_answer_of_another_format_is_a_chat_completion() -> None:
    assert whole(Choice((Text("He"), Text("llo.")), Finish.STOP)) == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 1_795_219_200,
        "model": "our-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


def test_an_answer_without_an_id_gets_that_of_the_exchange() -> None:
    completion = completion_of(Choice((), None), id_=None)
    told = ChatFormat().whole(completion, reply_to(completion))

    assert isinstance(told, dict)
    assert told["id"] == "chatcmpl-exc_1"


def test_tool_calls_are_told_with_their_reason() -> None:
    choice = choice_of(ToolCall("call_1", "clock", '{"at":1}'), ToolCall("call_2", "clock", ""), finish=Finish.STOP)

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"at":1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": ""}},
        ],
    }


def test_a_client_of_functions_is_told_of_one_call() -> None:
    choice = choice_of(
        ToolCall("call_1", "clock", "{}"), finish=Finish.TOOL_CALLS, payload={"functions": [{"name": "clock"}]}
    )

    assert choice["finish_reason"] == "function_call"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": {"name": "clock", "arguments": "{}"},
    }


def test_thoughts_refusals_and_images_have_fields_of_their_own() -> None:
    message = choice_of(
        Reasoning("Hm.", signature="s"), Reasoning("", redacted="r"), Refusal("No."),
        Image(data="iVBORw==", media_type="image/png"),
    )["message"]  # fmt: skip

    assert message == {
        "role": "assistant",
        "content": None,
        "refusal": "No.",
        "reasoning_content": "Hm.",
        "images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}],
    }


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (Finish.STOP, "stop"),
        (Finish.STOP_SEQUENCE, "stop"),
        (Finish.LENGTH, "length"),
        (Finish.CONTENT_FILTER, "content_filter"),
        (Finish.REFUSAL, "content_filter"),
        (Finish.PAUSE, "length"),
        (None, "stop"),
    ],
)
def test_every_ending_has_a_reason_that_sdks_know(finish: Finish | None, reason: str) -> None:
    assert choice_of(Text("x"), finish=finish)["finish_reason"] == reason


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        (Usage(), None),
        (Usage(5, None, 5), None),
        (Usage(5, 3), {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}),
        (
            Usage(5, 3, 8, 2, 1, 0),
            {
                "prompt_tokens": 5,
                "completion_tokens": 3,
                "total_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        ),
    ],
)
def test_usage_is_told_when_it_is_known(usage: Usage, told: JsonObject | None) -> None:
    assert whole(Choice((Text("x"),), Finish.STOP), usage=usage).get("usage") == told


def test_events_in_openai_s_own_format_leave_as_they_came() -> None:
    writer = ChatFormat().stream(reply_to(), translated=False)

    assert writer.event(StreamEvent(b'{"as":"it came"}', {}, "", None)) == b'data: {"as":"it came"}\n\n'
    assert writer.end() == b"data: [DONE]\n\n"


def test_a_stream_tells_the_role_first_and_the_reason_last() -> None:
    chunks = streamed(
        (Delta(DeltaKind.START, id="msg_1"),),
        (Delta(DeltaKind.TEXT, text="He"),),
        (Delta(DeltaKind.TEXT, text='l"lo\n'),),
        (),
        (Delta(DeltaKind.FINISH, finish=Finish.STOP),),
        USED,
    )

    assert chunks.pop() == {"done": True}
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        ("msg_1", "chat.completion.chunk", "our-model")
    }
    assert deltas_of(chunks) == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "He"},
        {"content": 'l"lo\n'},
        {},
    ]
    choices = chunks[-1]["choices"]
    assert choices == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert not any("usage" in chunk for chunk in chunks)


def test_the_usage_stands_last_and_alone_when_it_was_asked_for() -> None:
    chunks = streamed(
        (Delta(DeltaKind.TEXT, text="x"),),
        (Delta(DeltaKind.TEXT, text="y"),),
        Usage(5, 1, 6),
        USED,
        (Delta(DeltaKind.FINISH, finish=Finish.STOP),),
        stream_options={"include_usage": True},
    )

    assert chunks.pop() == {"done": True}
    last = chunks.pop()
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert last["id"] == "chatcmpl-exc_1"
    assert all(chunk["usage"] is None for chunk in chunks)


def test_a_stream_without_any_event_ends_well() -> None:
    assert streamed(stream_options={"include_usage": True}) == [{"done": True}]
    assert streamed(USED, stream_options={"include_usage": True})[0]["choices"] == []


def test_calls_are_numbered_and_their_arguments_follow() -> None:
    chunks = streamed(
        (Delta(DeltaKind.START), Delta(DeltaKind.TOOL_CALL, call=0, id="call_1", name="clock")),
        (Delta(DeltaKind.TOOL_ARGUMENTS, call=0, text='{"a'),),
        (Delta(DeltaKind.TOOL_ARGUMENTS, call=0, text='":1}'), Delta(DeltaKind.TOOL_CALL, call=1, id="c2", name="w")),
        (Delta(DeltaKind.FINISH, finish=Finish.STOP),),
    )

    assert deltas_of(chunks)[1:] == [
        {
            "tool_calls": [
                {"index": 0, "id": "call_1", "type": "function", "function": {"name": "clock", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]},
        {"tool_calls": [{"index": 1, "id": "c2", "type": "function", "function": {"name": "w", "arguments": ""}}]},
        {},
    ]
    assert chunks[-2]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}]


def test_a_client_of_functions_is_streamed_one_call() -> None:
    chunks = streamed(
        (Delta(DeltaKind.TOOL_CALL, call=0, id="call_1", name="clock"),),
        (Delta(DeltaKind.TOOL_ARGUMENTS, call=0, text="{}"),),
        (Delta(DeltaKind.FINISH, finish=Finish.TOOL_CALLS),),
        functions=[{"name": "clock"}],
    )

    assert deltas_of(chunks)[1:] == [
        {"function_call": {"name": "clock", "arguments": ""}},
        {"function_call": {"arguments": "{}"}},
        {},
    ]
    choices = chunks[-2]["choices"]
    assert isinstance(choices, list)
    assert isinstance(choices[0], dict)
    assert choices[0]["finish_reason"] == "function_call"


def test_every_choice_has_its_own_role_text_and_reason() -> None:
    chunks = streamed(
        (Delta(DeltaKind.TEXT, 0, text="a"), Delta(DeltaKind.TEXT, 1, text="b")),
        (Delta(DeltaKind.FINISH, 1, finish=Finish.LENGTH), Delta(DeltaKind.FINISH, 0, finish=Finish.STOP)),
    )

    told: dict[int, list[JsonValue]] = {0: [], 1: []}
    for chunk in chunks[:-1]:
        choices = chunk["choices"]
        assert isinstance(choices, list)
        [choice] = choices
        assert isinstance(choice, dict)
        assert isinstance(choice["index"], int)
        told[choice["index"]] += [choice["delta"], choice["finish_reason"]]
    role: JsonObject = {"role": "assistant", "content": "", "refusal": None}
    assert told == {
        0: [role, None, {"content": "a"}, None, {}, "stop"],
        1: [role, None, {"content": "b"}, None, {}, "length"],
    }


def test_thoughts_and_refusals_are_streamed_and_seals_are_not() -> None:
    chunks = streamed(
        (Delta(DeltaKind.REASONING, text="Hm."),),
        (Delta(DeltaKind.SIGNATURE, text="seal"),),
        (Delta(DeltaKind.REDACTED_REASONING, text="sealed"),),
        (Delta(DeltaKind.REFUSAL, text="No."),),
    )

    assert deltas_of(chunks)[1:] == [{"reasoning_content": "Hm."}, {"refusal": "No."}]


def test_logprobs_stand_beside_the_text_of_their_event() -> None:
    value: JsonObject = {"content": [{"token": "a", "logprob": -0.5}]}
    chunks = streamed(
        (Delta(DeltaKind.TEXT, text="a"), Delta(DeltaKind.LOGPROBS, value=value)),
        (Delta(DeltaKind.LOGPROBS, value=value),),
    )

    told = []
    for chunk in chunks[1:-1]:
        choices = chunk["choices"]
        assert isinstance(choices, list)
        told += choices
    assert told == [
        {"index": 0, "delta": {"content": "a"}, "logprobs": value, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": value, "finish_reason": None},
    ]


def test_a_stream_that_breaks_off_ends_in_an_error_event() -> None:
    frame = ChatFormat().stream(reply_to(), translated=True).error(ERROR)

    assert frame.startswith(b"event: error\ndata: ")
    assert json.loads(frame.partition(b"data: ")[2])["error"]["message"] == "It broke."
