"""The end of the log that grows: batches of records become durable lines; segments open, close and are given up.

What is on disk and synced is the only truth. A file whose write or sync failed once is cut back to its last synced
line, set aside and never synced again, because the next fsync of such a file may report success for pages that the
kernel has dropped (PostgreSQL's fsync finding of 2018; reproduced for the design of this log).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_llm_proxy.audit.carry import Carry
from secure_llm_proxy.audit.epoch import EpochKey, EpochKeys
from secure_llm_proxy.audit.following import Settled
from secure_llm_proxy.audit.format import (
    ALGORITHMS_CLEAR,
    ALGORITHMS_SEALED,
    BY_EPOCH,
    BY_OWNER,
    FEATURES,
    CheckpointLine,
    EndLine,
    FormatError,
    KeyLine,
    KeyRollLine,
    Line,
    NewerVersion,
    Previous,
    RecordLine,
    SegmentLine,
    Torn,
    TreeLine,
    checkpoint_line,
    clear_record,
    end_line,
    glance_at_record,
    key_line,
    key_roll_line,
    key_roll_statement,
    leaf,
    parse_line,
    record_header,
    sealed_record,
    segment_line,
    strict_base64,
    tree_line,
)
from secure_llm_proxy.audit.genesis import Genesis
from secure_llm_proxy.audit.keystore import KeyStore, KeyStoreUnavailable
from secure_llm_proxy.audit.merkle import TreeEdge
from secure_llm_proxy.audit.notes import Checkpoint, sign_checkpoint
from secure_llm_proxy.audit.seal import NONCE_BYTES, DataKey, KeyEncryptionKey
from secure_llm_proxy.audit.segments import (
    LINK_NAME,
    RETIRED_NAME,
    LogDirectories,
    SegmentFile,
    SegmentState,
    is_temporary,
    raw_lines,
    started_of,
)
from secure_llm_proxy.foundation.errors import OperatorError

_NONCES_DRAWN = 256
# A directory that has room and takes nothing all the same is not tried all the time.
_MOVE_S = 60.0
# How long a key roll that failed waits for its next try.
_ROLL_RETRY_S = 60.0
_TREE_PROGRESS_LINES = 1_000_000


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When the log says something by itself: `lines` new ones or `dirty_s` after the first of them a checkpoint is signed,
    `idle_s` after the last one anyway; `epoch_s` is the life of a signing key. Seconds.
    """

    lines: int = 1000
    dirty_s: float = 10.0
    idle_s: float = 60.0
    epoch_s: float = 3600.0


class Disk:
    """The system calls whose failure this log must survive, in one place so that tests can make them fail."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def write(self, descriptor: int, content: bytes | memoryview) -> int:
        return os.write(descriptor, content)

    def sync_data(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)


class LogUnavailable(Exception):
    """Nothing can become durable now. The batch that was handed over is not in the log."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record on its way in. `metadata` is a checked JSON object as bytes; `start` the `sid` of an `llm.end`.

    `subject` is the person by whose key the body is sealed; None: by the segment's own.
    """

    worker: str
    counter: int
    metadata: bytes
    body: bytes
    kind: str
    id: str
    exchange_id: str
    start: str | None
    subject: str | None = None


@dataclass(slots=True)
class _Open:
    """The segment that takes lines. `size`, `n`, `h` describe what is synced; `n` is the next line's index.

    `before` is the tree without it; `grown`: more than its first lines are in it, so somebody may have been told of them;
    `announced` names the keys of the key store that have their line in it.
    """

    file: SegmentFile
    descriptor: int
    opened_s: float
    size: int
    n: int
    h: bytes
    lines: int
    key: DataKey | None
    kid: bytes | None
    before: TreeEdge
    grown: bool = False
    announced: set[str] = field(default_factory=set)
    holds_records: bool = False


@dataclass(slots=True)
class _Read:
    """What a look at the last segment found: its last valid line and what stands behind it.

    `whole`: it was closed to its last line. `failed`: the note of a failed disk follows.
    """

    n: int
    h: bytes
    position: int
    whole: bool
    failed: bool


class Appender:
    """One per host directory, in one process (the caller holds the lock). Not open until `open_segment`."""

    def __init__(
        self,
        genesis: Genesis,
        kek: KeyEncryptionKey | None,
        epoch: EpochKeys,
        *,
        segment_bytes_max: int,
        segment_age_s: float,
        report: Callable[..., None],
        rhythm: Rhythm | None = None,
        second: Path | None = None,
        is_short: Callable[[Path], bool] | None = None,
        disk: Disk | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        on_checkpoint: Callable[[Checkpoint, str], None] | None = None,
        key_store: KeyStore | None = None,
    ) -> None:
        self.carry = Carry()
        self.last_checkpoint: tuple[Checkpoint, str] | None = None
        """The newest checkpoint of this process and its note."""
        self._epoch = epoch
        self._rhythm = rhythm or Rhythm()
        self._on_checkpoint = on_checkpoint
        # Over every line that is synced; always as many leaves as the next line's index says.
        self._tree = TreeEdge()
        self._epoch_public_key = strict_base64(genesis.epoch_public_key)
        self._covered_n = 0
        self._dirty_since_s: float | None = None
        self._checkpoint_at_s = time.monotonic()
        self._roll_at_s = float("inf")
        self._genesis = genesis
        self._directories = LogDirectories(genesis.directory, second)
        # Whether a directory lacks room that the other one has.
        self._is_short = is_short or (lambda _: False)
        self._moved_s = float("-inf")
        self._why_not_first = ""
        self._kek = kek
        self._key_store = key_store
        self._segment_bytes_max = segment_bytes_max
        self._segment_age_s = segment_age_s
        self._report = report
        self._disk = disk or Disk()
        self._now_ns = now_ns
        self._started_ns = time.monotonic_ns()
        self._previous: Previous | None = None
        self._open: _Open | None = None
        self._second = -1
        self._second_text = b""
        self._nonces = b""
        self._nonces_used = 0

    # --- start-up -----------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Afterwards the last segment is finished or set aside, and its state is known. Reads no older segment.

        Raises `OperatorError` when the last segment cannot be continued by this program, `OSError` when it can't be read.
        """
        self._clear_away()
        segments = self._directories.segments()
        if not segments:
            if (self._directories.first / RETIRED_NAME).exists():
                raise OperatorError(
                    f"{self._directories.first} holds no segment, although some were retired: what came after them is "
                    "missing. Restore it from a backup; do not begin anew."
                )
            return
        last = segments[-1]
        if [segment.number for segment in segments].count(last.number) > 1:
            raise OperatorError(
                f"There are two segments of the number {last.number}, so the log cannot be continued. "
                "Run `manage.py audit verify`."
            )
        # A segment that was set aside after a failed disk must not be synced again; its lines are the synced ones.
        poisoned = last.state is SegmentState.CRASHED
        read = self._read(last, segments)
        size = last.path.stat().st_size
        torn = None
        if read.position < size:
            synced = not (poisoned or read.failed)
            torn = Torn(size=size - read.position, sha256=_digest_from(last.path, read.position), synced=synced)
            self._report("torn_tail", segment=last.name, ignored_bytes=torn.size)
        if last.state is SegmentState.OPEN:
            if not read.failed:
                with _descriptor(last.path, os.O_RDONLY) as descriptor:
                    self._disk.sync(descriptor)
            self._set_aside(last, SegmentState.CLOSED if read.whole and torn is None else SegmentState.CRASHED)
        self._previous = Previous(number=last.number, n=read.n, h=read.h, torn=torn)

    def _clear_away(self) -> None:
        """Files that never became part of the log. Where the disk refuses, they stay and mean nothing."""
        left = [entry for place in self._directories.all for entry in place.iterdir() if is_temporary(entry.name)]
        left += [segment.path for segment in self._directories.given_up()]
        for path in left:
            with contextlib.suppress(OSError):
                path.unlink()

    def _read(self, file: SegmentFile, segments: Sequence[SegmentFile]) -> _Read:
        """Take the last segment's valid lines into account: carry, tree and epoch are those of its end."""
        with file.open() as stream:
            lines = raw_lines(stream)
            raw, whole = next(lines, (b"", False))
            first = self._first_line(file, raw, whole=whole)
            self.carry = Carry(first.carry)
            self._epoch_public_key = first.epoch_public_key
            # The second line has it, unless the segment is of the first release.
            tree = TreeEdge() if first.features or not first.n else self._tree_over(segments[:-1], first.n)
            n, h, position, ended, closed, failed = first.n, leaf(raw), len(raw) + 1, False, False, False
            leaves = [h]
            for raw, whole in lines:
                # 64 MiB were looked through, and found good, when the segment was closed: a glance takes a third of the time.
                glance = glance_at_record(raw) if file.state is SegmentState.CLOSED and whole and not ended else None
                if glance is not None:
                    n, h, position = glance.n, leaf(raw), position + len(raw) + 1
                    leaves.append(h)
                    self.carry.apply(*glance[1:])
                    continue
                line = _parse_or_none(raw, first.features) if whole and not closed else None
                if isinstance(line, EndLine) and line.reason == "fsync-error":
                    # Written without a sync after the disk had failed: a note for people, not a line of the log.
                    failed = True
                    break
                if ended and not isinstance(line, CheckpointLine):
                    # Behind the `end` line stands its checkpoint, and nothing else.
                    break
                if file.state is SegmentState.CLOSED and whole and not closed:
                    # It was complete once. Damage inside is for the verifier to show, not for us to declare torn.
                    n = line.n if line else n + 1
                elif line is None or isinstance(line, SegmentLine) or line.n != n + 1 or line.p != h:
                    break
                else:
                    n = line.n
                h, position = leaf(raw), position + len(raw) + 1
                leaves.append(h)
                closed = isinstance(line, CheckpointLine if first.features else EndLine) and (
                    ended or not first.features
                )
                ended = ended or isinstance(line, EndLine)
                if isinstance(line, TreeLine):
                    tree = self._tree_of(line, file, first.n)
                elif isinstance(line, KeyRollLine):
                    self._epoch_public_key = line.epoch_public_key
                elif isinstance(line, RecordLine):
                    self.carry.apply_line(line)
        if tree.size != first.n:
            raise OperatorError(
                f"{file.path} cannot be continued, its second line is damaged. Run `manage.py audit verify`."
            )
        for each in leaves:
            tree.append(each)
        self._tree = tree
        self._covered_n = tree.size
        return _Read(n=n, h=h, position=position, whole=closed, failed=failed)

    def _tree_of(self, line: TreeLine, file: SegmentFile, size: int) -> TreeEdge:
        try:
            return TreeEdge(size, line.edge)
        except ValueError as error:
            raise OperatorError(f"{file.path} cannot be continued: {error}. Run `manage.py audit verify`.") from None

    def _tree_over(self, segments: Sequence[SegmentFile], size: int) -> TreeEdge:
        """The tree over the first `size` lines, all in segments of the first release: done once, when a log is continued by
        the first version that signs trees. 2 µs a line.
        """
        self._report("tree_begins", lines=size)
        tree = TreeEdge()
        for position, segment in enumerate(segments):
            following = segments[position + 1] if position + 1 < len(segments) else None
            end = size if following is None else _first_index(following)
            with segment.open() as stream:
                for raw, _ in raw_lines(stream):
                    if tree.size >= end:
                        break
                    tree.append(leaf(raw))
                    if tree.size % _TREE_PROGRESS_LINES == 0:
                        self._report("tree_grows", lines=tree.size, of=size)
        return tree

    def _first_line(self, file: SegmentFile, raw: bytes, *, whole: bool) -> SegmentLine:
        try:
            line = parse_line(raw) if whole else None
        except NewerVersion as error:
            raise OperatorError(f"{file.path} cannot be continued: {error}. Install the later version again.") from None
        except FormatError as error:
            raise OperatorError(
                f"{file.path} cannot be continued, its first line is damaged: {error}. Run `manage.py audit verify`."
            ) from None
        if not isinstance(line, SegmentLine) or line.number != file.number:
            raise OperatorError(
                f"{file.path} cannot be continued, its first line is damaged. Run `manage.py audit verify`."
            )
        if not set(line.features) <= set(FEATURES):
            raise OperatorError(
                f"{file.path} was written by a later version of this product. Install that version again."
            )
        if line.log != self._genesis.log:
            raise OperatorError(f"{file.path} belongs to the log {line.log}, not to {self._genesis.log}.")
        return line

    # --- segments -----------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def synced(self) -> tuple[int, bytes]:
        """How many lines of the log are on disk, and the hash of the last one."""
        if self._open is not None:
            return self._open.n, self._open.h
        return (self._previous.n + 1, self._previous.h) if self._previous else (0, bytes(32))

    @property
    def second_in_use(self) -> str | None:
        """A sentence for the operator while lines go to the second directory."""
        if self._open is None or self._open.file.directory == self._directories.first:
            return None
        why = f": {self._why_not_first}" if self._why_not_first else ""
        return f"The audit log goes on in {self._directories.second}, since {self._directories.first} takes no segment{why}."

    @property
    def holds_records(self) -> bool:
        """Whether records stand in the open segment."""
        return self._open is not None and self._open.holds_records

    @property
    def settled(self) -> Settled:
        """How far others may follow: lines that are synced, and not the first ones of a segment that may yet be taken back."""
        segment, previous = self._open, self._previous
        if segment is not None and segment.grown:
            return Settled(segment.file.number, segment.n)
        return Settled(previous.number, previous.n + 1) if previous else Settled(0, 0)

    @property
    def due_s(self) -> float | None:
        """Seconds until the open segment, its checkpoint or the signing key want something; None while none is open."""
        segment = self._open
        if segment is None:
            return None
        wanted = min(self._checkpoint_due_at_s(segment), self._roll_at_s)
        if segment.grown:
            wanted = min(wanted, segment.opened_s + self._segment_age_s)
        return max(0.0, wanted - time.monotonic())

    def _checkpoint_due_at_s(self, segment: _Open) -> float:
        if segment.n - self._covered_n >= self._rhythm.lines:
            return 0.0
        if self._dirty_since_s is not None:
            return self._dirty_since_s + self._rhythm.dirty_s
        return self._checkpoint_at_s + self._rhythm.idle_s

    def open_segment(self, connected: Collection[str] = (), *, after_failure_in: Path | None = None) -> None:
        """Afterwards a new segment takes lines; its first lines are on disk. Raises `OSError`, and then nothing is left.

        It lies in the first directory that takes it; one whose disk has just failed, or that is short of room, is asked last.
        """
        if self._tree.size != (self._previous.n + 1 if self._previous else 0):
            raise RuntimeError("the tree does not cover the log")
        *others, last = sorted(
            self._directories.all, key=lambda place: (place == after_failure_in, self._is_short(place))
        )
        for place in others:
            try:
                self._open_in(place, connected)
            except OSError as error:
                self._why_not_first = error.strerror or str(error)
                self._report("directory_failed", directory=str(place), error=self._why_not_first)
            else:
                return
        self._open_in(last, connected)

    def _open_in(self, directory: Path, connected: Collection[str]) -> None:
        previous = self._previous
        number, n = (previous.number + 1, previous.n + 1) if previous else (1, 0)
        t = self._time().decode()
        sid = uuid.uuid4().hex
        lines = [
            segment_line(
                SegmentLine(
                    log=self._genesis.log,
                    number=number,
                    sid=sid,
                    n=n,
                    t=t,
                    previous=previous,
                    features=FEATURES,
                    algorithms=ALGORITHMS_SEALED if self._kek else ALGORITHMS_CLEAR,
                    epoch_public_key=self._epoch_public_key,
                    kek_id=self._kek.id if self._kek else None,
                    carry=self.carry.snapshot(connected),
                )
            )
        ]
        leaves = [leaf(lines[0])]
        lines.append(tree_line(TreeLine(n=n + 1, t=t, edge=self._tree.hashes, p=leaves[0])))
        leaves.append(leaf(lines[1]))
        key, kid = None, None
        if self._kek:
            # A key of its own for every segment, named by the segment's random id: no two keys ever share a name.
            key, name = DataKey.generate(), f"sys.{sid}"
            kid = name.encode()
            lines.append(
                key_line(
                    KeyLine(
                        n=n + 2,
                        t=t,
                        kid=name,
                        commitment=key.commitment,
                        wrapped=self._kek.wrap(key.secret, name),
                        p=leaves[1],
                    )
                )
            )
            leaves.append(leaf(lines[2]))
        file = SegmentFile(directory, number, started_of(t), SegmentState.OPEN)
        content = b"".join(line + b"\n" for line in lines)
        descriptor = self._create(file, content)
        self._open = _Open(
            file=file,
            descriptor=descriptor,
            opened_s=time.monotonic(),
            size=len(content),
            n=n + len(lines),
            h=leaves[-1],
            lines=len(lines),
            key=key,
            kid=kid,
            before=self._tree.copy(),
        )
        self._cover(leaves)
        self._point_links_at(file)
        self._report("segment_opened", segment=file.name, first_index=n)

    def _create(self, file: SegmentFile, content: bytes) -> int:
        """Under a temporary name until it is on disk, so that an `.open` file always has a whole first line."""
        temporary = file.directory / f".{file.stem}.tmp"
        temporary.unlink(missing_ok=True)
        descriptor = self._disk.create(temporary)
        try:
            self._write_all(descriptor, content)
            self._disk.sync(descriptor)
            temporary.rename(file.path)
            self._sync_directory(file.directory)
        except OSError:
            os.close(descriptor)
            for path in (temporary, file.path):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        return descriptor

    def close_segment(self, reason: str) -> None:
        """Write the `end` line and the checkpoint over it, and hand the file over, read-only. Raises `OSError` when the disk
        refuses; see `commit`.
        """
        segment = self._opened()
        try:
            self._append_line(
                segment,
                end_line(
                    EndLine(n=segment.n, t=self._time().decode(), reason=reason, lines=segment.lines + 1, p=segment.h)
                ),
            )
            self._append_checkpoint(segment)
        except OSError as error:
            self._give_up(error)
            raise
        # On disk and complete from here on: whatever goes wrong with its name, the next segment continues this line.
        self._open = None
        os.close(segment.descriptor)
        self._previous = Previous(number=segment.file.number, n=segment.n - 1, h=segment.h)
        closed = self._set_aside(segment.file, SegmentState.CLOSED)
        self._point_links_at(closed)
        self._report("segment_closed", segment=closed.name, reason=reason, lines=segment.lines)

    def keep_rhythm(self, connected: Collection[str] = ()) -> None:
        """Do what is due: roll the signing key, sign a checkpoint, close a segment that is big or old enough and open the next.
        Raises `LogUnavailable`.
        """
        segment = self._open
        if segment is None:
            return
        now = time.monotonic()
        big = segment.size >= self._segment_bytes_max
        if segment.grown and (big or now >= segment.opened_s + self._segment_age_s):
            self.rotate(connected)
            segment = self._opened()
        elif now >= self._moved_s + _MOVE_S and self._is_short(segment.file.directory):
            self._moved_s = now
            self._why_not_first = os.strerror(errno.ENOSPC)
            self._report("directory_short_of_room", directory=str(segment.file.directory))
            self.rotate(connected)
            segment = self._opened()
        try:
            if now >= self._roll_at_s:
                self._roll(segment)
            if now >= self._checkpoint_due_at_s(segment):
                self._append_checkpoint(segment)
        except OSError as error:
            self._give_up(error)
            self._reopen(connected, after_failure_in=segment.file.directory)

    @property
    def last_n(self) -> int:
        """Index of the last line that is synced in the open segment."""
        return self._opened().n - 1

    def checkpoint(self, connected: Collection[str] = ()) -> str:
        """Sign every line so far; returns the note. Raises `LogUnavailable`."""
        try:
            self._append_checkpoint(self._opened())
        except OSError as error:
            self._give_up(error)
            self._reopen(connected)
            raise LogUnavailable(str(error)) from None
        assert self.last_checkpoint is not None
        return self.last_checkpoint[1]

    def rotate(self, connected: Collection[str] = ()) -> None:
        """Close the open segment and open the next. Raises `LogUnavailable`."""
        directory = self._opened().file.directory
        try:
            self.close_segment("rotate")
        except OSError:
            # A failing disk has set the segment aside; the next one is opened either way.
            self._reopen(connected, after_failure_in=directory)
        else:
            self._reopen(connected)

    def _reopen(self, connected: Collection[str], *, after_failure_in: Path | None = None) -> None:
        try:
            self.open_segment(connected, after_failure_in=after_failure_in)
        except OSError as error:
            raise LogUnavailable(str(error)) from None

    # --- checkpoints and key rolls ------------------------------------------------------------------------------------

    def _append_checkpoint(self, segment: _Open) -> None:
        """Sign the tree over every line so far, all of which are synced: no second checkpoint of this size can ever differ."""
        t = self._time().decode()
        checkpoint = Checkpoint(log=self._genesis.log, size=segment.n, root=self._tree.root(), t=t)
        note = sign_checkpoint(checkpoint, self._epoch.current.private)
        line = CheckpointLine(n=segment.n, t=t, root=checkpoint.root, note=note, p=segment.h)
        self._append_line(segment, checkpoint_line(line))
        self._covered_n = segment.n
        self._dirty_since_s = None
        self._checkpoint_at_s = time.monotonic()
        self.last_checkpoint = (checkpoint, note)
        if self._on_checkpoint is not None:
            self._on_checkpoint(checkpoint, note)

    def _roll(self, segment: _Open) -> None:
        """The next signing key takes over. Only the log's own disk may raise `OSError` here: a key store that fails postpones
        the roll, and the operator is told.
        """
        try:
            following = self._epoch.prepare()
        except OSError as error:
            self._report("key_roll_failed", error=error.strerror or str(error))
            self._roll_at_s = time.monotonic() + _ROLL_RETRY_S
            return
        self._append_key_roll(segment, following, BY_EPOCH, self._epoch.current.private)
        self._roll_at_s = time.monotonic() + self._rhythm.epoch_s

    def _append_key_roll(self, segment: _Open, following: EpochKey, by: str, signer: Ed25519PrivateKey) -> None:
        line = KeyRollLine(
            n=segment.n,
            t=self._time().decode(),
            epoch_public_key=following.public,
            by=by,
            signature=bytes(64),
            p=segment.h,
        )
        signed = replace(line, signature=signer.sign(key_roll_statement(self._genesis.log, line)))
        self._append_line(segment, key_roll_line(signed))
        self._epoch_public_key = following.public
        try:
            self._epoch.adopt()
        except OSError as error:
            self._report("old_epoch_key_not_erased", error=error.strerror or str(error))

    def restart(self, owner: Ed25519PrivateKey) -> None:
        """Go on with a new signing key that the owner signs, since the one in force is lost: one segment that says so.

        For a log that has recovered and is not open. Raises `OSError`.
        """
        following = self._epoch.prepare()
        self.open_segment()
        self._append_key_roll(self._opened(), following, BY_OWNER, owner)
        self.close_segment("stop")

    def take_epoch_key(self) -> None:
        """Afterwards checkpoints can be signed. Raises `OperatorError` when the key in force is lost."""
        self._epoch.take(self._epoch_public_key)
        self._roll_at_s = time.monotonic() + self._epoch_left_s()

    def _epoch_left_s(self) -> float:
        """Seconds that the signing key has still to live; a wall clock that jumped makes it no longer than an epoch."""
        epoch_s = self._rhythm.epoch_s
        return min(epoch_s, max(0.0, self._epoch.current.since_s + epoch_s - self._now_ns() / 1e9))

    def _append_line(self, segment: _Open, line: bytes) -> None:
        """One line, on disk when this returns. Raises `OSError`; the caller gives the segment up."""
        self._write_all(segment.descriptor, line + b"\n")
        self._disk.sync_data(segment.descriptor)
        segment.h = leaf(line)
        segment.n += 1
        segment.size += len(line) + 1
        segment.lines += 1
        segment.grown = True
        self._cover((segment.h,))

    def _cover(self, leaves: Iterable[bytes]) -> None:
        """Take synced lines into the tree."""
        append = self._tree.append
        for each in leaves:
            append(each)
        if self._dirty_since_s is None:
            self._dirty_since_s = time.monotonic()

    def _give_up(self, error: OSError) -> None:
        """Set the open segment aside after the disk refused it; its synced lines stay valid, the rest is declared torn."""
        segment = self._opened()
        self._open = None
        self._report("segment_given_up", segment=segment.file.name, error=error.strerror or str(error))
        tail = b""
        # Best effort throughout: the disk is failing, and the next segment's `prev` says where this one ends.
        with contextlib.suppress(OSError):
            self._disk.truncate(segment.descriptor, segment.size)
            if segment.grown:
                tail = self._note_failure(segment)
        with contextlib.suppress(OSError):
            os.close(segment.descriptor)
        if not segment.grown:
            # Nobody was ever told that anything in here is durable: no trace is needed, and a full disk gets none.
            with contextlib.suppress(OSError):
                segment.file.path.unlink()
                self._sync_directory(segment.file.directory)
            if not segment.file.path.exists():
                self._tree = segment.before
                return
        self._previous = Previous(
            number=segment.file.number,
            n=segment.n - 1,
            h=segment.h,
            torn=Torn(size=len(tail), sha256=hashlib.sha256(tail).digest(), synced=False),
        )
        self._set_aside(segment.file, SegmentState.CRASHED)

    def _note_failure(self, segment: _Open) -> bytes:
        note = end_line(
            EndLine(n=segment.n, t=self._time().decode(), reason="fsync-error", lines=segment.lines + 1, p=segment.h)
        )
        return note + b"\n" if self._disk.write(segment.descriptor, note + b"\n") == len(note) + 1 else b""

    def _set_aside(self, file: SegmentFile, state: SegmentState) -> SegmentFile:
        """Give a finished file its last name and mode, durably. A disk that refuses costs the name, not the log."""
        renamed = SegmentFile(file.directory, file.number, file.started, state)
        try:
            file.path.rename(renamed.path)
            renamed.path.chmod(0o440)
            self._sync_directory(file.directory)
        except OSError as error:
            self._report("rename_failed", segment=file.name, error=error.strerror or str(error))
        return renamed

    # --- records ------------------------------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Entry], connected: Collection[str] = ()) -> None:
        """Return when every entry is on disk. One failing disk costs a segment; a second failure raises `LogUnavailable`.

        So does a key store that can't make a key: nothing is written then, and the segment stays open.
        """
        keys = self._keys_of(batch)
        try:
            self._append(batch, keys)
        except OSError as error:
            failed = self._opened().file.directory
            self._give_up(error)
            try:
                self.open_segment(connected, after_failure_in=failed)
                self._append(batch, keys)
            except OSError as second:
                if self._open is not None:
                    self._give_up(second)
                raise LogUnavailable(str(second)) from None
        for entry in batch:
            self.carry.apply(entry.worker, entry.counter, entry.kind, entry.id, entry.exchange_id, entry.start)

    def check_keys(self) -> None:
        """Return when keys of persons can be made. Raises `LogUnavailable`."""
        if self._key_store is not None:
            try:
                self._key_store.check()
            except KeyStoreUnavailable as error:
                raise LogUnavailable(str(error)) from None

    def _keys_of(self, batch: Sequence[Entry]) -> Mapping[str, tuple[str, DataKey]]:
        """The keys of the batch's persons, durable before anything is sealed by them."""
        if self._key_store is None:
            return {}
        subjects = {entry.subject for entry in batch if entry.subject is not None}
        try:
            return self._key_store.keys_of(subjects) if subjects else {}
        except KeyStoreUnavailable as error:
            raise LogUnavailable(str(error)) from None

    def _append(self, batch: Sequence[Entry], keys: Mapping[str, tuple[str, DataKey]]) -> None:
        segment = self._opened()
        n, h, lines, leaves = segment.n, segment.h, [], []
        announced: set[str] = set()
        for entry in batch:
            key, kid = segment.key, segment.kid
            if entry.subject is not None and entry.subject in keys:
                name, key = keys[entry.subject]
                kid = name.encode()
                if name not in segment.announced and name not in announced:
                    announced.add(name)
                    line = key_line(KeyLine(n, self._time().decode(), name, key.commitment, None, h))
                    h = leaf(line)
                    n += 1
                    lines.append(line)
                    leaves.append(h)
            nonce = self._nonce() if key else None
            header = record_header(
                n,
                self._time(),
                time.monotonic_ns() - self._started_ns,
                entry.worker.encode(),
                entry.counter,
                entry.metadata,
                h,
                kid,
                nonce,
            )
            line = (
                sealed_record(header, key.seal(nonce, entry.body, header))
                if key and nonce
                else clear_record(header, entry.body)
            )
            h = leaf(line)
            n += 1
            lines.append(line)
            leaves.append(h)
        lines.append(b"")
        content = b"\n".join(lines)
        self._write_all(segment.descriptor, content)
        self._disk.sync_data(segment.descriptor)
        segment.n, segment.h = n, h
        segment.size += len(content)
        segment.lines += len(leaves)
        segment.grown = segment.holds_records = True
        segment.announced |= announced
        self._cover(leaves)

    def _opened(self) -> _Open:
        if self._open is None:
            raise RuntimeError("no segment is open")
        return self._open

    # --- small parts --------------------------------------------------------------------------------------------------

    def _write_all(self, descriptor: int, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            try:
                written = self._disk.write(descriptor, rest)
            except InterruptedError:
                continue
            rest = rest[written:]

    def _sync_directory(self, directory: Path) -> None:
        with _descriptor(directory, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            self._disk.sync(descriptor)

    def _point_links_at(self, file: SegmentFile) -> None:
        """`audit.jsonl` in each directory and one level up leads to the newest segment, for operators who grep."""
        for link in [place / LINK_NAME for own in self._directories.all for place in (own, own.parent)]:
            target = file.path.relative_to(link.parent) if file.path.is_relative_to(link.parent) else file.path
            temporary = link.with_name(f".{LINK_NAME}.tmp")
            try:
                temporary.unlink(missing_ok=True)
                temporary.symlink_to(target)
                temporary.rename(link)
            except OSError as error:
                self._report("link_failed", link=str(link), error=error.strerror or str(error))

    def _nonce(self) -> bytes:
        if self._nonces_used == len(self._nonces):
            self._nonces, self._nonces_used = os.urandom(NONCE_BYTES * _NONCES_DRAWN), 0
        self._nonces_used += NONCE_BYTES
        return self._nonces[self._nonces_used - NONCE_BYTES : self._nonces_used]

    def _time(self) -> bytes:
        second, microsecond = divmod(self._now_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%06dZ" % (self._second_text, microsecond)


def _first_index(file: SegmentFile) -> int:
    """`n` of a segment's first line. Raises `OperatorError`."""
    with file.open() as stream:
        raw, whole = next(raw_lines(stream), (b"", False))
    line = _parse_or_none(raw, ()) if whole else None
    if not isinstance(line, SegmentLine):
        raise OperatorError(f"{file.path} is damaged, its first line cannot be read. Run `manage.py audit verify`.")
    return line.n


def _parse_or_none(raw: bytes, features: tuple[str, ...]) -> Line | None:
    try:
        return parse_line(raw, features)
    except (FormatError, NewerVersion):
        return None


def _digest_from(path: Path, position: int) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(position)
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.digest()


@contextlib.contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
