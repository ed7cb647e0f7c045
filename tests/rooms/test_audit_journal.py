"""The real journal against the real writer, in a process that nothing has patched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest

from secure_llm_proxy.audit import SocketJournal, open_records
from secure_llm_proxy.foundation.errors import ErrorCode, InternalError, Unavailable
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent, AuditJournal
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from tests.support.audit_log import (
    KEK,
    REPOSITORY,
    WAIT_S,
    WriterProcess,
    audit_settings,
    check,
    end_event,
    event,
    records_in,
    start_event,
    wait_until,
    writer_process,
)


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return audit_settings(tmp_path)


@pytest.fixture
def writer(settings: AuditSettings) -> Iterator[WriterProcess]:
    with writer_process(settings) as process:
        yield process


@pytest.fixture
def journal(settings: AuditSettings, writer: WriterProcess) -> Iterator[SocketJournal]:
    assert writer.pid
    made = SocketJournal(settings)
    yield made
    made.close()


def in_time(*greenlets: gevent.Greenlet[..., Any]) -> None:
    """All have ended, without an error."""
    gevent.joinall(greenlets, timeout=WAIT_S, raise_error=True)
    assert all(greenlet.dead for greenlet in greenlets)


def test_a_recorded_event_is_on_disk_when_record_returns(
    settings: AuditSettings, writer: WriterProcess, journal: AuditJournal
) -> None:
    start = event(
        AuditType.LLM_START, name=EventName.CHAT_REQUEST, mdl="demo", ak="key_1", stream=True, size=12, none=None
    )

    journal.record(start)
    writer.kill()

    (record,) = records_in(settings.directory)
    assert (record.type, record.event, record.id, record.exchange_id) == (
        "llm.start",
        "CHAT_REQUEST",
        start.id,
        start.exchange_id,
    )
    assert record.clear == {"mdl": "demo", "ak": "key_1", "stream": True, "size": 12, "none": None}
    (opened,) = open_records(settings.directory, start.id, KEK)
    assert opened.body == start.body


def test_a_posted_event_becomes_durable_in_its_order(
    settings: AuditSettings, writer: WriterProcess, journal: AuditJournal
) -> None:
    for number in range(20):
        journal.post(event(number=number))
    journal.record(event(number=20))
    writer.kill()

    assert [record.clear["number"] for record in records_in(settings.directory)] == list(range(21))


def test_fifty_greenlets_share_one_connection(
    settings: AuditSettings, writer: WriterProcess, journal: AuditJournal
) -> None:
    recorded: list[str] = []

    def work() -> None:
        for _ in range(40):
            start = start_event()
            journal.record(start)
            end = end_event(start)
            journal.record(end)
            recorded.extend((start.id, end.id))

    in_time(*[gevent.spawn(work) for _ in range(50)])
    journal.close()

    assert writer.stop() == 0
    assert sorted(record.id for record in records_in(settings.directory)) == sorted(recorded)
    report = check(settings)
    assert report.ok
    assert report.bodies_opened == 4000


def test_a_big_body_travels_in_parts_and_is_one_again(
    settings: AuditSettings, writer: WriterProcess, journal: AuditJournal
) -> None:
    body = os.urandom(3 << 19) + b"the rest"
    big = event(AuditType.LLM_PART, body=body, dir="out", name=EventName.CHAT_REQUEST)

    journal.record(big)
    writer.kill()

    records = records_in(settings.directory)
    assert [record.clear.get("seq") for record in records] == [0, 1, 2, 3, None]
    assert [record.clear.get("last") for record in records] == [False, False, False, True, None]
    assert {record.clear.get("dir") for record in records} == {"out"}
    assert records[-1].clear["parts"] == 4
    (opened,) = open_records(settings.directory, big.id, KEK)
    assert opened.body == body


def test_the_biggest_answer_fits_however_small_the_queue_is(settings: AuditSettings, writer: WriterProcess) -> None:
    small = SocketJournal(settings.model_copy(update={"unacknowledged_bytes_max": 1 << 20}))
    big = event(body=bytes(16 << 20))

    small.record(big)
    small.close()

    assert writer.pid
    (opened,) = open_records(settings.directory, big.id, KEK)
    assert opened.body == big.body


def test_the_journal_works_in_a_patched_worker(settings: AuditSettings, writer: WriterProcess) -> None:
    program = (
        "from gevent import monkey;monkey.patch_all();import gevent,sys;from pathlib import Path;"
        "from tests.support.audit_log import *;from secure_llm_proxy.audit import SocketJournal, running_writer\n"
        "settings=audit_settings(Path(sys.argv[1]));journal=SocketJournal(settings)\n"
        "def work():\n for _ in range(20):\n  start=start_event();journal.record(start);journal.record(end_event(start))\n"
        "with running_writer(settings): gevent.joinall([gevent.spawn(work) for _ in range(20)],raise_error=True)\n"
        "journal.close()"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(settings.directory.parent)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert writer.stop() == 0
    assert check(settings).records == 800


def test_an_event_that_may_not_enter_the_log_is_our_own_mistake(journal: AuditJournal) -> None:
    for clear in (
        {"p": "x"},
        {"Model": "x"},
        {"id": "x"},
        {"parts": 1},
        {"mdl": "\ud800"},
        {"mdl": "x" * 20_000},
        {"n": 2**70},
    ):
        with pytest.raises(InternalError):
            journal.record(AuditEvent(event().id, AuditType.REFUSED, "exc_1", None, clear))
    with pytest.raises(InternalError):
        journal.post(event(AuditType.LLM_END))

    journal.record(event())


def test_a_record_that_the_writer_refuses_is_an_internal_error(settings: AuditSettings, journal: AuditJournal) -> None:
    start, other = start_event(), SocketJournal(settings)
    journal.record(start)

    with pytest.raises(InternalError, match="failed to handle"):
        other.record(end_event(start))
    other.record(event())
    journal.record(end_event(start))
    other.close()

    assert [record.type for record in records_in(settings.directory)] == ["llm.start", "llm.refused", "llm.end"]


def test_a_silent_writer_refuses_requests_after_the_patience_and_memory_stays_bounded(
    settings: AuditSettings, writer: WriterProcess
) -> None:
    journal = SocketJournal(settings.model_copy(update={"patience_s": 1.0, "unacknowledged_bytes_max": 1 << 20}))
    wait_until(lambda: journal.trouble() is None, writer.said, sleep=gevent.sleep)
    outcomes: list[Unavailable] = []

    def work() -> None:
        while len(outcomes) < 200:
            try:
                journal.record(event(body=bytes(20_000)))
            except Unavailable as refusal:
                outcomes.append(refusal)
                gevent.sleep(0.001)

    writer.signal(signal.SIGSTOP)
    in_time(*[gevent.spawn(work) for _ in range(20)])

    assert {refusal.code for refusal in outcomes} == {ErrorCode.AUDIT_UNAVAILABLE}
    details = " ".join(str(refusal.detail) for refusal in outcomes)
    assert "did not acknowledge within 1 s" in details
    assert "bytes of audit records are unacknowledged" in details
    line = journal._line
    assert line is not None
    assert line._queued_bytes < (1 << 20) + 21_000
    wait_until(lambda: "has not acknowledged" in str(journal.trouble()), sleep=gevent.sleep)

    writer.signal(signal.SIGCONT)
    last = event()
    wait_until(lambda: journal.trouble() is None, writer.said, sleep=gevent.sleep)
    # Nobody waits for it, so a busy disk may take longer than the patience.
    journal.post(last)
    wait_until(lambda: not line._queue, writer.said, sleep=gevent.sleep)
    assert line._queued_bytes == 0
    journal.close()
    # What was queued when its request was refused is in the log all the same, and once.
    assert writer.stop() == 0
    assert records_in(settings.directory)[-1].id == last.id
    assert check(settings).ok


def test_a_journal_waits_for_a_writer_that_comes_back_in_time(settings: AuditSettings, writer: WriterProcess) -> None:
    # "In time" is what a writer needs to start, on a busy machine as well.
    journal = SocketJournal(settings.model_copy(update={"patience_s": WAIT_S}))
    journal.record(event(number=0))
    writer.kill()
    waiting = [gevent.spawn(journal.record, event(number=number)) for number in range(1, 6)]
    gevent.sleep(0.2)

    writer.start()

    in_time(*waiting)
    assert journal.trouble() is None
    journal.close()
    assert [record.clear["number"] for record in records_in(settings.directory)] == list(range(6))


def test_without_a_writer_every_record_fails_closed_and_trouble_says_why(settings: AuditSettings) -> None:
    journal = SocketJournal(settings.model_copy(update={"patience_s": 0.3}))

    with pytest.raises(Unavailable) as refusal:
        journal.record(event())

    assert refusal.value.code is ErrorCode.AUDIT_UNAVAILABLE
    assert refusal.value.status == 503
    assert str(settings.socket) in str(journal.trouble())
    journal.close()


def test_a_peer_that_hangs_up_at_once_is_not_hammered(settings: AuditSettings, tmp_path: Path) -> None:
    """What a writer does whose disk is away."""
    accepted = 0
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(settings.socket))
        listener.listen()
        listener.setblocking(False)
        journal = SocketJournal(settings.model_copy(update={"patience_s": 2.0}))
        recording = gevent.spawn(journal.record, event())
        while not recording.dead:
            gevent.sleep(0.005)
            try:
                listener.accept()[0].close()
                accepted += 1
            except BlockingIOError:
                pass

    assert isinstance(recording.exception, Unavailable)
    assert 2 <= accepted <= 120
    journal.close()
    assert list(tmp_path.iterdir())


def test_closing_waits_until_what_was_posted_is_durable(settings: AuditSettings, writer: WriterProcess) -> None:
    journal = SocketJournal(settings)
    for number in range(300):
        journal.post(event(number=number))

    journal.close()
    writer.kill()

    assert len(records_in(settings.directory)) == 300


def test_a_closed_journal_may_be_used_again(settings: AuditSettings, writer: WriterProcess) -> None:
    journal = SocketJournal(settings)
    journal.record(event())
    journal.close()
    journal.close()

    journal.record(event())
    journal.close()

    assert writer.pid
    assert len({record.worker for record in records_in(settings.directory)}) == 2


def test_a_greenlet_that_gave_up_waiting_is_not_woken_by_its_record(
    settings: AuditSettings, writer: WriterProcess, journal: AuditJournal
) -> None:
    journal.record(event())
    writer.signal(signal.SIGSTOP)
    given_up = gevent.event.Event()
    slept_s: list[float] = []

    def work() -> None:
        try:
            with gevent.Timeout(0.1):
                journal.record(event(number=1))
        except gevent.Timeout:
            given_up.set()
            began_s = time.monotonic()
            gevent.sleep(1.0)
            slept_s.append(time.monotonic() - began_s)

    greenlet = gevent.spawn(work)
    assert given_up.wait(WAIT_S)
    writer.signal(signal.SIGCONT)
    wait_until(lambda: len(records_in(settings.directory)) == 2, writer.said, sleep=gevent.sleep)
    in_time(greenlet)

    assert len(slept_s) == 1
    assert slept_s[0] >= 0.5
    assert [record.clear.get("number") for record in records_in(settings.directory)] == [None, 1]


def test_a_forked_child_uses_a_connection_of_its_own(settings: AuditSettings, writer: WriterProcess) -> None:
    program = (
        "import os,sys,gevent.os;from pathlib import Path;from tests.support.audit_log import *\n"
        "from secure_llm_proxy.audit import SocketJournal\n"
        "journal=SocketJournal(audit_settings(Path(sys.argv[1])));journal.record(event(who='parent'))\n"
        "journal.post(event(who='parent'));child=gevent.os.fork_gevent()\n"
        "for _ in range(20): journal.record(event(who='parent' if child else 'child'))\n"
        "journal.close()\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child,0)[1]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(settings.directory.parent)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert writer.stop() == 0
    by_worker: dict[str, list[object]] = {}
    for record in records_in(settings.directory):
        by_worker.setdefault(record.worker, []).append(record.clear["who"])
    assert sorted(by_worker.values(), key=len) == [["child"] * 20, ["parent"] * 22]
    assert check(settings).ok
