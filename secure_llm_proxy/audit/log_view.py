"""The log as readers see it: lines whose hash and whose place in the chain of their segment were checked on the way.

A line is given out only when it names the line before it, and the line behind it (where there is one that counts) names
it: what was altered on disk is never shown, and where the chain is broken `ChainBroken` says so (systemd's sealed journal
showed entries that its verifier refused, CVE-2023-31438). What the writer has not synced does not count: it may vanish.

Places that were passed are remembered with the hash that stood there, so that going on from line `n` reads at most
256 KiB before it. Memory is bounded whatever the log's size; one view serves many threads.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from secure_llm_proxy.audit.format import (
    FormatError,
    Line,
    NewerVersion,
    Previous,
    SegmentLine,
    base64_text,
    leaf,
    parse_line,
)
from secure_llm_proxy.audit.segments import LogDirectories, SegmentFile, raw_lines, second_of

_MARK_BYTES = 256 << 10
_SEGMENTS_KNOWN = 4_096
_MARKED_SEGMENTS = 128
_RESUMED = 256
# The wall clock may have jumped while a segment was written; within this it is still found by time.
CLOCK_SLACK_S = 2 * 86_400.0

# Every line but a `seg` line begins so; format.py reads it whole when it is shown.
_PLACE = re.compile(rb'\{"k":"(?!seg")[a-z][a-z0-9]{0,7}","n":(0|[1-9][0-9]{0,18}),')
_P = b',"p":"'
_P_LENGTH = 44


class ChainBroken(Exception):
    """What stands in a segment is not what was written. Nothing of it from line `n` on can be shown."""

    def __init__(self, segment: int, n: int, offset: int, what: str) -> None:
        super().__init__(f"segment {segment}, line {n}, byte {offset}: {what}")
        self.segment = segment
        self.n = n
        self.offset = offset
        self.what = what


@dataclass(frozen=True, slots=True)
class PlacedLine:
    """A line that stands where it should. `size` is without the newline, `h` its leaf hash."""

    segment: KnownSegment
    n: int
    offset: int
    raw: bytes
    h: bytes

    def parsed(self) -> Line:
        """The line as the one parser of the format reads it. Raises `ChainBroken`."""
        try:
            return parse_line(self.raw, self.segment.features)
        except (FormatError, NewerVersion) as error:
            raise ChainBroken(self.segment.file.number, self.n, self.offset, str(error)) from None


@dataclass(frozen=True, slots=True)
class Durable:
    """How many lines of the log are on disk, and the hash of the last of them."""

    lines: int
    h: bytes


@dataclass(frozen=True, slots=True)
class KnownSegment:
    """A segment by its first line; `previous` says where the one before it ended."""

    file: SegmentFile
    first: int
    features: tuple[str, ...]
    previous: Previous | None
    inode: int


@dataclass(frozen=True, slots=True)
class _Last:
    n: int
    h: bytes


@dataclass(frozen=True, slots=True)
class _Mark:
    """Line `n` begins at `offset`; `h` is the hash of the line before it."""

    n: int
    offset: int
    h: bytes


@dataclass(slots=True)
class _Marks:
    inode: int
    places: list[_Mark] = field(default_factory=list)


class LogView:
    """`durable` tells what is on disk; None when nobody says, and then whole lines that continue each other count."""

    def __init__(self, directory: Path, durable: Callable[[], Durable | None]) -> None:
        self._directories = LogDirectories(directory, second_of(directory))
        self._durable = durable
        self._lock = threading.Lock()
        self._known: OrderedDict[int, KnownSegment] = OrderedDict()
        self._marks: OrderedDict[int, _Marks] = OrderedDict()
        self._resumed: OrderedDict[tuple[int, int], _Mark] = OrderedDict()

    def durable(self) -> Durable | None:
        return self._durable()

    def files(self) -> list[SegmentFile]:
        """The segments, oldest first, each once."""
        return list({file.number: file for file in self._directories.segments()}.values())

    # --- finding the place --------------------------------------------------------------------------------------------

    def segment(self, file: SegmentFile) -> KnownSegment | None:
        """What the first line of `file` says; None when it has gone. Raises `ChainBroken` when it can't be read."""
        try:
            with file.open() as stream:
                inode = _inode_of(stream.fileno())
                with self._lock:
                    known = self._known.get(file.number)
                    if known is not None and known.inode == inode:
                        self._known.move_to_end(file.number)
                        return known
                raw, whole = next(raw_lines(stream), (b"", False))
        except FileNotFoundError:
            return None
        try:
            line = parse_line(raw) if whole else None
        except (FormatError, NewerVersion) as error:
            raise ChainBroken(file.number, -1, 0, f"the first line: {error}") from None
        if not isinstance(line, SegmentLine) or line.number != file.number:
            raise ChainBroken(file.number, -1, 0, "the first line is not that of this segment")
        known = KnownSegment(file, line.n, line.features, line.previous, inode)
        with self._lock:
            self._known[file.number] = known
            if len(self._known) > _SEGMENTS_KNOWN:
                self._known.popitem(last=False)
        return known

    def position_of(self, files: list[SegmentFile], n: int) -> int:
        """Index in `files` of the segment that holds line `n`, or where to go on when none does."""
        low, high = 0, len(files)
        while low < high:
            middle = (low + high) // 2
            try:
                known = self.segment(files[middle])
            except ChainBroken:
                known = None
            if known is None:
                # Unreadable or gone: it is not worth a guess, begin before it.
                return self._position_by_steps(files, n)
            if known.first <= n:
                low = middle + 1
            else:
                high = middle
        return max(0, low - 1)

    def _position_by_steps(self, files: list[SegmentFile], n: int) -> int:
        found = 0
        for position, file in enumerate(files):
            try:
                known = self.segment(file)
            except ChainBroken:
                continue
            if known is not None and known.first <= n:
                found = position
        return found

    # --- walking ------------------------------------------------------------------------------------------------------

    def walk(self, files: list[SegmentFile], position: int, start: int = 0) -> Iterator[PlacedLine]:
        """The durable lines of segment `files[position]` from line `start` on. Raises `ChainBroken`; a segment that was
        retired meanwhile has no lines.
        """
        reached = start
        try:
            for line in self._walk(files, position, start):
                yield line
                reached = line.n + 1
            return
        except ChainBroken:
            # What is remembered may be of a segment that was given up before it held a record: the next one has its number, its
            # first index and, with luck, its inode. Only what breaks from the first line on is broken.
            self._forget(files[position])
        yield from self._walk(files, position, reached)

    def _walk(self, files: list[SegmentFile], position: int, start: int) -> Iterator[PlacedLine]:
        known = self.segment(files[position])
        if known is None:
            return
        last = self._last_of(files, position)
        try:
            stream = files[position].open()
        except FileNotFoundError:
            return
        with stream:
            if _inode_of(stream.fileno()) != known.inode:
                raise ChainBroken(known.file.number, start, 0, "the segment was put in place of another")
            mark = self._mark_before(known, start)
            n, offset, h = mark.n, mark.offset, mark.h
            marked = offset
            stream.seek(offset)
            held: PlacedLine | None = None
            for raw, whole in raw_lines(stream):
                if not whole or (last is not None and n > last.n):
                    break
                if n != known.first or offset:
                    try:
                        _check_place(known.file.number, n, offset, raw, h)
                    except ChainBroken:
                        if last is None and (n > mark.n or not mark.offset):
                            # Nothing says that this is a line of the log at all: a torn tail, or a disk's last note.
                            break
                        raise
                if held is not None:
                    yield held
                if offset - marked >= _MARK_BYTES:
                    self._remember(known, _Mark(n, offset, h))
                    marked = offset
                h = leaf(raw)
                held = PlacedLine(known, n, offset, raw, h) if n >= start else None
                offset += len(raw) + 1
                n += 1
            if last is not None and n <= last.n and self._is_missing(files, position, known):
                raise ChainBroken(known.file.number, n, offset, "lines are missing at the end of the segment")
            if held is not None and last is not None and held.n == last.n and held.h != last.h:
                raise ChainBroken(known.file.number, held.n, held.offset, "the line is not the one that was written")
            if held is not None:
                yield held

    def resume_behind(self, line: PlacedLine) -> None:
        """Remember where the line behind `line` begins: its reader will ask for it next."""
        mark = _Mark(line.n + 1, line.offset + len(line.raw) + 1, line.h)
        with self._lock:
            self._resumed[line.segment.inode, mark.n] = mark
            self._resumed.move_to_end((line.segment.inode, mark.n))
            if len(self._resumed) > _RESUMED:
                self._resumed.popitem(last=False)

    def _forget(self, file: SegmentFile) -> None:
        with self._lock:
            known = self._known.pop(file.number, None)
            marks = self._marks.pop(file.number, None)
            inodes = {each.inode for each in (known, marks) if each is not None}
            for key in [key for key in self._resumed if key[0] in inodes]:
                del self._resumed[key]

    def _last_of(self, files: list[SegmentFile], position: int) -> _Last | None:
        """The last line that counts in a segment; None when nobody says."""
        if position + 1 < len(files):
            try:
                following = self.segment(files[position + 1])
            except ChainBroken:
                following = None
            if following is not None and following.previous is not None:
                return _Last(following.previous.n, following.previous.h)
        durable = self._durable()
        return None if durable is None else _Last(durable.lines - 1, durable.h)

    def _is_missing(self, files: list[SegmentFile], position: int, known: KnownSegment) -> bool:
        """Whether the lines that the walk did not find must be in this file: nothing newer can hold them."""
        if position + 1 < len(files):
            return True
        return all(file.number <= known.file.number for file in self.files())

    def _mark_before(self, known: KnownSegment, start: int) -> _Mark:
        best = _Mark(known.first, 0, b"")
        with self._lock:
            exact = self._resumed.get((known.inode, start))
            if exact is not None:
                return exact
            marks = self._marks.get(known.file.number)
            if marks is not None and marks.inode == known.inode:
                self._marks.move_to_end(known.file.number)
                for mark in marks.places:
                    if mark.n > start:
                        break
                    best = mark
        return best

    def _remember(self, known: KnownSegment, mark: _Mark) -> None:
        with self._lock:
            marks = self._marks.get(known.file.number)
            if marks is None or marks.inode != known.inode:
                marks = self._marks[known.file.number] = _Marks(known.inode)
                if len(self._marks) > _MARKED_SEGMENTS:
                    self._marks.popitem(last=False)
            if not marks.places or mark.offset - marks.places[-1].offset >= _MARK_BYTES:
                marks.places.append(mark)


def started_s(file: SegmentFile) -> float:
    """Unix time of the segment's first line, as its name has it."""
    return datetime.strptime(file.started, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _check_place(segment: int, n: int, offset: int, raw: bytes, h: bytes) -> None:
    """Raise `ChainBroken` unless this is line `n` and names the line before it, whose hash is `h`."""
    place = _PLACE.match(raw)
    if place is None or int(place[1]) != n:
        raise ChainBroken(segment, n, offset, "this is not the line that belongs here")
    # The last one: `p` stands behind everything that a worker or person chose, and text in JSON holds no bare quote.
    at = raw.rfind(_P) + len(_P)
    if raw[at : at + _P_LENGTH + 1] != base64_text(h).encode() + b'"':
        raise ChainBroken(segment, n, offset, "the line does not continue the one before it")


def _inode_of(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino
