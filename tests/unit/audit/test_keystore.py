"""The key store on a real file: keys that last, keys that go, keys that are wrapped anew."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from secure_llm_proxy.audit.keystore import (
    BEGUN_NAME,
    KEYS_NAME,
    SUBJECT_KEY_AGE_S,
    KeyStore,
    KeyStoreUnavailable,
)
from secure_llm_proxy.audit.seal import DataKey, KeyEncryptionKey, KeyRing, SealBroken
from secure_llm_proxy.foundation.errors import OperatorError

KEK, OTHER = "5a" * 32, "6b" * 32
SUBJECT, ANOTHER = "s_0011223344556677", "s_8899aabbccddeeff"
NOW = 1_800_000_000.0


class _Clock:
    def __init__(self) -> None:
        self.now_s = NOW

    def __call__(self) -> float:
        return self.now_s


def _store(
    directory: Path, kek: str = KEK, previous: str | None = None, *, clock: _Clock | None = None, keys_kept: int = 100
) -> KeyStore:
    return KeyStore.open(directory, KeyRing.from_texts(kek, previous), now_s=clock or _Clock(), keys_kept=keys_kept)


def _wrapped_of(directory: Path, kid: str) -> bytes:
    with sqlite3.connect(directory / KEYS_NAME) as database:
        (wrapped,) = database.execute("SELECT wrapped FROM subject_keys WHERE kid = ?", (kid,)).fetchone()
    database.close()
    return bytes(wrapped)


def _bytes_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir() if path.name.startswith(KEYS_NAME))


def test_a_subjects_key_is_made_once_and_is_there_after_a_restart(tmp_path: Path) -> None:
    store = _store(tmp_path)
    first = store.keys_of([SUBJECT, ANOTHER])

    again = _store(tmp_path)

    assert first[SUBJECT][0].startswith(SUBJECT + ".")
    assert first[SUBJECT][1].secret != first[ANOTHER][1].secret
    for subject in (SUBJECT, ANOTHER):
        assert store.keys_of([subject]) == {subject: first[subject]}
        assert [again.keys_of([subject])[subject][0]] == again.keys_held(subject) == [first[subject][0]]
        assert again.keys_of([subject])[subject][1].secret == first[subject][1].secret


def test_a_killed_writer_leaves_the_keys_that_it_had_handed_out(tmp_path: Path) -> None:
    made = _store(tmp_path).keys_of([SUBJECT])[SUBJECT]

    # What lies on disk now, with no connection closed in order.
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob(KEYS_NAME + "*"):
        shutil.copy(path, copy)
    (key,) = _store(copy).keys_of([SUBJECT]).values()

    assert (key[0], key[1].secret) == (made[0], made[1].secret)


def test_keys_lie_wrapped_in_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    store = _store(tmp_path)
    key = store.keys_of([SUBJECT])[SUBJECT][1]
    index_key = store.index_key()

    content = _bytes_of(tmp_path)

    assert key.secret not in content
    assert index_key not in content
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_a_key_older_than_thirty_days_is_followed_by_a_new_one_and_still_opens(tmp_path: Path) -> None:
    clock = _Clock()
    store = _store(tmp_path, clock=clock)
    old_kid, old_key = store.keys_of([SUBJECT])[SUBJECT]

    clock.now_s += SUBJECT_KEY_AGE_S - 1
    assert store.keys_of([SUBJECT])[SUBJECT][0] == old_kid
    clock.now_s += 1
    new_kid, _ = store.keys_of([SUBJECT])[SUBJECT]

    assert new_kid != old_kid
    assert store.keys_held(SUBJECT) == [old_kid, new_kid]
    opened = store.key(old_kid)
    assert opened is not None
    assert opened.secret == old_key.secret
    assert _store(tmp_path, clock=clock).keys_of([SUBJECT])[SUBJECT][0] == new_kid


def test_a_clock_that_was_far_ahead_for_a_while_leaves_nobody_with_an_eternal_key(tmp_path: Path) -> None:
    clock = _Clock()
    clock.now_s += 365 * 86_400
    ahead, _ = _store(tmp_path, clock=clock).keys_of([SUBJECT])[SUBJECT]

    clock.now_s = NOW
    store = _store(tmp_path, clock=clock)

    kid, _ = store.keys_of([SUBJECT])[SUBJECT]
    assert kid != ahead
    assert store.keys_of([SUBJECT])[SUBJECT][0] == kid


def test_thousands_of_new_subjects_at_once_stay_within_the_memory_and_all_last(tmp_path: Path) -> None:
    subjects = [f"s_{number:016x}" for number in range(3_000)]
    store = _store(tmp_path, keys_kept=50)

    made = store.keys_of(subjects)

    assert len({kid for kid, _ in made.values()}) == len(subjects)
    again = _store(tmp_path).keys_of(subjects)
    assert {subject: (kid, key.secret) for subject, (kid, key) in made.items()} == {
        subject: (kid, key.secret) for subject, (kid, key) in again.items()
    }
    assert len(store._current) == 50


def test_who_is_erased_is_in_no_byte_of_the_store_and_gets_a_new_key_afterwards(tmp_path: Path) -> None:
    clock = _Clock()
    store = _store(tmp_path, clock=clock)
    others = store.keys_of([f"s_{number:016x}" for number in range(2_000)])
    old, _ = store.keys_of([SUBJECT])[SUBJECT]
    clock.now_s += SUBJECT_KEY_AGE_S
    newer, _ = store.keys_of([SUBJECT])[SUBJECT]
    wrapped = [_wrapped_of(tmp_path, kid) for kid in (old, newer)]
    before = _bytes_of(tmp_path)

    erased = store.erase(SUBJECT)
    store.compact()

    assert erased == [old, newer]
    assert all(each in before for each in wrapped)
    assert not any(each in _bytes_of(tmp_path) for each in wrapped)
    assert store.key(old) is None
    assert store.keys_held(SUBJECT) == []
    assert store.is_erased(newer)
    assert store.keys_of([SUBJECT])[SUBJECT][0] not in (old, newer)
    assert all(store.key(kid) is not None for kid, _ in others.values())


def test_erasing_twice_erases_once(tmp_path: Path) -> None:
    store = _store(tmp_path)
    (kid, _) = store.keys_of([SUBJECT])[SUBJECT]

    assert store.erase(SUBJECT) == [kid]
    assert store.erase(SUBJECT) == []
    assert store.erase(ANOTHER) == []

    assert [(each.kid, each.told) for each in store.erased(SUBJECT)] == [(kid, None)]
    store.note_told([kid], 17)
    assert store.untold() == []
    assert [each.told for each in store.erased()] == [17]


def test_a_reader_that_knew_a_key_forgets_it_when_it_is_erased(tmp_path: Path) -> None:
    writer = _store(tmp_path)
    kid, key = writer.keys_of([SUBJECT])[SUBJECT]
    reader = KeyStore.open_to_read(tmp_path, KeyRing.from_texts(KEK))
    assert reader is not None
    known = reader.key(kid)

    writer.erase(SUBJECT)

    assert known is not None
    assert known.secret == key.secret
    assert reader.key(kid) is None
    with pytest.raises(KeyStoreUnavailable):
        reader.erase(ANOTHER)


def test_the_index_key_is_the_same_for_ever(tmp_path: Path) -> None:
    first = _store(tmp_path).index_key()

    store = _store(tmp_path, OTHER, KEK)
    while store.rewrap().left:
        pass

    assert _store(tmp_path, OTHER).index_key() == first


def test_every_key_is_wrapped_anew_in_chunks_and_the_old_key_is_needed_no_more(tmp_path: Path) -> None:
    store = _store(tmp_path)
    made = store.keys_of([f"s_{number:016x}" for number in range(1_200)])
    store.keep_secret("reader:ana", b"seed")
    system = DataKey.generate()
    store.keep_system_keys([("sys.1", KeyEncryptionKey.from_text(KEK).wrap(system.secret, "sys.1"), system.commitment)])
    old, new = KeyRing.from_texts(KEK).current.id, KeyRing.from_texts(OTHER).current.id

    # Given up after one chunk, and continued by another process.
    first = _store(tmp_path, OTHER, KEK).rewrap(500)
    middle = _store(tmp_path, OTHER, KEK)
    counts = middle.counts_by_kek()
    done = 0
    while (turn := middle.rewrap(500)).left:
        done += turn.done

    assert (first.done, first.left) == (500, True)
    assert counts["subject_keys"] == {old: 700, new: 500}
    assert done == 703
    alone = _store(tmp_path, OTHER)
    assert alone.counts_by_kek() == {"subject_keys": {new: 1_200}, "system_keys": {new: 1}, "meta": {new: 2}}
    assert {kid: key.secret for kid, key in made.values()} == {
        kid: key.secret for kid, _ in made.values() if (key := alone.key(kid)) is not None
    }
    assert alone.secret("reader:ana") == b"seed"
    opened = alone.key("sys.1")
    assert opened is not None
    assert opened.secret == system.secret


def test_a_system_key_that_is_not_what_the_log_committed_to_is_not_kept(tmp_path: Path) -> None:
    store = _store(tmp_path)
    key, other = DataKey.generate(), DataKey.generate()
    wrapped = KeyEncryptionKey.from_text(KEK).wrap(key.secret, "sys.1")

    with pytest.raises(KeyStoreUnavailable, match=r"sys\.1 of the log does not unwrap"):
        store.keep_system_keys([("sys.1", wrapped, other.commitment)])

    assert store.system_keys_held() == set()


def test_secrets_of_readers_are_kept_listed_and_dropped(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.keep_secret("reader:bo", b"2")
    store.keep_secret("reader:ana", b"1")

    store.keep_secret("reader:ana", b"3")

    assert store.secrets("reader:") == ["reader:ana", "reader:bo"]
    assert store.secret("reader:ana") == b"3"
    assert (store.drop_secret("reader:ana"), store.drop_secret("reader:ana")) == (True, False)
    assert store.secret("reader:ana") is None


# --- what may be wrong with the file ----------------------------------------------------------------------------------


def test_a_lost_store_is_not_replaced_in_silence(tmp_path: Path) -> None:
    _store(tmp_path).close()
    (tmp_path / KEYS_NAME).unlink()

    with pytest.raises(OperatorError, match="is missing, and with it the keys of every person's records"):
        _store(tmp_path)

    (tmp_path / BEGUN_NAME).unlink()
    assert _store(tmp_path).keys_of([SUBJECT])


def test_a_store_that_another_key_wrapped_is_refused_by_name(tmp_path: Path) -> None:
    _store(tmp_path).keys_of([SUBJECT])

    with pytest.raises(OperatorError, match=KeyRing.from_texts(KEK).current.id):
        _store(tmp_path, OTHER)

    assert _store(tmp_path, OTHER, KEK).keys_of([SUBJECT])


@pytest.mark.parametrize("content", [b"", b"no database" * 1000, b"SQLite format 3\0" + os.urandom(8192)])
def test_a_damaged_store_is_refused(tmp_path: Path, content: bytes) -> None:
    _store(tmp_path).close()
    (tmp_path / KEYS_NAME).write_bytes(content)

    with pytest.raises(OperatorError, match=r"[Rr]estore it from its backup"):
        _store(tmp_path)


def test_a_store_of_a_later_version_is_refused(tmp_path: Path) -> None:
    _store(tmp_path).close()
    with sqlite3.connect(tmp_path / KEYS_NAME) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()

    with pytest.raises(OperatorError, match="later version"):
        _store(tmp_path)


def test_a_damaged_row_fails_its_subject_and_nobody_else(tmp_path: Path) -> None:
    store = _store(tmp_path)
    kid, _ = store.keys_of([SUBJECT, ANOTHER])[SUBJECT]
    with sqlite3.connect(tmp_path / KEYS_NAME) as database:
        database.execute("UPDATE subject_keys SET wrapped = zeroblob(60) WHERE kid = ?", (kid,))
    database.close()

    again = _store(tmp_path)

    with pytest.raises(KeyStoreUnavailable, match=rf"{kid} .* is damaged"):
        again.keys_of([SUBJECT])
    assert again.keys_of([ANOTHER])


def test_a_full_disk_makes_no_key_and_leaves_those_that_are_known(tmp_path: Path) -> None:
    store = _store(tmp_path)
    known = store.keys_of([SUBJECT])
    assert store._database is not None
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(KeyStoreUnavailable, match="no space is left"):
        store.keys_of([f"s_{number:016x}" for number in range(1_000)])

    assert store.keys_of([SUBJECT]) == known
    store._database.execute("PRAGMA max_page_count = 1000000")
    assert len(store.keys_of([f"s_{number:016x}" for number in range(1_000)])) == 1_000


def test_a_store_that_somebody_locks_is_unavailable_and_then_back(tmp_path: Path) -> None:
    store = _store(tmp_path)
    known = store.keys_of([SUBJECT])
    with sqlite3.connect(tmp_path / KEYS_NAME, isolation_level=None) as locking:
        locking.execute("BEGIN IMMEDIATE")

        with pytest.raises(KeyStoreUnavailable, match="is locked"):
            store.keys_of([ANOTHER])
        assert store.keys_of([SUBJECT]) == known

        locking.execute("ROLLBACK")
    locking.close()
    assert store.keys_of([ANOTHER])


def test_a_store_that_vanishes_under_a_running_writer_is_noticed_and_its_return_too(tmp_path: Path) -> None:
    store = _store(tmp_path)
    kid, _ = store.keys_of([SUBJECT])[SUBJECT]
    shutil.copy(tmp_path / KEYS_NAME, tmp_path / "kept")
    (tmp_path / KEYS_NAME).rename(tmp_path / "away")

    with pytest.raises(KeyStoreUnavailable, match="is gone"):
        store.check()
    with pytest.raises(KeyStoreUnavailable):
        store.keys_of([SUBJECT])

    for rest in tmp_path.glob(KEYS_NAME + "-*"):
        rest.unlink()
    (tmp_path / "away").rename(tmp_path / KEYS_NAME)
    store.check()
    assert store.keys_held(SUBJECT) in ([kid], [])
    assert store.keys_of([SUBJECT])


def test_a_snapshot_is_read_by_itself(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    store = _store(tmp_path / "keys")
    kid, key = store.keys_of([SUBJECT])[SUBJECT]
    store.compact()
    store.close()
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "keys" / KEYS_NAME, tmp_path / "copy")

    reader = KeyStore.open_to_read(tmp_path / "copy", KeyRing.from_texts(OTHER, KEK))

    assert reader is not None
    opened = reader.key(kid)
    assert opened is not None
    assert opened.secret == key.secret
    assert KeyStore.open_to_read(tmp_path, KeyRing.from_texts(KEK)) is None


# --- the ring ---------------------------------------------------------------------------------------------------------


def test_a_ring_wraps_by_its_current_key_and_unwraps_by_all() -> None:
    old, new = KeyEncryptionKey.from_text(KEK), KeyEncryptionKey.from_text(OTHER)
    ring = KeyRing.from_texts(OTHER, f"{'00' * 32}, {KEK},")

    assert ring.current.id == new.id
    assert ring.unwrap(old.wrap(b"secret", "kid"), "kid") == b"secret"
    assert ring.unwrap(old.wrap(b"secret", "kid"), "kid", old.id) == b"secret"
    assert old.id in ring
    for wrapped, kid, kek in (
        (old.wrap(b"secret", "kid"), "other", None),
        (old.wrap(b"secret", "kid"), "kid", new.id),
        (old.wrap(b"secret", "kid"), "kid", "0" * 16),
        (b"", "kid", None),
    ):
        with pytest.raises(SealBroken):
            ring.unwrap(wrapped, kid, kek)


def test_a_malformed_earlier_key_is_refused() -> None:
    with pytest.raises(OperatorError, match="32 random bytes"):
        KeyRing.from_texts(KEK, "no key")
