from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.upstream.http1 import (
    BodyFraming,
    BrokenAnswer,
    ChunkedBody,
    HeadReader,
    SizedBody,
    UntilClosedBody,
    body_framing,
    can_be_head,
    parse_head,
    request_head,
)


def _head(*lines: str, status_line: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([status_line, *lines]).encode("latin-1")


def _feed(framing: BodyFraming, *pieces: bytes) -> bytes:
    return b"".join(framing.feed(piece) for piece in pieces)


def test_the_headers_that_count_are_read_with_names_in_lower_case_and_repeated_ones_joined() -> None:
    lines = (
        "Content-Type:  Application/JSON; charset=utf-8 ",
        "Connection: a",
        "X-A: 1",
        "connection:b\t",
        "Retry-After:",
    )

    head = parse_head(_head(*lines))

    assert head.status == 200
    assert head.headers == {
        "content-type": "Application/JSON; charset=utf-8",
        "connection": "a, b",
        "retry-after": "",
    }
    assert head.content_type == "application/json"


@pytest.mark.parametrize(
    ("status_line", "connection", "keeps_alive"),
    [
        ("HTTP/1.1 200 OK", None, True),
        ("HTTP/1.1 200", None, True),
        ("HTTP/1.1 200 OK", "close", False),
        ("HTTP/1.1 200 OK", "Foo, CLOSE", False),
        ("HTTP/1.0 200 OK", None, False),
        ("HTTP/1.0 200 OK", "Keep-Alive", True),
    ],
)
def test_a_connection_is_kept_only_when_the_head_says_so(
    status_line: str, connection: str | None, *, keeps_alive: bool
) -> None:
    lines = [f"Connection: {connection}"] if connection else []

    assert parse_head(_head(*lines, status_line=status_line)).keeps_alive is keeps_alive


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 600 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 200 OK\nX: 1",
        _head("X : 1"),
        _head("X"),
        _head(" folded: 1"),
        _head("X: 1", "\tfolded"),
        _head("X: a\x00b"),
        _head("X: a\nb"),
        _head("X: a\rb"),
        _head("X\u00e4: 1"),
        _head(*[f"X-{number}: 1" for number in range(129)]),
    ],
)
def test_a_malformed_head_is_refused(block: bytes) -> None:
    with pytest.raises(BrokenAnswer):
        parse_head(block)


@pytest.mark.parametrize(
    ("received", "possible"),
    [
        (b"", True),
        (b"H", True),
        (b"HTTP/1.1 200 OK", True),
        (b"HTTP/1.1 200 OK\r\nX", True),
        (b"SSH-2.0", False),
        (b"\x15\x03\x01", False),
        (b"HTTP/2", False),
        (b"HTTP/1.1 200 OK\nX: 1\n\n", False),
        (b"\n", False),
    ],
)
def test_nobody_waits_for_the_rest_of_what_is_no_head(received: bytes, *, possible: bool) -> None:
    assert can_be_head(received) is possible


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Content-Length: 5"),
        ("Content-Length: +5",),
        ("Content-Length: -5",),
        ("Content-Length: 0x5",),
        ("Content-Length: 5_0",),
        ("Content-Length: \u00b2",),
        ("Content-Length: 9999999999999999",),
        ("Content-Length:",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: xchunked",),
    ],
)
def test_a_head_that_leaves_the_end_of_its_body_open_to_doubt_is_refused(lines: tuple[str, ...]) -> None:
    with pytest.raises(BrokenAnswer):
        body_framing(parse_head(_head(*lines)))


def test_the_head_decides_how_the_body_ends() -> None:
    assert isinstance(body_framing(parse_head(_head("Content-Length: 5"))), SizedBody)
    assert isinstance(body_framing(parse_head(_head("Transfer-Encoding: Chunked"))), ChunkedBody)
    assert isinstance(body_framing(parse_head(_head())), UntilClosedBody)
    assert body_framing(parse_head(_head("Content-Length: 5", status_line="HTTP/1.1 204 No Content"))).done


def test_a_head_is_read_from_any_pieces_and_what_follows_it_is_left() -> None:
    interim = _head("Link: </x>", status_line="HTTP/1.1 103 Early Hints") + b"\r\n\r\n"
    received = interim * 7 + _head("Content-Length: 5") + b"\r\n\r\nabcde"

    for step in (1, 7, 1_000):
        reader = HeadReader()
        rest = iter([received[at : at + step] for at in range(0, len(received), step)])

        head = next(found for piece in rest if (found := reader.feed(piece)))

        assert head.headers == {"content-length": "5"}
        assert reader.rest + b"".join(rest) == b"abcde"


@pytest.mark.parametrize(
    "received",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 8,
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nSSH",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 32_768,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 32_768 + b"\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 1_000, 100_000])
def test_a_head_that_is_too_long_or_comes_behind_strange_interim_ones_is_refused(received: bytes, step: int) -> None:
    reader = HeadReader()

    with pytest.raises(BrokenAnswer):
        collections.deque((reader.feed(received[at : at + step]) for at in range(0, len(received), step)), maxlen=0)


def test_switching_protocols_is_refused_and_other_interim_heads_are_followed_by_another() -> None:
    switching = parse_head(_head(status_line="HTTP/1.1 101 Switching Protocols"))

    assert parse_head(_head(status_line="HTTP/1.1 103 Early Hints")).is_interim
    assert not switching.is_interim
    with pytest.raises(BrokenAnswer):
        body_framing(switching)


def test_a_sized_body_ends_at_its_length_and_the_rest_is_surplus() -> None:
    framing = SizedBody(5)

    assert _feed(framing, b"ab", b"cdeXY") == b"abcde"
    assert framing.done
    assert framing.surplus == b"XY"


def test_a_body_that_ends_before_its_length_or_last_chunk_is_refused() -> None:
    sized, chunked, until_closed = SizedBody(5), ChunkedBody(), UntilClosedBody()
    _feed(sized, b"abcd")
    _feed(chunked, b"4\r\nabcd\r\n0\r\n")
    _feed(until_closed, b"abcd")

    with pytest.raises(BrokenAnswer):
        sized.end()
    with pytest.raises(BrokenAnswer):
        chunked.end()
    until_closed.end()

    assert until_closed.done


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    extension=st.sampled_from([b"", b";a=b", b' ; q="x y"']),
    trailer=st.sampled_from([b"", b"X-Trailer: 1\r\n"]),
    step=st.integers(1, 50),
)
def test_a_chunked_body_is_the_same_in_any_pieces(
    chunks: list[bytes], extension: bytes, trailer: bytes, step: int
) -> None:
    wire = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    wire += b"0\r\n" + trailer + b"\r\n" + b"NEXT"
    framing = ChunkedBody()

    body = _feed(framing, *[wire[at : at + step] for at in range(0, len(wire), step)])

    assert body == b"".join(chunks)
    assert framing.done
    assert framing.surplus == b"NEXT"


@pytest.mark.parametrize(
    "wire",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"1\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n",
        b"1\r\na\r\r\n",
        b"123456789\r\n",
        b"1;" + b"x" * 2_000 + b"\r\n",
        b"1" * 2_000,
        b"0\r\n" + b"X: " + b"y" * 2_000 + b"\r\n",
        b"0\r\n" + b"X: 1234567890\r\n" * 1_000,
        b"0\r\nX: 1\n\r\n",
        b"1 \r\na\r\n",
        b"1;\r\na\r\n",
        b'1;a="b\r\na\r\n',
        b"0\r\nX\r\n\r\n",
        b"0\r\nContent-Length: 1\r\n\r\n",
        b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_malformed_or_endless_chunk_lines_are_refused(wire: bytes, step: int) -> None:
    with pytest.raises(BrokenAnswer):
        _feed(ChunkedBody(), *[wire[at : at + step] for at in range(0, len(wire), step)])


def test_a_request_head_ends_with_an_empty_line() -> None:
    assert request_head("POST", "/v1/x", {"Host": "h", "A": "b"}) == b"POST /v1/x HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n"
