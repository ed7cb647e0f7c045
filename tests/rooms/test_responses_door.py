"""The door of the Responses API in front of real providers: the one that offers it, and those that speak something else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import SecretStr, TypeAdapter

from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.upstream.server_sent_events import ServerSentEventParser
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.providers import ProviderDefinition, provider_kinds
from tests.support.format_server import FormatServer
from tests.support.house import KEY, SmallHouse, make_app, make_house
from tests.support.provider_formats.playing import Failure
from tests.support.provider_formats.speaking import PLAIN, SIGNATURE, THOUGHT

MODELS = {
    "openai": "gpt-6",
    "anthropic": "claude-opus-5-5",
    "gemini": "gemini-2.5-flash",
    "cohere": "command-a-03-2025",
    "mistral": "mistral-large-latest",
    "groq": "llama-3.3-70b-versatile",
    "openrouter": "openai/gpt-6",
    "together": "meta-llama/Llama-4-Maverick",
    "azure": "my-gpt-deployment",
    "azure_deployments": "my-gpt-deployment",
}
NATIVE = ("openai", "azure")
TRANSLATED = [name for name in MODELS if name not in NATIVE]
# OpenAI shows no thoughts in chat completions, and there it takes whatever only tunes.
THINKING = [name for name in MODELS if name != "azure_deployments"]
BEARER = {"Authorization": f"Bearer {KEY}"}
TOOLS: list[JsonValue] = [
    {
        "type": "function", "name": "look_up", "description": "Looks a word up.", "strict": False,
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
    {
        "type": "function", "name": "add", "description": "Adds.", "strict": False,
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
]  # fmt: skip
Told = dict[str, Any]
KNOWN_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One provider behind the door; `model` is a good one of its own."""

    name: str
    small: SmallHouse
    client: FlaskClient
    far_end: FormatServer

    @property
    def model(self) -> str:
        return MODELS[self.name]

    def ask(self, **payload: Any) -> Told:  # noqa: ANN401  any JSON
        """The answer, in the shape that the SDK knows."""
        answer = self.post(**payload)
        assert answer.status_code == 200, answer.data
        told: Told = json.loads(answer.data)
        Response.model_validate(told)
        return told

    def stream(self, **payload: Any) -> list[Told]:  # noqa: ANN401  any JSON
        """The events, each in the shape that the SDK knows."""
        answer = self.post(stream=True, **payload)
        assert answer.status_code == 200, answer.data
        assert answer.content_type == "text/event-stream; charset=utf-8"
        sent = ServerSentEventParser(event_bytes_max=2**20).feed(answer.data)
        events = [json.loads(one.data) for one in sent]
        assert [one.name.decode() for one in sent] == [event["type"] for event in events]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        for event in events:
            KNOWN_EVENT.validate_python(event)
        return events

    def post(self, **payload: Any) -> Any:  # noqa: ANN401  any JSON, and werkzeug's test answer
        return self.client.post("/v1/responses", json={"model": self.model, "input": "Hi.", **payload}, headers=BEARER)

    def last(self, kind: AuditType) -> AuditEvent:
        return self.small.journal.of(kind)[-1]


@pytest.fixture(scope="module")
def far_end() -> Iterator[FormatServer]:
    with FormatServer() as server:
        yield server


def stand_before(name: str, far_end: FormatServer) -> tuple[Asked, Providers]:
    far_end.clear()
    models = (MODELS[name], f"{MODELS[name]}-thinking", "fail-mid-stream")
    small = make_house(models=models)
    played = name.partition("_")[0]
    url = far_end.origin(played) if provider_kinds()[name].base_url is None else far_end.url(played)
    query = "api-version=2024-10-21" if name == "azure_deployments" else ""
    known = ProviderDefinition("tested", name, url, (SecretStr(far_end.key(played)),), query=query)
    providers = Providers(UpstreamSettings(models=models), [known])
    small = dataclasses.replace(small, house=dataclasses.replace(small.house, upstream=providers))
    return Asked(name, small, make_app(small).test_client(), far_end), providers


@pytest.fixture(params=MODELS)
def asked(request: pytest.FixtureRequest, far_end: FormatServer) -> Iterator[Asked]:
    """The door before each provider in turn; none of them was asked for anything that it does not document."""
    made, providers = stand_before(request.param, far_end)
    yield made
    assert far_end.refused == []
    providers.close()


@pytest.fixture(params=TRANSLATED)
def translated(request: pytest.FixtureRequest, far_end: FormatServer) -> Iterator[Asked]:
    made, providers = stand_before(request.param, far_end)
    yield made
    assert far_end.refused == []
    providers.close()


def text_of(response: Told) -> str:
    return Response.model_validate(response).output_text


def calls_of(response: Told) -> list[Told]:
    return [item for item in response["output"] if item["type"] == "function_call"]


def test_a_plain_answer_is_a_response_with_usage_and_a_record(asked: Asked) -> None:
    told = asked.ask(instructions="Be brief.", max_output_tokens=100)

    assert (text_of(told), told["status"]) == (PLAIN, "completed")
    recorded = asked.last(AuditType.LLM_END).clear
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (recorded["tin"], recorded["tout"])
    assert asked.small.journal.types() == [AuditType.LLM_START, AuditType.LLM_END]
    assert asked.small.in_flight() == []


def test_a_stream_tells_the_same_piece_by_piece_and_is_recorded_as_text(asked: Asked) -> None:
    events = asked.stream()

    pieces = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(pieces) == PLAIN
    assert len(pieces) > 1
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"
    assert text_of(events[-1]["response"]) == PLAIN
    assert events[-1]["response"]["usage"]["total_tokens"] > 0
    assert json.loads(asked.last(AuditType.LLM_END).body)["text"] == PLAIN


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_their_results_are_understood(asked: Asked, *, streamed: bool) -> None:
    first = asked.stream(tools=TOOLS)[-1]["response"] if streamed else asked.ask(tools=TOOLS)
    calls = calls_of(first)
    results = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": f"result of {call['name']}"}
        for call in calls
    ]

    then = asked.ask(tools=TOOLS, input=[{"role": "user", "content": "Hi."}, *first["output"], *results])

    assert [(call["name"], json.loads(str(call["arguments"]))) for call in calls] == [
        ("look_up", {"word": "Paris"}),
        ("add", {"a": 7}),
    ]
    assert text_of(then) == "The tool said: result of look_up The tool said: result of add"


def test_a_forced_tool_is_called_alone(asked: Asked) -> None:
    if asked.name == "cohere":
        # Cohere has no way to force one of several.
        told = asked.ask(tools=TOOLS, tool_choice={"type": "allowed_tools", "mode": "required", "tools": [
            {"type": "function", "name": "add"}]})  # fmt: skip
    else:
        told = asked.ask(tools=TOOLS, tool_choice={"type": "function", "name": "add"})

    assert [call["name"] for call in calls_of(told)] == ["add"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_schema_is_kept(asked: Asked, *, streamed: bool) -> None:
    schema: JsonObject = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
        "required": ["city", "degrees"],
        "additionalProperties": False,
    }
    text: JsonObject = {"format": {"type": "json_schema", "name": "weather", "strict": True, "schema": schema}}

    told = asked.stream(text=text)[-1]["response"] if streamed else asked.ask(text=text)

    assert json.loads(text_of(told)) == {"city": "Paris", "degrees": 7}


def test_an_image_arrives(asked: Asked) -> None:
    image: JsonObject = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "auto"}

    told = asked.ask(input=[{"role": "user", "content": [{"type": "input_text", "text": "What is it?"}, image]}])

    assert text_of(told) == "I see image image/png of 8 bytes."


def test_too_few_tokens_leave_it_incomplete(asked: Asked) -> None:
    told, events = asked.ask(max_output_tokens=3), asked.stream(max_output_tokens=3)

    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert events[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize("asked", THINKING, indirect=True)
def test_thoughts_are_told_kept_on_record_and_come_back_with_their_proof(asked: Asked) -> None:
    events = asked.stream(model=f"{asked.model}-thinking", tools=TOOLS, reasoning={"effort": "low", "summary": "auto"})
    output = events[-1]["response"]["output"]
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "r"}
        for item in output
        if item["type"] == "function_call"
    ]

    asked.ask(
        model=f"{asked.model}-thinking",
        tools=TOOLS,
        reasoning={"effort": "low"},
        input=[{"role": "user", "content": "Hi."}, *output, *results],
    )

    assert THOUGHT in "".join(
        part["text"] for item in output if item["type"] == "reasoning" for part in item["summary"]
    )
    # The record has it in the pieces in which it came, in the provider's own form.
    record = b"".join(event.body for event in asked.small.journal.handed_over)
    assert THOUGHT.split()[0].encode() in record
    if asked.name in {"anthropic", "gemini"}:
        assert SIGNATURE.encode() in asked.far_end.asked(asked.name)[-1].body


@pytest.mark.parametrize(
    ("failure", "status"),
    [(Failure.RATE_LIMITED, 429), (Failure.CONTEXT_LENGTH, 400), (Failure.AUTHENTICATION, 502), (Failure.SERVER, 502)],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_has_its_status_and_the_one_shape(
    asked: Asked, failure: Failure, status: int, *, streamed: bool
) -> None:
    asked.far_end.fail(failure)

    answer = asked.post(stream=streamed)

    assert answer.status_code == status, answer.data
    assert set(answer.get_json()["error"]) == {"message", "type", "param", "code"}
    assert asked.small.in_flight() == []


def test_a_failure_in_mid_stream_is_one_error_event_that_repeats_nothing(asked: Asked) -> None:
    events = asked.stream(model="fail-mid-stream")

    assert [event["type"] for event in events].index("error") == len(events) - 1
    assert events[-1]["error"]["code"] == events[-1]["code"] == "upstream_error"
    assert asked.last(AuditType.LLM_END).clear["st"] == "upstream_error"
    assert asked.small.in_flight() == []


@pytest.mark.parametrize("translated", [name for name in TRANSLATED if name in THINKING], indirect=True)
def test_what_only_tunes_is_named_and_the_rest_is_refused_before_anything_is_sent(translated: Asked) -> None:
    answer = translated.post(metadata={"a": "b"}, store=True, prompt_cache_key="k", text={"verbosity": "low"})
    refused = translated.post(previous_response_id="resp_1")

    dropped = answer.headers["X-SLP-Dropped-Params"].split(", ")
    assert answer.status_code == 200
    assert {"metadata", "store", "prompt_cache_key", "verbosity"} <= set(dropped)
    assert (refused.status_code, refused.get_json()["error"]["param"]) == (400, "previous_response_id")
    assert len(translated.far_end.asked(translated.name.partition("_")[0])) == 1


def test_what_is_openai_s_own_passes_to_openai(far_end: FormatServer) -> None:
    asked, providers = stand_before("openai", far_end)

    asked.ask(previous_response_id="resp_1", metadata={"a": "b"}, store=True)

    [received] = far_end.asked("openai")
    assert received.path == "/openai/v1/responses"
    assert received.json == {
        "model": "gpt-6", "input": "Hi.", "previous_response_id": "resp_1", "metadata": {"a": "b"}, "store": True,
        "stream": False,
    }  # fmt: skip
    providers.close()


def test_nothing_is_kept_and_whoever_asks_for_it_is_told_so(far_end: FormatServer) -> None:
    asked, providers = stand_before("openai", far_end)

    in_background = asked.post(background=True)
    fetched = asked.client.get("/v1/responses/resp_1", headers=BEARER)
    unknown = asked.client.get("/v1/responses/resp_1")

    assert (in_background.status_code, in_background.get_json()["error"]["param"]) == (400, "background")
    assert (fetched.status_code, fetched.get_json()["error"]["code"]) == (404, "not_found")
    assert "not kept" in fetched.get_json()["error"]["message"]
    assert unknown.status_code == 401
    assert asked.small.journal.types() == [AuditType.REFUSED] * 3
    assert asked.small.in_flight() == []
    providers.close()
