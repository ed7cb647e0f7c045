"""Who is refused too often, and when that is too much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from secure_llm_proxy.admission.rules import (
    VIOLATIONS,
    CountedViolations,
    NoViolations,
    ProcessTally,
    Tally,
    network_of,
)
from secure_llm_proxy.foundation.errors import ErrorCode, Unavailable
from secure_llm_proxy.gateway import chat
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import ManualClock, code_of, make_house, make_inbound

AFTER = 3
WINDOW_S = 300
WRONG_KEY = ErrorCode.INVALID_API_KEY
READ = partial(read_chat_completion, messages_max=512)


@dataclass
class Blocks:
    """What was blocked; `refusal` is raised instead while it is set."""

    made: list[tuple[str, int]] = field(default_factory=list)
    refusal: Unavailable | None = None

    def __call__(self, network: str, count: int) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.made.append((network, count))


def counted(blocks: Blocks, tally: Tally, exempt: Callable[[str], bool] = lambda _address: False) -> CountedViolations:
    return CountedViolations(AFTER, tally, exempt, blocks)


def note(violations: CountedViolations, address: str, times: int, code: ErrorCode = WRONG_KEY) -> None:
    for _ in range(times):
        violations.note_refusal(address, code)
    violations.work()


def test_an_address_is_blocked_when_its_violations_reach_the_count() -> None:
    blocks = Blocks()
    violations = counted(blocks, ProcessTally(WINDOW_S, ManualClock()))

    note(violations, "203.0.113.9", AFTER - 1)
    note(violations, "203.0.113.10", AFTER - 1)
    below = list(blocks.made)
    note(violations, "203.0.113.9", 1)

    assert below == []
    assert blocks.made == [("203.0.113.9/32", AFTER)]


def test_going_on_is_a_new_block_at_each_multiple_and_never_two_for_one() -> None:
    blocks = Blocks()
    violations = counted(blocks, ProcessTally(WINDOW_S, ManualClock()))

    note(violations, "203.0.113.9", 2 * AFTER + 1)
    note(violations, "203.0.113.9", 1)
    note(violations, "203.0.113.9", 1)

    assert blocks.made == [("203.0.113.9/32", 2 * AFTER + 1), ("203.0.113.9/32", 3 * AFTER)]


@pytest.mark.parametrize("code", ErrorCode)
def test_only_violations_count(code: ErrorCode) -> None:
    blocks = Blocks()

    note(counted(blocks, ProcessTally(WINDOW_S, ManualClock())), "203.0.113.9", AFTER, code)

    assert bool(blocks.made) is (code in VIOLATIONS)


def test_what_honest_clients_do_by_accident_is_no_violation() -> None:
    assert {
        ErrorCode.INVALID_JSON,
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.API_KEY_EXPIRED,
        ErrorCode.UPSTREAM_ERROR,
        ErrorCode.UPSTREAM_RATE_LIMITED,
        ErrorCode.AUDIT_UNAVAILABLE,
        ErrorCode.ADDRESS_BLOCKED,
    }.isdisjoint(VIOLATIONS)


def test_violations_are_forgotten_with_their_window() -> None:
    clock, blocks = ManualClock(), Blocks()
    violations = counted(blocks, ProcessTally(WINDOW_S, clock))

    note(violations, "203.0.113.9", AFTER - 1)
    clock.advance(WINDOW_S)
    note(violations, "203.0.113.9", AFTER - 1)

    assert blocks.made == []


def test_a_site_of_ipv6_is_counted_and_blocked_as_one() -> None:
    blocks = Blocks()
    violations = counted(blocks, ProcessTally(WINDOW_S, ManualClock()))

    for host in range(AFTER):
        note(violations, f"2001:db8:1:2:{host + 1:x}::1", 1)

    assert blocks.made == [("2001:db8:1:2::/64", AFTER)]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9/32"),
        ("::ffff:203.0.113.9", "203.0.113.9/32"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:ffff:ffff:ffff:ffff:ffff", "2001:db8:0:ffff::/64"),
    ],
)
def test_the_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_who_is_exempt_is_not_counted() -> None:
    blocks = Blocks()
    tally = ProcessTally(WINDOW_S, ManualClock())
    violations = counted(blocks, tally, lambda address: address == "10.9.0.1")

    note(violations, "10.9.0.1", 10 * AFTER)

    assert blocks.made == []
    assert len(tally) == 0


def test_a_block_that_cannot_be_made_now_is_made_later() -> None:
    blocks = Blocks(refusal=Unavailable("away", code=ErrorCode.AUDIT_UNAVAILABLE))
    violations = counted(blocks, ProcessTally(WINDOW_S, ManualClock()))

    note(violations, "203.0.113.9", AFTER)
    note(violations, "203.0.113.10", AFTER)
    blocks.refusal = None
    violations.work()
    violations.work()

    assert sorted(blocks.made) == [("203.0.113.10/32", AFTER), ("203.0.113.9/32", AFTER)]


def test_the_address_that_violated_least_lately_is_forgotten_when_there_are_too_many() -> None:
    tally = ProcessTally(WINDOW_S, ManualClock(), networks_max=2)

    tally.add({"a": 1, "b": 1})
    tally.add({"a": 1})
    tally.add({"c": 1})
    counts = tally.add({"a": 1, "b": 1})

    assert len(tally) == 2
    assert counts == {"a": 3, "b": 1}


def test_a_refusal_in_the_corridor_is_noted_with_the_client_s_address_and_an_answer_is_not() -> None:
    small = make_house()
    noted: list[tuple[str, ErrorCode]] = []

    class Noting(NoViolations):
        def note_refusal(self, address: str, code: ErrorCode) -> None:
            noted.append((address, code))

    house = replace(small.house, violations=Noting())

    answered = chat(house, make_inbound(), READ)
    refused = chat(house, make_inbound(address="203.0.113.9", credentials=("nonsense",)), READ)

    assert answered.outcome is not refused.outcome
    assert code_of(refused.outcome) is WRONG_KEY
    assert noted == [("203.0.113.9", WRONG_KEY)]
