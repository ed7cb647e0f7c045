"""The database in a backup: PostgreSQL by its own programs, SQLite by its backup API. No password on any command line."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from secure_llm_proxy.cli.host_backup.sealing import Feed, pieces_of
from secure_llm_proxy.cli.host_backup.sets import sync
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings.database_url import normalise_database_url

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PostgreSQLConnection  # noqa: N812  a type, named like one
    from psycopg2.sql import Composable

POSTGRESQL, SQLITE = "postgresql", "sqlite"
ENDINGS = {POSTGRESQL: "dump", SQLITE: "sqlite"}
# A copy of what the log says, which `audit reindex` makes anew: its rows stay out of the dump.
_REBUILDABLE = ("audit_index", "audit_index_state")
# Where a restore keeps what was there, within the same database.
_ASIDE = "slp_before_"
_USE = (
    "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM users WHERE password_hash IS NOT NULL),"
    " (SELECT count(*) FROM api_keys)"
)
_LOCK_PATIENCE_MS = 60_000
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Program:
    """A program under way; `said` collects its words."""

    child: subprocess.Popen[bytes]
    said: IO[bytes]


class BackedUpDatabase(Protocol):
    """Every method raises `OperatorError` with a sentence."""

    kind: str

    def size(self) -> int:
        """Upper bound of what a dump holds, before it is compressed."""
        ...

    def dump(self, feed: Feed) -> None: ...

    def use(self) -> str | None:
        """What shows that the database is in use; None for one that nobody has worked with."""
        ...

    def put_back(self, dump: IO[bytes], stamp: str) -> str:
        """The database is what `dump` holds, or as it was. Returns where what was there is kept."""
        ...


def database_of(url: str) -> BackedUpDatabase:
    """Raises `OperatorError` for a URL that names neither of both."""
    url = normalise_database_url(url)
    scheme, _, rest = url.partition("://")
    if scheme.startswith(POSTGRESQL):
        return PostgreSQL(url)
    path = rest.partition("?")[0].removeprefix("/")
    if scheme == SQLITE and path:
        return SQLite(Path(path))
    raise OperatorError("DATABASE_URL names neither PostgreSQL nor a file of SQLite.")


class PostgreSQL:
    kind = POSTGRESQL

    def __init__(self, url: str) -> None:
        # 0.25 s to import, and a third of all runs over embedded instances does without.
        from sqlalchemy.engine import make_url  # noqa: PLC0415
        from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise OperatorError("DATABASE_URL is no URL of a database.") from None
        words: dict[str, object] = dict(parsed.translate_connect_args(username="user", database="dbname"))
        words.update({name: value for name, value in parsed.query.items() if isinstance(value, str)})
        password = words.pop("password", None)
        self._password = None if password is None else str(password)
        self._conninfo = _conninfo(words)

    def size(self) -> int:
        (size,) = self._row(
            "SELECT pg_database_size(current_database()) - coalesce(pg_total_relation_size(to_regclass('audit_index')), 0)"
        )
        return int(size)

    def dump(self, feed: Feed) -> None:
        command = [
            "pg_dump", "--format=custom", "--no-password", f"--lock-wait-timeout={_LOCK_PATIENCE_MS}",
            f"--exclude-schema={_ASIDE}*", *(f"--exclude-table-data={name}" for name in _REBUILDABLE),
        ]  # fmt: skip
        with self._program(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as program:
            assert program.child.stdout is not None
            for piece in pieces_of(program.child.stdout):
                feed.write(piece)
            _require_well(program, "pg_dump could not copy the database")

    @staticmethod
    def check_dump(dump: IO[bytes]) -> str:
        """Read `dump` to its end; tell what is in it. Raises `OperatorError`."""
        with tempfile.TemporaryFile() as listed:
            with _started(["pg_restore", "--list"], stdin=subprocess.PIPE, stdout=listed.fileno()) as program:
                _feed(program, dump)
                _require_well(program, "pg_restore cannot read the dump")
            listed.seek(0)
            entries = [line for line in listed if line.strip() and not line.startswith(b";")]
        tables = sum(b" TABLE DATA " in line for line in entries)
        if not tables:
            raise OperatorError("The dump holds no table.")
        return f"{len(entries)} objects, {tables} tables with data"

    def use(self) -> str | None:
        (there,) = self._row("SELECT to_regclass('users') IS NOT NULL AND to_regclass('api_keys') IS NOT NULL")
        return _told_of_use(*self._row(_USE)) if there else None

    def put_back(self, dump: IO[bytes], stamp: str) -> str:
        from psycopg2 import sql  # noqa: PLC0415  as above

        aside = f"{_ASIDE}{stamp.lower()}"
        rename = sql.SQL("ALTER SCHEMA public RENAME TO {}").format(sql.Identifier(aside))
        back = sql.SQL("ALTER SCHEMA {} RENAME TO public").format(sql.Identifier(aside))
        (had_tables,) = self._row("SELECT EXISTS (SELECT FROM information_schema.tables WHERE table_schema = 'public')")
        if had_tables:
            self._run(rename, "CREATE SCHEMA public", "GRANT USAGE ON SCHEMA public TO PUBLIC")
        command = [
            "pg_restore", "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", "--no-password",
        ]  # fmt: skip
        try:
            with self._program(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as program:
                _feed(program, dump)
                _require_well(program, "pg_restore could not restore the database, which is as it was")
        except BaseException:
            if had_tables:
                self._run("DROP SCHEMA public CASCADE", back)
            raise
        return f"schema {aside} of the same database" if had_tables else "nothing was there"

    def _row(self, query: str) -> tuple[Any, ...]:
        with self._connected() as connection, connection.cursor() as cursor:
            cursor.execute(query)
            row = cursor.fetchone()
        assert row is not None
        found: tuple[Any, ...] = row
        return found

    def _run(self, *statements: str | Composable) -> None:
        """All of them in one transaction."""
        with self._connected() as connection, connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[PostgreSQLConnection]:
        import psycopg2  # noqa: PLC0415  as above

        password: dict[str, Any] = {} if self._password is None else {"password": self._password}
        try:
            with contextlib.closing(psycopg2.connect(self._conninfo, connect_timeout=10, **password)) as connection:
                yield connection
        except psycopg2.Error as error:
            # The driver's own words may hold a user's name and a host's.
            raise OperatorError(
                f"The database does not do what it is asked ({type(error).__name__}); look at DATABASE_URL and whether the "
                "server runs."
            ) from None

    @contextlib.contextmanager
    def _program(self, command: Sequence[str], *, stdin: int, stdout: int) -> Iterator[_Program]:
        """One of PostgreSQL's programs, connected to the database; the password reaches it in a file that only we read."""
        folder = Path(tempfile.mkdtemp(prefix="slp-backup-"))
        try:
            environment = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
            environment["HOME"] = str(folder)
            if self._password is not None:
                passwords = folder / "passwords"
                passwords.touch(mode=0o600)
                escaped = self._password.replace("\\", "\\\\").replace(":", "\\:")
                passwords.write_text(f"*:*:*:*:{escaped}\n", "utf-8")
                environment["PGPASSFILE"] = str(passwords)
            with _started(
                [*command, "--dbname", self._conninfo], stdin=stdin, stdout=stdout, env=environment
            ) as program:
                yield program
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class SQLite:
    kind = SQLITE

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def size(self) -> int:
        try:
            return sum(path.stat().st_size for path in self._files() if path.exists())
        except OSError as error:
            raise OperatorError(f"{error.filename} cannot be looked at: {error.strerror}.") from None

    def dump(self, feed: Feed) -> None:
        # Beside the database, where a copy in clear is no more than the database itself.
        copy = self._path.with_name(f".{self._path.name}.backup")
        with _told(self._path), contextlib.ExitStack() as stack:
            stack.callback(_remove, copy)
            copy_of_database(self._path, copy)
            with copy.open("rb") as stream:
                while piece := stream.read(_PIECE_BYTES):
                    feed.write(piece)

    @staticmethod
    def check_dump(dump: IO[bytes]) -> str:
        """As above."""
        with tempfile.TemporaryDirectory(prefix="slp-backup-") as folder:
            return _check_file(dump, Path(folder) / "app.db")

    def use(self) -> str | None:
        if not self._path.exists():
            return None
        with _told(self._path), contextlib.closing(sqlite3.connect(self._path, timeout=10)) as connection:
            names = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('users', 'api_keys')"
            if connection.execute(names).fetchone() != (2,):
                return None
            return _told_of_use(*connection.execute(_USE).fetchone())

    def put_back(self, dump: IO[bytes], stamp: str) -> str:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.restoring")
        aside = self._path.parent / f"before-{stamp}"
        with _told(self._path), contextlib.ExitStack() as stack:
            stack.callback(_remove, fresh)
            _remove(fresh)
            _check_file(dump, fresh)
            there = [path for path in self._files() if path.exists()]
            if there:
                aside.mkdir(mode=0o700)
                for path in there:
                    path.rename(aside / path.name)
            fresh.rename(self._path)
            sync(self._path.parent)
        return str(aside) if there else "nothing was there"

    def _files(self) -> list[Path]:
        return [self._path, *(self._path.with_name(self._path.name + end) for end in ("-wal", "-shm", "-journal"))]


def _check_file(dump: IO[bytes], path: Path) -> str:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        shutil.copyfileobj(dump, stream, _PIECE_BYTES)
        stream.flush()
        os.fsync(stream.fileno())
    with _told(path), contextlib.closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            raise OperatorError(f"The copy of the database is damaged: {found}.")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()
    if not tables:
        raise OperatorError("The copy of the database holds no table.")
    return f"{tables} tables, integrity ok"


def copy_of_database(path: Path, copy: Path) -> None:
    """A consistent copy of a SQLite file, as one file of mode 0600 without a write-ahead log. An older `copy` is replaced."""
    _remove(copy)
    os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with (
        contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")


def _told_of_use(users: int, ready: int, keys: int) -> str | None:
    if users > 1 or ready or keys:
        return f"the database holds {users} users, {ready} of them with a password, and {keys} API keys"
    return None


def _conninfo(words: Mapping[str, object]) -> str:
    quoted = {name: str(value).replace("\\", "\\\\").replace("'", "\\'") for name, value in words.items()}
    return " ".join(f"{name}='{value}'" for name, value in quoted.items())


@contextlib.contextmanager
def _started(
    command: Sequence[str], *, stdin: int, stdout: int, env: Mapping[str, str] | None = None
) -> Iterator[_Program]:
    with contextlib.ExitStack() as stack:
        # A file, not a pipe: nobody reads beside the work, and a full pipe would stop it.
        said = stack.enter_context(tempfile.TemporaryFile())
        try:
            child = subprocess.Popen(  # noqa: S603  programs of ours, never a shell
                command, stdin=stdin, stdout=stdout, stderr=said, env=env, bufsize=0
            )
        except FileNotFoundError:
            raise OperatorError(
                f"The program {command[0]} is not installed (Debian: apt-get install postgresql-client)."
            ) from None
        with child:
            try:
                yield _Program(child, said)
            except BaseException:
                child.kill()
                raise


def _feed(program: _Program, dump: IO[bytes]) -> None:
    child = program.child
    assert child.stdin is not None
    # When it ends early it says why; the rest is read all the same, since only its end proves a dump genuine.
    broken = False
    for piece in pieces_of(dump):
        rest = memoryview(piece)
        while rest and not broken:
            try:
                rest = rest[os.write(child.stdin.fileno(), rest) :]
            except BrokenPipeError:
                broken = True
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()


def _require_well(program: _Program, what: str) -> None:
    if program.child.wait() == 0:
        return
    program.said.seek(0)
    words = " ".join(program.said.read(2000).decode("utf-8", "replace").split())
    raise OperatorError(f"{what}: {words or f'it ended with {program.child.returncode}'}.")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OperatorError(f"{path}: {error}.") from None
    except BrokenPipeError:
        # Not of a file: age has ended, and whoever started it tells why.
        raise
    except OSError as error:
        raise OperatorError(f"{error.filename or path}: {error.strerror or error}.") from None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
