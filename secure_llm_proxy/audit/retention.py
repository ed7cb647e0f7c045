"""Retiring segments that are older than they must be kept (AUDIT_RETENTION_DAYS), oldest first, whole ones only.

In three steps, each durable before the next: a `segment.retired` record in the log, a line in `retired.jsonl`, the removal
of the file. Killed between any two of them, the next look goes on where that one stopped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from secure_llm_proxy.audit.backup import Backup
from secure_llm_proxy.audit.durable_files import sync_directory
from secure_llm_proxy.audit.format import (
    NO_HASH,
    FormatError,
    NewerVersion,
    SegmentLine,
    TreeLine,
    leaf,
    parse_line,
)
from secure_llm_proxy.audit.merkle import TreeEdge
from secure_llm_proxy.audit.retirement import RetiredSegment, read_retired
from secure_llm_proxy.audit.segments import RETIRED_NAME, LogDirectories, SegmentFile, raw_lines
from secure_llm_proxy.foundation.clock import Clock, SystemClock
from secure_llm_proxy.settings import AuditSettings

_STARTED = "%Y%m%dT%H%M%SZ%z"
_CHECKPOINT, _ROLL = b'{"k":"cp",', b'{"k":"kr",'
# A wall clock that runs otherwise than time does was set; what is old is then no matter for it.
_CLOCK_STEP_S = 600.0


class NotRetired(Exception):
    """A segment that is old enough stays, and so does all behind it. The text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A segment that is old enough. `ended` is when the next one began; `held_back` says why it stays, None when it goes."""

    segment: SegmentFile
    ended: datetime
    size: int
    held_back: str | None


class Retention:
    """`is_backed_up` None: no backup is made. Used by one thread."""

    def __init__(
        self,
        directories: LogDirectories,
        *,
        days: int,
        is_backed_up: Callable[[SegmentFile], bool] | None,
        clock: Clock | None = None,
    ) -> None:
        self._directories = directories
        self._days = days
        self._is_backed_up = is_backed_up
        self._clock = clock or SystemClock()
        # Segments up to this number were found to be what a later one has signed.
        self._signed_to = 0
        self._looked: tuple[float, datetime] | None = None

    def candidates(self) -> list[Candidate]:
        """Every segment that is old enough, oldest first; behind the first that is held back, all are."""
        found: list[Candidate] = []
        segments = self._directories.segments()
        oldest = self._clock.now() - timedelta(days=self._days)
        # The last is written to, and a start reads the one before it should that one have to be given up.
        for segment, following in pairwise(segments[:-1]):
            ended = _time_of(following)
            if ended > oldest:
                break
            held_back = found[-1].held_back if found else None
            if held_back is None and self._is_backed_up is not None and not self._is_backed_up(segment):
                held_back = "it is not in the backup yet"
            found.append(Candidate(segment, ended, segment.path.stat().st_size, held_back))
        return found

    def clock_stepped(self) -> bool:
        """Whether the wall clock was set since the last look (and never at the first)."""
        now = (self._clock.monotonic_s(), self._clock.now())
        before, self._looked = self._looked, now
        if before is None:
            return False
        return abs((now[1] - before[1]).total_seconds() - (now[0] - before[0])) > _CLOCK_STEP_S

    def retire(self, record: Callable[[RetiredSegment], None]) -> int:
        """Retire what goes, and return how many did. `record` returns when the record is on disk, or raises.

        Raises `NotRetired` and `OSError`; what was retired before that is.
        """
        entries = self._entries()
        count = 0
        for candidate in self.candidates():
            if candidate.held_back is not None:
                break
            segment = candidate.segment
            if segment.number <= len(entries):
                _hold_to_entry(segment, entries[segment.number - 1])
            else:
                entry = self._examine(segment, entries)
                record(entry)
                self._append(entry)
                entries.append(entry)
            segment.path.unlink()
            sync_directory(segment.directory)
            count += 1
        return count

    def _entries(self) -> list[RetiredSegment]:
        self._mend()
        entries, broken = read_retired(self._directories.first)
        if broken is not None:
            raise NotRetired(
                f"Line {len(entries) + 1} of {RETIRED_NAME} is damaged ({broken}), so no segment is retired. Restore it "
                "from a backup."
            )
        return entries

    def _mend(self) -> None:
        """A line that a crash has cut off was never finished: its segment is there still."""
        path = self._directories.first / RETIRED_NAME
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)

    def _append(self, entry: RetiredSegment) -> None:
        path = self._directories.first / RETIRED_NAME
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            line = entry.line() + b"\n"
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(path.parent)

    # --- what a segment leaves behind ---------------------------------------------------------------------------------

    def _examine(self, segment: SegmentFile, entries: list[RetiredSegment]) -> RetiredSegment:
        """What is to be kept of it, once it was found to be what the next segment continues and signs. Raises `NotRetired`."""
        number = len(entries) + 1
        if segment.number != number:
            raise NotRetired(f"Segment {number} is neither there nor retired. Run `manage.py audit verify`.")
        segments = [each for each in self._directories.segments() if each.number >= number]
        tree = _tree_behind(entries)
        found: RetiredSegment | None = None
        for each, following in pairwise(segments):
            entry, tree = _read(each, following, entries if found is None else [], tree)
            found = found or entry
            if found.number <= self._signed_to:
                return found
            following_tree = _second_line(following)
            if following_tree is not None:
                if following_tree.edge != tree.hashes:
                    raise NotRetired(
                        f"{each.name} is not what the segment behind it has signed, and is not retired. "
                        "Run `manage.py audit verify`."
                    )
                self._signed_to = each.number
                return found
        # Of the first release, whose lines no checkpoint covers yet.
        raise NotRetired(f"{segment.name} is not under a checkpoint yet.")


def retention_of(settings: AuditSettings, directories: LogDirectories, backup: Backup | None) -> Retention | None:
    """None where everything is kept for ever."""
    if settings.retention_days is None:
        return None
    return Retention(directories, days=settings.retention_days, is_backed_up=backup.holds if backup else None)


def _tree_behind(entries: list[RetiredSegment]) -> TreeEdge:
    return entries[-1].tree() if entries else TreeEdge()


def _read(
    segment: SegmentFile, following: SegmentFile, entries: list[RetiredSegment], tree: TreeEdge
) -> tuple[RetiredSegment, TreeEdge]:
    """One pass over a segment's lines, up to the one that `following` continues."""
    bound = _first_line(following).previous
    if bound is None:
        raise NotRetired(f"{following.name} does not continue {segment.name}. Run `manage.py audit verify`.")
    first = tree.size
    digest = hashlib.sha256()
    rolls: list[bytes] = []
    checkpoint: bytes | None = None
    edge = tree.hashes
    tail: list[bytes] = []
    h = NO_HASH
    with segment.open() as stream:
        for raw, whole in raw_lines(stream):
            digest.update(raw + b"\n" if whole else raw)
            if tree.size > bound.n or not whole:
                # The tail of a segment that was set aside.
                continue
            h = leaf(raw)
            if raw.startswith(_ROLL):
                rolls.append(raw)
            if raw.startswith(_CHECKPOINT):
                checkpoint, edge, tail = raw, tree.hashes, []
            elif checkpoint is not None:
                tail.append(h)
            tree.append(h)
    if (tree.size, h) != (bound.n + 1, bound.h):
        raise NotRetired(f"{segment.name} is not what the segment behind it continues. Run `manage.py audit verify`.")
    entry = RetiredSegment(
        number=segment.number,
        first=first,
        last=bound.n,
        h=h,
        sha256=digest.digest(),
        checkpoint=checkpoint,
        rolls=tuple(rolls),
        edge=tree.hashes if checkpoint is None else edge,
        tail=tuple(tail),
        p=leaf(entries[-1].line()) if entries else NO_HASH,
    )
    return entry, tree


def _hold_to_entry(segment: SegmentFile, entry: RetiredSegment) -> None:
    digest = hashlib.sha256()
    with segment.open() as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    if digest.digest() != entry.sha256:
        raise NotRetired(
            f"{segment.name} is another file than line {entry.number} of {RETIRED_NAME} says, and is not removed. "
            "Run `manage.py audit verify`."
        )


def _first_line(segment: SegmentFile) -> SegmentLine:
    with segment.open() as stream:
        raw, whole = next(raw_lines(stream), (b"", False))
    try:
        line = parse_line(raw) if whole else None
    except (FormatError, NewerVersion):
        line = None
    if not isinstance(line, SegmentLine):
        raise NotRetired(f"The first line of {segment.name} cannot be read. Run `manage.py audit verify`.")
    return line


def _second_line(segment: SegmentFile) -> TreeLine | None:
    """The tree before a segment; None where it is of the first release."""
    first = _first_line(segment)
    if not first.features:
        return None
    with segment.open() as stream:
        lines = raw_lines(stream)
        next(lines, None)
        raw, whole = next(lines, (b"", False))
    try:
        line = parse_line(raw, first.features) if whole else None
    except FormatError:
        line = None
    if not isinstance(line, TreeLine):
        raise NotRetired(f"The second line of {segment.name} cannot be read. Run `manage.py audit verify`.")
    return line


def _time_of(segment: SegmentFile) -> datetime:
    return datetime.strptime(segment.started + "+0000", _STARTED).astimezone(UTC)
