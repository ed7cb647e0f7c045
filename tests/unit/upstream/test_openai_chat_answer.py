"""What servers of OpenAI's chat completions answer, in neutral form: whole and event by event."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import FailureKind, UpstreamFailed
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.upstream.formats.openai_chat import OpenAiChat
from secure_llm_proxy.upstream.server_sent_events import ServerSentEventParser
from secure_llm_proxy.vocabulary.chat import StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Choice,
    Delta,
    DeltaKind,
    Finish,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
)

START = Delta(DeltaKind.START, id="chatcmpl-1")


def read(*choices: JsonObject, **fields: JsonValue) -> Answer:
    body = json.dumps({"id": "chatcmpl-1", "created": 7, "choices": list(choices), **fields}).encode()
    answer = OpenAiChat().read(body, model="m", translated=True).answer
    assert isinstance(answer, Answer)
    return answer


def parts_of(**message: JsonValue) -> tuple[Part, ...]:
    return read({"message": message, "finish_reason": "stop"}).choices[0].parts


def chunk(delta: JsonObject | None = None, reason: str | None = None, **fields: JsonValue) -> bytes:
    """One event, of a choice or of none; fields of the choice itself among `fields` begin with `choice_`."""
    told = {name: value for name, value in fields.items() if not name.startswith("choice_")}
    own = {name.removeprefix("choice_"): value for name, value in fields.items() if name.startswith("choice_")}
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason, **own}]
    return json.dumps({"id": "chatcmpl-1", "choices": choices, **told}).encode()


def events_of(*data: bytes) -> list[StreamEvent]:
    reader = OpenAiChat().stream(translated=True, shows_usage=True)
    return [event for one in data if (event := reader.read_object(one)) is not None]


def deltas_of(*data: bytes) -> list[Delta]:
    return [delta for event in events_of(*data) for delta in event.deltas]


def call(
    index: int | None = 0, id_: str | None = None, name: str | None = None, arguments: str | None = None
) -> JsonObject:
    """A delta with a piece of one call; what is None is left out."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    piece: JsonObject = {"function": {**function}}
    if index is not None:
        piece["index"] = index
    if id_ is not None:
        piece["id"] = id_
    return {"tool_calls": [piece]}


def test_an_answer_that_nobody_translates_has_no_neutral_form() -> None:
    assert OpenAiChat().read(b'{"choices":[]}', model="m", translated=False).answer is None


def test_a_whole_answer_keeps_its_choices() -> None:
    answer = read(
        {"message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop", "logprobs": {"content": []}},
        {"message": {"content": None, "refusal": "No."}, "finish_reason": "content_filter"},
    )

    assert answer == Answer(
        (
            Choice((Text("Hello."),), Finish.STOP, None, {"content": []}),
            Choice((Refusal("No."),), Finish.CONTENT_FILTER),
        ),
        "chatcmpl-1",
        7,
    )


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ({"content": ""}, ()),
        ({"content": None}, ()),
        ({"content": "x", "reasoning_content": "Hm."}, (Reasoning("Hm."), Text("x"))),
        ({"content": "x", "reasoning": "Hm.", "reasoning_details": [{}]}, (Reasoning("Hm."), Text("x"))),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                    {"type": "text", "text": "x"},
                    {"type": "reference"},
                ]
            },
            (Reasoning("Hm."), Text("x")),
        ),
        (
            {"tool_calls": [{"id": "a", "function": {"name": "n", "arguments": "{}"}}, {"id": "b", "function": {"name": "n"}}]},
            (ToolCall("a", "n", "{}"), ToolCall("b", "n", "")),
        ),
    ],
)  # fmt: skip
def test_every_server_s_way_of_saying_it_is_understood(message: JsonObject, parts: tuple[Part, ...]) -> None:
    assert parts_of(**message) == parts


def test_calls_without_ids_get_some_that_differ() -> None:
    first, second = parts_of(
        tool_calls=[{"function": {"name": "a", "arguments": "1"}}, {"function": {"name": "b", "arguments": "2"}}]
    )

    assert isinstance(first, ToolCall)
    assert isinstance(second, ToolCall)
    assert (first.name, first.arguments, second.name, second.arguments) == ("a", "1", "b", "2")
    assert len({first.id, second.id, ""}) == 3
    [older] = parts_of(function_call={"name": "a", "arguments": "{}"})
    assert isinstance(older, ToolCall)
    assert (older.name, older.arguments) == ("a", "{}")


@pytest.mark.parametrize(
    ("told", "finish", "met"),
    [
        ({"finish_reason": "stop"}, Finish.STOP, None),
        ({"finish_reason": "eos"}, Finish.STOP, None),
        ({"finish_reason": "made up"}, Finish.STOP, None),
        ({"finish_reason": "length"}, Finish.LENGTH, None),
        ({"finish_reason": "model_length"}, Finish.LENGTH, None),
        ({"finish_reason": "tool_calls"}, Finish.TOOL_CALLS, None),
        ({"finish_reason": "function_call"}, Finish.TOOL_CALLS, None),
        ({"finish_reason": "stop", "stop_reason": "END"}, Finish.STOP_SEQUENCE, "END"),
        ({"finish_reason": "stop", "stop_reason": 128009}, Finish.STOP, None),
        ({"finish_reason": None}, None, None),
        ({}, None, None),
    ],
)
def test_every_reason_for_an_end_is_understood(told: JsonObject, finish: Finish | None, met: str | None) -> None:
    [choice] = read({"message": {"content": "x"}, **told}).choices

    assert (choice.finish, choice.stop_sequence) == (finish, met)


@pytest.mark.parametrize(
    "choice",
    [
        {"message": "x"},
        {"message": {"content": "x", "tool_calls": "x"}},
        {"message": {"content": "x", "tool_calls": ["x"]}},
        {"message": {"content": "x", "tool_calls": [{"id": "x"}]}},
        {"message": {"content": "x"}, "finish_reason": "error"},
    ],
)
def test_what_can_t_be_read_is_the_provider_s_failure(choice: JsonObject) -> None:
    with pytest.raises(UpstreamFailed):
        read(choice)


def test_an_answer_without_a_choice_is_none() -> None:
    with pytest.raises(UpstreamFailed):
        read()


def test_choices_stand_in_their_order_whatever_the_server_s() -> None:
    two = read({"index": 1, "message": {"content": "second"}}, {"index": 0, "message": {"content": "first"}})

    assert [choice.parts for choice in two.choices] == [(Text("first"),), (Text("second"),)]


def test_arguments_that_come_as_an_object_are_not_lost() -> None:
    call: JsonObject = {"id": "a", "function": {"name": "f", "arguments": {"city": "Köln"}}}

    [choice] = read({"message": {"content": None, "tool_calls": [call]}}).choices
    [event] = events_of(chunk({"tool_calls": [{"index": 0, **call}]}))

    assert choice.parts == (ToolCall("a", "f", '{"city":"Köln"}'),)
    assert event.deltas[-1] == Delta(DeltaKind.TOOL_ARGUMENTS, text='{"city":"Köln"}')


@pytest.mark.parametrize("arguments", [["x"], 7, True])
def test_arguments_of_another_shape_are_the_provider_s_failure(arguments: JsonValue) -> None:
    with pytest.raises(UpstreamFailed):
        read({"message": {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": arguments}}]}})


def test_a_call_that_never_says_of_what_is_the_provider_s_failure() -> None:
    nameless: JsonObject = {"id": "a", "function": {"arguments": "{}"}}

    with pytest.raises(UpstreamFailed):
        read({"message": {"tool_calls": [nameless]}})
    with pytest.raises(UpstreamFailed):
        events_of(chunk({"tool_calls": [{"index": 0, **nameless}]}), chunk({}, "tool_calls"))


def test_a_stream_begins_says_and_ends() -> None:
    events = events_of(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "He"}),
        chunk({"content": "llo."}),
        chunk({}, "stop"),
        chunk(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
    )

    assert [event.deltas for event in events] == [
        (START,),
        (Delta(DeltaKind.TEXT, text="He"),),
        (Delta(DeltaKind.TEXT, text="llo."),),
        (Delta(DeltaKind.FINISH, finish=Finish.STOP),),
        (),
    ]
    assert events[-1].usage == Usage(1, 2, 3)
    assert [event.only_text for event in events] == [False, True, True, False, False]


def test_events_that_say_nothing_are_none_and_the_first_that_says_something_begins() -> None:
    assert events_of(chunk(), chunk({"content": ""}), chunk({})) == events_of(chunk({"content": ""}))
    assert deltas_of(chunk({"content": "x"}, "length")) == [
        START, Delta(DeltaKind.TEXT, text="x"), Delta(DeltaKind.FINISH, finish=Finish.LENGTH)
    ]  # fmt: skip


def test_thoughts_refusals_and_logprobs_are_kept_apart() -> None:
    assert deltas_of(
        chunk({"reasoning_content": "H", "content": None}),
        chunk({"reasoning": "m.", "content": ""}),
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Yes."}]}]}),
        chunk({"refusal": "No."}),
        chunk({"content": "x"}, choice_logprobs={"content": [1]}),
        chunk({}, "stop", choice_stop_reason="END"),
    ) == [
        START,
        Delta(DeltaKind.REASONING, text="H"),
        Delta(DeltaKind.REASONING, text="m."),
        Delta(DeltaKind.REASONING, text="Yes."),
        Delta(DeltaKind.REFUSAL, text="No."),
        Delta(DeltaKind.TEXT, text="x"),
        Delta(DeltaKind.LOGPROBS, value={"content": [1]}),
        Delta(DeltaKind.FINISH, text="END", finish=Finish.STOP_SEQUENCE),
    ]


def test_choices_are_told_apart() -> None:
    both: list[JsonValue] = [{"index": at, "delta": {"content": str(at)}} for at in (0, 1)]

    assert deltas_of(chunk(choices=both), chunk(choices=both[1:])) == [
        START,
        Delta(DeltaKind.TEXT, 0, text="0"),
        Delta(DeltaKind.TEXT, 1, text="1"),
        Delta(DeltaKind.TEXT, 1, text="1"),
    ]


BEGUN = Delta(DeltaKind.TOOL_CALL, id="a", name="f")
SECOND = Delta(DeltaKind.TOOL_CALL, call=1, id="b", name="g")


def arguments(call: int, text: str) -> Delta:
    return Delta(DeltaKind.TOOL_ARGUMENTS, call=call, text=text)


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        # as OpenAI does it
        (
            [call(0, "a", "f", ""), call(0, None, None, "{"), call(0, None, None, "}"), call(1, "b", "g", "")],
            [BEGUN, arguments(0, "{"), arguments(0, "}"), SECOND],
        ),
        # whole calls, numbered from 1
        ([call(1, "a", "f", "{}"), call(2, "b", "g", "{}")], [BEGUN, arguments(0, "{}"), SECOND, arguments(1, "{}")]),
        # all of them in the first place
        ([call(0, "a", "f", "{}"), call(0, "b", "g", "{}")], [BEGUN, arguments(0, "{}"), SECOND, arguments(1, "{}")]),
        # the id and the name again with each piece
        ([call(0, "a", "f", "{"), call(0, "a", "f", "}")], [BEGUN, arguments(0, "{"), arguments(0, "}")]),
        # no places
        ([call(None, "a", "f", "{"), call(None, None, None, "}"), call(None, "b", "g")],
         [BEGUN, arguments(0, "{"), arguments(0, "}"), SECOND]),
        # the name behind the first arguments
        ([call(0, "a", None, "{"), call(0, None, "f", "}")], [BEGUN, arguments(0, "{}")]),
    ],
)  # fmt: skip
def test_pieces_of_calls_find_their_call(pieces: list[JsonObject], told: list[Delta]) -> None:
    assert deltas_of(*[chunk(piece) for piece in pieces])[1:] == told


def test_an_error_of_a_choice_is_the_provider_s_failure() -> None:
    with pytest.raises(UpstreamFailed) as failed:
        deltas_of(chunk({"content": ""}, "error"))

    assert failed.value.failure is FailureKind.OVERLOADED


_RECORDED = b"".join(
    b"data: %b\n\n" % data
    for data in [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": "Zwölf Uhr 🕛"}),
        chunk({"content": " is it.\n\n"}, choice_logprobs={"content": []}),
        chunk(call(0, "a", "f", "")),
        chunk(call(0, None, None, '{"at":')),
        chunk(call(0, None, None, "1}")),
        chunk({}, "tool_calls"),
        chunk(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
    ]
) + b"data: [DONE]\n\n"  # fmt: skip


def replayed(pieces: list[bytes]) -> list[tuple[tuple[Delta, ...], str, Usage | None]]:
    parser = ServerSentEventParser(event_bytes_max=1 << 20)
    reader = OpenAiChat().stream(translated=True, shows_usage=True)
    read = [reader.read(sent) for piece in pieces for sent in parser.feed(piece)]
    assert reader.done
    return [(event.deltas, event.text, event.usage) for event in read if event is not None]


@given(st.lists(st.integers(0, len(_RECORDED)), max_size=40))
def test_a_recorded_stream_cut_anywhere_says_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(_RECORDED)]
    pieces = [_RECORDED[start:end] for start, end in pairwise(edges)]

    assert replayed([piece for piece in pieces if piece]) == replayed([_RECORDED])
