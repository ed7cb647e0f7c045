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

_HELLO = [{"role": "user", "content": "Hello"}]
# They look at no field that they do not document.
IGNORING = {"openrouter", "together"}
CHATS: dict[str, tuple[str, dict[str, object]]] = {
    "openai": ("/chat/completions", {"model": "gpt-6", "messages": _HELLO}),
    "anthropic": ("/messages", {"model": "claude-opus-5-5", "messages": _HELLO, "max_tokens": 100}),
    "gemini": (
        "/models/gemini-2.5-flash:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
    ),
    "cohere": ("/v2/chat", {"model": "command-a-03-2025", "messages": _HELLO}),
    "mistral": ("/chat/completions", {"model": "mistral-large-latest", "messages": _HELLO}),
    "groq": ("/chat/completions", {"model": "llama-3.3-70b-versatile", "messages": _HELLO}),
    "openrouter": ("/chat/completions", {"model": "openai/gpt-6", "messages": _HELLO}),
    "together": ("/chat/completions", {"model": "meta-llama/Llama-4-Maverick", "messages": _HELLO}),
    "azure": ("/openai/v1/chat/completions", {"model": "my-gpt-deployment", "messages": _HELLO}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[FormatServer]:
    with FormatServer() as played:
        yield played


@pytest.fixture(autouse=True)
def _forgetful(server: FormatServer) -> None:
    server.clear()


def headers_of(server: FormatServer, provider: str, *, key: str | None = None) -> dict[str, str]:
    secret = key or server.key(provider)
    match provider:
        case "anthropic":
            return {"x-api-key": secret, "anthropic-version": "2023-06-01"}
        case "gemini":
            return {"x-goog-api-key": secret}
        case "azure":
            return {"api-key": secret}
        case _:
            return {"Authorization": f"Bearer {secret}"}


def ask(
    server: FormatServer,
    provider: str,
    path: str,
    body: object,
    *,
    key: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(
        server.url(provider) + path,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers_of(server, provider, key=key), **(headers or {})},
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


@pytest.mark.parametrize("provider", sorted(CHATS.keys() - IGNORING))
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

    if provider == "gemini" and failure is Failure.CONTENT_POLICY:
        # no refusal but an answer in which nobody speaks
        assert status == 200
        assert "candidates" not in answer
    else:
        assert status >= 400
    assert answer
    assert ask(server, provider, path, body)[0] == 200


@pytest.mark.parametrize("provider", sorted(IGNORING))
def test_some_providers_ignore_what_they_do_not_know(server: FormatServer, provider: str) -> None:
    path, body = CHATS[provider]

    status, _ = ask(server, provider, path, {**body, "surplus": 1})
    misfit, refusal = ask(server, provider, path, {**body, "messages": [{"role": "user", "content": 7}]})

    assert (status, misfit) == (200, 400)
    assert "messages.0.content" in json.dumps(refusal)


@pytest.mark.parametrize("parameter", ["temperature", "top_p", "top_k"])
def test_anthropic_s_newer_version_takes_no_sampling_parameters(server: FormatServer, parameter: str) -> None:
    path, body = CHATS["anthropic"]

    older, _ = ask(server, "anthropic", path, {**body, parameter: 1})
    newer, refusal = ask(server, "anthropic", path, {**body, parameter: 1}, headers={"anthropic-version": "2026-10-21"})

    assert (older, newer) == (200, 400)
    assert f"{parameter}: Extra inputs are not permitted" in json.dumps(refusal)
