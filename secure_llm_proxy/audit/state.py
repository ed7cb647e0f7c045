"""What the writer tells health, status and doctor of itself: one small file beside its read socket.

Replaced as a whole on every change of trouble and at least every 10 s, so that who reads it sees from its time whether
anybody still writes it. Holds no content and no secret.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from secure_llm_proxy.foundation.clock import SystemClock, rfc3339

EVERY_S = 10.0
OLD_S = 30.0


class StateFile:
    """The writer's end. `tell` is called every turn of its loop and is cheap while nothing has changed."""

    def __init__(self, path: Path, log: str, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._log = log
        self._now_s = now_s
        self._told_s = float("-inf")
        self._version: object = None

    def due_s(self) -> float:
        """Seconds until it must be told anew."""
        return max(0.0, self._told_s + EVERY_S - self._now_s())

    def tell(self, version: object, members: Callable[[], Mapping[str, object]]) -> None:
        """Write what `members` returns when `version` is another than last time, or 10 s have passed. Never raises: a file that
        can't be written grows old, which its readers see.
        """
        now = self._now_s()
        if version == self._version and now - self._told_s < EVERY_S:
            return
        self._version, self._told_s = version, now
        content = orjson.dumps({"t": rfc3339(SystemClock().now()), "log": self._log, **members()}) + b"\n"
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with contextlib.suppress(OSError):
            descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)
            temporary.rename(self._path)

    def remove(self) -> None:
        """Nobody writes the log any more."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class AnchorState:
    """One place that checkpoints go to. `n` is the size of the newest tree that stands there, None: none since the start."""

    name: str
    n: int | None
    t: str | None
    leaves_host: bool
    trouble: str | None


@dataclass(frozen=True, slots=True)
class SinkState:
    name: str
    policy: str
    behind: int
    trouble: str | None


@dataclass(frozen=True, slots=True)
class WriterState:
    """What the writer said last, `age_s` ago. `n` is the index of the log's next line."""

    age_s: float
    log: str
    n: int
    checkpoint_n: int | None
    checkpoint_t: str | None
    note: str | None
    free_bytes: int | None
    room: str | None
    sinks: tuple[SinkState, ...]
    anchors: tuple[AnchorState, ...]
    backup: Mapping[str, object]
    troubles: tuple[str, ...]

    @property
    def checkpoint_age_s(self) -> float | None:
        """Seconds since the newest checkpoint, by this host's clock."""
        return None if self.checkpoint_t is None else _age_s(self.checkpoint_t)

    @property
    def is_anchored_off_host(self) -> bool:
        return any(anchor.leaves_host and anchor.n is not None for anchor in self.anchors)


def read_state(path: Path) -> WriterState | None:
    """What the writer of this host told last; None when it left no (whole) word, or it may not be read."""
    try:
        told = orjson.loads(path.read_bytes())
        return WriterState(
            age_s=_age_s(told["t"]),
            log=told["log"],
            n=told["n"],
            checkpoint_n=told["checkpoint"] and told["checkpoint"]["n"],
            checkpoint_t=told["checkpoint"] and told["checkpoint"]["t"],
            note=told["note"],
            free_bytes=told["free_bytes"],
            room=told["no_room"],
            sinks=tuple(SinkState(name=name, **sink) for name, sink in told["sinks"].items()),
            anchors=tuple(AnchorState(name=name, **anchor) for name, anchor in told["anchors"].items()),
            backup=told["backup"],
            troubles=tuple(told["troubles"]),
        )
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


def _age_s(t: str) -> float:
    """A clock that was set back makes nothing fresher than new."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(t)).total_seconds())
