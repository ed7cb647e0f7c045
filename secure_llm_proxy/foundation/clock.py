"""Time as a dependency, so that tests own it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """Wall time, aware UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never run backwards; the zero point means nothing."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()


def rfc3339(moment: datetime) -> str:
    """`2026-11-21T00:12:03.104233Z`: UTC with microseconds, the one form used on every wire and log."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
