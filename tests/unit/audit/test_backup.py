from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secure_llm_proxy.audit import verify
from secure_llm_proxy.audit.backup import Backup, snapshots_in
from secure_llm_proxy.audit.genesis import Genesis
from secure_llm_proxy.audit.segments import LogDirectories
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import KEK, appender, audit_settings, entry, write_log


class Calendar:
    """A clock that stands until it is told."""

    def __init__(self) -> None:
        self.today = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.today

    def monotonic_s(self) -> float:
        return 0.0

    def pass_days(self, days: float) -> None:
        self.today += timedelta(days=days)


class House:
    """A closed log of two segments, a key store, and their backup."""

    def __init__(self, directory: Path, **overrides: object) -> None:
        self.settings: AuditSettings = audit_settings(
            directory,
            backup_enabled=True,
            backup_directory=directory / "backup",
            backup_keys_directory=directory / "keys-backup",
            **({"free_bytes_min": 0} | overrides),
        )
        self.genesis: Genesis = write_log(directory)
        self.log = self.genesis.directory
        self.calendar = Calendar()
        self.backup = self.new_backup()
        self.copies = directory / "backup" / "host"
        self.snapshots = directory / "keys-backup" / "host"
        self._store = sqlite3.connect(self.settings.keys_directory / "keys.db")
        self._store.execute("PRAGMA journal_mode=WAL")
        self._store.execute("PRAGMA secure_delete=ON")
        self._store.execute("CREATE TABLE subject_keys (kid TEXT PRIMARY KEY, wrapped BLOB)")
        self.store("INSERT INTO subject_keys VALUES ('s_1.aaaa', 'wrapped-key-of-one')")

    def new_backup(self) -> Backup:
        return Backup(self.settings, LogDirectories(self.log), clock=self.calendar)

    def store(self, statement: str) -> None:
        self._store.execute(statement)
        self._store.commit()

    def close(self) -> None:
        self._store.close()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.copies.iterdir())

    def grow(self) -> None:
        """Another closed segment."""
        log = appender(self.genesis)
        log.open_segment()
        log.commit([entry(log.carry.seen.get("11" * 16, 0) + 1, body=bytes(5_000))])
        log.close_segment("stop")

    def segments(self) -> list[str]:
        return sorted(path.name for path in self.log.glob("0*"))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """What a full disk looks like: no file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_finished_segments_and_the_root_of_trust_are_copied_and_verify(house: House) -> None:
    done = house.backup.run()

    assert done.troubles == ()
    assert done.segments == 2
    assert house.names() == [*house.segments(), "genesis.json"]
    for name in house.names():
        assert (house.copies / name).read_bytes() == (house.log / name).read_bytes()
        assert (house.copies / name).stat().st_mode & 0o222 == 0
    report = verify(
        house.settings.backup_directory or Path(), genesis_public_key=house.genesis.owner_public_key, kek=KEK
    )
    assert report.ok
    assert report.findings == ()


def test_what_is_there_is_not_copied_again_and_what_is_new_is(house: House) -> None:
    house.backup.run()
    house.grow()

    second = house.backup.run()
    third = house.new_backup().run()

    assert (second.segments, second.held) == (1, 3)
    assert (third.segments, third.held, third.troubles) == (0, 3, ())


def test_the_segment_that_takes_lines_is_not_copied(house: House) -> None:
    log = appender(house.genesis)
    log.open_segment()
    log.commit([entry(9)])

    house.backup.run()

    assert not list(house.copies.glob("*.open"))
    assert len(house.names()) == 3


def test_segments_of_the_second_directory_are_copied_too(house: House, tmp_path: Path) -> None:
    second = tmp_path / "second" / "host"
    second.mkdir(parents=True)
    last = max(house.log.glob("0*"))
    last.rename(second / last.name)

    done = Backup(house.settings, LogDirectories(house.log, second)).run()

    assert done.troubles == ()
    assert verify(house.copies, genesis_public_key=None).segments == 2


def test_neither_place_holds_what_signs_and_keys_lie_in_one_of_them_only(house: House) -> None:
    house.backup.run()

    places = (house.settings.backup_directory, house.settings.backup_keys_directory)
    found = [path.name for place in places if place for path in place.rglob("*")]
    assert not [name for name in found if name.startswith("epoch.key")]
    assert len([name for name in found if name.endswith(".db")]) == 1
    assert list(house.snapshots.glob("*.db"))
    assert (house.snapshots / snapshots_in(house.snapshots)[0]).stat().st_mode & 0o777 == 0o600
    assert house.snapshots.stat().st_mode & 0o077 == 0


def test_a_copy_that_differs_is_told_and_left_as_it_is(house: House) -> None:
    house.backup.run()
    altered = house.copies / house.segments()[0]
    altered.chmod(0o600)
    altered.write_bytes(altered.read_bytes().replace(b"host", b"hoax", 1))
    content = altered.read_bytes()
    house.grow()

    restarted = house.new_backup()
    first, again = restarted.run(), restarted.run()

    assert first.segments == 1
    for done in (first, again):
        assert len(done.troubles) == 1
        assert str(altered) in done.troubles[0]
        assert "left as it is" in done.troubles[0]
    assert altered.read_bytes() == content


def test_another_root_of_trust_is_never_overwritten(house: House) -> None:
    house.backup.run()
    other = house.copies / "genesis.json"
    other.chmod(0o600)
    other.write_bytes(b"{}")

    done = house.backup.run()

    assert len(done.troubles) == 1
    assert other.read_bytes() == b"{}"


def test_a_full_backup_disk_is_told_and_costs_no_copy_that_is_there(house: House) -> None:
    house.backup.run()
    before = {name: (house.copies / name).read_bytes() for name in house.names()}
    house.grow()

    with files_end_at(4_096):
        full = house.backup.run()
    left = house.names()
    room_again = house.backup.run()

    assert full.segments == 0
    assert "File too large" in full.troubles[0]
    assert left == sorted(before)
    assert {name: (house.copies / name).read_bytes() for name in before} == before
    assert (room_again.segments, room_again.troubles) == (1, ())


def test_a_place_that_cannot_be_made_is_told(house: House) -> None:
    house.copies.parent.write_text("a file")
    house.snapshots.parent.write_text("a file")

    done = house.backup.run()

    assert len(done.troubles) == 2
    assert all("backup" in trouble for trouble in done.troubles)


def test_what_a_killed_run_left_behind_is_cleared_away(house: House) -> None:
    house.backup.run()
    half = house.copies / f".{house.segments()[0]}.tmp"
    half.write_bytes(b"half a segment")
    snapshot = house.snapshots / ".keys-20261121T120000.000000Z.db.tmp-journal"
    snapshot.write_bytes(b"half a snapshot")

    done = house.backup.run()

    assert done.troubles == ()
    assert not half.exists()
    assert not snapshot.exists()


def test_a_backup_on_the_logs_own_disk_leaves_it_room(tmp_path: Path) -> None:
    house = House(tmp_path, free_bytes_min=1 << 60)

    done = house.backup.run()
    house.close()

    assert "shares a disk" in done.troubles[0]
    assert house.names() == []


def test_the_key_store_is_copied_only_when_it_has_changed(house: House) -> None:
    house.backup.run()
    house.calendar.pass_days(1)
    house.backup.run()
    unchanged = snapshots_in(house.snapshots)
    house.store("INSERT INTO subject_keys VALUES ('s_2.bbbb', 'wrapped-key-of-two')")
    house.calendar.pass_days(1)
    house.backup.run()

    first, second = snapshots_in(house.snapshots)
    assert unchanged == [first]
    assert (first, second) == ("keys-20261121T120000.000000Z.db", "keys-20261123T120000.000000Z.db")
    with contextlib.closing(sqlite3.connect(house.snapshots / second)) as copy:
        assert [kid for (kid,) in copy.execute("SELECT kid FROM subject_keys ORDER BY kid")] == ["s_1.aaaa", "s_2.bbbb"]
    assert sorted(path.name for path in house.snapshots.iterdir()) == [first, second]


def test_a_clock_that_went_back_leaves_the_newest_snapshot_the_newest(house: House) -> None:
    house.backup.run()
    house.calendar.pass_days(-2)
    house.store("INSERT INTO subject_keys VALUES ('s_2.bbbb', 'wrapped-key-of-two')")

    done = house.backup.run()

    assert snapshots_in(house.snapshots) == ["keys-20261121T120000.000000Z.db", "keys-20261121T120000.000001Z.db"]
    assert done.snapshot == "keys-20261121T120000.000001Z.db"


def test_who_is_erased_is_gone_from_the_snapshots_after_their_days(house: House) -> None:
    house.backup.run()
    house.calendar.pass_days(20)
    house.store("DELETE FROM subject_keys")
    house.backup.run()
    newest = snapshots_in(house.snapshots)[-1]
    house.calendar.pass_days(34)
    house.backup.run()
    still = snapshots_in(house.snapshots)
    house.calendar.pass_days(300)
    house.backup.run()

    assert b"wrapped-key-of-one" not in (house.snapshots / newest).read_bytes()
    assert still == [newest]
    # Unchanged for a year, it is what would be restored.
    assert snapshots_in(house.snapshots) == [newest]


def test_a_damaged_key_store_is_told_and_keeps_no_segment_from_being_copied(house: House) -> None:
    house.close()
    (house.settings.keys_directory / "keys.db").write_bytes(b"no database" * 1_000)

    done = house.backup.run()

    assert done.segments == 2
    assert "key store could not be copied" in done.troubles[0]
    assert snapshots_in(house.snapshots) == []


@pytest.mark.parametrize(
    ("backup", "keys"),
    [
        ("backup", "backup"),
        ("backup", "backup/keys"),
        ("keys/backup", "keys"),
        ("audit/backup", "keys"),
        ("backup", "audit"),
        ("backup", "audit-keys/backup"),
        (".", "keys"),
        ("link", "keys"),
    ],
)
def test_the_places_of_a_backup_lie_apart_from_the_log_and_from_each_other(
    tmp_path: Path, backup: str, keys: str
) -> None:
    genesis = write_log(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "audit")
    settings = audit_settings(
        tmp_path, backup_enabled=True, backup_directory=tmp_path / backup, backup_keys_directory=tmp_path / keys
    )

    with pytest.raises(OperatorError, match="neither inside the other"):
        Backup(settings, LogDirectories(genesis.directory))


def test_a_restored_copy_is_a_log_that_can_be_read(house: House, tmp_path: Path) -> None:
    house.backup.run()
    shutil.rmtree(house.settings.directory)

    shutil.copytree(house.copies, house.log)

    assert verify(house.log, genesis_public_key=house.genesis.owner_public_key, kek=KEK).ok
    assert os.access(house.log / "genesis.json", os.R_OK)
