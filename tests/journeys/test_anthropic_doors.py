"""Anthropic's clients in front of the whole product: Anthropic itself, another provider, and a fallback from one to the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOMY
from tests.support.anthropic_events import assemble
from tests.support.clients import Answer, ask, audit_lines, connection_to
from tests.support.format_server import FormatServer
from tests.support.provider_formats.playing import Failure
from tests.support.provider_formats.speaking import COUNTS, PLAIN
from tests.support.running_proxy import RunningProxy

MESSAGES, COUNT = "/v1/messages?beta=true", "/v1/messages/count_tokens?beta=true"
SEALED = {"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmVk"}
FOREIGN = {"type": "thinking", "thinking": "Hm, hm.", "signature": ""}
_MODELS = """
providers:
  anthropic: {{kind: anthropic, base_url: "{anthropic}", api_keys: ["env:PLAYED_ANTHROPIC_KEY"]}}
  openai: {{kind: openai, base_url: "{openai}", api_keys: ["env:PLAYED_OPENAI_KEY"]}}
models:
  claude: {{routes: [{{provider: anthropic, model: claude-opus-5-5}}]}}
  gpt: {{routes: [{{provider: openai, model: gpt-6}}]}}
  unlucky:
    routes: [{{provider: anthropic, model: fail-overloaded}}]
    fallbacks: [gpt]
  turned: {{routes: [{{provider: openai, model: fail-overloaded}}], fallbacks: [claude]}}
"""


@pytest.fixture(scope="module")
def far_end() -> Iterator[FormatServer]:
    with FormatServer() as server:
        yield server


@pytest.fixture(scope="module")
def product(far_end: FormatServer, short_folder: Path) -> Iterator[RunningProxy]:
    home = short_folder / "anthropic"
    home.mkdir()
    models = home / "models.yaml"
    models.write_text(_MODELS.format(anthropic=far_end.url("anthropic"), openai=far_end.url("openai")))
    settings = {
        **ROOMY,
        "MODELS_FILE": str(models),
        "PLAYED_ANTHROPIC_KEY": far_end.key("anthropic"),
        "PLAYED_OPENAI_KEY": far_end.key("openai"),
    }
    with RunningProxy(home, settings) as proxy:
        yield proxy


@pytest.fixture
def key(product: RunningProxy, far_end: FormatServer) -> Iterator[str]:
    far_end.clear()
    yield product.shared_api_key
    assert far_end.refused == []


def _post(product: RunningProxy, key: str, path: str = MESSAGES, /, **fields: object) -> Answer:
    asked = {"max_tokens": 100, "messages": [{"role": "user", "content": "Hi."}], **fields}
    body = {name: value for name, value in asked.items() if value is not None}
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01", "anthropic-beta": "one, two"}
    return ask(product, "POST", path, body=body, headers=headers)


def _message(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    told: dict[str, Any] = json.loads(answer.body)
    return told


def _of(lines: list[dict[str, object]], answer: Answer) -> list[dict[str, object]]:
    """The records of that exchange."""
    return [line for line in lines if line.get("rid") == answer.headers["x-request-id"]]


@pytest.mark.parametrize("model", ["claude", "gpt"])
def test_any_model_answers_plain_and_streamed(product: RunningProxy, key: str, model: str) -> None:
    plain = _post(product, key, model=model)
    streamed = _post(product, key, model=model, stream=True)

    told, message = _message(plain), assemble(streamed.body)
    assert [block["text"] for block in told["content"]] == [message.text] == [PLAIN]
    assert message.ended
    usage = told["usage"]
    assert sum(usage[name] for name in usage if name.endswith("input_tokens")) == COUNTS.prompt
    assert message.told["usage"]["output_tokens"] == usage["output_tokens"]
    lines = audit_lines(product)
    for answer in (plain, streamed):
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        start, end = _of(lines, answer)
        assert (start["ty"], end["ty"], end["tin"], end["http"]) == ("llm.start", "llm.end", COUNTS.prompt, 200)


def test_a_provider_that_fails_is_replaced_by_one_of_another_format(
    product: RunningProxy, far_end: FormatServer, key: str
) -> None:
    turns = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": [SEALED, {"type": "text", "text": "Hello."}]},
        {"role": "user", "content": [{"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}}]},
    ]

    answers = [_post(product, key, model="unlucky", messages=turns, stream=stream) for stream in (False, True)]

    assert _message(answers[0])["content"] == [{"type": "text", "text": PLAIN}]
    assert assemble(answers[1].body).text == PLAIN
    assert [request.path.split("/")[1] for request in far_end.received] == ["anthropic", "openai"] * 2
    lines = audit_lines(product)
    for answer in answers:
        assert [record["ty"] for record in _of(lines, answer)] == ["llm.start", "llm.retry", "llm.end"]
        assert answer.headers["x-slp-dropped-params"] == "cache_control"


def test_a_conversation_that_another_provider_began_goes_on_at_anthropic(
    product: RunningProxy, far_end: FormatServer, key: str
) -> None:
    turns = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": [FOREIGN, {"type": "text", "text": "Hello."}]},
        {"role": "user", "content": "And?"},
    ]

    told = _message(_post(product, key, model="turned", messages=turns))

    assert told["content"][0]["text"] == PLAIN
    [sent] = far_end.asked("anthropic")
    assert isinstance(sent.json, dict)
    assert sent.json["messages"] == [
        turns[0],
        {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
        turns[2],
    ]
    assert (sent.headers["anthropic-version"], sent.headers["anthropic-beta"]) == ("2023-06-01", "one, two")


def test_tokens_are_counted_or_estimated(product: RunningProxy, far_end: FormatServer, key: str) -> None:
    counted = _post(product, key, COUNT, model="claude", max_tokens=None)
    estimated = _post(product, key, COUNT, model="gpt", max_tokens=None)

    assert _message(counted) == {"input_tokens": COUNTS.prompt}
    assert 1 <= _message(estimated)["input_tokens"] < 30
    assert (counted.headers.get("x-slp-token-count"), estimated.headers.get("x-slp-token-count")) == (None, "estimate")
    assert far_end.asked("openai") == []
    start, end = _of(audit_lines(product), estimated)
    assert (start["ty"], start["up"], end["ty"], end["http"]) == ("llm.start", "openai", "llm.end", 200)


def test_refusals_have_anthropic_s_shape_wherever_they_come_from(
    product: RunningProxy, far_end: FormatServer, key: str
) -> None:
    far_end.fail(Failure.RATE_LIMITED)
    answers = [
        (_post(product, key, model="claude"), 429, "rate_limit_error"),
        (_post(product, "slp_live_wrong", model="claude"), 401, "authentication_error"),
        (_post(product, key, model="unknown"), 404, "not_found_error"),
        (_post(product, key, model="claude", max_tokens=None), 400, "invalid_request_error"),
        (_post(product, key, "/v1/messages/batches"), 404, "not_found_error"),
        (ask(product, "GET", "/v1/messages"), 405, "invalid_request_error"),
        (ask(product, "POST", "/v1/messages", key=key, body=b"x" * 10_000_000), 413, "request_too_large"),
    ]

    for answer, status, kind in answers:
        told = json.loads(answer.body)
        assert (answer.status, told["type"], told["error"]["type"]) == (status, "error", kind)
        assert told["request_id"] == answer.headers["request-id"]


def test_a_provider_is_told_when_the_client_of_a_translated_stream_has_left(
    product: RunningProxy, far_end: FormatServer, key: str
) -> None:
    # The stream must not be over before its client's leaving has come through; who leaves ends the pause.
    far_end.stream_pause_s = 5.0
    body = {"model": "gpt", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "Hi."}]}
    try:
        with connection_to(product) as connection:
            connection.request(
                "POST", "/v1/messages", json.dumps(body), {"x-api-key": key, "Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            first = answer.read1(65_536)

        assert first.startswith(b"event: message_start\n")
        assert far_end.wait_for_disconnect(30)
    finally:
        far_end.stream_pause_s = 0.0
