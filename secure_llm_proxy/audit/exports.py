"""Rows of an export: what stands readable in a record, as JSON lines, JSON, CSV or CEF. Bodies stay sealed.

Every file ends with a row of its own that says how many records came before it and whether more would follow: a file
without that row was cut off. Nothing is left out of any format: what has no column of its own stands in `more`.

Sources: RFC 4180 (CSV); OWASP "CSV Injection" (2026): cells that begin with `= + - @`, a tab or a line end are formulas to a
spreadsheet; ArcSight "Common Event Format" revision 26 (2023): the bar and the backslash are escaped in the header, the equals
sign, the backslash and line ends in the extension; severities 0 to 10.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import orjson

from secure_llm_proxy import __version__
from secure_llm_proxy.audit.format import RecordLine, base64_text, leaf
from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus, EventName


class ExportFormat(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"
    CEF = "cef"
    JSON = "json"


class Risk(StrEnum):
    """The origin's four levels, lowest first."""

    LOW = "LOW"
    MEDIUM = "MEDIUM"
    HIGH = "HIGH"
    CRITICAL = "CRITICAL"

    @property
    def rank(self) -> int:
        return _RISKS.index(self)


_RISKS = tuple(Risk)


@dataclass(frozen=True, slots=True)
class ClearRow:
    """A record without its body: where it stands (`n`, `segment`, hash `h` of its line), and its readable members.

    `t` is RFC 3339 in UTC with microseconds, `h` base64, `kid` None in a log without encryption.
    """

    n: int
    segment: int
    t: str
    type: str
    event: str | None
    id: str
    exchange_id: str
    kid: str | None
    h: str
    clear: Mapping[str, ClearValue] = field(default_factory=dict)

    @property
    def moment(self) -> datetime:
        return datetime.fromisoformat(self.t)


@dataclass(frozen=True, slots=True)
class ExportEnd:
    """What the last row of an export says. `notice` is a sentence where something is not as asked for: a cap was reached
    (`next_cursor` goes on from there), or the log could not be read further.
    """

    records: int
    complete: bool
    next_cursor: str | None = None
    notice: str | None = None


class RowWriter(Protocol):
    """Bytes of one export, in this order: `opening` once, `row` for each record, `ending` once."""

    content_type: str
    suffix: str

    def opening(self) -> bytes: ...

    def row(self, row: ClearRow) -> bytes: ...

    def ending(self, end: ExportEnd) -> bytes: ...


def row_writer(kind: ExportFormat, envelope: Mapping[str, object] | None = None) -> RowWriter:
    """A writer of that format. `envelope` (plain JSON values) says what was exported, by whom and why."""
    told = dict(envelope or {})
    match kind:
        case ExportFormat.JSONL:
            return JsonLines(told)
        case ExportFormat.JSON:
            return JsonEnvelope(told)
        case ExportFormat.CSV:
            return CommaSeparated(told)
        case ExportFormat.CEF:
            return CommonEvents(told)


def row_of_record(line: RecordLine, segment: int, raw: bytes) -> ClearRow:
    """`raw` are the bytes of the line without its newline."""
    return ClearRow(
        n=line.n,
        segment=segment,
        t=line.t,
        type=line.type,
        event=line.event,
        id=line.id,
        exchange_id=line.exchange_id,
        kid=line.kid,
        h=base64_text(leaf(raw)),
        clear=line.clear,
    )


# --- severity ---------------------------------------------------------------------------------------------------------

_SEVERITY_OF_ACT = {"key.quarantine": 9, "kill": 8, "unkill": 7}
_SEVERITY_OF_EVENT: dict[str, int] = {
    EventName.SECURITY_EVENT: 7,
    EventName.BLOCKED_IP: 7,
    EventName.AUDIT_REVEAL: 6,
    EventName.AUTHENTICATION_FAILED: 5,
    EventName.MFA_CHANGED: 5,
    EventName.PASSWORD_CHANGED: 5,
    EventName.ADMIN_CHANGE: 5,
    EventName.RATE_LIMIT_EXCEEDED: 4,
    EventName.AUDIT_ACCESS: 3,
    EventName.SESSION_ENDED: 3,
    EventName.LOGIN: 2,
    EventName.LOGOUT: 1,
    EventName.INVALID_REQUEST: 2,
}
_SEVERITY_OF_TYPE: dict[str, int] = {
    AuditType.ADMIN_INTENT: 5,
    AuditType.ADMIN_RESULT: 5,
    AuditType.REVEAL: 6,
    AuditType.AUTH_EVENT: 3,
    AuditType.REFUSED: 4,
    "subject.erased": 6,
    "segment.retired": 5,
}
_SEVERITY_OF_END: dict[str, int] = {
    EndStatus.KILLED: 7,
    EndStatus.INTERNAL_ERROR: 6,
    EndStatus.ORPHAN: 5,
    EndStatus.UPSTREAM_ERROR: 3,
    EndStatus.UPSTREAM_TIMEOUT: 3,
    EndStatus.NOT_SENT: 3,
    EndStatus.SERVER_STOP: 2,
    EndStatus.CLIENT_ABORT: 2,
    EndStatus.COMPLETE: 1,
}
_SEVERITY_LEAST = 1
_RISK_UP_TO = ((3, Risk.LOW), (6, Risk.MEDIUM), (8, Risk.HIGH), (10, Risk.CRITICAL))


def severity_of(row: ClearRow) -> int:
    """0 to 10 as CEF counts: up to 3 low, 6 medium, 8 high, else critical."""
    act, status = row.clear.get("act"), row.clear.get("st")
    if isinstance(act, str) and act in _SEVERITY_OF_ACT:
        return _SEVERITY_OF_ACT[act]
    if row.type == AuditType.LLM_END and isinstance(status, str):
        return _SEVERITY_OF_END.get(status, _SEVERITY_LEAST)
    base = _SEVERITY_OF_EVENT.get(row.event or "", _SEVERITY_OF_TYPE.get(row.type, _SEVERITY_LEAST))
    # A change that was begun and did not come about is worth a second look.
    return min(10, base + 1) if row.clear.get("ok") is False else base


_SECURITY_EVENTS = frozenset(
    {
        EventName.SECURITY_EVENT,
        EventName.BLOCKED_IP,
        EventName.AUTHENTICATION_FAILED,
        EventName.RATE_LIMIT_EXCEEDED,
    }
)
# Refusals because a rule that somebody set forbids it; not those of a request that is malformed, too fast or unknown.
_VIOLATIONS = frozenset(
    {
        ErrorCode.ADDRESS_BLOCKED,
        ErrorCode.AGENT_BLOCKED,
        ErrorCode.ADDRESS_NOT_ALLOWED,
        ErrorCode.AGENT_NOT_ALLOWED,
        ErrorCode.MODEL_NOT_ALLOWED,
        ErrorCode.SCOPE_MISSING,
        ErrorCode.MAX_TOKENS_EXCEEDED,
        ErrorCode.WRONG_KEY_KIND,
        ErrorCode.API_KEY_IN_URL,
        ErrorCode.API_KEY_IN_BODY,
        ErrorCode.KILLED,
        ErrorCode.PROJECT_INACTIVE,
        ErrorCode.FORBIDDEN,
    }
)


def is_security_event(row: ClearRow) -> bool:
    """Whether its event is one of those that operators watch: SECURITY_EVENT, BLOCKED_IP, AUTHENTICATION_FAILED, RATE_LIMIT_EXCEEDED."""
    return row.event in _SECURITY_EVENTS


def is_violation(row: ClearRow) -> bool:
    """Whether it is the refusal of something that a rule forbids."""
    return row.clear.get("code") in _VIOLATIONS


def risk_of(severity: int) -> Risk:
    """CEF's own grouping of its severities under the origin's names."""
    return next(risk for worst, risk in _RISK_UP_TO if severity <= worst)


# --- JSON -------------------------------------------------------------------------------------------------------------


def flat_members(row: ClearRow) -> dict[str, object]:
    """The record's readable members under the log's own names, then where it stands."""
    told: dict[str, object] = {"k": "rec", "n": row.n, "t": row.t, "ty": row.type}
    if row.event is not None:
        told["ev"] = row.event
    told |= {"id": row.id, "rid": row.exchange_id, **row.clear, "kid": row.kid, "seg": row.segment, "leaf": row.h}
    return told


class JsonLines:
    """One JSON object per line; the last has `"k":"export"`."""

    content_type = "application/x-ndjson"
    suffix = "jsonl"

    def __init__(self, envelope: Mapping[str, object]) -> None:
        self._envelope = envelope

    def opening(self) -> bytes:
        return b""

    def row(self, row: ClearRow) -> bytes:
        return orjson.dumps(flat_members(row), option=orjson.OPT_APPEND_NEWLINE)

    def ending(self, end: ExportEnd) -> bytes:
        return orjson.dumps({"k": "export", **self._envelope, **_end_members(end)}, option=orjson.OPT_APPEND_NEWLINE)


class JsonEnvelope:
    """One JSON object, the origin's envelope: the envelope's members, `export_content`, `data_summary`, and what `ExportEnd`
    says. `audit_logs` holds every record; the other lists of `export_content` name some of them by their ids.
    """

    content_type = "application/json"
    suffix = "json"

    def __init__(self, envelope: Mapping[str, object]) -> None:
        self._envelope = envelope
        self._separator = b""
        self._security_events: list[str] = []
        self._violations: list[str] = []
        self._risks: list[dict[str, object]] = []

    def opening(self) -> bytes:
        head = orjson.dumps(dict(self._envelope))[1:-1]
        return b"{" + head + (b"," if head else b"") + b'"export_content":{"audit_logs":[\n'

    def row(self, row: ClearRow) -> bytes:
        if is_security_event(row):
            self._security_events.append(row.id)
        if is_violation(row):
            self._violations.append(row.id)
        severity = severity_of(row)
        if risk_of(severity).rank >= Risk.HIGH.rank:
            self._risks.append({"id": row.id, "risk_level": risk_of(severity), "severity": severity})
        told, self._separator = self._separator + orjson.dumps(flat_members(row)), b",\n"
        return told

    def ending(self, end: ExportEnd) -> bytes:
        lists: dict[str, list[str] | list[dict[str, object]]] = {
            "security_events": self._security_events,
            "compliance_violations": self._violations,
            "risk_assessments": self._risks,
        }
        counted = {"total_records": end.records, **{name: len(ids) for name, ids in lists.items()}}
        told = {"data_summary": counted, **_end_members(end)}
        return b"\n]," + orjson.dumps(lists)[1:] + b"," + orjson.dumps(told)[1:] + b"\n"


def _end_members(end: ExportEnd) -> dict[str, object]:
    return {
        "records": end.records,
        "complete": end.complete,
        "next_cursor": end.next_cursor,
        "notice": end.notice,
    }


# --- CSV --------------------------------------------------------------------------------------------------------------

# Column → the name of the readable member that it shows.
_MEMBER_OF_COLUMN = {
    "decision": "dec",
    "status": "st",
    "http_status": "http",
    "code": "code",
    "rule": "rule",
    "user": "usr",
    "subject_pseudonym": "sub",
    "api_key": "ak",
    "model": "mdl",
    "upstream": "up",
    "route": "rt",
    "action": "act",
    "by": "by",
    "subject": "subject",
    "ok": "ok",
    "tokens_in": "tin",
    "tokens_out": "tout",
    "milliseconds": "ms",
}
COLUMNS = ("n", "segment", "time", "type", "event", "id", "request_id", *_MEMBER_OF_COLUMN, "more", "leaf_hash")
_SHOWN = frozenset(_MEMBER_OF_COLUMN.values())
# The full-width forms of `= + - @` count, too: some programs fold them.
_FORMULA = re.compile("\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
# C0, DEL, C1, and the separators that some programs take for a line end.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


class CommaSeparated:
    """RFC 4180 in UTF-8: a header, every cell in quotes, CRLF. The last row has the type `export.end`.

    A text that a spreadsheet would take for a formula gets an apostrophe in front, a control character is written as JSON
    would, so that each record is one line. For exact values take JSON.
    """

    content_type = "text/csv; charset=utf-8; header=present"
    suffix = "csv"

    def __init__(self, envelope: Mapping[str, object]) -> None:
        self._envelope = envelope

    def opening(self) -> bytes:
        return _csv_line(COLUMNS)

    def row(self, row: ClearRow) -> bytes:
        clear = row.clear
        more = {name: value for name, value in clear.items() if name not in _SHOWN}
        if row.kid is not None:
            more["kid"] = row.kid
        return _csv_line(
            (
                *(row.n, row.segment, row.t, row.type, row.event, row.id, row.exchange_id),
                *(clear.get(member) for member in _MEMBER_OF_COLUMN.values()),
                *(_json_text(more), row.h),
            )
        )

    def ending(self, end: ExportEnd) -> bytes:
        cells: dict[str, object] = {"type": "export.end", "more": _json_text({**self._envelope, **_end_members(end)})}
        return _csv_line(tuple(cells.get(column) for column in COLUMNS))


def _csv_line(cells: tuple[object, ...]) -> bytes:
    return (",".join(map(_csv_cell, cells)) + "\r\n").encode("utf-8", "replace")


def _csv_cell(value: object) -> str:
    if value is None:
        return '""'
    if isinstance(value, bool):
        return '"true"' if value else '"false"'
    if isinstance(value, int):
        return f'"{value}"'
    text = str(value)
    if _FORMULA.match(text):
        text = "'" + text
    return '"' + _visible(text).replace('"', '""') + '"'


def _visible(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _json_text(members: Mapping[str, object]) -> str:
    return orjson.dumps(dict(members)).decode() if members else ""


# --- CEF --------------------------------------------------------------------------------------------------------------

_VENDOR = "Secure LLM Proxy"
_PRODUCT = "Audit Log"
_NAMES: dict[str, str] = {
    AuditType.LLM_START: "Request to a model begins",
    AuditType.LLM_PART: "Part of a request or answer",
    AuditType.LLM_RETRY: "Request to a model tried anew",
    AuditType.LLM_END: "Request to a model ended",
    AuditType.REFUSED: "Request refused",
    AuditType.ADMIN_INTENT: "Administrative change intended",
    AuditType.ADMIN_RESULT: "Administrative change done",
    AuditType.REVEAL: "Sealed record opened",
    AuditType.AUTH_EVENT: "Authentication event",
    "subject.erased": "Person erased",
    "segment.retired": "Segment retired",
}
# CEF's own keys, as ArcSight's dictionary has them.
_KEY_OF_MEMBER = {
    "dec": "act",
    "st": "outcome",
    "code": "reason",
    "rt": "request",
    "usr": "suid",
    "by": "suser",
}
_LABELLED = {"rid": "cs1", "sub": "cs2", "ak": "cs3", "mdl": "cs4"}
_LABELS = {"rid": "requestId", "sub": "subjectPseudonym", "ak": "apiKey", "mdl": "model"}


class CommonEvents:
    """CEF:0, one event per line. `cs5` holds, as JSON, the members that have no key of their own; the last event is
    `export.end`.
    """

    content_type = "text/plain; charset=utf-8"
    suffix = "cef"

    def __init__(self, envelope: Mapping[str, object]) -> None:
        self._envelope = envelope

    def opening(self) -> bytes:
        return b""

    def row(self, row: ClearRow) -> bytes:
        clear = row.clear
        what = clear.get("act") or clear.get("code") or clear.get("st")
        signature = row.type if what is None else f"{row.type}:{what}"
        name = _NAMES.get(row.type, row.type)
        if row.event is not None:
            name = f"{name} ({row.event})"
        extension: dict[str, object] = {
            "rt": round(row.moment.timestamp() * 1000),
            "cat": row.event or row.type,
            "externalId": row.id,
            "cn1": row.n,
            "cn1Label": "logIndex",
            "cn2": row.segment,
            "cn2Label": "segment",
        }
        for member, key in _KEY_OF_MEMBER.items():
            if (value := clear.get(member)) is not None:
                extension[key] = value
        for member, key in _LABELLED.items():
            value = row.exchange_id if member == "rid" else clear.get(member)
            if value is not None:
                extension[key] = value
                extension[key + "Label"] = _LABELS[member]
        more: dict[str, ClearValue] = {
            member: value for member, value in clear.items() if member not in _KEY_OF_MEMBER and member not in _LABELLED
        }
        if row.kid is not None:
            more["kid"] = row.kid
        if more:
            extension["cs5"] = _json_text(more)
            extension["cs5Label"] = "more"
        extension["cs6"] = row.h
        extension["cs6Label"] = "leafHash"
        return _cef_line(signature, name, severity_of(row), extension)

    def ending(self, end: ExportEnd) -> bytes:
        told = _json_text({**self._envelope, **_end_members(end)})
        outcome = "complete" if end.complete else "incomplete"
        extension: dict[str, object] = {"cat": "export.end", "outcome": outcome, "cn1": end.records}
        extension |= {"cn1Label": "records", "cs5": told, "cs5Label": "more"}
        return _cef_line("export.end", "End of export", 1, extension)


def _cef_line(signature: str, name: str, severity: int, extension: Mapping[str, object]) -> bytes:
    head = "|".join(_cef_header(part) for part in (_VENDOR, _PRODUCT, __version__, signature, name))
    told = " ".join(f"{key}={_cef_value(value)}" for key, value in extension.items())
    return f"CEF:0|{head}|{severity}|{told}\n".encode("utf-8", "replace")


def _cef_header(text: str) -> str:
    return _visible(text).replace("\\", "\\\\").replace("|", "\\|")


def _cef_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    lines = str(value).replace("\r\n", "\n").split("\n")
    shown = (_visible(line).replace("\\", "\\\\").replace("=", "\\=") for line in lines)
    # A blank at the end would be read as the one before the next key.
    return "\\n".join(shown).strip(" ")
