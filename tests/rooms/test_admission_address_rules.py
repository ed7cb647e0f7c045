"""Address rules on real databases: made, found, removed, and seen by workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, text

from secure_llm_proxy.admission import Admission, RulesInForce
from secure_llm_proxy.admission.rules import (
    AddressRule,
    AddressRuleChanged,
    AddressRuleExists,
    AddressRules,
    NoSuchAddressRule,
    RuleList,
    RuleReader,
    RuleSource,
    TemporaryBlocks,
)
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import OperatorError, Unavailable
from secure_llm_proxy.settings import AdmissionSettings
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from tests.support.house import ListJournal, ManualClock, audit_unavailable
from tests.support.identity_room import migrated_database
from tests.support.postgresql import PrivatePostgreSQL

BLOCKED, ALLOWED = RuleList.BLOCKED, RuleList.ALLOWED


@dataclass(slots=True)
class Worker:
    """One worker's gate and what it reads its rules with."""

    admission: Admission
    reader: RuleReader

    def rule_for(self, address: str) -> str | None:
        return self.admission.admit(address, "openai").rule


@dataclass(slots=True)
class Room:
    """The admission room over one database, with time that tests turn."""

    database: Database
    settings: AdmissionSettings = field(default_factory=lambda: AdmissionSettings(block_duration_s=900))
    clock: ManualClock = field(default_factory=ManualClock)

    @property
    def rules(self) -> AddressRules:
        return AddressRules(self.settings, self.clock)

    def add(
        self, which: RuleList, network: str, *, expires_in_s: float | None = None, force: bool = False
    ) -> AddressRule:
        end = None if expires_in_s is None else self.in_seconds(expires_in_s)
        return self.database.run(
            lambda session: self.rules.add(
                session, which, network, note="a note", created_by="test", expires_at=end, force=force
            )
        )

    def remove(self, reference: str, which: RuleList | None = None, *, version: int | None = None) -> AddressRule:
        return self.database.run(lambda session: self.rules.remove(session, reference, which, version=version))

    def find(self, reference: str, which: RuleList | None = None) -> AddressRule:
        return self.database.run(lambda session: self.rules.find(session, reference, which))

    def block(self, network: str, *, duration_s: float = 900, rule_id: str = "adr_drawn") -> AddressRule:
        return self.database.run(
            lambda session: self.rules.block_temporarily(
                session, network, duration_s=duration_s, note="20 violations", rule_id=rule_id
            )
        )

    def listed(self, which: RuleList | None = None) -> list[str]:
        return [rule.network for rule in self.database.run(lambda session: self.rules.list_rules(session, which))]

    def in_seconds(self, seconds: float) -> datetime:
        return self.clock.now() + timedelta(seconds=seconds)

    def worker(self) -> Worker:
        rules = RulesInForce()
        reader = RuleReader(self.database, self.rules, rules, self.clock)
        reader.refresh()
        return Worker(Admission(self.settings, rules, self.clock), reader)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'app.db'}"
    server = request.getfixturevalue("postgresql")
    assert isinstance(server, PrivatePostgreSQL)
    return server.create_database()


@pytest.fixture
def room(url: str) -> Iterator[Room]:
    database = migrated_database(url)
    yield Room(database)
    database.close()


# --- changed by operators ---------------------------------------------------------------------------------------------


def test_a_rule_is_kept_as_it_was_told(room: Room) -> None:
    end = room.in_seconds(3600)

    made = room.add(BLOCKED, "10.0.0.0/8", expires_in_s=3600)

    assert made == AddressRule(
        made.id, BLOCKED, "10.0.0.0/8", "a note", RuleSource.OPERATOR, "test", room.clock.now(), end, 1
    )
    assert made.id.startswith("adr_")
    assert room.find(made.id) == room.find("10.0.0.0/8") == made


def test_a_network_has_one_form_however_it_is_written(room: Room) -> None:
    for written, kept in (
        ("10.1.2.3", "10.1.2.3/32"),
        (" 10.0.0.0/8 ", "10.0.0.0/8"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("2001:0DB8:0::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
    ):
        made = room.add(BLOCKED, written)

        assert made.network == kept
        with pytest.raises(AddressRuleExists, match=f"{kept} is in the list blocked already by {made.id}"):
            room.add(BLOCKED, kept)
        assert room.find(written) == made
        assert room.remove(written) == made
        assert room.listed() == []


def test_what_is_no_network_is_one_clear_sentence(room: Room) -> None:
    for text_, words in (
        ("10.0.0.1/8", "write 10.0.0.0/8 for it"),
        ("010.0.0.1", "is not an IP address"),
        ("10.0.0.0/33", "out of range"),
        ("example.org", "is not an IP address"),
        ("", "is not an IP address"),
    ):
        with pytest.raises(OperatorError, match=words):
            room.add(BLOCKED, text_)
        with pytest.raises(OperatorError, match=words):
            room.find(text_)


def test_everybody_is_blocked_only_by_force_and_may_be_allowed(room: Room) -> None:
    for everybody in ("0.0.0.0/0", "::/0", "::ffff:0:0/96"):
        with pytest.raises(OperatorError, match="lock out every client"):
            room.add(BLOCKED, everybody)

    for everybody in ("0.0.0.0/0", "::/0"):
        room.add(BLOCKED, everybody, force=True)
        room.add(ALLOWED, everybody)

    assert len(room.listed()) == 4


def test_the_same_network_may_stand_in_both_lists_and_is_then_named_with_its_list(room: Room) -> None:
    blocked, allowed = room.add(BLOCKED, "10.0.0.0/8"), room.add(ALLOWED, "10.0.0.0/8")

    with pytest.raises(OperatorError, match="both lists"):
        room.remove("10.0.0.0/8")

    assert room.find("10.0.0.0/8", ALLOWED) == allowed
    assert room.remove("10.0.0.0/8", BLOCKED) == blocked
    assert room.listed() == ["10.0.0.0/8"]


def test_what_is_not_there_is_said_so(room: Room) -> None:
    rule = room.add(ALLOWED, "10.0.0.0/8")

    for reference, which in (("adr_none", None), ("10.0.0.0/9", None), (rule.id, BLOCKED), ("10.0.0.0/8", BLOCKED)):
        with pytest.raises(NoSuchAddressRule):
            room.remove(reference, which)


def test_a_rule_that_changed_meanwhile_is_not_removed_by_who_saw_another(room: Room) -> None:
    first = room.block("203.0.113.9/32", duration_s=10)
    room.clock.advance(5)
    second = room.block("203.0.113.9/32", duration_s=10)

    with pytest.raises(AddressRuleChanged):
        room.remove(first.id, version=first.version)

    assert (first.version, second.version) == (1, 2)
    assert room.remove(first.id, version=second.version) == second


def test_a_note_is_one_short_line(room: Room) -> None:
    def add(note: str) -> AddressRule:
        return room.database.run(
            lambda session: room.rules.add(session, BLOCKED, "10.0.0.0/8", note=note, created_by="test")
        )

    for note in ("x" * 201, "two\nlines", "\x1b[31m"):
        with pytest.raises(OperatorError, match="one line"):
            add(note)

    assert add(" Ünïcode ").note == "Ünïcode"


def test_a_rule_of_the_past_and_an_opening_end_are_refused(room: Room) -> None:
    with pytest.raises(OperatorError, match="expired already"):
        room.add(BLOCKED, "10.0.0.0/8", expires_in_s=0)
    with pytest.raises(OperatorError, match="open the door to everybody"):
        room.add(ALLOWED, "10.0.0.0/8", expires_in_s=60)

    room.settings = AdmissionSettings(allowed_addresses=("192.168.0.0/16",))
    assert room.add(ALLOWED, "10.0.0.0/8", expires_in_s=60).expires_at == room.in_seconds(60)


def test_an_expired_rule_does_not_exist_and_can_be_made_again(room: Room) -> None:
    old = room.add(BLOCKED, "10.0.0.0/8", expires_in_s=60)
    room.clock.advance(60)

    assert room.listed() == []
    with pytest.raises(NoSuchAddressRule):
        room.find(old.id)
    assert room.add(BLOCKED, "10.0.0.0/8").id != old.id


def test_clean_up_deletes_what_has_expired_and_nothing_else(room: Room) -> None:
    room.add(BLOCKED, "10.0.0.0/8", expires_in_s=60)
    room.add(BLOCKED, "10.1.0.0/16", expires_in_s=61)
    room.add(BLOCKED, "10.2.0.0/16")
    room.block("203.0.113.9/32", duration_s=10)
    room.clock.advance(60)

    deleted = [room.database.run(room.rules.cleanup) for _ in range(2)]

    assert deleted == [2, 0]
    assert room.listed() == ["10.1.0.0/16", "10.2.0.0/16"]


def test_pages_follow_each_other_in_the_order_of_their_making(room: Room) -> None:
    for number in range(5):
        room.add(BLOCKED, f"10.{number}.0.0/16")
        time.sleep(0.002)  # ids sort by their millisecond

    first = room.database.run(lambda session: room.rules.list_rules(session, BLOCKED, limit=3))
    second = room.database.run(lambda session: room.rules.list_rules(session, BLOCKED, after=first[-1].id, limit=3))

    assert [rule.network for rule in first + second] == [f"10.{number}.0.0/16" for number in range(5)]
    assert len(first) == 3


def test_of_two_who_add_the_same_network_at_once_one_is_told_of_the_conflict(room: Room) -> None:
    def attempt(_number: int) -> object:
        try:
            return room.add(BLOCKED, "10.0.0.0/8").id
        except AddressRuleExists as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(attempt, range(4)))

    assert sum(isinstance(end, str) for end in ends) == 1
    assert len(room.listed()) == 1


# --- blocks after violations ------------------------------------------------------------------------------------------


def test_a_second_block_makes_the_first_longer_and_never_shorter(room: Room) -> None:
    first = room.block("203.0.113.9/32", duration_s=100)
    room.clock.advance(50)
    longer = room.block("203.0.113.9/32", duration_s=100, rule_id="adr_other")
    shorter = room.block("203.0.113.9/32", duration_s=1, rule_id="adr_third")

    assert first.id == longer.id == shorter.id == "adr_drawn"
    assert first.source is RuleSource.VIOLATIONS
    assert longer.expires_at == shorter.expires_at == room.in_seconds(100)


def test_a_block_leaves_an_operator_s_rule_as_it_is_and_gives_way_to_a_new_one(room: Room) -> None:
    rule = room.add(BLOCKED, "203.0.113.9", expires_in_s=5)

    assert room.block("203.0.113.9/32") == rule
    room.remove(rule.id)
    assert room.block("203.0.113.9/32").id == "adr_drawn"
    assert room.add(BLOCKED, "203.0.113.9").source is RuleSource.OPERATOR
    assert len(room.listed()) == 1


def test_an_operator_s_rule_that_expired_does_not_hold_a_block_off(room: Room) -> None:
    room.add(BLOCKED, "203.0.113.9", expires_in_s=5)
    room.clock.advance(5)

    assert room.block("203.0.113.9/32").source is RuleSource.VIOLATIONS


def blocks_of(room: Room, worker: Worker, journal: ListJournal) -> TemporaryBlocks:
    return TemporaryBlocks(room.settings, room.database, room.rules, journal, worker.reader, room.clock)


def test_a_block_is_recorded_before_it_is_made_and_in_force_here_at_once(room: Room) -> None:
    worker, journal = room.worker(), ListJournal([])
    seen: list[list[str]] = []
    journal.refusal = lambda _event: seen.append(room.listed())

    blocks_of(room, worker, journal).block("203.0.113.9/32", 20)

    (rule,) = room.database.run(room.rules.list_rules)
    intent, result = journal.handed_over
    assert seen == [[]]
    assert (intent.type, intent.event) == (AuditType.ADMIN_INTENT, EventName.BLOCKED_IP)
    assert (result.type, result.event, result.clear["ok"]) == (AuditType.ADMIN_RESULT, EventName.BLOCKED_IP, True)
    assert (intent.clear["subject"], intent.clear["rule"]) == (rule.id, f"temporary_block:{rule.id}")
    assert (intent.clear["by"], intent.clear["count"]) == ("violations", 20)
    assert "203.0.113.9" not in str(intent.clear)
    assert intent.body == b'{"network":"203.0.113.9/32"}'
    assert worker.rule_for("203.0.113.9") == f"temporary_block:{rule.id}"
    assert rule.expires_at == room.in_seconds(900)


def test_a_block_that_cannot_be_recorded_is_not_made(room: Room) -> None:
    worker, journal = room.worker(), ListJournal([])
    journal.refusal = lambda _event: audit_unavailable()

    with pytest.raises(Unavailable):
        blocks_of(room, worker, journal).block("203.0.113.9/32", 20)

    assert room.listed() == []
    assert worker.rule_for("203.0.113.9") is None


def test_a_longer_block_is_recorded_under_the_same_rule_and_an_operator_s_rule_stands(room: Room) -> None:
    worker, journal = room.worker(), ListJournal([])
    blocks = blocks_of(room, worker, journal)
    operator = room.add(BLOCKED, "198.51.100.1")

    blocks.block("203.0.113.9/32", 20)
    room.clock.advance(10)
    blocks.block("203.0.113.9/32", 40)
    blocks.block("198.51.100.1/32", 20)

    subjects = [event.clear["subject"] for event in journal.of(AuditType.ADMIN_INTENT)]
    assert len(subjects) == 2
    assert len(set(subjects)) == 1
    assert operator.id not in subjects


def test_there_are_only_so_many_blocks_at_once(room: Room) -> None:
    worker, journal = room.worker(), ListJournal([])
    blocks = TemporaryBlocks(room.settings, room.database, room.rules, journal, worker.reader, room.clock, blocks_max=2)

    for number in range(4):
        blocks.block(f"203.0.113.{number}/32", 20)

    assert len(room.listed()) == 2
    assert len(journal.of(AuditType.ADMIN_INTENT)) == 2


# --- seen by workers --------------------------------------------------------------------------------------------------


def test_workers_follow_every_change_at_their_next_look(room: Room) -> None:
    workers = [room.worker(), room.worker()]
    told: list[list[str | None]] = []

    def look() -> None:
        for worker in workers:
            worker.reader.refresh()
        told.append([worker.rule_for("10.1.2.3") for worker in workers])

    look()
    rule = room.add(BLOCKED, "10.1.0.0/16")
    look()
    room.remove(rule.id)
    look()
    room.add(ALLOWED, "192.0.2.0/24")
    look()

    assert told == [[None] * 2, [f"address_rule:{rule.id}:10.1.0.0/16"] * 2, [None] * 2, ["allowed_ips"] * 2]


def test_a_rule_ends_for_a_worker_without_a_look(room: Room) -> None:
    room.add(BLOCKED, "10.1.2.3", expires_in_s=60)
    worker = room.worker()

    before = worker.rule_for("10.1.2.3")
    room.clock.advance(60)

    assert before is not None
    assert worker.rule_for("10.1.2.3") is None


def test_where_nothing_changed_a_look_is_one_statement(room: Room) -> None:
    room.add(BLOCKED, "10.1.2.3")
    worker = room.worker()
    statements = watched(room.database)

    worker.reader.refresh()

    assert len(statements) == 1
    assert "address_rules_revision" in statements[0]


def test_a_row_that_nobody_can_read_keeps_no_other_rule_out_of_force(room: Room) -> None:
    room.add(BLOCKED, "10.1.2.3")
    room.add(BLOCKED, "10.1.2.4")
    with room.database.engine.begin() as connection:
        connection.execute(text("UPDATE address_rules SET network = 'nonsense' WHERE network = '10.1.2.3/32'"))

    worker = room.worker()

    assert worker.rule_for("10.1.2.4") is not None
    assert worker.rule_for("10.1.2.3") is None


def test_more_rules_than_one_page_are_all_read(room: Room) -> None:
    moment = room.clock.now()
    if room.database.is_sqlite:
        moment = moment.replace(tzinfo=None)
    with room.database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO address_rules (id, list, network, note, source, created_by, created_at, version)"
                " VALUES (:id, 'blocked', :network, '', 'operator', 'test', :at, 1)"
            ),
            [
                {"id": f"adr_{number:06}", "network": f"10.0.{number >> 8}.{number & 255}/32", "at": str(moment)}
                for number in range(2500)
            ],
        )
    room.add(BLOCKED, "2001:db8::/32")

    worker = room.worker()

    assert [
        worker.rule_for(address) is None for address in ("10.0.0.0", "10.0.4.200", "10.0.9.195", "2001:db8::1")
    ] == [False] * 4
    assert worker.rule_for("10.0.9.196") is None


def test_expired_rules_are_deleted_once_an_hour_and_forgotten(room: Room) -> None:
    worker = room.worker()
    room.block("203.0.113.9/32", duration_s=10)
    worker.reader.refresh()
    kept = worker.reader.counts().temporary
    room.clock.advance(3599)
    worker.reader.refresh()
    with room.database.engine.connect() as connection:
        left = connection.execute(text("SELECT count(*) FROM address_rules")).scalar_one()
    room.clock.advance(1)
    worker.reader.refresh()

    with room.database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM address_rules")).scalar_one() == 0
    assert (kept, left) == (1, 1)
    assert worker.reader.counts().temporary == 0


def test_a_file_that_is_away_leaves_the_last_known_rules_in_force(tmp_path: Path) -> None:
    room = Room(migrated_database(f"sqlite:///{tmp_path / 'app.db'}"))
    room.add(BLOCKED, "10.1.2.3")
    worker = room.worker()
    room.add(BLOCKED, "10.1.2.4")
    file, aside = tmp_path / "app.db", tmp_path / "aside.db"
    file.rename(aside)
    file.mkdir()

    worker.reader.refresh()
    during = worker.rule_for("10.1.2.3"), worker.rule_for("10.1.2.4")
    file.rmdir()
    aside.rename(file)
    worker.reader.refresh()

    assert during[0] is not None
    assert during[1] is None
    assert worker.rule_for("10.1.2.4") is not None
    room.database.close()


def test_a_stopped_postgresql_leaves_the_last_known_rules_in_force() -> None:
    with PrivatePostgreSQL() as server:
        room = Room(migrated_database(server.create_database()))
        rule = room.add(BLOCKED, "10.1.2.3")
        worker = room.worker()
        server.stop()

        worker.reader.refresh()
        during = worker.rule_for("10.1.2.3")
        server.start()
        room.remove(rule.id)
        worker.reader.refresh()
        room.database.close()

    assert during is not None
    assert worker.rule_for("10.1.2.3") is None


def watched(database: Database) -> list[str]:
    """Every statement from now on."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    return statements
