"""The evidence of a log as its files have it, for who holds the files; products ask the writer's read socket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from secure_llm_proxy.audit.evidence import Damage, Heartbeat, LogState, StoredLine
from secure_llm_proxy.audit.exports import ClearRow, row_of_record
from secure_llm_proxy.audit.format import CheckpointLine, RecordLine
from secure_llm_proxy.audit.reading import LogLine, log_lines


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

    def lines(self, numbers: Sequence[int]) -> list[StoredLine]:
        return [
            StoredLine(n, item.file.number, item.raw)
            for n, item in enumerate(log_lines(self._directory))
            if n in set(numbers)
        ]

    def named(self, identifier: str) -> list[StoredLine]:
        return [
            StoredLine(n, item.file.number, item.raw)
            for n, item in enumerate(log_lines(self._directory))
            if _is_named(item, identifier)
        ]

    def state(self) -> LogState:
        return self._state


def _is_named(item: LogLine, identifier: str) -> bool:
    line = item.line
    return isinstance(line, RecordLine) and identifier in (
        line.id,
        line.exchange_id,
        line.clear.get("sid"),
        line.clear.get("pt_of"),
    )
