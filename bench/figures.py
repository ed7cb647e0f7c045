"""What is measured, as values. One figure object is one target in one round; medians are taken by the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlainFigures:
    """Closed-loop load of `clients` connections. `cpu_us` is per request, by part of the target; `aside_us` is the cost of
    servers that the target asks (Redis, PostgreSQL): shown, never counted.
    """

    target: str
    round: int
    clients: int
    requests: int
    refused: int
    broken: int
    asked_upstream: int
    audit_records: int | None
    requests_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: Mapping[str, float]
    aside_us: Mapping[str, float]

    @property
    def whole_cpu_us(self) -> float:
        return sum(self.cpu_us.values())


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """`streams` streams of 20 chunks a second each. `delivered` is the share of the chunks that an unhindered reader gets."""

    target: str
    round: int
    streams: int
    chunks_per_s: float
    delivered: float
    ended: int
    refused: int
    broken: int
    first_chunk_p50_ms: float
    first_chunk_p99_ms: float
    delay_p50_ms: float
    delay_p99_ms: float
    cpu_us: Mapping[str, float]
    core_share: float
    kb_per_stream: float

    @property
    def whole_cpu_us(self) -> float:
        return sum(self.cpu_us.values())


@dataclass(frozen=True, slots=True)
class StartFigures:
    """Seconds from the start of the processes to the first answered chat; memory (PSS) half a second later."""

    target: str
    round: int
    first_answer_s: float
    idle_mb: Mapping[str, float]

    @property
    def whole_idle_mb(self) -> float:
        return sum(self.idle_mb.values())


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """Appending 3 kB and fdatasync, over and over, by one process on the target's core."""

    round: int
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class GrowthFigures:
    """One case of something that grows. `base` is the case that the others of its `kind` are compared with; `flat` says
    that a request must cost the same there, within a tenth.
    """

    kind: str
    case: str
    base: bool
    flat: bool
    first_answer_s: float
    plain: PlainFigures


@dataclass(frozen=True, slots=True)
class OwnTimeFigures:
    """The product's own time by its own account and by an outside clock, one client, medians in milliseconds.

    `outside_ms` is from the request's first byte to the answer's last; `provider_ms` from the last byte that the provider
    read to the first that it wrote, by its own clock; `header_ms` what X-SLP-Overhead-Ms said. `counted` and `counted_ms`
    are what slp_overhead_seconds gained in these requests: their number and the mean of each.
    """

    requests: int
    outside_ms: float
    provider_ms: float
    added_ms: float
    header_ms: float
    header_mean_ms: float
    header_least_ms: float
    header_above_outside: int
    counted: int
    counted_ms: float


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """What is missing in the tables, and why."""

    what: str
    reason: str


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample below which `share` of them lie; -1 without samples."""
    ordered = sorted(samples)
    return ordered[int(share * (len(ordered) - 1))] if ordered else -1.0
