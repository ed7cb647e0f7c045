"""From a request's bytes to an answer's: bodies that are refused, plain answers, and streams to their last line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import gevent
import pytest
from gevent import GreenletExit

from secure_llm_proxy.foundation.errors import UpstreamFailed
from secure_llm_proxy.settings import LimitSettings, Settings
from secure_llm_proxy.vocabulary.caller import RateClass
from secure_llm_proxy.vocabulary.chat import Usage
from secure_llm_proxy.vocabulary.events import AuditType
from tests.support.house import (
    KEY,
    SmallHouse,
    completion_of,
    event_of,
    make_app,
    make_house,
    make_inbound,
    stop_recording_at,
)

BEARER = {"Authorization": f"Bearer {KEY}"}
DOORS = ["/chat", "/v1/chat/completions"]
SMALL_BODIES = Settings(limits=LimitSettings(body_bytes_max=200, body_timeout_s=30))


def body_for(path: str, **more: object) -> dict[str, object]:
    asked: dict[str, object] = (
        {"prompt": "Hi."} if path == "/chat" else {"messages": [{"role": "user", "content": "Hi."}]}
    )
    return {**asked, **more}


def error_code(answer: Any) -> object:  # noqa: ANN401  werkzeug's test answer
    assert answer.content_type == "application/json"
    return json.loads(answer.data)["error"]["code"]


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize(
    ("data", "headers", "status", "code"),
    [
        (b"", {}, 400, "empty_body"),
        (b" \n", {}, 400, "empty_body"),
        (b"{", {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_type"),
        (b'"x"', {}, 400, "invalid_type"),
        (b"{}", {}, 400, "missing_parameter"),
        (b'{"a":1,"a":2}', {}, 400, "duplicate_key"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", {}, 400, "nested_too_deeply"),
        (b"[" * 100_000, {}, 400, "nested_too_deeply"),
        (b'{"temperature":NaN}', {}, 400, "invalid_number"),
        (b'{"temperature":1e999}', {}, 400, "invalid_number"),
        (b'{"seed":' + b"9" * 5000 + b"}", {}, 400, "invalid_number"),
        (rb'{"prompt":"\ud800"}', {}, 400, "invalid_encoding"),
        (rb'{"\udfff":1,"prompt":"x"}', {}, 400, "invalid_encoding"),
        (b'{"prompt":"\xff"}', {}, 400, "invalid_encoding"),
        (b"\xef\xbb\xbf{}", {}, 400, "invalid_encoding"),
        (b'{"prompt":7,"messages":7}', {}, 400, "invalid_type"),
        (b'{"prompt":"x","messages":[{"role":"user","content":"x"}],"model":"unknown"}', {}, None, None),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (b"{}", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        (b"{}", {"Content-Type": ""}, 415, "unsupported_media_type"),
        (b"{}", {"Content-Type": "application/json\x01"}, 415, "unsupported_media_type"),
        (b"\x1f\x8b\x08", {"Content-Encoding": "gzip"}, 415, "unsupported_content_encoding"),
        (b"{}", {"Content-Encoding": "br"}, 415, "unsupported_content_encoding"),
        (b"{}", {"Content-Encoding": "identity, gzip"}, 415, "unsupported_content_encoding"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_body_is_a_4xx_with_its_code_and_a_record(
    path: str, data: bytes, headers: Mapping[str, str], status: int | None, code: str | None
) -> None:
    small = make_house()

    answer = (
        make_app(small)
        .test_client()
        .post(path, data=data, headers={"Content-Type": "application/json", **BEARER, **headers})
    )

    if status is None:
        assert answer.status_code in {400, 404}
    else:
        assert (answer.status_code, error_code(answer)) == (status, code)
    assert small.journal.types() == [AuditType.REFUSED]
    assert answer.headers["X-SLP-Audit-Id"] == small.journal.handed_over[0].id
    assert small.upstream.received == []
    assert small.in_flight() == []


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/vnd.api+json",
        " application/json ",
    ],
)
def test_json_by_every_name_is_taken(content_type: str) -> None:
    answer = (
        make_app(make_house())
        .test_client()
        .post("/chat", data=b'{"prompt":"x"}', headers={"Content-Type": content_type, **BEARER})
    )

    assert answer.status_code == 200


@pytest.mark.parametrize("path", DOORS)
def test_a_body_of_the_largest_size_is_taken_and_one_byte_more_is_not(path: str) -> None:
    small = make_house()
    client = make_app(small, SMALL_BODIES).test_client()
    fixed = json.dumps(body_for(path)).encode()

    whole = client.post(
        path, data=fixed + b" " * (200 - len(fixed)), headers={"Content-Type": "application/json", **BEARER}
    )
    over = client.post(
        path, data=fixed + b" " * (201 - len(fixed)), headers={"Content-Type": "application/json", **BEARER}
    )

    assert whole.status_code == 200
    assert (over.status_code, error_code(over)) == (413, "request_too_large")


def chunked(client: Any, data: bytes, **environ: object) -> Any:  # noqa: ANN401  werkzeug's test client and answer
    """A body without Content-Length, as the server passes a chunked one on."""
    return client.post(
        "/chat",
        headers={"Content-Type": "application/json", **BEARER},
        environ_overrides={
            "wsgi.input": io.BytesIO(data), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", **environ,
        },
    )  # fmt: skip


def test_a_chunked_body_is_counted_while_it_comes() -> None:
    client = make_app(make_house(), SMALL_BODIES).test_client()
    body = b'{"prompt":"x"}'

    assert chunked(client, body + b" " * (200 - len(body))).status_code == 200
    over = chunked(client, body + b" " * (201 - len(body)))
    assert (over.status_code, error_code(over)) == (413, "request_too_large")


def test_a_body_that_ends_early_is_a_client_that_left() -> None:
    small = make_house()

    answer = (
        make_app(small)
        .test_client()
        .post(
            "/chat",
            headers={"Content-Type": "application/json", **BEARER},
            environ_overrides={"wsgi.input": io.BytesIO(b'{"prompt":"x"}'), "CONTENT_LENGTH": "100"},
        )
    )

    assert answer.status_code == 499
    assert small.upstream.received == []
    assert small.journal.handed_over[0].clear["code"] == "client_gone"
    assert small.in_flight() == []


class BrokenInput(io.RawIOBase):
    """A body whose chunks the server's parser can't read on with."""

    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: object) -> int:
        raise ValueError("canary-5c1e: invalid chunk size")


def test_a_body_whose_chunks_are_broken_is_malformed() -> None:
    small = make_house()

    answer = chunked(make_app(small).test_client(), b"", **{"wsgi.input": BrokenInput()})

    assert (answer.status_code, error_code(answer)) == (400, "malformed_request")
    assert b"canary" not in answer.data
    assert small.in_flight() == []


class SilentInput(io.RawIOBase):
    """A body of which nothing ever comes."""

    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: object) -> int:
        gevent.sleep(60)
        raise AssertionError("nobody gave up")


def test_a_body_that_does_not_come_is_given_up() -> None:
    small = make_house()
    impatient = Settings(limits=LimitSettings(body_timeout_s=0.05))

    answer = chunked(make_app(small, impatient).test_client(), b"", **{"wsgi.input": SilentInput()})

    assert (answer.status_code, error_code(answer)) == (408, "request_timeout")
    assert small.in_flight() == []


def test_a_large_length_is_refused_without_reading() -> None:
    class Untouchable(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _buffer: object) -> int:
            raise AssertionError("the body was read")

    answer = (
        make_app(make_house())
        .test_client()
        .post(
            "/chat",
            headers={"Content-Type": "application/json", **BEARER},
            environ_overrides={"wsgi.input": Untouchable(), "CONTENT_LENGTH": str(10**12)},
        )
    )

    assert (answer.status_code, error_code(answer)) == (413, "request_too_large")


# --- plain answers ----------------------------------------------------------------------------------------------------


def test_openais_door_answers_with_the_providers_object() -> None:
    small = make_house()
    small.upstream.answer = completion_of("Hello ä 😀.", system_fingerprint="fp", odd=[1, None])

    answer = make_app(small).test_client().post("/v1/chat/completions", json=body_for("/v1"), headers=BEARER)

    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    assert json.loads(answer.data) == small.upstream.answer.payload
    start = small.journal.of(AuditType.LLM_START)[0]
    assert answer.headers["X-Request-Id"] == start.exchange_id
    assert answer.headers["X-SLP-Audit-Id"] == start.id
    assert (answer.headers["X-SLP-Model"], answer.headers["X-SLP-Provider"]) == ("small", "tested")
    assert float(answer.headers["X-SLP-Overhead-Ms"]) >= 0
    assert int(answer.headers["X-RateLimit-Remaining"]) < 1000
    assert "Transfer-Encoding" not in answer.headers


def test_the_origins_door_answers_with_its_envelope() -> None:
    small = make_house()

    answer = make_app(small).test_client().post("/chat", json={"prompt": "Hi.", "model_name": "large"}, headers=BEARER)

    told = answer.get_json()
    assert (told["status"], told["response"], told["model_used"]) == ("success", "Hello.", "large")
    assert told["request_id"] == answer.headers["X-Request-Id"]
    assert told["audit_id"] == answer.headers["X-SLP-Audit-Id"]
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert told["timestamp"].endswith("Z")
    assert told["cost_usd"] is None
    assert small.upstream.payloads[0]["model"] == "large"


@pytest.mark.parametrize("path", DOORS)
def test_a_limit_tells_when_to_come_back(path: str) -> None:
    small = make_house(key_class=RateClass(requests=1, burst=1, concurrent=5))
    client = make_app(small).test_client()
    client.post(path, json=body_for(path), headers=BEARER)

    answer = client.post(path, json=body_for(path), headers=BEARER)

    assert (answer.status_code, error_code(answer)) == (429, "rate_limit_exceeded")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.get_json()["retry_after"] == int(answer.headers["Retry-After"])
    assert (answer.headers["X-RateLimit-Limit"], answer.headers["X-RateLimit-Remaining"]) == ("1", "0")


def test_the_models_are_listed_in_anthropic_s_shape_for_its_clients() -> None:
    small = make_house(models=("org/small", "large"))
    client = make_app(small).test_client()
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}

    listed = client.get("/v1/models?limit=1", headers=headers)
    one = client.get("/v1/models/org/small", headers=headers)

    small_model = {
        "type": "model",
        "id": "org/small",
        "display_name": "org/small",
        "created_at": "1970-01-01T00:00:00Z",
    }
    assert listed.json is not None
    assert [model["id"] for model in listed.json["data"]] == ["org/small", "large"]
    assert listed.json["data"][0] == one.json == small_model
    assert (listed.json["has_more"], listed.json["first_id"], listed.json["last_id"]) == (False, "org/small", "large")


def test_what_is_refused_at_the_models_door_has_anthropics_shape_for_its_clients() -> None:
    client = make_app(make_house(models=("org/small",))).test_client()
    version = {"anthropic-version": "2023-06-01"}

    absent = client.get("/v1/models/unknown", headers={"x-api-key": KEY, **version})
    stranger = client.get("/v1/models", headers={"x-api-key": "slp_live_none", **version})
    misused = client.delete("/v1/models", headers={"x-api-key": KEY, **version})
    elsewhere = client.get("/v1/modelsx", headers=version)

    told = {answer: answer.get_json() for answer in (absent, stranger, misused)}
    assert [(answer.status_code, body["error"]["type"], body["error"]["code"]) for answer, body in told.items()] == [
        (404, "not_found_error", "model_not_found"),
        (401, "authentication_error", "invalid_api_key"),
        (405, "invalid_request_error", "method_not_allowed"),
    ]
    for answer, body in told.items():
        assert (body["type"], body["request_id"]) == ("error", answer.headers["X-Request-Id"])
        assert answer.headers["request-id"] == body["request_id"]
    assert set(elsewhere.get_json()) == {"error"}


def test_the_models_are_listed_in_openais_shape() -> None:
    client = make_app(make_house(models=("org/small", "large"))).test_client()

    listed = client.get("/v1/models", headers=BEARER)
    one = client.get("/v1/models/org/small", headers=BEARER)
    none = client.get("/v1/models/unknown", headers=BEARER)

    assert [(model["id"], model["object"]) for model in listed.get_json()["data"]] == [
        ("org/small", "model"),
        ("large", "model"),
    ]
    assert listed.get_json()["object"] == "list"
    assert one.get_json()["id"] == "org/small"
    assert (none.status_code, error_code(none)) == (404, "model_not_found")
    for answer in (listed, one, none):
        assert answer.headers["X-RateLimit-Limit"]


# --- streams ----------------------------------------------------------------------------------------------------------


def streamed(small: SmallHouse, path: str) -> Any:  # noqa: ANN401  werkzeug's test answer
    return make_app(small).test_client().post(path, json=body_for(path, stream=True), headers=BEARER)


def events_of(data: bytes) -> list[tuple[str | None, str]]:
    """(event, data) of each server-sent event; the format is checked on the way."""
    assert data.endswith(b"\n\n")
    told: list[tuple[str | None, str]] = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(fields) <= {"event", "data"}
        told.append((fields.get("event"), fields["data"]))
    return told


def test_openais_stream_is_the_providers_events_and_the_end_mark() -> None:
    small = make_house()
    events = [event_of("Hel"), event_of("lo ä."), event_of("", usage=Usage(3, 2, 5))]
    small.upstream.script = events

    answer = streamed(small, "/v1/chat/completions")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["X-SLP-Audit-Id"] == small.journal.of(AuditType.LLM_START)[0].id
    assert "Content-Length" not in answer.headers
    assert events_of(answer.data) == [(None, event.data.decode()) for event in events] + [(None, "[DONE]")]
    assert small.journal.types()[-1] is AuditType.LLM_END
    assert small.in_flight() == []


def test_the_origins_stream_is_deltas_the_envelope_and_the_end_mark() -> None:
    small = make_house()
    small.upstream.script = [event_of("Hel"), event_of("lo\n\ndata: forged"), event_of("", usage=Usage(3, 2, 5))]

    answer = streamed(small, "/chat")

    *deltas, last, end = [data for _, data in events_of(answer.data)]
    assert [json.loads(delta) for delta in deltas] == [
        {"type": "delta", "text": text} for text in ("Hel", "lo\n\ndata: forged", "")
    ]
    whole = json.loads(last)
    assert (whole["type"], whole["status"]) == ("done", "success")
    assert whole["response"] == "Hello\n\ndata: forged"
    assert whole["usage"]["total_tokens"] == 5
    assert whole["request_id"] == answer.headers["X-Request-Id"]
    assert end == "[DONE]"


@pytest.mark.parametrize("path", DOORS)
def test_an_error_before_the_first_event_chooses_the_status(path: str) -> None:
    small = make_house()
    small.upstream.script = UpstreamFailed("The provider failed.")

    answer = streamed(small, path)

    assert (answer.status_code, error_code(answer)) == (502, "upstream_error")


@pytest.mark.parametrize("path", DOORS)
def test_an_error_in_mid_stream_is_a_last_error_event_without_an_end_mark(path: str) -> None:
    small = make_house()
    small.upstream.script = [event_of("Hel"), UpstreamFailed("The provider broke off.", detail="canary-5c1e")]

    answer = streamed(small, path)

    *_, (name, data) = events_of(answer.data)
    assert answer.status_code == 200
    assert name == "error"
    assert json.loads(data)["error"] == {
        "message": "The provider broke off.", "type": "upstream_error", "param": None, "code": "upstream_error",
    }  # fmt: skip
    assert b"[DONE]" not in answer.data
    assert b"canary" not in answer.data
    assert small.in_flight() == []


@pytest.mark.parametrize("path", DOORS)
def test_an_end_that_is_not_recorded_is_an_error_event_and_no_end_mark(path: str) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(AuditType.LLM_END)

    answer = streamed(small, path)

    assert events_of(answer.data)[-1][0] == "error"
    assert json.loads(events_of(answer.data)[-1][1])["error"]["code"] == "audit_unavailable"
    assert b"[DONE]" not in answer.data
    assert b'"done"' not in answer.data
    assert small.in_flight() == []


def serve(small: SmallHouse, path: str) -> tuple[list[str], Iterable[bytes]]:
    """The WSGI body as a server gets it, not yet read."""
    app = make_app(small)
    with app.test_request_context(path, method="POST", json=body_for(path, stream=True), headers=BEARER) as context:
        environ = context.request.environ
    environ["wsgi.input"].seek(0)
    told: list[str] = []

    def start_response(status: str, _headers: object, _exc_info: object = None) -> Any:  # noqa: ANN401  WSGI's write
        told.append(status)

    return told, app.wsgi_app(environ, start_response)


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize("read", [0, 1, 2])
def test_a_client_that_leaves_ends_the_stream_wherever_it_is(path: str, read: int) -> None:
    small = make_house()
    small.upstream.script = [event_of(f"event {number}") for number in range(10)]

    told, body = serve(small, path)
    iterator = iter(body)
    for _ in range(read):
        next(iterator)
    body.close()  # type: ignore[attr-defined]  # what PEP 3333 asks servers to call
    body.close()  # type: ignore[attr-defined]

    assert told == ["200 OK"]
    assert small.upstream.streams[0].closed >= 1
    assert small.upstream.streams[0].given == read
    (end,) = small.journal.of(AuditType.LLM_END)
    assert end.clear["st"] == "client_abort"
    assert small.in_flight() == []
    assert len(small.metrics.facts) == 1


@pytest.mark.parametrize("path", DOORS)
def test_events_leave_one_by_one_as_they_come(path: str) -> None:
    small = make_house()
    small.upstream.script = [event_of(f"event {number}") for number in range(3)]

    _, body = serve(small, path)
    for number, piece in enumerate(body, 1):
        if b"[DONE]" not in piece:
            assert small.upstream.streams[0].given == number
            assert piece.count(b"\n\n") == 1
    body.close()  # type: ignore[attr-defined]  # what PEP 3333 asks servers to call

    assert small.journal.of(AuditType.LLM_END)[0].clear["st"] == "complete"


@pytest.mark.parametrize("path", DOORS)
def test_a_worker_that_is_stopped_in_mid_stream_gives_the_slot_back(path: str) -> None:
    small = make_house()
    small.upstream.script = [event_of("x"), GreenletExit()]

    _, body = serve(small, path)
    with pytest.raises(GreenletExit):
        for _ in body:
            pass
    body.close()  # type: ignore[attr-defined]  # what PEP 3333 asks servers to call

    assert small.in_flight() == []
    assert len(small.journal.of(AuditType.LLM_END)) == 1


# --- persons ----------------------------------------------------------------------------------------------------------


def test_the_person_is_taken_from_its_header_in_bounds() -> None:
    small = make_house()
    client = make_app(small).test_client()

    for person in ("ann@example.test", "ä" * 10_000, "a\x01b"):
        client.post("/chat", json={"prompt": "x"}, environ_overrides={"HTTP_X_USER_ID": person}, headers=BEARER)

    starts = small.journal.of(AuditType.LLM_START)
    told = [json.loads(start.body)["from"]["person"] for start in starts]
    assert told[0] == "ann@example.test"
    assert len(told[1]) == 256
    assert all("ann" not in str(start.clear) for start in starts)


def test_a_long_agent_is_kept_in_bounds() -> None:
    small = make_house()

    make_app(small).test_client().post("/chat", json={"prompt": "x"}, headers={"User-Agent": "a" * 8000, **BEARER})

    assert len(json.loads(small.journal.handed_over[0].body)["from"]["agent"]) == 1024
    assert make_inbound().user_agent
