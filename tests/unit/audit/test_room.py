"""When there is room for new exchanges, and what the reserve is worth."""

from __future__ import annotations

import os
from pathlib import Path

from secure_llm_proxy.audit.room import Room
from secure_llm_proxy.audit.segments import RESERVE_NAME, strangers_in
from tests.support.audit_log import Reports

_BLOCK = 4096
_MIB = 1 << 20


class FileSystem:
    """A disk of 100 MiB with as much free as a test says; what the reserve takes of it is accounted for."""

    def __init__(self, directory: Path, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.looks = 0
        self.gone = False
        self._reserve = directory / RESERVE_NAME

    def look_at(self, _: Path) -> os.statvfs_result:
        self.looks += 1
        if self.gone:
            raise OSError(5, "Input/output error")
        free = self.free_bytes - (self._reserve.stat().st_size if self._reserve.exists() else 0)
        return os.statvfs_result((_BLOCK, _BLOCK, 100 * _MIB // _BLOCK, 0, max(0, free) // _BLOCK, 0, 0, 0, 0, 255))


class Scene:
    """A room of at least 10 MiB with a reserve of 2, its file system and its clock."""

    def __init__(self, directory: Path, free_bytes: int, *, percent_min: float = 0.0) -> None:
        self.now_s = 100.0
        self.reports = Reports()
        self.disk = FileSystem(directory, free_bytes)
        self.reserve = directory / RESERVE_NAME
        self.room = Room(
            directory,
            bytes_min=10 * _MIB,
            percent_min=percent_min,
            reserve_bytes=2 * _MIB,
            report=self.reports,
            look_at=self.disk.look_at,
            now_s=lambda: self.now_s,
        )

    def look_later(self, free_bytes: int | None = None) -> Room:
        if free_bytes is not None:
            self.disk.free_bytes = free_bytes
        self.now_s += 1.0
        self.room.look()
        return self.room


def test_the_reserve_is_made_when_there_is_room_for_it_beside_the_minimum(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 12 * _MIB)

    scene.room.look()

    assert scene.room.has_room
    assert scene.reserve.stat().st_blocks * 512 == 2 * _MIB
    assert scene.reserve.stat().st_mode & 0o777 == 0o600
    assert scene.room.free_bytes == 10 * _MIB
    assert scene.room.trouble is None


def test_room_for_the_minimum_but_not_for_the_reserve_is_no_room(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 12 * _MIB - _BLOCK)

    scene.room.look()

    assert not scene.room.has_room
    assert not scene.reserve.exists()
    assert scene.room.trouble == (
        "The disk of the audit log has 11 MiB free and needs 12; new requests are refused until there is more."
    )


def test_a_share_of_the_disk_counts_where_it_is_more(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 30 * _MIB, percent_min=29.0)

    scene.room.look()

    assert not scene.room.has_room
    assert scene.look_later(31 * _MIB).has_room


def test_the_disk_is_asked_at_most_once_a_second(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 50 * _MIB)
    scene.room.look()
    looks = scene.disk.looks

    scene.now_s += 0.9
    scene.room.look()
    assert scene.disk.looks == looks
    scene.now_s += 0.2
    scene.room.look()
    assert scene.disk.looks == looks + 1


def test_what_is_written_between_two_looks_counts(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 22 * _MIB)
    scene.room.look()

    answers = []
    for size in (6 * _MIB, 2 * _MIB):
        scene.room.written(size)
        answers.append(scene.room.has_room)

    assert answers == [True, False]
    assert scene.look_later().has_room


def test_a_released_reserve_makes_no_room_for_new_exchanges_and_comes_back_with_the_room(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 50 * _MIB)
    scene.room.look()

    assert scene.room.release()
    assert not scene.reserve.exists()
    assert not scene.room.release()
    assert scene.reports.names == ["reserve_released"]

    assert not scene.look_later(11 * _MIB).has_room
    assert not scene.reserve.exists()
    assert scene.look_later(12 * _MIB).has_room
    assert scene.reserve.exists()


def test_a_reserve_of_another_size_or_full_of_holes_is_made_anew(tmp_path: Path) -> None:
    for size in (_MIB, 2 * _MIB):
        scene = Scene(tmp_path, 50 * _MIB)
        with scene.reserve.open("wb") as hollow:
            hollow.truncate(size)

        scene.room.look()

        assert scene.reserve.stat().st_size == 2 * _MIB
        assert scene.reserve.stat().st_blocks * 512 == 2 * _MIB


def test_a_disk_that_cannot_be_asked_keeps_its_last_answer(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 50 * _MIB)
    scene.room.look()

    scene.disk.gone = True

    assert scene.look_later().has_room


def test_a_reserve_that_cannot_be_made_is_told_once_and_refuses_nobody(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    scene = Scene(gone, 50 * _MIB)

    for _ in range(3):
        assert scene.look_later().has_room

    assert scene.reports.names == ["reserve_refused"]


def test_the_reserve_is_no_stranger_in_a_log(tmp_path: Path) -> None:
    Scene(tmp_path, 50 * _MIB).room.look()

    assert strangers_in(tmp_path) == []
