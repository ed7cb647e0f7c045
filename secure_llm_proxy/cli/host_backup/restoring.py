"""The way back: everything of a set is opened, unpacked and verified beside what is there, and only then put in its place.

Nothing that was there is deleted: it is moved aside, on the same disk or within the same database, under the time of the restore.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pwd
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from secure_llm_proxy.audit import KeyRing, RecordLine, host_directory, log_lines, read_genesis
from secure_llm_proxy.audit.epoch import EPOCH_KEY_NAME, NEXT_KEY_NAME
from secure_llm_proxy.audit.format import base64_text
from secure_llm_proxy.audit.genesis import owner_key_from
from secure_llm_proxy.audit.keystore import BEGUN_NAME, KEYS_NAME
from secure_llm_proxy.audit.segments import GENESIS_NAME, RETIRED_NAME, SegmentFile, hosts_in, segments_in
from secure_llm_proxy.cli.host_backup.checking import (
    KeysPart,
    check_dump,
    fresh_folder,
    read_keys,
    unpack_log,
    verified,
    write_into,
)
from secure_llm_proxy.cli.host_backup.installed import (
    AUDIT_CREDENTIALS,
    AUDIT_ENV,
    CREDENTIALS,
    ENV,
    MODELS,
    TLS,
    Installed,
    host_in,
    instance_in,
)
from secure_llm_proxy.cli.host_backup.making import snapshot_of
from secure_llm_proxy.cli.host_backup.sealing import opened
from secure_llm_proxy.cli.host_backup.sets import DATABASE, STAMP, Check, Manifest, Store, check_stored
from secure_llm_proxy.foundation.errors import OperatorError

# What belongs to this host and not to what is restored: how its servers are reached, and where it listens.
HOST_BOUND = frozenset(f"{CREDENTIALS}/{name}" for name in ("database_url", "redis_url", "redis_password"))
_HOST_BOUND_LINE = re.compile(rb"\s*(?:export\s+)?(?:REDIS_URL|BIND)\s*=")
# What else lies in the settings' folder is this host's: scripts/firewall runs the lines of its firewall.undo, scripts/install
# believes its install.conf, and backup-signing-key speaks for this host. So nothing but these comes back.
_RESTORED = re.compile(
    r"env|audit\.env|models\.yaml|backup-recipient|owner-public-key|[A-Za-z0-9_][A-Za-z0-9._-]*\.(?:pem|crt)"
    r"|(?:credentials|audit-credentials|tls)/[A-Za-z0-9_][A-Za-z0-9._-]*"
)
_SECRETS = ("SECRET_KEY", "ENCRYPTION_KEY")
_SPARE_BYTES = 64 << 20
_USED_LOG_BYTES = 16 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WEB_USER, _AUDIT_USER = "secure_llm_proxy", "secure-llm-audit"


@dataclass(frozen=True, slots=True)
class Replaced:
    """Something that is there now, and where it is kept."""

    what: str
    where: str
    found: str


@dataclass(frozen=True, slots=True)
class Target:
    """Where to restore to: an installed host by its settings' folder, or an embedded instance."""

    settings_directory: Path | None
    instance: Path | None
    env_file: Path | None

    def installed(self, settings: Mapping[str, bytes]) -> Installed:
        return host_in(settings) if self.instance is None else instance_in(self.instance, settings)

    def place_of(self, name: str) -> Path:
        """Where a file of settings lies."""
        if self.instance is None:
            assert self.settings_directory is not None
            return self.settings_directory / name
        assert self.env_file is not None
        return self.env_file if name == ENV else self.env_file.parent / "config" / name


@dataclass(frozen=True, slots=True)
class Newer:
    """Copies that outlived the host and reach further than the set: the audit writer's own backup, on another disk."""

    log: Path | None
    key_store: Path | None

    def keys(self, keys: KeysPart) -> KeysPart:
        if self.key_store is None:
            return keys
        return KeysPart(snapshot_of(self.key_store), keys.settings)

    def segments(self) -> list[SegmentFile]:
        assert self.log is not None
        return segments_in(host_directory(self.log))

    def copy_log(self, target: Path, manifest: Manifest) -> str:
        """Afterwards `target` holds the log. Raises `OperatorError` when it does not hold all that the set holds."""
        assert self.log is not None
        source = host_directory(self.log)
        segments = {segment.stem: segment for segment in segments_in(source)}
        for known in manifest.segments:
            there = segments.get(known.stem)
            if there is None or there.path.stat().st_size != known.size:
                raise OperatorError(
                    f"{source} does not hold {known.name} as the set does: it is no newer copy of this log"
                )
        with fresh_folder(target) as folder:
            for path in [
                source / GENESIS_NAME,
                source / RETIRED_NAME,
                *(segment.path for segment in segments.values()),
            ]:
                if path.exists():
                    with path.open("rb") as copied:
                        status = os.fstat(copied.fileno())
                        write_into(folder, path.name, copied, status.st_mode & 0o777)
                    times = (status.st_atime_ns, status.st_mtime_ns)
                    os.utime(path.name, ns=times, dir_fd=folder, follow_symlinks=False)
        return f"{len(segments)} segments of {source}"


class Restore:
    """One set, and the place that it goes to. `check` first; `apply` takes what it has unpacked."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        identity: Path,
        target: Target,
        there: Mapping[str, bytes],
        say: Callable[[str], None],
        *,
        with_settings: bool,
        newer: Newer,
    ) -> None:
        """`there` are the files of settings as they are now. Raises `OperatorError` when the set's keys can't be opened."""
        self._store = store
        self._manifest = manifest
        self._identity = identity
        self._target = target
        self._there = there
        self._say = say
        self._newer = newer
        self.keys: KeysPart = newer.keys(read_keys(store, manifest, identity))
        self.settings = self._chosen() if with_settings else {}
        self._installed = target.installed({**there, **self.settings})
        self._audit = self._installed.audit
        self._stage = self._audit.directory / f".restoring-{manifest.stamp}"
        self._log = self._audit.directory / manifest.log_host

    # --- looking ------------------------------------------------------------------------------------------------------

    def check(self, owner_key: str | None) -> list[Check]:
        """Open, unpack and verify all of it, beside what is there. Whatever is not well keeps `apply` from beginning."""
        checks = check_stored(self._store, self._manifest)
        if not all(check.well for check in checks):
            return checks
        steps: list[tuple[str, Callable[[], str]]] = [
            ("places", self._check_places),
            ("database dump", lambda: check_dump(self._store, self._manifest, self._identity)),
            ("database here", self._check_database),
            ("secrets", self._check_secrets),
            ("key store", self._check_keys),
            ("log's name", self._check_host_id),
            ("owner key", lambda: self._check_owner(owner_key)),
            ("log unpacked", self._unpack),
        ]
        for what, look in steps:
            self._say(what)
            try:
                checks.append(Check(what, well=True, found=look()))
            except OperatorError as error:
                checks.append(Check(what, well=False, found=str(error)))
        if checks[-1].well:
            self._say("verifying the log")
            checks.append(verified(self._stage / self._manifest.log_host, self._manifest.owner_public_key))
        if all(check.well for check in checks):
            (self._stage / "checked").touch(mode=0o600)
        return checks

    def clear(self) -> None:
        """Nothing is left of what `check` unpacked, in this run or in one that was killed, of whatever set."""
        for stage in self._audit.directory.glob(".restoring-*"):
            shutil.rmtree(stage, ignore_errors=True)

    def used(self) -> list[str]:
        """What shows that the place is in use; empty for a host that was only installed."""
        found = []
        with contextlib.suppress(OperatorError):
            if use := self._installed.database.use():
                found.append(use)
        for log in self._logs():
            size = sum(segment.path.stat().st_size for segment in segments_in(log))
            if size > _USED_LOG_BYTES or any(
                isinstance(item.line, RecordLine) and item.line.type.startswith("llm.") for item in log_lines(log)
            ):
                found.append(f"the log {log} holds requests")
        return found

    def replaced(self) -> list[Replaced]:
        """What is there now and would be moved aside."""
        rows = [Replaced("log", str(log), _told_of_log(log)) for log in self._logs()]
        rows += [
            Replaced("keys", str(path), f"{path.stat().st_size} bytes")
            for path in self._key_files()
            # SQLite's own files go with their database.
            if not path.name.endswith(("-wal", "-shm"))
        ]
        use = None
        with contextlib.suppress(OperatorError):
            use = self._installed.database.use()
        rows.append(Replaced("database", self._installed.database.kind, use or "nothing that anybody works with"))
        rows += [
            Replaced("settings", str(self._target.place_of(name)), "another content")
            for name, content in sorted(self.settings.items())
            if name in self._there and self._there[name] != content
        ]
        return rows

    # --- doing --------------------------------------------------------------------------------------------------------

    def apply(self) -> Iterator[Check]:
        """Nobody works on the data. Afterwards it is the set's; what was there is kept. Each part is told once it stands: before
        the first one, nothing has changed.
        """
        staged = self._stage / self._manifest.log_host
        if not (self._stage / "checked").exists() or not staged.is_dir():
            raise OperatorError(f"{self._stage} holds no log that was checked; begin again.")
        # Its own name also when another run was killed in the same second: nothing that is kept is ever replaced.
        aside = f"{datetime.now(UTC).strftime(STAMP)}_{os.urandom(2).hex()}"
        self._say("database")
        keys = self._audit.keys_directory
        try:
            self._check_places()
            dumps = self._own_copy_of_dump()
            # From here to the end of all of it no audit writer starts, and without one nothing is served: whatever kills this.
            kept_back = _move_aside(keys, (EPOCH_KEY_NAME, NEXT_KEY_NAME), aside)
            try:
                with opened(dumps, self._manifest.database, self._identity) as dump:
                    kept = self._installed.database.put_back(dump, aside)
            except BaseException:
                _move_back(keys, kept_back, aside)
                raise
        except OperatorError:
            self.clear()
            raise
        except OSError as error:
            self.clear()
            raise OperatorError(f"{error.filename}: {error.strerror}.") from None
        self._own_database()
        yield Check("database", well=True, found=f"restored; before: {kept}")
        try:
            self._say("key store")
            yield Check("key store", well=True, found=self._put_keys(aside))
            self._say("log")
            yield Check("log", well=True, found=self._put_log(staged, aside))
            if self.settings:
                self._say("settings")
                yield Check("settings", well=True, found=self._put_settings(aside))
        except OSError as error:
            raise OperatorError(
                f"{error.filename}: {error.strerror}. What is restored so far stands; put this right and begin again with "
                "--replace."
            ) from None
        self.clear()

    def _own_copy_of_dump(self) -> Store:
        """Where nobody else writes: the database believes what it is fed before the end of it, which proves it, was read."""
        file = self._manifest.database
        source = self._store.path_of(file)
        with fresh_folder(self._stage / DATABASE) as folder, source.open("rb") as stream:
            found = write_into(folder, source.name, stream, 0o600)
        if found != (file.sha256, file.size):
            raise OperatorError(f"{source} is not what the manifest says: it was exchanged after it was checked.")
        return Store(self._stage)

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_places(self) -> str:
        """Root writes in there, and the folders above belong to users who could let a link lead root elsewhere."""
        links = [place for place in self._places() if place.is_symlink()]
        if links:
            raise OperatorError(
                f"{links[0]} is a link, which is not followed: put the folder itself in its place (another disk: by mount --bind), or "
                "name it in the settings"
            )
        return "no links"

    def _places(self) -> list[Path]:
        """Every folder that `apply` works in."""
        audit = self._audit
        places = [audit.directory, audit.keys_directory, audit.fallback_directory]
        if audit.backup_enabled:
            places += [audit.backup_directory, audit.backup_keys_directory]
        return [place for place in places if place is not None]

    def _check_database(self) -> str:
        database = self._installed.database
        if database.kind != self._manifest.database_kind:
            raise OperatorError(
                f"the set holds {self._manifest.database_kind}, and DATABASE_URL here names {database.kind}"
            )
        return f"{database.kind}: {database.use() or 'not in use'}"

    def _check_secrets(self) -> str:
        theirs = self._target.installed(self.keys.settings)
        other = [name for name in _SECRETS if theirs.secret(name) not in self._accepted(name)]
        if other:
            raise OperatorError(
                f"{' and '.join(other)} here differ from those of the set: keys, passwords and second factors would be void. "
                "Restore them as well: --settings"
            )
        return "those of the set"

    def _accepted(self, name: str) -> list[str]:
        """The secret in force, and those from before that are still accepted."""
        previous = self._installed.secret(f"{name}_PREVIOUS").split(",")
        return [self._installed.secret(name), *(each.strip() for each in previous)]

    def _check_keys(self) -> str:
        keks, ring = self.keys.keks(), KeyRing.of(self._audit)
        unknown = sorted(kek for kek in keks if ring is None or kek not in ring)
        if unknown:
            raise OperatorError(
                f"the key store of the set is wrapped by the key-encryption key {unknown[0]}, which is neither AUDIT_KEK nor "
                "in AUDIT_KEK_PREVIOUS here. Restore the set's own: --settings"
            )
        return "wrapped by AUDIT_KEK" if keks else "the set holds none: the log had no keys yet"

    def _check_host_id(self) -> str:
        wanted = self._audit.host_id
        if wanted and wanted != self._manifest.log_host:
            raise OperatorError(
                f"AUDIT_HOST_ID here is {wanted}, and the set's log is that of {self._manifest.log_host}: unset it, or restore the "
                "set's settings as well (--settings)"
            )
        return self._manifest.log

    def _check_owner(self, owner_key: str | None) -> str:
        if owner_key is None:
            return "not given: the log can be read, but not be gone on with"
        self.clear()
        with contextlib.ExitStack() as stack:
            stack.callback(self.clear)
            unpack_log(self._store, self._tail_only(), self._identity, self._stage / self._manifest.log_host)
            key = owner_key_from(owner_key, read_genesis(self._stage / self._manifest.log_host))
        if base64_text(key.public_key().public_bytes_raw()) != self._manifest.owner_public_key:
            raise OperatorError("the manifest names another owner than the log")
        return "signs for this log"

    def _tail_only(self) -> Manifest:
        return dataclasses.replace(self._manifest, segments=())

    def _unpack(self) -> str:
        self.clear()
        needed = sum(segment.size for segment in self._manifest.segments) + self._manifest.tail.size
        if self._newer.log is not None:
            needed = sum(segment.path.stat().st_size for segment in self._newer.segments())
        needed += self._manifest.database.size
        self._audit.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self._audit.directory).free
        if free < needed + _SPARE_BYTES:
            raise OperatorError(
                f"{self._audit.directory} has {free >> 20} MiB free, and {(needed + _SPARE_BYTES) >> 20} are needed"
            )
        target = self._stage / self._manifest.log_host
        if self._newer.log is not None:
            return self._newer.copy_log(target, self._manifest)
        unpack_log(self._store, self._manifest, self._identity, target)
        return f"{len(self._manifest.segments)} closed segments, {needed} bytes"

    # --- putting in place ---------------------------------------------------------------------------------------------

    def _logs(self) -> list[Path]:
        return [self._audit.directory / name for name in hosts_in(self._audit.directory)]

    def _key_files(self) -> list[Path]:
        if not self._audit.keys_directory.is_dir():
            return []
        return sorted(path for path in self._audit.keys_directory.iterdir() if not path.name.startswith("."))

    def _put_keys(self, aside: str) -> str:
        directory = self._audit.keys_directory
        _move_aside(directory, [path.name for path in self._key_files()], aside)
        kept = _told_of_kept(directory, aside)
        with _held(directory) as folder:
            if self.keys.store is not None:
                for name, content in ((BEGUN_NAME, b""), (KEYS_NAME, self.keys.store)):
                    _write_in(folder, name, content, 0o600)
            self._own(folder)
        return f"restored; before: {kept}" if self.keys.store is not None else f"the set holds none; before: {kept}"

    def _put_log(self, staged: Path, aside: str) -> str:
        directory = self._audit.directory
        _move_aside(directory, hosts_in(directory), aside)
        kept = _told_of_kept(directory, aside)
        fallback = self._audit.fallback_directory
        if fallback is not None and fallback.is_dir():
            # Segments of the set all lie in the first directory; the writer begins the second one anew.
            _move_aside(fallback, hosts_in(fallback), aside)
        for copies in (self._audit.backup_directory, self._audit.backup_keys_directory):
            # Another log's, or one that went on where this one ends: nothing of it may be taken for a copy of this one.
            if self._audit.backup_enabled and copies is not None and copies.is_dir():
                there = [path.name for path in copies.iterdir() if path.is_dir() and not path.name.startswith(".")]
                _move_aside(copies, there, aside)
        with _held(directory) as folder, _ours(folder, staged.parent.name) as stage:
            os.rename(staged.name, self._log.name, src_dir_fd=stage, dst_dir_fd=folder)
            os.fsync(folder)
            self._own(folder)
        return f"{_told_of_log(self._log)} in {self._log}; before: {kept}"

    def _put_settings(self, aside: str) -> str:
        changed = []
        for name, content in sorted(self.settings.items()):
            path = self._target.place_of(name)
            if self._there.get(name) == content:
                continue
            owner, mode = self._owner_of_settings(name, path)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists():
                _write(_beside_settings(path, self._target, aside, name), path.read_bytes(), 0o600)
            _write(path, content, mode, owner)
            changed.append(name)
        return f"{len(changed)} files restored" + (f" ({', '.join(changed)})" if changed else "")

    def _chosen(self) -> dict[str, bytes]:
        """The set's settings, but for what is this host's own."""
        chosen = {
            name: content
            for name, content in self.keys.settings.items()
            if _RESTORED.fullmatch(name)
            and not (name in HOST_BOUND and name in self._there)
            and not (self._target.instance is not None and name == MODELS and name in self._there)
        }
        if ENV in chosen and ENV in self._there:
            chosen[ENV] = env_for_this_host(chosen[ENV], self._there[ENV])
        return chosen

    def _owner_of_settings(self, name: str, path: Path) -> tuple[tuple[int, int] | None, int]:
        """As the file that is there, else as scripts/install makes it."""
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            return (status.st_uid, status.st_gid), status.st_mode & 0o777
        if self._target.instance is not None or os.geteuid() != 0:
            return None, 0o600
        if name.partition("/")[0] in {CREDENTIALS, AUDIT_CREDENTIALS, TLS}:
            return (0, 0), 0o600
        return (0, pwd.getpwnam(_AUDIT_USER if name == AUDIT_ENV else _WEB_USER).pw_gid), 0o640

    def _own(self, directory: int) -> None:
        """What root has put into the folder of this descriptor belongs to whom the folder belongs to."""
        if os.geteuid() != 0:
            return
        owner = os.fstat(directory)
        # By descriptors: that user may rename folders in there, and put links in their place, while we walk.
        for _, folders, files, place in os.fwalk(".", follow_symlinks=False, dir_fd=directory):
            for name in [*folders, *files]:
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=place, follow_symlinks=False)

    def _own_database(self) -> None:
        if os.geteuid() == 0 and self._target.instance is not None and self._target.instance.is_dir():
            owner = self._target.instance.stat()
            for path in self._target.instance.glob("app.db"):
                os.chown(path, owner.st_uid, owner.st_gid)


def env_for_this_host(restored: bytes, there: bytes) -> bytes:
    """The settings of the set, with this host's own lines where they tell of the host; absent ones included."""
    ours = [line for line in there.splitlines() if _HOST_BOUND_LINE.match(line)]
    theirs = [line for line in restored.splitlines() if not _HOST_BOUND_LINE.match(line)]
    return b"".join(line + b"\n" for line in [*theirs, *ours])


def _beside_settings(path: Path, target: Target, aside: str, name: str) -> Path:
    """Outside the folder itself, whose every file systemd hands to the backup."""
    if target.instance is not None:
        return path.with_name(f"{path.name}.before-{aside}")
    assert target.settings_directory is not None
    kept = target.settings_directory.with_name(f"{target.settings_directory.name}.before-{aside}")
    for folder in (kept, (kept / name).parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    return kept / name


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[int]:
    """The folder itself, made if it is not there, by its descriptor: whoever owns the folder above may exchange it, or lay a link
    in its place, while root works in it. Raises `OSError`, also for a link.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _ours(folder: int, name: str) -> Iterator[int]:
    """A folder in there that this process's user has made. Raises `OSError` for a link, and for somebody else's."""
    descriptor = os.open(name, _FOLDER, dir_fd=folder)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it is another user's", name)
        yield descriptor
    finally:
        os.close(descriptor)


def _aside_in(aside: str) -> str:
    return f".before-{aside}"


def _move_aside(directory: Path, names: Iterable[str], aside: str) -> list[str]:
    """Those of the names that are there, into a folder beside them that is ours; returns them. Raises `OSError`."""
    moved: list[str] = []
    with _held(directory) as folder, contextlib.ExitStack() as stack:
        kept = -1
        for name in names:
            try:
                os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not moved:
                # A part of this may have been moved before.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(_aside_in(aside), mode=0o700, dir_fd=folder)
                kept = stack.enter_context(_ours(folder, _aside_in(aside)))
            os.rename(name, name, src_dir_fd=folder, dst_dir_fd=kept)
            moved.append(name)
        if moved:
            os.fsync(kept)
            os.fsync(folder)
    return moved


def _move_back(directory: Path, names: Sequence[str], aside: str) -> None:
    """What `_move_aside` has moved is where it was."""
    if not names:
        return
    with _held(directory) as folder, _ours(folder, _aside_in(aside)) as kept:
        for name in names:
            os.rename(name, name, src_dir_fd=kept, dst_dir_fd=folder)
        os.fsync(folder)
    with contextlib.suppress(OSError):
        (directory / _aside_in(aside)).rmdir()


def _told_of_kept(directory: Path, aside: str) -> str:
    kept = directory / _aside_in(aside)
    return str(kept) if kept.is_dir() else "nothing was there"


def _told_of_log(directory: Path) -> str:
    sizes = [segment.path.stat().st_size for segment in segments_in(directory)]
    return f"{len(sizes)} segments, {sum(sizes)} bytes"


def _write(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Whole and synced under its name, or not at all."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _write_in(folder, path.name, content, mode, owner)
    finally:
        os.close(folder)


def _write_in(folder: int, name: str, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """As above, in the folder of this descriptor. A link of that name is replaced, not followed."""
    temporary = f".{name}.restoring"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
