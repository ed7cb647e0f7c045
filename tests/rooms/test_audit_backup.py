"""The real writer while it backs up: under load, killed, and with a place that cannot be written."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_llm_proxy.audit import RecordLine, SocketJournal, initialise, log_lines, restart_log, verify
from secure_llm_proxy.audit.backup import snapshots_in
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import WriterProcess, audit_settings, check, event, records_in, wait_until, writer_process


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return audit_settings(
        tmp_path,
        backup_enabled=True,
        backup_directory=tmp_path / "backup",
        backup_keys_directory=tmp_path / "keys-backup",
        backup_interval_s=0.05,
        free_bytes_min=0,
    )


@pytest.fixture
def writer(settings: AuditSettings) -> Iterator[WriterProcess]:
    with writer_process(settings) as process:
        yield process


@pytest.fixture
def copies(settings: AuditSettings) -> Path:
    assert settings.backup_directory is not None
    return settings.backup_directory / "host"


def recorded(copies: Path) -> list[object]:
    if not (copies / "genesis.json").exists():
        return []
    return [item.line.clear.get("number") for item in log_lines(copies) if isinstance(item.line, RecordLine)]


def holds_a_key_of(person: str, snapshots: Path) -> bool:
    """Whether the newest snapshot of the key store does."""
    newest = snapshots_in(snapshots)[-1:] if snapshots.is_dir() else []
    for name in newest:
        with contextlib.closing(sqlite3.connect(f"file:{snapshots / name}?mode=ro&immutable=1", uri=True)) as store:
            return bool(store.execute("SELECT count(*) FROM subject_keys WHERE subject = ?", (person,)).fetchone()[0])
    return False


def assert_whole(copies: Path, settings: AuditSettings) -> None:
    """Every file of the backup is the log's, byte for byte, and makes a log of its own."""
    log = settings.directory / "host"
    for path in copies.glob("[!.]*"):
        source = log / path.name
        if not source.exists():
            (source,) = log.glob(path.name.split(".")[0] + "*")
        assert path.read_bytes() == source.read_bytes()
    report = verify(copies, genesis_public_key=None)
    assert report.ok, report.findings


def test_what_is_recorded_is_in_the_backup_within_an_interval(
    settings: AuditSettings, writer: WriterProcess, copies: Path
) -> None:
    journal = SocketJournal(settings)

    for number in range(5):
        journal.record(event(number=number))
        wait_until(lambda number=number: number in recorded(copies), writer.said)  # type: ignore[misc]
    journal.close()

    assert writer.stop() == 0
    assert recorded(copies) == [0, 1, 2, 3, 4]
    assert_whole(copies, settings)
    assert check(settings).ok


def test_an_idle_log_is_not_cut_into_segments(settings: AuditSettings, writer: WriterProcess, copies: Path) -> None:
    journal = SocketJournal(settings)
    journal.record(event(number=0))
    journal.close()
    wait_until(lambda: recorded(copies) == [0], writer.said)

    segments = len(list((settings.directory / "host").glob("0*")))
    genesis = copies / "genesis.json"
    for _ in range(5):
        # Each run puts it back.
        genesis.unlink()
        wait_until(genesis.exists, writer.said)

    assert len(list((settings.directory / "host").glob("0*"))) == segments


def test_a_writer_killed_while_it_copies_leaves_whole_files_or_none(
    settings: AuditSettings, writer: WriterProcess, copies: Path
) -> None:
    journal = SocketJournal(settings)
    number = 0
    for _ in range(5):
        for _ in range(6):
            journal.record(event(number=number, body=bytes(300_000)))
            number += 1
        writer.kill()
        if (copies / "genesis.json").exists():
            assert_whole(copies, settings)
        writer.start()
    journal.close()

    wait_until(lambda: recorded(copies) == list(range(number)), writer.said)
    assert writer.stop() == 0
    assert_whole(copies, settings)
    assert [record.clear["number"] for record in records_in(settings.directory)] == list(range(number))


def test_a_backup_that_fails_is_told_costs_no_record_and_comes_back_by_itself(
    settings: AuditSettings, tmp_path: Path
) -> None:
    disk, away, copies = tmp_path / "disk", tmp_path / "away", tmp_path / "backup" / "host"
    disk.mkdir()
    copies.parent.symlink_to(disk)
    with writer_process(settings) as writer:
        journal = SocketJournal(settings)
        journal.record(event(number=0))
        wait_until(lambda: recorded(copies) == [0], writer.said)

        disk.rename(away)
        wait_until(lambda: "backup_failed" in writer.said(), writer.said)
        journal.record(event(number=1))
        before = recorded(away / "host")
        away.rename(disk)
        wait_until(lambda: recorded(copies) == [0, 1], writer.said)
        wait_until(lambda: "backup_good_again" in writer.said(), writer.said)
        journal.close()

        assert writer.stop() == 0
    assert before == [0]
    assert_whole(copies, settings)
    troubles = [record.clear["what"] for record in records_in(settings.directory) if record.type == "audit.trouble"]
    assert troubles == ["backup"]


def test_places_that_do_not_lie_apart_are_refused_at_the_start(settings: AuditSettings, tmp_path: Path) -> None:
    beside = settings.model_copy(update={"backup_keys_directory": settings.directory / "keys"})

    with pytest.raises(AssertionError, match="neither inside the other"), writer_process(beside):
        pass


def test_a_host_that_burnt_down_is_restored_from_both_places(
    settings: AuditSettings, copies: Path, tmp_path: Path
) -> None:
    genesis = initialise(settings)
    person = "s_0123456789abcdef"
    with writer_process(settings) as writer:
        journal = SocketJournal(settings)
        journal.record(event(number=0, sub=person, body=b"what a person said"))
        wait_until(lambda: recorded(copies) == [0], writer.said)
        # The snapshot is taken after the segments.
        snapshots = tmp_path / "keys-backup" / "host"
        wait_until(lambda: holds_a_key_of(person, snapshots), writer.said)
        journal.close()
        writer.kill()
    copy_of_log = tmp_path / "rescued"
    shutil.copytree(copies, copy_of_log)
    shutil.rmtree(settings.directory)
    shutil.rmtree(settings.keys_directory)

    settings.keys_directory.mkdir()
    shutil.copytree(copy_of_log, settings.directory / "host")
    shutil.copy(snapshots / snapshots_in(snapshots)[-1], settings.keys_directory / "keys.db")
    restart_log(settings, genesis.owner_private_key or "")
    with writer_process(settings) as writer:
        journal = SocketJournal(settings)
        journal.record(event(number=1, sub=person))
        journal.close()
        assert writer.stop() == 0

    report = check(settings)
    assert report.ok, report.findings
    assert report.bodies_opened == 2
    assert any("the owner put a new epoch key in force" in finding.what for finding in report.findings)
    assert recorded(settings.directory / "host") == [0, 1]
