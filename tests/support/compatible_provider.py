"""The upstream room with one OpenAI-compatible provider, asked with bytes."""

from __future__ import annotations

from pydantic import SecretStr

from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Provider
from secure_llm_proxy.vocabulary.chat import Target, UpstreamRequest
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from secure_llm_proxy.vocabulary.wire_formats import WireFormat


def compatible_provider(settings: UpstreamSettings) -> Provider:
    """The one of LLM_API_URL and LLM_API_KEY."""
    keys: tuple[SecretStr, ...] = (settings.api_key,) if settings.api_key is not None else ()
    return Provider(ProviderDefinition("tested", "openai_compatible", settings.api_url or "", keys), settings)


def chat_request(body: bytes, *, stream: bool = False, model: str = "test-model") -> UpstreamRequest:
    """A chat request whose bytes are `body`."""
    return UpstreamRequest(Target("tested", model), WireFormat.OPENAI_CHAT, body, stream)
