"""Bodies are opened for enrolled readers with a fresh code, within the hour's count, and on record before they are shown."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import orjson
import pyotp
import pytest

from secure_llm_proxy.audit import AuditReader, OpenedRecord, SocketJournal
from secure_llm_proxy.audit.format import BODY_BYTES_MAX, RecordLine
from secure_llm_proxy.audit.keystore import KeyStore
from secure_llm_proxy.audit.reader_codes import STEP_S, ReaderCodes, new_reader_seed, writable_store
from secure_llm_proxy.audit.reading import ERASED
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.cli.program import program
from secure_llm_proxy.foundation.errors import (
    EvidenceBroken,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unavailable,
)
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.vocabulary.events import AuditType
from tests.support.audit_log import (
    KEK,
    WAIT_S,
    WriterProcess,
    audit_settings,
    check,
    end_event,
    event,
    records_in,
    start_event,
    wait_until,
    writer_process,
)
from tests.support.installation import Installation, installation_in

BY = "user:usr_1"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> AuditSettings:
    return audit_settings(tmp_path_factory.mktemp("reveals"), reveals_per_hour=1000)


@pytest.fixture(scope="module")
def writer(settings: AuditSettings) -> Iterator[WriterProcess]:
    """One for all tests that leave it as it is: each has readers and records of its own."""
    with writer_process(settings) as process:
        yield process


@pytest.fixture
def journal(settings: AuditSettings, writer: WriterProcess) -> Iterator[SocketJournal]:
    made = SocketJournal(settings)
    yield made
    made.close()


def fresh_reader(settings: AuditSettings) -> tuple[str, str]:
    """A new reader and the code that the app shows; the enrolment has used up the one before."""
    name, seed = f"r{secrets.token_hex(4)}", new_reader_seed()
    now = time.time()
    # By the same clock as the code's, whose 30 seconds may end in between.
    with closing(ReaderCodes(writable_store(settings), now_s=lambda: now)) as codes:
        codes.enrol(name, seed, pyotp.TOTP(seed).at(int(now) - STEP_S))
    return name, pyotp.TOTP(seed).at(int(now))


def reveal(settings: AuditSettings, identifier: str) -> tuple[OpenedRecord, ...]:
    name, code = fresh_reader(settings)
    return AuditReader(settings).reveal(identifier, reader=name, code=code, by=BY)


def looks(settings: AuditSettings, target: str | None = None) -> list[RecordLine]:
    return [
        record
        for record in records_in(settings.directory)
        if record.type == AuditType.REVEAL and target in (None, record.clear["target"])
    ]


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_bodies_are_shown_after_the_look_is_on_record(settings: AuditSettings, journal: SocketJournal) -> None:
    start = start_event()._replace(exchange_id=f"exc_{secrets.token_hex(8)}", body=b"the prompt")
    end = end_event(start)._replace(body=b"the answer \xff")
    for each in (start, event(exchange="exc_other"), end):
        journal.record(each)
    name, code = fresh_reader(settings)

    opened = AuditReader(settings).reveal(start.exchange_id, reader=name, code=code, by=BY)

    assert [(record.row.id, record.body, record.problem) for record in opened] == [
        (start.id, b"the prompt", None),
        (end.id, b"the answer \xff", None),
    ]
    assert b"the prompt" not in repr(opened).encode()
    (look,) = looks(settings, start.exchange_id)
    assert look.clear == {"target": start.exchange_id, "by": BY, "reader": name, "ok": True, "records": 2}
    assert check(settings).ok


def test_a_body_in_parts_is_shown_whole(settings: AuditSettings, journal: SocketJournal) -> None:
    body = os.urandom(BODY_BYTES_MAX + 1)
    made = event(body=body)
    journal.record(made)

    (opened,) = reveal(settings, made.id)

    assert opened.body == body
    assert [look.clear["records"] for look in looks(settings, made.id)] == [1]


def test_what_was_sealed_for_a_person_opens_until_the_person_is_erased(
    settings: AuditSettings, journal: SocketJournal
) -> None:
    made = event(sub="s_00112233445566ff", body=b"hers")
    journal.record(made)

    before = reveal(settings, made.id)
    with closing(KeyStore.open(settings.keys_directory, KeyRing.from_texts(KEK))) as store:
        assert len(store.erase("s_00112233445566ff")) == 1
    after = reveal(settings, made.id)

    assert [(record.body, record.problem) for record in before] == [(b"hers", None)]
    assert [(record.body, record.problem) for record in after] == [(None, ERASED)]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_wrong_codes_are_refused_and_recorded_until_the_reader_is_closed(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    made = event(body=b"sealed for good")
    journal.record(made)
    name, code = fresh_reader(settings)
    reader = AuditReader(settings)
    wrong = "999999" if code != "999999" else "888888"

    for given in [wrong] * 5 + [code]:
        with pytest.raises(PermissionDenied) as refused:
            reader.reveal(made.id, reader=name, code=given, by=BY)
        assert refused.value.code == "reader_code_refused"
    assert [(look.clear["ok"], look.clear["why"]) for look in looks(settings, made.id)] == [
        *[(False, "code_wrong")] * 5,
        (False, "code_closed"),
    ]
    assert '"reader_closed"' in writer.said()
    # The six digits behind a second may happen to be the code's.
    assert code not in re.sub(r'"t": "[^"]*"', "", writer.said())


def test_a_code_replayed_twenty_times_at_once_opens_once(settings: AuditSettings, journal: SocketJournal) -> None:
    made = event()
    journal.record(made)
    name, code = fresh_reader(settings)
    outcomes: list[str] = []

    def use() -> None:
        try:
            AuditReader(settings).reveal(made.id, reader=name, code=code, by=BY)
            outcomes.append("opened")
        except PermissionDenied:
            outcomes.append("refused")

    threads = [threading.Thread(target=use) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)

    assert sorted(outcomes) == ["opened"] + ["refused"] * 19
    assert [look.clear["ok"] for look in looks(settings, made.id)].count(True) == 1
    assert len(looks(settings, made.id)) == 20


def test_above_the_ceiling_nothing_is_opened_and_the_alarm_is_told_also_after_restarts(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, reveals_per_hour=5)
    with writer_process(settings) as writer:
        exchange = [event(exchange="exc_1") for _ in range(3)]
        with closing(SocketJournal(settings)) as journal:
            for each in exchange:
                journal.record(each)
        reveal(settings, "exc_1")
        writer.kill()
        writer.start()

        with pytest.raises(RateLimited):
            reveal(settings, "exc_1")
        reveal(settings, exchange[0].id)

        # While it is busy it does not say how many were opened.
        told = {"opened_in_hour": 4, "per_hour": 5}
        wait_until(lambda: AuditReader(settings).state()["reveals"] == told, writer.said)
        assert [look.clear["ok"] for look in looks(settings)] == [True, False, True]
        assert '"reveal_ceiling"' in writer.said()


def test_what_cannot_be_recorded_is_not_shown(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, patience_s=0.5)
    with writer_process(settings) as writer:
        journal = SocketJournal(settings.model_copy(update={"patience_s": WAIT_S}))
        made = event(body=b"never shown")
        journal.record(made)
        journal.close()
        name, code = fresh_reader(settings)
        AuditReader(settings).state()
        writer.signal(signal.SIGSTOP)

        with pytest.raises(Unavailable):
            AuditReader(settings).reveal(made.id, reader=name, code=code, by=BY)

        writer.signal(signal.SIGCONT)
        wait_until(lambda: b"never shown" in _bodies(settings, made.id))
        assert [look.clear["ok"] for look in looks(settings)][-1] is True


def _bodies(settings: AuditSettings, identifier: str) -> list[bytes | None]:
    try:
        return [opened.body for opened in reveal(settings, identifier)]
    except Unavailable:
        return []


def test_what_is_not_there_is_told_to_readers_only_and_recorded(settings: AuditSettings, writer: WriterProcess) -> None:
    with pytest.raises(NotFound):
        reveal(settings, "exc_nobody")
    with pytest.raises(PermissionDenied):
        AuditReader(settings).reveal("exc_nobody", reader="nobody", code="123456", by=BY)

    whys = [look.clear["why"] for look in looks(settings, "exc_nobody")]
    assert whys[0] == "not_found"
    assert whys[1] in {"code_wrong", "code_closed"}


def test_a_line_that_was_altered_is_not_opened(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    with writer_process(settings):
        made = event(body=b"x" * 1000)
        with closing(SocketJournal(settings)) as journal:
            journal.record(made)
            journal.record(event())
        (path,) = (settings.directory / "host").glob("*.open")
        raw = path.read_bytes()
        at = raw.index(b'"ct":"', raw.index(made.id.encode())) + 100
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(b"A" if raw[at : at + 1] != b"A" else b"B")

        with pytest.raises(EvidenceBroken):
            reveal(settings, made.id)


def test_a_reader_who_was_removed_opens_nothing(settings: AuditSettings, journal: SocketJournal) -> None:
    made = event()
    journal.record(made)
    name, code = fresh_reader(settings)
    AuditReader(settings).state()

    with closing(ReaderCodes.of(settings)) as codes:
        codes.remove(name)

    with pytest.raises(PermissionDenied):
        AuditReader(settings).reveal(made.id, reader=name, code=code, by=BY)


@pytest.mark.parametrize(
    ("identifier", "reader", "code", "by"),
    [
        ("", "ada", "123456", BY),
        ("a" * 65, "ada", "123456", BY),
        ("exc_1\n", "ada", "123456", BY),
        ("exc_1", "../ada", "123456", BY),
        ("exc_1", "ada", "1" * 65, BY),
        ("exc_1", "ada", "123456", "ada"),
        ("exc_1", "ada", "123456", "user:" + "x" * 65),
        ("exc_1", "ada", "123456", 'user:"'),
    ],
)
def test_who_asks_malformed_is_told_so_and_nothing_is_recorded(
    settings: AuditSettings, writer: WriterProcess, identifier: str, reader: str, code: str, by: str
) -> None:
    before = len(looks(settings))

    with pytest.raises(InvalidRequest):
        AuditReader(settings).reveal(identifier, reader=reader, code=code, by=by)

    assert len(looks(settings)) == before


def test_a_log_without_encryption_knows_no_readers(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, encryption_enabled=False)
    with writer_process(settings), pytest.raises(Unavailable):
        AuditReader(settings).reveal("exc_1", reader="ada", code="123456", by=BY)


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation_in(tmp_path_factory.mktemp("host") / "h", AUDIT_ENCRYPTION_ENABLED="true") as made:
        yield made


def test_a_reader_is_enrolled_by_an_app_listed_and_removed(host: Installation) -> None:
    command = [sys.executable, "manage.py", "audit", "enroll-reader", "ada"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **host.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as dialogue:
        assert dialogue.stdin is not None
        assert dialogue.stdout is not None
        shown = ""
        while "type it in: " not in shown:
            shown = dialogue.stdout.readline()
        secret = shown.partition("in: ")[2].strip().replace(" ", "")
        dialogue.stdin.write(pyotp.TOTP(secret).now() + "\n")
        dialogue.stdin.close()
        told = dialogue.stdout.read()
    listed = host.listed("audit", "list-readers")
    again = host.run("audit", "enroll-reader", "ada")
    removed = host.told("audit", "remove-reader", "ada", "--yes")

    assert dialogue.returncode == 0
    assert "ada is a reader" in told
    assert [(reader["reader"], reader["closed_until"]) for reader in listed] == [("ada", None)]
    assert again.code == 1
    assert "already" in again.errors
    assert removed == {"reader": "ada", "removed": True}
    assert host.listed("audit", "list-readers") == []
    assert secret.encode() not in b"".join(path.read_bytes() for path in host.directory.rglob("*") if path.is_file())
    acts = [orjson.loads(raw).get("act") for raw in _lines(host)]
    assert acts.count("audit.reader_enrol") == 2
    assert acts.count("audit.reader_remove") == 2


def _lines(host: Installation) -> list[bytes]:
    segments = sorted((host.directory / "instance" / "audit").rglob("0*.jsonl*"))
    return [raw for segment in segments for raw in segment.read_bytes().splitlines()]


def test_without_a_right_code_nobody_becomes_a_reader(host: Installation) -> None:
    ended = host.run("audit", "enroll-reader", "eve", stdin="1\n000000000\nabcdef\n")

    assert ended.code == 1
    assert "\u2588" in ended.output
    assert "nothing was set up" in ended.errors
    assert host.listed("audit", "list-readers") == []


def test_names_that_cannot_be_a_readers_are_refused(host: Installation) -> None:
    for arguments in (("enroll-reader", "Eve"), ("remove-reader", "eve", "--yes"), ("remove-reader", "../x", "--yes")):
        assert host.run("audit", *arguments).code == 1


def test_the_commands_are_there() -> None:
    with click.Context(program) as context:
        group = program.get_command(context, "audit")
        assert isinstance(group, click.Group)
        assert {"enroll-reader", "list-readers", "remove-reader"} <= set(group.list_commands(context))
