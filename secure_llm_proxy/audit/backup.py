"""Copies of what is finished: closed segments with the root of trust in one place, snapshots of the key store in another.

Whoever finds only one of the two places reads nothing, and the key that signs (`epoch.key`) is in neither. A file appears
under its name whole and durable or not at all; what is there already is never overwritten, except by a longer
`retired.jsonl` that begins with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

from secure_llm_proxy.audit.durable_files import sync_directory
from secure_llm_proxy.audit.segments import (
    GENESIS_NAME,
    RETIRED_NAME,
    LogDirectories,
    SegmentFile,
    SegmentState,
    is_temporary,
    segments_in,
)
from secure_llm_proxy.foundation.clock import Clock, SystemClock
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings

KEY_STORE_NAME = "keys.db"
_SNAPSHOT = re.compile(r"keys-\d{8}T\d{6}\.\d{6}Z\.db")
_SNAPSHOT_NAME = "keys-%Y%m%dT%H%M%S.%fZ.db"
_SNAPSHOT_PATIENCE_S = 10.0
_PIECE_BYTES = 1 << 20


class BackupFailed(Exception):
    """Something is not in the backup, or not as it should be. The text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What one run did. `troubles` are sentences; what they do not name is safe in the backup."""

    segments: int
    held: int
    snapshot: str | None
    troubles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackupStanding:
    """How a backup compares with the log: `held` finished segments are in it; `newest` is when its newest segment ended."""

    directory: Path
    held: int
    missing: tuple[str, ...]
    differing: tuple[str, ...]
    newest: datetime | None
    snapshots: int
    snapshot: str | None


class Backup:
    """One host's backup. Used by one thread."""

    def __init__(self, settings: AuditSettings, directories: LogDirectories, *, clock: Clock | None = None) -> None:
        """Raises `OperatorError` when the places do not lie apart."""
        segments, keys = _places(settings)
        self.directory = segments / directories.first.name
        self.keys_directory = keys / directories.first.name
        self._directories = directories
        self._key_store = settings.keys_directory / KEY_STORE_NAME
        self._keys_days = settings.backup_keys_days
        self._free_bytes_min = settings.free_bytes_min
        self._clock = clock or SystemClock()
        # Stems of segments that were compared with their copy in this process.
        self._held: set[str] = set()

    def run(self, *, stopping: Callable[[], bool] = lambda: False) -> Copied:
        """Copy what is finished and not there yet. Failures are told, not raised. `stopping` is asked between two files."""
        troubles: list[str] = []
        copied = 0
        try:
            _make(self.directory, 0o750)
            copied = self._copy_segments(troubles, stopping)
            for name, grows in ((GENESIS_NAME, False), (RETIRED_NAME, True)):
                with _told(troubles):
                    self._copy_small(name, grows=grows)
        except OSError as error:
            troubles.append(f"The backup of the audit log fails: {error.strerror or error} ({self.directory}).")
        snapshot = None
        with _told(troubles):
            snapshot = self._snapshot_keys()
        return Copied(copied, len(self._held), snapshot, tuple(troubles))

    def holds(self, segment: SegmentFile) -> bool:
        """Whether a copy lies there that is equal, as far as size and time of change tell."""
        with contextlib.suppress(OSError):
            return any(_is_same(segment.path, path) for path in self._copies_of(segment))
        return False

    def standing(self) -> BackupStanding:
        """Compared now, by size and time of change. Raises `OperatorError` when a place can't be read."""
        held, missing, differing = 0, [], []
        newest = 0.0
        try:
            for segment in self._finished():
                copies = list(self._copies_of(segment))
                if not copies:
                    missing.append(segment.name)
                elif all(_is_same(segment.path, path) for path in copies):
                    held += 1
                    newest = max(newest, segment.path.stat().st_mtime)
                else:
                    differing.append(segment.name)
            snapshots = snapshots_in(self.keys_directory) if self.keys_directory.is_dir() else []
        except OSError as error:
            raise OperatorError(f"The backup cannot be looked at: {error.strerror} ({error.filename}).") from None
        return BackupStanding(
            directory=self.directory,
            held=held,
            missing=tuple(missing),
            differing=tuple(differing),
            newest=datetime.fromtimestamp(newest, UTC) if newest else None,
            snapshots=len(snapshots),
            snapshot=snapshots[-1] if snapshots else None,
        )

    def _finished(self) -> list[SegmentFile]:
        """Every segment but the one that takes lines. One that is followed by another is finished, even where a disk refused
        it its last name.
        """
        segments = self._directories.segments()
        takes_lines = bool(segments) and segments[-1].state is SegmentState.OPEN
        return segments[:-1] if takes_lines else segments

    # --- segments -----------------------------------------------------------------------------------------------------

    def _copy_segments(self, troubles: list[str], stopping: Callable[[], bool]) -> int:
        _clear_temporaries(self.directory)
        there = {segment.stem for segment in segments_in(self.directory)}
        self._held &= there
        copied = 0
        for segment in self._finished():
            if stopping():
                break
            if segment.stem in self._held:
                continue
            with _told(troubles):
                if segment.stem in there:
                    self._compare(segment)
                else:
                    self._copy(segment.path, self.directory / segment.name)
                    copied += 1
                self._held.add(segment.stem)
        return copied

    def _copies_of(self, segment: SegmentFile) -> Iterator[Path]:
        """Under any of its names: a segment that was set aside without a rename may be renamed later."""
        for state in SegmentState:
            path = self.directory / (segment.stem + state.value)
            if path.exists():
                yield path

    def _compare(self, segment: SegmentFile) -> None:
        for path in self._copies_of(segment):
            if not _is_same(segment.path, path):
                raise BackupFailed(
                    f"{path} is not the segment that the log holds, and is left as it is: one of the two was altered. "
                    "Run `manage.py audit verify` on both."
                )

    def _copy(self, source: Path, target: Path, *, mode: int = 0o440) -> None:
        """Afterwards the file is there whole, durable and under its name. Raises `OSError`, and then it is not there."""
        size = source.stat().st_size
        self._check_room(size)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            with source.open("rb") as stream:
                descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
                try:
                    written = 0
                    while sent := os.sendfile(descriptor, stream.fileno(), None, _PIECE_BYTES):
                        written += sent
                    if written != size:
                        raise BackupFailed(f"{source} changed while it was copied.")
                    stamp = os.fstat(stream.fileno()).st_mtime_ns
                    os.utime(descriptor, ns=(stamp, stamp))
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            temporary.rename(target)
            sync_directory(target.parent)
        except (OSError, BackupFailed):
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _check_room(self, size: int) -> None:
        """A backup on the disk of the log must not be what fills it."""
        if self.directory.stat().st_dev != self._directories.first.stat().st_dev:
            return
        free = shutil.disk_usage(self.directory).free
        if free - size < 2 * self._free_bytes_min:
            raise BackupFailed(
                f"The backup in {self.directory} shares a disk with the log, and takes none of its last "
                f"{2 * self._free_bytes_min >> 20} MiB."
            )

    def _copy_small(self, name: str, *, grows: bool) -> None:
        source, target = self._directories.first / name, self.directory / name
        try:
            content = source.read_bytes()
        except FileNotFoundError:
            if target.exists():
                raise BackupFailed(f"{source} is gone, and {target} is there: restore it.") from None
            return
        there = target.read_bytes() if target.exists() else None
        if there == content:
            return
        if there is not None and not (grows and content.startswith(there)):
            raise BackupFailed(
                f"{target} is not what {source} holds, and is left as it is: one of the two was altered."
            )
        self._copy(source, target)

    # --- the key store ------------------------------------------------------------------------------------------------

    def _snapshot_keys(self) -> str | None:
        """Afterwards the newest snapshot says what the key store says; returns its name. Old ones are gone."""
        if not self._key_store.exists():
            return None
        _make(self.keys_directory, 0o700)
        _clear_temporaries(self.keys_directory)
        there = snapshots_in(self.keys_directory)
        name = self._next_name(there[-1] if there else None)
        temporary = self.keys_directory / f".{name}.tmp"
        try:
            digest = _take_snapshot(self._key_store, temporary)
            if there and _digest_of(self.keys_directory / there[-1]) == digest:
                name = there[-1]
            else:
                temporary.rename(self.keys_directory / name)
                sync_directory(self.keys_directory)
        except sqlite3.Error as error:
            raise BackupFailed(f"The key store could not be copied: {error}.") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._drop_old_snapshots(keep=name)
        return name

    def _next_name(self, newest: str | None) -> str:
        """Behind every other in order of names, also with a clock that went back."""
        now = self._clock.now()
        if newest is not None:
            now = max(now, datetime.strptime(newest, _SNAPSHOT_NAME).replace(tzinfo=UTC) + timedelta(microseconds=1))
        return now.strftime(_SNAPSHOT_NAME)

    def _drop_old_snapshots(self, keep: str) -> None:
        oldest = (self._clock.now() - timedelta(days=self._keys_days)).strftime(_SNAPSHOT_NAME)
        for name in snapshots_in(self.keys_directory)[:-1]:
            if name < oldest and name != keep:
                (self.keys_directory / name).unlink()


def backup_of(settings: AuditSettings, directories: LogDirectories) -> Backup | None:
    """None where none is made. Raises `OperatorError` when its places do not lie apart."""
    return Backup(settings, directories) if settings.backup_enabled else None


def snapshots_in(directory: Path) -> list[str]:
    """Names of the key store's snapshots, oldest first."""
    return sorted(entry.name for entry in directory.iterdir() if _SNAPSHOT.fullmatch(entry.name))


def _places(settings: AuditSettings) -> tuple[Path, Path]:
    segments, keys = settings.backup_directory, settings.backup_keys_directory
    if segments is None or keys is None:
        raise OperatorError(
            "AUDIT_BACKUP_DIR and AUDIT_BACKUP_KEYS_DIR must be named while AUDIT_BACKUP_ENABLED is true."
        )
    own = {"AUDIT_BACKUP_DIR": segments, "AUDIT_BACKUP_KEYS_DIR": keys}
    others = {
        "AUDIT_DIR": settings.directory,
        "AUDIT_KEYS_DIR": settings.keys_directory,
        **({"AUDIT_FALLBACK_DIR": settings.fallback_directory} if settings.fallback_directory else {}),
    }
    for (name, place), (other_name, other) in combinations((own | others).items(), 2):
        if name in own and (_is_within(place, other) or _is_within(other, place)):
            raise OperatorError(
                f"{name} and {other_name} must be two directories, neither inside the other: a backup lies apart from "
                "the log, and keys lie apart from what they open."
            )
    return segments, keys


def _is_within(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())


@contextlib.contextmanager
def _told(troubles: list[str]) -> Iterator[None]:
    """One file's failure is told and keeps no other from being copied."""
    try:
        yield
    except BackupFailed as error:
        troubles.append(str(error))
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        troubles.append(f"The backup of the audit log fails: {error.strerror or error}{place}.")


def _make(directory: Path, mode: int) -> None:
    directory.mkdir(mode=mode, parents=True, exist_ok=True)


def _clear_temporaries(directory: Path) -> None:
    for entry in directory.iterdir():
        # SQLite puts its own files beside the one that is being made.
        if is_temporary(entry.name) or entry.name.startswith(".keys-"):
            entry.unlink()


def _is_same(source: Path, copy: Path) -> bool:
    """By size and time of change, as rsync does; where these differ, by content."""
    ours, theirs = source.stat(), copy.stat()
    if ours.st_size != theirs.st_size:
        return False
    return ours.st_mtime_ns == theirs.st_mtime_ns or _sha256(source) == _sha256(copy)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _take_snapshot(store: Path, target: Path) -> bytes:
    """A consistent copy as one file, on disk when this returns; the digest of what it says."""
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    os.close(descriptor)
    with (
        contextlib.closing(
            sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, timeout=_SNAPSHOT_PATIENCE_S)
        ) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        # Without a write-ahead log beside it.
        copy.execute("PRAGMA journal_mode=DELETE")
        digest = _digest(copy)
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest


def _digest_of(snapshot: Path) -> bytes | None:
    try:
        with contextlib.closing(sqlite3.connect(f"{snapshot.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            return _digest(connection)
    except sqlite3.Error:
        # Damaged: another is made, and this one kept.
        return None


def _digest(connection: sqlite3.Connection) -> bytes:
    digest = hashlib.sha256()
    for line in connection.iterdump():
        # Written to see whether the store can be written.
        if not line.startswith('INSERT INTO "probe"'):
            digest.update(line.encode() + b"\n")
    return digest.digest()
