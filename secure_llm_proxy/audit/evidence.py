"""What reports and validations ask of the log, wherever they run: rows of a period, lines by index, records by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from secure_llm_proxy.audit.exports import ClearRow


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line as it stands in the log, without its newline; `n` and `segment` are where it was found."""

    n: int
    segment: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of the log could not be shown, since it is not what was written. `what` is a sentence for an auditor."""

    segment: int
    n: int
    what: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A checkpoint over `n` lines was signed at `t`: the writer was there."""

    n: int
    t: str


class Damaged(Exception):
    """What was asked for stands in a damaged part of the log. The text says where, never what."""


@dataclass(frozen=True, slots=True)
class LogState:
    """What the writer tells of itself; None where it does not tell. `oldest_t` is the time of the oldest line."""

    log: str | None = None
    oldest_t: str | None = None
    off_host: bool | None = None
    backed_up: bool | None = None


class Evidence(Protocol):
    """Raises `Unavailable` while the log can't be read."""

    def rows(self, since: str, until: str, after: int = -1) -> Iterator[ClearRow | Heartbeat | Damage]:
        """Records with `since` ≤ t < `until` (times of the log) that stand behind line `after`, in order of `n`, and heartbeats
        of that time where somebody keeps them.
        """
        ...

    def lines(self, numbers: Sequence[int]) -> list[SourceLine]:
        """The lines of these indexes, in order; what the log does not hold is left out. Raises `Damaged`."""
        ...

    def named(self, identifier: str) -> list[SourceLine]:
        """Records (at most 200) whose id, exchange, start or whole is `identifier`; none: an empty list. Raises `Damaged`."""
        ...

    def state(self) -> LogState: ...
