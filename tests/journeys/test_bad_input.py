"""Whatever a client sends: a 4xx in OpenAI's shape with a stable code, a record, and never a trace of our inside."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.support.clients import ask, records_of, send_raw
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy

LIMIT = 8 * 1024 * 1024
CHAT = "/v1/chat/completions"


def _nested(levels: int) -> bytes:
    inner = levels - 1  # the body's own object is the first level
    return b'{"messages":[{"role":"user","content":"x"}],"deep":' + b"[" * inner + b"]" * inner + b"}"


BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "empty_body"),
    "whitespace": (b" \n\t ", 400, "empty_body"),
    "not json": (b"{nope", 400, "invalid_json"),
    "an array": (b"[]", 400, "invalid_type"),
    "a string": (b'"hello"', 400, "invalid_type"),
    "null": (b"null", 400, "invalid_type"),
    "65 levels": (_nested(65), 400, "nested_too_deeply"),
    "100,000 levels": (_nested(100_000), 400, "nested_too_deeply"),
    "duplicate keys": (b'{"prompt":"a","prompt":"b","messages":[]}', 400, "duplicate_key"),
    "escaped duplicate keys": (b'{"m":1,"\\u006d":2}', 400, "duplicate_key"),
    "NaN": (b'{"temperature":NaN}', 400, "invalid_number"),
    "Infinity": (b'{"temperature":-Infinity}', 400, "invalid_number"),
    "1e999": (b'{"temperature":1e999}', 400, "invalid_number"),
    "huge integer": (b'{"seed":' + b"9" * 5000 + b"}", 400, "invalid_number"),
    "lone surrogate": (b'{"messages":[{"role":"user","content":"\\ud800"}]}', 400, "invalid_encoding"),
    "bad UTF-8": (b'{"messages":[{"role":"user","content":"\xff"}]}', 400, "invalid_encoding"),
    "byte order mark": (b"\xef\xbb\xbf{}", 400, "invalid_encoding"),
    "no messages": (b'{"model":"test-model"}', 400, "missing_parameter"),
    "messages of the wrong type": (b'{"messages":"hi"}', 400, "invalid_type"),
    "a message without role": (b'{"messages":[{"content":"hi"}]}', 400, "missing_parameter"),
    "stream of the wrong type": (b'{"messages":[{"role":"user","content":"x"}],"stream":"yes"}', 400, "invalid_type"),
    "max_tokens of zero": (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":0}', 400, "invalid_value"),
    "unknown model": (b'{"model":"nope","messages":[{"role":"user","content":"x"}]}', 404, "model_not_found"),
}


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case.replace(" ", "-"))
def test_a_bad_body_is_refused_recorded_and_never_sent(
    proxy: RunningProxy, provider: Provider, api_key: str, case: str
) -> None:
    body, status, code = BODIES[case]
    provider.clear()

    answer = ask(proxy, "POST", CHAT, key=api_key, body=body)

    assert (answer.status, answer.error_code) == (status, code)
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.error["type"] == "invalid_request_error"
    assert b"Traceback" not in answer.body
    assert provider.chats == []
    [record] = records_of(proxy, answer.headers["x-request-id"])
    assert record["ty"] == "llm.refused"
    assert record["code"] == code


def test_64_levels_pass(proxy: RunningProxy, api_key: str) -> None:
    answer = ask(proxy, "POST", CHAT, key=api_key, body=_nested(64))

    assert answer.status == 200


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413)])
def test_the_body_limit_holds_to_the_byte(proxy: RunningProxy, api_key: str, size: int, status: int) -> None:
    head, tail = b'{"messages":[{"role":"user","content":"', b'"}]}'
    body = head + b"a" * (size - len(head) - len(tail)) + tail

    answer = ask(proxy, "POST", CHAT, key=api_key, body=body)

    assert answer.status == status
    if status == 413:
        assert answer.error_code == "request_too_large"


def test_a_prompt_one_character_too_long_is_refused(proxy: RunningProxy, api_key: str) -> None:
    fits = ask(proxy, "POST", "/chat", key=api_key, body={"prompt": "ä" * 10_000})
    too_long = ask(proxy, "POST", "/chat", key=api_key, body={"prompt": "ä" * 10_001})

    assert fits.status == 200
    assert (too_long.status, too_long.error_code) == (400, "prompt_too_long")


def test_compressed_and_foreign_bodies_are_refused(proxy: RunningProxy, api_key: str) -> None:
    body = json.dumps({"prompt": "hi"}).encode()

    compressed = ask(
        proxy, "POST", "/chat", key=api_key, body=gzip.compress(body), headers={"Content-Encoding": "gzip"}
    )
    form = ask(
        proxy,
        "POST",
        "/chat",
        key=api_key,
        body=b"prompt=hi",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )

    assert (compressed.status, compressed.error_code) == (415, "unsupported_content_encoding")
    assert (form.status, form.error_code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Bearer "}, "missing_api_key"),
        ({"Authorization": "Bearer nonsense"}, "invalid_api_key"),
        ({"Authorization": "Basic dXNlcjpwYXNz"}, "invalid_api_key"),
        ({"X-API-Key": "slp_live_00000000_" + "0" * 38}, "invalid_api_key"),
        ({"Cookie": "session=1"}, "missing_api_key"),
        ({"Authorization": "Bearer \u00ff\u00fe"}, "invalid_api_key"),
    ],
)
def test_a_bad_credential_is_401_and_recorded(proxy: RunningProxy, headers: dict[str, str], code: str) -> None:
    answer = ask(proxy, "POST", "/chat", body={"prompt": "hi"}, headers=headers)

    assert (answer.status, answer.error_code) == (401, code)
    assert answer.error["type"] == "authentication_error"
    [record] = records_of(proxy, answer.headers["x-request-id"])
    assert record["ev"] == "AUTHENTICATION_FAILED"


def test_a_revoked_key_has_its_own_code(proxy: RunningProxy) -> None:
    user = proxy.create_user()
    revoked = proxy.create_api_key(user)
    proxy.command("revoke-api-key", "--key-id", revoked.split("_")[2], "--yes")

    answer = ask(proxy, "POST", "/chat", key=revoked, body={"prompt": "hi"})

    assert (answer.status, answer.error_code) == (401, "api_key_revoked")


def test_a_key_in_the_query_string_is_refused_even_beside_a_good_header(proxy: RunningProxy, api_key: str) -> None:
    leaked = proxy.create_api_key()

    answer = ask(proxy, "POST", f"/chat?api_key={leaked}", key=api_key, body={"prompt": "hi"})

    assert (answer.status, answer.error_code) == (401, "api_key_in_url")
    [record] = records_of(proxy, answer.headers["x-request-id"])
    assert record["ev"] == "SECURITY_EVENT"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/chat", 405, "method_not_allowed"),
        ("OPTIONS", "/chat", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
    ],
)
def test_unknown_doors_answer_in_the_one_shape(
    proxy: RunningProxy, method: str, path: str, status: int, code: str
) -> None:
    answer = ask(proxy, method, path, body=b"{}" if method == "POST" else None)

    assert (answer.status, answer.error_code) == (status, code)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 40_000 + b"\r\n\r\n",
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
    ],
    ids=[
        "request line",
        "version",
        "header name",
        "two lengths",
        "length and chunks",
        "long line",
        "long header",
        "chunk",
    ],
)
def test_what_is_not_http_is_refused_as_json_without_quoting_it(proxy: RunningProxy, data: bytes) -> None:
    received = send_raw(proxy, data)

    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert 400 <= status < 500, head
    assert b"application/json" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"NONSENSE" not in body
