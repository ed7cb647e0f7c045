"""Anthropic's doors in front of played providers: Anthropic itself, and those that speak something else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr
from werkzeug.test import TestResponse

from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from tests.support.anthropic_events import Message, assemble
from tests.support.format_server import FormatServer
from tests.support.house import KEY, SmallHouse, make_app, make_house
from tests.support.provider_formats.playing import Failure
from tests.support.provider_formats.speaking import COUNTS, PLAIN, SIGNATURE, THOUGHT

MODELS = {
    "anthropic": "claude-opus-5-5",
    "openai": "gpt-6",
    "groq": "openai/gpt-oss-120b",
    "gemini": "gemini-2.5-flash",
    "cohere": "command-a-03-2025",
}
TRANSLATED = [name for name in MODELS if name != "anthropic"]
HEADERS = {"x-api-key": KEY, "anthropic-version": "2026-10-21", "anthropic-beta": "context-1m-2025-08-07"}
CACHE = {"cache_control": {"type": "ephemeral"}}
TOOLS = [
    {
        "name": name,
        "description": "Tells it.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    for name in ("weather", "time")
]
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
Told = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One provider behind the doors; `model` is a good one of its own."""

    name: str
    small: SmallHouse
    client: FlaskClient
    far_end: FormatServer

    @property
    def model(self) -> str:
        return MODELS[self.name]

    def post(self, path: str = "/v1/messages?beta=true", /, **fields: object) -> TestResponse:
        asked = {"model": self.model, "messages": [{"role": "user", "content": "Hi."}], **fields}
        return self.client.post(path, json=asked, headers=HEADERS)

    def ask(self, **fields: object) -> Told:
        answer = self.post(**{"max_tokens": 100, **fields})
        assert answer.status_code == 200, answer.data
        told: Told = json.loads(answer.data)
        assert (told["type"], told["role"]) == ("message", "assistant")
        return told

    def stream(self, **fields: object) -> Message:
        answer = self.post(**{"max_tokens": 100, "stream": True, **fields})
        assert answer.status_code == 200, answer.data
        message = assemble(answer.data)
        assert message.ended
        return message


@pytest.fixture(scope="module")
def far_end() -> Iterator[FormatServer]:
    with FormatServer() as server:
        yield server


def _stand_before(name: str, far_end: FormatServer) -> Iterator[Asked]:
    far_end.clear()
    models = (MODELS[name], f"{MODELS[name]}-thinking", *(f"fail-{failure}" for failure in Failure))
    small = make_house(models=models)
    known = ProviderDefinition("tested", name, far_end.url(name), (SecretStr(far_end.key(name)),))
    providers = Providers(UpstreamSettings(models=models), [known])
    small = dataclasses.replace(small, house=dataclasses.replace(small.house, upstream=providers))
    yield Asked(name, small, make_app(small).test_client(), far_end)
    assert far_end.refused == []
    providers.close()


@pytest.fixture(params=MODELS)
def asked(request: pytest.FixtureRequest, far_end: FormatServer) -> Iterator[Asked]:
    """The doors before each provider in turn; none of them was asked for anything that it does not document."""
    yield from _stand_before(request.param, far_end)


@pytest.fixture(params=TRANSLATED)
def translated(request: pytest.FixtureRequest, far_end: FormatServer) -> Iterator[Asked]:
    yield from _stand_before(request.param, far_end)


@pytest.fixture
def passed(far_end: FormatServer) -> Iterator[Asked]:
    yield from _stand_before("anthropic", far_end)


def _calls(told: Told) -> list[Told]:
    return [block for block in told["content"] if block["type"] == "tool_use"]


def _text(told: Told) -> str:
    return "".join(block["text"] for block in told["content"] if block["type"] == "text")


def test_a_plain_answer_is_a_message_with_usage_and_a_record(asked: Asked) -> None:
    told = asked.ask(system=[{"type": "text", "text": "Be brief.", **CACHE}])

    assert (_text(told), told["stop_reason"]) == (PLAIN, "end_turn")
    usage = told["usage"]
    read, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    assert usage["input_tokens"] + read + written == COUNTS.prompt
    recorded = asked.small.journal.of(AuditType.LLM_END)[-1].clear
    assert (recorded["tin"], recorded["tout"]) == (COUNTS.prompt, usage["output_tokens"])
    assert asked.small.in_flight() == []


def test_a_stream_says_what_a_plain_answer_says(asked: Asked) -> None:
    plain, streamed = asked.ask(), asked.stream()

    assert streamed.text == _text(plain) == PLAIN
    assert streamed.told["stop_reason"] == plain["stop_reason"]
    assert streamed.told["usage"]["output_tokens"] == plain["usage"]["output_tokens"]
    ends = asked.small.journal.of(AuditType.LLM_END)
    assert len({(end.clear["tin"], end.clear["tout"]) for end in ends}) == 1
    assert PLAIN.encode() in ends[-1].body


def test_tools_are_called_together_and_their_results_come_back(asked: Asked) -> None:
    question = {"role": "user", "content": [{"type": "text", "text": "Warm?", **CACHE}]}
    plain = asked.ask(tools=TOOLS, messages=[question])
    streamed = asked.stream(tools=TOOLS, messages=[question])

    assert [(call["name"], call["input"]) for call in _calls(plain)] == [
        (name, json.loads(written)) for _, name, written in streamed.calls
    ]
    assert plain["stop_reason"] == streamed.told["stop_reason"] == "tool_use"
    assert len({call["id"] for call in _calls(plain)}) == 2

    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "4°", **CACHE} for call in _calls(plain)]
    turns = [question, {"role": "assistant", "content": plain["content"]}, {"role": "user", "content": results}]
    assert _text(asked.ask(tools=TOOLS, messages=turns)).count("4°") == 2


def test_one_tool_is_forced_and_called_alone(asked: Asked) -> None:
    choice = {"type": "tool", "name": "time"} if asked.name != "cohere" else {"type": "any"}

    calls = _calls(asked.ask(tools=TOOLS, tool_choice=choice))

    assert "time" in [call["name"] for call in calls]


def test_an_answer_follows_a_schema(asked: Asked) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }

    told = asked.ask(output_config={"format": {"type": "json_schema", "schema": schema}})

    assert set(json.loads(_text(told))) == {"city"}


def test_pictures_are_seen(asked: Asked) -> None:
    content = [{"type": "text", "text": "What is it?"}, PICTURE]

    assert "image/png" in _text(asked.ask(messages=[{"role": "user", "content": content}]))


def test_thoughts_are_blocks_of_their_own_and_may_come_back(asked: Asked) -> None:
    model = f"{asked.model}-thinking"
    told = asked.ask(model=model, max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 1024})
    streamed = asked.stream(model=model, max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 1024})

    thoughts = [block for block in told["content"] if block["type"] == "thinking"]
    # OpenAI tells none in its chat completions.
    expected = [] if asked.name == "openai" else [THOUGHT]
    assert [block["thinking"] for block in thoughts] == expected
    assert [block["thinking"] for block in streamed.blocks if block["type"] == "thinking"] == expected
    assert [block["signature"] for block in thoughts if block["signature"]] == (
        [SIGNATURE] if asked.name == "anthropic" else []
    )
    turns = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": told["content"]},
        {"role": "user", "content": "And?"},
    ]
    assert _text(asked.ask(messages=turns)) == PLAIN


def test_a_bound_and_a_stop_sequence_end_an_answer(asked: Asked) -> None:
    cut = asked.ask(max_tokens=2)
    stopped = asked.ask(stop_sequences=[","])

    assert (_text(cut), cut["stop_reason"]) == ("All is", "max_tokens")
    assert _text(stopped) == "All is well"
    assert stopped["stop_reason"] in {"stop_sequence", "end_turn"}


def test_what_is_left_out_is_named_once(translated: Asked) -> None:
    content = [{"type": "text", "text": "Hi.", **CACHE}, {"type": "text", "text": "So?", **CACHE}]

    answer = translated.post(
        max_tokens=100,
        messages=[{"role": "user", "content": content}],
        service_tier="auto",
        context_management={"edits": []},
        thinking={"type": "adaptive"},
    )

    dropped = answer.headers["X-SLP-Dropped-Params"].split(", ")
    # OpenAI has a tier of its own by that name.
    tier = [] if translated.name == "openai" else ["service_tier"]
    assert sorted(dropped) == ["cache_control", "context_management", *tier, "thinking"]
    assert all("anthropic-beta" not in request.headers for request in translated.far_end.received)


def test_what_a_coding_agent_asks_in_the_midst_of_its_work_is_understood(translated: Asked) -> None:
    called = [
        {"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmVk"},
        {"type": "text", "text": "I'll look."},
        {
            "type": "tool_use",
            "id": "toolu_1",
            "name": "weather",
            "input": {"city": "Oslo"},
            "caller": {"type": "direct"},
        },
        {"type": "tool_use", "id": "toolu_2", "name": "time", "input": {"city": "Oslo"}, **CACHE},
    ]
    results: list[Told] = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "4°"}, PICTURE]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "late", "is_error": True, **CACHE},
        {"type": "text", "text": "<reminder>Be brief.</reminder>", **CACHE},
    ]
    fields: Told = {
        "system": [
            {"type": "text", "text": "You are an agent.", **CACHE},
            {"type": "text", "text": "Be good.", **CACHE},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Warm?", **CACHE}]},
            {"role": "system", "content": [{"type": "text", "text": "The user likes tables.", **CACHE}]},
            {"role": "assistant", "content": called},
            {"role": "user", "content": results},
        ],
        "tools": [{**tool, "eager_input_streaming": True} for tool in TOOLS],
        "max_tokens": 32_000,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "user_" + "a" * 64 + "_account__session_" + "b" * 36},
    }
    if translated.name in ("cohere", "gemini"):
        # No place for pictures in what a tool says; Gemini has it since its third generation.
        results[0]["content"] = "4°"

    told, streamed = translated.ask(**fields), translated.stream(**fields)

    assert told["content"]
    assert streamed.blocks
    for request in translated.far_end.asked(translated.name):
        sent = request.body.decode()
        for said in ("You are an agent.", "Be good.", "Warm?", "likes tables", "Oslo", "4°", "late", "<reminder>"):
            assert said in sent


def test_what_only_anthropic_can_do_is_refused_before_anything_is_sent(translated: Asked) -> None:
    answer = translated.post(max_tokens=9, tools=[{"type": "web_search_20250305", "name": "web_search"}])

    assert answer.status_code == 400
    assert json.loads(answer.data)["error"]["code"] == "unsupported_parameter"
    assert translated.far_end.asked(translated.name) == []


def test_anthropic_gets_what_the_client_wrote(passed: Asked) -> None:
    fields: Told = {
        "max_tokens": 100,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi.", **CACHE}]}],
        "tools": [{**TOOLS[0], "eager_input_streaming": True, **CACHE}],
        "metadata": {"user_id": "u" * 100},
    }

    answer = passed.post(**fields)

    [received] = passed.far_end.asked("anthropic")
    assert received.json == {"model": passed.model, **fields, "stream": False}
    assert received.headers["anthropic-version"] == "2026-10-21"
    assert received.headers["anthropic-beta"] == "context-1m-2025-08-07"
    assert "X-SLP-Dropped-Params" not in answer.headers


@pytest.mark.parametrize(
    "failure", [Failure.RATE_LIMITED, Failure.CONTEXT_LENGTH, Failure.OVERLOADED, Failure.NOT_FOUND]
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_have_anthropic_s_shape(asked: Asked, failure: Failure, stream: bool) -> None:  # noqa: FBT001  of the matrix
    answer = asked.post(model=f"fail-{failure}", max_tokens=9, stream=stream)

    status, kind = {
        Failure.RATE_LIMITED: (429, "rate_limit_error"),
        Failure.CONTEXT_LENGTH: (400, "invalid_request_error"),
        Failure.OVERLOADED: (502, "api_error"),
        Failure.NOT_FOUND: (404, "not_found_error"),
    }[failure]
    told = json.loads(answer.data)
    assert (answer.status_code, told["error"]["type"], told["type"]) == (status, kind, "error")


def test_a_stream_that_breaks_off_ends_in_an_error_event(asked: Asked) -> None:
    answer = asked.post(model="fail-mid-stream", max_tokens=9, stream=True)

    *before, last = answer.data.split(b"\n\n")[:-1]
    name, data = last.decode().split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert b"message_stop" not in answer.data
    assert not assemble(b"".join(frame + b"\n\n" for frame in before)).ended


def test_tokens_are_counted_by_who_can_and_estimated_for_who_can_t(asked: Asked) -> None:
    answer = asked.post("/v1/messages/count_tokens", tools=TOOLS)

    tokens = json.loads(answer.data)["input_tokens"]
    kinds = [event.type for event in asked.small.journal.handed_over]
    assert kinds == [AuditType.LLM_START, AuditType.LLM_END]
    if asked.name not in ("anthropic", "gemini"):
        assert answer.headers["X-SLP-Token-Count"] == "estimate"
        assert tokens > 20
        assert asked.far_end.asked(asked.name) == []
    else:
        assert "X-SLP-Token-Count" not in answer.headers
        assert tokens == COUNTS.prompt
