"""The lists of addresses that are changed while the product runs, kept in the database.

Each change advances a revision in its own transaction, by which workers see it (`rule_reading.py`). On PostgreSQL that
row's lock orders such transactions by their commit: who reads revision R sees every change up to R.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import cast

from sqlalchemy import ColumnElement, CursorResult, Select, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from secure_llm_proxy.admission.models import AddressRuleRow, AddressRulesRevisionRow
from secure_llm_proxy.admission.networks import read_network
from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import ConflictError, NotFoundError, OperatorError, StaleError
from secure_llm_proxy.foundation.identifiers import ulid
from secure_llm_proxy.settings import AdmissionSettings

NOTE_CHARACTERS_MAX = 200
_CREATOR_CHARACTERS_MAX = 100
_ID_PREFIX = "adr_"


class RuleList(StrEnum):
    BLOCKED = "blocked"
    ALLOWED = "allowed"


class RuleSource(StrEnum):
    """Who made a rule: an operator, or the count of an address's violations (a temporary block)."""

    OPERATOR = "operator"
    VIOLATIONS = "violations"


class AddressRuleExists(ConflictError):
    """That network stands in that list already."""


class NoSuchAddressRule(NotFoundError):
    """No rule in force has that id or network."""


class AddressRuleChanged(StaleError):
    """The rule is not the version that the caller looked at."""


@dataclass(frozen=True, slots=True)
class AddressRule:
    """`network` is canonical CIDR text. `expires_at` None: for good. `version` advances with every change of the rule."""

    id: str
    list: RuleList
    network: str
    note: str
    source: RuleSource
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    version: int


def new_address_rule_id() -> str:
    return _ID_PREFIX + ulid()


class AddressRules:
    """Rules read and changed within the caller's session, which is the caller's to commit. Expired ones don't exist here."""

    def __init__(self, settings: AdmissionSettings, clock: Clock) -> None:
        self._all_are_allowed = not settings.allowed_addresses
        self._clock = clock

    def list_rules(
        self, session: Session, which: RuleList | None = None, *, after: str = "", limit: int | None = None
    ) -> list[AddressRule]:
        """Rules in the order of their ids, which is that of their making; `after` is the last id of the page before."""
        rows = self._live().where(AddressRuleRow.id > after).order_by(AddressRuleRow.id).limit(limit)
        if which is not None:
            rows = rows.where(AddressRuleRow.list == which)
        return [_rule(row) for row in session.scalars(rows)]

    def find(self, session: Session, reference: str, which: RuleList | None = None) -> AddressRule:
        """The rule with this id, or for exactly this network. Raises `NoSuchAddressRule`, or `OperatorError` when the
        network can't be read, or stands in both lists and `which` does not say in which is meant.
        """
        where = f" in the list {which}" if which is not None else ""
        if reference.startswith(_ID_PREFIX):
            rows = self._live().where(AddressRuleRow.id == reference)
        else:
            rows = self._live().where(AddressRuleRow.network == canonical_network(reference))
        if which is not None:
            rows = rows.where(AddressRuleRow.list == which)
        found = list(session.scalars(rows))
        if not found:
            raise NoSuchAddressRule(f"There is no address rule {reference!r}{where}.")
        if len(found) > 1:
            raise OperatorError(f"{reference} stands in both lists; say which one is meant, or name the rule's id.")
        return _rule(found[0])

    def require_addable(
        self, which: RuleList, network: str, *, expires_at: datetime | None = None, force: bool = False
    ) -> str:
        """The canonical form of a network that may be added so. Raises `OperatorError` with the reason why not."""
        read = _network_of(network)
        if which is RuleList.BLOCKED and read.prefixlen == 0 and not force:
            raise OperatorError(
                f"{read} in the list blocked would lock out every client with an IPv{read.version} address; "
                "force it if that is meant."
            )
        if expires_at is not None and expires_at <= self._clock.now():
            raise OperatorError("The rule would have expired already; give it an end that is still to come.")
        if which is RuleList.ALLOWED and expires_at is not None and self._all_are_allowed:
            raise OperatorError(
                "ALLOWED_IPS is empty, so the end of the last rule in the list allowed would open the door to everybody: "
                "set ALLOWED_IPS, or let the rule stand until it is removed."
            )
        return str(read)

    def is_first_allowed(self, session: Session) -> bool:
        """Whether one more rule in the list `allowed` shuts out everybody else, who so far may ask."""
        return self._all_are_allowed and not self.list_rules(session, RuleList.ALLOWED, limit=1)

    def add(
        self,
        session: Session,
        which: RuleList,
        network: str,
        *,
        note: str = "",
        created_by: str,
        expires_at: datetime | None = None,
        force: bool = False,
        rule_id: str | None = None,
    ) -> AddressRule:
        """The rule an operator made. A temporary block of the same network gives way to it.

        Raises `AddressRuleExists` when the network is in that list, and `OperatorError` as `require_addable` does.
        """
        canonical = self.require_addable(which, network, expires_at=expires_at, force=force)
        note = note.strip()
        if len(note) > NOTE_CHARACTERS_MAX or not note.isprintable():
            raise OperatorError(f"A note is one line of at most {NOTE_CHARACTERS_MAX} characters.")
        now = self._clock.now()
        same = (AddressRuleRow.list == which) & (AddressRuleRow.network == canonical)
        gives_way = (AddressRuleRow.source == RuleSource.VIOLATIONS) | (AddressRuleRow.expires_at <= now)
        _delete(session, same, gives_way)
        values = {
            "id": rule_id or new_address_rule_id(),
            "list": which.value,
            "network": canonical,
            "note": note,
            "source": RuleSource.OPERATOR.value,
            "created_by": created_by[:_CREATOR_CHARACTERS_MAX],
            "created_at": now,
            "expires_at": expires_at,
            "version": 1,
        }
        made = session.execute(_insert(session, AddressRuleRow).values(values).on_conflict_do_nothing())
        if not _changed(made):
            there = session.scalars(select(AddressRuleRow).where(same)).one_or_none()
            named = "" if there is None else f" by {there.id}, made by {there.created_by}"
            raise AddressRuleExists(
                f"{canonical} is in the list {which} already{named}; remove that rule to change it."
            )
        _advance_revision(session)
        return self.find(session, str(values["id"]))

    def remove(
        self, session: Session, reference: str, which: RuleList | None = None, *, version: int | None = None
    ) -> AddressRule:
        """The rule that was there and no longer is. Raises as `find` does, and `AddressRuleChanged` when it is no longer
        the `version` that was looked at.
        """
        rule = self.find(session, reference, which)
        unchanged = AddressRuleRow.version == (rule.version if version is None else version)
        if not _delete(session, AddressRuleRow.id == rule.id, unchanged):
            raise AddressRuleChanged(f"{rule.id} was changed meanwhile; look at it again.")
        _advance_revision(session)
        return rule

    def block_temporarily(
        self, session: Session, network: str, *, duration_s: float, note: str, rule_id: str
    ) -> AddressRule:
        """The rule that blocks `network` from now on for at least `duration_s`: a new one with `rule_id`, a temporary
        block that is made to last longer, or an operator's rule as it is.
        """
        canonical = canonical_network(network)
        now = self._clock.now()
        same = (AddressRuleRow.list == RuleList.BLOCKED) & (AddressRuleRow.network == canonical)
        _delete(session, same, AddressRuleRow.expires_at <= now)
        insert = _insert(session, AddressRuleRow).values(
            id=rule_id,
            list=RuleList.BLOCKED.value,
            network=canonical,
            note=note,
            source=RuleSource.VIOLATIONS.value,
            created_by=RuleSource.VIOLATIONS.value,
            created_at=now,
            expires_at=now + timedelta(seconds=duration_s),
            version=1,
        )
        session.execute(
            insert.on_conflict_do_update(
                index_elements=["list", "network"],
                set_={
                    "expires_at": insert.excluded.expires_at,
                    "note": insert.excluded.note,
                    "version": AddressRuleRow.version + 1,
                },
                where=(AddressRuleRow.source == RuleSource.VIOLATIONS)
                & (AddressRuleRow.expires_at < insert.excluded.expires_at),
            )
        )
        _advance_revision(session)
        return _rule(session.scalars(select(AddressRuleRow).where(same)).one())

    def cleanup(self, session: Session) -> int:
        """Delete what has expired, which nobody looks at any more; how many rules that were."""
        return _delete(session, AddressRuleRow.expires_at <= self._clock.now())

    def _live(self) -> Select[AddressRuleRow]:
        return select(AddressRuleRow).where(live_at(self._clock.now())).execution_options(populate_existing=True)


def live_at(moment: datetime) -> ColumnElement[bool]:
    return AddressRuleRow.expires_at.is_(None) | (AddressRuleRow.expires_at > moment)


def canonical_network(text: str) -> str:
    """`10.0.0.0/8`; one address as `10.0.0.1/32`; IPv4 for addresses mapped into IPv6. Raises `OperatorError`."""
    return str(_network_of(text))


def _network_of(text: str) -> IPv4Network | IPv6Network:
    return read_network(text)


def _rule(row: AddressRuleRow) -> AddressRule:
    return AddressRule(
        id=row.id,
        list=RuleList(row.list),
        network=row.network,
        note=row.note,
        source=RuleSource(row.source),
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        version=row.version,
    )


def _insert(session: Session, table: type[AddressRuleRow | AddressRulesRevisionRow]) -> postgresql.Insert:
    """An INSERT that may say ON CONFLICT, which both databases understand alike."""
    if session.get_bind().dialect.name == "sqlite":
        return cast("postgresql.Insert", sqlite.insert(table))
    return postgresql.insert(table)


def _advance_revision(session: Session) -> None:
    session.execute(
        _insert(session, AddressRulesRevisionRow)
        .values(id=1, revision=1)
        .on_conflict_do_update(index_elements=["id"], set_={"revision": AddressRulesRevisionRow.revision + 1})
    )


def _delete(session: Session, *conditions: ColumnElement[bool]) -> int:
    """How many rows that were. No row is kept in a session, so none there needs to hear of it."""
    return _changed(
        session.execute(delete(AddressRuleRow).where(*conditions).execution_options(synchronize_session=False))
    )


def _changed(result: object) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
