"""A conversation in the words of Cohere's v2/chat. Pure.

Source: Cohere API v2 reference "Chat" and its guides "Tool use", "Structured outputs", "Reasoning", "Image inputs" and
"Compatibility API", read 2026-11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.upstream.formats.face import unsupported
from secure_llm_proxy.upstream.formats.parameters import Losses, check_limit, described_schema, said
from secure_llm_proxy.upstream.formats.turns import instructions_first, results_in, text_of
from secure_llm_proxy.vocabulary.conversation import (
    Conversation,
    Image,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
    ToolResult,
)
from secure_llm_proxy.vocabulary.providers import Limit

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.vocabulary.conversation import Message
    from secure_llm_proxy.vocabulary.providers import ProviderKind

_TEXT_ALONE = "it reads texts and images alone."
_NO_PARAMETERS: JsonObject = {"type": "object", "properties": {}}


def messages_of(conversation: Conversation, lost: Losses) -> list[JsonValue]:
    """System messages in front are one, a later one is a user's (the first turn alone may be the system's). What the model
    says before it calls tools is its plan. Each result of a tool is a message.
    """
    instruction, messages = instructions_first(conversation.messages)
    written: list[JsonValue] = []
    if instruction:
        written.append({"role": "system", "content": instruction})
    for message in messages:
        if message.name is not None:
            lost.drop("messages.name")
        for result in results_in(message):
            if result.is_error:
                lost.drop("messages.is_error")
            text = text_of(result.parts, "a tool's result is text alone.")
            written.append({"role": "tool", "tool_call_id": result.call_id, "content": text})
        if message.role is Role.ASSISTANT:
            if turn := _assistant_of(message):
                written.append({"role": "assistant", **turn})
        elif message.role is not Role.TOOL and (content := _user_content(message)):
            written.append({"role": "user", "content": content})
    return written


def tools_of(conversation: Conversation, lost: Losses) -> JsonObject:
    """`tools`, `strict_tools` and `tool_choice`. A call of one tool by name is asked for by showing no other."""
    if not conversation.tools:
        return {}
    choice = conversation.tool_choice
    named = choice.name if choice is not None and choice.mode == "named" else None
    offered = [tool for tool in conversation.tools if named is None or tool.name == named]
    if not offered:
        raise unsupported("tool_choice", "it names a tool that is not among the tools.")
    tools: list[JsonValue] = [
        {
            "type": "function",
            "function": said(
                name=tool.name,
                description=tool.description,
                parameters=_NO_PARAMETERS if tool.parameters is None else tool.parameters,
            ),
        }
        for tool in offered
    ]
    payload: JsonObject = {"tools": tools}
    if any(tool.strict for tool in offered):
        payload["strict_tools"] = True
    if choice is not None:
        if choice.mode in ("required", "named"):
            payload["tool_choice"] = "REQUIRED"
        elif choice.mode == "none":
            payload["tool_choice"] = "NONE"
        if choice.parallel is False:
            lost.drop("parallel_tool_calls")
    return payload


def settings_of(conversation: Conversation, kind: ProviderKind, lost: Losses) -> JsonObject:
    """Everything else. Raises `InvalidRequest` for several choices and for other tokens beside the chosen ones."""
    if (conversation.n or 1) > 1:
        raise unsupported("n", "it gives one choice.")
    if conversation.top_logprobs:
        raise unsupported("top_logprobs", "it tells the probability of the chosen tokens alone.")
    check_limit(kind, Limit.STOP_SEQUENCES, len(conversation.stop), "stop")
    stop: list[JsonValue] = list(conversation.stop)
    seed = conversation.seed
    if seed is not None and seed < 0:
        lost.drop("seed")
        seed = None
    payload = said(
        max_tokens=conversation.max_tokens,
        temperature=conversation.temperature,
        p=_within(conversation.top_p, 0.01, 0.99, "top_p", lost),
        k=_within(conversation.top_k, 0, 500, "top_k", lost),
        stop_sequences=stop or None,
        seed=seed,
        presence_penalty=_within(conversation.presence_penalty, 0, 1, "presence_penalty", lost),
        frequency_penalty=_within(conversation.frequency_penalty, 0, 1, "frequency_penalty", lost),
        logprobs=conversation.logprobs or None,
    )
    output = conversation.output
    if output is not None:
        wanted: JsonObject = {"type": "json_object"}
        if output.kind == "schema" and output.schema is not None:
            wanted["json_schema"] = described_schema(output, lost)
        payload["response_format"] = wanted
    if conversation.reasoning_tokens is not None:
        budget = conversation.reasoning_tokens
        payload["thinking"] = {"type": "enabled", "token_budget": budget} if budget else {"type": "disabled"}
    elif conversation.reasoning_effort in ("none", "high"):
        # The two that it knows, by its own table for OpenAI's clients.
        payload["thinking"] = {"type": "disabled" if conversation.reasoning_effort == "none" else "enabled"}
    elif conversation.reasoning_effort is not None:
        lost.drop("reasoning_effort")
    if conversation.user is not None:
        lost.drop("user")
    return payload


def _within(value: float | None, least: float, most: float, name: str, lost: Losses) -> float | None:
    """These only tune: one that is out of the provider's range is dropped, not bent."""
    if value is None or least <= value <= most:
        return value
    lost.drop(name)
    return None


def _assistant_of(message: Message) -> JsonObject:
    """All of the message but its role, {} where it is empty: the provider refuses such a turn."""
    content: list[JsonValue] = []
    calls: list[JsonValue] = []
    texts: list[str] = []
    for part in message.parts:
        match part:
            case Text() | Refusal():
                texts.append(part.text)
            case Reasoning():
                if part.text:
                    content.append({"type": "thinking", "thinking": part.text})
            case ToolCall():
                function: JsonObject = {"name": part.name, "arguments": part.arguments or "{}"}
                calls.append({"id": part.id, "type": "function", "function": function})
            case _:
                raise unsupported("messages", "an assistant's message is text, thought and calls.")
    text = "".join(texts)
    if content and text and not calls:
        content.append({"type": "text", "text": text})
    plain = text if text and not calls else None
    return {
        name: value
        for name, value in (
            ("content", content or plain),
            ("tool_calls", calls),
            ("tool_plan", text if calls else None),
        )
        if value
    }


def _user_content(message: Message) -> JsonValue:
    """One text as such, anything with images as a list. Results of tools are written elsewhere."""
    parts: list[JsonValue] = []
    images = False
    for part in message.parts:
        match part:
            case Text() | Refusal():
                parts.append({"type": "text", "text": part.text})
            case Image():
                images = True
                url = part.url or f"data:{part.media_type or 'image/jpeg'};base64,{part.data or ''}"
                parts.append({"type": "image_url", "image_url": said(url=url, detail=part.detail)})
            case ToolResult():
                continue
            case _:
                raise unsupported("messages", _TEXT_ALONE)
    if images or len(parts) > 1:
        return parts
    return parts[0]["text"] if parts and isinstance(parts[0], dict) else None
