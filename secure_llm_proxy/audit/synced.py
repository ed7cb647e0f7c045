"""How far the log is on disk, told by the writer to the process that answers readers: a number and a hash in memory.

The writer sets it after each sync (0.6 µs); who reads it never waits. Lines beyond it may be in the file already and vanish
again, when the sync that is under way fails.
"""

from __future__ import annotations

import os
import struct
import time
import zlib

from secure_llm_proxy.audit.log_view import Durable

_TOLD = struct.Struct("<Q32s")
_SUM = struct.Struct("<I")
_SIZE = _TOLD.size + _SUM.size
_TRIES = 1_000
_PAUSE_S = 0.001


class SyncedMark:
    """Shared memory by file descriptor. One process sets it; its children, which are given the descriptor, read it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._last = -1

    @classmethod
    def create(cls) -> SyncedMark:
        return cls(os.memfd_create("slp-audit-synced", os.MFD_CLOEXEC))

    def tell(self, lines: int, h: bytes) -> None:
        if lines == self._last:
            return
        self._last = lines
        told = _TOLD.pack(lines, h)
        os.pwrite(self.descriptor, told + _SUM.pack(zlib.crc32(told)), 0)

    def read(self) -> Durable | None:
        """None when nothing was told yet."""
        for _ in range(_TRIES):
            whole = os.pread(self.descriptor, _SIZE, 0)
            if not whole:
                return None
            if len(whole) == _SIZE and _SUM.unpack(whole[_TOLD.size :])[0] == zlib.crc32(whole[: _TOLD.size]):
                lines, h = _TOLD.unpack(whole[: _TOLD.size])
                return Durable(lines, h)
            # Read while it was being set.
            time.sleep(_PAUSE_S)
        return None

    def close(self) -> None:
        os.close(self.descriptor)
