"""Room over both directories of a log: new exchanges are refused only when neither disk has some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secure_llm_proxy.audit.room import Room


class Rooms:
    """As `Room`, of whichever directory has room, the first one first. With one directory it is that one's `Room`."""

    def __init__(self, rooms: Sequence[tuple[Path, Room]]) -> None:
        self._rooms = dict(rooms)

    @property
    def has_room(self) -> bool:
        return any(room.has_room for room in self._asked())

    @property
    def free_bytes(self) -> int | None:
        return self._chosen().free_bytes

    @property
    def trouble(self) -> str | None:
        """A sentence for the operator, None while there is room."""
        return self._chosen().trouble

    def is_short(self, directory: Path) -> bool:
        """Whether lines are better written elsewhere: this directory has no room, and another has."""
        for room in self._rooms.values():
            room.look()
        own = self._rooms[directory]
        return own.answers and not own.has_room and self.has_room

    def look(self) -> None:
        for room in self._rooms.values():
            room.look()

    def written(self, size: int) -> None:
        self._chosen().written(size)

    def release(self) -> bool:
        """The disks are full: give up every reserve. False when there was none to give up."""
        released = [room.release() for room in self._rooms.values()]
        return any(released)

    def _asked(self) -> list[Room]:
        """Those whose disk answers; if none does, all, as they were known last."""
        return [room for room in self._rooms.values() if room.answers] or list(self._rooms.values())

    def _chosen(self) -> Room:
        rooms = self._asked()
        return next((room for room in rooms if room.has_room), rooms[0])
