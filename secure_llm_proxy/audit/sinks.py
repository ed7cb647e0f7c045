"""The second place for every record: a file of whole sealed lines, or syslog without their bodies.

A thread follows the log and carries its lines to the sink, so that a sink that hangs can hold up nobody but who waits for
it, and that for a bounded time. Policy `all` waits (and the writer turns everybody away while the sink is gone); policy
`any` does not, and tells of it. Either way the sink gets what it missed when it is back, from the segments.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import orjson

from secure_llm_proxy.audit.following import LogFollower, LogLost, NumberedLine, Settled
from secure_llm_proxy.audit.format import LINE_BYTES_MAX, base64_text, leaf
from secure_llm_proxy.audit.segments import SINK_NAME, LogDirectories
from secure_llm_proxy.audit.syslog import Message, SyslogAddress, SyslogAway, SyslogLink
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings

WAIT_S = 1.0
_RETRY_S = 0.5
_SAVE_S = 1.0
_HANGS_S = 5.0
_SETTING = "AUDIT_SINK"

_INDEX = re.compile(rb'\{"k":"[a-z]{2,4}",.{0,400}?"n":(\d{1,19}),', re.DOTALL)
_TIME = re.compile(rb'"t":"([^"]{20,40})"')
_KIND = re.compile(rb'"ty":"([a-z._]{1,41})"')
_BODIES = (b',"ct":"', b',"pt":"')
_TOLD_OF_OTHERS = ("k", "n", "t", "log", "seg", "sid", "kid", "kc", "root", "note", "epk", "by", "reason", "lines")


class SinkAway(Exception):
    """The sink did not take lines. The text says why, for the operator."""


class Sink(Protocol):
    """Where lines go. Used by one thread; may block, but should not for more than seconds."""

    def resume(self) -> NumberedLine | None:
        """The last line that it holds; None when it holds none, or can't tell. Raises `SinkAway`, `OSError`."""
        ...

    def take(self, lines: Sequence[NumberedLine]) -> None:
        """Return when the sink has them all, as safely as it can. Raises `SinkAway`, `OSError`; then none counts as taken."""
        ...

    def close(self) -> None: ...


class FileSink:
    """Appends whole lines and syncs. A file that was moved away (logrotate) is begun anew; one cut short is gone on with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        # Bytes of the file that are whole lines and synced.
        self._size = 0
        self._doubtful = False
        # Which file `_size` is told of.
        self._identity: tuple[int, int] | None = None

    def resume(self) -> NumberedLine | None:
        try:
            with self._path.open("rb") as stream:
                return self._last_line(stream)
        except FileNotFoundError:
            return None

    def _last_line(self, stream: BinaryIO) -> NumberedLine | None:
        size = stream.seek(0, os.SEEK_END)
        start = stream.seek(max(0, size - 2 * LINE_BYTES_MAX))
        whole, newline, _torn = stream.read().rpartition(b"\n")
        if not newline:
            if size:
                raise SinkAway(f"{self._path} holds something else than lines of the log")
            return None
        raw = whole.rpartition(b"\n")[2]
        found = _INDEX.match(raw)
        if found is None:
            raise SinkAway(f"{self._path} holds something else than lines of the log")
        # What a crash left behind the last line is cut off before the next one is written.
        self._identity = _identity_of(os.fstat(stream.fileno()))
        self._size, self._doubtful = start + len(whole) + 1, True
        return NumberedLine(int(found[1]), raw)

    def take(self, lines: Sequence[NumberedLine]) -> None:
        descriptor = self._opened()
        content = memoryview(b"".join([line.raw + b"\n" for line in lines]))
        size = len(content)
        try:
            while content:
                content = content[os.write(descriptor, content) :]
            os.fsync(descriptor)
        except OSError as error:
            # After a failed sync nobody knows what of it is on disk: it is written again from the last good line on.
            self._doubtful = True
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
            self.close()
            raise SinkAway(f"{self._path}: {error.strerror or error}") from None
        self._size += size

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _opened(self) -> int:
        descriptor = self._descriptor
        try:
            if descriptor is not None and not self._is_still(descriptor):
                self.close()
                descriptor = None
            if descriptor is None:
                descriptor = self._open()
            self._mend(descriptor)
        except OSError as error:
            self.close()
            raise SinkAway(f"{self._path}: {error.strerror or error}") from None
        return descriptor

    def _is_still(self, descriptor: int) -> bool:
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        return _identity_of(named) == _identity_of(os.fstat(descriptor))

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        new = not self._path.exists()
        descriptor = self._descriptor = os.open(self._path, flags, 0o640)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise SinkAway(f"{self._path} is no regular file")
        if _identity_of(found) != self._identity:
            # Another file under the name: all that the old one held is somebody else's care now.
            self._identity, self._size, self._doubtful = _identity_of(found), 0, False
        if new:
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        return descriptor

    def _mend(self, descriptor: int) -> None:
        """Afterwards the file ends with a line feed, and `_size` is its size."""
        size = os.fstat(descriptor).st_size
        if self._doubtful and size > self._size:
            os.ftruncate(descriptor, self._size)
            size = self._size
        self._doubtful = False
        if size > self._size and os.pread(descriptor, 1, size - 1) != b"\n":
            size += os.write(descriptor, b"\n")
        self._size = size


def _identity_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


class SyslogSink:
    """One message for each line: what is clear in it, and its leaf hash (`h`). Never a body."""

    def __init__(self, link: SyslogLink) -> None:
        self._link = link

    def resume(self) -> NumberedLine | None:
        return None

    def take(self, lines: Sequence[NumberedLine]) -> None:
        try:
            self._link.send([message_of(line) for line in lines])
        except SyslogAway as error:
            raise SinkAway(str(error)) from None

    def close(self) -> None:
        self._link.close()


def message_of(line: NumberedLine) -> Message:
    """A line of the log as it may leave: without body, wrapped keys and what one segment carries for the next."""
    raw, h = line.raw, base64_text(leaf(line.raw))
    t = found[1].decode() if (found := _TIME.search(raw)) else "-"
    kind = found[1].decode() if (found := _KIND.search(raw)) else "-"
    brief = orjson.dumps({"n": line.n, "t": t, "ty": kind, "h": h})
    if raw.startswith(b'{"k":"rec",'):
        # In a value the quotes would be escaped, and no worker may use these names.
        end = max(raw.find(mark) for mark in _BODIES)
        return Message(t, kind, b'%b,"h":"%b"}' % (raw[:end], h.encode()), brief)
    try:
        members = orjson.loads(raw)
        told = {name: members[name] for name in _TOLD_OF_OTHERS if name in members}
    except (orjson.JSONDecodeError, TypeError):
        return Message(t, kind, brief)
    return Message(t, str(told.get("k", "-")), orjson.dumps({**told, "h": h}), brief)


def sink_of(settings: AuditSettings, host: str) -> FileSink | SyslogSink | None:
    """What AUDIT_SINK names; None when it names nothing. Raises `OperatorError` when nobody can tell what it names."""
    text = settings.sink
    if not text:
        return None
    kind, _, rest = text.partition(":")
    if kind == "file" and rest.startswith("/"):
        return FileSink(Path(rest))
    if kind == "syslog":
        return SyslogSink(SyslogLink(SyslogAddress.parse(rest, _SETTING), host))
    raise OperatorError(
        f"{_SETTING} must be file:/path, syslog:/dev/log, syslog:tcp://host:port or syslog:udp://host:port."
    )


class SecondSink:
    """Carries the log to `sink` in a thread. The writer's loop tells it how far the log is settled, and asks how far it came.

    `needed`: policy `all`. `wake` is called from the thread when the sink goes away, comes back, or missed something.
    """

    def __init__(
        self,
        sink: Sink,
        directories: LogDirectories,
        *,
        name: str,
        needed: bool,
        report: Callable[..., None],
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.needed = needed
        self._why: str | None = None
        self._moved_s = time.monotonic()
        self._missed: list[str] = []
        self._wake = wake
        self._sink = sink
        self._directories = directories
        self._report = report
        self._follower: LogFollower | None = None
        self._position = directories.first / SINK_NAME
        self._saved_s = float("-inf")
        self._changed = threading.Condition()
        self._settled = Settled(0, 0)
        self._taken_n = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="audit sink", daemon=True)

    # --- for the writer's loop ----------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """A sentence while it is away, or takes nothing of what there is."""
        why = self._why
        if why is None and self.behind and time.monotonic() - self._moved_s > _HANGS_S:
            why = "it takes nothing"
        return why and f"The second sink {self.name} is away: {why}."

    @property
    def behind(self) -> int:
        """Lines that are settled and not taken."""
        return max(0, self._settled.n - self._taken_n)

    def state(self) -> dict[str, object]:
        """What the state file tells of it."""
        policy = "all" if self.needed else "any"
        return {"policy": policy, "behind": self.behind, "trouble": self.trouble}

    def missed(self) -> list[str]:
        """A sentence for each gap since the last call: lines that will never stand in the sink."""
        if not self._missed:
            return []
        missed, self._missed = self._missed, []
        return missed

    def start(self, settled: Settled) -> None:
        self._settled = settled
        self._thread.start()

    def tell(self, settled: Settled) -> None:
        """There may be more to take. Waits for nothing."""
        if settled != self._settled:
            with self._changed:
                if not self.behind:
                    self._moved_s = time.monotonic()
                self._settled = settled
                self._changed.notify_all()

    def has_taken(self, settled: Settled, patience_s: float = WAIT_S) -> bool:
        """Wait until all lines below `settled` were taken, `patience_s` at most, and less when the sink is known to be away."""
        self.tell(settled)
        with self._changed:
            self._changed.wait_for(lambda: self._taken_n >= settled.n or self._why is not None, patience_s)
            return self._taken_n >= settled.n

    def stop(self, settled: Settled, patience_s: float = WAIT_S) -> None:
        """Give it a moment to take the rest, and leave it. A thread that hangs ends with the process."""
        self.has_taken(settled, patience_s)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(patience_s)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                moved = self._carry()
            except (SinkAway, LogLost, OSError) as error:
                self._fail(str(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, _RETRY_S)
                continue
            if not moved:
                self._save()
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or self._settled.n > self._taken_n)
        self._save()
        self._sink.close()
        if self._follower is not None:
            self._follower.close()

    def _carry(self) -> bool:
        """Take the next lines; False when there were none."""
        if self._follower is None:
            self._follower = self._resume()
        follower, settled = self._follower, self._settled
        lines = follower.read(settled)
        if follower.missed is not None:
            first, last = follower.missed
            follower.missed = None
            self._report("sink_missed_lines", sink=self.name, first=first, last=last)
            self._missed.append(
                f"Lines {first} to {last} were gone before the second sink {self.name} could take them."
            )
            self._wake()
        if lines:
            try:
                self._take_twice(lines)
            except (SinkAway, OSError):
                follower.back_to(lines[0].n)
                raise
        with self._changed:
            self._taken_n = follower.n or 0
            was_away, self._why = self._why, None
            self._moved_s = time.monotonic()
            self._changed.notify_all()
        if was_away is not None:
            self._wake()
        if time.monotonic() - self._saved_s > _SAVE_S:
            self._save()
        return bool(lines)

    def _take_twice(self, lines: Sequence[NumberedLine]) -> None:
        """A receiver that was started anew is no trouble: the first failure costs a new connection only."""
        try:
            self._sink.take(lines)
        except (SinkAway, OSError):
            self._sink.take(lines)

    def _fail(self, why: str) -> None:
        with self._changed:
            known, self._why = self._why, why
            self._changed.notify_all()
        if known is None:
            self._wake()

    def _resume(self) -> LogFollower:
        """Go on where the sink ends, else where we were; a new sink begins with the segment that is open."""
        last = self._sink.resume()
        if last is None:
            return LogFollower(self._directories, self._saved())
        if last.n >= self._settled.n:
            raise SinkAway("it is ahead of the log: it belongs to another one, or to one that was restored since")
        follower = LogFollower(self._directories, last.n)
        (same, *_) = follower.read(Settled(self._settled.segment, min(last.n + 1, self._settled.n))) or (None,)
        if same is not None and same.n == last.n and same.raw != last.raw:
            follower.close()
            raise SinkAway(f"its last line is not line {last.n} of the log: it belongs to another one")
        follower.back_to(last.n + 1)
        follower.missed = None
        return follower

    def _saved(self) -> int | None:
        try:
            members = orjson.loads(self._position.read_bytes())
            n = members["n"] if members["sink"] == self.name else None
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
            return None
        return n if isinstance(n, int) and 0 <= n <= self._settled.n else None

    def _save(self) -> None:
        """Where we are, for the next start of the writer. What is lost of it is sent twice."""
        if self._follower is None or self._follower.n is None:
            return
        self._saved_s = time.monotonic()
        temporary = self._position.with_name(f"{SINK_NAME}.tmp")
        with contextlib.suppress(OSError):
            temporary.write_bytes(orjson.dumps({"sink": self.name, "n": self._follower.n}) + b"\n")
            temporary.chmod(0o640)
            temporary.rename(self._position)
