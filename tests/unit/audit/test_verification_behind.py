"""Verifying only what is new: the rest is held to where an earlier verification ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from secure_llm_proxy.audit import Outcome, VerificationReport, VerifiedUpTo, verify
from secure_llm_proxy.audit.genesis import Genesis
from tests.support.audit_log import entry, write_log


@pytest.fixture
def genesis(tmp_path: Path) -> Genesis:
    """A closed log of three segments; an exchange begins in the first one and ends in the second."""
    return write_log(
        tmp_path,
        [
            [entry(1, kind="llm.start"), entry(2)],
            [entry(3, kind="llm.end", sid="R0001", st="complete")],
            [entry(4)],
        ],
    )


def segments_of(genesis: Genesis) -> list[Path]:
    found = sorted(genesis.directory.glob("0*.jsonl"))
    for path in found:
        path.chmod(0o600)
    return found


def verified(genesis: Genesis, behind: VerifiedUpTo | None = None) -> VerificationReport:
    return verify(genesis.directory, genesis_public_key=genesis.owner_public_key, behind=behind)


def first_verified(genesis: Genesis) -> VerifiedUpTo:
    """Where a verification of the first two segments ended."""
    third = segments_of(genesis)[2]
    aside = third.rename(third.with_name("aside"))
    place = verified(genesis).verified
    aside.rename(third)
    assert place is not None
    assert place.number == 1
    return place


def test_only_what_is_new_is_read_and_the_place_moves_on(genesis: Genesis) -> None:
    whole = verified(genesis)
    place = first_verified(genesis)

    rest = verified(genesis, place)

    assert (rest.outcome, rest.segments, rest.lines) == (Outcome.OK, 3, whole.lines - place.n - 1)
    assert rest.verified == whole.verified
    assert rest.verified is not None
    assert rest.verified.number == 2
    assert [finding.what for finding in rest.findings] == [
        f"1 segments with {place.n + 1} lines were verified before and not read again"
    ]


def test_what_was_changed_behind_the_place_is_found(genesis: Genesis) -> None:
    place = first_verified(genesis)
    second = segments_of(genesis)[1]
    second.write_bytes(second.read_bytes().replace(b'"R0003"', b'"R0009"'))

    rest = verified(genesis, place)

    assert rest.outcome is Outcome.TAMPERED
    assert rest.verified == place


def test_a_rest_that_continues_other_lines_is_tampering(genesis: Genesis) -> None:
    place = first_verified(genesis)

    of_other_line = verified(genesis, replace(place, h=bytes(32)))
    of_other_tree = verified(genesis, replace(place, edge=tuple(bytes(32) for _ in place.edge)))
    of_other_key = verified(genesis, replace(place, epoch_public_key=bytes(32)))

    assert [report.outcome for report in (of_other_line, of_other_tree, of_other_key)] == [Outcome.TAMPERED] * 3


def test_a_missing_segment_behind_the_place_leads_back_to_the_first_line(genesis: Genesis) -> None:
    place = first_verified(genesis)
    segments_of(genesis)[1].unlink()

    rest = verified(genesis, place)

    assert rest.outcome is Outcome.TAMPERED
    assert rest.lines > 0


def test_another_logs_place_is_not_taken(genesis: Genesis) -> None:
    whole = verified(genesis)

    rest = verified(genesis, replace(first_verified(genesis), log="slp.default/other"))

    assert (rest.outcome, rest.lines) == (Outcome.OK, whole.lines)


def test_a_tampered_log_has_no_place_to_go_on_from(genesis: Genesis) -> None:
    first = segments_of(genesis)[0]
    first.write_bytes(first.read_bytes().replace(b'"R0002"', b'"R0009"'))

    report = verified(genesis)

    assert report.outcome is Outcome.TAMPERED
    assert report.verified is None
