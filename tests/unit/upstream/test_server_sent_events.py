from __future__ import annotations

import collections
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.upstream.server_sent_events import EventTooLarge, ServerSentEvent, ServerSentEventParser

_BYTES_MAX = 4_096

# the bytes that mean something to the standard, and some that do not
_STREAMS = st.lists(
    st.sampled_from(
        [
            b"data:",
            b"data: ",
            b"data",
            b"event: error",
            b"id: 7",
            b": comment",
            b"\xef\xbb\xbf",
            b"x",
            b" ",
            b"{}",
            b"\r",
            b"\n",
            b"\r\n",
            b"\n\n",
            b"\r\r",
            b"\r\n\r\n",
            b"\x00",
            "ü€😀".encode(),
            b"\xc2\x85",
            b"\x0b\x0c\x1c",
        ]
    ),
    max_size=40,
).map(b"".join)


def _parse(*pieces: bytes, event_bytes_max: int = _BYTES_MAX) -> list[ServerSentEvent]:
    parser = ServerSentEventParser(event_bytes_max=event_bytes_max)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


def _data(*pieces: bytes) -> list[bytes]:
    return [event.data for event in _parse(*pieces)]


@given(stream=_STREAMS, cuts=st.lists(st.integers(0, 400), max_size=20))
def test_any_cutting_of_a_stream_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    whole = _parse(stream)

    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    cut_up = _parse(*[stream[start:end] for start, end in itertools.pairwise(edges)])
    byte_by_byte = _parse(*[stream[at : at + 1] for at in range(len(stream))])

    assert cut_up == whole
    assert byte_by_byte == whole


@given(data=st.lists(st.binary(max_size=30).map(lambda raw: raw.translate(None, b"\r\n")), min_size=1, max_size=5))
@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_lines_of_data_come_back_joined_by_line_feeds(line_end: bytes, data: list[bytes]) -> None:
    stream = b"".join(b"data: " + line + line_end for line in data) + line_end

    assert _data(stream) == [b"\n".join(data)]


_EVENTS = st.lists(
    st.sampled_from(
        [
            *[
                b"event: x\ndata: a\n\n",
                b"data: a\n\n",
                b"data: \n\n",
                b"data:a\n\n",
                b"data: a\ndata: b\n\n",
                b"event: error\ndata: a\n\n",
                b"event: a\ndata: {}\n\nevent: b\ndata: b\n\n",
                b"event: \ndata: a\n\n",
                b"event: a\n\n",
                b"event: a\ndata: b\ndata: c\n\n",
                b"event: a\nevent: b\ndata: c\n\n",
                b"\n",
            ],
            *[b"data: a\r\n\r\n", b"data: a\n", b": c\n\n", b"data: a data: b\n\n", b"data: \n"],
            b"\xef\xbb\xbfdata: a\n\n",
            *[b"event: \ndata: a\n\n", b"event: x\n\n", b"event: x\n", b"event: x\nevent: y\ndata: a\n\n", b"id: 1\n"],
            *[b"event: x\ndata: \n\n", b"event: x\n\ndata: a\n\n", b"event: x\ndata: a\ndata: b\n\n"],
        ]
    ),
    min_size=1,
    max_size=4,
).map(b"".join)


@given(pieces=st.lists(_EVENTS, min_size=1, max_size=4))
def test_pieces_of_whole_events_give_what_their_single_bytes_give(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)

    assert _parse(*pieces) == _parse(*[stream[at : at + 1] for at in range(len(stream))])


def test_a_carriage_return_and_line_feed_in_two_pieces_are_one_line_end() -> None:
    assert _data(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n", b"data: c\n\n") == [b"a\nb", b"c"]


def test_an_event_is_given_as_soon_as_its_blank_line_has_arrived() -> None:
    parser = ServerSentEventParser(event_bytes_max=_BYTES_MAX)

    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == [ServerSentEvent(b"a")]
    # a lone CR ends a line too: nobody waits to see whether LF follows
    assert parser.feed(b"data: b\r\r") == [ServerSentEvent(b"b")]
    assert parser.feed(b"\ndata: c\n\n") == [ServerSentEvent(b"c")]


def test_comments_ids_retries_and_unknown_fields_are_passed_over() -> None:
    assert _data(b": hello\n:\nid: 1\nretry: 10\nfoo: bar\nfoo\ndata: a\n\n: bye\n\n") == [b"a"]


def test_a_byte_order_mark_at_the_start_is_dropped_and_later_ones_are_not() -> None:
    assert _data(b"\xef", b"\xbb", b"\xbfdata: a\n\n") == [b"a"]
    assert _data(b"\xef\xbb\xbf\n\n\xef\xbb\xbfdata: a\n\n") == []
    assert _data(b"data: \xef\xbb\xbfa\n\n") == [b"\xef\xbb\xbfa"]


def test_only_one_space_after_the_colon_is_dropped() -> None:
    assert _data(b"data:a\n\ndata: a\n\ndata:  a\n\ndata:a \n\n") == [b"a", b"a", b" a", b"a "]


def test_the_examples_of_the_standard_give_its_events() -> None:
    # WHATWG HTML §9.2.6
    assert _data(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [b"YHOO\n+2\n10"]
    assert _data(b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n") == [
        b"first event",
        b"second event",
        b" third event",
    ]
    assert _data(b"data\n\ndata\ndata\n\n") == [b"", b"\n"]


def test_the_name_of_an_event_holds_for_that_event_only() -> None:
    events = _parse(b"event: error\ndata: a\n\ndata: b\n\nevent: ping\n\ndata: c\n\n")

    assert [(event.name, event.data) for event in events] == [(b"error", b"a"), (b"message", b"b"), (b"message", b"c")]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_an_event_whose_blank_line_is_missing_at_the_end_is_not_lost(end: bytes) -> None:
    assert _data(b"data: a\n\ndata: b" + end) == [b"a", b"b"]


def test_unicode_line_separators_do_not_end_a_line() -> None:
    text = "a\u2028b\u2029c\u0085d".encode() + b"\x0b\x0c\x1c"

    assert _data(b"data: " + text + b"\n\n") == [text]


def test_an_event_of_the_largest_size_passes_and_one_byte_more_does_not() -> None:
    largest = b"data: " + b"x" * (100 - len(b"data: "))

    assert len(_parse(largest + b"\n\n", event_bytes_max=100)) == 1
    with pytest.raises(EventTooLarge):
        _parse(largest + b"x\n\n", event_bytes_max=100)


@pytest.mark.parametrize("piece", [b"x", b"data:\n", b"data: x\n", b"data: " + b"x" * 50 + b"\n"])
def test_an_event_that_never_ends_is_stopped_at_the_cap(piece: bytes) -> None:
    parser = ServerSentEventParser(event_bytes_max=1_000)

    with pytest.raises(EventTooLarge):
        collections.deque(map(parser.feed, [piece] * 1_100), maxlen=0)


def test_many_small_events_never_meet_the_cap() -> None:
    assert len(_parse(*[b"data: 0123456789\n\n"] * 500, event_bytes_max=100)) == 500


_OBJECTS = st.lists(
    st.sampled_from(
        [
            b'data: {"a":1}\n\n',
            b'data: {"a":"\\n"}\n\n',
            b'data: {"a":1}\r\n\r\n',
            b'data: {"a":\r\ndata: 1}\r\n\r\n',
            b'data: {"a":\rdata: 1}\r\n\r\n',
            b'data: {"a":1}\n\r\n\r\n',
            b'data: {"a":1}\n',
            b"\n",
            b"\r",
            b"event: error\n",
            b"data: [DONE]\n\n",
            b'data: {"a":\ndata: 1}\n\n',
            b'data:{"a":1}\n\n',
            b': {"a":1}\n\n',
            b'\xef\xbb\xbfdata: {"a":1}\n\n',
            b'data: {"a":"' + b"x" * 40 + b'"}\n\n',
        ]
    ),
    max_size=12,
)


@given(pieces=_OBJECTS)
def test_the_short_way_for_one_whole_event_reads_what_the_long_way_reads(pieces: list[bytes]) -> None:
    parser = ServerSentEventParser(event_bytes_max=_BYTES_MAX)
    events: list[ServerSentEvent] = []

    for piece in pieces:
        data = parser.whole_object(piece)
        events += [ServerSentEvent(data)] if data is not None else parser.feed(piece)

    assert events + parser.finish() == _parse(*pieces)


def test_the_usual_piece_takes_the_short_way() -> None:
    parser = ServerSentEventParser(event_bytes_max=_BYTES_MAX)

    assert parser.whole_object(b'data: {"choices":[]}\n\n') == b'{"choices":[]}'
    assert parser.whole_object(b'data: {"candidates":[]}\r\n\r\n') == b'{"candidates":[]}'
    assert parser.whole_object(b'data: {"choices":[]}\n') is None
    assert parser.whole_object(b'data: {"a":"' + b"x" * _BYTES_MAX + b'"}\n\n') is None
