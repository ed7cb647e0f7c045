"""Cohere's API v2: chat, its stream, embed. Source: Cohere API reference v2, read 2026-11-21."""

from __future__ import annotations

from secure_llm_proxy.vocabulary.text_tables.openai import OUTPUT_FORMAT, TOOL_CALLS, TOOLS, URL
from secure_llm_proxy.vocabulary.text_tables.shape import (
    LINK,
    MEDIA,
    OUTPUT_SCHEMA,
    QUIET,
    STRUCTURE,
    Channel,
    Shape,
    structure,
    text,
    texts,
    variants_of,
    whole,
)

_DOCUMENT = Shape(Channel.FILE, {"id": STRUCTURE, "data": whole(Channel.FILE)})
_CITATIONS = Shape(
    fields={
        **structure("start end type content_index"),
        "text": text(Channel.CITATION),
        "sources": Shape(
            fields={
                **structure("type id"),
                "document": whole(Channel.CITATION),
                "tool_output": whole(Channel.CITATION),
            }
        ),
    },
)


def _message(channel: Channel) -> Shape:
    """A message, whole or as a delta."""
    return Shape(
        channel,
        {
            **structure("role tool_call_id"),
            "content": Shape(
                channel,
                {
                    **structure("type id"),
                    "text": text(channel),
                    "thinking": text(Channel.REASONING),
                    "image_url": URL,
                    # A tool's result may be a document.
                    "document": Shape(
                        channel,
                        {
                            "id": STRUCTURE,
                            "data": whole(channel if channel is Channel.TOOL_RESULT else Channel.FILE),
                        },
                    ),
                },
            ),
            "tool_calls": TOOL_CALLS,
            "tool_plan": text(Channel.REASONING),
            "citations": _CITATIONS,
        },
    )


_ANSWERED = _message(Channel.ASSISTANT)
_MESSAGES = variants_of(
    "role",
    {
        "system": _message(Channel.SYSTEM),
        "user": _message(Channel.USER),
        "assistant": _ANSWERED,
        "tool": _message(Channel.TOOL_RESULT),
    },
    _message(Channel.UNKNOWN),
)
CHAT_REQUEST = Shape(
    fields={
        **structure(
            "model stream max_tokens temperature seed frequency_penalty presence_penalty k p logprobs safety_mode strict_tools"
            " tool_choice priority raw_prompting"
        ),
        "messages": _MESSAGES,
        "tools": TOOLS,
        "documents": _DOCUMENT,
        "citation_options": QUIET,
        "response_format": Shape(fields={**OUTPUT_FORMAT.fields, "json_schema": OUTPUT_SCHEMA}),
        "stop_sequences": text(Channel.PARAMETER),
        "thinking": QUIET,
    },
)
_LOGPROBS = Shape(fields={**structure("token_ids logprobs"), "text": text(Channel.TOKEN)})
CHAT_ANSWER = Shape(
    fields={
        **structure("id finish_reason"),
        "message": Shape(Channel.ERROR, _ANSWERED.fields),  # a refusal says why in a string of that name
        "usage": QUIET,
        "logprobs": _LOGPROBS,
        "error": text(Channel.ERROR),
    },
)
CHAT_EVENT = Shape(
    fields={
        **structure("type index id"),
        "delta": Shape(
            fields={
                **structure("finish_reason"),
                "message": _ANSWERED,
                "usage": QUIET,
                "error": text(Channel.ERROR),
            }
        ),
        "logprobs": _LOGPROBS,
    },
)
_INPUT = Shape(fields={"type": STRUCTURE, "text": text(Channel.USER), "image_url": URL})
EMBED_REQUEST = Shape(
    fields={
        **structure("model input_type embedding_types truncate output_dimension max_tokens priority"),
        **texts(Channel.USER, "texts"),
        "images": LINK,
        "inputs": Shape(fields={"content": _INPUT}),
    },
)
EMBED_ANSWER = Shape(
    fields={
        **structure("id response_type"),
        "embeddings": Shape(fields={**structure("float int8 uint8 binary ubinary"), "base64": MEDIA}),
        "texts": text(Channel.USER),
        "images": QUIET,
        "inputs": Shape(fields={"content": _INPUT}),
        "meta": Shape(fields={"warnings": text(Channel.ERROR)}, rest=QUIET),
        "message": text(Channel.ERROR),
    },
)
