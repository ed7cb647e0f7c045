"""The official OpenAI SDK with another base URL: everything works, and errors raise its own exception classes."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.support.clients import records_of, sdk
from tests.support.provider import Mode, Provider
from tests.support.running_proxy import RunningProxy


@pytest.fixture
def client(proxy: RunningProxy, api_key: str) -> Iterator[openai.OpenAI]:
    with sdk(proxy, api_key) as made:
        yield made


def test_a_completion_passes_through_the_whole_route(
    proxy: RunningProxy, provider: Provider, client: openai.OpenAI
) -> None:
    provider.clear()
    answer = client.chat.completions.with_raw_response.create(
        model="test-model", messages=[{"role": "user", "content": "Is all well?"}], temperature=0.25
    )

    completion = answer.parse()
    assert completion.choices[0].message.content == provider.reply_text
    assert completion.usage is not None
    assert completion.usage.total_tokens == 18
    [received] = provider.chats
    assert isinstance(received.json, dict)
    assert received.json["temperature"] == 0.25
    assert received.headers["authorization"] == "Bearer sk-test-provider"
    assert answer.headers["x-slp-model"] == "test-model"
    assert float(answer.headers["x-slp-overhead-ms"]) > 0
    kinds = [record["ty"] for record in records_of(proxy, answer.headers["x-request-id"])]
    assert kinds == ["llm.start", "llm.end"]


def test_a_stream_arrives_event_by_event(proxy: RunningProxy, provider: Provider, client: openai.OpenAI) -> None:
    provider.clear()
    stream = client.chat.completions.create(
        model="test-model",
        messages=[{"role": "user", "content": "Count."}],
        stream=True,
        stream_options={"include_usage": True},
    )
    events = list(stream)

    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == provider.reply_text
    assert len(events) > provider.stream_chunks
    assert any(event.usage is not None and event.usage.total_tokens == 18 for event in events)


def test_the_first_event_arrives_while_the_provider_still_speaks(
    proxy: RunningProxy, provider: Provider, client: openai.OpenAI
) -> None:
    provider.clear()
    provider.script(Mode.HANG_MID_STREAM, times=1)
    stream = client.chat.completions.create(
        model="test-model", messages=[{"role": "user", "content": "Slowly."}], stream=True
    )
    first = next(iter(stream))
    stream.close()

    assert first.object == "chat.completion.chunk"
    assert provider.wait_for_disconnect(30)


def test_a_prompt_is_continued_plain_and_streamed(
    proxy: RunningProxy, provider: Provider, client: openai.OpenAI
) -> None:
    provider.clear()
    answer = client.completions.with_raw_response.create(model="test-model", prompt="Once", suffix="end", echo=False)
    stream = client.completions.create(model="test-model", prompt=["Once"], stream=True)
    streamed = "".join(choice.text for chunk in stream for choice in chunk.choices)

    completion = answer.parse()
    assert completion.choices[0].text == streamed == provider.reply_text
    assert completion.usage is not None
    assert completion.usage.total_tokens == 18
    plain, _ = [request for request in provider.received if request.path == "/v1/completions"]
    assert isinstance(plain.json, dict)
    assert plain.json["suffix"] == "end"
    kinds = [record["ty"] for record in records_of(proxy, answer.headers["x-request-id"])]
    assert kinds == ["llm.start", "llm.end"]


def test_texts_become_vectors(proxy: RunningProxy, provider: Provider, client: openai.OpenAI) -> None:
    provider.clear()
    answer = client.embeddings.with_raw_response.create(model="test-model", input=["alpha", "beta"])

    embeddings = answer.parse()
    assert embeddings.data
    assert all(isinstance(value, float) for value in embeddings.data[0].embedding)
    [received] = [request for request in provider.received if request.path == "/v1/embeddings"]
    assert isinstance(received.json, dict)
    assert received.json["input"] == ["alpha", "beta"]
    kinds = [record["ty"] for record in records_of(proxy, answer.headers["x-request-id"])]
    assert kinds == ["llm.start", "llm.end"]


def test_models_are_listed_and_found(proxy: RunningProxy, provider: Provider, client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]

    assert listed == list(provider.models)
    assert client.models.retrieve("test-model").id == "test-model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize(
    ("mode", "options", "raised", "code"),
    [
        (Mode.RATE_LIMITED, {}, openai.RateLimitError, "upstream_rate_limited"),
        (Mode.UNAUTHORIZED, {}, openai.InternalServerError, "upstream_error"),
        (Mode.ERROR, {"status": 500}, openai.InternalServerError, "upstream_error"),
        (Mode.ERROR, {"status": 400}, openai.BadRequestError, "upstream_rejected"),
        (Mode.EARLY_CLOSE, {}, openai.InternalServerError, "upstream_error"),
        (Mode.INVALID_JSON, {}, openai.InternalServerError, "upstream_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_provider_raises_the_sdk_s_own_class(
    proxy: RunningProxy,
    provider: Provider,
    client: openai.OpenAI,
    mode: Mode,
    options: dict[str, int],
    raised: type[openai.APIStatusError],
    code: str,
    stream: bool,  # noqa: FBT001  a parameter of the matrix
) -> None:
    provider.clear()
    provider.script(mode, status=options.get("status", 500))
    with pytest.raises(openai.APIError) as caught:
        for _ in client.chat.completions.create(
            model="test-model", messages=[{"role": "user", "content": "Fail."}], stream=stream
        ):
            pass

    provider.clear()
    error = caught.value
    assert error.code == code
    if not stream or mode is not Mode.INVALID_JSON:
        assert isinstance(error, raised)
    assert "127.0.0.1" not in str(error)
    assert "sk-test-provider" not in str(error)


def test_wrong_keys_raise_authentication_error(proxy: RunningProxy, api_key: str) -> None:
    wrong = api_key[:-1] + ("0" if api_key[-1] != "0" else "1")

    with sdk(proxy, wrong) as client, pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
        client.chat.completions.create(model="test-model", messages=[{"role": "user", "content": "x"}])


def test_an_unknown_model_raises_not_found_and_a_bad_parameter_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-nowhere", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="test-model", messages=[])

    assert unknown.value.code == "model_not_found"
    assert bad.value.param == "messages"


def test_the_stream_of_a_provider_that_breaks_off_ends_in_an_error_event(
    proxy: RunningProxy, provider: Provider, client: openai.OpenAI
) -> None:
    provider.clear()
    provider.script(Mode.ERROR_EVENT, times=1)
    with pytest.raises(openai.APIError) as caught:
        for _ in client.chat.completions.create(
            model="test-model", messages=[{"role": "user", "content": "Break."}], stream=True
        ):
            pass

    assert caught.value.code == "upstream_error"
