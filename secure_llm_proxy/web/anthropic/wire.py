"""Requests of Anthropic's Messages API and its token counting: read strictly where it matters to us, passed on as they are
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.vocabulary.chat import ChatRequest
from secure_llm_proxy.vocabulary.providers import Capability
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.anthropic.conversation import read_conversation, read_token_count
from secure_llm_proxy.web.wire import ModelName, Number, Parts, invalid, require_at_most


class Turn(BaseModel):
    """One message; its content is text or a list of blocks."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[StrictStr, Field(min_length=1, max_length=64)]
    content: StrictStr | Parts


class Prompt(BaseModel):
    """Parameters whose types the API reference (2026-11-21) fixes; the provider judges their ranges."""

    model_config = ConfigDict(extra="allow")

    model: ModelName | None = None
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: StrictStr | Parts | None = None
    tools: Parts | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(Prompt):
    max_tokens: Annotated[StrictInt, Field(ge=0)]
    stream: StrictBool | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    metadata: dict[str, Any] | None = None


# What `model_validate` calls, without its own steps.
_validated: Callable[[object], MessagesRequest] = MessagesRequest.__pydantic_validator__.validate_python
_validated_prompt: Callable[[object], Prompt] = Prompt.__pydantic_validator__.validate_python


def read_messages(body: JsonObject, *, messages_max: int) -> ChatRequest:
    """Raises `InvalidRequest` naming the parameter. The payload keeps every parameter as it came."""
    require_at_most(body.get("messages"), messages_max)
    try:
        request = _validated(body)
    except ValidationError as error:
        raise invalid(error) from None
    return ChatRequest(
        request.model, bool(request.stream), body, WireFormat.ANTHROPIC_MESSAGES, read_conversation, needs_of(body)
    )


def read_prompt_to_count(body: JsonObject, *, messages_max: int) -> ChatRequest:
    """As `read_messages`. Nothing is generated, so no model lacks anything for it."""
    require_at_most(body.get("messages"), messages_max)
    try:
        request = _validated_prompt(body)
    except ValidationError as error:
        raise invalid(error) from None
    return ChatRequest(request.model, False, body, WireFormat.ANTHROPIC_COUNT_TOKENS, read_token_count)


_NEED_OF_BLOCK = {"image": Capability.IMAGES, "document": Capability.FILES}


def needs_of(payload: JsonObject) -> frozenset[str]:
    """What a model must be able to do for this request. The payload has been looked at."""
    needs: set[str] = set()
    if payload.get("tools"):
        needs.add(Capability.TOOLS)
    config = payload.get("output_config")
    if payload.get("output_format") or (isinstance(config, dict) and config.get("format")):
        needs.add(Capability.JSON_SCHEMA)
    messages = payload["messages"]
    assert isinstance(messages, list)
    for message in messages:
        assert isinstance(message, dict)
        content = message["content"]
        if type(content) is list:
            _note_needs(content, needs)
    return frozenset(needs)


def _note_needs(blocks: list[JsonValue], needs: set[str]) -> None:
    for block in blocks:
        if not isinstance(block, dict):
            continue
        kind = block.get("type")
        if kind == "text":
            continue
        if kind == "tool_result":
            if type(inner := block.get("content")) is list:
                _note_needs(inner, needs)
        elif isinstance(kind, str) and (need := _NEED_OF_BLOCK.get(kind)) is not None:
            source = block.get("source")
            # Plain text is told as text where files are not offered.
            if need is Capability.IMAGES or not (
                isinstance(source, dict) and source.get("type") in ("text", "content")
            ):
                needs.add(need)
