"""What readers may ask of the log, and the answers: rows of clear metadata, raw lines, the state of the log.

One request is one JSON object; its answer is a bounded list of JSON lines whose last says `end` or `error`. Nothing is
answered that does not stand where it should (`log_view`). Answers are made whole before they are sent, so that a slow
reader holds no file, no lock and no turn.

    tail    {after, limit}             rows of `rec` and `cp` lines in order of `n`, from behind line `after` (-1: the first)
    search  {filters, limit, order, before | after}
    lines   {n: [...], h: [...]?}      raw lines by index; with `h`, only if these are their hashes
    find    {id, after?, limit}        raw record lines whose id, exchange, start or whole is `id`
    state   {}                         what the log holds, and what its writer says of itself
    reveal  {id, reader, code, by}     bodies in clear (`reveals`)
    blind   {name, value}              the index under which records with this address, agent or e-mail stand (`reveals`)
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson

from secure_llm_proxy.audit.format import CheckpointLine, RecordLine, base64_text
from secure_llm_proxy.audit.log_view import CLOCK_SLACK_S, ChainBroken, LogView, PlacedLine, started_s
from secure_llm_proxy.audit.segments import SegmentFile

ROWS_MAX = 1_000
ANSWER_BYTES_MAX = 2 << 20
_ROWS = 200
# After this much work an answer ends, and says where to go on.
_WORK_S = 5.0
# What is looked for by name alone may be anywhere.
_FIND_S = 20.0
_TURN_S = 15.0
_SCANS = 2
_LOOKS = 2
_NUMBERS_MAX = 1_000
_TEXT_MAX = 256
_CLEAR_FILTERS_MAX = 16
_LOOKED_AT = 256

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_ULID = re.compile(r"(?:[a-z]{2,8}_)?([0-7][0-9A-HJKMNP-TV-Z]{9})[0-9A-HJKMNP-TV-Z]{16}")
_CROCKFORD = {digit: value for value, digit in enumerate("0123456789ABCDEFGHJKMNPQRSTVWXYZ")}

Request = Mapping[str, object]


class Refusal(Exception):
    """The request is answered with an error. `text` is a sentence for who asked."""

    def __init__(self, code: str, text: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.retry_after_s = retry_after_s


BUSY: Final = "busy"
INVALID: Final = "invalid_value"
NOT_FOUND: Final = "not_found"
BROKEN: Final = "audit_broken"
UNAVAILABLE: Final = "audit_unavailable"


def error_line(code: str, text: str, *, retry_after_s: int | None = None) -> bytes:
    members: dict[str, object] = {"code": code, "text": text}
    if retry_after_s is not None:
        members["retry_after_s"] = retry_after_s
    return orjson.dumps({"error": members}) + b"\n"


class Readings:
    """Answers for many threads at once; few of them work at the same time, the others wait their turn (15 s)."""

    def __init__(self, view: LogView, log: str) -> None:
        self._view = view
        self._log = log
        self._scans = threading.BoundedSemaphore(_SCANS)
        self._looks = threading.BoundedSemaphore(_LOOKS)

    def answer(self, request: Request) -> list[bytes]:
        """The lines of the answer. Raises `Refusal`."""
        try:
            match request.get("op"):
                case "tail":
                    with _turn_of(self._looks):
                        return self._tail(request)
                case "lines":
                    with _turn_of(self._looks):
                        return self._lines(request)
                case "search":
                    with _turn_of(self._scans):
                        return self._search(request)
                case "find":
                    with _turn_of(self._scans):
                        return self._find(request)
                case "state":
                    return self.state({})
                case _:
                    raise Refusal(INVALID, "`op` is none that is known here.")
        except ChainBroken as broken:
            raise Refusal(BROKEN, f"The log is damaged: {broken}. Run `manage.py audit verify`.") from None

    # --- tail ---------------------------------------------------------------------------------------------------------

    def _tail(self, request: Request) -> list[bytes]:
        after = _number(request, "after", -1, least=-1)
        answer = _Answer(_number(request, "limit", _ROWS, least=1, most=ROWS_MAX))
        deadline = time.monotonic() + _WORK_S
        files = self._view.files()
        reached = after
        position = self._view.position_of(files, after + 1)
        while position < len(files):
            last: PlacedLine | None = None
            try:
                for line in self._view.walk(files, position, after + 1):
                    answer.add(_row_of(line))
                    last, reached = line, line.n
                    if answer.full or time.monotonic() > deadline:
                        self._view.resume_behind(line)
                        return answer.ended(after=reached, more=True)
            except ChainBroken as broken:
                # What stands behind the break in this segment is not shown; the reader is told, and goes on behind it.
                return answer.ended(**self._over_the_break(files, position, reached, broken))
            if last is not None:
                self._view.resume_behind(last)
            position += 1
        return answer.ended(after=reached, more=False)

    def _over_the_break(
        self, files: list[SegmentFile], position: int, reached: int, broken: ChainBroken
    ) -> dict[str, object]:
        told = {"seg": broken.segment, "n": broken.n, "off": broken.offset, "what": broken.what}
        for file in files[position + 1 :]:
            try:
                following = self._view.segment(file)
            except ChainBroken:
                continue
            if following is not None:
                return {"after": max(reached, following.first - 1), "more": True, "broken": told}
        return {"after": reached, "more": False, "broken": told}

    # --- lines --------------------------------------------------------------------------------------------------------

    def _lines(self, request: Request) -> list[bytes]:
        numbers = request.get("n")
        if not isinstance(numbers, list) or not 0 < len(numbers) <= _NUMBERS_MAX:
            raise Refusal(INVALID, f"`n` is no list of 1 to {_NUMBERS_MAX} numbers.")
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise Refusal(INVALID, "`n` holds something else than line numbers.")
        hashes = request.get("h")
        if hashes is not None and (not isinstance(hashes, list) or len(hashes) != len(numbers)):
            raise Refusal(INVALID, "`h` is no list as long as `n`.")
        expected = dict(zip(numbers, hashes, strict=True)) if hashes is not None else {}
        answer = _Answer(_NUMBERS_MAX)
        deadline = time.monotonic() + _WORK_S
        files = self._view.files()
        wanted = deque(sorted(set(numbers)))
        late = False
        while wanted and not (answer.full or late):
            asked = wanted[0]
            for line in self._from(files, asked):
                # Lines that follow each other are read in one go.
                if not wanted or line.n != wanted[0] or answer.full or late:
                    break
                if expected.get(line.n, base64_text(line.h)) != base64_text(line.h):
                    raise ChainBroken(line.segment.file.number, line.n, line.offset, "the line has another hash")
                line.parsed()
                answer.add(_raw_row(line))
                wanted.popleft()
                self._view.resume_behind(line)
                late = time.monotonic() > deadline
            if wanted and wanted[0] == asked:
                wanted.popleft()
                late = late or time.monotonic() > deadline
        return answer.ended(more=bool(wanted), rest=list(wanted))

    def _from(self, files: list[SegmentFile], n: int) -> Iterator[PlacedLine]:
        """The lines from `n` on to the end of its segment; none when the log does not hold it."""
        position = self._view.position_of(files, n)
        if position < len(files):
            yield from self._view.walk(files, position, n)

    # --- search -------------------------------------------------------------------------------------------------------

    def _search(self, request: Request) -> list[bytes]:
        filters = _filters_of(request)
        limit = _number(request, "limit", _ROWS, least=1, most=ROWS_MAX)
        order = request.get("order", "newest")
        files = self._view.files()
        deadline = time.monotonic() + _WORK_S
        if order == "newest":
            before = _number(request, "before", 1 << 62, least=0)
            return self._search_newest(files, filters, limit, before, deadline)
        if order == "oldest":
            after = _number(request, "after", -1, least=-1)
            return self._search_oldest(files, filters, limit, after, deadline)
        raise Refusal(INVALID, "`order` is neither newest nor oldest.")

    def _search_oldest(
        self, files: list[SegmentFile], filters: _Filters, limit: int, after: int, deadline: float
    ) -> list[bytes]:
        answer = _Answer(limit)
        reached, looked_at = after, 0
        broken: list[dict[str, object]] = []
        for position in range(self._view.position_of(files, after + 1), len(files)):
            if not filters.may_be_in(files, position):
                continue
            try:
                for line in self._view.walk(files, position, after + 1):
                    reached = line.n
                    row = filters.row_of(line)
                    if row is not None:
                        answer.add(row)
                    looked_at += 1
                    late = looked_at % _LOOKED_AT == 0 and time.monotonic() > deadline
                    if answer.full or late:
                        self._view.resume_behind(line)
                        return answer.ended(more=True, next=reached, broken=broken)
            except ChainBroken as error:
                broken.append(_told_of(error))
        return answer.ended(more=False, next=reached, broken=broken)

    def _search_newest(
        self, files: list[SegmentFile], filters: _Filters, limit: int, before: int, deadline: float
    ) -> list[bytes]:
        answer = _Answer(limit)
        broken: list[dict[str, object]] = []
        for position in range(len(files) - 1, -1, -1):
            if not filters.may_be_in(files, position):
                continue
            # The latest of this segment that still fit; those before them are asked for with `before`.
            found: deque[tuple[int, bytes]] = deque(maxlen=limit - answer.rows)
            kept = dropped = 0
            known = None
            try:
                known = self._view.segment(files[position])
                if known is None or known.first >= before:
                    continue
                for line in self._view.walk(files, position):
                    if line.n >= before:
                        break
                    row = filters.row_of(line)
                    if row is None:
                        continue
                    if len(found) == found.maxlen:
                        kept -= len(found[0][1])
                        dropped += 1
                    found.append((line.n, row))
                    kept += len(row)
                    while len(found) > 1 and kept > ANSWER_BYTES_MAX - answer.size:
                        kept -= len(found.popleft()[1])
                        dropped += 1
            except ChainBroken as error:
                broken.append(_told_of(error))
            for _, row in reversed(found):
                answer.add(row)
            if dropped or answer.full:
                return answer.ended(more=True, next=found[0][0] if found else before, broken=broken)
            if time.monotonic() > deadline and position and known is not None:
                return answer.ended(more=True, next=known.first, broken=broken)
        return answer.ended(more=False, broken=broken)

    # --- find ---------------------------------------------------------------------------------------------------------

    def _find(self, request: Request) -> list[bytes]:
        identifier = _text(request, "id")
        answer = _Answer(_number(request, "limit", _ROWS, least=1, most=ROWS_MAX))
        after = _number(request, "after", -1, least=-1)
        broken: list[ChainBroken] = []
        reached = after
        for line in self.records_named(identifier, broken, after=after):
            reached = line.n
            answer.add(_raw_row(line))
            if answer.full:
                return answer.ended(more=True, after=reached, broken=[_told_of(error) for error in broken])
        if not answer.rows and after == -1:
            raise broken[0] if broken else Refusal(NOT_FOUND, "No record has this id.")
        return answer.ended(more=False, after=reached, broken=[_told_of(error) for error in broken])

    def records_named(self, identifier: str, broken: list[ChainBroken], *, after: int = -1) -> Iterator[PlacedLine]:
        """Record lines whose own id, exchange, start or whole is `identifier`, oldest first. What of a segment can't be
        shown is added to `broken`.

        Names that carry a time are looked for around it first, and everywhere only when nothing is there. Raises `Refusal`
        after 20 s: the log is too long for that.
        """
        files = self._view.files()
        deadline = time.monotonic() + _FIND_S
        moment = _moment_of(identifier)
        near = [position for position in range(len(files)) if moment is None or _is_near(files, position, moment)]
        found = False
        for line in self._named_in(files, near, identifier, after, broken, deadline):
            found = True
            yield line
        if not found and len(near) < len(files):
            looked_at = set(near)
            rest = [position for position in range(len(files)) if position not in looked_at]
            yield from self._named_in(files, rest, identifier, after, broken, deadline)

    def _named_in(
        self,
        files: list[SegmentFile],
        positions: Iterable[int],
        identifier: str,
        after: int,
        broken: list[ChainBroken],
        deadline: float,
    ) -> Iterator[PlacedLine]:
        looked_at = 0
        needle = orjson.dumps(identifier)
        for position in positions:
            try:
                for line in self._view.walk(files, position, after + 1):
                    looked_at += 1
                    if looked_at % _LOOKED_AT == 0 and time.monotonic() > deadline:
                        raise Refusal(UNAVAILABLE, "The log is too long to be looked through for this name alone.")
                    if needle not in line.raw:
                        continue
                    record = line.parsed()
                    if isinstance(record, RecordLine) and identifier in _names_of(record):
                        yield line
            except ChainBroken as error:
                broken.append(error)

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self, more: Mapping[str, object]) -> list[bytes]:
        """What the log holds, and `more`."""
        files = self._view.files()
        durable = self._view.durable()
        told = {
            "log": self._log,
            "lines": None if durable is None else durable.lines,
            "segments": len(files),
            "oldest": files[0].number if files else None,
            "newest": files[-1].number if files else None,
        }
        return [_written({"end": True, **told, **more})]


# --- filters ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Filters:
    """What a row must be. `needles` stand in the bytes of every line that fits: most lines are judged by these alone."""

    since: str | None
    until: str | None
    since_s: float | None
    until_s: float | None
    type: str | None
    event: str | None
    id: str | None
    exchange_id: str | None
    user: str | None
    clear: Mapping[str, object]
    needles: tuple[bytes, ...]

    def may_be_in(self, files: list[SegmentFile], position: int) -> bool:
        """Whether the time of a segment, give or take two days of a clock that was wrong, meets the one asked for."""
        if self.until_s is not None and started_s(files[position]) > self.until_s + CLOCK_SLACK_S:
            return False
        if self.since_s is None or position + 1 == len(files):
            return True
        return started_s(files[position + 1]) >= self.since_s - CLOCK_SLACK_S

    def row_of(self, line: PlacedLine) -> bytes | None:
        """The row when it fits, else None."""
        raw = line.raw
        if not raw.startswith(b'{"k":"rec",'):
            return None
        for needle in self.needles:
            if needle not in raw:
                return None
        record = line.parsed()
        return _row(line, record) if isinstance(record, RecordLine) and self._fits(record) else None

    def _fits(self, record: RecordLine) -> bool:
        clear = record.clear
        return (
            (self.since is None or record.t >= self.since)
            and (self.until is None or record.t < self.until)
            and (self.type is None or record.type == self.type)
            and (self.event is None or record.event == self.event)
            and (self.id is None or record.id == self.id)
            and (self.exchange_id is None or record.exchange_id == self.exchange_id)
            and (
                self.user is None
                or self.user in (clear.get("usr"), clear.get("subject"))
                or clear.get("by") == f"user:{self.user}"
            )
            # 1 is not True here
            and all(
                name in clear and clear[name] == value and type(clear[name]) is type(value)
                for name, value in self.clear.items()
            )
        )


_FILTERS = frozenset({"since", "until", "type", "event", "id", "rid", "user", "clear"})


def _filters_of(request: Request) -> _Filters:
    given = request.get("filters", {})
    if not isinstance(given, dict) or not _FILTERS.issuperset(given):
        raise Refusal(INVALID, f"`filters` is no object with some of {', '.join(sorted(_FILTERS))}.")
    clear = given.get("clear", {})
    if not isinstance(clear, dict) or len(clear) > _CLEAR_FILTERS_MAX:
        raise Refusal(INVALID, f"`clear` is no object of at most {_CLEAR_FILTERS_MAX} members.")
    for name, value in clear.items():
        if not _NAME.fullmatch(name) or not (value is None or isinstance(value, str | int)):
            raise Refusal(INVALID, "`clear` asks for what no record can hold.")
    texts = {name: _text(given, name) for name in ("type", "event", "id", "rid", "user") if given.get(name) is not None}
    since, until = _moment(given, "since"), _moment(given, "until")
    wire = {"type": "ty", "event": "ev", "id": "id", "rid": "rid"}
    members = {wire[name]: text for name, text in texts.items() if name in wire} | clear
    needles = [orjson.dumps({name: value})[1:-1] for name, value in members.items()]
    if "user" in texts:
        needles.append(orjson.dumps(texts["user"])[1:])
    return _Filters(
        since=since,
        until=until,
        since_s=None if since is None else _seconds(since),
        until_s=None if until is None else _seconds(until),
        type=texts.get("type"),
        event=texts.get("event"),
        id=texts.get("id"),
        exchange_id=texts.get("rid"),
        user=texts.get("user"),
        clear=clear,
        needles=tuple(needles),
    )


def _moment(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise Refusal(INVALID, f"`{name}` is no time like 2026-11-21T00:12:03.000000Z.")
    _seconds(value)
    return value


def _seconds(t: str) -> float:
    try:
        return datetime.strptime(t, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
    except (ValueError, OverflowError):
        raise Refusal(INVALID, "A time is none of the calendar.") from None


# --- values of a request ----------------------------------------------------------------------------------------------


def _number(request: Mapping[str, object], name: str, default: int, *, least: int, most: int = 1 << 62) -> int:
    value = request.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise Refusal(INVALID, f"`{name}` is no whole number from {least} to {most}.")
    return value


def _text(request: Mapping[str, object], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_MAX:
        raise Refusal(INVALID, f"`{name}` is no text of 1 to {_TEXT_MAX} characters.")
    return value


def _moment_of(identifier: str) -> float | None:
    """Unix time that a name of ours was made at; None when it carries none."""
    match = _ULID.fullmatch(identifier)
    if match is None:
        return None
    milliseconds = 0
    for digit in match[1]:
        milliseconds = milliseconds << 5 | _CROCKFORD[digit]
    return milliseconds / 1000


def _is_near(files: list[SegmentFile], position: int, moment: float) -> bool:
    if started_s(files[position]) > moment + CLOCK_SLACK_S:
        return False
    return position + 1 == len(files) or started_s(files[position + 1]) >= moment - CLOCK_SLACK_S


# --- rows -------------------------------------------------------------------------------------------------------------


class _Answer:
    """Rows until there are enough, or they are 2 MiB long."""

    def __init__(self, limit: int) -> None:
        self.rows = 0
        self.size = 0
        self._limit = limit
        self._lines: list[bytes] = []

    @property
    def full(self) -> bool:
        return self.rows >= self._limit or self.size >= ANSWER_BYTES_MAX

    def add(self, row: bytes | None) -> None:
        if row is not None:
            self._lines.append(row)
            self.rows += 1
            self.size += len(row)

    def ended(self, **members: object) -> list[bytes]:
        return [*self._lines, _written({"end": True, **members})]


def _row_of(line: PlacedLine) -> bytes | None:
    """The row of a record or checkpoint; None for the lines that hold the log together."""
    parsed = line.parsed()
    if isinstance(parsed, RecordLine):
        return _row(line, parsed)
    if isinstance(parsed, CheckpointLine):
        return _written(
            {"k": "cp", **_place(line), "t": parsed.t, "root": base64_text(parsed.root), "note": parsed.note}
        )
    return None


def _row(line: PlacedLine, record: RecordLine) -> bytes:
    return _written(record_members(line, record))


def record_members(line: PlacedLine, record: RecordLine) -> dict[str, object]:
    """A record's row: where it stands and what it says in clear."""
    return {
        "k": "rec",
        **_place(line),
        "t": record.t,
        "ty": record.type,
        "ev": record.event,
        "id": record.id,
        "rid": record.exchange_id,
        "kid": record.kid,
        "clear": record.clear,
    }


def _raw_row(line: PlacedLine) -> bytes:
    return _written({"k": "line", **_place(line), "raw": line.raw.decode()})


def _place(line: PlacedLine) -> dict[str, object]:
    return {
        "n": line.n,
        "seg": line.segment.file.number,
        "off": line.offset,
        "len": len(line.raw),
        "h": base64_text(line.h),
    }


def _told_of(broken: ChainBroken) -> dict[str, object]:
    return {"seg": broken.segment, "n": broken.n, "off": broken.offset, "what": broken.what}


def _names_of(record: RecordLine) -> tuple[object, ...]:
    return record.id, record.exchange_id, record.clear.get("sid"), record.clear.get("pt_of")


def _written(members: Mapping[str, object]) -> bytes:
    return orjson.dumps(members) + b"\n"


@contextmanager
def _turn_of(turns: threading.BoundedSemaphore) -> Iterator[None]:
    if not turns.acquire(timeout=_TURN_S):
        raise Refusal(BUSY, "Too many readers ask at once. Try again shortly.", retry_after_s=2)
    try:
        yield
    finally:
        turns.release()
