"""Anthropic's Messages API. Source: Anthropic API reference, messages, streaming and count_tokens, read 2026-11-21."""

from __future__ import annotations

from collections.abc import Mapping

from secure_llm_proxy.vocabulary.text_tables.shape import (
    LABELS,
    LINK,
    MEDIA,
    OUTPUT_SCHEMA,
    QUIET,
    STRUCTURE,
    TOOL_SCHEMA,
    Channel,
    Shape,
    blob,
    chosen_alike,
    structure,
    text,
    texts,
    variants_of,
    whole,
)

_CITATIONS = Shape(
    fields={
        **structure(
            "type document_index start_char_index end_char_index start_page_number end_page_number start_block_index"
            " end_block_index search_result_index file_id enabled"
        ),
        **texts(Channel.CITATION, "cited_text document_title title url source"),
        "encrypted_index": MEDIA,
    },
)
_ERROR = Shape(Channel.ERROR, {"type": STRUCTURE, "message": text(Channel.ERROR), "details": whole(Channel.ERROR)})
_RESULT_TYPES = (
    "tool_result mcp_tool_result web_search_tool_result web_fetch_tool_result code_execution_tool_result"
    " bash_code_execution_tool_result text_editor_code_execution_tool_result tool_search_tool_result"
)


def _blocks(channel: Channel) -> Shape:
    """The content of a message: a string, or blocks."""
    fields: dict[str, Shape] = {
        **structure("type id tool_use_id is_error file_id index"),
        "text": text(channel),
        "cache_control": QUIET,
        "citations": _CITATIONS,
        # an image, a document, a search result (whose source is a string)
        "title": text(Channel.FILE),
        "context": text(Channel.FILE),
        "thinking": text(Channel.REASONING),
        "signature": MEDIA,
        "data": MEDIA,
        # what a model asked of a tool
        **texts(Channel.TOOL_CALL, "name server_name"),
        "input": whole(Channel.TOOL_CALL),
        "caller": QUIET,
    }
    fields["source"] = _source({"content": _document()})
    if channel is Channel.TOOL_RESULT:
        here = Shape(channel, fields, whole(channel), channel)
        fields |= {
            **texts(channel, "stdout stderr title url page_age error_code retrieved_at tool_name"),
            **structure("return_code"),
            "content": here,
            "encrypted_content": MEDIA,
            "encrypted_stdout": MEDIA,
        }
        return here
    # a search result's; a tool's is another shape
    fields["content"] = _document()
    here = Shape(channel, fields)
    return variants_of("type", chosen_alike(_RESULT_TYPES, _RESULTS), here)


def _source(further: Mapping[str, Shape]) -> Shape:
    """Of an image or a document. Its data are media in base64 alone: what its type calls text is text, whatever its media type."""
    media = blob("data", "media_type", {**structure("type file_id"), "url": LINK, **further}, Channel.URL)
    return variants_of("type", {"base64": media}, media.variants[False])


def _document() -> Shape:
    return Shape(
        Channel.FILE,
        {
            **structure("type"),
            "text": text(Channel.FILE),
            "cache_control": QUIET,
            "source": _source({}),
        },
    )


_RESULTS = _blocks(Channel.TOOL_RESULT)


def _message(channel: Channel) -> Shape:
    return Shape(channel, {"role": STRUCTURE, "content": _blocks(channel)})


_MESSAGES = variants_of(
    "role",
    {
        "user": _message(Channel.USER),
        "assistant": _message(Channel.ASSISTANT),
        "system": _message(Channel.SYSTEM),
    },
    _message(Channel.UNKNOWN),
)
_TOOLS = Shape(
    fields={
        **structure("type strict max_uses defer_loading allowed_callers eager_input_streaming"),
        **texts(Channel.TOOL_DEFINITION, "name description"),
        "input_schema": TOOL_SCHEMA,
        "cache_control": QUIET,
    },
    rest=whole(Channel.TOOL_DEFINITION),
    names=Channel.TOOL_DEFINITION,
)
_OUTPUT_FORMAT = Shape(fields={"type": STRUCTURE, "schema": OUTPUT_SCHEMA})

# A request to count tokens is one to answer, without what tunes the answer.
MESSAGES_REQUEST = Shape(
    fields={
        **structure("model max_tokens stream temperature top_p top_k service_tier betas inference_geo speed"),
        "messages": _MESSAGES,
        "system": _blocks(Channel.SYSTEM),
        "stop_sequences": text(Channel.PARAMETER),
        "metadata": LABELS,
        "thinking": QUIET,
        "cache_control": QUIET,
        "tools": _TOOLS,
        "tool_choice": Shape(
            fields={**structure("type disable_parallel_tool_use"), "name": text(Channel.TOOL_DEFINITION)}
        ),
        "output_format": _OUTPUT_FORMAT,
        "output_config": Shape(fields={**structure("effort"), "format": _OUTPUT_FORMAT, "task_budget": QUIET}),
        "container": QUIET,
        "context_management": QUIET,
        "mcp_servers": Shape(
            fields={
                **structure("type"),
                "name": text(Channel.TOOL_DEFINITION),
                "url": text(Channel.URL),
                "authorization_token": text(Channel.PARAMETER),
                "tool_configuration": whole(Channel.TOOL_DEFINITION),
            }
        ),
    },
)
_ANSWER_FIELDS = {
    **structure("id type role model stop_reason request_id"),
    "content": _blocks(Channel.ASSISTANT),
    "stop_sequence": text(Channel.PARAMETER),
    "stop_details": whole(Channel.REFUSAL),
    "usage": QUIET,
    "container": QUIET,
    "context_management": QUIET,
    "error": _ERROR,
}
MESSAGES_ANSWER = Shape(fields=_ANSWER_FIELDS)
_DELTA = Shape(
    fields={
        **structure("type stop_reason"),
        "text": text(Channel.ASSISTANT),
        "partial_json": text(Channel.TOOL_CALL),
        "thinking": text(Channel.REASONING),
        "signature": MEDIA,
        "citation": _CITATIONS,
        "stop_sequence": text(Channel.PARAMETER),
        "stop_details": whole(Channel.REFUSAL),
        "container": QUIET,
    },
)
MESSAGES_EVENT = Shape(
    fields={
        **structure("type index request_id"),
        "message": MESSAGES_ANSWER,
        "content_block": _blocks(Channel.ASSISTANT),
        "delta": _DELTA,
        "usage": QUIET,
        "context_management": QUIET,
        "error": _ERROR,
    },
)
COUNT_ANSWER = Shape(
    fields={**structure("input_tokens"), "context_management": QUIET, "error": _ERROR, "type": STRUCTURE}
)
