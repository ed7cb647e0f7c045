"""The shape of `/chat` (INTERFACES a1): `prompt`, `message` or `messages` in; status, ids and answer out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field, StrictStr, ValidationError

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.settings import LimitSettings
from secure_llm_proxy.vocabulary.chat import ChatRequest, Usage
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.openai.chat_request import needs_of, read_conversation
from secure_llm_proxy.web.wire import Message, ModelName, Parameters, invalid, require_at_most

_OWN_NAMES = frozenset({"prompt", "message", "model_name"})


class PromptRequest(Parameters):
    prompt: StrictStr | None = None
    message: StrictStr | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    model_name: ModelName | None = None


# What `model_validate` calls, without its own steps.
_validated: Callable[[object], PromptRequest] = PromptRequest.__pydantic_validator__.validate_python


def read_prompt(body: JsonObject, limits: LimitSettings) -> ChatRequest:
    """Exactly one of `prompt`, `message`, `messages`; a prompt of at most MAX_PROMPT_LENGTH characters in all.

    Raises `InvalidRequest`. Every other parameter goes to the provider as it came.
    """
    require_at_most(body.get("messages"), limits.messages_max)
    try:
        request = _validated(body)
    except ValidationError as error:
        raise invalid(error) from None
    given = [name for name in ("prompt", "message", "messages") if body.get(name) is not None]
    if not given:
        raise InvalidRequest("You must provide `prompt`.", code=ErrorCode.MISSING_PARAMETER, param="prompt")
    if len(given) > 1:
        raise InvalidRequest(
            f"Provide only one of `{'`, `'.join(given)}`.", code=ErrorCode.INVALID_VALUE, param=given[1]
        )
    if request.model is not None and request.model_name is not None and request.model != request.model_name:
        raise InvalidRequest("`model` and `model_name` differ.", code=ErrorCode.INVALID_VALUE, param="model_name")
    prompt = request.prompt if request.prompt is not None else request.message
    if prompt is not None and not prompt.strip():
        raise InvalidRequest(f"`{given[0]}` is empty.", code=ErrorCode.INVALID_VALUE, param=given[0])
    if (
        length := len(prompt) if prompt is not None else _text_length(request.messages or [])
    ) > limits.prompt_characters_max:
        raise InvalidRequest(
            f"The prompt has {length} characters, at most {limits.prompt_characters_max} are accepted.",
            code=ErrorCode.PROMPT_TOO_LONG,
            param=given[0],
        )
    payload: JsonObject = {name: value for name, value in body.items() if name not in _OWN_NAMES}
    if prompt is not None:
        payload["messages"] = [{"role": "user", "content": prompt}]
    return ChatRequest(
        request.model or request.model_name,
        bool(request.stream),
        payload,
        WireFormat.OPENAI_CHAT,
        read_conversation,
        needs_of(payload),
    )


def envelope(
    *, request_id: str, audit_id: str | None, model: str, response: str, timestamp: str, usage: Usage
) -> dict[str, object]:
    """The origin's answer. What this release does not know is null: no analysis has run, no price is known."""
    return {
        "status": "success",
        "request_id": request_id,
        "audit_id": audit_id,
        "model_used": model,
        "response": response,
        "timestamp": timestamp,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "cost_usd": None,
        "security_analysis": {
            "prompt_injection": None,
            "pii_redaction_prompt": None,
            "pii_redaction_response": None,
            "harmful_content": None,
            "overall_risk_assessment": None,
        },
        "compliance_info": None,
    }


def _text_length(messages: list[Message]) -> int:
    total = 0
    for message in messages:
        if isinstance(message.content, str):
            total += len(message.content)
        elif message.content is not None:
            total += sum(len(text) for part in message.content if isinstance(text := part.get("text"), str))
    return total
