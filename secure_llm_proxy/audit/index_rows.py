"""From a record to its row in the index: the same values whether the log is followed, read again from segments, or checked."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from secure_llm_proxy.audit.format import FormatError, RecordLine, parse_line
from secure_llm_proxy.audit.read_client import RawLine, Row, Tail
from secure_llm_proxy.vocabulary.audit import ClearValue

# As wide as the columns are (`models.py`). What is longer, or of another type, stands in `rest`.
_TEXTS = {
    "usr": 64, "sub": 64, "ak": 64, "prj": 64, "mdl": 200, "up": 64, "dec": 16, "code": 64, "st": 32, "rt": 128,
    "ipx": 32, "uax": 32, "emx": 32, "by": 128, "act": 64,
}  # fmt: skip
_NUMBERS = {"http": 2**31 - 1, "tin": 2**63 - 1, "tout": 2**63 - 1, "ms": 2**63 - 1}
_SUBJECT_MAX = 128
_OF_A_RECORD = dict.fromkeys([*_TEXTS, *_NUMBERS, "sbj", "rest"])
_BY_USER = "user:"


class LogTail(Protocol):
    """Whoever can be asked for a log's records in order: `AuditReader`, or `SegmentReader` where no writer runs."""

    def tail(self, after: int = -1, *, limit: int = 200) -> Tail: ...

    def state(self) -> Mapping[str, Any]: ...


def index_values(log: str, row: Row) -> dict[str, object]:
    """The columns of a record's row by their names. Never refuses a value: what fits no column stands in `rest`."""
    place = row.place
    values: dict[str, object] = {
        **_OF_A_RECORD,
        "log": log,
        "n": place.n,
        "seg": place.segment,
        "off": place.offset,
        "len": place.size,
        "t": moment_of(row.t),
        "ty": row.type,
        "ev": row.event,
        "id": row.id,
        "rid": row.exchange_id,
        "h": base64.b64decode(place.h),
    }
    rest: dict[str, ClearValue] = {}
    for name, value in row.clear.items():
        if (name in _TEXTS and _fits(value, _TEXTS[name])) or (name in _NUMBERS and _counts(value, _NUMBERS[name])):
            values[name] = value
        else:
            rest[name] = value
    if values["usr"] is None and isinstance(by := values["by"], str) and by.startswith(_BY_USER):
        values["usr"] = by[len(_BY_USER) :][: _TEXTS["usr"]]
    for name in ("user", "subject"):
        if _fits(rest.get(name), _SUBJECT_MAX):
            values["sbj"] = rest[name]
            break
    values["rest"] = rest or None
    return values


def row_of(line: RawLine) -> Row | None:
    """A record's raw line as a row of its clear metadata; None when it is no record."""
    try:
        record = parse_line(line.raw)
    except FormatError:
        return None
    if not isinstance(record, RecordLine):
        return None
    return Row(
        place=line.place,
        t=record.t,
        type=record.type,
        event=record.event,
        id=record.id,
        exchange_id=record.exchange_id,
        kid=record.kid,
        clear=record.clear,
    )


def moment_of(t: str) -> datetime:
    """`2026-11-21T00:12:03.104233Z` as an aware moment."""
    return datetime.fromisoformat(t)


def _fits(value: object, width: int) -> bool:
    # PostgreSQL takes no NUL in a text.
    return isinstance(value, str) and len(value) <= width and "\x00" not in value


def _counts(value: object, most: int) -> bool:
    return type(value) is int and -most <= value <= most
