"""How much was written to the logs since the last look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from secure_llm_proxy.cli.host.check import Check, judged, ok, unknown

_COMPRESSED = frozenset({".gz", ".xz", ".zst", ".bz2"})
_MIB = 1 << 20
_DAY_S = 86_400
# Less than this after the last look, a rate per day says nothing.
_APART_LEAST_S = 600


def sizes_of(logs: Iterable[Path]) -> tuple[dict[str, int], list[Path]]:
    """Bytes of each file by device and inode, which logrotate's renaming keeps; and the folders that may not be looked at.

    What logrotate has compressed was written before.
    """
    sizes: dict[str, int] = {}
    unseen = []
    for folder in logs:
        try:
            for path in folder.iterdir():
                if path.is_file() and not path.is_symlink() and path.suffix not in _COMPRESSED:
                    told = path.stat()
                    sizes[f"{told.st_dev}:{told.st_ino}"] = told.st_size
        except FileNotFoundError:
            continue
        except OSError:
            unseen.append(folder)
    return sizes, unseen


def growth_check(
    now: Mapping[str, int],
    before: Mapping[str, int] | None,
    *,
    apart_s: float,
    warning_mib: float,
    unseen: Iterable[Path],
) -> Check:
    """`before` and `now` as `sizes_of` tells them, `apart_s` seconds apart."""
    if hidden := ", ".join(map(str, unseen)):
        return unknown("log growth", f"{hidden} may not be looked at by this user", "run this as root")
    total = sum(now.values()) / _MIB
    if before is None or apart_s < _APART_LEAST_S:
        return ok("log growth", f"{total:.0f} MiB now; the next look tells how much that grew")
    written = sum(max(0, size - before.get(file, 0)) for file, size in now.items()) / _MIB
    daily = written * _DAY_S / apart_s
    told = f"{daily:.0f} MiB a day, {total:.0f} MiB now"
    fix = (
        "see what is logged (LOG_LEVEL=INFO?), and that logrotate runs: logrotate -d /etc/logrotate.d/secure_llm_proxy"
    )
    return judged("log growth", daily, told, fix, warning_from=warning_mib, failed_from=float("inf"))
