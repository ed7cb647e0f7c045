"""A writer for the time of a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from secure_llm_proxy.audit import SocketJournal, initialise, running_writer, transient_writer
from secure_llm_proxy.audit.running_writer import listens
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import (
    REPOSITORY,
    WAIT_S,
    audit_settings,
    check,
    event,
    records_in,
    wait_until,
    writer_process,
)


def test_a_command_without_a_service_gets_a_writer_of_its_own(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    initialise(settings)

    for _ in range(2):
        with running_writer(settings):
            journal = SocketJournal(settings)
            journal.record(event())
            journal.close()

    assert not listens(settings)
    assert len(records_in(settings.directory)) == 2
    report = check(settings)
    assert report.ok
    assert report.segments == 2


def test_a_running_service_is_used_and_left_running(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    with writer_process(settings) as writer:
        with running_writer(settings):
            journal = SocketJournal(settings)
            journal.record(event())
            journal.close()

        assert listens(settings)
        assert writer.stop() == 0

    assert check(settings).segments == 1


def test_the_writer_is_stopped_when_the_command_fails(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    initialise(settings)

    with pytest.raises(ZeroDivisionError), running_writer(settings):
        raise ZeroDivisionError

    assert not listens(settings)


def test_a_writer_that_cannot_start_is_an_operator_error_in_its_own_words(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)

    with pytest.raises(OperatorError, match="holds no audit log yet"), running_writer(settings):
        pass

    initialise(settings)
    with (
        pytest.raises(OperatorError, match="another AUDIT_KEK"),
        running_writer(audit_settings(tmp_path, kek="00" * 32)),
    ):
        pass


def test_only_one_of_two_commands_writers_writes(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    initialise(settings)

    with running_writer(settings):
        second = settings.model_copy(update={"socket": tmp_path / "second"})
        with pytest.raises(OperatorError, match="Another audit writer holds"), transient_writer(second):
            pass


def test_a_writer_ends_with_the_command_that_started_it(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    initialise(settings)
    program = (
        "import os,sys;from pathlib import Path;from tests.support.audit_log import *;"
        "from secure_llm_proxy.audit import running_writer\n"
        "with running_writer(audit_settings(Path(sys.argv[1]))): os.kill(os.getpid(), 9)"
    )

    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, timeout=WAIT_S, check=False)

    wait_until(lambda: not listens(settings))
    wait_until(lambda: bool(list(settings.directory.glob("host/0*.jsonl"))))
    assert check(settings).ok


def test_a_command_that_holds_no_key_lets_the_writer_find_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = audit_settings(tmp_path)
    initialise(settings)
    monkeypatch.setenv("AUDIT_KEK", "5a" * 32)
    monkeypatch.setenv("ENV_FILE", "/dev/null")

    with running_writer(audit_settings(tmp_path, kek=None)):
        journal = SocketJournal(settings)
        journal.record(event())
        journal.close()

    assert check(settings).bodies_opened == 1


def test_the_writer_imports_no_database_and_no_server() -> None:
    code = "import sys, secure_llm_proxy.audit.__main__; print(' '.join(sys.modules))"

    imported = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT_S, check=True
    )

    assert {"sqlalchemy", "flask", "gunicorn", "click"} & set(imported.stdout.split()) == set()
