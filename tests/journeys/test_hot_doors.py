"""The doors before Flask and our worker, beside gunicorn's stock worker and Flask's views: alike to the byte.

Two products that differ in HOT_PATH alone are asked the same over raw sockets. Before they are compared, only what two
answers can't share is replaced: ids, dates, measured times and what is left of a limit. Of a stream the bytes are
compared, not how they are cut into chunks: that is chance in both.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.provider import Mode, Provider
from tests.support.running_proxy import RunningProxy

PATIENCE_S = 60.0
OPENAI = "/v1/chat/completions"
MESSAGES = "/v1/messages"
SETTINGS = {
    "LLM_API_KEY": "sk-test-provider",
    "LLM_MODELS": ",".join(["test-model", *Mode]),
    # As long as a busy machine may take for what does come; waited for in whole by the tests of what never comes.
    "UPSTREAM_FIRST_BYTE_TIMEOUT_S": "5",
    "UPSTREAM_IDLE_TIMEOUT_S": "5",
    "RATE_LIMIT_PER_MINUTE": "60000",
    "RATE_LIMIT_BURST": "20",
    "SERVER_NAMES": "llm.example.test,*.internal.test,127.0.0.1,[::1]",
    "BLOCKED_USER_AGENTS": "badbot",
    "BLOCKED_IPS": "203.0.113.0/24",
    "MAX_REQUEST_SIZE": "20000",
    "BODY_TIMEOUT_S": "3",
    # Each answer is that of one attempt.
    "LLM_RETRIES": "0",
    "CIRCUIT_FAILURES": "0",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The two products, each with its own keys: a good one, one without the chat scope, one for another model, two that
    may ask once a minute after a burst.
    """

    hot: RunningProxy
    stock: RunningProxy
    keys: dict[str, tuple[bytes, ...]]


@pytest.fixture(scope="module")
def pair(short_folder: Path) -> Iterator[Pair]:
    with Provider() as provider:
        settings = {**SETTINGS, "LLM_API_URL": provider.base_url}
        hot = RunningProxy(short_folder / "hot", {**settings, "HOT_PATH": "true"})
        stock = RunningProxy(short_folder / "stock", {**settings, "HOT_PATH": "false"})
        with hot, stock, ThreadPoolExecutor(2) as pool:
            (hot_keys, stock_keys) = pool.map(_keys, (hot, stock))
            yield Pair(hot, stock, {"hot": hot_keys, "stock": stock_keys})


def _keys(proxy: RunningProxy) -> tuple[bytes, ...]:
    user = proxy.create_user()
    made = [
        proxy.create_api_key(user),
        proxy.create_api_key(user, "--scopes", "models"),
        proxy.create_api_key(user, "--models", "another"),
        proxy.create_api_key(user, "--rpm", "1"),
        proxy.create_api_key(user, "--rpm", "1"),
        # For the URL, after which it is quarantined.
        proxy.create_api_key(),
    ]
    return tuple(key.encode() for key in made)


# --- the requests -----------------------------------------------------------------------------------------------------

PLAIN = b'{"messages":[{"role":"user","content":"Hi."}]}'
STREAMED = b'{"stream":true,"messages":[{"role":"user","content":"Hi."}]}'
PROMPT = b'{"prompt":"Hi."}'


def asking(
    path: str = OPENAI,
    body: bytes = PLAIN,
    *headers: str,
    method: str = "POST",
    version: str = "1.1",
    host: str | None = "llm.example.test",
    key: str | None = "Authorization: Bearer KEY0",
    media_type: str | None = "application/json",
    length: int | str | None = -1,
    last: bool = True,
) -> bytes:
    """A request; `KEY0` to `KEY5` stand for the product's own keys. `length` -1 is the right one."""
    lines = [f"{method} {path} HTTP/{version}"]
    lines += [f"Host: {host}"] if host is not None else []
    lines += [key] if key is not None else []
    lines += [f"Content-Type: {media_type}"] if media_type is not None else []
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    lines += headers
    lines += ["Connection: close"] if last else []
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def of_model(model: str, *, stream: bool = False) -> bytes:
    return b'{"model":"%s","stream":%s,"messages":[{"role":"user","content":"Hi."}]}' % (
        model.encode(),
        b"true" if stream else b"false",
    )


def in_chunks(body: bytes, *, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:7], body[7:])) + end


def message_of(model: str = "test-model", *, stream: bool = False) -> bytes:
    return b'{"max_tokens":9,%s' % of_model(model, stream=stream)[1:]


CHUNKED = "Transfer-Encoding: chunked"
REQUESTS: dict[str, bytes] = {
    # good
    "a chat": asking(),
    "a chat that names its model": asking(OPENAI, of_model("test-model")),
    "a prompt": asking("/chat", PROMPT),
    "a prompt as message": asking("/chat", b'{"message":"Hi.","model_name":"test-model"}'),
    "messages at the origin's door": asking("/chat", PLAIN),
    "a stream": asking(OPENAI, STREAMED),
    "a stream with usage": asking(OPENAI, STREAMED[:-1] + b',"stream_options":{"include_usage":true}}'),
    "a streamed prompt": asking("/chat", b'{"prompt":"Hi.","stream":true}'),
    "vectors": asking("/v1/embeddings", b'{"model":"test-model","input":["Hi.","Ho."]}'),
    "vectors of nothing": asking("/v1/embeddings", b'{"model":"test-model"}'),
    "a stream of vectors": asking("/v1/embeddings", b'{"model":"test-model","input":"Hi.","stream":true}'),
    "a key in another header": asking(OPENAI, PLAIN, "X-API-Key: KEY0", key=None),
    "a key twice": asking(OPENAI, PLAIN, "X-API-Key: KEY0"),
    "bearer in small letters": asking(key="authorization: bearer   KEY0  "),
    "a good key beside a wrong one": asking(OPENAI, PLAIN, "X-API-Key: KEY0", key="Authorization: Bearer wrong"),
    "ids of the client's": asking(OPENAI, PLAIN, "X-Correlation-ID: their_id-1.2:3", "X-Session-ID: s1", "X-User-ID: ann"),
    "hostile ids": asking(OPENAI, PLAIN, "X-Correlation-ID: <script>", "X-Request-Id: exc_forged", "X-User-ID: \xe4"),
    "a correlation id too long": asking(OPENAI, PLAIN, "X-Correlation-ID: " + "x" * 129),
    "a query": asking(OPENAI + "?a=1&b=%20"),
    "a charset": asking(media_type="application/json; charset=utf-8"),
    "another JSON type": asking(media_type="application/vnd.api+json"),
    "a type in capitals": asking(media_type="APPLICATION/JSON"),
    "identity encoding": asking(OPENAI, PLAIN, "Content-Encoding: identity"),
    "a forwarded address": asking(OPENAI, PLAIN, "X-Forwarded-For: 198.51.100.7, 192.0.2.1"),
    "many headers": asking(OPENAI, PLAIN, *[f"X-Odd-{number}: {number}" for number in range(60)]),
    "an odd header value": asking(OPENAI, PLAIN, "X-Odd: \xe4\xff\t~"),
    "a header twice": asking(OPENAI, PLAIN, "X-Odd: 1", "X-Odd: 2"),
    "an agent": asking(OPENAI, PLAIN, "User-Agent: OpenAI/Python 2.0"),
    "HTTP/1.0": asking(version="1.0", last=False),
    "HTTP/1.0 without a host": asking(version="1.0", host=None, last=False),
    "HTTP/1.0 kept": asking(OPENAI, PLAIN, "Connection: keep-alive", version="1.0", last=False) + asking(version="1.0"),
    "a stream over HTTP/1.0": asking(OPENAI, STREAMED, version="1.0", last=False),
    "two requests in one packet": asking(last=False) + asking("/chat", PROMPT),
    "a stream and a chat in one packet": asking(OPENAI, STREAMED, last=False) + asking(),
    "a chat and health in one packet": asking(last=False) + asking("/health/live", b"", method="GET"),
    "a chunked body": asking(OPENAI, in_chunks(PLAIN), CHUNKED, length=None),
    "a chunked body with trailers": asking(OPENAI, in_chunks(PLAIN, end=b"0\r\nX-T: 1\r\n\r\n"), CHUNKED, length=None),
    "an expectation": asking(OPENAI, PLAIN, "Expect: 100-continue"),
    "no health of a host": asking("/health/live", b"", method="GET", host="192.0.2.1"),
    "an upgrade nobody knows": asking(OPENAI, PLAIN, "Upgrade: tea"),
    "a message": asking(MESSAGES, message_of()),
    "a streamed message": asking(MESSAGES, message_of(stream=True)),
    "a message of an agent": asking(
        f"{MESSAGES}?beta=true", message_of(), "anthropic-version: 2026-10-21", "anthropic-beta: a,b", "x-api-key: KEY0", key=None
    ),
    "a message in chunks": asking(MESSAGES, in_chunks(message_of()), CHUNKED, length=None),
    "tokens of a message": asking(f"{MESSAGES}/count_tokens", message_of()),
    "a message to another host": asking(MESSAGES, message_of(), host="evil.test"),
    "a message without a key": asking(MESSAGES, message_of(), key=None),
    "a message without a bound": asking(MESSAGES, PLAIN),
    "a message too large": asking(MESSAGES, b" " * 20_001),
    "a message by another method": asking(MESSAGES, b"", method="GET"),
    "a batch of messages": asking(f"{MESSAGES}/batches", message_of()),
    "provider: a message refused": asking(MESSAGES, message_of(Mode.RATE_LIMITED)),
    "provider: a message that breaks off": asking(MESSAGES, message_of(Mode.ERROR_EVENT, stream=True)),
    # the wrong host
    "another host": asking(host="evil.test"),
    "another host at the origin's door": asking("/chat", PROMPT, host="evil.test"),
    "another host at no door": asking("/nowhere", host="evil.test"),
    "a host with a port": asking(host="LLM.example.test:8443"),
    "a host below": asking(host="a.b.internal.test"),
    "an address": asking(host="[::1]:80"),
    "a host with an empty label": asking(host="a..internal.test"),
    "a host with a long label": asking(host="a" * 64 + ".internal.test"),
    "a host that ends in a dot": asking(host="llm.example.test."),
    "a host with a space": asking(host="llm.example.test x"),
    "an empty host": asking(host=""),
    "no host": asking(host=None),
    # the wrong key
    "no key": asking(key=None),
    "an empty key": asking(key="Authorization: Bearer "),
    "a wrong key": asking(key="Authorization: Bearer nonsense"),
    "another scheme": asking(key="Authorization: Basic dXNlcjpwYXNz"),
    "an unknown key": asking(key="X-API-Key: slp_live_0000000000000000_" + "0" * 38),
    "a cookie": asking(OPENAI, PLAIN, "Cookie: session=1", key=None),
    "a key in the URL": asking(OPENAI + "?api_key=KEY5"),
    "an escaped key in the URL": asking(OPENAI + "?k=%73lp%5flive_x"),
    "a key in the URL of the origin's door": asking("/chat?k=slp_live_x", PROMPT),
    "a key without the scope": asking(key="Authorization: Bearer KEY1"),
    "a key for another model": asking(key="Authorization: Bearer KEY2"),
    "a blocked agent": asking(OPENAI, PLAIN, "User-Agent: badbot/1.0"),
    "a blocked address": asking(OPENAI, PLAIN, "X-Forwarded-For: 203.0.113.9"),
    # the wrong body
    "no body": asking(OPENAI, b""),
    "no length": asking(OPENAI, b"", length=None),
    "not JSON": asking(OPENAI, b"{nope"),
    "an array": asking("/chat", b"[]"),
    "a key of the object twice": asking(OPENAI, b'{"m":1,"m":2}'),
    "no messages": asking(OPENAI, b"{}"),
    "no prompt": asking("/chat", b"{}"),
    "two prompts": asking("/chat", b'{"prompt":"a","message":"b"}'),
    "a prompt too long": asking("/chat", b'{"prompt":"%s"}' % (b"a" * 10_001)),
    "a wrong type": asking(OPENAI, b'{"messages":"x"}'),
    "a wrong value": asking(OPENAI, PLAIN[:-1] + b',"n":0}'),
    "an unknown model": asking(OPENAI, of_model("nope")),
    "no UTF-8": asking(OPENAI, b'{"messages":"\xff"}'),
    "no media type": asking(media_type=None),
    "another media type": asking(media_type="text/plain"),
    "a form": asking(OPENAI, b"prompt=hi", media_type="application/x-www-form-urlencoded"),
    "a compressed body": asking(OPENAI, PLAIN, "Content-Encoding: gzip"),
    "a body too large": asking(OPENAI, b" " * 20_001),
    "a length too large": asking(OPENAI, b"", length=10**12),
    "a chunked body too large": asking(OPENAI, in_chunks(b" " * 20_001), CHUNKED, length=None),
    "broken chunks": asking(OPENAI, b"zz\r\nabc", CHUNKED, length=None),
    "a body that does not come": asking(OPENAI, PLAIN[:10], length=100),
    "a chunked body that does not come": asking(OPENAI, b"5\r\n{", CHUNKED, length=None),
    # not a door, or not this one
    "a door by GET": asking(method="GET", body=b""),
    "a door by HEAD": asking(method="HEAD", body=b""),
    "a door by OPTIONS": asking("/chat", b"", method="OPTIONS"),
    "a door by PUT": asking("/chat", PROMPT, method="PUT"),
    "a method in small letters": asking(method="post"),
    "an unknown method": asking(method="BREW"),
    "an unknown path": asking("/nowhere"),
    "a slash behind": asking(OPENAI + "/"),
    "a slash behind the origin's door": asking("/chat/", PROMPT),
    "two slashes": asking("//chat", PROMPT),
    "two slashes within": asking("/v1//chat/completions"),
    "an encoded slash": asking("/v1%2fchat/completions"),
    "an encoded letter": asking("/%63hat", PROMPT),
    "a door in capitals": asking("/CHAT", PROMPT),
    "a parameter of the path": asking("/chat;x=1", PROMPT),
    "a fragment": asking("/chat#x", PROMPT),
    "dots": asking("/v1/../chat", PROMPT),
    "the absolute form": asking("http://llm.example.test/chat", PROMPT),
    "a null byte in the path": asking("/chat%00", PROMPT),
    "the models": asking("/v1/models", b"", method="GET"),
    "one model": asking("/v1/models/test-model", b"", method="GET"),
    "models without a key": asking("/v1/models", b"", method="GET", key=None),
    "a websocket": asking("/chat", PROMPT, "Upgrade: websocket", "Connection: upgrade", last=False) + asking(),
    "liveness": asking("/health/live", b"", method="GET"),
    "liveness by HEAD": asking("/health/live", b"", method="HEAD"),
    # refused by the worker itself
    "two lengths": asking(OPENAI, PLAIN, "Content-Length: 3"),
    "a length and chunks": asking(OPENAI, PLAIN, CHUNKED),
    "a signed length": asking(length="+46"),
    "two hosts": asking(OPENAI, PLAIN, "Host: llm.example.test"),
    "a space before the colon": asking(OPENAI, PLAIN, "X-Odd : 1"),
    "an underscore": asking(OPENAI, PLAIN, "X_API_Key: KEY0"),
    "nonsense": b"NONSENSE\r\n\r\n",
    # the provider
    **{
        f"provider: {mode}{' in a stream' if stream else ''}": asking(OPENAI, of_model(mode, stream=stream))
        for mode in (
            Mode.ERROR, Mode.RATE_LIMITED, Mode.UNAUTHORIZED, Mode.REDIRECT, Mode.EARLY_CLOSE, Mode.NOT_HTTP,
            Mode.INVALID_JSON, Mode.NO_CHOICES, Mode.HANG_BEFORE_HEADERS, Mode.HANG_MID_STREAM, Mode.CHUNKED,
        )
        for stream in (False, True)
    },
    **{
        f"provider: {mode}": asking(door, of_model(mode, stream=True))
        for mode, door in (
            (Mode.ERROR_EVENT, OPENAI), (Mode.ERROR_EVENT, "/chat"), (Mode.NO_DONE, OPENAI), (Mode.NO_END, "/chat"),
            (Mode.COMMENTS, OPENAI), (Mode.ONLY_DONE, OPENAI), (Mode.PLAIN_FOR_A_STREAM, OPENAI),
        )
    },
}  # fmt: skip


# --- the answers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """One answer with what differs by nature replaced."""

    status: bytes
    headers: tuple[bytes, ...]
    body: bytes


_DIFFERS = [
    (re.compile(rb"exc_[0-9A-HJKMNP-TV-Z]{26}"), b"exc_#"),
    (re.compile(rb"\b[0-9A-HJKMNP-TV-Z]{26}\b"), b"#"),
    (re.compile(rb"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"), b"#"),
    (re.compile(rb"(?m)^(Date|X-SLP-Overhead-Ms|X-RateLimit-Remaining|X-RateLimit-Reset): [^\r]+"), rb"\1: #"),
]
_WAITING = [
    (re.compile(rb"(?m)^Retry-After: [0-9]+"), b"Retry-After: #"),
    (re.compile(rb'"retry_after":[0-9]+'), b'"retry_after":#'),
]


def connected(proxy: RunningProxy) -> socket.socket:
    parts = urlsplit(proxy.base_url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE_S)


def until_its_end(line: socket.socket) -> bytes:
    """What the server says until it hangs up."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := line.recv(65536):
            received += piece
    return received


def exchange(proxy: RunningProxy, data: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes as they are and return everything that comes back until the server hangs up."""
    with connected(proxy) as line:
        # A server that has refused already may have reset the connection; what it said is there to be read all the same.
        with suppress(OSError):
            line.sendall(data)
            if half_close:
                line.shutdown(socket.SHUT_WR)
        return until_its_end(line)


def answers_in(received: bytes, methods: list[bytes]) -> list[Said]:
    """Every answer in what a connection said; fails on bytes that belong to none."""
    found: list[Said] = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, *headers = head.split(b"\r\n")
        lowered = {name.lower(): value for name, _, value in (line.partition(b": ") for line in headers)}
        if status.startswith(b"HTTP/1.1 1") or (methods and methods.pop(0) == b"HEAD"):
            body = b""
        elif lowered.get(b"transfer-encoding") == b"chunked":
            body, received = _unchunked(received)
        elif b"content-length" in lowered:
            size = int(lowered[b"content-length"])
            body, received = received[:size], received[size:]
            assert len(body) == size
        else:
            body, received = received, b""
        found.append(Said(_alike(status), tuple(_alike(line) for line in headers), _alike(body)))
    return found


def _unchunked(received: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, _, received = received.partition(b"\r\n")
        size = int(line, 16)
        piece, end, received = received[:size], received[size : size + 2], received[size + 2 :]
        assert (len(piece), end) == (size, b"\r\n")
        if size == 0:
            return body, received
        body += piece


def _alike(text: bytes) -> bytes:
    for pattern, instead in _DIFFERS:
        text = pattern.sub(instead, text)
    return text


def both(pair: Pair, request: bytes, *, half_close: bool = False) -> tuple[list[Said], list[Said]]:
    def ask(name: str, proxy: RunningProxy) -> list[Said]:
        data = request
        for number, key in enumerate(pair.keys[name]):
            data = data.replace(b"KEY%d" % number, key)
        methods = re.findall(rb"(?m)^(?:\{.*\})?([A-Za-z]+) \S+ HTTP/", data)
        return answers_in(exchange(proxy, data, half_close=half_close), methods)

    with ThreadPoolExecutor(2) as pool:
        hot, stock = pool.submit(ask, "hot", pair.hot), pool.submit(ask, "stock", pair.stock)
        return hot.result(), stock.result()


# --- alike ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.replace(" ", "-"))
def test_both_answer_alike_to_the_byte(pair: Pair, case: str) -> None:
    hot, stock = both(pair, REQUESTS[case])

    assert len(stock) >= 1
    assert hot == stock


# A key of its own for each: a bucket used before refills in the two products at two moments.
@pytest.mark.parametrize(("path", "key"), [(OPENAI, "KEY3"), ("/chat", "KEY4")])
def test_both_answer_alike_when_the_limit_is_reached(pair: Pair, path: str, key: str) -> None:
    request = asking(path, PLAIN, key=f"Authorization: Bearer {key}", last=False)

    hot, stock = both(pair, request * 24 + asking(path, PLAIN, key=f"Authorization: Bearer {key}"))

    assert len(hot) == 25
    assert b"429 TOO MANY REQUESTS" in hot[-1].status
    assert [_waiting(said) for said in hot] == [_waiting(said) for said in stock]


def _waiting(said: Said) -> Said:
    """Without the seconds to wait: they depend on the very moment."""

    def alike(text: bytes) -> bytes:
        for pattern, instead in _WAITING:
            text = pattern.sub(instead, text)
        return text

    lines = tuple(b"Content-Length: #" if line.startswith(b"Content-Length") else alike(line) for line in said.headers)
    return Said(said.status, lines, alike(said.body))


@pytest.mark.parametrize(
    "request_sent", [asking(OPENAI, PLAIN[:10], length=100), asking(OPENAI, b"5\r\n{", CHUNKED, length=None)]
)
def test_both_answer_alike_when_the_body_breaks_off(pair: Pair, request_sent: bytes) -> None:
    hot, stock = both(pair, request_sent, half_close=True)

    assert hot == stock


@pytest.mark.parametrize("stack", ["hot", "stock"])
def test_what_comes_behind_a_body_that_took_too_long_is_never_a_request(pair: Pair, stack: str) -> None:
    proxy: RunningProxy = getattr(pair, stack)
    started = asking(OPENAI, b"40\r\nhello", CHUNKED, length=None, last=False).replace(b"KEY0", pair.keys[stack][0])

    with connected(proxy) as line:
        line.sendall(started)
        answered = line.recv(65536)
        # A front that has not seen the answer yet goes on with the body; another client's words may stand in it.
        with suppress(OSError):
            line.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        rest = until_its_end(line)

    assert answered.startswith(b"HTTP/1.1 408 ")
    assert (answered + rest).count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("stack", ["hot", "stock"])
def test_a_stream_cut_short_does_not_end_as_if_it_were_whole(pair: Pair, stack: str) -> None:
    proxy: RunningProxy = getattr(pair, stack)
    request = asking(OPENAI, of_model(Mode.HANG_MID_STREAM, stream=True)).replace(b"KEY0", pair.keys[stack][0])

    with connected(proxy) as line:
        line.sendall(request)
        received = b""
        while b"data: " not in received:
            piece = line.recv(65536)
            assert piece, received
            received += piece
        # Nothing more will be asked; whoever says so counts as gone, and is owed no well-formed end.
        line.shutdown(socket.SHUT_WR)
        received += until_its_end(line)

    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("stack", ["hot", "stock"])
def test_a_refusal_is_read_although_the_connection_ends_with_it(pair: Pair, stack: str) -> None:
    proxy: RunningProxy = getattr(pair, stack)
    head = (
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: 4000000\r\n\r\n"
    )

    with connected(proxy) as line:
        line.sendall(head % OPENAI.encode())
        # A client that reads only when it has said everything. What is left of a body is listened to for 5 s.
        for _ in range(100):
            line.sendall(b" " * 40_000)
            time.sleep(0.001)
        received = until_its_end(line)

    assert received.startswith(b"HTTP/1.1 401 ")


def test_what_is_compared_is_what_it_is_called(pair: Pair) -> None:
    (plain,), _ = both(pair, REQUESTS["a chat"])
    (streamed,), _ = both(pair, REQUESTS["a streamed prompt"])
    (misdirected,), _ = both(pair, REQUESTS["another host"])

    assert plain.status == b"HTTP/1.1 200 OK"
    assert b"X-Request-Id: exc_#" in plain.headers
    assert any(line.startswith(b"Content-Length: ") for line in plain.headers)
    assert b"Transfer-Encoding: chunked" in streamed.headers
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert b'"type":"done"' in streamed.body
    assert misdirected.status == b"HTTP/1.1 421 MISDIRECTED REQUEST"
