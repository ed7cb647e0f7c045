"""`manage.py audit reindex`, as an operator types it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from secure_llm_proxy.audit.format import RecordLine
from secure_llm_proxy.audit.index import AuditIndex, IndexedRecord, RecordFilter
from secure_llm_proxy.audit.reading import log_lines
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.settings import load_settings
from tests.support.installation import Installation, fresh, installation_in


@pytest.fixture
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / fresh("reindex")) as installation:
        yield installation


def indexed(host: Installation) -> list[IndexedRecord]:
    database = Database(load_settings(host.environment).database)
    try:
        return database.run(lambda session: AuditIndex().search(session, RecordFilter(), limit=1000))
    finally:
        database.close()


def execute(host: Installation, statement: str) -> None:
    database = Database(load_settings(host.environment).database)
    with database.engine.begin() as connection:
        connection.execute(text(statement))
    database.close()


def in_the_log(host: Installation) -> list[str]:
    lines = log_lines(load_settings(host.environment).audit.directory)
    return [item.line.id for item in lines if isinstance(item.line, RecordLine)]


def test_the_index_is_made_from_the_segments_and_made_good_again(host: Installation) -> None:
    host.make_user("alice")

    first = host.told("audit", "reindex")
    in_between = [record.id for record in indexed(host)]
    execute(host, "UPDATE audit_index SET usr = 'usr_forged'")
    execute(host, "DELETE FROM audit_index WHERE n % 2 = 0")
    second = host.run("audit", "reindex")

    # The result of the command itself is recorded after it has looked.
    assert in_between == list(reversed(in_the_log(host)))[-len(in_between) :]
    assert first["records"] == len(in_between) >= 3
    assert second.code == 0
    assert second.output.startswith("The index of slp.default/")
    assert {record.usr for record in indexed(host)}.isdisjoint({"usr_forged"})
    assert [record.id for record in reversed(indexed(host))] == in_the_log(host)[: len(indexed(host))]
    assert len(indexed(host)) > len(in_between)


def test_it_is_recorded_like_every_change(host: Installation) -> None:
    told = host.told("audit", "reindex")

    assert host.recorded("audit.reindex", told["log"])


def test_what_is_good_of_a_damaged_log_is_indexed_and_the_damage_told(host: Installation) -> None:
    host.make_user("alice")
    directory = load_settings(host.environment).audit.directory
    (segment,) = sorted(directory.glob("*/*.jsonl.open"))
    segment.write_bytes(segment.read_bytes().replace(b'"act":"user.create"', b'"act":"user.CREATE"'))

    ended = host.run("audit", "reindex")

    assert ended.code == 1
    assert "damaged: segment 1" in ended.errors


def test_while_somebody_else_is_at_it_nothing_is_changed(host: Installation) -> None:
    told = host.told("audit", "reindex")
    execute(host, "UPDATE audit_index_state SET lease_holder = 'x', lease_until = '2999-01-01 00:00:00.000000'")
    before = indexed(host)

    ended = host.run("audit", "reindex")

    assert ended.code == 1
    assert f"Somebody else is writing the index of {told['log']}" in ended.errors
    assert indexed(host) == before
