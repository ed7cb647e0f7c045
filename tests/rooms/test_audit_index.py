"""The index over real logs and on both databases: shipped once, found again, made anew, and what it refuses to believe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Update, delete, select, update
from sqlalchemy.orm import Session

from secure_llm_proxy.audit.index import (
    AuditIndex,
    Dimension,
    IndexedRecord,
    Position,
    RecordFilter,
    matches,
    record_of,
)
from secure_llm_proxy.audit.index_shipping import (
    IndexRebuilder,
    IndexShipper,
    Rebuilt,
    Shipped,
    checkpoints_of,
    records_of,
    take_lease,
)
from secure_llm_proxy.audit.models import AuditAnchorRow, AuditIndexRow, AuditIndexStateRow
from secure_llm_proxy.audit.read_client import Place, Row, Tail
from secure_llm_proxy.audit.segment_reader import SegmentReader
from secure_llm_proxy.audit.segments import segments_in
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import ConflictError, Unavailable
from secure_llm_proxy.settings import DatabaseSettings
from secure_llm_proxy.settings.database_url import normalise_database_url
from tests.support.audit_log import audit_settings
from tests.support.house import ManualClock
from tests.support.identity_room import migrated_database
from tests.support.indexed_log import Log
from tests.support.postgresql import PrivatePostgreSQL

LOG = "slp.default/host"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'app.db'}"
    else:
        server = request.getfixturevalue("postgresql")
        assert isinstance(server, PrivatePostgreSQL)
        url = normalise_database_url(server.create_database())
    made = migrated_database(url)
    yield made
    made.close()


def execute(session: Session, statement: Update) -> None:
    session.execute(statement)


class FileReader:
    """The log's reader, over the files of a test; `trouble` is raised when it is asked."""

    def __init__(self, directory: Path) -> None:
        self._reader = SegmentReader(audit_settings(directory))
        self.trouble: Exception | None = None
        self.asked = 0
        self.changed: Callable[[Tail], Tail] = lambda tail: tail

    def state(self) -> Mapping[str, Any]:
        self._stumble()
        return self._reader.state()

    def tail(self, after: int = -1, *, limit: int = 200) -> Tail:
        self._stumble()
        self.asked += 1
        return self.changed(self._reader.tail(after, limit=limit))

    def _stumble(self) -> None:
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def shipper_of(database: Database, log: Log, clock: ManualClock | None = None) -> IndexShipper:
    return IndexShipper(database, FileReader(log.directory), clock or ManualClock(), lambda: 1)


def indexed(database: Database, wanted: RecordFilter | None = None, **more: object) -> list[IndexedRecord]:
    found = partial(AuditIndex().search, wanted=wanted or RecordFilter(), limit=1000)
    return database.run(lambda session: found(session, **more))  # type: ignore[arg-type]  # by name


def rows_of(log: Log) -> list[Row]:
    return records_of(SegmentReader(audit_settings(log.directory)).tail(limit=1000))


def ids(found: list[IndexedRecord]) -> list[str]:
    return [record.id for record in found]


def in_the_log(log: Log) -> list[IndexedRecord]:
    return [record_of(LOG, row) for row in reversed(rows_of(log))]


EXCHANGE: tuple[dict[str, object], ...] = (
    {
        "kind": "llm.start",
        "usr": "usr_1",
        "ak": "kidaaaaa",
        "mdl": "small",
        "dec": "allow",
        "rt": "/chat",
        "sub": "s_1",
    },
    {"kind": "llm.end", "sid": "R0001", "st": "complete", "usr": "usr_1", "tin": 3, "tout": 5, "ms": 12, "http": 200},
)


# --- shipping ---------------------------------------------------------------------------------------------------------


def test_everything_in_the_log_is_in_the_index_as_the_log_says_it(database: Database, log: Log) -> None:
    log.add(*EXCHANGE)
    log.add({"kind": "admin.intent", "act": "user.lock", "subject": "usr_2", "by": "user:usr_1"})

    shipped = shipper_of(database, log).ship()

    assert shipped == Shipped(rows=3)
    assert indexed(database) == in_the_log(log)
    start = indexed(database)[-1]
    assert (start.ty, start.usr, start.ak, start.mdl, start.dec, start.sub) == (
        "llm.start", "usr_1", "kidaaaaa", "small", "allow", "s_1",
    )  # fmt: skip
    assert start.t == datetime(2026, 11, 21, 12, 0, 1, tzinfo=UTC)
    assert (start.log, start.seg, start.rest) == (LOG, 1, None)


def test_a_row_names_the_bytes_of_its_line(database: Database, log: Log) -> None:
    log.add(*EXCHANGE)
    shipper_of(database, log).ship()

    for record in indexed(database):
        raw = segments_in(log.genesis.directory)[0].path.read_bytes()
        line = raw[record.offset : record.offset + record.length]
        assert f'"id":"{record.id}"'.encode() in line
        assert raw[record.offset + record.length :].startswith(b"\n")


def test_what_was_shipped_is_not_shipped_again_and_what_comes_later_is(database: Database, log: Log) -> None:
    shipper = shipper_of(database, log)
    log.add(*EXCHANGE)
    first = shipper.ship()

    again = shipper.ship()
    log.add({})
    later = shipper.ship()

    assert [first.rows, again.rows, later.rows] == [2, 0, 1]
    assert indexed(database) == in_the_log(log)


def test_small_batches_leave_nothing_out(database: Database, log: Log) -> None:
    for _ in range(3):
        log.add({}, {}, {})
    shipper = shipper_of(database, log)

    while shipper.ship(limit=2).more:
        pass

    assert indexed(database) == in_the_log(log)
    assert len(indexed(database)) == 9


def test_a_value_that_fits_no_column_does_not_stop_the_index(database: Database, log: Log) -> None:
    odd = {"mdl": "m" * 300, "usr": 7, "http": 2**40, "ms": True, "code": "a\x00b", "by": None, "note_of": "x"}
    log.add(dict(odd))

    shipper_of(database, log).ship()

    (record,) = indexed(database)
    assert (record.mdl, record.usr, record.http, record.ms, record.code, record.by) == (None,) * 6
    assert record.rest == odd
    assert indexed(database) == in_the_log(log)


def test_two_shippers_do_not_write_the_same_twice(database: Database, log: Log) -> None:
    clock = ManualClock()
    log.add(*EXCHANGE)
    one, other = shipper_of(database, log, clock), shipper_of(database, log, clock)
    database.run(partial(take_lease, name=LOG, holder="somebody", clock=clock))

    held = [one.ship(), other.ship()]
    clock.advance(31)
    after = [one.ship(), other.ship()]

    assert held == [Shipped(busy=True), Shipped(busy=True)]
    assert after == [Shipped(rows=2), Shipped()]
    assert indexed(database) == in_the_log(log)


def test_a_shipper_that_lost_its_lease_in_the_middle_writes_nothing(database: Database, log: Log) -> None:
    clock = ManualClock()
    log.add(*EXCHANGE)
    slow, quick = FileReader(log.directory), shipper_of(database, log, clock)
    shipper = IndexShipper(database, slow, clock, lambda: 1)

    def overtaken(tail: Tail) -> Tail:
        if slow.asked == 1:
            # The second batch is read while somebody else takes over.
            return replace(tail, rows=tail.rows[:1], after=tail.rows[0].place.n, more=True)
        clock.advance(31)
        assert quick.ship().rows == 1
        return tail

    slow.changed = overtaken
    shipped = shipper.ship()

    assert shipped == Shipped(rows=1, busy=True)
    assert indexed(database) == in_the_log(log)


def test_a_killed_shipper_is_gone_on_for_without_gap_or_double(database: Database, log: Log) -> None:
    clock = ManualClock()
    log.add({}, {}, {}, {})
    killed = FileReader(log.directory)

    def stop_after_the_first_batch(tail: Tail) -> Tail:
        if killed.asked > 1:
            raise KeyboardInterrupt
        return tail

    killed.changed = stop_after_the_first_batch
    with pytest.raises(KeyboardInterrupt):
        IndexShipper(database, killed, clock, lambda: 1).ship(limit=2)
    clock.advance(31)
    shipper_of(database, log, clock).ship()

    assert indexed(database) == in_the_log(log)
    assert len(indexed(database)) == 4


def test_a_database_that_is_away_disturbs_nobody_and_is_told_after_a_minute(tmp_path: Path, log: Log) -> None:
    clock = ManualClock()
    log.add(*EXCHANGE)
    away = Database(DatabaseSettings.model_validate({"url": "postgresql+psycopg2://u:p@127.0.0.1:1/x"}))
    shipper = shipper_of(away, log, clock)

    shipper.work()
    at_first = shipper.trouble()
    clock.advance(61)
    shipper.work()

    assert at_first is None
    assert shipper.trouble() == "The audit index does not follow the log; app.log says why."


def test_shipping_goes_on_when_the_reader_is_back(database: Database, log: Log) -> None:
    clock = ManualClock()
    reader = FileReader(log.directory)
    shipper = IndexShipper(database, reader, clock, lambda: 1)
    log.add(*EXCHANGE)

    reader.trouble = Unavailable("away")
    shipper.work()
    clock.advance(61)
    shipper.work()
    troubled = shipper.trouble()
    reader.trouble = None
    clock.advance(3)
    shipper.work()

    assert troubled is not None
    assert shipper.trouble() is None
    assert indexed(database) == in_the_log(log)


def test_an_idle_product_is_left_alone(database: Database, log: Log) -> None:
    clock = ManualClock()
    reader, recorded = FileReader(log.directory), [5]
    shipper = IndexShipper(database, reader, clock, lambda: recorded[0])
    log.add(*EXCHANGE)
    shipper.work()
    for _ in range(3):
        clock.advance(3)
        shipper.work()
    asked_while_idle = reader.asked

    recorded[0] += 1
    for _ in range(30):
        clock.advance(3)
        shipper.work()
    asked_once_more = reader.asked
    for _ in range(30):
        clock.advance(3)
        shipper.work()

    assert asked_while_idle <= 2
    assert asked_while_idle < asked_once_more == reader.asked


# --- search -----------------------------------------------------------------------------------------------------------


RECORDS: tuple[dict[str, object], ...] = (
    {"kind": "llm.start", "ev": "CHAT_REQUEST", "usr": "usr_1", "ak": "kidaaaaa", "prj": "prj_1", "mdl": "small",
     "dec": "allow", "sub": "s_1", "ipx": "addressindex"},
    {"kind": "llm.refused", "ev": "RATE_LIMIT_EXCEEDED", "usr": "usr_1", "dec": "refuse", "code": "rate_limit_exceeded",
     "http": 429, "uax": "agentindex"},
    {"kind": "auth.event", "ev": "LOGIN", "act": "login", "by": "user:usr_2", "emx": "emailindex"},
    {"kind": "admin.result", "ev": "ADMIN_CHANGE", "act": "key.revoke", "subject": "key_1", "user": "usr_1",
     "by": "user:usr_2", "ok": True},
    {"kind": "llm.end", "sid": "R0001", "st": "complete", "usr": "usr_1", "ak": "kidaaaaa", "mdl": "small", "http": 200},
)  # fmt: skip


SEARCHES: tuple[tuple[RecordFilter, list[str]], ...] = (
    (RecordFilter(), ["R0005", "R0004", "R0003", "R0002", "R0001"]),
    (RecordFilter(type="llm.end"), ["R0005"]),
    (RecordFilter(event="LOGIN"), ["R0003"]),
    (RecordFilter(user="usr_1"), ["R0005", "R0002", "R0001"]),
    (RecordFilter(user="usr_2"), ["R0004", "R0003"]),
    (RecordFilter(subject="usr_1"), ["R0004"]),
    (RecordFilter(person="s_1"), ["R0001"]),
    (RecordFilter(key="kidaaaaa"), ["R0005", "R0001"]),
    (RecordFilter(project="prj_1"), ["R0001"]),
    (RecordFilter(model="small", type="llm.start"), ["R0001"]),
    (RecordFilter(decision="refuse"), ["R0002"]),
    (RecordFilter(code="rate_limit_exceeded"), ["R0002"]),
    (RecordFilter(status="complete"), ["R0005"]),
    (RecordFilter(action="login"), ["R0003"]),
    (RecordFilter(address="addressindex"), ["R0001"]),
    (RecordFilter(agent="agentindex"), ["R0002"]),
    (RecordFilter(email="emailindex"), ["R0003"]),
    (RecordFilter(id="R0004"), ["R0004"]),
    (RecordFilter(exchange_id="exc_01KAHG0000000000000000TEST", type="llm.start"), ["R0001"]),
    (RecordFilter(log="slp.default/other"), []),
    (
        RecordFilter(
            since=datetime(2026, 11, 21, 12, 0, 2, tzinfo=UTC), until=datetime(2026, 11, 21, 12, 0, 4, tzinfo=UTC)
        ),
        ["R0003", "R0002"],
    ),
    (
        RecordFilter(since=datetime(2026, 11, 21, 13, 0, 4, tzinfo=UTC).astimezone(datetime.now().astimezone().tzinfo)),
        [],
    ),
)


def test_a_search_finds_what_it_asks_for_newest_first(shipped: Database) -> None:
    assert [ids(indexed(shipped, wanted)) for wanted, _ in SEARCHES] == [found for _, found in SEARCHES]


@pytest.fixture
def shipped(database: Database, log: Log) -> Database:
    log.add(*RECORDS[:3])
    log.add(*RECORDS[3:])
    shipper_of(database, log).ship()
    return database


def test_pages_hold_every_record_once_also_of_one_moment(database: Database, log: Log) -> None:
    log.add(*({} for _ in range(7)))
    shipper_of(database, log).ship()
    moment = datetime(2026, 11, 21, 12, tzinfo=UTC)
    database.run(lambda session: session.execute(update(AuditIndexRow).values(t=moment)))

    pages: list[list[IndexedRecord]] = []
    after: Position | None = None
    while page := indexed(database, after=after, limit=3):
        pages.append(page)
        after = page[-1].position

    assert [len(page) for page in pages] == [3, 3, 1]
    assert [record.n for page in pages for record in page] == sorted((r.n for r in indexed(database)), reverse=True)


def test_records_are_counted_by_what_they_say(shipped: Database) -> None:
    def counts(wanted: RecordFilter, *dimensions: Dimension) -> list[tuple[object, ...]]:
        found = shipped.run(lambda session: AuditIndex().counts(session, wanted, dimensions))
        return [(*each.values, each.records) for each in found]

    assert counts(RecordFilter()) == [(5,)]
    assert counts(RecordFilter(), Dimension.DAY) == [("2026-11-21", 5)]
    assert counts(RecordFilter(user="usr_1"), Dimension.DECISION, Dimension.CODE) == counts(
        RecordFilter(user="usr_1"), Dimension.DECISION, Dimension.CODE
    )
    assert set(counts(RecordFilter(), Dimension.TYPE)) == {
        ("llm.start", 1), ("llm.refused", 1), ("auth.event", 1), ("admin.result", 1), ("llm.end", 1),
    }  # fmt: skip
    assert set(counts(RecordFilter(), Dimension.EVENT, Dimension.STATUS, Dimension.HTTP)) >= {
        (None, "complete", 200, 1), ("RATE_LIMIT_EXCEEDED", None, 429, 1),
    }  # fmt: skip


# --- anchors ----------------------------------------------------------------------------------------------------------


def anchors(database: Database) -> list[tuple[str, int, str]]:
    return [(each.log, each.n, each.root) for each in database.run(AuditIndex().anchors)]


def test_checkpoints_are_kept_with_their_notes(database: Database, log: Log) -> None:
    log.add(*EXCHANGE)
    log.now_ns += 60_000_000_000
    log.add({})

    shipper_of(database, log).ship()

    kept = database.run(AuditIndex().anchors)
    assert [anchor.log for anchor in kept] == [LOG, LOG]
    assert [anchor.note.split("\n")[:3] for anchor in kept] == [[LOG, str(each.n), each.root] for each in kept]


def test_a_second_checkpoint_of_the_same_size_with_another_root_is_a_fork(
    database: Database, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.add(*EXCHANGE)
    reader = FileReader(log.directory)
    before = checkpoints_of(reader.tail())
    # Somebody has shown this database another history before.
    other = [replace(each, root="A" * 43 + "=") for each in before]
    database.run(
        lambda session: session.add_all(
            AuditAnchorRow(
                log=LOG, n=each.place.n, root=each.root, note="n", t=ManualClock().now(), first_seen=ManualClock().now()
            )
            for each in other
        )
    )
    shipper = IndexShipper(database, reader, ManualClock(), lambda: 1)

    shipped = shipper.ship()

    assert shipped.rows == 2
    assert anchors(database) == [(LOG, each.place.n, each.root) for each in other]
    assert "FORK" in str(shipper.trouble())
    assert [record.levelname for record in caplog.records if "FORK" in record.getMessage()] == ["ERROR"]


# --- what the index does not believe ----------------------------------------------------------------------------------


def test_a_log_that_was_rewritten_is_not_followed_and_told(
    database: Database, log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log.add(*EXCHANGE)
    shipper_of(database, log).ship()
    other = Log(tmp_path / "other")
    other.add(*reversed(RECORDS))
    shipper = shipper_of(database, other)

    shipped = shipper.ship()

    assert shipped == Shipped()
    assert indexed(database) == in_the_log(log)
    assert "reindex" in str(shipper.trouble())
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_an_index_whose_last_row_was_changed_is_told_and_put_right_with_the_row(database: Database, log: Log) -> None:
    log.add(*EXCHANGE)
    shipper_of(database, log).ship()
    (last, *_) = indexed(database)
    database.run(
        lambda session: session.execute(update(AuditIndexRow).where(AuditIndexRow.n == last.n).values(h=b"x" * 32))
    )

    told = shipper_of(database, log)
    told.ship()
    database.run(
        lambda session: session.execute(update(AuditIndexRow).where(AuditIndexRow.n == last.n).values(h=last.h))
    )
    again = shipper_of(database, log)
    trouble = again.trouble()
    again.ship()

    assert trouble is not None
    assert again.trouble() is None


def test_damage_in_the_log_is_passed_over_and_told(database: Database, log: Log) -> None:
    log.add(*EXCHANGE)
    log.add({})
    (first, _) = segments_in(log.genesis.directory)
    first.path.chmod(0o640)
    first.path.write_bytes(first.path.read_bytes().replace(b'"usr":"usr_1"', b'"usr":"usr_7"'))
    shipper = shipper_of(database, log)

    shipper.ship()

    assert ids(indexed(database)) == ["R0003"]
    assert "damaged: segment 1" in str(shipper.trouble())


def test_a_row_that_was_changed_matches_its_line_no_more(database: Database, log: Log) -> None:
    log.add(*EXCHANGE)
    shipper_of(database, log).ship()
    rows = {row.place.n: row for row in rows_of(log)}
    (start,) = indexed(database, RecordFilter(type="llm.start"))
    table = AuditIndexRow.metadata.tables["audit_index"]

    for name, value in [("usr", "usr_9"), ("dec", "refuse"), ("off", 0), ("rest", {"x": 1}), ("h", b"y" * 32)]:
        before = getattr(start, {"off": "offset"}.get(name, name))
        for written in (value, before):
            change = update(table).where(table.columns.n == start.n).values({name: written})
            database.run(partial(execute, statement=change))
            (found,) = indexed(database, RecordFilter(type="llm.start"))
            assert matches(found, rows[start.n]) == (written == before)


# --- rebuilding -------------------------------------------------------------------------------------------------------


def rebuild(database: Database, log: Log, *, clock: ManualClock | None = None, **more: object) -> Rebuilt:
    rebuilder = IndexRebuilder(database, clock or ManualClock())
    return rebuilder.rebuild(SegmentReader(audit_settings(log.directory)), **more)  # type: ignore[arg-type]  # by name


def spoil(database: Database) -> None:
    def change(session: Session) -> None:
        session.execute(update(AuditIndexRow).values(usr="usr_wrong", rest={"wrong": True}))
        session.execute(delete(AuditIndexRow).where(AuditIndexRow.id == "R0001"))

    database.run(change)


def test_a_rebuilt_index_is_what_the_log_says_whatever_it_was_before(database: Database, log: Log) -> None:
    log.add(*RECORDS)
    shipper_of(database, log).ship()
    spoil(database)
    forged = indexed(database)[0]
    row = Row(Place(10_000, 9, 0, 9, "AAAA"), "2026-11-21T00:00:00.000000Z", "llm.end", None, "forged", "r", None, {})
    database.run(
        lambda session: session.add(
            AuditIndexRow(**{name: getattr(record_of(LOG, row), name) for name in type(forged).__slots__})
        )
    )
    told: list[int] = []

    rebuilt = rebuild(database, log, limit=2, progress=lambda rows, _: told.append(rows))

    assert indexed(database) == in_the_log(log)
    assert rebuilt.rows == 5
    assert told == sorted(told)
    assert told[-1] == 5
    assert shipper_of(database, log).ship() == Shipped()


def test_an_index_is_made_from_nothing_and_then_followed(database: Database, log: Log) -> None:
    log.add(*RECORDS)

    rebuild(database, log)
    log.add({})
    shipped = shipper_of(database, log).ship()

    assert shipped.rows == 1
    assert indexed(database) == in_the_log(log)


def test_a_rebuilding_that_was_killed_goes_on_where_it_was(database: Database, log: Log) -> None:
    clock = ManualClock()
    log.add(*RECORDS)
    shipper_of(database, log, clock).ship()
    spoil(database)

    def kill(rows: int, tail: Tail) -> None:
        if rows == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild(database, log, clock=clock, limit=2, progress=kill)
    in_between = len(indexed(database))
    rebuilt = rebuild(database, log, clock=clock, limit=2)

    assert in_between == 5
    assert rebuilt.rows == 3
    assert indexed(database) == in_the_log(log)


def test_nobody_rebuilds_while_somebody_ships_nor_ships_while_somebody_rebuilds(database: Database, log: Log) -> None:
    clock = ManualClock()
    log.add(*RECORDS)
    shipper = shipper_of(database, log, clock)
    seen: list[Shipped] = []

    rebuild(database, log, clock=clock, limit=2, progress=lambda *_: seen.append(shipper.ship()))
    database.run(partial(take_lease, name=LOG, holder="somebody", clock=clock))
    with pytest.raises(ConflictError, match="Somebody else"):
        rebuild(database, log, clock=clock)

    assert seen
    assert set(seen) == {Shipped(busy=True)}


def test_the_state_tells_how_far_the_index_has_come(database: Database, log: Log) -> None:
    log.add(*RECORDS)
    shipper_of(database, log).ship()

    (state,) = database.run(AuditIndex().states)

    assert (state.log, state.lease_holder, state.rebuilt_n, state.trouble) == (LOG, None, None, None)
    assert state.next_n > max(record.n for record in indexed(database))
    assert database.run(lambda session: session.scalars(select(AuditIndexStateRow.log)).all()) == [LOG]


def test_times_are_moments_whatever_zone_asks(shipped: Database) -> None:
    moment = datetime(2026, 11, 21, 12, 0, 3, tzinfo=UTC)
    elsewhere = moment.astimezone(tz=(datetime.now(UTC) + timedelta()).astimezone().tzinfo)

    assert ids(indexed(shipped, RecordFilter(since=elsewhere))) == ["R0005", "R0004", "R0003"]
