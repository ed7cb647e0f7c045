"""A change of state is on record before it is made: intent, application, result. Commands and the management API share this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.foundation.identifiers import new_record_id, ulid
from secure_llm_proxy.foundation.secret_values import pseudonym
from secure_llm_proxy.vocabulary.audit import AuditEvent, AuditJournal, ClearValue, indexed_values
from secure_llm_proxy.vocabulary.events import AuditType, EventName

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """What is about to be changed, and by whom (`host:root`, `user:usr_…`).

    `clear` stays readable in the log, `body` is sealed; neither may hold a secret.
    """

    action: str
    subject: str
    by: str
    clear: Mapping[str, ClearValue] = field(default_factory=dict)
    body: Mapping[str, object] = field(default_factory=dict)
    event: EventName = EventName.ADMIN_CHANGE

    @property
    def person(self) -> str | None:
        """Id of the user whom it concerns, else of the one who makes it; None: no user."""
        for candidate in (self.clear.get("user"), self.subject, self.by.removeprefix("user:")):
            if isinstance(candidate, str) and candidate.startswith("usr_"):
                return candidate
        return None


def recorded(
    journal: AuditJournal,
    change: Change,
    apply: Callable[[], T],
    on_untold: Callable[[bool, ProxyError], None],
    *,
    person_key: bytes | None = None,
) -> T:
    """Record the intent durably, call `apply`, record the result. With `person_key` the body is sealed by the key of the person
    whom the change concerns.

    Raises what the journal raises, and applies nothing, when the intent can't be recorded. A result that can't be recorded
    is told to `on_untold` (whether the change was made, and why it could not be recorded) and raises nothing: the intent is
    on record, and what was made (a key, shown once) must still be handed over.
    """
    change_id = "adm_" + ulid()
    told: dict[str, ClearValue] = {"act": change.action, "subject": change.subject, "by": change.by, **change.clear}
    if person_key is not None and change.person is not None:
        told["sub"] = pseudonym(person_key, change.person)

    def record_result(clear: dict[str, ClearValue]) -> None:
        event = AuditEvent(new_record_id(), AuditType.ADMIN_RESULT, change_id, change.event, clear, b"{}")
        try:
            journal.record(event)
        except ProxyError as error:
            on_untold(bool(clear["ok"]), error)

    body = strict_json.dumps(dict(change.body))
    indexed = _indexed(change.body)
    journal.record(AuditEvent(new_record_id(), AuditType.ADMIN_INTENT, change_id, change.event, told, body, indexed))
    try:
        result = apply()
    except BaseException as error:
        record_result({**told, "ok": False, "why": type(error).__name__})
        raise
    record_result({**told, "ok": True})
    return result


def _indexed(body: Mapping[str, object]) -> dict[str, str]:
    """What the change can be found by: where it came from, and an e-mail address that it is about."""
    origin = body.get("from")
    values = {**origin, "email": body.get("email")} if isinstance(origin, Mapping) else {"email": body.get("email")}
    known = {name: value for name in ("address", "agent", "email") if isinstance(value := values.get(name), str)}
    return indexed_values(**known)
