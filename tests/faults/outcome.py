"""What a scenario found, and how a log is judged after the faults: by the product's verifier and by a second, simpler look."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from secure_llm_proxy.audit.segments import LogDirectories, SegmentState, find_log
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_load import Workers
from tests.support.audit_log import WriterProcess, audit_settings, check, records_in, wait_until

Say = Callable[[str], None]
_SHOWN = 5


@dataclass(slots=True)
class Outcome:
    """`broken` holds a sentence for each bar that was not met; none means that the scenario passed.

    Times are judged in long runs on a quiet machine only, never in the suite: `judges_times`.
    """

    scenario: str
    seed: int
    rounds: int
    judges_times: bool = False
    measured: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def count(self, name: str, number: float = 1) -> None:
        self.measured[name] = self.measured.get(name, 0) + number

    def most(self, name: str, value: float) -> None:
        self.measured[name] = max(self.measured.get(name, 0.0), round(value, 3))

    def time(self, name: str, seconds: float, *, bar_s: float) -> None:
        self.most(name, seconds)
        if self.judges_times:
            self.bar(met=seconds <= bar_s, otherwise=f"{name} {seconds:.2f}, the bar is {bar_s:g}")

    def bar(self, *, met: bool, otherwise: str) -> None:
        if not met:
            self.broken.append(otherwise)


def judge_log(outcome: Outcome, settings: AuditSettings, ledger: Iterable[str], *, writer_deaths: int = 0) -> None:
    """Hold a stopped log to its promises: nothing acknowledged is lost or doubled, no fork, verified with every body opened,
    at most one torn tail for each death of the writer, and each declared.
    """
    acknowledged = list(ledger)
    report = check(settings)
    log = find_log(settings.directory, settings.host_id, settings.fallback_directory)
    records = Counter[str]()
    starts, ends = dict[str, None](), set[str]()
    for line in chained_lines(log, outcome):
        if line["k"] == "rec":
            records[str(line["id"])] += 1
            if line["ty"] == "llm.start":
                starts[str(line["id"])] = None
            elif line["ty"] == "llm.end":
                ends.add(str(line["sid"]))
    lost = [each for each in acknowledged if each not in records]
    doubled = [each for each, times in records.items() if times > 1]
    endless = [each for each in starts if each not in ends]
    torn = [finding for finding in report.findings if "torn tail" in finding.what]
    outcome.count("acknowledged", len(acknowledged))
    outcome.count("records", records.total())
    outcome.count("lost", len(lost))
    outcome.count("doubled", len(doubled))
    outcome.count("segments", report.segments)
    outcome.count("crashed_segments", sum(each.state is SegmentState.CRASHED for each in log.segments()))
    outcome.count("torn_tails", len(torn))
    outcome.count("checkpoints", report.checkpoints)
    outcome.count("key_rolls", report.key_rolls)
    outcome.bar(met=not lost, otherwise=f"{len(lost)} acknowledged records are lost: {lost[:_SHOWN]}")
    outcome.bar(met=not doubled, otherwise=f"{len(doubled)} records stand in the log twice: {doubled[:_SHOWN]}")
    outcome.bar(met=not endless, otherwise=f"{len(endless)} exchanges have no end: {endless[:_SHOWN]}")
    outcome.bar(
        met=report.ok, otherwise=f"verify says {report.outcome}: {[str(each) for each in report.findings[:20]]}"
    )
    outcome.bar(met=bool(acknowledged), otherwise="nothing was acknowledged, so nothing was tested")
    outcome.bar(
        met=len(torn) <= writer_deaths, otherwise=f"{len(torn)} torn tails after {writer_deaths} deaths of the writer"
    )


def chained_lines(log: LogDirectories, outcome: Outcome) -> Iterator[dict[str, object]]:
    """Every line of the log as JSON. A gap, a fork or a second line of one index is a broken bar. Knows of the format only
    `n`, `p`, `prev` and that a hash is SHA-256(0x00 ‖ line).
    """
    files = log.segments()
    firsts = [json.loads(file.path.read_bytes().partition(b"\n")[0]) for file in files]
    expected, before = 0, ""
    for position, file in enumerate(files):
        last = firsts[position + 1]["prev"]["n"] if position + 1 < len(files) else None
        with file.path.open("rb") as stream:
            for raw in stream:
                if last is not None and expected > last:
                    break
                if not raw.endswith(b"\n"):
                    outcome.bar(met=last is None, otherwise=f"{file.name}: line {expected} of the log is torn")
                    break
                line = json.loads(raw)
                chained = line.get("p") or (line["prev"] or {"h": ""})["h"]
                if line["k"] == "end" and line["reason"] == "fsync-error":
                    break
                if (line["n"], chained) != (expected, before):
                    outcome.bar(
                        met=False, otherwise=f"{file.name}: index {line['n']} where {expected} must stand, or a fork"
                    )
                    return
                before = base64.b64encode(hashlib.sha256(b"\x00" + raw[:-1]).digest()).decode()
                expected += 1
                yield line


def fault_settings(folder: Path, **more: object) -> AuditSettings:
    """A log in `folder` whose writer closes dead workers' exchanges quickly, and signs and rolls its key all the time."""
    hasty = {"orphan_grace_s": 0.5, "checkpoint_lines": 40, "checkpoint_s": 0.2, "heartbeat_s": 0.5, "epoch_s": 0.4}
    return audit_settings(folder, **(hasty | more))


def end_workers(outcome: Outcome, workers: Workers) -> None:
    """Stop them and take their accounts in. An error that is no 503 ends a worker with a status of its own."""
    for account in workers.stop():
        outcome.count("refused", account.refused)
        outcome.most("slowest_refusal_s", account.slowest_refusal_s)
        outcome.most("queued_bytes_max", account.queued_bytes_max)


def end_writer(outcome: Outcome, writer: WriterProcess) -> None:
    """Stop it once every exchange has its end."""
    began_s = time.monotonic()
    wait_until(lambda: not _open_exchanges(writer.settings), writer.said)
    outcome.most("orphans_closed_s", time.monotonic() - began_s)
    outcome.bar(met=writer.stop() == 0, otherwise=f"the writer did not stop in order: {writer.said()[-500:]}")


def _open_exchanges(settings: AuditSettings) -> int:
    started, ended = set[str](), set[str]()
    for record in records_in(settings.directory, also=settings.fallback_directory):
        if record.type == "llm.start":
            started.add(record.id)
        elif record.type == "llm.end":
            ended.add(str(record.clear["sid"]))
    return len(started - ended)


class Progress:
    """At most one line a second on its way to `say`."""

    def __init__(self, say: Say, rounds: int) -> None:
        self._say = say
        self._rounds = rounds
        self._began_s = time.monotonic()
        self._said_s = 0.0

    def at(self, round_: int, more: str = "") -> None:
        now = time.monotonic()
        if now - self._said_s < 1.0 and round_ < self._rounds:
            return
        self._said_s = now
        rate = round_ / max(now - self._began_s, 0.001)
        left_s = (self._rounds - round_) / rate if rate else 0
        self._say(f"{round_:,} of {self._rounds:,}, about {left_s:,.0f} s left{', ' if more else ''}{more}")
