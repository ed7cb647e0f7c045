"""Is a set a backup? Opened with the identity: the dump listed, the log verified, the keys read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from secure_llm_proxy.audit import Outcome, VerificationReport, verify
from secure_llm_proxy.audit.keystore import BEGUN_NAME, KEYS_NAME
from secure_llm_proxy.audit.segments import GENESIS_NAME, RETIRED_NAME
from secure_llm_proxy.cli.host_backup.databases import ENDINGS, POSTGRESQL, PostgreSQL, SQLite
from secure_llm_proxy.cli.host_backup.making import SETTINGS_FOLDER
from secure_llm_proxy.cli.host_backup.sealing import opened
from secure_llm_proxy.cli.host_backup.sets import Check, Manifest, Store, StoredSegment
from secure_llm_proxy.foundation.errors import OperatorError

_PIECE_BYTES = 1 << 20
_KEYS_BYTES_MAX = 1 << 30
_OPEN_SEGMENT = re.compile(r"\d{8,}-\d{8}T\d{6}Z\.jsonl\.open")


@dataclass(frozen=True, slots=True)
class KeysPart:
    """What the keys' file of a set holds."""

    store: bytes | None
    settings: dict[str, bytes] = field(repr=False)

    def keks(self) -> set[str]:
        """Ids of the key-encryption keys that wrap what is in the key store. Raises `OperatorError` when it is damaged."""
        if self.store is None:
            return set()
        try:
            with contextlib.closing(sqlite3.connect(":memory:")) as connection:
                connection.deserialize(self.store)
                (found,) = connection.execute("PRAGMA integrity_check").fetchone()
                if found != "ok":
                    raise OperatorError(f"The key store in the backup is damaged: {found}.")
                rows = connection.execute(
                    "SELECT kek FROM subject_keys UNION SELECT kek FROM system_keys UNION SELECT kek FROM meta"
                ).fetchall()
        except sqlite3.Error as error:
            raise OperatorError(f"The key store in the backup is damaged: {error}.") from None
        return {str(kek) for (kek,) in rows}


def check_opened(
    store: Store, manifest: Manifest, identity: Path, workshop: Path, owner: str | None, say: Callable[[str], None]
) -> list[Check]:
    """With the identity: everything is decrypted; the log is unpacked below `workshop` and verified there."""
    checks = []
    looks: dict[str, Callable[[], str]] = {
        "database": lambda: check_dump(store, manifest, identity),
        "keys": lambda: _told_of_keys(read_keys(store, manifest, identity)),
    }
    for what, look in looks.items():
        say(f"opening the {what}")
        try:
            checks.append(Check(what, well=True, found=look()))
        except OperatorError as error:
            checks.append(Check(what, well=False, found=str(error)))
    say("unpacking and verifying the segments")
    try:
        unpack_log(store, manifest, identity, workshop)
        checks.append(verified(workshop, owner))
    except OperatorError as error:
        checks.append(Check("segments", well=False, found=str(error)))
    return checks


def check_dump(store: Store, manifest: Manifest, identity: Path) -> str:
    """Raises `OperatorError` when the dump can't be read to its end."""
    if manifest.database_kind not in ENDINGS:
        raise OperatorError(f"This release knows no database of the kind {manifest.database_kind}.")
    check = PostgreSQL.check_dump if manifest.database_kind == POSTGRESQL else SQLite.check_dump
    with opened(store, manifest.database, identity) as dump:
        return f"{manifest.database_kind}: {check(dump)}"


def read_keys(store: Store, manifest: Manifest, identity: Path) -> KeysPart:
    """Into memory: nothing of it is written in clear. Raises `OperatorError`."""
    keys, settings = None, {}
    with opened(store, manifest.keys, identity) as stream, _archive(stream) as archive:
        for entry in archive:
            content = _content(archive, entry)
            if entry.name == KEYS_NAME:
                keys = content
            elif entry.name.startswith(f"{SETTINGS_FOLDER}/"):
                settings[entry.name.removeprefix(f"{SETTINGS_FOLDER}/")] = content
            elif entry.name != BEGUN_NAME:
                raise OperatorError(f"{manifest.keys.path} holds {entry.name!r}, which is no part of a backup.")
    if any(name.count("/") > 1 or ".." in name.split("/") or name.startswith("/") for name in settings):
        raise OperatorError(f"{manifest.keys.path} names settings outside their folder.")
    return KeysPart(keys, settings)


def unpack_log(store: Store, manifest: Manifest, identity: Path, target: Path) -> None:
    """Afterwards `target` holds the log of the set, synced. Raises `OperatorError`."""
    try:
        with fresh_folder(target) as folder:
            with opened(store, manifest.tail, identity) as stream, _archive(stream) as archive:
                for entry in archive:
                    known = entry.name in {GENESIS_NAME, RETIRED_NAME} or _OPEN_SEGMENT.fullmatch(entry.name)
                    content = archive.extractfile(entry) if known and entry.isreg() else None
                    if content is None:
                        raise OperatorError(f"{manifest.tail.path} holds {entry.name!r}, which is no part of a log.")
                    write_into(folder, entry.name, content, 0o440 if entry.name == GENESIS_NAME else 0o640)
            for segment in manifest.segments:
                _unpack_segment(store, segment, identity, folder)
    except OSError as error:
        raise OperatorError(f"The log cannot be unpacked to {target}: {error.strerror} ({error.filename}).") from None


@contextlib.contextmanager
def fresh_folder(target: Path) -> Iterator[int]:
    """`target` is made, in a folder that is ours alone, and held by its descriptor: the place above may be another user's, who
    could lay a link there, or exchange what we have made. Raises `OSError`, `OperatorError`.
    """
    target.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        target.parent.mkdir(mode=0o700)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        stage = os.open(target.parent, flags)
    except OSError as error:
        raise OperatorError(
            f"{target.parent} is no folder of ours: {error.strerror}. Remove it and begin again."
        ) from None
    try:
        if os.fstat(stage).st_uid != os.geteuid():
            raise OperatorError(
                f"{target.parent} is another user's: look at who has made it, remove it and begin again."
            )
        os.mkdir(target.name, mode=0o750, dir_fd=stage)
        folder = os.open(target.name, flags, dir_fd=stage)
        try:
            yield folder
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        os.close(stage)


def verified(log: Path, owner: str | None) -> Check:
    report = verify(log, genesis_public_key=owner)
    return Check("segments", well=report.outcome is Outcome.OK, found=_told_of_log(report))


def _told_of_log(report: VerificationReport) -> str:
    told = f"{report.outcome.value}: {report.segments} segments, {report.lines} lines, {report.first_time} to {report.last_time}"
    worst = [str(finding) for finding in report.findings if finding.severity.value == report.outcome.value]
    return "; ".join([told, *worst[:3]])


def _told_of_keys(keys: KeysPart) -> str:
    kept = (
        "no key store yet" if keys.store is None else f"key store, wrapped by {len(keys.keks())} key-encryption key(s)"
    )
    return f"{kept}; {len(keys.settings)} files of settings and secrets"


def _unpack_segment(store: Store, segment: StoredSegment, identity: Path, folder: int) -> None:
    with opened(store, segment.file, identity) as stream:
        digest, size = write_into(folder, segment.name, stream, 0o440)
    if (digest, size) != (segment.sha256, segment.size):
        raise OperatorError(f"{segment.file.path} does not hold the segment that the manifest says.")
    times = (segment.changed_ns, segment.changed_ns)
    os.utime(segment.name, ns=times, dir_fd=folder, follow_symlinks=False)


@contextlib.contextmanager
def _archive(stream: IO[bytes]) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            yield archive
    except (tarfile.TarError, EOFError) as error:
        raise OperatorError(f"The backup holds no archive of ours: {error}.") from None


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(entry) if entry.isreg() else None
    if content is None or entry.size > _KEYS_BYTES_MAX:
        raise OperatorError(f"The backup holds {entry.name!r}, which is no file of ours.")
    return content.read()


def write_into(folder: int, name: str, source: IO[bytes], mode: int) -> tuple[str, int]:
    """A new file in the folder of this descriptor, synced; returns the digest and the size of what it holds."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=folder)
    try:
        while piece := source.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest(), size


def remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
