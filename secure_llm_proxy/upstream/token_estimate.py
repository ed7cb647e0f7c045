"""How many tokens a conversation may be, for providers that count none.

Rather too many than too few, since clients ask in order to stay within a context. Tokenizers differ: of English prose one token
is 3.5 to 4.5 letters, of code and JSON 2.5 to 3.5, of other scripts a token is 1 to 3 letters, each of 2 or 3 bytes in UTF-8
(Claude, GPT and Llama tokenizers as their vendors describe them, read 2026-11-21). An image costs what Anthropic's largest one
does; a file cannot be known, and counts as a few pages.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from secure_llm_proxy.vocabulary.conversation import File, Image, ToolResult, texts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secure_llm_proxy.vocabulary.conversation import Conversation, Part

_ASCII_IN_A_TOKEN: Final = 3.2
_OTHER_BYTES_IN_A_TOKEN: Final = 2.5
_FOR_A_MESSAGE: Final = 4
_FOR_A_TOOL: Final = 12
_FOR_AN_IMAGE: Final = 1_600
_FOR_A_FILE: Final = 6_000


def estimate_tokens(conversation: Conversation) -> int:
    """Of messages, tools and the schema of the output; at least 1."""
    prompt = (conversation.messages, conversation.tools, conversation.output)
    ascii_count = other_bytes = 0
    for _, text in texts(prompt):
        if text.isascii():
            ascii_count += len(text)
        else:
            plain = len(text.encode("ascii", "ignore"))
            ascii_count += plain
            other_bytes += len(text.encode("utf-8", "surrogatepass")) - plain
    told = ascii_count / _ASCII_IN_A_TOKEN + other_bytes / _OTHER_BYTES_IN_A_TOKEN
    told += _FOR_A_MESSAGE * len(conversation.messages) + _FOR_A_TOOL * len(conversation.tools)
    told += sum(_media(message.parts) for message in conversation.messages)
    return max(1, math.ceil(told))


def _media(parts: Iterable[Part]) -> int:
    tokens = 0
    for part in parts:
        match part:
            case Image():
                tokens += _FOR_AN_IMAGE
            case File():
                tokens += _FOR_A_FILE
            case ToolResult():
                tokens += _media(part.parts)
            case _:
                pass
    return tokens
