"""The audit log's promises under faults, with a real writer and several real workers: the cheap form of R01 to R04, R06 to
R10, R12 and R40. tests/faults/README.md has the long form of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.faults import disks, erasure, everything, kills
from tests.faults.outcome import Outcome, Say
from tests.support.audit_log import REPOSITORY

_PATIENCE_S = 240


def survived(scenario: Callable[[Outcome, Path, Say], None], folder: Path, rounds: int) -> Mapping[str, float]:
    """Run it and return what was measured; every bar was met."""
    outcome = Outcome(scenario.__name__, seed=5, rounds=rounds)
    scenario(outcome, folder, lambda _: None)
    assert outcome.broken == []
    return outcome.measured


def test_a_writer_killed_thirty_times_under_several_workers_loses_doubles_and_forks_nothing(tmp_path: Path) -> None:
    measured = survived(kills.kill_writer, tmp_path, 30)

    assert measured["segments"] == 31


def test_killed_workers_leave_orphans_and_no_fork_and_no_other_worker_notices(tmp_path: Path) -> None:
    measured = survived(kills.kill_workers, tmp_path, 6)

    assert measured["orphans"] > 0
    assert measured["refused"] == 0


def test_a_power_cut_takes_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    # Enough of them: now and then all was on the disk when it happened.
    measured = survived(kills.cut_power, tmp_path, 6)

    assert measured["bytes_lost_by_power_cut"] > 0


def test_logs_of_two_hosts_with_several_workers_each_do_not_fork(tmp_path: Path) -> None:
    measured = survived(kills.soak, tmp_path, 1)

    assert measured["segments"] > 4


def test_fifty_failed_syncs_lose_nothing_and_no_poisoned_file_is_synced_again(tmp_path: Path) -> None:
    measured = survived(disks.fail_syncs, tmp_path, 50)

    assert measured["syncs_failed"] > 50


def test_a_disk_that_fills_to_its_last_byte_refuses_and_comes_back(tmp_path: Path) -> None:
    told = tmp_path / "outcome.json"
    command = [
        "-m",
        "tests.faults",
        "fill-disk",
        "--rounds=2",
        "--busy",
        "--json",
        str(told),
        "--directory",
        str(tmp_path),
    ]

    done = subprocess.run(
        [*disks.own_mounts_command(), sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, disks.OWN_MOUNTS: "yes"},
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(told.read_text("utf-8"))["measured"]["refused"] > 0


def test_a_disk_that_denies_everything_refuses_is_told_of_and_comes_back(tmp_path: Path) -> None:
    assert survived(disks.deny_disk, tmp_path, 4)["refused"] > 0


def test_behind_a_hanging_writer_requests_are_refused_and_queues_stay_bounded(tmp_path: Path) -> None:
    assert survived(disks.hang_writer, tmp_path, 1)["refused"] > 0


def test_a_slow_disk_refuses_nothing(tmp_path: Path) -> None:
    survived(disks.slow_disk, tmp_path, 1)


def test_short_and_interrupted_writes_leave_no_torn_line(tmp_path: Path) -> None:
    assert survived(disks.shorten_writes, tmp_path, 10)["torn_tails"] == 0


def test_a_clock_that_jumps_an_hour_back_and_years_ahead_changes_no_order(tmp_path: Path) -> None:
    survived(disks.jump_clock, tmp_path, 6)


def test_people_erased_under_load_and_by_a_writer_that_dies_of_it_are_gone_and_nobody_else(tmp_path: Path) -> None:
    measured = survived(erasure.erase, tmp_path, 6)

    assert measured["bodies_erased"] > 0


def test_with_sink_backup_and_second_directory_nothing_is_missing_anywhere_after_all_faults_at_once(
    tmp_path: Path,
) -> None:
    measured = survived(everything.everything, tmp_path, 3)

    assert measured["segments_in_second_directory"] > 0
