"""Encryption by `age` (age-encryption.org/v1), a program of its own: what is encrypted here cannot be read here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from typing_extensions import Buffer

from secure_llm_proxy.cli.host_backup.sets import Store, StoredFile, digest_of, sync
from secure_llm_proxy.foundation.errors import OperatorError

_PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encrypted file and what went into it."""

    name: str
    size: int
    sha256: str
    plain_size: int
    plain_sha256: str


class Feed:
    """Takes what is to be encrypted, counts and digests it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, content: Buffer, /) -> int:
        piece = memoryview(content).cast("B")
        self._digest.update(piece)
        self.size += len(piece)
        at = 0
        while at < len(piece):
            at += os.write(self._descriptor, piece[at:])
        return len(piece)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def recipients_in(path: Path) -> tuple[str, ...]:
    """Raises `OperatorError` when there is none."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise OperatorError(
            f"{path} cannot be read: it must hold the recipient of backups. Make an identity elsewhere (age-keygen -o "
            "identity.txt), keep it offline, and put its public half there (age-keygen -y identity.txt)."
        ) from None
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise OperatorError(
            f"{path} names no recipient: it must hold a line like age1…, the public half of an identity."
        )
    return found


def seal(directory: Path, recipients: Path, feed: Callable[[Feed], None], name: str) -> Sealed:
    """Encrypt what `feed` writes into the file `name` of `directory`.

    Afterwards the file is there whole and synced. Raises `OperatorError`, and then it is not there.
    """
    temporary = directory / f".{os.urandom(8).hex()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OperatorError(f"{directory} cannot be written: {error.strerror}.") from None
    try:
        taken = _encrypt(["age", "--encrypt", "--recipients-file", str(recipients)], descriptor, feed, directory)
        os.fsync(descriptor)
        size, sha256 = os.fstat(descriptor).st_size, digest_of(descriptor)
        target = directory / name
        temporary.rename(target)
        sync(directory)
    except OSError as error:
        raise OperatorError(f"The backup cannot be written to {directory}: {error.strerror or error}.") from None
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return Sealed(name, size, sha256, taken.size, taken.sha256)


def _encrypt(command: list[str], target: int, feed: Callable[[Feed], None], directory: Path) -> Feed:
    with _started(command, stdin=subprocess.PIPE, stdout=target) as child:
        assert child.stdin is not None
        taken = Feed(child.stdin.fileno())
        try:
            # When age ends early it says why.
            with contextlib.suppress(BrokenPipeError):
                feed(taken)
        except BaseException:
            child.kill()
            raise
        child.stdin.close()
        _require_well(child, f"The backup cannot be written to {directory}")
    return taken


@contextlib.contextmanager
def opened(store: Store, file: StoredFile, identity: Path) -> Iterator[IO[bytes]]:
    """What is in an encrypted file of a set. It is genuine only when the block was left after reading all of it: then what was
    read is what the manifest says, whatever somebody has done to the folder since that was looked at.

    Raises `OperatorError` when the identity is another's, or the file was altered, exchanged or cut off.
    """
    path = store.path_of(file)
    try:
        source = path.open("rb", buffering=0)
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}.") from None
    command = ["age", "--decrypt", "--identity", str(identity)]
    with source, _started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        what = f"{path} cannot be opened with the identity in {identity}"
        taken = _Taken(source, child.stdin)
        taken.start()
        try:
            try:
                yield child.stdout
            finally:
                while child.stdout.read(_PIECE_BYTES):
                    pass
        except Exception:
            # Whoever reads what ends too early fails, too; the reason is age's.
            _require_well(child, what)
            raise
        except BaseException:
            child.kill()
            raise
        finally:
            taken.join()
        _require_well(child, what)
        taken.require(file)


class _Taken(threading.Thread):
    """Hands a file to age, and digests what it hands over."""

    def __init__(self, source: IO[bytes], target: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._target = target
        self._digest = hashlib.sha256()
        self._size = 0
        self._error: OSError | None = None

    def run(self) -> None:
        try:
            while piece := self._source.read(_PIECE_BYTES):
                self._digest.update(piece)
                self._size += len(piece)
                rest = memoryview(piece)
                while rest:
                    rest = rest[self._target.write(rest) :]
        except BrokenPipeError:
            # age has ended, and says why.
            pass
        except OSError as error:
            self._error = error
        finally:
            with contextlib.suppress(OSError):
                self._target.close()

    def require(self, file: StoredFile) -> None:
        if self._error is not None:
            raise OperatorError(f"{file.path} cannot be read: {self._error.strerror}.")
        if (self._size, self._digest.hexdigest()) != (file.size, file.sha256):
            raise OperatorError(f"{file.path} is not what the manifest says: it was exchanged while it was read.")


def pieces_of(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(_PIECE_BYTES):
        yield piece


@contextlib.contextmanager
def _started(command: list[str], *, stdin: int, stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    try:
        child = subprocess.Popen(  # noqa: S603  age, never a shell
            command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, bufsize=0
        )
    except FileNotFoundError:
        raise OperatorError("The program age is not installed (Debian: apt-get install age).") from None
    with child:
        yield child


def _require_well(child: subprocess.Popen[bytes], what: str) -> None:
    assert child.stderr is not None
    said = child.stderr.read(8192).decode("utf-8", "replace").splitlines()
    if child.wait() != 0:
        # Its second line asks to report unexpected errors to its makers.
        words = said[0].removeprefix("age: error: ") if said else f"age ended with {child.returncode}"
        raise OperatorError(f"{what}: {words}.")
