"""A provider for tests: a real HTTP server on loopback that answers as providers do, or breaks every rule on demand.

Plain sockets and threads, so that it can hang up, reset or lie at any byte. The path says which wire format it speaks
(`spoken_formats`). What it does is chosen by `script`, or else by the request's model when that is the value of a `Mode`; then
a text "at_byte=17" in it says where (modulo the answer's length).
Everything it starts ends with its `with` block.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Self, TypeAlias

from tests.support.spoken_formats import OPENAI_CHAT, Json, Saying, SpokenFormat, dump, spoken_at

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

# the longest that any thread of the provider waits for anything
PATIENCE_S = 60.0
# what `TEXT_AFTER_THE_END` says there
LATE_TEXT = "nobody may hear this"
_HEAD_BYTES_MAX = 65_536
_BODY_BYTES_MAX = 64 * 2**20
_AT_BYTE = re.compile(rb"at_byte=(\d{1,9})")
_MODEL_IN_PATH = re.compile(r"/models/([^/:?]+):(\w+)")


class Mode(StrEnum):
    """How an answer goes. Parameters of `Script` are named in brackets."""

    OK = "ok"
    ERROR = "error"  # [status, body, headers]
    RATE_LIMITED = "rate_limited"  # 429 with Retry-After [retry_after]
    UNAUTHORIZED = "unauthorized"  # 401 whose message repeats the key
    REDIRECT = "redirect"  # 302 to another path of this provider
    NO_CONTENT = "no_content"  # 204
    INTERIM = "interim"  # 100 and 103, then the answer
    HANG_BEFORE_HEADERS = "hang_before_headers"
    HANG_IN_HEADERS = "hang_in_headers"
    HANG_MID_STREAM = "hang_mid_stream"  # after half of the body
    SLOW_DRIP = "slow_drip"  # one byte each pause [pause_s]
    RESET_AT_BYTE = "reset_at_byte"  # TCP reset after [at_byte] bytes of the whole answer, head included
    CLOSE_AT_BYTE = "close_at_byte"  # orderly close after [at_byte] bytes
    EARLY_CLOSE = "early_close"  # close without a byte
    LENGTH_TOO_LONG = "length_too_long"  # announces more than it sends, then closes
    LENGTH_TOO_SHORT = "length_too_short"  # announces less than it sends
    TWO_LENGTHS = "two_lengths"  # Content-Length and Transfer-Encoding
    BAD_CHUNK_SIZE = "bad_chunk_size"
    CHUNKED = "chunked"  # a plain answer in chunks
    UNTIL_CLOSE = "until_close"  # no length: the body ends with the connection
    NOT_HTTP = "not_http"
    HEADER_FLOOD = "header_flood"  # thousands of headers
    HEADER_ENDLESS = "header_endless"  # one header that goes on
    GZIP = "gzip"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    DUPLICATE_KEYS = "duplicate_keys"
    LONE_SURROGATE = "lone_surrogate"
    BAD_UTF8 = "bad_utf8"
    NO_CHOICES = "no_choices"
    ERROR_WITH_200 = "error_with_200"
    HUGE_BODY = "huge_body"  # [size_bytes], announced
    HUGE_CHUNKED_BODY = "huge_chunked_body"  # [size_bytes], not announced
    HUGE_EVENT = "huge_event"  # one data line of [size_bytes]
    NO_DONE = "no_done"  # a stream with a finish_reason, without [DONE]
    NO_END = "no_end"  # a stream that stops in good order without finish_reason or [DONE]
    NO_LAST_NEWLINE = "no_last_newline"
    ONLY_DONE = "only_done"
    ERROR_EVENT = "error_event"  # in the midst of the stream
    NAMED_ERROR_EVENT = "named_error_event"
    COMMENTS = "comments"  # keep-alive comments and empty data between the events
    CRLF_EVENTS = "crlf_events"
    PLAIN_FOR_A_STREAM = "plain_for_a_stream"
    UNASKED_ANSWER = "unasked_answer"  # the answer, and a moment later a second one that nobody asked for
    LATE_LAST_CHUNK = "late_last_chunk"  # [DONE], and the end of the body a second later
    # HTTP that is none
    SWITCHING_PROTOCOLS = "switching_protocols"  # 101, and what follows is another protocol
    ENDLESS_INTERIM = "endless_interim"  # 100 Continue, again and again
    SLOW_HEAD = "slow_head"  # one byte of the head each pause [pause_s]
    BARE_LF_HEAD = "bare_lf_head"
    FOLDED_HEADER = "folded_header"
    NUL_IN_HEADER = "nul_in_header"
    STATUS_OF_TWO_DIGITS = "status_of_two_digits"
    LENGTH_NOT_A_NUMBER = "length_not_a_number"
    TWO_DIFFERENT_LENGTHS = "two_different_lengths"
    CODED_TRANSFER = "coded_transfer"  # Transfer-Encoding: gzip, chunked
    # bodies that are none
    GZIP_BOMB = "gzip_bomb"  # a gigabyte in a megabyte
    GZIP_BOMB_AS_ERROR = "gzip_bomb_as_error"  # the same behind status 500
    TRUNCATED_CHUNK = "truncated_chunk"  # half of an announced chunk, then an orderly close
    HUGE_CHUNK_SIZE = "huge_chunk_size"  # a chunk of 2^64 - 1 bytes
    ENDLESS_CHUNK_EXTENSION = "endless_chunk_extension"
    TRAILER_FLOOD = "trailer_flood"
    EMPTY_BODY = "empty_body"
    HTML = "html"  # 200, and a page of somebody in between
    DEEP_JSON = "deep_json"
    HUGE_NUMBER = "huge_number"
    NAN = "nan"
    WRONG_SHAPES = "wrong_shapes"  # the right names with values of the wrong kind
    # streams that are none
    MALFORMED_EVENTS = "malformed_events"  # lines that no field begins
    NUL_IN_EVENT = "nul_in_event"
    HALF_AN_EVENT = "half_an_event"  # the stream closes in good order in the midst of an event's JSON
    ENDLESS_COMMENTS = "endless_comments"  # signs of life, and never a word
    CUT_IN_CHARACTERS = "cut_in_characters"  # good events, cut into pieces within UTF-8 characters and line ends
    CR_EVENTS = "cr_events"  # lines that end at CR alone
    MULTILINE_DATA = "multiline_data"  # good events whose JSON stands in many data lines
    TEXT_AFTER_THE_END = "text_after_the_end"  # events behind the end mark
    HANG_BEFORE_THE_END = "hang_before_the_end"  # all of the text and the finish, and then nothing
    RESET_AFTER_THE_END = "reset_after_the_end"


@dataclass(frozen=True, slots=True)
class Script:
    """`times` None: until the next `script` or `clear`."""

    mode: Mode = Mode.OK
    status: int = 500
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    at_byte: int = 0
    pause_s: float = 0.05
    retry_after: str | None = "7"
    size_bytes: int = 2 * 2**20
    times: int | None = None


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """`headers` by lower-case name; `connection` counts the provider's connections from 1."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    json: Json
    connection: int

    @property
    def model(self) -> str | None:
        """As the body names it; Gemini's API has it in the path."""
        model = self.json.get("model") if isinstance(self.json, dict) else None
        if not isinstance(model, str) and (in_path := _MODEL_IN_PATH.search(self.path)):
            return in_path[1]
        return model if isinstance(model, str) else None

    @property
    def wants_stream(self) -> bool:
        if (in_path := _MODEL_IN_PATH.search(self.path)) is not None:
            return in_path[2] == "streamGenerateContent"
        return isinstance(self.json, dict) and self.json.get("stream") is True

    @property
    def spoken(self) -> SpokenFormat:
        """The format that it is answered in."""
        return spoken_at(self.path) or OPENAI_CHAT


@dataclass(frozen=True, slots=True)
class Departure:
    """A client that hung up in the midst of the answer to `request`; `at_s` by the monotonic clock."""

    request: ReceivedRequest
    at_s: float


class Provider:
    """`with Provider() as provider:` listens on `provider.base_url` until the block ends.

    `reply_text` is what it answers (streams give it in `stream_chunks` pieces, `stream_pause_s` apart); `usage` is what
    it charges; `models` is its list. They may be changed at any time.
    """

    def __init__(
        self,
        *,
        reply_text: str = "All is well.",
        models: tuple[str, ...] = ("test-model", "test-model-2"),
        stream_chunks: int = 4,
        stream_pause_s: float = 0.0,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.reply_text = reply_text
        self.models = models
        self.stream_chunks = stream_chunks
        self.stream_pause_s = stream_pause_s
        self.usage: dict[str, Json] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        self._tls = tls
        self._script: Script | None = None
        self._lock = threading.Lock()
        self._received: list[ReceivedRequest] = []
        self._departures: list[Departure] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._connections = 0
        self._active = 0
        self._active_max = 0
        self._disconnected = threading.Event()
        self._stopping = threading.Event()
        self._listener = socket.create_server((host, 0), backlog=256)
        self._host = host
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT/v1`; with TLS `https://localhost:PORT/v1`, for a certificate of that name."""
        return f"https://localhost:{self.port}/v1" if self._tls else f"http://{self._host}:{self.port}/v1"

    @property
    def received(self) -> list[ReceivedRequest]:
        """Every request that has arrived whole, oldest first; a copy."""
        with self._lock:
            return list(self._received)

    @property
    def chats(self) -> list[ReceivedRequest]:
        """The chat requests among `received`."""
        return [request for request in self.received if request.path.partition("?")[0].endswith("/chat/completions")]

    @property
    def departures(self) -> list[Departure]:
        """Clients that left in the midst of an answer since the last `clear`; a copy."""
        with self._lock:
            return list(self._departures)

    @property
    def connections(self) -> int:
        """How many connections were ever accepted."""
        return self._connections

    @property
    def active(self) -> int:
        """How many requests are being answered now."""
        return self._active

    @property
    def active_max(self) -> int:
        """The most requests that were being answered at the same moment since the last `clear`."""
        return self._active_max

    def script(
        self,
        mode: Mode | str,
        *,
        status: int = 500,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        at_byte: int = 0,
        pause_s: float = 0.05,
        retry_after: str | None = "7",
        size_bytes: int = 2 * 2**20,
        times: int | None = None,
    ) -> None:
        """Answer the next `times` requests (None: all that follow) so, whatever their model."""
        script = Script(Mode(mode), status, body, headers or {}, at_byte, pause_s, retry_after, size_bytes, times)
        with self._lock:
            self._script = script

    def clear(self) -> None:
        """Forget requests and scripts; connections stay."""
        with self._lock:
            self._received.clear()
            self._departures.clear()
            self._script = None
            self._active_max = self._active
        self._disconnected.clear()

    def hang_up(self) -> None:
        """Close every open connection in good order, as a provider does with idle ones."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def wait_for_requests(self, count: int, timeout_s: float = 30.0) -> bool:
        """True once `count` requests have arrived."""
        return _wait_until(lambda: len(self.received) >= count, timeout_s)

    def wait_for_disconnect(self, timeout_s: float = 30.0) -> bool:
        """True once a client has hung up in the midst of an answer (since the last `clear`)."""
        return self._disconnected.wait(timeout_s)

    def stop(self) -> None:
        """Close everything and wait for the threads (bounded). May be called twice."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        until_s = time.monotonic() + 10
        for thread in list(self._threads):
            thread.join(max(until_s - time.monotonic(), 0))

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name="test-provider", daemon=True)
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections += 1
                number = self._connections
                self._open.add(connection)
            if self._stopping.is_set():
                connection.close()
                return
            self._start(lambda connection=connection, number=number: self._serve(connection, number))  # type: ignore[misc]

    def _serve(self, raw: socket.socket, number: int) -> None:
        connection = raw
        try:
            raw.settimeout(PATIENCE_S)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(raw, server_side=True)
                with self._lock:
                    self._open.discard(raw)
                    self._open.add(connection)
            rest = b""
            while True:
                request, rest = _read_request(connection, rest, number)
                if request is None:
                    return
                with self._lock:
                    self._received.append(request)
                    self._active += 1
                    self._active_max = max(self._active_max, self._active)
                try:
                    keep = self._answer(connection, request)
                finally:
                    with self._lock:
                        self._active -= 1
                if not keep:
                    return
        except OSError:
            return
        finally:
            with self._lock:
                self._open.discard(raw)
                self._open.discard(connection)
            connection.close()

    def _take_script(self, request: ReceivedRequest) -> Script:
        with self._lock:
            script = self._script
            if request.method == "GET":
                # The list of models is asked whenever a worker's copy is old: a script is for requests.
                return Script()
            if script is not None and script.times is not None:
                self._script = replace(script, times=script.times - 1) if script.times > 1 else None
        if script is not None:
            return script
        if request.model in set(Mode):
            told = _AT_BYTE.search(request.body)
            return Script(Mode(request.model), at_byte=int(told[1]) if told else 0)
        return Script()

    def _answer(self, connection: socket.socket, request: ReceivedRequest) -> bool:
        """Answer as scripted; False when the connection is to be closed."""
        script = self._take_script(request)

        def left() -> None:
            with self._lock:
                self._departures.append(Departure(request, time.monotonic()))
            self._disconnected.set()

        line = _Line(connection, left)
        try:
            return self._play(line, request, script)
        except OSError:
            # the client hung up while we wrote, or `stop` closed the connection
            if not self._stopping.is_set():
                line.leave()
            return False

    def _play(self, line: _Line, request: ReceivedRequest, script: Script) -> bool:
        """Send the answer; False when the connection is to be closed."""
        return _ANSWERS.get(script.mode, _ok)(self, line, request, script)


class _Line:
    """The connection as an answer sees it."""

    def __init__(self, connection: socket.socket, left: Callable[[], None]) -> None:
        self._connection = connection
        self._on_leaving: Callable[[], None] | None = left

    def leave(self) -> None:
        """The client has hung up."""
        tell, self._on_leaving = self._on_leaving, None
        if tell is not None:
            tell()

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def pause(self, pause_s: float) -> bool:
        """Wait; False as soon as the client has hung up."""
        if pause_s <= 0:
            return True
        self._connection.settimeout(pause_s)
        try:
            left = not self._connection.recv(1)
        except TimeoutError:
            left = False
        except OSError:
            left = True
        self._connection.settimeout(PATIENCE_S)
        if left:
            self.leave()
        return not left

    def hang(self) -> bool:
        """Say nothing until the client hangs up; False, as nothing can follow."""
        self.pause(PATIENCE_S)
        return False

    def reset(self) -> bool:
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False


_Answer: TypeAlias = "Callable[[Provider, _Line, ReceivedRequest, Script], bool]"

_JSON = {"Content-Type": "application/json"}
_EVENTS = {"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"}
_LAST_CHUNK = b"0\r\n\r\n"
_REASONS = {200: "OK", 204: "No Content", 302: "Found", 401: "Unauthorized", 429: "Too Many Requests"}


def completion_of(provider: Provider, request: ReceivedRequest) -> Json:
    """The answer that `Mode.OK` gives to a plain request."""
    return request.spoken.answer(_saying(provider, request))


def events_of(provider: Provider, request: ReceivedRequest, *, finish: bool = True) -> list[bytes]:
    """What `Mode.OK` streams before the end mark."""
    return request.spoken.events(_saying(provider, request), finish=finish)


def whole_stream_of(provider: Provider, request: ReceivedRequest) -> list[bytes]:
    """All that `Mode.OK` streams."""
    done = request.spoken.done
    return [*events_of(provider, request), *([done] if done else [])]


def _saying(provider: Provider, request: ReceivedRequest) -> Saying:
    return Saying(request.model, provider.reply_text, provider.stream_chunks, provider.usage, request.json)


def error_body(message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error object."""
    return dump({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})


def _ok(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    path = request.path.partition("?")[0]
    if path.endswith("/models") and request.method == "GET":
        entries: list[Json] = [{"id": name, "object": "model", "owned_by": "test"} for name in provider.models]
        return _send(line, 200, dump({"object": "list", "data": entries}))
    if spoken_at(path) is None or request.method != "POST":
        return _send(line, 404, error_body("There is no such URL."))
    if not isinstance(request.json, dict):
        return _send(line, 400, error_body("The body is not a JSON object."))
    if request.wants_stream:
        return _stream(line, whole_stream_of(provider, request), provider.stream_pause_s)
    return _send(line, 200, dump(completion_of(provider, request)), headers={**_JSON, **script.headers})


def _send(line: _Line, status: int, body: bytes, *, headers: Mapping[str, str] | None = None) -> bool:
    line.send(_head(status, {**(headers if headers is not None else _JSON), "Content-Length": str(len(body))}) + body)
    return True


def _stream(line: _Line, events: list[bytes], pause_s: float) -> bool:
    line.send(_head(200, _EVENTS))
    *before, last = events
    for event in before:
        line.send(_chunk(event))
        if not line.pause(pause_s):
            return False
    if pause_s <= 0:
        # In one piece: whoever has the last event waits a moment only for the end behind it (LATE_LAST_CHUNK).
        line.send(_chunk(last) + _LAST_CHUNK)
        return True
    line.send(_chunk(last))
    if not line.pause(pause_s):
        return False
    line.send(_LAST_CHUNK)
    return True


def _error_in(request: ReceivedRequest, message: str, code: str | None = None) -> bytes:
    return dump(request.spoken.error(message, code))


def _error(_: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    body = script.body if script.body is not None else _error_in(request, "The provider's own words.")
    return _send(line, script.status, body, headers={**_JSON, **script.headers})


def _rate_limited(_: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    headers = dict(_JSON) if script.retry_after is None else {**_JSON, "Retry-After": script.retry_after}
    return _send(line, 429, _error_in(request, "Slow down.", "rate_limit_exceeded"), headers=headers)


def _unauthorized(_: Provider, line: _Line, request: ReceivedRequest, __: Script) -> bool:
    sent = (request.headers.get(name, "") for name in ("authorization", "x-api-key", "x-goog-api-key", "api-key"))
    key = "".join(sent).removeprefix("Bearer ")
    return _send(line, 401, _error_in(request, f"Incorrect API key provided: {key}.", "invalid_api_key"))


def _redirect(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    return _send(line, 302, b"", headers={"Location": "/v1/elsewhere"})


def _no_content(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    line.send(_head(204, {}))
    return True


def _interim(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    line.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    return _ok(provider, line, request, script)


def _hang_before_headers(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    return line.hang()


def _hang_in_headers(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    line.send(b"HTTP/1.1 200 OK\r\nContent-Type: appl")
    return line.hang()


def _whole_answer(provider: Provider, request: ReceivedRequest) -> bytes:
    if request.wants_stream:
        chunks = [_chunk(event) for event in whole_stream_of(provider, request)]
        return _head(200, _EVENTS) + b"".join(chunks) + _LAST_CHUNK
    body = dump(completion_of(provider, request))
    return _head(200, {**_JSON, "Content-Length": str(len(body))}) + body


def _hang_mid_stream(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    if request.wants_stream:
        events = events_of(provider, request)
        line.send(_head(200, _EVENTS) + b"".join(_chunk(event) for event in events[: len(events) // 2]))
    else:
        answer = _whole_answer(provider, request)
        line.send(answer[: len(answer) - 20])
    return line.hang()


def _slow_drip(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    answer = _whole_answer(provider, request)
    body_at = answer.index(b"\r\n\r\n") + 4
    line.send(answer[:body_at])
    for position in range(body_at, len(answer)):
        line.send(answer[position : position + 1])
        if not line.pause(script.pause_s):
            return False
    return True


def _reset_at_byte(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    answer = _whole_answer(provider, request)
    at_byte = script.at_byte % len(answer)
    line.send(answer[:at_byte])
    if at_byte:
        # lets the bytes arrive: a reset overtakes what still waits to be sent
        time.sleep(0.02)
    return line.reset()


def _close_at_byte(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    answer = _whole_answer(provider, request)
    line.send(answer[: script.at_byte % len(answer)])
    return False


def _early_close(_: Provider, __: _Line, ___: ReceivedRequest, ____: Script) -> bool:
    return False


def _length_too_long(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    body = dump(completion_of(provider, request))
    line.send(_head(200, {**_JSON, "Content-Length": str(len(body) + 10)}) + body)
    return False


def _length_too_short(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    body = dump(completion_of(provider, request))
    line.send(_head(200, {**_JSON, "Content-Length": str(len(body) - 10)}) + body)
    return True


def _two_lengths(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    body = dump(completion_of(provider, request))
    headers = {**_JSON, "Content-Length": str(len(body)), "Transfer-Encoding": "chunked"}
    line.send(_head(200, headers) + _chunk(body) + _LAST_CHUNK)
    return True


def _bad_chunk_size(_: Provider, line: _Line, request: ReceivedRequest, __: Script) -> bool:
    headers = _EVENTS if request.wants_stream else {**_JSON, "Transfer-Encoding": "chunked"}
    line.send(_head(200, headers) + b"zz\r\n{}\r\n0\r\n\r\n")
    return True


def _chunked(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    body = dump(completion_of(provider, request))
    line.send(_head(200, {**_JSON, "Transfer-Encoding": "chunked"}))
    for start in range(0, len(body), 7):
        line.send(_chunk(body[start : start + 7]))
    line.send(b"0;note=end\r\nX-Trailer: 1\r\n\r\n")
    return True


def _until_close(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    if request.wants_stream:
        body = b"".join(whole_stream_of(provider, request))
        line.send(_head(200, {"Content-Type": "text/event-stream"}) + body)
    else:
        line.send(_head(200, _JSON) + dump(completion_of(provider, request)))
    return False


def _not_http(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    line.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    return line.hang()


def _header_flood(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    line.send(_head(200, {f"X-Flood-{number}": "x" for number in range(5_000)}))
    return line.hang()


def _header_endless(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    line.send(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    for _piece in range(256):
        line.send(b"x" * 4_096)
    return line.hang()


def _gzip(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    if request.wants_stream:
        packed = gzip.compress(b"".join(whole_stream_of(provider, request)))
        return _send(line, 200, packed, headers={"Content-Type": "text/event-stream", "Content-Encoding": "gzip"})
    packed = gzip.compress(dump(completion_of(provider, request)))
    return _send(line, 200, packed, headers={**_JSON, "Content-Encoding": "gzip"})


_BROKEN_JSON = {
    Mode.INVALID_JSON: b'{"choices": [{"index": 0,',
    Mode.NOT_AN_OBJECT: b'["choices"]',
    Mode.DUPLICATE_KEYS: b'{"choices": [], "choices": [{"message": {"content": "x"}, "delta": {"content": "x"}}]}',
    Mode.LONE_SURROGATE: b'{"choices": [{"message": {"content": "\\ud800"}, "delta": {"content": "\\ud800"}}]}',
    Mode.BAD_UTF8: b'{"choices": [{"message": {"content": "\xff\xfe"}, "delta": {"content": "\xff\xfe"}}]}',
}


def _broken_json(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    """A plain answer that is broken, or a stream whose third event is."""
    body = _BROKEN_JSON[script.mode]
    if request.wants_stream:
        return _stream(
            line, [*events_of(provider, request)[:2], b"data: " + body + b"\n\n", request.spoken.done or b"\n"], 0
        )
    return _send(line, 200, body)


def _no_choices(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    return _send(line, 200, b'{"id": "x"}')


def _error_with_200(_: Provider, line: _Line, request: ReceivedRequest, __: Script) -> bool:
    return _send(line, 200, _error_in(request, "Something broke."))


def _huge_body(_: Provider, line: _Line, __: ReceivedRequest, script: Script) -> bool:
    line.send(_head(200, {**_JSON, "Content-Length": str(script.size_bytes)}))
    for piece in _filler(script.size_bytes):
        line.send(piece)
    return True


def _huge_chunked_body(_: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    line.send(_head(200, _EVENTS if request.wants_stream else {**_JSON, "Transfer-Encoding": "chunked"}))
    prefix, suffix = (b": ", b"\n") if request.wants_stream else (b"", b"")
    for piece in _filler(script.size_bytes):
        line.send(_chunk(prefix + piece + suffix))
    line.send(_LAST_CHUNK)
    return True


def _huge_event(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    line.send(_head(200, _EVENTS) + _chunk(events_of(provider, request)[0]) + _chunk(b"data: "))
    for piece in _filler(script.size_bytes):
        line.send(_chunk(piece))
    line.send(_chunk(b"\n\n") + _LAST_CHUNK)
    return True


def _no_done(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    return _stream(line, events_of(provider, request), 0)


def _no_end(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    return _stream(line, events_of(provider, request, finish=False), 0)


def _no_last_newline(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    events = events_of(provider, request)
    return _stream(line, [*events[:-1], events[-1].rstrip(b"\n")], 0)


def _only_done(_: Provider, line: _Line, request: ReceivedRequest, ___: Script) -> bool:
    return _stream(line, [request.spoken.done or b"\n"], 0)


def _error_event(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    event = request.spoken.error_event("The engine at 10.0.0.7 died.")
    if script.mode is Mode.NAMED_ERROR_EVENT:
        event = b'event: error\ndata: {"message": "overloaded"}\n\n'
    return _stream(line, [*events_of(provider, request)[:3], event], 0)


def _comments(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    events = whole_stream_of(provider, request)
    return _stream(line, [b": keep-alive\n\n" + b"data:\n\n" + b"id: 7\nretry: 5\n" + event for event in events], 0)


def _crlf_events(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    events = b"".join(whole_stream_of(provider, request)).replace(b"\n", b"\r\n")
    return _stream(line, [b"\xef\xbb\xbf" + events], 0)


def _plain_for_a_stream(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    return _send(line, 200, dump(completion_of(provider, request)))


def _late_last_chunk(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    line.send(_head(200, _EVENTS) + b"".join(_chunk(event) for event in whole_stream_of(provider, request)))
    if not line.pause(1.0):
        return False
    line.send(_LAST_CHUNK)
    return True


def _unasked_answer(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    answer = _whole_answer(provider, request)
    line.send(answer)
    if not line.pause(script.pause_s):
        return False
    line.send(answer.replace(b"test-model", b"forged-one"))
    return True


def _raw(line: _Line, data: bytes) -> bool:
    """Send bytes as they are and hang up."""
    line.send(data)
    return False


def _switching_protocols(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    line.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05Hello")
    return line.hang()


def _endless_interim(_: Provider, line: _Line, __: ReceivedRequest, script: Script) -> bool:
    while True:
        line.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not line.pause(script.pause_s):
            return False


def _slow_head(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    padding = b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 4_000 + b"\r\n"
    answer = padding + _whole_answer(provider, request).partition(b"\r\n")[2]
    for position in range(len(answer)):
        line.send(answer[position : position + 1])
        if not line.pause(script.pause_s):
            return False
    return True


_TWISTED_HEADS: dict[Mode, Callable[[bytes], bytes]] = {
    Mode.BARE_LF_HEAD: lambda head: head.replace(b"\r\n", b"\n"),
    Mode.FOLDED_HEADER: lambda head: head.replace(b"\r\n", b"\r\nX-Folded: a\r\n b\r\n", 1),
    Mode.NUL_IN_HEADER: lambda head: head.replace(b"\r\n", b"\r\nX-Nul: a\x00b\r\n", 1),
    Mode.STATUS_OF_TWO_DIGITS: lambda head: head.replace(b" 200 ", b" 20 "),
    Mode.LENGTH_NOT_A_NUMBER: lambda head: head.replace(b"\r\n", b"\r\nContent-Length: 0x10\r\n", 1),
    Mode.TWO_DIFFERENT_LENGTHS: lambda head: head.replace(
        b"\r\n", b"\r\nContent-Length: 5\r\nContent-Length: 6\r\n", 1
    ),
    Mode.CODED_TRANSFER: lambda head: head.replace(b"\r\n", b"\r\nTransfer-Encoding: gzip, chunked\r\n", 1),
}


def _twisted_head(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    head, end, body = _whole_answer(provider, request).partition(b"\r\n\r\n")
    return _raw(line, _TWISTED_HEADS[script.mode](head + end) + body)


def _gzip_bomb(_: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    status = 500 if script.mode is Mode.GZIP_BOMB_AS_ERROR else 200
    kind = _EVENTS if request.wants_stream else {**_JSON, "Transfer-Encoding": "chunked"}
    line.send(_head(status, {**kind, "Content-Encoding": "gzip"}))
    for _member in range(128):
        line.send(_chunk(_packed_zeros()))
    line.send(_LAST_CHUNK)
    return True


@cache
def _packed_zeros() -> bytes:
    """8 MiB of zeros as one member of a gzip file; a file may have many."""
    return gzip.compress(bytes(8 * 2**20), 6)


def _in_chunks(request: ReceivedRequest) -> bytes:
    return _head(200, _EVENTS if request.wants_stream else {**_JSON, "Transfer-Encoding": "chunked"})


def _broken_chunks(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    """A good beginning in chunks, and then what no chunk is."""
    body = (
        b"".join(events_of(provider, request)[:2])
        if request.wants_stream
        else dump(completion_of(provider, request))[:20]
    )
    line.send(_in_chunks(request) + _chunk(body))
    if script.mode is Mode.TRUNCATED_CHUNK:
        return _raw(line, b"40\r\n" + b"x" * 32)
    if script.mode is Mode.HUGE_CHUNK_SIZE:
        return _raw(line, b"ffffffffffffffff\r\n" + b"x" * 32)
    if script.mode is Mode.ENDLESS_CHUNK_EXTENSION:
        line.send(b"4;")
        for _piece in range(1_024):
            line.send(b"x=y;" * 1_024)
        return line.hang()
    line.send(b"0\r\n")
    for hundred in range(1_000):
        line.send(b"".join(b"X-Trailer-%d-%d: x\r\n" % (hundred, number) for number in range(100)))
    return line.hang()


def _empty_body(_: Provider, line: _Line, request: ReceivedRequest, ___: Script) -> bool:
    return _send(line, 200, b"", headers={"Content-Type": "text/event-stream"} if request.wants_stream else _JSON)


def _html(_: Provider, line: _Line, request: ReceivedRequest, ___: Script) -> bool:
    page = b"<!doctype html><title>Sign in to the network</title>"
    return _send(line, 200, page, headers={"Content-Type": "text/html; charset=utf-8"})


_HOSTILE_JSON = {
    Mode.DEEP_JSON: b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    Mode.HUGE_NUMBER: b'{"choices": [], "created": ' + b"9" * 10_000 + b"}",
    Mode.NAN: b'{"choices": [], "created": NaN}',
}


def _hostile_json(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    body = _HOSTILE_JSON[script.mode]
    if request.wants_stream:
        return _stream(line, [*events_of(provider, request)[:2], b"data: " + body + b"\n\n"], 0)
    return _send(line, 200, body)


def _wrong_shapes(_: Provider, line: _Line, request: ReceivedRequest, ___: Script) -> bool:
    """What holds the answer in each format, as something else."""
    names = (
        "choices",
        "content",
        "candidates",
        "output",
        "message",
        "delta",
        "content_block",
        "item",
        "response",
        "data",
    )
    body: Json = {"id": 7, "type": "content_block_delta", **dict.fromkeys(names, 7)}
    if request.wants_stream:
        return _stream(line, [b"data: " + dump(body) + b"\n\n"], 0)
    return _send(line, 200, dump(body))


def _malformed_events(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    if not request.wants_stream:
        return _send(line, 200, b"data: this is no JSON\n\n")
    good = events_of(provider, request)[:2]
    if script.mode is Mode.NUL_IN_EVENT:
        return _stream(line, [*good, b'data: {"choices": [\x00]}\n\n'], 0)
    if script.mode is Mode.HALF_AN_EVENT:
        # well-framed HTTP; the JSON is not whole
        return _stream(line, [*good, events_of(provider, request)[2][:-20]], 0)
    return _stream(line, [*good, b"choices: none\n{\n\ndata {}\n\ndata: ]\n\n"], 0)


def _endless_comments(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    line.send(_in_chunks(request))
    if request.wants_stream:
        line.send(_chunk(events_of(provider, request)[0]))
    while line.pause(script.pause_s):
        line.send(_chunk(b": still here\n\n" if request.wants_stream else b" "))
    return False


def _cut_anywhere(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    """Good answers in an unusual dress."""
    if not request.wants_stream:
        return _chunked(provider, line, request, script)
    whole = b"".join(whole_stream_of(provider, request))
    if script.mode is Mode.CR_EVENTS:
        whole = whole.replace(b"\n", b"\r")
    elif script.mode is Mode.MULTILINE_DATA:
        whole = whole.replace(b', "', b',\ndata: "')
    line.send(_head(200, _EVENTS))
    for start in range(0, len(whole), 3):
        line.send(_chunk(whole[start : start + 3]))
    line.send(_LAST_CHUNK)
    return True


def _text_after_the_end(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    late = b"".join(request.spoken.events(Saying(request.model, LATE_TEXT, 1, provider.usage, request.json)))
    if request.wants_stream:
        return _stream(line, [*whole_stream_of(provider, request), late], 0)
    return _send(line, 200, dump(completion_of(provider, request)) + b"\n\n")


def _near_the_end(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    if script.mode is Mode.HANG_BEFORE_THE_END:
        answer = _whole_answer(provider, request)
        end = (_chunk(request.spoken.done) if request.spoken.done else b"") + _LAST_CHUNK
        line.send(answer.removesuffix(end) if request.wants_stream else answer[:-1])
        return line.hang()
    line.send(_whole_answer(provider, request))
    # lets the bytes arrive: a reset overtakes what still waits to be sent
    time.sleep(0.02)
    return line.reset()


_ANSWERS: dict[Mode, _Answer] = {
    Mode.ERROR: _error,
    Mode.RATE_LIMITED: _rate_limited,
    Mode.UNAUTHORIZED: _unauthorized,
    Mode.REDIRECT: _redirect,
    Mode.NO_CONTENT: _no_content,
    Mode.INTERIM: _interim,
    Mode.HANG_BEFORE_HEADERS: _hang_before_headers,
    Mode.HANG_IN_HEADERS: _hang_in_headers,
    Mode.HANG_MID_STREAM: _hang_mid_stream,
    Mode.SLOW_DRIP: _slow_drip,
    Mode.RESET_AT_BYTE: _reset_at_byte,
    Mode.CLOSE_AT_BYTE: _close_at_byte,
    Mode.EARLY_CLOSE: _early_close,
    Mode.LENGTH_TOO_LONG: _length_too_long,
    Mode.LENGTH_TOO_SHORT: _length_too_short,
    Mode.TWO_LENGTHS: _two_lengths,
    Mode.BAD_CHUNK_SIZE: _bad_chunk_size,
    Mode.CHUNKED: _chunked,
    Mode.UNTIL_CLOSE: _until_close,
    Mode.NOT_HTTP: _not_http,
    Mode.HEADER_FLOOD: _header_flood,
    Mode.HEADER_ENDLESS: _header_endless,
    Mode.GZIP: _gzip,
    Mode.INVALID_JSON: _broken_json,
    Mode.NOT_AN_OBJECT: _broken_json,
    Mode.DUPLICATE_KEYS: _broken_json,
    Mode.LONE_SURROGATE: _broken_json,
    Mode.BAD_UTF8: _broken_json,
    Mode.NO_CHOICES: _no_choices,
    Mode.ERROR_WITH_200: _error_with_200,
    Mode.HUGE_BODY: _huge_body,
    Mode.HUGE_CHUNKED_BODY: _huge_chunked_body,
    Mode.HUGE_EVENT: _huge_event,
    Mode.NO_DONE: _no_done,
    Mode.NO_END: _no_end,
    Mode.NO_LAST_NEWLINE: _no_last_newline,
    Mode.ONLY_DONE: _only_done,
    Mode.ERROR_EVENT: _error_event,
    Mode.NAMED_ERROR_EVENT: _error_event,
    Mode.COMMENTS: _comments,
    Mode.CRLF_EVENTS: _crlf_events,
    Mode.PLAIN_FOR_A_STREAM: _plain_for_a_stream,
    Mode.UNASKED_ANSWER: _unasked_answer,
    Mode.LATE_LAST_CHUNK: _late_last_chunk,
    Mode.SWITCHING_PROTOCOLS: _switching_protocols,
    Mode.ENDLESS_INTERIM: _endless_interim,
    Mode.SLOW_HEAD: _slow_head,
    **dict.fromkeys(_TWISTED_HEADS, _twisted_head),
    Mode.GZIP_BOMB: _gzip_bomb,
    Mode.GZIP_BOMB_AS_ERROR: _gzip_bomb,
    Mode.TRUNCATED_CHUNK: _broken_chunks,
    Mode.HUGE_CHUNK_SIZE: _broken_chunks,
    Mode.ENDLESS_CHUNK_EXTENSION: _broken_chunks,
    Mode.TRAILER_FLOOD: _broken_chunks,
    Mode.EMPTY_BODY: _empty_body,
    Mode.HTML: _html,
    Mode.DEEP_JSON: _hostile_json,
    Mode.HUGE_NUMBER: _hostile_json,
    Mode.NAN: _hostile_json,
    Mode.WRONG_SHAPES: _wrong_shapes,
    Mode.MALFORMED_EVENTS: _malformed_events,
    Mode.NUL_IN_EVENT: _malformed_events,
    Mode.HALF_AN_EVENT: _malformed_events,
    Mode.ENDLESS_COMMENTS: _endless_comments,
    Mode.CUT_IN_CHARACTERS: _cut_anywhere,
    Mode.CR_EVENTS: _cut_anywhere,
    Mode.MULTILINE_DATA: _cut_anywhere,
    Mode.TEXT_AFTER_THE_END: _text_after_the_end,
    Mode.HANG_BEFORE_THE_END: _near_the_end,
    Mode.RESET_AFTER_THE_END: _near_the_end,
}


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _filler(size_bytes: int) -> Iterator[bytes]:
    while size_bytes > 0:
        yield b"x" * min(size_bytes, 65_536)
        size_bytes -= 65_536


def _read_request(connection: socket.socket, buffer: bytes, number: int) -> tuple[ReceivedRequest | None, bytes]:
    """The next request and what followed it; None when the client hung up or sent what is no request."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        more = connection.recv(65_536) if len(buffer) <= _HEAD_BYTES_MAX else b""
        if not more or not (buffer or more)[:1].isalpha():
            # the client is gone, or speaks something else (a TLS greeting)
            return None, b""
        buffer += more
    request_line, *lines = buffer[:end].decode("latin-1").split("\r\n")
    method, path, _ = request_line.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    size_bytes = min(int(headers.get("content-length", "0")), _BODY_BYTES_MAX)
    pieces, have = [buffer[end + 4 :]], len(buffer) - end - 4
    while have < size_bytes:
        more = connection.recv(262_144)
        if not more:
            return None, b""
        pieces.append(more)
        have += len(more)
    whole = b"".join(pieces)
    body = whole[:size_bytes]
    try:
        parsed: Json = json.loads(body) if body else None
    except ValueError:
        parsed = None
    return ReceivedRequest(method, path, headers, body, parsed, number), whole[size_bytes:]


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    until_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= until_s:
            return False
        time.sleep(0.005)
    return True
