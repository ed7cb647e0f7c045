"""A look into the log stands in the log itself, before anything is shown: who looked, at what, and how it went."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.foundation.identifiers import RecordId, new_record_id
from secure_llm_proxy.foundation.secret_values import pseudonym
from secure_llm_proxy.vocabulary.audit import AuditEvent, AuditJournal, ClearValue, indexed_values
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.web.admin.actor import Actor
from secure_llm_proxy.web.arrival import Arrival

log = logging.getLogger(__name__)

_AGENT_MAX = 1024


@dataclass(slots=True)
class Look:
    """`record_id` is that of the intent, which is on disk."""

    record_id: RecordId
    _journal: AuditJournal
    _look_id: str
    _told: Mapping[str, ClearValue]
    _ended: bool = False

    def end(self, *, ok: bool, **clear: ClearValue) -> None:
        """Queue how it went, once; not waited for, since what was shown has been shown. Never raises."""
        if self._ended:
            return
        self._ended = True
        event = AuditEvent(
            new_record_id(),
            AuditType.ADMIN_RESULT,
            self._look_id,
            EventName.AUDIT_ACCESS,
            {**self._told, "ok": ok, **clear},
            b"{}",
        )
        try:
            self._journal.post(event)
        except ProxyError as error:
            log.error("result of a look into the log not recorded", extra={"code": error.code.value})  # noqa: TRY400


def begin_look(
    journal: AuditJournal, actor: Actor, arrival: Arrival, act: str, look_id: str, clear: Mapping[str, ClearValue]
) -> Look:
    """Return when the intent is on disk. Raises `Unavailable`: then nothing is to be shown."""
    told: dict[str, ClearValue] = {
        "act": act,
        "subject": look_id,
        "by": actor.name_in_log,
        "sub": pseudonym(arrival.web.house.person_key, actor.user_id),
        "req": arrival.exchange_id,
        **({"key": actor.key_id} if actor.key_id is not None else {}),
        **({"ses": actor.session.id} if actor.session is not None else {}),
        **clear,
    }
    body = strict_json.dumps({"from": {"address": arrival.address, "agent": arrival.user_agent[:_AGENT_MAX]}})
    indexed = indexed_values(address=arrival.address, agent=arrival.user_agent)
    record_id = new_record_id()
    journal.record(AuditEvent(record_id, AuditType.ADMIN_INTENT, look_id, EventName.AUDIT_ACCESS, told, body, indexed))
    return Look(record_id, journal, look_id, told)
