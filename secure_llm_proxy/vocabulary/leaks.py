"""API keys that were found where none belongs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeakedKey:
    """A key of this deployment that works, or would again once released from quarantine. `kid` is its public part."""

    kid: str
    key_id: str
    user_id: str
    quarantined: bool
