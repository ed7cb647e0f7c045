"""What health, status and metrics make of the writer's state file."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from secure_llm_proxy.audit.standing import NOT_ANCHORED, LogStanding
from secure_llm_proxy.audit.state import StateFile, read_state
from secure_llm_proxy.foundation.errors import Unavailable

CHECKPOINT = {"n": 8, "t": "2026-11-21T00:12:03.104233Z"}
REMOTE = {"n": 8, "t": CHECKPOINT["t"], "leaves_host": True, "trouble": None}
SINK = {"policy": "any", "behind": 3, "trouble": "The second sink x is away: gone."}


def members(**changed: object) -> dict[str, object]:
    told: dict[str, object] = {
        "n": 9,
        "checkpoint": CHECKPOINT,
        "note": "a note",
        "free_bytes": 5 << 20,
        "room": True,
        "no_room": None,
        "sinks": {},
        "anchors": {},
        "backup": {"enabled": False},
        "troubles": [],
    }
    return told | changed


def standing(path: Path, *, required: bool = True, elsewhere: bool = False) -> LogStanding:
    return LogStanding(path, required=required, anchored_elsewhere=lambda _: elsewhere)


def told(path: Path, **changed: object) -> None:
    StateFile(path, "slp.default/host").tell(1, lambda: members(**changed))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit-state.json"


def test_what_the_writer_tells_is_read_back(path: Path) -> None:
    told(path, sinks={"file:/x": SINK}, anchors={"syslog": REMOTE}, troubles=[SINK["trouble"]])

    state = read_state(path)

    assert state is not None
    assert (state.log, state.n, state.checkpoint_n, state.free_bytes) == ("slp.default/host", 9, 8, 5 << 20)
    assert state.age_s < 30
    assert state.sinks[0].behind == 3
    assert state.is_anchored_off_host
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_file_is_written_on_a_change_and_else_every_ten_seconds(path: Path) -> None:
    now, asked = [0.0], []

    def ask() -> dict[str, object]:
        asked.append(now[0])
        return members()

    state = StateFile(path, "log", now_s=lambda: now[0])
    for moment, version in ((0.0, 1), (5.0, 1), (9.9, 1), (10.0, 1), (10.1, 2), (12.0, 2), (20.1, 2)):
        now[0] = moment
        state.tell(version, ask)

    assert asked == [0.0, 10.0, 10.1, 20.1]
    assert state.due_s() == 10.0
    state.remove()
    state.remove()
    assert not path.exists()


def test_a_state_that_cannot_be_written_ends_nobody(tmp_path: Path) -> None:
    told(tmp_path / "nowhere" / "state.json")

    assert read_state(tmp_path / "nowhere" / "state.json") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"t":"yesterday"}', orjson.dumps(members())])
def test_half_a_word_is_no_word(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    assert read_state(path) is None
    assert "has left no word of its disk" in str(standing(path).disk_trouble())
    assert standing(path).evidence_trouble() is None
    assert standing(path).told() == {}
    assert standing(path).gauges() == {}


def test_an_old_word_is_a_trouble_of_the_disk(path: Path) -> None:
    path.write_bytes(orjson.dumps({"t": "2026-01-01T00:00:00.000000Z", "log": "log", **members()}))

    assert "has told nothing of its disk for" in str(standing(path).disk_trouble())
    assert standing(path).told() == {}


def test_no_room_is_the_disk_s_trouble_and_everything_else_the_evidence_s(path: Path) -> None:
    full = "The disk of the audit log has 0 MiB free."
    told(path, no_room=full, room=False, troubles=[full, SINK["trouble"]], anchors={"syslog": REMOTE})

    assert standing(path).disk_trouble() == full
    assert standing(path).evidence_trouble() == SINK["trouble"]
    assert standing(path).told()["room"] is False


def test_production_wants_an_anchor_that_leaves_the_host_and_development_is_told(path: Path) -> None:
    told(path, anchors={"file": REMOTE | {"leaves_host": False}, "syslog": REMOTE | {"n": None}})

    assert standing(path).evidence_trouble() == NOT_ANCHORED
    assert standing(path, required=False).evidence_trouble() is None
    assert standing(path, required=False).told()["anchored_off_host"] is False

    assert standing(path, elsewhere=True).evidence_trouble() is None
    told(path, anchors={"syslog": REMOTE})
    assert standing(path).evidence_trouble() is None
    assert standing(path).told()["anchored_off_host"] is True


def test_a_database_that_is_away_leaves_open_what_stands_there(path: Path) -> None:
    told(path)

    def away(_: str) -> bool:
        raise Unavailable("away")

    assert LogStanding(path, required=True, anchored_elsewhere=away).evidence_trouble() == NOT_ANCHORED


def test_figures_for_prometheus(path: Path) -> None:
    told(path, sinks={"file:/x": SINK}, anchors={"syslog": REMOTE}, troubles=[SINK["trouble"]])

    figures = {name: figure for name, (_, figure) in standing(path).gauges().items()}

    age_s = figures.pop("slp_audit_last_checkpoint_age_seconds")
    assert age_s > 0
    assert figures == {
        "slp_audit_lines": 9,
        "slp_audit_has_room": 1,
        "slp_audit_troubles": 1,
        "slp_audit_anchored_off_host": 1,
        "slp_audit_free_bytes": 5 << 20,
        "slp_audit_sink_behind_lines": 3,
    }
