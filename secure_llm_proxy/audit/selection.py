"""Which records are meant: one question, asked of the segments, of the index and by commands alike.

Only clear members are looked at; bodies stay sealed. A record fits when it fits every part of the question that is set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import orjson

from secure_llm_proxy.audit.exports import ClearRow, row_of_record
from secure_llm_proxy.audit.format import FormatError, NewerVersion, RecordLine, parse_line
from secure_llm_proxy.audit.reading import StoredLine, Watch, stored_lines_of
from secure_llm_proxy.audit.segments import SegmentFile
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import AuditType

_RECORD_OPENING = b'{"k":"rec",'
_TIME_OPENING = b',"t":"'
_TIME_BYTES = len("2026-11-21T00:12:03.104233Z")
# `n` has at most 20 digits.
_TIME_SOUGHT_WITHIN = len(_RECORD_OPENING) + len('"n":') + 20 + len(_TIME_OPENING)


# Members in which records that are not of an exchange name what they are about.
ABOUT = ("user", "subject", "key_id", "new")
EXCHANGE_TYPES = frozenset(
    {AuditType.LLM_START, AuditType.LLM_PART, AuditType.LLM_RETRY, AuditType.LLM_END, AuditType.REFUSED}
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Times are those of the log (`2026-11-21T00:12:03.104233Z`), `since` included, `until` not.

    `user`, `project` and `key` are identifiers (usr_…, prj_…, the public part of a key) and find what such a one did as well as
    what was done to it. `person` is a pseudonym (`s_…`), `also` are others of the same person, of earlier secrets.
    `status` is an HTTP status, how an exchange ended, or an error code. `request` is an exchange's id or that of one of its
    records. `address`, `agent` and `email` are blind indexes.
    """

    since: str | None = None
    until: str | None = None
    user: str | None = None
    person: str | None = None
    project: str | None = None
    key: str | None = None
    model: str | None = None
    event: str | None = None
    type: str | None = None
    decision: str | None = None
    status: str | None = None
    request: str | None = None
    address: str | None = None
    agent: str | None = None
    email: str | None = None
    named: bool = False
    also: tuple[str, ...] = ()

    def fits(self, record: RecordLine) -> bool:
        if (self.since and record.t < self.since) or (self.until and record.t >= self.until):
            return False
        if self.named and record.event is None:
            return False
        clear = record.clear
        return all(
            fits
            for wanted, fits in (
                (self.user, _is_by(clear, self.user) or _is_about(record, self.user)),
                (self.person, clear.get("sub") in (self.person, *self.also)),
                (self.project, clear.get("prj") == self.project or _is_about(record, self.project)),
                (self.key, clear.get("ak") == self.key or _is_about(record, self.key)),
                (self.model, clear.get("mdl") == self.model),
                (self.event, record.event == self.event),
                (self.type, record.type == self.type),
                (self.decision, clear.get("dec") == self.decision),
                (self.status, self.status in (_http(clear), clear.get("st"), clear.get("code"))),
                (self.request, self.request in _names_of_request(record)),
                (self.address, clear.get("ipx") == self.address),
                (self.agent, clear.get("uax") == self.agent),
                (self.email, clear.get("emx") == self.email),
            )
            if wanted is not None
        )

    def needles(self) -> list[bytes]:
        """Bytes of which each stands in every line that fits: a line of the log has one form, so this needs no parser."""
        texts = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in {"since", "until", "named", "also"} and not (field.name == "person" and self.also)
        }
        # A user may stand behind `user:`, and a status may be a number.
        return [
            _as_json(text)[1:-1] if name in {"user", "status"} else _as_json(text)
            for name, text in texts.items()
            if text is not None
        ]


def _as_json(text: str) -> bytes:
    # What is no text of UTF-8 stands in no line.
    return orjson.dumps(text.encode("utf-8", "replace").decode())


def _is_by(clear: Mapping[str, ClearValue], user: str | None) -> bool:
    return clear.get("usr") == user or clear.get("by") == f"user:{user}"


def _is_about(record: RecordLine, identifier: str | None) -> bool:
    """Whether something was done to it: a change, a login, an erasure."""
    return record.type not in EXCHANGE_TYPES and identifier in map(record.clear.get, ABOUT)


def _http(clear: Mapping[str, ClearValue]) -> str | None:
    status = clear.get("http")
    return None if status is None else str(status)


def _names_of_request(record: RecordLine) -> tuple[ClearValue, ...]:
    clear = record.clear
    return record.exchange_id, record.id, clear.get("sid"), clear.get("pt_of"), clear.get("request")


def select(lines: Iterable[StoredLine], wanted: Selection) -> Iterator[tuple[StoredLine, RecordLine]]:
    """Those of `lines` that are records which fit, in order. A line that no parser accepts fits nothing."""
    since, until = wanted.since and wanted.since.encode(), wanted.until and wanted.until.encode()
    needles = wanted.needles()
    for line in lines:
        raw = line.raw
        if not raw.startswith(_RECORD_OPENING) or not all(needle in raw for needle in needles):
            continue
        if since or until:
            begin = raw.find(_TIME_OPENING, 0, _TIME_SOUGHT_WITHIN) + len(_TIME_OPENING)
            t = raw[begin : begin + _TIME_BYTES]
            if (since and t < since) or (until and t >= until):
                continue
        record = _record_in(raw)
        if record is not None and wanted.fits(record):
            yield line, record


def _record_in(raw: bytes) -> RecordLine | None:
    try:
        line = parse_line(raw)
    except (FormatError, NewerVersion):
        return None
    return line if isinstance(line, RecordLine) else None


def newest_records(
    segments: Sequence[SegmentFile],
    wanted: Selection,
    limit: int,
    *,
    begin: int = 0,
    watch: Watch = iter,
) -> list[ClearRow]:
    """The last `limit` records that fit, of lines from `begin` on, oldest first. Reads segments from the newest back, until there
    are enough. `watch` is given every line that is looked at.
    """
    found: list[ClearRow] = []
    for place in range(len(segments) - 1, -1, -1):
        following = segments[place + 1] if place + 1 < len(segments) else None
        lines = watch(stored_lines_of(segments[place], following))
        first = next(lines, None)
        if first is None:
            continue
        rows = rows_of(select((line for line in chain([first], lines) if line.n >= begin), wanted))
        found[:0] = deque(rows, maxlen=limit - len(found))
        if len(found) == limit or first.n <= begin:
            break
    return found


def rows_of(selected: Iterable[tuple[StoredLine, RecordLine]]) -> Iterator[ClearRow]:
    return (row_of_record(record, line.file.number, line.raw) for line, record in selected)
