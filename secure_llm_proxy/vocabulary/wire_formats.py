"""The wire formats that clients and providers speak. Both sides name them alike, so that equal ones need no translation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum


class WireFormat(StrEnum):
    """One kind of request with its answer, plain and streamed."""

    OPENAI_CHAT = "openai_chat"
    OPENAI_COMPLETIONS = "openai_completions"
    OPENAI_RESPONSES = "openai_responses"
    OPENAI_EMBEDDINGS = "openai_embeddings"
    ANTHROPIC_MESSAGES = "anthropic_messages"
    ANTHROPIC_COUNT_TOKENS = "anthropic_count_tokens"
    GEMINI_GENERATE = "gemini_generate"
    GEMINI_EMBED = "gemini_embed"
    GEMINI_COUNT_TOKENS = "gemini_count_tokens"
    COHERE_CHAT = "cohere_chat"
    COHERE_EMBED = "cohere_embed"


class Operation(StrEnum):
    """What is asked for, whatever the format."""

    GENERATE = "generate"
    EMBED = "embed"
    COUNT_TOKENS = "count_tokens"


OPERATION_OF: dict[WireFormat, Operation] = {
    WireFormat.OPENAI_CHAT: Operation.GENERATE,
    WireFormat.OPENAI_COMPLETIONS: Operation.GENERATE,
    WireFormat.OPENAI_RESPONSES: Operation.GENERATE,
    WireFormat.OPENAI_EMBEDDINGS: Operation.EMBED,
    WireFormat.ANTHROPIC_MESSAGES: Operation.GENERATE,
    WireFormat.ANTHROPIC_COUNT_TOKENS: Operation.COUNT_TOKENS,
    WireFormat.GEMINI_GENERATE: Operation.GENERATE,
    WireFormat.GEMINI_EMBED: Operation.EMBED,
    WireFormat.GEMINI_COUNT_TOKENS: Operation.COUNT_TOKENS,
    WireFormat.COHERE_CHAT: Operation.GENERATE,
    WireFormat.COHERE_EMBED: Operation.EMBED,
}

# Which of a provider's formats is written to when the client's own is not among them: the one that can say most first.
_PREFERRED: Mapping[Operation, tuple[WireFormat, ...]] = {
    Operation.GENERATE: (
        WireFormat.ANTHROPIC_MESSAGES,
        WireFormat.OPENAI_CHAT,
        WireFormat.GEMINI_GENERATE,
        WireFormat.COHERE_CHAT,
    ),
    Operation.EMBED: (WireFormat.OPENAI_EMBEDDINGS, WireFormat.GEMINI_EMBED, WireFormat.COHERE_EMBED),
    Operation.COUNT_TOKENS: (WireFormat.ANTHROPIC_COUNT_TOKENS, WireFormat.GEMINI_COUNT_TOKENS),
}


def spoken(offered: Collection[WireFormat], client: WireFormat) -> WireFormat | None:
    """The format of those `offered` by a provider in which a request of the client's format is put to it; None: it can't be."""
    if client in offered:
        return client
    return next((known for known in _PREFERRED[OPERATION_OF[client]] if known in offered), None)
