"""What an attacker tries against the running product: mix-ups, starvation, growth, tricks with HTTP, a provider that lies.

Both shapes run here with a provider that repeats each prompt, and with patience of five seconds, so that timeouts and
aborts of every kind happen between answers that must still reach who asked for them. Nothing here measures speed: that
the others are served is shown by an answer that arrives while the attack goes on.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOMY
from tests.support.certificates import Certificate
from tests.support.clients import ask, audit_lines, connection_to, records_of, send_raw
from tests.support.nginx import PrivateNginx
from tests.support.ports import free_port
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.programs import ServerFailed, wait_until
from tests.support.provider import Mode, Provider, ReceivedRequest
from tests.support.redis_server import PrivateRedis
from tests.support.running_proxy import ROOT, RunningProxy
from tests.support.smuggling import Campaign, Server, answers_to, count_of
from tests.support.upstream_faults import UNLIMITED

OPENAI = "/v1/chat/completions"
# An answer that must come may take so long.
ANSWER_S = 60.0
MARK = re.compile(rb"mark-[0-9a-z]+-[0-9]+-end")

# With less, a new worker that loads its modules on a busy machine would take a good answer for one that never came.
IMPATIENT = {
    "UPSTREAM_FIRST_BYTE_TIMEOUT_S": "5",
    "UPSTREAM_IDLE_TIMEOUT_S": "5",
    "UPSTREAM_TOTAL_TIMEOUT_S": "10",
    "MAX_EVENT_SIZE": "65536",
    "MAX_RESPONSE_SIZE": "1048576",
    "GRACEFUL_TIMEOUT_S": "20",
    "LLM_MODELS": ",".join(["test-model", *Mode]),
}


class EchoingProvider(Provider):
    """Says to each request what its last message said. One thread serves one connection, so the text is the thread's."""

    def __init__(self) -> None:
        self._said = threading.local()
        super().__init__(stream_chunks=5)

    @property
    def reply_text(self) -> str:
        return str(getattr(self._said, "text", ""))

    @reply_text.setter
    def reply_text(self, text: str) -> None:
        self._said.text = text

    def _answer(self, connection: socket.socket, request: ReceivedRequest) -> bool:
        if isinstance(request.json, dict) and isinstance(messages := request.json.get("messages"), list):
            last = messages[-1]
            self.reply_text = str(last.get("content")) if isinstance(last, dict) else ""
        return super()._answer(connection, request)


@pytest.fixture(scope="module")
def echoing() -> Iterator[EchoingProvider]:
    with EchoingProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def direct(echoing: EchoingProvider, short_folder: Path) -> Iterator[RunningProxy]:
    """The embedded shape: one worker, reached without anything in front."""
    settings = {**UNLIMITED, **IMPATIENT, "LLM_API_URL": echoing.base_url, "LLM_API_KEY": "sk-test-provider"}
    with RunningProxy(short_folder / "attacked", settings) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def edge(certificate: Certificate, short_folder: Path) -> Iterator[PrivateNginx]:
    """What stands in front of `fronted`."""
    web_socket = short_folder / "attacked-host" / "web.sock"
    with PrivateNginx(short_folder / "attacked-nginx", certificate, socket=web_socket) as nginx:
        yield nginx


@pytest.fixture(scope="module")
def fronted(
    echoing: EchoingProvider,
    postgresql: PrivatePostgreSQL,
    redis_server: PrivateRedis,
    edge: PrivateNginx,
    short_folder: Path,
) -> Iterator[RunningProxy]:
    """PostgreSQL, Redis, three workers behind nginx with TLS."""
    home = edge.socket.parent
    settings = {
        **UNLIMITED,
        **IMPATIENT,
        "LLM_API_URL": echoing.base_url,
        "LLM_API_KEY": "sk-test-provider",
        "DATABASE_URL": postgresql.create_database(),
        "REDIS_URL": redis_server.url,
        "WORKERS": "3",
        "SERVER_NAMES": "localhost",
    }
    authority = edge.certificate.authority
    with RunningProxy(home, settings, on_unix_socket=True, front_url=edge.base_url, authority=authority) as proxy:
        yield proxy


@pytest.fixture(scope="module", params=["direct", "fronted"])
def attacked(request: pytest.FixtureRequest) -> RunningProxy:
    running = request.getfixturevalue(request.param)
    assert isinstance(running, RunningProxy)
    return running


# --- answers reach who asked ------------------------------------------------------------------------------------------


class _Client:
    """One client with one kept-alive connection, who asks, leaves, and looks for other people's marks."""

    def __init__(self, proxy: RunningProxy, name: str, key: str) -> None:
        self._proxy = proxy
        self._name = name
        self._key = key
        self._dice = random.Random(name)
        self._number = 0
        self._connection: http.client.HTTPConnection | None = None
        self.foreign: list[str] = []
        self.seen: Counter[str] = Counter()

    def run(self, requests: int) -> None:
        for _ in range(requests):
            try:
                self._once()
            except (OSError, http.client.HTTPException) as error:
                self.seen[type(error).__name__] += 1
                self._hang_up()
        self._hang_up()

    def _once(self) -> None:
        self._number += 1
        mark = f"mark-{self._name}-{self._number}-end"
        stream = self._dice.random() < 0.5
        fate = self._dice.random()
        model = "test-model"
        if fate < 0.03:
            model = self._dice.choice(["hang_before_headers", "hang_mid_stream", "slow_drip"])
        elif fate < 0.10:
            model = self._dice.choice(["reset_at_byte", "early_close", "length_too_short", "late_last_chunk", "error"])
        body = json.dumps(
            {"model": model, "stream": stream, "messages": [{"role": "user", "content": mark}]}, ensure_ascii=False
        ).encode()
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            "X-Correlation-ID": mark,
        }
        connection = self._connect()
        leaving = self._dice.random()
        if leaving < 0.05:
            connection.putrequest("POST", OPENAI)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(body[: len(body) // 2])
            self.seen["left in the body"] += 1
            self._hang_up()
            return
        connection.request("POST", OPENAI, body=body, headers=headers)
        if leaving < 0.15:
            self.seen["left before the answer"] += 1
            self._hang_up()
            return
        answer = connection.getresponse()
        if leaving < 0.25:
            self._look(mark, answer.read(self._dice.randrange(1, 400)), answer)
            self.seen["left in the answer"] += 1
            self._hang_up()
            return
        read = answer.read()
        self._look(mark, read, answer)
        self.seen[str(answer.status)] += 1
        if answer.status == http.HTTPStatus.OK and model == "test-model":
            text = _text_of(read) if stream else str(json.loads(read)["choices"][0]["message"]["content"])
            if text != mark:
                self.foreign.append(f"{mark} was answered {text!r}")

    def _look(self, mark: str, read: bytes, answer: http.client.HTTPResponse) -> None:
        if answer.getheader("X-Correlation-ID") != mark:
            self.foreign.append(f"{mark} got the headers of {answer.getheader('X-Correlation-ID')}")
        self.foreign += [f"{mark} got {found!r}" for found in MARK.findall(read) if found != mark.encode()]

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            parts = urlsplit(self._proxy.base_url)
            assert parts.hostname is not None
            context = self._proxy.client_tls()
            self._connection = (
                http.client.HTTPSConnection(parts.hostname, parts.port, timeout=60, context=context)
                if context is not None
                else http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
            )
        return self._connection

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _text_of(events: bytes) -> str:
    text = ""
    for line in events.decode().splitlines():
        if line.startswith("data: {"):
            choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
            text += choices[0].get("delta", {}).get("content") or ""
    return text


def test_no_answer_reaches_another_client_whoever_leaves_or_lies(attacked: RunningProxy) -> None:
    key = attacked.shared_api_key
    workers = attacked.worker_pids()
    before = _descriptors(attacked)
    clients = [_Client(attacked, f"{number:x}", key) for number in range(12)]

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(lambda client: client.run(130), clients))

    seen = sum((client.seen for client in clients), Counter[str]())
    assert [foreign for client in clients for foreign in client.foreign] == []
    assert seen["200"] > 500, seen
    assert seen["left in the answer"] > 50
    assert seen["500"] == 0, seen
    assert attacked.worker_pids() == workers
    _comes_to_rest(attacked)
    wait_until(lambda: _descriptors(attacked) <= before + 60, what="descriptors are given back")
    _every_exchange_ends_once(attacked)


def test_nginxs_log_and_the_audit_log_tell_of_the_same_requests_whoever_leaves(
    fronted: RunningProxy, edge: PrivateNginx
) -> None:
    key = fronted.shared_api_key
    clients = [_Client(fronted, f"r{number:x}", key) for number in range(12)]
    lines_before = len(edge.access_log.read_bytes().splitlines())

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(lambda client: client.run(20), clients))

    _comes_to_rest(fronted)
    # nginx writes its line when it knows that its client has all, or is gone. Every test of this file that came before has
    # left its requests in both logs, too.
    told: dict[str, object] = {}
    with suppress(ServerFailed):
        wait_until(lambda: bool(told.update(_reconciled(fronted, edge.access_log)) or told["agree"]), what="they agree")
    assert told["differences"] == [], told
    assert (told["agree"], told["under_way"]) == (True, 0)
    assert int(str(told["lines"])) - lines_before >= 200
    assert int(str(told["agreeing"])) > 150
    _is_missed_when_it_is_taken_out(fronted, edge.access_log)


def _reconciled(proxy: RunningProxy, access_log: Path) -> dict[str, object]:
    command = ["audit", "reconcile", "--access-log", str(access_log), "--grace", "0", "--json"]
    told: dict[str, object] = json.loads(proxy.command(*command, check=False).stdout)
    return told


def _is_missed_when_it_is_taken_out(proxy: RunningProxy, access_log: Path) -> None:
    lines = access_log.read_bytes().splitlines(keepends=True)
    answered = [place for place, line in enumerate(lines) if b'"exchange":"exc_' in line and b'"POST"' in line]
    taken = lines.pop(answered[len(answered) // 2])
    altered = access_log.with_name("altered.log")
    altered.write_bytes(b"".join(lines))

    told = _reconciled(proxy, altered)

    assert [found["edge_id"] for found in told["differences"]] == [json.loads(taken)["edge_id"]]  # type: ignore[attr-defined]


def test_two_requests_in_one_packet_are_answered_in_their_order(direct: RunningProxy) -> None:
    first, second = _request(direct, "mark-p-1-end"), _request(direct, "mark-p-2-end", close=True)

    received = send_raw(direct, first + second)

    assert MARK.findall(received) == [b"mark-p-1-end", b"mark-p-2-end"]
    assert received.count(b"HTTP/1.1 200 OK") == 2


# --- one client must not starve the others ----------------------------------------------------------------------------


def _tiny_chunks(line: socket.socket, going_on: Callable[[], bool]) -> None:
    """A body of one-byte chunks behind a request that has long been refused."""
    line.sendall(
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    while going_on():
        line.sendall(b"1\r\na\r\n" * 10_000)


def _pipelined_requests(line: socket.socket, going_on: Callable[[], bool]) -> None:
    """Requests for nothing at all, one behind the other, whose answers are read."""
    reader = threading.Thread(target=_read_away, args=(line,), daemon=True)
    reader.start()
    while going_on():
        line.sendall(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)


def _endless_body(line: socket.socket, going_on: Callable[[], bool]) -> None:
    """A body of a hundred gigabytes that nobody asked for."""
    line.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000000\r\n\r\n")
    while going_on():
        line.sendall(b"x" * 1_000_000)


def _a_head_without_end(line: socket.socket, going_on: Callable[[], bool]) -> None:
    """A big head that is never finished, byte by byte: each is looked at with all that came before."""
    line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"\r" * 700_000)
    _trickle(line, going_on)


def _trailers_without_end(line: socket.socket, going_on: Callable[[], bool]) -> None:
    """The same behind the last chunk of a body that nobody asked for. That is read for 5 s at most, so on eight connections."""
    with ExitStack() as opened, ThreadPoolExecutor(8) as pool:
        others = [opened.enter_context(socket.create_connection(line.getpeername(), timeout=30)) for _ in range(7)]
        list(pool.map(lambda each: _trailer_without_end(each, going_on), [line, *others]))


def _trailer_without_end(line: socket.socket, going_on: Callable[[], bool]) -> None:
    with suppress(OSError):
        line.sendall(
            b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: "
            + b"\r" * 700_000
        )
        _trickle(line, going_on)


def _trickle(line: socket.socket, going_on: Callable[[], bool]) -> None:
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while going_on():
        line.sendall(b"x")
        time.sleep(0.0005)


def _read_away(line: socket.socket) -> None:
    with suppress(OSError):
        while line.recv(262_144):
            pass


@pytest.mark.parametrize(
    "attack",
    [_tiny_chunks, _pipelined_requests, _endless_body, _a_head_without_end, _trailers_without_end],
    ids=lambda attack: attack.__name__,
)
def test_a_client_without_a_key_does_not_stop_the_worker_for_the_others(
    direct: RunningProxy, attack: Callable[[socket.socket, Callable[[], bool]], None]
) -> None:
    over = threading.Event()
    deadline = time.monotonic() + 60
    served_meanwhile: list[int] = []

    def flood() -> None:
        parts = urlsplit(direct.base_url)
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as line, suppress(OSError):
            attack(line, lambda: time.monotonic() < deadline and not over.is_set())
        over.set()

    def served() -> None:
        """A few ordinary requests; only those count that were answered before the attack was over."""
        while len(served_meanwhile) < 5 and time.monotonic() < deadline:
            status = ask(direct, "GET", "/health/live").status
            if time.monotonic() < deadline:
                served_meanwhile.append(status)

    with ThreadPoolExecutor(2) as pool:
        flooding = pool.submit(flood)
        time.sleep(0.3)  # the flood is well under way
        pool.submit(served).result(120)
        over.set()
        flooding.result(120)

    assert served_meanwhile == [200] * 5


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[' + b",".join([b"1"] * 300_000) + b"]}",
        b'{"messages":[{"role":"user","content":[' + b",".join([b"1"] * 300_000) + b"]}]}",
        b'{"messages":[' + b",".join([b'{"role":"u"}'] * 150_000) + b"]}",
        b'{"messages":[{"role":"user","content":"x"}],"tools":[' + b",".join([b"1"] * 300_000) + b"]}",
    ],
    ids=["messages", "parts", "good messages", "tools"],
)
@pytest.mark.parametrize("door", ["/chat", OPENAI])
def test_a_list_of_wrong_items_costs_about_its_own_size(direct: RunningProxy, door: str, body: bytes) -> None:
    key = direct.shared_api_key
    [worker] = direct.worker_pids()
    ask(direct, "POST", door, key=key, body=_chat("warm"))  # a worker that has just come is still loading its modules
    Path(f"/proc/{worker}/clear_refs").write_text("5", "ascii")  # forget the highest mark of memory (proc(5))
    before_kib = _memory_kib(worker, "VmRSS")

    answer = ask(direct, "POST", door, key=key, body=body)

    assert answer.status == 400
    assert _memory_kib(worker, "VmHWM") - before_kib < 64 * 1024


# --- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("extra", [b"", b"G"], ids=["silent", "with a byte of a next request"])
def test_who_leaves_while_the_provider_hangs_is_recorded_as_gone(
    direct: RunningProxy, echoing: EchoingProvider, *, stream: bool, extra: bytes
) -> None:
    key = direct.shared_api_key
    ask(direct, "POST", OPENAI, key=key, body=_chat("warm"))
    echoing.clear()
    before = len(_ends(direct))
    parts = urlsplit(direct.base_url)

    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as line:
        model = Mode.HANG_MID_STREAM if stream else Mode.HANG_BEFORE_HEADERS
        line.sendall(_request(direct, "leaving", model=model, stream=stream))
        assert echoing.wait_for_requests(1)
        line.sendall(extra)
        _settle()

    wait_until(lambda: len(_ends(direct)) > before, what="the end is recorded")
    assert [end["st"] for end in _ends(direct)[before:]] == ["client_abort"]


def test_a_body_that_stops_half_way_is_recorded_and_leaves_nothing_behind(attacked: RunningProxy) -> None:
    key = attacked.shared_api_key
    before = len(_refusals(attacked, "client_gone"))

    for _ in range(5):
        with connection_to(attacked) as connection:
            connection.putrequest("POST", "/chat")
            connection.putheader("Authorization", f"Bearer {key}")
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", "500")
            connection.endheaders()
            connection.send(b'{"prompt":"never')
            _settle()

    _comes_to_rest(attacked)
    if attacked.authority is None:  # nginx keeps half a body to itself
        wait_until(lambda: len(_refusals(attacked, "client_gone")) == before + 5, what="each is recorded")


# --- a provider that lies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 1e300, -5, True, "11", None, [1]], ids=repr)
def test_absurd_token_counts_of_the_provider_harm_nothing(
    direct: RunningProxy, echoing: EchoingProvider, count: float | str | list[int] | None
) -> None:
    good = dict(echoing.usage)
    echoing.usage = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": count}  # type: ignore[dict-item]
    try:
        plain = ask(direct, "POST", "/chat", key=direct.shared_api_key, body={"prompt": "x"})
        body = {"prompt": "x", "stream": True, "stream_options": {"include_usage": True}}
        streamed = ask(direct, "POST", "/chat", key=direct.shared_api_key, body=body)
    finally:
        echoing.usage = good

    assert plain.status == 200
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    ends = {line["rid"]: line["st"] for line in _ends(direct)}
    assert [ends[answer.headers["x-request-id"]] for answer in (plain, streamed)] == ["complete", "complete"]


# --- tricks with HTTP -------------------------------------------------------------------------------------------------

_HEAD = b"Host: localhost\r\nConnection: close\r\n"
_TRICKS: Mapping[str, tuple[bytes, set[int]]] = {
    "TRACE": (b"TRACE /chat HTTP/1.1\r\n" + _HEAD + b"\r\n", {405}),
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\n" + _HEAD + b"\r\n", {400, 404, 405}),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\n" + _HEAD + b"\r\n", {400, 404, 405}),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "two hosts": (b"GET /health/live HTTP/1.1\r\nHost: a\r\n" + _HEAD + b"\r\n", {400}),
    "underscore alias": (b"GET /health/live HTTP/1.1\r\nX_Forwarded_For: 1.2.3.4\r\n" + _HEAD + b"\r\n", {200, 400}),
    "cookie": (b"GET /v1/models HTTP/1.1\r\nCookie: key=@KEY@\r\n" + _HEAD + b"\r\n", {401}),
    "two authorizations": (b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer @KEY@\r\n@AUTH@" + _HEAD + b"\r\n", {400, 401}),
    "two different keys": (b"GET /v1/models HTTP/1.1\r\nX-API-Key: other\r\n@AUTH@" + _HEAD + b"\r\n", {401}),
    "method override": (
        b"POST /v1/models HTTP/1.1\r\nX-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n@AUTH@" + _HEAD + b"\r\n",
        {405},
    ),
    "up and away": (b"GET /v1/models/../../metrics HTTP/1.1\r\n@AUTH@" + _HEAD + b"\r\n", {400, 404}),
    "escaped up and away": (b"GET /v1/models/%2e%2e%2fmetrics HTTP/1.1\r\n@AUTH@" + _HEAD + b"\r\n", {400, 404}),
    "NUL and CRLF in a model": (b"GET /v1/models/%00%0d%0aX:y HTTP/1.1\r\n@AUTH@" + _HEAD + b"\r\n", {400, 404}),
    "bad UTF-8 in a model": (b"GET /v1/models/%ff%fe HTTP/1.1\r\n@AUTH@" + _HEAD + b"\r\n", {400, 404}),
    "102 headers": (
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % number for number in range(102)) + _HEAD + b"\r\n",
        {431},
    ),
    "unknown expectation": (
        b"POST /chat HTTP/1.1\r\nExpect: 200-ok\r\nContent-Length: 2\r\n@AUTH@" + _HEAD + b"\r\n{}",
        {400, 415, 417},
    ),
    "a credential in the trailers": (
        b"POST /chat HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n" + _HEAD
        + b'\r\ne\r\n{"prompt":"x"}\r\n0\r\nAuthorization: Bearer @KEY@\r\n\r\n',
        {400, 401},
    ),
    "two content types": (
        b"POST /chat HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Type: application/json\r\nContent-Length: 14\r\n@AUTH@"
        + _HEAD
        + b'\r\n{"prompt":"x"}',
        {400, 415},
    ),
}  # fmt: skip


@pytest.mark.parametrize("trick", _TRICKS, ids=lambda trick: trick.replace(" ", "-"))
def test_a_trick_with_http_is_refused_in_the_one_shape(
    attacked: RunningProxy, echoing: EchoingProvider, trick: str
) -> None:
    data, allowed = _TRICKS[trick]
    key = attacked.shared_api_key.encode()
    echoing.clear()

    received = send_raw(attacked, data.replace(b"@AUTH@", b"Authorization: Bearer @KEY@\r\n").replace(b"@KEY@", key))

    head, _, body = received.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in allowed, received
    if int(head.split()[1]) != 200:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert received.count(b"HTTP/1.1 ") == 1
    assert key not in received
    assert echoing.chats == []


@pytest.fixture(scope="module")
def leaked_key(direct: RunningProxy) -> str:
    """A key that is quarantined from the first time it stands in a URL."""
    return direct.create_api_key()


@pytest.mark.parametrize(
    "target",
    ["/chat?k={key}", "/chat?k={percent}", "/chat?{key}=1", "/v1/models/{key}", "/v1/models/{percent}", "/chat?k={twice}",
     "/chat#{key}", "http://{key}@localhost/chat"],
)  # fmt: skip
def test_a_key_anywhere_in_the_url_is_refused_and_kept_nowhere(
    direct: RunningProxy, leaked_key: str, target: str
) -> None:
    key = direct.shared_api_key
    percent = "".join(f"%{ord(character):02x}" for character in leaked_key)
    where = target.format(key=leaked_key, percent=percent, twice=percent.replace("%", "%25"))
    method = b"GET" if "models" in target else b"POST"
    head = b"%b %b HTTP/1.1\r\nAuthorization: Bearer %b\r\n" % (method, where.encode(), key.encode())
    about_body = b"Content-Type: application/json\r\nContent-Length: 14\r\n" if method == b"POST" else b""
    body = b'{"prompt":"x"}' if method == b"POST" else b""

    received = send_raw(direct, head + about_body + _HEAD + b"\r\n" + body)

    assert b'"code":"api_key_in_url"' in received, received
    assert leaked_key not in direct.log_text()


# Each a try to be 8.8.8.8 (or this machine, or nobody): A01 and A02 of the threat model.
_CLAIMS = (
    *(
        b"%b: 8.8.8.8" % name
        for name in (
            b"X-Forwarded-For", b"x-forwarded-for", b"X-FORWARDED-FOR", b"Forwarded-For", b"X-Forwarded", b"X-Real-IP",
            b"X-Client-IP", b"Client-IP", b"True-Client-IP", b"X-Cluster-Client-IP", b"CF-Connecting-IP", b"Via",
            b"CF-Connecting-IPv6", b"Fastly-Client-IP", b"X-Azure-ClientIP", b"X-Appengine-User-IP", b"X-Remote-IP",
            b"X-Remote-Addr", b"Remote-Addr", b"X-Originating-IP", b"X-ProxyUser-Ip", b"WL-Proxy-Client-IP", b"From",
            b"X-Envoy-External-Address", b"X-Original-Forwarded-For", b"X-Host", b"X-Forwarded-Host", b"X-Forwarded-By",
            b"X_Forwarded_For", b"X-Forwarded_For", b"x_forwarded_for", b"X_Real_IP", b"Remote_Addr", b"REMOTE_ADDR",
            b"HTTP_X_FORWARDED_FOR", b"X.Forwarded.For", b"X-Forwarded-For ", b"X-Forwarded-For\t", b" X-Forwarded-For",
        )
    ),
    *(
        b"X-Forwarded-For: " + value
        for value in (
            b"", b",", b"8.8.8.8, 127.0.0.1", b"127.0.0.1, 8.8.8.8", b"8.8.8.8:80", b"\t8.8.8.8 ", b"::ffff:8.8.8.8",
            b"[2001:db8::1]:443", b"for=8.8.8.8", b'"8.8.8.8"', b"unknown", b"unix:", b"0.0.0.0", b"::1", b"localhost",
            b"8.8.8.8\r\nX-Forwarded-For: 8.8.4.4", b"8.8.8.8,\r\n 8.8.4.4", b"8.8.8.8, " * 40 + b"8.8.8.8",
            b"8.8.8.8\x00", b"\xef\xbc\x98.8.8.8", b"8.8.8.8%eth0", b"134744072", b"0x8.8.8.8",
        )
    ),
    *(
        b"Forwarded: " + value
        for value in (b"for=8.8.8.8", b'for="[2001:db8::1]:443"', b"for=8.8.8.8;by=127.0.0.1", b"for=unknown, for=8.8.8.8")
    ),
)  # fmt: skip


def test_a_forwarded_address_that_nobody_vouches_for_changes_nothing(attacked: RunningProxy) -> None:
    received = [send_raw(attacked, b"GET /v1/models HTTP/1.1\r\n%b%b\r\n\r\n" % (_HEAD, claim)) for claim in _CLAIMS]

    heads = [answer.partition(b"\r\n\r\n")[0].decode("latin-1") for answer in received]
    refused = [head for head in heads if head.startswith("HTTP/1.1 400 ")]
    met = {_id_in(head) for head in heads if head.startswith("HTTP/1.1 401 ")}
    assert len(refused) + len(met) == len(_CLAIMS)
    assert len(met) >= 40, "most are no syntax errors: they do reach the list of addresses"
    wait_until(
        lambda: met <= {line.get("request_id") for line in logged_by(attacked)}, what="every refusal is in the log"
    )
    assert {line["address"] for line in logged_by(attacked) if line.get("request_id") in met} == {"127.0.0.1"}


def _id_in(head: str) -> str:
    found = re.search(r"(?im)^x-request-id: (\S+)\r?$", head)
    assert found is not None, head
    return found[1]


def logged_by(proxy: RunningProxy) -> list[dict[str, object]]:
    """Every whole line. Workers write theirs together, up to 20 ms late."""
    text = (proxy.instance / "log" / "app.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


def test_what_clients_write_never_makes_a_line_of_its_own(attacked: RunningProxy) -> None:
    key = attacked.shared_api_key
    evil = 'x\\n2026-01-01 CRITICAL forged {"level":"ERROR"} %0d%0a \x7f'
    told = ["agent", "X-User-ID", "X-Session-ID", "X-Correlation-ID"]

    answers = [
        ask(
            attacked,
            "POST",
            "/chat",
            key=key,
            body={"prompt": "x", "model": "a\n\x1b[31m\u2028b\u202e"},
            headers=headers,
        )
        for headers in (
            {"User-Agent": "Evil/1 \u00a0\u0085 forged=1"},
            *({name: evil.replace("\x7f", "")} for name in told),
        )
    ]

    assert {answer.status for answer in answers} == {404}
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert [len(records_of(attacked, request_id)) for request_id in ids] == [1] * len(ids)
    wait_until(
        lambda: set(ids) <= {line.get("request_id") for line in logged_by(attacked)}, what="every request is in the log"
    )
    lines = logged_by(attacked)
    assert [sum(line.get("request_id") == request_id for line in lines) for request_id in ids] == [1] * len(ids)
    log = attacked.instance / "log" / "app.log"
    # Other lines may come meanwhile, to one file before the other.
    wait_until(lambda: log.read_bytes().count(b"\n") == len(logged_by(attacked)), what="as many lines in both files")
    text = log.read_bytes()
    assert not set(text) & {0x1B, 0x0D, 0x7F}
    assert "\u2028" not in text.decode()


# --- two readings of one request --------------------------------------------------------------------------------------


@pytest.fixture(params=["nginx", "gunicorn"])
def server(request: pytest.FixtureRequest, fronted: RunningProxy, edge: PrivateNginx) -> Server:
    """Both ways to the same workers: through nginx with TLS, and nginx's own, past it."""
    if request.param == "gunicorn":
        return Server(edge.socket)
    return Server(("127.0.0.1", edge.port), fronted.client_tls())


def test_no_request_hides_in_another_and_no_answer_goes_to_somebody_else(
    server: Server, fronted: RunningProxy, echoing: EchoingProvider
) -> None:
    campaign = Campaign(server, b"Authorization: Bearer " + fronted.shared_api_key.encode() + b"\r\n")
    workers = fronted.worker_pids()
    echoing.clear()

    campaign.run(400, clients=30, share_of_attacks=0.5)

    assert campaign.second_answers == []
    assert campaign.mix_ups == []
    assert campaign.attacks == 200
    assert campaign.statuses["ordinary 200"] == campaign.ordinary == 180
    assert not [status for status in campaign.statuses if status.startswith(("5", "ordinary 5")) and status != "501"]
    assert fronted.worker_pids() == workers
    assert not [asked for asked in echoing.received if b"smuggled" in asked.body]


_FOREIGN_HOSTS = (
    b"evil.example", b"EVIL.example", b"localhost.evil.example", b"evil.localhost", b"xlocalhost", b"localhostx",
    b"localhost@evil.example", b"evil.example@localhost", b"localhost:80@evil.example", b"localhost evil.example",
    b"localhost, evil.example", b"localhost;evil.example", b"localhost/evil", b"localhost#evil.example", b"localhost?evil",
    b"localhost\\evil.example", b"localhost%00.evil.example", b"localhost%2eevil.example", b"localhost\x00evil.example",
    b"localhost\tevil.example", b"http://localhost", b"//localhost", b"[::1]", b"[localhost]", b"[::ffff:127.0.0.1]",
    b"127.0.0.2", b"0x7f000001", b"2130706433", b"0", b"", b" ", b".", b"..", b"*", b"_", b"-", b"localhost:evil",
    b"localhost:-1", b"localhost:99999999", b"localhost..", b"l\xf6calhost", b"xn--lcalhost-n4a", b"a" * 300,
)  # fmt: skip


@pytest.mark.parametrize(
    "lines",
    [
        *(b"Host: " + name + b"\r\n" for name in _FOREIGN_HOSTS),
        b"",
        b"Host: localhost\r\nHost: evil.example\r\n",
        b"Host: evil.example\r\nHost: localhost\r\n",
        b"Host: localhost\r\n Host: evil.example\r\n",
        b"Host : localhost\r\n",
        b"Host: evil.example\r\nX-Forwarded-Host: localhost\r\n",
        b"Host: evil.example\r\nForwarded: host=localhost\r\n",
    ],
    ids=lambda lines: repr(lines)[2:60],
)
def test_whoever_asks_another_host_is_sent_away(server: Server, fronted: RunningProxy, lines: bytes) -> None:
    head = b"GET /v1/models HTTP/1.1\r\n" + lines + b"Connection: close\r\n"
    request = head + b"Authorization: Bearer %b\r\n\r\n" % fronted.shared_api_key.encode()
    received = answers_to(server, request, first_within_s=ANSWER_S)

    assert received[:12] in {b"HTTP/1.1 421", b"HTTP/1.1 400"}, received
    assert count_of(received) == 1
    assert b"evil" not in received


@pytest.mark.parametrize("name", [b"localhost", b"LOCALHOST", b"localhost:443"])
def test_the_name_that_is_served_is_served_however_it_is_written(
    server: Server, fronted: RunningProxy, name: bytes
) -> None:
    head = b"GET /v1/models HTTP/1.1\r\nHost: " + name + b"\r\nConnection: close\r\n"
    request = head + b"Authorization: Bearer %b\r\n\r\n" % fronted.shared_api_key.encode()
    received = answers_to(server, request, first_within_s=ANSWER_S)

    assert received.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "in chunks"])
def test_a_body_over_the_limit_is_refused_and_not_kept(server: Server, fronted: RunningProxy, *, chunked: bool) -> None:
    key = fronted.shared_api_key.encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Authorization: Bearer " + key + b"\r\n"
    for pid in fronted.worker_pids():
        # A worker that has just come is still loading its modules.
        _answers_alone(fronted, pid, head + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
    for pid in fronted.worker_pids():
        Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")  # forget the highest mark of memory (proc(5))
    before_kib = {pid: _memory_kib(pid, "VmRSS") for pid in fronted.worker_pids()}
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"

    if chunked:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n" + piece * 256 + b"0\r\n\r\n"
    else:
        request = head + b"Content-Length: 104857600\r\n\r\n" + b" " * 65536
    received = answers_to(server, request, first_within_s=ANSWER_S)

    assert received.startswith(b"HTTP/1.1 413 "), received[:200]
    assert b'"request_too_large"' in received
    # Twice the limit of 8 MiB, as A08 has it.
    assert max(_memory_kib(pid, "VmHWM") - before_kib[pid] for pid in before_kib) <= 16 * 1024


def test_slow_clients_keep_nobody_waiting(fronted: RunningProxy, edge: PrivateNginx) -> None:
    key = fronted.shared_api_key
    begun = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with ExitStack() as opened:
        for number in range(300):
            port = edge.plain_port if number % 5 == 0 else edge.port
            line = opened.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            if port == edge.port and number % 5 != 1:  # every fifth never speaks TLS either
                tls = fronted.client_tls()
                assert tls is not None
                line = opened.enter_context(tls.wrap_socket(line, server_hostname="localhost"))
            line.sendall(b"" if number % 5 == 1 else begun[: len(begun) if number % 2 else 30])

        statuses = [ask(fronted, "POST", "/chat", key=key, body={"prompt": "x"}).status for _ in range(20)]

    assert statuses == [200] * 20


# --- signals ----------------------------------------------------------------------------------------------------------


def test_a_reload_under_load_costs_no_request(attacked: RunningProxy) -> None:
    key = attacked.shared_api_key
    before = attacked.worker_pids()
    over = threading.Event()
    results: Counter[object] = Counter()

    def ask_on_and_on(number: int) -> None:
        while not over.is_set():
            body = {"prompt": f"mark-r-{number}-end", "stream": number % 2 == 0}
            answer = ask(attacked, "POST", "/chat", key=key, body=body)
            whole = answer.status == 200 and (number % 2 or answer.body.endswith(b"data: [DONE]\n\n"))
            results[answer.status if whole else (answer.status, answer.body[-120:])] += 1

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask_on_and_on, number) for number in range(8)]
        try:
            for _ in range(3):
                known = attacked.worker_pids()
                os.kill(attacked.pid, signal.SIGHUP)
                wait_until(
                    lambda known=known: not set(known) & set(attacked.worker_pids()),  # type: ignore[misc]
                    what="every worker is a new one",
                    seconds=60,
                )
        finally:
            over.set()
        for one in running:
            one.result(60)

    assert not set(before) & set(attacked.worker_pids())
    assert set(results) == {200}, results


def test_a_request_that_arrived_before_the_stop_is_answered(direct: RunningProxy) -> None:
    key = direct.shared_api_key
    [worker] = direct.worker_pids()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    with connection_to(direct) as connection:
        connection.request("POST", "/chat", body=b'{"prompt":"first"}', headers=headers)
        connection.getresponse().read()
        os.kill(worker, signal.SIGSTOP)
        connection.request("POST", "/chat", body=b'{"prompt":"second"}', headers=headers)
        os.kill(worker, signal.SIGTERM)
        time.sleep(1.2)  # the worker looks around once a second: its turn and our bytes are due at the same moment
        os.kill(worker, signal.SIGCONT)
        answer = connection.getresponse()

    assert answer.status == 200
    wait_until(lambda: direct.worker_pids() not in {(worker,), ()}, what="another worker has come")


def test_a_killed_supervisor_leaves_nobody_behind_and_a_second_one_is_refused(
    echoing: EchoingProvider, short_folder: Path
) -> None:
    settings = {**ROOMY, "LLM_API_URL": echoing.base_url}
    with RunningProxy(short_folder / "beheaded", settings) as proxy:
        second = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), "serve"],
            env={**proxy.environment, "PORT": str(free_port())}, cwd=proxy.home, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        children = {child.pid for child in proxy.children()}

        os.kill(proxy.pid, signal.SIGKILL)

        assert second.returncode == 1
        assert "Traceback" not in second.stderr
        assert len(children) >= 3
        wait_until(
            lambda: not any(Path(f"/proc/{child}/fd").exists() and _is_alive(child) for child in children),
            what="writer, master and workers have ended",
            seconds=60,
        )


# --- what the tests ask -----------------------------------------------------------------------------------------------


def _chat(text: str, *, stream: bool = False) -> dict[str, object]:
    return {"stream": stream, "messages": [{"role": "user", "content": text}]}


def _request(
    proxy: RunningProxy, text: str, *, model: str = "test-model", stream: bool = False, close: bool = False
) -> bytes:
    body = json.dumps({**_chat(text, stream=stream), "model": model}).encode()
    head = f"POST {OPENAI} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {proxy.shared_api_key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + body


def _ends(proxy: RunningProxy) -> list[dict[str, object]]:
    return [line for line in audit_lines(proxy) if line.get("ty") == "llm.end"]


def _refusals(proxy: RunningProxy, code: str) -> list[dict[str, object]]:
    return [line for line in audit_lines(proxy) if line.get("ty") == "llm.refused" and line.get("code") == code]


def _comes_to_rest(proxy: RunningProxy) -> None:
    """No request is under way any more: every slot was given back."""
    wait_until(lambda: _under_way(proxy) == 0, what="no request is under way")


def _under_way(proxy: RunningProxy) -> object:
    counts = ask(proxy, "GET", "/security/status").json["security_metrics"]
    assert isinstance(counts, dict)
    return counts["active_clients"]


def _every_exchange_ends_once(proxy: RunningProxy) -> None:
    # What several workers have under way is counted a moment late: there may be one more to come.
    with suppress(ServerFailed):
        wait_until(lambda: _differing_exchanges(proxy) == [], what="every exchange has ended")
    assert _differing_exchanges(proxy) == []
    assert proxy.command("audit", "verify", check=False).returncode == 0


def _differing_exchanges(proxy: RunningProxy) -> list[str]:
    """Those that have another number of ends than of starts."""
    lines = audit_lines(proxy)
    ends = Counter(str(line["sid"]) for line in lines if line.get("ty") == "llm.end")
    starts = Counter(str(line["id"]) for line in lines if line.get("ty") == "llm.start")
    return [start for start in {**starts, **ends} if starts[start] != ends[start]]


def _answers_alone(proxy: RunningProxy, worker: int, request: bytes) -> None:
    """That worker answers it: the others stand still meanwhile, and take no connection."""
    others = [pid for pid in proxy.worker_pids() if pid != worker]
    try:
        for other in others:
            os.kill(other, signal.SIGSTOP)
            wait_until(lambda other=other: _state(other) == "T", what="it stands still")  # type: ignore[misc]
        received = answers_to(Server(proxy.socket), request, first_within_s=ANSWER_S)
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)
    assert received.startswith(b"HTTP/1.1 "), received


def _descriptors(proxy: RunningProxy) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in proxy.worker_pids())


def _memory_kib(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(name)


def _is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return _state(pid) != "Z"
    return False


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]


def _settle() -> None:
    """Long enough for the bytes to arrive; nothing depends on it but which stage the client leaves at."""
    time.sleep(0.1)
