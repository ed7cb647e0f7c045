"""The process that answers readers: what it tells, whom it serves, and what it survives."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from secure_llm_proxy.audit import AuditReader, CheckpointRow, Row, Search, SocketJournal, initialise, log_lines
from secure_llm_proxy.audit.format import CheckpointLine, RecordLine, base64_text, leaf
from secure_llm_proxy.audit.reader_child import ReaderChild
from secure_llm_proxy.audit.writer import listen
from secure_llm_proxy.foundation.errors import EvidenceBroken, InvalidRequest, NotFound, Unavailable
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent, indexed_values
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from tests.support.audit_log import (
    REPOSITORY,
    WAIT_S,
    Reports,
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
    made = SocketJournal(settings)
    yield made
    made.close()


def record_all(journal: SocketJournal, events: list[AuditEvent]) -> None:
    for each in events[:-1]:
        journal.post(each)
    journal.record(events[-1])


def all_rows(reader: AuditReader, *, limit: int = 200) -> list[Row | CheckpointRow]:
    rows: list[Row | CheckpointRow] = []
    after, more = -1, True
    while more:
        tail = reader.tail(after, limit=limit)
        assert tail.broken is None
        rows += tail.rows
        after, more = tail.after, tail.more
    return rows


def records_of(rows: list[Row | CheckpointRow]) -> list[Row]:
    return [row for row in rows if isinstance(row, Row)]


def readers_started(writer: WriterProcess) -> list[int]:
    told = [json.loads(line) for line in writer.said().splitlines() if line.startswith("{")]
    return [line["pid"] for line in told if line["event"] == "reader_started"]


def talk(settings: AuditSettings, content: bytes) -> list[dict[str, Any]]:
    """What is answered to these bytes, until the other side hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(WAIT_S)
        peer.connect(str(settings.read_address))
        peer.sendall(content)
        peer.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := peer.recv(1 << 16):
            answer += piece
    return [orjson.loads(line) for line in answer.splitlines()]


def connected(settings: AuditSettings) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(WAIT_S)
    peer.connect(str(settings.read_address))
    return peer


# --- what it tells ----------------------------------------------------------------------------------------------------


def test_the_tail_is_every_record_in_order_and_where_it_stands(settings: AuditSettings, journal: SocketJournal) -> None:
    start = start_event()
    record_all(journal, [start, end_event(start), event(ak="AbCdEfGh"), event(body=b"x" * 100_000)])

    rows = records_of(all_rows(AuditReader(settings), limit=2))

    expected = records_in(settings.directory)
    assert [(row.place.n, row.id, row.type, row.exchange_id, row.t) for row in rows] == [
        (line.n, line.id, line.type, line.exchange_id, line.t) for line in expected
    ]
    assert rows[2].clear == {"ak": "AbCdEfGh"}
    assert rows[0].event == EventName.CHAT_REQUEST
    segment = next((settings.directory / "host").glob("00000001-*")).read_bytes()
    for row, line in zip(rows, expected, strict=True):
        raw = segment[row.place.offset : row.place.offset + row.place.size]
        assert raw.startswith(line.header)
        assert row.place.h == base64_text(leaf(raw))
        assert row.kid == line.kid


def test_a_record_that_was_acknowledged_is_in_the_next_tail(settings: AuditSettings, journal: SocketJournal) -> None:
    reader = AuditReader(settings)
    after = reader.tail(limit=1000).after

    for _ in range(50):
        made = event()
        journal.record(made)
        tail = reader.tail(after)
        after = tail.after

        assert [row.id for row in tail.rows if isinstance(row, Row)] == [made.id]


def test_checkpoints_are_told_as_they_stand(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, segment_bytes_max=4096)
    with writer_process(settings):
        journal = SocketJournal(settings)
        for _ in range(12):
            journal.record(event(body=b"x" * 1000))
        journal.close()

        told = [row for row in all_rows(AuditReader(settings)) if isinstance(row, CheckpointRow)]

    written = [item.line for item in log_lines(settings.directory) if isinstance(item.line, CheckpointLine)]
    assert told
    assert [(row.place.n, row.note) for row in told] == [(line.n, line.note) for line in written][: len(told)]


def test_a_tail_goes_on_over_rotations_and_a_segment_that_was_set_aside(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, segment_bytes_max=6000)
    sent: list[str] = []
    seen: list[str] = []
    with writer_process(settings) as writer:
        journal = SocketJournal(settings)
        reader = AuditReader(settings)
        after = -1
        for round_ in range(60):
            made = event(body=b"x" * 700)
            journal.record(made)
            sent.append(made.id)
            if round_ == 30:
                writer.kill()
                writer.start()
            tail = reader.tail(after)
            assert tail.broken is None
            after = tail.after
            seen += [row.id for row in tail.rows if isinstance(row, Row)]
        journal.close()
        states = {path.name.partition(".")[2] for path in (settings.directory / "host").glob("0*")}

    assert seen == sent
    assert states >= {"jsonl", "crashed.jsonl"}


def test_a_search_finds_by_what_stands_in_clear(settings: AuditSettings, journal: SocketJournal) -> None:
    events = [event(ak=f"key{number % 3}", mdl="demo", n_in=number) for number in range(30)]
    events.append(event(AuditType.ADMIN_INTENT, name=EventName.ADMIN_CHANGE, act="user.lock", by="user:usr_1"))
    record_all(journal, events)
    reader = AuditReader(settings)

    newest = reader.search(Search(clear={"ak": "key1"}), limit=3)
    next_ = reader.search(Search(clear={"ak": "key1"}), limit=100, position=newest.next)
    oldest = reader.search(Search(clear={"ak": "key1"}), limit=4, order="oldest")
    rest = reader.search(Search(clear={"ak": "key1"}), order="oldest", position=oldest.next)

    wanted = [made.id for made in events if made.clear.get("ak") == "key1"]
    assert [row.id for row in (*newest.rows, *next_.rows)] == wanted[::-1]
    assert newest.more
    assert not next_.more
    assert [row.id for row in (*oldest.rows, *rest.rows)] == wanted
    assert [row.id for row in reader.search(Search(user="usr_1")).rows] == [events[-1].id]
    assert [row.id for row in reader.search(Search(type="admin.intent", event="ADMIN_CHANGE")).rows] == [events[-1].id]
    assert [row.id for row in reader.search(Search(id=events[4].id)).rows] == [events[4].id]
    assert len(reader.search(Search(exchange_id=events[4].exchange_id)).rows) == 31
    assert reader.search(Search(clear={"n_in": 7})).rows[0].id == events[7].id
    assert reader.search(Search(clear={"n_in": "7"})).rows == ()
    assert reader.search(Search(clear={"n_in": True})).rows == ()


def test_a_search_is_bounded_by_time(settings: AuditSettings, journal: SocketJournal) -> None:
    record_all(journal, [event() for _ in range(9)])
    reader = AuditReader(settings)
    times = [row.t for row in reader.search(Search(), order="oldest").rows]

    found = reader.search(Search(since=times[3], until=times[6]), order="oldest")

    assert [row.t for row in found.rows] == [t for t in times if times[3] <= t < times[6]]
    assert reader.search(Search(until="2001-01-01T00:00:00.000000Z")).rows == ()
    assert reader.search(Search(since="2999-01-01T00:00:00.000000Z")).rows == ()


def test_lines_are_found_as_they_stand(settings: AuditSettings, journal: SocketJournal) -> None:
    start = start_event()
    record_all(journal, [start, event(exchange="exc_other"), end_event(start)])
    reader = AuditReader(settings)

    found = reader.find(start.id)
    by_number = reader.lines([line.place.n for line in found.lines], hashes=[line.place.h for line in found.lines])

    lines = {item.raw for item in log_lines(settings.directory) if isinstance(item.line, RecordLine)}
    assert len(found.lines) == 2
    assert {line.raw for line in found.lines} < lines
    assert by_number == found.lines
    assert reader.lines([0, 10_000])[0].raw.startswith(b'{"k":"seg"')
    with pytest.raises(NotFound):
        reader.find("exc_nobody")
    with pytest.raises(EvidenceBroken):
        reader.lines([found.lines[0].place.n], hashes=[found.lines[1].place.h])


def test_records_are_found_by_the_index_of_what_is_sealed(settings: AuditSettings, journal: SocketJournal) -> None:
    made = event()._replace(indexed=indexed_values(address="192.0.2.7", agent="curl/8 " + "x" * 2000))
    record_all(journal, [event(), made, event()._replace(indexed=indexed_values(address="192.0.2.8"))])
    reader = AuditReader(settings)

    by_address = reader.search(Search(clear={"ipx": reader.blind("ipx", "192.0.2.7")}))
    by_agent = reader.search(
        Search(clear={"uax": reader.blind("uax", indexed_values(agent="curl/8 " + "x" * 2000)["uax"])})
    )

    assert [row.id for row in by_address.rows] == [row.id for row in by_agent.rows] == [made.id]
    assert reader.search(Search(clear={"emx": reader.blind("emx", "192.0.2.7")})).rows == ()
    for name, value in (("sub", "x"), ("ipx", ""), ("ipx", "x" * 2000)):
        with pytest.raises(InvalidRequest):
            reader.blind(name, value)


def test_the_state_is_that_of_the_log(settings: AuditSettings, journal: SocketJournal) -> None:
    journal.record(event())

    state = AuditReader(settings).state()

    assert state["log"] == "slp.default/host"
    assert (state["segments"], state["oldest"], state["newest"]) == (1, 1, 1)
    assert state["lines"] >= 4


# --- what does not verify is not shown --------------------------------------------------------------------------------


def test_a_line_that_was_altered_is_told_and_not_shown(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, segment_bytes_max=5000)
    with writer_process(settings):
        journal = SocketJournal(settings)
        events = [event(body=b"x" * 700, mark=f"m{number:02d}") for number in range(20)]
        for each in events:
            journal.record(each)
        journal.close()
        reader = AuditReader(settings)
        victim = reader.search(Search(clear={"mark": "m03"})).rows[0]
        path = next((settings.directory / "host").glob(f"{victim.place.segment:08d}-*"))
        path.chmod(0o640)
        with path.open("r+b") as stream:
            stream.seek(victim.place.offset)
            raw = stream.read(victim.place.size)
            stream.seek(victim.place.offset)
            stream.write(raw.replace(b'"m03"', b'"m04"'))

        tail = reader.tail(-1, limit=1000)
        found = reader.search(Search(clear={"mark": "m04"}))
        rest = reader.tail(tail.after, limit=1000)

        assert tail.broken is not None
        assert tail.broken.segment == victim.place.segment
        assert tail.broken.n == victim.place.n + 1
        assert tail.more
        assert {row.place.n for row in tail.rows} == {row.place.n for row in tail.rows if row.place.n < victim.place.n}
        assert {row.place.segment for row in rest.rows} == set(
            range(victim.place.segment + 1, rest.rows[-1].place.segment + 1)
        )
        assert [row.place.n > victim.place.n for row in found.rows] in ([], [True])
        assert [broken.segment for broken in found.broken] == [victim.place.segment]
        with pytest.raises(EvidenceBroken):
            reader.lines([victim.place.n])
        with pytest.raises(EvidenceBroken):
            reader.find(victim.id)


# --- the process ------------------------------------------------------------------------------------------------------


def test_nobody_answers_before_somebody_asks_and_everybody_gets_the_same_process(
    settings: AuditSettings, writer: WriterProcess
) -> None:
    assert readers_started(writer) == []
    reader = AuditReader(settings)

    for _ in range(3):
        reader.state()

    assert len(readers_started(writer)) == 1


def test_after_a_crash_the_next_reader_is_answered(settings: AuditSettings, writer: WriterProcess) -> None:
    reader = AuditReader(settings)
    for killed in range(2):
        reader.state()
        pids = readers_started(writer)
        assert len(pids) == killed + 1
        os.kill(pids[-1], signal.SIGKILL)

    reader.state()

    wait_until(lambda: writer.said().count('"reader_failed"') == 2)


def test_it_ends_with_the_writer(settings: AuditSettings, writer: WriterProcess) -> None:
    AuditReader(settings).state()
    (pid,) = readers_started(writer)

    writer.kill()

    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_it_ends_when_the_writer_is_stopped_and_leaves_nothing(settings: AuditSettings, writer: WriterProcess) -> None:
    AuditReader(settings).state()
    (pid,) = readers_started(writer)

    assert writer.stop() == 0

    assert not Path(f"/proc/{pid}").exists()
    assert not settings.read_address.exists()
    assert check(settings).ok
    with pytest.raises(Unavailable):
        AuditReader(settings).state()


def test_a_new_writer_has_a_new_reader(settings: AuditSettings, writer: WriterProcess) -> None:
    reader = AuditReader(settings)
    before = reader.state()["lines"]

    for _ in range(2):
        writer.kill()
        writer.start()
        after = reader.state()["lines"]
        assert after > before
        before = after


def test_it_ends_when_nobody_comes_and_starts_again_when_somebody_does(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    initialise(settings)
    with writer_process(settings) as writer:
        writer.stop()
    listener = listen(settings.read_address)
    reports = Reports()
    child = ReaderChild(settings, listener, reports, idle_s=0.3)
    pids = []
    with select.epoll() as epoll:
        child.watch(epoll)

        def turn() -> None:
            for descriptor, _ in epoll.poll(0.02):
                assert child.hear(descriptor)
            child.tick((4, bytes(32)))

        for _ in range(2):
            asking = threading.Thread(target=AuditReader(settings).state)
            asking.start()
            wait_until(lambda asking=asking: not asking.is_alive(), sleep=lambda _: turn())  # type: ignore[misc]
            pids.append(child.pid)
            wait_until(lambda: child.pid is None, sleep=lambda _: turn())
        child.stop()

    assert len(set(pids)) == 2
    assert reports.names == []


# --- bad guests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b'{"op":"drop"}\n',
        b'{"op":["tail"]}\n',
        b'{"op":"tail","after":"1"}\n',
        b'{"op":"tail","after":-2}\n',
        b'{"op":"tail","after":1e400}\n',
        b'{"op":"tail","limit":0}\n',
        b'{"op":"tail","limit":100000}\n',
        b'{"op":"tail","limit":true}\n',
        b'{"op":"lines"}\n',
        b'{"op":"lines","n":[]}\n',
        b'{"op":"lines","n":[-1]}\n',
        b'{"op":"lines","n":[0],"h":[]}\n',
        b'{"op":"lines","n":' + orjson.dumps(list(range(1001))) + b"}\n",
        b'{"op":"find"}\n',
        b'{"op":"find","id":""}\n',
        b'{"op":"find","id":"' + b"x" * 300 + b'"}\n',
        b'{"op":"search","filters":[]}\n',
        b'{"op":"search","filters":{"what":1}}\n',
        b'{"op":"search","filters":{"since":"yesterday"}}\n',
        b'{"op":"search","filters":{"since":"2026-13-77T00:00:00.000000Z"}}\n',
        b'{"op":"search","filters":{"clear":{"ak":[1]}}}\n',
        b'{"op":"search","filters":{"clear":{"a\\"b":"1"}}}\n',
        b'{"op":"search","order":"random"}\n',
        b'{"op":"tail"}\n{"op":"tail"}\n',
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * (1 << 20),
        b"[" * 60_000 + b"\n",
    ],
    ids=lambda request_: repr(request_[:48]),
)
def test_nonsense_is_told_so(shared: AuditSettings, request_: bytes) -> None:
    try:
        answer = talk(shared, request_)
    except ConnectionError:
        # It hung up while we were still talking.
        answer = [{"error": {"code": "invalid_value"}}]

    assert [line["error"]["code"] for line in answer] == ["invalid_value"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditSettings]:
    settings = audit_settings(tmp_path_factory.mktemp("reader"))
    with writer_process(settings):
        yield settings


def test_a_mistake_of_the_caller_is_an_invalid_request(shared: AuditSettings) -> None:
    with pytest.raises(InvalidRequest):
        AuditReader(shared).tail(-1, limit=100_000)


def test_half_a_request_and_silence_cost_nobody_else_anything(shared: AuditSettings) -> None:
    with ExitStack() as stack:
        for content in (b"", b'{"op":', b'{"op":"tail"}'):
            peer = stack.enter_context(connected(shared))
            peer.sendall(content)

        for _ in range(5):
            AuditReader(shared).state()


def test_two_hundred_connections_leave_the_writer_and_other_processes_alone(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    reader = AuditReader(settings)
    reader.state()
    with ExitStack() as stack:
        for _ in range(200):
            peer = stack.enter_context(connected(settings))
            # Where there is no room for one more it may be turned away before it speaks.
            with suppress(BrokenPipeError):
                peer.sendall(b'{"op":"tail"')

        for _ in range(20):
            journal.record(event())
        # The reader is a moment behind the writer.
        wait_until(lambda: reader.state()["lines"] > 20)
        answers = talk_from_another_process(settings)

    assert answers["lines"] > 20
    assert len(readers_started(writer)) == 1


def talk_from_another_process(settings: AuditSettings) -> dict[str, Any]:
    program = (
        "import sys, orjson; from pathlib import Path; from tests.support.audit_log import *;"
        "from secure_llm_proxy.audit import AuditReader\n"
        "print(orjson.dumps(dict(AuditReader(audit_settings(Path(sys.argv[1]))).state())).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(settings.directory.parent)],
        cwd=REPOSITORY,
        timeout=2 * WAIT_S,
        check=True,
        capture_output=True,
    )
    answer: dict[str, Any] = orjson.loads(done.stdout)
    return answer


def test_who_does_not_read_the_answer_holds_nothing_up(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    record_all(journal, [event(body=b"x" * 400_000) for _ in range(8)])
    ids = [row.place.n for row in AuditReader(settings).search(Search()).rows]
    with ExitStack() as stack:
        for _ in range(6):
            peer = stack.enter_context(connected(settings))
            peer.sendall(orjson.dumps({"op": "lines", "n": ids}) + b"\n")

        for _ in range(10):
            journal.record(event())
            assert AuditReader(settings).state()["segments"] == 1
            assert len(AuditReader(settings).lines(ids[:2])) == 2


def test_a_reader_killed_in_mid_answer_is_told_as_away(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    record_all(journal, [event(body=b"x" * 400_000) for _ in range(8)])
    reader = AuditReader(settings)
    ids = [row.place.n for row in reader.search(Search()).rows]
    outcomes: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                assert len(reader.lines(ids)) == 8
                outcomes.append("whole")
            except Unavailable:
                outcomes.append("away")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        count = outcomes.count("whole")
        wait_until(lambda count=count: outcomes.count("whole") > count + 2)  # type: ignore[misc]
        os.kill(readers_started(writer)[-1], signal.SIGKILL)
        journal.record(event())
    count = outcomes.count("whole")
    wait_until(lambda: outcomes.count("whole") > count)
    stop.set()
    for thread in threads:
        thread.join(WAIT_S)

    assert "whole" in outcomes


def test_the_patience_of_a_caller_is_kept(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(settings.read_address))
        silent.listen(1)
        begun = time.monotonic()

        with pytest.raises(Unavailable):
            AuditReader(settings, patience_s=0.2).state()

        assert time.monotonic() - begun < WAIT_S
