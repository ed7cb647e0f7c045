"""Anthropic's count of a prompt's tokens. Pure: no socket here.

Source: Claude API reference (Count tokens in a Message), read 2026-11-21.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from secure_llm_proxy.upstream.formats.anthropic_messages import read_error, without_foreign_thinking
from secure_llm_proxy.upstream.formats.anthropic_request import write_prompt
from secure_llm_proxy.upstream.formats.face import Written, read_object, unreadable, unsupported
from secure_llm_proxy.vocabulary.chat import Completion, Usage
from secure_llm_proxy.vocabulary.conversation import TokenCount, TokenCountRequest
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject
    from secure_llm_proxy.upstream.formats.face import ReportedError
    from secure_llm_proxy.vocabulary.conversation import Neutral
    from secure_llm_proxy.vocabulary.providers import ProviderKind


class AnthropicCountTokens:
    """What a request of the Messages API would cost on its way in. No tokens are spent, so there is no usage."""

    format = WireFormat.ANTHROPIC_COUNT_TOKENS

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        del kind, stream, ask_usage
        return Written({**without_foreign_thinking(payload), "model": model})

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del kind, ask_usage
        if not isinstance(neutral, TokenCountRequest):
            raise unsupported("model", "this endpoint of it counts tokens only.")
        payload, dropped = write_prompt(neutral.conversation, model)
        return Written(payload, (*dict.fromkeys(dropped), *neutral.conversation.further))

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        del translated
        payload = read_object(body)
        tokens = payload.get("input_tokens")
        if type(tokens) is not int or tokens < 0:
            raise unreadable("the answer counts no tokens")
        return Completion(payload, "", Usage(), model, self.format, TokenCount(tokens))

    def stream(self, *, translated: bool, shows_usage: bool) -> NoReturn:
        del translated, shows_usage
        raise AssertionError("nobody streams a count")

    def read_error(self, payload: JsonObject) -> ReportedError:
        return read_error(payload)
