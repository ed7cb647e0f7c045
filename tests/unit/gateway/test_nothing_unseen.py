"""No byte of a stream reaches a client that inspection has not seen and let go, and no text that is not on record (A25, A29)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import orjson
import pytest

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import ProxyError, UpstreamFailed
from secure_llm_proxy.gateway import House, RelayedStream, chat
from secure_llm_proxy.upstream.formats import FORMATS
from secure_llm_proxy.upstream.formats.openai_chat import read_stream_event
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.caller import RateClass
from secure_llm_proxy.vocabulary.chat import CompletionStream, StreamEvent, UpstreamRequest
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import ScriptedUpstream, make_house, make_inbound
from tests.support.recorded_streams import Recorded, cut, recorded_streams, stream_of

READ = partial(read_chat_completion, messages_max=512)
BODY = {"messages": [{"role": "user", "content": "Hi."}], "stream": True}
UNLIMITED = RateClass(requests=10**9, burst=10**9, concurrent=10**6)
RECORDED = recorded_streams()


class HoldingBack:
    """An inspector that lets each event go only when the next two have come, and keeps what it saw."""

    def __init__(self) -> None:
        self.fed: list[StreamEvent] = []
        self.let_go: list[StreamEvent] = []

    def feed(self, event: StreamEvent) -> Sequence[StreamEvent]:
        self.fed.append(event)
        return self._let_go(self.fed[len(self.let_go) : -2])

    def finish(self) -> Sequence[StreamEvent]:
        return self._let_go(self.fed[len(self.let_go) :])

    def _let_go(self, events: list[StreamEvent]) -> list[StreamEvent]:
        self.let_go += events
        return events


class OneStream(ScriptedUpstream):
    """Answers with the stream that it was given."""

    running: CompletionStream | UpstreamFailed

    def stream(self, request: UpstreamRequest, cancellation: Cancellation) -> CompletionStream:
        if isinstance(self.running, UpstreamFailed):
            raise self.running
        return self.running


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: f"{one.format}-{one.name}")
def test_what_leaves_was_seen_and_let_go_wherever_the_stream_is_cut(recorded: Recorded) -> None:
    small = make_house(key_class=UNLIMITED, address_class=UNLIMITED)
    upstream = OneStream(small.effects)
    house = replace(small.house, upstream=upstream)
    translated = recorded.format is not WireFormat.OPENAI_CHAT
    wrong = []

    for length in range(1, len(recorded.data), max(1, len(recorded.data) // 300)):
        try:
            upstream.running = stream_of(
                recorded, cut(recorded.data[:length], range(0, length, 100)), translated=translated
            )
        except UpstreamFailed as error:
            upstream.running = error
        reply = chat(house, make_inbound(BODY), READ)
        if isinstance(reply.outcome, ProxyError):
            continue
        assert isinstance(reply.outcome, RelayedStream)
        inspector = HoldingBack()
        sent, failed = _relayed(house, reply.outcome, inspector)
        if sent != inspector.let_go:
            wrong.append(f"cut at {length}: events left that were not let go")
        if not failed and inspector.let_go != inspector.fed:
            wrong.append(f"cut at {length}: events were kept")
        if failed and len(inspector.let_go) > max(0, len(inspector.fed) - 2):
            wrong.append(f"cut at {length}: events left that were held back when it failed")
        small.journal.handed_over.clear()

    assert wrong == []


def _relayed(house: House, stream: RelayedStream, inspector: HoldingBack) -> tuple[list[StreamEvent], bool]:
    """The events that left for the client, and whether the stream failed."""
    inspected = RelayedStream(house, stream._docket, stream._stream, 0.0, inspector, translated=stream.translated)
    sent: list[StreamEvent] = []

    def send(event: StreamEvent) -> bool:
        sent.append(event)
        return True

    try:
        inspected.relay(send, lambda: None)
    except ProxyError:
        return sent, True
    return sent, False


_CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
_CHOICE = {"index": 0, "delta": {"content": "hello "}, "finish_reason": None}
# Where nothing ought to stand, and a client may show it all the same.
_STRANGE: dict[str, dict[str, object]] = {
    "beside the choices": {**_CHUNK, "choices": [_CHOICE], "note": "smuggled"},
    "deep beside the choices": {**_CHUNK, "choices": [_CHOICE], "citations": [{"text": "smuggled"}]},
    "a name beside the choices": {**_CHUNK, "choices": [_CHOICE], "smuggled": 1},
    "as the text of a choice": {**_CHUNK, "choices": [{**_CHOICE, "text": "smuggled"}]},
    "as the message of a choice": {**_CHUNK, "choices": [{**_CHOICE, "message": {"content": "smuggled"}}]},
    "beside a delta": {**_CHUNK, "choices": [{**_CHOICE, "hint": ["smuggled"]}]},
    "in a delta": {**_CHUNK, "choices": [{**_CHOICE, "delta": {"content": "hello ", "hint": "smuggled"}}]},
    "in a part that is no text": {
        **_CHUNK,
        "choices": [
            {**_CHOICE, "delta": {"content": [{"type": "text", "text": "hello "}, {"type": "x", "x": "smuggled"}]}}
        ],
    },
    "in a second choice": {**_CHUNK, "choices": [_CHOICE, {**_CHOICE, "index": 1, "text": "smuggled"}]},
    "without choices": {**_CHUNK, "note": "smuggled"},
    "without any choice": {**_CHUNK, "choices": [], "note": "smuggled"},
}


_DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello "}}
_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "usage": {"input_tokens": 1},
}
_STRANGE_AT_ANTHROPIC: dict[str, dict[str, object]] = {
    "beside a delta": {**_DELTA, "note": "smuggled"},
    "a name beside a delta": {**_DELTA, "smuggled": 1},
    "in a delta": {**_DELTA, "delta": {"type": "text_delta", "text": "hello ", "note": "smuggled"}},
    "in the message that starts": {
        "type": "message_start",
        "message": {**_MESSAGE, "content": [{"type": "text", "text": "smuggled"}]},
    },
    "beside the message that starts": {"type": "message_start", "message": _MESSAGE, "note": "smuggled"},
    "in a block that starts": {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": "", "note": "smuggled"},
    },
    "in a block that stops": {"type": "content_block_stop", "index": 0, "text": "smuggled"},
    "in the end": {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}, "text": "smuggled"},
    "in an event of the future": {"type": "riddle", "text": "smuggled"},
}
_OUTPUT = {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0}
_STRANGE_IN_RESPONSES: dict[str, dict[str, object]] = {
    "beside a delta": {**_OUTPUT, "delta": "hello ", "sequence_number": 3, "note": "smuggled"},
    "a name beside a delta": {**_OUTPUT, "delta": "hello ", "smuggled": 1},
    "in an event of the future": {"type": "response.riddle", "text": "smuggled"},
    "in a part that begins": {
        **_OUTPUT,
        "type": "response.content_part.added",
        "part": {"type": "output_text", "text": "", "annotations": [], "note": "smuggled"},
    },
    "in a response that begins": {
        "type": "response.created",
        "response": {"id": "resp_1", "output": [], "note": "smuggled"},
    },
    "in a repetition": {**_OUTPUT, "type": "response.output_text.done", "text": "smuggled"},
    "beside a repetition": {**_OUTPUT, "type": "response.output_text.done", "text": "", "note": "smuggled"},
}
_STRANGE_EVENTS = [
    *((WireFormat.OPENAI_CHAT, where, event) for where, event in _STRANGE.items()),
    *((WireFormat.ANTHROPIC_MESSAGES, where, event) for where, event in _STRANGE_AT_ANTHROPIC.items()),
    *((WireFormat.OPENAI_RESPONSES, where, event) for where, event in _STRANGE_IN_RESPONSES.items()),
]


@pytest.mark.parametrize(
    ("wire_format", "strange"),
    [pytest.param(known, event, id=f"{known}: {where}") for known, where, event in _STRANGE_EVENTS],
)
def test_a_text_in_a_strange_place_of_an_event_is_on_record(
    wire_format: WireFormat, strange: dict[str, object]
) -> None:
    small = make_house()
    event = FORMATS[wire_format].stream(translated=False, shows_usage=True).read_object(json.dumps(strange).encode())
    assert event is not None
    small.upstream.script = (event,)
    reply = chat(small.house, make_inbound(BODY), READ)
    assert isinstance(reply.outcome, RelayedStream)

    left = list(reply.outcome)

    assert b"smuggled" in left[0].data
    assert "smuggled" in _recorded_text(small.journal.handed_over)


def test_a_usual_event_is_recorded_as_its_text_alone() -> None:
    small = make_house()
    usual = {
        **_CHUNK,
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "choices": [{**_CHOICE, "logprobs": None}],
        "usage": None,
        "obfuscation": "aXb",
        "provider": "Some Provider",
        "x_groq": {"id": "req_1"},
    }
    event, _ = read_stream_event(json.dumps(usual).encode())
    small.upstream.script = (event,)
    reply = chat(small.house, make_inbound(BODY), READ)
    assert isinstance(reply.outcome, RelayedStream)

    list(reply.outcome)

    assert _recorded_text(small.journal.handed_over) == "hello "


def _recorded_text(records: list[AuditEvent]) -> str:
    (end,) = [event for event in records if event.type is AuditType.LLM_END]
    return str(orjson.loads(end.body)["text"])
