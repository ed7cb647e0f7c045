"""The lines of a log of the last hours, also where logrotate has moved a part of it away.

The folder is its service's own: what a service that was taken over puts there must not keep who looks at it for ever.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import stat
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

_LINE_BYTES_MAX = 1 << 20
# A file of holes, or a small compressed one, can hold terabytes.
_PATIENCE_S = 900.0


def files_of(log: Path) -> list[Path]:
    """The log and what it was renamed to (`NAME-…`, `NAME.1`, compressed or not). Raises `OSError`."""
    return sorted(
        path
        for path in log.parent.iterdir()
        if path.name == log.name or path.name.startswith((f"{log.name}-", f"{log.name}."))
    )


def recent(
    log: Path, since: datetime, *, time_member: str, patience_s: float = _PATIENCE_S
) -> Iterator[dict[str, Any]]:
    """JSON lines whose time is `since` or later, in no order. A line that is none is left out. Raises `OSError`, also when
    reading takes longer than `patience_s`.
    """
    until = time.monotonic() + patience_s
    for path in files_of(log):
        if datetime.fromtimestamp(path.lstat().st_mtime, UTC) < since:
            continue
        with _opened(path) as stream:
            while raw := stream.readline(_LINE_BYTES_MAX):
                if time.monotonic() > until:
                    raise OSError(errno.EFBIG, f"takes more than {patience_s:.0f} s to read", str(path))
                told = _object(raw)
                if told is not None and _is_since(told.get(time_member), since):
                    yield told


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Raises `OSError` for what is no file (a pipe would never end, a link leads elsewhere) and for what can't be unpacked."""
    with open(path, "rb", opener=_without_waiting) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no file", str(path))
        if path.suffix != ".gz":
            yield stream
            return
        try:
            with gzip.open(stream, "rb") as unpacked:
                yield cast("BinaryIO", unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise OSError(errno.EINVAL, "can't be unpacked", str(path)) from None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(raw)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _is_since(told: object, since: datetime) -> bool:
    if not isinstance(told, str):
        return False
    try:
        moment = datetime.fromisoformat(told)
    except ValueError:
        return False
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) >= since
