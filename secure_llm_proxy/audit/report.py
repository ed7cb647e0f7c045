"""The auditor's report over a period, under the origin's names: every value computed from the log, or null with a reason.

One pass over the period's rows (at most 200,000 of them and 12 s: then the report says how far it came, and nothing that
speaks of all records is met), and a sample of records that are verified one by one from their bytes (at most 10 and 8 s):
both together stay below the 30 s that a client behind nginx waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum

from secure_llm_proxy.audit.evidence import Damage, Evidence, Heartbeat, LogState
from secure_llm_proxy.audit.exports import ClearRow, Risk
from secure_llm_proxy.audit.facts import EVIDENCE_MAX, SETTLED_AFTER, Facts, Finding
from secure_llm_proxy.audit.frameworks import (
    DECISIVE,
    FRAMEWORKS,
    Circumstances,
    ControlResult,
    Fact,
    Framework,
    Samples,
    Standing,
    measure,
    results_of,
    score_of,
    worst_of,
)
from secure_llm_proxy.audit.validation import Result, SegmentTrees, validate
from secure_llm_proxy.foundation.clock import rfc3339

ROWS_MAX = 200_000
SECONDS_MAX = 12.0
SAMPLES = 10
SAMPLE_SECONDS_MAX = 8.0
_LOOKED_AT = 500
_SECONDS_A_DAY = 86_400

UNKNOWN = "unknown"


class ReportType(StrEnum):
    """`comprehensive` holds everything; the others leave sections out."""

    COMPREHENSIVE = "comprehensive"
    EXECUTIVE = "executive"
    COMPLIANCE = "compliance"
    RISK = "risk"
    TECHNICAL = "technical"


_HEAD = ("audit_metadata", "executive_summary")
_SECTIONS: Mapping[ReportType, tuple[str, ...]] = {
    ReportType.EXECUTIVE: (*_HEAD, "recommendations"),
    ReportType.COMPLIANCE: (*_HEAD, "compliance_framework_assessment", "recommendations", "compliance_roadmap"),
    ReportType.RISK: (
        *_HEAD,
        "risk_assessment",
        "security_control_effectiveness",
        "incident_response",
        "recommendations",
    ),
    ReportType.TECHNICAL: (*_HEAD, "activity", "audit_trail_analysis", "security_control_effectiveness"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a report is asked for. Empty `frameworks` and `risks` stand for all of them."""

    since: datetime
    until: datetime
    kind: ReportType = ReportType.COMPREHENSIVE
    frameworks: tuple[str, ...] = ()
    risks: tuple[Risk, ...] = ()


@dataclass(frozen=True, slots=True)
class Configured:
    """What this deployment is set to, as far as the web service knows. `retention_days` None: everything is kept."""

    retention_days: int | None
    backup: bool


@dataclass(slots=True)
class _Pass:
    """The pass over the rows: what it found, and whether it saw all of them."""

    facts: Facts
    whole: bool = True
    reached: str | None = None
    notice: str | None = None
    damage: list[Damage] | None = None
    sampled: list[str] | None = None
    totals: Mapping[str, object] | None = None


def make_report(
    source: Evidence,
    wanted: Wanted,
    configured: Configured,
    *,
    report_id: str,
    look: str | None,
    now: datetime,
    monotonic_s: Callable[[], float],
    totals: Callable[[str | None], Mapping[str, object]] | None = None,
) -> dict[str, object]:
    """The report as plain JSON values. `look` is the id of the record of this look; `totals` counts the whole period of a log
    elsewhere, and is asked when not all of it could be read. Raises `Unavailable`.
    """
    seen = _pass_over(source, wanted, monotonic_s)
    state = source.state()
    if not seen.whole and totals is not None:
        seen.totals = totals(state.log)
    samples = _verify_samples(source, seen.sampled or [], now, monotonic_s)
    oldest = datetime.fromisoformat(state.oldest_t) if state.oldest_t else None
    around = Circumstances(
        whole=seen.whole,
        samples=samples,
        oldest_days=None if oldest is None else (now - oldest).total_seconds() / _SECONDS_A_DAY,
        retention_days=configured.retention_days,
        off_host=state.off_host,
        backed_up=state.backed_up,
        look=look,
        damage=tuple(each.what for each in seen.damage or []),
    )
    measured = measure(seen.facts, around)
    return _Sections(wanted, configured, state, seen, around, measured).told(report_id, now)


def _pass_over(source: Evidence, wanted: Wanted, monotonic_s: Callable[[], float]) -> _Pass:
    facts = Facts(wanted.until)
    seen = _Pass(facts, damage=[], sampled=[])
    begun = monotonic_s()
    every = 1
    for each in source.rows(rfc3339(wanted.since), rfc3339(wanted.until)):
        if isinstance(each, Damage):
            seen.whole = False
            if seen.damage is not None and len(seen.damage) < EVIDENCE_MAX:
                seen.damage.append(each)
            continue
        if isinstance(each, Heartbeat):
            facts.take_checkpoint(each.t)
            continue
        if facts.records == ROWS_MAX or (
            facts.records % _LOOKED_AT == 0 and monotonic_s() - begun > SECONDS_MAX and facts.records
        ):
            seen.whole = False
            seen.notice = (
                f"The period holds more than could be looked at: this report covers its first {facts.records} records, up to "
                f"{seen.reached}. Ask for shorter periods."
            )
            break
        facts.take(each)
        seen.reached = each.t
        every = _keep_sample(seen, each, every)
    return seen


def _keep_sample(seen: _Pass, row: ClearRow, every: int) -> int:
    """Evenly spread over however many come: when too many are kept, every second one goes and the stride doubles."""
    sampled = seen.sampled
    if sampled is None:
        return every
    if (seen.facts.records - 1) % every == 0:
        sampled.append(row.id)
        if len(sampled) >= 2 * SAMPLES:
            del sampled[1::2]
            every *= 2
    return every


def _verify_samples(
    source: Evidence, sampled: Sequence[str], now: datetime, monotonic_s: Callable[[], float]
) -> Samples:
    ids = list(sampled)[:: max(1, -(-len(sampled) // SAMPLES))]
    failed: list[str] = []
    checked = undecided = signed = 0
    begun = monotonic_s()
    trees = SegmentTrees()
    for identifier in ids:
        if monotonic_s() - begun > SAMPLE_SECONDS_MAX:
            break
        found = validate(source, identifier, now, trees)
        if found is None:
            failed.append(identifier)
            checked += 1
            continue
        checked += 1
        results = {check.result for check in found.integrity.values()}
        signed += found.integrity["signature_verification"].result is Result.PASS
        if Result.FAIL in results:
            failed.append(identifier)
        elif found.integrity["hash_verification"].result is Result.UNKNOWN:
            undecided += 1
    return Samples(checked, tuple(failed), undecided, signed, tuple(ids[:checked]))


# --- sections ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sections:
    wanted: Wanted
    configured: Configured
    state: LogState
    seen: _Pass
    around: Circumstances
    measured: Mapping[str, Fact]

    def told(self, report_id: str, now: datetime) -> dict[str, object]:
        frameworks = [each for each in FRAMEWORKS if not self.wanted.frameworks or each.key in self.wanted.frameworks]
        results = {framework.key: results_of(framework, self.measured) for framework in frameworks}
        sections: dict[str, object] = {
            "audit_metadata": self._metadata(),
            "executive_summary": self._summary(results),
            "activity": self._activity(),
            "risk_assessment": self._risks(),
            "compliance_framework_assessment": {
                framework.key: self._assessed(framework, results[framework.key]) for framework in frameworks
            },
            "security_control_effectiveness": self._effectiveness(),
            "audit_trail_analysis": self._trail(),
            "incident_response": self._incidents(),
            "recommendations": self._recommendations(),
            "compliance_roadmap": self._roadmap(results),
        }
        shown = _SECTIONS.get(self.wanted.kind, tuple(sections))
        return {
            "report_id": report_id,
            "report_type": self.wanted.kind,
            "generated_at": rfc3339(now),
            "report_period": {
                "start": rfc3339(self.wanted.since),
                "end": rfc3339(self.wanted.until),
                "first_record": self.facts.first.t if self.facts.first else None,
                "last_record": self.facts.last.t if self.facts.last else None,
                "complete": self.seen.whole,
                "notice": self.seen.notice,
            },
            **{name: sections[name] for name in shown},
        }

    @property
    def facts(self) -> Facts:
        return self.seen.facts

    @property
    def findings(self) -> list[Finding]:
        found = self.facts.findings()
        if self.around.damage or self.around.samples.failed:
            evidence = self.around.samples.failed
            count = len(self.around.damage) + len(evidence)
            what = "The log is not what was written: " + " ".join(self.around.damage or ("a verified record failed.",))
            found.insert(0, Finding("damaged", Risk.CRITICAL, what, count, evidence=evidence))
        return found

    def _metadata(self) -> dict[str, object]:
        days = self.configured.retention_days
        sealed = self.measured["sealed"].standing
        return {
            "audit_standard": [each.name for each in FRAMEWORKS],
            "audit_scope": f"Records of the log {self.state.log or UNKNOWN} in the period.",
            "audit_methodology": (
                "Computed from the readable members of the records; a sample of them was verified from their bytes. "
                "No content was opened. What happened beside the log, the log can't show."
            ),
            "audit_evidence_type": "Sealed, hash-chained records with signed checkpoints (format version 1).",
            "audit_retention_policy": "everything is kept" if days is None else f"{days} days",
            "audit_encryption": {Standing.MET: True, Standing.NOT_MET: False}.get(sealed),
            "audit_backup": self.configured.backup if self.state.backed_up is None else self.state.backed_up,
        }

    def _summary(self, results: Mapping[str, list[ControlResult]]) -> dict[str, object]:
        standings = [each.fact.standing for found in results.values() for each in found]
        decisive = worst_of([self.measured[name].standing for name in DECISIVE])
        return {
            "total_requests": self.facts.exchanges.count + self.facts.requests_refused,
            "security_events": self.facts.security_events,
            "compliance_violations": self.facts.violations.count,
            "overall_risk_level": self._overall_risk(),
            "compliance_score": score_of(standings),
            "compliance_score_basis": _basis(standings),
            "compliance_status": worst_of(standings),
            "controls": _counted(standings),
            "audit_confidence": {Standing.MET: "HIGH", Standing.NOT_MET: "LOW"}.get(decisive, UNKNOWN),
        }

    def _overall_risk(self) -> str:
        """That of the worst finding. Unknown while there is none and not everything was seen."""
        found = self.findings
        if found and (found[0].risk is Risk.CRITICAL or self.seen.whole):
            return found[0].risk.value
        return Risk.LOW.value if self.seen.whole and self.facts.records else UNKNOWN

    def _activity(self) -> dict[str, object]:
        facts = self.facts
        return {
            "records": facts.records,
            "requests_begun": facts.exchanges.count,
            "requests_refused": facts.requests_refused,
            "refusals_and_failed_logins": facts.refusals.count,
            "tokens_in": facts.tokens_in,
            "tokens_out": facts.tokens_out,
            "by_type": facts.types.told(),
            "by_event": facts.events.told(),
            "by_decision": facts.decisions.told(),
            "by_status": facts.statuses.told(),
            "by_code": facts.codes.told(),
            "by_ending": facts.endings.told(),
            "by_user": facts.users.told(),
            "by_api_key": facts.keys.told(),
            "by_model": facts.models.told(),
            "changes_by": facts.doers.told(),
            "whole_period": self.seen.totals,
        }

    def _risks(self) -> dict[str, object]:
        shown = [each for each in self.findings if not self.wanted.risks or each.risk in self.wanted.risks]
        unseen = {"value": None, "why": _NO_DETECTORS}
        return {
            "risk_distribution": {risk.value: count for risk, count in self.facts.risks.items()},
            "risk_factors": {
                "prompt_injection_risk": None,
                "pii_exposure_risk": None,
                "harmful_content_risk": None,
                "compliance_violation_risk": bool(self.facts.violations.count) if self._sure_of_violations() else None,
            },
            "risk_factors_note": _NO_DETECTORS,
            "risk_mitigation_effectiveness": {
                "pii_protection": unseen,
                "injection_protection": unseen,
                "content_filtering": unseen,
            },
            "risk_level_filter": [risk.value for risk in self.wanted.risks] or "all",
            "findings": [_told_finding(each) for each in shown],
        }

    def _sure_of_violations(self) -> bool:
        return bool(self.facts.violations.count) or (self.seen.whole and bool(self.facts.records))

    def _assessed(self, framework: Framework, results: list[ControlResult]) -> dict[str, object]:
        standings = [each.fact.standing for each in results]
        open_ones = [each for each in results if each.fact.standing is not Standing.MET]
        return {
            "name": framework.name,
            "status": worst_of(standings),
            "score": score_of(standings),
            "score_basis": _basis(standings),
            "controls": _counted(standings),
            "key_controls": [_told_control(each) for each in results],
            "gaps": [f"{each.control.id} ({each.fact.standing}): {each.fact.why}" for each in open_ones],
            "recommendations": list(
                dict.fromkeys(
                    _ADVICE[name]
                    for each in results
                    if each.fact.standing is Standing.NOT_MET
                    for name in each.control.facts
                    if self.measured[name].standing is Standing.NOT_MET
                )
            ),
        }

    def _effectiveness(self) -> dict[str, object]:
        unseen = {"effectiveness": UNKNOWN, "coverage": None, "why": _NO_DETECTORS}
        told: dict[str, object] = {
            "prompt_injection_protection": {**unseen, "detection_rate": None, "false_positive_rate": None},
            "pii_protection": {**unseen, "redaction_rate": None, "compliance_impact": None},
            "content_filtering": {**unseen, "detection_rate": None, "risk_assessment": None},
        }
        for name, fact in (
            ("user_identification", "identified"),
            ("second_factor", "second_factor"),
            ("access_control", "refusals_recorded"),
            ("change_recording", "changes_recorded"),
            ("encryption_of_contents", "sealed"),
            ("pseudonymisation", "pseudonymous"),
            ("tamper_evidence", "intact"),
            ("continuous_recording", "continuous"),
            ("off_host_anchors", "anchored"),
            ("backup", "backed_up"),
        ):
            found = self.measured[fact]
            told[name] = {"effectiveness": found.standing, "why": found.why, "evidence": list(found.evidence)}
        return told

    def _trail(self) -> dict[str, object]:
        facts, samples = self.facts, self.around.samples
        settled = rfc3339(self.wanted.until - SETTLED_AFTER)
        begun = facts.exchanges.count
        missing = facts.open_exchanges.count
        share = None if not begun or not self.seen.whole else round(100 * (begun - missing) / begun, 2)
        days = self.configured.retention_days
        return {
            "log_completeness": None if share is None else f"{share:g}%",
            "log_completeness_note": f"Exchanges that have their end, of those begun before {settled} or ended.",
            "retention_period": "everything is kept" if days is None else f"{days} days",
            "format": "JSON Lines, format version 1 (docs/audit-format.md)",
            "correlation": "`rid` joins the records of an exchange or a change; `sid` joins an end to its start.",
            "integrity_verification": {
                "standing": self.measured["intact"].standing,
                "records_verified": samples.checked,
                "failed": list(samples.failed),
                "under_signed_checkpoint": samples.signed,
                "undecided": samples.undecided,
                "damage": [asdict(each) for each in self.seen.damage or []],
                "note": "A sample. `manage.py audit verify` checks every line, `audit prove` makes a proof of one.",
            },
            "pairing": {
                "exchanges_without_end": facts.open_exchanges.count,
                "ends_of_exchanges_begun_before": facts.ends_without_start,
                "changes_without_result": facts.open_changes.count,
            },
            "order": {"out_of_order": facts.out_of_order.count, "clock_ran_backwards": facts.clock_jumps.count},
            "heartbeats": {
                "seen": facts.checkpoints,
                "gaps": [asdict(gap) for gap in facts.gaps] if facts.checkpoints else None,
                "gaps_total": facts.gaps_total if facts.checkpoints else None,
            },
            "erasures": facts.erasures.count,
            "retired_segments": facts.retirements.count,
            "looks_into_the_log": facts.looks.count,
            "contents_opened": facts.reveals.count,
        }

    def _incidents(self) -> dict[str, object]:
        facts = self.facts
        total = facts.incidents.count
        return {
            "total_incidents": total,
            "incident_distribution": {
                "prompt_injection": None,
                "pii_detection": None,
                "harmful_content": None,
                "security_violations": total,
                "compliance_violations": facts.violations.count,
            },
            "incident_distribution_note": _NO_DETECTORS,
            "response_times": {
                "average_detection_time": None,
                "average_response_time": f"{facts.response_s / facts.responses:.3f} seconds"
                if facts.responses
                else None,
                "automated_response_rate": f"{100 * facts.answered_by_itself / total:.1f}%" if total else None,
            },
            "response_times_note": (
                "Response: from the record of an answer's intent (quarantine, block, kill) to that of its result. Detection is "
                "not measured: what was not noticed is not in the log."
            ),
            "evidence": list(facts.incidents.evidence),
        }

    def _recommendations(self) -> dict[str, list[str]]:
        """From what was measured, and nothing else: not met first by what depends on it, then what is not known."""
        high: list[str] = []
        medium: list[str] = []
        low: list[str] = []
        for name, fact in self.measured.items():
            if fact.standing is Standing.NOT_MET:
                (high if name in _URGENT else medium).append(f"{_ADVICE[name]} ({fact.why})")
            elif fact.standing is Standing.UNKNOWN and name in _DECIDABLE:
                low.append(f"{_DECIDABLE[name]} ({fact.why})")
        high.extend(
            f"Look into: {finding.what} ({finding.count} records)."
            for finding in self.findings
            if finding.risk is Risk.CRITICAL
        )
        return {"high_priority": high, "medium_priority": medium, "low_priority": low}

    def _roadmap(self, results: Mapping[str, list[ControlResult]]) -> dict[str, list[str]]:
        """Controls by what is to be done about them: those not met, those that could be decided, those a log can't show."""
        first: list[str] = []
        second: list[str] = []
        third: list[str] = []
        names = {framework.key: framework.name for framework in FRAMEWORKS}
        for key, found in results.items():
            for each in found:
                told = f"{names[key]} {each.control.id}: {each.control.title}"
                if each.fact.standing is Standing.NOT_MET:
                    first.append(told)
                elif each.control.limit is not None:
                    third.append(f"{told}. {each.control.limit}")
                elif each.fact.standing is Standing.UNKNOWN:
                    second.append(told)
        return {"phase_1_immediate": first, "phase_2_short_term": second, "phase_3_long_term": third}


def _told_control(result: ControlResult) -> dict[str, object]:
    return {
        "control": result.control.id,
        "title": result.control.title,
        "status": result.fact.standing,
        "why": result.fact.why,
        "evidence": list(result.fact.evidence),
    }


def _told_finding(finding: Finding) -> dict[str, object]:
    return {
        "finding": finding.kind,
        "risk_level": finding.risk,
        "what": finding.what,
        "count": finding.count,
        "first": finding.first,
        "last": finding.last,
        "evidence": list(finding.evidence),
    }


def _basis(standings: list[Standing]) -> str:
    decided = [standing for standing in standings if standing is not Standing.UNKNOWN]
    return f"{decided.count(Standing.MET)} met of {len(decided)} that could be decided, of {len(standings)} controls"


def _counted(standings: list[Standing]) -> dict[str, int]:
    return {standing.value: standings.count(standing) for standing in Standing}


_NO_DETECTORS = "Unknown: no record of the period carries the verdict of a content detector."
_URGENT = frozenset({*DECISIVE, "sealed", "continuous", "looks_recorded"})
_ADVICE: Mapping[str, str] = {
    "identified": "Require a key of every caller: set AUTHENTICATION_REQUIRED.",
    "ended": "Find out why exchanges have no end; `manage.py audit show ID` opens their start.",
    "changes_recorded": "Find out whether the changes without a result were made.",
    "credentials_recorded": "Find out which changes of credentials are not on record.",
    "looks_recorded": "Find out why a look into the log was not recorded.",
    "refusals_recorded": "Find out why refusals are not on record.",
    "complete": "Find out which program writes records that lack members.",
    "sealed": "Set AUDIT_ENCRYPTION_ENABLED and AUDIT_KEK.",
    "pseudonymous": "Send X-User-ID with each request, so that persons are kept apart.",
    "intact": "Keep the segments as they are, and run `manage.py audit verify` with the anchors.",
    "in_order": "Keep the segments as they are, and run `manage.py audit verify`.",
    "continuous": "Find out when and why the audit writer was stopped.",
    "second_factor": "Set MFA_REQUIRED=all.",
    "clock": "Keep the host's clock synchronised.",
    "kept_one_year": "Set AUDIT_RETENTION_DAYS to 365 or more, or leave it unset.",
    "kept_six_years": "Set AUDIT_RETENTION_DAYS to 2192 or more, or leave it unset.",
    "kept_seven_years": "Set AUDIT_RETENTION_DAYS to 2557 or more, or leave it unset.",
    "erasures": "Look into the erasures.",
    "anchored": "Let checkpoints leave the host: AUDIT_ANCHOR_SYSLOG, or `manage.py audit anchors` by hand.",
    "backed_up": "Set AUDIT_BACKUP_ENABLED and AUDIT_BACKUP_DIR.",
    "reviewed": "Look into the log each day.",
}
_DECIDABLE: Mapping[str, str] = {
    "intact": "Verify the whole log with `manage.py audit verify`",
    "continuous": "Compare with anchors that were kept elsewhere",
    "anchored": "Ask the audit writer where its checkpoints go: `manage.py show-status`",
    "backed_up": "Ask the audit writer for its last backup: `manage.py show-status`",
    "clock": "Let the host's time service be checked",
    "reviewed": "Keep a record of reviews",
}
