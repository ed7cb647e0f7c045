"""Which fields of which wire format hold text: one table for each format and direction.

A table lists structure and known texts. It cannot hide anything: what it does not list is text of the channel "unknown", and
what it calls structure is so only while it looks like it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from secure_llm_proxy.vocabulary.text_tables import anthropic, cohere, gemini, openai, responses
from secure_llm_proxy.vocabulary.text_tables.shape import Channel, Shape

__all__ = ["TABLES", "Channel", "Direction", "Shape"]


class Direction(StrEnum):
    REQUEST = "request"
    ANSWER = "answer"
    EVENT = "event"


# By the names of `wire_formats.WireFormat`.
TABLES: Mapping[tuple[str, Direction], Shape] = {
    ("openai_chat", Direction.REQUEST): openai.CHAT_REQUEST,
    ("openai_chat", Direction.ANSWER): openai.CHAT_ANSWER,
    ("openai_chat", Direction.EVENT): openai.CHAT_ANSWER,
    ("openai_completions", Direction.REQUEST): openai.COMPLETIONS_REQUEST,
    ("openai_completions", Direction.ANSWER): openai.COMPLETIONS_ANSWER,
    ("openai_completions", Direction.EVENT): openai.COMPLETIONS_ANSWER,
    ("openai_embeddings", Direction.REQUEST): openai.EMBEDDINGS_REQUEST,
    ("openai_embeddings", Direction.ANSWER): openai.EMBEDDINGS_ANSWER,
    ("openai_responses", Direction.REQUEST): responses.RESPONSES_REQUEST,
    ("openai_responses", Direction.ANSWER): responses.RESPONSES_ANSWER,
    ("openai_responses", Direction.EVENT): responses.RESPONSES_EVENT,
    ("anthropic_messages", Direction.REQUEST): anthropic.MESSAGES_REQUEST,
    ("anthropic_messages", Direction.ANSWER): anthropic.MESSAGES_ANSWER,
    ("anthropic_messages", Direction.EVENT): anthropic.MESSAGES_EVENT,
    ("anthropic_count_tokens", Direction.REQUEST): anthropic.MESSAGES_REQUEST,
    ("anthropic_count_tokens", Direction.ANSWER): anthropic.COUNT_ANSWER,
    ("gemini_generate", Direction.REQUEST): gemini.GENERATE_REQUEST,
    ("gemini_generate", Direction.ANSWER): gemini.GENERATE_ANSWER,
    ("gemini_generate", Direction.EVENT): gemini.GENERATE_ANSWER,
    ("gemini_count_tokens", Direction.REQUEST): gemini.COUNT_REQUEST,
    ("gemini_count_tokens", Direction.ANSWER): gemini.COUNT_ANSWER,
    ("gemini_embed", Direction.REQUEST): gemini.EMBED_REQUEST,
    ("gemini_embed", Direction.ANSWER): gemini.EMBED_ANSWER,
    ("cohere_chat", Direction.REQUEST): cohere.CHAT_REQUEST,
    ("cohere_chat", Direction.ANSWER): cohere.CHAT_ANSWER,
    ("cohere_chat", Direction.EVENT): cohere.CHAT_EVENT,
    ("cohere_embed", Direction.REQUEST): cohere.EMBED_REQUEST,
    ("cohere_embed", Direction.ANSWER): cohere.EMBED_ANSWER,
}
