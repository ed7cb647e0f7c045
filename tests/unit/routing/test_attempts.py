"""What is tried after which failure, after which pause, and how often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest

from secure_llm_proxy.foundation.errors import FailureKind
from secure_llm_proxy.routing.attempts import Attempts, RetryBudget
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import Failure, Route, Target

A, B = Target("a", "m"), Target("b", "m")
CHEAP, LONG, MILD = Target("a", "cheap", "cheap"), Target("a", "long", "long"), Target("b", "mild", "mild")
OTHER_LONG = Target("b", "long", "long")
ROUTE = Route(
    "m",
    (A, B),
    {None: (CHEAP,), FailureKind.CONTEXT_LENGTH: (LONG, OTHER_LONG), FailureKind.CONTENT_POLICY: (MILD,)},
)
ALONE = Route("m", (A,))
FINAL = (FailureKind.REJECTED, FailureKind.TOO_LARGE, FailureKind.STOPPED)
PASSING = (FailureKind.UNREACHABLE, FailureKind.BROKE_OFF, FailureKind.OVERLOADED, FailureKind.RATE_LIMITED)
LASTING = (FailureKind.UNREADABLE, FailureKind.TIMEOUT, FailureKind.CREDENTIALS)


def attempts(lets: Callable[[Target], bool] = lambda _: True, **settings: object) -> Attempts:
    return Attempts(UpstreamSettings(**settings), lets, Random(7))  # type: ignore[arg-type]  # a maker of settings


def tried(room: Attempts, route: Route, first: FailureKind, *kinds: FailureKind) -> list[Target]:
    """All that is asked when everything fails: the first attempt with `first`, the others with `kinds` in turn."""
    failures = [Failure(route.targets[0], first)]
    turn = iter(kinds or (first,) * 50)
    while (attempt := room.after(route, failures)) is not None:
        failures.append(Failure(attempt.target, next(turn)))
    return [failure.target for failure in failures]


@pytest.mark.parametrize("kind", FINAL)
def test_what_would_fail_anywhere_is_tried_nowhere(kind: FailureKind) -> None:
    assert tried(attempts(), ROUTE, kind) == [A]


@pytest.mark.parametrize("kind", LASTING)
def test_what_would_fail_again_goes_to_the_other_routes_then_to_the_fallbacks(kind: FailureKind) -> None:
    assert tried(attempts(), ROUTE, kind) == [A, B, CHEAP]
    assert tried(attempts(), ALONE, kind) == [A]


@pytest.mark.parametrize("kind", PASSING)
def test_what_may_pass_is_repeated_before_the_fallbacks(kind: FailureKind) -> None:
    assert tried(attempts(), ROUTE, kind) == [A, B, A, B, CHEAP]
    assert tried(attempts(), ALONE, kind) == [A, A, A]
    assert tried(attempts(retries=0), ROUTE, kind) == [A, B, CHEAP]


def test_each_kind_of_refusal_has_its_own_fallbacks() -> None:
    assert tried(attempts(), ROUTE, FailureKind.CONTEXT_LENGTH) == [A, LONG, OTHER_LONG]
    assert tried(attempts(), ROUTE, FailureKind.CONTENT_POLICY) == [A, MILD]


def test_the_chain_is_not_left_for_a_model_that_would_refuse_as_well() -> None:
    took = tried(attempts(), ROUTE, FailureKind.CONTEXT_LENGTH, FailureKind.OVERLOADED, FailureKind.OVERLOADED)

    assert took == [A, LONG, OTHER_LONG]


def test_a_kind_without_fallbacks_of_its_own_takes_the_general_ones() -> None:
    route = Route("m", (A,), {None: (CHEAP,)})

    assert tried(attempts(), route, FailureKind.CONTEXT_LENGTH) == [A, CHEAP]


def test_pauses_grow_and_are_never_all_alike() -> None:
    pauses: list[float] = []
    for _ in range(20):
        room = attempts()
        failures = [Failure(A, FailureKind.OVERLOADED)]
        for _ in range(2):
            attempt = room.after(ALONE, failures)
            assert attempt is not None
            pauses.append(attempt.pause_s)
            failures.append(Failure(A, FailureKind.OVERLOADED))

    room = attempts()
    drawn = {attempt.pause_s for _ in range(5) if (attempt := room.after(ALONE, [Failure(A, FailureKind.OVERLOADED)]))}
    assert all(0.1 <= pause <= 0.2 for pause in pauses[::2])
    assert all(0.2 <= pause <= 0.4 for pause in pauses[1::2])
    assert len(drawn) == 5


def test_the_providers_own_word_about_when_is_heeded() -> None:
    soon = attempts().after(ALONE, [Failure(A, FailureKind.RATE_LIMITED, 3)])
    late = attempts().after(ALONE, [Failure(A, FailureKind.RATE_LIMITED, 6)])

    assert soon is not None
    assert 3.1 <= soon.pause_s <= 3.2
    assert late is None


def test_a_target_that_is_left_alone_is_not_tried() -> None:
    assert tried(attempts(lambda target: target is not B), ROUTE, FailureKind.TIMEOUT) == [A, CHEAP]
    assert tried(attempts(lambda _: False), ROUTE, FailureKind.OVERLOADED) == [A]


def test_what_was_passed_over_is_neither_repeated_nor_counted() -> None:
    failures = [Failure(A, FailureKind.OVERLOADED), Failure(B, FailureKind.OVERLOADED, passed_over=True)]

    assert _targets(attempts(), ROUTE, failures) == [A, A, CHEAP]


def _targets(room: Attempts, route: Route, failures: Sequence[Failure]) -> list[Target]:
    met = list(failures)
    while (attempt := room.after(route, met)) is not None:
        met.append(Failure(attempt.target, FailureKind.OVERLOADED))
    return [failure.target for failure in met[len(failures) :]]


def test_repeated_attempts_stay_within_their_share_of_all_requests() -> None:
    budget = RetryBudget(0.2, few=10)
    repeated = 0

    for _ in range(1000):
        budget.earn()
        repeated += budget.spend()

    assert 200 <= repeated <= 211


def test_without_a_budget_left_the_fallback_answers() -> None:
    room = attempts(retry_share=0.0)
    while room.budget.spend():
        pass

    assert tried(room, ROUTE, FailureKind.OVERLOADED) == [A, B, CHEAP]
