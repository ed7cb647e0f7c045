"""The shape of `/chat`: one of three ways to say what is asked, two names for the model, everything else passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.settings import LimitSettings
from secure_llm_proxy.vocabulary.chat import ChatRequest, Usage
from secure_llm_proxy.web.chat.wire import envelope, read_prompt

LIMITS = LimitSettings()
USER: list[JsonValue] = [{"role": "user", "content": "Hi."}]
NOT_PARTS: JsonObject = {"role": "user", "content": ["canary"]}


def read(body: JsonObject, limits: LimitSettings = LIMITS) -> ChatRequest:
    return read_prompt(body, limits)


def refused(body: JsonObject, limits: LimitSettings = LIMITS) -> tuple[ErrorCode, str | None]:
    with pytest.raises(InvalidRequest) as error:
        read_prompt(body, limits)
    assert error.value.status == 400
    assert "canary" not in error.value.public
    return error.value.code, error.value.param


# --- prompt, message, messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt", "message"])
def test_a_prompt_becomes_one_message_of_the_user(name: str) -> None:
    assert read({name: "Hi."}).payload == {"messages": USER}


def test_messages_pass_as_they_are() -> None:
    parts: list[JsonValue] = [{"type": "text", "text": "Hi."}, {"type": "image_url", "image_url": {"url": "x"}}]
    user: JsonObject = {"role": "user", "content": parts}
    messages: list[JsonValue] = [
        {"role": "system", "content": "Be short.", "odd": 1},
        user,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    ]

    assert read({"messages": messages}).payload == {"messages": messages}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "canary", "message": "canary"}, "message"),
        ({"prompt": "canary", "messages": USER}, "messages"),
        ({"message": "canary", "messages": USER}, "messages"),
        ({"prompt": "canary", "message": "canary", "messages": USER}, "message"),
        ({"prompt": "same", "message": "same"}, "message"),
    ],
)
def test_only_one_way_to_ask_is_taken(body: JsonObject, param: str) -> None:
    assert refused(body) == (ErrorCode.INVALID_VALUE, param)


@pytest.mark.parametrize(
    "body", [{}, {"model": "x"}, {"prompt": None}, {"prompt": None, "message": None, "messages": None}]
)
def test_asking_nothing_is_a_missing_parameter(body: JsonObject) -> None:
    assert refused(body) == (ErrorCode.MISSING_PARAMETER, "prompt")


@pytest.mark.parametrize("name", ["prompt", "message"])
@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003"])
def test_an_empty_prompt_is_refused(name: str, text: str) -> None:
    assert refused({name: text}) == (ErrorCode.INVALID_VALUE, name)


def test_a_null_beside_the_one_that_is_given_says_nothing() -> None:
    assert read({"prompt": "Hi.", "message": None, "messages": None}).payload == {"messages": USER}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"prompt": 7}, ErrorCode.INVALID_TYPE, "prompt"),
        ({"prompt": ["canary"]}, ErrorCode.INVALID_TYPE, "prompt"),
        ({"prompt": {"canary": 1}}, ErrorCode.INVALID_TYPE, "prompt"),
        ({"message": True}, ErrorCode.INVALID_TYPE, "message"),
        ({"messages": "canary"}, ErrorCode.INVALID_TYPE, "messages"),
        ({"messages": {}}, ErrorCode.INVALID_TYPE, "messages"),
        ({"messages": []}, ErrorCode.INVALID_VALUE, "messages"),
        ({"messages": ["canary"]}, ErrorCode.INVALID_TYPE, "messages.0"),
        ({"messages": [{"content": "canary"}]}, ErrorCode.MISSING_PARAMETER, "messages.0.role"),
        ({"messages": [{"role": 1, "content": "x"}]}, ErrorCode.INVALID_TYPE, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, ErrorCode.INVALID_TYPE, "messages.0.content"),
        ({"messages": [*USER, NOT_PARTS]}, ErrorCode.INVALID_TYPE, "messages.1.content"),
        ({"prompt": "x", "stream": "yes"}, ErrorCode.INVALID_TYPE, "stream"),
        ({"prompt": "x", "stream": 1}, ErrorCode.INVALID_TYPE, "stream"),
        ({"prompt": "x", "model": 5}, ErrorCode.INVALID_TYPE, "model"),
        ({"prompt": "x", "model": ""}, ErrorCode.INVALID_VALUE, "model"),
        ({"prompt": "x", "model": "m" * 257}, ErrorCode.INVALID_VALUE, "model"),
        ({"prompt": "x", "model_name": []}, ErrorCode.INVALID_TYPE, "model_name"),
        ({"prompt": "x", "temperature": "hot"}, ErrorCode.INVALID_TYPE, "temperature"),
        ({"prompt": "x", "temperature": True}, ErrorCode.INVALID_TYPE, "temperature"),
        ({"prompt": "x", "max_tokens": 0}, ErrorCode.INVALID_VALUE, "max_tokens"),
        ({"prompt": "x", "max_tokens": -5}, ErrorCode.INVALID_VALUE, "max_tokens"),
        ({"prompt": "x", "max_tokens": 1.5}, ErrorCode.INVALID_TYPE, "max_tokens"),
        ({"prompt": "x", "max_tokens": "5"}, ErrorCode.INVALID_TYPE, "max_tokens"),
    ],
)
def test_a_wrong_type_names_its_parameter_and_quotes_no_value(body: JsonObject, code: ErrorCode, param: str) -> None:
    assert refused(body) == (code, param)


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "model"),
    [
        ({}, None),
        ({"model": "a"}, "a"),
        ({"model_name": "a"}, "a"),
        ({"model": "a", "model_name": "a"}, "a"),
        ({"model": None, "model_name": "a"}, "a"),
        ({"model": "a", "model_name": None}, "a"),
    ],
)
def test_the_model_has_two_names(names: JsonObject, model: str | None) -> None:
    request = read({"prompt": "x", **names})

    assert request.model == model
    assert "model_name" not in request.payload


def test_two_different_models_are_refused() -> None:
    assert refused({"prompt": "x", "model": "a", "model_name": "b"}) == (ErrorCode.INVALID_VALUE, "model_name")


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["a", "ä", "漢", "😀", "\u200b"])
@pytest.mark.parametrize("name", ["prompt", "message"])
def test_length_counts_characters_and_not_bytes(name: str, character: str) -> None:
    assert read({name: "x" + character * 9_999}).payload["messages"]

    assert refused({name: "x" + character * 10_000}) == (ErrorCode.PROMPT_TOO_LONG, name)


def test_the_length_of_messages_is_that_of_all_their_text() -> None:
    def body(size: int) -> JsonObject:
        text = "ä" * size
        return {
            "messages": [
                {"role": "system", "content": text},
                {"role": "user", "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {}}]},
                {"role": "assistant", "content": None},
            ]
        }

    limits = LimitSettings(prompt_characters_max=20)

    assert read(body(10), limits).payload == body(10)
    assert refused(body(11), limits) == (ErrorCode.PROMPT_TOO_LONG, "messages")


def test_too_many_messages_are_refused_and_as_many_as_allowed_are_not() -> None:
    assert read({"messages": USER * 512}).payload["messages"]
    assert refused({"messages": USER * 513}) == (ErrorCode.INVALID_VALUE, "messages")


# --- everything else --------------------------------------------------------------------------------------------------


def test_unknown_parameters_are_kept_as_they_came() -> None:
    others: JsonObject = {
        "temperature": 0.5, "max_tokens": 7, "user": "u", "seed": 1, "response_format": {"type": "json_object"},
        "new_one": [1, {"deep": None}], "tools": [{"type": "function"}], "model_config": 1, "model_fields": 2, "": 3,
        "__init__": 4, "self": 5, "stream_options": {"include_usage": True}, "läng": "😀",
    }  # fmt: skip

    assert read({"prompt": "Hi.", **others}).payload == {"messages": USER, **others}


_ANY: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(
    ["prompt", "message", "messages", "model", "model_name", "stream", "temperature", "top_p", "n", "max_tokens", "tools",
     "stream_options", "user", "odd", "model_config", "__class__"]
)  # fmt: skip


@given(st.dictionaries(_NAMES, _ANY, max_size=6))
def test_any_object_is_a_request_or_a_refusal(body: JsonObject) -> None:
    try:
        request = read(body)
    except InvalidRequest as error:
        assert (error.status, error.public.isprintable()) == (400, True)  # noqa: PT017  both outcomes are right
        return

    kept = {name: value for name, value in body.items() if name not in {"prompt", "message", "model_name", "messages"}}
    assert {name: value for name, value in request.payload.items() if name != "messages"} == kept


def test_the_envelope_says_null_where_nothing_is_known_and_never_clean() -> None:
    told = envelope(
        request_id="exc_1", audit_id="rec", model="m", response="Hello.", timestamp="t", usage=Usage(3, 2, 5)
    )

    assert told["status"] == "success"
    assert (told["request_id"], told["audit_id"], told["model_used"], told["response"]) == (
        "exc_1",
        "rec",
        "m",
        "Hello.",
    )
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert told["cost_usd"] is None
    analysis = told["security_analysis"]
    assert isinstance(analysis, dict)
    assert set(analysis) == {
        "prompt_injection", "pii_redaction_prompt", "pii_redaction_response", "harmful_content", "overall_risk_assessment",
    }  # fmt: skip
    assert set(analysis.values()) == {None}
