"""`audit search` and `audit export`, as an operator types them."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_llm_proxy.audit import SocketJournal
from secure_llm_proxy.foundation.identifiers import RecordId
from secure_llm_proxy.foundation.secret_values import derive_key, pseudonym
from secure_llm_proxy.settings import load_settings
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from tests.support.audit_log import end_event, event
from tests.support.installation import Ended, Installation, fresh, installation_in
from tests.support.programs import find_program

ROOT = Path(__file__).resolve().parents[2]
MANAGE = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'manage.py'))}"
PROJECT = "prj_01KAHG0000000000000000TEST"


@pytest.fixture(scope="module")
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / "search") as installation:
        yield installation


def record(host: Installation, *events: AuditEvent) -> None:
    journal = SocketJournal(load_settings(host.environment).audit)
    try:
        for one in events:
            journal.record(one)
    finally:
        journal.close()


def ids(found: list[dict[str, object]]) -> list[object]:
    return [row["id"] for row in found]


def shell(host: Installation, command: str) -> subprocess.CompletedProcess[str]:
    # A limited file size would cut off what Python keeps of its modules.
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **host.environment}
    return subprocess.run(
        ["bash", "-c", "set -o pipefail; " + command],
        env=environment,
        cwd=host.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_each_question_finds_its_records_and_no_others(host: Installation) -> None:
    word = fresh("q")
    user = host.make_user(word)
    key = host.make_key(word)
    person_key = derive_key(host.environment["SECRET_KEY"], "slp/person")
    identity: dict[str, ClearValue] = {
        "ak": str(key["kid"]),
        "usr": str(user["id"]),
        "prj": PROJECT,
        "sub": pseudonym(person_key, word),
        "mdl": f"model-{word}",
    }
    exchange = f"exc_{word}"
    start = AuditEvent(
        RecordId(f"S{word}"), AuditType.LLM_START, exchange, EventName.CHAT_REQUEST, {**identity, "dec": "allow"}
    )
    end = end_event(start)._replace(clear={**identity, "sid": start.id, "st": "client_abort", "http": 499})
    refusal = {**identity, "dec": "refuse", "http": 429, "code": "rate_limit_exceeded"}
    refused = event(name=EventName.RATE_LIMIT_EXCEEDED)._replace(clear=refusal)
    record(host, start, end, refused)

    both, all_three = [start.id, end.id], [start.id, end.id, refused.id]

    def found(*question: str) -> list[object]:
        return ids(host.listed("audit", "search", "--model", f"model-{word}", *question))

    assert found() == all_three
    assert found("--user", word) == found("--user", str(user["id"])) == all_three
    assert found("--person", word) == found("--person", str(identity["sub"])) == all_three
    assert found("--project", PROJECT) == all_three
    assert found("--key", str(key["kid"])) == found("--key", str(key["id"])) == all_three
    assert (
        found("--event", "CHAT_REQUEST") == found("--type", "llm.start") == found("--decision", "allow") == [start.id]
    )
    assert found("--status", "429") == found("--status", "rate_limit_exceeded") == [refused.id]
    assert found("--status", "client_abort") == [end.id]
    assert found("--request", exchange) == found("--request", start.id) == both
    assert found("--since", "1h") == found("--until", "2100-01-01") == all_three
    assert found("--until", "1h") == found("--since", "2100-01-01T00:00:00+01:00") == []
    assert found("--limit", "2") == [end.id, refused.id]
    assert found("--event", "RATE_LIMIT_EXCEEDED", "--decision", "allow") == []
    # What was done to a user and to a key stands beside what they did.
    assert {"user.create", "key.create"} <= {
        row.get("act") for row in host.listed("audit", "search", "--user", word, "--type", "admin.result")
    } | {row.get("act") for row in host.listed("audit", "search", "--key", str(key["kid"]))}


def test_a_search_shows_a_table_with_nothing_that_moves_the_cursor(host: Installation) -> None:
    word = fresh("t")
    one = event(name=EventName.SECURITY_EVENT, mdl=f"{word}\u202e\x1b[2J", code="forbidden")
    record(host, one)

    table = host.run("audit", "search", "--event", "SECURITY_EVENT", "--limit", "1")
    nothing = host.run("audit", "search", "--model", fresh("none"))

    assert table.output.splitlines()[0].split() == [
        "TIME",
        "TYPE",
        "EVENT",
        "WHAT",
        "WHO",
        "WHERE",
        "RECORD",
        "REQUEST",
    ]
    assert f"{word}\\u202e\\u001b[2J" in table.output
    assert one.id in table.output
    assert (nothing.code, nothing.output) == (0, "No record fits.\n")


@pytest.mark.parametrize(
    "question",
    [
        ("--since", "yesterday"),
        ("--since", "2026-13-01"),
        ("--since", "999999999w"),
        ("--since", "0000-01-01"),
        ("--since", "\uff12\uff10\uff12\uff16-11-21"),
        ("--since", "2026-11-21T25:00"),
        ("--since", "0001-01-01T00:00:00+23:59"),
        ("--since", "9" * 5000),
        ("--since", "2026-11-22", "--until", "2026-11-21"),
        ("--limit", "0"),
        ("--limit", "-1"),
        ("--limit", "1" * 30),
        ("--limit", "1e3"),
        ("--model", "bad\udcff"),
        ("--request", "a\nb"),
    ],
)
def test_a_question_that_means_nothing_is_refused_as_usage(host: Installation, question: tuple[str, ...]) -> None:
    ended = host.run("audit", "search", *question)

    assert (ended.code, ended.output) == (2, "")
    assert "Traceback" not in ended.errors


@pytest.mark.parametrize(
    "value", ["", "'", '"', "\\", "%", "*", "null", "--", "x" * 100_000, "\u00e9", "{}", '","ty":"llm.start']
)
def test_any_text_is_looked_for_as_it_is(host: Installation, value: str) -> None:
    for option in ("--model", "--status"):
        ended = host.run("audit", "search", option, value, "--json")

        assert (ended.code, ended.output) == (0, "[]\n"), (option, ended.errors)


def test_the_newest_events_are_those_with_a_name(host: Installation) -> None:
    first, nameless, last = event(name=EventName.BLOCKED_IP), event(), event(name=EventName.BLOCKED_IP)
    record(host, first, nameless, last)

    assert ids(host.listed("show-events", "--event", "BLOCKED_IP")) == [first.id, last.id]
    assert ids(host.listed("show-events", "--limit", "2")) == [first.id, last.id]
    assert host.listed("show-events", "--event", "\udcff") == []


def test_a_user_and_a_project_who_are_not_there_are_said(host: Installation) -> None:
    for option in ("--user", "--project"):
        ended = host.run("audit", "search", option, "nobody-of-that-name")

        assert ended.code == 1
        assert "nobody-of-that-name" in ended.errors


@pytest.mark.parametrize(
    "command", [("search",), ("export",), ("cat",), ("show", "x"), ("prove", "x"), ("anchors",), ("verify",)]
)
def test_a_log_that_cannot_be_read_is_one_sentence(host: Installation, command: tuple[str, ...]) -> None:
    # Longer than a name may be: like a directory that this user may not look into, for a root that may look everywhere.
    unreadable = Installation(host.directory, {**host.environment, "AUDIT_DIR": str(host.directory / ("x" * 300))})
    nowhere = Installation(host.directory, {**host.environment, "AUDIT_DIR": str(host.directory / "nowhere")})

    refused, missing = unreadable.run("audit", *command), nowhere.run("audit", *command)

    assert refused.errors.startswith(("Error: ", "Warning: "))
    assert (refused.output, missing.output) == ("", "")
    # Exit code 1 of a verification would say that the log was tampered with.
    assert (refused.code, missing.code) == ((4, 2) if command == ("verify",) else (1, 1))


# --- export -----------------------------------------------------------------------------------------------------------


def export(host: Installation, *arguments: str) -> Ended:
    return host.run("audit", "export", *arguments)


def test_an_export_is_a_private_file_of_every_format_that_says_whether_it_is_whole(
    host: Installation, tmp_path: Path
) -> None:
    model = fresh("export")
    events = [event(body=b"sealed words", mdl=model, dec="refuse") for _ in range(3)]
    record(host, *events)
    files = {kind: tmp_path / f"out.{kind}" for kind in ("jsonl", "csv", "cef")}

    ended = [export(host, "--format", kind, "--model", model, "--output", str(file)) for kind, file in files.items()]
    piped = export(host, "--model", model)

    assert [(one.code, one.output, one.errors) for one in ended] == [(0, "", "")] * 3
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files.values())
    assert sorted(tmp_path.iterdir()) == sorted(files.values())
    *rows, last = [json.loads(line) for line in files["jsonl"].read_text("utf-8").splitlines()]
    assert ids(rows) == [one.id for one in events]
    assert (last["k"], last["records"], last["complete"], last["filter"]) == ("export", 3, True, {"model": model})
    table = list(csv.DictReader(io.StringIO(files["csv"].read_text("utf-8"))))
    assert [row["id"] for row in table[:-1]] == [one.id for one in events]
    assert [line.split("|")[0] for line in files["cef"].read_text("utf-8").splitlines()] == ["CEF:0"] * 4
    assert [json.loads(line)["id"] for line in piped.output.splitlines()[:-1]] == [one.id for one in events]
    assert not any("sealed words" in file.read_text("utf-8") for file in files.values())


def test_bodies_are_opened_after_the_look_is_on_record(host: Installation, tmp_path: Path) -> None:
    model = fresh("content")
    record(host, event(body=b'{"said":"words"}', mdl=model), event(body=b"\xff", mdl=model))
    output = tmp_path / "out.jsonl"

    ended = export(host, "--model", model, "--content", "--output", str(output))
    refused = export(host, "--content", "--format", "csv", "--output", str(tmp_path / "no.csv"))

    assert (ended.code, refused.code) == (0, 2)
    bodies = [json.loads(line).get("body") for line in output.read_text("utf-8").splitlines()]
    assert bodies == [{"said": "words"}, {"base64": "/w=="}, None]
    looks = host.listed("audit", "search", "--type", "audit.reveal", "--limit", "1")
    assert (looks[0]["target"], looks[0]["f_model"]) == ("export", model)


def test_sealed_addresses_are_for_who_may_ask_the_writer_and_bodies_for_who_holds_its_key(short_folder: Path) -> None:
    with installation_in(short_folder / "sealed", AUDIT_ENCRYPTION_ENABLED="true") as sealed:
        known = {"ipx": "2001:db8::7", "uax": "curl/8", "emx": "ann@example.org"}
        of_person = event(body=b'"words"', sub="s_" + "1b" * 8)._replace(indexed=known)
        of_nobody = event(body=b'"more"')
        record(sealed, of_person, of_nobody)
        reader = Installation(sealed.directory, {**sealed.environment, "AUDIT_KEK": ""})
        stranger = Installation(
            sealed.directory, {**reader.environment, "AUDIT_READ_SOCKET": str(sealed.directory / "no")}
        )

        for question in (("--address", "2001:DB8:0::7"), ("--agent", "curl/8"), ("--email", " Ann@Example.org")):
            assert ids(sealed.listed("audit", "search", *question)) == [of_person.id]
            assert ids(reader.listed("audit", "search", *question)) == [of_person.id]
            refused = stranger.run("audit", "search", *question)
            assert (refused.code, "cannot be read now" in refused.errors) == (1, True)
        assert sealed.listed("audit", "search", "--address", "192.0.2.1") == []
        assert sealed.run("audit", "search", "--address", "nonsense").code == 2
        assert reader.run("audit", "export", "--content").code == 1
        opened = sealed.run("audit", "export", "--content", "--type", "llm.refused")
        assert [json.loads(line).get("body") for line in opened.output.splitlines()] == ["words", "more", None]


def test_nothing_is_opened_when_the_look_cannot_be_recorded(host: Installation, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    away = Installation(host.directory, {**host.environment, "AUDIT_SOCKET": str(tmp_path / "away.sock")})

    # A writer of the command's own cannot start: the log is held by the one that runs.
    ended = export(away, "--content", "--output", str(output))

    assert ended.code == 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_touched(host: Installation, tmp_path: Path) -> None:
    there, dangling = tmp_path / "there", tmp_path / "dangling"
    there.write_text("mine", "utf-8")
    dangling.symlink_to(tmp_path / "elsewhere")

    ended = [export(host, "--output", str(path)) for path in (there, dangling, tmp_path, tmp_path / "no" / "x")]

    assert [one.code for one in ended] == [1, 1, 1, 1]
    assert there.read_text("utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "there"]


def test_a_disk_that_fills_up_leaves_nothing_behind(host: Installation, tmp_path: Path) -> None:
    record(host, *(event(mdl="m" * 150) for _ in range(20)))

    # No file may grow beyond 1 KiB: what a full disk looks like.
    ended = shell(host, f"ulimit -f 1; exec {MANAGE} audit export --output {tmp_path / 'out'}")

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"Error: {tmp_path / 'out'} cannot be written: ")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_ends_an_export_without_a_word(host: Installation) -> None:
    record(host, *(event(mdl="m" * 15_000) for _ in range(20)))

    ended = shell(host, f"{MANAGE} audit export | head -c 1; echo ${{PIPESTATUS[0]}}")

    assert (ended.stdout, ended.stderr) == ("{1\n", "")


def test_grep_and_jq_work_on_the_whole_log(host: Installation) -> None:
    find_program("jq", package="jq")
    one = event(name=EventName.SECURITY_EVENT, code="api_key_in_url", dec="refuse")
    record(host, one)

    ended = shell(
        host, f'{MANAGE} audit cat | grep SECURITY_EVENT | jq -r \'select(.id == "{one.id}") | .ev + " " + .code\''
    )
    on_file = shell(host, f"grep -h SECURITY_EVENT instance/audit/audit.jsonl | jq -r .id | grep -c {one.id}")

    assert (ended.returncode, ended.stdout) == (0, "SECURITY_EVENT api_key_in_url\n")
    assert on_file.stdout == "1\n"
