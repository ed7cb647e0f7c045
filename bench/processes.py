"""CPU time and memory of processes, as /proc tells of them, and the cores that they run on."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the measured processes run, and where everything else does. One core only: both there, and latencies lie."""

    proxy: int
    load: int

    @property
    def are_apart(self) -> bool:
        return self.proxy != self.load


def choose_cores() -> Cores:
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(proxy=allowed[0], load=allowed[1] if len(allowed) > 1 else allowed[0])


@contextmanager
def running_on(*cores: int) -> Iterator[None]:
    """Children started inside inherit the cores, and theirs too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_open_files() -> int:
    """As many open files as this user may have, for us and our children; returns how many. Load of 1,500 streams needs them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time so far. The kernel counts it exactly and tells it in steps of 10 ms."""
    total = 0
    for pid in pids:
        after_name = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        total += int(after_name[11]) + int(after_name[12])
    return total / _TICKS_PER_S


def pss_mb(pids: Iterable[int]) -> float:
    """Memory with shared pages divided among their users, so that the sum over a tree of processes is true."""
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                kilobytes += int(line.split()[1])
    return kilobytes / 1024


def tree(pid: int) -> tuple[int, ...]:
    """`pid` and every living descendant of it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if after_name[0] != "Z":
                children.setdefault(int(after_name[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return tuple(found)


@dataclass(frozen=True, slots=True)
class CpuLedger:
    """CPU seconds of the whole machine, and of this process and its ended children; the rest was somebody else's."""

    at_s: float
    machine_s: float
    ours_s: float

    @classmethod
    def now(cls) -> CpuLedger:
        user, nice, system, _idle, _waiting, *rest = map(int, Path("/proc/stat").read_text("ascii").split()[1:9])
        own = os.times()
        ours = own.user + own.system + own.children_user + own.children_system
        return cls(time.monotonic(), (user + nice + system + sum(rest)) / _TICKS_PER_S, ours)

    def others_share_since(self, before: CpuLedger) -> float:
        """Cores' worth of CPU time that others took. Children of ours must have ended."""
        others_s = (self.machine_s - before.machine_s) - (self.ours_s - before.ours_s)
        return max(0.0, others_s) / (self.at_s - before.at_s)
