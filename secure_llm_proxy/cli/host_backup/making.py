"""Making a set: database first, then segments, then keys, so that the log knows of every change in the database, and the key
store holds every key that the log needs. The manifest comes last.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from secure_llm_proxy import __version__
from secure_llm_proxy.audit import find_log, read_genesis
from secure_llm_proxy.audit.genesis import GenesisBroken
from secure_llm_proxy.audit.keystore import BEGUN_NAME, KEYS_NAME
from secure_llm_proxy.audit.retirement import was_retired
from secure_llm_proxy.audit.segments import (
    GENESIS_NAME,
    RETIRED_NAME,
    LogDirectories,
    SegmentFile,
    SegmentState,
)
from secure_llm_proxy.cli.host_backup.databases import ENDINGS
from secure_llm_proxy.cli.host_backup.installed import Installed
from secure_llm_proxy.cli.host_backup.sealing import Feed, recipients_in, seal
from secure_llm_proxy.cli.host_backup.sets import (
    CLOSED,
    DATABASE,
    KEYS,
    SEGMENTS,
    STAMP,
    Manifest,
    Store,
    StoredFile,
    StoredSegment,
    digest_of,
    is_name_of_log,
    stem_of,
)
from secure_llm_proxy.cli.host_backup.signing import SIGNING_KEY, public_text
from secure_llm_proxy.foundation.errors import OperatorError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SETTINGS_FOLDER = "settings"
_PIECE_BYTES = 1 << 20
_LINE_BYTES_MAX = 1 << 24
# What stays free behind a backup, whatever was estimated.
_SPARE_BYTES = 64 << 20
_FIRST_DUMP_SHARE = 2
_NEXT_DUMP_SHARE = 1.25
_SLACK_BYTES = 4 << 20
_LEGACY_JOURNAL = b"\x01\x01"


@dataclass(frozen=True, slots=True)
class Room:
    """What a run is expected to write, by part, and what is free where it goes."""

    database: int
    segments: int
    keys: int
    new_segments: int
    free: int

    @property
    def needed(self) -> int:
        return self.database + self.segments + self.keys


class Run:
    """One run over what is installed. Not repeatable: make another."""

    def __init__(
        self,
        installed: Installed,
        store: Store,
        recipients: Path,
        key: Ed25519PrivateKey | None,
        say: Callable[[str], None],
    ) -> None:
        """Without the key that signs only `room` can be asked."""
        self._installed = installed
        self._store = store
        self._recipients_file = recipients
        self._recipients = recipients_in(recipients)
        self._say = say
        self._audit = installed.audit
        self._database = installed.database
        self._log = find_log(self._audit.directory, self._audit.host_id, self._audit.fallback_directory)
        try:
            self._genesis = read_genesis(self._log.first)
        except (GenesisBroken, FileNotFoundError) as error:
            raise OperatorError(f"{self._log.first} holds no sound {GENESIS_NAME}: {error}.") from None
        if not is_name_of_log(self._log.first.name):
            raise OperatorError(
                f"The log's folder {self._log.first} cannot be named in a set: letters, digits, `.`, `_` and `-` can, at most 64. "
                "Stop the audit writer, rename the folder (and AUDIT_HOST_ID), and start it again."
            )
        self._key = key
        found = store.newest()
        newest = found.manifest if found else None
        self._before = newest
        # What a manifest of somebody else's says of a segment is believed only where the segment itself bears it out.
        self._is_ours = found is not None and key is not None and found.origin.signer == public_text(key)
        self._stored = {segment.stem: segment for segment in newest.segments} if newest else {}

    def room(self) -> Room:
        """Raises `OperatorError` when a place that is written to has not enough of it."""
        closed, taking = _parted(self._log)
        new = [segment for segment in closed if self._known(segment) is None]
        known = self._before.database.size if self._before else None
        whole = self._database.size()
        dump = min(whole, int(known * _NEXT_DUMP_SHARE)) if known else whole // _FIRST_DUMP_SHARE
        room = Room(
            database=dump + _SLACK_BYTES,
            segments=sum(segment.size() for segment in [*new, *taking]) + _SLACK_BYTES,
            keys=_size_of(self._audit.keys_directory / KEYS_NAME) + sum(map(len, self._installed.settings.values())),
            new_segments=len(new),
            free=shutil.disk_usage(_existing(self._store.directory)).free,
        )
        self._require(room)
        return room

    def make(self) -> Manifest:
        """A new set is there, whole. Raises `OperatorError`, and then there is none, and every older one is as it was."""
        assert self._key is not None
        stamp = _new_stamp(self._store)
        self._say(f"database ({self._database.kind})")
        database = self._seal_database(stamp)
        self._say(f"segments of {self._genesis.log}")
        segments, altered, tail = self._seal_log(stamp)
        self._say("key store and settings")
        keys = self._seal(KEYS, self._feed_keys, f"{stamp}.tar.age")
        manifest = Manifest(
            stamp=stamp,
            release=__version__,
            database_kind=self._database.kind,
            log=self._genesis.log,
            log_host=self._log.first.name,
            owner_public_key=self._genesis.owner_public_key,
            recipients=self._recipients,
            database=database,
            tail=tail,
            keys=keys,
            segments=tuple(segments),
            altered=tuple(altered),
        )
        try:
            self._store.write(manifest, self._key)
        except OSError as error:
            raise OperatorError(f"The manifest cannot be written: {error.strerror} ({error.filename}).") from None
        return manifest

    # --- database -----------------------------------------------------------------------------------------------------

    def _seal_database(self, stamp: str) -> StoredFile:
        name = f"{stamp}.{ENDINGS[self._database.kind]}.age"
        return self._seal(DATABASE, self._database.dump, name)

    # --- segments -----------------------------------------------------------------------------------------------------

    def _seal_log(self, stamp: str) -> tuple[list[StoredSegment], list[str], StoredFile]:
        closed, taking = _parted(self._log)
        stored: list[StoredSegment] = []
        altered: list[str] = []
        # The copy of the newest set may be the altered one: the alarm goes on until somebody has looked.
        suspect = {stem_of(name) for name in self._before.altered} if self._before else set()
        for segment in closed:
            try:
                known = self._known(segment) or self._seal_segment(segment, stamp)
            except FileNotFoundError:
                if not was_retired(self._log.first, segment):
                    raise OperatorError(f"{segment.path} is gone, and nothing says that it was retired.") from None
                # And so was everything before it.
                stored.clear()
                continue
            before = self._stored.get(segment.stem)
            if segment.stem in suspect or (before is not None and before.sha256 != known.sha256):
                altered.append(segment.name)
            stored.append(known)
        tail = self._seal(SEGMENTS, lambda feed: self._feed_tail(feed, taking), f"{stamp}.tar.age")
        return stored, altered, tail

    def _known(self, segment: SegmentFile) -> StoredSegment | None:
        """The same segment as the newest set has it: by size and time of change, as rsync judges it; where the time differs,
        by content.
        """
        before = self._stored.get(segment.stem)
        if before is None:
            return None
        with contextlib.suppress(OSError), segment.open() as stream:
            status = os.fstat(stream.fileno())
            if self._store.path_of(before.file).stat().st_size != before.file.size or status.st_size != before.size:
                return None
            untouched = self._is_ours and status.st_mtime_ns == before.changed_ns
            if untouched or digest_of(stream.fileno()) == before.sha256:
                return StoredSegment(segment.name, before.size, before.sha256, status.st_mtime_ns, before.file)
        return None

    def _seal_segment(self, segment: SegmentFile, stamp: str) -> StoredSegment:
        # Named by the set as well: what another set names is never written over.
        name = f"{segment.stem}.{stamp}.age"
        with segment.open() as stream:
            status = os.fstat(stream.fileno())
            path = self._store.directory / CLOSED
            sealed = seal(path, self._recipients_file, lambda feed: _copy(stream, feed, status.st_size), name)
        return StoredSegment(
            segment.name,
            sealed.plain_size,
            sealed.plain_sha256,
            status.st_mtime_ns,
            StoredFile(f"{CLOSED}/{sealed.name}", sealed.size, sealed.sha256),
        )

    def _feed_tail(self, feed: Feed, taking: list[SegmentFile]) -> None:
        """genesis.json, retired.jsonl, and the segment that takes lines up to its last whole one."""
        with _archive(feed) as archive, contextlib.ExitStack() as stack:
            _add(archive, GENESIS_NAME, (self._log.first / GENESIS_NAME).read_bytes())
            streams = [(segment, stack.enter_context(segment.open())) for segment in taking]
            while True:
                # The log tells of every segment that is listed as retired, and of none that is not: both are of one moment.
                retired = self._retired()
                ends = [_end_of_last_line(stream, os.fstat(stream.fileno()).st_size) for _, stream in streams]
                if retired == self._retired():
                    break
            if retired is not None:
                _add(archive, RETIRED_NAME, retired)
            for (segment, stream), end in zip(streams, ends, strict=True):
                if end:
                    stream.seek(0)
                    _add_stream(archive, segment.name, stream, end, os.fstat(stream.fileno()).st_mtime_ns)

    def _retired(self) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return (self._log.first / RETIRED_NAME).read_bytes()
        return None

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _feed_keys(self, feed: Feed) -> None:
        with _archive(feed) as archive:
            store = self._audit.keys_directory / KEYS_NAME
            if store.exists():
                _add(archive, KEYS_NAME, snapshot_of(store))
                _add(archive, BEGUN_NAME, b"")
            for name, content in self._installed.settings.items():
                # Whoever opens a set must not be able to sign the next one.
                if name != SIGNING_KEY:
                    _add(archive, f"{SETTINGS_FOLDER}/{name}", content)

    # --- places -------------------------------------------------------------------------------------------------------

    def _seal(self, folder: str, feed: Callable[[Feed], None], name: str) -> StoredFile:
        sealed = seal(self._store.directory / folder, self._recipients_file, feed, name)
        return StoredFile(f"{folder}/{sealed.name}", sealed.size, sealed.sha256)

    def _require(self, room: Room) -> None:
        """Each file system that a part goes to must have room for all parts that go there."""
        wanted: dict[int, tuple[Path, int]] = {}
        for folder, size in ((DATABASE, room.database), (SEGMENTS, room.segments), (KEYS, room.keys)):
            place = _existing(self._store.directory / folder)
            device = place.stat().st_dev
            wanted[device] = (place, wanted.get(device, (place, 0))[1] + size)
        log_device = self._log.first.stat().st_dev
        for device, (place, size) in wanted.items():
            free = shutil.disk_usage(place).free
            # A backup must not be what stops the log.
            spare = max(_SPARE_BYTES, 2 * self._audit.free_bytes_min) if device == log_device else _SPARE_BYTES
            if free < size + spare:
                raise OperatorError(
                    f"{place} has {_mib(free)} free, and about {_mib(size)} are needed besides {_mib(spare)} that stay free"
                    + (" since the audit log is on the same disk" if device == log_device else "")
                    + ". Give it room, keep fewer days, or put backups elsewhere. Nothing was written or removed."
                )


def snapshot_of(store: Path) -> bytes:
    """The key store as it is now, as the bytes of one SQLite file; never on a disk in this form."""
    try:
        for mode in ("ro", "ro&immutable=1"):
            # Nobody has it open, and there is no place for SQLite's files beside it: then it does not change either.
            with contextlib.suppress(sqlite3.OperationalError):
                return _serialised(f"{store.absolute().as_uri()}?mode={mode}")
        return _serialised(f"{store.absolute().as_uri()}?mode=ro")
    except sqlite3.Error as error:
        raise OperatorError(f"The key store {store} cannot be copied: {error}.") from None


def _serialised(uri: str) -> bytes:
    with (
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as source,
        contextlib.closing(sqlite3.connect(":memory:")) as copy,
    ):
        source.backup(copy)
        image = copy.serialize()
    # Bytes 18 and 19 say how it is written (sqlite.org/fileformat2.html#file_format_version_numbers): no write-ahead log
    # lies beside this one.
    return image[:18] + _LEGACY_JOURNAL + image[20:]


def _parted(log: LogDirectories) -> tuple[list[SegmentFile], list[SegmentFile]]:
    """Segments that never change any more, and the one that takes lines, if there is one."""
    segments = log.segments()
    takes_lines = bool(segments) and segments[-1].state is SegmentState.OPEN
    return (segments[:-1], segments[-1:]) if takes_lines else (segments, [])


def _end_of_last_line(stream: BinaryIO, size: int) -> int:
    """How many of the first `size` bytes are whole lines."""
    at = size
    while at > 0:
        begin = max(0, at - _PIECE_BYTES)
        stream.seek(begin)
        newline = stream.read(at - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        at = begin
    return 0


def _copy(stream: BinaryIO, feed: Feed, size: int) -> None:
    left = size
    while left and (piece := stream.read(min(left, _PIECE_BYTES))):
        feed.write(piece)
        left -= len(piece)
    if left:
        raise OperatorError(f"A segment became shorter while it was copied ({stream.name}).")


@contextlib.contextmanager
def _archive(feed: Feed) -> Iterator[tarfile.TarFile]:
    with tarfile.open(fileobj=feed, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        yield archive


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    _add_stream(archive, name, io.BytesIO(content), len(content), time.time_ns())


def _add_stream(archive: tarfile.TarFile, name: str, stream: BinaryIO, size: int, changed_ns: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, changed_ns // 1_000_000_000, 0o600
    archive.addfile(entry, stream)


def _new_stamp(store: Store) -> str:
    """Behind every other, also with a clock that went back: then the time of the newest set counts on."""
    while True:
        stamp = datetime.now(UTC).strftime(STAMP)
        stamps = store.stamps()
        if not stamps or stamp > stamps[-1]:
            return stamp
        if stamps[-1] > stamp:
            _refuse_the_clock(stamps[-1], stamp)
        time.sleep(0.1)


def _refuse_the_clock(newest: str, now: str) -> NoReturn:
    raise OperatorError(
        f"The newest set is of {newest}, which is in the future: the clock says {now}. Put the clock right; if it is right, "
        f"move sets/{newest}.json away."
    )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _size_of(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
