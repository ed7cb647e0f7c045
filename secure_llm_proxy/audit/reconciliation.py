"""nginx's access log held to the audit log: two witnesses of the same requests, who must tell the same.

Every request of the data plane that a worker answered must be on record, begun and ended or refused, with the status that
nginx saw; and nothing may be on record that nginx did not see. So a worker that was taken over can't answer unrecorded, and
nobody who can only change one of the two can hide a request.

Both are read once, line by line, into a database in a folder of this run, and compared there: memory stays flat whatever they
hold (1,000,000 requests: docs/audit.md). Lines of the log are believed as they stand: that they are what was written is for
`verify`.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import sqlite3
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol, TypeVar, cast

import orjson

from secure_llm_proxy.audit.reading import stored_lines
from secure_llm_proxy.audit.segments import SegmentFile, started_of
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus

STANDARD_INPUT: Final = Path("-")
"""Stands for the process's standard input in a list of access logs."""

_LINE_BYTES_MAX: Final = 1024 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"
_BATCH: Final = 5000
_ERROR: Final = 400
_UNAVAILABLE: Final = 503
# nginx's own: the client left before it was answered, over HTTP/1.1 and over a stream of HTTP/2 that was reset.
_LEFT: Final = frozenset({499, 0})
# A refusal that lets nothing through is not waited for, so nginx's line may be there first.
_REFUSAL_LATE_S: Final = 5.0
# Longer than any exchange may run: what is open for longer has no end.
_LONGEST_S: Final = 3600.0
# Clocks that differ, and segments whose names round to the second.
_SLACK_S: Final = 2.0
_SEGMENT_SLACK_S: Final = 600.0
_EDGE_ID = re.compile(r"[0-9a-f]{32}")
_OPENING = re.compile(
    rb'\{"k":"rec","n":\d+,"t":"([^"]+)","m":\d+,"w":"[^"]*","ty":"(llm\.start|llm\.end|llm\.refused)"'
)
_OTHER_HOSTS_PLACE = Path("/var/tmp")  # noqa: S108  a private folder is made in it; /tmp may be memory

_TABLES: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -32768;
PRAGMA temp_store = FILE;
CREATE TABLE lines (
    edge, exchange TEXT, began REAL, ended REAL, status INTEGER, said INTEGER, answered INTEGER, recorded INTEGER,
    file INTEGER, line INTEGER
);
CREATE TABLE exchanges (
    exchange TEXT PRIMARY KEY, eid, began REAL, starts INTEGER, refusals INTEGER, ended REAL, ends INTEGER, orphan INTEGER,
    http INTEGER, stream INTEGER
) WITHOUT ROWID;
"""
_INDEXES: Final = """
CREATE INDEX lines_by_exchange ON lines (exchange) WHERE exchange IS NOT NULL;
CREATE INDEX lines_by_edge ON lines (edge);
CREATE INDEX exchanges_by_eid ON exchanges (eid) WHERE eid IS NOT NULL;
"""
_ADD_LINE: Final = "INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_RECORD: Final = """
INSERT INTO exchanges VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (exchange) DO UPDATE SET
    eid = coalesce(eid, excluded.eid),
    began = coalesce(began, excluded.began),
    starts = starts + excluded.starts,
    refusals = refusals + excluded.refusals,
    ended = coalesce(excluded.ended, ended),
    ends = ends + excluded.ends,
    orphan = max(orphan, excluded.orphan),
    http = coalesce(excluded.http, http),
    stream = max(stream, excluded.stream)
"""
_LINES_WITH_RECORDS: Final = """
SELECT l.edge, l.exchange, l.began, l.ended, l.status, l.said, l.answered, l.recorded, l.file, l.line,
       e.exchange, e.eid, e.began, e.starts, e.refusals, e.ended, e.ends, e.orphan, e.http, e.stream
FROM lines AS l LEFT JOIN exchanges AS e
    ON e.exchange = coalesce(l.exchange, (SELECT x.exchange FROM exchanges AS x WHERE x.eid = l.edge LIMIT 1))
"""
_RECORDS_WITHOUT_LINES: Final = """
SELECT e.exchange, e.eid, e.began, e.starts, e.refusals, e.ended, e.ends, e.orphan, e.http, e.stream
FROM exchanges AS e
WHERE NOT EXISTS (SELECT 1 FROM lines AS l WHERE l.exchange = e.exchange)
    AND (e.eid IS NULL OR NOT EXISTS (SELECT 1 FROM lines AS l WHERE l.edge = e.eid))
"""
_TWICE: Final = """
SELECT exchange, edge, max(ended), status, count(*), count(DISTINCT edge), max(file), max(line)
FROM lines WHERE exchange IS NOT NULL GROUP BY exchange HAVING count(*) > 1
"""


class Kind(StrEnum):
    """In what the two differ."""

    UNRECORDED = "unrecorded"
    """A worker answered; nothing is on record."""
    UNFINISHED = "unfinished"
    """It is on record that it began, and not how it ended."""
    UNSEEN = "unseen"
    """On record as come through nginx, which has not seen it."""
    STATUS = "status"
    """The record has another status than nginx saw."""
    TWICE = "twice"
    """Two requests under one id."""
    MISNAMED = "misnamed"
    """The record names another line than the one that names it."""
    AROUND = "around"
    """On record as not come through nginx, where all must."""
    UNREADABLE = "unreadable"
    """A line of the access log that is none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`at` is the time of the request's end as nginx has it, of its record where there is no line."""

    kind: Kind
    what: str
    at: str | None = None
    exchange: str | None = None
    edge_id: str | None = None
    status: int | None = None
    recorded_status: int | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What is compared: requests that began from `since` on and before `until` (Unix seconds); None: as far as the logs go.

    `grace_s`: a record without its line, or a line whose exchange has no end yet, may be that young at the moment of reading.
    At most `listed_max` differences are listed, all are counted.
    """

    since: float | None = None
    until: float | None = None
    grace_s: float = 60.0
    all_through_nginx: bool = False
    listed_max: int = 100


@dataclass(slots=True)
class Reconciliation:
    """What was compared and how it agrees. `lines` are all of the access log, `requests` those of the data plane that a worker
    was asked for in the window; `agreeing` of them are on record as they should be.
    """

    files: int = 0
    lines: int = 0
    requests: int = 0
    agreeing: int = 0
    answered_by_nginx: int = 0
    unanswered: int = 0
    """A worker was asked and neither answered nor recorded anything: it was away, or the client left at once."""
    refused_unrecorded: int = 0
    """Answered 503 without a record: the audit log took none at that time."""
    under_way: int = 0
    before_log: int = 0
    """Older than the first line that is left of the audit log."""
    exchanges: int = 0
    around_nginx: int = 0
    first: str | None = None
    last: str | None = None
    counts: Counter[Kind] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return not self.counts


class AccessLine(NamedTuple):
    """A line of an access log before anything was read in it. `file` counts from 0, `number` from 1."""

    file: int
    number: int
    raw: bytes


class _Sized(Protocol):
    @property
    def raw(self) -> bytes: ...


Line = TypeVar("Line", bound=_Sized)


class Watch(Protocol):
    """Is given the lines that are looked at, and gives them on: to tell somebody who waits how far it is."""

    def __call__(self, lines: Iterable[Line]) -> Iterator[Line]: ...


def reconcile(
    access_logs: Sequence[Path],
    segments: Sequence[SegmentFile],
    terms: Terms,
    *,
    must_be_recorded: Callable[[str, str], bool],
    watch: Watch,
) -> Reconciliation:
    """Compare. `must_be_recorded` says of a method and a path, as they were asked for, whether such a request belongs on record.

    Raises `OperatorError` when one of the two can't be read, or is no such log.
    """
    with (
        tempfile.TemporaryDirectory(prefix="slp-reconcile-", dir=_workspace()) as folder,
        closing(sqlite3.connect(Path(folder) / "requests.db", isolation_level=None)) as database,
    ):
        try:
            return _Comparison(database, access_logs, segments, terms, must_be_recorded, watch).result()
        except sqlite3.OperationalError as error:
            raise OperatorError(
                f"The comparison needs room in {folder} (300 bytes a request): {error}. Set TMPDIR to a place that has it."
            ) from None


def _workspace() -> Path | None:
    chosen = os.environ.get("TMPDIR")
    if chosen:
        return Path(chosen)
    return _OTHER_HOSTS_PLACE if os.access(_OTHER_HOSTS_PLACE, os.W_OK | os.X_OK) else None


class _Seen(NamedTuple):
    """A request as nginx tells it. `said` is the worker's own status."""

    edge: str | bytes
    exchange: str | None
    began: float
    ended: float
    status: int
    said: int | None
    answered: int
    recorded: int
    file: int
    line: int


class _Recorded(NamedTuple):
    """An exchange as the audit log tells it."""

    exchange: str
    eid: str | bytes | None
    began: float | None
    starts: int
    refusals: int
    ended: float | None
    ends: int
    orphan: int
    http: int | None
    stream: int


class _Comparison:
    def __init__(
        self,
        database: sqlite3.Connection,
        access_logs: Sequence[Path],
        segments: Sequence[SegmentFile],
        terms: Terms,
        must_be_recorded: Callable[[str, str], bool],
        watch: Watch,
    ) -> None:
        self._database = database
        self._access_logs = access_logs
        self._segments = segments
        self._terms = terms
        self._must_be_recorded = must_be_recorded
        self._watch = watch
        self._known_doors: dict[tuple[str, str], bool] = {}
        self._told = Reconciliation(files=len(access_logs))
        self._first_began: float | None = None
        self._first_ended: float | None = None
        self._last_ended: float | None = None
        self._read_at = 0.0

    def result(self) -> Reconciliation:
        self._database.executescript(_TABLES)
        self._write(_ADD_LINE, self._requests())
        # From here on: whatever nginx told until now, the log holds already, but for what is not waited for.
        self._read_at = time.time()
        self._write(_ADD_RECORD, self._records())
        self._database.executescript(_INDEXES)
        log_began = _unix_of_start(self._segments[0]) if self._segments else float("inf")
        for row in self._database.execute(_LINES_WITH_RECORDS):
            split = len(_Seen._fields)
            record = _Recorded(*row[split:]) if row[split] is not None else None
            self._judge_line(_Seen(*row[:split]), record, log_began)
        for row in self._database.execute(_RECORDS_WITHOUT_LINES):
            self._judge_record(_Recorded(*row))
        for exchange, edge, ended, status, count, edges, file, line in self._database.execute(_TWICE):
            what = (
                f"{count} lines of the access log name this exchange"
                if edges > 1
                else f"the same line was read {count} times; is a file given twice?"
            )
            self._differ(Kind.TWICE, what, ended, exchange, edge, status, None, (file, line))
        (self._told.exchanges,) = self._database.execute("SELECT count(*) FROM exchanges").fetchone()
        self._told.first, self._told.last = _moment(self._first_ended), _moment(self._last_ended)
        return self._told

    def _write(self, statement: str, rows: Iterator[tuple[object, ...]]) -> None:
        self._database.execute("BEGIN")
        while batch := list(islice(rows, _BATCH)):
            self._database.executemany(statement, batch)
        self._database.execute("COMMIT")

    # --- nginx's log --------------------------------------------------------------------------------------------------

    def _requests(self) -> Iterator[tuple[object, ...]]:
        told = self._told
        for line in self._watch(_access_lines(self._access_logs)):
            told.lines += 1
            seen = self._seen(line)
            if seen is None:
                place = (line.file, line.number)
                self._differ(
                    Kind.UNREADABLE, "no line of nginx's log format slp_json", None, None, None, None, None, place
                )
                continue
            self._first_began = min(seen.began, self._first_began or seen.began)
            self._first_ended = min(seen.ended, self._first_ended or seen.ended)
            self._last_ended = max(seen.ended, self._last_ended or seen.ended)
            if seen.said is None and seen.exchange is None:
                told.answered_by_nginx += self._is_in_window(seen.began)
                continue
            yield seen
        if told.lines and told.counts[Kind.UNREADABLE] == told.lines:
            raise OperatorError(
                f"{self._access_logs[0]} is not in nginx's log format slp_json (deploy/nginx/http.conf), and so can't be compared."
            )

    def _seen(self, line: AccessLine) -> _Seen | None:
        try:
            told = orjson.loads(line.raw)
        except orjson.JSONDecodeError:
            try:
                # nginx writes bytes beyond ASCII as they came.
                told = orjson.loads(line.raw.decode("utf-8", "replace"))
            except orjson.JSONDecodeError:
                return None
        try:
            ended = float(told["unix"]) if "unix" in told else datetime.fromisoformat(told["time"]).timestamp()
            edge: str = told["edge_id"]
            exchange: str = told["exchange"]
            said: str = told["worker_status"]
            taken: str | None = told.get("worker_bytes")
            answered = bool(exchange) if taken is None else any(map(int, re.findall(r"\d+", taken)))
            statuses = re.findall(r"\d{3}|-", said)
            return _Seen(
                _packed(edge),
                exchange or None,
                ended - float(told["seconds"]),
                ended,
                int(told["status"]),
                None if not statuses else int(statuses[-1]) if statuses[-1] != "-" else 0,
                answered,
                self._is_door(str(told["method"]), str(told["path"])),
                line.file,
                line.number,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def _is_door(self, method: str, path: str) -> bool:
        asked = method, path
        known = self._known_doors.get(asked)
        if known is None:
            if len(self._known_doors) >= _BATCH:
                self._known_doors.clear()
            known = self._known_doors[asked] = self._must_be_recorded(method, path)
        return known

    # --- the audit log ------------------------------------------------------------------------------------------------

    def _records(self) -> Iterator[tuple[object, ...]]:
        begins = [moment for moment in (self._first_began, self._terms.since) if moment is not None]
        if not begins:
            # There is nothing to hold the log to.
            return
        begin = min(begins) - _SLACK_S
        ends = [self._read_at, self._last_ended or 0.0]
        if self._terms.until is not None:
            ends = [min(self._read_at, max(self._terms.until, self._last_ended or 0.0))]
        stop = max(ends) + _LONGEST_S
        first, last = _rfc3339(begin).encode(), _rfc3339(stop).encode()
        for line in self._watch(stored_lines(_segments_between(self._segments, begin, stop))):
            opening = _OPENING.match(line.raw)
            if opening is not None and first <= opening[1] <= last:
                yield _record(opening[2].decode(), opening[1].decode(), orjson.loads(line.raw))

    # --- judging ------------------------------------------------------------------------------------------------------

    def _is_in_window(self, began: float) -> bool:
        terms = self._terms
        return (terms.since is None or began >= terms.since) and (terms.until is None or began < terms.until)

    def _judge_line(self, seen: _Seen, record: _Recorded | None, log_began: float) -> None:
        if not self._is_in_window(seen.began):
            return
        told = self._told
        told.requests += seen.recorded
        if record is None:
            if seen.recorded:
                self._judge_unrecorded(seen, log_began)
            return
        if record.eid is not None and record.eid != seen.edge:
            self._differ_about(Kind.MISNAMED, "its record names another request of nginx's", seen, record)
        elif record.starts and not record.ends and not record.orphan:
            if seen.ended >= self._read_at - self._terms.grace_s:
                told.under_way += 1
            else:
                self._differ_about(Kind.UNFINISHED, "on record as begun, and not how it ended", seen, record)
        elif record.starts > 1 or record.refusals > 1:
            self._differ_about(Kind.TWICE, "more than one request is on record under this id", seen, record)
        elif not _agrees(seen, record):
            self._differ_about(Kind.STATUS, f"nginx saw {seen.said}, {record.http} is on record", seen, record)
        else:
            told.agreeing += seen.recorded

    def _judge_unrecorded(self, seen: _Seen, log_began: float) -> None:
        told = self._told
        if seen.began < log_began - _SLACK_S:
            told.before_log += 1
        elif not seen.answered:
            told.unanswered += 1
        elif seen.said == _UNAVAILABLE:
            told.refused_unrecorded += 1
        elif (seen.said or 0) >= _ERROR and seen.ended >= self._read_at - _REFUSAL_LATE_S:
            told.under_way += 1
        else:
            self._differ_about(Kind.UNRECORDED, f"answered {seen.said} by a worker, and not on record", seen, None)

    def _judge_record(self, record: _Recorded) -> None:
        since = self._terms.since if self._terms.since is not None else self._first_ended
        if record.began is None or since is None or record.began < since or not self._is_in_window(record.began):
            return
        grace = self._read_at - self._terms.grace_s
        finished = bool(record.refusals or record.ends or record.orphan)
        young = (record.ended or record.began) >= grace if finished else record.began >= self._read_at - _LONGEST_S
        if record.began >= self._read_at:
            # Begun when the access log had been read.
            return
        if record.eid is None:
            self._told.around_nginx += 1
            if self._terms.all_through_nginx:
                what = "on record as not come through nginx"
                self._differ(Kind.AROUND, what, record.began, record.exchange, None, None, record.http, None)
        elif young:
            self._told.under_way += 1
        else:
            what = "on record as come through nginx, which has no line of it"
            self._differ(Kind.UNSEEN, what, record.began, record.exchange, record.eid, None, record.http, None)

    def _differ_about(self, kind: Kind, what: str, seen: _Seen, record: _Recorded | None) -> None:
        exchange = record.exchange if record is not None else seen.exchange
        http = record.http if record is not None else None
        self._differ(kind, what, seen.ended, exchange, seen.edge, seen.status, http, (seen.file, seen.line))

    def _differ(
        self,
        kind: Kind,
        what: str,
        at: float | None,
        exchange: str | None,
        edge: str | bytes | None,
        status: int | None,
        recorded_status: int | None,
        place: tuple[int, int] | None,
    ) -> None:
        self._told.counts[kind] += 1
        if len(self._told.differences) < self._terms.listed_max:
            named = f"{self._access_logs[place[0]]}:{place[1]}" if place is not None else None
            edge_id = edge.hex() if isinstance(edge, bytes) else edge
            self._told.differences.append(
                Difference(kind, what, _moment(at), exchange, edge_id, status, recorded_status, named)
            )


def _agrees(seen: _Seen, record: _Recorded) -> bool:
    """Whether the outcome on record is the one that nginx saw."""
    if seen.status in _LEFT or not seen.answered or record.orphan:
        # Nobody saw how it would have ended; or the worker died over it.
        return True
    if record.stream and seen.said == 200:  # noqa: PLR2004
        # The status went out before the end was known, which the stream itself tells.
        return True
    return seen.said == record.http


def _record(kind: str, t: str, told: dict[str, object]) -> tuple[object, ...]:
    """The row that adds one record to what is known of its exchange."""
    at = datetime.fromisoformat(t).timestamp()
    eid = told.get("eid")
    edge = _packed(eid) if isinstance(eid, str) else None
    exchange = str(told.get("rid"))
    http = told.get("http")
    if kind == AuditType.LLM_END:
        orphan = told.get("st") == EndStatus.ORPHAN
        return exchange, edge, None, 0, 0, at, int(not orphan), int(orphan), http, 0
    if kind == AuditType.REFUSED:
        return exchange, edge, at, 0, 1, at, 0, 0, http, 0
    return exchange, edge, at, 1, 0, None, 0, 0, None, int(told.get("str") is True)


def _packed(edge: str) -> str | bytes:
    """Half as long where it is nginx's own form."""
    return bytes.fromhex(edge) if _EDGE_ID.fullmatch(edge) else edge


def _access_lines(paths: Sequence[Path]) -> Iterator[AccessLine]:
    """Every whole line. What is behind the last line end is being written at this moment."""
    for place, path in enumerate(paths):
        try:
            with _opened(path) as stream:
                number = 0
                while raw := stream.readline(_LINE_BYTES_MAX):
                    number += 1
                    if raw.endswith(b"\n"):
                        yield AccessLine(place, number, raw[:-1])
                    elif len(raw) == _LINE_BYTES_MAX:
                        raise OperatorError(f"{path} has a line without an end, and so is no access log.")
        except (OSError, EOFError, zlib.error) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise OperatorError(f"{path} cannot be read: {reason}.") from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with nullcontext(sys.stdin.buffer) if path == STANDARD_INPUT else path.open("rb") as stream:
        # What stands for standard input in a test can't be looked into without being read.
        ahead = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", stream))
        if ahead.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
            with gzip.GzipFile(fileobj=ahead) as unpacked:
                yield cast("BinaryIO", unpacked)
        else:
            yield cast("BinaryIO", ahead)


def _segments_between(segments: Sequence[SegmentFile], begin: float, stop: float) -> list[SegmentFile]:
    """Those that may hold a record of that time."""
    first, last = started_of(_rfc3339(begin - _SEGMENT_SLACK_S)), started_of(_rfc3339(stop + _SEGMENT_SLACK_S))
    return [
        segment
        for place, segment in enumerate(segments)
        if segment.started <= last and (place + 1 == len(segments) or segments[place + 1].started >= first)
    ]


def _unix_of_start(segment: SegmentFile) -> float:
    return datetime.strptime(segment.started, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _rfc3339(unix_s: float) -> str:
    return rfc3339(datetime.fromtimestamp(max(0.0, unix_s), UTC))


def _moment(unix_s: float | None) -> str | None:
    return None if unix_s is None else _rfc3339(unix_s)
