"""Both worker classes as real processes: the same bytes come back for the same bytes, whoever reads and writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gunicorn_server import HOT, STOCK, GunicornServer, answer_of, get, post
from tests.support.http_corpus import HOSTILE, generated


@dataclass(frozen=True)
class Pair:
    stock: GunicornServer
    hot: GunicornServer

    def answers(self, *pieces: bytes) -> tuple[bytes, bytes]:
        """What each answers, without what differs by nature: the time, an id, a port."""
        stock, hot = (_without_moment(server.exchange(*pieces), server) for server in (self.stock, self.hot))
        return stock, hot


def _without_moment(received: bytes, server: GunicornServer) -> bytes:
    received = re.sub(rb"\r\nDate: [^\r]{29}\r\n", b"\r\nDate: then\r\n", received)
    received = re.sub(rb"X-Request-Id: \w+", b"X-Request-Id: id", received)
    received = received.replace(str(server.path).encode(), b"/path/of/socket")
    received = re.sub(rb'"SERVER_PORT": "%d"' % server.port, b'"SERVER_PORT": "server"', received)
    received = re.sub(rb'"REMOTE_PORT": "\d+"', b'"REMOTE_PORT": "client"', received)
    # The length tells of those; it is checked where nothing was taken out.
    return re.sub(rb"Content-Length: \d{3,}", b"Content-Length: many", received)


@pytest.fixture(scope="module", params=[False, True], ids=["tcp", "unix"])
def pair(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Pair]:
    shape = "unix" if request.param else "tcp"
    with (
        GunicornServer(short_folder / f"stock-{shape}", STOCK, on_unix_socket=request.param) as stock,
        GunicornServer(short_folder / f"hot-{shape}", HOT, on_unix_socket=request.param) as hot,
    ):
        yield Pair(stock, hot)


def test_hostile_requests_are_answered_alike(pair: Pair) -> None:
    with ThreadPoolExecutor(4) as pool:
        for data, (stock, hot) in zip(HOSTILE, pool.map(pair.answers, HOSTILE), strict=True):
            assert hot == stock, data


def test_generated_requests_are_answered_alike(pair: Pair) -> None:
    corpus = [generated(-number) for number in range(400)]

    with ThreadPoolExecutor(4) as pool:
        for data, (stock, hot) in zip(corpus, pool.map(pair.answers, corpus), strict=True):
            assert hot == stock, data


_ANSWERS = (
    *("echo", "ignore", "by-steps", "lines", "chunks", "late-start", "no-body", "not-modified", "too-much", "empty"),
    *("written", "replaced", "twice", "hop", "latin", "boom", "silent", "boom-late", "hints", "file", "big?3", "big?300"),
    *("relay", "relay?none", "relay?big", "relay-fails?late", "relay-fails?early"),
    *(f"broken-header?{how}" for how in ("lf", "crlf", "cr", "name", "colon", "empty", "nul", "number", "bytes", "wide")),
    *(f"broken-status?{how}" for how in ("lf", "short", "number", "word")),
    "broken-header?length",
)  # fmt: skip


@pytest.mark.parametrize("path", _ANSWERS)
def test_every_way_to_answer_gives_the_same_bytes(pair: Pair, path: str) -> None:
    asked = post(f"/{path}", b"ab\ncd\nefgh\n\nij") + get("/ignore", b"Connection: close")

    stock, hot = pair.answers(asked)

    assert hot == stock
    assert hot.startswith(b"HTTP/1.1 ")


def test_the_environ_has_the_same_keys_and_values(pair: Pair) -> None:
    asked = post("/echo/deep?a=b&c", b"body", b"X-Forwarded-Proto: https", b"X-Own: a, b", b"Content-Type: text/plain")

    stock, hot = pair.answers(asked)

    assert hot == stock
    environ = json.loads(hot.partition(b"\r\n\r\n")[2])
    assert environ["wsgi.multithread"] is True
    assert environ["wsgi.url_scheme"] == ("https" if pair.hot.on_unix_socket else "http")
    assert environ["body"] == "body"


_ALIASES = (
    *(b"X_Forwarded_For", b"X-Forwarded_For", b"x_forwarded-for", b"X_Real_IP", b"X_Api_Key", b"User_Agent", b"X_User_ID"),
    *(b"Remote_Addr", b"REMOTE_ADDR", b"HTTP_X_FORWARDED_FOR", b"Content_Length", b"Content_Type", b"Transfer_Encoding"),
    *(b"X Forwarded For", b"X-Forwarded-For ", b"X-Forwarded-For\t", b" X-Forwarded-For", b"X\x00Forwarded-For"),
)  # fmt: skip


@pytest.mark.parametrize("alias", _ALIASES)
def test_no_other_spelling_of_a_header_reaches_the_environ(pair: Pair, alias: bytes) -> None:
    """SECURITY A02: a header that a proxy in front did not know, and so did not overwrite, must not count as one it did."""
    asked = get("/echo", alias + b": 8.8.8.8", b"Connection: close")

    stock, hot = pair.answers(asked)

    assert hot == stock
    head, _, body = hot.partition(b"\r\n\r\n")
    assert b"8.8.8.8" not in body
    assert head.startswith(b"HTTP/1.1 400 ") or (head.startswith(b"HTTP/1.1 200 ") and b"HTTP_HOST" in body)


@pytest.mark.parametrize("size", [0, 1, 1000, 65_000, 65_536, 70_000, 3_000_000])
def test_a_body_of_any_size_arrives_whole_and_the_next_request_behind_it(pair: Pair, size: int) -> None:
    body = bytes(range(48, 122)) * (size // 74 + 1)
    asked = post("/echo", body[:size]) + post("/echo", b"next", b"Connection: close")

    # The second piece is never empty: sending nothing fails when both answers are out and the server has hung up.
    place = min(700, len(asked) - 1)

    stock, hot = pair.answers(asked[:place], asked[place:])

    assert hot == stock
    assert hot.count(b"HTTP/1.1 200 OK") == 2
    assert b'"body": "next"' in hot


def test_a_body_nobody_reads_is_dropped_and_the_connection_goes_on(pair: Pair) -> None:
    with pair.hot.connect() as line:
        for _ in range(3):
            line.sendall(post("/ignore", b"x" * 300_000))
            assert answer_of(line).endswith(b"ignored")
        line.sendall(post("/echo", b"alive"))

        assert b'"body": "alive"' in answer_of(line)


def test_one_connection_goes_through_both_ways_of_reading(pair: Pair) -> None:
    with pair.hot.connect() as line:
        for request in (
            get("/echo"),
            post("/echo", b"a"),
            get("/a%20b"),
            get("/echo"),
            post("/echo", b"b"),
            get("/chat?a=%41"),
        ):
            line.sendall(request)
            answer = answer_of(line)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nConnection: keep-alive\r\n" in answer


def test_a_client_that_waits_for_leave_to_send_gets_it(pair: Pair) -> None:
    with pair.hot.connect() as line:
        line.sendall(get("/ignore"))
        assert answer_of(line).endswith(b"ignored")
        line.sendall(post("/echo", b"", b"Expect: 100-continue").replace(b"Content-Length: 0", b"Content-Length: 4"))
        assert line.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(b"body")

        assert b'"body": "body"' in answer_of(line)


def test_an_answer_shorter_than_promised_ends_the_connection(pair: Pair) -> None:
    received = pair.hot.exchange(get("/short") + get("/ignore"))

    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Content-Length: 100" in head
    assert body == b"short"
