"""A WSGI application for tests of the worker: one path for each way of answering. gunicorn loads it by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.event

from secure_llm_proxy.vocabulary.connection import CONNECTION, StreamSink

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

_told: list[str] = []


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    name = environ["PATH_INFO"].strip("/").replace("-", "_")
    return _PATHS.get(name, _echo)(environ, start_response)


def _answer(start_response: StartResponse, body: bytes, status: str = "200 OK") -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("X-Padded", " a b\t")])
    return [body]


def _echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Every key of the environ, the values that are text or numbers, and the body."""
    body = environ["wsgi.input"].read()
    told = {name: value if isinstance(value, str | int | tuple) else None for name, value in environ.items()}
    told.pop(CONNECTION, None)
    told["body"] = body.decode("latin-1")
    return _answer(start_response, json.dumps(told, sort_keys=True).encode())


def _ignore(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return _answer(start_response, b"ignored")


def _by_steps(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The body read in all the ways that PEP 3333 knows."""
    body = environ["wsgi.input"]
    parts = [body.read(3), body.readline(), body.readline(2), *body.readlines(), body.read(5), body.read()]
    return _answer(start_response, repr(parts).encode())


def _lines(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return _answer(start_response, repr(list(environ["wsgi.input"])).encode())


def _chunks(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return iter([b"one", b"", b"two" * 20_000, b"three"])


def _late_start(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    start_response("201 Created", [("Content-Length", "4")])
    yield b"la"
    yield b"te"


def _no_body(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("204 No Content", [("Content-Length", "3"), ("X-A", "b")])
    return [b"abc"]


def _not_modified(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("304 Not Modified", [("ETag", "x"), ("Content-Length", "3")])
    return []


def _too_much(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"abc", b"defgh", b"ijk"]


def _short(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "100")])
    return [b"short"]


def _empty(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "0")])
    return []


def _written(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", [("Content-Length", "9")])
    write(b"abc")
    write(b"def")
    return [b"ghi"]


def _replaced(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "2"), ("X-First", "1")])
    try:
        int("replaced")
    except ValueError as error:
        start_response("503 Oh", [("X-Second", "2")], (ValueError, error, error.__traceback__))
    return [b"hi"]


def _twice(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


def _hop(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response(
        "200 OK",
        [
            ("Connection", "close"),
            ("Keep-Alive", "x"),
            ("Server", "y"),
            ("Date", "z"),
            ("X-A", "b"),
            ("Content-Length", "2"),
        ],
    )
    return [b"ok"]


def _latin(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 Gr\xfcn", [("X-A", "\xe4\tb"), ("content-length", "2")])
    return [b"ok"]


def _broken_header(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    broken: dict[str, list[Any]] = {
        "lf": [("X-A", "a\nb: c")],
        "crlf": [("X-A", "a\r\nSet-Cookie: b")],
        "cr": [("X-A", "a\r"), ("X-B", "\nb")],
        "name": [("X A", "b")],
        "colon": [("X:A", "b")],
        "empty": [("", "b")],
        "nul": [("X-A", "a\0")],
        "number": [("X-A", 1)],
        "bytes": [("X-A", b"b")],
        "wide": [("X-A", "\u20ac")],
        "length": [("Content-Length", "x")],
    }
    start_response("200 OK", broken.get(environ["QUERY_STRING"], []))
    return [b"ok"]


def _broken_status(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    statuses: dict[str, Any] = {"lf": "200 OK\nX: y", "short": "20", "number": 200, "word": "fine"}
    start_response(statuses[environ["QUERY_STRING"]], [("Content-Length", "2")])
    return [b"ok"]


def _boom(_environ: Environ, _start_response: StartResponse) -> Iterable[bytes]:
    raise RuntimeError("boom")


def _silent(_environ: Environ, _start_response: StartResponse) -> Iterable[bytes]:
    return [b"no head"]


def _boom_late(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Length", "100")])
    yield b"begun"
    raise RuntimeError("boom")


def _hints(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
    return _answer(start_response, b"hinted")


def _file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    size = Path(__file__).stat().st_size
    start_response("200 OK", [("Content-Length", str(size))])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](open(__file__, "rb"))  # noqa: SIM115, PTH123  the server closes it
    return wrapped


def _big(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    body = bytes(range(256)) * (int(environ["QUERY_STRING"]) * 4)
    return _answer(start_response, body)


class _Pieces:
    """A stream: iterated by the stock worker, asked to send itself by the other."""

    def __init__(self, pieces: list[bytes], fails: str = "") -> None:
        self._pieces = pieces
        self._fails = fails

    def __iter__(self) -> Iterator[bytes]:
        if self._fails == "early":
            raise RuntimeError("boom")
        yield from self._pieces
        if self._fails:
            raise RuntimeError("boom")

    def relay(self, sink: StreamSink) -> None:
        if self._fails == "early":
            raise RuntimeError("boom")
        for piece in self._pieces:
            if not sink.send(piece):
                sink.flush()
        if self._fails:
            raise RuntimeError("boom")

    def close(self) -> None:
        _told.append("closed")


def _relay(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    pieces = [b"data: %d %b\n\n" % (number, b"x" * (number % 300)) for number in range(200)]
    return _Pieces({"none": [], "big": [bytes(range(256)) * 40_000] * 3}.get(environ["QUERY_STRING"], [*pieces, b""]))


def _relay_fails(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return _Pieces([b"begun"], environ["QUERY_STRING"])


def _await(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Wait, at most 20 s, for the client to leave; only the fast lane can tell."""
    if "early" not in environ["QUERY_STRING"]:
        environ["wsgi.input"].read()
    gone = gevent.event.Event()
    environ[CONNECTION].watch(gone.set)
    _told.append("waiting")
    if "early" in environ["QUERY_STRING"]:
        gevent.sleep(0.5)
        _told.append(f"before the body: {gone.is_set()}")
        environ["wsgi.input"].read()
        _told.append("body read")
    _told.append("gone" if gone.wait(2.0 if "briefly" in environ["QUERY_STRING"] else 20.0) else "still there")
    return _answer(start_response, b"awaited")


def _sleep(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    _told.append("asleep")
    gevent.sleep(float(environ["QUERY_STRING"]))
    return _answer(start_response, b"slept")


def _tell(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """What the other paths noted, by then forgotten."""
    told = json.dumps(_told).encode()
    _told.clear()
    return _answer(start_response, told)


_PATHS: dict[str, Callable[[Environ, StartResponse], Iterable[bytes]]] = {
    name.removeprefix("_"): found
    for name, found in list(globals().items())
    if callable(found) and name.startswith("_") and name not in {"_answer", "_Pieces"}
}
