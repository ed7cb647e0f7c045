"""A question to the log, answered by way of its index: which lines fit, by the index, and what these lines say, by the segments.

The index is only believed about where to look. Every line is read again from its segment, held to the hash that the index
knows, and asked anew; one that does not agree makes the whole answer void (`IndexDiffers`). What the index has not come to yet
is read from the segments. Whoever can change the database can hide a record from an answer by way of the index, and from no
other: `audit search --scan` reads the segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, not_, or_, select
from sqlalchemy.orm import Session

from secure_llm_proxy.audit.format import leaf
from secure_llm_proxy.audit.models import AuditIndexRow, AuditIndexStateRow
from secure_llm_proxy.audit.reading import StoredLine
from secure_llm_proxy.audit.segments import SegmentFile
from secure_llm_proxy.audit.selection import ABOUT, EXCHANGE_TYPES, Selection

# Columns are as wide as this at least; what is longer stands elsewhere in the row.
_TEXT_MAX = 32
_DIGITS_MAX = 9
_OF_EXCHANGES = [kind.value for kind in EXCHANGE_TYPES]


class IndexDiffers(Exception):
    """The index says something else than the log, or knows lines that are not there."""


@dataclass(frozen=True, slots=True)
class IndexedPlace:
    """Where the index has seen a record, and the leaf hash of its line there."""

    n: int
    segment: int
    offset: int
    length: int
    h: bytes


def is_indexable(wanted: Selection) -> bool:
    """Whether the index can answer it as the segments would."""
    short = (wanted.person, wanted.event, wanted.type, wanted.decision, wanted.status, wanted.request)
    texts = (*short, wanted.user, wanted.project, wanted.key, wanted.address, wanted.agent, wanted.email)
    return all(text is None or len(text) <= _TEXT_MAX for text in texts) and len(wanted.model or "") <= 2 * _TEXT_MAX


def indexed_lines(session: Session, log: str) -> int:
    """How many lines of `log` the index knows, from the first on; 0 when it does not say, or is not to be relied upon."""
    row = AuditIndexStateRow
    found = session.execute(select(row.next_n, row.rebuilt_n, row.trouble).where(row.log == log)).one_or_none()
    if found is None or found.rebuilt_n is not None or found.trouble is not None:
        return 0
    return int(found.next_n)


def indexed_places(session: Session, log: str, wanted: Selection, *, below: int, limit: int) -> list[IndexedPlace]:
    """The last `limit` lines below `below` that fit by the index, oldest first."""
    row = AuditIndexRow
    rows = session.execute(
        select(row.n, row.seg, row.offset, row.length, row.h)
        .where(row.log == log, row.n < below, *_conditions(wanted))
        .order_by(row.n.desc())
        .limit(limit)
    )
    return [IndexedPlace(*each) for each in rows][::-1]


def lines_at(segments: Sequence[SegmentFile], places: Sequence[IndexedPlace]) -> Iterator[StoredLine]:
    """These lines, from their segments; `number` is not known. Raises `IndexDiffers`.

    A place in a segment below the first there is was retired, and is left out.
    """
    by_number = {segment.number: segment for segment in segments}
    oldest = min(by_number, default=0)
    for place in places:
        segment = by_number.get(place.segment)
        if segment is None and place.segment < oldest:
            continue
        raw = _read(segment, place) if segment else None
        if segment is None or raw is None or leaf(raw) != place.h:
            raise IndexDiffers
        yield StoredLine(segment, 0, place.n, place.offset, raw)


def _read(segment: SegmentFile, place: IndexedPlace) -> bytes | None:
    try:
        with segment.open() as stream:
            stream.seek(place.offset)
            raw = stream.read(place.length + 1)
    except (OSError, ValueError):
        return None
    return raw[:-1] if len(raw) == place.length + 1 and raw.endswith(b"\n") else None


def _conditions(wanted: Selection) -> Iterator[ColumnElement[bool]]:
    """What `Selection.fits` asks, in the columns of the index."""
    row = AuditIndexRow
    if wanted.since is not None:
        yield row.t >= datetime.fromisoformat(wanted.since)
    if wanted.until is not None:
        yield row.t < datetime.fromisoformat(wanted.until)
    for column, value in (
        (row.mdl, wanted.model),
        (row.ev, wanted.event),
        (row.dec, wanted.decision),
        (row.ipx, wanted.address),
        (row.uax, wanted.agent),
        (row.emx, wanted.email),
    ):
        if value is not None:
            yield column == value
    if wanted.person is not None:
        yield row.sub.in_((wanted.person, *wanted.also))
    if wanted.named:
        yield row.ev.is_not(None)
    if wanted.type is not None:
        yield row.ty == wanted.type
    if wanted.user is not None:
        yield or_(row.usr == wanted.user, row.by == f"user:{wanted.user}", _is_about(wanted.user))
    if wanted.project is not None:
        yield or_(row.prj == wanted.project, _is_about(wanted.project))
    if wanted.key is not None:
        yield or_(row.ak == wanted.key, _is_about(wanted.key))
    if wanted.status is not None:
        yield _has_status(wanted.status)
    if wanted.request is not None:
        yield _belongs_to(wanted.request)


def _is_about(identifier: str) -> ColumnElement[bool]:
    # `sbj` is found by its own index; the other members of these few records stand in `rest`.
    row = AuditIndexRow
    others = [row.rest[name].as_string() == identifier for name in ABOUT]
    return and_(not_(row.ty.in_(_OF_EXCHANGES)), or_(row.sbj == identifier, *others))


def _has_status(status: str) -> ColumnElement[bool]:
    row = AuditIndexRow
    fits = [row.st == status, row.code == status]
    if status.isascii() and status.isdigit() and len(status) <= _DIGITS_MAX and str(int(status)) == status:
        fits.append(row.http == int(status))
    return or_(*fits)


def _belongs_to(identifier: str) -> ColumnElement[bool]:
    row = AuditIndexRow
    exchange = select(row.rid).where(row.id == identifier).scalar_subquery()
    inside = [row.rest[name].as_string() == identifier for name in ("sid", "pt_of")]
    told = and_(not_(row.ty.in_(_OF_EXCHANGES)), row.rest["request"].as_string() == identifier)
    return or_(row.rid == identifier, row.id == identifier, and_(row.rid.in_(exchange), or_(*inside)), told)
