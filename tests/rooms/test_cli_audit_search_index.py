"""`audit search` by way of the index: the answer of the segments, sooner; and nothing that the segments do not say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from secure_llm_proxy.audit import (
    Selection,
    SocketJournal,
    newest_records,
    rows_of,
    segments_of,
    select,
)
from secure_llm_proxy.audit.index_search import indexed_lines, indexed_places, is_indexable, lines_at
from secure_llm_proxy.audit.index_shipping import IndexRebuilder
from secure_llm_proxy.audit.models import AuditIndexRow, AuditIndexStateRow
from secure_llm_proxy.audit.segment_reader import SegmentReader
from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.identifiers import RecordId
from secure_llm_proxy.settings import load_settings
from secure_llm_proxy.settings.database_url import normalise_database_url
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from tests.support.audit_log import event
from tests.support.identity_room import migrated_database
from tests.support.installation import Installation, fresh, installation_in
from tests.support.postgresql import PrivatePostgreSQL

PROJECT = "prj_01KAHG0000000000000000TEST"


class IndexedHost:
    """An installation whose index is brought up to date when a test says so."""

    def __init__(self, installation: Installation) -> None:
        self.run, self.listed = installation.run, installation.listed
        self.settings = load_settings(installation.environment)
        self.database = Database(self.settings.database)

    def index(self, database: Database | None = None) -> None:
        rebuilder = IndexRebuilder(database or self.database, SystemClock())
        rebuilder.rebuild(SegmentReader(self.settings.audit), afresh=True)

    def record(self, *events: AuditEvent) -> None:
        journal = SocketJournal(self.settings.audit)
        try:
            for one in events:
                journal.record(one)
        finally:
            journal.close()

    def found(self, *question: str) -> list[object]:
        return [row["id"] for row in self.listed("audit", "search", *question)]


@pytest.fixture(scope="module")
def host(short_folder: Path) -> Iterator[IndexedHost]:
    with installation_in(short_folder / "indexed", AUDIT_HOST_ID="here") as installation:
        made = IndexedHost(installation)
        yield made
        made.database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, host: IndexedHost) -> Iterator[Database]:
    if request.param == "sqlite":
        yield host.database
        return
    server = request.getfixturevalue("postgresql")
    assert isinstance(server, PrivatePostgreSQL)
    made = migrated_database(normalise_database_url(server.create_database()))
    yield made
    made.close()


def test_every_question_has_the_same_answer_with_and_without_the_index(host: IndexedHost, database: Database) -> None:
    word = fresh("i")
    user, kid, other = f"usr_{word}", word[:8], word[1:9]
    identity: dict[str, ClearValue] = {"ak": kid, "usr": user, "prj": PROJECT, "sub": "s_" + "0a" * 8}
    exchange, start, leak = f"exc_{word}", f"S{word}", f"L{word}"

    def record(name: str, kind: AuditType, rid: str, told: EventName | None, **clear: ClearValue) -> AuditEvent:
        return AuditEvent(RecordId(name), kind, rid, told, clear)

    host.record(
        record(start, AuditType.LLM_START, exchange, EventName.CHAT_REQUEST, **identity, dec="allow"),
        record(f"P{word}", AuditType.LLM_PART, exchange, None, **identity, sid=start, seq=0),
        record(
            f"E{word}",
            AuditType.LLM_END,
            exchange,
            None,
            **identity,
            sid=start,
            st="complete",
            http=200,
            mdl="\u00fc" * 20,
        ),
        record(f"R{word}", AuditType.REFUSED, "exc_x", EventName.RATE_LIMIT_EXCEEDED, **identity, http=429, code=word),
        record(
            leak, AuditType.ADMIN_INTENT, "adm_1", EventName.SECURITY_EVENT, subject=kid, user=user, request=exchange
        ),
        record(
            f"O{word}", AuditType.ADMIN_RESULT, "adm_2", None, subject=kid, user="usr_y", new=other, by=f"user:{user}"
        ),
        record(f"T{word}", AuditType.REFUSED, "exc_y", None, subject=kid, mdl="m" * 100, dec="%"),
    )
    host.index(database)
    log, lines = "slp.default/here", database.run(lambda session: indexed_lines(session, "slp.default/here"))
    segments = segments_of(host.settings.audit)

    def by_index(wanted: Selection) -> list[str]:
        assert is_indexable(wanted)
        places = database.run(lambda session: indexed_places(session, log, wanted, below=lines, limit=100))
        return [row.id for row in rows_of(select(lines_at(segments, places), wanted))]

    def scanned(wanted: Selection) -> list[str]:
        return [row.id for row in newest_records(segments, wanted, 100)]

    def both(*, named: bool = False, **wanted: str) -> list[str]:
        selection = replace(Selection(**wanted), named=named)  # type: ignore[arg-type]
        found = by_index(selection)
        assert found == scanned(selection)
        # Initials are enough.
        return [name[:1] for name in found if name.endswith(word)]

    assert both() == list("SPERLOT")
    assert both(user=user) == list("SPERLO")
    assert both(user="usr_y") == ["O"]
    assert both(key=kid) == list("SPERLO")
    assert both(key=other) == ["O"]
    assert both(project=PROJECT, person="s_" + "0a" * 8) == list("SPER")
    assert both(model="\u00fc" * 20) == ["E"]
    assert both(decision="%") == ["T"]
    assert both(decision="allow", event="CHAT_REQUEST", type="llm.start") == ["S"]
    assert both(named=True) == list("SRL")
    assert both(status="429", user=user) == both(status=word) == ["R"]
    assert both(status="complete", user=user) == both(status="200", user=user) == ["E"]
    assert both(request=exchange) == list("SPEL")
    assert both(request=start) == list("SPE")
    assert both(request=leak) == ["L"]
    assert both(since="2026-01-01T00:00:00.000000Z", user=user) == list("SPERLO")
    for nothing in (
        {"status": "0429"},
        {"status": "9" * 30},
        {"event": "%"},
        {"until": "2026-01-01T00:00:00.000000Z"},
        {"user": "x"},
    ):
        assert both(**nothing) == []  # type: ignore[arg-type]
    assert not is_indexable(Selection(request="m" * 100))


def test_what_the_index_has_not_come_to_is_found_all_the_same(host: IndexedHost) -> None:
    word = fresh("late")
    first, second = event(mdl=word), event(mdl=word)
    host.record(first)
    host.index()
    host.record(second)

    assert host.found("--model", word) == [first.id, second.id]
    assert host.found("--model", word, "--limit", "1") == [second.id]


def test_the_index_is_asked_unless_the_segments_are_wanted(host: IndexedHost) -> None:
    word = fresh("hidden")
    one = event(mdl=word)
    host.record(one)
    host.index()
    host.database.run(lambda session: session.execute(delete(AuditIndexRow).where(AuditIndexRow.id == one.id)) and None)

    assert host.found("--model", word) == []
    assert host.found("--model", word, "--scan") == [one.id]


@pytest.mark.parametrize("lie", [{"h": bytes(32)}, {"offset": 1 << 40}, {"offset": 0}, {"length": 5}, {"seg": 999}])
def test_an_index_that_lies_about_a_record_is_not_believed(host: IndexedHost, lie: dict[str, object]) -> None:
    word = fresh("lie")
    one = event(mdl=word)
    host.record(one)
    host.index()
    told = update(AuditIndexRow).where(AuditIndexRow.id == one.id).values(**lie)
    host.database.run(lambda session: session.execute(told) and None)

    ended = host.run("audit", "search", "--model", word)

    assert one.id in ended.output
    assert "the index in the database is not what the log says" in ended.errors


def test_a_record_that_the_index_attributes_to_another_is_not_shown_as_that(host: IndexedHost) -> None:
    word = fresh("other")
    one = event(mdl=fresh("mine"))
    host.record(one)
    host.index()
    told = update(AuditIndexRow).where(AuditIndexRow.id == one.id).values(mdl=word)
    host.database.run(lambda session: session.execute(told) and None)

    assert host.found("--model", word) == []


@pytest.mark.parametrize("state", [{"trouble": "it differs"}, {"rebuilt_n": 5}])
def test_an_index_in_trouble_is_not_asked(host: IndexedHost, state: dict[str, object]) -> None:
    word = fresh("trouble")
    one = event(mdl=word)
    host.record(one)
    host.index()
    host.database.run(lambda session: session.execute(delete(AuditIndexRow).where(AuditIndexRow.id == one.id)) and None)
    host.database.run(lambda session: session.execute(update(AuditIndexStateRow).values(**state)) and None)

    assert host.found("--model", word) == [one.id]


def test_a_database_that_is_away_is_no_hindrance(host: IndexedHost, short_folder: Path) -> None:
    with installation_in(short_folder / "away") as other:
        journal = SocketJournal(load_settings(other.environment).audit)
        one = event(mdl="lonely")
        journal.record(one)
        journal.close()
        away = Installation(
            other.directory, {**other.environment, "DATABASE_URL": f"sqlite:///{other.directory}/none/x.db"}
        )

        assert [row["id"] for row in away.listed("audit", "search", "--model", "lonely")] == [one.id]
        assert away.run("audit", "search", "--user", "alice").code == 1
