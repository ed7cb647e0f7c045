from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    FailureKind,
    ProxyError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.upstream.endpoint import parse_endpoint
from secure_llm_proxy.upstream.formats import FORMATS
from secure_llm_proxy.upstream.formats.anthropic_count_tokens import AnthropicCountTokens
from secure_llm_proxy.upstream.formats.anthropic_messages import AnthropicMessages
from secure_llm_proxy.upstream.http1 import AnswerHead
from secure_llm_proxy.upstream.refusals import error_of
from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent, ServerSentEventParser
from secure_llm_proxy.upstream.wording import Scrubber
from secure_llm_proxy.vocabulary.chat import StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    SEALED_BY_GEMINI,
    Answer,
    Choice,
    Conversation,
    Delta,
    DeltaKind,
    EmbeddingRequest,
    Finish,
    Message,
    Reasoning,
    Refusal,
    Role,
    Text,
    TokenCount,
    TokenCountRequest,
    ToolCall,
)
from secure_llm_proxy.vocabulary.providers import provider_kinds
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.provider_formats import anthropic as played
from tests.support.provider_formats.playing import Arrived, Failure, named_event

_KIND = provider_kinds()["anthropic"]
_FORMAT = AnthropicMessages()
_SCRUBBER = Scrubber(parse_endpoint("https://llm.internal.example:8443/v1"), "sk-ant-key")


def _message(content: list[object], **fields: object) -> bytes:
    told = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-5", "stop_reason": "end_turn"}
    return json.dumps({**told, "content": content, "usage": {"input_tokens": 2, "output_tokens": 3}, **fields}).encode()


def _of_message(body: bytes) -> Choice:
    answer = _FORMAT.read(body, model="m", translated=True).answer
    assert isinstance(answer, Answer)
    (choice,) = answer.choices
    return choice


def _arrived(body: dict[str, object]) -> Arrived:
    return Arrived("POST", "/messages", {}, {"anthropic-version": played.VERSIONS[0]}, body)


def _played_stream(**fields: object) -> bytes:
    asked = {"model": "claude-opus-5-5-thinking", "max_tokens": 4000, "stream": True, **fields}
    reply = played.PROVIDER.answer(_arrived({"messages": [{"role": "user", "content": "How is it?"}], **asked}))
    assert reply.events, reply.body
    return b"".join(reply.events)


_TOOLS = [
    {"name": name, "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
    for name in ("weather", "time")
]


def _events(stream: bytes, *, translated: bool, cuts: tuple[int, ...] = ()) -> list[StreamEvent]:
    parser, reader = (
        ServerSentEventParser(event_bytes_max=1 << 20),
        _FORMAT.stream(translated=translated, shows_usage=True),
    )
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    sent = [event for start, end in pairwise(edges) for event in parser.feed(stream[start:end])]
    events = [event for one in sent + parser.finish() if (event := reader.read(one)) is not None]
    assert reader.finished
    assert reader.done
    return events


def test_a_request_of_the_same_format_keeps_every_parameter() -> None:
    payload: JsonObject = {
        "model": "ours",
        "max_tokens": 5,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
        ],
        "mcp_servers": [],
        "from_tomorrow": {"a": 1},
    }

    adapted = _FORMAT.adapt(payload, "theirs", _KIND, stream=True, ask_usage=True)

    assert adapted.payload == {**payload, "model": "theirs", "stream": True}
    assert adapted.dropped == ()
    assert payload["model"] == "ours"


def test_thinking_of_another_provider_is_not_shown_to_anthropic() -> None:
    own: JsonObject = {"type": "thinking", "thinking": "signed", "signature": "c2ln"}
    foreign: JsonObject = {"type": "thinking", "thinking": "unsigned", "signature": ""}
    sealed: JsonObject = {"type": "redacted_thinking", "data": f"{SEALED_BY_GEMINI}c2VhbGVk"}
    said: JsonObject = {"type": "text", "text": "Hi."}
    payload: JsonObject = {
        "model": "ours",
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [foreign, own, sealed, said]},
            {"role": "assistant", "content": [foreign]},
            {"role": "user", "content": "And?"},
        ],
    }

    for wire_format in (_FORMAT, AnthropicCountTokens()):
        adapted = wire_format.adapt(payload, "theirs", _KIND, stream=False, ask_usage=True).payload

        assert adapted["messages"] == [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [own, said]},
            {"role": "user", "content": "And?"},
        ]


def test_an_answer_has_its_text_and_all_of_the_prompt_in_its_usage() -> None:
    usage = {
        "input_tokens": 13,
        "cache_read_input_tokens": 8,
        "cache_creation_input_tokens": 3,
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 4},
    }
    body = _message([{"type": "text", "text": "one"}, {"type": "new", "text": " two"}, {"type": "other"}], usage=usage)

    completion = _FORMAT.read(body, model="m", translated=False)

    assert completion.text == "one two"
    assert completion.model == "claude-5"
    assert completion.format is WireFormat.ANTHROPIC_MESSAGES
    assert completion.usage == Usage(24, 9, 33, 8, 3, 4)
    assert completion.payload == json.loads(body)
    assert completion.answer is None


@pytest.mark.parametrize("usage", [None, 7, [], {"input_tokens": True}, {"input_tokens": -1}, {"input_tokens": "7"}])
def test_usage_that_is_none_is_unknown(usage: object) -> None:
    assert _FORMAT.read(_message([], usage=usage), model="m", translated=True).usage == Usage()


def test_every_block_has_its_neutral_part() -> None:
    choice = _of_message(
        _message(
            [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "c2VhbGVk"},
                {"type": "text", "text": "Look:", "citations": None},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
            ],
            stop_reason="tool_use",
        )
    )

    assert choice.parts == (
        Reasoning("hm", signature="c2ln"),
        Reasoning("", redacted="c2VhbGVk"),
        Text("Look:"),
        ToolCall("toolu_1", "weather", '{"city":"Oslo"}'),
        ToolCall("toolu_2", "now", "{}"),
    )
    assert choice.finish is Finish.TOOL_CALLS


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", Finish.STOP),
        ("max_tokens", Finish.LENGTH),
        ("model_context_window_exceeded", Finish.LENGTH),
        ("tool_use", Finish.TOOL_CALLS),
        ("pause_turn", Finish.PAUSE),
        ("refusal", Finish.REFUSAL),
        ("from_tomorrow", Finish.STOP),
        (None, Finish.STOP),
    ],
)
def test_why_it_stopped(reason: str | None, finish: Finish) -> None:
    assert _of_message(_message([], stop_reason=reason)).finish is finish


def test_a_stop_sequence_is_named_and_a_refusal_gives_its_reason() -> None:
    stopped = _of_message(_message([], stop_reason="stop_sequence", stop_sequence="END"))
    details = {"type": "refusal", "category": None, "explanation": "Not this."}
    refused = _of_message(_message([], stop_reason="refusal", stop_details=details))

    assert (stopped.finish, stopped.stop_sequence) == (Finish.STOP_SEQUENCE, "END")
    assert refused.parts == (Refusal("Not this."),)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"content":"x"}', b'{"content":["x"]}', b'{"content":[],"content":[]}', b'{"content":[NaN]}'],
)
def test_an_answer_that_is_none_is_unreadable(body: bytes) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        _FORMAT.read(body, model="m", translated=False)

    assert failed.value.failure is FailureKind.UNREADABLE


def test_an_error_with_200_is_an_error() -> None:
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"secret words"}}'

    with pytest.raises(UpstreamFailed) as failed:
        _FORMAT.read(body, model="m", translated=False)

    assert failed.value.failure is FailureKind.OVERLOADED
    assert "secret" not in f"{failed.value.public}{failed.value.detail}"


def test_events_pass_as_they_came_but_keep_alives_and_the_end() -> None:
    stream = _played_stream()

    events = _events(stream, translated=False)

    again = b"".join(b"event: %b\ndata: %b\n\n" % (event.name, event.data) for event in events)
    ping = named_event("ping", {"type": "ping"})
    assert again + named_event("message_stop", {"type": "message_stop"}) == stream.replace(ping, b"")
    assert all(event.deltas == () for event in events)


def test_only_what_adds_nothing_but_text_says_so() -> None:
    stream = _played_stream(thinking={"type": "enabled", "budget_tokens": 1024}, tools=_TOOLS)

    events = _events(stream, translated=True)

    assert {(event.payload["type"], _delta_type(event)) for event in events if not event.only_text} == {
        ("content_block_start", None),
        ("content_block_delta", "thinking_delta"),
        ("content_block_delta", "signature_delta"),
        ("content_block_delta", "input_json_delta"),
    }


@pytest.mark.parametrize(
    "told",
    [
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "citations_delta", "citation": {"cited_text": "x"}},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x", "more": "y"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "from_tomorrow", "words": "x"}},
        {"type": "from_tomorrow", "words": "x"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}, "more": "y"},
        {"type": "content_block_delta", "words": "y", "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "", "more": "y"}},
        {"type": "content_block_stop", "index": 0, "more": "y"},
        {"type": "message_start", "message": {"content": [{"type": "text", "text": "y"}]}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "more": "y"}},
    ],
)
def test_what_nobody_knows_goes_on_record_whole(told: dict[str, object]) -> None:
    reader = _FORMAT.stream(translated=False, shows_usage=True)

    event = reader.read(_sent(told))

    assert event is not None
    assert not event.only_text
    assert event.name.decode() == told["type"]


def _sent(told: dict[str, object]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(told).encode(), str(told["type"]).encode())


def _delta_type(event: StreamEvent) -> object:
    delta = event.payload.get("delta")
    return delta.get("type") if isinstance(delta, dict) else None


def _whole(events: list[StreamEvent]) -> tuple[str, str, str, list[tuple[str | None, str | None, str]]]:
    """Text, thought, its signature, and the calls that the deltas make."""
    said, thought, signature = "", "", ""
    calls: list[tuple[str | None, str | None, str]] = []
    for delta in (delta for event in events for delta in event.deltas):
        match delta.kind:
            case DeltaKind.TEXT:
                said += delta.text
            case DeltaKind.REASONING:
                thought += delta.text
            case DeltaKind.SIGNATURE:
                signature += delta.text
            case DeltaKind.TOOL_CALL:
                assert delta.call == len(calls)
                calls.append((delta.id, delta.name, ""))
            case DeltaKind.TOOL_ARGUMENTS:
                told = calls[delta.call]
                calls[delta.call] = (told[0], told[1], told[2] + delta.text)
            case _:
                pass
    return said, thought, signature, calls


def test_a_stream_says_what_the_plain_answer_says() -> None:
    asked: dict[str, object] = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "tools": _TOOLS}
    body = {"model": "claude-opus-5-5-thinking", "max_tokens": 4000, **asked}
    reply = played.PROVIDER.answer(_arrived({**body, "messages": [{"role": "user", "content": "How is it?"}]}))
    plain = _FORMAT.read(reply.body, model="m", translated=True)
    assert isinstance(plain.answer, Answer)

    events = _events(_played_stream(**asked), translated=True)
    said, thought, signature, calls = _whole(events)

    parts = plain.answer.choices[0].parts
    assert said == "".join(part.text for part in parts if isinstance(part, Text))
    assert [(thought, signature)] == [(part.text, part.signature) for part in parts if isinstance(part, Reasoning)]
    assert [(one, two, json.loads(three)) for one, two, three in calls] == [
        (part.id, part.name, json.loads(part.arguments)) for part in parts if isinstance(part, ToolCall)
    ]
    assert len(calls) == 2
    assert [event.usage for event in events if event.usage is not None][-1] == plain.usage
    assert events[0].deltas == (Delta(DeltaKind.START, id="msg_played"),)
    assert events[-1].deltas == (Delta(DeltaKind.FINISH, finish=Finish.TOOL_CALLS),)


def test_a_stream_that_passes_tells_its_usage_as_soon_as_it_is_known() -> None:
    usages = [event.usage for event in _events(_played_stream(), translated=False) if event.usage is not None]

    assert [(usage.prompt_tokens, usage.completion_tokens) for usage in usages] == [(24, None), (24, 9)]
    assert usages[1] == Usage(24, 9, 33, 8, 3, 4)


def test_usage_that_the_end_does_not_repeat_is_that_of_the_start() -> None:
    reader = _FORMAT.stream(translated=True, shows_usage=True)
    usage = {"input_tokens": 5, "cache_read_input_tokens": 4, "output_tokens": 1}
    reader.read(_sent({"type": "message_start", "message": {"id": "msg_1", "usage": usage}}))

    end = reader.read(
        _sent({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}})
    )

    assert end is not None
    assert end.usage == Usage(9, 7, 16, 4, None, None)


def test_a_tool_without_parameters_is_called_with_an_empty_object() -> None:
    reader = _FORMAT.stream(translated=True, shows_usage=True)
    block = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}}
    told: list[dict[str, object]] = [
        {"type": "content_block_start", "index": 1, "content_block": block},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ""}},
        {"type": "content_block_stop", "index": 1},
    ]

    deltas = [delta for one in told if (event := reader.read(_sent(one))) for delta in event.deltas]

    assert deltas == [
        Delta(DeltaKind.TOOL_CALL, id="toolu_1", name="now"),
        Delta(DeltaKind.TOOL_ARGUMENTS, text="{}"),
    ]


def test_what_a_block_brings_at_its_start_is_not_lost() -> None:
    reader = _FORMAT.stream(translated=True, shows_usage=True)
    blocks: list[dict[str, object]] = [
        {"type": "text", "text": "Well"},
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "c2VhbGVk"},
        {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}},
    ]

    deltas: list[Delta] = []
    for at, block in enumerate(blocks):
        for one in (
            {"type": "content_block_start", "index": at, "content_block": block},
            {"type": "content_block_stop", "index": at},
        ):
            event = reader.read(_sent(one))
            assert event is not None
            deltas += event.deltas

    assert deltas == [
        Delta(DeltaKind.TEXT, text="Well"),
        Delta(DeltaKind.REASONING, text="hm"),
        Delta(DeltaKind.REDACTED_REASONING, text="c2VhbGVk"),
        Delta(DeltaKind.TOOL_CALL, id="t", name="n"),
        Delta(DeltaKind.TOOL_ARGUMENTS, text='{"a":1}'),
    ]


def test_a_refusal_in_a_stream_gives_its_reason_before_its_end() -> None:
    reader = _FORMAT.stream(translated=True, shows_usage=True)
    delta = {"stop_reason": "refusal", "stop_details": {"type": "refusal", "explanation": "Not this."}}

    event = reader.read(_sent({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 1}}))

    assert event is not None
    assert event.deltas == (
        Delta(DeltaKind.REFUSAL, text="Not this."),
        Delta(DeltaKind.FINISH, finish=Finish.REFUSAL),
    )
    assert not event.only_text
    assert reader.finished
    assert not reader.done


def test_an_end_mark_without_a_reason_to_stop_is_no_whole_answer() -> None:
    reader = _FORMAT.stream(translated=True, shows_usage=True)

    reader.read(_sent({"type": "message_start", "message": {"id": "msg_1"}}))
    reader.read(_sent({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}}))
    assert reader.read(_sent({"type": "message_stop"})) is None

    assert reader.done
    assert not reader.finished


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1 << 20), max_size=40))
def test_a_stream_means_the_same_however_it_is_cut(cuts: list[int]) -> None:
    stream = _played_stream(thinking={"type": "enabled", "budget_tokens": 1024}, tools=_TOOLS)

    for translated in (False, True):
        assert _events(stream, translated=translated, cuts=tuple(cuts)) == _events(stream, translated=translated)


@pytest.mark.parametrize("rewritten", ["crlf", "unnamed", "two data lines"])
def test_a_stream_means_the_same_however_it_is_written(rewritten: str) -> None:
    stream = _played_stream()
    match rewritten:
        case "crlf":
            other = stream.replace(b"\n", b"\r\n")
        case "unnamed":
            other = b"\n".join(line for line in stream.split(b"\n") if not line.startswith(b"event: "))
        case _:
            other = stream.replace(b'data: {"type"', b'data: {\ndata: "type"')

    assert _events(other, translated=True) == _events(stream, translated=True)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("overloaded_error", FailureKind.OVERLOADED),
        ("api_error", FailureKind.OVERLOADED),
        ("rate_limit_error", FailureKind.RATE_LIMITED),
        ("timeout_error", FailureKind.TIMEOUT),
        ("permission_error", FailureKind.CREDENTIALS),
        ("from_tomorrow", FailureKind.OVERLOADED),
    ],
)
def test_an_error_in_a_stream_ends_it_by_its_kind(told: str, kind: FailureKind) -> None:
    reader = _FORMAT.stream(translated=False, shows_usage=True)

    with pytest.raises(UpstreamFailed) as failed:
        reader.read(_sent({"type": "error", "error": {"type": told, "message": "secret words"}}))

    assert failed.value.failure is kind
    assert isinstance(failed.value, UpstreamTimeout) is (kind is FailureKind.TIMEOUT)
    assert "secret" not in f"{failed.value.public}{failed.value.detail}"


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"type":7}',
        b'{"type":"not a name"}',
        b'{"type":"a\\nb"}',
        b'{"type":"message_start"}',
        b'{"type":"content_block_start","index":0}',
        b'{"type":"content_block_delta","index":0,"delta":7}',
        b'{"type":"ping","type":"message_stop"}',
    ],
)
def test_an_event_that_is_none_breaks_the_stream(data: bytes) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        _FORMAT.stream(translated=True, shows_usage=True).read(ServerSentEvent(data))

    assert failed.value.failure is FailureKind.UNREADABLE


def test_a_call_without_a_place_breaks_the_stream() -> None:
    reader = _FORMAT.stream(translated=True, shows_usage=True)

    with pytest.raises(UpstreamFailed):
        reader.read(_sent({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}}))


def _refusal(failure: Failure) -> ProxyError:
    reply = played.refuse(failure, "claude-9")
    head = AnswerHead(reply.status, dict(reply.headers), keeps_alive=True)
    now = datetime(2026, 11, 21, tzinfo=UTC)
    return error_of(head, reply.body, wire_format=_FORMAT, scrubber=_SCRUBBER, now=now)


@pytest.mark.parametrize(
    ("failure", "status", "kind", "code"),
    [
        (Failure.AUTHENTICATION, 502, FailureKind.CREDENTIALS, ErrorCode.UPSTREAM_ERROR),
        (Failure.PERMISSION, 502, FailureKind.CREDENTIALS, ErrorCode.UPSTREAM_ERROR),
        (Failure.QUOTA, 502, FailureKind.CREDENTIALS, ErrorCode.UPSTREAM_ERROR),
        (Failure.NOT_FOUND, 404, FailureKind.REJECTED, ErrorCode.UPSTREAM_REJECTED),
        (Failure.RATE_LIMITED, 429, FailureKind.RATE_LIMITED, ErrorCode.UPSTREAM_RATE_LIMITED),
        (Failure.CONTEXT_LENGTH, 400, FailureKind.CONTEXT_LENGTH, ErrorCode.CONTEXT_LENGTH_EXCEEDED),
        (Failure.CONTENT_POLICY, 400, FailureKind.CONTENT_POLICY, ErrorCode.CONTENT_POLICY_VIOLATION),
        (Failure.TOO_LARGE, 413, FailureKind.REJECTED, ErrorCode.UPSTREAM_REJECTED),
        (Failure.OVERLOADED, 502, FailureKind.OVERLOADED, ErrorCode.UPSTREAM_ERROR),
        (Failure.SERVER, 502, FailureKind.OVERLOADED, ErrorCode.UPSTREAM_ERROR),
    ],
)
def test_documented_refusals_are_told_by_their_kind(
    failure: Failure, status: int, kind: FailureKind, code: ErrorCode
) -> None:
    error = _refusal(failure)

    assert isinstance(error, UpstreamFailed)
    assert (error.status, error.failure, error.code) == (status, kind, code)


def test_a_spent_account_is_no_rate_limit_that_passes() -> None:
    error: JsonObject = {
        "type": "rate_limit_error",
        "message": "Limit.",
        "details": {"error_code": "enforced_spend_limit_reached"},
    }

    assert _FORMAT.read_error({"error": error}).kind is FailureKind.CREDENTIALS


def test_an_account_without_credit_is_not_shown_to_the_client() -> None:
    message = "Your credit balance is too low to access the Anthropic API."
    body = json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": message}}).encode()
    head = AnswerHead(400, {}, keeps_alive=True)

    error = error_of(head, body, wire_format=_FORMAT, scrubber=_SCRUBBER, now=datetime(2026, 11, 21, tzinfo=UTC))

    assert isinstance(error, UpstreamFailed)
    assert not isinstance(error, UpstreamRefused)
    assert error.failure is FailureKind.CREDENTIALS
    assert "credit" not in error.public


def test_a_refused_field_is_named() -> None:
    told = _FORMAT.read_error(
        {"error": {"type": "invalid_request_error", "message": "messages.0.content: Field required"}}
    )

    assert told.param == "messages.0.content"
    assert told.kind is FailureKind.REJECTED


@pytest.mark.parametrize(
    "payload", [{}, {"error": "x"}, {"error": {}}, {"error": {"type": 7, "message": 8, "details": 9}}]
)
def test_a_refusal_that_says_nothing_is_read_as_such(payload: JsonObject) -> None:
    assert _FORMAT.read_error(payload).kind is None


def test_counting_asks_for_the_prompt_alone() -> None:
    counts = FORMATS[WireFormat.ANTHROPIC_COUNT_TOKENS]
    conversation = Conversation((Message(Role.USER, (Text("Hi"),)),), max_tokens=5, temperature=2.0, n=3)

    written = counts.write(TokenCountRequest(conversation), "claude", _KIND, ask_usage=True)
    completion = counts.read(b'{"input_tokens":14}', model="claude", translated=True)

    assert written.payload == {"model": "claude", "messages": [{"role": "user", "content": "Hi"}]}
    assert completion.answer == TokenCount(14)
    assert completion.usage == Usage()


@pytest.mark.parametrize("body", [b"{}", b'{"input_tokens":-1}', b'{"input_tokens":true}', b"[]"])
def test_a_count_that_is_none_is_unreadable(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        AnthropicCountTokens().read(body, model="m", translated=False)


def test_only_conversations_are_answered() -> None:
    with pytest.raises(ProxyError):
        _FORMAT.write(EmbeddingRequest(("x",)), "claude", _KIND, ask_usage=True)
    with pytest.raises(ProxyError):
        AnthropicCountTokens().write(Conversation(()), "claude", _KIND, ask_usage=True)


@pytest.mark.parametrize("translated", [True, False])
def test_the_first_event_counts_the_prompt_and_not_the_answer_that_is_to_come(*, translated: bool) -> None:
    reader = _FORMAT.stream(translated=translated, shows_usage=True)
    usage = {"input_tokens": 20, "cache_read_input_tokens": 4, "output_tokens": 1}

    begun = reader.read_object(json.dumps({"type": "message_start", "message": {"id": "m", "usage": usage}}).encode())

    assert begun is not None
    assert begun.usage == Usage(24, None, None, 4)
