"""How a worker learns that address rules changed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import gevent
from gevent.lock import BoundedSemaphore
from sqlalchemy import select
from sqlalchemy.orm import Session

from secure_llm_proxy.admission.address_rules import AddressRules, RuleList, RuleSource, live_at
from secure_llm_proxy.admission.models import AddressRuleRow, AddressRulesRevisionRow
from secure_llm_proxy.admission.rules_in_force import HeldRule, RulesInForce, RuleTable
from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import Unavailable

log = logging.getLogger(__name__)

REFRESH_S = 2.0
"""A rule is in force everywhere within 5 s, a slow look at the database included."""

_PATIENCE_S = 3.0
_CLEANUP_INTERVAL_S = 3600.0
# Rows at a time: 3 to 5 ms of a worker, whose other greenlets have their turn in between.
_PAGE_SIZE = 500

_Row = tuple[str, str, str, str, datetime | None]


class RuleCounts(NamedTuple):
    """`temporary` are blocks after violations; `blocked` are without them."""

    blocked: int
    allowed: int
    temporary: int


class RuleReader:
    """Keeps `rules` as the database has them. One per worker."""

    def __init__(self, database: Database, address_rules: AddressRules, rules: RulesInForce, clock: Clock) -> None:
        self._database = database
        self._address_rules = address_rules
        self._rules = rules
        self._clock = clock
        self._revision: int | None = None
        self._cleanup_at_s = clock.monotonic_s() + _CLEANUP_INTERVAL_S
        self._away = False
        self._reading = BoundedSemaphore(1)

    def counts(self) -> RuleCounts:
        """How many rules of each kind are kept in mind."""
        rules = self._rules
        tables = (rules.blocked, rules.allowed, rules.temporary)
        return RuleCounts(*(0 if table is None else len(table) for table in tables))

    def refresh(self) -> None:
        """Read the rules if the revision says that they changed: one row, where they did not.

        Once an hour expired rules are deleted, and what is kept is read anew. Database away, or no answer within 3 s:
        the last known rules stay in force.
        """
        patience = gevent.Timeout(_PATIENCE_S)
        try:
            with patience, self._reading:
                self._clean_up()
                revision = self._database.run(_revision)
                if revision != self._revision:
                    self._read(revision)
            self._away = False
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            self._note_away("no answer in time")
        except Unavailable as error:
            self._note_away(error.detail)

    def _read(self, revision: int) -> None:
        allowed, blocked, temporary = RuleTable(), RuleTable(), RuleTable()
        for rule_id, which, network, source, expires_at in self._rows():
            if source == RuleSource.VIOLATIONS:
                table, name = temporary, f"temporary_block:{rule_id}"
            else:
                table, name = allowed if which == RuleList.ALLOWED else blocked, f"address_rule:{rule_id}:{network}"
            try:
                table.add(network, HeldRule(name, expires_at))
            except ValueError:
                # Written by somebody else than `AddressRules`; the other rules must be in force all the same.
                log.error("an address rule can't be read and is not in force", extra={"rule": name})  # noqa: TRY400  its text says it all
        self._rules.allowed = allowed if len(allowed) else None
        self._rules.blocked = blocked if len(blocked) else None
        self._rules.temporary = temporary if len(temporary) else None
        self._revision = revision

    def _rows(self) -> Iterator[_Row]:
        """A rule that stands all the while is among them; what changes meanwhile has another revision."""
        now, after = self._clock.now(), ""
        while True:
            page = self._database.run(lambda session, after=after: _page(session, now, after))  # type: ignore[misc]  # a default binds it now
            yield from page
            if len(page) < _PAGE_SIZE:
                return
            after = page[-1][0]

    def _clean_up(self) -> None:
        if self._clock.monotonic_s() < self._cleanup_at_s:
            return
        self._cleanup_at_s = self._clock.monotonic_s() + _CLEANUP_INTERVAL_S
        self._database.run(self._address_rules.cleanup)
        self._revision = None

    def _note_away(self, why: str | None) -> None:
        if not self._away:
            log.warning("address rules could not be read, the last known ones stay in force", extra={"detail": why})
        self._away = True


def _revision(session: Session) -> int:
    return session.scalar(select(AddressRulesRevisionRow.revision)) or 0


def _page(session: Session, now: datetime, after: str) -> list[_Row]:
    row = AddressRuleRow
    found = session.execute(
        select(row.id, row.list, row.network, row.source, row.expires_at)
        .where(row.id > after, live_at(now))
        .order_by(row.id)
        .limit(_PAGE_SIZE)
    )
    return [(each.id, each.list, each.network, each.source, each.expires_at) for each in found]
