"""What the daily check remembers from one day to the next: one JSON file, whole or not at all, readable for its owner alone."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

_NAME = "memory.json"
_BYTES_MAX = 64 << 20


def recall(directory: Path | None) -> dict[str, Any]:
    """{} when there is nothing (whole) to remember, or it may not be read."""
    if directory is None:
        return {}
    try:
        with (directory / _NAME).open("rb") as stream:
            told = json.loads(stream.read(_BYTES_MAX))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def remember(directory: Path, values: dict[str, Any]) -> None:
    """Raises `OSError`, and then what was remembered before still is."""
    temporary = directory / f".{_NAME}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(values, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(directory / _NAME)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
