from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from secure_llm_proxy.audit import log_lines, verify
from secure_llm_proxy.audit.format import base64_text, leaf, strict_base64
from secure_llm_proxy.audit.genesis import Genesis, initialise
from secure_llm_proxy.audit.verification import Outcome, Severity, VerificationReport
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import KEK, WORKER, appender, audit_settings, entry, write_log


class Log:
    """A closed log of two segments whose files may be rewritten."""

    def __init__(self, directory: Path) -> None:
        self.genesis: Genesis = write_log(directory)
        self.first, self.last = sorted(self.genesis.directory.glob("0*.jsonl"))
        for path in (self.first, self.last):
            path.chmod(0o600)
        self.lines = self.first.read_bytes().splitlines(keepends=True)

    def verify(self, *, kek: str | None = None) -> VerificationReport:
        return verify(self.genesis.directory, genesis_public_key=self.genesis.owner_public_key, kek=kek)

    def rewrite_first(self, lines: list[bytes]) -> VerificationReport:
        self.first.write_bytes(b"".join(lines))
        return self.verify()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def test_an_untouched_log_verifies_and_is_counted(log: Log) -> None:
    report = log.verify(kek=KEK)

    assert report.ok
    assert report.exit_code == 0
    assert report.findings == ()
    assert (report.segments, report.lines, report.records, report.bodies_opened, report.open_exchanges) == (
        2,
        14,
        4,
        4,
        0,
    )
    assert (report.checkpoints, report.key_rolls, report.anchors_met) == (2, 0, 0)
    assert report.log == "slp.default/host"
    assert report.first_time is not None
    assert report.last_time is not None
    assert report.first_time < report.last_time


def test_without_the_owners_key_the_report_says_how_little_that_shows(log: Log) -> None:
    report = verify(log.genesis.directory, genesis_public_key=None)

    assert report.ok
    assert [finding.severity for finding in report.findings] == [Severity.NOTE]
    assert "agrees with itself" in report.findings[0].what


@pytest.mark.parametrize("name", ["genesis.json", "retired.jsonl", "the first segment", "the last segment", ".lock"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(log: Log, name: str) -> None:
    """Whoever may write the log's folder could stop the daily check by one."""
    segments = {"the first segment": log.first, "the last segment": log.last}
    path = segments.get(name, log.genesis.directory / name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    reports: list[VerificationReport] = []
    verifying = threading.Thread(target=lambda: reports.append(log.verify()), daemon=True)
    verifying.start()
    verifying.join(60)

    assert reports, "it waits"
    told = [str(finding) for finding in reports[0].findings if finding.severity is Severity.TAMPERED]
    if name == ".lock":
        assert reports[0].ok
    else:
        assert any(path.name in finding and "it is no file" in finding for finding in told), told


def test_a_link_to_a_segment_on_another_disk_is_read(log: Log, tmp_path: Path) -> None:
    log.first.rename(tmp_path / "moved")
    log.first.symlink_to(tmp_path / "moved")

    assert log.verify().ok


def test_another_owners_log_is_not_ours(log: Log, tmp_path: Path) -> None:
    stranger = initialise(audit_settings(tmp_path / "other"))

    report = verify(log.genesis.directory, genesis_public_key=stranger.owner_public_key)

    assert report.outcome is Outcome.TAMPERED


def test_a_log_rebuilt_under_a_new_genesis_of_the_same_name_is_not_ours(log: Log, tmp_path: Path) -> None:
    forged = write_log(tmp_path / "forged")

    report = verify(forged.directory, genesis_public_key=log.genesis.owner_public_key)

    assert report.outcome is Outcome.TAMPERED


def test_a_foreign_genesis_beside_our_segments_is_tampering(log: Log, tmp_path: Path) -> None:
    stranger = initialise(audit_settings(tmp_path / "other"))
    path = log.genesis.directory / "genesis.json"
    path.chmod(0o600)
    path.write_bytes((stranger.directory / "genesis.json").read_bytes())

    report = verify(log.genesis.directory, genesis_public_key=stranger.owner_public_key)

    assert report.outcome is Outcome.TAMPERED
    assert "epoch key" in str(report.findings[0])


def test_without_genesis_nothing_can_be_decided(log: Log) -> None:
    log.genesis.directory.joinpath("genesis.json").unlink()

    assert log.verify().exit_code == 4


def test_one_bit_flipped_in_any_byte_is_found(log: Log) -> None:
    original = log.first.read_bytes()

    for position in range(len(original)):
        flipped = bytearray(original)
        flipped[position] ^= 1 << position * 5 % 8
        log.first.write_bytes(flipped)
        report = log.verify()
        assert report.outcome is Outcome.TAMPERED, f"byte {position}"
        assert report.findings[0].file in {log.first.name, log.last.name}


def test_a_deleted_line_is_found(log: Log) -> None:
    for position in range(len(log.lines)):
        report = log.rewrite_first(log.lines[:position] + log.lines[position + 1 :])
        assert report.outcome is Outcome.TAMPERED, f"line {position}"


def test_a_duplicated_line_is_found(log: Log) -> None:
    for position in range(len(log.lines)):
        report = log.rewrite_first(log.lines[: position + 1] + log.lines[position:])
        assert report.outcome is Outcome.TAMPERED, f"line {position}"


def test_swapped_lines_are_found(log: Log) -> None:
    for one in range(len(log.lines)):
        for other in range(one):
            lines = list(log.lines)
            lines[one], lines[other] = lines[other], lines[one]
            assert log.rewrite_first(lines).outcome is Outcome.TAMPERED, f"lines {other} and {one}"


def test_an_inserted_line_is_found(log: Log, tmp_path: Path) -> None:
    other = Log(tmp_path / "other")

    for position in range(len(log.lines) + 1):
        for line in (*other.lines, b"{}\n", b"\n"):
            report = log.rewrite_first([*log.lines[:position], line, *log.lines[position:]])
            assert report.outcome is Outcome.TAMPERED, f"before line {position}"


def test_rewriting_a_line_and_all_hashes_behind_it_is_found_where_the_next_segment_continues(log: Log) -> None:
    lines = [orjson.loads(line) for line in log.lines]
    lines[2]["ty"] = "llm.other"
    written, previous = [], b""
    for line in lines:
        if "p" in line and previous:
            line["p"] = base64_text(leaf(previous))
        previous = orjson.dumps(line)
        written.append(previous + b"\n")

    report = log.rewrite_first(written)

    assert report.outcome is Outcome.TAMPERED


def test_a_segment_cut_off_before_another_is_tampered_with_at_any_byte(log: Log) -> None:
    original = log.first.read_bytes()

    for size in range(len(original)):
        log.first.write_bytes(original[:size])
        assert log.verify().outcome is Outcome.TAMPERED, f"{size} bytes"


def test_a_last_segment_cut_off_at_any_byte_is_incomplete(log: Log) -> None:
    original = log.last.read_bytes()

    for size in range(len(original)):
        log.last.write_bytes(original[:size])
        assert log.verify().exit_code == 3, f"{size} bytes"


def test_a_running_segment_cut_off_inside_a_line_is_incomplete(log: Log) -> None:
    content = b"".join(log.last.read_bytes().splitlines(keepends=True)[:-1])
    running = log.last.with_name(log.last.name + ".open")
    log.last.rename(running)
    ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]

    for size in range(1, len(content) + 1):
        running.write_bytes(content[:size])
        # At the end of a line nothing can be told yet: that takes a checkpoint kept elsewhere.
        assert log.verify().exit_code == (0 if size in ends else 3), f"{size} bytes"


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log.first.unlink(),
        lambda log: (
            log.first.rename(log.first.with_name("x")),
            log.last.rename(log.first),
            log.first.with_name("x").rename(log.last),
        ),
        lambda log: log.first.rename(log.first.with_name(log.first.name.replace("00000001", "00000003"))),
        lambda log: log.first.rename(log.first.with_name(log.first.name[:22] + "9Z.jsonl")),
        lambda log: log.last.with_name(log.last.name.replace("Z", "Z.crashed")).write_bytes(log.last.read_bytes()),
        lambda log: log.last.with_name("00000004-20260101T000000Z.jsonl").write_bytes(log.last.read_bytes()),
        lambda log: log.first.write_bytes(log.first.read_bytes() + b"tail"),
        lambda log: log.last.write_bytes(log.last.read_bytes() + b"tail"),
        lambda log: log.last.write_bytes(log.last.read_bytes() + log.lines[2]),
        lambda log: log.first.write_bytes(b""),
    ],
    ids=[
        "removed",
        "swapped",
        "renumbered",
        "renamed",
        "number twice",
        "copied",
        "grown",
        "last grown",
        "added",
        "emptied",
    ],
)
def test_segments_out_of_their_place_are_found(log: Log, change: Callable[[Log], object]) -> None:
    change(log)

    assert log.verify().outcome is Outcome.TAMPERED


def test_a_file_that_is_none_of_the_logs_is_mentioned(log: Log) -> None:
    log.genesis.directory.joinpath("notes.txt").write_text("mine")

    report = log.verify()

    assert report.ok
    assert [finding.file for finding in report.findings] == ["notes.txt"]


def test_a_torn_tail_must_be_the_declared_one(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path))
    log = appender(genesis)
    log.open_segment()
    log.commit([entry(1)])
    (running,) = genesis.directory.glob("*.open")
    with running.open("ab") as stream:
        stream.write(b'{"k":"rec"')
    again = appender(genesis)
    again.open_segment()
    again.close_segment("stop")
    (crashed,) = genesis.directory.glob("*.crashed.jsonl")
    crashed.chmod(0o600)
    content = crashed.read_bytes()
    assert verify(genesis.directory, genesis_public_key=genesis.owner_public_key).ok

    for changed in (
        content[:-1],
        content[:-10],
        content + b" ",
        content[:-1] + b"!",
        content.replace(b"\n{", b"\n ", 1),
    ):
        crashed.write_bytes(changed)
        assert verify(genesis.directory, genesis_public_key=genesis.owner_public_key).outcome is Outcome.TAMPERED


def test_an_exchange_without_an_end_in_a_closed_log_is_reported(tmp_path: Path) -> None:
    genesis = write_log(tmp_path, [[entry(1, kind="llm.start")]])

    report = verify(genesis.directory, genesis_public_key=genesis.owner_public_key)

    assert report.exit_code == 3
    assert report.open_exchanges == 1
    assert "has no end" in report.findings[0].what


def test_an_exchange_that_is_still_running_is_no_alarm(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path))
    log = appender(genesis)
    log.open_segment()
    log.commit([entry(1, kind="llm.start")])

    report = verify(genesis.directory, genesis_public_key=genesis.owner_public_key)

    assert report.ok
    assert report.findings[-1].what == "the log goes on; open exchanges: 1"


def test_an_end_without_a_start_is_mentioned(tmp_path: Path) -> None:
    start, orphan = entry(1, kind="llm.start"), entry(2, kind="llm.end", sid="R0001", st="orphan")
    genesis = write_log(
        tmp_path,
        [
            [
                start,
                orphan,
                entry(3, kind="llm.end", sid="R0001", st="complete"),
                entry(4, kind="llm.end", sid="R9", st="complete"),
            ]
        ],
    )

    report = verify(genesis.directory, genesis_public_key=genesis.owner_public_key)

    assert report.ok
    assert [finding.what for finding in report.findings] == [
        "an exchange that was taken for orphaned ended after all",
        "the end of an exchange that is not open",
    ]


def test_a_record_that_stands_twice_is_found(tmp_path: Path) -> None:
    genesis = write_log(tmp_path, [[entry(1), entry(2), entry(2)]])

    assert verify(genesis.directory, genesis_public_key=genesis.owner_public_key).outcome is Outcome.TAMPERED


def test_missing_parts_of_a_body_are_found(tmp_path: Path) -> None:
    part = [entry(n, kind="llm.part", pt_of="R0003", seq=n - 1, last=n == 2) for n in (1, 2)]
    whole = entry(3, parts=2)

    complete = write_log(tmp_path / "complete", [[part[0]], [part[1], whole]])
    lacking = write_log(tmp_path / "lacking", [[part[0], whole]])

    assert verify(complete.directory, genesis_public_key=complete.owner_public_key).findings == ()
    assert verify(lacking.directory, genesis_public_key=lacking.owner_public_key).exit_code == 3


def test_with_another_kek_than_the_logs_nothing_is_said_about_bodies(log: Log) -> None:
    assert log.verify(kek="00" * 32).outcome is Outcome.UNDECIDABLE
    assert log.verify(kek="00" * 32).bodies_opened == 0
    with pytest.raises(OperatorError):
        log.verify(kek="no key")


def test_a_key_that_does_not_keep_its_commitment_is_found(tmp_path: Path) -> None:
    """The last line of a log is bound by nothing behind it, so the key line is made the last: only the KEK can tell."""
    genesis = initialise(audit_settings(tmp_path))
    appender(genesis).open_segment()
    (running,) = genesis.directory.glob("*.open")
    first, tree, announced = running.read_bytes().splitlines()
    members = orjson.loads(announced)
    members["kc"] = base64_text(bytes(32))
    running.write_bytes(b"\n".join([first, tree, orjson.dumps(members), b""]))

    assert verify(genesis.directory, genesis_public_key=genesis.owner_public_key).ok
    assert verify(genesis.directory, genesis_public_key=genesis.owner_public_key, kek=KEK).outcome is Outcome.TAMPERED


def rewritten(log: Log, old: bytes, new: bytes) -> VerificationReport:
    """The last segment with its first line changed and the chain behind it made good again."""
    lines = log.last.read_bytes().splitlines()
    assert old in lines[0]
    written = [lines[0].replace(old, new, 1)]
    for line in lines[1:]:
        members = orjson.loads(line)
        members["p"] = base64_text(leaf(written[-1]))
        written.append(orjson.dumps(members))
    log.last.write_bytes(b"".join(line + b"\n" for line in written))
    return log.verify()


def test_a_later_version_or_an_unknown_feature_is_undecidable_and_nothing_else(log: Log) -> None:
    assert rewritten(log, b'"v":1', b'"v":2').exit_code == 4


def test_lines_of_an_announced_newer_kind_are_chained_and_undecidable(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path))
    appender(genesis).open_segment()
    (running,) = genesis.directory.glob("*.open")
    lines = running.read_bytes().splitlines()
    written = [lines[0].replace(b'"ft":["cp","kr","tr"]', b'"ft":["cp","kr","tr","zz"]')]
    for line in lines[1:]:
        written.append(orjson.dumps(orjson.loads(line) | {"p": base64_text(leaf(written[-1]))}))
    written.append(orjson.dumps({"k": "zz", "n": len(lines), "x": "y", "p": base64_text(leaf(written[-1]))}))

    running.write_bytes(b"".join(line + b"\n" for line in written))
    assert verify(genesis.directory, genesis_public_key=None).exit_code == 4
    written[-1] = written[-1].replace(b'"n":3', b'"n":2')
    running.write_bytes(b"".join(line + b"\n" for line in written))
    assert verify(genesis.directory, genesis_public_key=None).exit_code == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"carry":{"open":{}', b'"carry":{"open":{"R7":["exc_1","' + WORKER.encode() + b'"]}'),
        (b'":3}}', b'":2}}'),
        (b'"n":8,"t"', b'"n":9,"t"'),
        (b'"prev":{"seg":1', b'"prev":{"seg":2'),
        (b'"log":"slp.default/host"', b'"log":"slp.default/guest"'),
    ],
    ids=["open", "seen", "index", "previous", "log"],
)
def test_a_first_line_that_disagrees_with_what_came_before_is_found(log: Log, old: bytes, new: bytes) -> None:
    assert rewritten(log, old, new).outcome is Outcome.TAMPERED


def test_a_body_in_clear_inside_a_sealed_segment_is_found(log: Log) -> None:
    members = orjson.loads(log.lines[4])
    clear = {name: value for name, value in members.items() if name not in {"kid", "nc", "ct"}} | {"pt": "eA=="}
    lines = [*log.lines[:4], orjson.dumps(clear) + b"\n", *log.lines[5:]]

    report = log.rewrite_first(lines)

    assert "not sealed as the segment says" in str(report.findings[0])


def test_findings_name_file_and_line_and_are_bounded(tmp_path: Path) -> None:
    genesis = write_log(tmp_path, [[entry(n) for n in range(1, 1500)]])
    (only,) = genesis.directory.glob("0*.jsonl")
    only.chmod(0o600)
    lines = only.read_bytes().splitlines(keepends=True)
    only.write_bytes(b"".join([*lines[:2], *(b"x" + line for line in lines[2:])]))

    report = verify(genesis.directory, genesis_public_key=genesis.owner_public_key)

    assert str(report.findings[0]).startswith(f"tampered: {only.name}:3: ")
    assert len(report.findings) == 1000
    assert report.findings_total >= 1500


def test_progress_is_told(tmp_path: Path) -> None:
    genesis = write_log(tmp_path, [[entry(n) for n in range(first, first + 5000)] for first in (1, 5001)])
    told: list[tuple[int, int]] = []

    verify(genesis.directory, genesis_public_key=None, progress=lambda size, lines: told.append((size, lines)))

    ((size, lines),) = told
    assert lines == 10_000
    assert size == sum(len(item.raw) + 1 for item in list(log_lines(genesis.directory))[:10_000])


def test_a_line_without_end_does_not_fill_the_memory(log: Log) -> None:
    with log.last.open("ab") as stream:
        for _ in range(8):
            stream.write(b"x" * (1 << 20))

    report = log.verify()

    assert report.outcome is Outcome.TAMPERED
    assert "8388608 bytes follow" in str(report.findings[0])


def test_the_directory_of_all_hosts_will_do_when_there_is_one(log: Log, tmp_path: Path) -> None:
    assert verify(tmp_path / "audit", genesis_public_key=None).ok

    initialise(audit_settings(tmp_path, host_id="second", keys_directory=tmp_path / "second keys"))
    with pytest.raises(OperatorError, match="host, second"):
        verify(tmp_path / "audit", genesis_public_key=None)
    assert verify(tmp_path / "audit", genesis_public_key=None, host_id="host").ok
    with pytest.raises(OperatorError, match="no audit log"):
        verify(tmp_path / "nothing", genesis_public_key=None)
    assert strict_base64(log.genesis.owner_public_key)
