"""secure-llm-anchors.service: what it keeps of the writer's word."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from secure_llm_proxy.audit import checkpoints, read_anchors, segments_of, verify
from secure_llm_proxy.audit.genesis import Genesis
from secure_llm_proxy.audit.state import StateFile
from secure_llm_proxy.cli.host.anchors import main
from tests.support.audit_log import audit_settings, entry, write_log


@pytest.fixture
def genesis(tmp_path: Path) -> Genesis:
    return write_log(tmp_path, [[entry(1)], [entry(2)], [entry(3)]])


def tell(path: Path, note: str | None) -> None:
    """The writer's state, as it writes it."""
    members: dict[str, object] = {
        "n": 1, "checkpoint": None, "note": note, "free_bytes": 1, "no_room": None, "sinks": {}, "anchors": {},
        "backup": {}, "troubles": [],
    }  # fmt: skip
    StateFile(path, "slp.default/host").tell(object(), lambda: members)


def test_each_checkpoint_is_kept_once_and_the_log_is_held_to_them(
    genesis: Genesis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, kept = tmp_path / "audit-state.json", tmp_path / "anchors.jsonl"
    settings = audit_settings(tmp_path)
    notes = [note for _, note in checkpoints(genesis.directory, segments_of(settings))]
    arguments = ["--writer", str(state), "--file", str(kept)]

    statuses = []
    for note in (notes[0], notes[0], notes[1], notes[1], notes[2]):
        tell(state, note)
        statuses.append(main(arguments))

    assert statuses == [0] * 5
    assert [orjson.loads(line)["note"] for line in kept.read_bytes().splitlines()] == notes
    assert capsys.readouterr().out == kept.read_text()
    report = verify(genesis.directory, genesis_public_key=None, anchors=read_anchors(kept))
    assert (report.ok, report.anchors_met) == (True, 3)


def test_a_line_that_a_power_cut_tore_goes_and_nothing_comes_twice(genesis: Genesis, tmp_path: Path) -> None:
    state, kept = tmp_path / "audit-state.json", tmp_path / "anchors.jsonl"
    [first, second, *_] = [note for _, note in checkpoints(genesis.directory, segments_of(audit_settings(tmp_path)))]
    arguments = ["--writer", str(state), "--file", str(kept)]

    for note in (first, first, second):
        with kept.open("ab") as torn:
            torn.write(b'{"t":"2026-')
        tell(state, note)
        main(arguments)

    assert [orjson.loads(line)["note"] for line in kept.read_bytes().splitlines()] == [first, second]


def test_without_word_of_the_writer_or_without_a_checkpoint_nothing_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, kept = tmp_path / "audit-state.json", tmp_path / "anchors.jsonl"
    arguments = ["--writer", str(state), "--file", str(kept)]

    silent = main(arguments)
    said = capsys.readouterr()
    tell(state, None)
    unsigned = main(arguments)
    tell(state, "no note")
    forged = main(arguments)

    assert (silent, unsigned, forged) == (1, 0, 1)
    assert (said.out, kept.exists()) == ("", False)
    assert "systemctl status secure-llm-audit" in said.err
