"""Circuits: a provider's model that keeps failing is left alone for a while, then tried by one request.

    closed ──N failures in a window, at least half of its requests──▶ open ──its time is over──▶ half open
       ▲                                                               ▲                            │
       └───────────────────── one request is answered ─────────────────┼────────────────────────────┤
                                                                       └── it fails: twice as long ─┘

Source: Nygard, "Release It!", 2nd ed. (2018), §5.2; the half is Hystrix' `errorThresholdPercentage` (50).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import FailureKind
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import Target

# What another request at the same place would most likely meet too.
FAILURES = frozenset(
    {
        FailureKind.UNREACHABLE,
        FailureKind.BROKE_OFF,
        FailureKind.UNREADABLE,
        FailureKind.TIMEOUT,
        FailureKind.OVERLOADED,
        FailureKind.CREDENTIALS,
    }
)
# The provider works, and says no to this request.
_ANSWERS = frozenset({FailureKind.REJECTED, FailureKind.CONTEXT_LENGTH, FailureKind.CONTENT_POLICY})
_DOUBLED_MAX = 8
# Between the plan and the sending of the request that tries: audit and, at most, a disk that is slow.
_CLAIM_S = 10.0
# A crowd of forgotten ones must not grow for ever, nor what somebody else announces.
_KEPT = 4096


class CircuitState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    """Its time is over: the next request tries."""


class CircuitKey(NamedTuple):
    provider: str
    model: str


class CircuitView(NamedTuple):
    """One that is not closed. `opens_s`: seconds until a request may try."""

    provider: str
    model: str
    state: CircuitState
    opens_s: float


@dataclass(slots=True)
class _Circuit:
    """`since_s` is when the window began; `open_until_s` 0 while it is closed; `claimed_until_s` is the trying request's."""

    since_s: float
    failures: int = 0
    answers: int = 0
    open_until_s: float = 0.0
    open_for_s: float = 0.0
    claimed_until_s: float = 0.0


class Circuits:
    """Those of one worker. `on_change` hears of each that this worker opened (for so many seconds) or closed (0 s)."""

    def __init__(self, settings: UpstreamSettings, clock: Clock) -> None:
        self._failures_max = settings.circuit_failures
        self._window_s = settings.circuit_window_s
        self._open_s = settings.circuit_open_s
        self._clock = clock
        self._known: dict[CircuitKey, _Circuit] = {}
        self.any_open = False
        self.on_change: Callable[[CircuitKey, float], None] = _tell_nobody

    def lets(self, target: Target) -> bool:
        """May a request go there now? While it is half open, the first who asks may, and nobody else until it is decided."""
        if not self.any_open:
            return True
        circuit = self._known.get(_key(target))
        if circuit is None or not circuit.open_until_s:
            return True
        now_s = self._clock.monotonic_s()
        if now_s < circuit.open_until_s or now_s < circuit.claimed_until_s:
            return False
        circuit.claimed_until_s = now_s + _CLAIM_S
        return True

    def is_open(self, target: Target) -> bool:
        """As `lets`, and claims nothing."""
        circuit = self._known.get(_key(target))
        if circuit is None or not circuit.open_until_s:
            return False
        now_s = self._clock.monotonic_s()
        return now_s < circuit.open_until_s or now_s < circuit.claimed_until_s

    def opens_s(self, target: Target) -> float:
        """Seconds until a request may go there."""
        circuit = self._known.get(_key(target))
        if circuit is None:
            return 0.0
        return max(0.0, max(circuit.open_until_s, circuit.claimed_until_s) - self._clock.monotonic_s())

    def answered(self, target: Target) -> None:
        """It answered: closed again, if it was not."""
        circuit = self._known.get(_key(target)) if self._known else None
        if circuit is None:
            return
        if circuit.open_until_s:
            # An answer that was on its way when it opened says nothing about now.
            if circuit.claimed_until_s:
                self._close(_key(target))
                self.on_change(_key(target), 0.0)
            return
        circuit.answers += 1

    def failed(self, target: Target, kind: FailureKind) -> None:
        if kind in _ANSWERS:
            self.answered(target)
            return
        if kind not in FAILURES or not self._failures_max:
            self.released(target)
            return
        key, now_s = _key(target), self._clock.monotonic_s()
        circuit = self._known.get(key)
        if circuit is None:
            if len(self._known) >= _KEPT:
                self._forget_closed()
            self._known[key] = circuit = _Circuit(now_s)
        if circuit.open_until_s:
            if circuit.claimed_until_s:
                self._open(key, circuit, min(2 * circuit.open_for_s, _DOUBLED_MAX * self._open_s))
            return
        if now_s - circuit.since_s > self._window_s:
            circuit.since_s, circuit.failures, circuit.answers = now_s, 0, 0
        circuit.failures += 1
        if circuit.failures >= self._failures_max and circuit.failures >= circuit.answers:
            self._open(key, circuit, self._open_s)

    def released(self, target: Target) -> None:
        """The request that tried ended without saying anything about the provider: the next one may."""
        if self.any_open and (circuit := self._known.get(_key(target))) is not None:
            circuit.claimed_until_s = 0.0

    def began(self, target: Target, longest_s: float) -> None:
        """The request that tries is on its way, for so long at most."""
        if self.any_open and (circuit := self._known.get(_key(target))) is not None and circuit.claimed_until_s:
            circuit.claimed_until_s = self._clock.monotonic_s() + longest_s

    def opened_elsewhere(self, key: CircuitKey, for_s: float) -> None:
        """Another worker opened it, for so many seconds from now."""
        if not self._failures_max:
            return
        now_s = self._clock.monotonic_s()
        circuit = self._known.get(key)
        if circuit is None:
            if len(self._known) >= _KEPT:
                return
            self._known[key] = circuit = _Circuit(now_s)
        for_s = min(for_s, _DOUBLED_MAX * self._open_s)
        if now_s + for_s > circuit.open_until_s:
            circuit.open_until_s = now_s + for_s
            circuit.open_for_s = max(circuit.open_for_s, self._open_s)
            circuit.claimed_until_s = 0.0
        self.any_open = True

    def closed_elsewhere(self, key: CircuitKey) -> None:
        """Another worker's request was answered there."""
        circuit = self._known.get(key)
        if circuit is not None and circuit.open_until_s:
            self._close(key)

    def views(self) -> tuple[CircuitView, ...]:
        """Each that is not closed, by name. One that nobody tries is forgotten some time after it might have been tried:
        its model may not be on offer any more, and counts from then on as good as any other.
        """
        now_s = self._clock.monotonic_s()
        for key, circuit in list(self._known.items()):
            tried_until_s = max(circuit.open_until_s + circuit.open_for_s + self._window_s, circuit.claimed_until_s)
            if circuit.open_until_s and now_s > tried_until_s:
                self._close(key)
        return tuple(
            CircuitView(
                key.provider,
                key.model,
                CircuitState.OPEN if now_s < circuit.open_until_s else CircuitState.HALF_OPEN,
                max(0.0, circuit.open_until_s - now_s),
            )
            for key, circuit in sorted(self._known.items())
            if circuit.open_until_s
        )

    def open_by_provider(self) -> Mapping[str, int]:
        """How many are not closed."""
        counts: dict[str, int] = {}
        for view in self.views():
            counts[view.provider] = counts.get(view.provider, 0) + 1
        return counts

    def _open(self, key: CircuitKey, circuit: _Circuit, for_s: float) -> None:
        circuit.open_until_s = self._clock.monotonic_s() + for_s
        circuit.open_for_s = for_s
        circuit.claimed_until_s = 0.0
        self.any_open = True
        self.on_change(key, for_s)

    def _close(self, key: CircuitKey) -> None:
        del self._known[key]
        self.any_open = any(circuit.open_until_s for circuit in self._known.values())

    def _forget_closed(self) -> None:
        self._known = {key: circuit for key, circuit in self._known.items() if circuit.open_until_s}


def _key(target: Target) -> CircuitKey:
    return CircuitKey(target.provider, target.model)


def _tell_nobody(key: CircuitKey, for_s: float) -> None:
    """One worker alone."""
