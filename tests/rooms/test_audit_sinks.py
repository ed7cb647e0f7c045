"""The real writer with a second sink and with anchors: which come and go while the product goes on, or does not."""

from __future__ import annotations

import signal
import socket
import uuid
from pathlib import Path
from typing import Self

import gevent
import pytest

from secure_llm_proxy.audit import SocketJournal, initialise, log_lines, transient_writer, verify
from secure_llm_proxy.audit.frames import frame
from secure_llm_proxy.audit.signed_tree import read_anchors
from secure_llm_proxy.audit.state import read_state
from secure_llm_proxy.foundation.errors import OperatorError, Unavailable
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import (
    KEK,
    audit_settings,
    check,
    event,
    records_in,
    wait_until,
    writer_process,
)
from tests.support.syslog_receiver import SyslogReceiver
from tests.support.writer_peer import Peer

GOOD = b'{"ty":"llm.refused","id":"R%d","rid":"exc_1"}'


def _log(settings: AuditSettings) -> list[bytes]:
    return [item.raw for item in log_lines(settings.directory)]


def _alarms(settings: AuditSettings) -> list[object]:
    return [record.clear["what"] for record in records_in(settings.directory) if record.type == "audit.trouble"]


def _troubles(settings: AuditSettings) -> tuple[str, ...]:
    state = read_state(settings.state_path)
    return state.troubles if state else ()


def test_with_any_a_sink_that_went_away_under_load_stops_nobody_and_gets_everything_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sink" / "copy.jsonl"
    path.parent.mkdir()
    settings = audit_settings(tmp_path, sink=f"file:{path}", segment_bytes_max=30_000)
    with writer_process(settings) as writer:
        journal = SocketJournal(settings)
        for number in range(60):
            if number == 20:
                path.parent.rename(tmp_path / "moved")
            if number == 40:
                wait_until(lambda: '"event": "trouble"' in writer.said(), writer.said, sleep=gevent.sleep)
                # Said first, and then written.
                wait_until(lambda: _troubles(settings) != (), writer.said, sleep=gevent.sleep)
                state = read_state(settings.state_path)
                assert state is not None
                assert "No such file or directory" in state.troubles[0]
                assert state.sinks[0].behind > 0
                path.parent.mkdir()
            journal.record(event(body=bytes(700)))
        journal.close()
        wait_until(lambda: '"event": "trouble_over"' in writer.said(), writer.said, sleep=gevent.sleep)
        assert writer.stop() == 0

    copies = (tmp_path / "moved" / path.name).read_bytes() + path.read_bytes()
    assert copies.splitlines() == _log(settings)
    assert _alarms(settings) == ["sink"]
    assert not settings.state_path.exists()
    report = check(settings)
    assert report.ok
    assert [finding.what for finding in report.findings if "no file of the log" in finding.what] == []


def test_with_all_nobody_is_told_that_something_is_recorded_before_the_sink_has_it(tmp_path: Path) -> None:
    with SyslogReceiver("tcp") as first:
        settings = audit_settings(tmp_path, sink=f"syslog:{first.address}", sink_policy="all")
        with writer_process(settings) as writer:
            worker = uuid.uuid4()
            with Peer(settings, worker) as peer:
                assert peer.answer() == 0
                peer.send(frame(1, GOOD % 1, b"secret"))
                assert peer.answer() == 1
                # Its kernel has it; its thread may take a moment.
                wait_until(lambda: any(told.get("id") == "R1" for told in first.told), writer.said)

                first.close()
                peer.send(frame(2, GOOD % 2, b"secret"))
                assert peer.was_hung_up_on()
            hasty = SocketJournal(settings.model_copy(update={"patience_s": 0.5}))
            with pytest.raises(Unavailable):
                hasty.record(event())
            assert hasty.trouble() is not None
            assert _answers(settings, worker) == -1

            with SyslogReceiver("tcp", port=first.port) as second:
                # What was not told as recorded stands in the log all the same, and is not written twice.
                wait_until(lambda: _answers(settings, worker) == 2, writer.said)
                wait_until(lambda: hasty.trouble() is None, writer.said, sleep=gevent.sleep)
                hasty.close()
                journal = SocketJournal(settings)
                journal.record(event())
                journal.close()
                assert writer.stop() == 0
                # The kernel has it; the receiver's thread may take a moment.
                every = set(range(len(_log(settings))))
                wait_until(lambda: {line["n"] for line in first.told + second.told} >= every, writer.said)
                told = first.told + second.told

    assert {line["n"] for line in told} == every
    assert b"secret" not in b"".join([*first.raw, *second.raw])
    assert _alarms(settings) == ["sink"]
    assert check(settings).ok


def _answers(settings: AuditSettings, worker: uuid.UUID) -> int:
    """What the writer has of this worker; -1 while it lets nobody in."""
    try:
        with Peer(settings, worker) as peer:
            return peer.answer()
    except (AssertionError, ConnectionResetError, BrokenPipeError):
        return -1


def test_a_writer_that_is_killed_between_log_and_sink_makes_up_for_it_before_anybody_is_let_in(tmp_path: Path) -> None:
    path = tmp_path / "dev-log"
    with SyslogReceiver("unix", path=path) as receiver:
        settings = audit_settings(tmp_path, sink=f"syslog:{path}", sink_policy="all")
        with writer_process(settings) as writer:
            with Peer(settings) as peer:
                peer.answer()
                peer.send(frame(1, GOOD % 1, b""))
                assert peer.answer() == 1
                receiver.close()
                path.unlink()
                peer.send(frame(2, GOOD % 2, b""))
                assert peer.was_hung_up_on()
            writer.kill()

            with SyslogReceiver("unix", path=path) as second:
                writer.start()
                wait_until(lambda: _answers(settings, peer.worker) == 2, writer.said)
                wait_until(lambda: any(told.get("id") == "R2" for told in second.told), writer.said)
                assert writer.stop() == 0
    assert check(settings).ok


def test_a_tcp_receiver_that_stops_reading_holds_up_nobody_with_any(tmp_path: Path) -> None:
    with Deaf() as deaf:
        settings = audit_settings(tmp_path, sink=f"syslog:tcp://127.0.0.1:{deaf.port}")
        with writer_process(settings) as writer:
            journal = SocketJournal(settings)
            for _ in range(300):
                journal.record(event(filler="x" * 15_000))
            wait_until(lambda: '"event": "trouble"' in writer.said(), writer.said, sleep=gevent.sleep)
            journal.close()
            writer.signal(signal.SIGTERM)
            assert writer.stop() == 0
    assert _alarms(settings) == ["sink"]
    assert check(settings).ok


class Deaf:
    """Accepts connections and never reads."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(100)
        self.port = int(self._socket.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_a_sink_that_nobody_understands_keeps_the_writer_from_starting(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, sink="syslog:nowhere")
    initialise(settings)

    with pytest.raises(OperatorError, match="AUDIT_SINK"), transient_writer(settings):
        """It does not come up."""


def test_anchors_outside_hold_the_log_to_what_it_said(tmp_path: Path) -> None:
    with SyslogReceiver("udp") as receiver:
        settings = audit_settings(
            tmp_path,
            anchor_file=tmp_path / "anchors.jsonl",
            anchor_syslog=receiver.address,
            checkpoint_s=0.1,
        )
        with writer_process(settings) as writer:
            journal = SocketJournal(settings)
            journal.record(event())
            wait_until(lambda: len(receiver.raw) == 1, writer.said, sleep=gevent.sleep)
            journal.record(event())
            journal.close()
            wait_until(lambda: _anchored(settings) == {"file", "syslog"}, writer.said, sleep=gevent.sleep)
            state = read_state(settings.state_path)
            assert state is not None
            assert not state.is_anchored_off_host
            assert state.checkpoint_n is not None
            assert state.troubles == ()
            assert writer.stop() == 0
        # Sent is not yet taken by the receiver's thread.
        wait_until(lambda: len(receiver.raw) >= 2)

    notes = read_anchors(tmp_path / "anchors.jsonl")
    assert [told["note"] for told in receiver.told] == notes
    assert len(notes) == 2
    report = verify(settings.directory, genesis_public_key=None, kek=KEK, anchors=notes)
    assert report.ok, report.findings
    assert report.anchors_met == 2
    last = max((settings.directory / "host").glob("*.jsonl"))
    last.chmod(0o640)
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-3]))
    assert not verify(settings.directory, genesis_public_key=None, kek=KEK, anchors=notes).ok


def _anchored(settings: AuditSettings) -> set[str]:
    state = read_state(settings.state_path)
    return {anchor.name for anchor in state.anchors if anchor.n is not None} if state else set()
