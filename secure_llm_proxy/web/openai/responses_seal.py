"""`encrypted_content` of the reasoning items that we write: the proof that another provider wants to see again with its
model's thoughts (Anthropic's signature), or thoughts that it has sealed itself.

Opaque to clients, who send it back as they do OpenAI's own; a mark in front tells ours from those, which mean nothing to
another provider.
"""

from __future__ import annotations

from typing import NamedTuple

_SIGNATURE = "slp1.s."
_REDACTED = "slp1.r."


class Sealed(NamedTuple):
    signature: str | None = None
    redacted: str | None = None


def sealed(signature: str | None, redacted: str | None) -> str | None:
    """None where there is nothing to be shown again."""
    if redacted:
        return _REDACTED + redacted
    return _SIGNATURE + signature if signature else None


def opened(encrypted_content: str | None) -> Sealed:
    if encrypted_content is not None:
        if encrypted_content.startswith(_SIGNATURE):
            return Sealed(signature=encrypted_content.removeprefix(_SIGNATURE))
        if encrypted_content.startswith(_REDACTED):
            return Sealed(redacted=encrypted_content.removeprefix(_REDACTED))
    return Sealed()
