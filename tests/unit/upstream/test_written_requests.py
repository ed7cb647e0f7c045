"""What the operator says of a model goes into requests that are translated for it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.vocabulary.chat import ChatRequest, Target
from secure_llm_proxy.vocabulary.conversation import Conversation, Message, Role, Text
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

TALK = Conversation((Message(Role.USER, (Text("Is all well?"),)),))


def max_tokens(asked: int | None, of_the_model: int | None) -> object:
    """What Anthropic is told, which demands a number."""
    providers = Providers(UpstreamSettings(), [ProviderDefinition("a", "anthropic", "https://api.anthropic.com/v1")])
    talk = replace(TALK, max_tokens=asked)
    request = ChatRequest("m", stream=False, payload={}, format=WireFormat.OPENAI_CHAT, read=lambda _: talk)
    try:
        written = providers.write(Target("a", "claude", max_output_tokens=of_the_model), request)
    finally:
        providers.close()
    return json.loads(written.body)["max_tokens"]


@pytest.mark.parametrize(("asked", "of_the_model", "told"), [(None, 777, 777), (5, 777, 5), (5, None, 5)])
def test_the_models_own_ceiling_stands_in_for_a_number_that_nobody_gave(
    asked: int | None, of_the_model: int | None, told: int
) -> None:
    assert max_tokens(asked, of_the_model) == told
