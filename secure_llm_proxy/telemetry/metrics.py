"""Prometheus metrics. Labels are closed sets (doors, codes, listed models), never text from a client.

Several workers: `PROMETHEUS_MULTIPROC_DIR` must be in the environment before the first import of prometheus_client
(gunicorn.conf.py sets it), and their files are summed at each scrape.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

log = logging.getLogger(__name__)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OWN_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4)
_RATE_CODES = frozenset({"rate_limit_exceeded", "concurrency_limit_exceeded"})
_BLOCK_CODES = frozenset({"address_blocked", "agent_blocked"})


@dataclass(frozen=True, slots=True)
class ExchangeFacts:
    """What the metrics want to know of a closed exchange. Times in seconds; None where it did not come to that."""

    door: str
    status: int
    code: str | None
    model: str | None
    duration_s: float
    upstream_s: float | None
    overhead_s: float
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True, slots=True)
class SecurityCounts:
    """Sums over all workers of this host since it started."""

    requests: int
    in_progress: int
    rate_limited: int
    blocked: int


class Metrics:
    """The collectors of one process."""

    def __init__(self) -> None:
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            # The library asks the kernel for our process id at every single count, eleven times a request: 11 of 14 µs.
            values.ValueClass = values.MultiProcessValue(_process_id)  # type: ignore[no-untyped-call]
        # With several workers a collector writes to its file and is read through the multiprocess registry instead.
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "http_requests_total", "Requests by door and status.", ["endpoint", "status"], registry=self.registry
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "From the request's arrival to its last byte.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_progress = Gauge(
            "http_requests_in_progress", "Requests under way.", multiprocess_mode="livesum", registry=self.registry
        )
        self._refusals = Counter("slp_refusals_total", "Refused requests by code.", ["code"], registry=self.registry)
        self._upstream = Histogram(
            "slp_upstream_duration_seconds",
            "Time spent waiting for providers.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._overhead = Histogram(
            "slp_overhead_seconds",
            "Our own time in a request, provider excluded.",
            buckets=_OWN_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "slp_tokens_total", "Model tokens as providers count them.", ["model", "kind"], registry=self.registry
        )
        self._limiter_fallbacks = Counter(
            "slp_limiter_local_total",
            "Requests limited by this host's share because Redis was away.",
            registry=self.registry,
        )

        # labels() costs as much as counting: asked for once for each combination, of which there are few.
        self._requests_of = cache(lambda door, status: self._requests.labels(door, str(status)))
        self._duration_of = cache(self._duration.labels)
        self._refusals_of = cache(self._refusals.labels)
        self._tokens_of = cache(self._tokens.labels)

    def opened(self) -> None:
        """Never raises: counting must not cost a request."""
        try:
            self._in_progress.inc()
        except OSError as error:
            log.warning("metrics not counted", extra={"why": type(error).__name__})

    def closed(self, facts: ExchangeFacts) -> None:
        """Never raises, as `opened`."""
        try:
            self._count(facts)
        except OSError as error:
            log.warning("metrics not counted", extra={"why": type(error).__name__})

    def _count(self, facts: ExchangeFacts) -> None:
        self._in_progress.dec()
        self._requests_of(facts.door, facts.status).inc()
        self._duration_of(facts.door).observe(facts.duration_s)
        self._overhead.observe(facts.overhead_s)
        if facts.code is not None:
            self._refusals_of(facts.code).inc()
        if facts.upstream_s is not None:
            self._upstream.observe(facts.upstream_s)
        if facts.model is not None:
            if facts.prompt_tokens:
                self._tokens_of(facts.model, "prompt").inc(facts.prompt_tokens)
            if facts.completion_tokens:
                self._tokens_of(facts.model, "completion").inc(facts.completion_tokens)

    def limited_locally(self) -> None:
        self._limiter_fallbacks.inc()

    def security_counts(self) -> SecurityCounts:
        """The figures of `/security/status`."""
        requests = in_progress = rate_limited = blocked = 0.0
        for family in _readable(self).collect():
            for sample in family.samples:
                code = sample.labels.get("code")
                if sample.name == "http_requests_total":
                    requests += sample.value
                elif sample.name == "http_requests_in_progress":
                    in_progress += sample.value
                elif sample.name == "slp_refusals_total" and code in _RATE_CODES:
                    rate_limited += sample.value
                elif sample.name == "slp_refusals_total" and code in _BLOCK_CODES:
                    blocked += sample.value
        return SecurityCounts(int(requests), int(in_progress), int(rate_limited), int(blocked))


class _Process:
    """Our process id, kept until a fork makes another of us."""

    id = os.getpid()


def _renew_process_id() -> None:
    _Process.id = os.getpid()


os.register_at_fork(after_in_child=_renew_process_id)


def _process_id() -> int:
    return _Process.id


def render_metrics(metrics: Metrics) -> tuple[bytes, str]:
    """The text of /metrics and its content type, over all workers of this host."""
    return generate_latest(_readable(metrics)), CONTENT_TYPE_LATEST


def _readable(metrics: Metrics) -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return metrics.registry
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
