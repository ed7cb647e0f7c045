"""Refusals counted per client address, and the temporary block of those that earned too many.

A request pays for one entry in a dict; counting, recording and writing the block are a background greenlet's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from itertools import islice
from typing import Protocol

import gevent
from sqlalchemy.orm import Session

from secure_llm_proxy.admission.address_rules import (
    AddressRule,
    AddressRules,
    NoSuchAddressRule,
    RuleList,
    RuleSource,
    new_address_rule_id,
)
from secure_llm_proxy.admission.addresses import parse_address
from secure_llm_proxy.admission.gate import Admission
from secure_llm_proxy.admission.rule_reading import RuleReader
from secure_llm_proxy.admission.violation_tallies import NETWORKS_REMEMBERED, ProcessTally, RedisTally, Tally
from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.clock import Clock, rfc3339
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import ErrorCode, Unavailable
from secure_llm_proxy.foundation.identifiers import new_record_id, ulid
from secure_llm_proxy.settings import AdmissionSettings, RedisSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent, AuditJournal, ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EventName

log = logging.getLogger(__name__)

COUNT_S = 0.5
"""Seconds between two counts of what was noted meanwhile."""

VIOLATIONS = frozenset(
    {
        ErrorCode.MISSING_API_KEY,
        ErrorCode.INVALID_API_KEY,
        ErrorCode.API_KEY_REVOKED,
        ErrorCode.API_KEY_IN_URL,
        ErrorCode.RATE_LIMIT_EXCEEDED,
        ErrorCode.CONCURRENCY_LIMIT_EXCEEDED,
        ErrorCode.AGENT_BLOCKED,
    }
)
"""What counts. Not what honest clients do by accident: malformed requests, expired keys, a provider's own refusals."""

TEMPORARY_BLOCKS_MAX = 50_000
"""So many at once: whoever has more addresses than that is stopped in front of the proxy, not by a list in it."""

_ADDRESSES_NOTED = 50_000
_COUNTED_AT_ONCE = 500
_V4 = 4
_V6_NETWORK_BITS = 64


class Violations(Protocol):
    def note_refusal(self, address: str, code: ErrorCode) -> None:
        """A client at `address` was refused with `code`. Returns at once."""
        ...

    def work(self) -> None:
        """Count what was noted, and block whoever has too much of it. For a greenlet of its own, every `COUNT_S`."""
        ...

    def close(self) -> None: ...


class NoViolations:
    """`BLOCK_AFTER_VIOLATIONS=0`."""

    def note_refusal(self, address: str, code: ErrorCode) -> None:
        """Nobody counts."""

    def work(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to hang up."""


class CountedViolations:
    """Notes violations, adds them up by network (a v4 address, a v6 /64), and has a network blocked each time that its
    count reaches a multiple of `after`: of several workers that share a tally exactly one sees that.

    A block that can't be recorded or written now is tried again at the next count.
    """

    def __init__(
        self, after: int, tally: Tally, is_exempt: Callable[[str], bool], block: Callable[[str, int], None]
    ) -> None:
        self._after = after
        self._tally = tally
        self._is_exempt = is_exempt
        self._block = block
        self._noted: dict[str, int] = {}
        self._due: dict[str, int] = {}
        self._late = False

    def note_refusal(self, address: str, code: ErrorCode) -> None:
        if code in VIOLATIONS:
            noted = self._noted
            if address in noted:
                noted[address] += 1
            elif len(noted) < _ADDRESSES_NOTED:
                noted[address] = 1

    def work(self) -> None:
        if self._noted:
            self._count()
        while self._due:
            network, count = self._due.popitem()
            try:
                self._block(network, count)
            except Unavailable as error:
                self._due[network] = count
                if not self._late:
                    log.warning("a block after violations is late", extra={"code": error.code, "detail": error.detail})
                self._late = True
                return
            self._late = False

    def close(self) -> None:
        self._tally.close()

    def _count(self) -> None:
        noted, self._noted = self._noted, {}
        violations: dict[str, int] = {}
        for address, count in noted.items():
            if not self._is_exempt(address):
                network = network_of(address)
                violations[network] = violations.get(network, 0) + count
        networks = iter(violations.items())
        while part := dict(islice(networks, _COUNTED_AT_ONCE)):
            for network, count in self._tally.add(part).items():
                before = count - part[network]
                if count // self._after > before // self._after and len(self._due) < NETWORKS_REMEMBERED:
                    self._due[network] = count
            gevent.sleep(0)


def network_of(address: str) -> str:
    """What is blocked for a client's address: it alone, or its /64, which in IPv6 is one site's to choose from."""
    parsed = parse_address(address)
    assert parsed is not None, "an address that can't be read is exempt"
    if parsed.version == _V4:
        return f"{parsed.text}/32"
    prefix = parsed.number >> _V6_NETWORK_BITS << _V6_NETWORK_BITS
    return f"{parsed._replace(number=prefix).text}/{_V6_NETWORK_BITS}"


class TemporaryBlocks:
    """Writes the block of a network: recorded first, then in the database, then in force here; elsewhere within 5 s."""

    def __init__(
        self,
        settings: AdmissionSettings,
        database: Database,
        address_rules: AddressRules,
        journal: AuditJournal,
        reader: RuleReader,
        clock: Clock,
        *,
        blocks_max: int = TEMPORARY_BLOCKS_MAX,
    ) -> None:
        self._blocks_max = blocks_max
        self._settings = settings
        self._database = database
        self._address_rules = address_rules
        self._journal = journal
        self._reader = reader
        self._clock = clock

    def block(self, network: str, count: int) -> None:
        """`network` is blocked for `BLOCK_DURATION_S` from now. Raises `Unavailable`, and blocks nothing, while the block
        can't be recorded; or while the database is away.
        """
        if self._reader.counts().temporary >= self._blocks_max:
            log.warning("too many temporary blocks, no more are made", extra={"blocks": self._blocks_max})
            return
        settings = self._settings
        known = self._database.run(lambda session: self._known(session, network))
        if known is not None and known.source is RuleSource.OPERATOR:
            return
        rule_id = known.id if known is not None else new_address_rule_id()
        told: dict[str, ClearValue] = {
            "act": "address_rule.block",
            "subject": rule_id,
            "by": "violations",
            "rule": f"temporary_block:{rule_id}",
            "count": count,
            "until": rfc3339(self._clock.now() + timedelta(seconds=settings.block_duration_s)),
        }
        body = strict_json.dumps({"network": network})
        change_id = "adm_" + ulid()
        self._journal.record(
            AuditEvent(new_record_id(), AuditType.ADMIN_INTENT, change_id, EventName.BLOCKED_IP, told, body)
        )
        note = f"{count} violations within {settings.violations_window_s} s"
        try:
            self._database.run(
                lambda session: self._address_rules.block_temporarily(
                    session, network, duration_s=settings.block_duration_s, note=note, rule_id=rule_id
                )
            )
        except Unavailable:
            self._post_result(change_id, told, ok=False)
            raise
        self._post_result(change_id, told, ok=True)
        self._reader.refresh()

    def _known(self, session: Session, network: str) -> AddressRule | None:
        try:
            return self._address_rules.find(session, network, RuleList.BLOCKED)
        except NoSuchAddressRule:
            return None

    def _post_result(self, change_id: str, told: dict[str, ClearValue], *, ok: bool) -> None:
        """The intent is on record already: a result that can't be queued is only missed."""
        event = AuditEvent(
            new_record_id(), AuditType.ADMIN_RESULT, change_id, EventName.BLOCKED_IP, {**told, "ok": ok}, b"{}"
        )
        try:
            self._journal.post(event)
        except Unavailable as error:
            log.warning("the result of a block was not recorded", extra={"rule": told["rule"], "code": error.code})


def open_violations(
    settings: AdmissionSettings,
    redis: RedisSettings,
    *,
    admission: Admission,
    database: Database,
    address_rules: AddressRules,
    journal: AuditJournal,
    reader: RuleReader,
    clock: Clock,
) -> Violations:
    """Counted in Redis where there is one, else in this process; not at all with `BLOCK_AFTER_VIOLATIONS=0`."""
    if not settings.block_after_violations:
        return NoViolations()
    alone = ProcessTally(settings.violations_window_s, clock)
    tally = alone if redis.url is None else RedisTally(redis, settings.violations_window_s, alone)
    blocks = TemporaryBlocks(settings, database, address_rules, journal, reader, clock)
    return CountedViolations(settings.block_after_violations, tally, admission.is_exempt, blocks.block)
