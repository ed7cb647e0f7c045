"""`/audit`: who may look into the log, what they get, what is refused, and that every look is on record before it is shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import insert
from werkzeug.test import TestResponse

from secure_llm_proxy.audit.evidence import Damage, SourceLine
from secure_llm_proxy.audit.exports import ClearRow
from secure_llm_proxy.audit.index_rows import index_values
from secure_llm_proxy.audit.models import AuditIndexRow
from secure_llm_proxy.audit.read_client import Place, Row
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import Unavailable
from secure_llm_proxy.identity import Role
from secure_llm_proxy.settings import Settings, ThrottlingSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.events import AuditType
from tests.support.audit_log import entry, write_log
from tests.support.file_evidence import FileEvidence, RowEvidence
from tests.support.house import audit_unavailable, stop_recording_at
from tests.support.management_house import ManagementClient, ManagementRoom, make_management_room

ROOMY = Settings(
    throttling=ThrottlingSettings(management_requests_per_minute=100_000, login_requests_per_minute=100_000)
)
DOORS = [("GET", "/audit/export"), ("GET", "/audit/report"), ("POST", "/audit/validate")]
READERS = {Role.OWNER, Role.ADMIN, Role.AUDITOR}


@pytest.fixture
def evidence() -> RowEvidence:
    return RowEvidence()


@pytest.fixture
def management(tmp_path: Path, evidence: RowEvidence) -> Iterator[ManagementRoom]:
    made = make_management_room(tmp_path, ROOMY, evidence=evidence)
    yield made
    made.room.database.close()


@pytest.fixture
def auditor(management: ManagementRoom) -> ManagementClient:
    return management.as_role("auditor")


def row(
    management: ManagementRoom, n: int, kind: str = "llm.start", event: str | None = "CHAT_REQUEST", **clear: ClearValue
) -> ClearRow:
    """A record of an hour ago."""
    t = rfc3339(management.room.clock.now() - timedelta(hours=1) + timedelta(seconds=n))
    return ClearRow(n, 1, t, kind, event, f"R{n:04d}", f"exc_{n}", "sys.1", "aGFzaA==", clear)


def ask(client: ManagementClient, method: str, path: str) -> TestResponse:
    answer = client.ask(method, path, {"audit_id": "R0001"} if method == "POST" else None)
    # An export is made while it is read.
    answer.get_data()
    return answer


def told(answer: TestResponse) -> dict[str, Any]:
    assert answer.status_code == 200, answer.data
    found: dict[str, Any] = orjson.loads(answer.data)
    return found


def lines_of(answer: TestResponse) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.data
    return [orjson.loads(line) for line in answer.data.splitlines()]


def looks(management: ManagementRoom) -> list[AuditEvent]:
    return [event for event in management.small.journal.handed_over if event.event == "AUDIT_ACCESS"]


# --- who --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), DOORS)
@pytest.mark.parametrize("role", list(Role))
def test_owners_admins_and_auditors_look_into_the_log_and_nobody_else(
    management: ManagementRoom, role: Role, method: str, path: str
) -> None:
    answer = ask(management.as_role(role), method, path)

    if role in READERS:
        assert answer.status_code in {200, 404}, answer.data
        assert looks(management)
    else:
        assert answer.status_code == 403, answer.data
        assert not looks(management)


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_nobody_looks_without_a_session_or_with_a_key_that_asks_models(
    management: ManagementRoom, method: str, path: str
) -> None:
    management.person("auditor", "auditor")
    key = management.room.make_key("auditor").secret

    assert ask(management.client(), method, path).status_code == 401
    assert ask(management.client(key), method, path).status_code == 401
    assert looks(management) == []


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_an_administration_key_looks_as_its_user(management: ManagementRoom, method: str, path: str) -> None:
    management.person("auditor", "auditor")
    key = management.room.make_key("auditor", kind="adm")

    assert ask(management.client(key.secret), method, path).status_code in {200, 404}
    assert looks(management)[0].clear["key"] == key.api_key.kid


@pytest.mark.parametrize(("method", "path"), DOORS)
@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR])
def test_the_log_of_everybody_is_not_for_another_organisations_people(
    management: ManagementRoom, role: Role, method: str, path: str
) -> None:
    elsewhere = management.organisation("elsewhere").id

    answer = ask(management.as_role(role, elsewhere), method, path)

    assert answer.status_code == 403
    assert looks(management) == []


def test_a_validation_by_cookie_takes_the_csrf_token(management: ManagementRoom) -> None:
    secret = management.session_of(management.person("auditor", "auditor"), kind="browser")

    answer = management.client().ask("POST", "/audit/validate", {"audit_id": "R1"}, {"Cookie": f"slp_sid={secret}"})

    assert answer.status_code == 403
    assert answer.get_json()["error"]["code"] == "csrf_failed"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "field", "words"),
    [
        ("/audit/export?format=xml", "format", "jsonl, csv, cef, json"),
        ("/audit/export?format=", "format", ""),
        ("/audit/export?framework=soc3", "framework", "iso_27001"),
        ("/audit/export?framework=gdpr,", "framework", "iso_27001"),
        ("/audit/export?start_date=yesterday", "start_date", "2026-11-21"),
        ("/audit/export?start_date=2026-02-30", "start_date", "2026-11-21"),
        ("/audit/export?start_date=20261121", "start_date", "2026-11-21"),
        ("/audit/export?end_date=2026-11-21T25:00:00Z", "end_date", "2026-11-21"),
        ("/audit/export?end_date=2026-11-21T10:00:00 01:00", "end_date", "%2B"),
        ("/audit/export?start_date=9999-12-31", "start_date", "future"),
        ("/audit/export?end_date=9999-12-31", "end_date", "2026-11-21"),
        ("/audit/export?start_date=0001-01-01", "start_date", "before 2000"),
        ("/audit/export?start_date=2001-01-01", "start_date", "366 days"),
        ("/audit/export?start_date=2020-03-02&end_date=2020-03-01", "start_date", "before"),
        ("/audit/export?limit=0", "limit", "1"),
        ("/audit/export?limit=50001", "limit", "50000"),
        ("/audit/export?cursor=x", "cursor", "cursor"),
        ("/audit/export?cursor=bjotMQ", "cursor", "cursor"),
        ("/audit/export?colour=red", "colour", "no `colour`"),
        ("/audit/export?format=csv&format=cef", "format", "more than once"),
        ("/audit/report?type=rosy", "type", "comprehensive"),
        ("/audit/report?risk_level=severe", "risk_level", "critical"),
        ("/audit/report?framework=nist", "framework", "pci_dss"),
        ("/audit/report?format=csv", "format", "no `format`"),
    ],
)
def test_what_is_asked_wrongly_is_refused_with_a_sentence_and_not_recorded(
    management: ManagementRoom, auditor: ManagementClient, path: str, field: str, words: str
) -> None:
    answer = auditor.ask("GET", path)

    assert answer.status_code == 400, answer.data
    error = answer.get_json()["error"]
    assert error["field"] == field
    assert words in error["message"]
    assert looks(management) == []


@pytest.mark.parametrize(
    "body",
    [{}, {"audit_id": 7}, {"audit_id": ""}, {"audit_id": "a b"}, {"audit_id": "x" * 65}, {"audit_id": "a", "b": 1}, []],
)
def test_a_validation_of_no_id_is_refused(auditor: ManagementClient, body: object) -> None:
    assert auditor.ask("POST", "/audit/validate", body).status_code == 400


def test_an_id_that_the_log_does_not_hold_is_not_found(auditor: ManagementClient) -> None:
    answer = auditor.ask("POST", "/audit/validate", {"audit_id": "R0001"})

    assert answer.status_code == 404
    assert answer.get_json()["error"]["field"] == "audit_id"


# --- on record --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_every_look_is_on_record_with_its_outcome(
    management: ManagementRoom, auditor: ManagementClient, method: str, path: str
) -> None:
    ask(auditor, method, path)

    intent, result = looks(management)
    assert (intent.type, result.type) == (AuditType.ADMIN_INTENT, AuditType.ADMIN_RESULT)
    assert intent.exchange_id == result.exchange_id
    assert intent.clear["act"] == "audit." + path.rpartition("/")[2]
    assert str(intent.clear["by"]).startswith("user:usr_")
    assert {"req", "ses"} <= set(intent.clear)
    assert result.clear["ok"] is True
    if method == "GET":
        assert {"since", "until", "framework"} <= set(intent.clear)


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_what_cannot_be_recorded_is_not_shown(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient, method: str, path: str
) -> None:
    evidence.given = [row(management, 1, mdl="canary-5c1e")]
    management.small.journal.refusal = stop_recording_at(AuditType.ADMIN_INTENT)

    answer = ask(auditor, method, path)

    assert answer.status_code == 503
    assert answer.get_json()["error"]["code"] == "audit_unavailable"
    assert b"canary" not in answer.data


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_a_log_that_cannot_be_read_is_a_503_and_the_look_is_recorded_as_failed(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient, method: str, path: str
) -> None:
    evidence.trouble = audit_unavailable()

    for _ in range(3):
        # Three times: whoever fails gives its turn back.
        answer = ask(auditor, method, path)
        assert answer.status_code == 503
        assert answer.get_json()["error"]["code"] == "audit_unavailable"

    assert looks(management)[-1].clear["ok"] is False


# --- exports ----------------------------------------------------------------------------------------------------------


def test_without_a_format_the_answer_is_the_origins_envelope(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient
) -> None:
    evidence.given = [
        row(management, 1, mdl="demo"),
        row(management, 2, "llm.refused", "BLOCKED_IP", code="address_blocked"),
    ]

    answer = auditor.ask("GET", "/audit/export")

    export = told(answer)
    assert answer.content_type == "application/json"
    assert {"export_id", "export_timestamp", "export_format", "export_period", "compliance_framework", "data_summary",
            "export_content", "export_metadata"} <= set(export)  # fmt: skip
    assert [each["id"] for each in export["export_content"]["audit_logs"]] == ["R0001", "R0002"]
    assert export["data_summary"] == {
        "total_records": 2, "security_events": 1, "compliance_violations": 1, "risk_assessments": 1,
    }  # fmt: skip
    assert export["complete"] is True


@pytest.mark.parametrize(
    ("kind", "content_type"),
    [
        ("jsonl", "application/x-ndjson"),
        ("csv", "text/csv; charset=utf-8; header=present"),
        ("CEF", "text/plain; charset=utf-8"),
    ],
)
def test_other_formats_are_files_to_download(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient, kind: str, content_type: str
) -> None:
    evidence.given = [row(management, 1, mdl="=1+1")]

    answer = auditor.ask("GET", f"/audit/export?format={kind}")

    assert answer.content_type == content_type
    assert answer.headers["Content-Disposition"].endswith(f'.{kind.lower()}"')
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["Cache-Control"] == "no-store"
    if kind == "csv":
        assert next(csv.DictReader(io.StringIO(answer.text, newline="")))["model"] == "'=1+1"


def test_an_export_in_pages_loses_and_repeats_nothing(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient
) -> None:
    evidence.given = [row(management, n) for n in range(1, 8)]

    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        *rows, end = lines_of(
            auditor.ask("GET", f"/audit/export?format=jsonl&limit=3{'&cursor=' + cursor if cursor else ''}")
        )
        seen += [each["id"] for each in rows]
        cursor = end["next_cursor"]
        assert (end["notice"] is None) == end["complete"] == (cursor is None)
        assert end["records"] == len(rows)

    assert seen == [f"R{n:04d}" for n in range(1, 8)]
    assert [look.clear["records"] for look in looks(management)[1::2]] == [3, 3, 1]


def test_only_records_of_the_period_and_of_the_framework_are_exported(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient
) -> None:
    evidence.given = [
        row(management, 1),
        row(management, 2, "auth.event", "LOGIN", act="login", by="user:usr_1"),
        row(management, 3, "admin.intent", "ADMIN_CHANGE", act="user.lock", subject="usr_2", by="user:usr_1"),
    ]
    begin, end = evidence.given[1].t, evidence.given[2].t  # type: ignore[union-attr]

    def ids(query: str) -> list[str]:
        return [each["id"] for each in lines_of(auditor.ask("GET", f"/audit/export?format=jsonl&{query}"))[:-1]]

    assert ids("framework=all") == ["R0001", "R0002", "R0003"]
    assert ids("framework=gdpr") == ["R0001", "R0003"]
    assert ids("framework=PCI-DSS") == ["R0001", "R0002", "R0003"]
    assert ids("framework=sox,gdpr") == ["R0001", "R0002", "R0003"]
    assert ids(f"start_date={begin}&end_date={end}") == ["R0002"]
    assert ids(f"end_date={begin[:10]}") == ["R0001", "R0002", "R0003"]


def test_an_export_that_breaks_off_says_so_in_its_last_row(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient
) -> None:
    evidence.given = [row(management, n) for n in range(1, 5)]
    evidence.trouble, evidence.trouble_at = Unavailable("away"), 2

    *rows, end = lines_of(auditor.ask("GET", "/audit/export?format=jsonl"))

    assert [each["id"] for each in rows] == ["R0001", "R0002"]
    assert end["complete"] is False
    assert "could not be read further" in end["notice"]
    assert end["next_cursor"] is not None
    assert looks(management)[-1].clear["complete"] is False


def test_an_export_over_a_damaged_part_names_it(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient
) -> None:
    evidence.given = [row(management, 1), Damage(2, 9, "the line does not continue the one before it")]

    *_rows, end = lines_of(auditor.ask("GET", "/audit/export?format=jsonl"))

    assert end["complete"] is False
    assert "Segment 2 from line 9" in end["notice"]


def test_two_read_the_log_at_a_time_and_a_third_comes_back(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient
) -> None:
    evidence.given = [row(management, n, more="x" * 2000) for n in range(1, 500)]

    def begin() -> TestResponse:
        return auditor.ask("GET", "/audit/export?format=jsonl", buffered=False)

    first, second = begin(), begin()
    third = begin()
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert third.headers["Retry-After"] == "5"
    first.close()

    # Who left gave the turn back, and what they were shown is on record.
    assert begin().status_code == 200
    assert next(look.clear["ok"] for look in looks(management) if look.type is AuditType.ADMIN_RESULT) is False
    second.close()


# --- reports and validations ------------------------------------------------------------------------------------------


def test_a_report_counts_this_look_as_evidence(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient
) -> None:
    evidence.given = [row(management, 1, rt="/chat", usr="usr_1", ak="k", dec="allow", mdl="demo")]

    report = told(auditor.ask("GET", "/audit/report?type=compliance&framework=pci_dss&risk_level=HIGH,critical"))

    assert set(report["compliance_framework_assessment"]) == {"pci_dss"}
    controls = {each["control"]: each for each in report["compliance_framework_assessment"]["pci_dss"]["key_controls"]}
    assert looks(management)[0].id in controls["10.2.1.3"]["evidence"]
    assert report["executive_summary"]["total_requests"] == 1


def test_a_report_tells_no_pass_of_an_empty_log(auditor: ManagementClient) -> None:
    report = told(auditor.ask("GET", "/audit/report"))

    assert report["executive_summary"]["compliance_status"] != "met"
    assert report["report_period"]["first_record"] is None


def test_a_report_that_could_not_see_all_counts_the_whole_period_in_the_index(
    management: ManagementRoom, evidence: RowEvidence, auditor: ManagementClient
) -> None:
    evidence.given = [row(management, 1), Damage(1, 2, "the line does not continue the one before it")]
    indexed = [
        index_values(
            "slp.test/host", Row(Place(n, 1, 0, 9, "aGFzaA=="), t, kind, None, f"R{n}", "exc_1", None, {"usr": "usr_1"})
        )
        for n, kind in enumerate(("llm.start", "llm.end", "llm.end"))
        if (t := rfc3339(management.room.clock.now() - timedelta(hours=1)))
    ]
    management.room.database.run(
        lambda session: session.execute(insert(AuditIndexRow), [_columns(values) for values in indexed])
    )

    report = told(auditor.ask("GET", "/audit/report"))
    evidence.given.pop()
    whole = told(auditor.ask("GET", "/audit/report"))

    assert report["report_period"]["complete"] is False
    counted = report["activity"]["whole_period"]
    assert "proves nothing" in counted["source"]
    assert (counted["records"], counted["by_type"], counted["by_user"]) == (
        3,
        {"llm.end": 2, "llm.start": 1},
        {"usr_1": 3},
    )
    assert whole["activity"]["whole_period"] is None


def _columns(values: dict[str, object]) -> dict[str, object]:
    names = {"off": "offset", "len": "length"}
    return {names.get(name, name): value for name, value in values.items()}


def test_a_record_is_validated_from_its_bytes(tmp_path: Path) -> None:
    write_log(
        tmp_path, [[entry(1, kind="llm.start", mdl="demo"), entry(2, kind="llm.end", sid="R0001", st="complete")]]
    )
    management = make_management_room(tmp_path, ROOMY, evidence=FileEvidence(tmp_path / "audit" / "host"))
    auditor = management.as_role("auditor")

    found = told(auditor.ask("POST", "/audit/validate", {"audit_id": "R0001"}))

    assert found["integrity_check"] == dict.fromkeys(
        ("hash_verification", "signature_verification", "timestamp_validation", "sequence_validation", "hash", "signature",
         "timestamp", "sequence"), "PASS",
    )  # fmt: skip
    # It was written by a test, which left out who and where.
    assert found["completeness_check"]["required_fields"] == "FAIL"
    assert found["validation_status"] == "INVALID"
    assert found["audit_quality_score"] not in {None, 100}
    assert found["related_records"] == ["R0002"]
    assert found["record"]["id"] == found["audit_id"] == "R0001"
    management.room.database.close()


def test_a_record_that_reads_otherwise_the_second_time_is_invalid(tmp_path: Path) -> None:
    class Changing(FileEvidence):
        def named(self, identifier: str) -> list[SourceLine]:
            return [
                SourceLine(each.n, each.segment, each.raw.replace(b"R0003", b"R0033"))
                for each in super().named("R0003")
            ]

    write_log(tmp_path)
    management = make_management_room(tmp_path, ROOMY, evidence=Changing(tmp_path / "audit" / "host"))

    found = told(management.as_role("auditor").ask("POST", "/audit/validate", {"audit_id": "R0033"}))

    assert found["validation_status"] == "INVALID"
    assert "second time" in found["details"]["hash_verification"]
    management.room.database.close()
