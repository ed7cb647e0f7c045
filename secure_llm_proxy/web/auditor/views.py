"""Doors of `/audit`. A view reads what is asked, records the look, and hands out what the audit room computes.

Nothing that was asked wrongly is recorded; everything that is shown was recorded before. Two reports or exports run at a
time in a worker; a third is told to come back.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import gevent
import orjson
from flask import Blueprint, Response
from gevent.lock import BoundedSemaphore

from secure_llm_proxy.audit.evidence import Damage, Evidence, Heartbeat
from secure_llm_proxy.audit.exports import ClearRow, ExportEnd, ExportFormat, RowWriter, flat_members, row_writer
from secure_llm_proxy.audit.index import AuditIndex
from secure_llm_proxy.audit.index_totals import totals_of
from secure_llm_proxy.audit.report import Configured, Wanted, make_report
from secure_llm_proxy.audit.validation import Check, Validation, controls_of, validate
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import ErrorCode, NotFound, PermissionDenied, ProxyError, RateLimited
from secure_llm_proxy.foundation.identifiers import ulid
from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.web.admin.actor import Actor
from secure_llm_proxy.web.admin.frame import asked_in_body, asked_in_query
from secure_llm_proxy.web.admin.house import ManagementHouse, the_management
from secure_llm_proxy.web.admin.loader import the_actor
from secure_llm_proxy.web.auditor.looks import Look, begin_look
from secure_llm_proxy.web.auditor.wire import ExportQuery, ReportQuery, ValidateRequest, cursor_of
from secure_llm_proxy.web.flask_shell import arrival_of_request

log = logging.getLogger(__name__)

_AT_ONCE = 2
_PIECE_BYTES = 64 << 10
_FAIR_ROWS = 100


def make_auditor_doors(configured: Configured) -> Blueprint:
    """`configured` is what reports say of this deployment's settings."""
    doors = Blueprint("auditor", __name__, url_prefix="/audit")
    turns = BoundedSemaphore(_AT_ONCE)

    @doors.get("/export")
    def export() -> Response:
        actor, house = _auditor(), the_management()
        asked = asked_in_query(ExportQuery)
        now = house.clock.now()
        since, until = asked.period(now)
        kind, frameworks, after = asked.kind(), asked.frameworks(), asked.after()
        export_id = "exp_" + ulid()
        framework = ",".join(frameworks) or "all"
        period = {"start_date": rfc3339(since), "end_date": rfc3339(until)}
        envelope = {
            "export_id": export_id,
            "export_timestamp": rfc3339(now),
            "export_format": kind,
            "export_period": period,
            "compliance_framework": framework,
            "export_metadata": {
                "generated_by": actor.name_in_log,
                "export_purpose": "Records' readable members; contents stay sealed.",
                "data_retention": _retention(configured),
                "export_encryption": False,
                "contents": "sealed",
            },
        }
        _take_turn(turns)
        stream: _ExportStream | None = None
        try:
            asked_for: dict[str, ClearValue] = {"format": kind.value, "since": period["start_date"]}
            asked_for |= {"until": period["end_date"], "framework": framework}
            look = _begin(house, actor, "audit.export", export_id, **asked_for)
            rows = house.evidence.rows(period["start_date"], period["end_date"], after)
            stream = _ExportStream(rows, row_writer(kind, envelope), frameworks, asked.limit, look, turns)
            first = next(stream)
        except BaseException:
            if stream is not None:
                stream.close()
            else:
                turns.release()
            raise
        return _streamed(first, stream, kind, export_id)

    @doors.get("/report")
    def report() -> Response:
        actor, house = _auditor(), the_management()
        now = house.clock.now()
        wanted = asked_in_query(ReportQuery).wanted(now)
        report_id = "rep_" + ulid()
        _take_turn(turns)
        try:
            look = _begin(house, actor, "audit.report", report_id, **_clear_of(wanted))
            with _outcome_of(look):
                told = make_report(
                    _Fair(house.evidence),
                    wanted,
                    configured,
                    report_id=report_id,
                    look=look.record_id,
                    now=now,
                    monotonic_s=house.clock.monotonic_s,
                    totals=partial(_totals, house, wanted),
                )
        finally:
            turns.release()
        return _json(told)

    @doors.post("/validate")
    def validate_record() -> Response:
        actor, house = _auditor(), the_management()
        asked = asked_in_body(ValidateRequest, arrival_of_request())
        _take_turn(turns)
        try:
            look = _begin(house, actor, "audit.validate", "val_" + ulid(), target=asked.audit_id)
            with _outcome_of(look):
                found = validate(house.evidence, asked.audit_id, house.clock.now())
        finally:
            turns.release()
        if found is None:
            raise NotFound("The log holds no record of that id.", param="audit_id")
        return _json(_told(found, rfc3339(house.clock.now())))

    return doors


def _auditor() -> Actor:
    """Whoever the guard has let in, and may see the records of every organisation. Raises `PermissionDenied`."""
    actor = the_actor()
    if actor.reach not in {None, DEFAULT_ORGANISATION_ID}:
        raise PermissionDenied(
            "The log holds the records of all organisations; this is for people of the one that runs this deployment."
        )
    return actor


def _begin(house: ManagementHouse, actor: Actor, act: str, look_id: str, **clear: ClearValue) -> Look:
    return begin_look(house.journal, actor, arrival_of_request(), act, look_id, clear)


def _take_turn(turns: BoundedSemaphore) -> None:
    if not turns.acquire(blocking=False):
        raise RateLimited(
            "Others are reading the log now; come back in a moment.",
            code=ErrorCode.CONCURRENCY_LIMIT_EXCEEDED,
            retry_after_s=5,
        )


@contextlib.contextmanager
def _outcome_of(look: Look) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        look.end(ok=False, why=type(error).__name__)
        raise
    look.end(ok=True)


def _clear_of(wanted: Wanted) -> dict[str, ClearValue]:
    return {
        "since": rfc3339(wanted.since),
        "until": rfc3339(wanted.until),
        "type": wanted.kind.value,
        "framework": ",".join(wanted.frameworks) or "all",
        "risk_level": ",".join(risk.value for risk in wanted.risks) or "all",
    }


def _totals(house: ManagementHouse, wanted: Wanted, of_log: str | None) -> dict[str, object]:
    try:
        return house.database.run(lambda session: totals_of(session, AuditIndex(), wanted.since, wanted.until, of_log))
    except ProxyError as error:
        # The report is the log's; it does without.
        return {"source": f"the index in the database, which can't be asked now ({error.code.value})"}


def _retention(configured: Configured) -> str:
    days = configured.retention_days
    return "everything is kept" if days is None else f"{days} days"


# --- exports ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _ExportStream:
    """Pieces of an export. Ends with its last row whatever happens to the log meanwhile; `close` records how it went."""

    rows: Iterator[ClearRow | Heartbeat | Damage]
    writer: RowWriter
    frameworks: tuple[str, ...]
    limit: int
    look: Look
    turns: BoundedSemaphore
    count: int = 0
    _end: ExportEnd | None = None
    _notices: list[str] = field(default_factory=list)
    _pieces: Iterator[bytes] | None = None
    _closed: bool = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._pieces is None:
            self._pieces = self._made()
        try:
            return next(self._pieces)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        """Called whatever happens, also when the client left."""
        if self._closed:
            return
        self._closed = True
        complete = self._end is not None and self._end.complete
        self.look.end(ok=self._end is not None, records=self.count, complete=complete)
        self.turns.release()

    def _made(self) -> Iterator[bytes]:
        piece = bytearray(self.writer.opening())
        last, more = -1, False
        try:
            for each in _fairly(self.rows):
                if isinstance(each, Damage):
                    self._notices.append(f"Segment {each.segment} from line {each.n} on can't be shown: {each.what}.")
                    continue
                if isinstance(each, Heartbeat) or not self._fits(each):
                    continue
                if self.count == self.limit:
                    more = True
                    break
                piece += self.writer.row(each)
                self.count += 1
                last = each.n
                if len(piece) > _PIECE_BYTES:
                    yield bytes(piece)
                    piece.clear()
        except ProxyError as error:
            if not self.count and not self._notices:
                # Nothing was sent yet: it may still be a refusal.
                raise
            log.warning("export broke off", extra={"code": error.code.value, "detail": error.detail})
            self._notices.append(f"The log could not be read further ({error.code.value}).")
            more = True
        if more and self.count == self.limit:
            self._notices.append(f"There are more than {self.limit} records: go on with the cursor.")
        self._end = ExportEnd(
            self.count,
            complete=not self._notices,
            next_cursor=cursor_of(last) if more and last >= 0 else None,
            notice=" ".join(self._notices) or None,
        )
        yield bytes(piece) + self.writer.ending(self._end)

    def _fits(self, row: ClearRow) -> bool:
        return not self.frameworks or any(controls_of(row, framework) for framework in self.frameworks)


def _streamed(first: bytes, stream: _ExportStream, kind: ExportFormat, export_id: str) -> Response:
    response = Response(chain([first], stream), content_type=stream.writer.content_type)
    response.call_on_close(stream.close)
    response.headers["Content-Disposition"] = f'attachment; filename="{export_id}.{stream.writer.suffix}"'
    # nginx would hold it back until it is whole, or fill its disk.
    response.headers["X-Accel-Buffering"] = "no"
    if kind is ExportFormat.JSON:
        # The origin's clients read it as an answer, not as a file.
        del response.headers["Content-Disposition"]
    return response


def _fairly(
    rows: Iterator[ClearRow | Heartbeat | Damage],
) -> Iterator[ClearRow | Heartbeat | Damage]:
    """The other requests of the worker get their turn between rows."""
    for number, row in enumerate(rows, 1):
        yield row
        if number % _FAIR_ROWS == 0:
            gevent.sleep(0)


class _Fair:
    """Evidence whose rows leave the worker's other requests their turn."""

    def __init__(self, source: Evidence) -> None:
        self.lines, self.named, self.state = source.lines, source.named, source.state
        self._rows = source.rows

    def rows(self, since: str, until: str, after: int = -1) -> Iterator[ClearRow | Heartbeat | Damage]:
        return _fairly(self._rows(since, until, after))


# --- answers ----------------------------------------------------------------------------------------------------------


def _told(found: Validation, now: str) -> dict[str, object]:
    groups = (found.integrity, found.completeness, found.compliance)
    return {
        "audit_id": found.audit_id,
        "validation_timestamp": now,
        "integrity_check": _results(found.integrity)
        | {
            # The short names of the origin's documents.
            name.rpartition("_")[0]: check.result
            for name, check in found.integrity.items()
        },
        "completeness_check": _results(found.completeness),
        "compliance_validation": _results(found.compliance),
        "audit_quality_score": found.score,
        "validation_status": found.status,
        "recommendations": found.recommendations(),
        "details": {name: check.why for group in groups for name, check in group.items()},
        "record": None if found.row is None else flat_members(found.row),
        "checkpoint": None
        if found.checkpoint is None
        else {"log": found.checkpoint.log, "size": found.checkpoint.size, "time": found.checkpoint.t},
        "related_records": list(found.related),
    }


def _results(checks: dict[str, Check]) -> dict[str, object]:
    return {name: check.result for name, check in checks.items()}


def _json(told: dict[str, object]) -> Response:
    return Response(orjson.dumps(told), content_type="application/json")
