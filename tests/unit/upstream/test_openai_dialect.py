"""A request of OpenAI's own format, put as the provider's kind wants it."""

from __future__ import annotations

import copy

import pytest

from secure_llm_proxy.foundation.errors import InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.upstream.formats.face import Written
from secure_llm_proxy.upstream.formats.openai_chat import OpenAiChat
from secure_llm_proxy.vocabulary.providers import provider_kinds
from tests.support.provider_formats import mistral

USER: JsonObject = {"role": "user", "content": "Hi."}


def adapt(payload: JsonObject, kind: str, *, stream: bool = False) -> Written:
    before = copy.deepcopy(payload)
    written = OpenAiChat().adapt(payload, "theirs", provider_kinds()[kind], stream=stream, ask_usage=True)
    assert payload == before
    return written


def test_openai_and_servers_of_which_nothing_is_known_get_it_as_it_came() -> None:
    payload: JsonObject = {"messages": [USER], "logit_bias": {"1": 1}, "made_up": None, "user": "u"}

    for kind in ("openai", "azure", "openai_compatible", "openrouter"):
        assert adapt(payload, kind) == Written({**payload, "model": "theirs", "stream": False})


def test_parameters_that_a_kind_calls_otherwise_get_its_names() -> None:
    told = adapt({"messages": [USER], "max_completion_tokens": 9, "seed": 7, "tool_choice": "required"}, "mistral")

    assert told == Written(
        {
            "messages": [USER],
            "max_tokens": 9,
            "random_seed": 7,
            "tool_choice": "any",
            "model": "theirs",
            "stream": False,
        }
    )


@pytest.mark.parametrize("names", [("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")])
def test_two_names_of_one_thing_may_agree_and_null_says_nothing(names: tuple[str, str]) -> None:
    first, second = names

    assert adapt({first: 9, second: 9}, "together").payload["max_tokens"] == 9
    assert adapt({first: None, second: 9}, "together").payload["max_tokens"] == 9
    assert adapt({first: 9, second: None}, "together").payload["max_tokens"] == 9
    with pytest.raises(InvalidRequest):
        adapt({first: 9, second: 8}, "together")


def test_what_a_kind_does_not_know_is_left_out_and_named_unless_it_says_nothing() -> None:
    told = adapt({"messages": [USER], "user": "u", "store": None, "metadata": {}, "verbosity": "low"}, "together")

    assert told.dropped == ("user", "verbosity")
    assert told.payload == {"messages": [USER], "model": "theirs", "stream": False}


def test_messages_that_openai_s_sdk_sends_back_fit_mistral() -> None:
    answer: JsonObject = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [{"id": "call_123", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
    }

    told = adapt(
        {
            "messages": [
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": "Hi.", "name": "ann"},
                answer,
                {"role": "tool", "tool_call_id": "call_123", "name": "clock", "content": "Noon."},
            ],
            "stream_options": {"include_usage": True},
        },
        "mistral",
        stream=True,
    )

    assert mistral.PROVIDER.chat.misfit(told.payload, ()) is None
    assert told.dropped == ("messages.name", "stream_options")
    messages = told.payload["messages"]
    assert isinstance(messages, list)
    system, _, called, result = messages
    assert system == {"role": "system", "content": "Be kind."}
    assert isinstance(called, dict)
    assert isinstance(result, dict)
    assert isinstance(called["tool_calls"], list)
    assert isinstance(called["tool_calls"][0], dict)
    assert called["tool_calls"][0]["id"] == result["tool_call_id"]
    assert len(str(result["tool_call_id"])) == 9
    assert result["name"] == "clock"


def test_what_is_no_message_is_left_to_the_provider() -> None:
    messages: JsonObject = {"messages": [7, {"role": 7, "tool_calls": [7, {"id": 7}], "tool_call_id": 7}]}

    assert adapt(messages, "mistral").payload["messages"] == messages["messages"]
