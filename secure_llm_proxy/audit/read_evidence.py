"""Evidence through the writer's read socket: for processes that may not open segments, as web workers may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from secure_llm_proxy.audit.evidence import Damage, Damaged, Heartbeat, LogState, SourceLine
from secure_llm_proxy.audit.exports import ClearRow
from secure_llm_proxy.audit.read_client import AuditReader, Break, CheckpointRow, Found, RawLine, Row, Search
from secure_llm_proxy.foundation.errors import EvidenceBroken, NotFound

_PAGE = 1000
_NAMED_MAX = 200


class ReadEvidence:
    """`Evidence` of one log. Every line that it gives out was found in its place in the chain by who read it."""

    def __init__(self, reader: AuditReader) -> None:
        self._reader = reader

    def rows(self, since: str, until: str, after: int = -1) -> Iterator[ClearRow | Heartbeat | Damage]:
        """What is written meanwhile is left out: the last record of the period is looked up first."""
        period = Search(since=since, until=until)
        damage: dict[tuple[int, int], Damage] = {}
        first = self._edge(period, oldest=True, damage=damage)
        last = self._edge(period, oldest=False, damage=damage) if first is not None else None
        told = set(damage)
        yield from damage.values()
        if first is None or last is None:
            return
        reached = max(first - 1, after)
        while reached < last:
            page = self._reader.tail(reached, limit=_PAGE)
            for row in page.rows:
                if row.place.n <= last and since <= row.t < until:
                    yield Heartbeat(row.place.n, row.t) if isinstance(row, CheckpointRow) else clear_row(row)
            if page.broken is not None and _key(page.broken) not in told:
                told.add(_key(page.broken))
                yield _damage(page.broken)
            if not page.more or page.after <= reached:
                return
            reached = page.after

    def _edge(self, period: Search, *, oldest: bool, damage: dict[tuple[int, int], Damage]) -> int | None:
        """Index of the first, or the last, record of the period."""
        position: int | None = None
        while True:
            found: Found = self._reader.search(
                period, limit=1, order="oldest" if oldest else "newest", position=position
            )
            damage.update({_key(each): _damage(each) for each in found.broken})
            if found.rows:
                return found.rows[0].place.n
            if not found.more or found.next is None or found.next == position:
                return None
            position = found.next

    def lines(self, numbers: Sequence[int]) -> list[SourceLine]:
        asked = [n for n in numbers if n >= 0]
        found: list[SourceLine] = []
        try:
            for first in range(0, len(asked), _PAGE):
                found += map(_stored, self._reader.lines(asked[first : first + _PAGE]))
        except EvidenceBroken as error:
            raise Damaged(error.public) from None
        return found

    def named(self, identifier: str) -> list[SourceLine]:
        try:
            found = self._reader.find(identifier, limit=_NAMED_MAX)
        except NotFound:
            return []
        except EvidenceBroken as error:
            raise Damaged(error.public) from None
        own = tuple(f'"{name}":"{identifier}"'.encode() for name in ("id", "rid"))
        if found.broken and not any(needle in line.raw for line in found.lines for needle in own):
            # Others name it; itself it stands where nothing can be shown.
            broken = found.broken[0]
            raise Damaged(f"The log is damaged: segment {broken.segment}, line {broken.n}: {broken.what}.")
        return [_stored(line) for line in found.lines]

    def state(self) -> LogState:
        told = self._reader.state()
        oldest = self._reader.search(Search(), limit=1, order="oldest").rows
        log, writer = told.get("log"), told.get("writer")
        said: Mapping[str, object] = writer if isinstance(writer, dict) else {}
        return LogState(
            log=log if isinstance(log, str) else None,
            oldest_t=oldest[0].t if oldest else None,
            off_host=_off_host(said.get("anchors")),
            backed_up=_backed_up(said.get("backup")),
        )


def _off_host(anchors: object) -> bool | None:
    """Whether a checkpoint has reached a place on another host; None: the writer does not tell."""
    if not isinstance(anchors, dict):
        return None
    told = [each for each in anchors.values() if isinstance(each, dict)]
    return any(each.get("leaves_host") is True and each.get("n") is not None for each in told)


def _backed_up(backup: object) -> bool | None:
    """Whether the last backup was good; None: the writer does not tell, or none was made yet."""
    if not isinstance(backup, dict) or "enabled" not in backup:
        return None
    if not backup["enabled"]:
        return False
    if backup.get("troubles"):
        return False
    return True if backup.get("last_good") else None


def clear_row(row: Row) -> ClearRow:
    """A row of the read socket as exports take it."""
    place = row.place
    return ClearRow(
        place.n, place.segment, row.t, row.type, row.event, row.id, row.exchange_id, row.kid, place.h, row.clear
    )


def _stored(line: RawLine) -> SourceLine:
    return SourceLine(line.place.n, line.place.segment, line.raw)


def _key(broken: Break) -> tuple[int, int]:
    return broken.segment, broken.n


def _damage(broken: Break) -> Damage:
    return Damage(broken.segment, broken.n, broken.what)
