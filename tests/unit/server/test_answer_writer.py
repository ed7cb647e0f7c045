"""Streams to a client that reads slowly or leaves, on a real socket; what everybody answers is compared with gunicorn in rooms."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest
from gunicorn.config import Config

from secure_llm_proxy.foundation.loop_socket import LoopSocket
from secure_llm_proxy.server.answer_writer import _FORMS, _FORMS_MAX, AnswerWriter, ChunkedSink, Preambles

EVENTS = [("Content-Type", "text/event-stream")]


class Line:
    """An answer's writer and the client that it writes to."""

    def __init__(self, send_timeout_s: float) -> None:
        server, self.client = socket.socketpair()
        self.client.settimeout(10)
        self.socket = LoopSocket(server)
        self.answer = AnswerWriter(self.socket, Config(), Preambles(), send_timeout_s)
        self.answer.begin("POST", closes=False)

    def sink(self) -> ChunkedSink:
        self.answer.start_response("200 OK", EVENTS)
        return ChunkedSink(self.answer)

    def close(self) -> None:
        self.socket.close()
        self.client.close()


@pytest.fixture(params=[30.0])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    made = Line(send_timeout_s=request.param)
    yield made
    made.close()


def fill(line: Line, sink: ChunkedSink) -> int:
    """Send until the client's side is full; returns the number of pieces sent."""
    pieces = 1
    while sink.send(b"x" * 50_000):
        pieces += 1
        assert pieces < 10_000
    return pieces


def test_the_first_piece_travels_with_the_head(line: Line) -> None:
    sink = line.sink()
    assert not line.answer.headers_sent

    assert sink.send(b"data: 1\n\n")

    received = line.client.recv(10_000)
    assert received.startswith(b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: ")
    assert received.endswith(
        b"\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n9\r\ndata: 1\n\n\r\n"
    )
    assert line.answer.headers_sent


def test_an_empty_piece_is_no_end(line: Line) -> None:
    sink = line.sink()

    assert sink.send(b"")
    assert sink.send(b"a")
    sink.finish()

    assert line.client.recv(10_000).partition(b"\r\n\r\n")[2] == b"1\r\na\r\n0\r\n\r\n"


def test_a_stream_of_nothing_has_a_head_and_an_end(line: Line) -> None:
    line.sink().finish()

    assert line.client.recv(10_000).endswith(b"\r\n\r\n0\r\n\r\n")


def test_a_client_that_reads_slowly_gets_everything_in_order(line: Line) -> None:
    sink = line.sink()
    received = bytearray()
    pieces = fill(line, sink)

    def read_on() -> None:
        for _ in range(2000):
            if received.endswith(b"0\r\n\r\n"):
                return
            received.extend(take(line.client))

    reader = gevent.spawn(read_on)

    assert not sink.send(b"behind")
    sink.flush()
    assert sink.send(b"after")
    sink.finish()

    reader.join(20)
    body = bytes(received).partition(b"\r\n\r\n")[2]
    assert body == b"C350\r\n%b\r\n" % (b"x" * 50_000) * pieces + b"6\r\nbehind\r\n5\r\nafter\r\n0\r\n\r\n"


def take(client: socket.socket) -> bytes:
    """What is there now; others have a turn."""
    gevent.sleep(0.002)
    try:
        return client.recv(1 << 20, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("line", [0.3], indirect=True)
def test_a_client_that_does_not_read_is_waited_for_no_longer_than_allowed(line: Line) -> None:
    sink = line.sink()
    fill(line, sink)

    with pytest.raises(TimeoutError):
        sink.flush()


def test_a_client_that_left_is_told_of(line: Line) -> None:
    sink = line.sink()
    assert sink.send(b"a")
    line.client.close()

    with pytest.raises(BrokenPipeError):
        sink.send(b"b")


def test_one_answer_leaves_nothing_to_the_next(line: Line) -> None:
    line.answer.start_response("204 No Content", [("X-First", "1")])
    line.answer.send([])
    line.answer.begin("GET", closes=True)
    line.answer.start_response("200 OK", [("Content-Length", "2")])
    line.answer.send([b"ok"])

    first, second, rest = line.client.recv(10_000).split(b"\r\n\r\n")
    assert b"X-First" in first
    assert b"X-First" not in second
    assert b"Connection: close" in second
    assert rest == b"ok"
    assert line.answer.closes


NAMES = ["Content-Type", "X-One", "X-Two", "Content-Length"]
VALUES = ["text/plain", "a", "a b", "", " a", "a ", "a  b", "\ta", "a\t", "a\tb", "\xe4", "\xa0a\xa0", "a:  b", "  "]
REFUSED = ["a\r\nX-Three: 1", "a\n", "\x00", "\x7f", "\u0660", 7, b"a", None]
LENGTHS = ["2", "02", " 2", "2 ", "+2", "\xb2", "2_0", "", "-2"]


def answered(line: Line, headers: list[tuple[str, object]]) -> bytes | type[BaseException]:
    """The lines of `headers` as they were sent, or what was raised."""
    line.answer.begin("GET", closes=False)
    try:
        line.answer.start_response("200 OK", headers)  # type: ignore[arg-type]  # what a defective application may hand over
        line.answer.send((b"ok",))
    except Exception as error:  # noqa: BLE001  every class counts
        return type(error)
    return line.client.recv(10_000).partition(b"Connection: keep-alive\r\n")[2]


def headers_with(value: object, at: int, length: str) -> list[tuple[str, object]]:
    told: list[object] = ["text/plain", "1", "2", length]
    told[at] = value
    return list(zip(NAMES, told, strict=True))


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("value", [*VALUES, *REFUSED], ids=ascii)
def test_names_that_came_before_are_answered_as_at_the_first_time(line: Line, value: object, at: int) -> None:
    asked = headers_with(value, at, "2")
    _FORMS.clear()
    first = answered(line, asked)
    known = answered(line, headers_with("1", 1, "2"))
    assert tuple(NAMES) in _FORMS

    again = answered(line, asked)

    assert again == first
    assert isinstance(known, bytes)
    assert isinstance(first, bytes) == (value not in REFUSED)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_is_judged_alike_at_both_times(line: Line, length: str) -> None:
    asked = headers_with("1", 1, length)
    _FORMS.clear()
    first = answered(line, asked)
    answered(line, headers_with("1", 1, "2"))
    assert tuple(NAMES) in _FORMS

    assert answered(line, asked) == first


def test_a_name_that_comes_twice_is_sent_twice(line: Line) -> None:
    once: list[tuple[str, object]] = [("X-One", "1"), ("Content-Length", "2")]
    assert answered(line, once) == b"X-One: 1\r\nContent-Length: 2\r\n\r\nok"

    twice = answered(line, [("X-One", "0"), *once])

    assert twice == b"X-One: 0\r\nX-One: 1\r\nContent-Length: 2\r\n\r\nok"


def test_combinations_of_names_are_kept_within_bounds(line: Line) -> None:
    _FORMS.clear()

    for number in range(_FORMS_MAX + 10):
        assert answered(line, [(f"X-Odd-{number}", "1"), ("Content-Length", "2")]) != b""

    assert len(_FORMS) == _FORMS_MAX
    _FORMS.clear()
