"""Run as a program: the writer on a small disk of its own that fills up under load and is freed again.

    unshare [--map-root-user] --mount python -m tests.support.full_disk FOLDER

Prints one JSON object. The disk is a tmpfs of 16 MiB that nobody outside this mount namespace sees.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gevent

from secure_llm_proxy.audit import SocketJournal
from secure_llm_proxy.audit.segments import RESERVE_NAME
from secure_llm_proxy.foundation.errors import NotQueued
from tests.support.audit_log import (
    WAIT_S,
    audit_settings,
    check,
    end_event,
    records_in,
    start_event,
    wait_until,
    writer_process,
)

_MIB = 1 << 20


class Exchanges:
    """`count` exchanges at a time, each of 0.3 s; remembers which records were acknowledged and which turned away."""

    def __init__(self, journal: SocketJournal, count: int) -> None:
        self._journal = journal
        self.started: list[str] = []
        self.ended: list[str] = []
        self.turned_away: list[str] = []
        self.turned_away_s: list[float] = []
        self._running = True
        self._greenlets = [gevent.spawn(self._work) for _ in range(count)]

    def _work(self) -> None:
        while self._running:
            start = start_event()
            asked = time.monotonic()
            try:
                self._journal.record(start)
            except NotQueued:
                self.turned_away.append(start.id)
                self.turned_away_s.append(time.monotonic() - asked)
                gevent.sleep(0.05)
                continue
            self.started.append(start.id)
            gevent.sleep(0.3)
            self._journal.record(end_event(start))
            self.ended.append(start.id)

    def stop(self) -> None:
        self._running = False
        gevent.joinall(self._greenlets, timeout=WAIT_S, raise_error=True)


def main(folder: Path) -> None:
    settings = audit_settings(folder, free_bytes_min=2 * _MIB, free_percent_min=0, reserve_bytes=_MIB)
    settings.directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(settings.directory)], check=True, timeout=30)
    told: dict[str, object] = {}
    with writer_process(settings) as writer:
        reserve = settings.directory / "host" / RESERVE_NAME
        load = Exchanges(SocketJournal(settings), 50)
        wait_until(lambda: len(load.ended) > 200, writer.said, sleep=gevent.sleep)
        told["reserved"] = reserve.stat().st_blocks * 512

        _fill(settings.directory / "filler")
        filled = time.monotonic()
        wait_until(lambda: len(load.turned_away) > 20, writer.said, sleep=gevent.sleep)
        told["refused_after_s"] = round(time.monotonic() - filled, 2)
        before = len(load.started)
        wait_until(lambda: len(load.ended) == len(load.started), writer.said, sleep=gevent.sleep)
        told["ended_on_a_full_disk"] = len(load.started) == len(load.ended)
        told["reserve_released"] = not reserve.exists()
        gevent.sleep(0.5)
        told["started_on_a_full_disk"] = len(load.started) - before

        (settings.directory / "filler").unlink()
        freed, before = time.monotonic(), len(load.started)
        wait_until(lambda: len(load.started) > before + 100, writer.said, sleep=gevent.sleep)
        told["back_after_s"] = round(time.monotonic() - freed, 2)
        wait_until(reserve.exists, writer.said, sleep=gevent.sleep)
        load.stop()
        told["exit_code"] = writer.stop()
        told["starts_of_the_writer"] = writer.said().count('"event": "writer_started"')
        told["said"] = writer.said()
    records = records_in(settings.directory)
    ended = {record.clear["sid"] for record in records if record.type == "llm.end"}
    report = check(settings)
    told["lost"] = len({*load.started} - {record.id for record in records}) + len({*load.ended} - ended)
    told["without_end"] = len({*load.started} - ended)
    told["turned_away"] = len(load.turned_away)
    told["slowest_refusal_s"] = round(max(load.turned_away_s), 2)
    told["turned_away_and_recorded"] = len({*load.turned_away} & {record.id for record in records})
    told["alarms"] = [record.clear for record in records if record.type == "audit.trouble"]
    told["verified"] = report.outcome.value
    told["findings"] = [finding.what for finding in report.findings]
    print(json.dumps(told))


def _fill(path: Path) -> None:
    """Take every byte that is left."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        while True:
            os.write(descriptor, bytes(64 << 10))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
