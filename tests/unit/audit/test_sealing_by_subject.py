"""Bodies of a person are sealed by that person's key, announced where it is first used, and gone with it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from secure_llm_proxy.audit import (
    BodyOpener,
    Genesis,
    KeyLine,
    Outcome,
    Severity,
    VerificationReport,
    find_records,
    initialise,
    log_lines,
    open_records,
    verify,
)
from secure_llm_proxy.audit.appender import Appender, Disk, LogUnavailable
from secure_llm_proxy.audit.format import subject_in
from secure_llm_proxy.audit.keystore import KEYS_NAME, KeyStore
from secure_llm_proxy.audit.seal import DataKey, KeyRing
from tests.support.audit_log import EXCHANGE, KEK, appender, audit_settings, entry, records_in

ANA, BO = "s_00000000000000aa", "s_00000000000000bb"
OTHER_KEK = "6b" * 32


class Log:
    """A log with its key store, written in process."""

    def __init__(self, directory: Path) -> None:
        self.settings = audit_settings(directory)
        self.genesis: Genesis = initialise(self.settings)
        self.store = KeyStore.open(self.settings.keys_directory, KeyRing.from_texts(KEK))
        self.appender: Appender = appender(self.genesis, key_store=self.store)
        self.appender.open_segment()

    def opener(self, kek: str = KEK, previous: str | None = None) -> BodyOpener:
        return BodyOpener(kek, previous=previous, keys_directory=self.settings.keys_directory)

    def verify(self, opener: BodyOpener | None = None) -> VerificationReport:
        return verify(
            self.genesis.directory,
            genesis_public_key=self.genesis.owner_public_key,
            opener=opener or self.opener(),
        )

    def bodies(self, identifier: str = EXCHANGE, opener: BodyOpener | None = None) -> list[bytes | None]:
        return [opened.body for opened in open_records(self.genesis.directory, identifier, opener or self.opener())]

    def announced(self) -> list[str]:
        lines = (item.line for item in log_lines(self.genesis.directory))
        return [line.kid for line in lines if isinstance(line, KeyLine) and line.wrapped is None]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def test_each_person_has_a_key_and_everything_else_the_segments(log: Log) -> None:
    log.appender.commit([entry(1, sub=ANA, body=b"one"), entry(2, body=b"two"), entry(3, sub=BO, body=b"three")])
    log.appender.commit([entry(4, sub=ANA, body=b"four")])

    kids = [record.kid or "" for record in records_in(log.genesis.directory)]

    assert [kid.split(".")[0] for kid in kids] == [ANA, "sys", BO, ANA]
    assert kids[0] == kids[3]
    assert log.bodies() == [b"one", b"two", b"three", b"four"]
    report = log.verify()
    assert (report.outcome, report.bodies_opened) == (Outcome.OK, 4)


def test_a_key_is_announced_once_in_every_segment_that_uses_it_and_never_wrapped(log: Log) -> None:
    log.appender.commit([entry(1, sub=ANA), entry(2, sub=ANA)])
    log.appender.commit([entry(3, sub=ANA), entry(4, sub=BO)])
    log.appender.rotate()
    log.appender.commit([entry(5, sub=ANA)])
    log.appender.close_segment("stop")

    (ana,), (bo,) = log.store.keys_held(ANA), log.store.keys_held(BO)

    assert log.announced() == [ana, bo, ana]
    report = log.verify()
    assert report.outcome is Outcome.OK, report.findings
    assert [found for found in report.findings if found.severity is not Severity.NOTE] == []
    again = appender(log.genesis, key_store=log.store)
    again.open_segment()
    again.commit([entry(6, sub=ANA)])
    assert log.verify().ok


@pytest.mark.parametrize("sub", ["", "s_", "s_00", ANA.upper(), ANA + "0", "s_../../etc/passwd!", 17, True, None])
def test_what_is_no_pseudonym_is_sealed_by_the_segments_key(log: Log, sub: str | int | None) -> None:
    assert subject_in({"sub": sub}) is None

    log.appender.commit([entry(1, sub=sub, body=b"body")])

    assert log.announced() == []
    assert log.bodies() == [b"body"]
    assert log.verify().ok


def test_a_full_batch_of_new_people_is_one_transaction_and_one_write(tmp_path: Path) -> None:
    class Counting(Disk):
        writes = 0

        def write(self, descriptor: int, content: bytes | memoryview) -> int:
            self.writes += 1
            return super().write(descriptor, content)

    disk = Counting()
    genesis = initialise(audit_settings(tmp_path))
    store = KeyStore.open(tmp_path / "audit-keys", KeyRing.from_texts(KEK))
    log = appender(genesis, key_store=store, disk=disk)
    log.open_segment()
    before = disk.writes

    log.commit([entry(number, sub=f"s_{number:016x}") for number in range(1, 257)])

    assert disk.writes == before + 1
    opener = BodyOpener(KEK, keys_directory=tmp_path / "audit-keys")
    report = verify(genesis.directory, genesis_public_key=None, opener=opener)
    assert (report.outcome, report.bodies_opened) == (Outcome.OK, 256)


def test_a_failing_disk_has_the_key_announced_again_in_the_next_segment(tmp_path: Path) -> None:
    class FailingOnce(Disk):
        armed = False

        def sync_data(self, descriptor: int) -> None:
            if self.armed:
                self.armed = False
                raise OSError(5, "Input/output error")
            super().sync_data(descriptor)

    disk = FailingOnce()
    genesis = initialise(audit_settings(tmp_path))
    store = KeyStore.open(tmp_path / "audit-keys", KeyRing.from_texts(KEK))
    log = appender(genesis, key_store=store, disk=disk)
    log.open_segment()
    log.commit([entry(1, sub=ANA)])

    disk.armed = True
    log.commit([entry(2, sub=ANA), entry(3, sub=BO)])

    opener = BodyOpener(KEK, keys_directory=tmp_path / "audit-keys")
    report = verify(genesis.directory, genesis_public_key=None, opener=opener)
    assert (report.outcome, report.bodies_opened) == (Outcome.OK, 3)


def test_a_crash_between_key_and_record_leaves_a_key_that_the_next_record_uses(log: Log) -> None:
    # What a writer leaves that made the key durable and died before the log's write.
    log.store.keys_of([ANA])
    (kid,) = log.store.keys_held(ANA)

    log.appender.commit([entry(1, sub=ANA)])

    assert log.announced() == [kid]
    assert log.verify().ok


def test_without_a_key_nothing_of_the_batch_is_written_and_the_segment_goes_on_afterwards(log: Log) -> None:
    log.appender.commit([entry(1, sub=ANA)])
    with sqlite3.connect(log.settings.keys_directory / KEYS_NAME, isolation_level=None) as locking:
        locking.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LogUnavailable, match="locked"):
            log.appender.commit([entry(2, body=b"x"), entry(3, sub=BO)])
        with pytest.raises(LogUnavailable, match="locked"):
            log.appender.check_keys()
        locking.execute("ROLLBACK")
    locking.close()

    assert log.appender.is_open
    log.appender.check_keys()
    log.appender.commit([entry(2, body=b"x"), entry(3, sub=BO)])

    assert [record.id for record in records_in(log.genesis.directory)] == ["R0001", "R0002", "R0003"]
    assert log.verify().ok


def test_the_body_of_an_erased_person_is_gone_and_the_log_is_whole(log: Log) -> None:
    log.appender.commit([entry(1, sub=ANA, body=b"secret"), entry(2, sub=BO, body=b"bo"), entry(3, sub=ANA)])

    kids = log.store.erase(ANA)
    log.appender.commit([entry(4, sub=ANA, body=b"new life")])

    report = log.verify()
    assert (report.outcome, report.bodies_opened) == (Outcome.OK, 2)
    assert f"the key {kids[0]} was erased, and with it 2 bodies" in str(report.findings)
    assert log.bodies("R0001") == [None]
    (erased,) = open_records(log.genesis.directory, "R0001", log.opener())
    assert erased.problem == "The body was erased: its key was destroyed."
    assert log.bodies("R0004") == [b"new life"]


def test_the_logs_own_word_makes_an_erasure_of_a_key_that_a_restored_store_never_knew(log: Log, tmp_path: Path) -> None:
    log.appender.commit([entry(1, sub=ANA), entry(2, sub=BO)])
    erased, lost = log.store.erase(ANA), log.store.keys_held(BO)
    log.appender.commit([entry(3, kind="subject.erased", subject=ANA, kids=",".join(erased))])
    (tmp_path / "elsewhere").mkdir()
    KeyStore.open(tmp_path / "elsewhere", KeyRing.from_texts(KEK)).close()

    report = log.verify(BodyOpener(KEK, keys_directory=tmp_path / "elsewhere"))

    assert report.outcome is Outcome.UNDECIDABLE
    told = {found.severity: found.what for found in report.findings if "key s_" in found.what}
    assert erased[0] in told[Severity.NOTE]
    assert lost[0] in told[Severity.UNDECIDABLE]


def test_a_key_store_with_another_key_under_the_same_name_is_tampering(log: Log) -> None:
    log.appender.commit([entry(1, sub=ANA)])
    (kid,) = log.store.keys_held(ANA)
    ring = KeyRing.from_texts(KEK)
    with sqlite3.connect(log.settings.keys_directory / KEYS_NAME) as database:
        wrapped = ring.current.wrap(DataKey.generate().secret, kid)
        database.execute("UPDATE subject_keys SET wrapped = ? WHERE kid = ?", (wrapped, kid))
    database.close()

    assert log.verify().outcome is Outcome.TAMPERED
    assert log.bodies() == [None]


def test_segments_of_every_key_encryption_key_open_by_the_ring_or_by_the_store_alone(log: Log) -> None:
    log.appender.commit([entry(1, body=b"old"), entry(2, sub=ANA, body=b"hers")])
    log.appender.close_segment("stop")
    (line,) = (
        item.line for item in log_lines(log.genesis.directory) if isinstance(item.line, KeyLine) and item.line.wrapped
    )
    log.store.close()
    assert log.bodies(opener=log.opener(OTHER_KEK, KEK)) == [b"old", b"hers"]

    # The old key-encryption key is about to go.
    store = KeyStore.open(log.settings.keys_directory, KeyRing.from_texts(OTHER_KEK, KEK))
    assert line.wrapped is not None
    store.keep_system_keys([(line.kid, line.wrapped, line.commitment)])
    while store.rewrap().left:
        pass

    assert log.bodies(opener=log.opener(OTHER_KEK)) == [b"old", b"hers"]
    report = log.verify(log.opener(OTHER_KEK))
    assert (report.outcome, report.bodies_opened) == (Outcome.OK, 2)


def test_parts_and_their_record_open_together_by_a_persons_key(log: Log) -> None:
    parts = [entry(n, kind="llm.part", sub=ANA, pt_of="R0003", seq=n - 1, last=n == 2, body=b"%d" % n) for n in (1, 2)]
    log.appender.commit([*parts, entry(3, sub=ANA, parts=2, body=b"")])

    assert log.bodies("R0003") == [b"12"]
    assert len(find_records(log.genesis.directory, "R0003")) == 3


def test_a_log_from_before_the_key_store_opens_as_before(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    genesis = initialise(settings)
    old = appender(genesis)
    old.open_segment()
    old.commit([entry(1, sub=ANA, body=b"before")])
    old.close_segment("stop")
    log = Log(tmp_path)

    log.appender.commit([entry(2, sub=ANA, body=b"after")])

    assert log.bodies() == [b"before", b"after"]
    assert open_records(genesis.directory, "R0001", KEK)[0].body == b"before"
    assert log.verify().ok
