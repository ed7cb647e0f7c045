"""Mistral, played: chat completions, embeddings, models.

Source, read 2026-11-21: Mistral API reference (Chat completion, Embeddings, List models), the guides on reasoning and on
structured output, with the types of the official Python SDK 3.7 as the list of fields; the bodies of refusals as users report
them (the reference documents 422 alone). Written by us; no answer is a recording.

Differs from OpenAI: no developer role, `random_seed`, `any` for a forced tool, thoughts as parts of the content, usage in the
last event of every stream, 422 with a list of details for what does not fit.
"""

from __future__ import annotations

from tests.support.provider_formats.openai import (
    FUNCTION_NAME,
    RESPONSE_FORMAT,
    STOP,
    Manner,
    OpenAIFamily,
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
    Shape,
    Tagged,
    either,
    fields,
    nullable,
    words,
)

MODELS = ("mistral-large-latest", "magistral-thinking", "mistral-embed")
TEXT = fields({"type": words("text"), "text": STRING})
IMAGE = fields(
    {
        "type": words("image_url"),
        "image_url": either(STRING, fields({"url": STRING}, detail=nullable(words("auto", "low", "high")))),
    }
)
THINKING = fields(
    {"type": words("thinking"), "thinking": ListOf(TEXT)}, signature=nullable(STRING), closed=nullable(BOOLEAN)
)
PARTS: dict[str, Shape] = {
    "text": TEXT,
    "image_url": IMAGE,
    "document_url": fields({"type": words("document_url"), "document_url": STRING}, document_name=nullable(STRING)),
    "file": fields({"type": words("file"), "file_id": STRING}),
    "input_audio": fields({"type": words("input_audio"), "input_audio": STRING}),
    "reference": OBJECT,
}
CONTENT = either(STRING, ListOf(Tagged("type", PARTS), 1))
CALL = fields(
    {
        "id": STRING,
        "function": fields({"name": FUNCTION_NAME, "arguments": either(STRING, MapOf(ANY))}),
    },
    type=words("function"),
    index=INTEGER,
)
CHAT = fields(
    {
        "model": STRING,
        "messages": ListOf(
            Tagged(
                "role",
                {
                    "system": fields(
                        {
                            "role": words("system"),
                            "content": either(STRING, ListOf(Tagged("type", {"text": TEXT, "thinking": THINKING}), 1)),
                        }
                    ),
                    "user": fields({"role": words("user"), "content": CONTENT}),
                    "assistant": fields(
                        {"role": words("assistant")},
                        content=nullable(either(STRING, ListOf(Tagged("type", {**PARTS, "thinking": THINKING})))),
                        tool_calls=nullable(ListOf(CALL)),
                        prefix=BOOLEAN,
                    ),
                    "tool": fields(
                        {"role": words("tool"), "content": CONTENT},
                        tool_call_id=nullable(STRING),
                        name=nullable(STRING),
                    ),
                },
            ),
            1,
        ),
    },
    temperature=nullable(Kind("number", 0, 1.5)),
    top_p=nullable(Kind("number", 0, 1)),
    max_tokens=nullable(COUNT),
    stream=BOOLEAN,
    stop=STOP,
    random_seed=nullable(COUNT),
    metadata=nullable(MapOf(ANY)),
    response_format=RESPONSE_FORMAT,
    tools=nullable(
        ListOf(
            fields(
                {
                    "function": fields(
                        {"name": FUNCTION_NAME, "parameters": MapOf(ANY)}, description=STRING, strict=BOOLEAN
                    )
                },
                type=words("function"),
            )
        )
    ),
    tool_choice=either(
        words("auto", "none", "any", "required"),
        fields({"function": fields({"name": FUNCTION_NAME})}, type=words("function")),
    ),
    presence_penalty=nullable(Kind("number", -2, 2)),
    frequency_penalty=nullable(Kind("number", -2, 2)),
    min_tokens=nullable(COUNT),
    repetition_penalty=nullable(NUMBER),
    top_k=nullable(INTEGER),
    logprobs=nullable(BOOLEAN),
    top_logprobs=nullable(INTEGER),
    prompt_logprobs=nullable(BOOLEAN),
    top_prompt_logprobs=nullable(INTEGER),
    n=nullable(Kind("integer", 1)),
    prediction=OBJECT,
    parallel_tool_calls=BOOLEAN,
    reasoning_effort=nullable(words("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    prompt_mode=nullable(words("reasoning")),
    guardrails=nullable(ListOf(OBJECT)),
    safe_prompt=BOOLEAN,
)
EMBEDDINGS = fields(
    {"model": STRING, "input": either(STRING, ListOf(STRING, 1))},
    metadata=nullable(MapOf(ANY)),
    output_dimension=nullable(Kind("integer", 1)),
    output_dtype=words("float", "int8", "uint8", "binary", "ubinary"),
    encoding_format=words("float", "base64"),
)

_REFUSALS: dict[Failure, tuple[int, str, str, str | None]] = {
    Failure.PERMISSION: (403, "Forbidden", "forbidden", None),
    Failure.NOT_FOUND: (400, "Invalid model: {model}", "invalid_model", "1500"),
    Failure.RATE_LIMITED: (429, "Rate limit exceeded", "rate_limited", "1300"),
    Failure.QUOTA: (429, "Service tier capacity exceeded for this model.", "service_tier_capacity_exceeded", "3505"),
    Failure.CONTEXT_LENGTH: (
        400,
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        "invalid_request_prompt",
        "3051",
    ),
    Failure.CONTENT_POLICY: (403, "The request was blocked by a guardrail.", "guardrail_violation", None),
    Failure.TOO_LARGE: (413, "Request entity too large", "invalid_request_error", None),
    Failure.OVERLOADED: (503, "Service unavailable.", "internal_server_error", "3700"),
    Failure.SERVER: (500, "Internal server error", "internal_server_error", "1000"),
}


def refuse(failure: Failure, model: str) -> Reply:
    if failure is Failure.AUTHENTICATION:
        return json_reply({"detail": "Unauthorized"}, status=401)
    status, message, kind, code = _REFUSALS[Failure.SERVER if failure is Failure.MID_STREAM else failure]
    said = {"object": "error", "message": message.replace("{model}", model), "type": kind, "param": None, "code": code}
    return json_reply(said, status=status)


def refuse_misfit(found: Misfit) -> Reply:
    kind, said = {
        "unknown": ("extra_forbidden", "Extra inputs are not permitted"),
        "missing": ("missing", "Field required"),
        "type": (f"{found.expected}_type", f"Input should be a valid {found.expected}"),
        "value": ("value_error", f"Input should be {found.expected}"),
    }[found.kind]
    detail = {"type": kind, "loc": ["body", *found.path], "msg": said}
    body = {
        "object": "error",
        "message": {"detail": [detail]},
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    return json_reply(body, status=422)


PROVIDER = OpenAIFamily(
    name="mistral",
    base_path="/v1",
    chat=CHAT,
    embeddings=EMBEDDINGS,
    refuse=refuse,
    refuse_misfit=refuse_misfit,
    manner=Manner(usage_when="always", usage_at="last choice", thoughts_in_content=True),
    models=MODELS,
    dimensions_field="output_dimension",
)
