"""The daily check's verification: what it remembers, and when it reads the whole log again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from secure_llm_proxy.audit.genesis import Genesis
from secure_llm_proxy.cli.host.audit_log import AuditPlaces, audit_check
from secure_llm_proxy.cli.host.check import Check, Level
from tests.support.audit_log import entry, write_log


@pytest.fixture
def genesis(tmp_path: Path) -> Genesis:
    return write_log(tmp_path, [[entry(1)], [entry(2)], [entry(3)]])


def look(
    genesis: Genesis, memory: dict[str, Any] | None, *, large: bool = True, whole: bool = False
) -> tuple[Check, dict[str, Any] | None]:
    places = AuditPlaces(genesis.directory.parent)
    return audit_check(places, memory, whole_up_to_gib=0 if large else 1, whole=whole)


def segments_of(genesis: Genesis) -> list[Path]:
    found = sorted(genesis.directory.glob("0*.jsonl"))
    for path in found:
        path.chmod(0o600)
    return found


def test_the_first_look_reads_all_and_the_next_one_what_is_new(genesis: Genesis) -> None:
    first, memory = look(genesis, None)

    second, later = look(genesis, memory)

    assert (first.level, second.level) == (Level.OK, Level.OK)
    assert "all of it" in first.found
    assert "lines behind segment 2 in" in second.found
    assert memory is not None
    assert later is not None
    assert later["whole_at"] == memory["whole_at"]


def test_a_small_log_and_one_that_is_asked_for_whole_are_read_whole(genesis: Genesis) -> None:
    _, memory = look(genesis, None)

    small, _ = look(genesis, memory, large=False)
    whole, _ = look(genesis, memory, whole=True)

    assert "all of it" in small.found
    assert "all of it" in whole.found


def test_after_a_week_the_whole_log_is_read_again(genesis: Genesis) -> None:
    _, memory = look(genesis, None)
    assert memory is not None

    found, _ = look(genesis, {**memory, "whole_at": memory["whole_at"] - 8 * 86_400})

    assert "all of it" in found.found


def test_an_old_segment_that_was_touched_has_the_whole_log_read_and_its_change_found(genesis: Genesis) -> None:
    first = segments_of(genesis)[0]
    _, memory = look(genesis, None)
    told = first.stat()
    first.write_bytes(first.read_bytes().replace(b'"R0001"', b'"R0009"'))
    os.utime(first, ns=(told.st_atime_ns, told.st_mtime_ns))

    found, remembered = look(genesis, memory)
    again, _ = look(genesis, remembered)

    assert (found.level, again.level) == (Level.FAILED, Level.FAILED)
    assert found.found.startswith("tampered: ")


def test_another_owners_log_in_its_place_is_tampering_from_the_second_look_on(genesis: Genesis, tmp_path: Path) -> None:
    _, memory = look(genesis, None)
    forged = write_log(tmp_path / "forged")
    genesis.directory.rename(tmp_path / "away")
    forged.directory.rename(genesis.directory)

    found, remembered = look(genesis, memory)
    again, _ = look(genesis, remembered)

    assert (found.level, again.level) == (Level.FAILED, Level.FAILED)


def test_a_memory_that_is_none_counts_for_nothing(genesis: Genesis) -> None:
    found, _ = look(genesis, {"number": "x"})

    assert (found.level, "all of it" in found.found) == (Level.OK, True)


def test_no_log_is_told_with_what_to_do(tmp_path: Path) -> None:
    found, remembered = audit_check(AuditPlaces(tmp_path), None, whole_up_to_gib=1)

    assert (found.level, remembered) == (Level.FAILED, None)
    assert "audit init" in found.fix
