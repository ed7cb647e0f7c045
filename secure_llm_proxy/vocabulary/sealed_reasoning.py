"""`encrypted_content` of the reasoning items of responses (OpenAI's Responses API) that we write: the proof that another
provider wants to see again with its model's thoughts (Anthropic's signature), or thoughts that it has sealed itself.

Opaque to clients, who send it back as they do OpenAI's own. A mark in front tells ours from those: ours mean nothing to
OpenAI, which refuses a request with them, and OpenAI's nothing to anybody else.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from secure_llm_proxy.foundation.strict_json import JsonValue

# In the letters of base64, as what follows: whoever looks for texts in a payload takes it for none as long as it looks so.
_OURS = "slp1-"
_SIGNATURE = _OURS + "s-"
_REDACTED = _OURS + "r-"
_NO_PROOF = _OURS + "n"
_ID = re.compile(r"rs_[0-9A-HJKMNP-TV-Z]{26}_[0-9]{1,6}")


class Sealed(NamedTuple):
    """Either, or neither."""

    signature: str | None = None
    redacted: str | None = None


def sealed(signature: str | None, redacted: str | None) -> str:
    if redacted:
        return _REDACTED + redacted
    return _SIGNATURE + signature if signature else _NO_PROOF


def opened(encrypted_content: str | None) -> Sealed:
    """What was sealed here; nothing of what OpenAI has sealed."""
    if encrypted_content is not None:
        if encrypted_content.startswith(_SIGNATURE):
            return Sealed(signature=encrypted_content.removeprefix(_SIGNATURE))
        if encrypted_content.startswith(_REDACTED):
            return Sealed(redacted=encrypted_content.removeprefix(_REDACTED))
    return Sealed()


def is_ours(item: JsonValue) -> bool:
    """A reasoning item of a response that we wrote, or a reference to one (by its id: `rs_`, a ULID, its number).

    The AI SDK refers to thoughts unless it was told `store` false, and sends everything else whole.
    """
    if not isinstance(item, dict):
        return False
    if item.get("type") == "item_reference":
        name = item.get("id")
        return isinstance(name, str) and _ID.fullmatch(name) is not None
    content = item.get("encrypted_content")
    return item.get("type") == "reasoning" and isinstance(content, str) and content.startswith(_OURS)
