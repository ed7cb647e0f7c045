"""From a record to its row in the index: the same values whether the log is followed, read again from segments, or checked."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypedDict

from secure_llm_proxy.audit.format import RecordLine, base64_text, leaf
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


class TailRow(TypedDict):
    """A record as readers of the log are given it: its place, and what it says in clear. `h` is base64."""

    n: int
    seg: int
    off: int
    len: int
    h: str
    t: str
    ty: str
    ev: str | None
    id: str
    rid: str
    clear: Mapping[str, ClearValue]


class TailCheckpoint(TypedDict):
    """A checkpoint: `root` (base64) is that of the tree over the lines before `n`, `note` says so signed."""

    n: int
    t: str
    root: str
    note: str


@dataclass(frozen=True, slots=True)
class Tail:
    """The records and checkpoints from behind one line of a log up to and with line `after`, in order.

    `broken` says what was passed over because it is not what was written.
    """

    rows: Sequence[TailRow]
    checkpoints: Sequence[TailCheckpoint]
    after: int
    more: bool
    broken: str | None = None


class LogTail(Protocol):
    """Whoever can be asked for a log's records in order. Both raise `ProxyError` when they can't be answered."""

    def log_name(self) -> str: ...

    def tail(self, after: int, limit: int) -> Tail:
        """At most `limit` records from behind line `after` (-1: from the first)."""
        ...


def row_of(record: RecordLine, raw: bytes, segment: int, offset: int) -> TailRow:
    """A line of a segment as readers are given it."""
    return {
        "n": record.n,
        "seg": segment,
        "off": offset,
        "len": len(raw),
        "h": base64_text(leaf(raw)),
        "t": record.t,
        "ty": record.type,
        "ev": record.event,
        "id": record.id,
        "rid": record.exchange_id,
        "clear": record.clear,
    }


def index_values(log: str, row: TailRow) -> dict[str, object]:
    """The columns of a record's row by their names. Never refuses a value: what fits no column stands in `rest`."""
    values: dict[str, object] = {
        **_OF_A_RECORD,
        "log": log,
        "n": row["n"],
        "seg": row["seg"],
        "off": row["off"],
        "len": row["len"],
        "t": moment_of(row["t"]),
        "ty": row["ty"],
        "ev": row["ev"],
        "id": row["id"],
        "rid": row["rid"],
        "h": base64.b64decode(row["h"]),
    }
    rest: dict[str, ClearValue] = {}
    for name, value in row["clear"].items():
        kind = type(value)
        if (kind is str and name in _TEXTS and _fits(value, _TEXTS[name])) or (
            kind is int and name in _NUMBERS and -_NUMBERS[name] <= value <= _NUMBERS[name]  # type: ignore[operator]  # an int
        ):
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


def moment_of(t: str) -> datetime:
    """`2026-11-21T00:12:03.104233Z` as an aware moment."""
    return datetime.fromisoformat(t)


def _fits(value: object, width: int) -> bool:
    # PostgreSQL takes no NUL in a text.
    return isinstance(value, str) and len(value) <= width and "\x00" not in value
