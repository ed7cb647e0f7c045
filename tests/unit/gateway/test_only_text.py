"""An event that is said to be nothing but text must not carry more: what it carries would miss in the record."""

from __future__ import annotations

import itertools

import orjson
import pytest

from secure_llm_proxy.gateway.streaming import _carries_more_than_text
from secure_llm_proxy.upstream.formats.openai_chat import read_stream_event

DELTAS: list[object] = [
    {"content": "x"},
    {"role": "assistant", "content": "x"},
    {"role": "assistant", "content": ""},
    {"content": None},
    {},
    {"content": "x", "refusal": "no"},
    {"content": "x", "tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    {"tool_calls": []},
    {"content": "x", "reasoning_content": "hm"},
    {"content": [{"type": "text", "text": "x"}]},
    {"content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
    {"content": "x", "function_call": {"name": "f"}},
    {"content": "x", "audio": {"data": "AA"}},
]


@pytest.mark.parametrize("deltas", [[delta] for delta in DELTAS] + [list(p) for p in itertools.permutations(DELTAS, 2)])
def test_only_text_is_said_of_text_alone(deltas: list[object]) -> None:
    choices = [{"index": number, "delta": delta, "finish_reason": None} for number, delta in enumerate(deltas)]

    event, _finished = read_stream_event(orjson.dumps({"object": "chat.completion.chunk", "choices": choices}))

    if event.only_text:
        assert not _carries_more_than_text(event._replace(only_text=False))
        assert all(isinstance(delta, dict) and set(delta) <= {"role", "content"} for delta in deltas)
        assert all(isinstance(delta, dict) and isinstance(delta.get("content"), str | None) for delta in deltas)


def test_the_usual_event_is_only_text() -> None:
    event, _finished = read_stream_event(b'{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}')

    assert event.only_text
