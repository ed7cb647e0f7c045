"""Cohere's v2/chat: what is written, and what is read of answers, streams and refusals."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import ErrorCode, FailureKind, InvalidRequest, UpstreamFailed
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.upstream.endpoint import parse_endpoint
from secure_llm_proxy.upstream.formats.cohere_chat import CohereChat
from secure_llm_proxy.upstream.formats.face import Written
from secure_llm_proxy.upstream.http1 import AnswerHead
from secure_llm_proxy.upstream.refusals import error_of
from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent, ServerSentEventParser
from secure_llm_proxy.upstream.wording import Scrubber
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Audio,
    Choice,
    Conversation,
    Delta,
    DeltaKind,
    EmbeddingRequest,
    Finish,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    texts,
)
from secure_llm_proxy.vocabulary.providers import provider_kinds
from tests.support.conversations import CLOCK, WEATHER, assistant, called_two_tools, conversations, system, talk, user
from tests.support.wire_texts import strings_in

_FORMAT = CohereChat()
_KIND = provider_kinds()["cohere"]
_NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
_SCRUBBER = Scrubber(parse_endpoint("https://api.cohere.com"), "co-secret")
_USAGE = {"billed_units": {"input_tokens": 5, "output_tokens": 4}, "tokens": {"input_tokens": 13.0, "output_tokens": 4}}


def write(conversation: Conversation) -> Written:
    return _FORMAT.write(conversation, "command-a", _KIND, ask_usage=True)


def answered(message: JsonObject, finish: str = "COMPLETE", **fields: object) -> Completion:
    body = {"id": "c-1", "finish_reason": finish, "message": {"role": "assistant", **message}, **fields}
    return _FORMAT.read(json.dumps(body).encode(), model="asked", translated=True)


def event(kind: str, message: JsonObject | None = None, **fields: object) -> bytes:
    delta: dict[str, object] = {} if message is None else {"delta": {"message": message}}
    return json.dumps({"type": kind, **delta, **fields}).encode()


def ended(finish: str = "COMPLETE", **fields: object) -> bytes:
    return event("message-end", delta={"finish_reason": finish, "usage": _USAGE, **fields})


def read_all(*sent: bytes) -> list[StreamEvent]:
    reader = _FORMAT.stream(translated=True, shows_usage=True)
    events = [reader.read(ServerSentEvent(data, b"content-delta")) for data in sent]
    return [one for one in events if one is not None]


def test_instructions_tools_calls_and_results_are_written_in_their_places() -> None:
    written = write(called_two_tools())

    assert written.dropped == ("messages.is_error",)
    assert written.payload["model"] == "command-a"
    assert written.payload["stream"] is False
    assert written.payload["messages"] == [
        {"role": "system", "content": "You are brief.\n\nAnswer in German."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Is this Paris?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            ],
        },
        {
            "role": "assistant",
            "tool_plan": "Let me see.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"town": "Paris"}'},
                },
                {"id": "call_2", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"},
        {"role": "tool", "tool_call_id": "call_2", "content": "no clock there"},
    ]
    assert written.payload["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather of a town",
                "parameters": WEATHER.parameters,
            },
        },
        {
            "type": "function",
            "function": {
                "name": "get_time",
                "description": "The time there",
                "parameters": {"type": "object", "properties": {}},
            },
        },
    ]
    assert "tool_choice" not in written.payload


def test_thought_goes_back_as_thought_and_a_later_instruction_is_the_user_s() -> None:
    thinking = Message(Role.ASSISTANT, (Reasoning("Hm."), Reasoning("", redacted="x"), Text("Fine.")))

    written = write(talk(user("a"), thinking, system("later"), assistant(""), user("b")))

    assert written.payload["messages"] == [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Fine."}],
        },
        {"role": "user", "content": "later"},
        {"role": "user", "content": "b"},
    ]


@pytest.mark.parametrize(
    ("choice", "said", "offered"),
    [
        (ToolChoice("auto"), None, ["get_weather", "get_time"]),
        (ToolChoice("none"), "NONE", ["get_weather", "get_time"]),
        (ToolChoice("required"), "REQUIRED", ["get_weather", "get_time"]),
        (ToolChoice("named", "get_time"), "REQUIRED", ["get_time"]),
    ],
)
def test_the_choice_of_tools_is_told_and_one_by_name_by_showing_no_other(
    choice: ToolChoice, said: str | None, offered: list[str]
) -> None:
    payload = write(talk(tools=(WEATHER, CLOCK), tool_choice=choice)).payload

    assert payload.get("tool_choice") == said
    assert isinstance(payload["tools"], list)
    assert [tool["function"]["name"] for tool in json.loads(json.dumps(payload["tools"]))] == offered


def test_strict_tools_are_strict_and_parallel_calls_cannot_be_forbidden() -> None:
    written = write(talk(tools=(Tool("f", strict=True),), tool_choice=ToolChoice("auto", parallel=False)))

    assert written.payload["strict_tools"] is True
    assert written.dropped == ("parallel_tool_calls",)


def test_settings_have_their_names() -> None:
    conversation = talk(
        max_tokens=10,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop=("END",),
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        n=1,
        logprobs=True,
        output=OutputFormat("schema", {"type": "object"}),
        reasoning_tokens=100,
        stream=True,
    )

    payload = write(conversation).payload

    assert {name: value for name, value in payload.items() if name != "messages"} == {
        "model": "command-a",
        "stream": True,
        "max_tokens": 10,
        "temperature": 0.5,
        "p": 0.9,
        "k": 40,
        "stop_sequences": ["END"],
        "seed": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logprobs": True,
        "response_format": {"type": "json_object", "json_schema": {"type": "object"}},
        "thinking": {"type": "enabled", "token_budget": 100},
    }


@pytest.mark.parametrize(
    ("fields", "thinking", "dropped"),
    [
        ({"reasoning_effort": "none"}, {"type": "disabled"}, ()),
        ({"reasoning_effort": "high"}, {"type": "enabled"}, ()),
        ({"reasoning_effort": "low"}, None, ("reasoning_effort",)),
        ({"reasoning_tokens": 0}, {"type": "disabled"}, ()),
    ],
)
def test_thought_can_be_had_or_not(
    fields: dict[str, object], thinking: JsonObject | None, dropped: tuple[str, ...]
) -> None:
    written = write(talk(**fields))

    assert written.payload.get("thinking") == thinking
    assert written.dropped == dropped


def test_what_only_tunes_is_dropped_by_name() -> None:
    named = Message(Role.USER, (Text("hi"),), name="ann")

    written = write(
        talk(
            named,
            top_p=1.0,
            top_k=501,
            seed=-1,
            presence_penalty=-0.5,
            frequency_penalty=1.5,
            user="u",
            further={"logit_bias": {}, "modalities": ["text"]},
        )
    )

    assert written.dropped == (
        "messages.name",
        "seed",
        "top_p",
        "top_k",
        "presence_penalty",
        "frequency_penalty",
        "user",
        "logit_bias",
        "modalities",
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True, "top_logprobs": 1}, "top_logprobs"),
        ({"stop": ("a", "b", "c", "d", "e", "f")}, "stop"),
        ({"further": {"audio": {"voice": "x"}}}, "audio"),
        ({"tools": (CLOCK,), "tool_choice": ToolChoice("named", "other")}, "tool_choice"),
    ],
)
def test_what_changes_the_answer_and_cannot_be_said_is_refused(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        write(talk(**fields))

    assert (refused.value.code, refused.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, param)


@pytest.mark.parametrize(
    "message",
    [
        Message(Role.USER, (Audio("UklGRg==", "wav"),)),
        Message(Role.ASSISTANT, (Image(url="https://example.org/a.png"),)),
        Message(Role.TOOL, (ToolResult("c", (Image(url="https://example.org/a.png"),)),)),
    ],
)
def test_messages_that_cannot_be_said_are_refused(message: Message) -> None:
    with pytest.raises(InvalidRequest) as refused:
        write(talk(message))

    assert (refused.value.code, refused.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "messages")


def test_nothing_but_a_conversation_is_written_and_no_client_speaks_this_format() -> None:
    with pytest.raises(InvalidRequest):
        _FORMAT.write(EmbeddingRequest(("a",)), "m", _KIND, ask_usage=True)
    with pytest.raises(InvalidRequest):
        _FORMAT.adapt({}, "m", _KIND, stream=False, ask_usage=True)


@given(conversations())
def test_every_text_of_a_conversation_is_written(conversation: Conversation) -> None:
    written = write(conversation).payload

    there = strings_in(written)
    joined = "".join(text for text in there if "\n\n" in text)
    for _, text in texts(conversation):
        assert text in there or text in joined


def test_an_answer_is_read_with_its_thought_and_its_usage() -> None:
    completion = answered(
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Fine."}]},
        usage={**_USAGE, "cached_tokens": 8},
    )

    assert completion.text == "Fine."
    assert completion.model == "asked"
    assert completion.usage == Usage(13, 4, 17, 8)
    assert completion.answer == Answer((Choice((Reasoning("Hm."), Text("Fine.")), Finish.STOP),), "c-1")


def test_a_plan_and_calls_are_text_and_calls() -> None:
    call: JsonObject = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}

    answer = answered({"tool_plan": "I will.", "tool_calls": [call]}, "TOOL_CALL").answer

    assert answer == Answer((Choice((Text("I will."), ToolCall("c", "f", '{"a":1}')), Finish.TOOL_CALLS),), "c-1")


def test_log_probabilities_of_a_piece_are_those_of_its_tokens_together() -> None:
    pieces = [{"text": "Fi", "token_ids": [1, 2], "logprobs": [-0.25, -0.5]}]

    answer = answered({"content": [{"type": "text", "text": "Fi"}]}, logprobs=pieces).answer

    assert isinstance(answer, Answer)
    told = {"token": "Fi", "logprob": -0.75, "bytes": [70, 105], "top_logprobs": []}
    assert answer.choices[0].logprobs == {"content": [told], "refusal": None}


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP_SEQUENCE", Finish.STOP_SEQUENCE),
        ("MAX_TOKENS", Finish.LENGTH),
        ("ERROR_TOXIC", Finish.CONTENT_FILTER),
        ("SOMETHING_NEW", Finish.CONTENT_FILTER),
    ],
)
def test_every_end_has_its_word(reason: str, finish: Finish) -> None:
    answer = answered({"content": [{"type": "text", "text": "F"}]}, reason).answer

    assert isinstance(answer, Answer)
    assert answer.choices[0].finish is finish


@pytest.mark.parametrize(("reason", "kind"), [("ERROR", FailureKind.OVERLOADED), ("TIMEOUT", FailureKind.TIMEOUT)])
def test_an_end_by_error_is_no_answer(reason: str, kind: FailureKind) -> None:
    with pytest.raises(UpstreamFailed) as plain:
        answered({"content": []}, reason)
    with pytest.raises(UpstreamFailed) as streamed:
        read_all(ended(reason))

    assert plain.value.failure is streamed.value.failure is kind


@pytest.mark.parametrize(
    "message",
    [
        {"content": ["text"]},
        {"content": [{"type": "image"}]},
        {"content": [{"type": "text", "text": 7}]},
        {"tool_calls": ["f"]},
        {"tool_calls": [{"id": "c", "function": {"arguments": ""}}]},
        {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]},
    ],
)
def test_what_cannot_be_understood_is_no_answer(message: JsonObject) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        answered(message)

    assert failed.value.failure is FailureKind.UNREADABLE


def test_an_answer_without_a_message_or_an_end_is_none() -> None:
    for broken in (b"[]", b"{}", b'{"message": {}}', b'{"message": "blocked", "finish_reason": "COMPLETE"}'):
        with pytest.raises(UpstreamFailed):
            _FORMAT.read(broken, model="m", translated=True)


_STREAM = (
    event("message-start", {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": []}, id="c-1"),
    event("content-start", {"content": {"type": "thinking", "thinking": ""}}, index=0),
    event("content-delta", {"content": {"thinking": "Hm."}}, index=0),
    event("content-end", index=0),
    event("content-delta", {"content": {"text": "Grüße"}}, index=1),
    event("content-delta", {"content": {"text": " \u2028 Welt"}}, index=1),
    event("citation-start", {"citations": {"start": 0}}, index=0),
    event("tool-plan-delta", {"tool_plan": "I will."}),
    event("tool-call-start", {"tool_calls": {"id": "a", "function": {"name": "f", "arguments": ""}}}, index=0),
    event("tool-call-delta", {"tool_calls": {"function": {"arguments": '{"a"'}}}, index=0),
    event("tool-call-delta", {"tool_calls": {"function": {"arguments": ":1}"}}}, index=0),
    event("tool-call-end", index=0),
    event("tool-call-start", {"tool_calls": {"id": "b", "function": {"name": "g", "arguments": "{}"}}}, index=1),
    ended("TOOL_CALL"),
)


def test_a_stream_is_read_step_by_step() -> None:
    events = read_all(*_STREAM)

    assert [delta for one in events for delta in one.deltas] == [
        Delta(DeltaKind.START, id="c-1"),
        Delta(DeltaKind.REASONING, text="Hm."),
        Delta(DeltaKind.TEXT, text="Grüße"),
        Delta(DeltaKind.TEXT, text=" \u2028 Welt"),
        Delta(DeltaKind.TEXT, text="I will."),
        Delta(DeltaKind.TOOL_CALL, id="a", name="f"),
        Delta(DeltaKind.TOOL_ARGUMENTS, text='{"a"'),
        Delta(DeltaKind.TOOL_ARGUMENTS, text=":1}"),
        Delta(DeltaKind.TOOL_CALL, call=1, id="b", name="g"),
        Delta(DeltaKind.TOOL_ARGUMENTS, call=1, text="{}"),
        Delta(DeltaKind.FINISH, finish=Finish.TOOL_CALLS),
    ]
    assert "".join(one.text for one in events) == "Grüße \u2028 WeltI will."
    assert [one.only_text for one in events] == [True, False, True, True, True, False, False, False, False, True]
    assert [one.usage for one in events if one.usage] == [Usage(13, 4, 17)]


def test_a_stream_is_whole_and_done_at_its_last_event() -> None:
    reader = _FORMAT.stream(translated=True, shows_usage=True)

    states = []
    for data in (_STREAM[4], ended()):
        reader.read(ServerSentEvent(data))
        states.append((reader.finished, reader.done))

    assert states == [(False, False), (True, True)]


def test_an_end_mark_before_the_end_makes_nothing_whole() -> None:
    reader = _FORMAT.stream(translated=True, shows_usage=True)

    reader.read(ServerSentEvent(_STREAM[4]))
    reader.read(ServerSentEvent(b"[DONE]"))

    assert not reader.finished


def test_log_probabilities_of_a_stream_come_with_their_text() -> None:
    piece = {"text": "Fi", "token_ids": [1], "logprobs": [-0.25]}

    (one,) = read_all(event("content-delta", {"content": {"text": "Fi"}}, index=0, logprobs=piece))

    told: JsonObject = {"token": "Fi", "logprob": -0.25, "bytes": [70, 105], "top_logprobs": []}
    assert one.deltas == (
        Delta(DeltaKind.TEXT, text="Fi"),
        Delta(DeltaKind.LOGPROBS, value={"content": [told], "refusal": None}),
    )


@pytest.mark.parametrize(
    "broken",
    [
        b'{"message": "co-secret broke"}',
        b'{"type": "message-end", "delta": {"error": "co-secret", "finish_reason": "ERROR"}}',
        b'{"type": "tool-call-delta", "delta": {"message": {"tool_calls": {"function": {"arguments": "x"}}}}}',
        b'{"type": "tool-call-start", "delta": {"message": {"tool_calls": {}}}}',
        b'{"type": "message-end"}',
        b"{",
    ],
)
def test_an_error_within_a_stream_ends_it(broken: bytes) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        read_all(_STREAM[0], broken)

    assert "co-secret" not in failed.value.public + str(failed.value.detail)


_RECORDED = b"".join(b"event: " + json.loads(one)["type"].encode() + b"\ndata: " + one + b"\n\n" for one in _STREAM) + (
    b"data: [DONE]\n\n"
)


def events_in(pieces: list[bytes]) -> list[StreamEvent]:
    parser, reader = ServerSentEventParser(event_bytes_max=65_536), _FORMAT.stream(translated=True, shows_usage=True)
    sent = [one for piece in pieces for one in parser.feed(piece)] + parser.finish()
    events = [reader.read(one) for one in sent]
    return [one for one in events if one is not None]


@given(st.sets(st.integers(1, len(_RECORDED) - 1)))
def test_a_stream_cut_anywhere_says_the_same(cuts: set[int]) -> None:
    at = [0, *sorted(cuts), len(_RECORDED)]

    events = events_in([_RECORDED[begin:end] for begin, end in pairwise(at)])

    assert events == events_in([_RECORDED])


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("too many tokens: size limit exceeded by 11326 tokens. Try using shorter inputs.", FailureKind.CONTEXT_LENGTH),
        ("too many tokens: max tokens must be less than or equal to 4096 - received 8192.", FailureKind.REJECTED),
        ("invalid request: message must not be empty", FailureKind.REJECTED),
    ],
)
def test_a_refusal_is_told_by_its_words(message: str, kind: FailureKind) -> None:
    body = json.dumps({"id": "x", "message": message}).encode()
    head = AnswerHead(400, {}, keeps_alive=True)

    error = error_of(head, body, wire_format=_FORMAT, scrubber=_SCRUBBER, now=_NOW)

    assert isinstance(error, UpstreamFailed)
    assert (error.public, error.failure) == (message, kind)


def test_a_deny_listed_word_is_a_matter_of_the_content_policy() -> None:
    head = AnswerHead(498, {}, keeps_alive=True)

    error = error_of(head, b'{"message": "co-secret blocked"}', wire_format=_FORMAT, scrubber=_SCRUBBER, now=_NOW)

    assert (error.status, error.code) == (400, ErrorCode.CONTENT_POLICY_VIOLATION)
    assert error.public == "[removed] blocked"
