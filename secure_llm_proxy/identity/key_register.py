"""What a worker asks the database about keys: few statements, each compiled once, raw rows instead of entities.

Every function raises `Unavailable` when the database is away.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    Executable,
    Integer,
    Row,
    ScalarSelect,
    SQLColumnExpression,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal,
    select,
    text,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler

from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.identity.api_keys import Kid
from secure_llm_proxy.identity.change_triggers import EVERY_KEY
from secure_llm_proxy.identity.kill_switches import EVERYTHING
from secure_llm_proxy.identity.models import (
    ApiKeyRow,
    IdentityChangeRow,
    IdentityRevisionRow,
    KillSwitchRow,
    ProjectRow,
    SessionRow,
    UserRow,
)
from secure_llm_proxy.identity.names import DEFAULT_ORGANISATION_ID, DEFAULT_PROJECT_ID
from secure_llm_proxy.identity.verified_keys import (
    KILLED,
    QUARANTINED,
    RECORD_SEPARATOR,
    REVOKED,
    KeyRecord,
    key_record,
)
from secure_llm_proxy.vocabulary.caller import KIND_LIVE

# Of one transaction; more of them wait for the next, so that no lock is held long.
LAST_USES_AT_ONCE = 1000
# A worker that missed more changes than this forgets everything, which costs it a look at each key once more.
_CHANGES_MAX = 10_000
# SQLite takes 999 values in a statement of its oldest form still about.
_VALUES_AT_ONCE = 500

_SEPARATOR = literal(RECORD_SEPARATOR)


def _in_a_row(*texts: SQLColumnExpression[Any]) -> SQLColumnExpression[str]:
    """The texts with the separator between them; null when one of them is."""
    row = texts[0]
    for each in texts[1:]:
        row = row + _SEPARATOR + type_coerce(each, Text)
    return row


def _unless(column: SQLColumnExpression[Any], usual: str) -> SQLColumnExpression[str]:
    """The text, empty when it is the usual one."""
    return func.coalesce(func.nullif(column, usual), "")


def _or_nothing(column: SQLColumnExpression[Any]) -> SQLColumnExpression[str]:
    """The value as text, empty for null."""
    return func.coalesce(cast(column, Text), "")


# User and project in subqueries of their own: whatever a planner believes of the tables' sizes, it's one look in an index.
# Correlated by name: a subquery within a subquery would else read all keys once more.
def _of_user(column: SQLColumnExpression[Any]) -> ScalarSelect[Any]:
    return select(column).where(UserRow.id == ApiKeyRow.user_id).correlate(ApiKeyRow).scalar_subquery()


def _of_project(column: SQLColumnExpression[Any]) -> ScalarSelect[Any]:
    return select(column).where(ProjectRow.id == ApiKeyRow.project_id).correlate(ApiKeyRow).scalar_subquery()


_REVISION = select(IdentityRevisionRow.revision)
# Nobody is killed, mostly: then the other five are not even looked at.
_SOMEBODY_IS_KILLED = select(KillSwitchRow.subject).exists()
_IS_KILLED = _SOMEBODY_IS_KILLED & (
    select(KillSwitchRow.subject)
    .where(
        KillSwitchRow.subject.in_(
            (
                EVERYTHING,
                ApiKeyRow.id,
                ApiKeyRow.user_id,
                ApiKeyRow.project_id,
                _of_user(UserRow.organisation_id),
                _of_project(ProjectRow.organisation_id),
            )
        )
    )
    .correlate(ApiKeyRow)
    .exists()
)
# A record's text is put together by the database, JSON and moments as they are there, without what most rows have in common:
# most keys of a page are never asked for. The revision belongs to the same snapshot as the row.
_RECORDS = select(
    ApiKeyRow.kid,
    ApiKeyRow.digest,
    _in_a_row(
        ApiKeyRow.user_id,
        _of_user(_in_a_row(UserRow.role, UserRow.status, _unless(UserRow.organisation_id, DEFAULT_ORGANISATION_ID))),
        _unless(ApiKeyRow.kind, KIND_LIVE),
        _unless(ApiKeyRow.project_id, DEFAULT_PROJECT_ID),
        _of_project(_unless(ProjectRow.status, "active")),
        cast(ApiKeyRow.scopes, Text),
        _or_nothing(ApiKeyRow.models),
        _or_nothing(func.coalesce(ApiKeyRow.requests_per_minute, _of_project(ProjectRow.requests_per_minute))),
        _or_nothing(ApiKeyRow.burst),
        _or_nothing(ApiKeyRow.concurrent),
        _or_nothing(ApiKeyRow.tokens_max),
        _or_nothing(ApiKeyRow.allowed_addresses),
        _or_nothing(ApiKeyRow.allowed_agents),
        cast(ApiKeyRow.expires_at, Text),
        case(
            (_IS_KILLED, KILLED),
            (ApiKeyRow.revoked_at.is_not(None), REVOKED),
            (ApiKeyRow.quarantined_at.is_not(None), QUARANTINED),
            else_="",
        ),
    ).label("columns"),
    _REVISION.scalar_subquery().label("revision"),
)
_THESE = _RECORDS.where(ApiKeyRow.kid.in_(bindparam("these", expanding=True)))
_SESSIONS = (
    select(SessionRow.id, UserRow.status)
    .join(UserRow, UserRow.id == SessionRow.user_id)
    .where(SessionRow.id.in_(bindparam("these", expanding=True)), SessionRow.ended_at.is_(None))
)
_KILLED_OF = select(KillSwitchRow.subject).where(KillSwitchRow.subject.in_(bindparam("these", expanding=True)))
# An unknown kid and a wrong secret are the same to it: no row (SECURITY A15). The digest is an HMAC under the pepper: who
# sends keys can't steer it, so how long the database compares tells nothing.
_ONE = _RECORDS.where(ApiKeyRow.kid == bindparam("kid"), ApiKeyRow.digest == bindparam("digest"))
# Not without the stopped ones: PostgreSQL, not having counted them yet, would rather sort the table than follow the index.
_PAGE = (
    _RECORDS.where(ApiKeyRow.kid > bindparam("after"))
    .order_by(ApiKeyRow.kid)
    .limit(bindparam("page_size", type_=Integer))
)
# Users are resolved to their keys when asked, not when they change: a key made meanwhile is theirs too.
_CHANGED_KEYS = union_all(
    select(IdentityChangeRow.subject).where(IdentityChangeRow.revision > bindparam("since")),
    select(ApiKeyRow.kid)
    .join(IdentityChangeRow, IdentityChangeRow.subject == ApiKeyRow.user_id)
    .where(IdentityChangeRow.revision > bindparam("since")),
).limit(_CHANGES_MAX + 1)
_LAST_USES_ON_SQLITE = (
    update(ApiKeyRow.__table__)  # type: ignore[arg-type]  # a declarative class's table is a Table
    .where(
        ApiKeyRow.kid == bindparam("of_kid"),
        ApiKeyRow.last_used_at.is_(None)
        | (ApiKeyRow.last_used_at < bindparam("at", type_=ApiKeyRow.last_used_at.type)),
    )
    .values(
        last_used_at=bindparam("at", type_=ApiKeyRow.last_used_at.type),
        # Who used it was recognised by the digest that stands there: of one without a mark it is told now whose it is.
        pepper=func.coalesce(ApiKeyRow.pepper, bindparam("mark", type_=Text)),
    )
)
# Locked in one order everywhere: two workers that write the same keys must not wait for each other crosswise.
_LAST_USES_ON_POSTGRESQL = text(
    """WITH used AS MATERIALIZED (SELECT * FROM unnest(CAST(:kids AS text[]), CAST(:moments AS timestamptz[])) AS used(kid, at)),
    held AS MATERIALIZED (
        SELECT kid FROM api_keys WHERE kid IN (SELECT used.kid FROM used) ORDER BY kid FOR NO KEY UPDATE
    )
    UPDATE api_keys SET last_used_at = used.at, pepper = coalesce(api_keys.pepper, :mark)
    FROM used JOIN held ON held.kid = used.kid
    WHERE api_keys.kid = held.kid AND (api_keys.last_used_at IS NULL OR api_keys.last_used_at < used.at)"""
)
# Only over the digest that was recognised: whoever was quicker has stored the same, or another deployment's pepper.
_RENEWALS_ON_SQLITE = (
    update(ApiKeyRow.__table__)  # type: ignore[arg-type]  # as above
    .where(ApiKeyRow.kid == bindparam("of_kid"), ApiKeyRow.digest == bindparam("old"))
    .values(digest=bindparam("new"), pepper=bindparam("mark"))
)
# One statement: with several, we would hold the revision's row while waiting for a key's, and others the other way round.
_RENEWALS_ON_POSTGRESQL = text(
    """WITH renewed AS MATERIALIZED (
        SELECT kid, decode(old, 'hex') AS old, decode(new, 'hex') AS new
        FROM unnest(CAST(:kids AS text[]), CAST(:olds AS text[]), CAST(:news AS text[])) AS renewed(kid, old, new)
    ),
    held AS MATERIALIZED (
        SELECT kid FROM api_keys WHERE kid IN (SELECT renewed.kid FROM renewed) ORDER BY kid FOR NO KEY UPDATE
    )
    UPDATE api_keys SET digest = renewed.new, pepper = :mark
    FROM renewed JOIN held ON held.kid = renewed.kid
    WHERE api_keys.kid = held.kid AND api_keys.digest = renewed.old"""
)


@dataclass(frozen=True, slots=True)
class KeyPage:
    """Keys in their order, read along because they will be asked for next. `last` is None after the last page."""

    records: Mapping[Kid, KeyRecord]
    revision: int
    last: str | None


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key as it was at `revision`, and the page read along with it."""

    record: KeyRecord = field(repr=False)
    revision: int
    page: KeyPage | None


@dataclass(frozen=True, slots=True)
class Renewal:
    """The digest that a key is stored by, and the one of the same key under the present pepper."""

    old: bytes = field(repr=False)
    new: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed up to `revision`: `kids`, or None when that can't be told and everything may have.

    Among the kids are ids of users, which are nobody's kid.
    """

    revision: int
    kids: Sequence[str] | None


class KeyRegister:
    """The database, asked for what identification needs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        dialect = database.engine.dialect
        self._one = _Compiled(_ONE, dialect)
        self._page = _Compiled(_PAGE, dialect)
        self._revision = _Compiled(_REVISION, dialect)
        self._changed_keys = _Compiled(_CHANGED_KEYS, dialect)

    def find(self, kid: Kid, digest: bytes, *, after: str | None, page_size: int) -> FoundKey | None:
        """The key with this `kid` and exactly this digest. A find brings the page of keys after `after`, if that is given."""
        return self._database.run(lambda session: self._find(session, kid, digest, after, page_size))

    def changes(self, since: int) -> Changes:
        """What changed after revision `since`. One row is read when that is nothing."""
        return self._database.run(lambda session: self._changes(session, since))

    def standings(self, kids: Collection[str]) -> dict[str, KeyRecord]:
        """The records of these keys as they are now; a key that is gone is left out."""
        rows = self._rows_of(_THESE, kids)
        return {row.kid: key_record(row.digest, row.columns) for row in rows if row.columns is not None}

    def open_sessions(self, ids: Collection[str]) -> dict[str, str]:
        """Those of these sessions that nobody has ended, with the status of their users."""
        return {row.id: row.status for row in self._rows_of(_SESSIONS, ids)}

    def killed_of(self, subjects: Collection[str]) -> frozenset[str]:
        """Those of these subjects that a kill switch names."""
        return frozenset(row.subject for row in self._rows_of(_KILLED_OF, subjects))

    def _rows_of(self, statement: Executable, values: Collection[str]) -> list[Row[Any]]:
        wanted = list(values)
        rows: list[Row[Any]] = []
        for begin in range(0, len(wanted), _VALUES_AT_ONCE):
            some = {"these": wanted[begin : begin + _VALUES_AT_ONCE]}
            rows += self._database.run(partial(_all_rows, statement=statement, parameters=some))
        return rows

    def write_last_uses(self, uses: Sequence[tuple[Kid, datetime]], mark: str) -> None:
        """Each key was last used at that moment, unless a later one stands there, and recognised under the pepper of `mark`.
        At most `LAST_USES_AT_ONCE`.
        """
        self._database.run(lambda session: self._write_last_uses(session, uses, mark))

    def write_renewals(self, renewals: Sequence[tuple[Kid, Renewal]], mark: str) -> None:
        """Each key is stored by its new digest, under the pepper of `mark`. At most `LAST_USES_AT_ONCE`, in order."""
        self._database.run(lambda session: self._write_renewals(session, renewals, mark))

    def _find(self, session: Session, kid: Kid, digest: bytes, after: str | None, page_size: int) -> FoundKey | None:
        rows = self._one.rows(session, kid=kid, digest=digest)
        if not rows or rows[0].columns is None:  # its user is gone
            return None
        page = None
        if after is not None:
            page = _key_page(self._page.rows(session, after=after, page_size=page_size), page_size)
        return FoundKey(key_record(rows[0].digest, rows[0].columns), rows[0].revision or 0, page)

    def _changes(self, session: Session, since: int) -> Changes:
        rows = self._revision.rows(session)
        if not rows:  # somebody took the row away: nothing is certain until it is back
            return Changes(0, None)
        (revision,) = rows[0]
        if revision == since:
            return Changes(revision, ())
        if revision < since:  # a backup was restored
            return Changes(revision, None)
        kids = [kid for (kid,) in self._changed_keys.rows(session, since=since)]
        return Changes(revision, kids if len(kids) <= _CHANGES_MAX and EVERY_KEY not in kids else None)

    def _write_last_uses(self, session: Session, uses: Sequence[tuple[Kid, datetime]], mark: str) -> None:
        if self._database.is_sqlite:
            rows = [{"of_kid": kid, "at": moment, "mark": mark} for kid, moment in uses]
            session.connection().execute(_LAST_USES_ON_SQLITE, rows)
        else:
            kids, moments = [kid for kid, _ in uses], [moment for _, moment in uses]
            session.connection().execute(_LAST_USES_ON_POSTGRESQL, {"kids": kids, "moments": moments, "mark": mark})

    def _write_renewals(self, session: Session, renewals: Sequence[tuple[Kid, Renewal]], mark: str) -> None:
        if self._database.is_sqlite:
            rows = [{"of_kid": kid, "old": each.old, "new": each.new, "mark": mark} for kid, each in renewals]
            session.connection().execute(_RENEWALS_ON_SQLITE, rows)
        else:
            columns = {
                "kids": [kid for kid, _ in renewals],
                "olds": [each.old.hex() for _, each in renewals],
                "news": [each.new.hex() for _, each in renewals],
            }
            session.connection().execute(_RENEWALS_ON_POSTGRESQL, {**columns, "mark": mark})


def _key_page(rows: Sequence[Row[Any]], page_size: int) -> KeyPage:
    records = {
        Kid(row.kid): key_record(row.digest, row.columns)
        for row in rows
        if row.columns is not None and row.columns.endswith(RECORD_SEPARATOR)  # of a user, and not stopped
    }
    last = rows[-1] if rows else None
    revision = 0 if last is None else last.revision or 0
    return KeyPage(records, revision, None if last is None or len(rows) < page_size else last.kid)


def _all_rows(session: Session, statement: Executable, parameters: dict[str, list[str]]) -> Sequence[Row[Any]]:
    return session.execute(statement, parameters).all()


class _Compiled:
    """A statement as the driver takes it: SQLAlchemy's part of running it is 20 instead of 150 µs."""

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        assert isinstance(dialect, DefaultDialect)
        compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]  # every ClauseElement has it
        assert isinstance(compiled, SQLCompiler)
        self._sql = compiled.string
        self._constants = dict(compiled.params)
        self._order = compiled.positiontup

    def rows(self, session: Session, **parameters: object) -> Sequence[Row[Any]]:
        given = {**self._constants, **parameters}
        arguments = given if self._order is None else tuple(given[name] for name in self._order)
        return session.connection().exec_driver_sql(self._sql, arguments).all()
