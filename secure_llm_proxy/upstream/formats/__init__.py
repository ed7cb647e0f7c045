"""The wire formats of providers, by name."""

from __future__ import annotations

from collections.abc import Mapping

from secure_llm_proxy.upstream.formats.anthropic_count_tokens import AnthropicCountTokens
from secure_llm_proxy.upstream.formats.anthropic_messages import AnthropicMessages
from secure_llm_proxy.upstream.formats.cohere_chat import CohereChat
from secure_llm_proxy.upstream.formats.cohere_embed import CohereEmbed
from secure_llm_proxy.upstream.formats.face import ProviderFormat
from secure_llm_proxy.upstream.formats.gemini_count_tokens import GeminiCountTokens
from secure_llm_proxy.upstream.formats.gemini_embed import GeminiEmbed
from secure_llm_proxy.upstream.formats.gemini_generate import GeminiGenerate
from secure_llm_proxy.upstream.formats.openai_chat import OpenAiChat
from secure_llm_proxy.upstream.formats.openai_completions import OpenAiCompletions
from secure_llm_proxy.upstream.formats.openai_embeddings import OpenAiEmbeddings
from secure_llm_proxy.upstream.formats.openai_responses import OpenAiResponses
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

_ALL: tuple[ProviderFormat, ...] = (
    OpenAiChat(),
    OpenAiCompletions(),
    OpenAiEmbeddings(),
    OpenAiResponses(),
    AnthropicMessages(),
    AnthropicCountTokens(),
    GeminiGenerate(),
    GeminiEmbed(),
    GeminiCountTokens(),
    CohereChat(),
    CohereEmbed(),
)

FORMATS: Mapping[WireFormat, ProviderFormat] = {format_.format: format_ for format_ in _ALL}
