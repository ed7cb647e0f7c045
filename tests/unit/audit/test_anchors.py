"""Checkpoints outside the log: what stands there, how often, and what a place that is away costs."""

from __future__ import annotations

import threading
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_llm_proxy.audit.anchors import Anchor, AnchorFile, Anchors, anchor_line
from secure_llm_proxy.audit.notes import Checkpoint, sign_checkpoint
from secure_llm_proxy.audit.signed_tree import read_anchors
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import audit_settings, wait_until
from tests.support.syslog_receiver import SyslogReceiver


def checkpoint(size: int) -> Checkpoint:
    return Checkpoint("slp.default/host", size, bytes(32), "2026-11-21T00:12:03.104233Z")


NOTE = sign_checkpoint(checkpoint(7), Ed25519PrivateKey.from_private_bytes(bytes(32)))


class Scripted:
    """A place in memory that can be told to refuse, or to hang."""

    name = "syslog"
    leaves_host = True

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.refuses = False
        self.may_answer = threading.Event()
        self.may_answer.set()

    def close(self) -> None:
        """Nothing to hang up."""

    def take(self, line: bytes, t: str) -> None:
        self.may_answer.wait(30)
        if self.refuses:
            raise OSError(28, "No space left on device")
        self.sizes.append(orjson.loads(line)["n"])


def started(*places: Anchor, every_s: float = 0.0) -> Anchors:
    anchors = Anchors(list(places), every_s=every_s)
    anchors.start()
    return anchors


def test_a_file_holds_lines_that_the_verifier_reads(tmp_path: Path) -> None:
    path = tmp_path / "anchors.jsonl"
    path.write_bytes(b'{"t":"half')
    anchors = started(AnchorFile(path))

    anchors.offer(checkpoint(7), NOTE)
    wait_until(lambda: anchors.standing == 1)
    anchors.stop(30)

    (line,) = path.read_bytes().splitlines()
    assert line == anchor_line(checkpoint(7), NOTE)
    assert orjson.loads(line) == {
        "t": "2026-11-21T00:12:03.104233Z",
        "log": "slp.default/host",
        "n": 7,
        "root": "A" * 43 + "=",
        "note": NOTE,
    }
    assert read_anchors(path) == [NOTE]


def test_a_file_of_somebody_else_s_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "anchors.jsonl"
    path.write_bytes(b"no line feed here")

    AnchorFile(path).take(anchor_line(checkpoint(7), NOTE), "t")

    assert path.read_bytes() == b"no line feed here\n" + anchor_line(checkpoint(7), NOTE) + b"\n"


def test_places_get_the_newest_checkpoint_and_not_more_than_one_in_a_while(tmp_path: Path) -> None:
    place = Scripted()
    anchors = started(place, every_s=3600)

    anchors.offer(checkpoint(1), NOTE)
    wait_until(lambda: place.sizes == [1])
    for size in range(2, 50):
        anchors.offer(checkpoint(size), NOTE)
    anchors.stop(30)

    assert place.sizes == [1, 49]


def test_a_place_that_fails_is_told_and_tried_again_with_the_next_checkpoint() -> None:
    place = Scripted()
    place.refuses = True
    anchors = started(place)
    anchors.offer(checkpoint(1), NOTE)
    wait_until(lambda: anchors.troubles()[0][1] is not None)
    assert anchors.troubles() == [("syslog", "Checkpoints do not reach the anchor syslog: No space left on device.")]
    assert anchors.standing == 0

    place.refuses = False
    anchors.offer(checkpoint(2), NOTE)
    wait_until(lambda: anchors.troubles()[0][1] is None)
    anchors.stop(30)

    assert place.sizes == [2]
    assert anchors.state() == {"syslog": {"n": 2, "t": checkpoint(2).t, "leaves_host": True, "trouble": None}}


def test_a_place_that_hangs_holds_up_neither_the_other_nor_the_end(tmp_path: Path) -> None:
    place = Scripted()
    place.may_answer.clear()
    anchors = started(place, AnchorFile(tmp_path / "anchors.jsonl"))

    anchors.offer(checkpoint(1), NOTE)
    wait_until(lambda: anchors.standing == 1)
    anchors.stop(0.05)

    assert (tmp_path / "anchors.jsonl").exists()
    place.may_answer.set()


def test_settings_name_the_places(tmp_path: Path) -> None:
    with SyslogReceiver("udp") as receiver:
        settings = audit_settings(tmp_path, anchor_file=tmp_path / "anchors", anchor_syslog=receiver.address)
        anchors = Anchors.of(settings, "host-1")
        anchors.start()

        anchors.offer(checkpoint(3), NOTE)
        wait_until(lambda: anchors.standing == 2 and len(receiver.raw) == 1)
        anchors.stop(30)

        assert receiver.told[0]["note"] == NOTE
        assert (receiver.messages[0]["kind"], receiver.messages[0]["host"]) == (b"anchor", b"host-1")


def test_no_place_is_no_thread(tmp_path: Path) -> None:
    for nowhere in ("", "none"):
        anchors = Anchors.of(audit_settings(tmp_path, anchor_syslog=nowhere), "host")
        anchors.start()
        anchors.offer(checkpoint(1), NOTE)
        anchors.stop()
        assert anchors.state() == {}
    with pytest.raises(OperatorError, match="AUDIT_ANCHOR_SYSLOG"):
        Anchors.of(audit_settings(tmp_path, anchor_syslog="siem.example"), "host")
