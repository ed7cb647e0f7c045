"""OpenAI's chat, completions and embeddings in front of real providers of every format, played by their documentation."""

from __future__ import annotations

import base64
import dataclasses
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import SecretStr

from secure_llm_proxy.foundation.strict_json import JsonValue
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.upstream.server_sent_events import ServerSentEventParser
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from tests.support.format_server import FormatServer
from tests.support.house import KEY, SmallHouse, make_app, make_house
from tests.support.provider_formats.playing import Failure
from tests.support.provider_formats.speaking import COUNTS, PLAIN, THOUGHT

MODELS = {
    "openai": "gpt-6",
    "anthropic": "claude-opus-5-5",
    "gemini": "gemini-2.5-flash",
    "cohere": "command-a-03-2025",
    "mistral": "mistral-large-latest",
    "together": "meta-llama/Llama-4-Maverick",
}
TRANSLATED = ["anthropic", "gemini", "cohere"]
WITH_COMPLETIONS = ["openai", "together"]
BEARER = {"Authorization": f"Bearer {KEY}"}
USER: JsonValue = [{"role": "user", "content": "How are things?"}]
TOOLS: list[JsonValue] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("weather", "forecast")
]
Told = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One provider behind the doors."""

    name: str
    small: SmallHouse
    client: FlaskClient
    far_end: FormatServer

    def post(self, path: str, **payload: Any) -> Any:  # noqa: ANN401  any JSON, and werkzeug's test answer
        return self.client.post(path, json={"model": MODELS[self.name], **payload}, headers=BEARER)

    def ask(self, path: str, **payload: Any) -> Told:  # noqa: ANN401  any JSON
        answer = self.post(path, **payload)
        assert answer.status_code == 200, answer.data
        told: Told = json.loads(answer.data)
        return told

    def chat(self, **payload: Any) -> ChatCompletion:  # noqa: ANN401  any JSON
        """The answer, in the shape that the SDK knows."""
        return ChatCompletion.model_validate(self.ask("/v1/chat/completions", **{"messages": USER, **payload}))

    def stream(self, path: str, **payload: Any) -> list[Told]:  # noqa: ANN401  any JSON
        """The events before the end mark."""
        answer = self.post(path, stream=True, **payload)
        assert answer.status_code == 200, answer.data
        *events, last = ServerSentEventParser(event_bytes_max=2**20).feed(answer.data)
        assert last.data == b"[DONE]"
        return [json.loads(event.data) for event in events]

    def chunks(self, **payload: Any) -> list[ChatCompletionChunk]:  # noqa: ANN401  any JSON
        told = self.stream("/v1/chat/completions", **{"messages": USER, **payload})
        return [ChatCompletionChunk.model_validate(chunk) for chunk in told]

    def last(self, kind: AuditType) -> AuditEvent:
        return self.small.journal.of(kind)[-1]


@pytest.fixture(scope="module")
def far_end() -> Iterator[FormatServer]:
    with FormatServer() as server:
        yield server


@pytest.fixture
def asked(request: pytest.FixtureRequest, far_end: FormatServer) -> Iterator[Asked]:
    """The doors before one provider; it was asked for nothing that it does not document."""
    name = request.param
    far_end.clear()
    models = (MODELS[name], f"{MODELS[name]}-thinking", "fail-mid-stream")
    small = make_house(models=models)
    known = ProviderDefinition("tested", name, far_end.url(name), (SecretStr(far_end.key(name)),))
    providers = Providers(UpstreamSettings(models=models), [known])
    small = dataclasses.replace(small, house=dataclasses.replace(small.house, upstream=providers))
    yield Asked(name, small, make_app(small).test_client(), far_end)
    providers.close()
    assert far_end.refused == []


def everywhere(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("asked", names or tuple(MODELS), indirect=True)


@everywhere()
def test_a_chat_is_answered_with_its_usage(asked: Asked) -> None:
    answer = asked.chat()

    assert answer.choices[0].message.content == PLAIN
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (COUNTS.prompt, COUNTS.said)


@everywhere()
@pytest.mark.parametrize("wants_usage", [False, True])
def test_a_chat_is_streamed_and_its_usage_told_where_it_is_asked_for(
    asked: Asked,
    wants_usage: bool,  # noqa: FBT001  one of two
) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    chunks = asked.chunks(**options)

    said = [choice for chunk in chunks for choice in chunk.choices]
    assert said[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in said) == PLAIN
    assert [choice.finish_reason for choice in said if choice.finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    counted = [chunk.usage for chunk in chunks if chunk.usage is not None]
    if wants_usage or asked.name in TRANSLATED:
        assert [usage.completion_tokens for usage in counted] == [COUNTS.said] * wants_usage
    assert asked.last(AuditType.LLM_END).clear["tout"] == COUNTS.said


@everywhere()
def test_tools_are_called_side_by_side_and_their_results_heard(asked: Asked) -> None:
    called = asked.chat(tools=TOOLS, tool_choice="required")
    message = called.choices[0].message
    calls = message.tool_calls or []
    results = [{"role": "tool", "tool_call_id": call.id, "content": f"sun for {at}"} for at, call in enumerate(calls)]
    heard = asked.chat(messages=[*USER, message.model_dump(), *results], tools=TOOLS)  # type: ignore[misc]  # JSON

    assert called.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in calls if call.type == "function"] == ["weather", "forecast"]
    assert all(json.loads(call.function.arguments) for call in calls if call.type == "function")
    assert heard.choices[0].message.content == "The tool said: sun for 0 The tool said: sun for 1"


@everywhere()
def test_calls_are_streamed_in_pieces_that_make_them_whole(asked: Asked) -> None:
    chunks = asked.chunks(tools=TOOLS)

    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for piece in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            call = calls.setdefault(piece.index, ["", ""])
            assert piece.function is not None
            call[0] += piece.function.name or ""
            call[1] += piece.function.arguments or ""
    assert [call[0] for call in calls.values()] == ["weather", "forecast"]
    assert all(json.loads(call[1]) for call in calls.values())
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"


@everywhere(*TRANSLATED)
def test_thoughts_stand_beside_the_answer(asked: Asked) -> None:
    told = asked.ask(
        "/v1/chat/completions", messages=USER, model=f"{MODELS[asked.name]}-thinking", reasoning_effort="high",
        max_completion_tokens=8000,
    )  # fmt: skip

    message = told["choices"][0]["message"]
    assert message["content"] == PLAIN
    assert message.get("reasoning_content") in (None, THOUGHT)


@everywhere(*TRANSLATED)
def test_what_only_tunes_is_left_out_and_named_and_what_changes_the_answer_refused(asked: Asked) -> None:
    left_out = asked.post("/v1/chat/completions", messages=USER, logit_bias={"1": 1}, user="u", made_up=1)
    refused = asked.post("/v1/chat/completions", messages=USER, tools=[{"type": "custom", "custom": {"name": "x"}}])

    assert {"logit_bias", "made_up"} <= set(left_out.headers["X-SLP-Dropped-Params"].split(", "))
    assert refused.status_code == 400
    assert refused.json["error"]["code"] == "unsupported_parameter"
    assert refused.json["error"]["param"] == "tools.0"


@everywhere()
def test_a_stream_that_breaks_off_ends_in_an_error_event(asked: Asked) -> None:
    answer = asked.post("/v1/chat/completions", messages=USER, stream=True, model="fail-mid-stream")

    last = ServerSentEventParser(event_bytes_max=2**20).feed(answer.data)[-1]
    assert last.name == b"error"
    assert json.loads(last.data)["error"]["code"] == "upstream_error"


@everywhere()
def test_a_prompt_is_continued(asked: Asked) -> None:
    told = asked.ask("/v1/completions", prompt="How are things?", max_tokens=40)

    answer = Completion.model_validate(told)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == PLAIN
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == COUNTS.said
    path = asked.far_end.asked(asked.name)[-1].path
    assert path.endswith("/v1/completions") == (asked.name in WITH_COMPLETIONS)


@everywhere()
def test_a_continuation_is_streamed(asked: Asked) -> None:
    chunks = asked.stream("/v1/completions", prompt="How are things?", stream_options={"include_usage": True})

    said = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in said) == PLAIN
    assert [choice["finish_reason"] for choice in said if choice["finish_reason"]] == ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    counted = [chunk["usage"] for chunk in chunks if chunk.get("usage") is not None]
    assert [usage["completion_tokens"] for usage in counted] == [COUNTS.said]
    end = asked.last(AuditType.LLM_END)
    assert end.clear["tout"] == COUNTS.said
    assert json.loads(end.body)["text"] == PLAIN


@everywhere("anthropic")
@pytest.mark.parametrize(
    ("payload", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 0}, "logprobs"),
        ({"prompt": "a", "n": 2}, "n"),
    ],
)
def test_what_a_chat_can_t_do_is_refused_at_completions(asked: Asked, payload: Told, param: str) -> None:
    answer = asked.post("/v1/completions", **payload)

    assert answer.status_code == 400
    assert (answer.json["error"]["code"], answer.json["error"]["param"]) == ("unsupported_parameter", param)
    assert asked.far_end.asked(asked.name) == []


EMBEDDING_MODELS = {
    "openai": "text-embedding-3-small",
    "gemini": "gemini-embedding-001",
    "cohere": "embed-v4.0",
    "mistral": "mistral-embed",
    "together": "BAAI/bge-large-en-v1.5",
}


def vectors_of(told: Told) -> list[list[float]]:
    # Gemini does not count.
    answer = CreateEmbeddingResponse.model_validate({"usage": {"prompt_tokens": 0, "total_tokens": 0}, **told})
    assert [entry.index for entry in answer.data] == list(range(len(answer.data)))
    return [entry.embedding for entry in answer.data]


@everywhere(*EMBEDDING_MODELS)
def test_texts_are_embedded_in_order_and_the_log_keeps_no_vectors(asked: Asked) -> None:
    one = asked.ask("/v1/embeddings", input="alpha")
    both = asked.ask("/v1/embeddings", input=["alpha", "beta"])

    first, second = vectors_of(both)
    assert vectors_of(one) == [first]
    assert first != second
    if asked.name != "gemini":
        assert both["usage"]["prompt_tokens"] > 0
    record = json.loads(asked.last(AuditType.LLM_END).body)["answer"]
    assert record["vectors"]["count"] == 2
    assert not any(str(value)[:6] in str(record) for value in first)


@everywhere("openai", "gemini", "cohere")
def test_vectors_come_as_base64_of_float32_where_they_are_asked_for_so(asked: Asked) -> None:
    numbers = vectors_of(asked.ask("/v1/embeddings", input="alpha"))[0]
    told = asked.ask("/v1/embeddings", input="alpha", encoding_format="base64")["data"][0]["embedding"]

    packed = base64.b64decode(told, validate=True)
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == pytest.approx(numbers, rel=1e-6)


@everywhere("mistral", "together")
def test_embeddings_are_asked_for_in_the_provider_s_own_words(asked: Asked) -> None:
    fitted = asked.post("/v1/embeddings", input="alpha", user="u", encoding_format="float")

    assert fitted.status_code == 200
    dropped = set(fitted.headers["X-SLP-Dropped-Params"].split(", "))
    assert dropped == ({"user"} if asked.name == "mistral" else {"user", "encoding_format"})


@everywhere("anthropic")
def test_who_makes_no_embeddings_is_not_asked_for_any(asked: Asked) -> None:
    answer = asked.post("/v1/embeddings", input="alpha")

    assert answer.status_code == 400
    assert answer.json["error"]["code"] == "unsupported_parameter"


@everywhere("openai")
@pytest.mark.parametrize(
    ("path", "payload", "code", "param"),
    [
        ("/v1/completions", {}, "missing_parameter", "prompt"),
        ("/v1/completions", {"prompt": []}, "invalid_value", "prompt"),
        ("/v1/completions", {"prompt": {"canary": 1}}, "invalid_type", "prompt"),
        ("/v1/completions", {"prompt": ["a", 1]}, "invalid_type", "prompt.1"),
        ("/v1/completions", {"prompt": [True]}, "invalid_type", "prompt.0"),
        ("/v1/completions", {"prompt": [[1], []]}, "invalid_value", "prompt.1"),
        ("/v1/completions", {"prompt": [["canary"]]}, "invalid_type", "prompt.0"),
        ("/v1/completions", {"prompt": "a", "max_tokens": "canary"}, "invalid_type", "max_tokens"),
        ("/v1/embeddings", {}, "missing_parameter", "input"),
        ("/v1/embeddings", {"input": 7}, "invalid_type", "input"),
        ("/v1/embeddings", {"input": "a", "stream": True}, "invalid_value", "stream"),
    ],
)
def test_what_is_wrong_is_named_and_not_quoted(asked: Asked, path: str, payload: Told, code: str, param: str) -> None:
    answer = asked.post(path, **payload)

    assert answer.status_code == 400
    assert (answer.json["error"]["code"], answer.json["error"]["param"]) == (code, param)
    assert b"canary" not in answer.data


@everywhere("openai")
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_a_provider_s_refusal_is_told(asked: Asked, path: str) -> None:
    asked.far_end.fail(Failure.RATE_LIMITED)

    answer = asked.post(path, prompt="a", input="a")

    assert answer.status_code == 429
    assert answer.json["error"]["code"] == "upstream_rate_limited"
