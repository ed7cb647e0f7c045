"""`audit prove`, `audit check-proof` and `audit anchors`, as an operator and a stranger type them."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from secure_llm_proxy.audit import SocketJournal, read_genesis
from secure_llm_proxy.audit.index_shipping import IndexRebuilder
from secure_llm_proxy.audit.segment_reader import SegmentReader
from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.settings import load_settings
from secure_llm_proxy.vocabulary.audit import AuditEvent
from tests.support.audit_log import event, wait_until
from tests.support.installation import Installation, installation_in

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / "proof", AUDIT_CHECKPOINT_LINES="1", AUDIT_HOST_ID="here") as installation:
        yield installation


@pytest.fixture(scope="module")
def owner(host: Installation) -> str:
    """The public key that an operator hands to strangers."""
    return read_genesis(host.directory / "instance" / "audit" / "here").owner_public_key


def recorded(host: Installation) -> AuditEvent:
    """A record that is under a checkpoint."""
    one = event(mdl="demo", dec="refuse", body=b"sealed")
    journal = SocketJournal(load_settings(host.environment).audit)
    try:
        journal.record(one)
    finally:
        journal.close()
    wait_until(lambda: host.run("audit", "prove", one.id).code == 0)
    return one


@pytest.fixture(scope="module")
def record(host: Installation) -> AuditEvent:
    return recorded(host)


@pytest.fixture
def proof(host: Installation, record: AuditEvent, tmp_path: Path) -> Path:
    file = tmp_path / "proof.json"
    ended = host.run("audit", "prove", record.id, "--output", str(file))
    assert (ended.code, ended.output, ended.errors) == (0, "", "")
    return file


def test_a_stranger_checks_a_proof_with_the_owners_key_and_nothing_else(
    proof: Path, record: AuditEvent, owner: str, tmp_path: Path
) -> None:
    empty = tmp_path / "stranger"
    empty.mkdir()

    checked = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "audit", "check-proof", str(proof), "--genesis", owner],
        # Settings that no command could start with, to show that none are read.
        env={"SLP_PROFILE": "nonsense", "AUDIT_DIR": "/nowhere", "PORT": "no number"},
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (checked.returncode, checked.stderr) == (0, "")
    first, *rest = checked.stdout.splitlines()
    line = json.loads(rest[-1])
    assert first.startswith(f"PROVEN: this line is number {line['n']} of the log slp.default/here, as signed at 20")
    assert line["id"] == record.id
    assert "    model" not in rest
    assert "    mdl: demo" in rest
    assert list(empty.iterdir()) == []


def test_a_proof_is_a_private_file_and_never_written_over_another(
    host: Installation, proof: Path, record: AuditEvent
) -> None:
    again = host.run("audit", "prove", record.id, "--output", str(proof))
    elsewhere = host.run("audit", "prove", record.id)

    assert stat.S_IMODE(proof.stat().st_mode) == 0o600
    assert (again.code, "exists already" in again.errors) == (1, True)
    assert json.loads(elsewhere.output) == json.loads(proof.read_bytes())
    assert [path.name for path in proof.parent.iterdir()] == [proof.name]


def test_what_is_proven_is_told_as_json_too(host: Installation, proof: Path, record: AuditEvent, owner: str) -> None:
    told = host.told("audit", "check-proof", str(proof), "--genesis", f" {owner}\n")

    assert (told["outcome"], told["log"], told["owner_public_key"]) == ("proven", "slp.default/here", owner)
    assert json.loads(str(told["line"]))["id"] == record.id
    assert told["n"] == json.loads(str(told["line"]))["n"]


def test_each_way_to_fail_has_its_exit_code(host: Installation, proof: Path, owner: str, tmp_path: Path) -> None:
    def check(content: bytes, key: str = owner) -> tuple[int, str]:
        file = tmp_path / "tried"
        file.write_bytes(content)
        ended = host.run("audit", "check-proof", str(file), "--genesis", key)
        assert "Traceback" not in ended.errors
        return ended.code, ended.output.partition(":")[0]

    honest = proof.read_bytes()
    other_owner = json.loads(honest)["path"][0]

    assert check(honest) == (0, "PROVEN")
    assert check(honest.replace(b"demo", b"memo")) == (1, "REFUSED")
    assert check(honest, other_owner) == (1, "REFUSED")
    assert check(b"") == (1, "REFUSED")
    assert check(honest.replace(b'"v": 1', b'"v": 2')) == (4, "UNDECIDABLE")
    for key in ("", "x", owner[:-1], owner[:-4], owner + "=", "\udcff", "A" * 10_000):
        assert check(honest, key) == (2, "")
    assert host.run("audit", "check-proof", str(proof)).code == 2
    assert host.run("audit", "check-proof", str(tmp_path / "none"), "--genesis", owner).code == 2
    assert host.run("audit", "check-proof", str(tmp_path), "--genesis", owner).code == 2


@pytest.mark.parametrize("identifier", ["", "none", "../../etc/passwd", "x" * 65, "a\nb", "\udcff", '"', "*"])
def test_what_cannot_be_proven_leaves_no_file(host: Installation, tmp_path: Path, identifier: str) -> None:
    ended = host.run("audit", "prove", "--output", str(tmp_path / "proof"), "--", identifier)

    assert (ended.code, ended.output) == (1, "")
    assert ended.errors.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []


def test_an_exchange_is_answered_with_its_records(host: Installation, record: AuditEvent) -> None:
    ended = host.run("audit", "prove", record.exchange_id)

    assert ended.code == 1
    assert f"{record.id} (llm.refused)" in ended.errors


def test_checkpoints_kept_elsewhere_are_met_and_a_cut_off_log_shows(
    host: Installation, record: AuditEvent, owner: str, tmp_path: Path
) -> None:
    printed = host.run("audit", "anchors")
    last = host.run("audit", "anchors", "--last")
    kept = tmp_path / "anchors.jsonl"
    kept.write_text(printed.output, "utf-8")

    met = host.told("audit", "verify", "--genesis", owner, "--anchors", str(kept))
    handed = host.run("audit", "verify", "--genesis", owner, "--anchors", "-", stdin=printed.output)
    anchors = [json.loads(line) for line in printed.output.splitlines()]
    assert set(anchors[0]) == {"t", "log", "n", "root", "note"}
    assert [anchor["n"] for anchor in anchors] == sorted(anchor["n"] for anchor in anchors)
    assert met["anchors_met"] == len(anchors)
    assert f"{len(anchors)} anchors met" in handed.output
    assert (
        last.output.splitlines() == [printed.output.splitlines()[-1]] or json.loads(last.output)["n"] > anchors[-1]["n"]
    )
    proof = host.run("audit", "prove", record.id, "--lines", str(anchors[-1]["n"]))
    assert json.loads(proof.output)["checkpoint"] == anchors[-1]["note"]


def test_the_checkpoints_that_the_database_keeps_are_those_of_the_log(host: Installation, record: AuditEvent) -> None:
    settings = load_settings(host.environment)
    database = Database(settings.database)
    IndexRebuilder(database, SystemClock()).rebuild(SegmentReader(settings.audit), afresh=True)
    database.close()

    kept = host.run("audit", "anchors", "--from-database").output.splitlines()
    last = host.run("audit", "anchors", "--from-database", "--last").output.splitlines()

    assert kept
    assert set(kept) <= set(host.run("audit", "anchors").output.splitlines())
    assert last == kept[-1:]


def test_a_person_at_a_terminal_sees_how_far_it_is(host: Installation, owner: str) -> None:
    """Standard error is a terminal: progress stands there, and nothing of it in the output."""
    ours, theirs = pty.openpty()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRESS],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **host.environment},
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=60,
            check=False,
        )
        os.close(theirs)
        shown = _all_of(ours).decode()
    finally:
        os.close(ours)

    assert (ended.returncode, ended.stdout) == (0, b"")
    assert shown.startswith("\rverifying:  50 %, 10,000 lines, ")
    assert " lines/s" in shown
    # The line is gone in the end.
    assert shown.endswith("\r" + " " * (len(shown.split("\r")[1])) + "\r")


def _all_of(terminal: int) -> bytes:
    """What was written to a terminal whose other end nobody holds any more; it comes in pieces."""
    content = b""
    with suppress(OSError):  # the end, as a terminal tells it
        while piece := os.read(terminal, 65536):
            content += piece
    return content


PROGRESS = """
from secure_llm_proxy.cli.progress import Progress
with Progress("verifying", 2_000) as progress:
    progress.at(1_000, 10_000)
    progress.at(1_001, 10_001)
"""
