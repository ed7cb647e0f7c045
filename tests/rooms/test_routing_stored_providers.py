"""Providers in the database: what is sealed stays sealed, for one name at one origin only, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.orm import Session

from secure_llm_proxy.cli.database_schema import run_migrations
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.routing.stored_providers import (
    KeyState,
    NoSuchStoredProvider,
    StoredProvider,
    StoredProviderChanged,
    StoredProviderExists,
    StoredProviderReader,
    StoredProviders,
    origin_of,
)
from secure_llm_proxy.settings import DatabaseSettings
from secure_llm_proxy.settings.database_url import normalise_database_url
from secure_llm_proxy.vocabulary.providers import Patience, ProviderDefinition
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.postgresql import PrivatePostgreSQL

SEAL_KEY = bytes(range(32))
KEY, SECOND_KEY = "sk-stored-canary-1", "sk-stored-canary-2"
DEFINITION = ProviderDefinition(
    name="eu-openai",
    kind="openai",
    base_url="https://eu.api.openai.com/v1",
    keys=(SecretStr(KEY), SecretStr(SECOND_KEY)),
    query="api-version=1",
    models=("gpt-4o", "gpt-4o-mini"),
    patience=Patience(connect_s=2.5, total_s=300.0),
    tags={"region": "eu", "data": "personal"},
    formats={WireFormat.OPENAI_CHAT: "/chat/completions"},
    usage_in_streams=False,
    source="database",
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('providers') / 'app.db'}"
    else:
        server = request.getfixturevalue("postgresql")
        assert isinstance(server, PrivatePostgreSQL)
        url = normalise_database_url(server.create_database())
    opened = Database(DatabaseSettings.model_validate({"url": url}))
    run_migrations(opened.engine, "upgrade", "head")
    yield opened
    opened.close()


@pytest.fixture
def stored(database: Database) -> Iterator[StoredProviders]:
    yield StoredProviders(database, SEAL_KEY)
    execute(database, "DELETE FROM providers")


def execute(database: Database, statement: str, **values: object) -> None:
    database.run(lambda session: session.execute(text(statement), values))


def add(database: Database, stored: StoredProviders, definition: ProviderDefinition = DEFINITION) -> StoredProvider:
    return database.run(lambda session: stored.add(session, definition, created_by="host:tester"))


def sealed(database: Database, name: str = DEFINITION.name) -> bytes | None:
    def read(session: Session) -> bytes | None:
        found = session.execute(
            text("SELECT sealed_keys FROM providers WHERE name = :name"), {"name": name}
        ).scalar_one()
        return None if found is None else bytes(found)

    return database.run(read)


def test_what_is_stored_comes_back_whole_and_the_keys_only_from_definitions(
    database: Database, stored: StoredProviders
) -> None:
    shown = add(database, stored)

    assert stored.definitions() == (DEFINITION,)
    assert shown.definition == replace(DEFINITION, keys=())
    assert (shown.key_state, shown.version, shown.created_by) == (KeyState.SET, 1, "host:tester")
    assert database.run(lambda session: stored.find(session, "eu-openai")) == shown
    assert database.run(stored.list_providers) == [shown]
    assert KEY not in repr(shown)
    assert KEY not in repr(stored.definitions())


def test_a_provider_that_needs_no_key_is_asked_without(database: Database, stored: StoredProviders) -> None:
    local = ProviderDefinition("ollama", "openai_compatible", "http://localhost:11434/v1", source="database")

    shown = add(database, stored, local)

    assert shown.key_state is KeyState.NOT_NEEDED
    assert stored.definitions() == (local,)


def test_no_key_stands_in_the_database_in_clear(database: Database, stored: StoredProviders) -> None:
    add(database, stored)

    def dump(session: Session) -> str:
        return str(session.execute(text("SELECT * FROM providers")).all())

    dumped = database.run(dump)
    box = sealed(database)
    assert box is not None
    assert "eu-openai" in dumped
    assert "canary" not in dumped
    assert b"canary" not in box


def test_the_same_keys_are_sealed_differently_each_time(database: Database, stored: StoredProviders) -> None:
    add(database, stored)
    first = sealed(database)

    database.run(lambda session: stored.set_keys(session, "eu-openai", DEFINITION.keys))

    assert sealed(database) != first
    assert stored.definitions() == (DEFINITION,)


@pytest.mark.parametrize(
    "url", ["https://eu.api.openai.com/v2", "https://evil.example/v1", "http://eu.api.openai.com/v1", "https://eu.api.openai.com:8443/v1"]
)  # fmt: skip
def test_a_changed_url_erases_the_keys_and_nothing_is_asked_until_there_are_others(
    database: Database, stored: StoredProviders, url: str
) -> None:
    add(database, stored)

    changed = database.run(lambda session: stored.change_url(session, "eu-openai", url))

    assert sealed(database) is None
    assert (changed.key_state, changed.definition.base_url, changed.definition.query) == (KeyState.MISSING, url, "")
    assert stored.definitions() == ()

    database.run(lambda session: stored.set_keys(session, "eu-openai", [SecretStr("sk-new")]))

    [definition] = stored.definitions()
    assert (definition.base_url, definition.keys) == (url, (SecretStr("sk-new"),))


@pytest.mark.parametrize(
    "url",
    ["https://evil.example/v1", "http://eu.api.openai.com/v1", "https://eu.api.openai.com:444/v1", "https://eu.api.openai.com.evil/v1"],
)  # fmt: skip
def test_a_url_changed_in_the_row_itself_gets_no_key(database: Database, stored: StoredProviders, url: str) -> None:
    """Whoever can write to the database, and has no ENCRYPTION_KEY, points the provider to a server of theirs."""
    add(database, stored)

    execute(database, "UPDATE providers SET base_url = :url", url=url)

    assert stored.definitions() == ()
    assert database.run(stored.list_providers)[0].key_state is KeyState.UNREADABLE


def test_keys_moved_to_another_row_or_name_are_of_no_use(database: Database, stored: StoredProviders) -> None:
    add(database, stored)
    other = replace(DEFINITION, name="mine", base_url="https://evil.example/v1", keys=(SecretStr("sk-mine"),))
    same_place = replace(DEFINITION, name="twin", keys=(SecretStr("sk-twin"),))
    add(database, stored, other)
    add(database, stored, same_place)
    box = sealed(database)

    execute(database, "UPDATE providers SET sealed_keys = :box WHERE name IN ('mine', 'twin')", box=box)

    assert [definition.name for definition in stored.definitions()] == ["eu-openai"]


@pytest.mark.parametrize("where", [0, 1, 12, 13, 40, -1])
def test_a_box_that_was_changed_anywhere_is_not_opened(database: Database, stored: StoredProviders, where: int) -> None:
    add(database, stored)
    box = sealed(database)
    assert box is not None
    changed = bytearray(box)
    changed[where] ^= 1

    execute(database, "UPDATE providers SET sealed_keys = :box", box=bytes(changed))

    assert stored.definitions() == ()


@pytest.mark.parametrize("box", [b"", b"\x01", b"\x01" + b"x" * 12, b"\x01" + b"x" * 13])
def test_a_box_that_is_none_is_not_opened(database: Database, stored: StoredProviders, box: bytes) -> None:
    add(database, stored)

    execute(database, "UPDATE providers SET sealed_keys = :box", box=box)

    assert stored.definitions() == ()


def test_another_encryption_key_opens_nothing_and_leaves_the_others_alone(
    database: Database, stored: StoredProviders
) -> None:
    add(database, stored)
    local = ProviderDefinition("ollama", "openai_compatible", "http://localhost:11434/v1", source="database")
    add(database, stored, local)

    assert StoredProviders(database, bytes(32)).definitions() == (local,)


def test_a_kind_that_this_version_does_not_know_is_left_out(database: Database, stored: StoredProviders) -> None:
    add(database, stored)

    execute(database, "UPDATE providers SET kind = 'of_the_future'")

    assert stored.definitions() == ()
    assert len(database.run(stored.list_providers)) == 1


def test_a_removed_provider_is_gone_with_its_keys(database: Database, stored: StoredProviders) -> None:
    added = add(database, stored)

    removed = database.run(lambda session: stored.remove(session, "eu-openai"))

    assert removed == added
    assert stored.definitions() == ()
    for again in (stored.remove, stored.find):
        with pytest.raises(NoSuchStoredProvider, match="eu-openai"):
            database.run(lambda session, again=again: again(session, "eu-openai"))  # type: ignore[misc]


def test_a_name_is_given_once(database: Database, stored: StoredProviders) -> None:
    added = add(database, stored)

    with pytest.raises(StoredProviderExists, match=added.id):
        add(database, stored, replace(DEFINITION, base_url="https://evil.example/v1"))

    assert stored.definitions() == (DEFINITION,)


def test_who_looked_at_an_older_version_changes_nothing(database: Database, stored: StoredProviders) -> None:
    add(database, stored)
    database.run(lambda session: stored.set_keys(session, "eu-openai", [SecretStr("sk-2")], version=1))

    for change in (
        lambda session: stored.remove(session, "eu-openai", version=1),
        lambda session: stored.change_url(session, "eu-openai", "https://evil.example/v1", version=1),
        lambda session: stored.set_keys(session, "eu-openai", [SecretStr("sk-3")], version=1),
    ):
        with pytest.raises(StoredProviderChanged):
            database.run(change)

    [definition] = stored.definitions()
    assert (definition.base_url, definition.keys) == (DEFINITION.base_url, (SecretStr("sk-2"),))


def test_each_change_advances_the_revision_and_one_that_fails_does_not(
    database: Database, stored: StoredProviders
) -> None:
    seen = [stored.revision()]
    add(database, stored)
    seen.append(stored.revision())
    database.run(lambda session: stored.change_url(session, "eu-openai", "https://b.example/v1"))
    seen.append(stored.revision())
    database.run(lambda session: stored.set_keys(session, "eu-openai", [SecretStr("sk-2")]))
    seen.append(stored.revision())
    with pytest.raises(StoredProviderExists):
        add(database, stored)
    with pytest.raises(NoSuchStoredProvider):
        database.run(lambda session: stored.remove(session, "nobody"))
    assert stored.revision() == seen[-1]
    database.run(lambda session: stored.remove(session, "eu-openai"))
    seen.append(stored.revision())

    assert [after - before for before, after in pairwise(seen)] == [1, 1, 1, 1]


def test_of_many_at_once_one_wins(database: Database, stored: StoredProviders) -> None:
    add(database, stored)
    outcomes: list[str] = []

    def change(number: int) -> None:
        try:
            database.run(
                lambda session: stored.change_url(session, "eu-openai", f"https://h{number}.example/v1", version=1)
            )
            outcomes.append(f"https://h{number}.example/v1")
        except StoredProviderChanged:
            outcomes.append("")

    threads = [threading.Thread(target=change, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    [winner] = [outcome for outcome in outcomes if outcome]
    assert len(outcomes) == 6
    assert database.run(stored.list_providers)[0].definition.base_url == winner


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "provider's name"),
        ({"name": "Eu"}, "provider's name"),
        ({"name": "a b"}, "provider's name"),
        ({"name": "x" * 65}, "provider's name"),
        ({"name": "a\r\nb"}, "provider's name"),
        ({"kind": "nonsense"}, "no kind of provider 'nonsense'"),
        ({"base_url": "api.openai.com"}, "https://host"),
        ({"base_url": "ftp://user:sk-pw@a.example"}, "https://host"),
        ({"base_url": "https://user:sk-pw@a.example/v1"}, "user name or password"),
        ({"base_url": "https://a.example/v1?x=1"}, "given apart"),
        ({"base_url": "https://a.example/v1#x"}, "given apart"),
        ({"base_url": "https://a.example/v1/"}, "slash"),
        ({"base_url": "https://a.example:99999"}, "not a URL"),
        ({"base_url": "https://a.ex\nample"}, "https://host"),
        ({"base_url": "https://a.example/" + "x" * 500}, "500"),
        ({"query": "a b"}, "plain ASCII"),
        ({"query": "a#b"}, "plain ASCII"),
        ({"query": "a\r\nb"}, "plain ASCII"),
        ({"keys": (SecretStr("sk with space"),)}, "A key must be"),
        ({"keys": (SecretStr("sk\r\nX-A: b"),)}, "A key must be"),
        ({"keys": (SecretStr(""),)}, "A key must be"),
        ({"keys": (SecretStr("sk"),) * 33}, "at most 32"),
        ({"models": ("",)}, "model's name"),
        ({"models": ("a\nb",)}, "model's name"),
        ({"tags": {"region": "EU west"}}, "can't be a tag"),
        ({"tags": {"": "eu"}}, "can't be a tag"),
        ({"patience": Patience(connect_s=0)}, "connect_s"),
        ({"patience": Patience(total_s=float("nan"))}, "total_s"),
        ({"formats": {WireFormat.OPENAI_CHAT: "chat"}}, "begins with /"),
        ({"formats": {WireFormat.OPENAI_CHAT: "/../chat"}}, "begins with /"),
        ({"formats": {WireFormat.OPENAI_CHAT: "/a b"}}, "begins with /"),
    ],
)
def test_what_can_t_be_a_provider_is_refused_in_a_sentence_without_the_key(
    stored: StoredProviders, change: dict[str, object], words: str
) -> None:
    with pytest.raises(OperatorError, match=words) as caught:
        stored.require_addable(replace(DEFINITION, **change))  # type: ignore[arg-type]

    assert "X-A" not in str(caught.value)
    assert "sk with" not in str(caught.value)
    assert "sk-pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com:443"),
        ("https://API.OpenAI.com:443", "https://api.openai.com:443"),
        ("http://gpu/v1", "http://gpu:80"),
        ("http://[FD00::7]:8000/v1", "http://[fd00::7]:8000"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example:443"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: str) -> None:
    assert origin_of(url) == origin


def test_a_reader_tells_of_changes_once_and_keeps_what_it_has_while_the_database_is_away(
    database: Database, stored: StoredProviders, tmp_path: Path
) -> None:
    told: list[tuple[ProviderDefinition, ...]] = []
    reader = StoredProviderReader(stored, told.append)

    reader.refresh()
    reader.refresh()
    add(database, stored)
    reader.refresh()
    reader.refresh()
    database.run(lambda session: stored.change_url(session, "eu-openai", "https://evil.example/v1"))
    reader.refresh()

    assert told == [(), (DEFINITION,), ()]

    empty = Database(DatabaseSettings.model_validate({"url": f"sqlite:///{tmp_path / 'empty.db'}"}))
    StoredProviderReader(StoredProviders(empty, SEAL_KEY), told.append).refresh()
    empty.close()

    assert len(told) == 3


def test_a_change_that_could_not_be_taken_is_offered_again_and_told_once(
    database: Database, stored: StoredProviders, caplog: pytest.LogCaptureFixture
) -> None:
    offered: list[int] = []

    def take(definitions: tuple[ProviderDefinition, ...]) -> None:
        offered.append(len(definitions))
        if len(offered) < 3:
            raise OperatorError("not now")

    reader = StoredProviderReader(stored, take)
    add(database, stored)

    for _ in range(5):
        reader.refresh()

    assert offered == [1, 1, 1]
    assert [record.message for record in caplog.records] == ["stored providers can't be used, the last known ones stay"]
