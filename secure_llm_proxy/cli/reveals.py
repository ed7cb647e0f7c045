"""Looking at what is sealed, on record before anything is shown."""

from __future__ import annotations

import getpass

from secure_llm_proxy.audit import SocketJournal, running_writer
from secure_llm_proxy.cli.context import CommandContext
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.foundation.identifiers import new_record_id, ulid
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EventName


def record_reveal(context: CommandContext, target: str, **clear: ClearValue) -> None:
    """Return when the look at `target` is on disk. Raises `OperatorError`, and then nothing may be shown."""
    told = {"target": target[:64], "by": f"host:{getpass.getuser()}", **clear}
    event = AuditEvent(new_record_id(), AuditType.REVEAL, "adm_" + ulid(), EventName.AUDIT_REVEAL, told, b"{}")
    with running_writer(context.audit_settings):
        journal = SocketJournal(context.audit_settings)
        try:
            journal.record(event)
        except ProxyError as error:
            raise OperatorError(f"Nothing is shown, since the look could not be recorded ({error.detail}).") from error
        finally:
            journal.close()
