from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from secure_llm_proxy.audit import Outcome, VerificationReport, log_lines, verify
from secure_llm_proxy.audit.appender import Appender, Entry, Rhythm
from secure_llm_proxy.audit.format import CheckpointLine, base64_text
from secure_llm_proxy.audit.genesis import Genesis, initialise
from secure_llm_proxy.audit.retention import NotRetired, Retention
from secure_llm_proxy.audit.retirement import RetiredSegment
from secure_llm_proxy.audit.segments import LogDirectories, SegmentFile, SegmentState
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import EXCHANGE, KEK, WORKER, appender, audit_settings, entry, records_in

LOGS = Path(__file__).parent / "logs"
ROLLING = Rhythm(lines=2, epoch_s=0.000_001)
WRITER = "22" * 16


class Interrupted(Exception):
    """The process dies here."""


class Calendar:
    """A clock that stands until it is told. `wall` may go its own way."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.wall = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.wall

    def now_ns(self) -> int:
        self.wall += timedelta(microseconds=1)
        return int(self.wall.timestamp() * 1e6) * 1000

    def monotonic_s(self) -> float:
        return self.time_s

    def pass_days(self, days: float) -> None:
        self.wall += timedelta(days=days)
        self.time_s += days * 86_400


class Archive:
    """A log that gets one segment a day, and what retires its segments after three days."""

    def __init__(self, genesis: Genesis, *, second: Path | None = None) -> None:
        self.genesis = genesis
        self.directory = genesis.directory
        self.calendar = Calendar()
        self.directories = LogDirectories(genesis.directory, second)
        self.backed_up: Callable[[SegmentFile], bool] | None = None
        self.log: Appender | None = None
        self.counter = 0

    @property
    def retired(self) -> Path:
        return self.directory / "retired.jsonl"

    def live(self, days: int, *, crash: bool = False) -> None:
        """One segment for each day; a crash leaves the last one open."""
        for day in range(days):
            log = self.open()
            for _ in range(5):
                self.counter += 1
                log.commit([entry(self.counter)])
                log.keep_rhythm()
            if not (crash and day == days - 1):
                log.close_segment("stop")
            self.log = None
            self.calendar.pass_days(1)

    def open(self) -> Appender:
        self.log = appender(self.genesis, now_ns=self.calendar.now_ns, rhythm=ROLLING, second=self.directories.second)
        self.log.open_segment()
        return self.log

    def retention(self) -> Retention:
        return Retention(self.directories, days=3, is_backed_up=self.backed_up, clock=self.calendar)

    def record(self, retired: RetiredSegment) -> None:
        assert self.log is not None
        self.counter += 1
        identifier = f"W{self.counter:04d}"
        metadata = {"ty": "segment.retired", "id": identifier, "rid": EXCHANGE, **retired.clear()}
        counter = self.log.carry.seen.get(WRITER, 0) + 1
        self.log.commit(
            [Entry(WRITER, counter, orjson.dumps(metadata), b"", "segment.retired", identifier, EXCHANGE, None)]
        )

    def retire(self) -> int:
        log = self.open()
        try:
            return self.retention().retire(self.record)
        finally:
            log.close_segment("stop")
            self.log = None

    def numbers(self) -> list[int]:
        return [segment.number for segment in self.directories.segments()]

    def verify(self, *anchors: str) -> VerificationReport:
        return verify(
            self.directory,
            genesis_public_key=self.genesis.owner_public_key,
            kek=KEK,
            anchors=anchors,
            also=self.directories.second,
        )

    def notes(self) -> list[str]:
        lines = (item.line for item in log_lines(self.directory, also=self.directories.second))
        return [line.note for line in lines if isinstance(line, CheckpointLine)]


@pytest.fixture
def genesis(tmp_path: Path) -> Genesis:
    return initialise(audit_settings(tmp_path))


@pytest.fixture
def archive(genesis: Genesis) -> Iterator[Archive]:
    made = Archive(genesis)
    yield made
    if made.log is not None and made.log.is_open:
        made.log.close_segment("stop")


def test_old_segments_go_and_the_log_verifies_from_there_on(archive: Archive) -> None:
    archive.live(6)
    before = archive.verify()

    count = archive.retire()

    assert before.ok
    assert count == 3
    assert archive.numbers() == [4, 5, 6, 7]
    report = archive.verify()
    assert report.ok, report.findings
    assert "3 segments" in str([finding.what for finding in report.findings])
    assert report.key_rolls > 3
    told = [record.clear for record in records_in(archive.directory) if record.type == "segment.retired"]
    assert [clear["retired"] for clear in told] == [1, 2, 3]


def test_the_records_of_a_retirement_may_be_retired_themselves(archive: Archive) -> None:
    archive.live(6)
    archive.retire()
    archive.live(5)

    assert archive.retire() > 0

    assert archive.numbers()[0] > 7
    report = archive.verify()
    assert report.ok, report.findings
    archive.live(8)
    archive.retire()
    report = archive.verify()
    assert report.ok, report.findings


def test_who_is_retired_is_decided_by_the_end_of_a_segment(archive: Archive) -> None:
    archive.live(3)

    found = archive.retention().candidates()

    # The first ended a day after it began, two days ago: it stays.
    assert found == []
    archive.calendar.pass_days(1.5)
    archive.open()
    assert [candidate.segment.number for candidate in archive.retention().candidates()] == [1]


def test_the_segment_before_the_open_one_stays_however_old(archive: Archive) -> None:
    archive.live(4)
    archive.calendar.pass_days(100)

    archive.retire()

    assert archive.numbers() == [4, 5]
    assert archive.verify().ok


@pytest.mark.parametrize("recorded", [False, True])
def test_interrupted_before_or_after_the_record_it_goes_on(archive: Archive, *, recorded: bool) -> None:
    archive.live(6)

    def die(entry: RetiredSegment) -> None:
        if recorded:
            archive.record(entry)
        raise Interrupted

    log = archive.open()
    with pytest.raises(Interrupted):
        archive.retention().retire(die)
    log.close_segment("stop")
    between = archive.verify()
    archive.retire()

    assert between.ok, between.findings
    assert archive.numbers()[0] == 4
    assert archive.verify().ok


def test_interrupted_before_the_file_went_it_goes_on(archive: Archive, tmp_path: Path) -> None:
    archive.live(6)
    kept = tmp_path / "kept"
    shutil.copytree(archive.directory, kept)
    archive.retire()
    for path in kept.glob("00000002-*"):
        shutil.copy2(path, archive.directory)
    for path in kept.glob("00000003-*"):
        shutil.copy2(path, archive.directory)

    between = archive.verify()
    archive.retire()

    assert between.ok, between.findings
    assert archive.numbers()[0] >= 4
    assert archive.verify().ok


def test_a_line_of_retired_jsonl_that_a_crash_cut_off_means_nothing(archive: Archive, tmp_path: Path) -> None:
    archive.live(6)
    kept = tmp_path / "kept"
    shutil.copytree(archive.directory, kept)
    archive.retire()
    lines = archive.retired.read_bytes().splitlines(keepends=True)
    archive.retired.write_bytes(lines[0] + lines[1] + lines[2][:100])
    for path in kept.glob("00000003-*"):
        shutil.copy2(path, archive.directory)

    between = archive.verify()
    archive.retire()

    assert between.ok, between.findings
    assert archive.retired.read_bytes().startswith(lines[0] + lines[1] + lines[2])
    assert archive.verify().ok


def test_a_missing_segment_that_was_not_retired_is_tampering(archive: Archive) -> None:
    archive.live(6)
    archive.retire()
    oldest = archive.directories.segments()[0]

    oldest.path.unlink()

    report = archive.verify()
    assert report.outcome is Outcome.TAMPERED
    assert any("is missing" in finding.what for finding in report.findings)


def test_a_retirement_that_no_record_tells_of_is_tampering(archive: Archive, genesis: Genesis, tmp_path: Path) -> None:
    archive.live(6)
    twin = tmp_path / "twin"
    shutil.copytree(archive.directory, twin)
    archive.retire()
    honest = archive.retired.read_bytes()

    # Someone who can write files, and holds no key, copies what an honest retirement would have left behind.
    (twin / "retired.jsonl").write_bytes(honest)
    for path in [*twin.glob("00000001-*"), *twin.glob("00000002-*"), *twin.glob("00000003-*")]:
        path.unlink()

    report = verify(twin, genesis_public_key=genesis.owner_public_key)
    assert report.outcome is Outcome.TAMPERED
    assert any("no record says that segment 3 was retired" in finding.what for finding in report.findings)


def test_every_altered_byte_of_retired_jsonl_is_found(archive: Archive) -> None:
    archive.live(6)
    archive.retire()
    archive.retired.chmod(0o600)
    honest = archive.retired.read_bytes()

    for position in range(0, len(honest), 13):
        altered = bytearray(honest)
        altered[position] ^= 1 << position % 8
        archive.retired.write_bytes(altered)
        assert archive.verify().outcome is Outcome.TAMPERED, position


def test_lines_of_retired_jsonl_deleted_doubled_or_swapped_are_found(archive: Archive) -> None:
    archive.live(6)
    archive.retire()
    archive.retired.chmod(0o600)
    first, second, third = archive.retired.read_bytes().splitlines(keepends=True)

    for lines in ([second, third], [first, third], [first, second], [], [first, first, second], [second, first, third]):
        archive.retired.write_bytes(b"".join(lines))
        assert archive.verify().outcome is Outcome.TAMPERED
    archive.retired.unlink()
    assert archive.verify().outcome is Outcome.TAMPERED


def test_a_segment_that_was_altered_is_not_retired_and_nothing_behind_it(archive: Archive) -> None:
    archive.live(6)
    altered = archive.directories.segments()[1].path
    altered.chmod(0o600)
    altered.write_bytes(altered.read_bytes().replace(b"R0006", b"R0066", 1))

    with pytest.raises(NotRetired, match="audit verify"):
        archive.retire()

    assert archive.numbers()[:2] == [2, 3]


def test_what_is_not_in_the_backup_stays_and_all_that_follows_it(archive: Archive) -> None:
    archive.live(6)
    archive.backed_up = lambda segment: segment.number != 2

    count = archive.retire()

    assert count == 1
    assert archive.numbers()[0] == 2
    held_back = [candidate.held_back for candidate in archive.retention().candidates()]
    assert held_back[0] == held_back[1] == "it is not in the backup yet"


def test_a_segment_that_a_crash_left_behind_is_retired_like_any_other(archive: Archive) -> None:
    archive.live(2, crash=True)
    archive.live(4)
    assert archive.directories.segments()[1].state is SegmentState.CRASHED

    archive.retire()

    assert archive.numbers()[0] == 4
    report = archive.verify()
    assert report.ok, report.findings
    last = orjson.loads(archive.retired.read_bytes().splitlines()[1])
    assert last["tail"] or last["cp"]


def test_segments_of_the_second_directory_are_retired_there(genesis: Genesis, tmp_path: Path) -> None:
    second = tmp_path / "second" / "host"
    second.mkdir(parents=True)
    archive = Archive(genesis, second=second)
    archive.live(6)
    for number in ("00000002", "00000005"):
        (path,) = archive.directory.glob(f"{number}-*")
        path.rename(second / path.name)

    archive.retire()

    assert archive.numbers() == [4, 5, 6, 7]
    assert [path.name[:8] for path in second.glob("0*")] == ["00000005"]
    assert archive.verify().ok


def test_anchors_of_retired_lines_are_held_to_what_is_left(archive: Archive) -> None:
    archive.live(6)
    notes = archive.notes()
    archive.retire()

    report = archive.verify(*notes)

    assert report.ok, report.findings
    # Of each retired segment its last checkpoint is left.
    inside = [finding for finding in report.findings if "inside retired segments" in finding.what]
    assert len(inside) == 1
    assert 3 <= report.anchors_met < len(notes)


def test_anchors_of_a_twin_log_are_found_though_its_lines_are_retired(archive: Archive, tmp_path: Path) -> None:
    archive.live(1)
    shutil.copytree(archive.directory.parent.parent, tmp_path / "copy", symlinks=True)
    twin = Archive(initialise(audit_settings(tmp_path / "copy")))
    twin.calendar.pass_days(1)
    twin.counter = archive.counter
    archive.live(5)
    twin.live(2)
    archive.retire()

    report = archive.verify(*twin.notes())

    assert report.outcome is Outcome.TAMPERED
    assert any("is not of this log" in finding.what for finding in report.findings)


def test_with_every_segment_gone_no_second_log_begins_under_the_same_name(archive: Archive) -> None:
    archive.live(6)
    archive.retire()
    for segment in archive.directories.segments():
        segment.path.unlink()

    with pytest.raises(OperatorError, match="although some were retired"):
        archive.open()
    archive.log = None
    assert archive.verify().outcome is Outcome.INCOMPLETE


def test_a_clock_that_was_set_is_noticed(archive: Archive) -> None:
    retention = archive.retention()

    steps = [retention.clock_stepped()]
    archive.calendar.pass_days(0.04)
    steps.append(retention.clock_stepped())
    archive.calendar.wall += timedelta(days=400)
    steps.append(retention.clock_stepped())
    archive.calendar.pass_days(0.04)
    steps.append(retention.clock_stepped())

    assert steps == [False, False, True, False]


def test_a_body_whose_parts_were_retired_is_no_gap(archive: Archive) -> None:
    log = archive.open()
    log.commit(
        [
            entry(1, kind="llm.part", pt_of="R0009", seq=0, last=False),
            entry(2, kind="llm.part", pt_of="R0009", seq=1, last=False),
        ]
    )
    log.close_segment("rotate")
    archive.calendar.pass_days(1)
    log.open_segment([WORKER])
    log.commit(
        [entry(3, kind="llm.part", pt_of="R0009", seq=2, last=True), entry(9, parts=3)],
    )
    log.close_segment("stop")
    archive.counter = 20
    archive.calendar.pass_days(1)
    archive.live(2)

    archive.retire()

    assert archive.numbers()[0] == 2
    report = archive.verify()
    assert report.ok, report.findings


def test_an_entry_says_what_its_record_says(archive: Archive) -> None:
    archive.live(6)
    archive.retire()

    entries = [orjson.loads(line) for line in archive.retired.read_bytes().splitlines()]

    told = [record.clear for record in records_in(archive.directory) if record.type == "segment.retired"]
    for left, clear in zip(entries, told, strict=True):
        assert (left["seg"], left["n"], left["last"], left["h"], left["sha256"]) == (
            clear["retired"],
            clear["first"],
            clear["last"],
            clear["hash"],
            clear["sha256"],
        )
    assert entries[0]["p"] == base64_text(bytes(32))


def test_segments_of_the_first_release_are_retired_once_a_checkpoint_covers_them(tmp_path: Path) -> None:
    shutil.copytree(LOGS / "first-release", tmp_path, dirs_exist_ok=True)
    archive = Archive(initialise(audit_settings(tmp_path)))
    archive.calendar.wall = datetime(2027, 1, 1, tzinfo=UTC)
    archive.counter = 100
    old = len(archive.numbers())
    with pytest.raises(NotRetired, match="not under a checkpoint yet"):
        archive.retention().retire(archive.record)
    # The crash that ended it left an exchange open.
    log = archive.open()
    log.commit([entry(101, kind="llm.end", sid="R0005", st="orphan")])
    log.close_segment("stop")
    archive.counter = 101
    archive.live(5)

    def die_at_the_second(entry: RetiredSegment) -> None:
        if entry.number == old - 1:
            raise Interrupted
        archive.record(entry)

    log = archive.open()
    with pytest.raises(Interrupted):
        archive.retention().retire(die_at_the_second)
    log.close_segment("stop")
    begins_with_an_old_one = archive.verify()
    archive.retire()

    assert archive.numbers()[0] > old
    for report in (begins_with_an_old_one, archive.verify()):
        assert report.ok, report.findings
