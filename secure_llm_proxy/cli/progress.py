"""How far a long command is: one line on standard error that is written over, for a person at a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

import click

_EVERY_S = 0.2
_LOOK_AFTER_LINES = 256


class _Sized(Protocol):
    @property
    def raw(self) -> bytes: ...


Line = TypeVar("Line", bound=_Sized)


class Progress:
    """`with Progress("searching", total_bytes) as progress`: shows percent of the bytes, lines, and lines per second.

    The line is gone at the end of the block.
    """

    def __init__(self, what: str, total_bytes: int, *, unit: str = "lines") -> None:
        self._what = what
        self._unit = unit
        self._total = max(total_bytes, 1)
        self._shown = sys.stderr.isatty()
        self._started_s = self._next_s = time.monotonic()
        self._width = self._bytes = self._lines = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            click.echo("\r" + " " * self._width + "\r", err=True, nl=False)
            self._width = 0

    def at(self, done_bytes: int, lines: int) -> None:
        """So much is done; shown at most five times a second."""
        now = time.monotonic()
        if not self._shown or now < self._next_s:
            return
        self._next_s = now + _EVERY_S
        rate = lines / max(now - self._started_s, 1e-9)
        percent = min(100.0, 100 * done_bytes / self._total)
        line = f"{self._what}: {percent:3.0f} %, {lines:,} {self._unit}, {rate:,.0f} {self._unit}/s"
        click.echo("\r" + line.ljust(self._width), err=True, nl=False)
        self._width = max(self._width, len(line))

    def over(self, lines: Iterable[Line]) -> Iterator[Line]:
        """`lines` as they are, counted; called again it counts on."""
        if not self._shown:
            yield from lines
            return
        for line in lines:
            self._bytes += len(line.raw) + 1
            self._lines += 1
            if self._lines % _LOOK_AFTER_LINES == 0:
                self.at(self._bytes, self._lines)
            yield line
