from __future__ import annotations

import pytest

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.upstream.token_estimate import estimate_tokens
from secure_llm_proxy.vocabulary.chat import ChatRequest, Target
from secure_llm_proxy.vocabulary.conversation import (
    Conversation,
    File,
    Image,
    Message,
    Part,
    Role,
    Text,
    TokenCount,
    TokenCountRequest,
    Tool,
    ToolResult,
)
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

_PROSE = "The weather in Oslo was fine on that day, and nobody had thought of taking a coat along. " * 20


def _estimate(*parts: Part) -> int:
    return estimate_tokens(Conversation((Message(Role.USER, parts),)))


def test_prose_is_rather_over_than_underestimated() -> None:
    words = len(_PROSE.split())

    assert words * 1.1 < _estimate(Text(_PROSE)) < words * 2


@pytest.mark.parametrize("text", ["天气很好" * 100, "Погода хорошая" * 50, "✨" * 100])
def test_other_scripts_cost_more_for_each_letter(text: str) -> None:
    assert len(text) * 0.4 <= _estimate(Text(text)) <= len(text) * 2


def test_tools_images_and_files_count() -> None:
    tools = Conversation((Message(Role.USER, (Text("x"),)),), tools=(Tool("weather", "Tells it.", {"type": "object"}),))

    assert estimate_tokens(tools) > _estimate(Text("x"))
    assert _estimate(Image(url="https://a.example/")) > 1_000
    assert _estimate(File(data="QQ==" * 100_000)) == _estimate(File(data="QQ=="))
    assert _estimate(ToolResult("c", (Image(data="QQ=="),))) > 1_000
    assert estimate_tokens(Conversation(())) == 1


def _counting(payload: JsonObject) -> TokenCountRequest:
    del payload
    return TokenCountRequest(Conversation((Message(Role.USER, (Text(_PROSE),)),)))


def _refusing(payload: JsonObject) -> TokenCountRequest:
    raise InvalidRequest("No.", param="messages")


def test_where_a_provider_counts_nothing_an_estimate_is_given_and_nothing_is_sent() -> None:
    # Nobody listens there: whatever was sent would fail.
    providers = Providers(UpstreamSettings(), [ProviderDefinition("p", "openai_compatible", "http://127.0.0.1:9/v1")])
    target = Target("p", "theirs")
    request = ChatRequest("ours", False, {"model": "ours"}, WireFormat.ANTHROPIC_COUNT_TOKENS, _counting)

    assert providers.can_answer(target, request)
    written = providers.write(target, request)
    completion = providers.complete(written, Cancellation())

    assert written.body == b'{"model":"theirs"}'
    count = completion.answer
    assert count == written.answered == TokenCount(estimate_tokens(_counting({}).conversation), estimated=True)
    assert isinstance(count, TokenCount)
    assert completion.payload == {"input_tokens": count.tokens, "estimated": True}


def test_what_can_t_be_read_is_not_estimated() -> None:
    providers = Providers(UpstreamSettings(), [ProviderDefinition("p", "openai_compatible", "http://127.0.0.1:9/v1")])
    request = ChatRequest("ours", False, {}, WireFormat.ANTHROPIC_COUNT_TOKENS, _refusing)

    with pytest.raises(InvalidRequest):
        providers.write(Target("p", "theirs"), request)


def test_a_provider_that_counts_is_asked() -> None:
    providers = Providers(UpstreamSettings(), [ProviderDefinition("p", "anthropic", "http://127.0.0.1:9/v1")])
    payload: JsonObject = {"model": "ours", "messages": []}
    request = ChatRequest("ours", False, payload, WireFormat.ANTHROPIC_COUNT_TOKENS, _counting)

    written = providers.write(Target("p", "theirs"), request, (("anthropic-version", "v"), ("other", "x")))

    assert written.answered is None
    assert not written.translated
    assert written.body == b'{"model":"theirs","messages":[]}'
    assert written.headers == (("anthropic-version", "v"),)
