"""Prometheus metrics. Labels are closed sets (doors, codes, listed models, configured providers), never text
from a client.

Several workers: `PROMETHEUS_MULTIPROC_DIR` must be in the environment before the first import of prometheus_client
(gunicorn.conf.py sets it), and their files are summed at each scrape.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections import Counter as Counted
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from gevent import get_hub
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

log = logging.getLogger(__name__)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OWN_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4)
_RATE_CODES = frozenset({"rate_limit_exceeded", "concurrency_limit_exceeded"})
_HELD_S = 0.1
_HELD_MAX = 1000
_BLOCK_CODES = frozenset({"address_blocked", "agent_blocked"})


class ExchangeFacts(NamedTuple):
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
    """The collectors of one process. What other workers of this host counted is seen up to 0.1 s late."""

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
        self._leaked = Counter(
            "slp_leaked_keys_total",
            "API keys quarantined because they were found in a URL or a body.",
            ["where"],
            registry=self.registry,
        )
        self._attempts = Counter(
            "slp_upstream_attempts_total", "Requests sent to providers.", ["provider"], registry=self.registry
        )
        self._failures = Counter(
            "slp_upstream_failures_total",
            "Requests to providers that failed, by kind.",
            ["provider", "kind"],
            registry=self.registry,
        )
        self._circuits = Gauge(
            "slp_circuits_open",
            "Models of a provider that are left alone because they kept failing.",
            ["provider"],
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self._limiter_fallbacks = Counter(
            "slp_limiter_local_total",
            "Requests limited by this host's share because Redis was away.",
            registry=self.registry,
        )

        self._host_gauges: Callable[[], Mapping[str, tuple[str, float]]] = dict
        self._held: list[ExchangeFacts] = []
        self._held_attempts: Counted[str] = Counted()
        self._held_failures: Counted[tuple[str, str]] = Counted()
        self._shown_circuits: Mapping[str, int] = {}
        self._open_exchanges = 0
        self._timer: Any = None
        # labels() costs as much as counting: asked for once for each combination, of which there are few.
        self._requests_of = cache(lambda door, status: self._requests.labels(door, str(status)))
        self._duration_of = cache(self._duration.labels)
        self._refusals_of = cache(self._refusals.labels)
        self._tokens_of = cache(self._tokens.labels)
        self._attempts_of = cache(self._attempts.labels)
        self._failures_of = cache(self._failures.labels)

    def hold_back(self) -> None:
        """From now on count together, every 0.1 s, in this thread's event loop: 2 instead of 14 µs a request (2026-11)."""
        # A repeating one: libev fires a single shot at once when it is started for the second time.
        self._timer = get_hub().loop.timer(_HELD_S, _HELD_S)

    def show_gauges(self, ask: Callable[[], Mapping[str, tuple[str, float]]]) -> None:
        """At each scrape also show what `ask` returns: by name, what a figure of this host means and the figure."""
        self._host_gauges = ask

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        for name, (meaning, figure) in self._host_gauges().items():
            yield GaugeMetricFamily(name, meaning, value=figure)

    def opened(self) -> None:
        """Never raises: counting must not cost a request."""
        self._open_exchanges += 1
        self._count_soon()

    def closed(self, facts: ExchangeFacts) -> None:
        """Never raises, as `opened`."""
        self._open_exchanges -= 1
        self._held.append(facts)
        self._count_soon()

    def attempted(self, provider: str) -> None:
        """A request goes to the provider. Counted with the exchange that it belongs to."""
        self._held_attempts[provider] += 1

    def failed(self, provider: str, kind: str) -> None:
        """A request to the provider failed."""
        self._held_failures[provider, kind] += 1

    def show_circuits(self, open_by_provider: Mapping[str, int]) -> None:
        """From now on so many models of each provider are left alone. Never raises, as `opened`."""
        if open_by_provider == self._shown_circuits:
            return
        try:
            for provider in {**self._shown_circuits, **open_by_provider}:
                self._circuits.labels(provider).set(open_by_provider.get(provider, 0))
            self._shown_circuits = dict(open_by_provider)
        except OSError as error:
            log.warning("metrics not counted", extra={"why": type(error).__name__})

    def flush(self) -> None:
        """Count what is held back. Never raises."""
        if self._timer is not None:
            self._timer.stop()
        held, self._held = self._held, []
        open_exchanges, self._open_exchanges = self._open_exchanges, 0
        attempts, self._held_attempts = self._held_attempts, Counted()
        failures, self._held_failures = self._held_failures, Counted()
        try:
            for provider, count in attempts.items():
                self._attempts_of(provider).inc(count)
            for (provider, kind), count in failures.items():
                self._failures_of(provider, kind).inc(count)
            if open_exchanges:
                self._in_progress.inc(open_exchanges)
            self._count(held)
        except OSError as error:
            log.warning("metrics not counted", extra={"why": type(error).__name__})

    def _count_soon(self) -> None:
        if self._timer is None or len(self._held) >= _HELD_MAX:
            self.flush()
        elif not self._timer.active:
            self._timer.start(self.flush)

    def _count(self, held: list[ExchangeFacts]) -> None:
        requests = Counted((facts.door, facts.status) for facts in held)
        for (door, status), count in requests.items():
            self._requests_of(door, status).inc(count)
        for code, count in Counted(facts.code for facts in held if facts.code is not None).items():
            self._refusals_of(code).inc(count)
        for door in dict.fromkeys(facts.door for facts in held):
            _observe(self._duration_of(door), [facts.duration_s for facts in held if facts.door == door])
        _observe(self._overhead, [facts.overhead_s for facts in held])
        _observe(self._upstream, [facts.upstream_s for facts in held if facts.upstream_s is not None])
        tokens: Counted[tuple[str, str]] = Counted()
        for facts in held:
            if facts.model is not None:
                tokens[facts.model, "prompt"] += facts.prompt_tokens or 0
                tokens[facts.model, "completion"] += facts.completion_tokens or 0
        for (model, kind), count in tokens.items():
            if count:
                self._tokens_of(model, kind).inc(count)

    def leaked(self, where: str) -> None:
        """A key was found in a `url` or a `body`. Never raises, as `opened`."""
        try:
            self._leaked.labels(where).inc()
        except OSError as error:
            log.warning("metrics not counted", extra={"why": type(error).__name__})

    def limited_locally(self) -> None:
        self._limiter_fallbacks.inc()

    def security_counts(self) -> SecurityCounts:
        """The figures of `/security/status`."""
        self.flush()
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


def _observe(histogram: Histogram, amounts: list[float]) -> None:
    """As `Histogram.observe` for each, in one step for each bucket. The library offers none for many (0.25, 2026-11)."""
    if not amounts:
        return
    histogram._sum.inc(sum(amounts))  # noqa: SLF001
    bounds = histogram._upper_bounds  # noqa: SLF001
    for bucket, count in Counted(bisect_left(bounds, amount) for amount in amounts).items():
        histogram._buckets[bucket].inc(count)  # noqa: SLF001


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
    metrics.flush()
    # The figures of the host come last: they are asked for once, not once for each worker.
    host = CollectorRegistry()
    host.register(metrics)
    return generate_latest(_readable(metrics)) + generate_latest(host), CONTENT_TYPE_LATEST


def _readable(metrics: Metrics) -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return metrics.registry
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
