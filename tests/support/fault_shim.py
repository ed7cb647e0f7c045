"""A disk that fails on command, and a clock that jumps, for a process that is not altered (tests/faults/fault_shim.c)."""

from __future__ import annotations

import atexit
import mmap
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

from tests.support.programs import find_program

_SOURCE = Path(__file__).resolve().parents[1] / "faults" / "fault_shim.c"
_COMPILE_PATIENCE_S = 120
# The members of `struct control`, in order.
_TOLD_TO_IT = (
    "sync_fail_from", "sync_fail_to", "sync_errno", "write_fail_from", "write_fail_to", "write_errno", "create_errno",
    "short_ppm", "interrupt_ppm", "sync_delay_us", "clock_offset_ns", "drop_unsynced", "seed",
)  # fmt: skip
_TOLD_BY_IT = (
    "syncs", "writes", "syncs_failed", "writes_failed", "writes_shortened", "writes_interrupted", "creates_failed",
)  # fmt: skip
_PLACES = {name: position * 8 for position, name in enumerate((*_TOLD_TO_IT, *_TOLD_BY_IT))}
_FIELD = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class DiskEvent:
    """One line of the shim's log: `create`, `fsync`, `fdatasync`, `sync-failed`, `write-failed` or `truncate`."""

    what: str
    is_directory: bool
    inode: int
    size: int
    name: str


class FaultShim:
    """For processes started with `environment()`; `folder` holds the control file and the log, `under` is the faulty disk."""

    def __init__(self, folder: Path, under: Path, *, seed: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        under.mkdir(parents=True, exist_ok=True)
        self._under = under
        self._log = folder / "disk-events"
        self._control_path = folder / "control"
        self._control_path.write_bytes(bytes(8 * len(_PLACES)))
        with self._control_path.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 0)
        self.set(seed=seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()

    def environment(self) -> Mapping[str, str]:
        return {
            "LD_PRELOAD": str(_compiled_shim()),
            "FAULT_UNDER": str(self._under),
            "FAULT_CONTROL": str(self._control_path),
            "FAULT_LOG": str(self._log),
        }

    def set(self, **fields: int) -> None:
        """A running process obeys at its next call. Names as in `struct control`; 0 switches a fault off."""
        for name, value in fields.items():
            assert name in _TOLD_TO_IT, name
            _FIELD.pack_into(self._control, _PLACES[name], value)

    def count(self, name: str) -> int:
        """How often it happened so far: `syncs`, `writes`, `syncs_failed` …"""
        assert name in _TOLD_BY_IT, name
        return int(_FIELD.unpack_from(self._control, _PLACES[name])[0])

    def fail_sync(self, nth: int, *, times: int = 1, error: int) -> None:
        """The `nth` sync from now (1 is the next one) and the `times - 1` behind it fail with `error`."""
        while True:
            self.set(sync_fail_from=0)
            failed, first = self.count("syncs_failed"), self.count("syncs") + nth
            self.set(sync_errno=error, sync_fail_to=first + times - 1)
            self.set(sync_fail_from=first)
            # A process that goes on meanwhile may have been past it before it was told.
            if self.count("syncs") < first or self.count("syncs_failed") > failed:
                return

    def fail_writes(self, nth: int = 1, *, times: int = 1 << 40, error: int) -> None:
        """As `fail_sync`, for writes; unless said otherwise until `heal`."""
        first = self.count("writes") + nth
        self.set(write_fail_from=0)
        self.set(write_errno=error, write_fail_to=first + times - 1)
        self.set(write_fail_from=first)

    def heal(self) -> None:
        """No more faults of the disk; the clock stays where it was set."""
        self.set(
            **dict.fromkeys(
                ("sync_fail_from", "write_fail_from", "create_errno", "short_ppm", "interrupt_ppm", "sync_delay_us"), 0
            )
        )

    def events(self) -> list[DiskEvent]:
        """What happened to files and directories so far, in order. A line being written now is left out."""
        if not self._log.exists():
            return []
        events = []
        for line in self._log.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                what, kind, inode, size, name = line[:-1].split(" ", 4)
                events.append(DiskEvent(what, kind == "d", int(inode), int(size), name))
        return events

    def synced_after_failure(self) -> list[str]:
        """Names of files that were synced again after a sync or write of theirs had failed. A cut or a new file with the same
        inode number is none.
        """
        poisoned: set[int] = set()
        found = []
        for event in self.events():
            if event.is_directory:
                continue
            if event.what == "create":
                poisoned.discard(event.inode)
            elif event.what == "sync-failed":
                if event.inode in poisoned:
                    found.append(event.name)
                poisoned.add(event.inode)
            elif event.what in {"fsync", "fdatasync"} and event.inode in poisoned:
                found.append(event.name)
        return found

    def synced_sizes(self) -> dict[int, int]:
        """By inode: how many bytes of each file were on disk at its last sync that succeeded."""
        sizes: dict[int, int] = {}
        for event in self.events():
            if event.what == "create":
                sizes[event.inode] = 0
            elif event.what in {"fsync", "fdatasync"} and not event.is_directory:
                sizes[event.inode] = event.size
        return sizes


@cache
def _compiled_shim() -> Path:
    """The shim as a library, made once in this process's life. Raises `ServerMissing` without a compiler."""
    compiler = find_program("cc", package="gcc libc6-dev")
    folder = Path(mkdtemp(prefix="slp-fault-shim-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "fault_shim.so"
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_COMPILE_PATIENCE_S,
    )
    assert done.returncode == 0, f"{_SOURCE.name} does not compile: {done.stderr}"
    return library
