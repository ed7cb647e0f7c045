"""POST /chat, the origin's door."""

from __future__ import annotations

import json

import pytest

from tests.support.clients import ask, records_of
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "Is all well?"},
        {"message": "Is all well?", "model": "test-model"},
        {"messages": [{"role": "user", "content": "Is all well?"}], "model_name": "test-model"},
    ],
)
def test_every_spelling_of_the_origin_is_answered_in_its_shape(
    proxy: RunningProxy, provider: Provider, api_key: str, body: dict[str, object]
) -> None:
    provider.clear()

    answer = ask(proxy, "POST", "/chat", key=api_key, body=body, headers={"X-User-ID": "alice"})

    told = answer.json
    assert answer.status == 200
    assert told["status"] == "success"
    assert told["response"] == provider.reply_text
    assert told["model_used"] == "test-model"
    assert told["request_id"] == answer.headers["x-request-id"]
    assert told["audit_id"] == answer.headers["x-slp-audit-id"]
    assert told["cost_usd"] is None
    assert told["security_analysis"] == {
        "prompt_injection": None,
        "pii_redaction_prompt": None,
        "pii_redaction_response": None,
        "harmful_content": None,
        "overall_risk_assessment": None,
    }
    [received] = provider.chats
    assert isinstance(received.json, dict)
    assert received.json["messages"] == [{"role": "user", "content": "Is all well?"}]
    assert set(received.json) == {"model", "messages", "stream"}


def test_a_stream_ends_with_the_envelope_of_a_plain_answer(
    proxy: RunningProxy, provider: Provider, api_key: str
) -> None:
    answer = ask(proxy, "POST", "/chat", key=api_key, body={"prompt": "Is all well?", "stream": True})

    events = [line.removeprefix(b"data: ") for line in answer.body.split(b"\n\n") if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == b"[DONE]"
    last = json.loads(events[-2])
    assert last["type"] == "done"
    assert last["response"] == provider.reply_text
    deltas = [json.loads(event) for event in events[:-2]]
    assert "".join(delta["text"] for delta in deltas) == provider.reply_text


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key", "x-api-key"])
def test_the_key_is_found_in_every_header_of_the_contract(proxy: RunningProxy, api_key: str, header: str) -> None:
    value = f"Bearer {api_key}" if header == "Authorization" else api_key

    answer = ask(proxy, "POST", "/chat", body={"prompt": "hi"}, headers={header: value})

    assert answer.status == 200


def test_every_answer_carries_ids_limits_and_security_headers(proxy: RunningProxy, api_key: str) -> None:
    answer = ask(proxy, "POST", "/chat", key=api_key, body={"prompt": "hi"}, headers={"X-Correlation-ID": "trace-7"})

    headers = answer.headers
    assert headers["x-request-id"].startswith("exc_")
    assert headers["x-correlation-id"] == "trace-7"
    assert int(headers["x-ratelimit-limit"]) == 6000
    assert int(headers["x-ratelimit-remaining"]) > 0
    assert int(headers["x-ratelimit-reset"]) >= 0
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert headers["x-slp-provider"] == "openai_compatible"


def test_the_record_tells_who_asked_by_pseudonym_and_nothing_else(
    proxy: RunningProxy, provider: Provider, api_key: str
) -> None:
    answer = ask(
        proxy, "POST", "/chat", key=api_key, body={"prompt": "sealed"}, headers={"X-User-ID": "alice@example.org"}
    )

    start, end = records_of(proxy, answer.headers["x-request-id"])
    assert start["ev"] == "CHAT_REQUEST"
    assert str(start["sub"]).startswith("s_")
    assert "alice" not in json.dumps([start, end])
    assert end["st"] == "complete"
    assert end["sid"] == start["id"]
    shown = proxy.command("audit", "show", str(start["id"])).stdout
    assert "sealed" in shown
    assert "alice@example.org" in shown
