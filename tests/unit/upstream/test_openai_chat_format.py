from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import ErrorCode, ProxyError, UpstreamFailed, UpstreamRefused
from secure_llm_proxy.upstream.endpoint import parse_endpoint
from secure_llm_proxy.upstream.formats.openai_chat import OpenAiChat, read_completion, read_stream_event
from secure_llm_proxy.upstream.http1 import AnswerHead
from secure_llm_proxy.upstream.model_lists import read_models
from secure_llm_proxy.upstream.refusals import error_of
from secure_llm_proxy.upstream.wording import Scrubber
from secure_llm_proxy.vocabulary.chat import Usage

_NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
_KEY = "sk-Secret.Key+1"
_SCRUBBER = Scrubber(parse_endpoint("https://llm.internal.example:8443/v1"), _KEY)


def _body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def _error(status: int, body: bytes = b"", **headers: str) -> ProxyError:
    head = AnswerHead(status, {name.replace("_", "-"): value for name, value in headers.items()}, keeps_alive=True)
    return error_of(head, body, wire_format=OpenAiChat(), scrubber=_SCRUBBER, now=_NOW)


def test_the_text_of_an_answer_is_that_of_its_choices_in_lines() -> None:
    body = _body(
        model="m-2026",
        choices=[
            {"message": {"content": "one"}},
            {"message": {"content": None, "tool_calls": []}},
            {"message": {"content": [{"type": "text", "text": "tw"}, {"type": "image"}, {"text": "o"}]}},
        ],
        usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    )

    completion = read_completion(body, model="m")

    assert completion.text == "one\ntwo"
    assert completion.model == "m-2026"
    assert completion.usage == Usage(3, 4, 7)
    assert completion.payload == json.loads(body)


def test_an_answer_that_names_no_model_has_the_route_s() -> None:
    assert read_completion(_body(choices=[]), model="m").model == "m"
    assert read_completion(_body(choices=[], model=7), model="m").model == "m"


@pytest.mark.parametrize("count", [-1, True, 1.5, "7", None, [1]])
def test_token_counts_that_are_no_counts_are_unknown(count: object) -> None:
    body = _body(choices=[], usage={"prompt_tokens": count, "completion_tokens": 0})

    assert read_completion(body, model="m").usage == Usage(None, 0, None)


@pytest.mark.parametrize("usage", [None, 7, "x", []])
def test_usage_that_is_no_object_is_unknown(usage: object) -> None:
    assert read_completion(_body(choices=[], usage=usage), model="m").usage == Usage()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"choices":[],"choices":[]}',
        b'{"choices":[],"x":NaN}',
        b'{"choices":[],"x":1e999}',
        b'{"choices":[],"x":"\\ud800"}',
        b'{"choices":[],"x":"\xff"}',
        b'\xef\xbb\xbf{"choices":[]}',
        b'{"choices":[],"x":' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"choices":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"choices":{}}',
        b'{"choices":[7]}',
        b'{"choices":[{"message":"x"}]}',
        b"{}",
    ],
)
def test_an_answer_that_could_be_read_in_two_ways_or_not_at_all_is_not_passed_on(body: bytes) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        read_completion(body, model="m")

    assert type(caught.value) is UpstreamFailed
    assert caught.value.public == "The provider's answer could not be understood."


def test_a_stream_event_carries_its_text_and_can_be_written_on_one_line() -> None:
    data = b'{"choices":[{"delta":{"content":"a"}},\n{"delta":{"content":"b"}},{"delta":null},{}]}'

    event, finished = read_stream_event(data)

    assert event.text == "ab"
    assert event.usage is None
    assert b"\n" not in event.data
    assert json.loads(event.data) == event.payload == json.loads(data)
    assert not finished


def test_an_event_on_one_line_is_kept_byte_for_byte() -> None:
    data = b'{ "choices" : [ { "delta" : { "content" : "\\u00e4" } , "finish_reason":"stop"} ], "usage":{"total_tokens":9}}'

    event, finished = read_stream_event(data)

    assert event.data == data
    assert event.usage == Usage(None, None, 9)
    assert finished


@given(
    payload=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=10),
            lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
            max_leaves=10,
        ),
        max_size=4,
    ).filter(lambda payload: not payload.keys() & {"choices", "error", "usage"}),
    ascii_only=st.booleans(),
)  # fmt: skip
def test_whatever_is_handed_on_can_be_written_again(payload: dict[str, object], *, ascii_only: bool) -> None:
    data = json.dumps({**payload, "choices": []}, ensure_ascii=ascii_only).encode("utf-8", "replace")

    event, _ = read_stream_event(data)

    assert strict_json.loads(strict_json.dumps(event.payload)) == event.payload


@pytest.mark.parametrize(
    ("error", "named"),
    [
        ({"message": "prompt text", "code": "server_error"}, "server_error"),
        ({"message": "prompt text", "code": None, "type": "overloaded"}, "overloaded"),
        ({"message": "prompt text", "code": "prompt text"}, "unnamed"),
        ("prompt text", "unnamed"),
    ],
)
def test_an_error_event_is_a_failure_whose_words_stay_inside(error: object, named: str) -> None:
    for read in (read_stream_event, lambda data: read_completion(data, model="m")):
        with pytest.raises(UpstreamFailed) as caught:
            read(_body(error=error))

        assert caught.value.public == "The provider reported an error while it answered."
        assert caught.value.detail is not None
        assert named in caught.value.detail
        assert "prompt text" not in caught.value.detail


def test_the_model_list_gives_each_usable_name_once_in_order() -> None:
    names: list[object] = ["b", "a", "b", "", 7, None, "with space", "line\nbreak", "x" * 257, "org/model:latest"]

    assert read_models(_body(data=[{"id": name} for name in names] + [7, {}])) == ("b", "a", "org/model:latest")


@pytest.mark.parametrize("body", [b"{}", b'{"data":{}}', b"[]", b"x"])
def test_a_model_list_without_data_is_a_failure(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        read_models(body)


@pytest.mark.parametrize("status", [401, 402, 403])
def test_refused_credentials_say_nothing_of_the_provider_s(status: int) -> None:
    error = _error(status, _body(error={"message": f"bad key {_KEY}", "code": "invalid_api_key"}))

    assert type(error) is UpstreamFailed
    assert (error.status, error.code) == (502, ErrorCode.UPSTREAM_ERROR)
    assert error.public == "The provider refused the proxy's credentials."
    assert _KEY not in f"{error.public}{error.detail}{error.param}"


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("0", 1),
        ("99999", 3_600),
        ("9" * 5_000, 3_600),
        ("Sat, 21 Nov 2026 12:01:30 GMT", 90),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 1),
        ("Sat, 21 Nov 2099 11:00:00 GMT", 3_600),
        ("Sat, 21 Nov 2026 12:01:30", 1),
        ("-5", 1),
        ("1.5", 1),
        ("soon", 1),
        ("\u0667", 1),
        (None, 1),
    ],
)
def test_a_rate_limit_is_passed_on_with_a_bounded_wait(retry_after: str | None, seconds: int) -> None:
    error = _error(429, b"{}") if retry_after is None else _error(429, b"{}", retry_after=retry_after)

    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.code) == (429, ErrorCode.UPSTREAM_RATE_LIMITED)
    assert error.retry_after_s == seconds


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_a_refused_request_keeps_its_status_and_the_provider_s_words(status: int) -> None:
    error = _error(status, _body(error={"message": "temperature is too high", "param": "temperature", "code": "x"}))

    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.code) == (status, ErrorCode.UPSTREAM_REJECTED)
    assert (error.public, error.param) == ("temperature is too high", "temperature")


def test_a_prompt_that_is_too_long_for_the_model_has_its_own_code() -> None:
    error = _error(400, _body(error={"message": "too long", "code": "context_length_exceeded", "param": "messages"}))

    assert error.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED


@pytest.mark.parametrize(
    "body", [b"", b"<html>llm.internal.example</html>", b"{}", b'{"error":7}', b'{"error":{"message":7}}', b"\xff"]
)
def test_a_refusal_without_readable_words_has_ours(body: bytes) -> None:
    error = _error(400, body)

    assert error.public == "The provider refused the request."
    assert error.param is None


def test_a_refusal_in_one_string_is_understood() -> None:
    assert _error(400, b'{"error":"no such thing"}').public == "no such thing"


@pytest.mark.parametrize("status", [201, 204, 206, 301, 302, 307, 308, 405, 406, 408, 418, 500, 502, 504])
def test_any_other_status_is_a_failure_of_the_provider(status: int) -> None:
    error = _error(status, _body(error={"message": "internal words"}), retry_after="9")

    assert type(error) is UpstreamFailed
    assert (error.status, error.code, error.retry_after_s) == (502, ErrorCode.UPSTREAM_ERROR, None)
    assert error.public == "The provider failed to answer the request."


def test_an_overloaded_provider_s_wait_is_passed_on() -> None:
    error = _error(503, b"", retry_after="20")

    assert (error.status, error.retry_after_s) == (502, 20)
