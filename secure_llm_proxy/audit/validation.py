"""Is this record what was written, and does it say what it should? Verified from its bytes, never from an index.

The record's line is read by the one parser of the format; its hash must be what the next line names, as it must name the
hash of the line before. Where the segment carries the tree, all its lines up to the next checkpoint are hashed anew: their
root must be the one that was signed. What can't be decided is UNKNOWN, and then the whole is never VALID.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from secure_llm_proxy.audit.evidence import Damaged, Evidence, SourceLine
from secure_llm_proxy.audit.exports import ClearRow, row_of_record
from secure_llm_proxy.audit.facts import LOOKS, SETTLED_AFTER, has_required
from secure_llm_proxy.audit.format import (
    BY_OWNER,
    CheckpointLine,
    FormatError,
    KeyRollLine,
    Line,
    NewerVersion,
    RecordLine,
    SegmentLine,
    TreeLine,
    base64_text,
    key_roll_statement,
    leaf,
    parse_line,
)
from secure_llm_proxy.audit.frameworks import FRAMEWORKS
from secure_llm_proxy.audit.merkle import TreeEdge
from secure_llm_proxy.audit.notes import Checkpoint, NoteBroken, verify_checkpoint
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus

LINES_MAX = 50_000
"""A segment of 64 MiB holds some 40,000 lines; a longer one is for `manage.py audit prove`."""
_AHEAD = 200
_CHUNK = 1000
_NAMED_MAX = 200
_RECOMMENDED = "manage.py audit verify"


class Result(StrEnum):
    """The origin's words."""

    PASS = "PASS"  # noqa: S105  an outcome
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"


class Status(StrEnum):
    VALID = "VALID"
    INVALID = "INVALID"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Check:
    result: Result
    why: str


Checks = dict[str, Check]


@dataclass(frozen=True, slots=True)
class Validation:
    """`integrity` and `completeness` are decisive. `row` is None when no line of the record could be read."""

    audit_id: str
    row: ClearRow | None
    integrity: Checks
    completeness: Checks
    compliance: Checks
    checkpoint: Checkpoint | None = None
    related: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """VALID only when every decisive check passed."""
        results = [check.result for check in (*self.integrity.values(), *self.completeness.values())]
        if Result.FAIL in results:
            return Status.INVALID
        return Status.UNKNOWN if Result.UNKNOWN in results else Status.VALID

    @property
    def score(self) -> int | None:
        """Percent of all checks that passed, an unknown one counting as not passed; None while integrity is undecided."""
        if any(check.result is Result.UNKNOWN for check in self.integrity.values()):
            return None
        results = [
            check.result for group in (self.integrity, self.completeness, self.compliance) for check in group.values()
        ]
        return round(100 * results.count(Result.PASS) / len(results))

    def recommendations(self) -> list[str]:
        """What to do about each check that did not pass."""
        told = []
        for name, check in (*self.integrity.items(), *self.completeness.items(), *self.compliance.items()):
            if check.result is not Result.PASS:
                told.append(f"{name}: {check.why}")
        if self.status is Status.INVALID:
            told.insert(0, f"Keep the segments as they are and run `{_RECOMMENDED}`: it says where and what.")
        return told


def validate(source: Evidence, identifier: str, now: datetime, trees: SegmentTrees | None = None) -> Validation | None:
    """Verify the record (or the first of the exchange) of that name. None when the log holds none. Raises `Unavailable`.

    Who validates several gives the same `trees` each time: then no line is hashed twice.
    """
    try:
        found = source.named(identifier)
    except Damaged as damage:
        return _damaged(identifier, None, str(damage))
    records = [(line, record) for line in found if (record := _record_of(line)) is not None]
    if not found:
        return None
    own = [(line, each) for line, each in records if identifier in (each.id, each.exchange_id)]
    if not own and len(records) < len(found):
        return _damaged(identifier, None, "The record's line is not in the form of the log.")
    if not own:
        return _undecided(
            identifier, "The record itself is not here, only others that name it: its segment was retired."
        )
    stored, record = next(((line, each) for line, each in own if each.id == identifier), own[0])
    row = row_of_record(record, stored.segment, stored.raw)
    related = [each for _, each in records if each.id != record.id]
    try:
        if record.type != AuditType.LLM_START and identifier != record.exchange_id:
            # The end of a start names it; the others are found by their exchange.
            related += _others_of_exchange(source, record, related)
        surroundings = _Surroundings(source, stored, record, trees or SegmentTrees())
        integrity, checkpoint = surroundings.checks(), surroundings.checkpoint
    except Damaged as damage:
        return _damaged(identifier, row, str(damage))
    return Validation(
        identifier,
        row,
        integrity,
        _completeness(row, related, now),
        _compliance(row, record, integrity),
        checkpoint,
        tuple(dict.fromkeys(each.id for each in related)),
    )


def _record_of(line: SourceLine) -> RecordLine | None:
    try:
        record = parse_line(line.raw)
    except (FormatError, NewerVersion):
        return None
    return record if isinstance(record, RecordLine) and record.n == line.n else None


def _others_of_exchange(source: Evidence, record: RecordLine, known: list[RecordLine]) -> list[RecordLine]:
    """The other records of its exchange or change, where its id alone did not find them."""
    ids = {record.id, *(each.id for each in known)}
    others = (_record_of(line) for line in source.named(record.exchange_id))
    return [each for each in others if each is not None and each.id not in ids][:_NAMED_MAX]


def _damaged(identifier: str, row: ClearRow | None, what: str) -> Validation:
    undecided = _undecided(identifier, "Not decided, since the log is damaged there.")
    failed = Check(Result.FAIL, what)
    integrity = undecided.integrity | {"hash_verification": failed, "sequence_validation": failed}
    return replace(undecided, row=row, integrity=integrity)


def _undecided(identifier: str, why: str) -> Validation:
    unknown = Check(Result.UNKNOWN, why)
    return Validation(
        identifier,
        None,
        dict.fromkeys(
            ("hash_verification", "signature_verification", "timestamp_validation", "sequence_validation"), unknown
        ),
        dict.fromkeys(
            ("required_fields", "audit_trail_completeness", "security_events_logged", "compliance_mapping"), unknown
        ),
        {f"{framework.key}_requirements": unknown for framework in FRAMEWORKS},
    )


# --- integrity --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Surroundings:
    """The lines around a record, and what they say of it."""

    source: Evidence
    stored: SourceLine
    record: RecordLine
    trees: SegmentTrees
    checkpoint: Checkpoint | None = None
    before: Line | None = field(default=None, init=False)
    after: Line | None = field(default=None, init=False)
    before_raw: bytes = field(default=b"", init=False)

    def checks(self) -> Checks:
        """Raises `Damaged`."""
        n = self.record.n
        around = {line.n: line for line in self.source.lines([n - 1, n, n + 1])}
        if n in around and around[n].raw != self.stored.raw:
            raise Damaged(f"Line {n} reads otherwise the second time.")
        if n - 1 in around:
            self.before_raw = around[n - 1].raw
            self.before = _parsed(around[n - 1])
        if n + 1 in around:
            self.after = _parsed(around[n + 1])
        return {
            "hash_verification": self._hash(),
            "signature_verification": self._signature(),
            "timestamp_validation": self._time(),
            "sequence_validation": self._sequence(),
        }

    def _hash(self) -> Check:
        own = leaf(self.stored.raw)
        if self.after is None:
            return Check(Result.UNKNOWN, "It is the log's last line: the hash of a line is bound by the next one.")
        if _previous_hash(self.after) != own:
            return Check(Result.FAIL, f"Line {self.record.n + 1} names another hash than that of this line.")
        return Check(Result.PASS, f"SHA-256 {base64_text(own)} is the hash that the next line names.")

    def _sequence(self) -> Check:
        n = self.record.n
        if self.before is None:
            return Check(Result.UNKNOWN, f"Line {n - 1}, which this one continues, is not here.")
        if self.record.p != leaf(self.before_raw):
            return Check(Result.FAIL, f"It does not continue line {n - 1}: the hash that it names is another.")
        if _index(self.before) != n - 1 or (self.after is not None and _index(self.after) != n + 1):
            return Check(Result.FAIL, "The indexes of the lines around it do not follow each other.")
        return Check(Result.PASS, f"Line {n} continues line {n - 1} in segment {self.stored.segment}.")

    def _time(self) -> Check:
        before, after, t = _time_of(self.before), _time_of(self.after), self.record.t
        if (before is not None and before > t) or (after is not None and t > after):
            return Check(Result.UNKNOWN, "The clock ran backwards around it; the order of records is by index alone.")
        if self.checkpoint is None:
            return Check(Result.UNKNOWN, "No checkpoint with a signed time covers it.")
        if t > self.checkpoint.t:
            return Check(Result.UNKNOWN, f"Its time lies behind the signed time {self.checkpoint.t} of its checkpoint.")
        return Check(Result.PASS, f"Between the times of the lines around it, and signed at {self.checkpoint.t}.")

    # --- the checkpoint -----------------------------------------------------------------------------------------------

    def _signature(self) -> Check:
        """Fold the segment's lines into the tree until a checkpoint that covers the record; hold it to its signature."""
        tree = self.trees.of(self.source, self.stored)
        if tree is None:
            return Check(Result.UNKNOWN, "The first line of its segment is not here.")
        if not tree.is_signed:
            return Check(Result.UNKNOWN, "Its segment was written before checkpoints were.")
        told, self.checkpoint = tree.over(self.source, self.record.n)
        return told


class SegmentTrees:
    """The trees of the segments that were looked at, each folded as far as was needed."""

    def __init__(self) -> None:
        self._trees: dict[int, _SegmentTree | None] = {}

    def of(self, source: Evidence, stored: SourceLine) -> _SegmentTree | None:
        """Of the segment that holds the line; None when its first line is not here. Raises `Damaged`."""
        if stored.segment not in self._trees:
            found = _first_of_segment(source, stored)
            self._trees[stored.segment] = None if found is None else _SegmentTree(*found)
        return self._trees[stored.segment]


def _first_of_segment(source: Evidence, stored: SourceLine) -> tuple[int, SegmentLine] | None:
    """By halves: lines know their segment."""
    low, high = 0, stored.n
    while low < high:
        middle = (low + high) // 2
        found = source.lines([middle])
        # A line that is not here belongs to a segment that was retired.
        if not found or found[0].segment < stored.segment:
            low = middle + 1
        else:
            high = middle
    found = source.lines([low])
    line = _parsed(found[0]) if found else None
    return (low, line) if isinstance(line, SegmentLine) else None


@dataclass(frozen=True, slots=True)
class _Judged:
    """What was found of the checkpoint over the log's first `size` lines; `checkpoint` None: not what was signed."""

    size: int
    check: Check
    checkpoint: Checkpoint | None


class _SegmentTree:
    """The tree over the log's lines from the first of a segment on, the key that signs there, and the checkpoints passed."""

    def __init__(self, first: int, segment: SegmentLine) -> None:
        self._log = segment.log
        self._key = segment.epoch_public_key
        self._features = segment.features
        self._edge: TreeEdge | None = TreeEdge() if segment.n == 0 else None
        self._held: list[bytes] = []
        self._owner_rolled = False
        self._first = self._next = first
        self._judged: list[_Judged] = []
        self._failed: Check | None = None
        self.is_signed = "cp" in segment.features

    def over(self, source: Evidence, n: int) -> tuple[Check, Checkpoint | None]:
        """What the first checkpoint that covers line `n` says. Raises `Damaged`."""
        while True:
            for judged in self._judged:
                if judged.size > n:
                    return judged.check, judged.checkpoint
            if self._failed is not None:
                return self._failed, None
            if self._next - self._first > LINES_MAX:
                told = f"More than {LINES_MAX} lines to its checkpoint; use `manage.py audit prove`."
                return Check(Result.UNKNOWN, told), None
            # Most of them lie before the record; behind it a checkpoint is near.
            size = _AHEAD if self._next > n else _CHUNK
            found = source.lines(range(self._next, self._next + size))
            for line in found:
                self._take(line)
            if not found:
                return Check(Result.UNKNOWN, "No checkpoint covers it yet; one is signed within seconds."), None

    def _take(self, stored: SourceLine) -> None:
        line = _parsed(stored, self._features)
        if isinstance(line, TreeLine) and self._edge is None:
            self._begin(line)
        elif isinstance(line, SegmentLine):
            self._features = line.features
        elif isinstance(line, KeyRollLine):
            self._roll(line)
        elif isinstance(line, CheckpointLine):
            self._judge(line)
        own = leaf(stored.raw)
        if self._edge is None:
            self._held.append(own)
        else:
            self._edge.append(own)
        self._next = stored.n + 1

    def _begin(self, line: TreeLine) -> None:
        try:
            edge = TreeEdge(line.n - 1, line.edge)
        except ValueError:
            self._failed = Check(Result.FAIL, "The tree that its segment carries fits no number of lines.")
            return
        for held in self._held:
            edge.append(held)
        self._edge = edge

    def _roll(self, line: KeyRollLine) -> None:
        if line.by == BY_OWNER:
            # The owner's key is not known here.
            self._owner_rolled = True
        else:
            try:
                statement = key_roll_statement(self._log, line)
                Ed25519PublicKey.from_public_bytes(self._key).verify(line.signature, statement)
            except (InvalidSignature, ValueError):
                told = f"The key roll in line {line.n} is not signed by the key before it."
                self._failed = self._failed or Check(Result.FAIL, told)
        self._key = line.epoch_public_key

    def _judge(self, line: CheckpointLine) -> None:
        check, checkpoint = self._failed, None
        if check is None:
            check, checkpoint = self._check(line)
        self._judged.append(_Judged(line.n, check, checkpoint))

    def _check(self, line: CheckpointLine) -> tuple[Check, Checkpoint | None]:
        if self._edge is None:
            return Check(Result.UNKNOWN, "Its segment does not carry the tree over the lines before it."), None
        try:
            checkpoint = verify_checkpoint(line.note, self._key)
        except NoteBroken as error:
            return Check(Result.FAIL, f"Line {line.n}: {error}."), None
        if checkpoint != Checkpoint(self._log, line.n, self._edge.root(), line.t):
            return Check(Result.FAIL, f"The lines up to {line.n} are not those that the checkpoint there signed."), None
        if self._owner_rolled:
            told = "Signed, by a key that the owner put in force, whose key is not known here."
            return Check(Result.UNKNOWN, told), checkpoint
        told = f"The checkpoint over {line.n} lines, of {line.t}, is signed by the epoch key {base64_text(self._key)}."
        return Check(Result.PASS, f"{told} `{_RECOMMENDED} --genesis` leads that key back to its owner's."), checkpoint


def _parsed(stored: SourceLine, features: tuple[str, ...] = ("cp", "kr", "tr")) -> Line:
    try:
        line = parse_line(stored.raw, features)
    except (FormatError, NewerVersion) as error:
        raise Damaged(f"Line {stored.n} of segment {stored.segment}: {error}.") from None
    if _index(line) != stored.n:
        raise Damaged(f"Line {stored.n} of segment {stored.segment} says that it is another.")
    return line


def _index(line: Line) -> int:
    return line.n


def _previous_hash(line: Line) -> bytes | None:
    if isinstance(line, SegmentLine):
        return None if line.previous is None else line.previous.h
    return line.p


def _time_of(line: Line | None) -> str | None:
    return getattr(line, "t", None)


# --- completeness -----------------------------------------------------------------------------------------------------

_WITH_EVENT = frozenset({AuditType.REFUSED, AuditType.ADMIN_INTENT, AuditType.ADMIN_RESULT, AuditType.REVEAL})


def _completeness(row: ClearRow, related: list[RecordLine], now: datetime) -> Checks:
    mapped = controls_of(row)
    return {
        "required_fields": Check(Result.PASS, "Every member that its type asks for is there.")
        if has_required(row)
        else Check(Result.FAIL, f"A record of type {row.type} lacks a member that its type asks for."),
        "audit_trail_completeness": _trail(row, related, now),
        "security_events_logged": _event(row),
        "compliance_mapping": Check(Result.PASS, "Evidence for " + ", ".join(mapped) + ".")
        if mapped
        else Check(Result.UNKNOWN, "No control of the frameworks speaks of records of this type."),
    }


def _event(row: ClearRow) -> Check:
    refused = row.clear.get("dec") == "refuse"
    if row.event is None and (refused or row.type in _WITH_EVENT):
        return Check(Result.FAIL, "It bears no event name, which operators would find it by.")
    named = f"It bears the event name {row.event}." if row.event else "A record of its kind needs no event name."
    return Check(Result.PASS, named)


@dataclass(frozen=True, slots=True)
class _Pair:
    """What belongs to a record of a type. `later`: it comes afterwards, so it may be under way."""

    what: str
    type: AuditType
    later: bool


_PAIRS: Mapping[str, _Pair] = {
    AuditType.LLM_START: _Pair("its end", AuditType.LLM_END, later=True),
    AuditType.LLM_END: _Pair("its start", AuditType.LLM_START, later=False),
    AuditType.ADMIN_INTENT: _Pair("its result", AuditType.ADMIN_RESULT, later=True),
    AuditType.ADMIN_RESULT: _Pair("its intent", AuditType.ADMIN_INTENT, later=False),
}


def _trail(row: ClearRow, related: list[RecordLine], now: datetime) -> Check:
    """What belongs to it is there: the end of a start, the start of an end, the result of an intent, every part."""
    parts = row.clear.get("parts")
    if isinstance(parts, int) and parts:
        there = {other.clear.get("seq") for other in related if other.clear.get("pt_of") == row.id}
        if there != set(range(parts)):
            return Check(Result.FAIL, f"{len(there)} of {parts} parts of its body are there.")
    pair = _PAIRS.get(row.type)
    if pair is None:
        return Check(Result.PASS, "It stands for itself.")
    found = [other for other in related if other.type == pair.type and _belong_together(row, other)]
    if found:
        orphan = (
            " Its worker was gone; the writer recorded that." if found[0].clear.get("st") == EndStatus.ORPHAN else ""
        )
        return Check(Result.PASS, f"There is {pair.what}: {found[0].id}.{orphan}")
    if not pair.later:
        return Check(Result.UNKNOWN, f"There is not {pair.what}; it may stand in a segment that was retired.")
    if now.astimezone(UTC) - row.moment < SETTLED_AFTER:
        return Check(Result.UNKNOWN, f"It is under way: there is not {pair.what} yet.")
    return Check(Result.FAIL, f"There is not {pair.what}.")


def _belong_together(row: ClearRow, other: RecordLine) -> bool:
    if row.type == AuditType.LLM_START:
        return other.exchange_id == row.exchange_id and other.clear.get("sid") == row.id
    if row.type == AuditType.LLM_END:
        return other.exchange_id == row.exchange_id and other.id == row.clear.get("sid")
    return other.exchange_id == row.exchange_id


# --- frameworks -------------------------------------------------------------------------------------------------------

# Which controls a record of that type is evidence for: ids of `frameworks.FRAMEWORKS`, per framework.
_CONTROLS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "exchange": (
        ("gdpr", "Art. 30"), ("gdpr", "Art. 5(2)"), ("hipaa", "164.312(b)"), ("pci_dss", "10.2.1.1"),
        ("sox", "ITGC operations (COBIT DSS01)"), ("iso_27001", "A.8.15"),
    ),
    "refusal": (
        ("gdpr", "Art. 33"), ("hipaa", "164.308(a)(5)(ii)(C)"), ("pci_dss", "10.2.1.4"),
        ("sox", "ITGC security monitoring (COBIT DSS05.07)"), ("iso_27001", "A.8.16"),
    ),
    "change": (
        ("gdpr", "Art. 5(2)"), ("hipaa", "164.312(b)"), ("pci_dss", "10.2.1.2"),
        ("sox", "ITGC change management (COBIT BAI06)"), ("iso_27001", "A.8.2"),
    ),
    "login": (
        ("hipaa", "164.312(d)"), ("pci_dss", "8.4.2"), ("sox", "ITGC logical access (COBIT DSS05.04)"),
        ("iso_27001", "A.8.5"),
    ),
    "look": (
        ("hipaa", "164.308(a)(1)(ii)(D)"), ("pci_dss", "10.2.1.3"), ("pci_dss", "10.4.1"), ("iso_27001", "A.8.15"),
    ),
    "erasure": (("gdpr", "Art. 17"), ("iso_27001", "A.8.10")),
    "retirement": (
        ("hipaa", "164.316(b)(2)(i)"), ("pci_dss", "10.5.1"), ("sox", "§ 802, 17 CFR 210.2-06"), ("iso_27001", "A.5.33"),
    ),
}  # fmt: skip


def _sort_of(row: ClearRow) -> str | None:
    if row.clear.get("dec") == "refuse":
        return "refusal"
    match row.type:
        case AuditType.LLM_START | AuditType.LLM_END | AuditType.LLM_PART | AuditType.LLM_RETRY:
            return "exchange"
        case AuditType.ADMIN_INTENT | AuditType.ADMIN_RESULT:
            return "look" if row.clear.get("act") in LOOKS else "change"
        case AuditType.AUTH_EVENT:
            return "login"
        case AuditType.REVEAL:
            return "look"
        case "subject.erased":
            return "erasure"
        case "segment.retired":
            return "retirement"
    return None


def controls_of(row: ClearRow, framework: str | None = None) -> list[str]:
    """The controls that this record is evidence for, as `PCI DSS v4.0.1 10.2.1.1`."""
    names = {each.key: each.name for each in FRAMEWORKS}
    found = _CONTROLS.get(_sort_of(row) or "", ())
    return [f"{names[key]} {control}" for key, control in found if framework in {None, key}]


def _compliance(row: ClearRow, record: RecordLine, integrity: Checks) -> Checks:
    """What each framework asks of a single record, as far as its readable members tell."""
    told: Checks = {}
    for framework in FRAMEWORKS:
        checks = list(_asked_of_record(framework.key, row, record, integrity))
        worst = next((each for each in checks if each.result is Result.FAIL), None)
        worst = worst or next((each for each in checks if each.result is Result.UNKNOWN), None)
        why = " ".join(each.why for each in checks)
        told[f"{framework.key}_requirements"] = worst or Check(Result.PASS, why)
    return told


def _asked_of_record(key: str, row: ClearRow, record: RecordLine, integrity: Checks) -> Iterator[Check]:
    intact = integrity["hash_verification"], integrity["signature_verification"], integrity["sequence_validation"]
    for check in intact:
        if check.result is not Result.PASS:
            yield Check(check.result, "The integrity of the record is not shown: " + check.why)
    if not controls_of(row, key):
        yield Check(Result.UNKNOWN, "No control of this framework speaks of records of this type.")
    if key in {"gdpr", "hipaa", "iso_27001"}:
        # GDPR Art. 32(1)(a), 164.312(a)(2)(iv), A.8.24.
        if record.sealed is None:
            yield Check(Result.FAIL, "Its body is not encrypted.")
        else:
            yield Check(Result.PASS, "Its body is encrypted.")
    if key == "gdpr" and row.type == AuditType.LLM_START:
        if row.clear.get("sub"):
            yield Check(Result.PASS, "The person is named by a pseudonym.")
        else:
            yield Check(Result.UNKNOWN, "It names no person, not even by a pseudonym.")
    if key in {"pci_dss", "sox", "hipaa", "iso_27001"}:
        yield _who(row)
    if key == "pci_dss":
        # 10.2.2 asks where an event came from; that is sealed, and a blind index shows that it is there.
        if row.clear.get("ipx"):
            yield Check(Result.PASS, "Where it came from is on record (blind index `ipx`).")
        else:
            yield Check(Result.UNKNOWN, "Where it came from is sealed in its body, or not on record.")


def _who(row: ClearRow) -> Check:
    who = next((row.clear[name] for name in ("usr", "by") if row.clear.get(name)), None)
    if who is not None:
        return Check(Result.PASS, f"It names who: {who}.")
    if row.clear.get("dec") == "refuse":
        return Check(Result.UNKNOWN, "It was refused before anybody was identified.")
    if row.type == AuditType.LLM_END and row.clear.get("st") == EndStatus.ORPHAN:
        return Check(Result.UNKNOWN, "Its start names who it was.")
    return Check(Result.FAIL, "It does not name who.")
