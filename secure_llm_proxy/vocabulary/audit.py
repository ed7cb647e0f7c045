"""What the corridor hands to the audit room."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from secure_llm_proxy.foundation.identifiers import RecordId
from secure_llm_proxy.vocabulary.events import AuditType, EventName

# Bodies hold as much of a user agent.
_AGENT_MAX = 1024

ClearValue = str | int | bool | None


class AuditEvent(NamedTuple):
    """One record to be sealed.

    `clear` stays readable in the log, so it holds identifiers, counts, codes and times only; `body` (any bytes, usually
    JSON) is encrypted and holds everything a person wrote or is known by: prompts, answers, addresses, names. A `sub` in
    `clear` (a person's pseudonym) has it sealed by that person's key. `indexed` holds what the record can be found by: it
    becomes a keyed hash for each value, and is itself kept nowhere (see `indexed_values`).
    """

    id: RecordId
    type: AuditType
    exchange_id: str
    event: EventName | None = None
    clear: Mapping[str, ClearValue] = MappingProxyType({})
    body: bytes = b""
    indexed: Mapping[str, str] = MappingProxyType({})


def indexed_values(*, address: str | None = None, agent: str | None = None, email: str | None = None) -> dict[str, str]:
    """`AuditEvent.indexed`: a client's address, its user agent, an e-mail address; each where it is known."""
    values = {}
    if address:
        values["ipx"] = address
    if agent:
        values["uax"] = agent[:_AGENT_MAX]
    if email:
        values["emx"] = email.strip().lower()
    return values


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
