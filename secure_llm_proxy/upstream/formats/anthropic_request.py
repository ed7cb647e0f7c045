"""The neutral conversation as a request of Anthropic's Messages API. Pure.

What differs from the neutral model, and what becomes of it:
- One system field: every system and developer message goes there, wherever it stood, joined by an empty line. Messages of
  role `system` in the midst of a conversation exist since Claude Opus 4.8 only, and older models refuse them; Anthropic's
  own OpenAI-compatible endpoint lifts them the same way.
- Turns: neighbouring messages of one side are one turn; results of tools stand first in theirs.
- Blank text is no block: it is left out where a message says more than that.
- Ids of calls have an alphabet: others are replaced, in the call and in its result.
- Reasoning without a signature, or sealed by Gemini, can't be shown to Anthropic, which takes its own only: it is left out.

Source: Claude API reference (Create a Message; Structured outputs; Effort; Extended thinking; OpenAI SDK compatibility;
Migrating to API version 2026-10-21), read 2026-11-21.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NotBase64
from typing import TYPE_CHECKING, Final

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import InvalidRequest
from secure_llm_proxy.upstream.formats.face import Written, unsupported
from secure_llm_proxy.vocabulary.conversation import (
    SEALED_BY_GEMINI,
    Audio,
    Conversation,
    File,
    Image,
    Message,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
    ToolResult,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.vocabulary.conversation import Part

MAX_TOKENS_UNLESS_SAID: Final = 4096
"""Anthropic demands a bound, others know none: enough for an answer of some pages, and within what every model of theirs
allows."""

_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,256}")
_EFFORT: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
_BESIDE_THE_CONVERSATION: Final = ("seed", "presence_penalty", "frequency_penalty")


def write_conversation(neutral: Conversation, model: str) -> Written:
    """A request, `max_tokens` in it also where nobody asked for a bound. Raises `InvalidRequest`."""
    payload, dropped = write_prompt(neutral, model)
    _refuse_what_it_lacks(neutral)
    payload["max_tokens"] = _bound(neutral)
    if neutral.temperature is not None:
        if neutral.temperature > 1:
            raise unsupported("temperature", "it takes at most 1.")
        payload["temperature"] = neutral.temperature
    if neutral.top_p is not None:
        payload["top_p"] = neutral.top_p
    if neutral.top_k is not None:
        payload["top_k"] = neutral.top_k
    if neutral.stop:
        payload["stop_sequences"] = list(neutral.stop)
    if neutral.user:
        payload["metadata"] = {"user_id": neutral.user}
    if neutral.stream:
        payload["stream"] = True
    dropped += [name for name in _BESIDE_THE_CONVERSATION if getattr(neutral, name) is not None]
    return Written(payload, (*dict.fromkeys(dropped), *neutral.further))


def write_prompt(neutral: Conversation, model: str) -> tuple[JsonObject, list[str]]:
    """What Anthropic counts as the prompt: messages, system, tools and what shapes the output; and what was left out."""
    dropped: list[str] = []
    payload: JsonObject = {"model": model}
    system = _system(neutral.messages)
    if system:
        payload["system"] = system
    payload["messages"] = _turns(neutral.messages, dropped)
    if neutral.tools:
        payload["tools"] = [_tool(tool.name, tool.description, tool.parameters, tool.strict) for tool in neutral.tools]
    if (choice := _tool_choice(neutral)) is not None:
        payload["tool_choice"] = choice
    output: JsonObject = {}
    if neutral.output is not None:
        if neutral.output.kind == "json" or neutral.output.schema is None:
            raise unsupported("response_format", "it gives JSON by a schema only (`json_schema`).")
        output["format"] = {"type": "json_schema", "schema": neutral.output.schema}
        if neutral.output.description:
            dropped.append("response_format.json_schema.description")
    if neutral.reasoning_effort == "none":
        payload["thinking"] = {"type": "disabled"}
    elif neutral.reasoning_effort is not None:
        if neutral.reasoning_effort not in _EFFORT:
            raise unsupported("reasoning_effort", f"it knows {', '.join(_EFFORT)}.")
        # Whether it thinks at all stays the model's own habit: asking for it would forbid a temperature and forced tools.
        output["effort"] = _EFFORT[neutral.reasoning_effort]
    if neutral.reasoning_tokens is not None:
        budget = neutral.reasoning_tokens
        payload["thinking"] = {"type": "enabled", "budget_tokens": budget} if budget > 0 else {"type": "disabled"}
    if output:
        payload["output_config"] = output
    return payload, dropped


def _refuse_what_it_lacks(neutral: Conversation) -> None:
    if neutral.n is not None and neutral.n != 1:
        raise unsupported("n", "it gives one choice.")
    if neutral.logprobs:
        raise unsupported("logprobs", "it tells none.")
    if neutral.top_logprobs:
        raise unsupported("top_logprobs", "it tells none.")


def _bound(neutral: Conversation) -> int:
    if neutral.max_tokens is not None:
        return neutral.max_tokens
    # Thinking counts towards the bound, which must exceed its budget.
    return MAX_TOKENS_UNLESS_SAID + (neutral.reasoning_tokens or 0)


def _system(messages: Iterable[Message]) -> str:
    said: list[str] = []
    for message in messages:
        if message.role not in (Role.SYSTEM, Role.DEVELOPER):
            continue
        for part in message.parts:
            if not isinstance(part, Text):
                raise unsupported("messages", "its system prompt is text.")
            if part.text:
                said.append(part.text)
    return "\n\n".join(said)


def _turns(messages: Iterable[Message], dropped: list[str]) -> list[JsonValue]:
    """The turns in order, the user's and the model's by turns."""
    ids = _CallIds()
    turns: list[tuple[str, list[JsonObject]]] = []
    for message in messages:
        if message.role in (Role.SYSTEM, Role.DEVELOPER):
            continue
        if message.name:
            dropped.append("name")
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        blocks = [block for part in message.parts if (block := _block(part, ids, dropped)) is not None]
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    written: list[JsonValue] = []
    for role, blocks in turns:
        said = _without_blanks(blocks)
        if role == "user":
            said.sort(key=lambda block: block["type"] != "tool_result")  # stable: all else keeps its order
        if len(said) == 1 and said[0]["type"] == "text":
            written.append({"role": role, "content": said[0]["text"]})
        elif said:
            written.append({"role": role, "content": [*said]})
    if not written:
        raise unsupported("messages", "it needs a message that says something, besides the system prompt.")
    return written


def _without_blanks(blocks: list[JsonObject]) -> list[JsonObject]:
    """Anthropic refuses text blocks without a visible character. One that stands alone is left to its judgement."""
    said = [block for block in blocks if block["type"] != "text" or str(block["text"]).strip()]
    return said or [block for block in blocks if block["text"]][:1]


def _block(part: Part, ids: _CallIds, dropped: list[str]) -> JsonObject | None:
    """None for what can't be shown: see the head of this module."""
    match part:
        case Text() | Refusal():
            return {"type": "text", "text": part.text}
        case Image():
            return _image(part, dropped)
        case File():
            return _document(part)
        case Reasoning():
            if part.redacted is not None:
                if part.redacted.startswith(SEALED_BY_GEMINI):
                    return None
                return {"type": "redacted_thinking", "data": part.redacted}
            if part.signature:
                return {"type": "thinking", "thinking": part.text, "signature": part.signature}
            return None
        case ToolCall():
            return {"type": "tool_use", "id": ids.of(part.id), "name": part.name, "input": _arguments(part)}
        case ToolResult():
            return _tool_result(part, ids, dropped)
        case Audio():
            raise unsupported("messages", "it does not take audio.")


def _image(part: Image, dropped: list[str]) -> JsonObject:
    if part.detail not in (None, "auto"):
        dropped.append("detail")
    if part.url is not None:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    if part.data is None or part.media_type is None:
        raise unsupported("messages", "it takes images by link, or with their media type.")
    return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": part.data}}


def _document(part: File) -> JsonObject:
    source: JsonObject
    if part.url is not None:
        source = {"type": "url", "url": part.url}
    elif part.data is not None and part.media_type == "application/pdf":
        source = {"type": "base64", "media_type": "application/pdf", "data": part.data}
    elif part.data is not None and (part.media_type or "").startswith("text/"):
        source = {"type": "text", "media_type": "text/plain", "data": _text_of(part.data)}
    elif part.file_id is not None:
        raise unsupported("messages", "the file is kept by another provider.")
    else:
        raise unsupported("messages", "it takes files as PDF or as text.")
    document: JsonObject = {"type": "document", "source": source}
    if part.name:
        document["title"] = part.name
    return document


def _text_of(data: str) -> str:
    try:
        return b64decode(data, validate=True).decode("utf-8")
    except (NotBase64, ValueError):
        raise unsupported("messages", "a text file must be base64 of UTF-8.") from None


def _arguments(call: ToolCall) -> JsonObject:
    if not call.arguments.strip():
        return {}
    try:
        return strict_json.loads_object(call.arguments.encode("utf-8", "surrogatepass"))
    except InvalidRequest:
        raise unsupported("messages", "the arguments of a tool call must be a JSON object.") from None


def _tool_result(part: ToolResult, ids: _CallIds, dropped: list[str]) -> JsonObject:
    blocks: list[JsonObject] = []
    for piece in part.parts:
        match piece:
            case Text():
                if piece.text:
                    blocks.append({"type": "text", "text": piece.text})
            case Image():
                blocks.append(_image(piece, dropped))
            case File():
                blocks.append(_document(piece))
    result: JsonObject = {"type": "tool_result", "tool_use_id": ids.of(part.call_id)}
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        result["content"] = blocks[0]["text"]
    elif blocks:
        result["content"] = [*blocks]
    if part.is_error:
        result["is_error"] = True
    return result


def _tool(name: str, description: str | None, parameters: JsonObject | None, strict: bool | None) -> JsonObject:  # noqa: FBT001  a field of the tool
    schema = dict(parameters or {})
    schema.setdefault("type", "object")
    tool: JsonObject = {"name": name, "input_schema": schema}
    if description:
        tool["description"] = description
    if strict:
        tool["strict"] = True
    return tool


def _tool_choice(neutral: Conversation) -> JsonObject | None:
    choice = neutral.tool_choice
    if choice is None:
        return None
    if not neutral.tools:
        if choice.mode in ("required", "named"):
            raise unsupported("tool_choice", "there are no tools to choose from.")
        return None
    written: JsonObject
    match choice.mode:
        case "none":
            return {"type": "none"}
        case "auto":
            if choice.parallel is not False:
                return {"type": "auto"}
            written = {"type": "auto"}
        case "required":
            written = {"type": "any"}
        case "named":
            written = {"type": "tool", "name": choice.name or ""}
    if choice.parallel is False:
        written["disable_parallel_tool_use"] = True
    return written


class _CallIds:
    """Ids as Anthropic takes them: those that fit stay, others get one that nobody has."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, told: str) -> str:
        if _CALL_ID.fullmatch(told):
            return told
        return self._known.setdefault(told, f"replaced_call_id_{len(self._known)}")
