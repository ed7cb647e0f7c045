"""The Responses API through the whole product: passed through to a provider that offers it, and translated to chat completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.conftest import ROOMY
from tests.support.clients import ask, records_of, sdk
from tests.support.provider import Mode, Provider
from tests.support.running_proxy import RunningProxy

# One server, asked in two formats.
MODELS_YAML = """
providers:
  native:
    kind: openai
    base_url: {base_url}
    api_keys: env:FAR_KEY
    models: [{models}]
  chat:
    kind: openai_compatible
    base_url: {base_url}
    api_keys: env:FAR_KEY
    models: [{models}]
"""


@pytest.fixture(scope="module")
def far_end() -> Iterator[Provider]:
    with Provider(stream_chunks=5) as provider:
        yield provider


@pytest.fixture(scope="module")
def proxy(far_end: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    home = short_folder / "responses"
    home.mkdir()
    told = MODELS_YAML.format(base_url=far_end.base_url, models=f"test-model, {Mode.NO_END}")
    (home / "models.yaml").write_text(told, "utf-8")
    settings = {
        **ROOMY,
        "MODELS_FILE": str(home / "models.yaml"),
        "FAR_KEY": "sk-test-provider",
    }
    with RunningProxy(home, settings) as running:
        yield running


@pytest.fixture(scope="module")
def bounded_key(proxy: RunningProxy) -> str:
    return proxy.create_api_key(None, "--max-tokens", "50")


@pytest.fixture(params=["native", "chat"])
def model(request: pytest.FixtureRequest, far_end: Provider) -> str:
    """The same model, in the provider's own format and translated."""
    far_end.clear()
    return f"{request.param}/test-model"


@pytest.fixture
def client(proxy: RunningProxy) -> Iterator[openai.OpenAI]:
    with sdk(proxy, proxy.shared_api_key) as made:
        yield made


def test_a_response_passes_through_the_whole_route(
    proxy: RunningProxy, far_end: Provider, client: openai.OpenAI, model: str
) -> None:
    answer = client.responses.with_raw_response.create(model=model, input="Is all well?", instructions="Be brief.")

    response = answer.parse()
    assert (response.output_text, response.status) == (far_end.reply_text, "completed")
    assert response.usage is not None
    assert response.usage.total_tokens == 18
    assert [record["ty"] for record in records_of(proxy, answer.headers["x-request-id"])] == ["llm.start", "llm.end"]
    [received] = [request for request in far_end.received if request.method == "POST"]
    assert received.path == ("/v1/responses" if model.startswith("native") else "/v1/chat/completions")


def test_a_stream_is_put_together_by_the_sdk(far_end: Provider, client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(model=model, input="Count.") as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        whole = stream.get_final_response()

    assert "".join(pieces) == whole.output_text == far_end.reply_text
    assert len(pieces) == far_end.stream_chunks
    assert whole.usage is not None
    assert whole.usage.total_tokens == 18


def test_a_stream_that_breaks_off_raises_in_the_sdk(client: openai.OpenAI, model: str) -> None:
    provider = model.partition("/")[0]

    with pytest.raises(openai.APIError, match="provider"):
        list(client.responses.create(model=f"{provider}/{Mode.NO_END}", input="Count.", stream=True))


def test_what_refers_to_something_kept_passes_to_who_keeps_it_and_is_refused_elsewhere(client: openai.OpenAI) -> None:
    passed = client.responses.create(model="native/test-model", input="Hi.", previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="chat/test-model", input="Hi.", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError) as fetched:
        client.responses.retrieve("resp_1")

    assert passed.status == "completed"
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "previous_response_id")
    assert "not kept" in fetched.value.message


def test_a_key_s_ceiling_on_tokens_holds_here_too(
    proxy: RunningProxy, far_end: Provider, bounded_key: str, model: str
) -> None:
    key = bounded_key
    body = {"model": model, "input": "Hi."}

    within = ask(proxy, "POST", "/v1/responses", key=key, body=body)
    beyond = ask(proxy, "POST", "/v1/responses", key=key, body={**body, "max_output_tokens": 51})

    sent = json.loads([request for request in far_end.received if request.method == "POST"][-1].body)
    assert within.status == 200
    assert 50 in (sent.get("max_output_tokens"), sent.get("max_completion_tokens"), sent.get("max_tokens"))
    assert (beyond.status, beyond.error_code) == (400, "max_tokens_exceeded")
