"""OpenAI's chat completions, completions and embeddings, with the fields that compatible servers add.

Source: OpenAI API reference and the types of its SDK 3.52; Azure OpenAI, Groq, Mistral, OpenRouter, Together, vLLM and DeepSeek
for what they add. Read 2026-11-21.
"""

from __future__ import annotations

from secure_llm_proxy.vocabulary.text_tables.shape import (
    FILE_DATA,
    LABELS,
    LINK,
    MEDIA,
    OUTPUT_SCHEMA,
    QUIET,
    STRUCTURE,
    TOOL_SCHEMA,
    Channel,
    Shape,
    structure,
    text,
    texts,
    variants_of,
    whole,
)

URL = Shape(Channel.URL, {"url": LINK, "detail": STRUCTURE}, is_media=LINK.is_media)
FILE = Shape(
    fields={
        **texts(Channel.FILE, "filename"),
        "file_data": FILE_DATA,
        "file_id": STRUCTURE,
        "file_url": text(Channel.URL),
    }
)
CALLED = Shape(Channel.TOOL_CALL, texts(Channel.TOOL_CALL, "name arguments input"))
TOOL_CALLS = Shape(
    fields={"id": STRUCTURE, "type": STRUCTURE, "index": STRUCTURE, "function": CALLED, "custom": CALLED}
)
ANNOTATIONS = Shape(
    fields={
        **structure("type index start_index end_index file_id container_id"),
        **texts(Channel.CITATION, "title url filename text"),
        "url_citation": Shape(
            fields={**structure("start_index end_index"), **texts(Channel.CITATION, "title url content")}
        ),
    }
)
LOGPROBS = Shape(
    fields={
        **structure("logprob bytes token_logprobs text_offset token_ids logprobs"),
        "token": text(Channel.TOKEN),
        # Completions list the tokens as such, and the likeliest ones as names of an object.
        "tokens": text(Channel.TOKEN),
    },
)
LOGPROBS.fields = {
    **LOGPROBS.fields,
    "content": LOGPROBS,
    "refusal": LOGPROBS,
    "top_logprobs": Shape(Channel.TOKEN, LOGPROBS.fields, STRUCTURE, Channel.TOKEN),
}
ERROR = Shape(
    Channel.ERROR,
    {
        **structure("type code status"),
        **texts(Channel.ERROR, "message"),
        "param": text(Channel.ERROR),
        "innererror": QUIET,
        "error": text(Channel.ERROR),
    },
)
GRAMMAR = Shape(fields={"syntax": STRUCTURE, "definition": text(Channel.TOOL_DEFINITION)})
FUNCTION = Shape(
    Channel.TOOL_DEFINITION,
    {**structure("strict"), **texts(Channel.TOOL_DEFINITION, "name description"), "parameters": TOOL_SCHEMA},
)
# A tool as chat completions nest it and as the Responses API writes it flat. Whatever else a kind of tool has, a model may read.
TOOLS = Shape(
    fields={
        **structure("type strict defer_loading"),
        **texts(Channel.TOOL_DEFINITION, "name description"),
        "parameters": TOOL_SCHEMA,
        "function": FUNCTION,
        "custom": Shape(
            fields={
                **texts(Channel.TOOL_DEFINITION, "name description"),
                "format": Shape(fields={**structure("type"), **GRAMMAR.fields, "grammar": GRAMMAR}),
            }
        ),
        "format": Shape(fields={**structure("type"), **GRAMMAR.fields, "grammar": GRAMMAR}),
        "vector_store_ids": STRUCTURE,
        "search_context_size": STRUCTURE,
        "server_url": text(Channel.URL),
    },
    rest=whole(Channel.TOOL_DEFINITION),
    names=Channel.TOOL_DEFINITION,
)
TOOL_CHOICE = Shape(
    fields={
        **structure("type mode"),
        "name": text(Channel.TOOL_DEFINITION),
        "server_label": text(Channel.TOOL_DEFINITION),
    },
)
TOOL_CHOICE.fields = {
    **TOOL_CHOICE.fields,
    "function": TOOL_CHOICE,
    "custom": TOOL_CHOICE,
    "allowed_tools": TOOL_CHOICE,
    "tools": TOOL_CHOICE,
}
OUTPUT_FORMAT = Shape(
    fields={
        **structure("type strict"),
        **texts(Channel.OUTPUT_SCHEMA, "name description grammar"),
        "schema": OUTPUT_SCHEMA,
        "json_schema": Shape(
            fields={
                **structure("strict"),
                **texts(Channel.OUTPUT_SCHEMA, "name description"),
                "schema": OUTPUT_SCHEMA,
            }
        ),
    },
)
LOCATION = Shape(
    fields={
        **structure("type"),
        **texts(Channel.PARAMETER, "city country region timezone"),
        "approximate": Shape(fields=texts(Channel.PARAMETER, "city country region timezone")),
    },
)
# What tunes an answer in most of these formats: numbers, switches and names from lists.
TUNING = structure(
    "model stream temperature top_p top_k min_p seed n best_of echo logprobs top_logprobs max_tokens max_completion_tokens"
    " presence_penalty frequency_penalty repetition_penalty parallel_tool_calls reasoning_effort service_tier store verbosity"
    " modalities prompt_cache_retention safe_prompt random_seed"
)
NAMES_OF_USERS = texts(Channel.PARAMETER, "user safety_identifier prompt_cache_key")


def parts(channel: Channel) -> Shape:
    """The content of a message: a string, or parts."""
    fields = {
        **structure("type reference_ids"),
        "text": text(channel),
        "refusal": text(Channel.REFUSAL),
        "image_url": URL,
        "video_url": URL,
        "audio_url": URL,
        "input_audio": Shape(Channel.FILE, {"data": MEDIA, "format": STRUCTURE}, is_media=MEDIA.is_media),
        "file": FILE,
        "document_url": LINK,
        "document_name": text(Channel.FILE),
        "cache_control": QUIET,
        "prompt_cache_breakpoint": QUIET,
    }
    if channel is not Channel.REASONING:
        fields["thinking"] = parts(Channel.REASONING)
    return Shape(channel, fields)


def message(channel: Channel) -> Shape:
    """A message, whole or as a delta."""
    return Shape(
        channel,
        {
            **structure("role tool_call_id prefix"),
            "content": parts(channel),
            "name": text(channel),
            "refusal": text(Channel.REFUSAL),
            "tool_calls": TOOL_CALLS,
            "function_call": CALLED,
            "audio": Shape(fields={**structure("id expires_at"), "data": MEDIA, "transcript": text(channel)}),
            "reasoning_content": parts(Channel.REASONING),
            "reasoning": parts(Channel.REASONING),
            "reasoning_details": Shape(
                Channel.REASONING,
                {
                    **structure("type id index format"),
                    **texts(Channel.REASONING, "text summary"),
                    "data": MEDIA,
                    "signature": MEDIA,
                },
            ),
            "annotations": ANNOTATIONS,
            "cache_control": QUIET,
        },
    )


_ANSWERED = message(Channel.ASSISTANT)
_MESSAGES = variants_of(
    "role",
    {
        "system": message(Channel.SYSTEM),
        "developer": message(Channel.SYSTEM),
        "user": message(Channel.USER),
        "assistant": _ANSWERED,
        "tool": message(Channel.TOOL_RESULT),
        "function": message(Channel.TOOL_RESULT),
    },
    message(Channel.UNKNOWN),
)

CHAT_REQUEST = Shape(
    fields={
        **TUNING,
        **NAMES_OF_USERS,
        "messages": _MESSAGES,
        "stop": text(Channel.PARAMETER),
        "metadata": LABELS,
        "logit_bias": QUIET,
        "stream_options": QUIET,
        "prompt_cache_options": QUIET,
        "moderation": QUIET,
        "audio": QUIET,
        "functions": FUNCTION,
        "function_call": TOOL_CHOICE,
        "tools": TOOLS,
        "tool_choice": TOOL_CHOICE,
        "response_format": OUTPUT_FORMAT,
        "prediction": Shape(fields={"type": STRUCTURE, "content": parts(Channel.ASSISTANT)}),
        "web_search_options": Shape(fields={**structure("search_context_size"), "user_location": LOCATION}),
    },
)
_CHOICES = Shape(
    fields={
        **structure("index finish_reason native_finish_reason stop_reason matched_stop token_ids seed"),
        "message": _ANSWERED,
        "delta": _ANSWERED,
        "text": text(Channel.ASSISTANT),
        "logprobs": LOGPROBS,
        "content_filter_results": QUIET,
        "content_filter_offsets": QUIET,
        "error": ERROR,
    },
)
# A stream's event differs by `delta` for `message` only.
CHAT_ANSWER = Shape(
    fields={
        **structure("id object created model service_tier system_fingerprint provider"),
        "choices": _CHOICES,
        "usage": QUIET,
        "error": ERROR,
        "metadata": LABELS,
        "moderation": QUIET,
        "prompt_filter_results": QUIET,
        "x_groq": QUIET,
        "time_info": QUIET,
        "obfuscation": MEDIA,
        "prompt_token_ids": STRUCTURE,
    },
)
COMPLETIONS_REQUEST = Shape(
    fields={
        **TUNING,
        **NAMES_OF_USERS,
        **texts(Channel.USER, "prompt suffix"),
        "stop": text(Channel.PARAMETER),
        "logit_bias": QUIET,
        "stream_options": QUIET,
        "metadata": LABELS,
    },
)
COMPLETIONS_ANSWER = CHAT_ANSWER
EMBEDDINGS_REQUEST = Shape(
    fields={**structure("model dimensions encoding_format"), **NAMES_OF_USERS, "input": text(Channel.USER)},
)
EMBEDDINGS_ANSWER = Shape(
    fields={
        **structure("id object model created"),
        "data": Shape(fields={**structure("object index"), "embedding": MEDIA}),
        "usage": QUIET,
        "error": ERROR,
    },
)
