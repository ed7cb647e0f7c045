"""The real writer while it retires old segments: killed in the middle, read at the same time, with a backup beside it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from secure_llm_proxy.audit import RecordLine, SocketJournal, log_lines, verify
from secure_llm_proxy.audit.genesis import Genesis, initialise
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import (
    WriterProcess,
    appender,
    audit_settings,
    check,
    entry,
    event,
    records_in,
    wait_until,
    writer_process,
)

DAY_NS = 86_400 * 10**9


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return audit_settings(tmp_path, retention_days=5, orphan_grace_s=0.5)


def write_days(settings: AuditSettings, days: int) -> Genesis:
    """A log with one segment for each of the last `days`."""
    genesis = initialise(settings)
    for day in range(days, 0, -1):
        begun_ns = time.time_ns() - day * DAY_NS
        log = appender(genesis, now_ns=lambda begun_ns=begun_ns: begun_ns)  # type: ignore[misc]
        log.open_segment()
        log.commit([entry((days - day) * 10 + counter) for counter in range(1, 6)])
        log.close_segment("stop")
    return genesis


def numbers(directory: Path) -> list[int]:
    return sorted(int(path.name[:8]) for path in directory.glob("0*"))


def test_a_start_retires_what_is_old_and_tells_of_it(settings: AuditSettings) -> None:
    genesis = write_days(settings, 12)

    with writer_process(settings) as writer:
        wait_until(lambda: numbers(genesis.directory)[0] == 8, writer.said)
        SocketJournal(settings).record(event(number=1))
        assert writer.stop() == 0

    report = check(settings)
    assert report.ok, report.findings
    told = [record.clear["retired"] for record in records_in(settings.directory) if record.type == "segment.retired"]
    assert told == [1, 2, 3, 4, 5, 6, 7]
    assert '"event": "segments_retired"' in writer.said()


def test_a_writer_killed_while_it_retires_goes_on_and_no_log_between_is_tampered(settings: AuditSettings) -> None:
    genesis = write_days(settings, 40)
    writer = WriterProcess(settings, settings.directory.parent / "writer.log")
    left = [len(numbers(genesis.directory))]

    try:
        for pause_s in (0.0, 0.004, 0.009, 0.015, 0.022, 0.03):
            writer.start()
            wait_until(lambda: len(numbers(genesis.directory)) < left[-1] or numbers(genesis.directory)[0] > 30)
            time.sleep(pause_s)
            writer.kill()
            left.append(len(numbers(genesis.directory)))
            report = check(settings)
            assert report.ok, report.findings
        writer.start()
        wait_until(lambda: numbers(genesis.directory)[0] == 36, writer.said)
        assert writer.stop() == 0
    finally:
        writer.end()

    report = check(settings)
    assert report.ok, report.findings


def test_nothing_is_retired_before_it_is_in_the_backup_and_the_backup_keeps_it(
    settings: AuditSettings, tmp_path: Path
) -> None:
    backed_up = settings.model_copy(
        update={
            "backup_enabled": True,
            "backup_directory": tmp_path / "backup",
            "backup_keys_directory": tmp_path / "keys-backup",
            "backup_interval_s": 0.05,
            "free_bytes_min": 0,
        }
    )
    genesis = write_days(backed_up, 12)
    copies = tmp_path / "backup" / "host"

    with writer_process(backed_up) as writer:
        wait_until(lambda: numbers(genesis.directory)[0] == 8, writer.said)
        SocketJournal(backed_up).record(event(number=1))
        wait_until((copies / "retired.jsonl").exists, writer.said)
        wait_until(
            lambda: any(
                isinstance(item.line, RecordLine) and item.line.clear.get("number") for item in log_lines(copies)
            )
        )
        assert writer.stop() == 0

    assert numbers(copies)[0] == 1
    for directory in (copies, genesis.directory):
        report = verify(directory, genesis_public_key=genesis.owner_public_key)
        assert report.ok, report.findings


def test_a_backup_that_fails_keeps_old_segments_from_going(settings: AuditSettings, tmp_path: Path) -> None:
    (tmp_path / "backup").write_text("no directory")
    backed_up = settings.model_copy(
        update={
            "backup_enabled": True,
            "backup_directory": tmp_path / "backup",
            "backup_keys_directory": tmp_path / "keys-backup",
        }
    )
    genesis = write_days(backed_up, 12)

    with writer_process(backed_up) as writer:
        wait_until(lambda: "backup_failed" in writer.said(), writer.said)
        SocketJournal(backed_up).record(event(number=1))
        assert writer.stop() == 0

    assert numbers(genesis.directory)[0] == 1
    assert not (genesis.directory / "retired.jsonl").exists()


def test_a_log_is_read_and_verified_while_its_oldest_segments_go(settings: AuditSettings) -> None:
    genesis = write_days(settings, 40)

    with writer_process(settings) as writer:
        reports = []
        while numbers(genesis.directory)[0] < 36:
            reports.append(check(settings))
            assert len(list(log_lines(settings.directory))) > 0
        assert writer.stop() == 0

    assert all(report.ok for report in reports), [report.findings for report in reports if not report.ok]
