"""How far the log is on disk, told by the writer to the process that answers readers: a number and a hash in memory.

The writer sets it after each sync without a system call, so nothing can fail; who reads it never waits. Lines beyond it
may be in the file already and vanish again, when the sync that is under way fails.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib

from secure_llm_proxy.audit.log_view import Durable

_TOLD = struct.Struct("<Q32s")
_SUM = struct.Struct("<I")
_SIZE = _TOLD.size + _SUM.size
_UNTOLD = bytes(_SIZE)
_TRIES = 1_000
_PAUSE_S = 0.001


class SyncedMark:
    """Shared memory by file descriptor. One process sets it; its children, which are given the descriptor, read it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._last = -1

    @classmethod
    def create(cls) -> SyncedMark:
        descriptor = os.memfd_create("slp-audit-synced", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    def tell(self, lines: int, h: bytes) -> None:
        if lines == self._last:
            return
        self._last = lines
        told = _TOLD.pack(lines, h)
        self._memory[:] = told + _SUM.pack(zlib.crc32(told))

    def read(self) -> Durable | None:
        """None when nothing was told yet."""
        for _ in range(_TRIES):
            whole = self._memory[:]
            if whole == _UNTOLD:
                return None
            if _SUM.unpack(whole[_TOLD.size :])[0] == zlib.crc32(whole[: _TOLD.size]):
                lines, h = _TOLD.unpack(whole[: _TOLD.size])
                return Durable(lines, h)
            # Read while it was being set.
            time.sleep(_PAUSE_S)
        return None

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)
