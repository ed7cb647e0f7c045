"""Answers of other providers as Anthropic's messages, whole and streamed."""

from __future__ import annotations

import json
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import ErrorCode, UpstreamFailed
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.gateway import Reply, ReplyFacts
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Audio,
    Choice,
    Delta,
    DeltaKind,
    Embeddings,
    Finish,
    Image,
    NeutralAnswer,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
)
from secure_llm_proxy.web.anthropic.message import (
    MessageStream,
    PassedMessageStream,
    message_of,
    usage_object,
)
from tests.support.anthropic_events import Message, assemble

_FACTS = ReplyFacts("exc_1", None, None, "tested", "small", None, 0.0)


def _completion(answer: NeutralAnswer, usage: Usage | None = None) -> Completion:
    return Completion({}, "", usage or Usage(24, 9, 33, 8, 3, 4), "theirs", answer=answer)


def _told(*parts: Part, finish: Finish | None = Finish.STOP, **fields: object) -> JsonObject:
    choice = Choice(parts, finish, **fields)  # type: ignore[arg-type]  # a maker: the fields' types are Choice's own
    completion = _completion(Answer((choice,), id="msg_theirs"))
    return message_of(completion, Reply(_FACTS, completion))


def _written(*steps: tuple[Delta, ...] | Delta | Usage, end: bool = True) -> bytes:
    """What the writer makes of these events."""
    reply = Reply(_FACTS, _completion(Answer(())))
    writer = MessageStream(reply)
    said = b""
    for step in steps:
        if isinstance(step, Usage):
            event = StreamEvent(b"", {}, "", step)
        else:
            event = StreamEvent(b"", {}, "", None, deltas=(step,) if isinstance(step, Delta) else step)
        said += writer.event(event)
    return said + writer.end() if end else said


def _streamed(*steps: tuple[Delta, ...] | Delta | Usage) -> Message:
    message = assemble(_written(*steps))
    assert message.ended
    return message


def _text(text: str) -> Delta:
    return Delta(DeltaKind.TEXT, text=text)


def _call(call: int, *pieces: str) -> list[Delta]:
    begun = Delta(DeltaKind.TOOL_CALL, call=call, id=f"call_{call}", name=f"tool_{call}")
    return [begun, *(Delta(DeltaKind.TOOL_ARGUMENTS, call=call, text=piece) for piece in pieces)]


def _finish(finish: Finish, text: str = "") -> Delta:
    return Delta(DeltaKind.FINISH, finish=finish, text=text)


# --- whole ------------------------------------------------------------------------------------------------------------


def test_an_answer_is_a_message_with_all_of_its_fields() -> None:
    told = _told(
        Reasoning("hm", signature="c2ln"),
        Reasoning("", redacted="c2VhbGVk"),
        Reasoning("unsigned"),
        Reasoning(""),
        Text("Look:"),
        Text(""),
        ToolCall("call_1", "weather", '{"city":"Oslo"}'),
        ToolCall("call_2", "now", ""),
        finish=Finish.TOOL_CALLS,
    )

    assert told == {
        "id": "msg_theirs",
        "type": "message",
        "role": "assistant",
        "model": "small",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "c2VhbGVk"},
            {"type": "thinking", "thinking": "unsigned", "signature": ""},
            {"type": "text", "text": "Look:"},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}},
            {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 13,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 8,
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 4},
        },
    }


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (Finish.STOP, "end_turn"),
        (Finish.STOP_SEQUENCE, "stop_sequence"),
        (Finish.LENGTH, "max_tokens"),
        (Finish.TOOL_CALLS, "tool_use"),
        (Finish.CONTENT_FILTER, "refusal"),
        (Finish.REFUSAL, "refusal"),
        (Finish.PAUSE, "pause_turn"),
        (None, "end_turn"),
    ],
)
def test_why_it_stopped_is_said_alike_whole_and_streamed(finish: Finish | None, reason: str) -> None:
    assert _told(Text("x"), finish=finish)["stop_reason"] == reason
    assert _streamed(_text("x"), Delta(DeltaKind.FINISH, finish=finish)).told["stop_reason"] == reason


def test_a_call_is_a_reason_to_stop_even_where_the_provider_says_otherwise() -> None:
    assert _told(ToolCall("c", "t", "{}"), finish=Finish.STOP)["stop_reason"] == "tool_use"
    assert _streamed(*_call(0, "{}"), _finish(Finish.STOP)).told["stop_reason"] == "tool_use"
    assert _told(ToolCall("c", "t", "{}"), finish=Finish.LENGTH)["stop_reason"] == "max_tokens"


def test_a_stop_sequence_is_named_alike_whole_and_streamed() -> None:
    whole = _told(Text("x"), finish=Finish.STOP_SEQUENCE, stop_sequence="END")
    streamed = _streamed(_text("x"), _finish(Finish.STOP_SEQUENCE, "END")).told

    assert whole["stop_sequence"] == streamed["stop_sequence"] == "END"


@pytest.mark.parametrize("arguments", ["[1]", "7", "{", '{"a":', "nothing"])
def test_arguments_that_are_no_object_are_told_as_they_are(arguments: str) -> None:
    assert _told(ToolCall("c", "t", arguments))["content"] == [
        {"type": "tool_use", "id": "c", "name": "t", "input": {"raw_arguments": arguments}}
    ]


def test_what_the_format_has_no_place_for_is_text() -> None:
    told = _told(Refusal("I won't."), Image(data="QQ==", media_type="image/png"), Image(url="https://a.example/b.png"))

    assert told["content"] == [
        {"type": "text", "text": "I won't."},
        {"type": "text", "text": "![image](data:image/png;base64,QQ==)"},
        {"type": "text", "text": "![image](https://a.example/b.png)"},
    ]


def test_an_answer_without_a_choice_is_an_empty_message() -> None:
    completion = _completion(Answer(()), Usage())

    told = message_of(completion, Reply(_FACTS._replace(model=None), completion))

    assert (told["content"], told["stop_reason"], told["model"], told["id"]) == ([], "end_turn", "theirs", "msg_exc_1")


@pytest.mark.parametrize("answer", [Embeddings(()), Answer((Choice((Audio("QQ==", "wav"),), None),))])
def test_what_nobody_asked_for_is_a_defect(answer: NeutralAnswer) -> None:
    completion = _completion(answer)

    with pytest.raises(TypeError):
        message_of(completion, Reply(_FACTS, completion))


@pytest.mark.parametrize(
    ("usage", "fresh"), [(Usage(), 0), (Usage(10, 2, 12), 10), (Usage(10, 2, 12, 4), 6), (Usage(3, 2, 5, 8), 0)]
)
def test_parts_of_a_prompt_are_counted_apart(usage: Usage, fresh: int) -> None:
    assert usage_object(usage)["input_tokens"] == fresh


# --- streamed ---------------------------------------------------------------------------------------------------------


def test_a_stream_of_text_has_the_documented_events_to_the_byte() -> None:
    said = _written(
        Delta(DeltaKind.START, id="chatcmpl-1"), _text("Hé"), _text("llo"), _finish(Finish.STOP), Usage(24, 9, 33, 8, 3)
    )

    assert said.decode() == (
        'event: message_start\ndata: {"type":"message_start","message":{"id":"chatcmpl-1","type":"message",'
        '"role":"assistant","model":"small","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,'
        '"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hé"}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"llo"}}\n\n'
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
        '"usage":{"input_tokens":13,"cache_creation_input_tokens":3,"cache_read_input_tokens":8,"output_tokens":9}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


def test_an_empty_stream_is_an_empty_message() -> None:
    message = _streamed()

    assert message.blocks == []
    assert message.told["stop_reason"] == "end_turn"


def test_thought_is_signed_before_the_next_one_begins() -> None:
    message = _streamed(
        Delta(DeltaKind.REASONING, text="one"),
        Delta(DeltaKind.REASONING, text=" more"),
        Delta(DeltaKind.SIGNATURE, text="c2"),
        Delta(DeltaKind.SIGNATURE, text="ln"),
        Delta(DeltaKind.REASONING, text="two"),
        Delta(DeltaKind.REDACTED_REASONING, text="c2VhbGVk"),
        Delta(DeltaKind.REDACTED_REASONING, text="c2VhbGVkMg"),
        _text("So."),
        Delta(DeltaKind.REFUSAL, text=" No."),
    )

    assert [{name: value for name, value in block.items() if name != "written"} for block in message.blocks] == [
        {"type": "thinking", "thinking": "one more", "signature": "c2ln"},
        {"type": "thinking", "thinking": "two", "signature": ""},
        {"type": "redacted_thinking", "data": "c2VhbGVk"},
        {"type": "redacted_thinking", "data": "c2VhbGVkMg"},
        {"type": "text", "text": "So. No."},
    ]


def test_calls_in_a_row_are_written_as_they_come() -> None:
    so_far = _written(_text("Look"), *_call(0, '{"a":', "1}"), *_call(1, '{"b'), end=False)

    message = assemble(so_far)
    assert message.calls == [("call_0", "tool_0", '{"a":1}'), ("call_1", "tool_1", '{"b')]


def test_calls_that_come_in_turn_wait_for_the_one_before() -> None:
    first, second = _call(0, '{"a":', "1}"), _call(1, '{"b":', "2}")

    message = _streamed(first[0], second[0], first[1], second[1], first[2], second[2], _finish(Finish.TOOL_CALLS))

    assert message.calls == [("call_0", "tool_0", '{"a":1}'), ("call_1", "tool_1", '{"b":2}')]


def test_a_call_without_arguments_has_an_empty_object() -> None:
    message = _streamed(*_call(0), *_call(1), _finish(Finish.TOOL_CALLS))

    assert [(block["input"], block["written"]) for block in message.blocks] == [({}, ""), ({}, "")]


def test_arguments_of_a_call_that_is_over_break_the_stream() -> None:
    with pytest.raises(UpstreamFailed):
        _written(*_call(0, "{}"), *_call(1, "{"), Delta(DeltaKind.TOOL_ARGUMENTS, call=0, text="}"))
    with pytest.raises(UpstreamFailed):
        _written(Delta(DeltaKind.TOOL_ARGUMENTS, call=3, text="}"))


def test_other_choices_probabilities_and_empty_pieces_add_nothing() -> None:
    message = _streamed(
        _text("a"),
        _text(""),
        Delta(DeltaKind.TEXT, choice=1, text="b"),
        Delta(DeltaKind.LOGPROBS, value={"content": []}),
        (),
        (_text("c"), Delta(DeltaKind.TEXT, choice=1, text="d")),
        Delta(DeltaKind.REASONING),
        Delta(DeltaKind.SIGNATURE),
    )

    assert message.text == "ac"
    assert len(message.blocks) == 1


def test_a_stream_that_breaks_off_ends_in_an_error_of_anthropic_s_shape() -> None:
    error = UpstreamFailed("It broke.", detail="canary")

    for writer in (MessageStream(Reply(_FACTS, error)), PassedMessageStream("exc_1")):
        name, data, rest = writer.error(error).decode().split("\n", 2)
        assert (name, rest) == ("event: error", "\n")
        assert json.loads(data.removeprefix("data: ")) == {
            "type": "error",
            "error": {
                "type": "api_error",
                "message": "It broke.",
                "details": {"error_code": ErrorCode.UPSTREAM_ERROR},
                "code": ErrorCode.UPSTREAM_ERROR,
                "param": None,
            },
            "request_id": "exc_1",
        }


def test_events_of_this_format_pass_as_they_came_and_the_last_one_comes_at_the_end() -> None:
    writer = PassedMessageStream("exc_1")

    said = writer.event(StreamEvent(b'{"type":"x"}', {}, "", None, name=b"x"))

    assert said == b'event: x\ndata: {"type":"x"}\n\n'
    assert writer.end() == b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


_pieces = st.text(st.characters(codec="utf-8"), max_size=5)
_steps = st.one_of(
    st.tuples(st.just(DeltaKind.TEXT), _pieces),
    st.tuples(st.just(DeltaKind.REASONING), _pieces),
    st.tuples(st.just(DeltaKind.REDACTED_REASONING), st.just("QQ==")),
    st.tuples(st.just(DeltaKind.SIGNATURE), st.just("c2ln")),
    st.tuples(st.just(DeltaKind.TOOL_CALL), st.sampled_from(["", "{}", '{"a":"}"}', '{"a":[1,2]}', '{"b":"é"}'])),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_steps, max_size=12))
def test_whatever_a_provider_says_in_order_is_said_in_order(steps: list[tuple[DeltaKind, str]]) -> None:
    deltas: list[Delta] = []
    calls = 0
    for kind, text in steps:
        if kind is DeltaKind.TOOL_CALL:
            cuts = sorted({0, len(text) // 2, len(text)})
            deltas += _call(calls, *(text[one:two] for one, two in pairwise(cuts)))
            calls += 1
        else:
            deltas.append(Delta(kind, text=text))

    message = _streamed(*deltas, _finish(Finish.STOP))

    said = [(kind, text) for kind, text in steps if text or kind is DeltaKind.TOOL_CALL]
    assert message.text == "".join(text for kind, text in said if kind is DeltaKind.TEXT)
    assert [written for _, _, written in message.calls] == [text for kind, text in said if kind is DeltaKind.TOOL_CALL]
    thought = "".join(block["thinking"] for block in message.blocks if block["type"] == "thinking")
    assert thought == "".join(text for kind, text in said if kind is DeltaKind.REASONING)
    kinds = {"text": DeltaKind.TEXT, "redacted_thinking": DeltaKind.REDACTED_REASONING, "tool_use": DeltaKind.TOOL_CALL}
    expected = [kind for kind, _ in groupby(kind for kind, _ in said if kind in kinds.values())]
    assert [
        kind for kind, _ in groupby(kinds[block["type"]] for block in message.blocks if block["type"] in kinds)
    ] == expected
