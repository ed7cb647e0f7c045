"""When a provider's model is left alone, and when it is tried again."""

from __future__ import annotations

import pytest

from secure_llm_proxy.foundation.errors import FailureKind
from secure_llm_proxy.routing.circuits import FAILURES, CircuitKey, Circuits, CircuitState
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import Target
from tests.support.house import ManualClock

T = Target("p", "m")


def circuits(clock: ManualClock, **settings: object) -> Circuits:
    fields: dict[str, object] = {"circuit_failures": 3, "circuit_window_s": 30, "circuit_open_s": 10, **settings}
    return Circuits(UpstreamSettings(**fields), clock)  # type: ignore[arg-type]  # a maker of settings


def fail(room: Circuits, times: int = 3, kind: FailureKind = FailureKind.TIMEOUT) -> None:
    for _ in range(times):
        room.failed(T, kind)


@pytest.mark.parametrize("kind", sorted(FAILURES))
def test_it_opens_after_so_many_failures_in_the_window(kind: FailureKind) -> None:
    room = circuits(ManualClock())

    fail(room, 2, kind)
    assert room.lets(T)
    fail(room, 1, kind)

    assert not room.lets(T)
    assert room.opens_s(T) == 10


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - FAILURES))
def test_a_refusal_of_one_request_says_nothing_about_the_next(kind: FailureKind) -> None:
    room = circuits(ManualClock())

    fail(room, 50, kind)

    assert room.lets(T)


def test_failures_of_an_earlier_window_are_forgotten() -> None:
    clock = ManualClock()
    room = circuits(clock)

    for _ in range(5):
        fail(room, 2)
        clock.advance(31)

    assert room.lets(T)


def test_a_few_failures_among_many_answers_open_nothing() -> None:
    room = circuits(ManualClock())
    fail(room, 1)

    for _ in range(10):
        room.answered(T)
    fail(room, 5)
    assert room.lets(T)
    fail(room, 4)

    assert not room.lets(T)


def test_when_its_time_is_over_one_request_tries() -> None:
    clock = ManualClock()
    room = circuits(clock)
    fail(room)

    clock.advance(9.9)
    assert not room.lets(T)
    clock.advance(0.2)

    assert room.views()[0].state is CircuitState.HALF_OPEN
    assert [room.lets(T) for _ in range(3)] == [True, False, False]


def test_an_answer_closes_it() -> None:
    clock = ManualClock()
    room = circuits(clock)
    fail(room)
    clock.advance(10.1)
    assert room.lets(T)

    room.answered(T)

    assert room.views() == ()
    assert not room.any_open
    assert [room.lets(T) for _ in range(3)] == [True] * 3


def test_each_failed_try_doubles_the_time_up_to_eight_times() -> None:
    clock = ManualClock()
    room = circuits(clock)
    fail(room)
    waits = []

    for _ in range(5):
        clock.advance(room.opens_s(T) + 0.1)
        assert room.lets(T)
        fail(room, 1)
        waits.append(round(room.opens_s(T)))

    assert waits == [20, 40, 80, 80, 80]


def test_what_was_on_its_way_when_it_opened_decides_nothing() -> None:
    clock = ManualClock()
    room = circuits(clock)
    fail(room)

    room.answered(T)
    fail(room, 5)

    assert not room.lets(T)
    assert room.opens_s(T) == 10


def test_a_try_that_ends_undecided_lets_the_next_one_try() -> None:
    clock = ManualClock()
    room = circuits(clock)
    fail(room)
    clock.advance(10.1)

    assert room.lets(T)
    room.released(T)
    assert room.lets(T)
    room.failed(T, FailureKind.RATE_LIMITED)
    assert room.lets(T)


def test_a_try_that_never_began_does_not_hold_up_the_others_for_ever() -> None:
    clock = ManualClock()
    room = circuits(clock)
    fail(room)
    clock.advance(10.1)
    assert room.lets(T)

    clock.advance(10.1)
    assert room.lets(T)
    room.began(T, 600)
    clock.advance(500)

    assert not room.lets(T), "a long answer is awaited"


def test_one_that_nobody_tries_is_forgotten_in_the_end() -> None:
    clock = ManualClock()
    room = circuits(clock)
    fail(room)

    clock.advance(49)
    assert room.views()
    clock.advance(2)

    assert room.views() == ()
    assert not room.any_open


def test_it_can_be_switched_off() -> None:
    room = circuits(ManualClock(), circuit_failures=0)

    fail(room, 100)
    room.opened_elsewhere(CircuitKey("p", "m"), 10)

    assert room.lets(T)


def test_changes_are_told_and_what_others_tell_counts() -> None:
    clock = ManualClock()
    here, there = circuits(clock), circuits(clock)
    told: list[tuple[CircuitKey, float]] = []
    here.on_change = lambda key, for_s: told.append((key, for_s))

    fail(here)
    there.opened_elsewhere(*told[0])
    assert told == [(CircuitKey("p", "m"), 10)]
    assert not there.lets(T)

    clock.advance(10.1)
    assert here.lets(T)
    here.answered(T)
    assert told[1:] == [(CircuitKey("p", "m"), 0.0)]
    there.closed_elsewhere(told[1][0])
    assert there.lets(T)


def test_what_others_tell_is_bounded_in_time_and_number() -> None:
    room = circuits(ManualClock())

    room.opened_elsewhere(CircuitKey("p", "m"), 1e9)
    for number in range(10_000):
        room.opened_elsewhere(CircuitKey("p", f"m{number}"), 5)

    assert room.opens_s(T) == 80
    assert len(room.views()) <= 4096
