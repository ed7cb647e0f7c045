"""The played providers themselves: they answer what is documented, and refuse what is not, in their own words."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.format_server import FormatServer
from tests.support.provider_formats.playing import Failure
from tests.support.provider_formats.speaking import PLAIN

CHATS = {
    "openai": ("/chat/completions", {"model": "gpt-6", "messages": [{"role": "user", "content": "Hello"}]}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[FormatServer]:
    with FormatServer() as played:
        yield played


@pytest.fixture(autouse=True)
def _forgetful(server: FormatServer) -> None:
    server.clear()


def headers_of(server: FormatServer, provider: str, *, key: str | None = None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key or server.key(provider)}"}


def ask(
    server: FormatServer, provider: str, path: str, body: object, *, key: str | None = None
) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(
        server.url(provider) + path,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers_of(server, provider, key=key)},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, json.loads(refusal.read())


@pytest.mark.parametrize("provider", CHATS)
def test_a_documented_request_is_answered(server: FormatServer, provider: str) -> None:
    path, body = CHATS[provider]

    status, answer = ask(server, provider, path, body)

    assert status == 200
    assert PLAIN in json.dumps(answer)
    assert server.refused == []


@pytest.mark.parametrize("provider", CHATS)
def test_a_field_that_no_documentation_names_is_refused_and_kept(server: FormatServer, provider: str) -> None:
    path, body = CHATS[provider]

    status, answer = ask(server, provider, path, {**body, "surplus": 1})

    assert status in {400, 422}
    assert "surplus" in json.dumps(answer)
    assert [(one.provider, one.misfit.dotted, one.misfit.kind) for one in server.refused] == [
        (provider, "surplus", "unknown")
    ]


@pytest.mark.parametrize("provider", CHATS)
def test_another_key_is_refused(server: FormatServer, provider: str) -> None:
    path, body = CHATS[provider]

    status, _ = ask(server, provider, path, body, key="another")

    assert status in {400, 401}


@pytest.mark.parametrize("failure", [failure for failure in Failure if failure is not Failure.MID_STREAM])
@pytest.mark.parametrize("provider", CHATS)
def test_every_failure_is_a_refusal_in_json(server: FormatServer, provider: str, failure: Failure) -> None:
    path, body = CHATS[provider]
    server.fail(failure)

    status, answer = ask(server, provider, path, body)

    assert status >= 400
    assert answer
    assert ask(server, provider, path, body)[0] == 200
