"""`audit erase` and `audit rotate-keys`, as an operator types them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from secure_llm_proxy.audit import BodyOpener, SocketJournal, open_records, running_writer
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.foundation.secret_values import derive_key, pseudonym
from secure_llm_proxy.settings import load_audit_writer_settings
from secure_llm_proxy.vocabulary.audit import AuditEvent
from tests.support.audit_log import event
from tests.support.installation import Installation, fresh, installation_in

OTHER = "6b" * 32


@pytest.fixture
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / fresh("keys"), AUDIT_ENCRYPTION_ENABLED="true") as installation:
        yield installation


def subject_of(host: Installation, person: str) -> str:
    return pseudonym(derive_key(host.environment["SECRET_KEY"], "slp/person"), person)


def record(host: Installation, *events: AuditEvent) -> None:
    journal = SocketJournal(load_audit_writer_settings(host.environment))
    try:
        for one in events:
            journal.record(one)
    finally:
        journal.close()


def body_of(host: Installation, one: AuditEvent) -> bytes | None:
    settings = load_audit_writer_settings(host.environment)
    (found,) = open_records(settings.directory, one.id, BodyOpener.of(settings))
    return found.body


def clear_lines(host: Installation) -> list[dict[str, object]]:
    ended = host.run("audit", "cat")
    return [json.loads(line) for line in ended.output.splitlines()]


def test_a_user_is_erased_with_what_was_typed_as_the_name_and_nobody_else(host: Installation, tmp_path: Path) -> None:
    # A name that no base64 of the certificate holds by chance.
    ana = host.make_user("anastasia")
    hers = event(sub=subject_of(host, str(ana["id"])), body=b"hers")
    typed = event(sub=subject_of(host, "login:anastasia"), body=b"typed")
    other = event(sub=subject_of(host, "ext-7"), body=b"other")
    record(host, hers, typed, other)
    certificate = tmp_path / "certificate.json"

    dry = host.run("audit", "erase", "--user", "Anastasia", "--dry-run", "--json")
    assert [len(each["keys"]) for each in json.loads(dry.output)] == [1, 1]
    assert body_of(host, hers) == b"hers"
    ended = host.run("audit", "erase", "--user", "anastasia", "--yes", "--certificate", str(certificate))

    assert ended.code == 0, ended.errors
    assert [body_of(host, one) for one in (hers, typed, other)] == [None, None, b"other"]
    told = json.loads(certificate.read_text())
    assert [each["subject"] for each in told["erased"]] == [hers.clear["sub"], typed.clear["sub"]]
    kids = [key["kid"] for each in told["erased"] for key in each["keys"]]
    by_n = {line["n"]: line for line in clear_lines(host)}
    assert [by_n[key["n"]]["kids"] for each in told["erased"] for key in each["keys"]] == kids
    assert told["checkpoint"].startswith(told["log"] + "\n")
    assert "anastasia" not in certificate.read_text()
    intents = [line for line in by_n.values() if line.get("act") == "audit.erase" and line["ty"] == "admin.intent"]
    assert [line["subject"] for line in intents] == [hers.clear["sub"], typed.clear["sub"]]
    verified = host.run("audit", "verify", "--content")
    assert verified.code == 0, verified.output
    assert "was erased, and with it" in verified.output
    shown = host.run("audit", "show", hers.id)
    assert "its key was destroyed" in shown.output

    again = host.run(
        "audit", "erase", "--user", str(ana["id"]), "--yes", "--certificate", str(tmp_path / "again"), "--json"
    )
    assert json.loads(again.output)["destroyed_now"] == 0
    assert json.loads((tmp_path / "again").read_text())["erased"] == told["erased"]


def test_a_person_of_an_application_is_erased_and_a_stranger_needs_nothing(host: Installation, tmp_path: Path) -> None:
    theirs = event(sub=subject_of(host, "ext-7"), body=b"theirs")
    record(host, theirs)

    stranger = host.run("audit", "erase", "--person", "nobody", "--yes")
    told = host.told(
        "audit", "erase", "--person", "ext-7", "--yes", "--certificate", str(tmp_path / "certificate.json")
    )

    assert (stranger.code, "nothing to erase" in stranger.output) == (0, True)
    assert told["destroyed_now"] == 1
    assert body_of(host, theirs) is None


def test_a_restored_key_store_brings_nobody_back_for_long(host: Installation, tmp_path: Path) -> None:
    hers, theirs = event(sub=subject_of(host, "ext-7"), body=b"hers"), event(sub=subject_of(host, "ext-8"))
    record(host, hers, theirs)
    settings = load_audit_writer_settings(host.environment)
    with (
        closing(sqlite3.connect(settings.keys_directory / "keys.db")) as database,
        closing(sqlite3.connect(tmp_path / "snapshot")) as snapshot,
    ):
        database.backup(snapshot)
    host.told("audit", "erase", "--person", "ext-7", "--yes", "--certificate", str(tmp_path / "certificate"))
    assert host.told("audit", "erase", "--recorded")["back"] == []

    for path in settings.keys_directory.glob("keys.db*"):
        path.unlink()
    (tmp_path / "snapshot").rename(settings.keys_directory / "keys.db")
    assert body_of(host, hers) == b"hers"
    dry = host.told("audit", "erase", "--recorded", "--dry-run")
    done = host.told("audit", "erase", "--recorded", "--yes")

    assert dry["back"] == done["back"]
    assert [body_of(host, one) for one in (hers, theirs)] == [None, b"the body"]
    assert host.run("audit", "verify", "--content").code == 0


def test_nothing_is_erased_without_a_yes_a_name_or_a_place_for_the_certificate(
    host: Installation, tmp_path: Path
) -> None:
    theirs = event(sub=subject_of(host, "ext-7"), body=b"theirs")
    record(host, theirs)
    taken = tmp_path / "taken"
    taken.write_text("mine")

    for arguments, expected in (
        ([], 2),
        (["--person", "x", "--user", "y"], 2),
        (["--user", "nobody", "--yes"], 1),
        (["--person", "ext-7"], 1),
        (["--person", "ext-7", "--recorded"], 2),
        (["--person", "ext-7", "--yes", "--certificate", str(taken)], 1),
        (["--person", "ext-7", "--yes", "--certificate", str(tmp_path / "no" / "where")], 1),
    ):
        ended = host.run("audit", "erase", *arguments)
        assert ended.code == expected, (arguments, ended.errors)

    assert body_of(host, theirs) == b"theirs"
    assert taken.read_text() == "mine"
    assert [line for line in clear_lines(host) if line.get("act") == "audit.erase"] == []


def test_keys_are_wrapped_by_the_new_key_and_the_old_one_is_needed_no_more(short_folder: Path) -> None:
    with installation_in(short_folder / fresh("rot"), AUDIT_ENCRYPTION_ENABLED="true") as host:
        theirs, nobodys = event(sub=subject_of(host, "ext-7"), body=b"theirs"), event(body=b"nobody's")
        record(host, theirs, nobodys)
        old = host.environment["AUDIT_KEK"]
        host.environment.update(AUDIT_KEK=OTHER, AUDIT_KEK_PREVIOUS=old)
        early = host.run("audit", "rotate-keys")
    assert early.code == 1
    assert "Restart the writer with the new AUDIT_KEK" in early.errors

    current = KeyRing.from_texts(OTHER).current.id
    with running_writer(load_audit_writer_settings(host.environment)):
        dry = host.told("audit", "rotate-keys", "--dry-run")
        told = host.told("audit", "rotate-keys")
        assert host.told("audit", "rotate-keys")["rewrapped"] == 0
    assert dry["to_wrap"] == {
        "subject_keys": 1, "system_keys": 0, "meta": 1, "system keys in the log": 1,
    }  # fmt: skip
    assert told == {"kek": current, "rewrapped": 3}

    del host.environment["AUDIT_KEK_PREVIOUS"]
    with running_writer(load_audit_writer_settings(host.environment)):
        record(host, event())
        assert [body_of(host, one) for one in (theirs, nobodys)] == [b"theirs", b"nobody's"]
        verified = host.run("audit", "verify", "--content")
        assert verified.code == 0, verified.output
    acts = [line["ty"] for line in clear_lines(host) if line.get("act") == "audit.rotate_keys"]
    assert acts == ["admin.intent", "admin.result"] * 2
