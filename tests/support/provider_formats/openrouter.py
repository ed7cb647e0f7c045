"""OpenRouter, played: chat completions, completions, embeddings, models.

Source, read 2026-11-21: OpenRouter API reference (Chat completion, Streaming, Errors and debugging, Reasoning tokens, Usage
accounting), with the types of the official Python SDK 1.3 as the list of fields. Written by us; no answer is a recording.

Differs from OpenAI: comments open a stream, thoughts stand in `reasoning` and `reasoning_details`, usage with its cost comes
with the last choice of every stream, an error in a stream is a chunk with `error`, and fields that nobody knows are ignored.
"""

from __future__ import annotations

from tests.support.provider_formats.openai import (
    AUDIO_PART,
    COMPLETIONS,
    EMBEDDINGS,
    FILE_PART,
    FUNCTION_CALL,
    IMAGE_PART,
    Manner,
    OpenAIFamily,
    usage_of,
)
from tests.support.provider_formats.openai import (
    CHAT as OPENAI_CHAT,
)
from tests.support.provider_formats.playing import CREATED_S, Failure, Reply, data_event, json_reply
from tests.support.provider_formats.shapes import (
    BOOLEAN,
    NUMBER,
    OBJECT,
    STRING,
    Fields,
    ListOf,
    Misfit,
    Tagged,
    either,
    fields,
    nullable,
    words,
)
from tests.support.provider_formats.speaking import Said

MODELS = ("anthropic/claude-opus-5-5", "openai/gpt-6-thinking")
TEXT = fields({"type": words("text"), "text": STRING}, cache_control=OBJECT, prompt_cache_breakpoint=nullable(OBJECT))
TEXTS = either(STRING, ListOf(TEXT, 1))
PARTS = {"text": TEXT, "image_url": IMAGE_PART, "input_audio": AUDIO_PART, "file": FILE_PART}
MESSAGES = ListOf(
    Tagged(
        "role",
        {
            "system": fields({"role": words("system"), "content": TEXTS}, name=STRING),
            "developer": fields({"role": words("developer"), "content": TEXTS}, name=STRING),
            "user": fields(
                {"role": words("user"), "content": either(STRING, ListOf(Tagged("type", PARTS), 1))}, name=STRING
            ),
            "assistant": fields(
                {"role": words("assistant")},
                content=nullable(either(STRING, ListOf(Tagged("type", PARTS)))),
                name=STRING,
                refusal=nullable(STRING),
                reasoning=nullable(STRING),
                reasoning_details=ListOf(OBJECT),
                annotations=ListOf(OBJECT),
                images=ListOf(OBJECT),
                audio=OBJECT,
                tool_calls=ListOf(FUNCTION_CALL),
            ),
            "tool": fields(
                {
                    "role": words("tool"),
                    "content": either(STRING, ListOf(Tagged("type", PARTS), 1)),
                    "tool_call_id": STRING,
                }
            ),
        },
    ),
    1,
)
CHAT = Fields(
    {"messages": MESSAGES},
    {
        **{
            name: shape
            for name, shape in OPENAI_CHAT.optional.items()
            if name
            not in ("safety_identifier", "store", "verbosity", "web_search_options", "functions", "function_call")
        },
        "model": STRING,
        "models": ListOf(STRING),
        "provider": nullable(OBJECT),
        "plugins": ListOf(OBJECT),
        "reasoning": OBJECT,
        "repetition_penalty": nullable(NUMBER),
        "min_p": nullable(NUMBER),
        "top_a": nullable(NUMBER),
        "top_k": nullable(NUMBER),
        "session_id": STRING,
        "trace": OBJECT,
        "cache_control": OBJECT,
        "usage": fields(include=BOOLEAN),
    },
)

_REFUSALS: dict[Failure, tuple[int, str]] = {
    Failure.AUTHENTICATION: (401, "No auth credentials found"),
    Failure.PERMISSION: (403, "This key may not use this model."),
    Failure.NOT_FOUND: (404, "No endpoints found for {model}."),
    Failure.RATE_LIMITED: (429, "Rate limit exceeded: free-models-per-min."),
    Failure.QUOTA: (402, "Insufficient credits. Add more credits and retry the request."),
    Failure.CONTEXT_LENGTH: (
        400,
        "This endpoint's maximum context length is 131072 tokens. However, you requested about 200000 tokens.",
    ),
    Failure.CONTENT_POLICY: (403, "The chosen model requires moderation and your input was flagged for violence."),
    Failure.TOO_LARGE: (413, "Request too large"),
    Failure.OVERLOADED: (502, "Provider returned error"),
    Failure.SERVER: (500, "Internal Server Error"),
}


def refuse(failure: Failure, model: str) -> Reply:
    status, message = _REFUSALS[Failure.SERVER if failure is Failure.MID_STREAM else failure]
    error: dict[str, object] = {"message": message.replace("{model}", model), "code": status}
    if failure is Failure.CONTENT_POLICY:
        error["metadata"] = {"reasons": ["violence"], "flagged_input": "…", "provider_name": "OpenAI"}
    headers = {"Retry-After": "2"} if failure is Failure.RATE_LIMITED else {}
    return json_reply({"error": error, "user_id": "user_played"}, status=status, headers=headers)


def refuse_misfit(found: Misfit) -> Reply:
    said = f"Invalid input: {found.dotted}: expected {found.expected}"
    return json_reply({"error": {"message": said, "code": 400}, "user_id": "user_played"}, status=400)


def refuse_mid_stream(model: str) -> bytes:
    return data_event(
        {
            "id": "chatcmpl-played",
            "object": "chat.completion.chunk",
            "created": CREATED_S,
            "model": model,
            "provider": "OpenAI",
            "error": {"code": 502, "message": "Provider disconnected unexpectedly"},
            "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
        }
    )


class OpenRouter(OpenAIFamily):
    def usage(self, said: Said) -> dict[str, object]:
        return {**usage_of(said), "cost": 0.00025, "is_byok": False}

    def thoughts(self, said: Said) -> dict[str, object]:
        if not said.thought:
            return {}
        detail = {"type": "reasoning.text", "text": said.thought, "format": "unknown", "index": 0}
        return {"reasoning": said.thought, "reasoning_details": [detail]}


PROVIDER = OpenRouter(
    name="openrouter",
    base_path="/api/v1",
    chat=CHAT,
    completions=COMPLETIONS,
    embeddings=EMBEDDINGS,
    refuse=refuse,
    refuse_misfit=refuse_misfit,
    refuse_mid_stream=refuse_mid_stream,
    manner=Manner(
        usage_when="always",
        usage_at="last choice",
        comment=b": OPENROUTER PROCESSING\n\n",
        answer_extras={"provider": "OpenAI", "system_fingerprint": None},
        chunk_extras={"provider": "OpenAI"},
        choice_extras={"native_finish_reason": "stop"},
    ),
    models=MODELS,
    ignores_unknown=True,
)
