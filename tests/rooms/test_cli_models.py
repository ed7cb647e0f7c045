"""Commands about models, as an operator types them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installation import Ended, Installation, installation_in
from tests.support.ports import free_port
from tests.support.provider import Provider

FILE = """
providers:
  own: {{kind: openai_compatible, base_url: {url}, tags: {{region: eu}}}}
  groq: {{api_keys: env:ANY_KEY, tags: {{region: us}}}}
models:
  smart:
    aliases: [default]
    routes: [{{provider: groq, model: big}}, {{provider: own, model: test-model}}]
    fallbacks: [small]
    context_tokens: 8000
  shared:
    strategy: weighted
    routes: [{{provider: groq, model: big, weight: 2}}, {{provider: own, model: test-model}}]
  small: {{routes: [{{provider: own, model: test-model-2}}], capabilities: [tools]}}
"""


@pytest.fixture(scope="module")
def far_end() -> Iterator[Provider]:
    with Provider() as server:
        yield server


@pytest.fixture(scope="module")
def host(short_folder: Path, far_end: Provider) -> Iterator[Installation]:
    file = short_folder / "cli-models.yaml"
    file.write_text(FILE.format(url=far_end.base_url))
    with installation_in(
        short_folder / "cli-models", MODELS_FILE=str(file), ANY_KEY="gsk-canary-5c1e", PORT=str(free_port())
    ) as installation:
        yield installation


@pytest.fixture(scope="module")
def plain(short_folder: Path, far_end: Provider) -> Iterator[Installation]:
    """A host with one provider whose own list is on offer."""
    folder = short_folder / "cli-plain-models"
    with installation_in(folder, LLM_API_URL=far_end.base_url, PORT=str(free_port())) as installation:
        yield installation


def states(ended: Ended) -> list[list[str]]:
    """Role, provider, model and state of each line of a table."""
    return [
        [cell.strip() for cell in line.replace("  ", "\t").split("\t") if cell.strip()][:4]
        for line in ended.output.splitlines()[1:]
    ]


def test_the_models_of_the_file_are_listed_with_their_routes(host: Installation) -> None:
    table = host.run("models", "list")
    told = host.listed("models", "list")

    assert table.code == 0
    assert "groq/big,own/test-model" in table.output
    assert [model["name"] for model in told] == ["smart", "shared", "small"]
    assert told[0]["also"] == ["default"]
    assert told[0]["routes"] == [
        {"provider": "groq", "model": "big", "weight": 1},
        {"provider": "own", "model": "test-model", "weight": 1},
    ]
    assert told[2]["capabilities"] == ["tools"]
    assert "canary" not in table.output + str(told)


def test_a_providers_own_list_is_asked_for(plain: Installation) -> None:
    told = plain.listed("models", "list")

    assert [(model["name"], model["also"]) for model in told] == [
        ("test-model", ["openai_compatible/test-model"]),
        ("test-model-2", ["openai_compatible/test-model-2"]),
    ]


def test_the_way_of_a_request_is_explained(host: Installation) -> None:
    ended = host.run("models", "explain", "default")

    assert ended.code == 0
    assert "could not be asked what it leaves alone" in ended.errors
    assert states(ended) == [
        ["route", "groq", "big", "first"],
        ["route", "own", "test-model", "next"],
        ["fallback", "own", "test-model-2", "ready"],
    ]


def test_why_a_route_is_passed_over_is_told(host: Installation) -> None:
    by_tag = host.run("models", "explain", "smart", "--tag", "region=eu")
    by_need = host.told("models", "explain", "smart", "--needs", "logprobs")

    assert states(by_tag)[:2] == [["route", "groq", "big", "passed over"], ["route", "own", "test-model", "first"]]
    assert "its provider has not the tags that the client asks for" in by_tag.output
    places = by_need["places"]
    assert isinstance(places, list)
    assert [(place["state"], place["why"]) for place in places] == [
        ("passed over", "it lacks logprobs"),
        ("first", None),
        ("passed over", "it lacks logprobs"),
    ]


def test_chance_is_told_as_such(host: Installation) -> None:
    assert [line[3] for line in states(host.run("models", "explain", "shared"))] == ["by weight", "by weight"]


def test_what_would_be_refused_ends_with_1_and_the_reason(host: Installation) -> None:
    nowhere = host.run("models", "explain", "smart", "--tag", "region=mars", "--json")
    unknown = host.run("models", "explain", "smrat")
    embedding = host.run("models", "explain", "small", "--needs", "embeddings", "--format", "openai_embeddings")
    misspelt = host.run("models", "explain", "smart", "--tag", "region")

    assert (nowhere.code, '"code": "no_route"' in nowhere.output) == (1, True)
    assert (unknown.code, "Did you mean smart?" in unknown.errors) == (1, True)
    assert (embedding.code, "no_route" in embedding.errors) == (1, True)
    assert (misspelt.code, "is not NAME=VALUE" in misspelt.errors) == (2, True)


def test_a_provider_that_tells_no_models_is_named(short_folder: Path) -> None:
    environment = {"LLM_API_URL": f"http://127.0.0.1:{free_port()}/v1", "PORT": str(free_port())}
    with installation_in(short_folder / "cli-untold", **environment) as untold:
        ended = untold.run("models", "list")

        assert ended.code == 1
        assert "list of models is unavailable" in ended.errors


def test_without_a_provider_the_commands_say_where_to_look(short_folder: Path) -> None:
    with installation_in(short_folder / "cli-none", PORT=str(free_port())) as bare:
        ended = bare.run("models", "list")

        assert (ended.code, "docs/providers.md" in ended.errors) == (1, True)
