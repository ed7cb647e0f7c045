"""What the log can show of five frameworks: each control is a clause, mapped to facts that were measured in the log.

A fact, and so a control, is `met`, `not met` or `unknown`, and says why. Of what a log can't show (whether somebody reviews
it, whether every request for erasure was heeded) the control says so in `limit`, and is never better than unknown. A control
that asks for several facts is as good as the worst of them; a framework is met when every control of it is.

This is evidence for an assessor, not an assessment. Sources: Regulation (EU) 2016/679; 45 CFR Part 164 (HIPAA Security Rule);
PCI DSS v4.0.1 (2024-06); SOX §§ 302, 404, 802 with 17 CFR 210.2-06 and COBIT 2019 DSS05/BAI06; ISO/IEC 27001:2022 Annex A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from secure_llm_proxy.audit.facts import EVIDENCE_MAX, HEARTBEAT_GAP_S, Facts, Sightings

_PCI_DAYS = 365
_HIPAA_DAYS = 6 * 365 + 2
_SOX_DAYS = 7 * 365 + 2


class Standing(StrEnum):
    MET = "met"
    NOT_MET = "not met"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Fact:
    """`evidence` are ids of records that show it."""

    standing: Standing
    why: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Samples:
    """Records of the period that were verified one by one (`validation`). `signed`: how many of them a checkpoint whose
    signature verifies was found to cover.
    """

    checked: int = 0
    failed: tuple[str, ...] = ()
    undecided: int = 0
    signed: int = 0
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known beside the rows. `whole`: every record of the period was looked at. None stands for: nobody told.

    `oldest_days` is the age of the oldest record of the log, `retention_days` what is configured (None: everything is kept),
    `off_host` whether checkpoints leave the host, `backed_up` whether segments are copied elsewhere, `look` the id of the
    record of this very look into the log.
    """

    whole: bool
    samples: Samples = Samples()
    oldest_days: float | None = None
    retention_days: int | None = None
    off_host: bool | None = None
    backed_up: bool | None = None
    look: str | None = None
    damage: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Control:
    """`facts` are names of `FACTS`; `limit` is what a log can't show of it."""

    id: str
    title: str
    facts: tuple[str, ...]
    limit: str | None = None


@dataclass(frozen=True, slots=True)
class Framework:
    key: str
    name: str
    controls: tuple[Control, ...]


@dataclass(frozen=True, slots=True)
class ControlResult:
    control: Control
    fact: Fact


# --- facts ------------------------------------------------------------------------------------------------------------


def _all_of(seen: Sightings, without: Sightings, whole: bool, what: str, lacking: str) -> Fact:  # noqa: FBT001
    """Met when at least one was seen, and none of them lacks it, in a period that was seen whole."""
    if without.count:
        return Fact(Standing.NOT_MET, f"{without.count} of {seen.count} {lacking}.", tuple(without.evidence))
    if not seen.count:
        return Fact(Standing.UNKNOWN, f"The period holds no {what}.")
    if not whole:
        return Fact(Standing.UNKNOWN, f"{seen.count} {what} were seen, but not every record was looked at.")
    return Fact(Standing.MET, f"{seen.count} {what}" + (", none without." if lacking else "."), tuple(seen.evidence))


def _identified(facts: Facts, around: Circumstances) -> Fact:
    lacking = "exchanges name no user or no key"
    return _all_of(facts.exchanges, facts.unidentified, around.whole, "exchanges with user and key", lacking)


def _ended(facts: Facts, around: Circumstances) -> Fact:
    if facts.pairs_dropped and not facts.open_exchanges.count:
        return Fact(Standing.UNKNOWN, "Too many exchanges were open at once to follow them all.")
    lacking = "exchanges have no end"
    return _all_of(facts.exchanges, facts.open_exchanges, around.whole, "exchanges with their end", lacking)


def _changes_recorded(facts: Facts, around: Circumstances) -> Fact:
    lacking = "administrative changes have no result"
    return _all_of(facts.changes, facts.open_changes, around.whole, "administrative changes with their result", lacking)


def _credentials_recorded(facts: Facts, around: Circumstances) -> Fact:
    seen = facts.credential_changes
    return _all_of(seen, Sightings(), around.whole, "changes of users, keys and second factors", "")


def _looks_recorded(facts: Facts, around: Circumstances) -> Fact:
    evidence = (*([around.look] if around.look else []), *facts.looks.evidence)[:EVIDENCE_MAX]
    if around.look is None:
        return Fact(Standing.UNKNOWN, "This look into the log has no record.", evidence)
    told = f"This look is on record, and {facts.looks.count} others of the period are."
    return Fact(Standing.MET, told, evidence)


def _refusals_recorded(facts: Facts, around: Circumstances) -> Fact:
    what = "refused requests and failed logins on record"
    return _all_of(facts.refusals, Sightings(), around.whole, what, "")


def _complete(facts: Facts, around: Circumstances) -> Fact:
    seen = Sightings(facts.records, evidence=[row.id for row in (facts.first, facts.last) if row is not None])
    what = "records with type, time, outcome and who or what they are about"
    return _all_of(seen, facts.incomplete, around.whole, what, "records lack a member that their type asks for")


def _sealed(facts: Facts, around: Circumstances) -> Fact:
    seen = Sightings(facts.records, evidence=[row.id for row in (facts.first, facts.last) if row is not None])
    return _all_of(seen, facts.unsealed, around.whole, "records with an encrypted body", "bodies are not encrypted")


def _pseudonymous(facts: Facts, around: Circumstances) -> Fact:
    without = Sightings(facts.exchanges.count - facts.pseudonymous, evidence=facts.exchanges.evidence)
    what = "exchanges name persons by a pseudonym only"
    return _all_of(facts.exchanges, without, around.whole, what, "exchanges bear no pseudonym")


def _intact(_facts: Facts, around: Circumstances) -> Fact:
    samples = around.samples
    if around.damage:
        return Fact(Standing.NOT_MET, " ".join(around.damage), samples.failed)
    if samples.failed:
        told = f"{len(samples.failed)} of {samples.checked} verified records are not what was written."
        return Fact(Standing.NOT_MET, told, samples.failed)
    if not samples.checked:
        return Fact(Standing.UNKNOWN, "No record was verified.")
    told = f"{samples.checked} records were verified from their bytes, {samples.signed} under a signed checkpoint"
    if samples.signed < samples.checked or samples.undecided:
        return Fact(Standing.UNKNOWN, told + "; the rest is not decided.", samples.ids)
    if not around.whole:
        return Fact(Standing.UNKNOWN, told + ", but not every record was looked at.", samples.ids)
    told += "; every other one was read in its place in the hash chain"
    return Fact(Standing.MET, told + ". `manage.py audit verify` checks them all.", samples.ids)


def _in_order(facts: Facts, around: Circumstances) -> Fact:
    seen = Sightings(facts.records, evidence=[row.id for row in (facts.first, facts.last) if row is not None])
    return _all_of(seen, facts.out_of_order, around.whole, "records in the order of their index", "are out of order")


def _continuous(facts: Facts, around: Circumstances) -> Fact:
    if not facts.checkpoints:
        return Fact(Standing.UNKNOWN, "No heartbeat (checkpoint) was seen in the period.")
    if facts.gaps_total:
        told = f"{facts.gaps_total} gaps of more than {HEARTBEAT_GAP_S:g} s, the longest of "
        longest = max(gap.seconds for gap in facts.gaps)
        return Fact(Standing.NOT_MET, f"{told}{longest:.0f} s: the writer was not running, or stopped.")
    if not around.whole:
        return Fact(Standing.UNKNOWN, "No gap, but not every record was looked at.")
    return Fact(Standing.MET, f"{facts.checkpoints} heartbeats without a gap of more than {HEARTBEAT_GAP_S:g} s.")


def _second_factor(facts: Facts, around: Circumstances) -> Fact:
    lacking = "logins were by password alone"
    return _all_of(facts.logins, facts.logins_by_password_alone, around.whole, "logins with a second factor", lacking)


def _clock(facts: Facts, _around: Circumstances) -> Fact:
    if facts.clock_jumps.count:
        told = f"The clock ran backwards {facts.clock_jumps.count} times."
        return Fact(Standing.NOT_MET, told, tuple(facts.clock_jumps.evidence))
    return Fact(Standing.UNKNOWN, "The clock never ran backwards; whether it is right, the log can't tell.")


def _kept(days: int) -> Callable[[Facts, Circumstances], Fact]:
    def judge(_facts: Facts, around: Circumstances) -> Fact:
        if around.retention_days is not None and around.retention_days < days:
            told = f"Records are kept for {around.retention_days} days, {days} are asked for."
            return Fact(Standing.NOT_MET, told)
        if around.oldest_days is None:
            return Fact(Standing.UNKNOWN, "Nobody told how old the oldest record is.")
        if around.oldest_days < days:
            told = f"The log reaches back {around.oldest_days:.0f} days; that older records were never there can't be shown."
            return Fact(Standing.UNKNOWN, told)
        return Fact(Standing.MET, f"The log reaches back {around.oldest_days:.0f} days.")

    return judge


def _erasures(facts: Facts, _around: Circumstances) -> Fact:
    if not facts.erasures.count:
        return Fact(Standing.UNKNOWN, "The period holds no erasure.")
    return Fact(Standing.MET, f"{facts.erasures.count} erasures are on record.", tuple(facts.erasures.evidence))


def _anchored(_facts: Facts, around: Circumstances) -> Fact:
    if around.off_host is None:
        return Fact(Standing.UNKNOWN, "The writer does not tell where checkpoints go.")
    if around.off_host:
        return Fact(Standing.MET, "Checkpoints leave the host.")
    return Fact(Standing.NOT_MET, "No checkpoint leaves the host: set AUDIT_ANCHOR_SYSLOG or another anchor.")


def _backed_up(_facts: Facts, around: Circumstances) -> Fact:
    if around.backed_up is None:
        return Fact(Standing.UNKNOWN, "The writer does not tell whether segments are copied.")
    if around.backed_up:
        return Fact(Standing.MET, "Closed segments are copied to a second place.")
    return Fact(Standing.NOT_MET, "Segments are not copied elsewhere: set AUDIT_BACKUP_ENABLED and AUDIT_BACKUP_DIR.")


def _reviewed(facts: Facts, _around: Circumstances) -> Fact:
    days, looked = len(facts.days), len(facts.look_days)
    told = f"The log was looked into through the product on {looked} of {days} days that hold records."
    return Fact(Standing.UNKNOWN, told, tuple(facts.looks.evidence))


FACTS: Mapping[str, Callable[[Facts, Circumstances], Fact]] = {
    "identified": _identified,
    "ended": _ended,
    "changes_recorded": _changes_recorded,
    "credentials_recorded": _credentials_recorded,
    "looks_recorded": _looks_recorded,
    "refusals_recorded": _refusals_recorded,
    "complete": _complete,
    "sealed": _sealed,
    "pseudonymous": _pseudonymous,
    "intact": _intact,
    "in_order": _in_order,
    "continuous": _continuous,
    "second_factor": _second_factor,
    "clock": _clock,
    "kept_one_year": _kept(_PCI_DAYS),
    "kept_six_years": _kept(_HIPAA_DAYS),
    "kept_seven_years": _kept(_SOX_DAYS),
    "erasures": _erasures,
    "anchored": _anchored,
    "backed_up": _backed_up,
    "reviewed": _reviewed,
}
DECISIVE = ("intact", "in_order", "complete", "ended", "changes_recorded")
"""Without these a report proves nothing, whatever else is met."""

# --- frameworks -------------------------------------------------------------------------------------------------------

_C = Control
_UNSEEN = "Whoever may read the files on the host sees the clear members without a record of it."

FRAMEWORKS: tuple[Framework, ...] = (
    Framework(
        "gdpr",
        "GDPR (EU) 2016/679",
        (
            _C("Art. 5(1)(f)", "Integrity and confidentiality of processing", ("intact", "sealed")),
            _C("Art. 5(2)", "Accountability: who did what can be shown", ("identified", "changes_recorded")),
            _C(
                "Art. 17",
                "Erasure of a person's data",
                ("erasures",),
                "Whether every request for erasure was heeded is known to who received it.",
            ),
            _C(
                "Art. 30",
                "Records of processing activities",
                ("identified", "ended"),
                "Purposes, recipients and categories of data do not stand in the log.",
            ),
            _C("Art. 32(1)(a)", "Pseudonymisation and encryption", ("pseudonymous", "sealed")),
            _C("Art. 32(1)(b)", "Ongoing integrity and availability", ("continuous", "ended")),
            _C("Art. 32(1)(c)", "Data can be restored after an incident", ("backed_up",), "No restore was tried here."),
            _C(
                "Art. 33",
                "Breaches are noticed and documented",
                ("refusals_recorded",),
                "Whether an authority was told within 72 hours does not stand in the log.",
            ),
        ),
    ),
    Framework(
        "hipaa",
        "HIPAA Security Rule, 45 CFR Part 164",
        (
            _C(
                "164.308(a)(1)(ii)(D)",
                "Information system activity review",
                ("reviewed",),
                "What a review found is not recorded here.",
            ),
            _C("164.308(a)(5)(ii)(C)", "Log-in monitoring", ("refusals_recorded",)),
            _C("164.308(a)(7)(ii)(A)", "Data backup", ("backed_up",), "No restore was tried here."),
            _C("164.312(a)(2)(i)", "Unique user identification", ("identified",)),
            _C("164.312(a)(2)(iv)", "Encryption", ("sealed",)),
            _C("164.312(b)", "Audit controls", ("complete", "ended")),
            _C("164.312(c)(1)", "Integrity", ("intact", "in_order")),
            _C("164.312(d)", "Person authentication", ("second_factor",)),
            _C("164.316(b)(2)(i)", "Retention for six years", ("kept_six_years",)),
        ),
    ),
    Framework(
        "pci_dss",
        "PCI DSS v4.0.1",
        (
            _C("10.2.1.1", "Individual user access", ("identified",)),
            _C("10.2.1.2", "Actions with administrative access", ("changes_recorded",)),
            _C("10.2.1.3", "Access to audit logs", ("looks_recorded",), _UNSEEN),
            _C("10.2.1.4", "Invalid access attempts", ("refusals_recorded",)),
            _C("10.2.1.5", "Changes to credentials", ("credentials_recorded",)),
            _C("10.2.1.6", "Starting, stopping and pausing of the log", ("continuous",)),
            _C("10.2.2", "Who, what, when, where, outcome of each event", ("complete",)),
            _C("10.3.2", "Logs are protected from change", ("intact",)),
            _C("10.3.3", "Logs are promptly backed up elsewhere", ("backed_up", "anchored")),
            _C("10.3.4", "Changes of logs are detected", ("intact", "in_order")),
            _C("10.4.1", "Daily review", ("reviewed",), "What a review found is not recorded here."),
            _C("10.5.1", "Twelve months of history", ("kept_one_year",)),
            _C("10.6.1", "Synchronised clocks", ("clock",)),
            _C("8.4.2", "Second factor", ("second_factor",)),
        ),
    ),
    Framework(
        "sox",
        "Sarbanes-Oxley Act, IT general controls",
        (
            _C(
                "ITGC change management (COBIT BAI06)",
                "Every change has an author and an outcome",
                ("changes_recorded",),
            ),
            _C("ITGC logical access (COBIT DSS05.04)", "Users are identified", ("identified", "second_factor")),
            _C("ITGC security monitoring (COBIT DSS05.07)", "Refused access is recorded", ("refusals_recorded",)),
            _C("ITGC operations (COBIT DSS01)", "What was begun has ended", ("ended", "continuous")),
            _C("§ 404", "Evidence is intact and complete", ("intact", "in_order", "complete")),
            _C("§ 802, 17 CFR 210.2-06", "Retention for seven years", ("kept_seven_years",)),
        ),
    ),
    Framework(
        "iso_27001",
        "ISO/IEC 27001:2022, Annex A",
        (
            _C("A.5.28", "Collection of evidence", ("intact", "in_order")),
            _C("A.5.33", "Protection of records", ("intact", "sealed", "anchored")),
            _C("A.8.2", "Privileged access is recorded", ("changes_recorded",)),
            _C("A.8.5", "Secure authentication", ("second_factor",)),
            _C("A.8.10", "Information deletion", ("erasures",), "What should have been deleted is not known here."),
            _C("A.8.13", "Backup", ("backed_up",), "No restore was tried here."),
            _C("A.8.15", "Logging", ("complete", "identified", "intact")),
            _C("A.8.16", "Monitoring", ("refusals_recorded", "continuous"), "Who acted on it is not known here."),
            _C("A.8.17", "Clock synchronisation", ("clock",)),
            _C("A.8.24", "Use of cryptography", ("sealed",)),
        ),
    ),
)
FRAMEWORK_OF = {framework.key: framework for framework in FRAMEWORKS}


def measure(facts: Facts, around: Circumstances) -> dict[str, Fact]:
    """Every fact of `FACTS`."""
    return {name: judge(facts, around) for name, judge in FACTS.items()}


def results_of(framework: Framework, measured: Mapping[str, Fact]) -> list[ControlResult]:
    return [ControlResult(control, _worst(control, measured)) for control in framework.controls]


def _worst(control: Control, measured: Mapping[str, Fact]) -> Fact:
    found = [measured[name] for name in control.facts]
    standing = worst_of([each.standing for each in found])
    reasons = [each.why for each in found]
    if control.limit is not None:
        reasons.append(control.limit)
        if standing is Standing.MET:
            standing = Standing.UNKNOWN
    evidence = tuple(dict.fromkeys(identifier for each in found for identifier in each.evidence))[:EVIDENCE_MAX]
    return Fact(standing, " ".join(reasons), evidence)


def worst_of(standings: list[Standing]) -> Standing:
    """Not met before unknown before met; of nothing, nothing is known."""
    for standing in (Standing.NOT_MET, Standing.UNKNOWN):
        if standing in standings:
            return standing
    return Standing.MET if standings else Standing.UNKNOWN


def score_of(standings: list[Standing]) -> int | None:
    """Percent of the decided ones that are met; None when nothing could be decided."""
    decided = [standing for standing in standings if standing is not Standing.UNKNOWN]
    if not decided:
        return None
    return round(100 * decided.count(Standing.MET) / len(decided))
