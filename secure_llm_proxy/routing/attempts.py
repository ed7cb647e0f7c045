"""What is tried after a failure, when, and how often.

First the other targets of the model, at once; then the same one again, where the failure may have been a passing one; then
the fallbacks, each after failures of its kind only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from secure_llm_proxy.foundation.errors import FailureKind
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import Attempt, Failure, Route, Target

# Nothing that the request asks for would go better elsewhere, or nobody waits any more.
_FINAL = frozenset({FailureKind.REJECTED, FailureKind.TOO_LARGE, FailureKind.STOPPED})
# The request is the reason: other places of the same model say the same, other models may not.
_OF_THE_REQUEST = (FailureKind.CONTEXT_LENGTH, FailureKind.CONTENT_POLICY)
# Nothing of an answer had come: the same place may do better in a moment.
_PASSING = frozenset({FailureKind.UNREACHABLE, FailureKind.BROKE_OFF, FailureKind.OVERLOADED, FailureKind.RATE_LIMITED})
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.2, 4.0
# A provider that wants more time than this is not waited for.
RETRY_AFTER_S_MAX = 5


class Chance(Protocol):
    """Where chance comes from, as `random.Random` has it."""

    def random(self) -> float: ...

    def uniform(self, a: float, b: float, /) -> float: ...


class RetryBudget:
    """Repeated attempts as a share of all requests, beyond a few: a provider in need gets little more than usual.

    A token bucket: each request puts `share` in, up to `few`, and each repeated attempt takes one out. Source: Finagle's
    RetryBudget (2026-11).
    """

    def __init__(self, share: float, few: float = 10.0) -> None:
        self._share = share
        self._few = few
        self._left = few

    def earn(self) -> None:
        left = self._left + self._share
        self._left = min(self._few, left)

    def spend(self) -> bool:
        """True when there was something left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Attempts:
    """Chooses the next attempt of a request. `lets` says whether a target's circuit allows one."""

    def __init__(self, settings: UpstreamSettings, lets: Callable[[Target], bool], chance: Chance) -> None:
        self._retries_max = settings.retries
        self.budget = RetryBudget(settings.retry_share)
        self._lets = lets
        self._chance = chance

    def after(self, route: Route, failures: Sequence[Failure]) -> Attempt | None:
        """The next one; None when the last failure stands."""
        kind = failures[-1].kind
        if kind in _FINAL:
            return None
        met = {failure.kind for failure in failures}
        tried = {failure.target for failure in failures}
        reasons = [reason for reason in _OF_THE_REQUEST if reason in met]
        if not reasons:
            for target in route.targets:
                if target not in tried and self._lets(target):
                    return Attempt(target)
            if (again := self._again(failures)) is not None:
                return again
        for target in _chain(route, reasons, kind):
            if target not in tried and self._lets(target):
                return Attempt(target)
        return None

    def _again(self, failures: Sequence[Failure]) -> Attempt | None:
        """The target that failed in passing, and least often, once more after a pause."""
        asked = [failure for failure in failures if not failure.passed_over]
        last = {failure.target: failure for failure in asked}
        if len(asked) - len(last) >= self._retries_max:
            return None
        counts = {target: sum(failure.target == target for failure in asked) for target in last}
        # What rests on purpose is waited for only when nothing else is left.
        passing = [failure for failure in last.values() if _may_pass(failure)]
        for failure in sorted(passing, key=lambda failure: (failure.retry_after_s or 0, counts[failure.target])):
            if self._lets(failure.target):
                if not self.budget.spend():
                    return None
                return Attempt(failure.target, self._pause_s(failure, counts[failure.target]))
        return None

    def _pause_s(self, failure: Failure, times: int) -> float:
        """Twice as long each time, half of it by chance, so that requests that failed together don't come back together."""
        pause_s = min(_PAUSE_MIN_S * 2.0 ** (times - 1), _PAUSE_MAX_S)
        return (failure.retry_after_s or 0) + pause_s * self._chance.uniform(0.5, 1.0)


def _chain(route: Route, reasons: Sequence[FailureKind], kind: FailureKind) -> Iterator[Target]:
    general = route.fallbacks.get(None, ())
    for reason in reasons or [kind]:
        yield from route.fallbacks.get(reason, general)


def _may_pass(failure: Failure) -> bool:
    return failure.kind in _PASSING and (failure.retry_after_s or 0) <= RETRY_AFTER_S_MAX
