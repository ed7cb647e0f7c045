"""Reading what lies in a folder that somebody else may write to.

Opening a pipe for reading waits until somebody writes into it, and a device may never end: a check that runs as root or on
a timer would stand still for as long as the folder's owner likes.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotAFileError(OSError):
    """There is something else under that name: a pipe, a device, a folder. Links are followed."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "it is no file", str(path))


def open_file(path: Path) -> BinaryIO:
    """Open for reading without ever waiting. Raises `NotAFileError`, and `OSError` as `open` does."""
    try:
        stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  Path.open takes no opener; the caller closes
    except OSError as error:
        if error.errno in {errno.EISDIR, errno.ENXIO}:
            raise NotAFileError(path) from None
        raise
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise NotAFileError(path)


def read_file(path: Path) -> bytes:
    """The whole content; raises as `open_file` does."""
    with open_file(path) as stream:
        return stream.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
