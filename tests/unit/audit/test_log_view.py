"""The log as readers see it: nothing out of place, nothing twice, nothing that may vanish."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_llm_proxy.audit.format import leaf
from secure_llm_proxy.audit.log_view import ChainBroken, Durable, LogView, PlacedLine
from tests.support.audit_log import entry, write_log


def lines_of(view: LogView, start: int = 0) -> list[PlacedLine]:
    files = view.files()
    return [
        line
        for position in range(view.position_of(files, start), len(files))
        for line in view.walk(files, position, start)
    ]


def raw_lines_in(directory: Path) -> list[bytes]:
    return [raw for path in sorted(directory.glob("0*")) for raw in path.read_bytes().splitlines()]


def test_every_line_is_there_once_from_wherever_one_begins(tmp_path: Path) -> None:
    directory = write_log(tmp_path).directory
    written = raw_lines_in(directory)
    view = LogView(directory, lambda: None)

    for start in range(len(written)):
        found = lines_of(view, start)
        view.resume_behind(found[0])

        assert [line.raw for line in found] == written[start:]
        assert [line.n for line in found] == list(range(start, len(written)))
        assert all(line.h == leaf(line.raw) for line in found)


def test_what_is_not_synced_is_not_there_yet(tmp_path: Path) -> None:
    directory = write_log(tmp_path, [[entry(1), entry(2)]]).directory
    written = raw_lines_in(directory)

    for length in range(1, len(written) + 1):
        view = LogView(directory, lambda length=length: Durable(length, leaf(written[length - 1])))  # type: ignore[misc]

        assert [line.raw for line in lines_of(view)] == written[:length]


def test_the_last_line_is_the_one_that_was_written(tmp_path: Path) -> None:
    directory = write_log(tmp_path).directory
    written = raw_lines_in(directory)
    view = LogView(directory, lambda: Durable(len(written), bytes(32)))

    with pytest.raises(ChainBroken, match="not the one that was written"):
        lines_of(view)


def test_lines_that_are_missing_at_the_end_are_told(tmp_path: Path) -> None:
    directory = write_log(tmp_path).directory
    written = raw_lines_in(directory)
    last = max(directory.glob("0*"))
    last.chmod(0o640)
    last.write_bytes(last.read_bytes()[: -len(written[-1]) - 1])
    view = LogView(directory, lambda: Durable(len(written), leaf(written[-1])))

    with pytest.raises(ChainBroken, match="missing"):
        lines_of(view)


def test_a_segment_that_takes_the_place_of_one_that_was_given_up_is_no_break(tmp_path: Path) -> None:
    """The number, and with luck the inode, are those of the one before; the lines are not."""
    first = write_log(tmp_path / "a", [[entry(1), entry(2)]]).directory
    second = write_log(tmp_path / "b", [[entry(1), entry(2), entry(3)]]).directory
    view = LogView(first, lambda: None)
    for line in lines_of(view):
        view.resume_behind(line)
    (path,) = first.glob("0*")
    path.chmod(0o640)
    written = raw_lines_in(second)
    path.write_bytes(b"\n".join(written) + b"\n")

    assert [line.raw for line in lines_of(view, 4)] == written[4:]


def show_first_segment(view: LogView, shown: list[bytes]) -> None:
    for placed in view.walk(view.files(), 0):
        placed.parsed()
        shown.append(placed.raw)


@pytest.mark.parametrize("line", range(12))
def test_no_bit_can_be_turned_unseen(tmp_path: Path, line: int) -> None:
    directory = write_log(tmp_path).directory
    path = min(directory.glob("0*"))
    path.chmod(0o640)
    good = path.read_bytes()
    written = raw_lines_in(directory)
    lengths = [len(raw) + 1 for raw in good.splitlines()]
    if line >= len(lengths):
        return
    view = LogView(directory, lambda: Durable(len(written), leaf(written[-1])))
    begin = sum(lengths[:line])

    for at in range(begin, begin + lengths[line], 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        shown: list[bytes] = []

        with pytest.raises(ChainBroken):
            show_first_segment(view, shown)

        assert set(shown) <= set(written)
    path.write_bytes(good)
    assert [placed.raw for placed in lines_of(view)] == written
