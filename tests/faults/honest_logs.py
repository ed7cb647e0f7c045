"""R05's other half: logs with everything in them that can happen to an honest one, none of which may raise an alarm."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson

from secure_llm_proxy.audit import Genesis, initialise, verify
from secure_llm_proxy.audit.appender import Appender, Disk, Entry, LogUnavailable, Rhythm
from secure_llm_proxy.audit.format import subject_in
from secure_llm_proxy.audit.keystore import KeyStore
from secure_llm_proxy.audit.reading import BodyOpener
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.audit.segments import LogDirectories, SegmentState, segments_in
from secure_llm_proxy.audit.verification import Severity
from secure_llm_proxy.vocabulary.audit import ClearValue
from tests.faults.outcome import Outcome, Progress, Say
from tests.support.audit_log import KEK, Reports, appender, audit_settings, records_in

_FAULTS = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
_STEPS = ("batch",) * 8 + ("rhythm", "rhythm", "rotate", "stop", "crash", "crash", "jump", "worker-dies")


def honest_logs(outcome: Outcome, folder: Path, say: Say) -> None:
    """`rounds` logs of their own seeds; each is verified with every body opened and held to all checkpoints it ever told."""
    progress = Progress(say, outcome.rounds)
    for round_ in range(1, outcome.rounds + 1):
        home = folder / f"log-{round_}"
        _HonestLog(outcome, home, outcome.seed * 1_000_000 + round_).live()
        shutil.rmtree(home)
        progress.at(round_, f"{outcome.measured['records']:,.0f} records")
    for name in (
        "crashes",
        "failed_disks",
        "rotations",
        "key_rolls",
        "orphans",
        "torn_tails",
        "power_cuts",
        "clock_jumps",
    ):
        outcome.bar(met=outcome.measured.get(name, 0) > 0, otherwise=f"no {name} in any log: too little was tested")


class _Crash(Exception):
    """The process is gone at this system call."""


class _Disk(Disk):
    """Fails at random below the directories that are `angry`, writes short, and ends the process at the call that `crash_in`
    counts down to.
    """

    def __init__(self, choice: random.Random) -> None:
        self._choice = choice
        self.angry: frozenset[Path] = frozenset()
        self.crash_in: int | None = None
        self.synced: dict[int, int] = {}
        self.poisoned: set[int] = set()
        self.synced_after_failure = 0
        self.failures = 0

    def create(self, path: Path) -> int:
        self._live()
        self._fail(0.1, path)
        descriptor = super().create(path)
        inode = os.fstat(descriptor).st_ino
        self.synced[inode] = 0
        self.poisoned.discard(inode)
        return descriptor

    def write(self, descriptor: int, content: bytes | memoryview) -> int:
        self._fail(0.15, _path_of(descriptor))
        if self.crash_in is not None and self.crash_in <= 1:
            super().write(descriptor, content[: self._choice.randrange(len(content))])
        self._live()
        if self._choice.random() < 0.05:
            raise InterruptedError
        if self._choice.random() < 0.1:
            content = content[: self._choice.randint(1, len(content))]
        return super().write(descriptor, content)

    # Synced is what this disk remembers as such; the real one's opinion costs time and changes nothing.
    def sync_data(self, descriptor: int) -> None:
        self._sync(descriptor)

    def sync(self, descriptor: int) -> None:
        self._sync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self._live()
        super().truncate(descriptor, size)

    def _sync(self, descriptor: int) -> None:
        self._live()
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._fail(0.2, _path_of(descriptor))
            return
        if status.st_ino in self.poisoned:
            self.synced_after_failure += 1
        try:
            self._fail(0.2, _path_of(descriptor))
        except OSError:
            self.poisoned.add(status.st_ino)
            raise
        self.synced[status.st_ino] = status.st_size

    def _live(self) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in <= 0:
                raise _Crash

    def _fail(self, share: float, path: Path) -> None:
        if not self.angry.isdisjoint((path, *path.parents)) and self._choice.random() < share:
            self.failures += 1
            error = self._choice.choice(_FAULTS)
            raise OSError(error, os.strerror(error))


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


class _HonestLog:
    def __init__(self, outcome: Outcome, home: Path, seed: int) -> None:
        self._outcome = outcome
        self._seed = seed
        self._choice = random.Random(seed)
        self._settings = audit_settings(home)
        self._genesis: Genesis = initialise(self._settings)
        self._disk = _Disk(self._choice)
        self._second = home / "second" / "host" if self._choice.random() < 0.5 else None
        if self._second is not None:
            self._second.mkdir(parents=True)
        self._places = [place for place in (self._genesis.directory, self._second) if place is not None]
        # Half of the logs know persons, who are sealed by keys of their own.
        self._persons = [f"s_{number:016x}" for number in range(self._choice.choice((0, 4)))]
        self._key_store = KeyStore.open(self._settings.keys_directory, KeyRing.from_texts(KEK))
        self._offset_ns = 0
        self._rhythm = Rhythm(
            lines=self._choice.randint(2, 30),
            dirty_s=self._choice.choice((0.0005, 10.0)),
            idle_s=self._choice.choice((0.001, 60.0)),
            epoch_s=self._choice.choice((0.002, 3600.0)),
        )
        self._segment_bytes_max = self._choice.choice((2_000, 8_000, 1 << 20))
        self._anchors: list[str] = []
        self._workers = [f"{number:032x}" for number in range(1, 4)]
        self._counters = Counter[str]()
        # Sent and not yet acknowledged, in order: what a worker's journal would send again.
        self._queue: list[Entry] = []
        self._durable: list[str] = []
        self._running: list[tuple[str, str, str]] = []
        self._made = 0
        self._reports = Reports()
        self._log = self._appender()

    def live(self) -> None:
        self._open()
        for _ in range(self._choice.randint(4, 28)):
            angry = [place for place in self._places if self._choice.random() < 0.3]
            self._disk.angry = frozenset(angry)
            try:
                self._step(self._choice.choice(_STEPS))
            except _Crash:
                self._after_crash()
        self._disk.angry = frozenset()
        self._end()
        self._judge()

    # --- what happens -------------------------------------------------------------------------------------------------

    def _step(self, step: str) -> None:
        if step == "batch":
            self._queue += [self._event() for _ in range(self._choice.randint(1, 12))]
            self._send()
        elif step == "crash":
            self._disk.crash_in = self._choice.randint(1, 6)
            self._queue += [self._event() for _ in range(self._choice.randint(1, 6))]
            self._send()
            self._tend()
            self._disk.crash_in = None
        elif step == "rhythm":
            time.sleep(0.0006)
            self._tend()
        elif step == "rotate":
            self._unless_away(lambda: self._log.rotate(self._workers))
        elif step == "stop":
            self._stop()
            self._log = self._appender()
            self._open()
        elif step == "jump":
            self._outcome.count("clock_jumps")
            self._offset_ns = self._choice.choice((-3_600, 86_400, 0, -600, 1)) * 10**9
        elif step == "worker-dies":
            self._bury(self._choice.choice(self._workers))

    def _send(self) -> None:
        """What a writer does with what has arrived: until it is durable."""
        if self._queue and self._unless_away(lambda: self._log.commit(self._queue, self._workers)):
            self._durable += [entry.id for entry in self._queue]
            self._queue.clear()
        self._tend()

    def _tend(self) -> None:
        self._unless_away(lambda: self._log.keep_rhythm(self._workers))

    def _unless_away(self, act: Callable[[], None]) -> bool:
        """Whether it worked. A log that became unavailable is opened anew, as the writer does it every half second."""
        try:
            act()
        except LogUnavailable:
            self._open()
            return False
        return True

    def _stop(self) -> None:
        """In order: what is queued first, and the segment closed. A disk that refuses leaves it as a crash would."""
        try:
            self._log.close_segment("stop")
        except OSError:
            self._outcome.count("stops_refused")

    def _bury(self, worker: str) -> None:
        """What it had not sent is gone with it; its open exchanges are closed as orphans, though a worker that was only out of reach
        may yet end one itself.
        """
        self._queue = [each for each in self._queue if each.worker != worker]
        opened = self._log.carry.open
        self._running = [each for each in self._running if each[2] != worker or each[0] in opened]
        orphans = [
            self._entry("llm.end", sid=start, st="orphan", rid=exchange, worker="f" * 32)
            for start, (exchange, owner) in opened.items()
            if owner == worker
        ]
        self._outcome.count("orphans", len(orphans))
        if self._choice.random() < 0.8:
            self._running = [each for each in self._running if each[2] != worker]
        self._queue += orphans
        self._send()

    def _after_crash(self) -> None:
        self._outcome.count("crashes")
        self._disk.crash_in = None
        self._disk.angry = frozenset()
        # Who comes after a crash cannot know of a sync that failed just before it.
        self._disk.poisoned.clear()
        opened = self._log._open
        if opened is not None:
            os.close(opened.descriptor)
        if self._choice.random() < 0.5:
            self._cut_power()
        self._log = self._appender()
        seen = self._log.carry.seen
        arrived = [entry for entry in self._queue if entry.counter <= seen.get(entry.worker, 0)]
        self._durable += [entry.id for entry in arrived]
        self._queue = [entry for entry in self._queue if entry not in arrived]
        self._open()
        self._send()

    def _cut_power(self) -> None:
        for segment in LogDirectories(self._genesis.directory, self._second).segments():
            if segment.state is SegmentState.OPEN:
                status = segment.path.stat()
                kept = self._choice.randint(self._disk.synced.get(status.st_ino, status.st_size), status.st_size)
                os.truncate(segment.path, kept)
                self._outcome.count("power_cuts")

    def _open(self) -> None:
        """Try until a segment is open; a disk that stays angry calms down in the end."""
        for attempt in range(50):
            self._disk.angry = self._disk.angry if attempt < 5 else frozenset()
            try:
                self._log.open_segment(self._workers)
            except OSError:
                self._outcome.count("opens_refused")
            else:
                return
        raise AssertionError("a calm disk refuses to open a segment")

    def _end(self) -> None:
        self._finish()
        self._key_store.close()

    def _finish(self) -> None:
        self._send()
        for start, exchange, worker in self._running:
            self._queue.append(self._entry("llm.end", sid=start, st="complete", rid=exchange, worker=worker))
        self._send()
        if self._choice.random() < 0.7:
            self._log.close_segment("stop")
        elif (opened := self._log._open) is not None:
            # Copied while it runs.
            os.close(opened.descriptor)

    # --- records ------------------------------------------------------------------------------------------------------

    def _event(self) -> Entry:
        what = self._choice.random()
        worker = self._choice.choice(self._workers)
        if what < 0.4:
            entry = self._entry("llm.start", worker=worker)
            self._running.append((entry.id, entry.exchange_id, worker))
            return entry
        if what < 0.8 and self._running:
            start, exchange, owner = self._running.pop(self._choice.randrange(len(self._running)))
            return self._entry("llm.end", sid=start, st="complete", rid=exchange, worker=owner)
        return self._entry("llm.refused", worker=worker, why='ü"\\\n\u2028', size=self._choice.getrandbits(53))

    def _entry(self, kind: str, *, worker: str, rid: str | None = None, **clear: str | int) -> Entry:
        self._made += 1
        self._counters[worker] += 1
        identifier, exchange = f"R{self._made:06d}", rid or f"X{self._made:06d}"
        members: dict[str, ClearValue] = {"ty": kind, "id": identifier, "rid": exchange, **clear}
        if self._persons and self._choice.random() < 0.7:
            members["sub"] = self._choice.choice(self._persons)
        sid = clear.get("sid")
        return Entry(
            worker,
            self._counters[worker],
            orjson.dumps(members),
            self._choice.randbytes(self._choice.choice((0, 1, 60, 900))),
            kind,
            identifier,
            exchange,
            sid if isinstance(sid, str) else None,
            subject_in(members),
        )

    def _appender(self) -> Appender:
        made = appender(
            self._genesis,
            disk=self._disk,
            reports=self._reports,
            segment_bytes_max=self._segment_bytes_max,
            rhythm=self._rhythm,
            on_checkpoint=lambda _, note: self._anchors.append(note),
            now_ns=lambda: time.time_ns() + self._offset_ns,
            key_store=self._key_store,
            second=self._second,
        )
        for worker, counter in made.carry.seen.items():
            assert counter <= self._counters[worker], "the log knows of a record that nobody sent"
        return made

    # --- judgement ----------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        outcome, directory = self._outcome, self._genesis.directory
        report = verify(
            directory,
            genesis_public_key=self._genesis.owner_public_key,
            opener=BodyOpener(KEK, keys_directory=self._settings.keys_directory),
            anchors=self._anchors,
            also=self._second,
        )
        written = Counter(record.id for record in records_in(directory, also=self._second))
        lost = [each for each in self._durable if each not in written]
        alarms = [str(finding) for finding in report.findings if finding.severity is not Severity.NOTE]
        outcome.count("logs")
        outcome.count("records", report.records)
        outcome.count("segments", report.segments)
        outcome.count("checkpoints", report.checkpoints)
        outcome.count("key_rolls", report.key_rolls)
        outcome.count("anchors", len(self._anchors))
        outcome.count("failed_disks", self._disk.failures)
        outcome.count("rotations", self._reports.names.count("segment_closed"))
        outcome.count("torn_tails", self._reports.names.count("torn_tail"))
        outcome.count("false_alarms", bool(alarms))
        if self._second is not None:
            outcome.count("segments_in_second_directory", len(segments_in(self._second)))
        outcome.count("bodies_opened", report.bodies_opened)
        seed = f"seed {self._seed}"
        outcome.bar(met=report.ok, otherwise=f"{seed}: {alarms[:3]}")
        outcome.bar(
            met=report.bodies_opened == report.records,
            otherwise=f"{seed}: {report.bodies_opened} of {report.records} bodies open",
        )
        outcome.bar(met=not lost, otherwise=f"{seed}: lost {lost[:3]}")
        outcome.bar(met=max(written.values(), default=1) == 1, otherwise=f"{seed}: a record stands there twice")
        outcome.bar(
            met=report.anchors_met == len(self._anchors),
            otherwise=f"{seed}: {report.anchors_met} of {len(self._anchors)} checkpoints that were told are in the log",
        )
        outcome.bar(
            met=not self._disk.synced_after_failure,
            otherwise=f"{seed}: a poisoned file was synced again",
        )
