"""The Responses API as providers speak it: what passes through, what the audit log keeps of it, what is a failure."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import ErrorCode, FailureKind, InvalidRequest, UpstreamFailed
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.upstream.formats.openai_responses import OpenAiResponses, OpenAiResponsesStream
from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent, ServerSentEventParser
from secure_llm_proxy.vocabulary.chat import StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import Conversation
from secure_llm_proxy.vocabulary.providers import provider_kinds
from secure_llm_proxy.vocabulary.sealed_reasoning import sealed
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.responses_stream import (
    Event,
    dump,
    frames,
    function_call,
    function_call_events,
    message,
    message_events,
    response,
    whole_stream,
)

OPENAI = provider_kinds()["openai"]
FORMAT = OpenAiResponses()


def read_all(events: list[Event]) -> tuple[list[StreamEvent], OpenAiResponsesStream]:
    reader = FORMAT.stream(translated=False, shows_usage=True)
    sent = ServerSentEventParser(event_bytes_max=2**20).feed(frames(events))
    return [event for one in sent if (event := reader.read(one)) is not None], reader


def test_only_the_model_s_name_and_the_wish_for_a_stream_are_changed() -> None:
    payload: JsonObject = {"input": "Hi.", "model": "ours", "store": False, "new_parameter": {"a": [1]}}
    before = copy.deepcopy(payload)

    written = FORMAT.adapt(payload, "theirs", OPENAI, stream=True, ask_usage=True)

    assert written.payload == {**payload, "model": "theirs", "stream": True}
    assert written.dropped == ()
    assert payload == before


def test_thoughts_of_another_provider_are_left_out_and_openai_s_own_are_not() -> None:
    own: JsonObject = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    other: JsonObject = {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": sealed("proof", None)}
    reference: JsonObject = {"type": "item_reference", "id": "rs_01M7ZQ67B0Z7KDR13P625MV5HC_0"}
    own_reference: JsonObject = {"type": "item_reference", "id": "rs_68f0c0ffee"}
    question: JsonObject = {"role": "user", "content": "Hi."}
    items: list[JsonValue] = [own, other, reference, own_reference, question]

    written = FORMAT.adapt({"input": items}, "m", OPENAI, stream=False, ask_usage=True)

    assert written.payload["input"] == [own, own_reference, question]


def test_nothing_is_put_into_this_format() -> None:
    with pytest.raises(InvalidRequest) as caught:
        FORMAT.write(Conversation(()), "m", OPENAI, ask_usage=True)

    assert caught.value.code is ErrorCode.UNSUPPORTED_PARAMETER


def test_the_text_of_an_answer_is_that_of_its_messages_in_lines() -> None:
    reasoning: Event = {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hidden"}]}
    two = message("two")
    two["content"] = [*two["content"], {"type": "refusal", "refusal": "no"}, {"type": "output_text", "text": "!"}]  # type: ignore[misc]
    body = dump(response(reasoning, message("one"), function_call("f", "{}"), two))

    completion = FORMAT.read(body, model="m", translated=False)

    assert completion.text == "one\ntwo!"
    assert completion.model == "served-model"
    assert completion.usage == Usage(36, 87, 123, 4, 0, 10)
    assert completion.format is WireFormat.OPENAI_RESPONSES
    assert completion.payload == strict_json.loads(body)


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b"", FailureKind.UNREADABLE),
        (b"[]", FailureKind.UNREADABLE),
        (b'{"output":[],"output":[]}', FailureKind.UNREADABLE),
        (b'{"output":7}', FailureKind.UNREADABLE),
        (b'{"output":["canary"]}', FailureKind.UNREADABLE),
        (b'{"choices":[]}', FailureKind.UNREADABLE),
        (b'{"status":"failed","output":[]}', FailureKind.OVERLOADED),
        (b'{"status":"cancelled","output":[]}', FailureKind.OVERLOADED),
        (b'{"output":[],"error":{"code":"server_error","message":"canary"}}', FailureKind.OVERLOADED),
        (b'{"output":[],"error":{"code":"rate_limit_exceeded"}}', FailureKind.RATE_LIMITED),
        (b'{"output":[],"error":{"code":"context_length_exceeded"}}', FailureKind.CONTEXT_LENGTH),
        (b'{"output":[],"error":{"code":"insufficient_quota"}}', FailureKind.CREDENTIALS),
        (b'{"output":[],"error":"canary"}', FailureKind.OVERLOADED),
    ],
)
def test_an_answer_that_is_none_is_a_failure_that_quotes_nothing(body: bytes, failure: FailureKind) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        FORMAT.read(body, model="m", translated=False)

    assert caught.value.failure is failure
    assert "canary" not in f"{caught.value.public}{caught.value.detail}"


def test_a_stream_passes_with_its_names_and_the_text_is_kept_once() -> None:
    sent = whole_stream(message_events("Hel", "lo", " wörld"))

    events, reader = read_all(sent)

    assert [event.payload for event in events] == sent
    assert [event.name.decode() for event in events] == [event["type"] for event in sent]
    assert [strict_json.loads(event.data) for event in events] == sent
    assert "".join(event.text for event in events) == "Hello wörld"
    assert all(event.only_text for event in events)
    assert [event.usage for event in events if event.usage] == [Usage(36, 87, 123, 4, 0, 10)]
    assert reader.finished
    assert reader.done


def kept(events: list[StreamEvent]) -> list[object]:
    """What is kept as it came, because it adds more than text."""
    return [event.payload["type"] for event in events if not event.only_text]


def test_calls_are_kept_and_their_repetitions_are_not() -> None:
    events, _ = read_all(whole_stream(message_events("a"), function_call_events("look_up", '{"a', '":1}', at=1)))

    assert kept(events) == ["response.output_item.added", *["response.function_call_arguments.delta"] * 2]


def test_reasoning_is_kept_and_its_repetitions_are_not() -> None:
    place = {"item_id": "rs_0", "output_index": 0, "summary_index": 0}
    part = {"type": "summary_text", "text": "Think."}
    item: Event = {"type": "reasoning", "id": "rs_0", "summary": []}
    reasoning: list[Event] = [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.reasoning_summary_part.added", **place, "part": {**part, "text": ""}},
        {"type": "response.reasoning_summary_text.delta", **place, "delta": "Think"},
        {"type": "response.reasoning_summary_text.delta", **place, "delta": "."},
        {"type": "response.reasoning_summary_text.done", **place, "text": "Think."},
        {"type": "response.reasoning_summary_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": {**item, "summary": [part]}},
    ]

    events, _ = read_all(whole_stream(reasoning, message_events("Hi", at=1)))

    assert kept(events) == ["response.reasoning_summary_text.delta"] * 2
    assert "".join(event.text for event in events) == "Hi"


def _changed(events: list[Event], kind: str, change: dict[str, Any]) -> list[Event]:
    return [{**event, **change} if event["type"] == kind else event for event in events]


ANSWER = whole_stream(message_events("Hel", "lo"))
CALL = whole_stream(function_call_events("f", '{"a":', "1}"))


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (_changed(ANSWER, "response.output_text.done", {"text": "Hello, canary"}), "response.output_text.done"),
        (
            _changed(ANSWER, "response.content_part.done", {"part": {"type": "output_text", "text": "canary"}}),
            "response.content_part.done",
        ),
        (
            _changed(ANSWER, "response.content_part.added", {"part": {"type": "output_text", "text": "canary"}}),
            "response.content_part.added",
        ),
        (_changed(ANSWER, "response.output_item.added", {"item": message("canary")}), "response.output_item.added"),
        (_changed(ANSWER, "response.output_item.done", {"item": message("canary")}), "response.output_item.done"),
        (_changed(ANSWER, "response.completed", {"response": response(message("canary"))}), "response.completed"),
        (_changed(ANSWER, "response.created", {"response": response(message("canary"))}), "response.created"),
        (
            _changed(CALL, "response.output_item.done", {"item": function_call("g", '{"a":1}')}),
            "response.output_item.done",
        ),
        (
            _changed(CALL, "response.function_call_arguments.done", {"arguments": "{}"}),
            "response.function_call_arguments.done",
        ),
        ([{"type": "response.output_text.annotation.added", "annotation": {"url": "canary"}}], None),
        ([{"type": "response.refusal.delta", "output_index": 0, "content_index": 0, "delta": "canary"}], None),
        ([{"type": "response.output_text.delta", "output_index": [], "content_index": 0, "delta": "canary"}], None),
        ([{"type": "response.unheard_of", "text": "canary"}], None),
    ],
)
def test_what_a_repetition_says_otherwise_is_kept(sent: list[Event], kind: str | None) -> None:
    events, _ = read_all(sent)

    assert (kind or sent[0]["type"]) in kept(events)


def test_text_that_only_came_whole_is_its_text() -> None:
    sent = [event for event in ANSWER if event["type"] != "response.output_text.delta"]

    events, _ = read_all(sent)

    assert "".join(event.text for event in events) == "Hello"
    assert kept(events) == []


@pytest.mark.parametrize(
    ("event", "failure", "named"),
    [
        ({"type": "error", "code": "server_error", "message": "canary"}, FailureKind.OVERLOADED, "server_error"),
        ({"type": "error", "error": {"type": "too_many_requests"}}, FailureKind.OVERLOADED, "too_many_requests"),
        ({"type": "error", "error": {"code": "rate_limit_exceeded"}}, FailureKind.RATE_LIMITED, "rate_limit_exceeded"),
        ({"type": "error"}, FailureKind.OVERLOADED, "unnamed"),
        ({"type": "error", "code": "canary canary"}, FailureKind.OVERLOADED, "unnamed"),
        (
            {
                "type": "response.failed",
                "response": response(status="failed", error={"code": "context_length_exceeded"}),
            },
            FailureKind.CONTEXT_LENGTH,
            "context_length_exceeded",
        ),
        ({"type": "response.failed"}, FailureKind.OVERLOADED, "unnamed"),
    ],
)
def test_a_reported_failure_ends_the_stream_and_quotes_nothing(event: Event, failure: FailureKind, named: str) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        read_all([*ANSWER[:4], event])

    assert caught.value.failure is failure
    assert caught.value.detail == f"the provider reports an error: {named}"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"canary", b"response.created"),
        (b"[]", b"response.created"),
        (b'{"a":1,"a":2}', b"response.created"),
        (b'{"canary":1}', b"message"),
        (b'{"type":7}', b"message"),
        (b'{"type":"can\\nary"}', b"message"),
        (b"{}", b"can ary"),
        (b'{"error":{"message":"canary"}}', b"message"),
        (b'{"type":"response.output_text.delta","delta":null}', b"message"),
        (b'{"type":"response.completed"}', b"message"),
        (b'{"type":"response.incomplete","response":[]}', b"message"),
    ],
)
def test_an_event_that_can_t_be_read_is_a_failure(data: bytes, name: bytes) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        FORMAT.stream(translated=False, shows_usage=True).read(ServerSentEvent(data, name))

    assert "canary" not in f"{caught.value.public}{caught.value.detail}"


def test_an_event_is_what_its_data_says_whatever_its_name() -> None:
    reader = FORMAT.stream(translated=False, shows_usage=True)
    delta = dump({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "x"})

    event = reader.read(ServerSentEvent(delta, b"ping"))
    unnamed = reader.read_object(delta)
    untyped = reader.read(ServerSentEvent(b"{}", b"keepalive"))

    assert event is not None
    assert (event.text, event.name) == ("x", b"response.output_text.delta")
    assert unnamed == event
    assert untyped is not None
    assert untyped.name == b"keepalive"


def test_an_end_mark_and_empty_data_are_nothing_to_a_client() -> None:
    reader = FORMAT.stream(translated=False, shows_usage=True)

    assert reader.read(ServerSentEvent(b" ")) is None
    assert not reader.done
    assert reader.read(ServerSentEvent(b"[DONE]")) is None
    assert reader.done


def test_nothing_follows_the_last_event() -> None:
    events, _ = read_all([*ANSWER, *ANSWER[3:6]])

    assert [event.payload for event in events] == ANSWER


def test_data_of_several_lines_leaves_in_one() -> None:
    reader = FORMAT.stream(translated=False, shows_usage=True)

    event = reader.read(ServerSentEvent(b'{"type":\n"keepalive"}'))

    assert event is not None
    assert event.data == b'{"type":"keepalive"}'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KINDS = sorted({str(event["type"]) for event in [*ANSWER, *CALL]} | {"error", "response.failed", "keepalive", ""})
FIELDS = ["delta", "text", "item", "part", "response", "output_index", "content_index", "arguments", "error", "output"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS) | JSON, st.dictionaries(st.sampled_from(FIELDS), JSON | st.just(0), max_size=5)
        ),
        max_size=5,
    )
)
def test_whatever_a_provider_says_is_an_event_or_its_failure(said: list[tuple[JsonValue, JsonObject]]) -> None:
    reader = FORMAT.stream(translated=False, shows_usage=True)

    for kind, fields in said:
        data = dump({**fields, "type": kind})
        try:
            event = reader.read(ServerSentEvent(data))
        except UpstreamFailed:
            return
        assert event is None or strict_json.loads(event.data) == {**fields, "type": kind}
    with contextlib.suppress(UpstreamFailed):
        FORMAT.read(dump(said[0][1] if said else {}), model="m", translated=False)


@given(st.lists(st.text(max_size=5), max_size=6), st.data())
def test_any_re_chunking_of_a_stream_gives_the_same_events_and_text(pieces: list[str], data: st.DataObject) -> None:
    stream = frames(whole_stream(message_events(*pieces), function_call_events("f", *pieces, at=1)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser = ServerSentEventParser(event_bytes_max=2**20)
    reader = FORMAT.stream(translated=False, shows_usage=True)

    sent = [one for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) for one in parser.feed(stream[a:b])]
    events = [event for one in [*sent, *parser.finish()] if (event := reader.read(one)) is not None]

    assert b"".join(b"event: %b\ndata: %b\n\n" % (event.name, event.data) for event in events) == stream
    assert "".join(event.text for event in events) == "".join(pieces)
    assert reader.done
