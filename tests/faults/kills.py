"""R01 to R04: the writer, workers, everything at once; and several logs side by side."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from secure_llm_proxy.audit.segments import SegmentState, host_directory, segments_in
from secure_llm_proxy.settings import AuditSettings
from tests.faults.outcome import Outcome, Progress, Say, end_workers, end_writer, fault_settings, judge_log
from tests.support.audit_load import Workers
from tests.support.audit_log import records_in, writer_process
from tests.support.fault_shim import FaultShim

# A machine that is busy with other tests is no fault of the log's.
_LONG_S = 30.0


def _workers(outcome: Outcome) -> int:
    """A short run makes do with two: each takes a third of a second to start."""
    return 3 if outcome.rounds > 10 else 2


def kill_writer(outcome: Outcome, folder: Path, say: Say) -> None:
    """R01. SIGKILL to the writer at a random moment of each round, while workers record."""
    settings, choice, progress = fault_settings(folder), random.Random(outcome.seed), Progress(say, outcome.rounds)
    with (
        writer_process(settings) as writer,
        Workers(settings, folder, count=_workers(outcome), seed=outcome.seed) as workers,
    ):
        for round_ in range(1, outcome.rounds + 1):
            workers.grow(choice.randrange(1, 250))
            writer.kill()
            began_s = time.monotonic()
            writer.start()
            outcome.time("writer_back_s_max", time.monotonic() - began_s, bar_s=2.0)
            progress.at(round_, f"{workers.acknowledged():,} records acknowledged")
        workers.grow(200)
        end_workers(outcome, workers)
        end_writer(outcome, writer)
    judge_log(outcome, settings, workers.ledger(), writer_deaths=outcome.rounds)
    outcome.bar(
        met=outcome.measured["segments"] >= outcome.rounds + 1, otherwise="a start of the writer did not open a segment"
    )


def kill_workers(outcome: Outcome, folder: Path, say: Say) -> None:
    """R02. SIGKILL to a random worker of three; another takes its place. The others must not notice."""
    settings, choice, progress = fault_settings(folder), random.Random(outcome.seed), Progress(say, outcome.rounds)
    with (
        writer_process(settings) as writer,
        Workers(settings, folder, count=_workers(outcome), seed=outcome.seed, patience_s=_LONG_S) as workers,
    ):
        workers.grow(100)
        for round_ in range(1, outcome.rounds + 1):
            workers.grow(choice.randrange(1, 200))
            workers.kill(choice)
            workers.add()
            progress.at(round_, f"{workers.acknowledged():,} records acknowledged")
        workers.grow(100)
        end_workers(outcome, workers)
        outcome.bar(met=outcome.measured["refused"] == 0, otherwise="the death of a worker was noticed by another one")
        end_writer(outcome, writer)
    judge_log(outcome, settings, workers.ledger())
    outcome.count("orphans", sum(record.clear.get("st") == "orphan" for record in records_in(_host(settings))))


def cut_power(outcome: Outcome, folder: Path, say: Say) -> None:
    """R03. Everything is killed at once, and of what the writer had not synced a random part is lost, as in a power cut."""
    settings, choice, progress = fault_settings(folder), random.Random(outcome.seed), Progress(say, outcome.rounds)
    ledger: list[str] = []
    with FaultShim(folder / "faults", settings.directory, seed=outcome.seed) as shim:
        # Slow enough that a kill finds something on its way to the disk.
        shim.set(sync_delay_us=5_000)
        with writer_process(settings, shim.environment()) as writer:
            for round_ in range(1, outcome.rounds + 1):
                load = folder / f"round-{round_}"
                with Workers(settings, load, count=_workers(outcome), seed=outcome.seed * 1000 + round_) as workers:
                    workers.grow(choice.randrange(1, 300))
                    writer.kill()
                    workers.kill_all()
                    ledger += workers.ledger()
                outcome.count("bytes_lost_by_power_cut", _lose_unsynced(settings, shim, choice))
                writer.start()
                progress.at(round_, f"{len(ledger):,} records acknowledged")
            end_writer(outcome, writer)
    judge_log(outcome, settings, ledger, writer_deaths=outcome.rounds)


def soak(outcome: Outcome, folder: Path, say: Say) -> None:
    """R04. Two logs side by side with workers each, segments of 256 KiB; a round is a thousand records on each host."""
    progress = Progress(say, outcome.rounds)
    first, second = (
        fault_settings(folder / name, host_id=name, segment_bytes_max=256 << 10) for name in ("first", "second")
    )
    (folder / "first").mkdir()
    (folder / "second").mkdir()
    with (
        writer_process(first) as one, writer_process(second) as two,
        Workers(first, folder / "first", count=1 + _workers(outcome), seed=outcome.seed, patience_s=_LONG_S) as here,
        Workers(second, folder / "second", count=1 + _workers(outcome), seed=outcome.seed + 1, patience_s=_LONG_S) as there,
    ):  # fmt: skip
        for round_ in range(1, outcome.rounds + 1):
            here.grow(1000)
            there.grow(1000)
            progress.at(round_)
        for workers in (here, there):
            end_workers(outcome, workers)
        outcome.bar(met=outcome.measured["refused"] == 0, otherwise="records were refused without a fault")
        end_writer(outcome, one)
        end_writer(outcome, two)
    judge_log(outcome, first, here.ledger())
    judge_log(outcome, second, there.ledger())


def _host(settings: AuditSettings) -> Path:
    return host_directory(settings.directory, settings.host_id)


def _lose_unsynced(settings: AuditSettings, shim: FaultShim, choice: random.Random) -> int:
    """Cut the open segment somewhere between its last synced byte and its end; how many bytes that cost."""
    synced = shim.synced_sizes()
    lost = 0
    for segment in segments_in(_host(settings)):
        if segment.state is SegmentState.OPEN:
            status = segment.path.stat()
            kept = choice.randint(synced[status.st_ino], status.st_size)
            lost += status.st_size - kept
            os.truncate(segment.path, kept)
    return lost
