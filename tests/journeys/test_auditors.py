"""A day of an auditor: what the running product did is exported, reported on and validated, and so is the looking itself."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOMY
from tests.support.clients import Answer, ask, audit_lines
from tests.support.programs import wait_until
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy

PROMPT = "canary-5c1e: what is a nonce?"


@pytest.fixture(scope="module")
def audited(provider: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    settings = {"LLM_API_URL": provider.base_url, "LLM_API_KEY": "sk-x", "AUDIT_CHECKPOINT_S": "0.5", **ROOMY}
    with RunningProxy(short_folder / "audited", settings) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def auditors_key(audited: RunningProxy) -> str:
    return audited.create_api_key(audited.create_user(role="auditor"), "--kind", "adm")


def validated(proxy: RunningProxy, key: str, identifier: object) -> Answer:
    return ask(proxy, "POST", "/audit/validate", key=key, body={"audit_id": identifier})


def test_an_auditor_exports_reports_and_validates_what_the_proxy_did(audited: RunningProxy, auditors_key: str) -> None:
    key = audited.shared_api_key
    told = ask(audited, "POST", "/chat", key=key, body={"prompt": PROMPT}).json
    refused = ask(audited, "POST", "/chat", key="slp_live_wrong", body={"prompt": PROMPT})
    assert (told["status"], refused.status) == ("success", 401)

    # A checkpoint is signed within half a second; until then the record is not valid, but unknown.
    wait_until(
        lambda: validated(audited, auditors_key, told["audit_id"]).json["validation_status"] == "VALID",
        what="the record is under a signed checkpoint",
    )
    rows = [
        json.loads(line)
        for line in ask(audited, "GET", "/audit/export?format=jsonl", key=auditors_key).body.splitlines()
    ]
    sheet = ask(audited, "GET", "/audit/export?format=csv&framework=pci_dss", key=auditors_key)
    events = ask(audited, "GET", "/audit/export?format=cef", key=auditors_key).body.decode()
    report = ask(audited, "GET", "/audit/report", key=auditors_key).json

    *records, end = rows
    assert end["complete"] is True
    assert end["records"] == len(records)
    logged = {str(line["id"]): line for line in audit_lines(audited) if line["k"] == "rec"}
    for row in records:
        assert {name: logged[row["id"]].get(name, row[name]) for name in row} == row
    assert {told["audit_id"]} <= {row["id"] for row in records}
    assert [row["code"] for row in records if row["ty"] == "llm.refused"] == ["invalid_api_key"]
    assert {cell["type"] for cell in csv.DictReader(io.StringIO(sheet.body.decode(), newline=""))} >= {
        "llm.start", "llm.end", "llm.refused", "admin.intent", "export.end",
    }  # fmt: skip
    assert events.splitlines()[0].startswith("CEF:0|Secure LLM Proxy|Audit Log|")

    summary = report["executive_summary"]
    assert isinstance(summary, dict)
    begun = [line for line in logged.values() if line["ty"] in {"llm.start", "llm.refused"}]
    assert summary["total_requests"] == len(begun)
    assert summary["compliance_status"] != "met"
    sections = json.dumps(report)
    assert str(told["audit_id"]) in sections
    trail = report["audit_trail_analysis"]
    assert isinstance(trail, dict)
    assert trail["integrity_verification"]["failed"] == []
    assert trail["integrity_verification"]["under_signed_checkpoint"] > 0
    assert trail["heartbeats"]["seen"] > 0
    for shown in (json.dumps(rows), sheet.body.decode(), events, sections):
        assert "canary-5c1e" not in shown
        assert key not in shown
        assert auditors_key not in shown

    looks = [
        line["act"]
        for line in audit_lines(audited)
        if line.get("ev") == "AUDIT_ACCESS" and line["ty"] == "admin.intent"
    ]
    assert set(map(str, looks)) == {"audit.validate", "audit.export", "audit.report"}
    assert audited.command("audit", "verify").returncode == 0


def test_what_was_changed_on_disk_is_invalid_and_the_report_is_critical(
    audited: RunningProxy, auditors_key: str
) -> None:
    told = ask(audited, "POST", "/chat", key=audited.shared_api_key, body={"prompt": PROMPT}).json
    (path,) = [each for each in (audited.instance / "audit").rglob("*.jsonl.open") if not each.is_symlink()]
    whole = path.read_bytes()
    begin = whole.index(b'"dec":"allow"', whole.index(f'"id":"{told["audit_id"]}"'.encode()))
    with path.open("r+b") as file:
        # In its place, since the writer goes on behind it.
        os.pwrite(file.fileno(), b'"dec":"shall"', begin)
        try:
            found = validated(audited, auditors_key, told["audit_id"]).json
            report = ask(audited, "GET", "/audit/report?type=risk", key=auditors_key).json
        finally:
            os.pwrite(file.fileno(), b'"dec":"allow"', begin)

    assert found["validation_status"] == "INVALID"
    summary = report["executive_summary"]
    assert isinstance(summary, dict)
    assert summary["overall_risk_level"] == "CRITICAL"


def test_an_operator_and_a_plain_key_see_nothing(audited: RunningProxy) -> None:
    operator = audited.create_api_key(audited.create_user(role="operator"), "--kind", "adm")
    plain = audited.shared_api_key

    for method, path in (("GET", "/audit/export"), ("GET", "/audit/report"), ("POST", "/audit/validate")):
        body = {"audit_id": "x"} if method == "POST" else None
        assert ask(audited, method, path, key=operator, body=body).status == 403
        assert ask(audited, method, path, key=plain, body=body).status == 401
        assert ask(audited, method, path, body=body).status == 401
