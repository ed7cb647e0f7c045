"""Backups of an installed host, and a lost one that comes back from them alone in a second clean system (R38, R39)."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.clients import sdk
from tests.support.debian_machine import DebianMachine
from tests.support.host_world import World
from tests.support.installed_host import DOMAIN, InstalledHost, install

BACKUP = "secure-llm-backup.service"
BACKUPS = Path("var/backups/secure_llm_proxy")
REPLACEMENT = "replacement.example.test"
KEPT = "/var/kept-elsewhere"
PASSWORD = "correct-horse-battery-staple"
# A backup that is killed as soon as something of its set lies there: it is in the midst of it then, on a quick machine too.
KILLED_BACKUP = f"""
touch /run/backup-begins
systemctl start --no-block {BACKUP}
until find /{BACKUPS}/database -newer /run/backup-begins -type f 2>/dev/null | grep -q .; do sleep 0.01; done
systemctl kill -s KILL {BACKUP}
"""
# A restore and all that it has started, killed when the log is what it comes to next: the database and the key store are put in
# place by then. Its own end bounds the wait.
KILLED = """
setsid secure-llm-restore "$@" >/run/restore-said 2>&1 &
until grep -qx log /run/restore-said || ! kill -0 $!; do sleep 0.05; done
exec python3 -c 'import os, sys; os.killpg(int(sys.argv[1]), 9)' $!
"""


def stamps(host: InstalledHost) -> list[str]:
    return sorted(path.stem for path in (host.machine.files / BACKUPS / "sets").glob("*.json"))


def last_words(host: InstalledHost) -> str:
    """The newest line that scripts/backup left in the system log."""
    host.machine.write_journal()
    return host.machine.told("journalctl", "-t", "secure-llm-backup", "-n", "1", "-o", "cat")


@contextmanager
def no_backup_by_the_hour(host: InstalledHost) -> Iterator[None]:
    """The hour may begin in the midst of a test: the timer's backup would be counted too, or hold the lock that another needs."""
    timer = BACKUP.replace(".service", ".timer")
    assert host.machine.told("systemctl", "is-active", timer) == "active"
    host.machine.run("systemctl", "stop", timer)
    try:
        host.machine.wait_for(
            "sh", "-c", f"! systemctl show -P ActiveState {BACKUP} | grep -qx activating", what="no backup runs", seconds=120
        )  # fmt: skip
        yield
    finally:
        host.machine.run("systemctl", "start", timer)


def login(host: InstalledHost) -> int:
    return host.ask("POST", "/auth/login", body={"username": "drill", "password": PASSWORD}).status


def test_the_timers_unit_backs_up_as_the_writers_user_and_leaves_nothing_of_roots(host: InstalledHost) -> None:
    with no_backup_by_the_hour(host):
        before = stamps(host)
        host.machine.run("systemctl", "start", BACKUP)
        host.machine.run("secure-llm-backup")
        host.machine.run("secure-llm-backup", "--verify", "--set", "all")
        after = stamps(host)
        said = last_words(host)

    assert len(after) == len(before) + 2
    assert "is made" in said
    # The writer goes on meanwhile: what it has removed since it was listed is none of the findings.
    owners = host.machine.told(
        "find", f"/{BACKUPS}", "/var/lib/secure-llm-audit", "-ignore_readdir_race", "!", "-type", "l", "-printf", "%u %m\\n"
    ).split("\n")  # fmt: skip
    assert {owner.split()[0] for owner in owners} == {"secure-llm-audit"}
    # The folder's own mode keeps everybody from its lock.
    assert {owner.split()[1] for owner in owners if int(owner.split()[1], 8) & 0o007} <= {"644"}
    for user in ("secure_llm_proxy", "www-data"):
        assert host.machine.run("runuser", "-u", user, "--", "ls", f"/{BACKUPS}", check=False).returncode != 0


def test_a_backup_onto_a_full_disk_or_killed_is_an_alarm_and_leaves_what_was_there(host: InstalledHost) -> None:
    with no_backup_by_the_hour(host):
        host.machine.run("systemctl", "start", BACKUP)
        before = stamps(host)

        host.machine.run("mount", "-t", "tmpfs", "-o", "size=1m,uid=0,mode=1777", "tmpfs", f"/{BACKUPS}")
        try:
            full = host.machine.run("systemctl", "start", BACKUP, check=False)
            why = last_words(host)
        finally:
            host.machine.run("umount", f"/{BACKUPS}")
        # What has failed just now is not the state that the killed one ends in.
        host.machine.run("systemctl", "reset-failed", BACKUP)
        host.machine.run("sh", "-c", KILLED_BACKUP)
        host.machine.wait_for("systemctl", "is-failed", "--quiet", BACKUP, what="it has ended, and not well")
        after = stamps(host)
        host.machine.run("secure-llm-backup", "--verify", "--set", "all")
        host.machine.run("systemctl", "start", BACKUP)
        at_last = stamps(host)

    assert full.returncode != 0
    assert "are needed" in why
    assert after[: len(before)] == before
    assert len(at_last) == len(after) + 1


def test_a_lost_host_comes_back_in_a_clean_system_from_its_backup_alone(
    host: InstalledHost,
    machines: Callable[[str], DebianMachine],
    world: World,
    tmp_path: Path,
) -> None:
    host.manage(
        "create-user", "--username", "drill", "--email", "drill@example.test", "--role", "viewer", "--password-stdin",
        stdin=f"{PASSWORD}\n",
    )  # fmt: skip
    asked = host.chat("What must not be lost?")
    exchange = asked.headers["x-request-id"]
    assert (asked.status, login(host)) == (200, 200)
    (owner, identity) = secrets_shown_by(host)
    ours = tmp_path / "elsewhere"
    with no_backup_by_the_hour(host):
        host.machine.run("secure-llm-backup")
        signer = host.machine.told("secure-llm-backup", "--signer")
        shutil.copytree(host.machine.files / BACKUPS, ours)
        owner_public = json.loads((ours / "sets" / f"{stamps(host)[-1]}.json").read_bytes())["owner_public_key"]

    # From here on nothing but the copies and what the operator keeps offline is used of the first host.
    with world.moved(DOMAIN, REPLACEMENT):
        fresh = install(machines(REPLACEMENT), world, tmp_path / "installed")
        place = fresh.machine.files / KEPT.removeprefix("/")
        place.mkdir(mode=0o700)
        shutil.copytree(ours, place / "sets")
        (place / "identity").write_text(f"{identity}\n")
        (place / "owner").write_text(owner)
        where = ("--from", f"{KEPT}/sets", "--identity", f"{KEPT}/identity")
        nobodys = fresh.machine.run("secure-llm-restore", *where, "--dry-run", check=False)
        # The two lines that the installer has shown are the file that it told to keep.
        (place / "identity").write_text(f"{signer}\n{identity}\n")
        without = fresh.machine.run("secure-llm-restore", *where, "--dry-run", check=False)
        all_of_it = (*where, "--owner-key", f"{KEPT}/owner", "--settings")
        fresh.machine.run("sh", "-c", KILLED, "sh", *all_of_it, timeout=600)
        started = fresh.machine.run("systemctl", "start", "secure_llm_proxy.service", check=False)
        half = fresh.ask("GET", "/health").status
        # Not told to replace what is in use: it goes on where the other one was killed.
        restored = fresh.machine.run("secure-llm-restore", *all_of_it, timeout=600)
        replacement = dataclasses.replace(fresh, certificate=host.certificate, keys=host.keys)
        replacement.key = host.key
        replacement.wait_until_ready()

        assert signer in host.said
        assert (nobodys.returncode, "is not one that you trust" in nobodys.stderr) == (1, True)
        assert (without.returncode, "Restore them as well: --settings" in without.stdout) == (1, True)
        assert started.returncode != 0
        assert half == 502
        assert "is restored" in restored.stdout
        assert "begins anew, over what it left" in restored.stderr
        assert fresh.machine.told("find", "/var/lib/secure-llm-audit", "!", "-user", "secure-llm-audit") == ""
        assert "FAILED" not in restored.stdout
        assert login(replacement) == 200
        answered = replacement.chat("Are you back?")
        assert answered.status == 200
        with sdk(replacement, replacement.key) as client:
            assert "test-model" in [model.id for model in client.models.list()]
        shown = replacement.manage("audit", "show", exchange).stdout
        assert "What must not be lost?" in shown
        found = replacement.manage("audit", "search", "--request", exchange, "--json").stdout
        assert found.count('"id"') >= 2
        verified = replacement.manage("audit", "verify", "--genesis", owner_public, "--content")
        assert "the owner put a new epoch key in force" in verified.stdout
        assert replacement.manage("audit", "show", answered.headers["x-request-id"]).stdout.count("Are you back?") >= 1
        replacement.machine.run("systemctl", "start", BACKUP)
        again = replacement.machine.run(
            "secure-llm-backup", "--verify", "--identity", f"{KEPT}/identity", "--genesis", owner_public
        )
        assert "FAILED" not in again.stdout


def secrets_shown_by(host: InstalledHost) -> tuple[str, str]:
    """The owner's private key and the identity that opens backups, as the installer showed them once."""
    [identity] = re.findall(r"AGE-SECRET-KEY-1[0-9A-Z]+", host.said)
    [owner] = re.findall(r"Owner key, private half.*\n\s+(\S{43}=)", host.said)
    return owner, identity
