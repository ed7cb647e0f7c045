"""Several worker processes that record exchanges through the real journal, and what each was told is durable.

Run as a program it is one of those workers: its argument is a `Plan`; the end of standard input,
and so of its parent, ends it. After each acknowledgement it appends the record's id to its ledger with one system call, so that
the ledger of a worker that is killed holds nothing that was not acknowledged.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import gevent
import gevent.os

from secure_llm_proxy.audit import SocketJournal
from secure_llm_proxy.foundation.errors import NotQueued, Unavailable
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.events import AuditType, EventName

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 120.0
_BIG_BYTES = 600_000
PEOPLE = 20
_LEDGER_LINE = len(new_record_id()) + 1


def person(number: int) -> str:
    """The pseudonym of one of those whose exchanges the workers record."""
    return f"s_{number:016x}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one worker does until it is told to end. One exchange in ten sends parts; one in a hundred a body of several lines."""

    socket: str
    ledger: str
    account: str
    greenlets: int
    seed: int
    body_bytes: int = 300
    pause_s: float = 0.002
    patience_s: float = 2.0
    queue_bytes_max: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Account:
    """What one worker saw that ended in order. `slowest_refusal_s` is the longest wait that ended in a 503."""

    acknowledged: int
    refused: int
    slowest_refusal_s: float
    queued_bytes_max: int


class _Worker:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._journal = SocketJournal(
            AuditSettings(
                socket=Path(plan.socket), patience_s=plan.patience_s, unacknowledged_bytes_max=plan.queue_bytes_max
            )
        )
        self._ledger = os.open(plan.ledger, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._random = random.Random(plan.seed)
        self._acknowledged = self._refused = self._queued_bytes_max = 0
        self._slowest_refusal_s = 0.0
        self._running = True

    def run(self) -> None:
        greenlets = [gevent.spawn(self._work) for _ in range(self._plan.greenlets)]
        gevent.os.tp_read(0, 1)
        self._running = False
        gevent.joinall(greenlets, raise_error=True)
        self._journal.close()
        account = Account(self._acknowledged, self._refused, self._slowest_refusal_s, self._queued_bytes_max)
        unfinished = Path(self._plan.account + ".tmp")
        unfinished.write_text(json.dumps(asdict(account)))
        unfinished.rename(self._plan.account)

    def _work(self) -> None:
        while self._running:
            self._exchange()
            gevent.sleep(self._plan.pause_s)

    def _exchange(self) -> None:
        exchange = f"exc_{new_record_id()}"
        # Every second exchange is a person's, whose own key seals it.
        whose = {"sub": person(self._random.randrange(PEOPLE))} if self._random.random() < 0.5 else {}
        start = self._event(AuditType.LLM_START, exchange, {"mdl": "demo", **whose})
        if (queued := self._record(start)) is not None:
            if queued:
                # Refused, so nothing goes upstream; but it may become durable yet, and gets its end as the gateway does it.
                self._post(self._event(AuditType.LLM_END, exchange, {"sid": start.id, "st": "not_sent", **whose}))
            return
        if self._random.random() < 0.1:
            self._record(self._event(AuditType.LLM_PART, exchange, {"dir": "out", **whose}))
        big = _BIG_BYTES if self._random.random() < 0.01 else None
        self._record(self._event(AuditType.LLM_END, exchange, {"sid": start.id, "st": "complete", **whose}, size=big))

    def _event(
        self, type_: AuditType, exchange: str, clear: Mapping[str, str], *, size: int | None = None
    ) -> AuditEvent:
        body = self._random.randbytes(self._plan.body_bytes if size is None else size)
        return AuditEvent(new_record_id(), type_, exchange, EventName.CHAT_REQUEST, dict(clear), body)

    def _record(self, event: AuditEvent) -> bool | None:
        """None when it was acknowledged; else whether it is queued all the same."""
        began_s = time.monotonic()
        try:
            self._journal.record(event)
        except Unavailable as refusal:
            self._refused += 1
            self._slowest_refusal_s = max(self._slowest_refusal_s, time.monotonic() - began_s)
            gevent.sleep(0.02)
            return not isinstance(refusal, NotQueued)
        finally:
            line = self._journal._line
            self._queued_bytes_max = max(self._queued_bytes_max, line._queued_bytes if line else 0)
        self._acknowledged += 1
        os.write(self._ledger, event.id.encode() + b"\n")
        return None

    def _post(self, event: AuditEvent) -> None:
        try:
            self._journal.post(event)
        except NotQueued:
            self._refused += 1


class Workers:
    """`count` worker processes against one writer; a killed one is replaced by the next number."""

    def __init__(
        self,
        settings: AuditSettings,
        folder: Path,
        *,
        count: int,
        greenlets: int = 16,
        seed: int = 1,
        environment: Mapping[str, str] | None = None,
        **plan: float,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, **(environment or {})}
        self._settings = settings
        self._folder = folder
        self._greenlets = greenlets
        self._seed = seed
        self._plan = plan
        self._made = 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._count = count

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self.add()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait(_PATIENCE_S)

    def add(self) -> None:
        number = self._made = self._made + 1
        plan = Plan(
            socket=str(self._settings.socket),
            ledger=str(self._folder / f"ledger-{number}"),
            account=str(self._folder / f"account-{number}"),
            greenlets=self._greenlets,
            seed=self._seed * 1000 + number,
            **self._plan,  # type: ignore[arg-type]
        )
        with (self._folder / "workers.log").open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.audit_load", json.dumps(asdict(plan))],
                cwd=_ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stderr=said,
            )
        self._processes[number] = process

    def kill(self, choice: random.Random) -> None:
        """One of them, at once."""
        number = choice.choice(sorted(self._processes))
        process = self._processes.pop(number)
        process.kill()
        process.wait(_PATIENCE_S)
        assert process.stdin is not None
        process.stdin.close()

    def kill_all(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(_PATIENCE_S)
            assert process.stdin is not None
            process.stdin.close()
        self._processes.clear()

    def acknowledged(self) -> int:
        """Records acknowledged so far, by all that ever were."""
        return sum(path.stat().st_size for path in self._folder.glob("ledger-*")) // _LEDGER_LINE

    def grow(self, records: int) -> None:
        """Return when that many more were acknowledged. Raises `AssertionError` when they are not in time."""
        goal = self.acknowledged() + records
        deadline = time.monotonic() + _PATIENCE_S
        while self.acknowledged() < goal:
            assert time.monotonic() < deadline, f"{self.acknowledged()} of {goal} records\n{self.said()}"
            time.sleep(0.01)

    def stop(self) -> list[Account]:
        """All end in order; what each saw."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
        accounts = []
        for number, process in self._processes.items():
            status = process.wait(_PATIENCE_S)
            assert status == 0, f"worker {number} ended with status {status}\n{self.said()}"
            accounts.append(Account(**json.loads((self._folder / f"account-{number}").read_text())))
        self._processes.clear()
        return accounts

    def said(self) -> str:
        return (self._folder / "workers.log").read_text()[-4000:]

    def ledger(self) -> list[str]:
        """Ids of every record that some worker was told is durable."""
        return [
            line for path in sorted(self._folder.glob("ledger-*")) for line in path.read_text().splitlines() if line
        ]


if __name__ == "__main__":
    _Worker(Plan(**json.loads(sys.argv[1]))).run()
