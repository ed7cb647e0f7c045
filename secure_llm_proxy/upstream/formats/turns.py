"""Turns of the neutral model, made ready for formats that have fewer kinds of them. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import InvalidRequest
from secure_llm_proxy.upstream.formats.face import unsupported
from secure_llm_proxy.vocabulary.conversation import Message, Role, Text, ToolCall, ToolResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from secure_llm_proxy.foundation.strict_json import JsonObject
    from secure_llm_proxy.vocabulary.conversation import Part

_INSTRUCTING = frozenset({Role.SYSTEM, Role.DEVELOPER})
BETWEEN_INSTRUCTIONS = "\n\n"


def instructions_first(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """The text of the system and developer messages that stand in front, joined by an empty line, and what follows them.

    A later one stays where it stands, as a user's message: neither Gemini nor Cohere knows instructions between turns, and
    in front it would speak of what has not been said yet. Where nothing else is said at all, it is all a user's.
    Raises `InvalidRequest` for instructions that are no text.
    """
    front = 0
    while front < len(messages) and messages[front].role in _INSTRUCTING:
        front += 1
    rest = [
        replace(message, role=Role.USER) if message.role in _INSTRUCTING else message for message in messages[front:]
    ]
    leading = messages[:front]
    if not rest:
        return "", [replace(message, role=Role.USER) for message in leading]
    texts = [text_of(message.parts, "instructions are text alone.") for message in leading]
    return BETWEEN_INSTRUCTIONS.join([text for text in texts if text]), rest


def text_of(parts: Iterable[Part], otherwise: str) -> str:
    """The parts as one text. Raises `InvalidRequest` that says `otherwise` for any that is none."""
    texts: list[str] = []
    for part in parts:
        if not isinstance(part, Text):
            raise unsupported("messages", otherwise)
        texts.append(part.text)
    return "".join(texts)


def arguments_of(call: ToolCall) -> JsonObject:
    """The arguments of a call as an object, for formats that want one; "" counts as none.

    Raises `InvalidRequest` for anything else: the model wrote it, but this provider can't be told.
    """
    if not call.arguments.strip():
        return {}
    try:
        return strict_json.loads_object(call.arguments.encode())
    except (InvalidRequest, UnicodeEncodeError):
        raise unsupported("messages", f"the arguments of the call to `{call.name[:64]}` are no JSON object.") from None


def names_of_calls(messages: Iterable[Message]) -> dict[str, str]:
    """The function that each call's id stands for; the last call counts where an id is used again."""
    return {part.id: part.name for message in messages for part in message.parts if isinstance(part, ToolCall)}


def results_in(message: Message) -> list[ToolResult]:
    return [part for part in message.parts if isinstance(part, ToolResult)]
