"""A file that is there whole or not at all, for its owner's eyes."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from typing_extensions import Buffer

from secure_llm_proxy.foundation.errors import OperatorError

STANDARD_OUTPUT = "-"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write to a temporary neighbour (mode 0600) that takes the name `path` when the block ends well, synced.

    `-` is standard output. Raises `OperatorError` when `path` is taken or cannot be written; then nothing is left behind, and
    nothing that was there is touched. A closed pipe behind standard output ends the command with exit code 1, without a word.
    """
    if str(path) == STANDARD_OUTPUT:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # `| head` has seen enough; what Python still holds must not fail a second time at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        return
    if os.path.lexists(path):
        raise _taken(path)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    with _told_of(path):
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with io.BufferedWriter(_OutputFile(descriptor, path), 1 << 16) as stream:
            yield stream
            stream.flush()
            with _told_of(path):
                os.fsync(descriptor)
        with _told_of(path):
            _take_name(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class _OutputFile(io.FileIO):
    """Tells what went wrong with the output as such, so that it is not taken for a fault of what is read meanwhile."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "wb")
        self._path = path

    def write(self, content: Buffer, /) -> int:
        with _told_of(self._path):
            return super().write(content)


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperatorError(f"{path} cannot be written: {error.strerror or error}.") from None


def _take_name(temporary: Path, path: Path) -> None:
    try:
        # Unlike a rename this never replaces a file that came to be meanwhile.
        os.link(temporary, path)
    except FileExistsError:
        raise _taken(path) from None
    except OSError:
        # A file system without hard links.
        if os.path.lexists(path):
            raise _taken(path) from None
        temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _taken(path: Path) -> OperatorError:
    return OperatorError(f"{path} exists already; it is not overwritten. Name another file or move it away.")
