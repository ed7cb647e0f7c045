from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.audit import log_lines, verify
from secure_llm_proxy.audit.appender import Disk, LogUnavailable
from secure_llm_proxy.audit.format import FEATURES, EndLine, SegmentLine, parse_line
from secure_llm_proxy.audit.genesis import Genesis, initialise
from secure_llm_proxy.audit.verification import Severity
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import (
    KEK,
    WORKER,
    Reports,
    appender,
    audit_settings,
    entry,
    records_in,
    write_log,
)


class FailingDisk(Disk):
    """Fails the n-th sync of data and every one in `also`; remembers which file each sync was for."""

    def __init__(self, fail_at: int, *also: int) -> None:
        self._fail_at = {fail_at, *also}
        self._calls = 0
        self.poisoned: set[int] = set()
        self.synced_after_failure: list[str] = []

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        # A new file that got the inode of one that was removed.
        self.poisoned.discard(os.fstat(descriptor).st_ino)
        return descriptor

    def sync_data(self, descriptor: int) -> None:
        self._calls += 1
        inode = os.fstat(descriptor).st_ino
        if inode in self.poisoned:
            self.synced_after_failure.append("data")
        if self._calls in self._fail_at:
            self.poisoned.add(inode)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_data(descriptor)

    def sync(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_ino in self.poisoned:
            self.synced_after_failure.append("all")
        super().sync(descriptor)


class FullDisk(Disk):
    """Has room for `room` bytes, as long as it is `full`."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.full = True

    def write(self, descriptor: int, content: bytes | memoryview) -> int:
        if not self.full:
            return super().write(descriptor, content)
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(descriptor, content[: self.room])
        self.room -= written
        return written


class NervousDisk(Disk):
    """Writes less than asked, or is interrupted, at random."""

    def __init__(self) -> None:
        self._random = random.Random(5)

    def write(self, descriptor: int, content: bytes | memoryview) -> int:
        if self._random.random() < 0.3:
            raise InterruptedError
        return super().write(descriptor, content[: self._random.randint(1, 200)])


def verified(genesis: Genesis) -> list[str]:
    """Verify with every body opened; returns the notes, and fails on anything worse."""
    report = verify(genesis.directory, genesis_public_key=genesis.owner_public_key, kek=KEK)
    assert report.ok, report.findings
    return [finding.what for finding in report.findings if finding.severity is Severity.NOTE]


@pytest.fixture
def genesis(tmp_path: Path) -> Genesis:
    return initialise(audit_settings(tmp_path))


def test_a_closed_segment_is_whole_read_only_and_linked(genesis: Genesis) -> None:
    log = appender(genesis)
    log.open_segment()

    log.commit([entry(1, body=b"secret words"), entry(2)])
    log.close_segment("stop")

    (segment,) = genesis.directory.glob("0*.jsonl")
    assert segment.stat().st_mode & 0o777 == 0o440
    assert [parse_line(line, FEATURES).n for line in segment.read_bytes().splitlines()] == [*range(7)]
    assert b"secret words" not in segment.read_bytes()
    for link in (genesis.directory / "audit.jsonl", genesis.directory.parent / "audit.jsonl"):
        assert link.is_symlink()
        assert link.resolve() == segment
    assert verified(genesis) == []


def test_the_link_leads_to_the_open_segment_while_it_is_open(genesis: Genesis) -> None:
    log = appender(genesis)

    log.open_segment()
    log.commit([entry(1)])

    assert (genesis.directory.parent / "audit.jsonl").resolve().name.endswith(".jsonl.open")


def test_every_start_opens_a_segment_that_continues_the_last(genesis: Genesis) -> None:
    for counter in range(1, 4):
        log = appender(genesis)
        log.open_segment()
        log.commit([entry(counter)])
        log.close_segment("stop")

    lines = [item.line for item in log_lines(genesis.directory)]
    assert [line.n for line in lines if line] == list(range(18))
    assert [line.number for line in lines if isinstance(line, SegmentLine)] == [1, 2, 3]
    assert verified(genesis) == []


def test_size_and_age_rotate_a_segment_that_holds_records(genesis: Genesis) -> None:
    log = appender(genesis, segment_bytes_max=2_000)
    log.open_segment()

    log.keep_rhythm()
    for counter in range(1, 21):
        log.commit([entry(counter, body=b"x" * 300)])
        log.keep_rhythm()

    reasons = [item.line.reason for item in log_lines(genesis.directory) if isinstance(item.line, EndLine)]
    assert len(reasons) > 3
    assert set(reasons) == {"rotate"}
    assert verified(genesis) == ["the log goes on; open exchanges: 0"]


def test_without_encryption_bodies_stand_in_clear_and_the_log_says_so(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path, kek=None, encryption_enabled=False))
    log = appender(genesis, kek=None)
    log.open_segment()

    log.commit([entry(1, body=b"in clear")])
    log.close_segment("stop")

    assert [record.plain for record in records_in(genesis.directory)] == [b"in clear"]
    assert verify(genesis.directory, genesis_public_key=genesis.owner_public_key).ok


@pytest.mark.parametrize("fail_at", range(1, 11))
def test_a_failed_sync_costs_a_segment_and_no_record(genesis: Genesis, fail_at: int) -> None:
    disk = FailingDisk(fail_at)
    log = appender(genesis, disk=disk)
    log.open_segment()

    for first in range(1, 31, 3):
        log.commit([entry(counter) for counter in range(first, first + 3)])
    log.close_segment("stop")

    assert [record.counter for record in records_in(genesis.directory)] == list(range(1, 31))
    assert disk.synced_after_failure == []
    if fail_at == 1:
        # Nothing had been promised in that segment, so no trace of it is kept.
        assert not list(genesis.directory.glob("*.crashed.jsonl"))
    else:
        assert len(list(genesis.directory.glob("*.crashed.jsonl"))) == 1
    verified(genesis)


def test_two_failures_in_a_row_make_the_log_unavailable_until_the_disk_is_back(genesis: Genesis) -> None:
    log = appender(genesis, disk=FailingDisk(3, 4))
    log.open_segment()
    log.commit([entry(1)])
    log.commit([entry(2)])

    with pytest.raises(LogUnavailable):
        log.commit([entry(3)])
    assert not log.is_open
    assert log.carry.seen[WORKER] == 2

    log.open_segment()
    log.commit([entry(3)])
    log.close_segment("stop")
    assert [record.counter for record in records_in(genesis.directory)] == [1, 2, 3]
    verified(genesis)


@pytest.mark.parametrize("room", range(0, 1500, 50))
def test_a_disk_that_fills_up_anywhere_loses_and_doubles_nothing(genesis: Genesis, room: int) -> None:
    disk = FullDisk(10_000)
    log = appender(genesis, disk=disk)
    log.open_segment()
    log.commit([entry(1), entry(2)])
    disk.room = room
    durable = [1, 2]

    for counter in range(3, 8):
        try:
            log.commit([entry(counter, body=b"b" * 200)])
        except LogUnavailable:
            with pytest.raises(OSError, match="No space left"):
                log.open_segment()
            break
        durable.append(counter)
    disk.full = False
    if not log.is_open:
        log.open_segment()
    log.commit([entry(counter) for counter in range(durable[-1] + 1, 10)])
    log.close_segment("stop")

    assert [record.counter for record in records_in(genesis.directory)] == list(range(1, 10))
    assert not list(genesis.directory.glob(".0*.tmp"))
    verified(genesis)


def test_short_and_interrupted_writes_leave_whole_lines(genesis: Genesis) -> None:
    log = appender(genesis, disk=NervousDisk())
    log.open_segment()

    for counter in range(1, 50):
        log.commit([entry(counter)])
    log.close_segment("stop")

    assert len(records_in(genesis.directory)) == 49
    assert verified(genesis) == []


@pytest.mark.parametrize("fail_at", [2, 3], ids=["end", "checkpoint"])
def test_a_failed_disk_at_the_end_of_a_segment_is_survived_too(genesis: Genesis, fail_at: int) -> None:
    """The second sync is that of the `end` line, the third that of the checkpoint over it."""
    log = appender(genesis, disk=FailingDisk(fail_at), segment_bytes_max=1)
    log.open_segment()
    log.commit([entry(1)])

    log.keep_rhythm()
    log.commit([entry(2)])
    log.close_segment("stop")

    assert [record.counter for record in records_in(genesis.directory)] == [1, 2]
    assert verified(genesis) == ["the disk failed here; what was not synced is not part of the log"]


def test_a_crash_at_any_byte_of_the_last_write_keeps_what_was_whole(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path))
    log = appender(genesis)
    log.open_segment()
    log.commit([entry(1), entry(2)])
    (segment,) = genesis.directory.glob("*.open")
    before = segment.stat().st_size
    log.commit([entry(3)])
    content = segment.read_bytes()
    pristine = tmp_path / "pristine"
    shutil.copytree(genesis.directory, pristine, symlinks=True)

    for size in range(before, len(content) + 1, 7):
        shutil.rmtree(genesis.directory)
        shutil.copytree(pristine, genesis.directory, symlinks=True)
        segment.write_bytes(content[:size])

        again = appender(genesis)
        kept = again.carry.seen[WORKER]
        again.open_segment()
        again.commit([entry(counter) for counter in range(kept + 1, 5)])
        again.close_segment("stop")

        assert kept == (3 if size == len(content) else 2)
        assert [record.counter for record in records_in(genesis.directory)] == [1, 2, 3, 4]
        torn = size - (before if kept == 2 else len(content))
        assert verified(genesis) == ([f"a torn tail of {torn} bytes is declared"] if torn else [])
        (crashed,) = genesis.directory.glob("*.crashed.jsonl")
        assert crashed.read_bytes() == content[:size]


def test_a_tail_of_garbage_after_a_power_cut_is_left_in_place_and_reported(genesis: Genesis) -> None:
    log = appender(genesis)
    log.open_segment()
    log.commit([entry(1)])
    (segment,) = genesis.directory.glob("*.open")
    with segment.open("ab") as stream:
        stream.write(bytes(600) + b"\n" + bytes(50))

    again = appender(genesis)
    again.open_segment()
    again.close_segment("stop")

    report = verify(genesis.directory, genesis_public_key=genesis.owner_public_key)
    assert report.exit_code == 3
    assert "whole lines was set aside" in str(report.findings[0])


def test_a_crash_between_the_end_line_and_the_rename_is_finished_at_start_up(genesis: Genesis) -> None:
    log = appender(genesis)
    log.open_segment()
    log.commit([entry(1)])
    log.close_segment("stop")
    (closed,) = genesis.directory.glob("0*.jsonl")
    closed.rename(closed.with_name(closed.name + ".open"))

    again = appender(genesis)
    again.open_segment()
    again.close_segment("stop")

    assert closed.exists()
    assert verified(genesis) == []


def test_a_crash_after_the_disk_had_failed_does_not_sync_that_file_again(genesis: Genesis) -> None:
    disk = FailingDisk(2, 3)
    log = appender(genesis, disk=disk)
    log.open_segment()
    log.commit([entry(1)])
    with pytest.raises(LogUnavailable):
        log.commit([entry(2)])

    again = appender(genesis, disk=disk)
    assert again.carry.seen[WORKER] == 1
    again.open_segment()
    again.commit([entry(2)])
    again.close_segment("stop")

    assert disk.synced_after_failure == []
    assert [record.counter for record in records_in(genesis.directory)] == [1, 2]
    verified(genesis)


def test_leftovers_of_a_crash_while_a_segment_was_made_are_cleared(genesis: Genesis) -> None:
    (genesis.directory / ".00000001-20261121T000000Z.tmp").write_bytes(b'{"k":"seg"')

    log = appender(genesis)
    log.open_segment()
    log.close_segment("stop")

    assert not list(genesis.directory.glob(".0*"))
    assert verified(genesis) == []


def test_damage_inside_a_closed_segment_is_not_laundered_by_a_restart(tmp_path: Path) -> None:
    genesis = write_log(tmp_path)
    last = max(genesis.directory.glob("0*.jsonl"))
    last.chmod(0o600)
    last.write_bytes(last.read_bytes().replace(b'"ty":"llm.refused"', b'"ty":"llm.Refused"'))

    log = appender(genesis)
    log.open_segment()
    log.commit([entry(5)])
    log.close_segment("stop")

    assert verify(genesis.directory, genesis_public_key=genesis.owner_public_key).exit_code == 1


def test_start_up_knows_open_exchanges_and_counters_from_the_last_segment_alone(genesis: Genesis) -> None:
    log = appender(genesis)
    log.open_segment()
    log.commit(
        [entry(1, kind="llm.start"), entry(2, kind="llm.start"), entry(3, kind="llm.end", sid="R0001", st="complete")]
    )
    log.close_segment("rotate")
    log.open_segment([WORKER])
    log.commit([entry(4, kind="llm.start")])

    # The first segment is out of reach: only what the last one carries and holds can be known.
    next(iter(sorted(genesis.directory.glob("0*")))).rename(genesis.directory.parent / "away")
    again = appender(genesis)

    assert sorted(again.carry.open) == ["R0002", "R0004"]
    assert again.carry.seen == {WORKER: 4}


def test_the_clock_may_jump_without_harm_to_order_or_proof(genesis: Genesis) -> None:
    seconds = itertools.cycle([1_800_000_000, 1_799_996_400, 1_800_086_400, 0, 1_800_000_000])
    log = appender(genesis, now_ns=lambda: next(seconds) * 1_000_000_000)

    for counter in range(1, 20):
        if not log.is_open:
            log.open_segment()
        log.commit([entry(counter)])
        if counter % 5 == 0:
            log.close_segment("rotate")
    log.close_segment("stop")

    assert [record.counter for record in records_in(genesis.directory)] == list(range(1, 20))
    assert verified(genesis) == []


def test_a_log_of_a_later_version_is_not_continued(tmp_path: Path) -> None:
    genesis = write_log(tmp_path)
    last = max(genesis.directory.glob("0*.jsonl"))
    last.chmod(0o600)
    original = last.read_bytes()

    for old, new, message in (
        (b'"v":1', b'"v":2', "newer"),
        (b'"ft":["cp",', b'"ft":["cq",', "later version"),
        (b'"log":"slp.default/host"', b'"log":"slp.default/other"', "belongs to the log"),
        (b'"seg":2', b'"seg":9', "damaged"),
        (b'{"k":"seg"', b'{"k":"sag"', "damaged"),
    ):
        last.write_bytes(original.replace(old, new, 1))
        with pytest.raises(OperatorError, match=message):
            appender(genesis)


def test_the_operator_is_told_what_happened_to_a_segment(genesis: Genesis) -> None:
    reports = Reports()
    log = appender(genesis, disk=FailingDisk(2), reports=reports)
    log.open_segment()

    log.commit([entry(1)])
    log.commit([entry(2)])
    log.close_segment("stop")

    assert reports.names == ["segment_opened", "segment_given_up", "segment_opened", "segment_closed"]


@given(st.lists(st.lists(st.sampled_from(["start", "end", "other"]), min_size=1, max_size=8), min_size=1, max_size=6))
def test_a_clean_log_never_raises_an_alarm(tmp_path_factory: pytest.TempPathFactory, plan: list[list[str]]) -> None:
    genesis = initialise(audit_settings(tmp_path_factory.mktemp("log")))
    counter, running = 0, list[str]()
    log = appender(genesis)

    for batch in plan:
        log.open_segment([WORKER])
        entries = []
        for what in batch:
            counter += 1
            if what == "start":
                entries.append(entry(counter, kind="llm.start"))
                running.append(entries[-1].id)
            elif what == "end" and running:
                entries.append(entry(counter, kind="llm.end", sid=running.pop(), st="complete"))
            else:
                entries.append(entry(counter, more=orjson.dumps(batch).decode()))
        log.commit(entries)
        log.close_segment("rotate")
    log.open_segment([WORKER])
    if running:
        log.commit([entry(counter + n, kind="llm.end", sid=start, st="orphan") for n, start in enumerate(running, 1)])
    log.close_segment("stop")

    assert verified(genesis) == []
