"""The doors before Flask, without a server: which they are, what they leave to Flask, and that both say the same."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
from gevent import GreenletExit

from secure_llm_proxy.foundation.errors import ClientGone, UpstreamFailed
from secure_llm_proxy.settings import LimitSettings, ServerSettings, Settings
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.connection import CONNECTION
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.web.answers import EventStream
from secure_llm_proxy.web.doors import DOORS, Door, Guard
from secure_llm_proxy.web.hot_doors import HotDoors
from tests.support.house import (
    KEY,
    LogCapture,
    SmallHouse,
    event_of,
    make_app,
    make_house,
    make_web_house,
    stop_recording_at,
)

HOT = [door for door in DOORS if door.hot is not None]
PATHS = [door.path for door in HOT]
# Vectors come as a whole.
STREAMING = [path for path in PATHS if path != "/v1/embeddings"]


class Untouchable(io.RawIOBase):
    def read(self, _size: int = -1) -> bytes:
        raise AssertionError("the body was read")


class Pieces(io.RawIOBase):
    """A body of which each read gives one byte, as a slow client sends it."""

    def __init__(self, sent: bytes) -> None:
        self._sent = io.BytesIO(sent)

    def read(self, _size: int = -1) -> bytes:
        return self._sent.read(1)


class WatchedConnection:
    """The client's side as our worker lends it."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None] | None] = []

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        self.calls.append(on_gone)


def body_for(path: str, **more: object) -> bytes:
    asked: dict[str, object] = (
        {"prompt": "Hi."}
        if path == "/chat"
        else {"messages": [{"role": "user", "content": "Hi."}], "input": "Hi.", "max_tokens": 9}
    )
    return json.dumps({**asked, **more}).encode()


def environ_of(
    path: str = "/chat", body: bytes | None = None, changes: Mapping[str, object] | None = None
) -> WSGIEnvironment:
    """What a server makes of a good request; a change to None leaves the variable out."""
    sent = body_for(path) if body is None else body
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": "POST", "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": "", "RAW_URI": path,
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "llm.example.test", "HTTP_AUTHORIZATION": f"Bearer {KEY}", "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(sent)), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(sent),
        "wsgi.input_terminated": True, "wsgi.errors": io.StringIO(), **(changes or {}),
    }  # fmt: skip
    return {name: value for name, value in environ.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Said:
    status: str
    headers: list[tuple[str, str]]
    body: bytes


def ask(application: WSGIApplication, environ: WSGIEnvironment) -> Said:
    told: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], _exc_info: object = None) -> Any:  # noqa: ANN401  WSGI's write
        told.append((status, list(headers)))

    body = application(environ, start_response)
    said = b""
    try:
        for piece in body:
            said += piece
    except ConnectionResetError:
        said += b"<hung up>"
    if hasattr(body, "close"):
        body.close()
    ((status, headers),) = told
    return Said(status, headers, said)


def alike(said: Said) -> Said:
    """Without what two answers can't share."""
    differs = re.compile(r"exc_[0-9A-Z]{26}|\b[0-9A-HJKMNP-TV-Z]{26}\b|20\d\d-\d\d-\d\dT[0-9:.]+Z")
    headers = [(name, "#" if name == "X-SLP-Overhead-Ms" else differs.sub("#", value)) for name, value in said.headers]
    return Said(said.status, headers, differs.sub("#", said.body.decode()).encode())


def no_flask(_environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
    raise AssertionError("Flask was reached")


def hot_doors(small: SmallHouse, settings: Settings | None = None, flask: WSGIApplication = no_flask) -> HotDoors:
    return HotDoors(flask, make_web_house(small, settings))


# --- which they are ---------------------------------------------------------------------------------------------------


def test_the_hot_table_is_exactly_the_marked_doors() -> None:
    doors = hot_doors(make_house())

    assert doors.served == {(door.method, door.path) for door in HOT}
    assert doors.served == {
        ("POST", "/chat"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
    }


def test_each_hot_door_is_a_flask_view_too() -> None:
    rules = {
        (method, rule.rule) for rule in make_app(make_house()).url_map.iter_rules() for method in rule.methods or ()
    }

    assert hot_doors(make_house()).served <= rules


@pytest.mark.parametrize(
    "door",
    [
        Door("GET", "/metrics", "operations.metrics", Guard.METRICS, hot=HOT[0].hot),
        Door("GET", "/health", "operations.health", Guard.OPEN, hot=HOT[0].hot),
        Door("GET", "/v1/models/<path:model>", "openai.retrieve_model", Guard.CORRIDOR, hot=HOT[0].hot),
    ],
)
def test_a_door_with_another_guard_or_a_path_of_parts_cannot_be_hot(door: Door) -> None:
    with pytest.raises(ValueError, match="can't be a hot door"):
        HotDoors(no_flask, make_web_house(make_house()), [door])


@pytest.mark.parametrize(
    ("path", "stream"), [*((path, False) for path in PATHS), *((path, True) for path in STREAMING)]
)
def test_a_hot_door_never_reaches_flask(path: str, stream: bool) -> None:  # noqa: FBT001
    small = make_house()

    said = ask(hot_doors(small), environ_of(path, body_for(path, stream=stream)))

    assert said.status == "200 OK"
    assert small.journal.types() == [AuditType.LLM_START, AuditType.LLM_END]
    assert small.in_flight() == []


@pytest.mark.parametrize(
    "change",
    [
        {"REQUEST_METHOD": "GET"}, {"REQUEST_METHOD": "HEAD"}, {"REQUEST_METHOD": "OPTIONS"}, {"REQUEST_METHOD": "post"},
        {"PATH_INFO": "/chat/"}, {"PATH_INFO": "//chat"}, {"PATH_INFO": "/CHAT"}, {"PATH_INFO": "/chat\x00"},
        {"PATH_INFO": ""}, {"PATH_INFO": "/v1/chat/completions/"}, {"PATH_INFO": "/health"}, {"PATH_INFO": "/v1/models"},
        {"SCRIPT_NAME": "/below"}, {"HTTP_UPGRADE": "websocket"}, {"HTTP_HOST": None}, {"HTTP_HOST": ""},
        {"HTTP_HOST": "a..b"}, {"HTTP_HOST": "a" * 64}, {"HTTP_HOST": "a b"}, {"HTTP_HOST": "a\n"}, {"HTTP_HOST": "ä"},
        {"HTTP_HOST": "a:x"}, {"HTTP_HOST": "a:123456"}, {"HTTP_HOST": "user@a"},
    ],
    ids=repr,
)  # fmt: skip
def test_whatever_is_not_plainly_a_hot_door_is_flasks(change: dict[str, object]) -> None:
    reached: list[WSGIEnvironment] = []

    def flask(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        reached.append(environ)
        start_response("200 OK", [])
        return [b"flask"]

    environ = environ_of("/chat", None, change)
    environ["wsgi.input"] = Untouchable()

    said = ask(hot_doors(make_house(), flask=flask), environ)

    assert said.body == b"flask"
    assert reached == [environ]


def test_hosts_that_clients_think_of_do_not_fill_the_memory() -> None:
    doors = hot_doors(make_house())

    for number in range(200):
        assert ask(doors, environ_of(changes={"HTTP_HOST": f"h{number}.test"})).status == "200 OK"
        assert ask(doors, environ_of(changes={"HTTP_HOST": f"{'long.' * 40}{number}"})).status == "200 OK"

    assert 0 < len(doors._plain_hosts) <= 64
    assert max(len(host) for host in doors._plain_hosts) <= 128


@pytest.mark.parametrize("length", ["9" * 16, "0" * 20 + "1", "9" * 5000, "x", "-1", ""])
def test_a_length_that_is_no_usual_number_is_read_as_flask_reads_it(length: str) -> None:
    change = {"CONTENT_LENGTH": length}

    hot = alike(ask(hot_doors(make_house()), environ_of(changes=change)))

    assert hot == alike(ask(make_app(make_house()), environ_of(changes=change)))


# --- alike ------------------------------------------------------------------------------------------------------------

Change = Callable[[SmallHouse], None]


def nothing(_small: SmallHouse) -> None:
    """As it is."""


def no_start(small: SmallHouse) -> None:
    small.journal.refusal = stop_recording_at(AuditType.LLM_START)


def no_end(small: SmallHouse) -> None:
    small.journal.refusal = stop_recording_at(AuditType.LLM_END)


def no_post(small: SmallHouse) -> None:
    def refuse(_event: AuditEvent) -> BaseException:
        return UpstreamFailed("The journal is full.")

    small.journal.post_refusal = refuse


def break_off(small: SmallHouse) -> None:
    small.upstream.script = [event_of("Hel"), UpstreamFailed("The provider broke off.")]


def leave(small: SmallHouse) -> None:
    small.upstream.script = [event_of("Hel"), ClientGone("Gone.")]


def defect(small: SmallHouse) -> None:
    small.upstream.answer = KeyError("canary-5c1e")
    small.upstream.script = KeyError("canary-5c1e")


NAMED = Settings(limits=LimitSettings(server_names=("llm.example.test",), body_bytes_max=300))
PRODUCTION = Settings(server=ServerSettings(profile="production"))
STREAM = {"stream": True}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("settings", [Settings(), NAMED, PRODUCTION], ids=["default", "named", "production"])
@pytest.mark.parametrize(
    ("asked", "change", "arrange"),
    [
        ({}, {}, nothing), (STREAM, {}, nothing), ({}, {"HTTP_X_CORRELATION_ID": "a-1"}, nothing),
        ({}, {"HTTP_HOST": "evil.test"}, nothing), ({}, {"HTTP_HOST": "evil.test"}, no_post),
        ({}, {"HTTP_HOST": "[::1]:8"}, nothing), ({}, {"HTTP_HOST": "a" * 63 + ".xn--a.test"}, nothing),
        ({}, {"HTTP_AUTHORIZATION": None}, nothing), ({}, {"HTTP_AUTHORIZATION": "Bearer x"}, nothing),
        ({}, {"RAW_URI": "/chat?k=slp_live_x"}, nothing), ({}, {"RAW_URI": "/chat?k=slp%255flive_x"}, nothing),
        ({}, {"RAW_URI": None, "QUERY_STRING": "slp_adm_x"}, nothing),
        ({}, {"HTTP_X_FORWARDED_FOR": "192.0.2.1, 10.0.0.1"}, nothing), ({}, {"REMOTE_ADDR": ""}, nothing),
        ({}, {"REMOTE_ADDR": "", "HTTP_X_FORWARDED_FOR": "9.9.9.9, " * 40}, nothing),
        ({}, {"CONTENT_TYPE": "text/plain"}, nothing), ({}, {"CONTENT_TYPE": None}, nothing),
        ({}, {"CONTENT_LENGTH": "1000"}, nothing), ({}, {"CONTENT_LENGTH": None}, nothing),
        ({}, {"CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": "chunked"}, nothing),
        ({"prompt": "x" * 400, "messages": 1}, {}, nothing), ({"model": "nope"}, {}, nothing), ({"n": 0}, {}, nothing),
        ({}, {}, no_start), ({}, {}, no_end), (STREAM, {}, no_start), (STREAM, {}, no_end), (STREAM, {}, break_off),
        (STREAM, {}, leave), ({}, {}, defect), (STREAM, {}, defect),
    ],
)  # fmt: skip
def test_both_answer_alike(
    path: str, settings: Settings, asked: dict[str, object], change: dict[str, object], arrange: Change
) -> None:
    one, other = make_house(), make_house()
    arrange(one)
    arrange(other)

    hot = ask(hot_doors(one, settings), environ_of(path, body_for(path, **asked), change))
    flask = ask(make_app(other, settings).wsgi_app, environ_of(path, body_for(path, **asked), change))

    assert alike(hot) == alike(flask)
    assert hot.body.endswith(b"<hung up>") == (arrange is leave and path in STREAMING)
    assert one.effects == other.effects
    assert [event.clear.get("code") for event in one.journal.handed_over] == [
        event.clear.get("code") for event in other.journal.handed_over
    ]
    assert b"canary" not in hot.body
    assert one.in_flight() == []


def test_another_host_is_refused_with_a_record_and_a_log_line() -> None:
    small = make_house()

    with LogCapture() as logs:
        said = ask(
            hot_doors(small, NAMED), environ_of(changes={"HTTP_HOST": "evil.test", "HTTP_USER_AGENT": "agent/1"})
        )

    (record,) = small.journal.handed_over
    assert said.status == "421 MISDIRECTED REQUEST"
    assert (record.clear["code"], record.clear["rt"]) == ("unknown_host", "chat.answer")
    assert json.loads(record.body)["from"] == {"address": "127.0.0.1", "agent": "agent/1"}
    assert dict(said.headers)["X-Request-Id"] == record.exchange_id
    assert [vars(line)["code"] for line in logs.records] == ["unknown_host"]


class BrokenMetrics:
    def opened(self) -> None:
        raise KeyError("canary-5c1e")

    def closed(self, _facts: object) -> None:
        raise AssertionError("nothing was opened")

    def leaked(self, _where: str) -> None:
        raise AssertionError("nothing has leaked here")


def test_a_defect_is_a_bare_500_with_its_class_in_the_log() -> None:
    small = make_house()
    broken = replace(small.house, metrics=BrokenMetrics())
    doors = HotDoors(no_flask, make_web_house(replace(small, house=broken)))

    with LogCapture() as logs:
        said = ask(doors, environ_of())

    (line,) = [record for record in logs.records if record.levelname == "ERROR"]
    assert said.status == "500 INTERNAL SERVER ERROR"
    assert json.loads(said.body)["error"]["code"] == "internal_error"
    assert vars(line)["detail"] == "KeyError"
    assert line.exc_info is not None
    assert b"canary" not in said.body


def test_a_worker_that_is_stopped_gets_its_greenlet_back_and_nobody_is_watched_any_more() -> None:
    small = make_house()
    small.upstream.answer = GreenletExit()
    connection = WatchedConnection()

    with pytest.raises(GreenletExit):
        ask(hot_doors(small), environ_of(changes={CONNECTION: connection}))

    assert connection.calls[1:] == [None]
    assert small.in_flight() == []


# --- the body and the client ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_is_whole_is_read_once_and_at_its_length(path: str) -> None:
    small = make_house()
    sent = body_for(path)

    said = ask(hot_doors(small), environ_of(path, sent, {"wsgi.input": io.BytesIO(sent + b"GET / HTTP/1.1")}))

    assert said.status == "200 OK"


def test_a_whole_body_that_is_too_short_is_a_client_that_left() -> None:
    small = make_house()

    said = ask(hot_doors(small), environ_of(changes={"wsgi.input": io.BytesIO(b"{"), "CONTENT_LENGTH": "100"}))

    assert said.status.startswith("499 ")
    assert small.journal.handed_over[0].clear["code"] == "client_gone"
    assert small.upstream.received == []


def test_a_whole_body_that_is_too_large_is_not_read() -> None:
    class UntouchableBytes(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise AssertionError("the body was read")

    changes = {"wsgi.input": UntouchableBytes(), "CONTENT_LENGTH": str(10**12)}

    assert ask(hot_doors(make_house()), environ_of(changes=changes)).status.startswith("413 ")


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_comes_in_pieces_is_put_together(path: str) -> None:
    sent = body_for(path)
    said = ask(hot_doors(make_house()), environ_of(path, sent, {"wsgi.input": Pieces(sent)}))

    assert said.status == "200 OK"


@pytest.mark.parametrize("path", PATHS)
def test_the_client_is_watched_from_its_body_to_its_answer(path: str) -> None:
    connection = WatchedConnection()

    ask(hot_doors(make_house()), environ_of(path, None, {CONNECTION: connection}))

    began, ended = connection.calls
    assert began is not None
    assert ended is None


def test_the_client_of_a_stream_is_watched_until_it_is_closed() -> None:
    small = make_house()
    connection = WatchedConnection()
    body = stream_of(small, "/chat", {CONNECTION: connection})

    next(body)
    watched_in_between = list(connection.calls)
    body.close()

    assert len(watched_in_between) == 1
    assert connection.calls[1:] == [None]


# --- streams that send themselves -------------------------------------------------------------------------------------


class ListSink:
    """Where a stream goes: a list. After `slow_after` pieces it wants a pause, after `broken_after` it raises `error`; with
    an error and no end to the pieces, the pause itself ends in it.
    """

    def __init__(self, *, slow_after: int = 1000, broken_after: int = 1000, error: OSError | None = None) -> None:
        self.pieces: list[bytes] = []
        self._slow_after = slow_after
        self._broken_after = broken_after
        self._error = error
        self._owes_flush = False

    def send(self, piece: bytes) -> bool:
        assert not self._owes_flush
        if self._error is not None and len(self.pieces) >= self._broken_after:
            raise self._error
        self.pieces.append(piece)
        self._owes_flush = len(self.pieces) >= self._slow_after
        return not self._owes_flush

    def flush(self) -> None:
        assert self._owes_flush
        if self._error is not None:
            raise self._error
        self._owes_flush = False


def stream_of(small: SmallHouse, path: str, changes: Mapping[str, object] | None = None) -> EventStream:
    body = hot_doors(small)(environ_of(path, body_for(path, stream=True), changes), lambda *_: lambda _: None)
    assert isinstance(body, EventStream)
    return body


def hung_up_on(is_left: bool) -> AbstractContextManager[object]:  # noqa: FBT001
    """A stream that its client left must not end as if it were whole: the server is told to hang up."""
    return pytest.raises(ConnectionResetError) if is_left else nullcontext()


@pytest.mark.parametrize("path", STREAMING)
@pytest.mark.parametrize("slow_after", [1, 2, 1000])
@pytest.mark.parametrize("arrange", [nothing, no_end, break_off, leave])
def test_a_stream_sends_itself_as_it_would_be_iterated(path: str, slow_after: int, arrange: Change) -> None:
    one, other = make_house(), make_house()
    arrange(one)
    arrange(other)
    sink = ListSink(slow_after=slow_after)

    pieces: list[bytes] = []
    with hung_up_on(arrange is leave), closing(stream_of(one, path)) as relayed:
        relayed.relay(sink)
    with hung_up_on(arrange is leave), closing(stream_of(other, path)) as iterated:
        for piece in iterated:
            pieces.append(piece)  # noqa: PERF402  what came before the error counts

    assert alike(Said("", [], b"".join(sink.pieces))).body == alike(Said("", [], b"".join(pieces))).body
    assert one.journal.types() == other.journal.types()
    assert one.journal.handed_over[-1].clear["st"] == other.journal.handed_over[-1].clear["st"]
    assert one.in_flight() == []


@pytest.mark.parametrize("path", STREAMING)
@pytest.mark.parametrize(
    ("slow_after", "broken_after", "error"),
    [(1000, 0, BrokenPipeError()), (1000, 1, ConnectionResetError()), (1, 1000, TimeoutError()), (2, 2, OSError())],
    ids=["at once", "later", "stopped reading", "slow and gone"],
)
def test_a_broken_sink_is_told_to_the_server_and_recorded_as_the_clients_leaving(
    path: str, slow_after: int, broken_after: int, error: OSError
) -> None:
    small = make_house()
    small.upstream.script = [event_of(f"event {number}") for number in range(4)]
    sink = ListSink(slow_after=slow_after, broken_after=broken_after, error=error)
    body = stream_of(small, path)

    with pytest.raises(type(error)) as raised:
        body.relay(sink)
    body.close()

    assert raised.value is error
    (end,) = small.journal.of(AuditType.LLM_END)
    assert end.clear["st"] == "client_abort"
    assert b"[DONE]" not in b"".join(sink.pieces)
    assert small.upstream.streams[0].closed >= 1
    assert small.in_flight() == []


def test_a_stream_that_has_been_read_sends_nothing_more() -> None:
    body = stream_of(make_house(), "/chat")
    sink = ListSink()
    list(body)

    body.relay(sink)
    body.close()

    assert sink.pieces == []


def test_flask_hands_on_the_same_body_that_can_send_itself() -> None:
    app = make_app(make_house())

    body = app.wsgi_app(environ_of("/chat", body_for("/chat", stream=True)), lambda *_: lambda _: None)

    assert isinstance(body, EventStream)
    body.close()
