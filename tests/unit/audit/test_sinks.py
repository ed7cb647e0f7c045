"""The second place for every record: it gets every line once, whatever happened to it in between."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from secure_llm_proxy.audit import initialise, log_lines
from secure_llm_proxy.audit.appender import Appender
from secure_llm_proxy.audit.following import NumberedLine
from secure_llm_proxy.audit.format import base64_text, leaf
from secure_llm_proxy.audit.segments import LogDirectories, strangers_in
from secure_llm_proxy.audit.sinks import FileSink, SecondSink, Sink, SinkAway, message_of, sink_of
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import Reports, appender, audit_settings, entry, wait_until


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return audit_settings(tmp_path)


@pytest.fixture
def log(settings: AuditSettings) -> Appender:
    made = appender(initialise(settings))
    made.open_segment()
    return made


class Scripted:
    """A sink in memory that can be told to refuse, or to hang."""

    def __init__(self) -> None:
        self.lines: list[NumberedLine] = []
        self.refuses = False
        self.may_answer = threading.Event()
        self.may_answer.set()

    def resume(self) -> NumberedLine | None:
        return None

    def take(self, lines: Sequence[NumberedLine]) -> None:
        self.may_answer.wait(30)
        if self.refuses:
            raise SinkAway("it does not want to")
        self.lines += lines

    def close(self) -> None:
        """Nothing to hang up."""


def second(settings: AuditSettings, sink: Sink, reports: Reports | None = None, name: str = "file:/x") -> SecondSink:
    return SecondSink(
        sink, LogDirectories(settings.directory / "host"), name=name, needed=True, report=reports or Reports()
    )


def _log(settings: AuditSettings) -> list[bytes]:
    return [item.raw for item in log_lines(settings.directory)]


def test_a_file_gets_every_line_of_the_log_as_it_stands(settings: AuditSettings, log: Appender, tmp_path: Path) -> None:
    path = tmp_path / "copy.jsonl"
    sink = second(settings, FileSink(path))
    sink.start(log.settled)

    for counter in range(1, 30):
        log.commit([entry(counter, body=bytes(300_000) if counter == 5 else b"x")])
        assert sink.has_taken(log.settled, 30)
        if counter == 10:
            log.rotate()
    log.close_segment("stop")
    sink.stop(log.settled, 30)

    assert path.read_bytes().splitlines() == _log(settings)
    assert path.stat().st_mode & 0o777 == 0o640
    assert strangers_in(settings.directory / "host") == []


def test_a_file_is_gone_on_with_after_a_restart_and_what_a_crash_left_is_cut_off(
    settings: AuditSettings, log: Appender, tmp_path: Path
) -> None:
    path = tmp_path / "copy.jsonl"
    first = second(settings, FileSink(path))
    first.start(log.settled)
    log.commit([entry(1)])
    first.stop(log.settled, 30)
    with path.open("ab") as torn:
        torn.write(b'{"k":"rec","n":99,"half')
    log.commit([entry(2), entry(3)])

    again = second(settings, FileSink(path))
    again.start(log.settled)
    again.stop(log.settled, 30)

    assert path.read_bytes().splitlines() == _log(settings)


def test_a_file_that_was_moved_away_is_begun_anew_and_nothing_is_missing(
    settings: AuditSettings, log: Appender, tmp_path: Path
) -> None:
    path = tmp_path / "copy.jsonl"
    sink = second(settings, FileSink(path))
    sink.start(log.settled)
    log.commit([entry(1)])
    assert sink.has_taken(log.settled, 30)
    path.rename(tmp_path / "copy.1")

    log.commit([entry(2)])
    assert sink.has_taken(log.settled, 30)
    sink.stop(log.settled, 30)
    path.rename(tmp_path / "copy.2")
    log.commit([entry(3)])
    again = second(settings, FileSink(path))
    again.start(log.settled)
    again.stop(log.settled, 30)

    copies = b"".join((tmp_path / name).read_bytes() for name in ("copy.1", "copy.2", "copy.jsonl"))
    assert copies.splitlines() == _log(settings)


def test_a_sink_whose_directory_was_removed_is_caught_up_when_it_is_back(
    settings: AuditSettings, log: Appender, tmp_path: Path
) -> None:
    path = tmp_path / "gone" / "copy.jsonl"
    reports = Reports()
    sink = second(settings, FileSink(path), reports)
    sink.start(log.settled)
    log.commit([entry(1)])

    assert not sink.has_taken(log.settled, 30)
    assert sink.trouble is not None
    assert "No such file or directory" in sink.trouble
    path.parent.mkdir()
    wait_until(lambda: sink.trouble is None)

    assert sink.has_taken(log.settled, 30)
    sink.stop(log.settled, 30)
    assert path.read_bytes().splitlines() == _log(settings)


def test_a_sink_that_hangs_costs_a_bounded_time_and_then_gets_everything(
    settings: AuditSettings, log: Appender
) -> None:
    scripted = Scripted()
    scripted.may_answer.clear()
    sink = second(settings, scripted)
    sink.start(log.settled)
    log.commit([entry(1)])

    assert not sink.has_taken(log.settled, 0.1)
    assert sink.behind
    scripted.may_answer.set()

    assert sink.has_taken(log.settled, 30)
    sink.stop(log.settled, 30)
    assert [line.raw for line in scripted.lines] == _log(settings)


def test_a_receiver_goes_on_where_it_was_after_a_restart(settings: AuditSettings, log: Appender) -> None:
    first, later, other = Scripted(), Scripted(), Scripted()
    one = second(settings, first, name="syslog:/dev/log")
    one.start(log.settled)
    log.commit([entry(1)])
    one.stop(log.settled, 30)
    log.rotate()
    log.commit([entry(2)])

    two = second(settings, later, name="syslog:/dev/log")
    two.start(log.settled)
    two.stop(log.settled, 30)
    three = second(settings, other, name="syslog:tcp://192.0.2.1:601")
    three.start(log.settled)
    three.stop(log.settled, 30)

    assert [line.raw for line in first.lines + later.lines] == _log(settings)
    assert other.lines[0].raw.startswith(b'{"k":"seg"')
    assert other.lines[0].n > 0


def test_lines_that_were_gone_before_the_sink_came_back_are_told(settings: AuditSettings, log: Appender) -> None:
    scripted, reports = Scripted(), Reports()
    one = second(settings, scripted)
    one.start(log.settled)
    log.commit([entry(1)])
    one.stop(log.settled, 30)
    log.commit([entry(2)])
    log.rotate()
    log.commit([entry(3)])
    next((settings.directory / "host").glob("00000001-*")).unlink()

    two = second(settings, scripted, reports)
    two.start(log.settled)
    assert two.has_taken(log.settled, 30)
    two.stop(log.settled, 30)

    assert reports.names == ["sink_missed_lines"]
    (missed,) = two.missed()
    assert "were gone before the second sink file:/x could take them" in missed
    assert two.missed() == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"root:x:0:0\n", "holds something else"),
        (b"no line at all", "holds something else"),
        (b'{"k":"rec","n":4000,"t":"x"}\n', "is ahead of the log"),
        (b'{"k":"rec","n":1,"t":"x"}\n', "is not line 1 of the log"),
    ],
)
def test_a_file_that_holds_anything_else_is_not_written_to(
    settings: AuditSettings, log: Appender, tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    log.commit([entry(1)])
    sink = second(settings, FileSink(path))

    sink.start(log.settled)
    wait_until(lambda: sink.trouble is not None)
    told = sink.trouble
    sink.stop(log.settled, 1)

    assert told is not None
    assert why in told
    assert path.read_bytes() == content


def test_a_sink_that_is_no_file_is_not_written_to(settings: AuditSettings, log: Appender) -> None:
    log.commit([entry(1)])
    sink = second(settings, FileSink(Path("/dev/null")))

    sink.start(log.settled)
    wait_until(lambda: sink.trouble is not None)
    told = sink.trouble
    sink.stop(log.settled, 1)

    assert told is not None
    assert "is no regular file" in told


@pytest.mark.parametrize("kek", ["5a" * 32, None])
def test_what_leaves_by_syslog_is_clear_and_says_what_the_line_hashes_to(tmp_path: Path, kek: str | None) -> None:
    settings = audit_settings(tmp_path, kek=kek, encryption_enabled=kek is not None)
    log = appender(initialise(settings), kek=kek)
    log.open_segment()
    log.commit([entry(1, kind="llm.start", body=b"the canary", mdl='a","ct":"b'), entry(2, body=bytes(400_000))])
    log.close_segment("stop")
    items = list(log_lines(settings.directory))

    for n, item in enumerate(items):
        message = message_of(NumberedLine(n, item.raw))
        told = json.loads(message.text)
        brief = json.loads(message.brief)
        assert told["h"] == brief["h"] == base64_text(leaf(item.raw))
        assert told["n"] == brief["n"] == n
        assert told["t"] == message.t
        assert not {"ct", "pt", "wk", "carry", "edge", "prev"} & set(told)
        assert len(message.text) < 2_000
    start = json.loads(message_of(NumberedLine(0, next(i.raw for i in items if b"llm.start" in i.raw))).text)
    assert start["mdl"] == 'a","ct":"b'
    assert start["id"] == "R0001"


@pytest.mark.parametrize("text", ["file:relative", "file", "/var/log/x", "syslog:", "syslog:tls://x:1", "http://x"])
def test_a_sink_that_nobody_understands_is_refused(settings: AuditSettings, text: str) -> None:
    with pytest.raises(OperatorError, match="AUDIT_SINK"):
        sink_of(settings.model_copy(update={"sink": text}), "host")


def test_no_sink_is_none(settings: AuditSettings) -> None:
    assert sink_of(settings, "host") is None
