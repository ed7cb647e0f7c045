"""Export rows: nothing is lost, nothing breaks out of its cell or field, and every file says where it ends."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.audit.exports import (
    COLUMNS,
    ClearRow,
    ExportEnd,
    ExportFormat,
    Risk,
    risk_of,
    row_of_record,
    row_writer,
    severity_of,
)
from secure_llm_proxy.audit.format import RecordLine
from secure_llm_proxy.audit.reading import log_lines
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus, EventName
from tests.support.audit_log import write_log

END = ExportEnd(records=1, complete=True)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
VALUES: st.SearchStrategy[ClearValue] = st.one_of(
    TEXTS,
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.none(),
    st.sampled_from(["=1+1", "a|b=c\\", "\r\n", "@x"]),
)
MEMBERS = st.dictionaries(
    st.sampled_from(["dec", "code", "rule", "usr", "mdl", "by", "act", "x_1", "zz", "sub"]), VALUES
)


def make_row(clear: dict[str, ClearValue] | None = None, *, event: str | None = "CHAT_REQUEST") -> ClearRow:
    return ClearRow(
        n=7, segment=2, t="2026-11-21T00:12:03.104233Z", type="llm.start", event=event,
        id="01KAHG0000000000000000000A", exchange_id="exc_01KAHG", kid="sys.1", h="aGFzaA==", clear=clear or {},
    )  # fmt: skip


def written(kind: ExportFormat, row: ClearRow, end: ExportEnd = END, **envelope: object) -> bytes:
    writer = row_writer(kind, envelope)
    return writer.opening() + writer.row(row) + writer.ending(end)


def csv_rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def cef_parts(line: str) -> tuple[list[str], dict[str, str]]:
    """A reader of CEF of our own: header fields, then keys with their values, unescaped."""
    header = re.fullmatch(r"((?:(?:[^\\|]|\\[\\|])*\|){7})(.*)", line)
    assert header is not None, line
    fields = [*re.findall(r"((?:[^\\|]|\\[\\|])*)\|", header[1]), header[2]]
    found = list(re.finditer(r"(?:^| )([A-Za-z0-9]+)=", fields[7]))
    keys: dict[str, str] = {}
    for each, following in zip(found, [*found[1:], None], strict=True):
        value = fields[7][each.end() : following.start() if following else None]
        assert re.fullmatch(r"(?:[^\\=\n\r]|\\[\\=n])*", value), value
        keys[each[1]] = re.sub(r"\\([\\=n])", lambda m: "\n" if m[1] == "n" else m[1], value)
    return fields, keys


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_a_record_of_the_log_becomes_a_row_that_names_its_line_and_its_hash(tmp_path: Path) -> None:
    write_log(tmp_path)
    item = next(item for item in log_lines(tmp_path / "audit") if isinstance(item.line, RecordLine))
    assert isinstance(item.line, RecordLine)

    told = orjson.loads(row_writer(ExportFormat.JSONL).row(row_of_record(item.line, item.file.number, item.raw)))

    stored = orjson.loads(item.raw)
    assert {name: value for name, value in told.items() if name not in {"seg", "leaf"}} == {
        name: value for name, value in stored.items() if name not in {"m", "w", "nc", "p", "ct"}
    }
    assert (told["seg"], told["leaf"]) == (1, base64.b64encode(hashlib.sha256(b"\0" + item.raw).digest()).decode())


@given(MEMBERS)
def test_json_lines_hold_every_member_exactly_and_one_row_is_one_line(clear: dict[str, ClearValue]) -> None:
    data = written(ExportFormat.JSONL, make_row(clear), by="user:usr_1")

    row, end = (orjson.loads(line) for line in data.splitlines())
    assert data.count(b"\n") == 2
    assert {name: row[name] for name in clear} == clear
    assert end == {
        "k": "export", "by": "user:usr_1", "records": 1, "complete": True, "next_cursor": None, "notice": None,
    }  # fmt: skip


def test_the_json_envelope_is_one_object_however_many_records_it_holds() -> None:
    for count in (0, 1, 3):
        writer = row_writer(ExportFormat.JSON, {"export_id": "e"})
        rows = b"".join(writer.row(make_row()) for _ in range(count))

        told = orjson.loads(writer.opening() + rows + writer.ending(ExportEnd(count, complete=True)))

        assert (told["export_id"], len(told["export_content"]["audit_logs"])) == ("e", count)
        assert told["data_summary"]["total_records"] == count
    assert orjson.loads(row_writer(ExportFormat.JSON).opening() + b"]}}") == {"export_content": {"audit_logs": []}}


def test_the_json_envelope_names_the_records_that_the_origins_lists_hold() -> None:
    writer = row_writer(ExportFormat.JSON)
    rows = [
        replace(make_row(event="CHAT_REQUEST"), id="plain"),
        replace(make_row({"code": "rate_limit_exceeded"}, event="RATE_LIMIT_EXCEEDED"), id="fast"),
        replace(make_row({"code": "model_not_allowed"}, event="SECURITY_EVENT"), id="model"),
    ]

    told = orjson.loads(writer.opening() + b"".join(map(writer.row, rows)) + writer.ending(ExportEnd(3, complete=True)))

    content = told["export_content"]
    assert (content["security_events"], content["compliance_violations"]) == (["fast", "model"], ["model"])
    assert content["risk_assessments"] == [{"id": "model", "risk_level": "HIGH", "severity": 7}]
    assert told["data_summary"] == {
        "total_records": 3, "security_events": 2, "compliance_violations": 1, "risk_assessments": 1,
    }  # fmt: skip


# --- CSV --------------------------------------------------------------------------------------------------------------


@given(MEMBERS)
def test_a_csv_reader_finds_one_line_per_record_and_no_cell_is_a_formula(clear: dict[str, ClearValue]) -> None:
    data = written(ExportFormat.CSV, make_row(clear))

    header, row, end, rest = data.decode().split("\r\n")
    rows = csv_rows(data)
    assert rest == ""
    assert "\n" not in header + row + end
    assert len(rows) == 2
    for cell in rows[0].values():
        assert cell == cell.strip("\r\n\t") or cell.startswith("'")
        assert not re.match(r"\s*[=+@\uff1d\uff0b\uff0d\uff20]", cell)
        assert not cell.lstrip().startswith("-") or re.fullmatch(r"-\d+", cell)
    shown = {"dec", "code", "rule", "usr", "mdl", "by", "act", "sub"}
    assert {name: value for name, value in orjson.loads(rows[0]["more"]).items() if name != "kid"} == {
        name: value for name, value in clear.items() if name not in shown
    }


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1", '=cmd|" /C calc"!A0']
)
def test_what_a_spreadsheet_would_run_is_shown_as_text(text: str) -> None:
    (row, _end) = csv_rows(written(ExportFormat.CSV, make_row({"code": text})))

    assert row["code"].startswith("'")


def test_a_number_stays_a_number_in_csv_and_a_quote_is_doubled() -> None:
    data = written(ExportFormat.CSV, make_row({"ms": -5, "code": 'say "no"', "ok": False}))

    (row, _end) = csv_rows(data)
    assert (row["milliseconds"], row["code"], row["ok"]) == ("-5", 'say "no"', "false")
    assert tuple(row) == COLUMNS


# --- CEF --------------------------------------------------------------------------------------------------------------


@given(MEMBERS, st.one_of(st.none(), TEXTS))
def test_a_cef_reader_finds_the_header_and_every_value(clear: dict[str, ClearValue], event: str | None) -> None:
    data = written(ExportFormat.CEF, make_row(clear, event=event))

    line, end, rest = data.decode().split("\n")
    assert rest == ""
    fields, keys = cef_parts(line)
    assert fields[:3] == ["CEF:0", "Secure LLM Proxy", "Audit Log"]
    assert fields[6].isdigit()
    assert (keys["externalId"], keys["cn1"], keys["cs1"]) == ("01KAHG0000000000000000000A", "7", "exc_01KAHG")
    assert keys["rt"] == "1795219923104"
    assert cef_parts(end)[1]["outcome"] == "complete"


def test_cef_escapes_the_header_and_the_extension_each_in_its_own_way() -> None:
    line = written(ExportFormat.CEF, replace(make_row({"code": "a|b=c\\d\ne"}), type="llm.refused")).decode()

    assert r"|llm.refused:a\|b=c\\d\\u000ae|" in line
    assert r"reason=a|b\=c\\d\ne" in line


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(ExportFormat))
def test_every_format_says_when_there_is_more(kind: ExportFormat) -> None:
    end = ExportEnd(1, complete=False, next_cursor="abc", notice="The cap of 1 record was reached.")

    data = written(kind, make_row(), end)

    assert b"abc" in data
    assert b"The cap of 1 record was reached." in data
    if kind is ExportFormat.CSV:
        assert csv_rows(data)[-1]["type"] == "export.end"
    if kind is ExportFormat.CEF:
        assert cef_parts(data.decode().splitlines()[-1])[1]["outcome"] == "incomplete"


# --- severity ---------------------------------------------------------------------------------------------------------


def test_every_type_event_and_ending_has_a_severity_between_0_and_10() -> None:
    members: list[dict[str, ClearValue]] = [{}, {"act": "key.quarantine", "ok": False}]
    members.extend({"st": status.value} for status in EndStatus)
    rows = [
        replace(make_row(clear, event=event), type=kind)
        for kind in AuditType
        for event in (None, *EventName)
        for clear in members
    ]

    assert {0 <= severity_of(row) <= 10 for row in rows} == {True}


def test_what_is_worse_has_a_higher_severity_and_risk() -> None:
    fine = replace(make_row({"st": "complete"}, event=None), type="llm.end")
    killed = replace(make_row({"st": "killed"}, event=None), type="llm.end")
    leaked = replace(make_row({"act": "key.quarantine"}, event="SECURITY_EVENT"), type="admin.intent")

    assert severity_of(fine) < severity_of(killed) < severity_of(leaked)
    assert [risk_of(severity_of(row)) for row in (fine, killed, leaked)] == [Risk.LOW, Risk.HIGH, Risk.CRITICAL]
