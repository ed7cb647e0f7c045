"""Evidence for tests: a log as its files have it (products ask the writer's read socket), or rows that are made up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from secure_llm_proxy.audit.evidence import Damage, Heartbeat, LogState, SourceLine
from secure_llm_proxy.audit.exports import ClearRow, row_of_record
from secure_llm_proxy.audit.format import CheckpointLine, RecordLine
from secure_llm_proxy.audit.reading import LogLine, log_lines


class RowEvidence:
    """Evidence made of rows alone: no line of them can be verified. `trouble` is raised before row number `trouble_at`."""

    def __init__(self, rows: Sequence[ClearRow | Heartbeat | Damage] = (), state: LogState | None = None) -> None:
        self.given = list(rows)
        self.trouble: Exception | None = None
        self.trouble_at = 0
        self._state = state or LogState(log="slp.test/host")

    def rows(self, since: str, until: str, after: int = -1) -> Iterator[ClearRow | Heartbeat | Damage]:
        for number, each in enumerate(self.given):
            if self.trouble is not None and number == self.trouble_at:
                raise self.trouble
            if isinstance(each, Damage) or (since <= each.t < until and each.n > after):
                yield each
        if self.trouble is not None and len(self.given) <= self.trouble_at:
            raise self.trouble

    def lines(self, numbers: Sequence[int]) -> list[SourceLine]:
        return []

    def named(self, identifier: str) -> list[SourceLine]:
        if self.trouble is not None:
            raise self.trouble
        return []

    def state(self) -> LogState:
        return self._state


class FileEvidence:
    """`Evidence` over a directory. Lines are given out by their place, whatever they say of themselves."""

    def __init__(self, directory: Path, state: LogState | None = None) -> None:
        self._directory = directory
        self._state = state or LogState(log="slp.default/host")
        self.damage: list[Damage] = []

    def rows(self, since: str, until: str, after: int = -1) -> Iterator[ClearRow | Heartbeat | Damage]:
        yield from self.damage
        for item in log_lines(self._directory):
            line = item.line
            if line is None or line.n <= after:
                continue
            if isinstance(line, CheckpointLine) and since <= line.t < until:
                yield Heartbeat(line.n, line.t)
            elif isinstance(line, RecordLine) and since <= line.t < until:
                yield row_of_record(line, item.file.number, item.raw)

    def lines(self, numbers: Sequence[int]) -> list[SourceLine]:
        return [
            SourceLine(n, item.file.number, item.raw)
            for n, item in enumerate(log_lines(self._directory))
            if n in set(numbers)
        ]

    def named(self, identifier: str) -> list[SourceLine]:
        return [
            SourceLine(n, item.file.number, item.raw)
            for n, item in enumerate(log_lines(self._directory))
            if _is_named(item, identifier)
        ]

    def state(self) -> LogState:
        return self._state


def _is_named(item: LogLine, identifier: str) -> bool:
    line = item.line
    if line is None:
        return f'"id":"{identifier}"'.encode() in item.raw
    return isinstance(line, RecordLine) and identifier in (
        line.id,
        line.exchange_id,
        line.clear.get("sid"),
        line.clear.get("pt_of"),
    )
