"""The key store: one data key for each person and 30 days, outside the log, so that forgetting a key forgets a person.

`AUDIT_KEYS_DIR/keys.db` is SQLite (WAL, synchronous FULL, secure_delete) and belongs to the audit writer. Everything
secret in it is wrapped by a key-encryption key (AES-256-GCM, associated data = its name) whose id stands beside it.
Losing this file loses the content of records, never their integrity.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from secure_llm_proxy.audit.seal import KEY_BYTES, DataKey, KeyRing, SealBroken
from secure_llm_proxy.foundation.errors import OperatorError

KEYS_NAME = "keys.db"
# Says that there was a key store here: one that is gone must not be replaced in silence by an empty one.
BEGUN_NAME = "keys.begun"
SUBJECT_KEY_AGE_S = 30 * 86_400
REWRAP_CHUNK = 500

_INDEX_KEY = "index.1"
_KEYS_KEPT = 4096
_LOOK_S = 1.0
_BUSY_S = 1.5
_COMPACT_S = 1.0
_APPLICATION_ID = 0x534C504B  # "SLPK"
_VERSION = 1
_IN_ONE_QUERY = 500

_TABLES = """
CREATE TABLE subject_keys (
    kid TEXT PRIMARY KEY, subject TEXT NOT NULL, created_at INTEGER NOT NULL, wrapped BLOB NOT NULL, kek TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX subject_keys_of ON subject_keys (subject, created_at);
CREATE TABLE system_keys (kid TEXT PRIMARY KEY, wrapped BLOB NOT NULL, kek TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, wrapped BLOB NOT NULL, kek TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE erased_keys (
    kid TEXT PRIMARY KEY, subject TEXT NOT NULL, erased_at INTEGER NOT NULL, told INTEGER
) WITHOUT ROWID;
CREATE INDEX erased_keys_of ON erased_keys (subject);
CREATE TABLE probe (id INTEGER PRIMARY KEY, at INTEGER NOT NULL);
"""
# Tables with wrapped keys, and the column that names each of them (the associated data of its wrapping).
_WRAPPED = (("subject_keys", "kid"), ("system_keys", "kid"), ("meta", "name"))

T = TypeVar("T")


class KeyStoreUnavailable(Exception):
    """Keys can't be read or made now. The text is a sentence for the operator."""

    @property
    def is_for_want_of_room(self) -> bool:
        return isinstance(self.__cause__, sqlite3.Error) and self.__cause__.sqlite_errorname in _NO_ROOM


@dataclass(frozen=True, slots=True)
class ErasedKey:
    """A key that was destroyed. `told` is the index of the log line that says so; None: not yet."""

    kid: str
    subject: str
    erased_at: int
    told: int | None


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """How many keys one turn of `rewrap` wrapped anew; `left`: there may be more, so ask again."""

    done: int
    left: bool


class KeyStore:
    """The writer's; readers get one that can't write (`open_to_read`). Used by one thread.

    Every method raises `KeyStoreUnavailable` when the file is gone, damaged, locked, full or read-only.
    """

    def __init__(
        self,
        path: Path,
        ring: KeyRing,
        *,
        read_only: bool,
        now_s: Callable[[], float] = time.time,
        keys_kept: int = _KEYS_KEPT,
    ) -> None:
        self._path = path
        self._ring = ring
        self._read_only = read_only
        self._now_s = now_s
        self._keys_kept = keys_kept
        # The key in force of each subject, with the second at which it is too old; the one used last stands last.
        self._current: OrderedDict[str, tuple[str, DataKey, float]] = OrderedDict()
        self._opened: OrderedDict[str, DataKey] = OrderedDict()
        self._index_key: bytes | None = None
        # How far `rewrap` has come in each table.
        self._reached: dict[str, str] = {}
        self._database: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._looked_s = float("-inf")
        self._changes: int | None = None

    @classmethod
    def open(
        cls, directory: Path, ring: KeyRing, *, now_s: Callable[[], float] = time.time, keys_kept: int = _KEYS_KEPT
    ) -> KeyStore:
        """The store in `directory`, made if there was none. Raises `OperatorError` when it is lost, damaged, or not ours.

        A full disk is no reason not to start: what needs no new key goes on, what does is refused until there is room.
        """
        store = cls(directory / KEYS_NAME, ring, read_only=False, now_s=now_s, keys_kept=keys_kept)
        try:
            store._make_or_connect(directory)
            store._require_known_keks()
            store.index_key()
        except KeyStoreUnavailable as error:
            raise OperatorError(str(error)) from None
        return store

    @classmethod
    def open_to_read(cls, directory: Path, ring: KeyRing) -> KeyStore | None:
        """The store in `directory` for somebody who only opens bodies; None when there is none."""
        path = directory / KEYS_NAME
        if not path.exists():
            return None
        store = cls(path, ring, read_only=True)
        try:
            store._connect()
        except KeyStoreUnavailable as error:
            raise OperatorError(str(error)) from None
        return store

    def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
        self._forget_all()

    # --- keys ---------------------------------------------------------------------------------------------------------

    def keys_of(self, subjects: Collection[str]) -> dict[str, tuple[str, DataKey]]:
        """Each subject's kid and data key in force; missing ones are made, all in one transaction, and are durable then."""
        now = self._now_s()
        if time.monotonic() - self._looked_s > _LOOK_S:
            self._look()
        found: dict[str, tuple[str, DataKey]] = {}
        missing: list[str] = []
        for subject in subjects:
            known = self._current.get(subject)
            if known is not None and now < known[2]:
                self._current.move_to_end(subject)
                found[subject] = known[:2]
            else:
                missing.append(subject)
        if missing:
            found |= self._fetch_or_make(missing, int(now))
        return found

    def key(self, kid: str) -> DataKey | None:
        """The data key of this name, a subject's or a system key that was re-wrapped; None when it isn't here."""
        self._forget_if_changed()
        known = self._opened.get(kid)
        if known is not None:
            self._opened.move_to_end(kid)
            return known
        rows = self._run(
            lambda database: database.execute(
                "SELECT wrapped, kek FROM subject_keys WHERE kid = ?1"
                " UNION ALL SELECT wrapped, kek FROM system_keys WHERE kid = ?1",
                (kid,),
            ).fetchall()
        )
        if not rows:
            return None
        key = DataKey(self._unwrap(kid, *rows[0]))
        self._opened[kid] = key
        if len(self._opened) > self._keys_kept:
            self._opened.popitem(last=False)
        return key

    def index_key(self) -> bytes:
        """The key of the blind indexes; made once, and the same for ever: another would find nothing in what is there."""
        if self._index_key is None:
            key = self.secret(_INDEX_KEY)
            if key is None:
                key = os.urandom(KEY_BYTES)
                self.keep_secret(_INDEX_KEY, key)
            self._index_key = key
        return self._index_key

    # --- other secrets of the writer's --------------------------------------------------------------------------------

    def secret(self, name: str) -> bytes | None:
        """A secret that was kept under `name`, such as a reader's TOTP seed; None when there is none."""
        rows = self._run(
            lambda database: database.execute("SELECT wrapped, kek FROM meta WHERE name = ?", (name,)).fetchall()
        )
        return self._unwrap(name, *rows[0]) if rows else None

    def secrets(self, prefix: str) -> list[str]:
        """Names of the secrets kept whose name begins with `prefix`, sorted."""
        rows = self._run(lambda database: database.execute("SELECT name FROM meta ORDER BY name").fetchall())
        return [str(name) for (name,) in rows if name.startswith(prefix)]

    def keep_secret(self, name: str, secret: bytes) -> None:
        """Durably, in place of what stood under this name."""
        row = (name, self._ring.current.wrap(secret, name), self._ring.current.id)
        self._change(
            lambda database: database.execute("INSERT OR REPLACE INTO meta (name, wrapped, kek) VALUES (?, ?, ?)", row)
        )

    def revise_secret(self, name: str, revise: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """Put in place of the secret `name` what `revise` makes of it (None: none), durably; returns its second value.

        One transaction: of two that revise at the same time, the second sees what the first has made.
        """

        def within(database: sqlite3.Connection) -> T:
            rows = database.execute("SELECT wrapped, kek FROM meta WHERE name = ?", (name,)).fetchall()
            before = self._unwrap(name, *rows[0]) if rows else None
            after, result = revise(before)
            if after is None:
                database.execute("DELETE FROM meta WHERE name = ?", (name,))
            elif after != before:
                database.execute(
                    "INSERT OR REPLACE INTO meta (name, wrapped, kek) VALUES (?, ?, ?)",
                    (name, self._ring.current.wrap(after, name), self._ring.current.id),
                )
            return result

        return self._change(within)

    def drop_secret(self, name: str) -> bool:
        """Durably. Whether there was one."""
        return self._change(lambda database: database.execute("DELETE FROM meta WHERE name = ?", (name,)).rowcount > 0)

    # --- erasure ------------------------------------------------------------------------------------------------------

    def keys_held(self, subject: str) -> list[str]:
        """Names of a subject's keys, oldest first."""
        rows = self._run(
            lambda database: database.execute(
                "SELECT kid FROM subject_keys WHERE subject = ? ORDER BY created_at, kid", (subject,)
            ).fetchall()
        )
        return [str(kid) for (kid,) in rows]

    def erase(self, subject: str) -> list[str]:
        """Afterwards no key of the subject is here or in memory; returns their names, oldest first. See `compact`.

        A second call returns nothing. The next record of this subject gets a new key.
        """
        now = int(self._now_s())

        def erase(database: sqlite3.Connection) -> list[str]:
            rows = database.execute(
                "SELECT kid FROM subject_keys WHERE subject = ? ORDER BY created_at, kid", (subject,)
            ).fetchall()
            database.executemany(
                "INSERT OR REPLACE INTO erased_keys (kid, subject, erased_at) VALUES (?, ?, ?)",
                [(kid, subject, now) for (kid,) in rows],
            )
            database.execute("DELETE FROM subject_keys WHERE subject = ?", (subject,))
            return [str(kid) for (kid,) in rows]

        # Out of memory first: should the disk fail now, the key comes back from there, and nothing is half done.
        self._current.pop(subject, None)
        kids = self._change(erase)
        for kid in kids:
            self._opened.pop(kid, None)
        return kids

    def held_of(self, kids: Sequence[str]) -> list[str]:
        """Those of `kids` that are subjects' keys here."""
        wanted = set(kids)
        rows = self._run(lambda database: database.execute("SELECT kid FROM subject_keys ORDER BY kid").fetchall())
        return [str(kid) for (kid,) in rows if kid in wanted]

    def erase_keys(self, kids: Sequence[str]) -> list[str]:
        """Destroy these keys and no others, as `erase` does: what an older copy of this file has brought back."""
        now = int(self._now_s())
        back = self.held_of(kids)

        def erase(database: sqlite3.Connection) -> None:
            for kid in back:
                database.execute(
                    "INSERT OR REPLACE INTO erased_keys (kid, subject, erased_at)"
                    " SELECT kid, subject, ? FROM subject_keys WHERE kid = ?",
                    (now, kid),
                )
                database.execute("DELETE FROM subject_keys WHERE kid = ?", (kid,))

        self._current.clear()
        self._opened.clear()
        self._change(erase)
        return back

    def compact(self) -> None:
        """Afterwards no byte of what was deleted is left in the database or its write-ahead log.

        SQLite zeroes deleted cells (secure_delete); what pages shed when they were split or merged, only a rebuild
        removes. Takes 0.4 to 0.8 s for 100,000 keys (2026-11). What the disk itself keeps of old blocks is beyond us.
        """
        deadline = time.monotonic() + _COMPACT_S

        def truncate(database: sqlite3.Connection) -> None:
            # 1 as long as somebody reads an older state of the file.
            while database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > deadline:
                    raise sqlite3.OperationalError("a reader holds it open")
                time.sleep(0.01)

        def compact(database: sqlite3.Connection) -> None:
            truncate(database)
            database.execute("VACUUM")
            truncate(database)

        self._run(compact)

    def erased(self, subject: str | None = None) -> list[ErasedKey]:
        """What was erased, oldest first: a subject's keys, or everybody's."""
        rows = self._run(
            lambda database: database.execute(
                "SELECT kid, subject, erased_at, told FROM erased_keys WHERE ?1 IS NULL OR subject = ?1"
                " ORDER BY erased_at, kid",
                (subject,),
            ).fetchall()
        )
        return [ErasedKey(*row) for row in rows]

    def is_erased(self, kid: str) -> bool:
        return bool(
            self._run(lambda database: database.execute("SELECT 1 FROM erased_keys WHERE kid = ?", (kid,)).fetchone())
        )

    def untold(self) -> list[ErasedKey]:
        """Erased keys of which the log says nothing yet: the writer died between the one and the other."""
        rows = self._run(
            lambda database: database.execute(
                "SELECT kid, subject, erased_at, told FROM erased_keys WHERE told IS NULL ORDER BY subject, kid"
            ).fetchall()
        )
        return [ErasedKey(*row) for row in rows]

    def note_told(self, kids: Sequence[str], n: int) -> None:
        """The log's line `n` says that these keys were erased."""
        rows = [(n, kid) for kid in kids]
        self._change(lambda database: database.executemany("UPDATE erased_keys SET told = ? WHERE kid = ?", rows))

    # --- another key-encryption key -----------------------------------------------------------------------------------

    def counts_by_kek(self) -> dict[str, dict[str, int]]:
        """Table → id of a key-encryption key → how many keys it wraps."""

        def count(database: sqlite3.Connection) -> dict[str, dict[str, int]]:
            return {
                table: dict(database.execute(f"SELECT kek, count(*) FROM {table} GROUP BY kek").fetchall())  # noqa: S608 - names of ours
                for table, _ in _WRAPPED
            }

        return self._run(count)

    def rewrap(self, limit: int = REWRAP_CHUNK) -> Rewrapped:
        """Wrap at most `limit` keys by the current key-encryption key, in one transaction. Killed in between: nothing is lost.

        Raises `KeyStoreUnavailable` for a key that does not unwrap; the keys before it in the same chunk stay as they were.
        """
        current = self._ring.current
        reached = dict(self._reached)

        def rewrap(database: sqlite3.Connection) -> int:
            done = 0
            for table, column in _WRAPPED:
                rows = database.execute(
                    f"SELECT {column}, wrapped, kek FROM {table} WHERE {column} > ? AND kek <> ?"  # noqa: S608 - names of ours
                    f" ORDER BY {column} LIMIT ?",
                    (reached.get(table, ""), current.id, limit - done),
                ).fetchall()
                changed = [(current.wrap(self._unwrap(name, *rest), name), current.id, name) for name, *rest in rows]
                database.executemany(f"UPDATE {table} SET wrapped = ?, kek = ? WHERE {column} = ?", changed)  # noqa: S608
                done += len(changed)
                if changed:
                    reached[table] = changed[-1][-1]
            return done

        begun_anew = not reached
        done = self._change(rewrap)
        # Nothing behind where we were: once more from the beginning, so that the last turn has looked at everything.
        self._reached = reached if done else {}
        return Rewrapped(done, left=done > 0 or not begun_anew)

    def keep_system_keys(self, keys: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Keep system keys (kid, wrapped, commitment) whose log line names another key-encryption key, wrapped by ours.

        Raises `KeyStoreUnavailable` when one does not unwrap, or is not the key that its line commits to.
        """
        rows = []
        for kid, wrapped, commitment in keys:
            key = self._committed(kid, wrapped, commitment)
            rows.append((kid, self._ring.current.wrap(key.secret, kid), self._ring.current.id))
        self._change(
            lambda database: database.executemany(
                "INSERT OR REPLACE INTO system_keys (kid, wrapped, kek) VALUES (?, ?, ?)", rows
            )
        )

    def _committed(self, kid: str, wrapped: bytes, commitment: bytes) -> DataKey:
        with contextlib.suppress(SealBroken, ValueError):
            key = DataKey(self._ring.unwrap(wrapped, kid))
            if key.commitment == commitment:
                return key
        raise KeyStoreUnavailable(
            f"The system key {kid} of the log does not unwrap by any key-encryption key that is given. "
            "Name the one that wrapped it in AUDIT_KEK_PREVIOUS."
        )

    def system_keys_held(self) -> set[str]:
        rows = self._run(lambda database: database.execute("SELECT kid FROM system_keys").fetchall())
        return {str(kid) for (kid,) in rows}

    # --- the file -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Return when keys can be made: the file is there, and takes what is written to it."""
        self._look()
        at = int(self._now_s())
        self._change(lambda database: database.execute("INSERT OR REPLACE INTO probe (id, at) VALUES (1, ?)", (at,)))

    def _make_or_connect(self, directory: Path) -> None:
        begun = directory / BEGUN_NAME
        if not self._path.exists():
            if begun.exists():
                raise KeyStoreUnavailable(
                    f"{self._path} is missing, and with it the keys of every person's records. Restore it from its backup. "
                    f"If there is none, those bodies are lost: delete {begun} to go on with new keys."
                )
            self._make(directory)
        self._connect()
        _touch(begun)
        try:
            self.check()
        except KeyStoreUnavailable as error:
            if not error.is_for_want_of_room:
                raise

    def _make(self, directory: Path) -> None:
        """Under a temporary name until it is whole, so that a crash leaves no half of it."""
        temporary = directory / f".{KEYS_NAME}.tmp"
        with self._telling():
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous = FULL")
                database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {_VERSION}")
                database.executescript(f"BEGIN; {_TABLES} COMMIT;")
            temporary.rename(self._path)
            _sync_directory(directory)

    def _connect(self) -> None:
        with self._telling():
            status = self._path.stat()
            mode = "ro" if self._read_only else "rw"
            database = self._connected(mode)
            try:
                self._prepare(database)
            except sqlite3.OperationalError as error:
                database.close()
                if not self._read_only or not error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                    raise
                # A copy on a medium that can't be written, and that nobody writes: SQLite needs no files beside it then.
                database = self._connected("ro&immutable=1")
                self._prepare(database)
            except BaseException:
                database.close()
                raise
        self._database = database
        self._inode = (status.st_dev, status.st_ino)
        self._looked_s = time.monotonic()

    def _connected(self, mode: str) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S, cached_statements=32)

    def _prepare(self, database: sqlite3.Connection) -> None:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION_ID:
            raise KeyStoreUnavailable(f"{self._path} is no key store of this product. Restore it from its backup.")
        if version > _VERSION:
            raise KeyStoreUnavailable(
                f"{self._path} was written by a later version of this product. Install that version again."
            )
        if not self._read_only:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA secure_delete = ON")
            # A rebuild must leave no copy of keys in a directory for temporary files.
            database.execute("PRAGMA temp_store = MEMORY")

    def _look(self) -> None:
        """A file that was moved away still takes writes, and nobody would ever read them."""
        self._looked_s = time.monotonic()
        try:
            status = self._path.stat()
        except OSError:
            self._disconnect()
            raise KeyStoreUnavailable(f"{self._path} is gone. Restore it from its backup.") from None
        if (status.st_dev, status.st_ino) != self._inode:
            # Another was put in its place; what was read from the old one may not be in it.
            self._disconnect()

    def _disconnect(self) -> None:
        self.close()
        self._inode = None

    def _forget_all(self) -> None:
        self._current.clear()
        self._opened.clear()
        self._index_key = None

    def _forget_if_changed(self) -> None:
        """What the writer has erased must not open in a reader any more."""
        if not self._read_only:
            return
        (changes,) = self._run(lambda database: database.execute("PRAGMA data_version").fetchone())
        if changes != self._changes:
            self._forget_all()
            self._changes = changes

    def _require_known_keks(self) -> None:
        unknown = sorted({kek for counts in self.counts_by_kek().values() for kek in counts if kek not in self._ring})
        if unknown:
            raise KeyStoreUnavailable(
                f"{self._path} holds keys that were wrapped by the key-encryption key {unknown[0]}, "
                "which is neither AUDIT_KEK nor in AUDIT_KEK_PREVIOUS."
            )

    def _unwrap(self, name: str, wrapped: bytes, kek: str) -> bytes:
        try:
            return self._ring.unwrap(wrapped, name, kek)
        except SealBroken:
            what = "is damaged" if kek in self._ring else f"was wrapped by another key-encryption key ({kek})"
            raise KeyStoreUnavailable(f"The key {name} in {self._path} {what}.") from None

    def _fetch_or_make(self, subjects: list[str], now: int) -> dict[str, tuple[str, DataKey]]:
        def fetch_or_make(database: sqlite3.Connection) -> dict[str, tuple[str, DataKey, int]]:
            found = {}
            for subject, kid, created_at, wrapped, kek in _newest(database, subjects, now):
                found[subject] = (kid, DataKey(self._unwrap(kid, wrapped, kek)), created_at)
            rows = []
            for subject in subjects:
                if subject not in found:
                    kid, key = f"{subject}.{os.urandom(4).hex()}", DataKey.generate()
                    found[subject] = (kid, key, now)
                    wrapped = self._ring.current.wrap(key.secret, kid)
                    rows.append((kid, subject, now, wrapped, self._ring.current.id))
            if rows:
                database.execute("BEGIN IMMEDIATE")
                database.executemany(
                    "INSERT INTO subject_keys (kid, subject, created_at, wrapped, kek) VALUES (?, ?, ?, ?, ?)", rows
                )
                database.execute("COMMIT")
            return found

        # Kept only now that they are durable.
        found = self._run(fetch_or_make)
        for subject, (kid, key, created_at) in found.items():
            self._current[subject] = (kid, key, created_at + SUBJECT_KEY_AGE_S)
            self._current.move_to_end(subject)
        while len(self._current) > self._keys_kept:
            self._current.popitem(last=False)
        return {subject: (kid, key) for subject, (kid, key, _) in found.items()}

    def _change(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` in a transaction; it is durable when this returns, and undone when it raises."""

        def within(database: sqlite3.Connection) -> T:
            database.execute("BEGIN IMMEDIATE")
            result = change(database)
            database.execute("COMMIT")
            return result

        return self._run(within)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._database is not None:
            self._look()
        with self._telling():
            if self._database is None:
                self._connect()
            assert self._database is not None
            database = self._database
            try:
                return work(database)
            finally:
                if database.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        database.execute("ROLLBACK")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong with the file, as a sentence."""
        try:
            yield
        except sqlite3.Error as error:
            raise KeyStoreUnavailable(f"The audit key store {self._path} {_sentence(error)}.") from error
        except OSError as error:
            raise KeyStoreUnavailable(f"The audit key store {self._path} can't be used: {error.strerror}.") from error


_NO_ROOM = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC"}


def _sentence(error: sqlite3.Error) -> str:
    name: str = getattr(error, "sqlite_errorname", "")
    if name in {"SQLITE_FULL", "SQLITE_IOERR_WRITE"}:
        return "can't be written: no space is left"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return "can't be written or opened by this user, or stands on a read-only file system"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "is locked by another program"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "is damaged; restore it from its backup"
    return f"can't be used: {error}"


def _newest(
    database: sqlite3.Connection, subjects: Sequence[str], now: int
) -> Iterator[tuple[str, str, int, bytes, str]]:
    """The newest key of each subject that is young enough. One from a future that a clock has taken back is left alone."""
    for first in range(0, len(subjects), _IN_ONE_QUERY):
        some = subjects[first : first + _IN_ONE_QUERY]
        marks = ",".join("?" * len(some))
        # SQLite takes the other columns from the row that holds the maximum (sqlite.org/lang_select.html#bareagg).
        yield from database.execute(
            "SELECT subject, kid, max(created_at), wrapped, kek FROM subject_keys"  # noqa: S608 - question marks only
            f" WHERE subject IN ({marks}) AND created_at > ? AND created_at < ? GROUP BY subject",
            (*some, now - SUBJECT_KEY_AGE_S, now + SUBJECT_KEY_AGE_S),
        )


def _touch(path: Path) -> None:
    if not path.exists():
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
