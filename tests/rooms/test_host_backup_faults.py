"""scripts/backup under load, on a disk that is full, and killed: what was good stays, and no half counts (R39)."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from secure_llm_proxy.audit import SocketJournal
from secure_llm_proxy.settings import load_audit_writer_settings
from tests.support.audit_log import event, wait_until, writer_process
from tests.support.backed_up import ROOT, Instance, make_instance


@pytest.fixture(scope="module")
def worked_with(short_folder: Path) -> Instance:
    return make_instance(short_folder / "faulty")


@pytest.fixture
def instance(worked_with: Instance, short_folder: Path) -> Instance:
    return worked_with.in_copy(short_folder / f"faulty-{secrets.token_hex(4)}")


def test_sets_made_while_the_log_is_written_verify_and_hold_what_was_there(instance: Instance) -> None:
    settings = load_audit_writer_settings(
        {"INSTANCE_DIR": str(instance.data)}, env_file=instance.folder / ".env"
    ).model_copy(update={"segment_bytes_max": 1 << 16})
    stop = threading.Event()
    counts: list[int] = []

    def work() -> None:
        journal = SocketJournal(settings)
        while not stop.is_set():
            journal.record(event(number=len(counts), body=secrets.token_bytes(2048)))
            counts.append(len(counts))
        journal.close()

    with writer_process(settings) as writer:
        worker = threading.Thread(target=work)
        worker.start()
        before: list[int] = []
        try:
            for _ in range(2):
                wait_until(lambda: len(counts) > max(before, default=0), writer.said)
                before.append(len(counts))
                instance.backed_up()
        finally:
            stop.set()
            worker.join(30)

    for stamp, number in zip(instance.stamps(), before, strict=True):
        opened = instance.verify("--set", stamp, "--identity", instance.identity, "--json")
        assert opened.returncode == 0, opened.stdout
        (checked,) = json.loads(opened.stdout)
        lines = next(check["found"] for check in checked["checks"] if check["what"] == "segments")
        assert int(lines.split(" lines")[0].rpartition(" ")[2]) >= number
    assert len(set(before)) == 2


def test_runs_that_are_killed_leave_the_sets_that_were_there_and_no_half(instance: Instance) -> None:
    instance.backed_up()

    for moment in ("about", "database", "segments", "key store", "The set"):
        before = instance.stamps()
        # Stored anew, so that every part is written again.
        for segment in instance.log.glob("0*.jsonl"):
            os.utime(segment)
        killed_when_it_says(moment, instance)

        assert instance.stamps()[: len(before)] == before
        assert instance.verify("--set", "all").returncode == 0

    # What the killed ones left goes with the next good one.
    sets = [*instance.stamps(), instance.backed_up()["set"]]
    assert instance.verify("--identity", instance.identity).returncode == 0
    assert {name for name in instance.files() if not name.startswith("segments/closed/")} == {
        name
        for stamp in sets
        for name in (f"database/{stamp}.sqlite.age", f"segments/{stamp}.tar.age", f"keys/{stamp}.tar.age")
    }


def killed_when_it_says(moment: str, instance: Instance) -> None:
    with subprocess.Popen(
        instance.command("backup", "--instance", instance.data, "--to", instance.backups),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith(moment):
                os.killpg(run.pid, signal.SIGKILL)
                break
        run.stdout.read()


def test_a_full_disk_is_told_before_and_while_it_is_written_and_what_was_there_stays(instance: Instance) -> None:
    told = subprocess.run(
        [
            "unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount",
            sys.executable, "-m", "tests.support.full_backups", str(instance.folder),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip

    assert told.returncode == 0, told.stderr
    seen = json.loads(told.stdout)
    assert seen["too_small"] == [1, True, []]
    assert seen["grown"] == [1, True]
    assert seen["sets_after"] == seen["sets_before"]
    assert seen["left_behind"] == []
    assert seen["verified"] == 0
    assert seen["after_room_was_made"] == 0
