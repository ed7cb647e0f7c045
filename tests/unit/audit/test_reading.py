from __future__ import annotations

from pathlib import Path

import pytest

from secure_llm_proxy.audit import (
    RecordLine,
    find_log,
    find_records,
    log_lines,
    open_records,
    segments_in,
    size_of,
    stored_lines,
)
from secure_llm_proxy.audit.genesis import initialise
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import EXCHANGE, KEK, appender, audit_settings, entry, write_log


def test_all_lines_come_in_order_of_the_log(tmp_path: Path) -> None:
    write_log(tmp_path, [[entry(1)], [entry(2)], [entry(3)]])

    lines = list(log_lines(tmp_path / "audit"))

    assert [item.line.n for item in lines if item.line] == list(range(18))
    assert [item.number for item in lines] == [1, 2, 3, 4, 5, 6] * 3


def test_lines_are_the_same_whether_they_are_parsed_or_not(tmp_path: Path) -> None:
    genesis = write_log(tmp_path, [[entry(1), entry(2)]])
    for first in (3, 5):
        crashed = appender(genesis)
        crashed.open_segment()
        crashed.commit([entry(first), entry(first + 1)])
        # Torn, with a whole line in it: what a power cut may leave.
        with max(genesis.directory.glob("0*.open")).open("ab") as stream:
            stream.write(b'{"k":"rec"}\n{"k":"re')
    second = tmp_path / "second"
    second.mkdir()
    closed = next(genesis.directory.glob("00000001-*.jsonl"))
    closed.rename(second / closed.name)
    directories = find_log(genesis.directory, also=second)

    stored = list(stored_lines(directories.segments()))

    parsed = list(log_lines(genesis.directory, also=second))
    assert [(line.file, line.number, line.raw) for line in stored] == [
        (item.file, item.number, item.raw) for item in parsed
    ]
    assert [line.n for line in stored] == [item.line.n for item in parsed if item.line] == list(range(len(stored)))
    for line in stored:
        assert line.file.path.read_bytes()[line.offset :].startswith(line.raw + b"\n")


def test_what_is_retired_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    genesis = write_log(tmp_path, [[entry(1)], [entry(2)], [entry(3)]])
    segments = segments_in(genesis.directory)
    for segment in segments[:2]:
        segment.path.unlink()

    assert {line.file.number for line in stored_lines(segments)} == {3}
    assert size_of(segments) == segments[2].path.stat().st_size


def test_a_record_is_found_by_its_id_its_exchange_and_its_start(tmp_path: Path) -> None:
    write_log(
        tmp_path, [[entry(1, kind="llm.start")], [entry(2, kind="llm.end", sid="R0001", st="complete"), entry(3)]]
    )

    def found(identifier: str) -> list[str]:
        return [
            item.line.id for item in find_records(tmp_path / "audit", identifier) if isinstance(item.line, RecordLine)
        ]

    assert found("R0003") == ["R0003"]
    assert found("R0001") == ["R0001", "R0002"]
    assert found(EXCHANGE) == ["R0001", "R0002", "R0003"]
    assert found("complete") == []
    assert found("ä") == []


def test_bodies_open_with_the_kek_of_every_segment(tmp_path: Path) -> None:
    write_log(tmp_path, [[entry(1, body=b"one")], [entry(2, body=b"two"), entry(3, body=b"")]])

    opened = open_records(tmp_path / "audit", EXCHANGE, KEK)

    assert [(item.body, item.problem) for item in opened] == [(b"one", None), (b"two", None), (b"", None)]


def test_a_body_that_travelled_in_parts_is_whole_again(tmp_path: Path) -> None:
    parts = [entry(n, kind="llm.part", pt_of="R0003", seq=n - 1, last=n == 2, body=b"%d;" % n) for n in (1, 2)]
    write_log(tmp_path, [[parts[0]], [parts[1], entry(3, kind="llm.start", parts=2, body=b"")]])

    for identifier in ("R0003", EXCHANGE):
        (opened,) = open_records(tmp_path / "audit", identifier, KEK)
        assert opened.record.id == "R0003"
        assert opened.body == b"1;2;"
    (part,) = open_records(tmp_path / "audit", "R0002", KEK)
    assert part.body == b"2;"


def test_without_the_right_key_a_record_is_shown_and_its_body_is_not(tmp_path: Path) -> None:
    write_log(tmp_path, [[entry(1)]])

    for key in (None, "00" * 32):
        (opened,) = open_records(tmp_path / "audit", "R0001", key)
        assert opened.body is None
        assert opened.problem is not None
    with pytest.raises(OperatorError):
        open_records(tmp_path / "audit", "R0001", "no key")


def test_a_log_without_encryption_needs_no_key(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path, kek=None, encryption_enabled=False))
    log = appender(genesis, kek=None)
    log.open_segment()
    log.commit([entry(1, body=b"clear")])

    (opened,) = open_records(tmp_path / "audit", "R0001", None)

    assert opened.body == b"clear"


def test_what_is_not_part_of_the_log_is_not_shown(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path))
    log = appender(genesis)
    log.open_segment()
    log.commit([entry(1)])
    (running,) = genesis.directory.glob("*.open")
    line = running.read_bytes().splitlines()[-1]
    with running.open("ab") as stream:
        stream.write(b"garbage\n" + line + b"\n" + line[:50])

    before = len(list(log_lines(genesis.directory)))
    again = appender(genesis)
    again.open_segment()

    assert before == 4
    assert len(find_records(genesis.directory, "R0001")) == 1
    assert all(item.line for item in log_lines(genesis.directory))
