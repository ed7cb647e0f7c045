"""Nothing that a hand does to the files of a log goes unseen, and nothing that happens to an honest one raises an alarm: the cheap
form of R05. tests/faults/README.md has the long one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.faults import honest_logs, tampering
from tests.faults.outcome import Outcome
from tests.support.audit_log import entry, write_log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tampering.CorpusLog:
    """The smallest log with a segment behind a segment; each case is taken back before the next."""
    folder = tmp_path_factory.mktemp("corpus")
    genesis = write_log(folder, [[entry(1)], [entry(2)]])
    return tampering.CorpusLog(genesis, anchors=(), latest_key=Ed25519PrivateKey.generate())


def test_two_hundred_honest_logs_with_crashes_and_failed_disks_raise_no_alarm(tmp_path: Path) -> None:
    outcome = Outcome("honest-logs", seed=7, rounds=200)

    honest_logs.honest_logs(outcome, tmp_path, lambda _: None)

    assert outcome.broken == []
    assert outcome.measured["logs"] == 200
    assert outcome.measured["false_alarms"] == 0


def test_flipped_bits_all_over_a_log_are_found_where_they_are(tmp_path: Path) -> None:
    outcome = Outcome("flip-bits", seed=7, rounds=600)

    tampering.flip_bits(outcome, tmp_path, lambda _: None)

    assert outcome.broken == []
    assert outcome.measured["flips"] >= 600


@pytest.mark.parametrize("line", [0, 1, -2, -1], ids=["seg", "tr", "end", "cp"])
def test_every_bit_of_a_segments_first_and_last_lines_counts(log: tampering.CorpusLog, line: int) -> None:
    name = log.names[0]
    lines = log.lines_of(name)
    number = line % len(lines)
    start = 8 * sum(len(each) for each in lines[:number])

    wrong = [log.judge(tampering.flipped(log, name, start + bit)) for bit in range(8 * len(lines[number]))]

    assert [each for each in wrong if each] == []


def test_every_kind_of_tampering_is_found_where_it_was_done(tmp_path: Path) -> None:
    outcome = Outcome("tamper", seed=7, rounds=300)

    tampering.tamper(outcome, tmp_path, lambda _: None)

    assert outcome.broken == []
    assert {"line moved", "segments swapped", "note replayed", "signed anew with today's key", "tail cut"} <= set(
        outcome.measured
    )
    assert len(outcome.measured) > 30
