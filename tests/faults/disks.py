"""R06 to R10 and R12: a disk that fails, is full, hangs, refuses or writes less than asked; a clock that jumps."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent

from secure_llm_proxy.audit import SocketJournal
from secure_llm_proxy.foundation.errors import ErrorCode, Unavailable
from secure_llm_proxy.settings import AuditSettings
from tests.faults.outcome import Outcome, Progress, Say, end_workers, end_writer, fault_settings, judge_log
from tests.support.audit_load import Workers
from tests.support.audit_log import WriterProcess, event, records_in, wait_until, writer_process
from tests.support.fault_shim import FaultShim
from tests.support.programs import find_program

_WORKERS = 2
_MIB = 1 << 20
_HOUR_NS = 3_600 * 10**9
_MOUNT_PATIENCE_S = 30
# What a writer may be short of, and how the disk says so: (error of creating, error of writing).
_DENIALS = (
    (errno.EROFS, errno.EROFS),
    (errno.EACCES, errno.EIO),
    (errno.ENFILE, errno.EIO),
    (errno.EMFILE, errno.ENOSPC),
)


def fail_syncs(outcome: Outcome, folder: Path, say: Say) -> None:
    """R06. The n-th sync from now fails with EIO, for n = 1, 2, 3 … rounds, every fourth time twice or more in a row, and what
    was written since the last good sync is gone, as a kernel may have it. No file may ever be synced again after that.
    """
    settings, progress = fault_settings(folder), Progress(say, outcome.rounds)
    with (
        FaultShim(folder / "faults", settings.directory, seed=outcome.seed) as shim,
        writer_process(settings, shim.environment()) as writer,
        Workers(settings, folder, count=_WORKERS, seed=outcome.seed) as workers,
    ):
        shim.set(drop_unsynced=1)
        workers.grow(50)
        for n in range(1, outcome.rounds + 1):
            failed, times = shim.count("syncs_failed"), 1 if n % 4 else 1 + n // 4 % 4
            shim.fail_sync(n, times=times, error=errno.EIO)
            wait_until(lambda goal=failed + times: shim.count("syncs_failed") >= goal, writer.said)  # type: ignore[misc]
            progress.at(n, f"{workers.acknowledged():,} records acknowledged")
        workers.grow(50)
        end_workers(outcome, workers)
        end_writer(outcome, writer)
        outcome.count("syncs_failed", shim.count("syncs_failed"))
        again = shim.synced_after_failure()
        outcome.count("poisoned_files_synced_again", len(again))
        outcome.bar(met=not again, otherwise=f"poisoned files were synced again: {again[:5]}")
    judge_log(outcome, settings, workers.ledger())


def fill_disk(outcome: Outcome, folder: Path, say: Say) -> None:
    """R07. A small tmpfs is filled to its last byte under load, and freed again. Needs a mount namespace of its own."""
    disk = folder / "disk"
    disk.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={(16 + 4 * outcome.rounds) * _MIB}", "none", str(disk))
    try:
        _fill(outcome, folder, disk, say)
    finally:
        _run("umount", str(disk))


def _fill(outcome: Outcome, folder: Path, disk: Path, say: Say) -> None:
    # Not short of space before the last byte is taken.
    settings = fault_settings(folder, free_bytes_min=0, free_percent_min=0, reserve_bytes=_MIB)
    settings = settings.model_copy(update={"directory": disk / "audit"})
    filler = disk / "filler"

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()

    with writer_process(settings) as writer:
        # Nobody waits for a disk that is full: what is new is turned away at once. The writer's alarm tells of it.
        _survive(
            outcome,
            settings,
            writer,
            folder,
            say,
            [full],
            refused_bar_s=1.0,
            journal_tells=False,
            told=('"what": "room"',),
        )


def _run(program: str, *arguments: str) -> None:
    subprocess.run([find_program(program, package="mount"), *arguments], check=True, timeout=_MOUNT_PATIENCE_S)


def deny_disk(outcome: Outcome, folder: Path, say: Say) -> None:
    """R09. In turn: read-only, permission taken away, no more file handles in the system or in the process."""
    settings = fault_settings(folder)
    with (
        FaultShim(folder / "faults", settings.directory, seed=outcome.seed) as shim,
        writer_process(settings, shim.environment()) as writer,
    ):

        def denied(create: int, write: int) -> Callable[[], contextlib.AbstractContextManager[None]]:
            @contextlib.contextmanager
            def during() -> Iterator[None]:
                shim.set(create_errno=create)
                shim.fail_writes(error=write)
                yield
                shim.heal()

            return during

        _survive(outcome, settings, writer, folder, say, [denied(*errors) for errors in _DENIALS])


def hang_writer(outcome: Outcome, folder: Path, say: Say) -> None:
    """R08. SIGSTOP to the writer for longer than anybody waits, as a disk that hangs does to it."""
    settings = fault_settings(folder)
    with writer_process(settings) as writer:

        @contextlib.contextmanager
        def stopped() -> Iterator[None]:
            writer.signal(signal.SIGSTOP)
            yield
            # The queues meet their bound while nobody takes from them.
            gevent.sleep(2.0)
            writer.signal(signal.SIGCONT)

        _survive(outcome, settings, writer, folder, say, [stopped], told=(), body_bytes=40_000)
    queued = outcome.measured["queued_bytes_max"]
    outcome.bar(
        # As much again for ends, and one event may overshoot either.
        met=_MIB <= queued <= 2 * _MIB + 700_000,
        otherwise=f"a worker queued {queued:,.0f} bytes, and 1 MiB for starts and 2 MiB for ends were its bounds",
    )


def slow_disk(outcome: Outcome, folder: Path, say: Say) -> None:
    """R08. Every sync takes 200 ms longer: everything is slow, nothing is refused."""
    settings, progress = fault_settings(folder), Progress(say, outcome.rounds)
    with (
        FaultShim(folder / "faults", settings.directory, seed=outcome.seed) as shim,
        writer_process(settings, shim.environment()) as writer,
        # What waits here is the machine, not the disk alone: it may be busy.
        Workers(settings, folder, count=_WORKERS, seed=outcome.seed, patience_s=30.0) as workers,
    ):
        shim.set(sync_delay_us=200_000)
        for round_ in range(1, outcome.rounds + 1):
            workers.grow(50)
            progress.at(round_)
        shim.heal()
        end_workers(outcome, workers)
        end_writer(outcome, writer)
    judge_log(outcome, settings, workers.ledger())
    outcome.bar(met=outcome.measured["refused"] == 0, otherwise="records were refused, although the disk was only slow")


def shorten_writes(outcome: Outcome, folder: Path, say: Say) -> None:
    """R10. One write in a hundred takes a part only, one is interrupted. A round is 200 records."""
    settings, progress = fault_settings(folder, segment_bytes_max=256 << 10), Progress(say, outcome.rounds)
    with (
        FaultShim(folder / "faults", settings.directory, seed=outcome.seed) as shim,
        writer_process(settings, shim.environment()) as writer,
        Workers(settings, folder, count=_WORKERS, seed=outcome.seed) as workers,
    ):
        shim.set(short_ppm=10_000, interrupt_ppm=10_000)
        for round_ in range(1, outcome.rounds + 1):
            workers.grow(200)
            progress.at(round_)
        wait_until(lambda: min(_nervous(shim)) > 0, writer.said)
        end_workers(outcome, workers)
        end_writer(outcome, writer)
        shortened, interrupted = _nervous(shim)
        outcome.count("writes_shortened", shortened)
        outcome.count("writes_interrupted", interrupted)
    judge_log(outcome, settings, workers.ledger())
    outcome.bar(met=not outcome.measured["crashed_segments"], otherwise="a short write cost a segment")


def _nervous(shim: FaultShim) -> tuple[int, int]:
    return shim.count("writes_shortened"), shim.count("writes_interrupted")


def jump_clock(outcome: Outcome, folder: Path, say: Say) -> None:
    """R12. The wall clock of the writer and of the workers jumps by an hour, a day and ten years, back and forth."""
    settings, progress = fault_settings(folder, segment_bytes_max=64 << 10), Progress(say, outcome.rounds)
    jumps = itertools.cycle((-_HOUR_NS, 24 * _HOUR_NS, 0, 87_600 * _HOUR_NS, -87_600 * _HOUR_NS, 0))
    with (
        FaultShim(folder / "faults", settings.directory, seed=outcome.seed) as shim,
        writer_process(settings, shim.environment()) as writer,
        Workers(
            settings, folder, count=_WORKERS, seed=outcome.seed, environment=shim.environment(), patience_s=30.0
        ) as workers,
    ):
        for round_ in range(1, outcome.rounds + 1):
            workers.grow(100)
            shim.set(clock_offset_ns=next(jumps))
            progress.at(round_)
        workers.grow(100)
        end_workers(outcome, workers)
        end_writer(outcome, writer)
    judge_log(outcome, settings, workers.ledger())
    times = [record.t for record in records_in(settings.directory)]
    outcome.count("jumps_back_in_the_log", sum(later < earlier for earlier, later in itertools.pairwise(times)))
    outcome.bar(met=outcome.measured["jumps_back_in_the_log"] > 0, otherwise="no jump shows in the log")
    outcome.bar(met=outcome.measured["refused"] == 0, otherwise="a jump of the clock refused records")


def _survive(
    outcome: Outcome,
    settings: AuditSettings,
    writer: WriterProcess,
    folder: Path,
    say: Say,
    outages: list[Callable[[], contextlib.AbstractContextManager[None]]],
    *,
    refused_bar_s: float | None = None,
    journal_tells: bool = True,
    told: tuple[str, ...] = ('"event": "log_unavailable"', '"event": "log_back"'),
    body_bytes: int = 300,
) -> None:
    """One outage a round under load: refused with 503 in time, trouble told, back by itself, nothing lost.

    `told`: what the writer says, each at least once an outage.
    """
    progress, choice, pid = Progress(say, outcome.rounds), random.Random(outcome.seed), writer.pid
    # The product's own where times are judged; less where many tests wait.
    patience_s = 2.0 if outcome.judges_times else 0.5
    probe = SocketJournal(settings.model_copy(update={"patience_s": patience_s}))
    with Workers(
        settings,
        folder,
        count=_WORKERS,
        seed=outcome.seed,
        patience_s=patience_s,
        body_bytes=body_bytes,
        queue_bytes_max=_MIB,
    ) as workers:
        for round_ in range(1, outcome.rounds + 1):
            workers.grow(choice.randrange(10, 200))
            _recovered(probe)
            with outages[round_ % len(outages)]():
                began_s = time.monotonic()
                refused_s = _refusal(probe, outcome)
                outcome.time("refused_s_max", refused_s, bar_s=refused_bar_s or patience_s + 0.5)
                if journal_tells:
                    wait_until(lambda: probe.trouble() is not None, writer.said, sleep=gevent.sleep)
                    outcome.time("trouble_told_s_max", time.monotonic() - began_s, bar_s=patience_s + 1.5)
            began_s = time.monotonic()
            _recovered(probe)
            outcome.time("recovered_s_max", time.monotonic() - began_s, bar_s=5.0)
            progress.at(round_, f"{workers.acknowledged():,} records acknowledged")
        workers.grow(50)
        end_workers(outcome, workers)
    probe.close()
    end_writer(outcome, writer)
    said = writer.said()
    outcome.bar(
        met=writer.pid == pid and said.count('"event": "writer_started"') == 1, otherwise="the writer was restarted"
    )
    for words in told:
        outcome.bar(
            met=said.count(words) >= outcome.rounds,
            otherwise=f"the writer did not say {words} of each outage: {said[-500:]}",
        )
    judge_log(outcome, settings, workers.ledger())


def _refusal(probe: SocketJournal, outcome: Outcome) -> float:
    """Record until refused; how long the refusal took."""
    deadline = time.monotonic() + _MOUNT_PATIENCE_S
    while time.monotonic() < deadline:
        began_s = time.monotonic()
        try:
            probe.record(event())
        except Unavailable as refusal:
            outcome.bar(met=refusal.code is ErrorCode.AUDIT_UNAVAILABLE, otherwise=f"refused with {refusal.code}")
            return time.monotonic() - began_s
        gevent.sleep(0.01)
    outcome.bar(met=False, otherwise="records were accepted although none can be written")
    return 0.0


def _recovered(probe: SocketJournal) -> None:
    """Return when a record is durable again."""
    deadline = time.monotonic() + _MOUNT_PATIENCE_S
    while True:
        try:
            probe.record(event())
        except Unavailable:
            assert time.monotonic() < deadline, probe.trouble()
            gevent.sleep(0.02)
        else:
            return


def has_own_mounts() -> bool:
    """Whether a file system that is mounted here is seen by nobody else."""
    return os.environ.get(OWN_MOUNTS) == "yes"


OWN_MOUNTS = "FAULTS_HAVE_OWN_MOUNTS"


def own_mounts_command() -> list[str]:
    """What to put before a command that is to have a mount namespace of its own."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [find_program("unshare", package="util-linux"), *rights, "--mount"]
