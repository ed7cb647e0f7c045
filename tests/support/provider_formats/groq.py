"""Groq, played: chat completions, models.

Source, read 2026-11-21: Groq API reference (Create chat completion), API Error Codes and Responses, Reasoning, with the types
of the official Python SDK 1.7 as the list of fields. Written by us; no answer is a recording.

Differs from OpenAI: thoughts in `reasoning`, `x_groq` beside the choices, times in the usage, and
unknown fields are "unsupported properties".
"""

from __future__ import annotations

from tests.support.provider_formats.openai import (
    CALL_ID,
    FUNCTION_CALL,
    FUNCTION_TOOL,
    METADATA,
    PENALTY,
    RESPONSE_FORMAT,
    STOP,
    STREAM_OPTIONS,
    TOOL_CHOICE,
    Manner,
    OpenAIFamily,
    usage_of,
)
from tests.support.provider_formats.playing import Failure, Reply, json_reply
from tests.support.provider_formats.shapes import (
    ANY,
    BOOLEAN,
    COUNT,
    INTEGER,
    NUMBER,
    OBJECT,
    STRING,
    Kind,
    ListOf,
    MapOf,
    Misfit,
    Tagged,
    either,
    fields,
    nullable,
    words,
)
from tests.support.provider_formats.speaking import Said

MODELS = ("llama-3.3-70b-versatile", "openai/gpt-oss-120b-thinking")
TEXT = fields({"type": words("text"), "text": STRING})
IMAGE = fields({"type": words("image_url"), "image_url": fields({"url": STRING}, detail=words("auto", "low", "high"))})
PARTS = either(
    STRING,
    ListOf(
        Tagged(
            "type",
            {
                "text": TEXT,
                "image_url": IMAGE,
                "document": fields({"type": words("document"), "document": OBJECT}),
            },
        ),
        1,
    ),
)
TEXTS = either(STRING, ListOf(TEXT, 1))
CHAT = fields(
    {
        "model": STRING,
        "messages": ListOf(
            Tagged(
                "role",
                {
                    "system": fields({"role": words("system"), "content": TEXTS}, name=STRING),
                    "developer": fields({"role": words("developer"), "content": TEXTS}, name=STRING),
                    "user": fields({"role": words("user"), "content": PARTS}, name=STRING),
                    "assistant": fields(
                        {"role": words("assistant")},
                        content=nullable(TEXTS),
                        name=STRING,
                        reasoning=nullable(STRING),
                        tool_calls=ListOf(FUNCTION_CALL, 1),
                    ),
                    "tool": fields({"role": words("tool"), "content": PARTS, "tool_call_id": CALL_ID}),
                },
            ),
            1,
        ),
    },
    citation_options=nullable(words("enabled", "disabled")),
    compound_custom=nullable(OBJECT),
    disable_tool_validation=BOOLEAN,
    documents=nullable(ListOf(OBJECT)),
    exclude_domains=nullable(ListOf(STRING)),
    frequency_penalty=nullable(PENALTY),
    function_call=ANY,
    functions=nullable(ListOf(OBJECT)),
    include_domains=nullable(ListOf(STRING)),
    include_reasoning=nullable(BOOLEAN),
    logit_bias=nullable(MapOf(NUMBER)),
    logprobs=nullable(BOOLEAN),
    max_completion_tokens=nullable(COUNT),
    max_tokens=nullable(COUNT),
    metadata=METADATA,
    n=nullable(Kind("integer", 1, 1)),
    parallel_tool_calls=nullable(BOOLEAN),
    presence_penalty=nullable(PENALTY),
    reasoning_effort=nullable(words("none", "default", "low", "medium", "high")),
    reasoning_format=nullable(words("hidden", "raw", "parsed")),
    response_format=nullable(RESPONSE_FORMAT),
    search_settings=nullable(OBJECT),
    seed=nullable(INTEGER),
    service_tier=nullable(words("auto", "on_demand", "flex", "performance")),
    stop=STOP,
    store=nullable(BOOLEAN),
    stream=nullable(BOOLEAN),
    stream_options=STREAM_OPTIONS,
    temperature=nullable(Kind("number", 0, 2)),
    tool_choice=nullable(TOOL_CHOICE),
    tools=nullable(ListOf(FUNCTION_TOOL, 1)),
    top_logprobs=nullable(Kind("integer", 0, 20)),
    top_p=nullable(Kind("number", 0, 1)),
    user=nullable(STRING),
)

_REFUSALS: dict[Failure, tuple[int, str, str, str | None]] = {
    Failure.AUTHENTICATION: (401, "Invalid API Key", "invalid_request_error", "invalid_api_key"),
    Failure.PERMISSION: (403, "Access denied. Please check your network settings.", "permissions_error", None),
    Failure.NOT_FOUND: (
        404,
        "The model `{model}` does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    ),
    Failure.RATE_LIMITED: (
        429,
        "Rate limit reached for model `{model}` on requests per minute (RPM): Limit 30, Used 30, Requested 1.",
        "requests",
        "rate_limit_exceeded",
    ),
    Failure.QUOTA: (429, "Organization has reached its spend limit.", "spend", "blocked_api_access"),
    Failure.CONTEXT_LENGTH: (
        400,
        "Please reduce the length of the messages or completion.",
        "invalid_request_error",
        "context_length_exceeded",
    ),
    Failure.CONTENT_POLICY: (400, "The request was blocked.", "invalid_request_error", "content_policy_violation"),
    Failure.TOO_LARGE: (413, "Request Entity Too Large", "invalid_request_error", "request_too_large"),
    Failure.OVERLOADED: (503, "The model is currently over capacity.", "internal_server_error", None),
    Failure.SERVER: (500, "Internal Server Error", "internal_server_error", None),
}


def refuse(failure: Failure, model: str) -> Reply:
    status, message, kind, code = _REFUSALS[Failure.SERVER if failure is Failure.MID_STREAM else failure]
    error = {"message": message.replace("{model}", model), "type": kind}
    headers = {"retry-after": "2"} if failure is Failure.RATE_LIMITED else {}
    return json_reply({"error": {**error, "code": code} if code else error}, status=status, headers=headers)


def refuse_misfit(found: Misfit) -> Reply:
    place = found.dotted
    said = {
        "unknown": f"property '{place}' is unsupported",
        "missing": f"'{place}' : property is missing",
        "type": f"'{place}' : expected {found.expected}",
        "value": f"'{place}' : expected {found.expected}",
    }[found.kind]
    return json_reply({"error": {"message": said, "type": "invalid_request_error"}}, status=400)


class Groq(OpenAIFamily):
    def usage(self, said: Said) -> dict[str, object]:
        times = {"queue_time": 0.25, "prompt_time": 0.25, "completion_time": 0.5, "total_time": 0.75}
        return {**usage_of(said), **times}


PROVIDER = Groq(
    name="groq",
    base_path="/openai/v1",
    chat=CHAT,
    refuse=refuse,
    refuse_misfit=refuse_misfit,
    manner=Manner(
        reasoning=("reasoning",),
        answer_extras={"system_fingerprint": "fp_played", "x_groq": {"id": "req_played"}},
        chunk_extras={"system_fingerprint": "fp_played", "x_groq": {"id": "req_played"}},
    ),
    models=MODELS,
)
