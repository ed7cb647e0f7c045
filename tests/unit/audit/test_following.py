"""Following the log by index: over rotations, failed disks and restarts, exactly its lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secure_llm_proxy.audit import initialise, log_lines
from secure_llm_proxy.audit.appender import Disk
from secure_llm_proxy.audit.following import LogFollower, LogLost, NumberedLine, Settled
from secure_llm_proxy.audit.segments import LogDirectories
from tests.support.audit_log import appender, audit_settings, entry


class FailingDisk(Disk):
    """Its syncs fail while `fails` is set; what was written stays."""

    def __init__(self) -> None:
        self.fails = 0

    def sync_data(self, descriptor: int) -> None:
        if self.fails:
            self.fails -= 1
            raise OSError(5, os.strerror(5))
        super().sync_data(descriptor)


def _everything(follower: LogFollower, settled: Settled) -> list[NumberedLine]:
    found: list[NumberedLine] = []
    while lines := follower.read(settled):
        found += lines
    return found


def _log(directory: Path) -> list[bytes]:
    return [item.raw for item in log_lines(directory)]


def test_every_line_is_read_once_and_in_order_while_the_log_is_written(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    disk = FailingDisk()
    log = appender(initialise(settings), disk=disk)
    log.open_segment()
    follower = LogFollower(LogDirectories(settings.directory / "host"), None)
    assert follower.read(log.settled) == []

    found: list[NumberedLine] = []
    for counter in range(1, 150):
        disk.fails = counter % 30 == 7
        log.commit([entry(counter)])
        if counter % 40 == 0:
            log.rotate()
        if counter % 3 == 0:
            found += follower.read(log.settled)
    log.close_segment("stop")
    found += _everything(follower, log.settled)
    follower.close()

    assert [line.n for line in found] == list(range(log.settled.n))
    assert [line.raw for line in found] == _log(settings.directory)


def test_the_first_lines_of_a_segment_are_not_settled_before_something_follows_them(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    disk = FailingDisk()
    log = appender(initialise(settings), disk=disk)
    log.open_segment()
    log.commit([entry(1)])
    log.rotate()
    before = log.settled
    follower = LogFollower(LogDirectories(settings.directory / "host"), 0)
    found = _everything(follower, before)

    # The new segment is given up without a trace, and its number taken again.
    disk.fails = 1
    log.commit([entry(2)])

    assert before.segment == 1
    assert log.settled.segment == 2
    found += _everything(follower, log.settled)
    log.close_segment("stop")
    found += _everything(follower, log.settled)
    follower.close()
    assert [line.raw for line in found] == _log(settings.directory)


def test_a_follower_goes_on_at_any_line_and_a_new_one_begins_with_the_newest_segment(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    log = appender(initialise(settings))
    log.open_segment()
    for counter in range(1, 6):
        log.commit([entry(counter)])
        log.rotate()
    first_of_last = log.settled.n
    log.commit([entry(6)])
    lines = _log(settings.directory)

    for n in range(log.settled.n):
        follower = LogFollower(LogDirectories(settings.directory / "host"), n)
        assert [line.raw for line in _everything(follower, log.settled)] == lines[n:]
        follower.close()
    new = LogFollower(LogDirectories(settings.directory / "host"), None)
    assert new.read(log.settled)[0] == NumberedLine(first_of_last, lines[first_of_last])
    new.close()


def test_lines_that_are_gone_are_passed_over_and_told(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    log = appender(initialise(settings))
    log.open_segment()
    log.commit([entry(1)])
    log.rotate()
    begins = log.settled.n
    log.commit([entry(2)])
    next((settings.directory / "host").glob("00000001-*")).unlink()

    follower = LogFollower(LogDirectories(settings.directory / "host"), 2)
    found = _everything(follower, log.settled)
    follower.close()

    assert found[0].n == begins
    assert follower.missed == (2, begins - 1)


def test_a_segment_that_was_cut_short_is_lost_and_not_filled_up(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    log = appender(initialise(settings))
    log.open_segment()
    log.commit([entry(1), entry(2)])
    (segment,) = (settings.directory / "host").glob("*.open")
    os.truncate(segment, segment.stat().st_size - 10)

    follower = LogFollower(LogDirectories(settings.directory / "host"), 0)
    with pytest.raises(LogLost, match="ends before line"):
        _everything(follower, log.settled)
