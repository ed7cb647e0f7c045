"""Embeddings of Gemini and Cohere, and the counting of tokens."""

from __future__ import annotations

import json

import pytest

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest, UpstreamFailed
from secure_llm_proxy.upstream.formats.cohere_embed import CohereEmbed
from secure_llm_proxy.upstream.formats.face import ProviderFormat
from secure_llm_proxy.upstream.formats.gemini_count_tokens import GeminiCountTokens
from secure_llm_proxy.upstream.formats.gemini_embed import GeminiEmbed
from secure_llm_proxy.vocabulary.chat import Usage
from secure_llm_proxy.vocabulary.conversation import EmbeddingRequest, Embeddings, TokenCount, TokenCountRequest
from secure_llm_proxy.vocabulary.providers import provider_kinds
from tests.support.conversations import WEATHER, system, talk, user

_GEMINI, _COHERE, _COUNT = GeminiEmbed(), CohereEmbed(), GeminiCountTokens()
_KINDS = provider_kinds()
_EITHER = pytest.mark.parametrize(("wire_format", "kind"), [(_GEMINI, "gemini"), (_COHERE, "cohere")])


def test_each_text_is_a_request_of_gemini_s_batch() -> None:
    request = EmbeddingRequest(("a", "b"), dimensions=256, kind="search_query", base64=True, user="u", further={"x": 1})

    written = _GEMINI.write(request, "gemini-embedding-001", _KINDS["gemini"], ask_usage=True)

    shared = {"model": "models/gemini-embedding-001", "taskType": "RETRIEVAL_QUERY", "outputDimensionality": 256}
    assert written.payload == {
        "requests": [{**shared, "content": {"parts": [{"text": text}]}} for text in ("a", "b")],
    }
    assert written.dropped == ("user", "x")


def test_cohere_is_told_what_the_vectors_are_for() -> None:
    request = EmbeddingRequest(("a", "b"), dimensions=256)

    written = _COHERE.write(request, "embed-v4.0", _KINDS["cohere"], ask_usage=True)

    assert written.payload == {
        "model": "embed-v4.0",
        "texts": ["a", "b"],
        "input_type": "search_document",
        "embedding_types": ["float"],
        "output_dimension": 256,
        "truncate": "NONE",
    }
    assert written.dropped == ()


@_EITHER
def test_a_purpose_that_nobody_knows_is_dropped_by_name(wire_format: ProviderFormat, kind: str) -> None:
    written = wire_format.write(EmbeddingRequest(("a",), kind="poetry"), "m", _KINDS[kind], ask_usage=True)

    assert written.dropped == ("input_type",)


@_EITHER
def test_tokens_and_too_many_texts_are_refused(wire_format: ProviderFormat, kind: str) -> None:
    for inputs in (((1, 2),), ("a",) * 101):
        with pytest.raises(InvalidRequest) as refused:
            wire_format.write(EmbeddingRequest(inputs), "m", _KINDS[kind], ask_usage=True)

        assert (refused.value.code, refused.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "input")


@_EITHER
def test_only_embeddings_are_made_and_never_streamed(wire_format: ProviderFormat, kind: str) -> None:
    with pytest.raises(InvalidRequest):
        wire_format.write(talk(), "m", _KINDS[kind], ask_usage=True)
    with pytest.raises(InvalidRequest):
        wire_format.adapt({}, "m", _KINDS[kind], stream=False, ask_usage=True)
    with pytest.raises(InvalidRequest):
        wire_format.stream(translated=True, shows_usage=True)


def test_vectors_are_read_in_order() -> None:
    gemini = {"embeddings": [{"values": [0.5, 1]}, {"values": [-2]}], "usageMetadata": {"promptTokenCount": 3}}
    cohere = {"embeddings": {"float": [[0.5, 1], [-2]]}, "meta": {"billed_units": {"input_tokens": 3.0}}}

    for wire_format, said in ((_GEMINI, gemini), (_COHERE, cohere)):
        completion = wire_format.read(json.dumps(said).encode(), model="asked", translated=True)

        assert completion.answer == Embeddings(((0.5, 1.0), (-2.0,)))
        assert completion.usage == Usage(3, None, 3)
        assert (completion.model, completion.text) == ("asked", "")


@pytest.mark.parametrize(
    ("wire_format", "broken"),
    [
        (_GEMINI, b"{}"),
        (_GEMINI, b'{"embeddings": [[1]]}'),
        (_GEMINI, b'{"embeddings": [{"values": [true]}]}'),
        (_GEMINI, b'{"embeddings": [{"values": ["1"]}]}'),
        (_COHERE, b"{}"),
        (_COHERE, b'{"embeddings": {"int8": [[1]]}}'),
        (_COHERE, b'{"embeddings": {"float": [1]}}'),
        (_COUNT, b"{}"),
        (_COUNT, b'{"totalTokens": -1}'),
        (_COUNT, b'{"totalTokens": "5"}'),
    ],
)
def test_what_cannot_be_understood_is_no_answer(wire_format: ProviderFormat, broken: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        wire_format.read(broken, model="m", translated=True)


def test_gemini_counts_a_whole_request() -> None:
    request = TokenCountRequest(talk(system("Be brief."), user("hi"), tools=(WEATHER,), further={"thinking": {}}))

    written = _COUNT.write(request, "gemini-2.5-flash", _KINDS["gemini"], ask_usage=True)

    assert written.payload == {
        "generateContentRequest": {
            "model": "models/gemini-2.5-flash",
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
            "tools": [
                {
                    "functionDeclarations": [
                        {
                            "name": "get_weather",
                            "description": "The weather of a town",
                            "parametersJsonSchema": WEATHER.parameters,
                        }
                    ]
                }
            ],
        }
    }
    assert written.dropped == ("thinking",)


def test_the_count_is_read() -> None:
    completion = _COUNT.read(b'{"totalTokens": 31, "promptTokensDetails": []}', model="m", translated=True)

    assert completion.answer == TokenCount(31)


def test_only_tokens_are_counted() -> None:
    with pytest.raises(InvalidRequest):
        _COUNT.write(talk(), "m", _KINDS["gemini"], ask_usage=True)
    with pytest.raises(InvalidRequest):
        _COUNT.adapt({}, "m", _KINDS["gemini"], stream=False, ask_usage=True)
    with pytest.raises(InvalidRequest):
        _COUNT.stream(translated=True, shows_usage=True)
    assert _COUNT.read_error({}).kind is None
