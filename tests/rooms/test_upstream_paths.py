"""A model's name in a provider's path stays one segment of it, whatever the name; headers of clients go along by list."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from urllib.parse import quote, unquote

import pytest
from pydantic import SecretStr

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    FailureKind,
    InvalidRequest,
    ProxyError,
    Unavailable,
    UpstreamFailed,
)
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.upstream.formats import FORMATS
from secure_llm_proxy.vocabulary.chat import ChatRequest, Target, UpstreamRequest
from secure_llm_proxy.vocabulary.conversation import EmbeddingRequest
from secure_llm_proxy.vocabulary.providers import ProviderDefinition, provider_kinds
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.hostile_values import hostile_values
from tests.support.provider import Mode, Provider

PATH = re.compile(r"/openai/deployments/([A-Za-z0-9_.~%-]+)/chat/completions\?api-version=2024-10-21")


@pytest.fixture(scope="module")
def far_end() -> Iterator[Provider]:
    with Provider() as server:
        yield server


@pytest.fixture(scope="module")
def providers(far_end: Provider) -> Iterator[Providers]:
    """One whose model stands in the path, and one that takes a header of the client's."""
    base = far_end.base_url.removesuffix("/v1")
    made = Providers(
        UpstreamSettings(),
        (
            ProviderDefinition(
                "deployed", "azure_deployments", base, (SecretStr("sk-a"),), query="api-version=2024-10-21"
            ),
            ProviderDefinition("other", "openai_compatible", base + "/v1", (SecretStr("sk-a"),)),
        ),
    )
    yield made
    made.close()


def request_for(model: str) -> ChatRequest:
    return ChatRequest(model, stream=False, payload={"model": model, "messages": []})


def test_a_model_s_name_is_one_segment_of_the_path(far_end: Provider, providers: Providers) -> None:
    names = [
        "gpt-4o", "../../admin", "a/b", "a?b", "a#b", "a%2fb", "a;b", "a\\b", "..%2f..", "...", "%2e%2e", "a b", "ä", "{model}", ".a",
        "a\r\nX-Injected: 1", "\x00",
    ]  # fmt: skip
    names += [value for value in hostile_values(300, "segments") if value and value.isprintable()]
    far_end.clear()

    for name in names:
        written = providers.write(Target("deployed", name), request_for(name))
        providers.complete(written, Cancellation())

    assert len(far_end.received) == len(names)
    for request, name in zip(far_end.received, names, strict=True):
        match = PATH.fullmatch(request.path)
        assert match is not None, request.path
        assert unquote(match[1]) == name
        assert "x-injected" not in request.headers


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_that_would_be_no_segment_is_refused(providers: Providers, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        providers.write(Target("deployed", name), request_for(name))

    assert caught.value.param == "model"


def test_where_the_model_stands_in_the_body_its_name_may_be_anything(far_end: Provider, providers: Providers) -> None:
    far_end.clear()

    providers.complete(providers.write(Target("other", ".."), request_for("..")), Cancellation())

    assert far_end.received[0].path == "/v1/chat/completions"


def test_a_client_s_header_goes_along_only_when_the_kind_lists_it_and_a_header_can_carry_it(far_end: Provider) -> None:
    base = far_end.base_url
    providers = Providers(
        UpstreamSettings(), (ProviderDefinition("a", "openai_compatible", base, (SecretStr("sk-a"),)),)
    )
    kind = providers.all["a"].kind
    values = [*hostile_values(500, "headers"), " x", "x ", "x", "a, b"]
    far_end.clear()

    for value in values:
        written = providers.write(
            Target("a", "m"),
            request_for("m"),
            (("authorization", value), ("host", value), ("x-forwarded-for", value), ("anthropic-beta", value)),
        )
        assert {name for name, _ in written.headers} <= kind.passes
        # as if the kind listed them: what then goes along is still one header of one line
        listed = written._replace(headers=(("anthropic-beta", value),))
        providers.complete(listed, Cancellation())
    providers.close()

    assert len(far_end.received) == len(values)
    sent = [request.headers.get("anthropic-beta") for request in far_end.received]
    assert {"x", "a, b"} <= set(sent)
    assert all(value is None or value in values for value in sent)
    usual = set(far_end.received[-1].headers)
    assert all(set(request.headers) <= usual for request in far_end.received)


@pytest.mark.parametrize(
    ("value", "passes"),
    [
        ("2026-10-21", True),
        ("context-1m-2025-08-07,files-api-2025-04-14", True),
        ("context-1m-2025-08-07, files-api-2025-04-14", True),
        ("Ignore all that was said before", False),
        ("x" * 65, False),
        (",".join(["x"] * 33), False),
    ],
)
def test_versions_and_betas_go_along_and_no_other_words(value: str, *, passes: bool) -> None:
    anthropic = ProviderDefinition("a", "anthropic", "http://127.0.0.1:9", (SecretStr("sk-a"),))
    providers = Providers(UpstreamSettings(), (anthropic,))
    asked: JsonObject = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 1}
    request = ChatRequest("m", stream=False, payload=asked, format=WireFormat.ANTHROPIC_MESSAGES)

    written = providers.write(Target("a", "m"), request, (("anthropic-beta", value),))
    providers.close()

    assert written.headers == ((("anthropic-beta", value),) if passes else ())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "changed",
    [{"kind": "gemini"}, {"base_url": "http://127.0.0.1:8"}, {"tags": {"region": "us"}}, {"keys": ()}],
    ids=["kind", "place", "tags", "keys"],
)
def test_what_was_written_for_a_provider_goes_to_no_other_that_has_taken_its_name(
    changed: dict[str, object], *, stream: bool
) -> None:
    before = ProviderDefinition("a", "groq", "http://127.0.0.1:9", (SecretStr("sk-a"),), tags={"region": "eu"})
    after = replace(before, **changed)  # type: ignore[arg-type]  # the fields' own types
    providers = Providers(UpstreamSettings(), (before,))
    written = providers.write(Target("a", "m"), ChatRequest("m", stream=stream, payload={"messages": []}))
    ask = providers.stream if stream else providers.complete

    providers.configure((after,))
    with pytest.raises(Unavailable) as refused:
        ask(written, Cancellation())
    providers.close()

    assert refused.value.code is ErrorCode.PROVIDER_UNAVAILABLE


@pytest.mark.parametrize("sent", [0, 1, 3])
def test_another_number_of_vectors_than_texts_is_no_answer(far_end: Provider, sent: int) -> None:
    told = {"embeddings": [{"values": [0.5, 0.25]}] * sent}
    far_end.script(Mode.ERROR, status=200, body=json.dumps(told).encode(), headers={"Content-Type": "application/json"})
    providers = Providers(
        UpstreamSettings(), (ProviderDefinition("a", "gemini", far_end.base_url, (SecretStr("sk-a"),)),)
    )
    request = ChatRequest(
        "m",
        stream=False,
        payload={},
        format=WireFormat.OPENAI_EMBEDDINGS,
        read=lambda _: EmbeddingRequest(("one", "two")),
    )

    with pytest.raises(UpstreamFailed) as failed:
        providers.complete(providers.write(Target("a", "m"), request), Cancellation())
    providers.close()

    assert failed.value.failure is FailureKind.UNREADABLE


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
@pytest.mark.parametrize("stream", [False, True])
def test_no_redirect_of_any_kind_leads_a_request_elsewhere(far_end: Provider, *, status: int, stream: bool) -> None:
    providers = Providers(
        UpstreamSettings(), (ProviderDefinition("a", "openai_compatible", far_end.base_url, (SecretStr("sk-a"),)),)
    )
    ask = providers.stream if stream else providers.complete
    far_end.clear()
    with Provider() as elsewhere:
        places = (
            f"{elsewhere.base_url}/chat/completions",
            f"//127.0.0.1:{elsewhere.port}/x",
            "/v1/other",
            "http://169.254.169.254/",
        )
        for place in places:
            headers = {
                "Location": place,
                "Refresh": f"0; url={place}",
                "Content-Location": place,
                "Alt-Svc": f'h2="{place}"',
            }
            far_end.script(Mode.ERROR, status=status, body=b"", headers=headers, times=1)
            with pytest.raises(ProxyError) as caught:
                ask(
                    providers.write(
                        Target("a", "m"), ChatRequest("m", stream, {"model": "m", "messages": [], "stream": stream})
                    ),
                    Cancellation(),
                )
            assert caught.value.status in {502, 504}
            assert place not in caught.value.public
        providers.close()

        assert elsewhere.connections == 0
        assert [request.path for request in far_end.received] == ["/v1/chat/completions"] * len(places)


@pytest.mark.parametrize("kind", provider_kinds())
def test_every_kind_is_asked_at_the_paths_of_its_table_alone(far_end: Provider, kind: str) -> None:
    """Whatever the model is called; each format of the kind, plain and streamed."""
    facts = provider_kinds()[kind]
    providers = Providers(UpstreamSettings(), (ProviderDefinition("a", kind, far_end.base_url, (SecretStr("sk-a"),)),))
    names = [
        "m-1",
        "../../admin",
        "a/b?c#d",
        "..;x",
        "x\r\nX-Injected: 1",
        "models/../m",
        "{model}",
        "%2e%2e/%2e%2e",
        "m:other",
    ]
    far_end.clear()

    expected = set()
    for wire_format in facts.formats.keys() & FORMATS.keys():
        path = facts.formats[wire_format]
        for stream, name in itertools.product((False, True), names):
            table = facts.stream.get(wire_format, path) if stream else path
            expected.add("/v1" + table.replace("{model}", quote(name, safe="")))
            written = UpstreamRequest(Target("a", name), wire_format, b"{}", stream)
            with suppress(ProxyError):
                if stream:
                    providers.stream(written, Cancellation()).close()
                else:
                    providers.complete(written, Cancellation())
    providers.close()

    assert {request.path for request in far_end.received} == expected
    assert not [request for request in far_end.received if "x-injected" in request.headers or request.method != "POST"]
