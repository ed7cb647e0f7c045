"""`audit retire --dry-run`, `audit backup --status` and `audit verify --also`, as an operator types them."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import pytest

from secure_llm_proxy.audit import SocketJournal
from secure_llm_proxy.audit.backup import Backup
from secure_llm_proxy.audit.genesis import Genesis, initialise
from secure_llm_proxy.audit.segments import LogDirectories
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import (
    appender,
    audit_settings,
    entry,
    environment_of,
    event,
    records_in,
    writer_process,
)
from tests.support.installation import Installation

DAY_NS = 86_400 * 10**9


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return audit_settings(
        tmp_path,
        retention_days=5,
        backup_enabled=True,
        backup_directory=tmp_path / "backup",
        backup_keys_directory=tmp_path / "keys-backup",
        free_bytes_min=0,
    )


@pytest.fixture
def genesis(settings: AuditSettings) -> Genesis:
    """A log with one segment for each of the last ten days."""
    made = initialise(settings)
    for day in range(10, 0, -1):
        begun_ns = time.time_ns() - day * DAY_NS
        log = appender(made, now_ns=lambda begun_ns=begun_ns: begun_ns)  # type: ignore[misc]
        log.open_segment()
        log.commit([entry(20 - day)])
        log.close_segment("stop")
    return made


def host(settings: AuditSettings) -> Installation:
    directory = settings.directory.parent
    environment = {
        "SECRET_KEY": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
        "INSTANCE_DIR": str(directory / "instance"),
        "ENV_FILE": str(directory / "none"),
        **environment_of(settings),
    }
    return Installation(directory, environment)


def test_retire_tells_what_would_go_and_what_holds_it_back(settings: AuditSettings, genesis: Genesis) -> None:
    before = host(settings).listed("audit", "retire", "--dry-run")
    Backup(settings, LogDirectories(genesis.directory)).run()

    after = host(settings).listed("audit", "retire", "--dry-run")
    table = host(settings).run("audit", "retire", "--dry-run")

    assert len(before) == len(after) == 5
    assert {row["held_back"] for row in before} == {"it is not in the backup yet"}
    assert {row["held_back"] for row in after} == {None}
    assert table.code == 0
    assert str(after[0]["segment"]) in table.output
    assert len(list(genesis.directory.glob("0*"))) == 10


def test_retire_only_tells(settings: AuditSettings, genesis: Genesis) -> None:
    ended = host(settings).run("audit", "retire")
    kept = host(settings.model_copy(update={"retention_days": None})).run("audit", "retire", "--dry-run")

    assert ended.code == 1
    assert "--dry-run" in ended.errors
    assert "AUDIT_RETENTION_DAYS is not set" in kept.errors
    assert len(list(genesis.directory.glob("0*"))) == 10


def test_backup_tells_what_is_there_what_is_not_and_what_differs(settings: AuditSettings, genesis: Genesis) -> None:
    nothing = host(settings).run("audit", "backup", "--status")
    Backup(settings, LogDirectories(genesis.directory)).run()
    whole = host(settings).run("audit", "backup", "--status")
    copies = sorted((settings.directory.parent / "backup" / "host").glob("0*"))
    copies[0].unlink()
    copies[1].chmod(0o600)
    copies[1].write_bytes(b"something else")
    told = host(settings).run("audit", "backup", "--status")

    assert nothing.code == 1
    assert "0 of 10 finished segments" in nothing.output
    assert whole.code == 0
    assert "10 of 10 finished segments" in whole.output
    assert told.code == 1
    assert f"Not there: {copies[0].name}" in told.output
    assert f"Not the same: {copies[1].name}" in told.output


def test_backup_now_is_done_when_it_says_so(settings: AuditSettings, genesis: Genesis) -> None:
    nobody_there = host(settings).run("audit", "backup", "--now")
    with writer_process(settings) as writer:
        journal = SocketJournal(settings)
        outcomes = []
        for number in range(3):
            journal.record(event(number=number))
            ended = host(settings).run("audit", "backup", "--now")
            outcomes.append((ended.code, recorded_in(settings)[-1]))
        journal.close()
        (settings.directory.parent / "backup" / "host" / "genesis.json").unlink()
        (settings.directory.parent / "backup" / "host" / "genesis.json").mkdir()
        failed = host(settings).run("audit", "backup", "--now")
        assert writer.stop() == 0

    assert nobody_there.code == 1
    assert "does not answer its operator" in nobody_there.errors
    assert outcomes == [(0, 0), (0, 1), (0, 2)]
    assert failed.code == 1
    assert "The backup of the audit log fails" in failed.errors
    assert genesis.directory.exists()


def recorded_in(settings: AuditSettings) -> list[object]:
    copies = settings.directory.parent / "backup" / "host"
    return [record.clear["number"] for record in records_in(copies) if "number" in record.clear]


def test_without_a_backup_there_is_nothing_to_tell(settings: AuditSettings, genesis: Genesis) -> None:
    ended = host(settings.model_copy(update={"backup_enabled": False})).run("audit", "backup", "--status")

    assert ended.code == 1
    assert "AUDIT_BACKUP_ENABLED is false" in ended.errors
    assert genesis.directory.exists()


def test_a_log_over_two_directories_is_verified_and_printed_whole(settings: AuditSettings, genesis: Genesis) -> None:
    directory = settings.directory.parent
    second = directory / "elsewhere" / "host"
    second.mkdir(parents=True)
    for path in list(genesis.directory.glob("0000000[3-6]*")):
        path.rename(second / path.name)
    over_two = settings.model_copy(update={"fallback_directory": directory / "elsewhere"})

    by_setting = host(over_two).run("audit", "verify")
    by_option = host(settings).run("audit", "verify", str(genesis.directory), "--also", str(second))
    one_only = host(settings).run("audit", "verify", str(genesis.directory))
    printed = host(over_two).run("audit", "cat")

    assert (by_setting.code, by_option.code, one_only.code) == (0, 0, 1)
    assert "10 segments" in by_setting.output
    assert printed.output.count('"k":"seg"') == 10
