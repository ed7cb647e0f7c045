"""The newest backup: how old it is, and whether everything that its manifest names is there."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_MANIFEST = re.compile(r"(\d{8}T\d{6}Z)\.json")
_MANIFEST_BYTES_MAX = 64 << 20
_STAMP = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class NewestBackup:
    """`troubles`: files of the manifest that are missing or of another size; their digests are for `backup --verify`."""

    made_at: datetime
    files: int
    size_bytes: int
    troubles: tuple[str, ...]

    def age_h(self, now: datetime) -> float:
        return (now - self.made_at).total_seconds() / 3600


class BackupUnread(Exception):
    """The newest manifest cannot be read. Says why."""


def newest_backup(backups: Path) -> NewestBackup | None:
    """None when there is no manifest. Raises `PermissionError` and `BackupUnread`."""
    sets = backups / "sets"
    try:
        stamps = sorted(match[1] for entry in sets.iterdir() if (match := _MANIFEST.fullmatch(entry.name)))
    except FileNotFoundError:
        return None
    if not stamps:
        return None
    manifest = sets / f"{stamps[-1]}.json"
    try:
        # The folder is its writer's own: a pipe in this place would never be read to its end.
        if not stat.S_ISREG(manifest.lstat().st_mode) or manifest.lstat().st_size > _MANIFEST_BYTES_MAX:
            raise BackupUnread(f"{manifest.name} is no manifest")
        told = json.loads(manifest.read_bytes())
        made_at = datetime.strptime(stamps[-1], _STAMP).replace(tzinfo=UTC)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise BackupUnread(f"{manifest.name}: {error}") from error
    files = dict(_files_in(told))
    troubles = []
    for path, size in files.items():
        try:
            found = (backups / path).stat().st_size
        except FileNotFoundError:
            troubles.append(f"{path} is missing")
            continue
        if found != size:
            troubles.append(f"{path} has {found} bytes instead of {size}")
    if not files:
        troubles.append("the manifest names no file")
    return NewestBackup(made_at, len(files), sum(files.values()), tuple(troubles))


def _files_in(told: Any) -> Iterator[tuple[str, int]]:  # noqa: ANN401  whatever JSON holds
    """Every member of the manifest that names a stored file, wherever it stands."""
    if isinstance(told, dict):
        path, size = told.get("path"), told.get("size")
        if isinstance(path, str) and type(size) is int and not path.startswith("/") and ".." not in path.split("/"):
            yield path, size
        for value in told.values():
            yield from _files_in(value)
    elif isinstance(told, list):
        for value in told:
            yield from _files_in(value)
