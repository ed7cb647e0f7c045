"""What happens at `/auth`, on record: logins and logouts durably before they are answered."""

from __future__ import annotations

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.foundation.secret_values import pseudonym
from secure_llm_proxy.identity import LiveSession
from secure_llm_proxy.vocabulary.audit import AuditEvent, AuditJournal, ClearValue, indexed_values
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.web.arrival import Arrival

_AGENT_MAX = 1024


def record_event(
    journal: AuditJournal, arrival: Arrival, live: LiveSession, act: str, event: EventName | None, **clear: ClearValue
) -> None:
    """Return when it is on disk. Raises `Unavailable`."""
    told: dict[str, ClearValue] = {
        "act": act,
        "by": f"user:{live.user_id}",
        "sub": pseudonym(arrival.web.house.person_key, live.user_id),
        "ses": live.id,
        "kind": live.kind,
        **clear,
    }
    body = strict_json.dumps(
        {"from": {"address": arrival.address, "agent": arrival.user_agent[:_AGENT_MAX]}, "username": live.username}
    )
    indexed = indexed_values(address=arrival.address, agent=arrival.user_agent)
    journal.record(AuditEvent(new_record_id(), AuditType.AUTH_EVENT, arrival.exchange_id, event, told, body, indexed))
