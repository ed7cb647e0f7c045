"""Checkpoints leave the log for places that whoever rewrites it would have to rewrite too: a file, and syslog.

A thread takes the newest checkpoint to each place, at most one in 10 s; what failed is tried again with the next. A place
that is away is a trouble that is told, and never stops the log.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import orjson

from secure_llm_proxy.audit.format import base64_text
from secure_llm_proxy.audit.notes import Checkpoint
from secure_llm_proxy.audit.syslog import Message, SyslogAddress, SyslogAway, SyslogLink
from secure_llm_proxy.settings import AuditSettings

EVERY_S = 10.0
_STOP_S = 1.0
_HANGS_S = 10.0
_KIND = "anchor"
_OPENING = b'{"t":"'
_LINE_BYTES_MAX = 4096


class Anchor(Protocol):
    """One place. Used by one thread; may block for seconds."""

    name: str
    leaves_host: bool

    def take(self, line: bytes, t: str) -> None:
        """Return when the line (JSON, no line feed) stands there. Raises `OSError`, `SyslogAway`."""
        ...

    def close(self) -> None: ...


class AnchorFile:
    """JSON lines, each synced before it counts. Whether the file is on this host's disk, only its owner knows."""

    name = "file"
    leaves_host = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, line: bytes, t: str) -> None:  # noqa: ARG002 - the line holds it
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        new = not self._path.exists()
        descriptor = os.open(self._path, flags, 0o640)
        try:
            content = _mend(descriptor) + line + b"\n"
            while content:
                content = content[os.write(descriptor, content) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def close(self) -> None:
        """Each line has a descriptor of its own."""


def _mend(descriptor: int) -> bytes:
    """What must stand before the next line. Half a line of ours, left by a crash, is cut off: no reader would take the file."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - _LINE_BYTES_MAX)
    torn = os.pread(descriptor, size - start, start).rpartition(b"\n")[2]
    if torn.startswith(_OPENING) or (torn and _OPENING.startswith(torn)):
        os.ftruncate(descriptor, size - len(torn))
        return b""
    return b"\n" if torn else b""


class AnchorSyslog:
    name = "syslog"

    def __init__(self, address: SyslogAddress, host: str) -> None:
        self.leaves_host = address.leaves_host
        self._link = SyslogLink(address, host)

    def take(self, line: bytes, t: str) -> None:
        message = Message(t, _KIND, line)
        try:
            self._link.send([message])
        except SyslogAway:
            # One is sent every minute at most where little happens: the receiver may have been started anew since.
            self._link.send([message])

    def close(self) -> None:
        self._link.close()


class _Place:
    """One anchor and the thread that serves it, so that a place that hangs holds up no other."""

    def __init__(self, anchor: Anchor, every_s: float, wake: Callable[[], None]) -> None:
        self.anchor = anchor
        self.n: int | None = None
        self.t: str | None = None
        self._why: str | None = None
        self._every_s = every_s
        self._wake = wake
        self._changed = threading.Condition()
        self._newest: tuple[Checkpoint, str] | None = None
        self._stopping = False
        self._busy_since_s: float | None = None
        self.thread = threading.Thread(target=self._run, name=f"audit anchor {anchor.name}", daemon=True)

    @property
    def trouble(self) -> str | None:
        why, since_s = self._why, self._busy_since_s
        if why is None and since_s is not None and time.monotonic() - since_s > _HANGS_S:
            why = "it does not answer"
        return why and f"Checkpoints do not reach the anchor {self.anchor.name}: {why}."

    def offer(self, checkpoint: Checkpoint, note: str) -> None:
        with self._changed:
            self._newest = (checkpoint, note)
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _run(self) -> None:
        free_at_s = float("-inf")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._newest is not None)
                self._changed.wait_for(lambda: self._stopping, max(0.0, free_at_s - time.monotonic()))
                newest, self._newest = self._newest, None
                stopping = self._stopping
            if newest is not None:
                free_at_s = time.monotonic() + self._every_s
                self._take(*newest)
            if stopping:
                self.anchor.close()
                return

    def _take(self, checkpoint: Checkpoint, note: str) -> None:
        before, first = self._why, self.n is None
        self._busy_since_s = time.monotonic()
        try:
            self.anchor.take(anchor_line(checkpoint, note), checkpoint.t)
        except (OSError, SyslogAway) as error:
            self._why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        else:
            self.n, self.t, self._why = checkpoint.size, checkpoint.t, None
        self._busy_since_s = None
        if before != self._why or first:
            self._wake()


class Anchors:
    """Takes checkpoints from the writer's loop. `wake` is called from a thread when a trouble begins or ends, and when the
    first checkpoint stands at a place.
    """

    def __init__(
        self, anchors: list[Anchor], *, every_s: float = EVERY_S, wake: Callable[[], None] = lambda: None
    ) -> None:
        self._places = [_Place(anchor, every_s, wake) for anchor in anchors]

    @classmethod
    def of(cls, settings: AuditSettings, host: str, *, wake: Callable[[], None] = lambda: None) -> Anchors:
        """The places that the settings name. Raises `OperatorError` for one that can't be understood."""
        anchors: list[Anchor] = []
        if settings.anchor_file is not None:
            anchors.append(AnchorFile(settings.anchor_file))
        address = anchor_address(settings)
        if address is not None:
            anchors.append(AnchorSyslog(address, host))
        return cls(anchors, wake=wake)

    def start(self) -> None:
        for place in self._places:
            place.thread.start()

    def offer(self, checkpoint: Checkpoint, note: str) -> None:
        """There is a new checkpoint; an older one that was still waiting is not missed. Waits for nothing."""
        for place in self._places:
            place.offer(checkpoint, note)

    def stop(self, patience_s: float = _STOP_S) -> None:
        """Take the last checkpoint out, whenever the one before went, if that is a matter of a moment."""
        for place in self._places:
            place.stop()
        deadline = time.monotonic() + patience_s
        for place in self._places:
            if place.thread.is_alive():
                place.thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def standing(self) -> int:
        """At how many places a checkpoint of this process stands."""
        return sum(place.n is not None for place in self._places)

    def troubles(self) -> list[tuple[str, str | None]]:
        """Name of each place, and a sentence while it is away."""
        return [(place.anchor.name, place.trouble) for place in self._places]

    def state(self) -> Mapping[str, object]:
        return {
            place.anchor.name: {
                "n": place.n,
                "t": place.t,
                "leaves_host": place.anchor.leaves_host,
                "trouble": place.trouble,
            }
            for place in self._places
        }


def anchor_address(settings: AuditSettings) -> SyslogAddress | None:
    """Where AUDIT_ANCHOR_SYSLOG leads; None: nowhere. Raises `OperatorError`."""
    if settings.anchor_syslog in {"", "none"}:
        return None
    return SyslogAddress.parse(settings.anchor_syslog, "AUDIT_ANCHOR_SYSLOG")


def anchor_line(checkpoint: Checkpoint, note: str) -> bytes:
    """A checkpoint as one line of JSON, as `audit verify --anchors` reads it."""
    return orjson.dumps(
        {
            "t": checkpoint.t,
            "log": checkpoint.log,
            "n": checkpoint.size,
            "root": base64_text(checkpoint.root),
            "note": note,
        }
    )
