"""Evidence through the read socket of a real writer: the same as the files have it, damaged parts named, records validated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from secure_llm_proxy.audit import AuditReader, SocketJournal
from secure_llm_proxy.audit.evidence import Damage, Damaged, Heartbeat
from secure_llm_proxy.audit.exports import ClearRow
from secure_llm_proxy.audit.read_evidence import ReadEvidence, _backed_up, _off_host
from secure_llm_proxy.audit.report import Configured, Wanted, make_report
from secure_llm_proxy.audit.validation import Result, Status, validate
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import Unavailable
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from tests.support.audit_log import (
    WriterProcess,
    audit_settings,
    end_event,
    event,
    start_event,
    wait_until,
    writer_process,
)
from tests.support.file_evidence import FileEvidence

LONG_AGO, FAR_AHEAD = "2026-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000000Z"


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    # A checkpoint behind every few lines, so that a record is under one at once.
    return audit_settings(tmp_path, checkpoint_lines=3, segment_bytes_max=6000)


@pytest.fixture
def writer(settings: AuditSettings) -> Iterator[WriterProcess]:
    with writer_process(settings) as process:
        yield process


@pytest.fixture
def evidence(settings: AuditSettings, writer: WriterProcess) -> ReadEvidence:
    return ReadEvidence(AuditReader(settings))


def record(settings: AuditSettings, events: list[AuditEvent]) -> None:
    journal = SocketJournal(settings)
    for each in events:
        journal.record(each)
    journal.close()


def exchanges(count: int) -> list[AuditEvent]:
    made = []
    for number in range(count):
        start = start_event()._replace(exchange_id=f"exc_{number}")
        made += [start, end_event(start)]
    return made


def test_rows_are_those_of_the_files_over_segments_and_from_a_line_on(
    settings: AuditSettings, evidence: ReadEvidence
) -> None:
    record(settings, exchanges(12))
    files = FileEvidence(settings.directory)

    rows = list(evidence.rows(LONG_AGO, FAR_AHEAD))

    records = [row for row in rows if isinstance(row, ClearRow)]
    assert len(records) == 24
    assert records == [row for row in files.rows(LONG_AGO, FAR_AHEAD) if isinstance(row, ClearRow)]
    assert len({row.segment for row in records}) > 1
    assert any(isinstance(row, Heartbeat) for row in rows)
    assert [row.n for row in rows if not isinstance(row, Damage)] == sorted(
        row.n for row in rows if not isinstance(row, Damage)
    )
    behind = [row for row in evidence.rows(LONG_AGO, FAR_AHEAD, records[9].n) if isinstance(row, ClearRow)]
    assert behind == records[10:]


def test_only_the_period_is_given_and_of_an_empty_one_nothing(settings: AuditSettings, evidence: ReadEvidence) -> None:
    record(settings, exchanges(4))
    records = [row for row in evidence.rows(LONG_AGO, FAR_AHEAD) if isinstance(row, ClearRow)]

    middle = [row for row in evidence.rows(records[2].t, records[5].t) if isinstance(row, ClearRow)]

    assert [row.t for row in middle] == [row.t for row in records if records[2].t <= row.t < records[5].t]
    assert list(evidence.rows(LONG_AGO, "2026-01-02T00:00:00.000000Z")) == []
    assert list(evidence.rows("2098-01-01T00:00:00.000000Z", FAR_AHEAD)) == []


def test_what_is_written_meanwhile_is_left_out(settings: AuditSettings, evidence: ReadEvidence) -> None:
    record(settings, exchanges(2))
    rows = evidence.rows(LONG_AGO, FAR_AHEAD)
    first = next(rows)

    record(settings, exchanges(2))

    assert len([row for row in [first, *rows] if isinstance(row, ClearRow)]) == 4


def test_a_record_is_valid_once_a_checkpoint_covers_it(settings: AuditSettings, evidence: ReadEvidence) -> None:
    events = exchanges(8)
    record(settings, events)

    for each in events:
        wait_until(lambda each=each: signature_of(evidence, each.id) is Result.PASS)  # type: ignore[misc]
        found = validate(evidence, each.id, datetime.now(UTC))
        assert found is not None
        assert {check.result for check in found.integrity.values()} == {Result.PASS}
        assert found.completeness["audit_trail_completeness"].result is Result.PASS

    assert validate(evidence, "exc_none", datetime.now(UTC)) is None


def signature_of(evidence: ReadEvidence, identifier: str) -> Result | None:
    found = validate(evidence, identifier, datetime.now(UTC))
    return None if found is None else found.integrity["signature_verification"].result


def test_a_record_that_was_changed_on_disk_is_invalid_and_its_segment_named(
    settings: AuditSettings, evidence: ReadEvidence
) -> None:
    events = exchanges(12)
    record(settings, events)
    path = min((settings.directory / "host").glob("*.jsonl"))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b'"mdl":"demo"', b'"mdl":"dem0"', 1))

    found = validate(evidence, events[0].id, datetime.now(UTC))
    rows = list(evidence.rows(LONG_AGO, FAR_AHEAD))
    report = make_report(
        evidence, Wanted(datetime(2026, 11, 1, tzinfo=UTC), datetime.now(UTC)), Configured(None, backup=False),
        report_id="r", look=None, now=datetime.now(UTC), monotonic_s=itertools.count().__next__,
    )  # fmt: skip

    assert found is not None
    assert found.status is Status.INVALID
    assert [row.segment for row in rows if isinstance(row, Damage)] == [1]
    assert {row.segment for row in rows if isinstance(row, ClearRow)} - {1}
    assert report["executive_summary"]["overall_risk_level"] == "CRITICAL"  # type: ignore[index]
    with pytest.raises(Damaged):
        evidence.lines(range(10))


def test_a_writer_that_is_away_is_unavailable(settings: AuditSettings, writer: WriterProcess) -> None:
    writer.kill()

    with pytest.raises(Unavailable):
        next(ReadEvidence(AuditReader(settings)).rows(LONG_AGO, FAR_AHEAD))


def test_the_state_tells_the_log_and_the_time_of_its_oldest_record(
    settings: AuditSettings, evidence: ReadEvidence
) -> None:
    assert evidence.state().oldest_t is None

    before = rfc3339(datetime.now(UTC))
    record(settings, [event(AuditType.REFUSED, name=EventName.BLOCKED_IP, dec="refuse")])

    state = evidence.state()
    assert state.log == "slp.default/host"
    assert state.oldest_t is not None
    assert before <= state.oldest_t


@pytest.mark.parametrize(
    ("told", "off_host", "backed_up"),
    [
        ({}, None, None),
        ({"anchors": {}, "backup": {}}, False, None),
        ({"anchors": {"file": {"n": 9, "leaves_host": False}}, "backup": {"enabled": False}}, False, False),
        (
            {"anchors": {"syslog": {"n": None, "leaves_host": True}}, "backup": {"enabled": True, "last_good": None}},
            False,
            None,
        ),
        (
            {
                "anchors": {"syslog": {"n": 9, "leaves_host": True}},
                "backup": {"enabled": True, "last_good": "t", "troubles": []},
            },
            True,
            True,
        ),
        ({"anchors": 7, "backup": {"enabled": True, "last_good": "t", "troubles": ["no room"]}}, None, False),
    ],
)
def test_what_the_writer_says_of_anchors_and_backups_is_taken_and_what_it_does_not_say_is_unknown(
    told: dict[str, object], off_host: object, backed_up: object
) -> None:
    assert _off_host(told.get("anchors")) is off_host
    assert _backed_up(told.get("backup")) is backed_up
