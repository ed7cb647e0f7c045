"""What the records of a period show, gathered in one pass over their readable members. Memory stays flat.

Facts are counts, pairs that should be closed, fields that should be there, and findings with the ids of the records that
show them. Nothing here judges: `frameworks` does, and says "unknown" wherever the pass did not see everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from secure_llm_proxy.audit.exports import ClearRow, Risk, is_security_event, is_violation, risk_of, severity_of
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus, EventName

EVIDENCE_MAX = 10
HEARTBEAT_GAP_S = 90.0
"""A writer that runs signs a checkpoint each minute, also when nothing happens."""
SETTLED_AFTER = timedelta(minutes=15)
"""An exchange or a change that began longer ago than this has ended, or is missed."""

LOOKS = frozenset({"audit.export", "audit.report", "audit.validate"})
"""`act` of records that somebody looked into the log through the product: they change nothing."""

_VALUES_KEPT = 1000
_SHOWN = 20
_OPEN_KEPT = 20_000
_GAPS_KEPT = 100
_DAYS_KEPT = 400

# The members without which a record of that type does not say who did what, and how it ended.
REQUIRED: dict[str, tuple[str, ...]] = {
    AuditType.LLM_START: ("rt", "usr", "ak", "dec", "mdl"),
    AuditType.LLM_END: ("sid", "st"),
    AuditType.LLM_PART: ("pt_of", "seq"),
    AuditType.LLM_RETRY: ("sid", "up", "why", "try"),
    AuditType.REFUSED: ("rt", "dec", "http", "code"),
    AuditType.ADMIN_INTENT: ("act", "subject", "by"),
    AuditType.ADMIN_RESULT: ("act", "subject", "by", "ok"),
    AuditType.REVEAL: ("by",),
}
_OF_AUTHENTICATION = (("act", "by"), ("dec", "code"))


class Counts:
    """How often each value came. Beyond 1,000 different ones new values are counted together."""

    __slots__ = ("_counts", "others", "total")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.others = 0
        self.total = 0

    def add(self, value: object) -> None:
        if value is None:
            return
        key = str(value)
        self.total += 1
        if key in self._counts or len(self._counts) < _VALUES_KEPT:
            self._counts[key] = self._counts.get(key, 0) + 1
        else:
            self.others += 1

    def of(self, value: str) -> int:
        return self._counts.get(value, 0)

    def told(self) -> dict[str, int]:
        """The most frequent first; the rest together under `(others)`."""
        ordered = sorted(self._counts.items(), key=lambda each: (-each[1], each[0]))
        rest = sum(count for _, count in ordered[_SHOWN:]) + self.others
        return dict(ordered[:_SHOWN]) | ({"(others)": rest} if rest else {})


@dataclass(slots=True)
class Sightings:
    """How often something was seen, when first and last, and the ids of the first records that show it."""

    count: int = 0
    first: str | None = None
    last: str | None = None
    evidence: list[str] = field(default_factory=list)

    def add(self, row: ClearRow) -> None:
        self.count += 1
        self.first = self.first or row.t
        self.last = row.t
        if len(self.evidence) < EVIDENCE_MAX:
            self.evidence.append(row.id)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that somebody should look at. `evidence` are ids of records; `count` may be more than these."""

    kind: str
    risk: Risk
    what: str
    count: int
    first: str | None = None
    last: str | None = None
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gap:
    """Nothing was written, not even a heartbeat, between these two times."""

    begin: str
    end: str
    seconds: float


@dataclass(slots=True)
class _Open:
    id: str
    t: str


_KINDS: dict[str, str] = {
    "leaked_key": "API keys of this deployment were found in a URL or a request, and quarantined",
    "key_quarantined": "API keys were quarantined by an operator",
    "killed": "An operator stopped a key, a person, a project or everything",
    "let_go": "An operator let something go that had been stopped",
    "blocked_address": "Requests came from addresses or clients that are not allowed",
    "security_event": "Requests broke a rule of access and were refused",
    "authentication_failed": "Logins or API keys were refused",
    "rate_limit_exceeded": "Requests came faster than allowed",
    "reveal": "Sealed contents were opened",
    "erased": "Persons were erased",
    "retired": "Segments of the log were retired",
    "exchange_killed": "Running answers were stopped by an operator",
    "orphan": "Exchanges ended because the worker that had begun them was gone",
    "internal_error": "Exchanges ended with a defect of the proxy",
    "upstream": "Exchanges ended because the provider failed",
    "change_failed": "Administrative changes were begun and did not come about",
}


class Facts:
    """Feed it the rows of a period in order; then ask. `until` bounds what may still be under way at the end."""

    def __init__(self, until: datetime) -> None:
        self._settled = (until - SETTLED_AFTER).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.records = 0
        self.first: ClearRow | None = None
        self.last: ClearRow | None = None
        self.types = Counts()
        self.events = Counts()
        self.decisions = Counts()
        self.statuses = Counts()
        self.codes = Counts()
        self.endings = Counts()
        self.users = Counts()
        self.keys = Counts()
        self.models = Counts()
        self.doers = Counts()
        self.risks: dict[Risk, int] = dict.fromkeys(Risk, 0)
        self.tokens_in = 0
        self.tokens_out = 0
        self.security_events = 0
        self.violations = Sightings()
        self.incidents = Sightings()
        self.answered_by_itself = 0
        # The quickest and simplest measure of an answer to an incident: from its intent to its result.
        self.responses = 0
        self.response_s = 0.0

        self.exchanges = Sightings()
        self.unidentified = Sightings()
        self.pseudonymous = 0
        self.ends_without_start = 0
        self.pairs_dropped = False
        self.changes = Sightings()
        self.changes_failed = Sightings()
        self.results_without_intent = 0
        self.refusals = Sightings()
        self.requests_refused = 0
        self.logins = Sightings()
        self.logins_by_password_alone = Sightings()
        self.credential_changes = Sightings()
        self.looks = Sightings()
        self.look_days: set[str] = set()
        self.days: set[str] = set()
        self.reveals = Sightings()
        self.erasures = Sightings()
        self.retirements = Sightings()
        self.unsealed = Sightings()
        self.incomplete = Sightings()
        self.out_of_order = Sightings()
        self.clock_jumps = Sightings()
        self.checkpoints = 0
        self.gaps: list[Gap] = []
        self.gaps_total = 0

        self._open_exchanges: dict[str, _Open] = {}
        self._open_changes: dict[str, _Open] = {}
        self._open_incidents: dict[str, datetime] = {}
        self._seen: dict[str, Sightings] = {}
        self._seen_risk: dict[str, Risk] = {}
        self._last_n = -1
        self._last_t: str | None = None

    # --- one pass -----------------------------------------------------------------------------------------------------

    def take(self, row: ClearRow) -> None:
        self._take_place(row)
        self.records += 1
        self.first = self.first or row
        self.last = row
        clear = row.clear
        self.types.add(row.type)
        self.events.add(row.event)
        self.decisions.add(clear.get("dec"))
        self.codes.add(clear.get("code"))
        self.risks[risk_of(severity_of(row))] += 1
        if row.kid is None:
            self.unsealed.add(row)
        if not has_required(row):
            self.incomplete.add(row)
        if is_security_event(row):
            self.security_events += 1
        if is_violation(row):
            self.violations.add(row)
        if len(self.days) < _DAYS_KEPT:
            self.days.add(row.t[:10])
        self._take_kind(row)
        self._take_incident(row)
        match row.type:
            case AuditType.LLM_START | AuditType.LLM_END | AuditType.REFUSED:
                self._take_exchange(row)
            case AuditType.ADMIN_INTENT | AuditType.ADMIN_RESULT:
                self._take_change(row)
            case AuditType.AUTH_EVENT:
                self._take_authentication(row)
            case AuditType.REVEAL:
                self.reveals.add(row)
                self._take_look(row)
            case "subject.erased":
                self.erasures.add(row)
            case "segment.retired":
                self.retirements.add(row)

    def take_checkpoint(self, t: str) -> None:
        """The writer was there at `t`, whether or not anything happened."""
        self.checkpoints += 1
        self._take_time(t)

    def _take_place(self, row: ClearRow) -> None:
        if row.n <= self._last_n:
            self.out_of_order.add(row)
        self._last_n = max(self._last_n, row.n)
        if self._last_t is not None and row.t < self._last_t:
            self.clock_jumps.add(row)
        self._take_time(row.t)

    def _take_time(self, t: str) -> None:
        before, self._last_t = self._last_t, t
        if before is None or t <= before:
            return
        seconds = (datetime.fromisoformat(t) - datetime.fromisoformat(before)).total_seconds()
        if seconds > HEARTBEAT_GAP_S:
            self.gaps_total += 1
            if len(self.gaps) < _GAPS_KEPT:
                self.gaps.append(Gap(before, t, seconds))

    def _take_exchange(self, row: ClearRow) -> None:
        clear = row.clear
        if row.type == AuditType.LLM_START:
            self.exchanges.add(row)
            self.users.add(clear.get("usr"))
            self.keys.add(clear.get("ak"))
            self.models.add(clear.get("mdl"))
            if not (clear.get("usr") and clear.get("ak")):
                self.unidentified.add(row)
            if clear.get("sub"):
                self.pseudonymous += 1
            if len(self._open_exchanges) < _OPEN_KEPT:
                self._open_exchanges[row.id] = _Open(row.id, row.t)
            else:
                self.pairs_dropped = True
            return
        self.statuses.add(clear.get("http"))
        if row.type == AuditType.REFUSED:
            self.refusals.add(row)
            self.requests_refused += 1
            self.users.add(clear.get("usr"))
            self.keys.add(clear.get("ak"))
            return
        self.endings.add(clear.get("st"))
        self.tokens_in += _count(clear.get("tin"))
        self.tokens_out += _count(clear.get("tout"))
        if self._open_exchanges.pop(str(clear.get("sid")), None) is None:
            # Begun before the period; or its end came twice (an orphan's that was only out of reach).
            self.ends_without_start += 1

    def _take_change(self, row: ClearRow) -> None:
        act = str(row.clear.get("act") or "")
        if act in LOOKS:
            if row.type == AuditType.ADMIN_INTENT:
                self._take_look(row)
            return
        if row.type == AuditType.ADMIN_INTENT:
            self.changes.add(row)
            self.doers.add(row.clear.get("by"))
            if row.event in {EventName.MFA_CHANGED, EventName.PASSWORD_CHANGED} or act.startswith(("user.", "key.")):
                self.credential_changes.add(row)
            if len(self._open_changes) < _OPEN_KEPT:
                self._open_changes[row.exchange_id] = _Open(row.id, row.t)
            else:
                self.pairs_dropped = True
            return
        if self._open_changes.pop(row.exchange_id, None) is None:
            self.results_without_intent += 1
        if row.clear.get("ok") is False:
            self.changes_failed.add(row)

    def _take_authentication(self, row: ClearRow) -> None:
        if row.clear.get("dec") == "refuse" or row.event == EventName.AUTHENTICATION_FAILED:
            self.refusals.add(row)
        elif row.event == EventName.LOGIN:
            self.logins.add(row)
            if row.clear.get("second_factor") == "none":
                self.logins_by_password_alone.add(row)

    def _take_look(self, row: ClearRow) -> None:
        self.looks.add(row)
        if len(self.look_days) < _DAYS_KEPT:
            self.look_days.add(row.t[:10])

    def _take_incident(self, row: ClearRow) -> None:
        """An incident is a record of high or critical risk that is no answer to one: a refusal, or a change that begins."""
        if row.type == AuditType.ADMIN_RESULT:
            begun = self._open_incidents.pop(row.exchange_id, None)
            if begun is not None and row.moment >= begun:
                self.responses += 1
                self.response_s += (row.moment - begun).total_seconds()
            return
        if risk_of(severity_of(row)).rank < Risk.HIGH.rank:
            return
        self.incidents.add(row)
        if row.clear.get("dec") == "refuse" or str(row.clear.get("by", "")).startswith("proxy:"):
            self.answered_by_itself += 1
        if row.type == AuditType.ADMIN_INTENT and len(self._open_incidents) < _OPEN_KEPT:
            self._open_incidents[row.exchange_id] = row.moment

    def _take_kind(self, row: ClearRow) -> None:
        kind = _kind_of(row)
        if kind is None:
            return
        if kind not in self._seen:
            self._seen[kind] = Sightings()
            self._seen_risk[kind] = risk_of(severity_of(row))
        self._seen[kind].add(row)

    # --- afterwards ---------------------------------------------------------------------------------------------------

    @property
    def open_exchanges(self) -> Sightings:
        """Exchanges of the period that should have ended, and have no end in it."""
        return self._overdue(self._open_exchanges)

    @property
    def open_changes(self) -> Sightings:
        """Changes that were intended, and of which nothing says whether they were made."""
        return self._overdue(self._open_changes)

    def _overdue(self, opened: dict[str, _Open]) -> Sightings:
        late = [each for each in opened.values() if each.t < self._settled]
        ids = [each.id for each in late[:EVIDENCE_MAX]]
        return Sightings(len(late), late[0].t if late else None, late[-1].t if late else None, ids)

    def findings(self) -> list[Finding]:
        """The worst first, then the most frequent."""
        found = [
            Finding(kind, self._seen_risk[kind], _KINDS[kind], seen.count, seen.first, seen.last, tuple(seen.evidence))
            for kind, seen in self._seen.items()
        ]
        further = (
            ("out_of_order", Risk.CRITICAL, "Records stand out of their order", self.out_of_order),
            ("unsealed", Risk.HIGH, "Bodies of records are not encrypted", self.unsealed),
            ("change_without_result", Risk.HIGH, "Changes were intended and have no result", self.open_changes),
            ("exchange_without_end", Risk.MEDIUM, "Exchanges have no end", self.open_exchanges),
            ("incomplete", Risk.MEDIUM, "Records lack members that their type asks for", self.incomplete),
            ("clock", Risk.MEDIUM, "The clock ran backwards", self.clock_jumps),
            ("password_alone", Risk.MEDIUM, "People logged in without a second factor", self.logins_by_password_alone),
        )
        found += [
            Finding(kind, risk, what, seen.count, seen.first, seen.last, tuple(seen.evidence))
            for kind, risk, what, seen in further
            if seen.count
        ]
        if self.checkpoints and self.gaps_total:
            first, last = self.gaps[0].begin, self.gaps[-1].end
            what = f"Nothing was written for more than {HEARTBEAT_GAP_S:g} s, not even a heartbeat"
            found.append(Finding("heartbeat", Risk.HIGH, what, self.gaps_total, first, last))
        return sorted(found, key=lambda each: (-each.risk.rank, -each.count, each.kind))


def has_required(row: ClearRow) -> bool:
    """Whether a record says what one of its type must."""
    clear = row.clear
    if row.type == AuditType.AUTH_EVENT:
        return any(all(clear.get(name) is not None for name in names) for names in _OF_AUTHENTICATION)
    return all(clear.get(name) is not None for name in REQUIRED.get(row.type, ()))


def _kind_of(row: ClearRow) -> str | None:
    clear = row.clear
    match row.type:
        case AuditType.ADMIN_INTENT:
            match clear.get("act"):
                case "key.quarantine":
                    return "leaked_key" if str(clear.get("by", "")).startswith("proxy:") else "key_quarantined"
                case "kill":
                    return "killed"
                case "unkill":
                    return "let_go"
            return "blocked_address" if row.event == EventName.BLOCKED_IP else None
        case AuditType.ADMIN_RESULT:
            return "change_failed" if clear.get("ok") is False else None
        case AuditType.LLM_END:
            match clear.get("st"):
                case EndStatus.KILLED:
                    return "exchange_killed"
                case EndStatus.ORPHAN:
                    return "orphan"
                case EndStatus.INTERNAL_ERROR:
                    return "internal_error"
                case EndStatus.UPSTREAM_ERROR | EndStatus.UPSTREAM_TIMEOUT:
                    return "upstream"
            return None
        case AuditType.REVEAL:
            return "reveal"
        case "subject.erased":
            return "erased"
        case "segment.retired":
            return "retired"
    return _KIND_OF_EVENT.get(row.event or "")


_KIND_OF_EVENT: dict[str, str] = {
    EventName.BLOCKED_IP: "blocked_address",
    EventName.SECURITY_EVENT: "security_event",
    EventName.AUTHENTICATION_FAILED: "authentication_failed",
    EventName.RATE_LIMIT_EXCEEDED: "rate_limit_exceeded",
}


def _count(value: ClearValue) -> int:
    return value if isinstance(value, int) and value > 0 else 0
