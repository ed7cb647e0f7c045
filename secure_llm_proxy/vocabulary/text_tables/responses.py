"""OpenAI's Responses API. Source: OpenAI API reference and the types of its SDK 3.52, read 2026-11-21."""

from __future__ import annotations

from secure_llm_proxy.vocabulary.text_tables.openai import (
    ANNOTATIONS,
    ERROR,
    LOGPROBS,
    NAMES_OF_USERS,
    OUTPUT_FORMAT,
    TOOL_CHOICE,
    TOOLS,
)
from secure_llm_proxy.vocabulary.text_tables.shape import (
    FILE_DATA,
    LABELS,
    LINK,
    MEDIA,
    QUIET,
    STRUCTURE,
    TOOL_SCHEMA,
    Channel,
    Shape,
    chosen_alike,
    structure,
    text,
    texts,
    variants_of,
    whole,
)

_ITEM = structure("id type status call_id role phase caller namespace execution")


def _content(channel: Channel) -> Shape:
    """A string, or parts."""
    return Shape(
        channel,
        {
            **structure("type file_id detail"),
            "text": text(channel),
            "refusal": text(Channel.REFUSAL),
            "image_url": LINK,
            "file_url": LINK,
            "file_data": FILE_DATA,
            "filename": text(Channel.FILE),
            "input_audio": Shape(fields={"data": MEDIA, "format": STRUCTURE}),
            "annotations": ANNOTATIONS,
            "logprobs": LOGPROBS,
            "transcript": text(channel),
            "prompt_cache_breakpoint": QUIET,
        },
    )


def _message(channel: Channel) -> Shape:
    return Shape(channel, {**_ITEM, "content": _content(channel), "name": text(channel)})


_MESSAGES = variants_of(
    "role",
    {
        "system": _message(Channel.SYSTEM),
        "developer": _message(Channel.SYSTEM),
        "user": _message(Channel.USER),
        "assistant": _message(Channel.ASSISTANT),
    },
    _message(Channel.UNKNOWN),
)
# What a model asked of a tool, whichever: what is not listed here, a model wrote, too.
_CALL = Shape(
    Channel.TOOL_CALL,
    {
        **_ITEM,
        **texts(Channel.TOOL_CALL, "name arguments input code server_label queries"),
        **structure("container_id approval_request_id fingerprint"),
        "action": whole(Channel.TOOL_CALL),
        "operation": whole(Channel.TOOL_CALL),
        # What the tool said stands in the same item.
        "output": Shape(Channel.TOOL_RESULT, _content(Channel.TOOL_RESULT).fields),
        "outputs": Shape(Channel.TOOL_RESULT, {**structure("type"), "logs": text(Channel.TOOL_RESULT), "url": LINK}),
        "results": whole(Channel.TOOL_RESULT),
        "error": whole(Channel.TOOL_RESULT),
        "pending_safety_checks": Shape(fields={**structure("id code"), "message": text(Channel.TOOL_CALL)}),
    },
    rest=whole(Channel.TOOL_CALL),
    names=Channel.TOOL_CALL,
)
_RESULT = Shape(
    Channel.TOOL_RESULT,
    {
        **_ITEM,
        **structure("max_output_length approval_request_id approve"),
        **texts(Channel.TOOL_RESULT, "name reason result"),
        "output": Shape(
            Channel.TOOL_RESULT,
            {
                **_content(Channel.TOOL_RESULT).fields,
                **texts(Channel.TOOL_RESULT, "stdout stderr logs"),
                "outcome": QUIET,
            },
        ),
        "acknowledged_safety_checks": Shape(fields={**structure("id code"), "message": text(Channel.TOOL_RESULT)}),
    },
    rest=whole(Channel.TOOL_RESULT),
    names=Channel.TOOL_RESULT,
)
_SUMMARY = Shape(Channel.REASONING, {"type": STRUCTURE, "text": text(Channel.REASONING)})
_REASONING = Shape(fields={**_ITEM, "summary": _SUMMARY, "content": _SUMMARY, "encrypted_content": MEDIA})
_LISTED_TOOLS = Shape(
    fields={
        **_ITEM,
        **texts(Channel.TOOL_DEFINITION, "server_label error"),
        "tools": Shape(
            fields={
                **TOOLS.fields,
                "input_schema": TOOL_SCHEMA,
                "annotations": whole(Channel.TOOL_DEFINITION),
            },
            rest=whole(Channel.TOOL_DEFINITION),
            names=Channel.TOOL_DEFINITION,
        ),
    },
)
_IMAGE = Shape(
    fields={
        **_ITEM,
        **structure("action background output_format quality size"),
        "result": MEDIA,
        "revised_prompt": text(Channel.TOOL_CALL),
        "error": ERROR,
        "svg_usage": QUIET,
    },
)
_OPAQUE = Shape(fields={**_ITEM, "encrypted_content": MEDIA, "created_by": STRUCTURE})

ITEMS = variants_of(
    "type",
    {
        "message": _MESSAGES,
        "reasoning": _REASONING,
        "compaction": _OPAQUE,
        "compaction_trigger": _OPAQUE,
        "item_reference": _OPAQUE,
        "image_generation_call": _IMAGE,
        "mcp_list_tools": _LISTED_TOOLS,
        "additional_tools": _LISTED_TOOLS,
        **chosen_alike(
            "function_call custom_tool_call web_search_call file_search_call computer_call code_interpreter_call mcp_call"
            " mcp_approval_request local_shell_call shell_call apply_patch_call tool_search_call program",
            _CALL,
        ),
        **chosen_alike(
            "function_call_output custom_tool_call_output computer_call_output local_shell_call_output shell_call_output"
            " apply_patch_call_output mcp_approval_response tool_search_output program_output",
            _RESULT,
        ),
    },
    # An easy message has no type.
    _MESSAGES,
)
# Nothing chose by type: the role does.
ITEMS.variants = {**ITEMS.variants, None: _MESSAGES}

_INPUT = Shape(Channel.USER, ITEMS.fields, ITEMS.rest, ITEMS.names, ITEMS.by, ITEMS.variants)
_INSTRUCTIONS = Shape(Channel.SYSTEM, ITEMS.fields, ITEMS.rest, ITEMS.names, ITEMS.by, ITEMS.variants)
# What a request says and an answer repeats.
_COMMON = {
    **structure(
        "id model background include max_output_tokens max_tool_calls parallel_tool_calls previous_response_id service_tier"
        " store stream temperature top_p top_logprobs truncation prompt_cache_retention"
    ),
    **NAMES_OF_USERS,
    "instructions": _INSTRUCTIONS,
    "metadata": LABELS,
    "tools": TOOLS,
    "tool_choice": TOOL_CHOICE,
    "text": Shape(fields={**structure("verbosity"), "format": OUTPUT_FORMAT}),
    # A request's effort; some servers stream the thoughts themselves under the same name.
    "reasoning": Shape(Channel.REASONING, structure("effort summary generate_summary context mode")),
    "prompt": Shape(
        fields={
            **structure("id version"),
            "variables": Shape(Channel.USER, rest=_content(Channel.USER), names=Channel.PARAMETER),
        }
    ),
    "conversation": Shape(fields=structure("id")),
    "context_management": QUIET,
    "prompt_cache_options": QUIET,
    "moderation": QUIET,
    "access_programs": QUIET,
    "image": QUIET,
}
RESPONSES_REQUEST = Shape(fields={**_COMMON, "input": _INPUT, "stream_options": QUIET})
RESPONSES_ANSWER = Shape(
    fields={
        **_COMMON,
        **structure("object created_at completed_at status"),
        "error": ERROR,
        "incomplete_details": QUIET,
        "output": ITEMS,
        "output_text": text(Channel.ASSISTANT),
        "usage": QUIET,
        "tool_usage": QUIET,
        "prompt_cache_diagnostics": QUIET,
        "input_transformations": QUIET,
    },
)

_EVENT = {
    **structure("type sequence_number item_id output_index content_index summary_index annotation_index command_index"),
    "obfuscation": MEDIA,
    "logprobs": LOGPROBS,
    "error": ERROR,
}


def _event(channel: Channel, names: str) -> Shape:
    return Shape(fields={**_EVENT, **texts(channel, names)})


_CONTENT_PART = variants_of(
    "type",
    {"reasoning_text": _content(Channel.REASONING), "summary_text": _content(Channel.REASONING)},
    _content(Channel.ASSISTANT),
)
_PLAIN_EVENT = {
    **_EVENT,
    **structure("partial_image_index size quality background output_format"),
    "response": RESPONSES_ANSWER,
    "item": ITEMS,
    "part": _CONTENT_PART,
    "annotation": ANNOTATIONS,
    "partial_image_b64": MEDIA,
}
RESPONSES_EVENT = Shape(
    fields=_PLAIN_EVENT,
    by="type",
    variants={
        **{f"response.output_text.{end}": _event(Channel.ASSISTANT, "delta text") for end in ("delta", "done")},
        **{f"response.refusal.{end}": _event(Channel.REFUSAL, "delta refusal") for end in ("delta", "done")},
        **{
            f"response.{what}.{end}": _event(Channel.REASONING, "delta text")
            for what in ("reasoning_text", "reasoning_summary_text")
            for end in ("delta", "done")
        },
        **{
            f"response.{what}.{end}": _event(Channel.TOOL_CALL, "delta name arguments input code command commands")
            for what in (
                "function_call_arguments",
                "custom_tool_call_input",
                "mcp_call_arguments",
                "code_interpreter_call_code",
                "shell_call_command",
            )
            for end in ("added", "delta", "done")
        },
        **{
            f"response.shell_call_output_content.{end}": Shape(
                fields={
                    **_EVENT,
                    **dict.fromkeys(
                        ("delta", "output"),
                        Shape(
                            Channel.TOOL_RESULT,
                            {**structure("type"), **texts(Channel.TOOL_RESULT, "stdout stderr"), "outcome": QUIET},
                        ),
                    ),
                }
            )
            for end in ("delta", "done")
        },
        "response.audio.delta": Shape(fields={**_EVENT, "delta": MEDIA}),
        **{f"response.audio.transcript.{end}": _event(Channel.ASSISTANT, "delta text") for end in ("delta", "done")},
        "error": Shape(fields={**_EVENT, **ERROR.fields, "error": ERROR}),
    },
)
