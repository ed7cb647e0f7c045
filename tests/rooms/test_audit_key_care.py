"""Erasing people and changing the key-encryption key, through the control socket of a writer that runs."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import gevent
import orjson
import pytest
from pydantic import SecretStr

from secure_llm_proxy.audit import (
    BodyOpener,
    SocketJournal,
    WriterControl,
    find_records,
    open_records,
    segments_of,
    system_keys_in,
    verify,
)
from secure_llm_proxy.audit.format import RecordLine, base64_text
from secure_llm_proxy.audit.keystore import KEYS_NAME, KeyStore
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.events import AuditType
from tests.support.audit_log import (
    KEK,
    WAIT_S,
    WriterProcess,
    audit_settings,
    check,
    event,
    records_in,
    wait_until,
    writer_process,
)

ANA, BO = "s_00000000000000aa", "s_00000000000000bb"
OTHER = "6b" * 32


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return audit_settings(tmp_path)


@pytest.fixture
def writer(settings: AuditSettings) -> Iterator[WriterProcess]:
    with writer_process(settings) as process:
        yield process


@pytest.fixture
def journal(settings: AuditSettings) -> Iterator[SocketJournal]:
    made = SocketJournal(settings)
    yield made
    made.close()


def control(settings: AuditSettings) -> closing[WriterControl]:
    return closing(WriterControl(settings.control_address, patience_s=WAIT_S))


def of(subject: str, body: bytes = b"body") -> AuditEvent:
    return event(AuditType.REFUSED, body=body, sub=subject)


def opened(settings: AuditSettings, record: AuditEvent) -> bytes | None:
    (found,) = open_records(settings.directory, record.id, BodyOpener.of(settings))
    return found.body


def erased_records(settings: AuditSettings) -> list[RecordLine]:
    return [record for record in records_in(settings.directory) if record.type == AuditType.SUBJECT_ERASED]


def bytes_of_store(settings: AuditSettings) -> bytes:
    return b"".join(path.read_bytes() for path in settings.keys_directory.glob(KEYS_NAME + "*"))


def wrapped_of(settings: AuditSettings, subject: str) -> list[bytes]:
    with closing(sqlite3.connect(settings.keys_directory / KEYS_NAME)) as database:
        rows = database.execute("SELECT wrapped FROM subject_keys WHERE subject = ?", (subject,)).fetchall()
    return [bytes(wrapped) for (wrapped,) in rows]


# --- erasing ----------------------------------------------------------------------------------------------------------


def test_who_is_erased_is_gone_from_the_store_and_the_writer_and_the_log_says_so(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    before, bos = of(ANA, b"ana's prompt"), of(BO, b"bo's")
    journal.record(before)
    journal.record(bos)
    (wrapped,) = wrapped_of(settings, ANA)
    assert wrapped in bytes_of_store(settings)

    with control(settings) as operator:
        answer = operator.ask("erase", subject=ANA)
    after = of(ANA, b"new life")
    journal.record(after)

    (kid,) = (str(record.kid) for record in records_in(settings.directory) if record.id == before.id)
    (told,) = erased_records(settings)
    assert answer["kids"] == [kid]
    assert answer["trouble"] is None
    assert (told.clear["subject"], told.clear["kids"], told.clear["keys"]) == (ANA, kid, 1)
    assert str(told.kid).startswith("sys.")
    assert answer["erased"] == [{"kid": kid, "erased_at": answer["erased"][0]["erased_at"], "n": told.n}]  # type: ignore[index]
    assert str(answer["note"]).splitlines()[1] == str(told.n + 1)
    assert wrapped not in bytes_of_store(settings)
    assert [opened(settings, record) for record in (before, bos, after)] == [None, b"bo's", b"new life"]
    report = check(settings)
    assert report.ok
    assert report.bodies_opened == report.records - 1


def test_erasing_again_tells_the_same_and_changes_nothing(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    journal.record(of(ANA))
    with control(settings) as one, control(settings) as two:
        first = one.ask("erase", subject=ANA)
        second = two.ask("erase", subject=ANA)
        nobody = two.ask("erase", subject=BO)

    assert second["kids"] == nobody["kids"] == nobody["erased"] == []
    assert second["erased"] == first["erased"]
    assert len(erased_records(settings)) == 1


def test_two_erasures_at_once_while_the_person_goes_on_asking_lose_nothing_and_open_only_what_came_later(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    """Whatever was acknowledged stands in the log; each key is destroyed once, and told once."""
    # There is a key to destroy even when both have done with erasing before anybody else was heard.
    journal.record(of(ANA))
    acknowledged: list[AuditEvent] = []

    def ask_on() -> None:
        for _ in range(60):
            record = of(ANA)
            journal.record(record)
            acknowledged.append(record)

    asking = [gevent.spawn(ask_on) for _ in range(5)]
    threads = gevent.get_hub().threadpool

    def erase_on() -> list[object]:
        with control(settings) as operator:
            return [kid for _ in range(10) for kid in operator.ask("erase", subject=ANA)["kids"]]  # type: ignore[attr-defined]

    erasing = [threads.spawn(erase_on) for _ in range(2)]
    gevent.joinall(asking, timeout=WAIT_S, raise_error=True)
    destroyed = [kid for each in erasing for kid in each.get(timeout=WAIT_S) or ()]

    assert len(acknowledged) == 300
    assert {record.id for record in records_in(settings.directory)} >= {record.id for record in acknowledged}
    assert destroyed
    assert len(destroyed) == len(set(destroyed))
    told = [kid for record in erased_records(settings) for kid in str(record.clear["kids"]).split(",")]
    assert sorted(told) == sorted(map(str, destroyed))
    used_after = {record.kid for record in records_in(settings.directory)} - set(destroyed)
    report = check(settings)
    assert report.ok, report.findings
    assert report.bodies_opened == sum(record.kid in used_after for record in records_in(settings.directory))


def test_a_writer_that_dies_between_destroying_and_telling_tells_at_its_next_start(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    journal.record(of(ANA))
    assert writer.stop() == 0
    store = KeyStore.open(settings.keys_directory, KeyRing.from_texts(KEK))
    (kid,) = store.erase(ANA)
    store.close()

    writer.start()
    wait_until(lambda: len(erased_records(settings)) == 1, writer.said)
    writer.kill()
    writer.start()
    journal.record(event())

    # Told once more, if it died before it had noted that it told.
    assert {record.clear["kids"] for record in erased_records(settings)} == {kid}
    assert check(settings).ok


def test_a_person_with_many_keys_is_told_of_in_records_that_fit(settings: AuditSettings, writer: WriterProcess) -> None:
    assert writer.stop() == 0
    now = 0.0
    store = KeyStore.open(settings.keys_directory, KeyRing.from_texts(KEK), now_s=lambda: now)
    for month in range(450):
        now = 1_000_000_000.0 + month * 30 * 86_400
        store.keys_of([ANA])
    store.close()
    writer.start()

    with control(settings) as operator:
        answer = operator.ask("erase", subject=ANA)

    assert len(answer["kids"]) == 450  # type: ignore[arg-type]
    assert [record.clear["keys"] for record in erased_records(settings)] == [400, 50]
    assert check(settings).ok


def test_while_a_reader_holds_the_store_open_erasing_says_what_is_left_to_do(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    journal.record(of(ANA))
    (wrapped,) = wrapped_of(settings, ANA)
    with control(settings) as operator:
        with closing(sqlite3.connect(settings.keys_directory / KEYS_NAME, isolation_level=None)) as reading:
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM subject_keys").fetchone()
            answer = operator.ask("erase", subject=ANA)
        assert "erase again" in str(answer["trouble"])
        assert wrapped_of(settings, ANA) == []

        assert operator.ask("erase", subject=ANA)["trouble"] is None
    assert wrapped not in bytes_of_store(settings)


@pytest.mark.parametrize("subject", [None, "", "ana", ANA + "'", ANA.upper(), 7, "s_" + "0" * 17])
def test_what_is_no_pseudonym_is_not_erased(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal, subject: object
) -> None:
    journal.record(of(ANA))

    with control(settings) as operator, pytest.raises(OperatorError, match="no pseudonym"):
        operator.ask("erase", subject=subject)

    assert len(wrapped_of(settings, ANA)) == 1


# --- the socket -------------------------------------------------------------------------------------------------------


def test_the_control_socket_is_its_owners_and_goes_with_the_writer(
    settings: AuditSettings, writer: WriterProcess
) -> None:
    assert settings.control_address.stat().st_mode & 0o777 == 0o600
    assert writer.stop() == 0
    assert not settings.control_address.exists()
    with pytest.raises(OperatorError, match="does not answer its operator"):
        WriterControl(settings.control_address)


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b"null", b"7", b'{"op":7}', b'{"op":["erase"]}', b'{"op":"none"}', b"\xff" * 100]
)
def test_nonsense_on_the_control_socket_is_answered_and_harms_nobody(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal, line: bytes
) -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as peer:
        peer.settimeout(WAIT_S)
        peer.connect(str(settings.control_address))
        peer.sendall(line + b"\n")
        answer = orjson.loads(peer.makefile("rb").readline())
        peer.sendall(b'{"op":"keks"}\n')
        assert orjson.loads(peer.makefile("rb").readline())["end"]

    assert answer["error"]["code"] == "unknown_operation"
    journal.record(event())


def test_a_peer_that_says_too_much_or_never_ends_does_not_keep_the_writer(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    with (
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as endless,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as silent,
    ):
        for peer in (endless, silent):
            peer.settimeout(WAIT_S)
            peer.connect(str(settings.control_address))
        silent.sendall(b'{"op":')
        with pytest.raises(OSError):  # noqa: PT011 - hung up on in one way or another
            _say_on(endless)
        journal.record(event())
        with control(settings) as operator:
            assert operator.ask("keks")["counts"]


def _say_on(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"x" * 65536)


def test_without_encryption_there_is_nothing_to_erase(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path, kek=None, encryption_enabled=False)
    with writer_process(settings), control(settings) as operator, pytest.raises(OperatorError, match="not encrypted"):
        operator.ask("erase", subject=ANA)


# --- another key-encryption key ---------------------------------------------------------------------------------------


def turned(settings: AuditSettings, kek: str, previous: str | None) -> AuditSettings:
    changed = {"kek": SecretStr(kek), "previous_keks": SecretStr(previous) if previous else None}
    return settings.model_copy(update=changed)


def test_a_rotation_that_is_killed_twice_goes_on_and_loses_nothing(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    people = [of(f"s_{number:016x}", b"%d" % number) for number in range(1_700)]
    for record in people:
        journal.post(record)
    journal.record(event(body=b"nobody's"))
    assert writer.stop() == 0

    new = turned(settings, OTHER, KEK)
    current = KeyRing.from_texts(OTHER).current.id
    writer.settings = new
    writer.start()
    wanted = [
        {"kid": key.kid, "wk": key.wrapped, "kc": key.commitment}
        for key in system_keys_in(segments_of(settings))
        if key.kek != current
    ]
    assert len(wanted) == 1
    with control(new) as operator:
        assert operator.ask("rewrap")["done"] == 500
        writer.kill()
    writer.start()
    with control(new) as operator:
        assert operator.ask("keep-system-keys", keys=wanted) == {"kept": 1}
        assert operator.ask("rewrap")["done"] == 500
        writer.kill()
    writer.start()
    with control(new) as operator:
        while operator.ask("rewrap")["left"]:
            pass
        operator.ask("compact")
        counts = operator.ask("keks")["counts"]
    assert writer.stop() == 0

    assert counts == {"subject_keys": {current: 1_700}, "system_keys": {current: 1}, "meta": {current: 1}}
    alone = turned(settings, OTHER, None)
    writer.settings = alone
    writer.start()
    journal.record(of(BO))
    report = verify(settings.directory, genesis_public_key=None, opener=BodyOpener.of(alone))
    assert report.ok, report.findings[:3]
    assert report.bodies_opened == report.records
    assert orjson.loads((settings.keys_directory / "epoch.key").read_bytes())["kek"] == current


def test_a_system_key_that_nobody_can_unwrap_stops_the_rotation_in_a_sentence(
    settings: AuditSettings, writer: WriterProcess
) -> None:
    ring = KeyRing.from_texts(OTHER)
    secret = b"x" * 32
    with control(settings) as operator:
        for keys in ([{"kid": "sys.1"}], "no list", [7]):
            with pytest.raises(OperatorError):
                operator.ask("keep-system-keys", keys=keys)
        stranger = {"kid": "sys.1", "wk": base64_text(ring.current.wrap(secret, "sys.1")), "kc": base64_text(secret)}
        with pytest.raises(OperatorError, match="AUDIT_KEK_PREVIOUS"):
            operator.ask("keep-system-keys", keys=[stranger])
        assert operator.ask("keks")["system_keys"] == []


def test_records_are_found_by_their_person_after_all_this(
    settings: AuditSettings, writer: WriterProcess, journal: SocketJournal
) -> None:
    record = of(ANA)
    journal.record(record)
    with control(settings) as operator:
        operator.ask("erase", subject=ANA)

    (found,) = find_records(settings.directory, record.id)

    assert isinstance(found.line, RecordLine)
    assert found.line.clear["sub"] == ANA
