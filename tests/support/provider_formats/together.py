"""Together AI, played: chat completions, completions, embeddings, models.

Source, read 2026-11-21: Together AI API reference (Create chat completion, Create completion, Create embedding, List all
models), Error codes, with the types of the official Python SDK 3.1 as the list of fields. Written by us; no answer is a
recording.

Differs from OpenAI: no developer role, contents of system and tool messages are texts, usage comes with the last choice of
every stream, models are a bare list, and fields that the reference does not name are ignored.
"""

from __future__ import annotations

from tests.support.provider_formats.openai import (
    AUDIO_PART,
    CALL_ID,
    COMPLETIONS,
    FUNCTION_NAME,
    FUNCTION_TOOL,
    IMAGE_PART,
    RESPONSE_FORMAT,
    STOP,
    TEXT_PART,
    TOOL_CHOICE,
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
    Fields,
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

MODELS = ("meta-llama/Llama-4-Maverick", "deepseek-ai/DeepSeek-R2-thinking", "BAAI/bge-large-en-v1.5")
PARTS: dict[str, Shape] = {
    "text": TEXT_PART,
    "image_url": IMAGE_PART,
    "input_audio": AUDIO_PART,
    "video_url": OBJECT,
    "audio_url": OBJECT,
}
CALL = fields(
    {"id": CALL_ID, "type": words("function"), "function": fields({"name": FUNCTION_NAME, "arguments": STRING})},
    index=NUMBER,
)
CHAT = fields(
    {
        "model": STRING,
        "messages": ListOf(
            Tagged(
                "role",
                {
                    "system": fields({"role": words("system"), "content": STRING}, name=STRING),
                    "user": fields(
                        {"role": words("user"), "content": either(STRING, ListOf(Tagged("type", PARTS), 1))},
                        name=STRING,
                    ),
                    "assistant": fields(
                        {"role": words("assistant")},
                        content=nullable(STRING),
                        name=STRING,
                        reasoning=nullable(STRING),
                        reasoning_content=nullable(STRING),
                        tool_calls=ListOf(CALL),
                    ),
                    "tool": fields({"role": words("tool"), "content": STRING, "tool_call_id": CALL_ID}, name=STRING),
                },
            ),
            1,
        ),
    },
    chat_template_kwargs=ANY,
    context_length_exceeded_behavior=words("truncate", "error"),
    echo=BOOLEAN,
    frequency_penalty=NUMBER,
    function_call=ANY,
    logit_bias=MapOf(NUMBER),
    logprobs=Kind("integer", 0, 20),
    max_tokens=COUNT,
    min_p=NUMBER,
    n=Kind("integer", 1, 128),
    presence_penalty=NUMBER,
    reasoning=fields(enabled=BOOLEAN),
    reasoning_effort=words("low", "medium", "high"),
    repetition_penalty=NUMBER,
    response_format=RESPONSE_FORMAT,
    safety_model=STRING,
    seed=INTEGER,
    stop=STOP,
    stream=BOOLEAN,
    temperature=NUMBER,
    tool_choice=TOOL_CHOICE,
    tools=ListOf(FUNCTION_TOOL),
    top_k=INTEGER,
    top_p=NUMBER,
)
EMBEDDINGS = fields({"model": STRING, "input": either(STRING, ListOf(STRING, 1))})
TOGETHER_COMPLETIONS = Fields(
    {"model": STRING, "prompt": STRING},
    {name: shape for name, shape in COMPLETIONS.optional.items() if name not in ("best_of", "suffix")},
)

_REFUSALS: dict[Failure, tuple[int, str, str, str | None]] = {
    Failure.AUTHENTICATION: (401, "Invalid API key provided.", "invalid_request_error", "invalid_api_key"),
    Failure.PERMISSION: (403, "You are not allowed to use this model.", "invalid_request_error", None),
    Failure.NOT_FOUND: (404, "Unable to access model {model}.", "invalid_request_error", "model_not_available"),
    Failure.RATE_LIMITED: (429, "You have reached the rate limit specific to this model.", "rate_limit", "rate_limit"),
    Failure.QUOTA: (402, "Credit limit exceeded.", "credit_limit", "credit_limit"),
    Failure.CONTEXT_LENGTH: (
        422,
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000",
        "invalid_request_error",
        None,
    ),
    Failure.CONTENT_POLICY: (400, "The request was blocked by the safety model.", "invalid_request_error", None),
    Failure.TOO_LARGE: (413, "Request too large.", "invalid_request_error", None),
    Failure.OVERLOADED: (503, "The server is overloaded or not ready yet.", "server_error", None),
    Failure.SERVER: (500, "Internal server error.", "server_error", None),
}


def refuse(failure: Failure, model: str) -> Reply:
    status, message, kind, code = _REFUSALS[Failure.SERVER if failure is Failure.MID_STREAM else failure]
    error = {"message": message.replace("{model}", model), "type": kind, "param": None, "code": code}
    headers = {"retry-after": "2"} if failure is Failure.RATE_LIMITED else {}
    return json_reply({"id": "played-error", "error": error}, status=status, headers=headers)


def refuse_misfit(found: Misfit) -> Reply:
    said = f"Input validation error: {found.dotted}: expected {found.expected}"
    error = {"message": said, "type": "invalid_request_error", "param": found.dotted, "code": None}
    return json_reply({"id": "played-error", "error": error}, status=400)


PROVIDER = OpenAIFamily(
    name="together",
    base_path="/v1",
    chat=CHAT,
    completions=TOGETHER_COMPLETIONS,
    embeddings=EMBEDDINGS,
    refuse=refuse,
    refuse_misfit=refuse_misfit,
    manner=Manner(usage_when="always", usage_at="last choice", reasoning=("reasoning",), answer_extras={"prompt": []}),
    models=MODELS,
    bare_models=True,
    ignores_unknown=True,
)
