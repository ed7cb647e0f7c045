"""The end of the log that grows: batches of records become durable lines; segments open, close and are given up.

What is on disk and synced is the only truth. A file whose write or sync failed once is cut back to its last synced
line, set aside and never synced again, because the next fsync of such a file may report success for pages that the
kernel has dropped (PostgreSQL's fsync finding of 2018; reproduced for the design of this log).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from secure_llm_proxy.audit.carry import Carry
from secure_llm_proxy.audit.format import (
    ALGORITHMS_CLEAR,
    ALGORITHMS_SEALED,
    NO_HASH,
    EndLine,
    FormatError,
    KeyLine,
    Line,
    NewerVersion,
    Previous,
    RecordLine,
    SegmentLine,
    Torn,
    clear_record,
    end_line,
    glance_at_record,
    key_line,
    leaf,
    parse_line,
    record_header,
    sealed_record,
    segment_line,
    strict_base64,
)
from secure_llm_proxy.audit.genesis import Genesis
from secure_llm_proxy.audit.seal import NONCE_BYTES, DataKey, KeyEncryptionKey
from secure_llm_proxy.audit.segments import (
    LINK_NAME,
    SegmentFile,
    SegmentState,
    is_temporary,
    raw_lines,
    segments_in,
    started_of,
)
from secure_llm_proxy.foundation.errors import OperatorError

_NONCES_DRAWN = 256


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
    """A record on its way in. `metadata` is a checked JSON object as bytes; `start` the `sid` of an `llm.end`."""

    worker: str
    counter: int
    metadata: bytes
    body: bytes
    kind: str
    id: str
    exchange_id: str
    start: str | None


@dataclass(slots=True)
class _Open:
    """The segment that takes lines. `size`, `n`, `h` describe what is synced; `n` is the next line's index."""

    file: SegmentFile
    descriptor: int
    opened_s: float
    size: int
    n: int
    h: bytes
    lines: int
    records: int
    key: DataKey | None
    kid: bytes | None


class Appender:
    """One per host directory, in one process (the caller holds the lock). Not open until `open_segment`."""

    def __init__(
        self,
        genesis: Genesis,
        kek: KeyEncryptionKey | None,
        *,
        segment_bytes_max: int,
        segment_age_s: float,
        report: Callable[..., None],
        disk: Disk | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.carry = Carry()
        self._genesis = genesis
        self._directory = genesis.directory
        self._kek = kek
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
        for entry in self._directory.iterdir():
            if is_temporary(entry.name):
                entry.unlink()
        segments = segments_in(self._directory)
        if not segments:
            return
        last = segments[-1]
        # A segment that was set aside after a failed disk must not be synced again; its lines are the synced ones.
        poisoned = last.state is SegmentState.CRASHED
        n, h, position, ended, failed = self._read(last)
        size = last.path.stat().st_size
        torn = None
        if position < size:
            torn = Torn(size=size - position, sha256=_digest_from(last.path, position), synced=not (poisoned or failed))
            self._report("torn_tail", segment=last.name, ignored_bytes=torn.size)
        if last.state is SegmentState.OPEN:
            if not failed:
                with _descriptor(last.path, os.O_RDONLY) as descriptor:
                    self._disk.sync(descriptor)
            self._set_aside(last, SegmentState.CLOSED if ended and torn is None else SegmentState.CRASHED)
        self._previous = Previous(number=last.number, n=n, h=h, torn=torn)

    def _read(self, file: SegmentFile) -> tuple[int, bytes, int, bool, bool]:
        """Index and hash of the last valid line, where it ends, whether it is an `end` line, whether the disk failed."""
        with file.open() as stream:
            lines = raw_lines(stream)
            raw, whole = next(lines, (b"", False))
            first = self._first_line(file, raw, whole=whole)
            self.carry = Carry(first.carry)
            n, h, position, ended, failed = first.n, leaf(raw), len(raw) + 1, False, False
            glanced: bytes | None = None
            for raw, whole in lines:
                # 64 MiB were looked through, and found good, when the segment was closed: it takes 0.06 instead of 0.2 s so,
                # and more where records are short (3 instead of 13 µs a line).
                glance = glance_at_record(raw) if file.state is SegmentState.CLOSED and whole and not ended else None
                if glance is not None:
                    n, glanced, position = glance.n, raw, position + len(raw) + 1
                    self.carry.apply(*glance[1:])
                    continue
                if glanced is not None:
                    h, glanced = leaf(glanced), None
                line = _parse_or_none(raw, first.features) if whole and not ended else None
                if isinstance(line, EndLine) and line.reason == "fsync-error":
                    # Written without a sync after the disk had failed: a note for people, not a line of the log.
                    failed = True
                    break
                if file.state is SegmentState.CLOSED and whole and not ended:
                    # It was complete once. Damage inside is for the verifier to show, not for us to declare torn.
                    n = line.n if line else n + 1
                elif line is None or isinstance(line, SegmentLine) or line.n != n + 1 or line.p != h:
                    break
                else:
                    n = line.n
                h, position, ended = leaf(raw), position + len(raw) + 1, isinstance(line, EndLine)
                if isinstance(line, RecordLine):
                    self.carry.apply_line(line)
        return n, h if glanced is None else leaf(glanced), position, ended, failed

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
        if line.features:
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
    def age_due_s(self) -> float | None:
        """Seconds until the open segment is old enough to be closed; None when it holds no record yet."""
        segment = self._open
        if segment is None or not segment.records:
            return None
        return max(0.0, segment.opened_s + self._segment_age_s - time.monotonic())

    def open_segment(self, connected: Collection[str] = ()) -> None:
        """Afterwards a new segment takes lines; its first lines are on disk. Raises `OSError`, and then nothing is left."""
        previous = self._previous
        number, n, h = (previous.number + 1, previous.n + 1, previous.h) if previous else (1, 0, NO_HASH)
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
                    features=(),
                    algorithms=ALGORITHMS_SEALED if self._kek else ALGORITHMS_CLEAR,
                    epoch_public_key=strict_base64(self._genesis.epoch_public_key),
                    kek_id=self._kek.id if self._kek else None,
                    carry=self.carry.snapshot(connected),
                )
            )
        ]
        h = leaf(lines[0])
        key, kid = None, None
        if self._kek:
            # A key of its own for every segment, named by the segment's random id: no two keys ever share a name.
            key, name = DataKey.generate(), f"sys.{sid}"
            kid = name.encode()
            lines.append(
                key_line(
                    KeyLine(
                        n=n + 1, t=t, kid=name, commitment=key.commitment, wrapped=self._kek.wrap(key.secret, name), p=h
                    )
                )
            )
            h = leaf(lines[1])
        file = SegmentFile(self._directory, number, started_of(t), SegmentState.OPEN)
        content = b"".join(line + b"\n" for line in lines)
        descriptor = self._create(file, content)
        self._open = _Open(
            file=file,
            descriptor=descriptor,
            opened_s=time.monotonic(),
            size=len(content),
            n=n + len(lines),
            h=h,
            lines=len(lines),
            records=0,
            key=key,
            kid=kid,
        )
        self._point_links_at(file)
        self._report("segment_opened", segment=file.name, first_index=n)

    def _create(self, file: SegmentFile, content: bytes) -> int:
        """Under a temporary name until it is on disk, so that an `.open` file always has a whole first line."""
        temporary = self._directory / f".{file.stem}.tmp"
        temporary.unlink(missing_ok=True)
        descriptor = self._disk.create(temporary)
        try:
            self._write_all(descriptor, content)
            self._disk.sync(descriptor)
            temporary.rename(file.path)
            self._sync_directory()
        except OSError:
            os.close(descriptor)
            for path in (temporary, file.path):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        return descriptor

    def close_segment(self, reason: str) -> None:
        """Write the `end` line and hand the file over, read-only. Raises `OSError` when the disk refuses; see `commit`."""
        segment = self._opened()
        line = end_line(
            EndLine(n=segment.n, t=self._time().decode(), reason=reason, lines=segment.lines + 1, p=segment.h)
        )
        try:
            self._write_all(segment.descriptor, line + b"\n")
            self._disk.sync(segment.descriptor)
        except OSError as error:
            self._give_up(error)
            raise
        # On disk and complete from here on: whatever goes wrong with its name, the next segment continues this line.
        self._open = None
        os.close(segment.descriptor)
        self._previous = Previous(number=segment.file.number, n=segment.n, h=leaf(line))
        closed = self._set_aside(segment.file, SegmentState.CLOSED)
        self._point_links_at(closed)
        self._report("segment_closed", segment=closed.name, reason=reason, lines=segment.lines + 1)

    def rotate_if_due(self, connected: Collection[str] = ()) -> None:
        """Close a segment that is big or old enough and open the next. Raises `LogUnavailable`."""
        segment = self._open
        if segment is None or not segment.records:
            return
        if segment.size < self._segment_bytes_max and self.age_due_s != 0.0:
            return
        try:
            with contextlib.suppress(OSError):
                # A failing disk has set the segment aside; the next one is opened either way.
                self.close_segment("rotate")
            self.open_segment(connected)
        except OSError as error:
            raise LogUnavailable(str(error)) from None

    def _give_up(self, error: OSError) -> None:
        """Set the open segment aside after the disk refused it; its synced lines stay valid, the rest is declared torn."""
        segment = self._opened()
        self._open = None
        self._report("segment_given_up", segment=segment.file.name, error=error.strerror or str(error))
        tail = b""
        # Best effort throughout: the disk is failing, and the next segment's `prev` says where this one ends.
        with contextlib.suppress(OSError):
            self._disk.truncate(segment.descriptor, segment.size)
            if segment.records:
                tail = self._note_failure(segment)
        with contextlib.suppress(OSError):
            os.close(segment.descriptor)
        if not segment.records:
            # Nobody was ever told that anything in here is durable: no trace is needed, and a full disk gets none.
            with contextlib.suppress(OSError):
                segment.file.path.unlink()
                self._sync_directory()
            if not segment.file.path.exists():
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
            self._sync_directory()
        except OSError as error:
            self._report("rename_failed", segment=file.name, error=error.strerror or str(error))
        return renamed

    # --- records ------------------------------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Entry], connected: Collection[str] = ()) -> None:
        """Return when every entry is on disk. One failing disk costs a segment; a second failure raises `LogUnavailable`."""
        try:
            self._append(batch)
        except OSError as error:
            self._give_up(error)
            try:
                self.open_segment(connected)
                self._append(batch)
            except OSError as second:
                if self._open is not None:
                    self._give_up(second)
                raise LogUnavailable(str(second)) from None
        for entry in batch:
            self.carry.apply(entry.worker, entry.counter, entry.kind, entry.id, entry.exchange_id, entry.start)

    def _append(self, batch: Sequence[Entry]) -> None:
        segment = self._opened()
        n, h, lines = segment.n, segment.h, []
        for entry in batch:
            nonce = self._nonce() if segment.key else None
            header = record_header(
                n,
                self._time(),
                time.monotonic_ns() - self._started_ns,
                entry.worker.encode(),
                entry.counter,
                entry.metadata,
                h,
                segment.kid,
                nonce,
            )
            if segment.key and nonce:
                line = sealed_record(header, segment.key.seal(nonce, entry.body, header))
            else:
                line = clear_record(header, entry.body)
            h = leaf(line)
            n += 1
            lines.append(line)
        lines.append(b"")
        content = b"\n".join(lines)
        self._write_all(segment.descriptor, content)
        self._disk.sync_data(segment.descriptor)
        segment.n, segment.h = n, h
        segment.size += len(content)
        segment.lines += len(batch)
        segment.records += len(batch)

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

    def _sync_directory(self) -> None:
        with _descriptor(self._directory, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            self._disk.sync(descriptor)

    def _point_links_at(self, file: SegmentFile) -> None:
        """`audit.jsonl` here and one level up lead to the newest segment, for operators who grep."""
        parent = self._directory.parent
        for link, target in (
            (self._directory / LINK_NAME, Path(file.name)),
            (parent / LINK_NAME, Path(self._directory.name) / file.name),
        ):
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
