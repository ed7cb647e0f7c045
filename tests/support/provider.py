"""A provider for tests: a real HTTP server on loopback that answers as OpenAI does, or breaks every rule on demand.

Plain sockets and threads, so that it can hang up, reset or lie at any byte. What it does is chosen by `script`, or else
by the request's model when that is the value of a `Mode`. Everything it starts ends with its `with` block.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

# the longest that any thread of the provider waits for anything
PATIENCE_S = 60.0
_HEAD_BYTES_MAX = 65_536
_BODY_BYTES_MAX = 64 * 2**20


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
        model = self.json.get("model") if isinstance(self.json, dict) else None
        return model if isinstance(model, str) else None

    @property
    def wants_stream(self) -> bool:
        return isinstance(self.json, dict) and self.json.get("stream") is True


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
            return Script(Mode(request.model))
        return Script()

    def _answer(self, connection: socket.socket, request: ReceivedRequest) -> bool:
        """Answer as scripted; False when the connection is to be closed."""
        script = self._take_script(request)
        line = _Line(connection, self._disconnected)
        try:
            return self._play(line, request, script)
        except OSError:
            # the client hung up while we wrote, or `stop` closed the connection
            if not self._stopping.is_set():
                self._disconnected.set()
            return False

    def _play(self, line: _Line, request: ReceivedRequest, script: Script) -> bool:
        """Send the answer; False when the connection is to be closed."""
        return _ANSWERS.get(script.mode, _ok)(self, line, request, script)


class _Line:
    """The connection as an answer sees it."""

    def __init__(self, connection: socket.socket, disconnected: threading.Event) -> None:
        self._connection = connection
        self._disconnected = disconnected

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
            self._disconnected.set()
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
_DONE = b"data: [DONE]\n\n"
_LAST_CHUNK = b"0\r\n\r\n"
_REASONS = {200: "OK", 204: "No Content", 302: "Found", 401: "Unauthorized", 429: "Too Many Requests"}


def completion_of(provider: Provider, request: ReceivedRequest) -> Json:
    """The answer that `Mode.OK` gives to a plain chat request."""
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 1_795_219_200,
        "model": request.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": provider.reply_text},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": provider.usage,
    }


def events_of(provider: Provider, request: ReceivedRequest, *, finish: bool = True) -> list[bytes]:
    """What `Mode.OK` streams before [DONE]: role, pieces of the text, finish_reason, usage if asked for."""

    def event(choices: list[Json], usage: Json = None) -> bytes:
        chunk: dict[str, Json] = {
            "id": "chatcmpl-test",
            "object": "chat.completion.chunk",
            "created": 1_795_219_200,
            "model": request.model,
            "choices": choices,
        }
        if usage is not None:
            chunk["usage"] = usage
        return b"data: " + _dump(chunk) + b"\n\n"

    def delta(part: dict[str, Json], reason: str | None = None) -> bytes:
        return event([{"index": 0, "delta": part, "logprobs": None, "finish_reason": reason}])

    text, count = provider.reply_text, max(provider.stream_chunks, 1)
    edges = [len(text) * position // count for position in range(count + 1)]
    events = [delta({"role": "assistant", "content": ""})]
    events += [delta({"content": text[start:end]}) for start, end in itertools.pairwise(edges)]
    if finish:
        events.append(delta({}, "stop"))
        options = request.json.get("stream_options") if isinstance(request.json, dict) else None
        if isinstance(options, dict) and options.get("include_usage"):
            events.append(event([], provider.usage))
    return events


def error_body(message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error object."""
    return _dump({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})


def _ok(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    path = request.path.partition("?")[0]
    if path.endswith("/models") and request.method == "GET":
        entries: list[Json] = [{"id": name, "object": "model", "owned_by": "test"} for name in provider.models]
        return _send(line, 200, _dump({"object": "list", "data": entries}))
    if not path.endswith("/chat/completions") or request.method != "POST":
        return _send(line, 404, error_body("There is no such URL."))
    if not isinstance(request.json, dict):
        return _send(line, 400, error_body("The body is not a JSON object."))
    if request.wants_stream:
        return _stream(line, [*events_of(provider, request), _DONE], provider.stream_pause_s)
    return _send(line, 200, _dump(completion_of(provider, request)), headers={**_JSON, **script.headers})


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


def _error(_: Provider, line: _Line, __: ReceivedRequest, script: Script) -> bool:
    body = script.body if script.body is not None else error_body("The provider's own words.")
    return _send(line, script.status, body, headers={**_JSON, **script.headers})


def _rate_limited(_: Provider, line: _Line, __: ReceivedRequest, script: Script) -> bool:
    headers = dict(_JSON) if script.retry_after is None else {**_JSON, "Retry-After": script.retry_after}
    return _send(line, 429, error_body("Slow down.", code="rate_limit_exceeded"), headers=headers)


def _unauthorized(_: Provider, line: _Line, request: ReceivedRequest, __: Script) -> bool:
    key = request.headers.get("authorization", "").removeprefix("Bearer ")
    return _send(line, 401, error_body(f"Incorrect API key provided: {key}.", code="invalid_api_key"))


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
        chunks = [_chunk(event) for event in [*events_of(provider, request), _DONE]]
        return _head(200, _EVENTS) + b"".join(chunks) + _LAST_CHUNK
    body = _dump(completion_of(provider, request))
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
    line.send(_whole_answer(provider, request)[: script.at_byte])
    if script.at_byte:
        # lets the bytes arrive: a reset overtakes what still waits to be sent
        time.sleep(0.02)
    return line.reset()


def _close_at_byte(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    line.send(_whole_answer(provider, request)[: script.at_byte])
    return False


def _early_close(_: Provider, __: _Line, ___: ReceivedRequest, ____: Script) -> bool:
    return False


def _length_too_long(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    body = _dump(completion_of(provider, request))
    line.send(_head(200, {**_JSON, "Content-Length": str(len(body) + 10)}) + body)
    return False


def _length_too_short(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    body = _dump(completion_of(provider, request))
    line.send(_head(200, {**_JSON, "Content-Length": str(len(body) - 10)}) + body)
    return True


def _two_lengths(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    body = _dump(completion_of(provider, request))
    headers = {**_JSON, "Content-Length": str(len(body)), "Transfer-Encoding": "chunked"}
    line.send(_head(200, headers) + _chunk(body) + _LAST_CHUNK)
    return True


def _bad_chunk_size(_: Provider, line: _Line, request: ReceivedRequest, __: Script) -> bool:
    headers = _EVENTS if request.wants_stream else {**_JSON, "Transfer-Encoding": "chunked"}
    line.send(_head(200, headers) + b"zz\r\n{}\r\n0\r\n\r\n")
    return True


def _chunked(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    body = _dump(completion_of(provider, request))
    line.send(_head(200, {**_JSON, "Transfer-Encoding": "chunked"}))
    for start in range(0, len(body), 7):
        line.send(_chunk(body[start : start + 7]))
    line.send(b"0;note=end\r\nX-Trailer: 1\r\n\r\n")
    return True


def _until_close(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    if request.wants_stream:
        body = b"".join([*events_of(provider, request), _DONE])
        line.send(_head(200, {"Content-Type": "text/event-stream"}) + body)
    else:
        line.send(_head(200, _JSON) + _dump(completion_of(provider, request)))
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
        packed = gzip.compress(b"".join([*events_of(provider, request), _DONE]))
        return _send(line, 200, packed, headers={"Content-Type": "text/event-stream", "Content-Encoding": "gzip"})
    packed = gzip.compress(_dump(completion_of(provider, request)))
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
        return _stream(line, [*events_of(provider, request)[:2], b"data: " + body + b"\n\n", _DONE], 0)
    return _send(line, 200, body)


def _no_choices(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    return _send(line, 200, b'{"id": "x"}')


def _error_with_200(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    return _send(line, 200, error_body("Something broke."))


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


def _only_done(_: Provider, line: _Line, __: ReceivedRequest, ___: Script) -> bool:
    return _stream(line, [_DONE], 0)


def _error_event(provider: Provider, line: _Line, request: ReceivedRequest, script: Script) -> bool:
    name = b"event: error\n" if script.mode is Mode.NAMED_ERROR_EVENT else b""
    event = name + b"data: " + error_body("The engine at 10.0.0.7 died.", code="server_error") + b"\n\n"
    if script.mode is Mode.NAMED_ERROR_EVENT:
        event = name + b'data: {"message": "overloaded"}\n\n'
    return _stream(line, [*events_of(provider, request)[:3], event], 0)


def _comments(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    events = [*events_of(provider, request), _DONE]
    return _stream(line, [b": keep-alive\n\n" + b"data:\n\n" + b"id: 7\nretry: 5\n" + event for event in events], 0)


def _crlf_events(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    events = b"".join([*events_of(provider, request), _DONE]).replace(b"\n", b"\r\n")
    return _stream(line, [b"\xef\xbb\xbf" + events], 0)


def _plain_for_a_stream(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    return _send(line, 200, _dump(completion_of(provider, request)))


def _late_last_chunk(provider: Provider, line: _Line, request: ReceivedRequest, _: Script) -> bool:
    line.send(_head(200, _EVENTS) + b"".join(_chunk(event) for event in [*events_of(provider, request), _DONE]))
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
}


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _dump(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


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
