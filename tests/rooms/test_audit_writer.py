"""The real writer process under faults: killed, stopped, without disk, and with peers that do not behave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from secure_llm_proxy.audit import SocketJournal, initialise, log_lines
from secure_llm_proxy.audit.carry import OPEN_BYTES_MAX, entry_bytes
from secure_llm_proxy.audit.format import EndLine
from secure_llm_proxy.audit.frames import HEAD, MAGIC, REFUSED, frame
from secure_llm_proxy.foundation.errors import Unavailable
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import (
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
from tests.support.writer_peer import Peer

GOOD = b'{"ty":"llm.refused","id":"R1","rid":"exc_1"}'


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return audit_settings(tmp_path, orphan_grace_s=0.5)


@pytest.fixture
def writer(settings: AuditSettings) -> Iterator[WriterProcess]:
    with writer_process(settings) as process:
        yield process


class Load:
    """Greenlets that record exchanges until told to stop, and remember what was acknowledged."""

    def __init__(self, settings: AuditSettings, greenlets: int) -> None:
        self.journal = SocketJournal(settings)
        self.acknowledged: list[str] = []
        self.refusals = 0
        self._running = True
        self._greenlets = [gevent.spawn(self._work) for _ in range(greenlets)]

    def _work(self) -> None:
        while self._running:
            start = start_event()
            for step in (start, end_event(start)):
                try:
                    self.journal.record(step)
                    self.acknowledged.append(step.id)
                except Unavailable:
                    self.refusals += 1
                    gevent.sleep(0.02)
            gevent.sleep(0.002)

    def grow(self, records: int) -> None:
        """Return when that many more records were acknowledged."""
        goal = len(self.acknowledged) + records
        wait_until(
            lambda: len(self.acknowledged) >= goal, lambda: f"{len(self.acknowledged)} of {goal}", sleep=gevent.sleep
        )

    def stop(self) -> None:
        self._running = False
        gevent.joinall(self._greenlets, timeout=WAIT_S, raise_error=True)
        assert all(greenlet.dead for greenlet in self._greenlets)
        wait_until(lambda: self.journal.trouble() is None, sleep=gevent.sleep)
        self.journal.close()


def test_a_writer_killed_ten_times_under_load_loses_and_doubles_nothing(
    settings: AuditSettings, writer: WriterProcess
) -> None:
    load = Load(settings, 50)

    for _ in range(10):
        load.grow(150)
        writer.kill()
        gevent.sleep(0.05)
        writer.start()
    load.grow(150)
    load.stop()

    assert writer.stop() == 0
    written = [record.id for record in records_in(settings.directory)]
    assert set(load.acknowledged) <= set(written)
    assert len(written) == len(set(written))
    report = check(settings)
    assert report.ok, report.findings
    assert report.segments == 11


def test_a_full_disk_fails_closed_and_comes_back_by_itself(settings: AuditSettings, writer: WriterProcess) -> None:
    load = Load(settings.model_copy(update={"patience_s": 0.5}), 20)
    load.grow(100)

    for size in (0, 3_000, 100):
        writer.limit_file_size(size)
        refused = load.refusals
        wait_until(lambda refused=refused: load.refusals > refused, writer.said, sleep=gevent.sleep)  # type: ignore[misc]
        wait_until(lambda: load.journal.trouble() is not None, writer.said, sleep=gevent.sleep)
        writer.limit_file_size(1 << 30)
        load.grow(100)
    load.stop()

    assert writer.stop() == 0
    written = [record.id for record in records_in(settings.directory)]
    assert set(load.acknowledged) <= set(written)
    assert len(written) == len(set(written))
    assert check(settings).ok
    assert '"event": "log_back"' in writer.said()
    assert writer.said().count('"event": "writer_started"') == 1


def test_a_disk_that_is_full_for_this_file_only_costs_a_segment(settings: AuditSettings, writer: WriterProcess) -> None:
    journal = SocketJournal(settings)
    journal.record(event(number=0, body=bytes(4_000)))
    (running,) = settings.directory.glob("host/*.open")
    writer.limit_file_size(running.stat().st_size + 100)

    for number in range(1, 4):
        journal.record(event(number=number))
    journal.close()

    assert writer.stop() == 0
    assert [record.clear["number"] for record in records_in(settings.directory)] == [0, 1, 2, 3]
    assert list(settings.directory.glob("host/*.crashed.jsonl"))
    assert check(settings).ok


def test_an_exchange_whose_worker_died_is_closed_as_an_orphan(settings: AuditSettings, writer: WriterProcess) -> None:
    lives = SocketJournal(settings)
    running = start_event()
    lives.record(running)
    program = (
        "import os,sys;from tests.support.audit_log import *;from secure_llm_proxy.audit import SocketJournal;"
        "from pathlib import Path;j=SocketJournal(audit_settings(Path(sys.argv[1])));s=start_event();j.record(s);"
        "d=start_event();j.record(d);j.record(end_event(d));print(s.id,s.exchange_id,flush=True);os.kill(os.getpid(),9)"
    )
    died = subprocess.run(
        [sys.executable, "-c", program, str(settings.directory.parent)],
        capture_output=True,
        cwd=REPOSITORY,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    start, exchange = died.stdout.split()

    wait_until(
        lambda: any(record.clear.get("st") == "orphan" for record in records_in(settings.directory)), writer.said
    )
    lives.record(end_event(running))
    lives.close()

    assert writer.stop() == 0
    orphans = [record for record in records_in(settings.directory) if record.clear.get("st") == "orphan"]
    assert [(record.type, record.clear["sid"], record.exchange_id) for record in orphans] == [
        ("llm.end", start, exchange)
    ]
    assert check(settings).ok


def test_exchanges_of_a_worker_that_died_with_the_writer_are_closed_after_the_next_start(
    settings: AuditSettings, writer: WriterProcess
) -> None:
    with Peer(settings) as peer:
        assert peer.answer() == 0
        peer.send(frame(1, GOOD.replace(b"refused", b"start"), b"x"))
        assert peer.answer() == 1
        writer.kill()

    writer.start()

    wait_until(lambda: len(records_in(settings.directory)) == 2, writer.said)
    assert writer.stop() == 0
    assert records_in(settings.directory)[-1].clear == {"sid": "R1", "st": "orphan"}
    assert check(settings).ok


def test_a_stopping_writer_closes_what_dead_workers_left_open(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, orphan_grace_s=600)
    with writer_process(settings) as writer:
        with Peer(settings) as peer:
            peer.answer()
            peer.send(frame(1, GOOD.replace(b"refused", b"start"), b"x"))
            peer.answer()

        assert writer.stop() == 0

    assert [record.clear.get("st") for record in records_in(settings.directory)] == [None, "orphan"]
    assert check(settings).ok


def test_frames_that_had_arrived_are_written_before_a_stop(settings: AuditSettings, writer: WriterProcess) -> None:
    with Peer(settings) as peer:
        peer.answer()
        writer.signal(signal.SIGSTOP)
        peer.send(*[frame(number, GOOD, b"x") for number in range(1, 401)])
        writer.signal(signal.SIGTERM)
        writer.signal(signal.SIGCONT)
        last = 0
        while last < 400:
            last = peer.answer()

        assert writer.stop() == 0

    assert len(records_in(settings.directory)) == 400
    end = list(log_lines(settings.directory))[-2].line
    assert isinstance(end, EndLine)
    assert end.reason == "stop"
    assert not settings.socket.exists()


def test_known_records_are_acknowledged_and_not_doubled(settings: AuditSettings, writer: WriterProcess) -> None:
    worker = uuid.uuid4()
    frames = [frame(number, GOOD, b"x") for number in range(1, 5)]
    with Peer(settings, worker) as peer:
        assert peer.answer() == 0
        peer.send(*frames[:2])
        last = 0
        while last < 2:
            last = peer.answer()
    writer.kill()
    writer.start()

    with Peer(settings, worker) as peer:
        assert peer.answer() == 2
        peer.send(*frames)
        while last < 4:
            last = peer.answer()

    assert writer.stop() == 0
    assert [record.counter for record in records_in(settings.directory)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        GOOD[:-1] + b',"p":"forged"}',
        GOOD[:-1] + b',"n":1}',
        GOOD[:-1] + b',"a":1.5}',
        GOOD[:-1] + b',"a":{"b":1}}',
        GOOD[:-1] + b',"a":"\xff"}',
        GOOD.replace(b"llm.refused", b"llm.end"),
        GOOD.replace(b'"R1"', b'"R1\\n{"'),
        GOOD[:-1] + b',"a":"' + b"x" * 20_000 + b'"}',
    ],
)
def test_metadata_that_could_forge_a_line_is_refused_and_its_neighbours_are_not(
    settings: AuditSettings, writer: WriterProcess, bad: bytes
) -> None:
    with Peer(settings) as peer:
        assert peer.answer() == 0

        peer.send(frame(1, GOOD, b"x"), frame(2, bad, b"x"), frame(3, GOOD, b"x"))
        answers = [peer.answer()]
        while answers[-1] != 3:
            answers.append(peer.answer())

    assert 2 | REFUSED in answers
    assert writer.stop() == 0
    assert [record.counter for record in records_in(settings.directory)] == [1, 3]
    assert check(settings).ok


def test_a_body_or_frame_that_asks_too_much_is_refused(settings: AuditSettings, writer: WriterProcess) -> None:
    with Peer(settings) as peer:
        assert peer.answer() == 0

        peer.send(frame(1, GOOD, bytes((512 << 10) + 1)))
        assert peer.answer() == 1 | REFUSED
        peer.send(HEAD.pack(len(GOOD), 2, 1, 0, len(GOOD)) + GOOD)
        assert peer.answer() == 2 | REFUSED
        peer.send(HEAD.pack(len(GOOD) + 3, 3, 0, 3, len(GOOD)) + b"kid" + GOOD)
        assert peer.answer() == 3 | REFUSED
        peer.send(HEAD.pack(len(GOOD), 4, 0, 0, len(GOOD) + 9) + GOOD)
        assert peer.answer() == 4 | REFUSED
        peer.send(frame(5, GOOD, bytes(512 << 10)))
        assert peer.answer() == 5

    assert writer.stop() == 0
    assert check(settings).ok


def test_a_refused_record_stays_refused_after_a_reconnect(settings: AuditSettings, writer: WriterProcess) -> None:
    worker = uuid.uuid4()
    frames = [frame(1, GOOD, b""), frame(2, b"{}", b""), frame(3, GOOD, b"")]
    with Peer(settings, worker) as peer:
        peer.answer()
        peer.send(*frames)
        while peer.answer() != 3:
            pass

    with Peer(settings, worker) as peer:
        assert peer.answer() == 1
        peer.send(*frames[1:])
        assert [peer.answer(), peer.answer()] == [2 | REFUSED, 3]

    assert writer.stop() == 0
    assert [record.counter for record in records_in(settings.directory)] == [1, 3]


def test_one_worker_cannot_end_anothers_exchange(settings: AuditSettings, writer: WriterProcess) -> None:
    start = GOOD.replace(b"refused", b"start")
    end = b'{"ty":"llm.end","id":"R2","rid":"exc_1","sid":"R1","st":"complete"}'
    with Peer(settings) as owner, Peer(settings) as thief:
        owner.answer()
        thief.answer()
        owner.send(frame(1, start, b""))
        assert owner.answer() == 1

        thief.send(frame(1, end, b""))
        assert thief.answer() == 1 | REFUSED
        thief.send(frame(2, start, b""))
        assert thief.answer() == 2 | REFUSED
        owner.send(frame(2, end.replace(b"exc_1", b"exc_2"), b""))
        assert owner.answer() == 2 | REFUSED
        owner.send(frame(3, end, b""))
        assert owner.answer() == 3

    assert writer.stop() == 0
    assert check(settings).ok


def test_no_more_exchanges_are_open_than_a_segments_first_line_can_carry(
    settings: AuditSettings, writer: WriterProcess
) -> None:
    fit = OPEN_BYTES_MAX // entry_bytes("0" * 64, "0" * 64)
    over = range(fit + 1, fit + 301)

    def start(counter: int) -> bytes:
        return frame(counter, b'{"ty":"llm.start","id":"%064d","rid":"%064d"}' % (counter, counter), b"")

    with Peer(settings) as peer:
        peer.answer()
        peer.send(*(start(counter) for counter in range(1, over.stop)))
        answers: list[int] = []
        while answers.count(over.stop - 1 | REFUSED) == 0:
            answers.append(peer.answer())
        assert max(answer for answer in answers if not answer & REFUSED) == fit
        assert [answer & ~REFUSED for answer in answers if answer & REFUSED] == list(over)

        end = b'{"ty":"llm.end","id":"R2","rid":"%064d","sid":"%064d","st":"complete"}' % (1, 1)
        peer.send(frame(over.stop, end, b""))
        assert peer.answer() == over.stop
        peer.send(start(over.stop + 1))
        assert peer.answer() == over.stop + 1

    assert writer.stop() == 0
    assert check(settings).ok


@pytest.mark.parametrize("hello", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", MAGIC[:-1] + b"\x02" + bytes(16), bytes(24)])
def test_a_peer_that_does_not_speak_the_protocol_is_hung_up_on(
    settings: AuditSettings, writer: WriterProcess, hello: bytes
) -> None:
    with Peer(settings, hello=hello) as stranger:
        assert stranger.was_hung_up_on()
    with Peer(settings) as peer:
        assert peer.answer() == 0
        peer.send(HEAD.pack(1 << 30, 1, 0, 0, 10))
        assert peer.was_hung_up_on()
    with Peer(settings) as peer:
        assert peer.answer() == 0

    assert writer.stop() == 0


def test_half_a_hello_or_half_a_frame_holds_up_nobody(settings: AuditSettings, writer: WriterProcess) -> None:
    with Peer(settings, hello=MAGIC), Peer(settings) as half:
        half.answer()
        half.send(frame(1, GOOD, b"x")[:20])
        with Peer(settings) as peer:
            assert peer.answer() == 0
            peer.send(frame(1, GOOD, b"x"))
            assert peer.answer() == 1
        half.send(frame(1, GOOD, b"x")[20:])
        assert half.answer() == 1

    assert writer.stop() == 0


def test_a_worker_that_never_reads_its_acknowledgements_hurts_itself_only(
    settings: AuditSettings, writer: WriterProcess
) -> None:
    with Peer(settings) as deaf, Peer(settings) as peer:
        deaf.answer()
        peer.answer()
        for number in range(1, 3_001):
            deaf.send(frame(number, GOOD, b""))
            if number % 500 == 0:
                peer.send(frame(number // 500, GOOD, b""))
                assert peer.answer() == number // 500

    assert writer.stop() == 0
    assert check(settings).ok


def test_a_small_segment_size_rotates_under_load(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, segment_bytes_max=20_000)
    with writer_process(settings) as writer:
        load = Load(settings, 10)
        load.grow(400)
        load.stop()

        assert writer.stop() == 0

    written = [record.id for record in records_in(settings.directory)]
    assert set(load.acknowledged) <= set(written)
    report = check(settings)
    assert report.ok
    assert report.segments > 5


def test_a_running_log_verifies_at_any_moment(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, segment_bytes_max=50_000)
    with writer_process(settings) as writer:
        load = Load(settings, 10)
        for _ in range(20):
            load.grow(30)
            report = check(settings)
            assert report.ok, report.findings
        load.stop()
        assert writer.stop() == 0

    assert check(settings).open_exchanges == 0


def test_an_old_segment_is_closed_without_further_traffic(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, segment_age_s=0.3)
    with writer_process(settings) as writer:
        journal = SocketJournal(settings)
        journal.record(event())

        wait_until(lambda: bool(list(settings.directory.glob("host/*.jsonl"))[1:]), writer.said, sleep=gevent.sleep)
        journal.close()
        assert writer.stop() == 0

    assert check(settings).ok


def test_a_second_writer_of_the_same_log_refuses_to_start(
    settings: AuditSettings, writer: WriterProcess, tmp_path: Path
) -> None:
    second = WriterProcess(settings.model_copy(update={"socket": tmp_path / "second.sock"}), tmp_path / "second.log")

    code, said = run_writer(second.settings)

    assert code == 2
    assert "Another audit writer holds" in said
    assert not (tmp_path / "second.sock").exists()
    assert writer.stop() == 0


def run_writer(settings: AuditSettings, **environment: str) -> tuple[int, str]:
    """Start a writer that is expected not to come up; its exit code and what it said."""
    kek = settings.kek
    done = subprocess.run(
        [sys.executable, "-m", "secure_llm_proxy.audit"],
        cwd=REPOSITORY,
        env={
            "PATH": os.environ["PATH"],
            "AUDIT_DIR": str(settings.directory),
            "AUDIT_KEYS_DIR": str(settings.keys_directory),
            "AUDIT_SOCKET": str(settings.socket),
            "AUDIT_HOST_ID": settings.host_id,
            "AUDIT_KEK": kek.get_secret_value() if kek else "",
            "ENV_FILE": os.devnull,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_writer_that_cannot_work_says_so_in_a_sentence_and_ends(settings: AuditSettings, tmp_path: Path) -> None:
    assert "holds no audit log yet" in run_writer(settings)[1]
    initialise(settings)

    for changed, expected in (
        ({"AUDIT_KEK": "00" * 32}, "wrapped by another AUDIT_KEK"),
        ({"AUDIT_KEK": "short"}, "AUDIT_KEK"),
        ({"AUDIT_KEK": ""}, "AUDIT_KEK"),
        ({"AUDIT_SOCKET": str(tmp_path / ("x" * 120))}, "choose a path below 100 characters"),
        ({"AUDIT_SOCKET": "/proc/nowhere/w.sock"}, "cannot listen"),
        ({"AUDIT_KEYS_DIR": str(tmp_path / "nowhere")}, "epoch key is lost"),
        ({"AUDIT_SEGMENT_BYTES_MAX": "many"}, "AUDIT_SEGMENT_BYTES_MAX"),
    ):
        code, said = run_writer(settings, **changed)
        assert code == 2, said
        assert expected in said
        assert "Traceback" not in said


def test_the_socket_is_for_owner_and_group_only(settings: AuditSettings, writer: WriterProcess) -> None:
    assert settings.socket.stat().st_mode & 0o777 == 0o660
    assert writer.stop() == 0


def test_readiness_is_told_to_systemd(settings: AuditSettings, tmp_path: Path) -> None:
    initialise(settings)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(WAIT_S)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "AUDIT_DIR": str(settings.directory)}
        process = subprocess.Popen(
            [sys.executable, "-m", "secure_llm_proxy.audit"],
            cwd=REPOSITORY,
            stderr=subprocess.DEVNULL,
            env={
                **environment,
                "PATH": os.environ["PATH"],
                "AUDIT_KEYS_DIR": str(settings.keys_directory),
                "AUDIT_SOCKET": str(settings.socket),
                "AUDIT_KEK": "5a" * 32,
                "ENV_FILE": os.devnull,
            },
        )
        try:
            assert systemd.recv(64) == b"READY=1"
            process.terminate()
            assert systemd.recv(64) == b"STOPPING=1"
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
            process.wait(WAIT_S)
