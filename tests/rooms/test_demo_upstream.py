"""The demo upstream as the program that it is, spoken to over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.routing.definitions import demo_provider
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.vocabulary.chat import ChatRequest, Target, Usage
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.openai.completions_request import read_completion_request
from tests.support.compatible_provider import chat_request, compatible_provider

ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "secure_llm_proxy.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass(frozen=True)
class Demo:
    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, object]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            parsed: dict[str, object] = json.loads(reply.read())
            return reply.status, parsed
        finally:
            connection.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    process = start("--port", "0")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on 127.0.0.1:"), line
        yield Demo(int(line.rpartition(":")[2]))
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture
def sdk(demo: Demo) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=demo.base_url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


def question(text: str = "What is the capital of France?", **fields: object) -> bytes:
    return json.dumps({"model": "demo", "messages": [{"role": "user", "content": text}], **fields}).encode()


def test_it_says_that_it_is_a_demo_and_what_it_was_asked(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "What is the capital of France?"}]
    )

    content = answer.choices[0].message.content or ""
    assert "demo model" in content
    assert "6 words" in content
    assert "What is the capital of France?" in content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 6
    assert answer.usage.completion_tokens == len(content.split())


def test_the_same_question_has_the_same_answer(demo: Demo) -> None:
    assert demo.ask("POST", "/v1/chat/completions", question()) == demo.ask("POST", "/v1/chat/completions", question())


def test_a_stream_says_the_same_in_several_pieces(sdk: openai.OpenAI) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Say something."}]
    plain = sdk.chat.completions.create(model="demo", messages=messages)

    with sdk.chat.completions.create(
        model="demo", messages=messages, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)

    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 5
    assert "".join(pieces) == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_a_stream_has_no_usage_unless_asked(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hi"}], stream=True) as stream:
        assert all(chunk.usage is None for chunk in stream)


def test_n_and_max_tokens_are_obeyed(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hi"}], n=3, max_tokens=4)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 3
    assert [len((choice.message.content or "").split()) for choice in answer.choices] == [4, 4, 4]


def test_it_lists_its_one_model(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["demo"]
    assert sdk.models.retrieve("demo").id == "demo"


def test_the_upstream_room_speaks_with_it(demo: Demo) -> None:
    client = compatible_provider(UpstreamSettings(api_url=demo.base_url))

    completion = client.complete(chat_request(question("one two")), Cancellation())
    body = question("one two", stream=True, stream_options={"include_usage": True})
    events = list(client.stream(chat_request(body, stream=True), Cancellation()))

    assert client.list_models(Cancellation()) == ("demo",)
    assert "".join(event.text for event in events) == completion.text
    assert events[-1].usage == completion.usage
    assert isinstance(completion.usage, Usage)
    assert client.idle_connections == 1
    client.close()


def test_what_it_does_not_speak_is_translated_or_refused_and_never_sent_to_a_place_that_it_lacks(demo: Demo) -> None:
    providers = Providers(UpstreamSettings(), [demo_provider(demo.base_url)])
    target = Target("demo", "demo")
    prompt = read_completion_request({"model": "demo", "prompt": "one two"}, prompts_max=1)
    vectors = ChatRequest("demo", stream=False, payload={"input": "x"}, format=WireFormat.OPENAI_EMBEDDINGS)

    completion = providers.complete(providers.write(target, prompt), Cancellation())
    can_embed = providers.can_answer(target, vectors)
    providers.close()

    assert "demo model" in completion.text
    assert not can_embed


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"messages":[]}', 400, "model"),
        (b'{"model":"demo"}', 400, "messages"),
        (b'{"model":"demo","messages":[]}', 400, "messages"),
        (b'{"model":"demo","messages":[7]}', 400, "messages"),
        (b'{"model":"demo","messages":[{"content":7}]}', 400, "messages"),
        (b'{"model":"demo","messages":[{"content":"x"}],"n":9}', 400, "n"),
        (b'{"model":"demo","messages":[{"content":"x"}],"n":true}', 400, "n"),
        (b'{"model":"demo","messages":[{"content":"x"}],"max_tokens":0}', 400, "max_tokens"),
        (b'{"model":"gpt","messages":[{"content":"x"}]}', 404, None),
    ],
)
def test_a_bad_request_is_refused_in_openai_s_shape(demo: Demo, body: bytes, status: int, param: str | None) -> None:
    answered, reply = demo.ask("POST", "/v1/chat/completions", body)

    error = reply["error"]
    assert isinstance(error, dict)
    assert answered == status
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models", 501),
    ],
)
def test_what_it_does_not_have_is_refused(demo: Demo, method: str, path: str, status: int) -> None:
    answered, reply = demo.ask(method, path, b"{}")

    assert answered == status
    assert "error" in reply


def test_a_body_without_a_length_or_over_the_limit_is_refused(demo: Demo) -> None:
    chunked, _ = demo.ask("POST", "/v1/chat/completions", None, {"Transfer-Encoding": "chunked"})
    too_large, _ = demo.ask("POST", "/v1/chat/completions", None, {"Content-Length": "99999999"})

    assert (chunked, too_large) == (411, 413)


def test_a_client_that_hangs_up_in_a_stream_disturbs_nobody(demo: Demo) -> None:
    body = question(stream=True)
    with socket.create_connection(("127.0.0.1", demo.port), timeout=20) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert connection.recv(100)

    status, _ = demo.ask("GET", "/v1/models")

    assert status == 200


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly_also_in_the_midst_of_a_stream(signal_number: signal.Signals) -> None:
    process = start("--port", "0")
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])
    body = question("word " * 50, stream=True, n=8)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        connection.recv(100)
        time.sleep(0.05)
        process.send_signal(signal_number)
        out, err = process.communicate(timeout=20)

    assert process.returncode == 0
    assert (out, err) == ("", "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])  # noqa: S104 — refused, that is the point
def test_it_listens_on_loopback_only(host: str) -> None:
    process = start("--port", "0", "--host", host)

    _, err = process.communicate(timeout=20)

    assert process.returncode == 2
    assert "loopback address only" in err


def test_a_taken_port_is_one_clear_sentence(demo: Demo) -> None:
    process = start("--port", str(demo.port))

    _, err = process.communicate(timeout=20)

    assert process.returncode == 1
    assert err == f"The demo upstream can't listen on 127.0.0.1:{demo.port}: Address already in use.\n"
