"""The fast lane's reader, with gunicorn behind it, against gunicorn's own parser alone: the same meaning or the same refusal."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData
from gunicorn.http.parser import RequestParser

from secure_llm_proxy.server.hot_worker import _environ_of, _reader
from secure_llm_proxy.server.request_reader import PlainRequest, Verdict
from tests.support.http_corpus import HOSTILE, generated

Outcome = tuple[object, ...]
GENERATED = 12_000
TCP = (("127.0.0.1", 5000), ("192.0.2.7", 40000))
UNIX = ("/run/slp/web.sock", "")
# Their values are objects made per request or connection.
OBJECTS = {"wsgi.input", "wsgi.errors", "wsgi.early_hints", "gunicorn.socket", "wsgi.file_wrapper"}


def config() -> Any:  # noqa: ANN401  gunicorn ships no types
    """As gunicorn.conf.py sets it."""
    cfg = Config()
    for name, value in {
        "http_parser": "python",
        "header_map": "refuse",
        "forwarder_headers": "",
        "forwarded_allow_ips": "",
        "limit_request_line": 8190,
        "limit_request_fields": 100,
        "limit_request_field_size": 8190,
    }.items():
        cfg.set(name, value)
    return cfg


CONFIG = config()


def meaning(environ: dict[str, object], body: bytes) -> Outcome:
    # gunicorn's workers set this one after `create`.
    told = {name: value for name, value in environ.items() if name not in OBJECTS} | {"wsgi.multithread": True}
    return "request", sorted((name, repr(value)) for name, value in told.items()), sorted(environ), body


def read_by_gunicorn(pieces: Sequence[bytes], server: Any, addr: Any) -> Iterator[Outcome]:  # noqa: ANN401
    """Everything that gunicorn reads from one connection, until it refuses or the bytes end."""
    parser = RequestParser(CONFIG, iter(pieces), addr)
    while True:
        try:
            request = next(parser)
            _, environ = wsgi.create(request, _Sink(), addr, server, CONFIG)
            body = request.body.read()
        except (StopIteration, NoMoreData):
            return
        except Exception as refused:  # noqa: BLE001  every class counts
            yield "refused", type(refused).__name__
            return
        yield meaning(environ, body)


def read_by_lane(pieces: Sequence[bytes], server: Any, addr: Any, seen: Counter[str]) -> Iterator[Outcome]:  # noqa: ANN401
    """The same by the lane: what is not plain goes to gunicorn with all that is still to come."""
    base = _environ_of(CONFIG, server, None, addr) | {"wsgi.early_hints": None}
    reader = _reader(CONFIG, server, addr, base)
    coming = list(pieces)
    received = b""
    while True:
        request = reader.read(received) if received else Verdict.UNFINISHED
        if request is Verdict.UNFINISHED:
            if not coming:
                return
            received += coming.pop(0)
            continue
        if not isinstance(request, PlainRequest):
            seen["left to gunicorn"] += 1
            yield from read_by_gunicorn([received, *coming], server, addr)
            return
        seen["plain"] += 1
        end = request.body_at + request.length
        while len(received) < end and coming:
            received += coming.pop(0)
        yield meaning(request.environ, received[request.body_at : end])
        received = received[end:]
        if request.closes or not (received or coming):
            return


class _Sink:
    """Takes `100 Continue`."""

    def send(self, _content: bytes) -> None:
        pass


def split(data: bytes, *places: int) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


@pytest.mark.parametrize(("server", "addr"), [TCP, UNIX], ids=["tcp", "unix"])
def test_a_hostile_request_split_anywhere_means_the_same_to_both(server: Any, addr: Any) -> None:  # noqa: ANN401
    seen: Counter[str] = Counter()
    for data in HOSTILE:
        # Every byte where it matters; the long ones are long in one place.
        places = range(len(data)) if len(data) < 600 else [*range(300), *range(len(data) - 80, len(data))]
        for place in places:
            pieces = split(data, place)

            assert list(read_by_lane(pieces, server, addr, seen)) == list(read_by_gunicorn(pieces, server, addr)), (
                pieces
            )

    assert seen["plain"] > 10_000
    assert seen["left to gunicorn"] > 20_000


def test_a_hostile_request_that_stops_anywhere_is_refused_no_later() -> None:
    seen: Counter[str] = Counter()
    for data in HOSTILE:
        for end in range(1, min(len(data), 400)):
            pieces = [data[:end]]

            assert list(read_by_lane(pieces, *TCP, seen)) == list(read_by_gunicorn(pieces, *TCP)), pieces


@pytest.mark.parametrize("part", range(4))
def test_a_generated_request_means_the_same_to_both(part: int) -> None:
    seen: Counter[str] = Counter()
    for number in range(part, GENERATED, 4):
        data = generated(number)
        chance = random.Random(-number)
        server, addr = chance.choice((TCP, UNIX))
        for pieces in ([data], split(data, *(chance.randrange(len(data)) for _ in range(chance.choice((1, 2, 5)))))):
            assert list(read_by_lane(pieces, server, addr, seen)) == list(read_by_gunicorn(pieces, server, addr)), (
                pieces
            )

    assert seen["plain"] > 1_000
    assert seen["left to gunicorn"] > 1_000


def test_generated_requests_byte_by_byte_mean_the_same_to_both() -> None:
    seen: Counter[str] = Counter()
    for number in range(400):
        pieces = [generated(number)[place : place + 1] for place in range(len(generated(number)))]

        assert list(read_by_lane(pieces, *TCP, seen)) == list(read_by_gunicorn(pieces, *TCP)), pieces
