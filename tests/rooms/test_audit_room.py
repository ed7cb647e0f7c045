"""The real writer without room on its disk: new exchanges are refused at once, running ones end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from secure_llm_proxy.audit import SocketJournal
from secure_llm_proxy.audit.frames import NO_ROOM, frame
from secure_llm_proxy.foundation.errors import ErrorCode, NotQueued
from secure_llm_proxy.vocabulary.events import AuditType
from tests.support.audit_log import (
    REPOSITORY,
    WriterProcess,
    audit_settings,
    check,
    end_event,
    event,
    records_in,
    start_event,
    writer_process,
)
from tests.support.writer_peer import Peer

_NEVER_ENOUGH = 1 << 60


def test_a_disk_that_fills_under_load_and_is_freed_loses_nothing_and_ends_every_exchange(tmp_path: Path) -> None:
    assert shutil.which("unshare"), "unshare is missing: install the package util-linux"
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]

    done = subprocess.run(
        ["unshare", *as_root, "--mount", sys.executable, "-m", "tests.support.full_disk", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["reserved"] == 1 << 20
    assert told["reserve_released"], told["said"]
    assert told["ended_on_a_full_disk"]
    assert told["started_on_a_full_disk"] == 0
    assert (told["lost"], told["without_end"], told["turned_away_and_recorded"]) == (0, 0, 0)
    assert (told["verified"], told["exit_code"], told["starts_of_the_writer"]) == ("ok", 0, 1)
    (alarm,) = told["alarms"]
    assert alarm["what"] == "room"
    assert 0 < alarm["refused"] <= told["turned_away"]


def test_what_is_new_is_refused_at_once_and_what_belongs_to_a_running_exchange_is_taken(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    with writer_process(settings) as writer:
        journal = SocketJournal(settings)
        running = start_event()
        journal.record(running)
        journal.close()
        assert writer.stop() == 0

        full = WriterProcess(settings.model_copy(update={"free_bytes_min": _NEVER_ENOUGH}), tmp_path / "full.log")
        try:
            full.start()
            journal = SocketJournal(settings)
            for kind in (AuditType.LLM_START, AuditType.ADMIN_INTENT, AuditType.REFUSED, AuditType.AUTH_EVENT):
                with pytest.raises(NotQueued) as refused:
                    journal.record(event(kind))
                assert refused.value.code is ErrorCode.AUDIT_UNAVAILABLE
                assert refused.value.status == 503
            taken = [
                event(AuditType.LLM_PART, sid=running.id, dir="out", seq=0),
                event(AuditType.ADMIN_RESULT, act="x", ok=True),
                end_event(running),
            ]
            for each in taken:
                journal.record(each)
            assert journal.trouble() is None
            journal.close()
            assert full.stop() == 0
        finally:
            full.end()

    assert {each.id for each in taken} <= {record.id for record in records_in(settings.directory)}
    assert not [record for record in records_in(settings.directory) if record.type == "audit.trouble"]
    assert check(settings).ok


def test_what_found_no_room_never_passes_for_durable_and_its_end_is_not_written(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, free_bytes_min=_NEVER_ENOUGH)
    worker = uuid.uuid4()
    start = b'{"ty":"llm.start","id":"R%d","rid":"exc_1"}'
    part = b'{"ty":"llm.part","id":"R9","rid":"exc_1"}'
    end = b'{"ty":"llm.end","id":"R10","rid":"exc_1","sid":"R1","st":"not_sent"}'
    frames = [frame(1, start % 1, b""), frame(2, part, b""), frame(3, start % 3, b""), frame(4, end, b"")]
    with writer_process(settings) as writer:
        with Peer(settings, worker) as peer:
            assert peer.answer() == 0
            peer.send(*frames)
            answers = [peer.answer() for _ in range(4)]
            assert sorted(answers) == [2, *(counter | NO_ROOM for counter in (1, 3, 4))]
            assert answers.index(1 | NO_ROOM) < answers.index(2)

        with Peer(settings, worker) as peer:
            assert peer.answer() == 0
            peer.send(*frames)
            assert sorted(peer.answer() for _ in range(4)) == sorted(answers)
        assert writer.stop() == 0

    assert [record.id for record in records_in(settings.directory)] == ["R9"]
    assert check(settings).ok
