"""A provider's name whose answers are forged leads nowhere but where it may, in every form an address can be given.

All of it happens in a network namespace with addresses of every kind and a resolver of its own; nothing is replaced in
the product (`tests/support/poisoned_names.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from tests.support.poisoned_names import FORBIDDEN, KEY, METADATA, PUBLIC, PUBLIC_2, PUBLIC_6

ROOT = Path(__file__).resolve().parents[2]
SEPARATE = {"169.254.169.254": "169.254.169.254", "127.0.0.1": "127.0.0.1", "::ffff:10.0.0.7": "10.0.0.7"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one connection: why it failed, and the addresses at which anything arrived."""

    failure: str | None
    reached: list[str]


class Told:
    """What the program in the namespace reported."""

    def __init__(self, report: dict[str, object]) -> None:
        self.report = report

    def one(self, name: str) -> Outcome:
        return _outcome(self.report[name])

    def each(self, name: str) -> dict[str, Outcome]:
        return {key: _outcome(value) for key, value in self.part(name).items()}

    def part(self, name: str) -> dict[str, object]:
        return cast("dict[str, object]", self.report[name])


def _outcome(value: object) -> Outcome:
    return Outcome(**cast("dict[str, object]", value))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def told(short_folder: Path) -> Told:
    for program in ("unshare", "ip", "mount"):
        assert shutil.which(program), f"{program} is missing: install the packages util-linux, mount and iproute2"
    folder = short_folder / "poisoned"
    folder.mkdir()
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    done = subprocess.run(
        ["unshare", *as_root, "--net", "--mount", sys.executable, "-m", "tests.support.poisoned_names", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return Told(json.loads(done.stdout.splitlines()[-1]))


def test_every_address_could_be_reached_by_who_does_not_look(told: Told) -> None:
    control = told.part("control")

    assert control["reached"] == control["expected"]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_name_of_the_world_is_not_followed_home(told: Told, address: str) -> None:
    outcome = told.each("forbidden")[address]

    assert (outcome.failure or "").startswith("address refused: its name leads to ")
    assert outcome.reached == []


def test_the_file_of_hosts_is_no_better_than_the_resolver(told: Told) -> None:
    outcome = told.one("hosts_file")

    assert "10.0.0.7" in (outcome.failure or "")
    assert outcome.reached == []


def test_of_several_addresses_only_the_one_that_may_be_is_connected_to(told: Told) -> None:
    assert told.one("several") == Outcome(None, [PUBLIC])


def test_a_name_with_the_dot_of_the_root_is_verified_without_it(told: Told) -> None:
    assert told.one("absolute") == Outcome(None, [PUBLIC])


def test_a_name_that_changes_its_mind_is_judged_at_each_connection(told: Told) -> None:
    outcomes = [_outcome(value) for value in cast("list[object]", told.report["rebinding"])]

    assert [outcome.reached for outcome in outcomes] == [[PUBLIC], [], [PUBLIC_2], [], [PUBLIC_6]]
    assert [outcome.failure is None for outcome in outcomes] == [True, False, True, False, True]


def test_a_name_of_one_s_own_network_leads_into_it_but_to_no_metadata_service(told: Told) -> None:
    outcomes = told.each("own")

    assert outcomes["10.0.0.7"] == Outcome(None, ["10.0.0.7"])
    assert outcomes["fd00::7"] == Outcome(None, ["fd00::7"])
    assert [outcomes[address].reached for address in METADATA] == [[]] * len(METADATA)


def test_a_listed_name_leads_into_one_s_own_network_but_to_no_metadata_service(told: Told) -> None:
    assert told.one("listed") == Outcome(None, ["10.0.0.7"])
    for outcome in told.each("listed_metadata").values():
        assert outcome.failure is not None
        assert outcome.reached == []


def test_an_address_in_the_url_itself_is_the_operator_s_word(told: Told) -> None:
    for address, outcome in told.each("literal").items():
        assert outcome == Outcome(None, [address])


def test_nothing_crosses_the_world_without_tls_because_a_name_was_forged(told: Told) -> None:
    outcome = told.one("plain")

    assert "the URL is http" in (outcome.failure or "")
    assert outcome.reached == []


def test_a_resolver_that_fails_lies_or_is_silent_leads_nowhere(told: Told) -> None:
    for outcome in [*told.each("failing").values(), told.one("nothing")]:
        assert (outcome.failure or "").startswith("name lookup: ")
        assert outcome.reached == []


def test_the_product_sends_nothing_to_a_metadata_service_and_tells_the_operator_alone_why(told: Told) -> None:
    product = told.part("product")
    log = str(product["log"])

    assert product["before"] == product["again"] == {"status": 200, "reached": [PUBLIC]}
    for address, value in cast("dict[str, dict[str, object]]", product["after"]).items():
        shown = SEPARATE[address]
        assert (value["status"], value["reached"]) == (502, [])
        assert f"its name leads to {shown}" in log
        for text in (str(value["body"]), json.dumps(value["headers"])):
            assert shown not in text
            assert "llm.example" not in text
    assert KEY not in log
    assert "a secret question" not in log


def _filtered(told: Told, case: str) -> tuple[list[Outcome], bool]:
    part = cast("dict[str, list[object]]", told.part("filtered")[case])
    return [_outcome(each) for each in part["outcomes"]], bool(part["wanted"])


def test_a_name_that_leads_elsewhere_each_time_is_reached_where_the_egress_filter_lets_it(told: Told) -> None:
    without, _ = _filtered(told, "no list")
    listed, wanted = _filtered(told, "listed")

    assert [outcome.reached for outcome in without] == [[]] * 20
    assert {outcome.failure for outcome in without} == {
        "connect: Permission denied: refused by a packet filter of this host (scripts/egress show)"
    }
    assert listed == [Outcome(None, [PUBLIC])] * 20
    assert wanted


def test_of_several_addresses_the_one_that_is_let_through_is_taken_first(told: Told) -> None:
    partly, wanted = _filtered(told, "listed partly")
    another, another_wanted = _filtered(told, "listed another")

    assert partly == [Outcome(None, [PUBLIC])]
    assert another == [Outcome(None, [PUBLIC_2])]
    assert (wanted, another_wanted) == (False, True)


def test_an_address_that_is_not_let_through_is_told_as_the_filters_refusal(told: Told) -> None:
    [outcome], _ = _filtered(told, "none listed")

    assert outcome == Outcome(
        "connect: Permission denied: refused by the egress filter (scripts/egress show: what it lets through)", []
    )
    assert told.report["product"]["refused"] in (502, 503)  # type: ignore[index]
    assert "refused by the egress filter (scripts/egress show" in told.part("product")["log"]  # type: ignore[operator]


@pytest.mark.parametrize("case", ["listed and forbidden", "rebound"])
def test_the_filters_list_opens_no_way_to_a_forbidden_address(told: Told, case: str) -> None:
    [outcome], _ = _filtered(told, case)

    assert outcome.failure is not None
    assert outcome.reached == []


def test_a_list_that_was_left_behind_gives_way_to_the_names_own_answer(told: Told) -> None:
    [outcome], _ = _filtered(told, "left behind")

    assert outcome == Outcome(None, [PUBLIC_2])
