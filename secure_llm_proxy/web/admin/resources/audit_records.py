"""Records of the audit log by what they say in clear. A list is as good as the database; one record is read from its segment."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema
from sqlalchemy.orm import Session

from secure_llm_proxy.audit.index import IndexedRecord, Position, RecordFilter, record_of
from secure_llm_proxy.foundation.errors import EvidenceBroken, InvalidRequest, NotFound
from secure_llm_proxy.identity import OrganisationReach
from secure_llm_proxy.vocabulary.audit import indexed_values
from secure_llm_proxy.vocabulary.events import EventName
from secure_llm_proxy.web.admin.frame import Body, Call, Endpoint, Moment, Nothing, Told, endpoint, foreign
from secure_llm_proxy.web.admin.paging import PageQuery

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)\Z")
_CURSOR = re.compile(r"2:([0-9]{1,17})\.([0-9]{1,18})\.(slp\.[0-9A-Za-z_./-]{1,136})\Z")


def _read_moment(text: str) -> str:
    if _MOMENT.match(text) is None or not 1970 <= int(text[:4]) <= 9998:  # noqa: PLR2004  beyond, zones lead out of the calendar
        raise ValueError("not a time like 2026-11-21T12:00:00Z")
    datetime.fromisoformat(text.upper())
    return text.upper()


_Moment = Annotated[str, AfterValidator(_read_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_LongName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class RecordQuery(PageQuery):
    """All that is given must hold."""

    cursor: Annotated[str, Field(max_length=256, description="`next_cursor` of the page before.")] | None = None
    since: Annotated[_Moment, Field(description="From this moment on.")] | None = None
    until: Annotated[_Moment, Field(description="Before this moment.")] | None = None
    type: Annotated[_Name, Field(description="`llm.start`, `admin.intent` …")] | None = None
    event: Annotated[_Name, Field(description="`SECURITY_EVENT`, `LOGIN` …")] | None = None
    user_id: Annotated[_Name, Field(description="Who asked, or changed something.")] | None = None
    person: Annotated[_Name, Field(description="Pseudonym of whom an application named, `s_…`.")] | None = None
    key: Annotated[_Name, Field(description="Public part of an API key, or the id of a session.")] | None = None
    project_id: _Name | None = None
    subject: Annotated[_LongName, Field(description="Who or what was changed.")] | None = None
    action: Annotated[_Name, Field(description="What was changed: `user.lock`, `login` …")] | None = None
    model: _LongName | None = None
    decision: Annotated[_Name, Field(description="`allow` or `refuse`.")] | None = None
    code: Annotated[_Name, Field(description="The error code that the client was told.")] | None = None
    status: Annotated[_Name, Field(description="How an exchange ended: `complete`, `client_abort` …")] | None = None
    request_id: Annotated[_Name, Field(description="`X-Request-Id` of an answer, or the id of a change.")] | None = None
    log: Annotated[_LongName, Field(description="Records of this host's log only.")] | None = None
    address: (
        Annotated[str, StringConstraints(min_length=2, max_length=64), Field(description="Sealed with it.")] | None
    ) = None
    agent: (
        Annotated[str, StringConstraints(min_length=1, max_length=1024), Field(description="Sealed with it.")] | None
    ) = None
    email: (
        Annotated[str, StringConstraints(min_length=3, max_length=254), Field(description="Sealed with it.")] | None
    ) = None

    def sealed_values(self) -> dict[str, str]:
        """What was asked for that stands in no record readably. Raises `InvalidRequest`."""
        address = self.address
        if address is not None:
            try:
                parsed = ipaddress.ip_address(address)
            except ValueError:
                raise InvalidRequest("That is no address.", param="address") from None
            address = str(getattr(parsed, "ipv4_mapped", None) or parsed)
        return indexed_values(address=address, agent=self.agent, email=self.email)

    def position(self) -> Position | None:
        """Behind which record this page begins. Raises `InvalidRequest` for a cursor that is none of ours."""
        if self.cursor is None:
            return None
        try:
            found = _CURSOR.match(base64.urlsafe_b64decode(self.cursor.encode("ascii") + b"==").decode("ascii"))
            if found is not None:
                return Position(_EPOCH + timedelta(microseconds=int(found[1])), found[3], int(found[2]))
        except (binascii.Error, ValueError, OverflowError):
            pass
        raise InvalidRequest("That is no cursor of ours.", param="cursor")


class RecordTold(Told):
    """What a record says in clear; its body stays sealed. `members` is what has no name of its own here."""

    id: str
    time: Moment
    type: str
    event: str | None
    request_id: str
    user_id: str | None
    person: str | None
    key: str | None
    project_id: str | None
    subject: str | None
    action: str | None
    by: str | None
    model: str | None
    provider: str | None
    route: str | None
    decision: str | None
    code: str | None
    status: str | None
    http: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    ms: int | None
    address_index: str | None
    agent_index: str | None
    email_index: str | None
    members: Mapping[str, str | int | bool | None]
    log: str
    line: int
    segment: int
    leaf_hash: str = Field(description="SHA-256 of the record's line as a leaf of the tree (RFC 9162), base64.")


class RecordPage(Told):
    items: list[RecordTold]
    next_cursor: str | None


class CheckedRecordTold(Told):
    """A record is told only as its segment has it, in its place in the chain, when the index says the same."""

    record: RecordTold | None
    verified: bool
    problem: str | None = Field(description="Why the record is not told.")


class RevealOrder(Body):
    reader: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z._-]{1,64}$")] = Field(
        description="Who was enrolled on the log's host."
    )
    code: Annotated[str, StringConstraints(pattern=r"^[0-9]{6}$")] = Field(
        description="What the reader's app shows now."
    )
    reason: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(description="Sealed with the look.")


class OpenedRecordTold(Told):
    """`body` is the JSON that was sealed; what is no JSON, as text; null when it can't be opened, and `problem` says why."""

    record: RecordTold
    body: Any
    problem: str | None


class OpenedRecords(Told):
    """The record, and what belongs to it: its parts, its end."""

    items: list[OpenedRecordTold]


def list_audit_records(call: Call, asked: RecordQuery) -> RecordPage:
    blind = call.house.audit_records.blind(asked.sealed_values())
    wanted = RecordFilter(
        address=blind.get("ipx"),
        agent=blind.get("uax"),
        email=blind.get("emx"),
        since=_moment(asked.since),
        until=_moment(asked.until),
        log=asked.log,
        type=asked.type,
        event=asked.event,
        exchange_id=asked.request_id,
        user=asked.user_id,
        person=asked.person,
        key=asked.key,
        project=asked.project_id,
        subject=asked.subject,
        action=asked.action,
        model=asked.model,
        decision=asked.decision,
        code=asked.code,
        status=asked.status,
        reach=_reach(call),
    )
    after = asked.position()
    found = call.read(
        lambda session: call.house.audit_index.search(session, wanted, after=after, limit=asked.limit + 1)
    )
    shown = found[: asked.limit]
    cursor = _cursor_of(shown[-1].position) if len(found) > len(shown) else None
    return RecordPage(items=[_told(record) for record in shown], next_cursor=cursor)


def read_audit_record(call: Call, _asked: Nothing) -> CheckedRecordTold:
    indexed = call.read(partial(_in_reach, call))
    checked = call.house.audit_records.check(indexed)
    if checked.alarm and checked.problem is not None:
        call.read(partial(call.house.audit_index.alarm, log=indexed.log, sentence=checked.problem))
    return CheckedRecordTold(
        record=None if checked.record is None else _told(checked.record),
        verified=checked.record is not None,
        problem=checked.problem,
    )


def reveal_audit_record(call: Call, asked: RevealOrder) -> OpenedRecords:
    indexed = call.read(partial(_in_reach, call))
    checked = call.house.audit_records.check(indexed)
    if checked.record is None:
        if checked.alarm:
            raise EvidenceBroken(str(checked.problem))
        raise NotFound(str(checked.problem))
    opened = call.recorded(
        "audit.reveal",
        indexed.id,
        lambda: call.house.audit_records.open(indexed, reader=asked.reader, code=asked.code, by=call.actor.name_in_log),
        clear={"reader": asked.reader},
        body={"reason": asked.reason},
        event=EventName.AUDIT_REVEAL,
    )
    return OpenedRecords(
        items=[
            OpenedRecordTold(
                record=_told(record_of(indexed.log, each.row)),
                body=None if each.body is None else _readable(each.body),
                problem=each.problem,
            )
            for each in opened
        ]
    )


def _readable(body: bytes) -> Any:  # noqa: ANN401  whatever JSON holds
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")


def _in_reach(call: Call, session: Session) -> IndexedRecord:
    wanted = RecordFilter(id=call.path["record_id"], reach=_reach(call))
    found = call.house.audit_index.search(session, wanted, limit=1)
    if not found:
        raise foreign()
    return found[0]


def _reach(call: Call) -> OrganisationReach | None:
    return None if call.actor.reach is None else OrganisationReach(call.actor.reach)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _cursor_of(position: Position) -> str:
    microseconds = (position.t - _EPOCH) // timedelta(microseconds=1)
    text = f"2:{microseconds}.{position.n}.{position.log}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _told(record: IndexedRecord) -> RecordTold:
    return RecordTold(
        id=record.id,
        time=record.t,
        type=record.ty,
        event=record.ev,
        request_id=record.rid,
        user_id=record.usr,
        person=record.sub,
        key=record.ak,
        project_id=record.prj,
        subject=record.sbj,
        action=record.act,
        by=record.by,
        model=record.mdl,
        provider=record.up,
        route=record.rt,
        decision=record.dec,
        code=record.code,
        status=record.st,
        http=record.http,
        prompt_tokens=record.tin,
        completion_tokens=record.tout,
        ms=record.ms,
        address_index=record.ipx,
        agent_index=record.uax,
        email_index=record.emx,
        members={name: value for name, value in (record.rest or {}).items() if isinstance(value, str | int | None)},
        log=record.log,
        line=record.n,
        segment=record.seg,
        leaf_hash=base64.b64encode(record.h).decode(),
    )


ENDPOINTS: dict[str, Endpoint] = {
    "list_audit_records": endpoint(list_audit_records, RecordQuery, RecordPage),
    "reveal_audit_record": endpoint(reveal_audit_record, RevealOrder, OpenedRecords),
    "read_audit_record": endpoint(read_audit_record, Nothing, CheckedRecordTold),
}
