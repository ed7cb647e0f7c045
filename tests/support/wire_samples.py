"""One payload for each wire format and direction that has every documented field in it, written by us from the documentation.

A text says which channel it is of: `"user: …"`. What has no such beginning is structure. Sources: OpenAI API reference and its
SDK's types, Anthropic, Gemini (v1beta) and Cohere (v2) API references, all read 2026-11-21.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
DATA_URL = f"data:image/png;base64,{PNG}"
SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds" * 8

_SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "title": "tool_definition: title",
    "description": "tool_definition: what it takes",
    "properties": {
        "tool_definition: a property": {
            "type": ["string", "null"],
            "format": "date-time",
            "pattern": "tool_definition: ^a b$",
            "enum": ["tool_definition: one", "tool_definition: two", None],
            "default": {"tool_definition: a name": "tool_definition: a value"},
            "examples": ["tool_definition: for instance"],
            "maxLength": 7,
        },
        "type": {"const": "tool_definition: the only one"},
    },
    "required": ["tool_definition: a property"],
    "additionalProperties": False,
    "$defs": {"tool_definition: Inner": {"anyOf": [{"type": "integer"}, {"$ref": "tool_definition: #/$defs/Inner"}]}},
    "x-of-its-own": {"tool_definition: deep": ["tool_definition: in a list"]},
}


def _output_schema(value: Json) -> Json:
    """The same schema for an answer's form."""
    if isinstance(value, dict):
        return {
            name.replace("tool_definition:", "output_schema:"): _output_schema(item) for name, item in value.items()
        }
    if isinstance(value, list):
        return [_output_schema(item) for item in value]
    return value.replace("tool_definition:", "output_schema:") if isinstance(value, str) else value


_OUTPUT_SCHEMA = _output_schema(_SCHEMA)
_CHAT_CALLS: Json = [
    {"id": "call_1", "type": "function", "function": {"name": "tool_call: f", "arguments": 'tool_call: {"a": 1}'}},
    {"id": "call_2", "type": "custom", "custom": {"name": "tool_call: c", "input": "tool_call: free text"}},
]
_LOGPROB: Json = {
    "token": "token: Hel",
    "logprob": -0.1,
    "bytes": [72],
    "top_logprobs": [{"token": "token: Ha", "logprob": -1.5, "bytes": None}],
}
_USAGE: Json = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
}

_CHAT_REQUEST: Json = {
    "model": "gpt-5.2",
    "messages": [
        {"role": "system", "content": "system: be kind", "name": "system: a name"},
        {"role": "developer", "content": [{"type": "text", "text": "system: be brief"}]},
        {
            "role": "user",
            "name": "user: Ann",
            "content": [
                {"type": "text", "text": "user: look", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
                {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "high"}},
                {"type": "image_url", "image_url": {"url": "url: https://example.org/a?b=c d"}},
                {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
                {
                    "type": "file",
                    "file": {"file_data": "data:application/pdf;base64," + PNG, "filename": "file: plan.pdf"},
                },
                {"type": "file", "file": {"file_data": "file: data:text/plain,hello", "file_id": "file-1"}},
            ],
        },
        {
            "role": "assistant",
            "content": "assistant: earlier",
            "refusal": "refusal: no",
            "tool_calls": _CHAT_CALLS,
            "function_call": {"name": "tool_call: old", "arguments": "tool_call: {}"},
            "audio": {"id": "audio_1"},
            "reasoning_content": "reasoning: hm",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "reasoning: let me see", "signature": SIGNATURE, "format": "x-v1"},
                {"type": "reasoning.encrypted", "data": SIGNATURE},
                {"type": "reasoning.summary", "summary": "reasoning: in short"},
            ],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "refusal: never"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "tool_result: 4 degrees"},
        {"role": "function", "name": "tool_result: old", "content": "tool_result: 5 degrees"},
        {"role": "sage", "content": "unknown: who is it", "unknown: a field": {"unknown: x": ["unknown: y"]}},
    ],
    "audio": {"voice": "alloy", "format": "mp3"},
    "frequency_penalty": 0.5,
    "function_call": {"name": "tool_definition: old"},
    "functions": [{"name": "tool_definition: old", "description": "tool_definition: d", "parameters": _SCHEMA}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 100,
    "metadata": {"parameter: a label": "parameter: its value"},
    "modalities": ["text", "audio"],
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": [{"type": "text", "text": "assistant: predicted"}]},
    "prompt_cache_key": "parameter: a key",
    "reasoning_effort": "low",
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "output_schema: n", "description": "output_schema: d", "schema": _OUTPUT_SCHEMA, "strict": True,
        },
    },
    "safety_identifier": "parameter: h",
    "seed": 7,
    "service_tier": "auto",
    "stop": ["parameter: stop here"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.2,
    "tool_choice": {"type": "function", "function": {"name": "tool_definition: f"}},
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "tool_definition: f",
                "description": "tool_definition: it does",
                "parameters": _SCHEMA,
                "strict": True,
            },
        },
        {
            "type": "custom",
            "custom": {
                "name": "tool_definition: c",
                "description": "tool_definition: d",
                "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "tool_definition: start: x"}},
            },
        },
    ],
    "user": "parameter: u",
    "web_search_options": {
        "search_context_size": "low",
        "user_location": {"type": "approximate", "approximate": {"city": "parameter: Bonn", "country": "parameter: DE"}},
    },
    "unknown: of its own": "unknown: value",
}  # fmt: skip
_CHAT_ANSWER: Json = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5.2",
    "system_fingerprint": "fp_1",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": "assistant: hello",
                "refusal": "refusal: no",
                "reasoning": "reasoning: hm",
                "tool_calls": _CHAT_CALLS,
                "audio": {"id": "a", "data": PNG, "expires_at": 9, "transcript": "assistant: spoken"},
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {
                            "url": "citation: https://x", "title": "citation: t", "start_index": 0, "end_index": 1,
                        },
                    }
                ],
            },
            "logprobs": {"content": [_LOGPROB], "refusal": [_LOGPROB]},
            "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}},
        },
        {"index": 1, "finish_reason": "stop", "message": {"role": "assistant", "content": "assistant: other"}},
        {
            "index": 2,
            "message": {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "reasoning: Mistral"}]},
                    {"type": "text", "text": "assistant: Mistral"},
                ],
            },
        },
    ],
    "usage": _USAGE,
    "error": {"message": "error: words", "type": "server_error", "param": None, "code": "x"},
}  # fmt: skip
_CHAT_EVENT: Json = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "gpt-5.2",
    "choices": [
        {
            "index": 0,
            "delta": {
                "role": "assistant",
                "content": "assistant: lo",
                "reasoning_content": "reasoning: mm",
                "refusal": "refusal: n",
                "tool_calls": [
                    {
                        "index": 0,
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "tool_call: f", "arguments": "tool_call: {"},
                    }
                ],
                "audio": {"data": PNG, "transcript": "assistant: said"},
            },
            "logprobs": {"content": [_LOGPROB]},
            "finish_reason": None,
        }
    ],
    "usage": _USAGE,
    "obfuscation": "aB3xY",
    "x_groq": {"id": "req_1", "usage": {"queue_time": 0.1}},
}

_RESPONSE_TOOLS: Json = [
    {
        "type": "function",
        "name": "tool_definition: f",
        "description": "tool_definition: d",
        "parameters": _SCHEMA,
        "strict": True,
    },
    {
        "type": "mcp",
        "tool_definition: server_label": "tool_definition: l",
        "server_url": "url: https://x y",
        "tool_definition: headers": {"tool_definition: X": "tool_definition: secret"},
    },
    {"type": "custom", "name": "tool_definition: c", "format": {"type": "grammar", "definition": "tool_definition: g"}},
]
_ITEMS: list[Json] = [
    {
        "type": "message",
        "role": "assistant",
        "id": "msg_1",
        "status": "completed",
        "content": [
            {
                "type": "output_text",
                "text": "assistant: said",
                "annotations": [
                    {"type": "url_citation", "title": "citation: t", "url": "citation: https://x", "start_index": 0}
                ],
                "logprobs": [_LOGPROB],
            },
            {"type": "refusal", "refusal": "refusal: no"},
        ],
    },
    {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "tool_call: f",
        "arguments": "tool_call: {}",
        "status": "completed",
    },
    {"type": "custom_tool_call", "call_id": "call_2", "name": "tool_call: c", "input": "tool_call: words"},
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "reasoning: short"}],
        "content": [{"type": "reasoning_text", "text": "reasoning: long"}],
        "encrypted_content": SIGNATURE,
    },
    {
        "type": "web_search_call",
        "id": "ws",
        "action": {"tool_call: type": "tool_call: q", "tool_call: query": "tool_call: who"},
    },
    {
        "type": "file_search_call",
        "queries": ["tool_call: where"],
        "results": [{"tool_result: text": "tool_result: found"}],
    },
    {
        "type": "code_interpreter_call",
        "code": "tool_call: 1+1",
        "container_id": "c_1",
        "outputs": [{"type": "logs", "logs": "tool_result: 2"}],
    },
    {
        "type": "mcp_call",
        "name": "tool_call: m",
        "server_label": "tool_call: l",
        "arguments": "tool_call: {}",
        "output": "tool_result: out",
    },
    {
        "type": "mcp_list_tools",
        "server_label": "tool_definition: l",
        "tools": [{"name": "tool_definition: t", "description": "tool_definition: d", "input_schema": _SCHEMA}],
    },
    {"type": "image_generation_call", "id": "ig", "result": PNG, "revised_prompt": "tool_call: a cat"},
    {
        "type": "computer_call",
        "call_id": "c",
        "action": {"tool_call: text": "tool_call: typed"},
        "pending_safety_checks": [{"id": "x", "code": "y", "message": "tool_call: careful"}],
    },
]
_RESPONSES_REQUEST: Json = {
    "model": "gpt-5.2",
    "instructions": "system: be kind",
    "input": [
        {"role": "user", "content": "user: easy"},
        {"role": "developer", "content": "system: hush"},
        {"role": "assistant", "content": "assistant: earlier"},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "user: look"},
                {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
                {"type": "input_image", "image_url": "url: https://x y"},
                {
                    "type": "input_file",
                    "filename": "file: f",
                    "file_data": "JVBERi0xLjcK",
                    "file_url": "url: https://z z",
                },
            ],
        },
        *_ITEMS,
        {"type": "function_call_output", "call_id": "call_1", "output": "tool_result: 4"},
        {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [
                {"type": "input_text", "text": "tool_result: 5"},
                {"type": "input_image", "image_url": DATA_URL},
            ],
        },
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "tool_result: done"},
        {"type": "local_shell_call_output", "id": "l", "output": "tool_result: ls"},
        {
            "type": "shell_call_output",
            "call_id": "s",
            "output": [{"stdout": "tool_result: out", "stderr": "tool_result: err", "outcome": {"type": "exit"}}],
        },
        {"type": "mcp_approval_response", "approval_request_id": "r", "approve": False, "reason": "tool_result: why"},
        {"type": "item_reference", "id": "msg_2"},
        {"type": "riddle", "unknown: answer": "unknown: none"},
    ],
    "include": ["reasoning.encrypted_content"],
    "metadata": {"parameter: k": "parameter: v"},
    "previous_response_id": "resp_1",
    "prompt": {"id": "pmpt_1", "version": "2", "variables": {"parameter: who": "user: Ann"}},
    "prompt_cache_key": "parameter: c",
    "reasoning": {"effort": "low", "summary": "auto"},
    "safety_identifier": "parameter: s",
    "text": {
        "verbosity": "low",
        "format": {
            "type": "json_schema",
            "name": "output_schema: n",
            "description": "output_schema: d",
            "schema": _OUTPUT_SCHEMA,
        },
    },
    "tool_choice": {"type": "function", "name": "tool_definition: f"},
    "tools": _RESPONSE_TOOLS,
    "truncation": "auto",
    "user": "parameter: u",
}
_RESPONSES_ANSWER: Json = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "error": {"code": "server_error", "message": "error: words"},
    "incomplete_details": {"reason": "max_output_tokens"},
    "instructions": "system: be kind",
    "model": "gpt-5.2",
    "output": _ITEMS,
    "output_text": "assistant: said",
    "metadata": {"parameter: k": "parameter: v"},
    "reasoning": {"effort": "low", "summary": None},
    "text": {"format": {"type": "text"}},
    "tools": _RESPONSE_TOOLS,
    "usage": {"input_tokens": 3, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 4, "total_tokens": 7},
    "user": "parameter: u",
}


def _response_event(kind: str, **fields: Json) -> Json:
    return {"type": f"response.{kind}", "sequence_number": 3, "item_id": "msg_1", "output_index": 0, **fields}


_RESPONSES_EVENTS: list[Json] = [
    _response_event("created", response=_RESPONSES_ANSWER),
    _response_event("output_item.added", item=_ITEMS[1]),
    _response_event("content_part.added", part={"type": "output_text", "text": "assistant: a", "annotations": []}),
    _response_event("content_part.done", part={"type": "reasoning_text", "text": "reasoning: r"}),
    _response_event("output_text.delta", delta="assistant: a", logprobs=[_LOGPROB], obfuscation="xYz"),
    _response_event("output_text.done", text="assistant: a"),
    _response_event("refusal.delta", delta="refusal: n"),
    _response_event("refusal.done", refusal="refusal: no"),
    _response_event("function_call_arguments.delta", delta="tool_call: {"),
    _response_event("function_call_arguments.done", name="tool_call: f", arguments="tool_call: {}"),
    _response_event("custom_tool_call_input.delta", delta="tool_call: w"),
    _response_event("custom_tool_call_input.done", input="tool_call: words"),
    _response_event("mcp_call_arguments.delta", delta="tool_call: {"),
    _response_event("code_interpreter_call_code.delta", delta="tool_call: 1"),
    _response_event("code_interpreter_call_code.done", code="tool_call: 1"),
    _response_event("reasoning_text.delta", delta="reasoning: h"),
    _response_event("reasoning_summary_text.delta", delta="reasoning: s"),
    _response_event("reasoning_summary_text.done", text="reasoning: s"),
    _response_event("reasoning_summary_part.added", part={"type": "summary_text", "text": "reasoning: s"}),
    _response_event(
        "output_text.annotation.added",
        annotation={"type": "url_citation", "title": "citation: t", "url": "citation: u"},
    ),
    _response_event("audio.delta", delta=PNG),
    _response_event("audio.transcript.delta", delta="assistant: t"),
    _response_event("image_generation_call.partial_image", partial_image_b64=PNG, partial_image_index=0),
    {"type": "error", "code": "server_error", "message": "error: words", "param": None, "sequence_number": 9},
    _response_event("of_the_future", **{"unknown: delta": "unknown: words"}),
]

_CITATIONS: Json = [
    {
        "type": "web_search_result_location",
        "cited_text": "citation: c",
        "title": "citation: t",
        "url": "citation: u",
        "encrypted_index": SIGNATURE,
    }
]
_ANTHROPIC_TURN: list[Json] = [
    {"type": "thinking", "thinking": "reasoning: hm", "signature": SIGNATURE},
    {"type": "redacted_thinking", "data": SIGNATURE},
    {"type": "text", "text": "assistant: said", "citations": _CITATIONS},
    {
        "type": "tool_use",
        "id": "toolu_1",
        "name": "tool_call: f",
        "input": {"tool_call: city": "tool_call: Bonn", "tool_call: n": ["tool_call: x"]},
    },
    {"type": "server_tool_use", "id": "srv_1", "name": "tool_call: web", "input": {"tool_call: query": "tool_call: q"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srv_1",
        "content": [
            {
                "type": "web_search_result",
                "title": "tool_result: t",
                "url": "tool_result: u",
                "encrypted_content": SIGNATURE,
            }
        ],
    },
]
_ANTHROPIC_REQUEST: Json = {
    "model": "claude-sonnet-5",
    "max_tokens": 100,
    "system": [{"type": "text", "text": "system: be kind", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "user: plain"},
        {"role": "assistant", "content": _ANTHROPIC_TURN},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "user: look"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                {"type": "image", "source": {"type": "url", "url": "url: https://x y"}},
                {
                    "type": "document",
                    "title": "file: t",
                    "context": "file: c",
                    "source": {"type": "text", "media_type": "text/plain", "data": "file: all of the text"},
                    "citations": {"enabled": True},
                },
                {
                    "type": "document",
                    "source": {"type": "content", "content": [{"type": "text", "text": "file: a piece"}]},
                },
                {
                    "type": "search_result",
                    "source": "url: https://s s",
                    "title": "file: t",
                    "content": [{"type": "text", "text": "file: found"}],
                },
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "tool_result: 4"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "is_error": True,
                    "content": [
                        {"type": "text", "text": "tool_result: 5"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                    ],
                },
            ],
        },
    ],
    "metadata": {"parameter: user_id": "parameter: u"},
    "stop_sequences": ["parameter: stop"],
    "stream": True,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tool_choice": {"type": "tool", "name": "tool_definition: f"},
    "tools": [
        {
            "name": "tool_definition: f",
            "description": "tool_definition: d",
            "input_schema": _SCHEMA,
            "cache_control": {"type": "ephemeral"},
        },
        {
            "type": "web_search_20260209",
            "name": "tool_definition: web",
            "tool_definition: allowed_domains": ["tool_definition: x"],
        },
    ],
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": _OUTPUT_SCHEMA}},
    "mcp_servers": [
        {"type": "url", "name": "tool_definition: m", "url": "url: https://m m", "authorization_token": "parameter: s"}
    ],
}
_ANTHROPIC_USAGE: Json = {"input_tokens": 3, "output_tokens": 4, "cache_creation": {"ephemeral_5m_input_tokens": 0}}
_ANTHROPIC_ANSWER: Json = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
    "content": _ANTHROPIC_TURN,
    "stop_reason": "stop_sequence",
    "stop_sequence": "parameter: stop",
    "usage": _ANTHROPIC_USAGE,
}
_ANTHROPIC_EVENTS: list[Json] = [
    {"type": "message_start", "message": _ANTHROPIC_ANSWER},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "assistant: a"}},
    {"type": "content_block_start", "index": 1, "content_block": _ANTHROPIC_TURN[3]},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "assistant: a"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "tool_call: {"}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "thinking_delta", "thinking": "reasoning: h"}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "signature_delta", "signature": SIGNATURE}},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": "citation: c"}},
    },
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": "parameter: s"},
        "usage": _ANTHROPIC_USAGE,
    },
    {"type": "message_stop"},
    {"type": "error", "error": {"type": "overloaded_error", "message": "error: words"}},
]

_GEMINI_REQUEST: Json = {
    "contents": [
        {
            "role": "user",
            "parts": [
                {"text": "user: hello"},
                {"inlineData": {"mimeType": "image/png", "data": PNG, "displayName": "file: n"}},
                {"fileData": {"mimeType": "image/png", "fileUri": "url: https://f f"}},
                {"executableCode": {"language": "PYTHON", "code": "tool_call: 1+1"}},
                {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "tool_result: 2"}},
            ],
        },
        {
            "role": "model",
            "parts": [
                {"text": "reasoning: hm", "thought": True, "thoughtSignature": SIGNATURE},
                {"text": "assistant: earlier", "thought": False},
                {
                    "functionCall": {
                        "id": "c1",
                        "name": "tool_call: f",
                        "args": {"tool_call: city": "tool_call: Bonn"},
                    },
                    "thoughtSignature": SIGNATURE,
                },
            ],
        },
        {
            "role": "user",
            "parts": [
                {
                    "functionResponse": {
                        "id": "c1",
                        "name": "tool_result: f",
                        "response": {
                            "tool_result: temperature": "tool_result: 4",
                            "tool_result: s": ["tool_result: y"],
                        },
                    }
                }
            ],
        },
        {"parts": [{"text": "user: nobody said who"}]},
        {"role": "user", "parts": [{"inline_data": {"mime_type": "image/png", "data": PNG}}]},
    ],
    "systemInstruction": {"parts": [{"text": "system: be kind"}]},
    "system_instruction": {"parts": [{"text": "system: be brief"}]},
    "tools": [
        {
            "functionDeclarations": [
                {
                    "name": "tool_definition: f",
                    "description": "tool_definition: d",
                    "parameters": _SCHEMA,
                    "responseJsonSchema": _SCHEMA,
                }
            ]
        },
        {"tool_definition: googleSearch": {}},
    ],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["tool_definition: f"]}},
    "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
    "generationConfig": {
        "stopSequences": ["parameter: stop"],
        "responseMimeType": "application/json",
        "responseJsonSchema": _OUTPUT_SCHEMA,
        "temperature": 0.1,
        "thinkingConfig": {"thinkingBudget": 1, "thinkingLevel": "low"},
        "responseModalities": ["TEXT"],
    },
    "cachedContent": "cachedContents/abc",
    "labels": {"parameter: team": "parameter: a"},
}
_GEMINI_ANSWER: Json = {
    "candidates": [
        {
            "content": {
                "role": "model",
                "parts": [
                    {"text": "reasoning: hm", "thought": True},
                    {"text": "assistant: hello"},
                    {"functionCall": {"name": "tool_call: f", "args": {"tool_call: a": "tool_call: b"}}},
                    {"inlineData": {"mimeType": "image/png", "data": PNG}},
                ],
            },
            "finishReason": "STOP",
            "finishMessage": "error: why",
            "index": 0,
            "safetyRatings": [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE"}],
            "citationMetadata": {
                "citationSources": [{"startIndex": 0, "uri": "citation: u", "license": "citation: l"}]
            },
            "groundingMetadata": {"citation: webSearchQueries": ["citation: q"]},
            "avgLogprobs": -0.1,
            "logprobsResult": {
                "topCandidates": [{"candidates": [{"token": "token: a", "tokenId": 1, "logProbability": -1}]}],
                "chosenCandidates": [{"token": "token: b", "tokenId": 2, "logProbability": -1}],
            },
        }
    ],
    "promptFeedback": {"blockReason": "SAFETY", "safetyRatings": []},
    "usageMetadata": {"promptTokenCount": 3, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 3}]},
    "modelVersion": "gemini-3.1-flash",
    "responseId": "Il0taoSYJ5Cez7",
    "error": {"code": 400, "message": "error: words", "status": "INVALID_ARGUMENT", "details": ["error: more"]},
}

_COHERE_CITATION: Json = {
    "start": 0,
    "end": 3,
    "text": "citation: c",
    "type": "TEXT_CONTENT",
    "content_index": 0,
    "sources": [{"type": "document", "id": "d:0", "document": {"citation: title": "citation: t"}}],
}
_COHERE_REQUEST: Json = {
    "model": "command-a-03-2025",
    "stream": True,
    "messages": [
        {"role": "system", "content": "system: be kind"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "user: hello"},
                {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "tool_plan": "reasoning: I will",
            "content": [
                {"type": "thinking", "thinking": "reasoning: hm"},
                {"type": "text", "text": "assistant: earlier"},
            ],
            "tool_calls": [_CHAT_CALLS[0] if isinstance(_CHAT_CALLS, list) else None],
            "citations": [_COHERE_CITATION],
        },
        {
            "role": "tool",
            "tool_call_id": "call_1",
            "content": [{"type": "document", "document": {"id": "1", "data": "tool_result: 4"}}],
        },
        {"role": "tool", "tool_call_id": "call_2", "content": "tool_result: 5"},
    ],
    "tools": [{"type": "function", "function": {"name": "tool_definition: f", "parameters": _SCHEMA}}],
    "documents": ["file: words", {"id": "d1", "data": {"file: title": "file: t", "file: text": "file: more"}}],
    "citation_options": {"mode": "FAST"},
    "response_format": {"type": "json_object", "json_schema": _OUTPUT_SCHEMA},
    "safety_mode": "CONTEXTUAL",
    "stop_sequences": ["parameter: stop"],
    "thinking": {"type": "enabled", "token_budget": 100},
    "tool_choice": "REQUIRED",
    "k": 0,
    "p": 0.75,
}
_COHERE_ANSWER: Json = {
    "id": "c14c80c3-18eb-4519-9460-6c92edd8cfb4",
    "finish_reason": "COMPLETE",
    "message": {
        "role": "assistant",
        "tool_plan": "reasoning: I will",
        "content": [{"type": "thinking", "thinking": "reasoning: hm"}, {"type": "text", "text": "assistant: hello"}],
        "tool_calls": _CHAT_CALLS,
        "citations": [_COHERE_CITATION],
    },
    "usage": {"billed_units": {"input_tokens": 1}, "tokens": {"input_tokens": 2}},
    "logprobs": [{"text": "token: Hel", "token_ids": [1], "logprobs": [-0.1]}],
}
_COHERE_EVENTS: list[Json] = [
    {"type": "message-start", "id": "m1", "delta": {"message": {"role": "assistant", "content": []}}},
    {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": "assistant: "}}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "assistant: lo"}}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"thinking": "reasoning: lo"}}}},
    {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "reasoning: I"}}},
    {
        "type": "tool-call-start",
        "index": 0,
        "delta": {
            "message": {
                "tool_calls": {
                    "id": "f1", "type": "function", "function": {"name": "tool_call: f", "arguments": "tool_call: {"},
                }
            }
        },
    },
    {"type": "tool-call-delta", "delta": {"message": {"tool_calls": {"function": {"arguments": "tool_call: }"}}}}},
    {"type": "citation-start", "delta": {"message": {"citations": _COHERE_CITATION}}},
    {
        "type": "message-end",
        "delta": {"finish_reason": "ERROR", "error": "error: words", "usage": {"tokens": {"output_tokens": 1}}},
    },
]  # fmt: skip

_VECTOR: list[Json] = [0.25, -1, 3e-05] * 20

SAMPLES: Mapping[tuple[str, str], list[Json]] = {
    ("openai_chat", "request"): [_CHAT_REQUEST],
    ("openai_chat", "answer"): [_CHAT_ANSWER],
    ("openai_chat", "event"): [_CHAT_EVENT],
    ("openai_completions", "request"): [
        {"model": "m", "prompt": "user: one", "suffix": "user: end", "stop": "parameter: s", "logit_bias": {"1": 2}},
        {"model": "m", "prompt": ["user: one", "user: two"], "user": "parameter: u"},
    ],
    ("openai_completions", "answer"): [
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "choices": [
                {
                    "text": "assistant: t",
                    "index": 0,
                    "finish_reason": "length",
                    "logprobs": {
                        "tokens": ["token: a"],
                        "token_logprobs": [-1],
                        "top_logprobs": [{"token: b": -1}],
                        "text_offset": [0],
                    },
                }
            ],
            "usage": _USAGE,
        }
    ],
    ("openai_completions", "event"): [
        {"id": "cmpl-1", "object": "text_completion", "choices": [{"text": "assistant: t", "index": 0}]}
    ],
    ("openai_embeddings", "request"): [
        {"model": "m", "input": "user: one", "encoding_format": "base64", "user": "parameter: u"},
        {"model": "m", "input": ["user: one", "user: two"], "dimensions": 8},
    ],
    ("openai_embeddings", "answer"): [
        {"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": _VECTOR}]},
        {"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": PNG}]},
    ],
    ("openai_responses", "request"): [_RESPONSES_REQUEST, {"model": "m", "input": "user: as it is"}],
    ("openai_responses", "answer"): [_RESPONSES_ANSWER],
    ("openai_responses", "event"): _RESPONSES_EVENTS,
    ("anthropic_messages", "request"): [_ANTHROPIC_REQUEST, {"model": "m", "system": "system: s", "messages": []}],
    ("anthropic_messages", "answer"): [_ANTHROPIC_ANSWER],
    ("anthropic_messages", "event"): _ANTHROPIC_EVENTS,
    ("anthropic_count_tokens", "request"): [_ANTHROPIC_REQUEST],
    ("anthropic_count_tokens", "answer"): [{"input_tokens": 7}],
    ("gemini_generate", "request"): [_GEMINI_REQUEST],
    ("gemini_generate", "answer"): [_GEMINI_ANSWER],
    ("gemini_generate", "event"): [_GEMINI_ANSWER],
    ("gemini_count_tokens", "request"): [_GEMINI_REQUEST, {"generateContentRequest": _GEMINI_REQUEST}],
    ("gemini_count_tokens", "answer"): [
        {"totalTokens": 7, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 7}]}
    ],
    ("gemini_embed", "request"): [
        {
            "requests": [
                {
                    "model": "models/gemini-embedding-001",
                    "content": {"parts": [{"text": "user: one"}]},
                    "taskType": "RETRIEVAL_DOCUMENT",
                    "title": "file: t",
                }
            ]
        },
        {"model": "models/gemini-embedding-001", "content": {"parts": [{"text": "user: one"}]}},
    ],
    ("gemini_embed", "answer"): [{"embeddings": [{"values": _VECTOR}]}, {"embedding": {"values": _VECTOR}}],
    ("cohere_chat", "request"): [_COHERE_REQUEST],
    ("cohere_chat", "answer"): [_COHERE_ANSWER, {"message": "error: what was wrong"}],
    ("cohere_chat", "event"): _COHERE_EVENTS,
    ("cohere_embed", "request"): [
        {
            "model": "embed-v4.0",
            "texts": ["user: one"],
            "images": [DATA_URL],
            "inputs": [
                {
                    "content": [
                        {"type": "text", "text": "user: i"},
                        {"type": "image_url", "image_url": {"url": DATA_URL}},
                    ]
                }
            ],
            "input_type": "search_document",
            "embedding_types": ["float"],
        }
    ],
    ("cohere_embed", "answer"): [
        {
            "id": "x",
            "embeddings": {"float": [_VECTOR], "base64": [PNG]},
            "texts": ["user: one"],
            "meta": {"api_version": {"version": "2"}, "warnings": ["error: w"]},
        }
    ],
}
