"""OpenAI's chat completion request: types where they matter, everything passed on."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.vocabulary.chat import ChatRequest
from secure_llm_proxy.web.openai.wire import read_chat_completion

USER: list[JsonValue] = [{"role": "user", "content": "Hi."}]


def read(body: JsonObject) -> ChatRequest:
    return read_chat_completion(body, messages_max=5)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": None}, ErrorCode.INVALID_TYPE, "messages"),
        ({"messages": "canary"}, ErrorCode.INVALID_TYPE, "messages"),
        ({"messages": []}, ErrorCode.INVALID_VALUE, "messages"),
        ({"messages": USER * 6}, ErrorCode.INVALID_VALUE, "messages"),
        ({"messages": [None]}, ErrorCode.INVALID_TYPE, "messages.0"),
        ({"messages": [{}]}, ErrorCode.MISSING_PARAMETER, "messages.0.role"),
        ({"messages": [{"role": ""}]}, ErrorCode.INVALID_VALUE, "messages.0.role"),
        ({"messages": [{"role": "canary" * 20}]}, ErrorCode.INVALID_VALUE, "messages.0.role"),
        ({"messages": [{"role": "user", "content": {"canary": 1}}]}, ErrorCode.INVALID_TYPE, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [1]}]}, ErrorCode.INVALID_TYPE, "messages.0.content"),
        ({"messages": [{"role": "user", "name": 1}]}, ErrorCode.INVALID_TYPE, "messages.0.name"),
        ({"model": 1}, ErrorCode.INVALID_TYPE, "model"),
        ({"model": ""}, ErrorCode.INVALID_VALUE, "model"),
        ({"stream": "true"}, ErrorCode.INVALID_TYPE, "stream"),
        ({"stream": 0}, ErrorCode.INVALID_TYPE, "stream"),
        ({"temperature": "canary"}, ErrorCode.INVALID_TYPE, "temperature"),
        ({"temperature": []}, ErrorCode.INVALID_TYPE, "temperature"),
        ({"top_p": False}, ErrorCode.INVALID_TYPE, "top_p"),
        ({"n": 0}, ErrorCode.INVALID_VALUE, "n"),
        ({"n": 129}, ErrorCode.INVALID_VALUE, "n"),
        ({"n": "1"}, ErrorCode.INVALID_TYPE, "n"),
        ({"max_tokens": 0}, ErrorCode.INVALID_VALUE, "max_tokens"),
        ({"max_completion_tokens": 2.5}, ErrorCode.INVALID_TYPE, "max_completion_tokens"),
        ({"user": 5}, ErrorCode.INVALID_TYPE, "user"),
        ({"safety_identifier": {}}, ErrorCode.INVALID_TYPE, "safety_identifier"),
        ({"stream_options": True}, ErrorCode.INVALID_TYPE, "stream_options"),
        ({"tools": {}}, ErrorCode.INVALID_TYPE, "tools"),
        ({"tools": ["canary"]}, ErrorCode.INVALID_TYPE, "tools.0"),
        ({"tools": [{}] * 129}, ErrorCode.INVALID_VALUE, "tools"),
    ],
)
def test_a_wrong_value_names_its_parameter_and_is_not_quoted(change: JsonObject, code: ErrorCode, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read({"messages": USER, **change})

    assert (refused.value.code, refused.value.param) == (code, param)
    assert f"`{param}`" in refused.value.public or param in refused.value.public
    assert "canary" not in refused.value.public


def test_without_messages_there_is_no_request() -> None:
    with pytest.raises(InvalidRequest) as refused:
        read({"model": "m", "prompt": "Hi."})

    assert (refused.value.code, refused.value.param) == (ErrorCode.MISSING_PARAMETER, "messages")


@pytest.mark.parametrize("value", [0, 0.0, 1, 2, 0.7, -1, None])
def test_numbers_are_whole_or_not_and_the_provider_judges_their_range(value: JsonValue) -> None:
    assert read({"messages": USER, "temperature": value, "top_p": value}).payload["temperature"] == value


def test_a_request_is_what_it_says() -> None:
    assert (read({"messages": USER}).model, read({"messages": USER}).stream) == (None, False)
    request = read({"messages": USER, "model": "m", "stream": True})
    assert (request.model, request.stream) == ("m", True)


def test_the_payload_is_the_body_with_every_parameter_untouched() -> None:
    body: JsonObject = {
        "messages": [
            {"role": "developer", "content": "x", "odd": {"a": [1]}},
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}], "name": "n"},
            {"role": "assistant", "tool_calls": [{"id": "1"}], "refusal": None},
        ],
        "logit_bias": {"50256": -100}, "metadata": {"a": "b"}, "service_tier": "flex", "model_config": {"x": 1},
        "__pydantic_extra__": 1, "copy": 2, "json": 3, "": None, "reasoning_effort": "high",
    }  # fmt: skip
    before = copy.deepcopy(body)

    assert read(body).payload == before


def test_a_hostile_parameter_name_is_not_echoed_raw() -> None:
    with pytest.raises(InvalidRequest) as refused:
        read({"messages": [{"role": "user", "content": [{"\x1b[2J\u2028": 1}, 5]}]})

    assert refused.value.public.isprintable()
    assert (refused.value.param or "").isascii()


_ANY: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["messages", "model", "stream", "n", "tools", "user", "x", "stream_options"])
        | st.text(max_size=5),
        _ANY,
    )
)
def test_any_object_is_a_request_or_a_refusal(body: JsonObject) -> None:
    try:
        assert read(body).payload == body
    except InvalidRequest as refused:
        assert (refused.status, refused.public.isprintable()) == (400, True)  # noqa: PT017  both outcomes are right
