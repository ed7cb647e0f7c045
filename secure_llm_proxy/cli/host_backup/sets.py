"""Where backups lie, what a set consists of, and which sets are kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from secure_llm_proxy.cli.host_backup.signing import Origin, origin_of, sign
from secure_llm_proxy.foundation.errors import OperatorError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

STAMP = "%Y%m%dT%H%M%SZ"
LATEST = "latest"
DATABASE, SEGMENTS, CLOSED, KEYS, SETS = "database", "segments", "segments/closed", "keys", "sets"
# Of sets that are older only the newest of each day is kept.
EVERY_SET_DAYS = 2

_VERSION = 1
_STAMP = re.compile(r"\d{8}T\d{6}Z")
_MANIFEST = re.compile(r"(\d{8}T\d{6}Z)\.json")
_SIGNATURE = re.compile(r"(\d{8}T\d{6}Z)\.sig")
_STORED = re.compile(
    r"database/\d{8}T\d{6}Z\.(?:dump|sqlite)\.age|(?:segments|keys)/\d{8}T\d{6}Z\.tar\.age"
    r"|segments/closed/\d{8,}-\d{8}T\d{6}Z\.\d{8}T\d{6}Z\.age"
)
# Manifests lie in a folder of the audit writer's user, who signs them too, and root reads them: nothing in one may name a place of
# its choice.
_LOG_HOST = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_CLOSED_NAME = re.compile(r"(\d{8,}-\d{8}T\d{6}Z)(?:\.crashed)?\.jsonl")
_PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/=_-]{1,128}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_PIECE_BYTES = 1 << 20
_SIGNATURE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An encrypted file: where it lies below the backups' folder, and what it must be."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A closed segment, whose encrypted file is shared by every set that holds it. `size`, `sha256`: of what is inside."""

    name: str
    size: int
    sha256: str
    changed_ns: int
    file: StoredFile

    @property
    def stem(self) -> str:
        return stem_of(self.name)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One set. `tail` holds genesis.json, retired.jsonl and the segment that took lines; `recipients` can open all of it."""

    stamp: str
    release: str
    database_kind: str
    log: str
    log_host: str
    owner_public_key: str
    recipients: tuple[str, ...]
    database: StoredFile
    tail: StoredFile
    keys: StoredFile
    segments: tuple[StoredSegment, ...]
    # Segments that were stored before, in this set or an earlier one, with another content: one of the two was altered.
    altered: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[StoredFile, ...]:
        return (self.database, self.tail, self.keys, *(segment.file for segment in self.segments))

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def made_at(self) -> datetime:
        return datetime.strptime(self.stamp, STAMP).replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Signed:
    """A set, and who has signed its manifest."""

    manifest: Manifest
    origin: Origin


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    what: str
    well: bool
    found: str


def is_name_of_log(name: str) -> bool:
    """Whether a set can name its log's folder so: none can whose manifest `read` would refuse."""
    return _LOG_HOST.fullmatch(name) is not None


def stem_of(segment: str) -> str:
    """A closed segment may still get its last name; number and time stay."""
    return segment.partition(".")[0]


class Store:
    """The folder of all backups. Only one process at a time changes it: scripts/backup holds a lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        """Afterwards every folder is there, and nothing is left of runs that were killed."""
        try:
            for name in (DATABASE, SEGMENTS, CLOSED, KEYS, SETS):
                (self.directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
                for entry in (self.directory / name).iterdir():
                    if _TEMPORARY.fullmatch(entry.name):
                        entry.unlink()
        except OSError as error:
            raise OperatorError(f"The backups' folder cannot be used: {error.strerror} ({error.filename}).") from None

    def stamps(self) -> list[str]:
        """Every set, oldest first."""
        with contextlib.suppress(FileNotFoundError):
            names = [entry.name for entry in (self.directory / SETS).iterdir()]
            return sorted(match[1] for name in names if (match := _MANIFEST.fullmatch(name)))
        return []

    def newest(self) -> Signed | None:
        """The newest set whose manifest can be read."""
        for stamp in reversed(self.stamps()):
            with contextlib.suppress(OperatorError):
                return self.read(stamp)
        return None

    def find(self, wanted: str) -> Signed:
        """The set `wanted`: its stamp, or `latest`. Raises `OperatorError`."""
        stamps = self.stamps()
        if not stamps:
            raise OperatorError(f"{self.directory} holds no backup: there is no manifest in {SETS}/.")
        if wanted == LATEST:
            return self.read(stamps[-1])
        if wanted not in stamps:
            raise OperatorError(f"{self.directory} holds no set {wanted}; the newest one is {stamps[-1]}.")
        return self.read(wanted)

    def read(self, stamp: str) -> Signed:
        path = self.directory / SETS / f"{stamp}.json"
        try:
            # What is judged is what was read: the folder may be anybody's.
            content = path.read_bytes()
            return Signed(_manifest_of(orjson.loads(content), stamp), origin_of(content, self._signature(stamp)))
        except OSError as error:
            raise OperatorError(f"The manifest {path} cannot be read: {error.strerror}.") from None
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise OperatorError(f"The manifest {path} is none of this release's: {error}.") from None

    def _signature(self, stamp: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError), (self.directory / SETS / f"{stamp}.sig").open("rb") as stream:
            return stream.read(_SIGNATURE_BYTES_MAX)
        return None

    def write(self, manifest: Manifest, key: Ed25519PrivateKey) -> Path:
        """The set is there from now on, signed. Raises `OSError`, and then it is not."""
        path = self.directory / SETS / f"{manifest.stamp}.json"
        content = orjson.dumps({"v": _VERSION, **asdict(manifest)}, option=orjson.OPT_INDENT_2) + b"\n"
        # A file of its own, so that releases before this one can read the manifest; first, so that no set is there without it.
        self._write(path.with_suffix(".sig"), sign(content, key))
        self._write(path, content)
        return path

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            while content:
                content = content[os.write(descriptor, content) :]
            os.fsync(descriptor)
            temporary.rename(path)
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        sync(path.parent)

    def path_of(self, file: StoredFile) -> Path:
        return self.directory / file.path

    def troubles_of(self, files: Iterable[StoredFile]) -> Iterator[str]:
        """What is wrong with encrypted files, by their size, digest and header; needs no identity."""
        for file in files:
            path = self.path_of(file)
            try:
                with path.open("rb") as stream:
                    size, digest = os.fstat(stream.fileno()).st_size, digest_of(stream.fileno())
                    stream.seek(0)
                    header = stream.readline(64)
            except OSError as error:
                yield f"{file.path}: {error.strerror}"
                continue
            if size != file.size:
                yield f"{file.path}: {size} bytes where there must be {file.size}"
            elif digest != file.sha256:
                yield f"{file.path}: its digest is not the one in the manifest"
            elif header != b"age-encryption.org/v1\n":
                yield f"{file.path}: is not encrypted with age"

    def clear_out(self, keep_days: int, now: datetime) -> list[str]:
        """Remove sets that are not kept any more, and files of no set; returns the sets that went. Manifests go first, so
        that what is killed in between leaves no half of a set.
        """
        stamps = self.stamps()
        gone = sorted(set(stamps) - kept(stamps, keep_days, now))
        used: set[str] = set()
        for stamp in stamps:
            if stamp not in gone:
                # One that cannot be read stops this: its files must not go as nobody's.
                used |= {file.path for file in self.read(stamp).manifest.files}
        for stamp in gone:
            (self.directory / SETS / f"{stamp}.json").unlink()
        if gone:
            sync(self.directory / SETS)
        for entry in (self.directory / SETS).iterdir():
            match = _SIGNATURE.fullmatch(entry.name)
            if match and (match[1] in gone or match[1] not in stamps):
                entry.unlink()
        for folder in (DATABASE, SEGMENTS, CLOSED, KEYS):
            for entry in (self.directory / folder).iterdir():
                path = f"{folder}/{entry.name}"
                if _STORED.fullmatch(path) and path not in used:
                    entry.unlink()
        return gone


def check_stored(store: Store, manifest: Manifest) -> list[Check]:
    """Without any identity: every file is there, as long and with the digest that the manifest says, and is age's."""
    troubles = list(store.troubles_of(manifest.files))
    checks = [Check("file", well=False, found=trouble) for trouble in troubles]
    if manifest.altered:
        names = ", ".join(manifest.altered)
        checks.append(
            Check("segments", well=False, found=f"{names}: stored before with another content; verify the log")
        )
    whole = len(manifest.files) - len(troubles)
    return [
        *checks,
        Check("files", well=not troubles, found=f"{whole} of {len(manifest.files)} whole, {manifest.size} bytes"),
    ]


def kept(stamps: Sequence[str], keep_days: int, now: datetime) -> set[str]:
    """The newest always; all of the last two days; of days before that the newest of each, for `keep_days`."""
    chosen = set(stamps[-1:])
    newest_of_day: dict[str, str] = {}
    for stamp in sorted(stamps):
        made = datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)
        age = now - made
        if age <= timedelta(days=min(EVERY_SET_DAYS, keep_days)):
            chosen.add(stamp)
        if age <= timedelta(days=keep_days):
            newest_of_day[stamp[:8]] = stamp
    return chosen | set(newest_of_day.values())


def digest_of(descriptor: int) -> str:
    """SHA-256 of the whole file, as hex."""
    digest = hashlib.sha256()
    offset = 0
    while piece := os.pread(descriptor, _PIECE_BYTES, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest_of(members: dict[str, Any], stamp: str) -> Manifest:
    if members.pop("v") != _VERSION:
        raise ValueError("it was written by a later version")
    segments = members.pop("segments")
    if not isinstance(segments, list):
        raise TypeError("its segments are no list")
    files = {name: _file_of(members.pop(name)) for name in ("database", "tail", "keys")}
    lists = {name: tuple(members.pop(name)) for name in ("recipients", "altered")}
    found: dict[str, Any] = {
        **members,
        **files,
        **lists,
        "segments": tuple(StoredSegment(**{**segment, "file": _file_of(segment["file"])}) for segment in segments),
    }
    # Unknown and missing names raise TypeError, which is told.
    manifest = Manifest(**found)
    if manifest.stamp != stamp or not _STAMP.fullmatch(stamp):
        raise ValueError("it is the manifest of another set")
    _require_sound(manifest)
    return manifest


def _require_sound(manifest: Manifest) -> None:
    """Every name in it is one that a backup could have given. Raises `ValueError` or `TypeError`."""
    words = (manifest.release, manifest.database_kind, manifest.log, *manifest.recipients)
    if not all(word.isprintable() for word in words) or not _PUBLIC_KEY.fullmatch(manifest.owner_public_key):
        raise ValueError("it holds words that can be none of a backup")
    if not is_name_of_log(manifest.log_host):
        raise ValueError("it names a log that can be none")
    stamp = manifest.stamp
    whole = {f"{DATABASE}/{stamp}.dump.age", f"{DATABASE}/{stamp}.sqlite.age"}
    if (
        manifest.database.path not in whole
        or manifest.tail.path != f"{SEGMENTS}/{stamp}.tar.age"
        or manifest.keys.path != f"{KEYS}/{stamp}.tar.age"
    ):
        raise ValueError("it names a file that is none of this set")
    for segment in manifest.segments:
        match = _CLOSED_NAME.fullmatch(segment.name)
        if match is None or not segment.file.path.startswith(f"{CLOSED}/{match[1]}."):
            raise ValueError("it names a segment that can be none")
        _require_measured(segment.size, segment.sha256)
        if not isinstance(segment.changed_ns, int):
            raise TypeError("a time of it is no number")
    if not all(_CLOSED_NAME.fullmatch(name) for name in manifest.altered):
        raise ValueError("it names an altered segment that can be none")


def _file_of(members: object) -> StoredFile:
    if not isinstance(members, dict):
        raise TypeError("a file of it is no object")
    file = StoredFile(**members)
    if not _STORED.fullmatch(file.path):
        raise ValueError("it names a file that can be none of a backup")
    _require_measured(file.size, file.sha256)
    return file


def _require_measured(size: object, sha256: str) -> None:
    if not isinstance(size, int) or size < 0 or not _DIGEST.fullmatch(sha256):
        raise ValueError("it holds a size or digest that is none")
