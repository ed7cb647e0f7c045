"""The small looks behind the daily check: logs, growth, backups, memory, disks."""

from __future__ import annotations

import gzip
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secure_llm_proxy.cli.host.backups import BackupUnread, newest_backup
from secure_llm_proxy.cli.host.check import Check, Level, as_table
from secure_llm_proxy.cli.host.database_size import size_check
from secure_llm_proxy.cli.host.disks import disk_checks
from secure_llm_proxy.cli.host.growth import growth_check, sizes_of
from secure_llm_proxy.cli.host.log_lines import recent
from secure_llm_proxy.cli.host.memory import recall, remember
from secure_llm_proxy.cli.host.places import variables_in
from secure_llm_proxy.cli.host.traffic import login_check, traffic_checks, traffic_in

NOW = datetime.now(UTC)
SINCE = NOW - timedelta(days=1)


def access_line(status: int, *, hours_ago: float = 1) -> str:
    time = (NOW - timedelta(hours=hours_ago)).isoformat(timespec="seconds")
    return json.dumps({"time": time, "path": "/v1/chat/completions", "status": status}) + "\n"


def test_a_days_requests_are_counted_across_rotated_and_compressed_files(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    log.write_text(access_line(200) * 3 + "{torn\n" + access_line(503))
    (tmp_path / "access.jsonl-20261120-1").write_text(access_line(404, hours_ago=20) + access_line(500, hours_ago=30))
    with gzip.open(tmp_path / "access.jsonl-20261119-1.gz", "wt") as packed:
        packed.write(access_line(429, hours_ago=23))
    old = tmp_path / "access.jsonl-20261101-1"
    old.write_text(access_line(500))
    os.utime(old, (0, 0))
    (tmp_path / "access.jsonlike").write_text(access_line(500))

    found = traffic_in(log, SINCE)

    assert (found.total, found.client_errors, found.server_errors) == (6, 2, 1)


@pytest.mark.parametrize(("server_errors", "level"), [(0, Level.OK), (2, Level.WARNING), (20, Level.FAILED)])
def test_shares_of_failures_are_judged_by_thresholds(tmp_path: Path, server_errors: int, level: Level) -> None:
    log = tmp_path / "access.jsonl"
    log.write_text(access_line(200) * (100 - server_errors) + access_line(502) * server_errors)

    client, server = traffic_checks(log, SINCE, client_warning=25, server_warning=1, server_failed=10)

    assert (client.level, server.level) == (Level.OK, level)
    assert f"{server_errors:.2f} % of 100 requests" in server.found


def test_a_handful_of_requests_has_no_shares(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    log.write_text(access_line(500) * 3)

    [check] = traffic_checks(log, SINCE, client_warning=1, server_warning=1, server_failed=1)

    assert (check.level, "3 of 5xx" in check.found) == (Level.OK, True)


def test_an_access_log_that_is_not_there_is_unknown_and_not_well(tmp_path: Path) -> None:
    [check] = traffic_checks(tmp_path / "no" / "log", SINCE, client_warning=1, server_warning=1, server_failed=1)

    assert check.level is Level.UNKNOWN


def test_failed_logins_are_counted_by_the_address_that_they_came_from(tmp_path: Path) -> None:
    log = tmp_path / "app.jsonl"
    refusals = [("login_failed", "192.0.2.1")] * 4 + [("login_failed", "192.0.2.2"), ("invalid_api_key", "192.0.2.3")]
    log.write_text(
        "".join(json.dumps({"timestamp": NOW.isoformat(), "code": c, "address": a}) + "\n" for c, a in refusals)
    )

    few = login_check(log, SINCE, warning_from=6, failed_from=10)
    many = login_check(log, SINCE, warning_from=5, failed_from=10)

    assert (few.level, many.level) == (Level.OK, Level.WARNING)
    assert many.found == "5 in the last 24 h: 4 from 192.0.2.1, 1 from 192.0.2.2"


@pytest.mark.parametrize("planted", ["pipe", "link", "torn", "no gzip"])
def test_what_a_service_that_was_taken_over_puts_among_its_logs_is_told_and_ends_no_check(
    tmp_path: Path, planted: str
) -> None:
    log = tmp_path / "app.jsonl"
    log.write_text("{}\n")
    if planted == "pipe":
        os.mkfifo(tmp_path / "app.jsonl-1")
    elif planted == "link":
        (tmp_path / "app.jsonl-1").symlink_to("/dev/zero")
    elif planted == "torn":
        (tmp_path / "app.jsonl-1.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:20])
    else:
        (tmp_path / "app.jsonl-1.gz").write_bytes(b"x")

    check = login_check(log, SINCE, warning_from=1, failed_from=2)

    assert check.level is Level.UNKNOWN
    assert str(tmp_path) in check.found


def test_a_log_that_takes_too_long_to_read_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "app.jsonl"
    with log.open("wb") as holes:
        holes.truncate(1 << 40)

    with pytest.raises(OSError, match="to read"):
        list(recent(log, SINCE, time_member="timestamp", patience_s=0.1))


def test_a_pipe_or_a_link_in_a_manifests_place_ends_no_check(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    os.mkfifo(tmp_path / "sets" / "20261121T000000Z.json")
    with pytest.raises(BackupUnread, match="is no manifest"):
        newest_backup(tmp_path)

    (tmp_path / "sets" / "20261122T000000Z.json").symlink_to("/dev/zero")
    with pytest.raises(BackupUnread, match="is no manifest"):
        newest_backup(tmp_path)


def test_growth_is_what_was_written_whatever_logrotate_renamed_or_packed(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_bytes(b"x" * (1 << 20))
    before, _ = sizes_of([tmp_path])
    log.rename(tmp_path / "app.log-20261121")
    with (tmp_path / "app.log-20261121").open("ab") as moved:
        moved.write(b"x" * (1 << 20))
    log.write_bytes(b"x" * (1 << 20))
    (tmp_path / "app.log-20261120.gz").write_bytes(b"x" * (5 << 20))
    now, unseen = sizes_of([tmp_path, tmp_path / "none"])

    a_day = growth_check(now, before, apart_s=86_400, warning_mib=3, unseen=unseen)
    half_a_day = growth_check(now, before, apart_s=43_200, warning_mib=3, unseen=unseen)
    first = growth_check(now, None, apart_s=0, warning_mib=3, unseen=unseen)

    assert (a_day.level, a_day.found) == (Level.OK, "2 MiB a day, 3 MiB now")
    assert (half_a_day.level, half_a_day.found) == (Level.WARNING, "4 MiB a day, 3 MiB now")
    assert (first.level, "3 MiB now" in first.found) == (Level.OK, True)


def make_backup(folder: Path, stamp: str, **sizes: int) -> None:
    (folder / "sets").mkdir(parents=True, exist_ok=True)
    (folder / "database").mkdir(exist_ok=True)
    for name, size in sizes.items():
        (folder / "database" / name).write_bytes(bytes(size))
    files = [{"path": f"database/{name}", "size": size, "sha256": "00"} for name, size in sizes.items()]
    (folder / "sets" / f"{stamp}.json").write_text(json.dumps({"v": 1, "database": files[0], "segments": files[1:]}))


def test_the_newest_backups_age_and_files_are_those_of_its_manifest(tmp_path: Path) -> None:
    none = newest_backup(tmp_path)
    make_backup(tmp_path, "20261119T020000Z", older=5)
    make_backup(tmp_path, "20261120T020000Z", one=3, two=4)

    found = newest_backup(tmp_path)

    assert none is None
    assert found is not None
    assert (found.files, found.size_bytes, found.troubles) == (2, 7, ())
    assert found.age_h(datetime(2026, 11, 21, 2, tzinfo=UTC)) == pytest.approx(24)


def test_a_backup_that_lacks_a_file_or_holds_a_short_one_is_told(tmp_path: Path) -> None:
    make_backup(tmp_path, "20261120T020000Z", one=3, two=4)
    (tmp_path / "database" / "one").unlink()
    (tmp_path / "database" / "two").write_bytes(b"")

    found = newest_backup(tmp_path)

    assert found is not None
    assert found.troubles == ("database/one is missing", "database/two has 0 bytes instead of 4")


def test_a_manifest_that_is_none_is_no_backup(tmp_path: Path) -> None:
    make_backup(tmp_path, "20261120T020000Z", one=3)
    (tmp_path / "sets" / "20261121T020000Z.json").write_text("{")

    with pytest.raises(BackupUnread, match="20261121T020000Z"):
        newest_backup(tmp_path)


def test_what_is_remembered_comes_back_and_nothing_else_does(tmp_path: Path) -> None:
    remember(tmp_path, {"at": 1, "logs": {"1:2": 3}})
    whole = recall(tmp_path)
    (tmp_path / "memory.json").write_text("[torn")

    torn, none = recall(tmp_path), recall(None)

    assert whole == {"at": 1, "logs": {"1:2": 3}}
    assert (torn, none) == ({}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["memory.json"]


def test_each_file_system_is_told_once_and_judged_by_how_full_it_is(tmp_path: Path) -> None:
    places = [("one", tmp_path), ("two", tmp_path), ("none", tmp_path / "none")]

    [well] = disk_checks(places, warning_from=101, failed_from=101)
    [full] = disk_checks(places, warning_from=0, failed_from=0)

    assert (well.what, well.level, full.level) == ("disk of one, two", Level.OK, Level.FAILED)


def test_a_database_without_an_address_is_unknown_and_one_that_is_gone_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    path.write_bytes(bytes(3 << 20))

    sized, size = size_check(f"sqlite:///{path}", 1 << 20, warning_mib=0)
    large, _ = size_check(f"sqlite:///{path}", None, warning_mib=2)
    unknown, _ = size_check(None, None, warning_mib=0)
    gone, _ = size_check(f"sqlite:///{path}.gone", None, warning_mib=0)

    assert (sized.level, sized.found, size) == (Level.OK, "3 MiB, +2 since the last look", 3 << 20)
    assert [large.level, unknown.level, gone.level] == [Level.WARNING, Level.UNKNOWN, Level.FAILED]


def test_an_environment_file_is_read_as_systemd_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# NO=comment\nA=1\n B = two words \nC='quoted'\n\nnone\nD=a=b\n")

    assert variables_in(path) == {"A": "1", "B": "two words", "C": "quoted", "D": "a=b"}


def test_a_table_moves_no_cursor_and_tells_what_to_do_below() -> None:
    table = as_table([Check("one", Level.OK, "well"), Check("other", Level.WARNING, "\x1b[2J", "do\nit")])

    assert table.splitlines() == [
        "CHECK  STATE    FOUND",
        "one    ok       well",
        "other  warning  \\u001b[2J",
        "                -> do\\u000ait",
    ]
