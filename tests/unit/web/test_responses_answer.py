"""Responses written from the neutral model, whole and as events: in the shapes that the official SDK knows, and both alike."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from secure_llm_proxy.foundation.errors import FailureKind, UpstreamFailed
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.gateway import Reply, ReplyFacts
from secure_llm_proxy.upstream.server_sent_events import ServerSentEventParser
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
from secure_llm_proxy.web.openai.responses_answer import response_of
from secure_llm_proxy.web.openai.responses_request import read_conversation
from secure_llm_proxy.web.openai.responses_stream import PassedOnResponse, WrittenResponse
from tests.support.responses_stream import Event, dump, message_events, whole_stream

ASKED: JsonObject = {"input": "Hi.", "model": "alias", "instructions": "Be brief."}
USAGE = Usage(11, 7, 18, 3, 1, 2)
KNOWN_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def reply(asked: JsonObject = ASKED) -> Reply:
    facts = ReplyFacts("exc_01KAHG", None, None, "far", "our-model", None, 0.0)
    request = ChatRequest("alias", stream=False, payload=asked, format=WireFormat.OPENAI_RESPONSES)
    return Reply(facts, UpstreamFailed("", failure=FailureKind.TIMEOUT), request)


def whole(*parts: Part, finish: Finish | None = Finish.STOP, asked: JsonObject = ASKED, **choice: Any) -> JsonObject:  # noqa: ANN401
    answer = Answer((Choice(parts, finish, **choice),), created=1_790_000_000)
    completion = Completion({}, "", USAGE, "their-model", WireFormat.OPENAI_CHAT, answer)
    told = response_of(completion, reply(asked))
    Response.model_validate(told)
    return told


def event(*deltas: Delta, usage: Usage | None = None) -> StreamEvent:
    return StreamEvent(b"{}", {}, "", usage, deltas=deltas)


def text(said: str) -> Delta:
    return Delta(DeltaKind.TEXT, text=said)


def end(finish: Finish = Finish.STOP) -> Delta:
    return Delta(DeltaKind.FINISH, finish=finish)


def read_frames(stream: bytes) -> list[Event]:
    """The events of a stream, each by its name and in the shape that the SDK knows."""
    sent = ServerSentEventParser(event_bytes_max=2**20).feed(stream)
    events = [json.loads(one.data) for one in sent]
    assert [one.name.decode() for one in sent] == [told["type"] for told in events]
    assert [told["sequence_number"] for told in events] == list(range(len(events)))
    for told in events:
        KNOWN_EVENT.validate_python(told)
    return events


def stream(*events: StreamEvent) -> list[Event]:
    writer = WrittenResponse(reply())
    return read_frames(b"".join([writer.event(one) for one in events]) + writer.end())


def said_of(parts: Iterable[Part], finish: Finish) -> list[StreamEvent]:
    """As a provider streams it, in pieces of two characters."""
    events = [event(Delta(DeltaKind.START, id="chatcmpl-1"))]
    calls = 0
    for part in parts:
        if isinstance(part, ToolCall):
            events.append(event(Delta(DeltaKind.TOOL_CALL, call=calls, id=part.id, name=part.name)))
            events += [
                event(Delta(DeltaKind.TOOL_ARGUMENTS, call=calls, text=part.arguments[at : at + 2]))
                for at in range(0, len(part.arguments), 2)
            ]
            calls += 1
        elif isinstance(part, Reasoning) and part.redacted:
            events.append(event(Delta(DeltaKind.REDACTED_REASONING, text=part.redacted)))
        elif isinstance(part, Text | Reasoning | Refusal):
            kind = {Text: DeltaKind.TEXT, Reasoning: DeltaKind.REASONING, Refusal: DeltaKind.REFUSAL}[type(part)]
            events += [event(Delta(kind, text=part.text[at : at + 2])) for at in range(0, len(part.text), 2)]
            if isinstance(part, Reasoning) and part.signature:
                events.append(event(Delta(DeltaKind.SIGNATURE, text=part.signature)))
    return [*events, event(end(finish)), event(usage=USAGE)]


def kinds(events: list[Event]) -> list[str]:
    return [str(told["type"]).removeprefix("response.") for told in events]


def last_response(events: list[Event]) -> dict[str, Any]:
    response = events[-1]["response"]
    assert isinstance(response, dict)
    return response


# --- whole answers ----------------------------------------------------------------------------------------------------


def test_an_answer_has_its_text_its_usage_and_what_was_asked() -> None:
    tools: JsonValue = [{"type": "function", "name": "f", "parameters": {}, "strict": False}]
    told = whole(Text("Hello."), asked={**ASKED, "tools": tools, "top_p": 0.5})

    assert Response.model_validate(told).output_text == "Hello."
    expected: JsonObject = {
        "id": "resp_01KAHG",
        "object": "response",
        "created_at": 1_790_000_000,
        "model": "our-model",
        "status": "completed",
        "store": False,
        "instructions": "Be brief.",
        "top_p": 0.5,
        "tools": tools,
        "usage": {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 1},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 18,
        },
    }
    assert {name: told[name] for name in expected} == expected


def test_thoughts_words_and_calls_are_items_in_their_order() -> None:
    told = whole(
        Reasoning("Think.", "proof"),
        Reasoning("", redacted="hidden"),
        Text("Let me "),
        Text("see."),
        ToolCall("c1", "add", '{"a":1}'),
        ToolCall("c2", "now", ""),
        finish=Finish.TOOL_CALLS,
    )

    assert told["output"] == [
        {
            "id": "rs_01KAHG_0", "type": "reasoning", "summary": [{"type": "summary_text", "text": "Think."}],
            "encrypted_content": "slp1-s-proof",
        },
        {"id": "rs_01KAHG_1", "type": "reasoning", "summary": [], "encrypted_content": "slp1-r-hidden"},
        {
            "id": "msg_01KAHG_2", "type": "message", "status": "completed", "role": "assistant",
            "content": [
                {"type": "output_text", "annotations": [], "logprobs": [], "text": "Let me "},
                {"type": "output_text", "annotations": [], "logprobs": [], "text": "see."},
            ],
        },
        {
            "id": "fc_01KAHG_3", "type": "function_call", "status": "completed", "arguments": '{"a":1}',
            "call_id": "c1", "name": "add",
        },
        {
            "id": "fc_01KAHG_4", "type": "function_call", "status": "completed", "arguments": "{}",
            "call_id": "c2", "name": "now",
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "finish", "status", "reason"),
    [
        ((Text("a"),), Finish.STOP, "completed", None),
        ((Text("a"),), Finish.STOP_SEQUENCE, "completed", None),
        ((Text("a"),), None, "completed", None),
        ((Text("a"),), Finish.LENGTH, "incomplete", "max_output_tokens"),
        ((ToolCall("c", "f", '{"a'),), Finish.LENGTH, "incomplete", "max_output_tokens"),
        ((), Finish.CONTENT_FILTER, "incomplete", "content_filter"),
        ((Text("a"),), Finish.REFUSAL, "incomplete", "content_filter"),
        ((Refusal("No."),), Finish.REFUSAL, "completed", None),
    ],
)
def test_how_an_answer_ended_is_told(
    parts: tuple[Part, ...], finish: Finish | None, status: str, reason: str | None
) -> None:
    told = whole(*parts, finish=finish)

    assert told["status"] == status
    assert told["incomplete_details"] == (None if reason is None else {"reason": reason})
    assert [item["status"] for item in told["output"]] == [status] * len(parts)  # type: ignore[index, union-attr, call-overload]


def test_an_image_that_a_model_made_is_an_item_and_comes_back_as_one() -> None:
    told = whole(Text("Here:"), Image(data="AAAA", media_type="image/png"), Image(url="https://a.test/b"))

    items = told["output"]
    assert isinstance(items, list)
    assert items[1] == {"id": "ig_01KAHG_1", "type": "image_generation_call", "status": "completed", "result": "AAAA"}
    assert Response.model_validate(told).output_text == "Here:https://a.test/b"
    [message] = read_conversation({"input": items}).messages
    assert message.parts == (Text("Here:"), Image(data="AAAA", media_type="image/png"), Text("https://a.test/b"))


def test_log_probabilities_stand_with_the_text() -> None:
    probable: JsonValue = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}

    told = whole(Text("a"), logprobs={"content": [probable], "refusal": None})

    [message] = Response.model_validate(told).output
    assert message.content[0].logprobs[0].logprob == -0.5  # type: ignore[union-attr, index]


def test_what_the_provider_did_not_count_is_unknown() -> None:
    answer = Answer((Choice((Text("a"),), Finish.STOP),))

    told = response_of(Completion({}, "", Usage(), "m", WireFormat.OPENAI_CHAT, answer), reply())

    assert told["usage"] is None
    assert isinstance(told["created_at"], int)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_text_has_every_event_of_the_reference() -> None:
    events = stream(
        event(Delta(DeltaKind.START)), event(text("Hel")), event(text("lo")), event(end()), event(usage=USAGE)
    )

    assert kinds(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [told["delta"] for told in events if "delta" in told] == ["Hel", "lo"]
    begun = events[0]["response"]
    assert isinstance(begun, dict)
    assert (begun["status"], begun["output"], begun["usage"], begun["model"]) == ("in_progress", [], None, "our-model")
    assert last_response(events)["status"] == "completed"


def test_calls_in_turns_are_kept_apart_and_those_in_a_row_end_before_the_next() -> None:
    def call(number: int, name: str) -> Delta:
        return Delta(DeltaKind.TOOL_CALL, call=number, id=f"c{number}", name=name)

    def more(number: int, said: str) -> Delta:
        return Delta(DeltaKind.TOOL_ARGUMENTS, call=number, text=said)

    row = stream(event(call(0, "f")), event(more(0, "{}")), event(call(1, "g")), event(more(1, "{}")), event(end()))
    turns = stream(
        event(call(0, "f"), call(1, "g")),
        event(more(1, '{"b"'), more(0, '{"a"')),
        event(more(0, ":1}"), more(1, ":2}")),
    )

    assert kinds(row)[2:-1] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
    ] * 2  # fmt: skip
    assert [item["arguments"] for item in last_response(turns)["output"]] == ['{"a":1}', '{"b":2}']
    assert [told["output_index"] for told in turns if "delta" in told] == [1, 0, 0, 1]


def test_a_call_without_arguments_has_an_empty_object_of_them() -> None:
    events = stream(event(Delta(DeltaKind.TOOL_CALL, id="c", name="now")), event(end(Finish.TOOL_CALLS)))

    assert [told["delta"] for told in events if "delta" in told] == ["{}"]
    assert last_response(events)["output"][0]["arguments"] == "{}"


def test_what_was_cut_is_incomplete_and_what_came_before_it_is_not() -> None:
    events = stream(
        event(text("Let me see.")),
        event(Delta(DeltaKind.TOOL_CALL, id="c", name="f"), Delta(DeltaKind.TOOL_ARGUMENTS, text='{"a')),
        event(end(Finish.LENGTH)),
    )

    response = last_response(events)
    assert kinds(events)[-1] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_what_is_signed_is_a_thought_of_its_own() -> None:
    def thought(said: str) -> Delta:
        return Delta(DeltaKind.REASONING, text=said)

    def proof(said: str) -> Delta:
        return Delta(DeltaKind.SIGNATURE, text=said)

    events = stream(event(thought("a")), event(proof("p")), event(proof("q")), event(thought("b")), event(text("c")))

    items = last_response(events)["output"]
    assert [item.get("encrypted_content") for item in items] == ["slp1-s-pq", "slp1-n", None]
    assert [item["type"] for item in items] == ["reasoning", "reasoning", "message"]


def test_other_choices_and_empty_pieces_are_no_events() -> None:
    events = stream(event(text("")), event(Delta(DeltaKind.TEXT, choice=1, text="other")), event(end()))

    assert kinds(events) == ["created", "in_progress", "completed"]


def test_log_probabilities_go_with_the_text_of_their_event() -> None:
    probable: JsonValue = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    odds = Delta(DeltaKind.LOGPROBS, value={"content": [probable]})

    events = stream(event(text("b")), event(text("a"), odds), event(odds, text("a")), event(end()))

    assert [told["logprobs"] for told in events if "delta" in told] == [[], [probable], [probable]]
    assert last_response(events)["output"][0]["content"][0]["logprobs"] == [probable, probable]


def test_a_stream_that_breaks_off_ends_in_one_error_that_the_sdk_raises() -> None:
    writer = WrittenResponse(reply())
    broken = UpstreamFailed("The provider broke off.", failure=FailureKind.BROKE_OFF)

    events = read_frames(writer.event(event(text("Hel"))) + writer.error(broken))

    told = {"code": "upstream_error", "message": "The provider broke off.", "param": None}
    assert events[-1] == {"type": "error", **told, "error": {"type": "upstream_error", **told}, "sequence_number": 5}


PARTS = st.lists(
    st.builds(Text, st.text(min_size=1, max_size=5))
    | st.builds(Reasoning, st.text(min_size=1, max_size=5), st.none() | st.just("proof"))
    | st.builds(lambda hidden: Reasoning("", redacted=hidden), st.text(min_size=1, max_size=3))
    | st.builds(Refusal, st.text(min_size=1, max_size=5))
    | st.builds(ToolCall, st.just("c"), st.just("f"), st.sampled_from(["{}", '{"a":1}', "", '{"a', "[1]", "x"])),
    max_size=5,
)


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """What a stream can't tell apart: pieces in a row that are of one kind and not signed."""
    joined: list[Part] = []
    for part in parts:
        before = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(before, Text):
            joined[-1] = Text(before.text + part.text)
        elif isinstance(part, Refusal) and isinstance(before, Refusal):
            joined[-1] = Refusal(before.text + part.text)
        elif (
            isinstance(part, Reasoning)
            and isinstance(before, Reasoning)
            and not (before.signature or before.redacted or part.redacted)
        ):
            joined[-1] = Reasoning(before.text + part.text, part.signature)
        else:
            joined.append(part)
    return tuple(joined)


@given(PARTS, st.sampled_from(Finish))
def test_a_stream_adds_up_to_the_whole_answer(drawn: list[Part], finish: Finish) -> None:
    parts = _joined(drawn)
    expected = whole(*parts, finish=finish)

    events = stream(*said_of(parts, finish))

    assert {**last_response(events), "created_at": 0} == {**expected, "created_at": 0}
    assert _added_up(events) == expected["output"]


def _added_up(events: list[Event]) -> list[Any]:
    """The output as a client makes it of the events: of deltas, held against what ends them."""
    output: list[Any] = []
    grown: dict[tuple[object, ...], str] = {}
    for told in events:
        kind, at = kinds([told])[0], told.get("output_index")
        place = (kind.rpartition(".")[0], at, told.get("content_index"), told.get("summary_index"))
        if kind == "output_item.added":
            assert at == len(output)
            output.append(None)
        elif kind == "output_item.done":
            assert isinstance(at, int)
            output[at] = told["item"]
        elif kind.endswith(".delta"):
            grown[place] = grown.get(place, "") + str(told["delta"])
        elif kind.endswith("_text.done") or kind in {"refusal.done", "function_call_arguments.done"}:
            said = next(told[name] for name in ("text", "refusal", "arguments") if name in told)
            assert said == grown.pop(place, "")
    assert grown == {}
    return output


DELTAS = st.builds(
    Delta,
    st.sampled_from(DeltaKind),
    choice=st.sampled_from([0, 0, 0, 1]),
    call=st.integers(0, 2),
    text=st.sampled_from(["", "a", '{"a":1}', "{", "\u2028"]),
    id=st.none() | st.just("id"),
    name=st.none() | st.just("name"),
    finish=st.none() | st.sampled_from(Finish),
    value=st.none() | st.just({"content": []}) | st.just([7]),
)


@given(st.lists(st.lists(DELTAS, max_size=3), max_size=8))
def test_whatever_a_provider_s_stream_says_its_events_are_well_formed_and_add_up(drawn: list[list[Delta]]) -> None:
    events = stream(*(event(*deltas) for deltas in drawn))

    assert _added_up(events) == last_response(events)["output"]
    assert sum(kind in {"completed", "incomplete"} for kind in kinds(events)) == 1


@given(PARTS)
def test_an_answer_that_is_sent_back_is_what_was_answered(drawn: list[Part]) -> None:
    parts = _joined([part for part in drawn if not (isinstance(part, ToolCall) and not part.arguments)])
    output = whole(*parts)["output"]
    assert isinstance(output, list)

    conversation = read_conversation({"input": [*output, {"role": "user", "content": "And?"}]})

    sent_back = [part for message in conversation.messages[:-1] for part in message.parts]
    assert tuple(sent_back) == parts


# --- passed on --------------------------------------------------------------------------------------------------------


def test_the_last_event_waits_for_the_end_and_an_error_takes_the_next_number() -> None:
    told = whole_stream(message_events("a", "b"))
    events = [StreamEvent(dump(one), one, "", None, name=str(one["type"]).encode()) for one in told]  # type: ignore[arg-type]

    ended, broken = PassedOnResponse(), PassedOnResponse()
    before = b"".join(ended.event(one) for one in events)
    stopped = b"".join(broken.event(one) for one in events[:4])

    assert read_frames(before) == told[:-1]
    assert read_frames(before + ended.end()) == told
    error = broken.error(UpstreamFailed("Gone.", failure=FailureKind.BROKE_OFF))
    assert read_frames(stopped + error)[-1]["sequence_number"] == 4
