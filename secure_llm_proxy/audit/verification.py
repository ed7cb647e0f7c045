"""Offline verification: does this directory hold one whole, unaltered log? Needs no network and no secret.

Every line is read once, in order; memory does not grow with the log. docs/audit-format.md lists the checks, and says what
they cannot show: with no checkpoint kept elsewhere, nobody can prove that lines are missing at the very end.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from secure_llm_proxy.audit.carry import Carry
from secure_llm_proxy.audit.format import (
    ALGORITHMS_SEALED,
    BY_OWNER,
    NO_HASH,
    CarriedState,
    CheckpointLine,
    EndLine,
    FormatError,
    KeyLine,
    KeyRollLine,
    Line,
    NewerLine,
    NewerVersion,
    Previous,
    RecordLine,
    SegmentLine,
    TreeLine,
    leaf,
    parse_line,
)
from secure_llm_proxy.audit.genesis import Genesis, GenesisBroken, read_genesis
from secure_llm_proxy.audit.merkle import TreeEdge
from secure_llm_proxy.audit.reading import BodyLost, BodyOpener
from secure_llm_proxy.audit.retirement import RetiredPrefix, was_retired
from secure_llm_proxy.audit.seal import SealBroken
from secure_llm_proxy.audit.segments import (
    GENESIS_NAME,
    LOCK_NAME,
    RETIRED_NAME,
    LogDirectories,
    SegmentFile,
    SegmentState,
    find_log,
    raw_lines,
    started_of,
)
from secure_llm_proxy.audit.signed_tree import SignedTree
from secure_llm_proxy.foundation.regular_files import NotAFileError, open_file
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus

FINDINGS_MAX = 1_000
_PROGRESS_LINES = 10_000
_ORPHANS_KEPT = 4_096
# Checkpoints come at least every 60 s while a writer runs.
_SILENCE_S = 90.0
_TREE_LINE = 2


class Outcome(StrEnum):
    """The worst finding decides, in this order: tampered, undecidable, incomplete, ok. A note decides nothing."""

    OK = "ok"
    TAMPERED = "tampered"
    INCOMPLETE = "incomplete"
    UNDECIDABLE = "undecidable"


class Severity(StrEnum):
    TAMPERED = "tampered"
    UNDECIDABLE = "undecidable"
    INCOMPLETE = "incomplete"
    NOTE = "note"


_EXIT_CODES = {Outcome.OK: 0, Outcome.TAMPERED: 1, Outcome.INCOMPLETE: 3, Outcome.UNDECIDABLE: 4}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing seen. `line` counts from 1 within `file`, 0 when it concerns the file or directory as such."""

    severity: Severity
    file: str
    line: int
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{self.severity}: {place}: {self.what}"


@dataclass(frozen=True, slots=True)
class VerifiedUpTo:
    """Where a verification found nothing altered: behind line `n` (hash `h`), the last of segment `number`. Another one may begin
    here instead of at the log's first line. Whoever keeps it must keep it where the log's writer cannot change it.

    `edge` is that of the tree over these lines, `epoch_public_key` the signing key in force.
    """

    log: str
    number: int
    n: int
    h: bytes
    edge: tuple[bytes, ...]
    epoch_public_key: bytes
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What was checked, and every finding (at most 1,000 kept; `findings_total` counts all).

    `verified` is the last end of a segment up to which nothing was altered; None when there is none.
    """

    outcome: Outcome
    directory: Path
    log: str | None
    owner_public_key: str | None
    segments: int
    lines: int
    records: int
    bodies_opened: int
    open_exchanges: int
    checkpoints: int
    key_rolls: int
    anchors_met: int
    first_time: str | None
    last_time: str | None
    findings: tuple[Finding, ...]
    findings_total: int
    verified: VerifiedUpTo | None

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.outcome]


def verify(
    directory: Path,
    *,
    genesis_public_key: str | None,
    progress: Callable[[int, int], None] | None = None,
    kek: str | None = None,
    opener: BodyOpener | None = None,
    host_id: str = "",
    anchors: Iterable[str] = (),
    also: Path | None = None,
    behind: VerifiedUpTo | None = None,
) -> VerificationReport:
    """Check the log in `directory` (a host's directory, or AUDIT_DIR with one host in it), and in its second one, `also`.

    `genesis_public_key` is the owner's, from where the operator keeps it; without it the log is only shown to be
    consistent with itself. `progress` is called with the bytes and lines checked so far. With `opener` every
    body is opened too; with `kek`, those that no person's key has sealed. `anchors` are checkpoint notes that were kept
    elsewhere (`signed_tree.read_anchors`): the log must begin with what they say. Raises `OperatorError` when there is no log,
    or `kek` is no key.
    """
    opener = opener or (BodyOpener(kek) if kek else None)
    directories, notes = find_log(directory, host_id, also), list(anchors)
    while True:
        with contextlib.suppress(_RetiredMeanwhile):
            return _Verification(directories, genesis_public_key, progress, opener, notes, behind).run()


class _RetiredMeanwhile(Exception):
    """A segment went, as it may, before it was read: the log begins elsewhere now."""


@dataclass(slots=True)
class _Place:
    """Where the chain stands: the last line's index and hash, and the segment that it stood in."""

    number: int = 0
    n: int = -1
    h: bytes = NO_HASH
    closed: bool = True


@dataclass(slots=True)
class _Segment:
    """What is known of the segment being read."""

    file: SegmentFile
    first: SegmentLine | None = None
    lines: int = 0
    monotonic: int = 0
    signed_at: str | None = None
    closing: CheckpointLine | None = None
    kids: set[str] = field(default_factory=set)
    end: EndLine | None = None
    broken: bool = False

    @property
    def is_closed(self) -> bool:
        """Its last line was read: the `end`, or the checkpoint over it."""
        return self.end is not None and (self.closing is not None or not self.is_signed)

    @property
    def is_signed(self) -> bool:
        return self.first is not None and bool(self.first.features)


@dataclass(slots=True)
class _Lost:
    """A key that is not here: where it was missed first, and for how many bodies."""

    file: str
    line: int
    erased: bool
    bodies: int = 0


class _Verification:
    def __init__(
        self,
        directories: LogDirectories,
        owner: str | None,
        progress: Callable[[int, int], None] | None,
        opener: BodyOpener | None,
        anchors: Iterable[str],
        verified_before: VerifiedUpTo | None,
    ) -> None:
        self._directories = directories
        self._directory = directories.first
        self._owner = owner
        self._progress = progress
        self._opener = opener
        # By kid; and the kids of which a record says that they were erased.
        self._lost: dict[str, _Lost] = {}
        self._erased: set[str] = set()
        self._genesis: Genesis | None = None
        self._anchors = list(anchors)
        self._signed = SignedTree(None, ())
        self._retired = RetiredPrefix(None)
        # The last retired segment that is not there any more; 0: none is.
        self._retired_up_to = 0
        # The last segment that is not read, retired or verified before; 0: the log is read from its first line.
        self._behind = 0
        self._verified_before = verified_before
        self._verified = verified_before
        self._findings: list[Finding] = []
        self._counts = dict.fromkeys(Severity, 0)
        self._place = _Place()
        self._carry = Carry()
        self._features: tuple[str, ...] = ()
        # Parts seen of bodies whose record has not come yet: record id → (worker, how many, whether the last was there).
        self._parts: dict[str, tuple[str, int, bool]] = {}
        # Exchanges that the writer closed for a worker that then did come back to close them itself.
        self._orphaned: dict[str, None] = {}
        self._lines = self._bytes = self._records = self._opened = 0
        self._first_time: str | None = None
        self._last_time: str | None = None
        self._stopped = False
        self._following_is_newer = False

    def run(self) -> VerificationReport:
        self._check_genesis()
        self._signed = SignedTree(self._genesis, self._anchors)
        if self._signed.foreign_anchors:
            what = f"{self._signed.foreign_anchors} of the anchors are another log's"
            self._find(Severity.NOTE, GENESIS_NAME, 0, what)
        segments = self._directories.segments()
        # After the segments were listed: of one that goes meanwhile there is a line already.
        self._retired = RetiredPrefix(self._directory)
        for name in self._directories.strangers():
            self._find(Severity.NOTE, name, 0, "is no file of the log")
        for left in self._directories.given_up():
            self._find(
                Severity.NOTE, left.name, 0, "was begun and given up before it took a record; it is no part of the log"
            )
        if not segments and self._genesis and not self._retired.entries:
            self._find(Severity.NOTE, GENESIS_NAME, 0, "the log holds no segment yet")
        if not self._begins_behind_verified(segments):
            self._verified = None
            self._begin_behind_retired(segments)
        for position, file in enumerate(segments):
            if self._stopped:
                break
            following = segments[position + 1] if position + 1 < len(segments) else None
            if file.number <= self._behind:
                continue
            self._check_segment(file, following)
            if following is not None:
                self._keep_verified()
        self._check_what_is_left(segments)
        return self._report(len(segments))

    # --- root of trust ------------------------------------------------------------------------------------------------

    def _check_genesis(self) -> None:
        try:
            self._genesis = read_genesis(self._directory)
        except FileNotFoundError:
            self._find(Severity.UNDECIDABLE, GENESIS_NAME, 0, "is missing, so nothing says whose log this is")
            return
        except NotAFileError as error:
            self._find(Severity.TAMPERED, GENESIS_NAME, 0, f"says nothing: {error.strerror}")
            return
        except GenesisBroken as error:
            self._find(Severity.TAMPERED, GENESIS_NAME, 0, str(error))
            return
        if self._owner is None:
            self._find(
                Severity.NOTE,
                GENESIS_NAME,
                0,
                "no owner key was given: this shows only that the log agrees with itself",
            )
        elif self._owner.strip() != self._genesis.owner_public_key:
            self._find(Severity.TAMPERED, GENESIS_NAME, 0, "is signed by another owner than the one given")

    # --- what was verified before -------------------------------------------------------------------------------------

    def _begins_behind_verified(self, segments: list[SegmentFile]) -> bool:
        """True when what is left to be read follows `verified_before`, of this log, and stands right behind it."""
        before = self._verified_before
        if before is None or self._genesis is None or before.log != self._genesis.log:
            return False
        if not any(file.number == before.number + 1 for file in segments):
            return False
        self._signed.tree = TreeEdge(before.n + 1, before.edge)
        self._signed.epoch_public_key = before.epoch_public_key
        for what in self._signed.pass_over(before.n + 1):
            self._find(Severity.TAMPERED, GENESIS_NAME, 0, what)
        self._place = _Place(number=before.number, n=before.n, h=before.h)
        self._features = before.features
        self._behind = before.number
        what = f"{before.number} segments with {before.n + 1} lines were verified before and not read again"
        self._find(Severity.NOTE, GENESIS_NAME, 0, what)
        return True

    def _keep_verified(self) -> None:
        """The segment just read was followed by another: its end stands."""
        altered = self._counts[Severity.TAMPERED] or self._counts[Severity.UNDECIDABLE]
        key = self._signed.epoch_public_key
        if altered or self._stopped or self._genesis is None or key is None:
            return
        place, tree = self._place, self._signed.tree
        if tree.size == place.n + 1:
            self._verified = VerifiedUpTo(
                self._genesis.log, place.number, place.n, place.h, tree.hashes, key, self._features
            )

    # --- what is retired ----------------------------------------------------------------------------------------------

    def _begin_behind_retired(self, segments: list[SegmentFile]) -> None:
        retired = self._retired
        if retired.broken is not None:
            self._find(Severity.TAMPERED, RETIRED_NAME, len(retired.entries) + 1, retired.broken)
        gone = retired.before(segments[0].number) if segments else retired.entries
        if not gone:
            return
        for line, what in retired.follow(self._signed, gone):
            self._find(Severity.TAMPERED, RETIRED_NAME, line, what)
        last = gone[-1]
        self._place = _Place(number=last.number, n=last.last, h=last.h)
        self._retired_up_to = self._behind = last.number
        self._find(Severity.NOTE, RETIRED_NAME, 0, f"{last.number} segments with {last.last + 1} lines are retired")
        if self._signed.anchors_passed:
            what = f"{self._signed.anchors_passed} anchors lie inside retired segments, and there is nothing to hold to them"
            self._find(Severity.NOTE, RETIRED_NAME, 0, what)
        if not segments:
            self._find(Severity.INCOMPLETE, RETIRED_NAME, len(gone), "nothing is left of the log behind these segments")

    def _check_still_there(self, file: SegmentFile) -> None:
        """A segment that is present and listed as retired: its removal is under way, or this is a copy."""
        if file.number > len(self._retired.entries):
            return
        entry = self._retired.entries[file.number - 1]
        if (entry.last, entry.h) != (self._place.n, self._place.h):
            self._find(Severity.TAMPERED, RETIRED_NAME, file.number, f"{file.name} is another segment than was retired")

    # --- segments -----------------------------------------------------------------------------------------------------

    def _check_segment(self, file: SegmentFile, following: SegmentFile | None) -> None:
        segment = _Segment(file)
        self._check_number(file)
        bound = _previous_in(following)
        self._following_is_newer = following is not None and bound is None and _is_newer(following)
        self._place.number = file.number
        try:
            stream = file.open()
        except NotAFileError as error:
            # No crash leaves one behind.
            self._find(Severity.TAMPERED, file.name, 0, f"cannot be read: {error.strerror}")
            self._stopped = True
            return
        except OSError as error:
            if was_retired(self._directories.first, file):
                raise _RetiredMeanwhile from None
            self._find(Severity.UNDECIDABLE, file.name, 0, f"cannot be read: {error.strerror}")
            self._stopped = True
            return
        with stream:
            rest = self._check_lines(segment, stream, bound)
            if self._stopped:
                return
            self._check_tail(segment, stream, rest, bound, is_last=following is None)
        self._place.closed = segment.is_closed
        self._check_still_there(file)
        if bound is not None:
            if bound.number != file.number:
                self._tampered(segment, 0, "the next segment names another one as the one before it")
            elif (bound.n, bound.h) != (self._place.n, self._place.h):
                self._tampered(segment, segment.lines, "the next segment continues another line than the last one here")

    def _check_number(self, file: SegmentFile) -> None:
        expected = self._place.number + 1
        if file.number == self._place.number:
            self._find(Severity.TAMPERED, file.name, 0, "there are two segments of this number")
        elif file.number != expected:
            self._find(Severity.TAMPERED, file.name, 0, f"segment {expected} is missing before this one")

    def _check_lines(self, segment: _Segment, stream: BinaryIO, bound: Previous | None) -> bytes:
        """Check lines until the segment's last one; return what was read beyond it."""
        for raw, whole in raw_lines(stream):
            if not whole:
                return raw
            if segment.is_closed:
                return raw + b"\n"
            if bound is not None and segment.first is not None and self._place.n >= bound.n:
                return raw + b"\n"
            try:
                line = parse_line(raw, segment.first.features if segment.first else ())
            except NewerVersion as error:
                if bound is not None:
                    # Versions never go back within a log: what reads as a later one here was altered.
                    self._tampered(segment, 1, f"{error}, and a segment of an earlier one follows")
                else:
                    self._find(Severity.UNDECIDABLE, segment.file.name, 1, str(error))
                self._stopped = True
                return b""
            except FormatError as error:
                if bound is None and segment.file.state is not SegmentState.CLOSED:
                    # Behind the valid lines of a segment that nothing continues: its tail.
                    return raw + b"\n"
                segment.lines += 1
                self._tampered(segment, segment.lines, str(error))
                self._place.n += 1
                self._place.h = leaf(raw)
                self._take(segment)
                continue
            if segment.end is not None and not isinstance(line, CheckpointLine):
                # Behind the end stands its checkpoint and nothing else.
                return raw + b"\n"
            if isinstance(line, EndLine) and line.reason == "fsync-error":
                if bound is None and segment.file.state is not SegmentState.CLOSED:
                    return raw + b"\n"
                self._tampered(segment, segment.lines + 1, "the note of a failed disk stands inside the log")
            segment.lines += 1
            self._check_line(segment, line, raw)
        return b""

    def _check_line(self, segment: _Segment, line: Line, raw: bytes) -> None:
        number, place = segment.lines, self._place
        if isinstance(line, SegmentLine):
            if number == 1:
                self._check_first_line(segment, line)
            else:
                self._tampered(segment, number, "a segment line stands inside a segment")
        else:
            if number == 1:
                self._tampered(segment, number, "the first line is no segment line")
            if line.p != place.h:
                self._tampered(segment, number, "the line does not continue the one before it (`p`)")
        if line.n != place.n + 1:
            self._tampered(segment, number, f"index {line.n} where {place.n + 1} must stand")
        place.n, place.h = line.n, leaf(raw)
        if isinstance(line, RecordLine):
            self._check_record(segment, line)
        elif isinstance(line, CheckpointLine):
            self._check_checkpoint(segment, line)
        elif isinstance(line, KeyLine):
            self._check_key(segment, line)
        elif isinstance(line, TreeLine):
            self._say(segment, self._signed.at_tree(line, segment.first, number))
        elif isinstance(line, KeyRollLine):
            self._check_roll(segment, line)
        elif isinstance(line, EndLine):
            segment.end = line
            if line.lines != number:
                self._tampered(segment, number, f"the end line counts {line.lines} lines, there are {number}")
        elif isinstance(line, NewerLine):
            self._find(Severity.UNDECIDABLE, segment.file.name, number, f"lines of kind `{line.kind}` are unknown here")
        self._take(segment)
        if number == _TREE_LINE and segment.is_signed and not isinstance(line, TreeLine):
            self._tampered(segment, number, "the second line of the segment is no tree line")
        if not isinstance(line, NewerLine):
            self._first_time = self._first_time or line.t
            self._last_time = line.t
        self._lines += 1
        self._bytes += len(raw) + 1
        if self._progress and self._lines % _PROGRESS_LINES == 0:
            self._progress(self._bytes, self._lines)

    def _take(self, segment: _Segment) -> None:
        """The line just read becomes part of the tree."""
        said = self._signed.take(self._place.h)
        if said:
            self._say(segment, said)

    def _say(self, segment: _Segment, what: Iterable[str]) -> None:
        for each in what:
            self._tampered(segment, segment.lines, each)

    def _check_checkpoint(self, segment: _Segment, line: CheckpointLine) -> None:
        self._say(segment, self._signed.at_checkpoint(line))
        if segment.end is not None:
            segment.closing = line
        if segment.signed_at is not None and _seconds_between(segment.signed_at, line.t) > _SILENCE_S:
            what = f"nothing was signed between {segment.signed_at} and {line.t}: the host stood still, or its clock jumped"
            self._find(Severity.NOTE, segment.file.name, segment.lines, what)
        segment.signed_at = line.t

    def _check_roll(self, segment: _Segment, line: KeyRollLine) -> None:
        self._say(segment, self._signed.at_roll(line))
        if line.by == BY_OWNER:
            what = "the owner put a new epoch key in force: the one before was lost, as after a restore"
            self._find(Severity.NOTE, segment.file.name, segment.lines, what)

    def _check_first_line(self, segment: _Segment, line: SegmentLine) -> None:
        place, file, previous = self._place, segment.file, line.previous
        segment.first = line
        if self._opener is not None:
            self._opener.enter(line.kek_id)
        if line.number != file.number:
            self._tampered(segment, 1, "the number in the first line is not the one in the file's name")
        if started_of(line.t) != file.started:
            self._tampered(segment, 1, "the time in the first line is not the one in the file's name")
        if previous is None:
            if place.n >= 0 or line.number != 1:
                self._tampered(segment, 1, "it does not say which segment it continues")
        elif (previous.n, previous.h) != (place.n, place.h) or previous.number != line.number - 1:
            self._tampered(segment, 1, "it does not continue the segment before it (`prev`)")
        if not set(self._features) <= set(line.features):
            self._tampered(segment, 1, "it has fewer features than the segment before it")
        self._features = line.features
        if self._genesis and line.log != self._genesis.log:
            self._tampered(segment, 1, "it belongs to another log")
        self._say(segment, self._signed.at_segment(line))
        self._check_carry(segment, line.carry)

    def _check_carry(self, segment: _Segment, carried: CarriedState) -> None:
        if self._behind and segment.file.number == self._behind + 1:
            # What the retired lines left open nobody can say any more; the carry is signed like every line.
            pass
        elif not segment.broken and not self._counts[Severity.TAMPERED]:
            # After a broken line the sum of what came before is unknown; one finding is enough.
            if carried.open != self._carry.open:
                self._tampered(segment, 1, "the open exchanges that it carries are not those of the lines before it")
            if any(self._carry.seen.get(worker) != counter for worker, counter in carried.seen.items()):
                self._tampered(segment, 1, "the counters that it carries are not those of the lines before it")
        self._carry = Carry(carried)
        self._parts = {key: value for key, value in self._parts.items() if value[0] in self._carry.seen}

    def _check_tail(
        self, segment: _Segment, stream: BinaryIO, rest: bytes, bound: Previous | None, *, is_last: bool
    ) -> None:
        digest, size, has_line = hashlib.sha256(rest), len(rest), b"\n" in rest
        while piece := stream.read(1 << 20):
            digest.update(piece)
            size += len(piece)
            has_line = has_line or b"\n" in piece
        file, torn = segment.file, bound.torn if bound else None
        if file.state is SegmentState.CLOSED:
            if segment.end is None:
                severity = Severity.INCOMPLETE if is_last else Severity.TAMPERED
                self._find(severity, file.name, segment.lines, "the closed segment has no end line: its end is missing")
            elif not segment.is_closed:
                severity = Severity.INCOMPLETE if is_last else Severity.TAMPERED
                self._find(severity, file.name, segment.lines, "the closed segment lacks the checkpoint over its end")
            if size:
                # Cut off in the middle of a line, or added to: no cut leaves a whole line that does not belong there.
                cut = is_last and not segment.is_closed and not has_line
                severity = Severity.INCOMPLETE if cut else Severity.TAMPERED
                self._find(severity, file.name, segment.lines + 1, f"{size} bytes follow the last line")
            if torn is not None:
                self._tampered(segment, segment.lines, "the next segment declares a tail behind a closed one")
        elif bound is not None:
            if torn is None:
                if size:
                    self._tampered(
                        segment, segment.lines + 1, f"{size} bytes follow the last line, and none were declared"
                    )
            elif not torn.synced:
                self._find(
                    Severity.NOTE,
                    file.name,
                    segment.lines,
                    "the disk failed here; what was not synced is not part of the log",
                )
            elif (torn.size, torn.sha256) != (size, digest.digest()):
                self._tampered(segment, segment.lines + 1, "the torn tail is not the one that was declared")
            elif has_line:
                self._find(
                    Severity.INCOMPLETE,
                    file.name,
                    segment.lines + 1,
                    f"a tail of {size} bytes with whole lines was set aside",
                )
            else:
                self._find(Severity.NOTE, file.name, segment.lines + 1, f"a torn tail of {size} bytes is declared")
            if file.state is SegmentState.OPEN:
                self._find(Severity.NOTE, file.name, 0, "still bears the name of an open segment")
        elif not is_last and self._following_is_newer:
            self._find(Severity.UNDECIDABLE, file.name, segment.lines, "a later version says where this segment ends")
        elif not is_last:
            self._tampered(
                segment, segment.lines, "the segment was never closed, and the next one does not continue it"
            )
        elif size and _is_written_now(self._directory):
            self._find(Severity.NOTE, file.name, segment.lines + 1, "a line is being written at this moment")
        elif size:
            failed = b'"reason":"fsync-error"' in rest
            self._find(
                Severity.NOTE if failed else Severity.INCOMPLETE,
                file.name,
                segment.lines + 1,
                f"the log ends in a torn tail of {size} bytes",
            )
        elif segment.first is None:
            self._find(Severity.INCOMPLETE, file.name, 0, "the segment is empty")

    # --- lines --------------------------------------------------------------------------------------------------------

    def _check_record(self, segment: _Segment, line: RecordLine) -> None:
        self._records += 1
        number = segment.lines
        if line.m < segment.monotonic:
            self._tampered(segment, number, "the writer's clock runs backwards within a segment (`m`)")
        segment.monotonic = line.m
        if segment.first is not None:
            sealed = segment.first.algorithms == ALGORITHMS_SEALED
            if sealed != (line.kid is not None):
                self._tampered(segment, number, "the body is not sealed as the segment says")
            elif line.kid is not None and line.kid not in segment.kids:
                self._tampered(segment, number, "the data key was not announced")
            elif self._opener is not None:
                self._open_body(segment, line, self._opener)
        if line.type == AuditType.SUBJECT_ERASED and self._opener is not None:
            self._erased.update(str(line.clear.get("kids")).split(","))
        if line.counter <= self._carry.seen.get(line.worker, 0):
            self._tampered(segment, number, "the worker's counter does not grow: the record stands here twice")
        if line.type == AuditType.SEGMENT_RETIRED:
            self._say(segment, self._retired.at_record(line))
        self._check_exchange(segment, line)
        self._check_parts(segment, line)
        self._carry.apply_line(line)

    def _check_exchange(self, segment: _Segment, line: RecordLine) -> None:
        if line.type == AuditType.LLM_START:
            if line.id in self._carry.open:
                self._tampered(segment, segment.lines, "an exchange with this id is open already")
        elif line.type == AuditType.LLM_END:
            start = str(line.clear.get("sid"))
            opened = self._carry.open.get(start)
            if opened is None:
                what = (
                    "an exchange that was taken for orphaned ended after all"
                    if start in self._orphaned
                    else ("the end of an exchange that is not open")
                )
                self._find(Severity.NOTE, segment.file.name, segment.lines, what)
            elif opened[0] != line.exchange_id:
                self._tampered(segment, segment.lines, "the end names another exchange than its start")
            elif line.clear.get("st") == EndStatus.ORPHAN:
                self._orphaned[start] = None
                if len(self._orphaned) > _ORPHANS_KEPT:
                    del self._orphaned[next(iter(self._orphaned))]

    def _check_parts(self, segment: _Segment, line: RecordLine) -> None:
        whole_of = line.clear.get("pt_of")
        if line.type == AuditType.LLM_PART and isinstance(whole_of, str):
            seq = line.clear.get("seq")
            # The first parts may have gone with a retired segment.
            begun = seq if self._behind and isinstance(seq, int) else 0
            _, count, last = self._parts.get(whole_of, (line.worker, begun, False))
            if seq != count or last:
                self._find(Severity.INCOMPLETE, segment.file.name, segment.lines, "a part of a body is not in order")
            self._parts[whole_of] = (line.worker, count + 1, line.clear.get("last") is True)
        elif (expected := line.clear.get("parts")) is not None:
            _, count, last = self._parts.pop(line.id, (line.worker, 0, False))
            if self._behind and not count:
                self._find(
                    Severity.NOTE, segment.file.name, segment.lines, "this record's body lies in retired segments"
                )
            elif count != expected or not last:
                self._find(
                    Severity.INCOMPLETE, segment.file.name, segment.lines, "parts of this record's body are missing"
                )

    def _open_body(self, segment: _Segment, line: RecordLine, opener: BodyOpener) -> None:
        try:
            opener.open(line)
        except BodyLost as lost:
            missed = self._lost.setdefault(line.kid or "", _Lost(segment.file.name, segment.lines, erased=lost.erased))
            missed.bodies += 1
        except SealBroken:
            self._tampered(
                segment, segment.lines, "the body does not open: it is not what was sealed, or the key is another"
            )
        else:
            self._opened += 1

    def _check_key(self, segment: _Segment, line: KeyLine) -> None:
        if line.kid in segment.kids:
            self._tampered(segment, segment.lines, "the data key is announced twice")
        segment.kids.add(line.kid)
        if self._opener is not None:
            try:
                self._opener.learn(line)
            except (SealBroken, ValueError):
                self._tampered(segment, segment.lines, "the data key does not unwrap, or is not the one it commits to")

    # --- the end ------------------------------------------------------------------------------------------------------

    def _tell_lost_keys(self) -> None:
        for kid, lost in self._lost.items():
            if lost.erased or kid in self._erased:
                what = f"the key {kid} was erased, and with it {lost.bodies} bodies"
                self._find(Severity.NOTE, lost.file, lost.line, what)
            else:
                what = f"the key {kid} of {lost.bodies} bodies is not here, so nothing can be said about them"
                self._find(Severity.UNDECIDABLE, lost.file, lost.line, what)

    def _check_what_is_left(self, segments: list[SegmentFile]) -> None:
        self._tell_lost_keys()
        unmatched = None if self._stopped else self._retired.unmatched(self._retired_up_to)
        if unmatched is not None and segments:
            what = f"no record says that segment {unmatched} was retired: it, and all before it, are missing"
            self._find(Severity.TAMPERED, RETIRED_NAME, unmatched, what)
        furthest = None if self._stopped else self._signed.missing()
        if furthest is not None:
            where = segments[-1].name if segments else GENESIS_NAME
            what = f"the log ends after {self._signed.tree.size} lines, and the anchor of {furthest.t} knows {furthest.size}"
            self._find(Severity.INCOMPLETE, where, 0, what)
        if not segments or self._stopped:
            return
        last = segments[-1].name
        if self._directories.segments()[-1].number != segments[-1].number:
            # The log went on while it was read: the last segment known here was closed by a rotation.
            self._place.closed = False
        for start, (exchange, _) in self._carry.open.items():
            if self._place.closed:
                self._find(Severity.INCOMPLETE, last, 0, f"exchange {exchange} (start {start}) has no end")
        if not self._place.closed:
            running = len(self._carry.open)
            self._find(Severity.NOTE, last, 0, f"the log goes on; open exchanges: {running}")

    def _report(self, segments: int) -> VerificationReport:
        outcome = Outcome.OK
        for severity in (Severity.TAMPERED, Severity.UNDECIDABLE, Severity.INCOMPLETE):
            if self._counts[severity]:
                outcome = Outcome(severity.value)
                break
        return VerificationReport(
            outcome=outcome,
            directory=self._directory,
            log=self._genesis.log if self._genesis else None,
            owner_public_key=self._genesis.owner_public_key if self._genesis else None,
            segments=segments,
            lines=self._lines,
            records=self._records,
            bodies_opened=self._opened,
            open_exchanges=len(self._carry.open),
            checkpoints=self._signed.checkpoints,
            key_rolls=self._signed.rolls,
            anchors_met=self._signed.anchors_met,
            first_time=self._first_time,
            last_time=self._last_time,
            findings=tuple(self._findings),
            findings_total=sum(self._counts.values()),
            verified=self._verified,
        )

    def _tampered(self, segment: _Segment, line: int, what: str) -> None:
        segment.broken = True
        self._find(Severity.TAMPERED, segment.file.name, line, what)

    def _find(self, severity: Severity, file: str, line: int, what: str) -> None:
        self._counts[severity] += 1
        if len(self._findings) < FINDINGS_MAX:
            self._findings.append(Finding(severity, file, line, what))


def _seconds_between(earlier: str, later: str) -> float:
    try:
        return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
    except ValueError:
        # 29 February of a year without one has the form of a time, too.
        return 0.0


def _is_written_now(directory: Path) -> bool:
    """Whether a writer holds the log. When its lock can't be read, as in most copies, none does."""
    try:
        with open_file(directory / LOCK_NAME) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_newer(segment: SegmentFile) -> bool:
    """Whether a later version wrote it."""
    try:
        with segment.open() as stream:
            raw, _ = next(raw_lines(stream), (b"", False))
        parse_line(raw)
    except NewerVersion:
        return True
    except (OSError, FormatError):
        return False
    return False


def _previous_in(following: SegmentFile | None) -> Previous | None:
    """What the next segment says about where this one ends; None when it cannot be read or there is none."""
    if following is None:
        return None
    try:
        with following.open() as stream:
            raw, whole = next(raw_lines(stream), (b"", False))
        line = parse_line(raw) if whole else None
    except (OSError, FormatError, NewerVersion):
        return None
    return line.previous if isinstance(line, SegmentLine) else None
