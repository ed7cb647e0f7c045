from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from secure_llm_proxy.audit import Outcome, verify
from secure_llm_proxy.audit.appender import Disk, LogUnavailable
from secure_llm_proxy.audit.genesis import Genesis, initialise
from secure_llm_proxy.audit.room import Room
from secure_llm_proxy.audit.rooms import Rooms
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import KEK, Reports, appender, audit_settings, entry, records_in


class FullDirectory(Disk):
    """Takes the first lines of a segment and no record, in every directory of `full`."""

    def __init__(self, *full: Path) -> None:
        self.full = set(full)

    def sync_data(self, descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().parent in self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().sync_data(descriptor)


class ForgetfulDisk(Disk):
    """Cannot make the entry of a new segment durable in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def sync(self, descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == self.directory:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(descriptor)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    directory = tmp_path / "second" / "host"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def genesis(tmp_path: Path) -> Genesis:
    return initialise(audit_settings(tmp_path))


def numbers(directory: Path) -> list[int]:
    return sorted(int(path.name[:8]) for path in directory.glob("0*"))


def test_what_a_full_first_directory_cannot_take_goes_to_the_second_at_once(genesis: Genesis, second: Path) -> None:
    log = appender(genesis, disk=FullDirectory(genesis.directory), second=second)
    log.open_segment()

    log.commit([entry(1)])
    log.commit([entry(2)])
    log.close_segment("stop")

    assert (numbers(genesis.directory), numbers(second)) == ([], [1])
    assert [record.counter for record in records_in(genesis.directory, also=second)] == [1, 2]
    report = verify(genesis.directory, genesis_public_key=genesis.owner_public_key, kek=KEK, also=second)
    assert report.ok, report.findings
    assert report.findings == ()


def test_with_both_directories_full_nothing_is_acknowledged(genesis: Genesis, second: Path) -> None:
    disk = FullDirectory(genesis.directory, second)
    log = appender(genesis, disk=disk, second=second)
    log.open_segment()

    with pytest.raises(LogUnavailable):
        log.commit([entry(1)])
    disk.full.clear()
    log.open_segment()
    log.commit([entry(1)])
    log.close_segment("stop")

    assert numbers(genesis.directory) == [1]
    assert verify(genesis.directory, genesis_public_key=None, also=second).ok


def test_the_next_segment_is_tried_in_the_first_directory_again(genesis: Genesis, second: Path) -> None:
    disk = FullDirectory(genesis.directory)
    log = appender(genesis, disk=disk, second=second)
    log.open_segment()
    log.commit([entry(1)])
    log.close_segment("rotate")

    disk.full.clear()
    log.open_segment()
    log.commit([entry(2)])
    log.close_segment("stop")

    assert (numbers(genesis.directory), numbers(second)) == ([2], [1])
    assert (genesis.directory.parent / "audit.jsonl").resolve().parent == genesis.directory
    assert (second / "audit.jsonl").resolve().parent == genesis.directory


def test_a_segment_of_the_same_number_in_both_directories_is_tampering(genesis: Genesis, second: Path) -> None:
    log = appender(genesis, second=second)
    log.open_segment()
    log.commit([entry(1)])
    log.close_segment("stop")
    (segment,) = genesis.directory.glob("0*")
    shutil.copy(segment, second)

    report = verify(genesis.directory, genesis_public_key=None, also=second)

    assert report.outcome is Outcome.TAMPERED
    assert any("two segments of this number" in finding.what for finding in report.findings)
    with pytest.raises(OperatorError, match="two segments of the number 1"):
        appender(genesis, second=second)


def test_a_segment_that_was_given_up_before_it_took_a_record_is_no_second_of_its_number(
    genesis: Genesis, second: Path
) -> None:
    # A power cut has undone the removal of what the first directory could not make durable.
    reports = Reports()
    log = appender(genesis, disk=ForgetfulDisk(genesis.directory), second=second, reports=reports)
    log.open_segment()
    (begun,) = second.glob("0*")
    shutil.copy(begun, genesis.directory)
    log.commit([entry(1)])

    while_it_runs = verify(genesis.directory, genesis_public_key=None, also=second)
    restarted = appender(genesis, second=second)
    restarted.open_segment()
    restarted.commit([entry(2)])
    restarted.close_segment("stop")

    assert "directory_failed" in reports.names
    assert while_it_runs.ok, while_it_runs.findings
    assert "given up" in str([finding.what for finding in while_it_runs.findings])
    assert (numbers(genesis.directory), numbers(second)) == ([2], [1])
    assert verify(genesis.directory, genesis_public_key=None, also=second).ok
    assert [record.counter for record in records_in(genesis.directory, also=second)] == [1, 2]


def test_a_directory_that_runs_short_of_room_hands_over_to_the_other_and_gets_no_new_segment(
    genesis: Genesis, second: Path
) -> None:
    short: set[Path] = set()
    log = appender(genesis, second=second, is_short=short.__contains__)
    log.open_segment()
    log.commit([entry(1)])

    short.add(genesis.directory)
    log.keep_rhythm()
    log.commit([entry(2)])
    log.rotate()
    log.commit([entry(3)])
    short.clear()
    log.rotate()
    log.commit([entry(4)])
    log.close_segment("stop")

    assert (numbers(genesis.directory), numbers(second)) == ([1, 4], [2, 3])
    assert verify(genesis.directory, genesis_public_key=None, also=second).ok


def test_a_directory_that_is_short_takes_what_the_other_cannot(genesis: Genesis, second: Path) -> None:
    log = appender(genesis, second=second, disk=FullDirectory(second), is_short=lambda place: place != second)
    log.open_segment()

    for counter in range(1, 5):
        log.commit([entry(counter)])
        log.keep_rhythm()
    log.close_segment("stop")

    # It was tried once: a minute passes before the next time.
    assert (numbers(genesis.directory), numbers(second)) == ([1, 2], [])
    assert verify(genesis.directory, genesis_public_key=None, also=second).ok


def test_there_is_room_while_one_of_the_directories_has_some(genesis: Genesis, second: Path) -> None:
    used = os.statvfs(genesis.directory)
    free = {genesis.directory: 0, second: used.f_bfree}
    clock_s = 0.0

    def look(directory: Path) -> os.statvfs_result:
        return os.statvfs_result((*used[:3], free[directory], free[directory], *used[5:]))

    rooms = Rooms(
        [
            (
                place,
                Room(
                    place,
                    bytes_min=used.f_frsize,
                    percent_min=0.0,
                    reserve_bytes=0,
                    report=Reports(),
                    look_at=look,
                    now_s=lambda: clock_s,
                ),
            )
            for place in (genesis.directory, second)
        ]
    )
    rooms.look()
    one_is_full = (rooms.has_room, rooms.trouble, rooms.is_short(genesis.directory), rooms.is_short(second))
    free[second] = 0
    clock_s += 10.0
    rooms.look()
    both_are = (rooms.has_room, rooms.is_short(genesis.directory), rooms.is_short(second))

    assert one_is_full == (True, None, True, False)
    assert both_are == (False, False, False)
    assert "new requests are refused" in str(rooms.trouble)
