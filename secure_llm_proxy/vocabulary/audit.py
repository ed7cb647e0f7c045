"""What the corridor hands to the audit room."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from secure_llm_proxy.foundation.identifiers import RecordId
from secure_llm_proxy.vocabulary.events import AuditType, EventName

ClearValue = str | int | bool | None


class AuditEvent(NamedTuple):
    """One record to be sealed.

    `clear` stays readable in the log, so it holds identifiers, counts, codes and times only; `body` (any bytes, usually
    JSON) is encrypted and holds everything a person wrote or is known by: prompts, answers, addresses, names.
    """

    id: RecordId
    type: AuditType
    exchange_id: str
    event: EventName | None = None
    clear: Mapping[str, ClearValue] = MappingProxyType({})
    body: bytes = b""


class AuditJournal(Protocol):
    """The audit room's face. Records of one journal become durable in the order in which they were handed over."""

    def record(self, event: AuditEvent) -> None:
        """Return when `event`, and all handed over before it, is on disk.

        Raises `Unavailable(audit_unavailable)` after the patience (2 s); the event stays queued and is written when the
        writer is back. Raises `NotQueued` at once, and keeps nothing, when too much is unacknowledged or the disk has no
        room for anything new.
        """
        ...

    def post(self, event: AuditEvent) -> None:
        """Queue `event` without waiting. Raises `NotQueued` when the queue is full."""
        ...

    def trouble(self) -> str | None:
        """A sentence for the operator when records can't become durable now, else None."""
        ...

    def close(self) -> None:
        """Wait (bounded) until everything queued is durable, then hang up."""
        ...
