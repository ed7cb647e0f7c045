"""What the doors of management are given: the parts of identity behind them, and how a change of theirs is recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flask import Flask, current_app

from secure_llm_proxy.admission.rules import AddressRules
from secure_llm_proxy.audit import Change, recorded
from secure_llm_proxy.audit.evidence import Evidence
from secure_llm_proxy.audit.index import AuditIndex
from secure_llm_proxy.audit.record_reading import RecordReading
from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError, client_error_of
from secure_llm_proxy.identity import Accounts, ApiKeys, KillSwitches, Organisations, SecondFactors, Sessions, SignIn
from secure_llm_proxy.vocabulary.audit import AuditJournal
from secure_llm_proxy.vocabulary.caller import Caller

T = TypeVar("T")

log = logging.getLogger(__name__)

_EXTENSION = "secure_llm_proxy.management"


@dataclass(frozen=True, slots=True)
class ManagementHouse:
    """`identify` tells whose API key it is, as the corridor is told; `announce` tells workers that a key has changed, or who is
    stopped; `refresh_address_rules` puts them in force in this worker at once; `csrf_key` is 32 bytes derived from SECRET_KEY,
    `person_key` too: it makes pseudonyms of persons; `evidence` is the audit log as auditors may see it;
    `audit_index` finds records in the database, `audit_records` reads them from the log.
    """

    database: Database
    clock: Clock
    journal: AuditJournal
    sign_in: SignIn
    sessions: Sessions
    second_factors: SecondFactors
    accounts: Accounts
    keys: ApiKeys
    organisations: Organisations
    kill_switches: KillSwitches
    address_rules: AddressRules
    refresh_address_rules: Callable[[], None]
    identify: Callable[[tuple[str, ...]], Caller]
    announce: Callable[[str], None]
    csrf_key: bytes
    person_key: bytes
    evidence: Evidence
    audit_index: AuditIndex
    audit_records: RecordReading
    previous_csrf_keys: tuple[bytes, ...] = ()

    def change(self, change: Change, apply: Callable[[], T]) -> T:
        """Record the intent durably, apply it, record the result; what an operator would be told is told the client.

        Raises `Unavailable`, and applies nothing, when it can't be recorded.
        """
        try:
            return recorded(self.journal, change, apply, _warn_untold, person_key=self.person_key)
        except OperatorError as error:
            raise client_error_of(error) from error


def attach_management(app: Flask, house: ManagementHouse) -> None:
    app.extensions[_EXTENSION] = house


def the_management() -> ManagementHouse:
    found = current_app.extensions[_EXTENSION]
    if not isinstance(found, ManagementHouse):
        raise TypeError("make_management_app() did not attach the house")
    return found


def _warn_untold(made: bool, error: ProxyError) -> None:  # noqa: FBT001  the journal's result calls it
    log.error("result of a change not recorded", extra={"made": made, "code": error.code.value, "detail": error.detail})
