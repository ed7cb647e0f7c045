"""The site in deploy/nginx, started for real in front of a small upstream on a unix socket."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import cast

import pytest

from scripts.lib.render_nginx import requests_at_once
from secure_llm_proxy.foundation.errors import ErrorCode, ProxyError
from secure_llm_proxy.web.errors import anthropic_error_body
from secure_llm_proxy.web.headers import SECURITY_HEADERS
from tests.support.certificates import Certificate
from tests.support.check_nginx_site import check_by_gixy
from tests.support.nginx import (
    TEMPLATES,
    Flood,
    PrivateNginx,
    check_configuration,
    installed_nginx,
    newest_nginx,
    write_configuration,
)
from tests.support.ports import free_port
from tests.support.programs import wait_until

PATIENCE_S = 30.0


class Upstream(ThreadingUnixStreamServer):
    """Stands where gunicorn stands: tells which headers it was given, and streams half an answer until it is let go on."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.may_finish = threading.Event()
        self.asked = threading.Event()
        self.left = threading.Event()
        super().__init__(str(path), Echo)


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v1/stream":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._chunk(b"data: first\n\n")
            cast("Upstream", self.server).may_finish.wait(PATIENCE_S)
            self._chunk(b"data: second\n\n")
            self._chunk(b"")
            return
        if self.path == "/v1/never":
            self._wait_for_the_end()
            return
        self._answer(200, json.dumps([self.path, self.headers.items()]).encode())

    def _wait_for_the_end(self) -> None:
        server = cast("Upstream", self.server)
        server.asked.set()
        self.connection.settimeout(PATIENCE_S)
        if self.connection.recv(1) == b"":
            server.left.set()
        self.close_connection = True

    def do_POST(self) -> None:
        size = len(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        if self.path == "/v1/never":
            self._wait_for_the_end()
            return
        self._answer(418, b'{"its":"own","bytes":%d}' % size)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - named so by its base
        """Nothing: what went through is seen in the answers."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Request-Id", "exc_01")
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


@pytest.fixture(scope="module")
def upstream(short_folder: Path) -> Iterator[Upstream]:
    with Upstream(short_folder / "echo.sock") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.may_finish.set()
        server.shutdown()
        thread.join(PATIENCE_S)


@pytest.fixture(scope="module", params=[installed_nginx, newest_nginx], ids=["installed", "newest"])
def site(
    request: pytest.FixtureRequest, upstream: Upstream, certificate: Certificate, short_folder: Path
) -> Iterator[PrivateNginx]:
    folder = short_folder / f"site-{request.param.__name__}"
    socket_path = Path(str(upstream.server_address))
    with PrivateNginx(folder, certificate, socket=socket_path, program=request.param()) as nginx:
        yield nginx


def exchange(site: PrivateNginx, raw: bytes, *, tls: bool = True) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are and read the answer to them."""
    with socket.create_connection(("127.0.0.1", site.port), PATIENCE_S) as plain:
        wrapped = context_of(site).wrap_socket(plain, server_hostname="localhost") if tls else plain
        with wrapped as connection:
            # nginx may have refused and hung up before it was told everything; its answer is there to be read all the same.
            with suppress(OSError):
                connection.sendall(raw)
            with closing(http.client.HTTPResponse(connection)) as answer:
                answer.begin()
                return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def context_of(site: PrivateNginx) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(site.certificate.authority))


def get(site: PrivateNginx, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return exchange(site, "\r\n".join([*lines, "", ""]).encode())


REFUSED = {
    "no HTTP at all": (b"GARBAGE\r\n\r\n", 400, "malformed_request"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_request"),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400, "malformed_request"),
    "two lengths": (
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        400,
        "malformed_request",
    ),
    "length and chunks": (
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "unknown transfer encoding": (
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        400,
        "malformed_request",
    ),
    "broken chunk": (
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
        "malformed_request",
    ),
    "HTTP of tomorrow": (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400, "malformed_request"),
    "null byte in the path": (b"GET /%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "malformed_request"),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "method_not_allowed"),
    "body announced too large": (
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9437185\r\n\r\n",
        413,
        "request_too_large",
    ),
    "chunk announced too large": (
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n900001\r\na",
        413,
        "request_too_large",
    ),
    "long request line": (b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "malformed_request"),
    "large header": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"a" * 8200 + b"\r\n\r\n",
        431,
        "malformed_request",
    ),
    "many headers": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n"
        + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 4000) for n in range(12))
        + b"\r\n",
        431,
        "malformed_request",
    ),
    "host with a port that is none": (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost:80@evil.example\r\n\r\n",
        400,
        "malformed_request",
    ),
    "foreign host name": (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421, "unknown_host"),
    "internal path from outside": (b"GET /_refused/400 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "not_found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nginx_refuses_itself_has_the_error_shape_of_the_product(site: PrivateNginx, case: str) -> None:
    raw, expected_status, expected_code = REFUSED[case]

    status, headers, body = exchange(site, raw)

    assert (status, headers["content-type"]) == (expected_status, "application/json")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == expected_code
    assert headers["cache-control"] == "no-store"
    assert_browser_is_told_what_it_may_not(headers)
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert headers["strict-transport-security"] == "max-age=63072000; includeSubDomains"
    assert headers["server"] == "nginx"


@pytest.mark.parametrize(
    ("path", "version", "is_anthropics"),
    [
        ("/v1/messages", "", True),
        ("/v1/messages/count_tokens?beta=true", "", True),
        ("/v1/messages_of_mine", "2023-06-01", False),
        ("/v1/models", "2023-06-01", True),
        ("/v1/models/claude", "2023-06-01", True),
        ("/v1/models", "", False),
        ("/v1/chat/completions", "2023-06-01", False),
    ],
)
def test_anthropics_clients_are_refused_in_anthropics_shape(
    site: PrivateNginx, path: str, version: str, *, is_anthropics: bool
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9437185\r\n"

    status, headers, body = exchange(site, f"{head}anthropic-version: {version}\r\n\r\n".encode())

    told = json.loads(body)
    assert (status, headers["content-type"], "type" in told) == (413, "application/json", is_anthropics)
    if is_anthropics:
        assert told["request_id"] == headers["request-id"] == headers["x-request-id"]
        error = told["error"]
        assert (told["type"], error["type"], error["code"]) == ("error", "request_too_large", "request_too_large")
    else:
        assert told["error"]["type"] == "invalid_request_error"
        assert "request-id" not in headers


def assert_browser_is_told_what_it_may_not(headers: dict[str, str]) -> None:
    ours = {name.lower(): value for name, value in SECURITY_HEADERS}
    for name in ("x-content-type-options", "content-security-policy", "referrer-policy"):
        assert headers[name] == ours[name]


def test_plain_http_on_the_tls_port_is_told_so(site: PrivateNginx) -> None:
    status, headers, body = exchange(site, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", tls=False)

    assert status == 400
    assert "HTTPS" in json.loads(body)["error"]["message"]
    assert "strict-transport-security" not in headers


def test_plain_http_is_sent_to_the_configured_url_whatever_host_it_names(site: PrivateNginx) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.plain_port, timeout=PATIENCE_S)
    connection.request("POST", "/chat?a=b", b"{}", {"Host": "evil.example"})

    answer = connection.getresponse()

    assert answer.status == 308
    assert answer.getheader("Location") == f"{site.base_url}/chat?a=b"
    assert_browser_is_told_what_it_may_not({name.lower(): value for name, value in answer.getheaders()})
    connection.close()


def test_an_absent_worker_is_a_502_in_shape_with_a_time_to_retry(certificate: Certificate, short_folder: Path) -> None:
    with PrivateNginx(short_folder / "alone", certificate, socket=short_folder / "nobody.sock") as alone:
        status, headers, body = get(alone, "/chat")

    assert status == 502
    assert headers["retry-after"] == "1"
    assert json.loads(body)["error"]["type"] == "service_unavailable"


def test_a_flood_is_a_429_in_shape_with_a_time_to_retry(
    upstream: Upstream, certificate: Certificate, short_folder: Path
) -> None:
    socket_path = Path(str(upstream.server_address))
    folder = short_folder / "flooded"
    with PrivateNginx(folder, certificate, socket=socket_path, flood=Flood(requests_per_second=1, burst=3)) as flooded:
        answers = [get(flooded, "/nothing") for _ in range(50)]

    passed = [status for status, _, _ in answers if status == 200]
    refused = [(headers, body) for status, headers, body in answers if status == 429]
    assert len(passed) >= 4
    assert len(passed) + len(refused) == 50
    headers, body = refused[0]
    assert headers["retry-after"] == "1"
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("program", [installed_nginx, newest_nginx], ids=["installed", "newest"])
def test_more_requests_than_nginx_has_connections_for_are_a_503_in_shape_and_streams_go_on(
    upstream: Upstream, certificate: Certificate, short_folder: Path, program: Callable[[], str]
) -> None:
    folder, connections = short_folder / f"crowded-{program.__name__}", 32
    served = requests_at_once(connections)
    upstream.may_finish.clear()
    with ExitStack() as held:
        socket_path = Path(str(upstream.server_address))
        crowded = PrivateNginx(folder, certificate, socket=socket_path, program=program(), connections=connections)
        held.enter_context(crowded)
        trusting = context_of(crowded)
        streams = [held.enter_context(begun(crowded, "/v1/stream", trusting)) for _ in range(served)]
        events = [stream.readline() for stream in streams]

        # More than nginx has connections for; each stays open until nginx wants its place.
        turned_away = [held.enter_context(begun(crowded, "/v1/messages", trusting)) for _ in range(2 * connections)]
        told = [(each.status, each.getheader("Retry-After"), json.loads(each.read())) for each in turned_away]
        upstream.may_finish.set()
        rest = [stream.read() for stream in streams]
        again = get(crowded, "/v1/models")[0]

    assert events == [b"data: first\n"] * served
    assert {(status, retry_after) for status, retry_after, _ in told} == {(503, "1")}
    assert {body["error"]["code"] for _, _, body in told} == {"service_unavailable"}
    assert {body["error"]["type"] for _, _, body in told} == {"api_error"}
    assert rest == [b"\ndata: second\n\n"] * served
    assert again == 200


def test_slow_clients_that_hold_nginxs_connections_leave_one_to_say_503_with(
    upstream: Upstream, certificate: Certificate, short_folder: Path
) -> None:
    connections = 32
    upstream.may_finish.clear()
    with ExitStack() as held:
        socket_path = Path(str(upstream.server_address))
        site = PrivateNginx(short_folder / "slow", certificate, socket=socket_path, connections=connections)
        held.enter_context(site)
        trusting = context_of(site)
        for _ in range(connections // 2):
            plain = held.enter_context(socket.create_connection(("127.0.0.1", site.port), PATIENCE_S))
            slow = held.enter_context(trusting.wrap_socket(plain, server_hostname="localhost"))
            slow.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: lo")

        answers = [
            held.enter_context(begun(site, "/v1/stream", trusting)) for _ in range(requests_at_once(connections))
        ]
        statuses = [answer.status for answer in answers]
        upstream.may_finish.set()

    served = statuses.count(200)
    assert statuses == [200] * served + [503] * (len(statuses) - served)
    assert 0 < served < len(statuses)


@contextmanager
def begun(site: PrivateNginx, path: str, context: ssl.SSLContext) -> Iterator[http.client.HTTPResponse]:
    """The head of the answer to a GET; the connection stays open."""
    connection = http.client.HTTPSConnection("localhost", site.port, timeout=PATIENCE_S, context=context)
    with closing(connection):
        connection.request("GET", path)
        yield connection.getresponse()


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("POST", b"{}")])
def test_a_client_that_leaves_is_seen_by_the_worker(
    site: PrivateNginx, upstream: Upstream, method: str, body: bytes | None
) -> None:
    upstream.asked.clear()
    upstream.left.clear()
    connection = http.client.HTTPSConnection("localhost", site.port, timeout=PATIENCE_S, context=context_of(site))
    connection.request(method, "/v1/never", body)
    assert upstream.asked.wait(PATIENCE_S)

    connection.close()

    assert upstream.left.wait(PATIENCE_S)


def test_the_products_own_answers_pass_untouched(site: PrivateNginx) -> None:
    status, headers, body = exchange(
        site, b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9437184\r\n\r\n" + b"a" * 9437184
    )

    assert (status, body) == (418, b'{"its":"own","bytes":9437184}')
    assert headers["x-request-id"] == "exc_01"


FORGED = {
    "X-Forwarded-For": "10.9.9.9",
    "X-Real-IP": "10.9.9.9",
    "Forwarded": "for=10.9.9.9",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "gopher",
    "X-Forwarded-Port": "1",
    "X-Client-IP": "10.9.9.9",
    "True-Client-IP": "10.9.9.9",
    "CF-Connecting-IP": "10.9.9.9",
    "X-Original-URL": "/metrics",
    "X-Edge-Request-Id": "mine",
    "Proxy": "http://10.9.9.9",
    "X_Forwarded_For": "10.9.9.9",
    "Remote_Addr": "10.9.9.9",
}


def test_headers_that_tell_where_a_request_came_from_are_overwritten(site: PrivateNginx) -> None:
    _, _, body = get(site, "/v1/models", **FORGED, **{"X-Request-Id": "their-own", "Authorization": "Bearer k"})

    _, seen = json.loads(body)
    arrived = {name.lower(): value for name, value in seen}
    assert arrived.pop("x-edge-request-id") != "mine"
    assert arrived == {
        "host": "localhost",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "https",
        "x-request-id": "their-own",
        "authorization": "Bearer k",
    }


def test_an_event_of_a_stream_arrives_before_the_next_one_is_sent(site: PrivateNginx, upstream: Upstream) -> None:
    upstream.may_finish.clear()
    connection = http.client.HTTPSConnection("localhost", site.port, timeout=PATIENCE_S, context=context_of(site))
    connection.request("GET", "/v1/stream")
    answer = connection.getresponse()

    first = answer.readline()
    upstream.may_finish.set()
    rest = answer.read()

    assert first == b"data: first\n"
    assert rest == b"\ndata: second\n\n"
    connection.close()


# --- HTTP/2 (RFC 9113), framed by hand, because no client library sends what is forbidden -------------------------------

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_PROTOCOL_ERROR = (1).to_bytes(4)


def ask_over_http_2(
    site: PrivateNginx, *headers: tuple[bytes, bytes], target: bytes = b"/v1/models"
) -> tuple[str, bytes]:
    """`answered` with the body, or `reset` with the code, for one GET with these headers."""
    context = context_of(site)
    context.set_alpn_protocols(["h2"])
    asked = [
        (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", target), *headers,
    ]  # fmt: skip
    # Literal fields without indexing and without Huffman's code (RFC 7541 §6.2.2).
    block = b"".join(b"\x00%c%b%c%b" % (len(name), name, len(value), value) for name, value in asked)
    with (
        socket.create_connection(("127.0.0.1", site.port), PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        connection.sendall(_frame(_HEADERS, _END_STREAM | _END_HEADERS, 1, block))
        received = connection.makefile("rb")
        body = b""
        while True:
            head = received.read(9)
            payload = received.read(int.from_bytes(head[:3]))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
            assert kind != _GOAWAY, payload
            if stream != 1:
                continue
            if kind == _RST_STREAM:
                return "reset", payload
            if kind == _DATA:
                body += payload
            if flags & _END_STREAM:
                return "answered", body


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def test_a_plain_request_over_http_2_is_passed_on(site: PrivateNginx) -> None:
    how, body = ask_over_http_2(site, (b"te", b"trailers"), (b"authorization", b"Bearer k"))

    assert how == "answered"
    path, seen = json.loads(body)
    assert path == "/v1/models"
    assert ["Authorization", "Bearer k"] in [[name.title(), value] for name, value in seen]


def test_a_blank_in_the_path_is_passed_on_over_http_2_and_hides_nothing(site: PrivateNginx) -> None:
    how, body = ask_over_http_2(site, target=b"/v1/models/a%20b%20/_refused/400")
    _, refused = ask_over_http_2(site, (b"connection", b"close"), target=b"/v1/models/a%20/_refused/400")

    assert how == "answered"
    assert json.loads(body)[0] == "/v1/models/a%20b%20/_refused/400"
    assert json.loads(refused)["error"]["code"] == "malformed_request"


@pytest.mark.parametrize(
    "header",
    [
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
        (b"connection", b"authorization"),
        (b"keep-alive", b"1"),
        (b"proxy-connection", b"keep-alive"),
        (b"upgrade", b"websocket"),
    ],
    ids=lambda header: b" ".join(header).decode(),
)
def test_headers_about_the_connection_are_refused_over_http_2(site: PrivateNginx, header: tuple[bytes, bytes]) -> None:
    how, body = ask_over_http_2(site, header)

    assert how == "answered"
    assert json.loads(body)["error"]["code"] == "malformed_request"


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"a\r\nx-forwarded-for: 10.9.9.9"),
        (b"x-a", b"a\nb"),
        (b"x-a", b"a\rb"),
        (b"x-a", b"a\x00b"),
        (b"x-a\r\nx-b", b"c"),
        (b"x a", b"c"),
        (b"X-A", b"c"),
    ],
    ids=repr,
)
def test_line_ends_and_their_like_in_headers_are_refused_over_http_2(
    site: PrivateNginx, header: tuple[bytes, bytes]
) -> None:
    how, told = ask_over_http_2(site, header)

    # nginx 1.22 resets the stream, the newest one answers.
    assert (how, told) == ("reset", _PROTOCOL_ERROR) or json.loads(told)["error"]["code"] == "malformed_request"


def test_a_refused_stream_is_a_line_of_json_in_the_access_log_too(site: PrivateNginx) -> None:
    ask_over_http_2(site, (b"user-agent", b"reset-me"), (b"x-a", b"a\nb"))

    wait_until(lambda: "reset-me" in site.access_log.read_text("utf-8"), what="the request is logged")
    [line] = [line for line in site.access_log.read_text("utf-8").splitlines() if "reset-me" in line]
    assert json.loads(line)["status"] in {0, 400}  # 0 where the stream was reset


@pytest.mark.parametrize(
    "header", [(b"content-length", b"5"), (b":path", b"/metrics"), (b"host", b"evil.example")], ids=repr
)
def test_what_could_be_read_in_two_ways_is_refused_over_http_2(site: PrivateNginx, header: tuple[bytes, bytes]) -> None:
    how, body = ask_over_http_2(site, header)

    assert how == "answered"
    assert json.loads(body)["error"]["code"] == "malformed_request"


def test_http_2_is_offered_and_old_tls_is_not(site: PrivateNginx) -> None:
    modern, old = context_of(site), context_of(site)
    modern.set_alpn_protocols(["h2"])
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("AES128-SHA")

    with (
        socket.create_connection(("127.0.0.1", site.port), PATIENCE_S) as plain,
        modern.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        chosen = (connection.version(), connection.selected_alpn_protocol())

    assert chosen == ("TLSv1.3", "h2")
    with socket.create_connection(("127.0.0.1", site.port), PATIENCE_S) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize("name", ["localhost", "elsewhere.example"])
@pytest.mark.parametrize("suite", ["AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-SHA"])
def test_no_suite_without_forward_secrecy_or_authenticated_encryption_is_taken_under_any_name(
    site: PrivateNginx, name: str, suite: str
) -> None:
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
    asking.maximum_version = ssl.TLSVersion.TLSv1_2
    sound = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"

    asking.set_ciphers(sound)
    with (
        socket.create_connection(("127.0.0.1", site.port), PATIENCE_S) as plain,
        asking.wrap_socket(plain, server_hostname=name) as connection,
    ):
        chosen = connection.cipher()
    asking.set_ciphers(suite)

    assert chosen is not None
    assert chosen[0] in sound
    with socket.create_connection(("127.0.0.1", site.port), PATIENCE_S) as plain, pytest.raises(ssl.SSLError):
        asking.wrap_socket(plain, server_hostname=name)


def test_the_access_log_names_both_ids_and_neither_queries_nor_health_checks(site: PrivateNginx) -> None:
    get(site, "/health")
    get(site, "/health/live")
    agent = f'quote " and \\ and \x07 {site.port}'
    get(site, "/v1/models?api_key=slp_live_in_the_query#slp_live_in_the_fragment", **{"User-Agent": agent})

    # nginx writes its line when the answer is out.
    wait_until(lambda: agent in [line["agent"] for line in logged_by(site)], what="the request is logged")
    lines = logged_by(site)
    assert "in_the_" not in site.access_log.read_text("utf-8")
    assert not [line for line in lines if str(line["path"]).startswith("/health") and line["status"] == 200]
    [logged] = [line for line in lines if line["agent"] == agent]
    seen = (logged["exchange"], logged["status"], logged["client"], logged["path"], logged["worker_status"])
    assert seen == ("exc_01", 200, "127.0.0.1", "/v1/models", "200")
    assert int(str(logged["worker_bytes"])) > 0
    assert abs(float(str(logged["unix"])) - datetime.fromisoformat(str(logged["time"])).timestamp()) <= 1
    assert re.fullmatch("[0-9a-f]{32}", str(logged["edge_id"]))


def test_what_nginx_refuses_is_logged_under_the_path_that_was_asked_for_and_the_id_that_its_client_was_told(
    site: PrivateNginx,
) -> None:
    raw = b"POST /v1/asked%20for HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9437185\r\n\r\n"
    _, headers, _ = exchange(site, raw)

    def lines() -> list[dict[str, object]]:
        return [line for line in logged_by(site) if line["edge_id"] == headers["x-request-id"]]

    wait_until(lambda: bool(lines()), what="the request is logged")
    [line] = lines()
    assert (line["path"], line["status"], line["exchange"], line["worker_bytes"]) == ("/v1/asked%20for", 413, "", "")


def logged_by(site: PrivateNginx) -> list[dict[str, object]]:
    """Every whole line of the access log."""
    text = site.access_log.read_text("utf-8")
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


@pytest.mark.parametrize("program", [installed_nginx, newest_nginx], ids=["installed", "newest"])
def test_the_configuration_is_accepted_without_a_warning_and_without_a_finding(
    certificate: Certificate, short_folder: Path, program: Callable[[], str]
) -> None:
    main = write_configuration(
        short_folder / f"checked-{program.__name__}",
        certificate,
        socket=short_folder / "nobody.sock",
        port=free_port(),
        plain_port=free_port(),
        program=program(),
    )

    said = check_configuration(main, program())

    assert "test is successful" in said
    check_by_gixy(main)


def test_the_proof_for_a_certificate_is_read_over_plain_http_and_nothing_beside_it(site: PrivateNginx) -> None:
    folder = site.directory / "acme" / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text("token.thumbprint", "ascii")
    (site.directory / "acme" / "secret").write_text("not for you", "ascii")

    asked = {
        path: exchange_over_plain_http(site, path)
        for path in ("token", "absent", "", "../../secret", "%2e%2e/%2e%2e/secret", "..%2f..%2fsecret")
    }

    assert asked.pop("token") == (200, b"token.thumbprint")
    assert {status for status, _ in asked.values()} <= {308, 403, 404}
    assert not [body for _, body in asked.values() if b"not for you" in body]


def exchange_over_plain_http(site: PrivateNginx, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", site.plain_port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", f"/.well-known/acme-challenge/{path}", headers={"Host": "localhost"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_every_refusal_has_a_code_that_clients_know_and_says_the_same_in_both_shapes() -> None:
    text = (TEMPLATES / "refusals.conf").read_text("utf-8")

    told = re.findall(r"location = /_refused/(\w+)/(\d+) { return (\d+) '(.*)'; }", text)
    openai = {name: (status, json.loads(body)["error"]) for shape, name, status, body in told if shape == "openai"}
    anthropic = {name: (status, json.loads(body)) for shape, name, status, body in told if shape == "anthropic"}
    pages = set(re.findall(r"error_page [^;]*?/_refused/\$slp_shape/(\d+);", text)) | {"500", "502"}

    assert pages == openai.keys() == anthropic.keys()
    for name, (status, error) in openai.items():
        assert list(error) == ["message", "type", "param", "code"]
        assert error["code"] in {code.value for code in ErrorCode}
        said = ProxyError(error["message"], code=ErrorCode(error["code"]))
        said.status = int(status)
        assert anthropic[name] == (status, json.loads(anthropic_error_body(said, "$request_id")))
