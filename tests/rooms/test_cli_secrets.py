"""`secrets status` and `secrets rotate`, as an operator types them while secrets are replaced."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from secure_llm_proxy.audit import SocketJournal
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.secret_values import derive_key, pseudonym
from secure_llm_proxy.identity import Identity
from secure_llm_proxy.settings import IdentitySettings, load_audit_writer_settings, load_settings
from tests.support.audit_log import event
from tests.support.identity_room import ManualClock
from tests.support.installation import Installation, fresh, installation_in
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.programs import wait_until
from tests.support.running_proxy import ROOT

# Three operators, forked from one process: the first dies by the first change that it makes, the others start at a word.
_OPERATORS = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from secure_llm_proxy.cli.program import main

def die(_connection, _cursor, statement, *_):
    if statement.startswith("UPDATE"):
        os.kill(os.getpid(), signal.SIGKILL)

def operator(*, dies):
    if pid := os.fork():
        return pid
    if dies:
        event.listen(Engine, "after_cursor_execute", die)
    sys.argv = ["manage.py", "secrets", "rotate"]
    try:
        main()
    except SystemExit as end:
        os._exit(int(end.code or 0))
    os._exit(0)

def ends_of(*operators):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in operators]

print(*ends_of(operator(dies=True)), flush=True)
sys.stdin.readline()
print(*ends_of(operator(dies=False), operator(dies=False)), flush=True)
"""


@pytest.fixture
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / fresh("secrets")) as installation:
        yield installation


def later(host: Installation, **environment: str) -> Installation:
    """The same host with other settings."""
    return replace(host, environment={**host.environment, **environment})


def use(host: Installation, key: str) -> None:
    """As a worker of a host with these settings would."""
    database = Database(load_settings(host.environment).database)
    secret_key, others = host.environment["SECRET_KEY"], host.environment.get("SECRET_KEY_PREVIOUS", "")
    worker = Identity(
        IdentitySettings(),
        database,
        derive_key(secret_key, "slp/key-pepper"),
        ManualClock(),
        previous_peppers=[derive_key(each, "slp/key-pepper") for each in others.split(",") if each],
    )
    worker.identify((key,))
    worker.flush_last_used()
    database.close()


def status(host: Installation, *arguments: str) -> dict[str, Any]:
    return host.told("secrets", *(arguments or ("status",)))


def test_a_secret_key_is_free_when_every_key_was_used_and_pseudonyms_are_kept(host: Installation) -> None:
    host.make_user("ada")
    key = str(host.make_key("ada")["key"])
    new = secrets.token_hex(32)
    swapped = later(host, SECRET_KEY=new, SECRET_KEY_PREVIOUS=host.environment["SECRET_KEY"])

    before = status(host)
    at_once = status(swapped)
    told = swapped.run("secrets", "status")
    rotated = status(swapped, "rotate")
    use(swapped, key)
    swapped.told("reset-password", "--username", "ada")  # the one-time token of before is void
    done = status(swapped)
    after = later(host, SECRET_KEY=new)

    assert before["SECRET_KEY"]["previous"] == 0
    assert before["SECRET_KEY"]["removable"]
    assert (at_once["SECRET_KEY"]["removable"], at_once["SECRET_KEY"]["person_keys_owed"]) == (False, 1)
    assert "Not under SECRET_KEY yet: API keys of " + key.split("_")[2] in told.output
    assert "SECRET_KEY_PREVIOUS must stay: run `manage.py secrets rotate`." in told.output
    assert rotated["sealed_again"]["person_keys_kept"] == 1
    assert (rotated["SECRET_KEY"]["removable"], rotated["SECRET_KEY"]["person_keys_owed"]) == (False, 0)
    assert done["SECRET_KEY"]["removable"]
    assert "SECRET_KEY_PREVIOUS can be removed" in swapped.run("secrets", "status").output
    use(after, key)
    assert [record["ok"] for record, _ in host.recorded("secrets.rotate", "secrets") if "ok" in record] == [True]
    everything = host.everything_written()
    assert not any(value.encode() in everything for value in (new, host.environment["SECRET_KEY"]))


def test_an_encryption_key_is_free_when_everything_was_sealed_again(host: Installation) -> None:
    host.told("providers", "add", "mine", "--kind", "mistral", "--key-stdin", stdin="sk-sealed\n")
    new = secrets.token_hex(32)
    swapped = later(host, ENCRYPTION_KEY=new, ENCRYPTION_KEY_PREVIOUS=host.environment["ENCRYPTION_KEY"])

    at_once = swapped.run("secrets", "status")
    rotated = swapped.run("secrets", "rotate")
    done = status(swapped)
    after = later(host, ENCRYPTION_KEY=new)

    assert "ENCRYPTION_KEY_PREVIOUS must stay: run `manage.py secrets rotate`." in at_once.output
    assert "Sealed again: 0 second factors, keys of 1 providers" in rotated.output
    assert done["ENCRYPTION_KEY"]["removable"]
    assert [each["key"] for each in after.listed("providers", "list")] == ["set"]
    assert [each["key"] for each in host.listed("providers", "list")] == ["unreadable"]


def test_two_operators_at_once_and_one_who_is_killed_leave_nothing_unreadable(
    short_folder: Path, postgresql: PrivatePostgreSQL
) -> None:
    url = postgresql.create_database()
    with installation_in(short_folder / fresh("secrets"), DATABASE_URL=url) as host:
        for name in ("one", "two", "three"):
            host.told("providers", "add", name, "--kind", "mistral", "--key-stdin", stdin="sk-sealed\n")
        host.make_user("ada")
        new = {"SECRET_KEY": secrets.token_hex(32), "ENCRYPTION_KEY": secrets.token_hex(32)}
        swapped = later(host, **new, **{f"{name}_PREVIOUS": host.environment[name] for name in new})

        with (
            subprocess.Popen(
                [sys.executable, "-c", _OPERATORS],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **swapped.environment},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            ) as operators,
            closing(psycopg2.connect(url)) as elsewhere,
            closing(psycopg2.connect(url)) as watching,
        ):  # fmt: skip
            assert operators.stdin is not None
            assert operators.stdout is not None
            killed = operators.stdout.readline().split()
            half_way = status(swapped)
            # Neither gets any further than the other before both are there.
            with elsewhere.cursor() as locked:
                locked.execute("SELECT name FROM providers FOR UPDATE")
            operators.stdin.write("both\n")
            operators.stdin.flush()
            wait_until(lambda: waiting_in(watching) == 2, what="both wait for the same rows", seconds=60)
            elsewhere.rollback()
            told = operators.stdout.readlines()

        done = status(swapped)
        after = later(host, **new)
        assert killed == [str(-signal.SIGKILL)]
        assert [each["previous"] for each in half_way["ENCRYPTION_KEY"]["columns"]] == [0, 3, 0]
        assert told[-1].split() == ["0", "0"]
        assert done["ENCRYPTION_KEY"]["removable"]
        assert done["SECRET_KEY"]["person_keys_owed"] == 0
        assert [each["unreadable"] for each in done["ENCRYPTION_KEY"]["columns"]] == [0, 0, 0]
        assert [each["key"] for each in after.listed("providers", "list")] == ["set"] * 3
        assert after.run("audit", "search", "--person", "ada", "--json").code == 0


def waiting_in(watching: Any) -> int:  # noqa: ANN401  psycopg2 ships no types
    watching.rollback()
    with watching.cursor() as found:
        found.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return int(found.fetchone()[0])


def test_what_stands_under_a_secret_that_is_gone_is_called_lost(host: Installation) -> None:
    host.make_user("ada")
    host.make_key("ada")
    host.told("providers", "add", "mine", "--kind", "mistral", "--key-stdin", stdin="sk-sealed\n")

    told = status(later(host, SECRET_KEY=secrets.token_hex(32), ENCRYPTION_KEY=secrets.token_hex(32)))

    uses = {each["what"]: each for each in told["SECRET_KEY"]["uses"]}
    columns = {each["what"]: each for each in told["ENCRYPTION_KEY"]["columns"]}
    assert (uses["API keys"]["present"], uses["API keys"]["lost"]) == (0, 1)
    assert columns["provider keys"]["unreadable"] == 1


def test_who_is_erased_after_a_rotation_is_erased_from_older_records_too(short_folder: Path, tmp_path: Path) -> None:
    with installation_in(short_folder / fresh("secrets"), AUDIT_ENCRYPTION_ENABLED="true") as host:
        erase_after_a_rotation(host, tmp_path / "certificate.json")


def erase_after_a_rotation(host: Installation, certificate: Path) -> None:
    old = host.environment["SECRET_KEY"]
    swapped = later(host, SECRET_KEY=secrets.token_hex(32), SECRET_KEY_PREVIOUS=old)
    journal = SocketJournal(load_audit_writer_settings(host.environment))
    for secret in (old, swapped.environment["SECRET_KEY"]):
        journal.record(event(sub=pseudonym(derive_key(secret, "slp/person"), "ext-7"), body=b"theirs"))
    journal.close()
    swapped.told("secrets", "rotate")
    after = later(swapped, SECRET_KEY_PREVIOUS="")

    found = after.run("audit", "search", "--person", "ext-7", "--json")
    scanned = after.run("audit", "search", "--person", "ext-7", "--scan", "--json")
    dry = after.run("audit", "erase", "--person", "ext-7", "--dry-run", "--json")
    ended = after.run("audit", "erase", "--person", "ext-7", "--yes", "--certificate", str(certificate))

    assert ended.code == 0, ended.errors
    assert [len(json.loads(each.output)) for each in (found, scanned)] == [2, 2]
    assert len(json.loads(dry.output)) == 2
    assert [len(each["keys"]) for each in json.loads(certificate.read_text())["erased"]] == [1, 1]
