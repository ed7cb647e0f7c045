"""A stream that ends before every choice of it has, or before its format says so, has broken off, whatever end mark it has."""

from __future__ import annotations

import itertools

import orjson
import pytest

from secure_llm_proxy.foundation.errors import FailureKind, UpstreamFailed
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.recorded_streams import Recorded, iterated, pumped, stream_of

Json = dict[str, object]
_MARK = b"data: [DONE]\n\n"


def _event(told: Json, name: str | None = None) -> bytes:
    named = b"" if name is None else b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (named, orjson.dumps(told))


def _chunk(index: int, text: str, reason: str | None = None) -> bytes:
    return _event({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}]})


def _continuation(index: int, text: str, reason: str | None = None) -> bytes:
    return _event({"choices": [{"index": index, "text": text, "finish_reason": reason}]})


def _candidate(index: int, text: str, reason: str | None = None) -> bytes:
    ended = {} if reason is None else {"finishReason": reason}
    return _event({"candidates": [{"index": index, "content": {"parts": [{"text": text}]}, **ended}]})


_COHERE = [
    _event({"type": "message-start", "id": "1"}),
    _event({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Half"}}}}),
]
_RESPONSE = [
    _event({"type": "response.created", "response": {"id": "r", "output": []}}, "response.created"),
    _event(
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "Half"},
        "response.output_text.delta",
    ),
]
_CUT = {
    "chat: one of two choices": (
        WireFormat.OPENAI_CHAT,
        [_chunk(0, "One"), _chunk(1, "Half"), _chunk(0, "", "stop")],
    ),
    "chat: the one that stands first in no event": (
        WireFormat.OPENAI_CHAT,
        [_chunk(1, "One"), _chunk(0, "Half"), _chunk(1, "", "stop")],
    ),
    "completions: one of two prompts": (
        WireFormat.OPENAI_COMPLETIONS,
        [_continuation(0, "One"), _continuation(1, "Half"), _continuation(0, "", "stop")],
    ),
    "gemini: one of two candidates": (
        WireFormat.GEMINI_GENERATE,
        [_candidate(0, "One"), _candidate(1, "Half"), _candidate(0, ".", "STOP")],
    ),
    "cohere: an end mark and no end": (WireFormat.COHERE_CHAT, [*_COHERE, _MARK]),
    "responses: an end mark and no end": (WireFormat.OPENAI_RESPONSES, [*_RESPONSE, _MARK]),
}


@pytest.mark.parametrize("translated", [True, False], ids=["translated", "passed on"])
@pytest.mark.parametrize("name", _CUT)
def test_a_stream_that_is_cut_short_has_broken_off(name: str, *, translated: bool) -> None:
    wire_format, pieces = _CUT[name]
    recorded = Recorded(name, wire_format, b"".join(pieces))

    with pytest.raises(UpstreamFailed) as once:
        iterated(stream_of(recorded, pieces, translated=translated))
    with pytest.raises(UpstreamFailed) as again:
        pumped(stream_of(recorded, [recorded.data], translated=translated), pauses=itertools.repeat(False))

    assert {once.value.failure, again.value.failure} == {FailureKind.BROKE_OFF}


@pytest.mark.parametrize("translated", [True, False], ids=["translated", "passed on"])
@pytest.mark.parametrize(
    ("wire_format", "pieces"),
    [
        (WireFormat.OPENAI_CHAT, [_chunk(0, "One"), _chunk(1, "Two", "stop"), _chunk(0, "", "length")]),
        (WireFormat.OPENAI_CHAT, [_chunk(1, "One"), _chunk(0, "Two"), _MARK]),
        (WireFormat.OPENAI_COMPLETIONS, [_continuation(1, "One", "stop"), _continuation(0, "Two", "length")]),
        (WireFormat.GEMINI_GENERATE, [_candidate(1, "One", "STOP"), _candidate(0, "Two", "MAX_TOKENS")]),
        (WireFormat.GEMINI_GENERATE, [_candidate(0, "One", "STOP"), _event({"usageMetadata": {}})]),
    ],
)
def test_a_stream_whose_every_choice_ended_is_whole(
    wire_format: WireFormat, pieces: list[bytes], *, translated: bool
) -> None:
    recorded = Recorded("whole", wire_format, b"".join(pieces))

    assert iterated(stream_of(recorded, pieces, translated=translated))


def test_what_a_continuation_says_in_other_places_than_its_text_is_no_text_alone() -> None:
    pieces = [
        _continuation(0, "Said."),
        _event({"choices": [{"index": 0, "text": "", "reasoning": "Thought in words."}]}),
        _continuation(0, "", "stop"),
    ]
    recorded = Recorded("thoughts", WireFormat.OPENAI_COMPLETIONS, b"".join(pieces))

    events = iterated(stream_of(recorded, pieces, translated=False))

    assert [event.only_text for event in events] == [True, False, True]
