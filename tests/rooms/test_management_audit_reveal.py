"""Bodies at the management API: opened for who may, with a reader's code, on record before anything is shown."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyotp
import pytest

from secure_llm_proxy.audit import AuditReader, SocketJournal
from secure_llm_proxy.audit.index_shipping import IndexShipper
from secure_llm_proxy.audit.reader_codes import STEP_S, ReaderCodes, new_reader_seed, writable_store
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.identity import Role
from secure_llm_proxy.settings import AuditSettings, Settings, ThrottlingSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent, indexed_values
from secure_llm_proxy.vocabulary.events import AuditType
from tests.support.audit_log import audit_settings, records_in, writer_process
from tests.support.management_house import ManagementRoom, make_management_room

ROOMY = Settings(throttling=ThrottlingSettings(management_requests_per_minute=100_000))
ADDRESS, EMAIL = "2001:db8::7", "ada@example.org"


@dataclass
class Place:
    """A log with a writer, an exchange of ours and a refusal of theirs in it, and the management API over both."""

    settings: AuditSettings
    management: ManagementRoom
    start: str
    foreign: str

    def code_of_reader(self) -> tuple[str, str]:
        """A new reader, and the code that the app shows."""
        name, seed = f"r{secrets.token_hex(4)}", new_reader_seed()
        now = time.time()
        # By a clock that stands: a code of the step before is too old as soon as the next step begins.
        with closing(ReaderCodes(writable_store(self.settings), lambda: now)) as codes:
            codes.enrol(name, seed, pyotp.TOTP(seed).at(int(now) - STEP_S))
        return name, pyotp.TOTP(seed).at(int(now))

    def looks(self) -> list[object]:
        return [each.clear["target"] for each in records_in(self.settings.directory) if each.type == AuditType.REVEAL]


@pytest.fixture
def place(short_folder: Path, tmp_path: Path) -> Iterator[Place]:
    folder = short_folder / secrets.token_hex(4)
    folder.mkdir()
    settings = audit_settings(folder)
    with writer_process(settings):
        reader = AuditReader(settings)
        management = make_management_room(tmp_path, ROOMY, reader=reader)
        elsewhere = management.organisation("elsewhere").id
        own, foreign = management.person("own", "member"), management.person("foreign", "member", elsewhere)
        indexed = indexed_values(address=ADDRESS, email=EMAIL)
        start = AuditEvent(
            new_record_id(), AuditType.LLM_START, "exc_1", None, {"usr": own.id}, b'{"request":{"a":1}}', indexed
        )
        end = AuditEvent(
            new_record_id(), AuditType.LLM_END, "exc_1", None, {"usr": own.id, "sid": start.id}, b"no JSON \xff"
        )
        refused = AuditEvent(new_record_id(), AuditType.REFUSED, "exc_2", None, {"usr": foreign.id}, b"{}")
        journal = SocketJournal(settings)
        for each in (start, end, refused):
            journal.record(each)
        journal.close()
        IndexShipper(management.room.database, reader, management.room.clock, lambda: 1).ship()
        yield Place(settings, management, start.id, refused.id)
        management.room.database.close()


def asked(place: Place, record: str, **changed: object) -> tuple[int, dict[str, object]]:
    name, code = place.code_of_reader()
    body = {"reader": name, "code": code, "reason": "an incident", **changed}
    answer = place.management.as_role(Role.AUDITOR).ask("POST", f"/api/v1/audit/records/{record}/reveal", body)
    return answer.status_code, answer.get_json()


def test_an_auditor_with_a_fresh_code_reads_the_body_and_both_logs_say_so(place: Place) -> None:
    status, told = asked(place, place.start)

    assert status == 200, told
    items = told["items"]
    assert isinstance(items, list)
    assert [(item["record"]["type"], item["body"]) for item in items] == [
        ("llm.start", {"request": {"a": 1}}), ("llm.end", "no JSON \ufffd"),
    ]  # fmt: skip
    assert place.looks() == [place.start]
    (intent,) = place.management.small.journal.of(AuditType.ADMIN_INTENT)
    (result,) = place.management.small.journal.of(AuditType.ADMIN_RESULT)
    assert (intent.clear["act"], intent.clear["subject"], result.clear["ok"]) == ("audit.reveal", place.start, True)
    assert b"an incident" in intent.body


def test_a_wrong_code_opens_nothing_and_stands_in_no_record(place: Place) -> None:
    status, told = asked(place, place.start, code="000000")

    assert status == 403
    assert "reader_code_refused" in str(told)
    (result,) = place.management.small.journal.of(AuditType.ADMIN_RESULT)
    assert result.clear["ok"] is False
    assert not [event for event in place.management.small.journal.handed_over if "000000" in str(event)]


@pytest.mark.parametrize("wrong", [{"code": "12"}, {"reason": ""}, {"reader": "a b"}, {"more": 1}])
def test_what_is_malformed_reaches_nobody(place: Place, wrong: dict[str, object]) -> None:
    status, _ = asked(place, place.start, **wrong)

    assert status == 400
    assert place.looks() == []


def test_a_record_of_another_organisation_is_not_there(place: Place) -> None:
    status, _ = asked(place, place.foreign)

    assert status == 404
    assert place.looks() == []
    assert not place.management.small.journal.of(AuditType.ADMIN_INTENT)


def test_records_are_found_by_what_was_sealed_with_them(place: Place) -> None:
    owner = place.management.as_role(Role.OWNER)

    def found(query: str) -> list[str]:
        return [each["id"] for each in owner.ask("GET", f"/api/v1/audit/records?{query}").get_json()["items"]]

    assert found("address=2001:0db8::0007") == [place.start]
    assert found("email=Ada@Example.ORG") == [place.start]
    assert found("agent=nobodys") == []
    assert owner.ask("GET", "/api/v1/audit/records?address=nowhere").get_json()["error"]["field"] == "address"
