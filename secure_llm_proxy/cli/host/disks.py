"""How full the file systems are that the product stands on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from secure_llm_proxy.cli.host.check import Check, judged, unknown

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class FileSystem:
    """`places` are those of ours that lie on it; percentages are of what an ordinary user may fill."""

    device: int
    places: tuple[str, ...]
    free_bytes: int
    used_percent: float
    inodes_percent: float


def file_systems(places: Iterable[tuple[str, Path]]) -> tuple[list[FileSystem], list[str]]:
    """Each file system once, with the names of the places on it; and the names of places that may not be looked at."""
    by_device: dict[int, tuple[list[str], os.statvfs_result]] = {}
    unseen = []
    for name, path in places:
        try:
            if not path.exists():
                continue
            device = path.stat().st_dev
            by_device.setdefault(device, ([], os.statvfs(path)))[0].append(name)
        except OSError:
            unseen.append(name)
    found = []
    for device, (names, told) in by_device.items():
        used = told.f_blocks - told.f_bfree
        room = used + told.f_bavail
        inodes = told.f_files - told.f_ffree
        found.append(
            FileSystem(
                device,
                tuple(names),
                told.f_bavail * told.f_frsize,
                100 * used / room if room else 0.0,
                # Some file systems have no fixed number of inodes and say 0.
                100 * inodes / told.f_files if told.f_files else 0.0,
            )
        )
    return found, unseen


def disk_checks(places: Iterable[tuple[str, Path]], *, warning_from: float, failed_from: float) -> list[Check]:
    systems, unseen = file_systems(places)
    checks = []
    for system in systems:
        fullest = max(system.used_percent, system.inodes_percent)
        told = f"{system.used_percent:.0f} % used, {system.free_bytes / _GIB:.1f} GiB free"
        if system.inodes_percent >= warning_from:
            told += f", {system.inodes_percent:.0f} % of its inodes used"
        fix = "free some, or give it more room; below AUDIT_FREE_BYTES_MIN no request is served"
        what = f"disk of {', '.join(system.places)}"
        checks.append(judged(what, fullest, told, fix, warning_from=warning_from, failed_from=failed_from))
    if unseen:
        checks.append(unknown(f"disk of {', '.join(unseen)}", "may not be looked at by this user", "run this as root"))
    return checks
