"""The log's lines in order of their index, for whoever follows it while it is written.

A follower needs to be told only how far the log is settled; it reads the lines from the segments. What is live and what
is caught up after an absence is the same way, and nothing has to be held in memory meanwhile.
"""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

from secure_llm_proxy.audit.format import FEATURES, FormatError, NewerVersion, SegmentLine, parse_line
from secure_llm_proxy.audit.segments import LogDirectories, SegmentFile, raw_lines

LINES_MAX = 256
BYTES_MAX = 1 << 20


class Settled(NamedTuple):
    """Lines below index `n` are synced and will not be taken back; the last of them stands in segment number `segment`."""

    segment: int
    n: int


class LogLost(Exception):
    """Lines that should be there are not. The text says which, for the operator."""


class NumberedLine(NamedTuple):
    n: int
    raw: bytes


class LogFollower:
    """Reads from index `n` on; None: from the first line of the newest segment. Used by one thread.

    `missed` is (first, last) of lines that were gone when their turn came, retired for instance; they are passed over.
    """

    def __init__(self, directories: LogDirectories, n: int | None) -> None:
        self.n = n
        self.missed: tuple[int, int] | None = None
        self._directories = directories
        self._file: SegmentFile | None = None
        self._stream: BinaryIO | None = None
        # Index of the first line of the segment after this one, once there is one.
        self._end: int | None = None

    def read(self, settled: Settled) -> list[NumberedLine]:
        """The next lines below `settled`, at most 256 or about 1 MiB; none when there are none. Raises `LogLost`, `OSError`."""
        lines: list[NumberedLine] = []
        size = 0
        while not lines and self._advance(settled):
            limit = settled.n if self._end is None else min(self._end, settled.n)
            while self.n is not None and self.n < limit and len(lines) < LINES_MAX and size < BYTES_MAX:
                raw = self._next_line()
                lines.append(NumberedLine(self.n, raw))
                size += len(raw)
                self.n += 1
        return lines

    def back_to(self, n: int) -> None:
        """Read from `n` on again."""
        self.n = n
        self.close()

    def close(self) -> None:
        stream, self._stream, self._file, self._end = self._stream, None, None, None
        if stream is not None:
            stream.close()

    def _advance(self, settled: Settled) -> bool:
        """Whether there is a settled line to read; then the segment that holds it is open, at its place."""
        while self.n is None or self.n < settled.n:
            if self._stream is None or self._file is None:
                self._find()
            elif self._end is None and self._file.number < settled.segment:
                self._end = self._end_of(self._file)
            elif self._end is not None and self.n is not None and self.n >= self._end:
                self.close()
            else:
                return True
        # A segment without settled lines may still be taken back, and be another one under the same name.
        if self._file is not None and self._file.number > settled.segment:
            self.close()
        return False

    def _find(self) -> None:
        """Open the segment that holds line `n`, and pass over the lines before it."""
        segments = self._directories.segments()
        for file in reversed(segments):
            first = self._first_index(file)
            if self.n is None:
                self.n = first
            if first <= self.n or file is segments[0]:
                break
        else:
            raise LogLost("the log has no segment")
        if first > self.n:
            self.missed, self.n = (self.n, first - 1), first
        self._file, self._stream = file, file.open()
        for passed in range(first, self.n):
            if not self._stream.readline().endswith(b"\n"):
                lost = f"{file.name} ends before line {passed}"
                self.close()
                raise LogLost(lost)

    def _end_of(self, file: SegmentFile) -> int:
        """Index of the first line behind `file`'s: whatever else stands in it is no line of the log."""
        following = [other for other in self._directories.segments() if other.number > file.number]
        if not following:
            raise LogLost(f"the segment after {file.name} is missing")
        return self._first_index(following[0])

    def _next_line(self) -> bytes:
        raw = self._stream.readline() if self._stream is not None else b""
        if not raw.endswith(b"\n"):
            name = self._file.name if self._file is not None else "the log"
            lost = f"{name} ends before line {self.n}"
            self.close()
            raise LogLost(lost)
        return raw[:-1]

    @staticmethod
    def _first_index(file: SegmentFile) -> int:
        with file.open() as stream:
            raw, whole = next(raw_lines(stream), (b"", False))
        try:
            line = parse_line(raw, FEATURES) if whole else None
        except (FormatError, NewerVersion) as error:
            raise LogLost(f"{file.name}: its first line is damaged: {error}") from None
        if not isinstance(line, SegmentLine):
            raise LogLost(f"{file.name} does not begin with a segment's line")
        return line.n
