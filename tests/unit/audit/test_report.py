"""The auditor's report: counts that are the log's, controls that are met only where everything decisive was seen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import orjson
import pytest

from secure_llm_proxy.audit.evidence import Damage, Heartbeat, LogState
from secure_llm_proxy.audit.exports import ClearRow, Risk
from secure_llm_proxy.audit.facts import Counts, Facts
from secure_llm_proxy.audit.frameworks import FACTS, FRAMEWORKS, Framework, Standing, score_of, worst_of
from secure_llm_proxy.audit.report import ROWS_MAX, Configured, ReportType, Wanted, make_report
from secure_llm_proxy.vocabulary.audit import ClearValue
from tests.support.file_evidence import RowEvidence

SINCE = datetime(2026, 11, 20, tzinfo=UTC)
UNTIL = datetime(2026, 11, 21, tzinfo=UTC)
WANTED = Wanted(SINCE, UNTIL)
CONFIGURED = Configured(retention_days=None, backup=False)
WHOLE: dict[str, ClearValue] = {"rt": "/chat", "usr": "usr_1", "ak": "k1", "dec": "allow", "mdl": "demo", "sub": "s_1"}


class Log:
    """Rows in order, a second apart."""

    def __init__(self) -> None:
        self.rows: list[ClearRow | Heartbeat | Damage] = []
        self._moment = SINCE
        self._n = itertools.count(1)

    def add(
        self,
        kind: str,
        event: str | None = None,
        members: Mapping[str, ClearValue] = MappingProxyType({}),
        *,
        rid: str = "exc_1",
        **clear: ClearValue,
    ) -> ClearRow:
        n = next(self._n)
        self._moment += timedelta(seconds=1)
        t = self._moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        row = ClearRow(n, 1, t, kind, event, f"R{n:04d}", rid, "sys.1", "aGFzaA==", {**members, **clear})
        self.rows.append(row)
        return row

    def exchange(self, **end: ClearValue) -> str:
        rid = f"exc_{len(self.rows)}"
        start = self.add("llm.start", "CHAT_REQUEST", WHOLE, rid=rid)
        self.add("llm.end", None, {"sid": start.id, "st": "complete", "http": 200, "tin": 3, "tout": 5, **end}, rid=rid)
        return start.id


def report(source: RowEvidence | Log, look: str | None = "R9999", wanted: Wanted = WANTED) -> dict[str, Any]:
    made = make_report(
        RowEvidence(source.rows) if isinstance(source, Log) else source,
        wanted,
        CONFIGURED,
        report_id="rep_1",
        look=look,
        now=UNTIL,
        monotonic_s=lambda: 0.0,
    )
    told: dict[str, Any] = orjson.loads(orjson.dumps(made))
    return told


def control(told: dict[str, Any], framework: str, identifier: str) -> dict[str, Any]:
    controls = told["compliance_framework_assessment"][framework]["key_controls"]
    found: dict[str, Any] = next(each for each in controls if each["control"] == identifier)
    return found


# --- the origin's names -----------------------------------------------------------------------------------------------


def test_a_report_has_every_field_of_the_origin() -> None:
    told = report(Log())

    assert set(told) >= {
        "report_id", "report_type", "generated_at", "report_period", "audit_metadata", "executive_summary",
        "risk_assessment", "compliance_framework_assessment", "security_control_effectiveness", "audit_trail_analysis",
        "incident_response", "recommendations", "compliance_roadmap",
    }  # fmt: skip
    assert set(told["executive_summary"]) >= {
        "total_requests", "security_events", "compliance_violations", "overall_risk_level", "compliance_score",
        "audit_confidence",
    }  # fmt: skip
    assert set(told["compliance_framework_assessment"]) == {"gdpr", "hipaa", "pci_dss", "sox", "iso_27001"}
    for assessed in told["compliance_framework_assessment"].values():
        assert set(assessed) >= {"status", "score", "key_controls", "gaps", "recommendations"}
    assert set(told["recommendations"]) == {"high_priority", "medium_priority", "low_priority"}
    assert set(told["compliance_roadmap"]) == {"phase_1_immediate", "phase_2_short_term", "phase_3_long_term"}


# --- nothing known, nothing passed ------------------------------------------------------------------------------------


def test_of_an_empty_period_nothing_is_met() -> None:
    told = report(Log(), look=None)

    for assessed in told["compliance_framework_assessment"].values():
        assert assessed["status"] != "met"
        assert {each["status"] for each in assessed["key_controls"]} <= {"unknown", "not met"}
    assert told["executive_summary"]["overall_risk_level"] == "unknown"
    assert told["executive_summary"]["audit_confidence"] == "unknown"
    assert told["audit_trail_analysis"]["log_completeness"] is None


def test_what_detectors_would_say_is_null_and_never_clean() -> None:
    log = Log()
    log.exchange()

    told = report(log)

    assert told["risk_assessment"]["risk_factors"]["prompt_injection_risk"] is None
    assert told["security_control_effectiveness"]["pii_protection"]["redaction_rate"] is None
    assert told["incident_response"]["incident_distribution"]["pii_detection"] is None


def test_a_framework_with_an_unknown_control_is_not_met() -> None:
    log = Log()
    log.exchange()

    told = report(log)

    for assessed in told["compliance_framework_assessment"].values():
        assert assessed["status"] in {"unknown", "not met"}
    # The rows' lines can't be read: every sampled record fails.
    assert control(told, "iso_27001", "A.5.28")["status"] == "not met"
    assert told["executive_summary"]["audit_confidence"] == "LOW"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.key)
def test_every_control_maps_to_facts_that_are_measured(framework: Framework) -> None:
    assert len({each.id for each in framework.controls}) == len(framework.controls)
    for each in framework.controls:
        assert each.facts
        assert set(each.facts) <= set(FACTS)


# --- counted ----------------------------------------------------------------------------------------------------------


def test_counts_are_those_of_the_rows() -> None:
    log = Log()
    for _ in range(3):
        log.exchange()
    log.exchange(st="upstream_error", http=502, code="upstream_error", tin=None)
    log.add(
        "llm.refused",
        "RATE_LIMIT_EXCEEDED",
        rt="/chat",
        dec="refuse",
        http=429,
        code="rate_limit_exceeded",
        usr="usr_2",
    )
    log.add("auth.event", "AUTHENTICATION_FAILED", rt="auth.login", dec="refuse", http=401, code="login_failed")

    told = report(log)

    assert told["activity"]["records"] == 10
    assert told["activity"]["by_ending"] == {"complete": 3, "upstream_error": 1}
    assert told["activity"]["by_user"] == {"usr_1": 4, "usr_2": 1}
    assert told["activity"]["by_model"] == {"demo": 4}
    assert (told["activity"]["tokens_in"], told["activity"]["tokens_out"]) == (9, 20)
    assert told["executive_summary"]["total_requests"] == 5
    assert told["activity"]["refusals_and_failed_logins"] == 2
    assert told["executive_summary"]["security_events"] == 2
    assert sum(told["risk_assessment"]["risk_distribution"].values()) == 10


def test_a_value_that_comes_rarely_is_counted_with_others_and_memory_stays_flat() -> None:
    counts = Counts()
    for number in range(5000):
        counts.add(f"user {number}")
        counts.add("often")

    assert counts.told()["often"] == 5000
    assert sum(counts.told().values()) == counts.total == 10_000
    assert len(counts.told()) == 21


# --- judged -----------------------------------------------------------------------------------------------------------


def test_evidence_names_the_records_that_show_it() -> None:
    log = Log()
    begun = log.exchange()

    told = report(log)

    found = control(told, "pci_dss", "10.2.1.1")
    assert (found["status"], found["evidence"]) == ("met", [begun])
    assert "1 exchanges" in found["why"]


def test_an_exchange_without_end_and_a_change_without_result_are_gaps() -> None:
    log = Log()
    log.exchange()
    start = log.add("llm.start", "CHAT_REQUEST", WHOLE, rid="exc_9")
    intent = log.add("admin.intent", "ADMIN_CHANGE", rid="adm_1", act="user.lock", subject="usr_2", by="user:usr_1")

    told = report(log)

    assert control(told, "hipaa", "164.312(b)")["status"] == "not met"
    assert start.id in control(told, "hipaa", "164.312(b)")["evidence"]
    assert control(told, "sox", "ITGC change management (COBIT BAI06)")["status"] == "not met"
    assert control(told, "pci_dss", "10.2.1.2")["evidence"] == [intent.id]
    assert told["audit_trail_analysis"]["log_completeness"] == "50%"
    kinds = [finding["finding"] for finding in told["risk_assessment"]["findings"]]
    assert {"exchange_without_end", "change_without_result"} <= set(kinds)


def test_what_began_just_before_the_end_of_the_period_may_be_under_way() -> None:
    facts = Facts(SINCE + timedelta(minutes=1))
    log = Log()
    log.add("llm.start", "CHAT_REQUEST", WHOLE)
    for row in log.rows:
        assert isinstance(row, ClearRow)
        facts.take(row)

    assert facts.open_exchanges.count == 0


def test_a_login_by_password_alone_is_not_a_second_factor() -> None:
    log = Log()
    log.add("auth.event", "LOGIN", act="login", by="user:usr_1", second_factor="totp")
    assert control(report(log), "pci_dss", "8.4.2")["status"] == "met"

    alone = log.add("auth.event", "LOGIN", act="login", by="user:usr_2", second_factor="none")
    told = report(log)
    assert control(told, "pci_dss", "8.4.2")["status"] == "not met"
    assert control(told, "pci_dss", "8.4.2")["evidence"] == [alone.id]
    assert "Set MFA_REQUIRED=all." in told["compliance_framework_assessment"]["pci_dss"]["recommendations"]


def test_heartbeats_are_counted_and_a_silence_between_them_is_found() -> None:
    log = Log()
    log.exchange()
    assert control(report(log), "pci_dss", "10.2.1.6")["status"] == "unknown"

    log.rows.append(Heartbeat(10, "2026-11-20T00:00:30.000000Z"))
    assert control(report(log), "pci_dss", "10.2.1.6")["status"] == "met"

    log.rows.append(Heartbeat(11, "2026-11-20T00:10:30.000000Z"))
    told = report(log)
    assert control(told, "pci_dss", "10.2.1.6")["status"] == "not met"
    assert told["audit_trail_analysis"]["heartbeats"]["gaps"] == [
        {"begin": "2026-11-20T00:00:30.000000Z", "end": "2026-11-20T00:10:30.000000Z", "seconds": 600.0}
    ]


def test_damage_is_the_first_finding_and_nothing_that_speaks_of_all_records_is_met() -> None:
    log = Log()
    log.exchange()
    log.rows.append(Damage(1, 7, "the line does not continue the one before it"))

    told = report(log)

    assert told["risk_assessment"]["findings"][0]["finding"] == "damaged"
    assert told["executive_summary"]["overall_risk_level"] == "CRITICAL"
    assert control(told, "gdpr", "Art. 5(1)(f)")["status"] == "not met"
    assert control(told, "pci_dss", "10.2.1.1")["status"] == "unknown"
    assert told["report_period"]["complete"] is False


def test_a_log_that_takes_too_long_is_reported_as_far_as_it_was_seen() -> None:
    log = Log()
    for _ in range(1000):
        log.exchange()
    clock = itertools.count(step=15.0)

    made = make_report(
        RowEvidence(log.rows), WANTED, CONFIGURED, report_id="r", look=None, now=UNTIL, monotonic_s=lambda: next(clock)
    )  # fmt: skip

    told: dict[str, Any] = orjson.loads(orjson.dumps(made))
    assert told["report_period"]["complete"] is False
    assert told["report_period"]["notice"].startswith("The period holds more")
    assert 0 < told["activity"]["records"] < 2000 < ROWS_MAX
    assert control(told, "pci_dss", "10.2.1.1")["status"] == "unknown"


def test_retention_that_is_too_short_is_not_met_and_a_young_log_is_unknown() -> None:
    old = LogState(oldest_t="2019-01-01T00:00:00.000000Z")
    young = LogState(oldest_t="2026-11-01T00:00:00.000000Z")

    assert control(report(RowEvidence(state=young)), "pci_dss", "10.5.1")["status"] == "unknown"
    assert control(report(RowEvidence(state=old)), "pci_dss", "10.5.1")["status"] == "met"
    assert control(report(RowEvidence(state=old)), "sox", "§ 802, 17 CFR 210.2-06")["status"] == "met"
    short = make_report(
        RowEvidence(state=old), WANTED, replace(CONFIGURED, retention_days=90), report_id="r", look=None, now=UNTIL,
        monotonic_s=lambda: 0.0,
    )  # fmt: skip
    assert control(orjson.loads(orjson.dumps(short)), "pci_dss", "10.5.1")["status"] == "not met"


def test_an_anchor_off_the_host_and_a_backup_are_told_by_the_writer_or_unknown() -> None:
    for state, status in (
        (LogState(), "unknown"),
        (LogState(off_host=True, backed_up=True), "met"),
        (LogState(off_host=True, backed_up=False), "not met"),
        (LogState(off_host=False, backed_up=True), "not met"),
        (LogState(off_host=None, backed_up=True), "unknown"),
    ):
        assert control(report(RowEvidence(state=state)), "pci_dss", "10.3.3")["status"] == status


def test_a_control_that_a_log_cannot_show_is_never_met() -> None:
    told = report(Log(), look="R1")

    assert control(told, "pci_dss", "10.2.1.3")["status"] == "unknown"
    assert "R1" in control(told, "pci_dss", "10.2.1.3")["evidence"]


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_findings_are_sorted_by_risk_and_filtered_by_it() -> None:
    log = Log()
    log.add("llm.refused", "RATE_LIMIT_EXCEEDED", rt="/chat", dec="refuse", http=429, code="rate_limit_exceeded")
    log.add("admin.intent", "SECURITY_EVENT", rid="a1", act="key.quarantine", subject="k", by="proxy:leak-check")
    log.add(
        "admin.result", "SECURITY_EVENT", rid="a1", act="key.quarantine", subject="k", by="proxy:leak-check", ok=True
    )
    log.add("llm.refused", "BLOCKED_IP", rt="/chat", dec="refuse", http=403, code="address_blocked")

    # Its own lines can't be verified here, which is the worst of all.
    findings = report(log)["risk_assessment"]["findings"][1:]
    assert [each["finding"] for each in findings] == ["leaked_key", "blocked_address", "rate_limit_exceeded"]
    assert [each["risk_level"] for each in findings] == ["CRITICAL", "HIGH", "MEDIUM"]
    high = report(log, wanted=replace(WANTED, risks=(Risk.HIGH,)))["risk_assessment"]["findings"]
    assert [each["finding"] for each in high] == ["blocked_address"]
    incidents = report(log)["incident_response"]
    assert incidents["total_incidents"] == 2
    assert incidents["response_times"]["average_response_time"] == "1.000 seconds"
    assert incidents["response_times"]["automated_response_rate"] == "100.0%"


@pytest.mark.parametrize("kind", list(ReportType))
def test_a_type_leaves_sections_out_but_never_the_summary(kind: ReportType) -> None:
    told = report(Log(), wanted=replace(WANTED, kind=kind))

    assert {"report_id", "report_period", "audit_metadata", "executive_summary"} <= set(told)
    assert ("compliance_framework_assessment" in told) == (kind in {ReportType.COMPREHENSIVE, ReportType.COMPLIANCE})


def test_only_the_frameworks_asked_for_are_assessed() -> None:
    told = report(Log(), wanted=replace(WANTED, frameworks=("sox",)))

    assert set(told["compliance_framework_assessment"]) == {"sox"}
    assert all("Sarbanes" in each for phase in told["compliance_roadmap"].values() for each in phase)


# --- the small parts --------------------------------------------------------------------------------------------------


def test_the_worst_decides_and_the_score_counts_what_was_decided() -> None:
    met, failed, unknown = Standing.MET, Standing.NOT_MET, Standing.UNKNOWN

    assert [worst_of(each) for each in ([met, unknown], [met, unknown, failed], [met], [])] == [
        unknown, failed, met, unknown,
    ]  # fmt: skip
    assert [score_of(each) for each in ([met, failed, unknown], [unknown], [])] == [50, None, None]
