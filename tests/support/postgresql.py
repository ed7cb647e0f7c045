"""A private PostgreSQL on loopback, one database per asker."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psycopg2

from tests.support.ports import free_port
from tests.support.programs import ServerFailed, ServerMissing, find_program, start_server, stop_server, wait_until_up

if TYPE_CHECKING:
    from types import TracebackType

_SUPERUSER = "postgres"


class PrivatePostgreSQL:
    """A fresh cluster with scram passwords, listening on a free port of 127.0.0.1; gone when the context ends.

    Started as the system user `postgres` when the tests run as root, which PostgreSQL refuses to be. Nothing is synced to
    disk (fsync is off): a power cut may cost it all, a SIGKILL of one of its processes may not.
    """

    def __init__(self) -> None:
        places = [
            str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major_version, reverse=True)
        ]
        self._initdb = find_program("initdb", package="postgresql", places=places)
        # The server must be of initdb's own version, wherever a link to it stands.
        self._postgres = str(Path(self._initdb).resolve().parent / "postgres")
        self._user = _SUPERUSER if os.geteuid() == 0 else None
        self._password = secrets.token_hex(16)
        self._numbers = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.directory = Path()

    def __enter__(self) -> Self:
        self.directory = _directory_for(self._user)
        try:
            self._create_cluster()
            self.start()
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        return self

    def _create_cluster(self) -> None:
        password_file, log = self.directory / "password", self.directory / "log"
        password_file.write_text(self._password, "ascii")
        log.touch()
        if self._user is not None:
            for path in (self.directory, password_file, log):
                shutil.chown(path, self._user)
        done = subprocess.run(
            [
                self._initdb, "--pgdata", self.directory / "data", "--username", _SUPERUSER, "--auth", "scram-sha-256",
                "--pwfile", password_file, "--no-sync", "--encoding", "UTF8", "--locale", "C.UTF-8",
            ],
            check=False, capture_output=True, text=True, timeout=120, user=self._user, group=self._user, cwd=self.directory,
            extra_groups=None if self._user is None else [],
        )  # fmt: skip
        if done.returncode != 0:
            message = f"initdb failed: {done.stdout}{done.stderr}"
            raise ServerFailed(message)

    def start(self) -> None:
        """Start it (again) over the same data, on the same port when it had one."""
        self.port = self.port or free_port()
        log = self.directory / "log"
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "shared_buffers": "64MB",
        }
        command = [self._postgres, "-D", str(self.directory / "data")]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with log.open("ab") as output:
            self._server = start_server(
                command, output=output, user=self._user, directory=self.directory, end_signal="INT"
            )
        wait_until_up(self._server, self._answers, log=log, seconds=60)

    def stop(self) -> None:
        """Stop it, ending its connections; `start` brings it back with its data."""
        if self._server is not None:
            stop_server(self._server, signal.SIGINT)  # "fast": connections are ended, not waited for
            self._server = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def create_database(self) -> str:
        """Make an empty database and return its URL, password included."""
        name = f"test_{next(self._numbers)}"
        with closing(psycopg2.connect(self.url_of(_SUPERUSER))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def url_of(self, database: str) -> str:
        return f"postgresql://{_SUPERUSER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url_of(_SUPERUSER), connect_timeout=5).close()
        except psycopg2.OperationalError:
            return False
        return True


def _major_version(path: Path) -> int:
    version = path.parent.name
    return int(version) if version.isdigit() else 0


def _directory_for(user: str | None) -> Path:
    """A new folder that `user` can reach: pytest's own are closed to other users, and a path in $TMPDIR may be."""
    for parent in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - mkdtemp picks a fresh name
        if user is None or all(place.stat().st_mode & stat.S_IXOTH for place in (parent, *parent.parents)):
            return Path(tempfile.mkdtemp(prefix="slp-pg-", dir=parent))
    message = f"no temporary folder that the user {user} can reach"
    raise ServerMissing(message)
