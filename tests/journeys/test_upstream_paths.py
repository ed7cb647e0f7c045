"""However a path is written, a provider only ever sees the paths of our table, and no header that a client chose."""

from __future__ import annotations

import itertools
import json
import random
import re
from urllib.parse import quote, urlsplit

import pytest

from secure_llm_proxy.vocabulary.providers import provider_kinds
from tests.support.clients import ask, connection_to, send_raw
from tests.support.hostile_values import hostile_values
from tests.support.provider import Mode, Provider, ReceivedRequest
from tests.support.running_proxy import RunningProxy

KIND = provider_kinds()["openai_compatible"]
PATHS = {f"/v1{path}" for path in (*KIND.formats.values(), KIND.models)}
CHAT = json.dumps({"model": "test-model", "messages": [{"role": "user", "content": "hi"}]}).encode()
DOORS = [
    b"/chat", b"/v1/chat/completions", b"/v1/models", b"/v1/models/test-model", b"/v1/messages", b"/v1/messages/count_tokens",
    b"/v1/responses", b"/v1/embeddings", b"/v1/completions",
]  # fmt: skip
UP = [
    b"..", b"%2e%2e", b".%2e", b"%2E.", b"%252e%252e", b"%c0%ae%c0%ae", b"%e0%80%ae%e0%80%ae", b"%u002e%u002e", b"..;", b"..;x=1",
    b"..%00", b"..%09", b"%ef%bc%8e%ef%bc%8e", b"....", b".", b"%2e",
]  # fmt: skip
SLASHES = [b"/", b"//", b"%2f", b"%2F", b"%252f", b"%5c", b"\\", b"/./", b"%c0%af", b";/", b"/%20/", b"%ef%bc%8f"]
TARGETS = [b"admin", b"v1/files", b"v1/organization/api_keys", b"v1/fine_tuning/jobs", b"chat/completions", b"models"]
WHOLE = [
    b"http://evil.example/v1/chat/completions", b"//evil.example/v1/chat/completions", b"/v1/chat/completions?x=/../admin",
    b"/v1/chat/completions#/../admin", b"/v1/chat/completions;/../../admin", b"/V1/CHAT/COMPLETIONS", b"/v1/chat/completions/",
    b"/v1/chat/completions%20", b"/v1/chat/completions%0d%0aX:%201", b"/v1/chat/completions%00", b"/v1//chat/completions",
    b"/%76%31/chat/completions", b"/v1/chat%2fcompletions", b"*", b"/..", b"/v1", b"/v1/", b"/v1/chat/completions?api-version=1",
    b"https://127.0.0.1/v1/models", b"/v1/models/../files", b"/v1/models/%2e%2e/files", b"/v1/models/x?y", b"@evil.example/",
]  # fmt: skip


def encodings(count: int) -> list[bytes]:
    """`count` request targets of a client that wants another of the provider's endpoints."""
    made = [
        door + slash + up + slash + target for door, slash, up, target in itertools.product(DOORS, SLASHES, UP, TARGETS)
    ] + [
        b"/v1/models/" + slash.join([up] * 3 + [target])
        for slash, up, target in itertools.product(SLASHES, UP, TARGETS)
    ]
    random.Random("encodings").shuffle(made)
    return WHOLE + made[: count - len(WHOLE)]


def raw_request(proxy: RunningProxy, method: bytes, target: bytes, body: bytes) -> bytes:
    host, key = urlsplit(proxy.base_url).netloc.encode(), proxy.shared_api_key.encode()
    head = b"%b %b HTTP/1.1\r\nHost: %b\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (method, target, host, key, len(body)) + body


def new_requests(provider: Provider, before: int) -> list[ReceivedRequest]:
    return provider.received[before:]


@pytest.fixture(params=["embedded_proxy", "clustered_proxy"])
def asked(request: pytest.FixtureRequest) -> RunningProxy:
    running = request.getfixturevalue(request.param)
    assert isinstance(running, RunningProxy)
    return running


def test_500_encodings_of_a_path_reach_no_other_path_of_the_provider(asked: RunningProxy, provider: Provider) -> None:
    before = len(provider.received)

    targets = encodings(500)
    statuses = set()
    for number, target in enumerate(targets):
        method, body = (b"POST", CHAT) if number % 2 else (b"GET", b"")
        answer = send_raw(asked, raw_request(asked, method, target, body))
        assert answer.startswith(b"HTTP/1.1 "), target
        statuses.add(answer[9:12])

    seen = new_requests(provider, before)
    assert len(set(targets)) == 500
    assert statuses >= {b"200", b"404"}
    assert {request.path for request in seen} <= PATHS
    assert all(request.method == ("GET" if request.path == "/v1/models" else "POST") for request in seen)


def test_a_model_s_name_is_never_part_of_a_path_or_a_header(asked: RunningProxy, provider: Provider) -> None:
    key = asked.shared_api_key
    names = [
        "../../admin", "..%2f..%2fadmin", "x/../../files", "test-model?x=1", "test-model#", "/v1/files", "//evil.example/",
        "test-model\r\nX-Injected: 1", "a\x00b", "%2e%2e/admin", "..;/admin", "..\\admin", "http://evil.example/", "test-model ",
    ]  # fmt: skip
    before = len(provider.received)

    for name in names:
        ask(asked, "POST", "/v1/chat/completions", key=key, body={**json.loads(CHAT), "model": name})
        ask(asked, "POST", "/chat", key=key, body={"prompt": "hi", "model": name})
        ask(asked, "POST", "/v1/messages", key=key, body={**json.loads(CHAT), "model": name, "max_tokens": 9})
        ask(asked, "POST", "/v1/responses", key=key, body={"model": name, "input": "hi"})
        ask(asked, "GET", f"/v1/models/{quote(name, safe='')}", key=key)

    seen = new_requests(provider, before)
    assert {request.path for request in seen} <= PATHS
    assert not [request for request in seen if "x-injected" in request.headers]


def test_hostile_values_of_clients_and_of_the_provider_make_no_header(asked: RunningProxy, provider: Provider) -> None:
    key = asked.create_api_key()
    plain = ask(asked, "POST", "/v1/chat/completions", key=key, body=CHAT)
    refused = ask(asked, "POST", "/v1/chat/completions", key=key, body={**json.loads(CHAT), "model": 7})
    usual = {*plain.headers, *refused.headers, "retry-after", "x-correlation-id", "set-cookie"} - {"set-cookie"}
    try:
        with connection_to(asked) as connection:
            for number, value in enumerate(hostile_values(150, "journey")):
                printable = re.sub(r"[^\t -~\x80-\xff]", "", value).strip()
                body = {
                    **json.loads(CHAT),
                    "user": value.encode("utf-8", "replace").decode(),
                    "stream": number % 2 == 0,
                }
                if number % 3 == 0:
                    text = value.encode("utf-8", "replace").decode("utf-8")
                    provider.script(
                        Mode.ERROR,
                        status=429 if number % 2 else 400,
                        body=json.dumps(
                            {"error": {"message": text, "param": text, "code": text, "type": text}}
                        ).encode(),
                        headers={"Retry-After": printable, "X-Provider-Says": printable, "Set-Cookie": "a=b"},
                    )
                else:
                    provider.script(Mode.OK)
                connection.request(
                    "POST",
                    "/v1/chat/completions",
                    json.dumps(body).encode(),
                    {
                        "Authorization": f"Bearer {key}",
                        "Content-Type": "application/json",
                        "X-Correlation-ID": printable.encode("latin-1"),
                        "X-Forwarded-Host": printable.encode("latin-1"),
                        "OpenAI-Organization": printable.encode("latin-1"),
                    },
                )
                answer = connection.getresponse()
                content = answer.read()
                assert {name.lower() for name, _ in answer.getheaders()} <= usual | {
                    "transfer-encoding",
                    "x-accel-buffering",
                }
                assert not re.search(r"[^ -~]", "".join(value for _, value in answer.getheaders()))
                assert content
    finally:
        provider.clear()


def test_the_provider_sees_our_headers_only(asked: RunningProxy, provider: Provider) -> None:
    key = asked.shared_api_key
    host = urlsplit(provider.base_url).netloc
    chosen = {
        "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example", "Cookie": "a=b", "X-API-Key": key,
        "X-Original-URL": "/admin", "X-Rewrite-URL": "/admin", "Referer": "http://evil.example/", "OpenAI-Project": "p",
        "User-Agent": "evil/1.0", "X-HTTP-Method-Override": "DELETE", "Accept": "text/evil", "Accept-Encoding": "br",
    }  # fmt: skip
    before = len(provider.received)

    answer = ask(asked, "POST", "/v1/chat/completions", key=key, body=CHAT, headers=chosen)

    [request] = [request for request in new_requests(provider, before) if request.path == "/v1/chat/completions"]
    assert answer.status == 200
    assert request.headers["host"] == host
    assert request.headers["accept-encoding"] == "identity"
    assert not [name for name in request.headers if name.startswith(("x-", "forwarded", "cookie", "referer", "openai"))]
    assert not [value for value in request.headers.values() if "evil" in value or key in value]
