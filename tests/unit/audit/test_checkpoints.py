"""The log signs itself: checkpoints over its tree, by keys that are rolled, held to what others keep of it."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_llm_proxy.audit import Genesis, Outcome, Severity, initialise, log_lines, read_anchors, verify
from secure_llm_proxy.audit.appender import Appender, Disk, Rhythm
from secure_llm_proxy.audit.format import (
    FEATURES,
    CheckpointLine,
    KeyRollLine,
    SegmentLine,
    TreeLine,
    base64_text,
    checkpoint_line,
    leaf,
    parse_line,
    strict_base64,
)
from secure_llm_proxy.audit.merkle import root_of
from secure_llm_proxy.audit.notes import Checkpoint, read_checkpoint, sign_checkpoint, verify_checkpoint
from secure_llm_proxy.audit.verification import VerificationReport
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import KEK, Reports, appender, audit_settings, entry

OFTEN = Rhythm(lines=5, dirty_s=1000.0, idle_s=1000.0, epoch_s=1000.0)
# A key is old as soon as it is there: a fast machine commits a line in less than any time that could be named here.
ROLLING = Rhythm(lines=5, dirty_s=1000.0, idle_s=1000.0, epoch_s=0.0)
SHARED = Path(__file__).parent / "logs"


@pytest.fixture
def genesis(tmp_path: Path) -> Genesis:
    return initialise(audit_settings(tmp_path))


def _verified(genesis: Genesis, *, anchors: list[str] | None = None) -> VerificationReport:
    report = verify(genesis.directory, genesis_public_key=genesis.owner_public_key, kek=KEK, anchors=anchors or [])
    assert report.ok, report.findings
    return report


def _checked(genesis: Genesis, *, anchors: list[str] | None = None) -> VerificationReport:
    return verify(genesis.directory, genesis_public_key=genesis.owner_public_key, anchors=anchors or [])


def _checkpoints(genesis: Genesis) -> Iterator[CheckpointLine]:
    for item in log_lines(genesis.directory):
        if isinstance(item.line, CheckpointLine):
            yield item.line


def _notes(genesis: Genesis) -> list[str]:
    return [line.note for line in _checkpoints(genesis)]


def _grow(genesis: Genesis, counters: range, *, rhythm: Rhythm = OFTEN, close: bool = True) -> Appender:
    log = appender(genesis, rhythm=rhythm)
    log.open_segment()
    for counter in counters:
        log.commit([entry(counter)])
        log.keep_rhythm()
    if close:
        log.close_segment("stop")
    return log


def _segments(genesis: Genesis) -> list[Path]:
    return sorted(genesis.directory.glob("0*.jsonl*"))


def _rewrite(path: Path, lines: list[bytes]) -> None:
    path.chmod(0o600)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def test_a_checkpoint_says_the_root_of_every_line_before_it(genesis: Genesis) -> None:
    _grow(genesis, range(1, 14))
    _grow(genesis, range(14, 20))

    leaves = [leaf(item.raw) for item in log_lines(genesis.directory)]
    checkpoints = list(_checkpoints(genesis))

    assert len(checkpoints) >= 5
    for line in checkpoints:
        told = verify_checkpoint(line.note, strict_base64(genesis.epoch_public_key))
        assert told == Checkpoint(genesis.log, line.n, root_of(leaves[: line.n]), line.t)
    report = _verified(genesis)
    assert report.checkpoints == len(checkpoints)


def test_a_closed_segment_ends_with_the_checkpoint_over_its_end(genesis: Genesis) -> None:
    _grow(genesis, range(1, 3))

    *_, end, last = _segments(genesis)[0].read_bytes().splitlines()

    assert orjson.loads(end)["k"] == "end"
    closing = parse_line(last, FEATURES)
    assert isinstance(closing, CheckpointLine)
    assert closing.n == orjson.loads(end)["n"] + 1


def test_a_log_says_it_is_alive_while_nothing_happens(genesis: Genesis) -> None:
    log = appender(genesis, rhythm=Rhythm(idle_s=0.0001, dirty_s=0.0001))
    log.open_segment()

    for _ in range(5):
        assert log.due_s is not None
        time.sleep(log.due_s)
        log.keep_rhythm()
    log.close_segment("stop")

    assert len(list(_checkpoints(genesis))) >= 5
    _verified(genesis)


def test_a_checkpoint_is_told_to_whoever_anchors_it(genesis: Genesis) -> None:
    log = appender(genesis, rhythm=OFTEN)
    log.open_segment()
    log.commit([entry(counter) for counter in range(1, 8)])

    log.keep_rhythm()

    assert log.last_checkpoint is not None
    checkpoint, note = log.last_checkpoint
    assert read_checkpoint(note) == checkpoint
    assert checkpoint.size == 10


def test_the_signing_key_is_rolled_and_the_one_before_is_gone(genesis: Genesis, tmp_path: Path) -> None:
    keys = tmp_path / "audit-keys"
    stored = {orjson.loads((keys / "epoch.key").read_bytes())["epk"]}
    log = appender(genesis, rhythm=ROLLING)
    log.open_segment()

    for counter in range(1, 5):
        log.commit([entry(counter)])
        log.keep_rhythm()
        stored.add(orjson.loads((keys / "epoch.key").read_bytes())["epk"])
    log.close_segment("stop")

    rolls = [item.line for item in log_lines(genesis.directory) if isinstance(item.line, KeyRollLine)]
    assert {roll.by for roll in rolls} == {"epoch"}
    assert {base64_text(roll.epoch_public_key) for roll in rolls} | {genesis.epoch_public_key} == stored
    assert sorted(path.name for path in keys.iterdir() if "epoch" in path.name) == ["epoch.key"]
    assert (keys / "epoch.key").stat().st_mode & 0o777 == 0o600
    assert _verified(genesis).key_rolls == len(rolls) >= 4


def test_a_rolled_log_is_continued_by_the_next_start(genesis: Genesis) -> None:
    for first in (1, 4, 7):
        _grow(genesis, range(first, first + 3), rhythm=ROLLING)

    firsts = [item.line for item in log_lines(genesis.directory) if isinstance(item.line, SegmentLine)]
    assert len({line.epoch_public_key for line in firsts}) == 3
    _verified(genesis)


@pytest.mark.parametrize("state", ["prepared", "named", "moved"])
def test_a_crash_at_any_step_of_a_key_roll_costs_nothing(genesis: Genesis, tmp_path: Path, state: str) -> None:
    keys, kept = tmp_path / "audit-keys", tmp_path / "kept"
    _grow(genesis, range(1, 3))
    shutil.copytree(keys, kept)
    log = appender(genesis, rhythm=ROLLING)
    log.open_segment()
    log.commit([entry(3)])
    if state == "prepared":
        # The next key lies there, and no line of the log names it.
        (keys / "epoch.key.next").write_bytes((keys / "epoch.key").read_bytes().replace(b"epoch.1", b"epoch.9"))
        shutil.copy(_another_key(tmp_path), keys / "epoch.key.next")
    else:
        log.keep_rhythm()
    if state == "named":
        # The log names the next key, which was not moved to its place yet.
        shutil.copy(keys / "epoch.key", keys / "epoch.key.next")
        shutil.copy(kept / "epoch.key", keys / "epoch.key")

    _grow(genesis, range(4, 8))

    assert not (keys / "epoch.key.next").exists()
    _verified(genesis)


def _another_key(tmp_path: Path) -> Path:
    other = audit_settings(tmp_path / "other")
    (tmp_path / "other").mkdir()
    initialise(other)
    return other.keys_directory / "epoch.key"


def test_a_key_store_that_cannot_be_written_postpones_the_roll_and_stops_nothing(
    genesis: Genesis, tmp_path: Path
) -> None:
    reports = Reports()
    log = appender(genesis, rhythm=ROLLING, reports=reports)
    (tmp_path / "audit-keys" / ".epoch.key.next.tmp").mkdir()
    log.open_segment()

    log.commit([entry(1)])
    log.keep_rhythm()
    log.commit([entry(2)])
    log.close_segment("stop")

    assert "key_roll_failed" in reports.names
    assert _verified(genesis).key_rolls == 0


def test_an_epoch_key_that_the_log_does_not_name_is_not_used(genesis: Genesis, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copy(tmp_path / "audit-keys" / "epoch.key", kept)
    _grow(genesis, range(1, 4), rhythm=ROLLING)
    shutil.copy(kept, tmp_path / "audit-keys" / "epoch.key")

    with pytest.raises(OperatorError, match=r"older copy.*audit restart --owner-key"):
        appender(genesis)


def test_the_owner_puts_a_new_key_in_force_when_it_was_lost(genesis: Genesis, tmp_path: Path) -> None:
    assert genesis.owner_private_key is not None
    _grow(genesis, range(1, 4), rhythm=ROLLING)
    (tmp_path / "audit-keys" / "epoch.key").unlink()
    with pytest.raises(OperatorError, match="is missing"):
        appender(genesis)

    log = appender(genesis, epoch_key=False)
    log.restart(Ed25519PrivateKey.from_private_bytes(strict_base64(genesis.owner_private_key)))
    _grow(genesis, range(4, 7))

    report = _verified(genesis)
    assert [finding.what for finding in report.findings if "owner" in finding.what] == [
        "the owner put a new epoch key in force: the one before was lost, as after a restore"
    ]


def test_a_restart_by_another_than_the_owner_is_found(genesis: Genesis, tmp_path: Path) -> None:
    _grow(genesis, range(1, 4))
    (tmp_path / "audit-keys" / "epoch.key").unlink()

    log = appender(genesis, epoch_key=False)
    log.restart(Ed25519PrivateKey.generate())

    report = _checked(genesis)
    assert report.outcome is Outcome.TAMPERED
    assert "not signed by the owner" in str(report.findings[0])
    assert report.findings[0].line == 4


# --- attacks ----------------------------------------------------------------------------------------------------------


def _resigned(genesis: Genesis, lines: list[bytes], key: Ed25519PrivateKey) -> list[bytes]:
    """What somebody makes of the whole first segment who holds `key`: every hash and every signature anew."""
    written: list[bytes] = []
    leaves: list[bytes] = []
    for raw in lines:
        members = orjson.loads(raw)
        if leaves:
            members["p"] = base64_text(leaves[-1])
        line = orjson.dumps(members)
        if members["k"] == "cp":
            checkpoint = Checkpoint(genesis.log, members["n"], root_of(leaves), members["t"])
            note = sign_checkpoint(checkpoint, key)
            line = checkpoint_line(CheckpointLine(members["n"], members["t"], checkpoint.root, note, leaves[-1]))
        written.append(line)
        leaves.append(leaf(line))
    return written


def test_old_lines_sealed_anew_with_a_later_key_are_found(genesis: Genesis, tmp_path: Path) -> None:
    """The systemd journal's lesson (CVE-2023-31439): who has today's key must not be able to sign yesterday's lines."""
    _grow(genesis, range(1, 9), rhythm=OFTEN)
    current = appender(genesis, rhythm=ROLLING)
    current.open_segment()
    current.commit([entry(9)])
    current.keep_rhythm()
    current.close_segment("stop")
    later = current._epoch.current.private
    first = _segments(genesis)[0]
    lines = first.read_bytes().splitlines()
    altered = [line.replace(b'"http":200', b'"http":500').replace(b"R0002", b"R9999") for line in lines]

    _rewrite(first, _resigned(genesis, altered, later))

    report = _checked(genesis)
    assert report.outcome is Outcome.TAMPERED
    assert report.findings[0].file == first.name
    assert "another key" in str(report.findings[0])


def test_a_log_rewritten_by_who_has_the_current_key_is_found_by_one_anchor(genesis: Genesis) -> None:
    log = _grow(genesis, range(1, 9))
    anchors = _notes(genesis)
    first = _segments(genesis)[0]
    lines = [line.replace(b"R0002", b"R9999") for line in first.read_bytes().splitlines()]

    _rewrite(first, _resigned(genesis, lines, log._epoch.current.private))

    assert _checked(genesis).ok
    report = _checked(genesis, anchors=anchors[-1:])
    assert report.outcome is Outcome.TAMPERED
    assert "are not those of the anchor" in str(report.findings[0])


def test_a_tail_that_is_cut_off_is_incomplete_by_an_anchor(genesis: Genesis) -> None:
    _grow(genesis, range(1, 9))
    _grow(genesis, range(9, 12))
    anchors = _notes(genesis)
    assert _checked(genesis, anchors=anchors).anchors_met == len(anchors)

    _segments(genesis)[-1].unlink()

    assert _checked(genesis).ok
    report = _checked(genesis, anchors=anchors)
    assert report.exit_code == 3
    assert any("the log ends after" in finding.what for finding in report.findings)


def test_anchors_of_another_log_prove_nothing_about_this_one(genesis: Genesis, tmp_path: Path) -> None:
    _grow(genesis, range(1, 4))
    (tmp_path / "other").mkdir()
    other = initialise(audit_settings(tmp_path / "other", host_id="other"))
    _grow(other, range(1, 4))

    report = _checked(genesis, anchors=_notes(other))

    assert report.ok
    assert report.anchors_met == 0
    assert [finding.severity for finding in report.findings] == [Severity.NOTE]


def test_a_forged_anchor_under_the_logs_name_is_told(genesis: Genesis) -> None:
    _grow(genesis, range(1, 4))
    real = read_checkpoint(_notes(genesis)[0])

    forged = sign_checkpoint(Checkpoint(genesis.log, real.size, bytes(32), real.t), Ed25519PrivateKey.generate())

    report = _checked(genesis, anchors=[forged])
    assert report.outcome is Outcome.TAMPERED
    assert "is not of this log" in str(report.findings[0])


def test_the_tree_and_the_key_that_a_segment_starts_with_are_held_to_the_lines_before(genesis: Genesis) -> None:
    _grow(genesis, range(1, 9))
    _grow(genesis, range(9, 12))
    last = _segments(genesis)[-1]
    lines = last.read_bytes().splitlines()
    members = orjson.loads(lines[1])
    line = parse_line(lines[1], FEATURES)
    assert isinstance(line, TreeLine)

    members["edge"][0] = base64_text(bytes(32))
    _rewrite(last, [lines[0], orjson.dumps(members), *lines[2:]])

    report = _checked(genesis)
    assert (report.findings[0].file, report.findings[0].line) == (last.name, 2)
    assert "the tree that it carries" in report.findings[0].what


@pytest.mark.parametrize("place", ["first", "middle", "closing"])
def test_a_checkpoint_taken_out_is_found(genesis: Genesis, place: str) -> None:
    _grow(genesis, range(1, 20))
    (segment,) = _segments(genesis)
    lines = segment.read_bytes().splitlines()
    found = [number for number, line in enumerate(lines) if line.startswith(b'{"k":"cp"')]
    gone = {"first": found[0], "middle": found[1], "closing": found[-1]}[place]

    _rewrite(segment, [*lines[:gone], *lines[gone + 1 :]])

    assert _checked(genesis).exit_code == (3 if place == "closing" else 1)


def test_one_altered_line_is_told_where_it_stands_and_not_at_every_checkpoint_behind_it(genesis: Genesis) -> None:
    _grow(genesis, range(1, 60))
    _grow(genesis, range(60, 120))
    first = _segments(genesis)[0]
    lines = first.read_bytes().splitlines()

    _rewrite(first, [line.replace(b"R0010", b"R9999") for line in lines])

    report = _checked(genesis)
    assert report.outcome is Outcome.TAMPERED
    where = next(number for number, line in enumerate(lines, 1) if b"R0010" in line)
    assert (report.findings[0].file, report.findings[0].line) == (first.name, where + 1)
    assert report.findings_total <= 3


# --- logs of the first release ----------------------------------------------------------------------------------------


def test_a_log_of_the_first_release_verifies_and_is_continued(tmp_path: Path) -> None:
    """`logs/first-release` was written by that release: two closed segments and one that a crash left behind."""
    settings = audit_settings(tmp_path)
    shutil.copytree(SHARED / "first-release", tmp_path, dirs_exist_ok=True)
    directory = settings.directory / "host"
    before = verify(directory, genesis_public_key=None, kek=KEK)
    assert [finding.what for finding in before.findings if finding.severity is not Severity.NOTE] == [
        "the log ends in a torn tail of 23 bytes"
    ]
    genesis = initialise(settings)

    log = _grow(genesis, range(100, 110), close=False)
    log.commit([entry(110, kind="llm.end", sid="R0005", st="orphan")])
    log.close_segment("stop")
    _grow(genesis, range(111, 120), rhythm=ROLLING)

    after = verify(directory, genesis_public_key=genesis.owner_public_key, kek=KEK)
    assert after.ok, after.findings
    assert after.lines > before.lines
    leaves = [leaf(item.raw) for item in log_lines(directory)]
    last = list(_checkpoints(genesis))[-1]
    assert last.root == root_of(leaves[: last.n])


# --- faults -----------------------------------------------------------------------------------------------------------


class FailingSync(Disk):
    def __init__(self, at: int) -> None:
        self.at = at

    def sync_data(self, descriptor: int) -> None:
        self.at -= 1
        if self.at == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_data(descriptor)


@pytest.mark.parametrize("at", range(1, 16))
def test_a_disk_that_fails_at_any_sync_leaves_no_two_checkpoints_of_one_size(genesis: Genesis, at: int) -> None:
    told: list[str] = []
    log = appender(genesis, disk=FailingSync(at), rhythm=ROLLING, on_checkpoint=lambda _, note: told.append(note))
    log.open_segment()

    for counter in range(1, 8):
        log.commit([entry(counter)])
        log.keep_rhythm()
    if log.is_open:
        try:
            log.close_segment("stop")
        except OSError:
            log.open_segment()
            log.close_segment("stop")

    report = _verified(genesis, anchors=told)
    assert report.anchors_met == len(told)


# --- files of anchors -------------------------------------------------------------------------------------------------


def test_anchors_are_read_as_notes_as_lines_of_the_log_and_as_json(genesis: Genesis, tmp_path: Path) -> None:
    _grow(genesis, range(1, 20))
    notes = _notes(genesis)
    path = tmp_path / "anchors"
    raw = [item.raw.decode() for item in log_lines(genesis.directory) if isinstance(item.line, CheckpointLine)]

    for text in (
        "".join(notes),
        "\n".join(notes),
        "\n".join(raw),
        "".join(orjson.dumps({"n": 1, "note": note}).decode() + "\n" for note in notes),
    ):
        path.write_text(text)
        assert read_anchors(path) == notes


def test_a_week_of_anchors_is_read_in_one_pass(genesis: Genesis, tmp_path: Path) -> None:
    _grow(genesis, range(1, 3))
    note = _notes(genesis)[0]
    path = tmp_path / "anchors"

    for line in (note, orjson.dumps({"note": note}).decode() + "\n"):
        path.write_text(line * 60_000)
        assert len(read_anchors(path)) == 60_000


@pytest.mark.parametrize("text", ["garbage", "{}", '{"note":1}', '{"note":"x"}', "a\nb\nc\n\n— d e\n"])
def test_a_file_that_holds_something_else_than_anchors_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "anchors"
    path.write_text(text)

    with pytest.raises(OperatorError, match="Anchor 1 in"):
        read_anchors(path)
