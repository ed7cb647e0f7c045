"""However a stream is cut into pieces, its events and its text are the same; cut short, nothing is made up (A25).

Every provider format that this product reads, passed on and translated, iterated and pumped.
"""
# ruff: noqa: FBT001  pytest and hypothesis give them

from __future__ import annotations

import random
from itertools import repeat
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import UpstreamFailed
from secure_llm_proxy.upstream.formats import FORMATS
from secure_llm_proxy.vocabulary.chat import StreamEvent
from secure_llm_proxy.vocabulary.wire_formats import OPERATION_OF, Operation, WireFormat
from tests.support.recorded_streams import TEXT, Recorded, cut, iterated, pumped, recorded_streams, stream_of

RECORDED = recorded_streams()
EVERY = [
    pytest.param(one, translated, id=f"{one.format}-{one.name}-{'translated' if translated else 'passed on'}")
    for one in RECORDED
    for translated in (False, True)
]


def _whole(recorded: Recorded, *, translated: bool) -> list[StreamEvent]:
    return iterated(stream_of(recorded, [recorded.data], translated=translated))


def _said(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events)


def test_every_format_that_streams_is_recorded() -> None:
    streaming = {known for known in FORMATS if OPERATION_OF[known] is Operation.GENERATE}

    assert {one.format for one in RECORDED} == streaming


@pytest.mark.parametrize("recorded", [one for one in RECORDED if one.name == "text"], ids=lambda one: one.format)
def test_the_text_is_whole(recorded: Recorded) -> None:
    assert _said(_whole(recorded, translated=False)) == TEXT
    assert _said(_whole(recorded, translated=True)) == TEXT


@pytest.mark.parametrize(("recorded", "translated"), EVERY)
@settings(max_examples=25)
@given(edges=st.lists(st.integers(0, 20_000), max_size=60), late_end=st.booleans(), seed=st.integers(0, 2**32))
def test_any_pieces_give_the_same_events(
    recorded: Recorded,
    translated: bool,
    edges: list[int],
    late_end: bool,
    seed: int,
) -> None:
    expected = _whole(recorded, translated=translated)
    pieces = cut(recorded.data, edges)
    dice = random.Random(seed)
    with_empties = [piece for each in pieces for piece in ([b"", each] if dice.random() < 0.1 else [each])]

    by_hand = iterated(stream_of(recorded, with_empties, translated=translated, late_end=late_end))
    from_the_loop = pumped(
        stream_of(recorded, with_empties, translated=translated, late_end=late_end),
        pauses=iter(lambda: dice.random() < 0.2, None),
    )

    assert by_hand == expected
    assert from_the_loop == expected


@pytest.mark.parametrize(("recorded", "translated"), EVERY)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_single_bytes_give_the_same_events(recorded: Recorded, translated: bool, size: int) -> None:
    pieces = cut(recorded.data, range(0, len(recorded.data), size))

    events = pumped(stream_of(recorded, pieces, translated=translated), pauses=repeat(False))

    assert events == _whole(recorded, translated=translated)


@pytest.mark.parametrize(("recorded", "translated"), EVERY)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"], ids=["CRLF", "CR"])
def test_other_line_ends_and_comments_change_nothing_that_is_said(
    recorded: Recorded,
    translated: bool,
    line_end: bytes,
) -> None:
    dressed = b"\xef\xbb\xbf: hello\n\n" + recorded.data.replace(b"\n\n", b"\n: still here\nid: 7\nretry: 9\n\n\n")
    other = Recorded(recorded.name, recorded.format, dressed.replace(b"\n", line_end))
    pieces = cut(other.data, range(0, len(other.data), 7))

    events = pumped(stream_of(other, pieces, translated=translated), pauses=repeat(False))

    assert events == _whole(recorded, translated=translated)


@pytest.mark.parametrize(
    ("recorded", "translated"),
    # Gemini's streams end with the connection's answer alone.
    [case for case in EVERY if cast("Recorded", case.values[0]).format is not WireFormat.GEMINI_GENERATE],
)
@pytest.mark.parametrize("size", [7, 100, 100_000])
def test_what_stands_behind_the_end_is_not_said(recorded: Recorded, translated: bool, size: int) -> None:
    longer = recorded.data + recorded.data
    pieces = cut(longer, range(0, len(longer), size))

    by_hand = iterated(stream_of(recorded, pieces, translated=translated))
    from_the_loop = pumped(stream_of(recorded, pieces, translated=translated), pauses=repeat(False))

    assert by_hand == from_the_loop == _whole(recorded, translated=translated)


@pytest.mark.parametrize(("recorded", "translated"), EVERY)
def test_a_stream_cut_short_at_any_byte_says_nothing_that_the_whole_one_does_not(
    recorded: Recorded,
    translated: bool,
) -> None:
    whole = _whole(recorded, translated=translated)
    wrong = []
    for length in range(len(recorded.data)):
        pieces = cut(recorded.data[:length], range(0, length, 64))
        events: list[StreamEvent] = []
        try:
            stream = stream_of(recorded, pieces, translated=translated)
            events = []

            def keep(event: StreamEvent, events: list[StreamEvent] = events) -> bool:
                events.append(event)
                return True

            while stream.pump(keep):
                pass
            complete = True
        except UpstreamFailed:
            complete = False
        if not _said(whole).startswith(_said(events)):
            wrong.append(f"at byte {length}: says {_said(events)!r}")
        if complete and _said(events) != _said(whole):
            wrong.append(f"at byte {length}: taken for whole, with {_said(events)!r}")
        if not complete and len(events) > len(whole):
            wrong.append(f"at byte {length}: {len(events)} events of {len(whole)}")

    assert wrong == []
