"""All at once: what the log has besides itself goes on, too, while the writer dies and its disk fails."""

from __future__ import annotations

import errno
import random
import time
from pathlib import Path

from secure_llm_proxy.audit import log_lines, verify
from tests.faults.outcome import Outcome, Progress, Say, end_workers, end_writer, fault_settings, judge_log
from tests.support.audit_load import Workers
from tests.support.audit_log import WriterProcess, writer_process
from tests.support.fault_shim import FaultShim

_OUTAGE_S = 0.3


def everything(outcome: Outcome, folder: Path, say: Say) -> None:
    """With a second directory, a file as sink, and a backup every second: the writer is killed, syncs fail, the first directory is
    read-only, in any order. In the end the sink holds the log's lines, each once, and the backup verifies.
    """
    copy, backup, second = folder / "sink" / "copy.jsonl", folder / "backup", folder / "second"
    copy.parent.mkdir()
    settings = fault_settings(
        folder,
        sink=f"file:{copy}",
        sink_policy=("any", "all")[outcome.seed % 2],
        fallback_directory=second,
        backup_enabled=True,
        backup_directory=backup,
        backup_keys_directory=folder / "backup-keys",
        backup_interval_s=1,
    )
    choice, progress = random.Random(outcome.seed), Progress(say, outcome.rounds)
    kills = 0
    with (
        FaultShim(folder / "faults", settings.directory, seed=outcome.seed) as shim,
        writer_process(settings, shim.environment()) as writer,
        Workers(settings, folder, count=2, seed=outcome.seed, patience_s=5.0) as workers,
    ):
        for round_ in range(1, outcome.rounds + 1):
            workers.grow(choice.randrange(1, 200))
            # Every kind in turn, so that a short run has them all.
            if round_ % 3 == 0:
                kills += 1
                _kill(writer, shim)
            elif round_ % 3 == 1:
                shim.fail_sync(choice.randint(1, 4), times=choice.randint(1, 3), error=errno.EIO)
            else:
                shim.set(create_errno=errno.EROFS)
                shim.fail_writes(error=errno.EROFS)
                time.sleep(_OUTAGE_S)
                # They go on in the second directory.
                workers.grow(20)
                shim.heal()
            progress.at(round_, f"{workers.acknowledged():,} records acknowledged")
        shim.heal()
        workers.grow(50)
        end_workers(outcome, workers)
        end_writer(outcome, writer)
        outcome.bar(met=not shim.synced_after_failure(), otherwise="poisoned files were synced again")
    judge_log(outcome, settings, workers.ledger(), writer_deaths=kills)
    lines = [item.raw for item in log_lines(settings.directory, also=second)]
    outcome.bar(
        met=copy.read_bytes() == b"".join(line + b"\n" for line in lines),
        otherwise="the sink does not hold the log's lines",
    )
    outcome.count("segments_in_second_directory", len(list(second.glob("*/0*"))))
    kept = verify(backup, genesis_public_key=None)
    outcome.count("segments_in_backup", kept.segments)
    outcome.bar(met=kept.ok and kept.segments > 0, otherwise=f"the backup: {kept.outcome}, {kept.findings[:3]}")


def _kill(writer: WriterProcess, shim: FaultShim) -> None:
    writer.kill()
    shim.heal()
    writer.start()
