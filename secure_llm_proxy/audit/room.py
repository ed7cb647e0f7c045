"""Room on the disk: new exchanges are refused before it is full, and their ends have a reserve when it is.

The reserve is a file beside the segments whose blocks are allocated. Room is counted as if it were always there: while
it is (`free` excludes it) what is free must reach the minimum, while it is gone the minimum and the reserve. So it is
made exactly when there is room, and giving it up makes no room for anything but ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from secure_llm_proxy.audit.segments import RESERVE_NAME

_LOOK_S = 1.0
# A body grows by a third in base64, and a line has a header.
_GROWTH = 1.5


class Room:
    """`has_room` is as of the last `look` and what was written since. Before the first look there is room.

    `answers` False: the disk couldn't even be asked.
    """

    def __init__(
        self,
        directory: Path,
        *,
        bytes_min: int,
        percent_min: float,
        reserve_bytes: int,
        report: Callable[..., None],
        look_at: Callable[[Path], os.statvfs_result] = os.statvfs,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.has_room = True
        self.free_bytes: int | None = None
        self._directory = directory
        self._reserve = directory / RESERVE_NAME
        self._bytes_min = bytes_min
        self._percent_min = percent_min
        self._reserve_bytes = reserve_bytes
        self._report = report
        self._look_at = look_at
        self._now_s = now_s
        self._looked_s = float("-inf")
        self._minimum = bytes_min
        self._reserved: bool | None = None
        self.answers = True
        self._reserve_refused = False

    @property
    def trouble(self) -> str | None:
        """A sentence for the operator, None while there is room."""
        if self.has_room:
            return None
        free, minimum = (self.free_bytes or 0) >> 20, self._needed() >> 20
        return f"The disk of the audit log has {free} MiB free and needs {minimum}; new requests are refused until there is more."

    def look(self) -> None:
        """Learn how much is free, at most once a second; make the reserve again where there is room for it. Never raises."""
        now = self._now_s()
        if now - self._looked_s < _LOOK_S:
            return
        self._looked_s = now
        if self._reserved is None:
            self._reserved = self._is_reserved()
        if self._measure() and self.has_room and not self._reserved:
            self._make_reserve()

    def written(self, size: int) -> None:
        """`size` bytes arrived to be written: they count at once, not only at the next look."""
        if self.free_bytes is not None:
            self.free_bytes -= int(size * _GROWTH)
            self.has_room = self.has_room and self.free_bytes >= self._needed()

    def release(self) -> bool:
        """The disk is full: give up the reserve, and take no new exchanges. False when there was none to give up."""
        self.has_room = False
        self.free_bytes = 0
        self._looked_s = self._now_s()
        self._reserved = False
        try:
            self._reserve.unlink()
        except OSError:
            return False
        self._report("reserve_released", bytes=self._reserve_bytes)
        return True

    def _needed(self) -> int:
        return self._minimum + (0 if self._reserved else self._reserve_bytes)

    def _measure(self) -> bool:
        try:
            found = self._look_at(self._directory)
        except OSError:
            # A disk that can't even be asked fails at the next write, and says so there.
            self.answers = False
            return False
        self.answers = True
        self.free_bytes = found.f_bavail * found.f_frsize
        self._minimum = max(self._bytes_min, int(found.f_blocks * found.f_frsize * self._percent_min / 100))
        self.has_room = self.free_bytes >= self._needed()
        return True

    def _is_reserved(self) -> bool:
        """Whether the reserve lies there whole, as this setting wants it; what lies there otherwise is removed."""
        with contextlib.suppress(OSError):
            found = self._reserve.lstat()
            # A copy of a reserve may be a hole.
            if found.st_size == self._reserve_bytes > 0 and found.st_blocks * 512 >= found.st_size:
                return True
            self._reserve.unlink()
        return False

    def _make_reserve(self) -> None:
        if not self._reserve_bytes:
            return
        temporary = self._reserve.with_name(f"{RESERVE_NAME}.tmp")
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._reserve_bytes)
            finally:
                os.close(descriptor)
            temporary.rename(self._reserve)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._reserve_refused:
                self._report("reserve_refused", error=error.strerror or str(error))
            self._reserve_refused = True
            return
        self._reserved, self._reserve_refused = True, False
        self._measure()
