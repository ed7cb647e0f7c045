"""The writer and the key store: what a worker sends is sealed by its person's key, or refused while there can be none."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import gevent
import orjson
import pytest

from secure_llm_proxy.audit import BodyOpener, SocketJournal, initialise, log_lines, open_records
from secure_llm_proxy.audit.blind_indexes import BlindIndexes
from secure_llm_proxy.audit.format import KeyLine, RecordLine
from secure_llm_proxy.audit.keystore import BEGUN_NAME, KEYS_NAME, KeyStore
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.foundation.errors import InternalError, Unavailable
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.events import AuditType
from tests.support.audit_log import (
    KEK,
    WriterProcess,
    audit_settings,
    check,
    event,
    records_in,
    wait_until,
    writer_process,
)

ANA, BO = "s_00000000000000aa", "s_00000000000000bb"


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return audit_settings(tmp_path)


@pytest.fixture
def writer(settings: AuditSettings) -> Iterator[WriterProcess]:
    with writer_process(settings) as process:
        yield process


@pytest.fixture
def journal(settings: AuditSettings) -> Iterator[SocketJournal]:
    made = SocketJournal(settings)
    yield made
    made.close()


@pytest.fixture
def hasty(settings: AuditSettings) -> Iterator[SocketJournal]:
    """For what must be refused: it does not wait for long."""
    made = SocketJournal(settings.model_copy(update={"patience_s": 2.0}))
    yield made
    made.close()


def of(subject: str, body: bytes = b"body", **indexed: str) -> AuditEvent:
    return event(AuditType.REFUSED, body=body, sub=subject)._replace(indexed=indexed)


def keys_path(settings: AuditSettings) -> Path:
    return settings.keys_directory / KEYS_NAME


def recorded(settings: AuditSettings) -> list[RecordLine]:
    """What the tests sent; the writer may have recorded an alarm of its own between."""
    return [record for record in records_in(settings.directory) if record.type == AuditType.REFUSED]


def opened(settings: AuditSettings, record: AuditEvent) -> bytes | None:
    (found,) = open_records(settings.directory, record.id, BodyOpener.of(settings))
    return found.body


def test_bodies_open_by_the_persons_key_after_a_kill(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    ana, bo, nobody = of(ANA, b"ana's"), of(BO, b"bo's"), event(body=b"nobody's")
    for record in (ana, bo, nobody):
        journal.record(record)

    writer.kill()
    writer.start()
    again = of(ANA, b"again")
    journal.record(again)

    assert [opened(settings, record) for record in (ana, bo, nobody, again)] == [
        b"ana's", b"bo's", b"nobody's", b"again",
    ]  # fmt: skip
    kids = [record.kid for record in records_in(settings.directory)]
    assert kids[0] == kids[3] != kids[1]
    report = check(settings)
    assert (report.ok, report.bodies_opened) == (True, 4)


def test_a_big_body_and_its_parts_are_sealed_by_one_persons_key(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    big = of(ANA, os.urandom(600 << 10))

    journal.record(big)

    assert {str(record.kid).split(".")[0] for record in records_in(settings.directory)} == {ANA}
    assert opened(settings, big) == big.body
    assert writer.stop() == 0


def test_a_sealed_address_is_found_by_its_blind_index_and_stands_nowhere(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    journal.record(of(ANA, ipx="192.0.2.77", uax="agent " * 100, emx="ana@example.org"))
    journal.record(of(BO, ipx="192.0.2.77"))
    assert writer.stop() == 0

    indexes = BlindIndexes(KeyStore.open(settings.keys_directory, KeyRing.from_texts(KEK)).index_key())
    first, second = records_in(settings.directory)

    assert first.clear["ipx"] == second.clear["ipx"] == indexes.of("ipx", "192.0.2.77")
    assert first.clear["uax"] == indexes.of("uax", "agent " * 100)
    assert first.clear["emx"] == indexes.of("emx", "ana@example.org")
    everything = b"".join(item.raw for item in log_lines(settings.directory))
    assert b"192.0.2.77" not in everything
    assert check(settings).ok


def test_a_worker_sets_no_index_of_its_own(writer: WriterProcess, journal: SocketJournal) -> None:
    with pytest.raises(InternalError):
        journal.record(event(ipx="forged"))
    assert writer.stop() == 0


def test_without_encryption_there_is_no_key_store_and_no_index(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, kek=None, encryption_enabled=False)
    with writer_process(settings) as writer:
        journal = SocketJournal(settings)
        journal.record(of(ANA, b"in clear", ipx="192.0.2.77"))
        journal.close()
        assert writer.stop() == 0

    (record,) = records_in(settings.directory)
    assert record.plain == b"in clear"
    assert "ipx" not in record.clear
    assert not keys_path(settings).exists()


# --- when keys can't be made ------------------------------------------------------------------------------------------


def test_while_the_key_store_is_locked_nothing_new_is_acknowledged_and_nothing_is_lost(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal, hasty: SocketJournal
) -> None:
    journal.record(of(ANA))
    with sqlite3.connect(keys_path(settings), isolation_level=None) as locking:
        locking.execute("BEGIN EXCLUSIVE")
        waiting = of(BO, b"bo's")
        with pytest.raises(Unavailable):
            hasty.record(waiting)
        wait_until(lambda: "is locked by another program" in writer.said(), writer.said)
        assert [record.clear["sub"] for record in recorded(settings)] == [ANA]
        locking.execute("ROLLBACK")
    locking.close()

    # Sent again by the journal, when the writer lets it in.
    wait_until(lambda: len(recorded(settings)) == 2, writer.said, sleep=gevent.sleep)
    journal.record(of(ANA))

    assert opened(settings, waiting) == b"bo's"
    report = check(settings)
    assert (report.ok, report.segments) == (True, 1)
    assert report.bodies_opened == report.records


def test_a_key_store_that_is_taken_away_stops_the_log_until_it_is_back(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal, hasty: SocketJournal, tmp_path: Path
) -> None:
    journal.record(of(ANA))
    away = tmp_path / "away"
    away.mkdir()
    for path in settings.keys_directory.glob(KEYS_NAME + "*"):
        path.rename(away / path.name)

    # The writer looks once a second: what it still acknowledged is sealed by a key that it had made durable before.
    wait_until(lambda: f"{keys_path(settings)} is gone" in writer.said(), writer.said, sleep=lambda _: _ask_on(hasty))
    with pytest.raises(Unavailable):
        hasty.record(of(ANA))
    for path in away.iterdir():
        path.rename(settings.keys_directory / path.name)
    before = len(recorded(settings))
    wait_until(lambda: len(recorded(settings)) > before, writer.said, sleep=gevent.sleep)

    journal.record(of(BO))

    assert writer.stop() == 0
    report = check(settings)
    assert report.ok, report.findings
    assert report.bodies_opened == report.records


def test_a_full_disk_under_the_key_store_fails_closed_and_recovers(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal, hasty: SocketJournal
) -> None:
    journal.record(of(ANA))

    writer.limit_file_size(100)
    with pytest.raises(Unavailable):
        hasty.record(of(BO))
    writer.limit_file_size(1 << 30)

    # Whether the first try is sent again depends on what the writer noticed first: that it has no key, or no room.
    wait_until(lambda: _records(hasty, of(BO)), writer.said, sleep=gevent.sleep)

    assert writer.stop() == 0
    report = check(settings)
    assert report.ok
    assert report.bodies_opened == report.records


def test_a_writer_does_not_start_over_a_lost_or_damaged_key_store(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    journal.record(of(ANA))
    assert writer.stop() == 0
    kept = keys_path(settings).read_bytes()

    keys_path(settings).unlink()
    with pytest.raises(AssertionError, match="keys of every person's records"):
        writer.start()
    keys_path(settings).write_bytes(kept[:2000] + bytes(len(kept) - 2000))
    with pytest.raises(AssertionError, match="estore it from its backup"):
        writer.start()

    keys_path(settings).write_bytes(kept)
    writer.start()
    journal.record(of(ANA))
    assert writer.stop() == 0
    assert check(settings).bodies_opened == 2


def _records(journal: SocketJournal, record: AuditEvent) -> bool:
    try:
        journal.record(record)
    except Unavailable:
        return False
    return True


def _ask_on(journal: SocketJournal) -> None:
    _records(journal, of(ANA))
    gevent.sleep(0.1)


def test_a_key_store_restored_from_a_snapshot_goes_on(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    first = of(ANA)
    journal.record(first)
    assert writer.stop() == 0
    snapshot = keys_path(settings).read_bytes()
    keys_path(settings).unlink()
    (settings.keys_directory / BEGUN_NAME).unlink()

    keys_path(settings).write_bytes(snapshot)
    writer.start()
    second = of(ANA)
    journal.record(second)

    assert (opened(settings, first), opened(settings, second)) == (b"body", b"body")
    assert (settings.keys_directory / BEGUN_NAME).exists()


def test_hundreds_of_new_people_at_once_get_their_keys_in_one_go(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    journal.record(event())
    writer.signal(signal.SIGSTOP)
    people = [of(f"s_{number:016x}") for number in range(1, 601)]
    for record in people:
        journal.post(record)
    gevent.sleep(0.1)
    writer.signal(signal.SIGCONT)

    journal.record(event())

    assert writer.stop() == 0
    announced = [item.line.kid for item in log_lines(settings.directory) if isinstance(item.line, KeyLine)]
    assert len(announced) == len(set(announced)) == 601
    assert check(settings).bodies_opened == 602


def test_the_root_of_trust_is_read_before_a_key_store_is_begun(settings: AuditSettings) -> None:
    initialise(settings)

    assert not keys_path(settings).exists()
    assert orjson.loads((settings.keys_directory / "epoch.key").read_bytes())["kek"]
