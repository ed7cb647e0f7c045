"""A segment that somebody reads while the writer closes it."""

from __future__ import annotations

from pathlib import Path

from secure_llm_proxy.audit.segments import SegmentState, segments_in


def test_a_segment_that_is_closed_after_it_was_listed_is_measured_and_opened_by_its_new_name(tmp_path: Path) -> None:
    (tmp_path / "00000001-20261121T001203Z.jsonl.open").write_bytes(b"{}\n")
    [listed] = segments_in(tmp_path)
    listed.path.rename(tmp_path / f"{listed.stem}{SegmentState.CLOSED}")

    with listed.open() as stream:
        content = stream.read()

    assert (listed.size(), content) == (3, b"{}\n")
