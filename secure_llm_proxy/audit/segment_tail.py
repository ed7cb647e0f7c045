"""The log's records in order, read from the segments of this host: what the index is made anew from, with nobody running."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secure_llm_proxy.audit.format import CheckpointLine, Line, RecordLine, SegmentLine, base64_text
from secure_llm_proxy.audit.index_rows import Tail, TailCheckpoint, TailRow, row_of
from secure_llm_proxy.audit.reading import LogLine, log_lines
from secure_llm_proxy.audit.segments import SegmentFile, SegmentState, host_directory, segments_in
from secure_llm_proxy.foundation.errors import OperatorError


class SegmentTail:
    """`LogTail` over files. It goes through the log once: ask for what follows, or make another.

    Of the segment that is being written only what stands before its last checkpoint is given: the rest may still vanish, when
    the sync that is under way fails. A line that can't be read is passed over and told; `audit verify` says what it means.
    """

    def __init__(self, directory: Path, *, host_id: str = "") -> None:
        self._sizes = {file.stem: file.path.stat().st_size for file in _present(host_directory(directory, host_id))}
        self._log = ""
        self.bytes_total = sum(self._sizes.values())
        self.bytes_read = 0
        self._broken: str | None = None
        self._lines = self._settled(log_lines(directory, host_id=host_id))
        self._next = next(self._lines, None)
        if not self._log:
            raise OperatorError(
                f"{directory} holds no segment that begins as one of ours; run `manage.py audit verify`."
            )

    def log_name(self) -> str:
        return self._log

    def tail(self, after: int, limit: int) -> Tail:
        rows: list[TailRow] = []
        checkpoints: list[TailCheckpoint] = []
        reached = after
        while self._next is not None and len(rows) < limit:
            item = self._next
            if item.n > after:
                reached = item.n
                if item.row is not None:
                    rows.append(item.row)
                if item.checkpoint is not None:
                    checkpoints.append(item.checkpoint)
            self._next = next(self._lines, None)
        broken, self._broken = self._broken, None
        return Tail(rows, checkpoints, reached, self._next is not None, broken)

    def _settled(self, lines: Iterator[LogLine]) -> Iterator[_Settled]:
        """Each line that will not vanish any more, in order."""
        waiting: deque[_Settled] = deque()
        file: SegmentFile | None = None
        offset = 0
        for item in lines:
            if file is None or file.stem != item.file.stem:
                # The segment before is closed, or was given up: what `log_lines` gave of it counts.
                yield from _all(waiting)
                file, offset = item.file, 0
            line = item.line
            if line is None:
                self._broken = f"segment {file.number}, line {item.number}: no line of the format"
            else:
                if isinstance(line, SegmentLine):
                    self._log = self._log or line.log
                waiting.append(_settled_line(line, item, offset))
                if isinstance(line, CheckpointLine):
                    # It covers the lines before it. Whether it stays there itself is not sure yet, and does not matter.
                    yield from _all(waiting)
            offset += len(item.raw) + 1
            self.bytes_read += len(item.raw) + 1
        if file is not None and file.now().state is not SegmentState.OPEN:
            yield from _all(waiting)


@dataclass(frozen=True, slots=True)
class _Settled:
    """A line with what the index takes of it; of one that only holds the log together, nothing."""

    n: int
    row: TailRow | None = None
    checkpoint: TailCheckpoint | None = None


def _settled_line(line: Line, item: LogLine, offset: int) -> _Settled:
    if isinstance(line, RecordLine):
        return _Settled(line.n, row=row_of(line, item.raw, item.file.number, offset))
    if isinstance(line, CheckpointLine):
        return _Settled(
            line.n, checkpoint={"n": line.n, "t": line.t, "root": base64_text(line.root), "note": line.note}
        )
    return _Settled(line.n)


def _all(waiting: deque[_Settled]) -> Iterator[_Settled]:
    while waiting:
        yield waiting.popleft()


def _present(directory: Path) -> list[SegmentFile]:
    return [now for file in segments_in(directory) if (now := file.now()).path.exists()]
