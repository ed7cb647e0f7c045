"""Anthropic's doors without a server: what passes, what is written anew, and errors in their shape wherever they come from."""

from __future__ import annotations

import json

import pytest
from werkzeug.test import TestResponse

from secure_llm_proxy.foundation.errors import ErrorCode, ProxyError, UpstreamFailed, UpstreamRefused, UpstreamTimeout
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Choice,
    Delta,
    DeltaKind,
    Finish,
    Text,
    TokenCount,
)
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.anthropic_events import assemble
from tests.support.house import KEY, SmallHouse, make_app, make_house

_MESSAGES, _COUNT = "/v1/messages", "/v1/messages/count_tokens"
_KEYED = {"x-api-key": KEY, "anthropic-version": "2026-10-21"}
_ASKED: dict[str, object] = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi."}]}
_PLAYED: JsonObject = {"type": "message", "content": [{"type": "text", "text": "Hello."}], "from_tomorrow": True}


@pytest.fixture
def small() -> SmallHouse:
    return make_house()


def _post(
    small: SmallHouse, path: str = _MESSAGES, *, headers: dict[str, str] | None = None, **changes: object
) -> TestResponse:
    client = make_app(small).test_client()
    return client.post(path, json={**_ASKED, **changes}, headers=_KEYED if headers is None else headers)


def _error_of(answer: TestResponse) -> dict[str, object]:
    told = json.loads(answer.data)
    assert told["type"] == "error"
    assert told["request_id"] == answer.headers["request-id"] == answer.headers["X-Request-Id"]
    assert told["error"]["details"] == {"error_code": told["error"]["code"]}
    error: dict[str, object] = told["error"]
    return error


def _completion(**fields: object) -> Completion:
    return Completion({**_PLAYED}, "Hello.", Usage(3, 2, 5), "theirs", **fields)  # type: ignore[arg-type]  # a maker


def _starts(small: SmallHouse) -> list[AuditEvent]:
    return small.journal.of(AuditType.LLM_START)


def test_an_answer_of_the_same_format_leaves_as_it_came(small: SmallHouse) -> None:
    small.upstream.answer = _completion(format=WireFormat.ANTHROPIC_MESSAGES)

    answer = _post(small, metadata={"user_id": "somebody"})

    assert (answer.status_code, answer.json) == (200, _PLAYED)
    assert answer.headers["request-id"] == answer.headers["X-Request-Id"]
    [asked] = small.upstream.payloads
    assert asked["metadata"] == {"user_id": "somebody"}


def test_an_answer_of_another_format_is_written_as_a_message(small: SmallHouse) -> None:
    small.upstream.answer = _completion(answer=Answer((Choice((Text("Hello."),), Finish.STOP),)))

    told = _post(small).json

    assert told is not None
    assert told["content"] == [{"type": "text", "text": "Hello."}]
    assert told["usage"]["input_tokens"] == 3
    assert told["model"] == "small"


def test_a_stream_of_another_format_is_written_event_by_event(small: SmallHouse) -> None:
    small.upstream.translated = True
    small.upstream.script = (
        StreamEvent(b"{}", {}, "", None, True, deltas=(Delta(DeltaKind.START),)),
        StreamEvent(b"{}", {}, "Hel", None, True, deltas=(Delta(DeltaKind.TEXT, text="Hel"),)),
        StreamEvent(b"{}", {}, "lo.", None, True, deltas=(Delta(DeltaKind.TEXT, text="lo."),)),
        StreamEvent(b"{}", {}, "", None, True, deltas=(Delta(DeltaKind.FINISH, finish=Finish.LENGTH),)),
        StreamEvent(b"{}", {}, "", Usage(3, 2, 5), True),
    )

    answer = _post(small, stream=True)

    assert answer.content_type == "text/event-stream; charset=utf-8"
    message = assemble(answer.data)
    assert message.ended
    assert message.text == "Hello."
    assert (message.told["stop_reason"], message.told["usage"]["output_tokens"]) == ("max_tokens", 2)


def test_a_stream_that_breaks_off_ends_in_an_error_event(small: SmallHouse) -> None:
    small.upstream.script = (
        StreamEvent(b'{"type":"message_start"}', {}, "", None, True, b"message_start"),
        UpstreamFailed("The provider broke off.", detail="canary"),
    )

    answer = _post(small, stream=True)

    start, error = answer.data.decode().split("\n\n")[:-1]
    assert start == 'event: message_start\ndata: {"type":"message_start"}'
    assert error.startswith('event: error\ndata: {"type":"error","error":{"type":"api_error"')
    assert answer.headers["X-Request-Id"] in error
    assert "canary" not in error


@pytest.mark.parametrize("path", [_MESSAGES, _COUNT])
@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (UpstreamFailed("x"), 502, "api_error"),
        (UpstreamTimeout("x"), 504, "timeout_error"),
        (UpstreamRefused("x", status=400, code=ErrorCode.CONTEXT_LENGTH_EXCEEDED), 400, "invalid_request_error"),
        (UpstreamRefused("x", status=404), 404, "not_found_error"),
        (UpstreamRefused("x", status=409), 409, "conflict_error"),
        (UpstreamRefused("x", status=413), 413, "request_too_large"),
        (UpstreamRefused("x", status=422), 422, "invalid_request_error"),
        (UpstreamRefused("x", status=429, retry_after_s=3), 429, "rate_limit_error"),
    ],
)
def test_what_the_provider_refuses_has_anthropic_s_type(
    small: SmallHouse, path: str, failure: ProxyError, status: int, kind: str
) -> None:
    small.upstream.answer = failure

    answer = _post(small, path)

    error = _error_of(answer)
    assert (answer.status_code, error["type"], error["code"]) == (status, kind, failure.code)


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [({}, 401, "authentication_error"), ({"x-api-key": "slp_live_wrong"}, 401, "authentication_error")],
)
def test_who_has_no_key_is_told_in_anthropic_s_shape(
    small: SmallHouse, headers: dict[str, str], status: int, kind: str
) -> None:
    for path in (_MESSAGES, _COUNT):
        answer = _post(small, path, headers=headers)

        assert (answer.status_code, _error_of(answer)["type"]) == (status, kind)


def test_a_key_in_the_url_a_wrong_body_and_an_unknown_model_are_told_in_anthropic_s_shape(small: SmallHouse) -> None:
    client = make_app(small).test_client()
    answers = [
        client.post(f"{_MESSAGES}?key={KEY}", json=_ASKED, headers=_KEYED),
        client.post(_MESSAGES, data=b"{", content_type="application/json", headers=_KEYED),
        client.post(_MESSAGES, data=b"x", content_type="text/plain", headers=_KEYED),
        client.post(_MESSAGES, json={**_ASKED, "model": "unknown"}, headers=_KEYED),
        client.post(_COUNT, json={"messages": 7}, headers=_KEYED),
    ]

    assert [(answer.status_code, _error_of(answer)["type"]) for answer in answers] == [
        (401, "authentication_error"),
        (400, "invalid_request_error"),
        (415, "invalid_request_error"),
        (404, "not_found_error"),
        (400, "invalid_request_error"),
    ]


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/v1/messages/", "/v1/messages/count_tokens/x"])
def test_a_door_that_is_none_is_told_in_anthropic_s_shape(small: SmallHouse, path: str) -> None:
    answer = _post(small, path)

    assert (answer.status_code, _error_of(answer)["type"]) == (404, "not_found_error")


@pytest.mark.parametrize("path", ["/v1/messagesx", "/v1/chat/messages"])
def test_other_paths_keep_the_shape_of_all_others(small: SmallHouse, path: str) -> None:
    answer = _post(small, path)

    assert set(json.loads(answer.data)) == {"error"}
    assert "request-id" not in answer.headers


def test_the_version_and_the_betas_of_the_client_may_pass_from_its_own_doors(small: SmallHouse) -> None:
    headers = {**_KEYED, "anthropic-beta": "context-1m-2025-08-07, x"}

    for path in (f"{_MESSAGES}?beta=true", _COUNT):
        _post(small, path, headers=headers)
    client = make_app(small).test_client()
    client.post("/v1/chat/completions", json={"messages": _ASKED["messages"]}, headers=headers)

    version, beta = ("anthropic-version", "2026-10-21"), ("anthropic-beta", "context-1m-2025-08-07, x")
    assert [set(request.headers) for request in small.upstream.received] == [{version, beta}, {version, beta}, {beta}]


def test_an_estimated_count_says_so(small: SmallHouse) -> None:
    small.upstream.answer = _completion(answer=TokenCount(17, estimated=True))
    estimated = _post(small, _COUNT)
    small.upstream.answer = _completion(answer=TokenCount(17))
    counted = _post(small, _COUNT)

    assert estimated.json == counted.json == {"input_tokens": 17}
    assert estimated.headers["X-SLP-Token-Count"] == "estimate"
    assert "X-SLP-Token-Count" not in counted.headers
    assert len(_starts(small)) == 2


def test_a_wish_for_a_place_that_can_t_be_understood_is_refused_on_record_and_only_to_whom_the_door_is_open(
    small: SmallHouse,
) -> None:
    wish = {"X-SLP-Require": "region: eu"}

    stranger = _post(small, headers=wish)
    known = _post(small, headers={**_KEYED, **wish})

    assert (stranger.status_code, known.status_code) == (401, 400)
    assert _error_of(known)["param"] == "X-SLP-Require"
    codes = [event.clear["code"] for event in small.journal.of(AuditType.REFUSED)]
    assert codes == [ErrorCode.MISSING_API_KEY, ErrorCode.INVALID_VALUE]
    assert small.upstream.received == []
