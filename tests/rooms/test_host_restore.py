"""scripts/restore: from backups alone into an empty folder, over what is there, and not at all when anything is wrong."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from secure_llm_proxy.cli.host_backup.installed import installed_instance
from secure_llm_proxy.cli.host_backup.restoring import Newer, Restore, Target
from secure_llm_proxy.cli.host_backup.sets import Store
from secure_llm_proxy.cli.host_backup.signing import SIGNING_KEY
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.backed_up import ROOT, Instance, make_instance

OTHER_OWNER = "A" * 42 + "E="


@pytest.fixture(scope="module")
def backed_up(short_folder: Path) -> Instance:
    instance = make_instance(short_folder / "restored-from")
    instance.backed_up()
    return instance


@pytest.fixture
def instance(backed_up: Instance, short_folder: Path) -> Instance:
    # A name that every unquoted word would break at.
    return backed_up.in_copy(short_folder / f"Büro {secrets.token_hex(4)} (März)")


def restore(instance: Instance, data: Path, *arguments: object, owner_key: str | None = None) -> tuple[int, str]:
    """Into `data`; returns the exit code and all that was said."""
    key = instance.folder / "owner.key"
    key.write_text(owner_key or instance.owner_key)
    done = instance.script(
        "restore", "--instance", data, "--from", instance.backups, "--identity", instance.identity,
        *(() if "--no-start" in arguments else ("--owner-key", key)), *arguments,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def everything_in(instance: Instance) -> dict[str, bytes]:
    paths = [instance.folder / ".env", *instance.data.rglob("*")]
    # SQLite's own files go when the last one closes its database.
    return {
        str(path): path.read_bytes()
        for path in paths
        if path.is_file() and not path.name.endswith(("-wal", "-shm", "restore.lock"))
    }


def names_of_keys(instance: Instance) -> list[str]:
    with closing(sqlite3.connect(instance.data / "app.db")) as database:
        return [name for (name,) in database.execute("SELECT name FROM api_keys ORDER BY name")]


def test_a_lost_instance_comes_back_from_its_backup_alone(instance: Instance) -> None:
    lost = Instance(instance.folder / "new", instance.owner_key, instance.owner_public_key)
    lost.folder.mkdir()

    code, said = restore(instance, lost.data, "--settings")

    assert code == 0, said
    assert (lost.folder / ".env").read_bytes() == (instance.folder / ".env").read_bytes()
    assert (lost.folder / ".env").stat().st_mode & 0o777 == 0o600
    assert names_of_keys(lost) == ["ci"]
    verified = lost.manage("audit", "verify", "--genesis", instance.owner_public_key, "--content", "--json")
    report = json.loads(verified.stdout)
    assert (verified.returncode, report["outcome"]) == (0, "ok"), report
    assert report["bodies_opened"] == report["records"]
    assert any("the owner put a new epoch key in force" in finding["what"] for finding in report["findings"])


def test_a_log_that_outlived_the_host_is_taken_as_far_as_it_reaches(instance: Instance) -> None:
    assert instance.manage("organisations", "create", "after-the-set").returncode == 0
    lost = Instance(instance.folder / "new", instance.owner_key, instance.owner_public_key)
    lost.folder.mkdir()
    shorter = instance.folder / "shorter"
    shutil.copytree(instance.log, shorter)
    min(shorter.glob("0*.jsonl")).unlink()
    newest = ("--key-store", instance.data / "audit-keys" / "keys.db")

    refused, why = restore(instance, lost.data, "--settings", "--no-start", "--log", shorter, *newest)
    code, said = restore(instance, lost.data, "--settings", "--no-start", "--log", instance.log, *newest)

    assert (refused, "it is no newer copy of this log" in why) == (1, True), why
    assert code == 0, said
    assert sorted(path.name for path in lost.log.glob("0*")) == sorted(path.name for path in instance.log.glob("0*"))


def test_what_is_in_use_is_replaced_only_when_told_and_kept_aside_then(instance: Instance) -> None:
    with closing(sqlite3.connect(instance.data / "app.db")) as database:
        database.execute("UPDATE api_keys SET name = 'later'")
        database.commit()
    there = everything_in(instance)

    refused, why = restore(instance, instance.data)
    untouched = everything_in(instance) == there
    code, said = restore(instance, instance.data, "--replace", "--no-start")

    assert (refused, "This place is in use: the database holds 1 users" in why) == (1, True), why
    assert untouched
    assert code == 0, said
    assert names_of_keys(instance) == ["ci"]
    kept = [path for path in instance.data.rglob("*") if "before-" in str(path) and path.is_file()]
    assert {path.name for path in kept} >= {"app.db", "keys.db", "epoch.key", "genesis.json"}
    contents = set(there.values())
    assert all(path.read_bytes() in contents for path in kept if path.suffix in {".jsonl", ".key", ".json"})
    # The next backup is of what is there now, and nothing of what is kept aside.
    assert instance.backed_up()["altered"] == []
    assert instance.verify("--identity", instance.identity, "--genesis", instance.owner_public_key).returncode == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("owner", "owner key of another log"),
        ("segment", "its digest is not the one in the manifest"),
        ("secrets", "Restore them as well: --settings"),
        ("running", "is running; stop it first"),
        ("unsigned", "is not one that you trust: not signed"),
        ("second", "another restore is running"),
        ("dry run", "and would be kept aside"),
    ],
)
def test_nothing_is_touched_when_anything_is_wrong(instance: Instance, wrong: str, message: str) -> None:
    arguments = ["--replace"]
    if wrong == "segment":
        segment = next((instance.backups / "segments" / "closed").iterdir())
        segment.write_bytes(segment.read_bytes()[:-1] + b"x")
    elif wrong == "secrets":
        text = (instance.folder / ".env").read_text()
        (instance.folder / ".env").write_text(text.replace("SECRET_KEY=", "SECRET_KEY=other"))
    elif wrong == "unsigned":
        next((instance.backups / "sets").glob("*.sig")).unlink()
    elif wrong == "dry run":
        # One of a release that signed none, with a newer one beside it.
        (stamp,) = instance.stamps()
        (instance.backups / "sets" / f"{stamp}.sig").unlink()
        (instance.backups / "sets" / "20991231T235959Z.json").touch()
        arguments += ["--dry-run", "--unsigned", "--set", stamp]
    before = everything_in(instance)

    if wrong == "running":
        (instance.data / "run").mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(instance.data / "run" / "audit.sock"))
            listening.listen()
            code, said = restore(instance, instance.data, *arguments)
    elif wrong == "second":
        with (instance.data / "secure-llm-restore.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            code, said = restore(instance, instance.data, *arguments)
    else:
        code, said = restore(instance, instance.data, *arguments, owner_key=OTHER_OWNER if wrong == "owner" else None)

    assert (code, message in said) == (0 if wrong == "dry run" else 1, True), said
    if wrong == "dry run":
        assert "taken all the same, as you said (--unsigned)" in said
        assert "WARNING: 1 newer sets" in said
        assert re.search(r"made \d{4}-\d\d-\d\d .* UTC \(\d+\.\d hours ago\)", said)
    assert everything_in(instance) == before
    assert not list((instance.data / "audit").glob(".restoring-*"))


def restore_of(instance: Instance, say: Callable[[str], None]) -> Restore:
    """Of all of it, in this process."""
    store = Store(instance.backups)
    target = Target(None, instance.data, instance.folder / ".env")
    there = installed_instance(instance.data, instance.folder / ".env").settings
    return Restore(
        store, store.find("latest").manifest, instance.identity, target, there, say,
        with_settings=True, newer=Newer(None, None),
    )  # fmt: skip


def run(instance: Instance, moment: str | None) -> int:
    """A restore in a process of its own, which is killed when it comes to `moment`; returns how it ended."""
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        # The key store is looked at, too, before the first part, the database, is put in place.
        if sentence == moment and (sentence != "key store" or "database" in said):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        code = 1
        try:
            restore = restore_of(instance, say)
            checks = restore.check(instance.owner_key)
            assert all(check.well for check in checks), checks
            list(restore.apply())
            code = 0
        except BaseException:  # noqa: BLE001  nobody above this would tell it
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("moment", ["verifying the log", "database", "key store", "log", "settings"])
def test_a_restore_that_is_killed_serves_nobody_and_the_next_one_completes(moment: str, instance: Instance) -> None:
    with closing(sqlite3.connect(instance.data / "app.db")) as database:
        database.execute("UPDATE api_keys SET name = 'later'")
        database.commit()
    (instance.folder / ".env").write_text((instance.folder / ".env").read_text() + "WORKERS=3\n")
    before = everything_in(instance)
    in_the_set = len(list(instance.log.glob("0*")))

    killed = run(instance, moment)
    left = everything_in(instance)
    signs = (instance.data / "audit-keys" / "epoch.key").exists()
    completed = run(instance, None)

    assert (killed, completed) == (-signal.SIGKILL, 0)
    if moment in {"key store", "log", "settings"}:
        # No audit writer starts without it, and nothing is served without a writer.
        assert not signs
    else:
        assert {path: left.get(path) for path in before} == before
    assert names_of_keys(instance) == ["ci"]
    assert "WORKERS=3" not in (instance.folder / ".env").read_text()
    assert len(list(instance.log.glob("0*"))) == in_the_set
    assert not (instance.data / "audit-keys" / "epoch.key").exists()
    assert not list((instance.data / "audit").glob(".restoring-*"))
    # Whatever was there, before either of them, is kept.
    contents = set(everything_in(instance).values())
    assert all(content in contents for path, content in before.items() if "/audit" in path)


@pytest.mark.parametrize("folder", ["audit-keys", "audit"])
def test_a_link_in_place_of_a_folder_leads_nowhere_also_when_it_comes_after_the_check(
    folder: str, instance: Instance
) -> None:
    restore = restore_of(instance, lambda _: None)
    checks = restore.check(None)
    elsewhere = instance.folder / "elsewhere"
    (instance.data / folder).rename(elsewhere)
    (instance.data / folder).symlink_to(elsewhere)
    there = {
        path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file() and ".restoring" not in str(path)
    }
    database = (instance.data / "app.db").read_bytes()

    with pytest.raises(OperatorError, match=f"{folder} is a link"):
        list(restore.apply())

    assert all(check.well for check in checks)
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == there
    assert (instance.data / "app.db").read_bytes() == database


def test_a_file_that_is_exchanged_after_the_check_is_not_restored(instance: Instance) -> None:
    before = everything_in(instance)
    restore = restore_of(instance, lambda _: None)
    checks = restore.check(None)
    # Well encrypted, to the right recipient: whoever knows that could have made it.
    (dump,) = (instance.backups / "database").iterdir()
    recipient = (instance.data / "backup-recipient").read_text().strip()
    subprocess.run(["age", "-r", recipient, "-o", dump], input=b"of somebody else's", check=True, timeout=20)

    with pytest.raises(OperatorError, match="it was exchanged after it was checked"):
        list(restore.apply())

    assert all(check.well for check in checks)
    assert everything_in(instance) == before


def installed_in(instance: Instance) -> dict[str, str]:
    """A host with the instance's settings and data below its folder; returns where its places are. systemctl and the operator's
    command are programs that note how they were called, and whether the mark of an unfinished restore was there.
    """
    folder = instance.folder
    settings = folder / "settings"
    for name in ("credentials", "audit-credentials"):
        (settings / name).mkdir(parents=True)
    shutil.copy(instance.folder / ".env", settings / "env")
    with (settings / "env").open("a") as env:
        env.write(f"INSTANCE_DIR={instance.data}\nDATABASE_URL=sqlite:///{instance.data}/app.db\n")
    for name in (SIGNING_KEY, "backup-recipient"):
        shutil.copy(instance.data / name, settings / name)
    noting = '#!/bin/sh\n[ -e "$SLP_RESTORING" ] && half=half || half=whole\necho "$half ${0##*/} $*" >>"$CALLS"\n'
    for path, more in (
        (folder / "bin" / "systemctl", ""),
        (folder / "code" / "scripts" / "secure-llm-proxy", '[ "$1 $2" != "$FAILING" ]\n'),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(noting + more)
        path.chmod(0o755)
    (folder / "units").mkdir()
    return {
        "PATH": os.environ["PATH"], "SLP_PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable, "SLP_RELEASES": str(ROOT.parent),
        "SLP_SETTINGS": str(settings), "SLP_RESTORING": str(folder / "restoring"), "SLP_LOCKS": str(folder / "locks"),
        "SLP_BACKUPS": str(instance.backups), "SLP_CODE": str(folder / "code"),
        "SLP_RUNTIME_UNITS": str(folder / "units"), "CALLS": str(folder / "calls"),
    }  # fmt: skip


def restore_host(instance: Instance, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    (instance.folder / "owner.key").write_text(instance.owner_key)
    return subprocess.run(
        [
            *([] if os.geteuid() == 0 else ["unshare", "--map-root-user"]), ROOT / "scripts" / "restore",
            "--identity", instance.identity, "--owner-key", instance.folder / "owner.key", *arguments,
        ],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_the_web_service_starts_when_all_is_restored_and_no_standby_of_before_serves(instance: Instance) -> None:
    environment = installed_in(instance)
    # An update that failed has left its standby, and a restore that was killed its mark.
    standby = instance.folder / "units" / "secure_llm_proxy-standby.service"
    standby.touch()
    (instance.folder / "restoring").touch()
    failing = environment | {"FAILING": "audit erase"}

    unfinished = restore_host(instance, failing)
    calls = (instance.folder / "calls").read_text()
    left = (instance.folder / "restoring").exists()
    (instance.folder / "calls").unlink()
    done = restore_host(instance, environment)

    assert (unfinished.returncode, left) == (1, True), unfinished.stderr
    assert "not started, because of: erased again;" in unfinished.stdout
    assert "start secure_llm_proxy.socket" not in calls
    assert "half systemctl stop secure_llm_proxy-standby.service secure_llm_proxy-standby.socket" in calls
    assert not standby.exists()
    # Over data that is in use, which it was not told again.
    assert done.returncode == 0, done.stderr
    order = [
        line for line in (instance.folder / "calls").read_text().splitlines() if " stop " in line or " start " in line
    ]
    assert [line.partition(" systemctl ")[0] for line in order] == ["half", "half", "whole"]
    assert order[-1].endswith("start secure_llm_proxy.socket secure_llm_proxy.service")


@pytest.mark.parametrize("arguments", [(), ("--identity", "x"), ("--nonsense",), ("--identity",)])
def test_mistakes_in_the_call_are_told_as_such(instance: Instance, arguments: tuple[str, ...]) -> None:
    done = instance.script("restore", *arguments)

    assert (done.returncode, "See restore --help." in done.stderr) == (2, True)
