"""Gemini's countTokens. Pure: no socket here. Source: Gemini API reference "Counting tokens", read 2026-11."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.upstream.formats.embeddings import no_stream
from secure_llm_proxy.upstream.formats.face import ReportedError, Written, read_object, unreadable, unsupported
from secure_llm_proxy.upstream.formats.gemini_contents import contents_of, tools_of
from secure_llm_proxy.upstream.formats.gemini_errors import raise_reported, reported_error
from secure_llm_proxy.upstream.formats.parameters import Losses
from secure_llm_proxy.vocabulary.chat import Completion, Usage
from secure_llm_proxy.vocabulary.conversation import TokenCount, TokenCountRequest
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject
    from secure_llm_proxy.upstream.formats.face import StreamReader
    from secure_llm_proxy.vocabulary.conversation import Neutral
    from secure_llm_proxy.vocabulary.providers import ProviderKind


class GeminiCountTokens:
    """Counts a whole request, since instructions and tools are tokens too. What only guides the answer is not sent."""

    format = WireFormat.GEMINI_COUNT_TOKENS

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        del payload, model, kind, stream, ask_usage
        raise unsupported("model", "no endpoint of this proxy speaks its wire format.")

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del kind, ask_usage
        if not isinstance(neutral, TokenCountRequest):
            raise unsupported("model", "it counts tokens alone.")
        conversation, lost = neutral.conversation, Losses()
        counted = {
            "model": f"models/{model}",
            **contents_of(conversation, model, lost),
            **tools_of(conversation, lost),
        }
        lost.drop_further(conversation.further)
        return Written({"generateContentRequest": counted}, lost.names)

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        payload = read_object(body)
        raise_reported(payload)
        tokens = payload.get("totalTokens")
        if type(tokens) is not int or tokens < 0:
            raise unreadable("the answer counts no tokens")
        answer = TokenCount(tokens) if translated else None
        return Completion(payload, "", Usage(), model, self.format, answer)

    def stream(self, *, translated: bool, shows_usage: bool) -> StreamReader:
        del translated, shows_usage
        raise no_stream()

    def read_error(self, payload: JsonObject) -> ReportedError:
        return reported_error(payload)
