"""R40: people are erased while everybody goes on, and while the writer dies in the middle of it."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

from secure_llm_proxy.audit import WriterControl
from secure_llm_proxy.audit.keystore import KEYS_NAME
from secure_llm_proxy.settings import AuditSettings
from tests.faults.outcome import Outcome, Progress, Say, end_workers, end_writer, fault_settings, judge_log
from tests.support.audit_load import PEOPLE, Workers, person
from tests.support.audit_log import WAIT_S, WriterProcess, check, records_in, writer_process

_KILL_EVERY = 3


def erase(outcome: Outcome, folder: Path, say: Say) -> None:
    """A random person is erased in each round; in every third the writer is killed at once, and the erasure asked for again."""
    settings, choice, progress = fault_settings(folder), random.Random(outcome.seed), Progress(say, outcome.rounds)
    wrapped: set[bytes] = set()
    kids: set[str] = set()
    kills = 0
    with (
        writer_process(settings) as writer,
        Workers(settings, folder, count=2, seed=outcome.seed) as workers,
    ):
        for round_ in range(1, outcome.rounds + 1):
            workers.grow(choice.randrange(20, 150))
            subject = person(choice.randrange(PEOPLE))
            wrapped |= _wrapped_of(settings, subject)
            if round_ % _KILL_EVERY == 0:
                kills += 1
                _ask_and_kill(settings, writer, subject)
            kids |= _erase(settings, subject)
            progress.at(round_, f"{workers.acknowledged():,} records acknowledged")
        workers.grow(50)
        end_workers(outcome, workers)
        end_writer(outcome, writer)
    judge_log(outcome, settings, workers.ledger(), writer_deaths=kills)
    _judge_content(outcome, settings, wrapped, kids)


def _erase(settings: AuditSettings, subject: str) -> set[str]:
    """Names of all keys that this person ever lost."""
    with closing(WriterControl(settings.control_address, patience_s=WAIT_S)) as operator:
        answer = operator.ask("erase", subject=subject)
    assert answer["trouble"] is None, answer["trouble"]
    erased = answer["erased"]
    assert isinstance(erased, list)
    return {str(each["kid"]) for each in erased}


def _ask_and_kill(settings: AuditSettings, writer: WriterProcess, subject: str) -> None:
    with closing(WriterControl(settings.control_address, patience_s=WAIT_S)) as operator:
        operator._socket.sendall(b'{"op":"erase","subject":"%b"}\n' % subject.encode())
        writer.kill()
    writer.start()


def _wrapped_of(settings: AuditSettings, subject: str) -> set[bytes]:
    with closing(sqlite3.connect(settings.keys_directory / KEYS_NAME, timeout=WAIT_S)) as database:
        rows = database.execute("SELECT wrapped FROM subject_keys WHERE subject = ?", (subject,)).fetchall()
    return {bytes(each) for (each,) in rows}


def _judge_content(outcome: Outcome, settings: AuditSettings, wrapped: set[bytes], kids: set[str]) -> None:
    """Exactly the bodies under destroyed keys are gone: no byte of such a key is left, and every other body opens."""
    store = b"".join(path.read_bytes() for path in settings.keys_directory.glob(KEYS_NAME + "*"))
    left = sum(each in store for each in wrapped)
    report, records = check(settings), records_in(settings.directory)
    lost = sum(record.kid in kids for record in records)
    told: set[str] = set()
    for record in records:
        if record.type == "subject.erased":
            told |= set(str(record.clear["kids"]).split(","))
    outcome.count("keys_destroyed", len(kids))
    outcome.count("keys_left_in_the_store", left)
    outcome.count("bodies_erased", lost)
    outcome.bar(
        met=bool(wrapped) and not left, otherwise=f"{left} of {len(wrapped)} destroyed keys are in the store's bytes"
    )
    outcome.bar(
        met=report.records - report.bodies_opened == lost > 0,
        otherwise=f"{report.records - report.bodies_opened} bodies do not open, {lost} are under destroyed keys",
    )
    outcome.bar(met=kids <= told, otherwise=f"the log does not name {len(kids - told)} of the destroyed keys")
