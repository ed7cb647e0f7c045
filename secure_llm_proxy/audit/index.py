"""The index of the log in the database: a copy of what records say in clear, to search and to count.

It proves nothing: whoever owns the database can change it. So what is shown of a record is read from its segment again
(`matches`), and the whole index is made anew from the segments by `manage.py audit reindex`. Every function takes the session
of a transaction that its caller owns, and returns frozen values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol

from sqlalchemy import ColumnElement, and_, func, not_, or_, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from secure_llm_proxy.audit.index_rows import index_values
from secure_llm_proxy.audit.models import AuditAnchorRow, AuditIndexRow, AuditIndexStateRow
from secure_llm_proxy.audit.read_client import Row

GROUPS_MAX = 10_000
TROUBLE_MAX = 300

Named = Literal["user", "key", "project", "thing"]


class Reach(Protocol):
    """The organisation whose records somebody may see, and whose everything is: identity knows, the index asks."""

    @property
    def runs_deployment(self) -> bool:
        """Whether its people also see what belongs to nobody: refusals of strangers, changes made on the host."""
        ...

    def own(self, kind: Named, reference: ColumnElement[str | None]) -> ColumnElement[bool]:
        """Whether `reference` names something of this organisation."""
        ...

    def foreign(self, kind: Named, reference: ColumnElement[str | None]) -> ColumnElement[bool]:
        """Whether `reference` names something of another organisation."""
        ...


class Position(NamedTuple):
    """Where a record stands among all, newest first."""

    t: datetime
    log: str
    n: int


@dataclass(frozen=True, slots=True)
class IndexedRecord:
    """A row of the index; its fields are those of `models.AuditIndexRow`, in their order."""

    log: str
    n: int
    seg: int
    offset: int
    length: int
    t: datetime
    ty: str
    ev: str | None
    id: str
    rid: str
    usr: str | None
    sub: str | None
    ak: str | None
    prj: str | None
    sbj: str | None
    mdl: str | None
    up: str | None
    dec: str | None
    code: str | None
    st: str | None
    http: int | None
    tin: int | None
    tout: int | None
    ms: int | None
    rt: str | None
    ipx: str | None
    uax: str | None
    emx: str | None
    by: str | None
    act: str | None
    h: bytes
    rest: Mapping[str, object] | None

    @property
    def position(self) -> Position:
        return Position(self.t, self.log, self.n)


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """What a record must be to be found; None asks for nothing. `since` is included, `until` is not.

    `user` is who asked or acted, `subject` who or what was acted on, `person` the pseudonym of whom an application named.
    `address`, `agent` and `email` are blind indexes, not the values themselves. `reach` None: everybody's records.
    """

    since: datetime | None = None
    until: datetime | None = None
    log: str | None = None
    type: str | None = None
    event: str | None = None
    id: str | None = None
    exchange_id: str | None = None
    user: str | None = None
    person: str | None = None
    key: str | None = None
    project: str | None = None
    subject: str | None = None
    model: str | None = None
    decision: str | None = None
    code: str | None = None
    status: str | None = None
    action: str | None = None
    address: str | None = None
    agent: str | None = None
    email: str | None = None
    reach: Reach | None = None


_EQUAL: dict[str, InstrumentedAttribute[str] | InstrumentedAttribute[str | None]] = {
    "log": AuditIndexRow.log,
    "type": AuditIndexRow.ty,
    "event": AuditIndexRow.ev,
    "id": AuditIndexRow.id,
    "exchange_id": AuditIndexRow.rid,
    "user": AuditIndexRow.usr,
    "person": AuditIndexRow.sub,
    "key": AuditIndexRow.ak,
    "project": AuditIndexRow.prj,
    "subject": AuditIndexRow.sbj,
    "model": AuditIndexRow.mdl,
    "decision": AuditIndexRow.dec,
    "code": AuditIndexRow.code,
    "status": AuditIndexRow.st,
    "action": AuditIndexRow.act,
    "address": AuditIndexRow.ipx,
    "agent": AuditIndexRow.uax,
    "email": AuditIndexRow.emx,
}


class Dimension(StrEnum):
    """By what records are counted."""

    EVENT = "event"
    TYPE = "type"
    DECISION = "decision"
    STATUS = "status"
    CODE = "code"
    HTTP = "http"
    DAY = "day"
    MODEL = "model"
    USER = "user"


_COLUMNS: dict[
    Dimension, InstrumentedAttribute[str] | InstrumentedAttribute[str | None] | InstrumentedAttribute[int | None]
] = {
    Dimension.EVENT: AuditIndexRow.ev,
    Dimension.TYPE: AuditIndexRow.ty,
    Dimension.DECISION: AuditIndexRow.dec,
    Dimension.STATUS: AuditIndexRow.st,
    Dimension.CODE: AuditIndexRow.code,
    Dimension.HTTP: AuditIndexRow.http,
    Dimension.MODEL: AuditIndexRow.mdl,
    Dimension.USER: AuditIndexRow.usr,
}
_SHOWN = tuple(getattr(AuditIndexRow, name) for name in IndexedRecord.__slots__)


@dataclass(frozen=True, slots=True)
class Count:
    """How many records had these values, one for each dimension asked for; a day is `2026-11-21`, in UTC."""

    values: tuple[str | int | None, ...]
    records: int


@dataclass(frozen=True, slots=True)
class Anchor:
    log: str
    n: int
    root: str
    note: str
    t: datetime
    first_seen: datetime


@dataclass(frozen=True, slots=True)
class IndexState:
    """How far the index of a log has come. `rebuilt_n` is set while a rebuilding is under way, or was broken off."""

    log: str
    next_n: int
    lease_holder: str | None
    lease_until: datetime | None
    rebuilt_n: int | None
    trouble: str | None


class AuditIndex:
    """Searches and counts. Finds nothing that is not indexed yet: the index follows the log by a few seconds."""

    def search(
        self, session: Session, wanted: RecordFilter, *, after: Position | None = None, limit: int = 50
    ) -> list[IndexedRecord]:
        """At most `limit` records behind `after`, newest first; of several logs' records of one moment in a fixed order."""
        where = _conditions(wanted)
        if after is not None:
            where.append(tuple_(AuditIndexRow.t, AuditIndexRow.log, AuditIndexRow.n) < tuple_(*after))
            # For planners that don't see it in the comparison above.
            where.append(AuditIndexRow.t <= after.t)
        rows = session.execute(
            select(*_SHOWN)
            .where(*where)
            .order_by(AuditIndexRow.t.desc(), AuditIndexRow.log.desc(), AuditIndexRow.n.desc())
            .limit(limit)
        )
        return [IndexedRecord(*row) for row in rows]

    def counts(self, session: Session, wanted: RecordFilter, dimensions: Sequence[Dimension]) -> list[Count]:
        """Records of each combination of values, in their order; at most `GROUPS_MAX` combinations, the biggest first then."""
        groups = [_grouped(session, dimension) for dimension in dimensions]
        number = func.count()
        counted = select(*groups, number).select_from(AuditIndexRow).where(*_conditions(wanted)).group_by(*groups)
        if groups:
            counted = counted.order_by(number.desc(), *groups).limit(GROUPS_MAX)
        return [Count(tuple(values), records) for *values, records in map(tuple, session.execute(counted))]

    def anchors(self, session: Session, log: str | None = None, *, after: int = -1, limit: int = 1000) -> list[Anchor]:
        """Checkpoints of `log` (None: of all), smallest first, those of more than `after` lines."""
        row = AuditAnchorRow
        where = [row.n > after] if log is None else [row.log == log, row.n > after]
        found = session.execute(
            select(row.log, row.n, row.root, row.note, row.t, row.first_seen)
            .where(*where)
            .order_by(row.log, row.n)
            .limit(limit)
        )
        return [Anchor(*each) for each in found]

    def alarm(self, session: Session, *, log: str, sentence: str) -> None:
        """From now on the operator is told this, until the index of `log` was made anew."""
        set_trouble(session, log, sentence)

    def states(self, session: Session) -> list[IndexState]:
        row = AuditIndexStateRow
        found = session.execute(
            select(row.log, row.next_n, row.lease_holder, row.lease_until, row.rebuilt_n, row.trouble).order_by(row.log)
        )
        return [IndexState(*each) for each in found]


def set_trouble(session: Session, log: str, sentence: str) -> None:
    row = AuditIndexStateRow
    session.execute(update(row).where(row.log == log).values(trouble=sentence[:TROUBLE_MAX]))


def matches(indexed: IndexedRecord, row: Row) -> bool:
    """Whether the index says of a record what its segment says, to the last value."""
    told = index_values(indexed.log, row)
    names = {"offset": "off", "length": "len"}
    return all(getattr(indexed, name) == told[names.get(name, name)] for name in IndexedRecord.__slots__)


def record_of(log: str, row: Row) -> IndexedRecord:
    """What the index should say of this record."""
    values = index_values(log, row)
    return IndexedRecord(offset=values.pop("off"), length=values.pop("len"), **values)  # type: ignore[arg-type]  # by name


def _conditions(wanted: RecordFilter) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [
        column == value for name, column in _EQUAL.items() if (value := getattr(wanted, name)) is not None
    ]
    if wanted.since is not None:
        where.append(AuditIndexRow.t >= wanted.since)
    if wanted.until is not None:
        where.append(AuditIndexRow.t < wanted.until)
    if wanted.reach is not None:
        where.append(_within(wanted.reach))
    return where


def _within(reach: Reach) -> ColumnElement[bool]:
    """Nothing that a record names is of another organisation; and something is of this one, unless it runs the deployment."""
    named: list[tuple[Named, ColumnElement[str | None]]] = [
        ("user", AuditIndexRow.usr.expression),
        ("key", AuditIndexRow.ak.expression),
        ("project", AuditIndexRow.prj.expression),
        ("thing", AuditIndexRow.sbj.expression),
    ]
    nothing_foreign = and_(*(not_(reach.foreign(kind, column)) for kind, column in named))
    if reach.runs_deployment:
        return nothing_foreign
    return and_(nothing_foreign, or_(*(reach.own(kind, column) for kind, column in named)))


def _grouped(session: Session, dimension: Dimension) -> ColumnElement[Any]:
    if dimension is not Dimension.DAY:
        return _COLUMNS[dimension].expression
    if session.get_bind().dialect.name == "sqlite":
        return func.strftime("%Y-%m-%d", AuditIndexRow.t)
    return func.to_char(func.timezone("UTC", AuditIndexRow.t), "YYYY-MM-DD")
