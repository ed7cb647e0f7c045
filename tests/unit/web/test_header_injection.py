"""20,000 hostile values: no answer's head and no request's head to a provider ever holds a line that we did not write."""

from __future__ import annotations

import re
import socket

import orjson
import pytest
from gunicorn.config import Config

from secure_llm_proxy.foundation.errors import RateLimited, UpstreamFailed
from secure_llm_proxy.foundation.loop_socket import LoopSocket
from secure_llm_proxy.gateway import ReplyFacts
from secure_llm_proxy.server.answer_writer import AnswerWriter, Preambles
from secure_llm_proxy.upstream.http1 import parse_head, request_head
from secure_llm_proxy.web.answers import refused
from secure_llm_proxy.web.headers import reply_headers
from tests.support.hostile_values import hostile_values

VALUES = 20_000
OURS = {
    "Server", "Date", "Connection", "X-Request-Id", "X-SLP-Overhead-Ms", "X-SLP-Provider", "X-SLP-Model", "X-SLP-Audit-Id",
    "X-Correlation-ID", "Content-Type", "Content-Length", "Retry-After", "X-SLP-Dropped-Params",
}  # fmt: skip
ANSWER_LINE = re.compile(rb"[A-Za-z-]+: [!-~](?:[ -~]*[!-~])?")
REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: (?:[!-~](?:[ -~]*[!-~])?)?")


def facts(value: str) -> ReplyFacts:
    """Whatever a client or a provider chose is `value`."""
    ours: dict[str, object] = {"exchange_id": "exc_1", "decision": None, "overhead_ms": 0.5, "dropped": (value, "user")}
    return ReplyFacts(**{name: ours.get(name, value) for name in ReplyFacts._fields})  # type: ignore[arg-type]


def test_whatever_clients_and_providers_choose_an_answer_s_head_has_our_lines_only() -> None:
    server, client = socket.socketpair()
    client.settimeout(20)
    loop_socket = LoopSocket(server)
    writer = AnswerWriter(loop_socket, Config(), Preambles(), 20.0)
    try:
        for number, value in enumerate(hostile_values(VALUES, "answers")):
            kind = RateLimited if number % 2 else UpstreamFailed
            text = value.encode("utf-8", "replace").decode()
            answer = refused(kind(text, param=text, retry_after_s=number % 90), reply_headers(facts(value)))
            assert isinstance(answer.body, bytes)
            writer.begin("POST", closes=False)
            writer.start_response(answer.status, [*answer.headers, ("Content-Length", str(len(answer.body)))])
            writer.send([answer.body])

            head, _, body = _received(client).partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")[1:]
            assert all(ANSWER_LINE.fullmatch(line) for line in lines), value
            assert {line.partition(b":")[0].decode() for line in lines} <= OURS, value
            assert orjson.loads(body)["error"]["message"] == text
    finally:
        loop_socket.close()
        client.close()


def test_no_value_makes_a_line_of_its_own_in_a_request_to_a_provider() -> None:
    refused_values = 0
    for number, value in enumerate(hostile_values(VALUES, "requests")):
        method, target, name, held = [
            ("POST", "/v1/x", "X-Y", value),
            ("POST", value, "X-Y", "z"),
            ("POST", "/v1/x", value, "z"),
        ][number % 3]
        try:
            head = request_head(method, target, {"Host": "a.example", name: held})
        except ValueError:
            refused_values += 1
            continue

        lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        assert len(lines) == 3, value
        assert lines[0] == f"{method} {target} HTTP/1.1".encode()
        assert lines[2] == f"{name}: {held}".encode()
        assert all(REQUEST_LINE.fullmatch(line) for line in lines[1:]), value
    assert refused_values > VALUES // 2


def test_whatever_a_provider_says_in_its_head_none_of_it_becomes_a_line_of_ours() -> None:
    for value in hostile_values(VALUES, "provider"):
        block = f"HTTP/1.1 429 Busy\r\nRetry-After: {value}\r\nX-Request-Id: {value}".encode("utf-8", "replace")
        try:
            head = parse_head(block)
        except ValueError:
            continue
        assert not re.search(r"[\x00\r\n]", head.headers.get("retry-after", "")), value


@pytest.mark.parametrize("name", ["", "a b", "a:", "ä", "a\r\nb"])
def test_a_header_name_that_is_none_is_a_defect(name: str) -> None:
    with pytest.raises(ValueError, match="header"):
        request_head("GET", "/", {name: "x"})


def _received(client: socket.socket) -> bytes:
    received = b""
    while True:
        received += client.recv(65_536)
        head, found, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        if found and length is not None and len(body) >= int(length[1]):
            return received
