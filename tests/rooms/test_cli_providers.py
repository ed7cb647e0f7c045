"""Commands about providers, as an operator types them, against a real server."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.installation import Installation, fresh, installation_in
from tests.support.ports import free_port
from tests.support.provider import Mode, Provider

KEY = "sk-typed-canary-7Q2xW9"


@pytest.fixture(scope="module")
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / "cli-providers") as installation:
        yield installation


@pytest.fixture(scope="module")
def far_end() -> Iterator[Provider]:
    with Provider() as server:
        yield server


def add(host: Installation, url: str, *more: str, stdin: str = f"{KEY}\n") -> str:
    name = fresh("provider").lower()
    how = () if "--no-key" in more else ("--key-stdin",)
    host.told("providers", "add", name, "--kind", "openai_compatible", "--url", url, *how, *more, stdin=stdin)
    return name


def listed(host: Installation, name: str) -> dict[str, object]:
    [found] = [each for each in host.listed("providers", "list") if each["name"] == name]
    return found


def test_a_provider_is_added_listed_and_removed_and_each_change_is_on_record_without_the_key(
    host: Installation, far_end: Provider
) -> None:
    name = fresh("eu").lower()
    more = [
        "--model", "test-model", "--model", "test-model-2", "--tag", "region=eu", "--tag", "data=personal",
        "--connect-timeout", "2.5", "--total-timeout", "90", "--path", "openai_chat=/chat/completions",
    ]  # fmt: skip

    made = host.told(
        "providers", "add", name, "--kind", "openai_compatible", "--url", f"{far_end.base_url}?api-version=1", *more,
        "--no-usage-in-streams", "--key-stdin", stdin=f"{KEY}\n{KEY}-2\n",
    )  # fmt: skip
    found = listed(host, name)
    table = host.run("providers", "list")
    removed = host.run("providers", "remove", name, "--yes")

    assert found == made
    assert {key: made[key] for key in ("kind", "base_url", "query", "key", "source", "version", "created_by")} == {
        "kind": "openai_compatible",
        "base_url": far_end.base_url,
        "query": "api-version=1",
        "key": "set",
        "source": "database",
        "version": 1,
        "created_by": f"host:{getpass.getuser()}",
    }
    assert made["models"] == ["test-model", "test-model-2"]
    assert made["tags"] == {"region": "eu", "data": "personal"}
    assert made["timeouts"] == {"connect_s": 2.5, "first_byte_s": None, "idle_s": None, "total_s": 90.0}
    assert made["paths"] == {"openai_chat": "/chat/completions"}
    assert made["usage_in_streams"] is False
    header, line = (row for row in table.output.splitlines() if row.startswith(("NAME", name)))
    assert header.split() == ["NAME", "KIND", "URL", "KEY", "MODELS", "TAGS", "SOURCE"]
    assert "region=eu,data=personal" in line
    assert removed.code == 0
    assert name not in [each["name"] for each in host.listed("providers", "list")]
    for action in ("provider.add", "provider.remove"):
        intent, result = host.recorded(action, made["id"])
        assert (intent[0]["ty"], result[0]["ty"], result[0]["ok"]) == ("admin.intent", "admin.result", True)
        assert (intent[0]["provider"], intent[0]["kind"]) == (name, "openai_compatible")
        assert intent[1]["url"] == f"{far_end.base_url}?api-version=1"
        assert far_end.base_url not in str(intent[0])
    assert host.recorded("provider.add", made["id"])[0][0]["keys"] == 2
    assert KEY.encode() not in host.everything_written()


def test_a_provider_of_a_known_kind_needs_no_url(host: Installation) -> None:
    name = fresh("mistral").lower()

    made = host.told("providers", "add", name, "--kind", "mistral", "--key-stdin", stdin=KEY)

    assert made["base_url"] == "https://api.mistral.ai/v1"
    host.run("providers", "remove", name, "--yes")


def test_a_key_is_asked_for_where_none_is_given_otherwise(host: Installation, far_end: Provider) -> None:
    name = fresh("asked").lower()
    arguments = ("providers", "add", name, "--kind", "openai_compatible", "--url", far_end.base_url)

    ended = host.run(*arguments, stdin=f"{KEY}\n")

    assert ended.code == 0, ended.errors
    assert KEY not in ended.output + ended.errors
    assert listed(host, name)["key"] == "set"


def test_a_working_provider_is_asked_as_the_proxy_would_ask(host: Installation, far_end: Provider) -> None:
    name = add(host, far_end.base_url)
    far_end.clear()

    told = host.told("providers", "test", name, "--model", "test-model")
    shown = host.run("providers", "test", name)

    assert told["ok"] is True
    steps = told["steps"]
    assert isinstance(steps, list)
    assert [(step["step"], step["ok"]) for step in steps] == [("list models", True), ("ask test-model", True)]
    assert steps[0]["what"] == "2 models"
    assert far_end.reply_text in steps[1]["what"]
    assert shown.code == 0
    assert "2 models" in shown.output
    assert [request.path for request in far_end.received] == ["/v1/models", "/v1/chat/completions", "/v1/models"]
    assert {request.headers["authorization"] for request in far_end.received} == {f"Bearer {KEY}"}


def test_a_refused_key_and_a_closed_port_are_told_with_their_cause_and_exit_1(
    host: Installation, far_end: Provider
) -> None:
    refused = add(host, far_end.base_url)
    closed = add(host, f"http://127.0.0.1:{free_port()}/v1")
    far_end.script(Mode.UNAUTHORIZED, times=1)

    first = host.run("providers", "test", refused, "--model", "test-model", "--json")
    second = host.run("providers", "test", closed)
    far_end.clear()

    assert (first.code, second.code) == (1, 1)
    told = json.loads(first.output)
    assert (told["ok"], [step["ok"] for step in told["steps"]]) == (False, [True, False])
    assert "401" in told["steps"][1]["what"]
    assert KEY not in first.output
    assert "Connection refused" in second.output


def test_a_changed_url_erases_the_key_and_nothing_is_sent_anywhere(host: Installation, far_end: Provider) -> None:
    with Provider() as elsewhere:
        name = add(host, far_end.base_url)
        far_end.clear()

        changed = host.run("providers", "change-url", name, elsewhere.base_url, "--yes")
        tested = host.run("providers", "test", name)
        state = listed(host, name)
        keyed = host.run("providers", "set-key", name, "--key-stdin", stdin="sk-new-one\n")
        works = host.run("providers", "test", name)

        assert changed.code == 0
        assert f"manage.py providers set-key {name}" in changed.output
        assert (state["key"], state["base_url"], state["version"]) == ("missing", elsewhere.base_url, 2)
        assert tested.code == 1
        assert "its key is missing" in tested.errors
        assert (keyed.code, works.code) == (0, 0)
        assert far_end.received == []
        assert [request.headers["authorization"] for request in elsewhere.received] == ["Bearer sk-new-one"]
        intent, result = host.recorded("provider.change_url", state["id"])
        assert intent[1] == {"url": elsewhere.base_url, "was": far_end.base_url}
        assert result[0]["ok"] is True


def test_whoever_does_not_agree_keeps_key_and_url(host: Installation, far_end: Provider) -> None:
    name = add(host, far_end.base_url)

    changed = host.run("providers", "change-url", name, "https://elsewhere.example/v1", stdin="n\n")
    removed = host.run("providers", "remove", name, stdin="n\n")

    assert (changed.code, removed.code) == (1, 1)
    assert "Nothing was changed." in changed.errors
    assert (listed(host, name)["key"], listed(host, name)["version"]) == ("set", 1)
    assert host.run("providers", "test", name).code == 0


def test_a_provider_without_a_key_moves_without_a_question(host: Installation, far_end: Provider) -> None:
    name = add(host, "http://localhost:11434/v1", "--no-key")

    moved = host.told("providers", "change-url", name, far_end.base_url)

    assert (moved["key"], moved["base_url"]) == ("not needed", far_end.base_url)
    assert host.run("providers", "test", name).code == 0
    assert "authorization" not in far_end.received[-1].headers


def test_the_firewall_is_told_each_place_once(host: Installation, far_end: Provider) -> None:
    twice = [add(host, "https://llm.egress.example/v1"), add(host, "https://LLM.egress.example:443/other?x=1")]
    others = [add(host, "https://[fd00::7]:8443/v1"), add(host, "http://gpu.internal/v1", "--no-key")]
    waiting = add(host, far_end.base_url)
    host.run("providers", "change-url", waiting, "https://waits-for-its-key.example", "--yes")

    printed = host.run("providers", "egress")
    places = host.listed("providers", "egress")

    lines = printed.output.splitlines()
    assert lines.count("llm.egress.example:443") == 1
    assert {"[fd00::7]:8443", "gpu.internal:80", "waits-for-its-key.example:443"} <= set(lines)
    [place] = [place for place in places if place["host"] == "llm.egress.example"]
    assert place == {
        "host": "llm.egress.example",
        "port": 443,
        "protocol": "tcp",
        "by": "web",
        "providers": sorted(twice),
        "for": ["provider"],
        "sources": ["database"],
    }
    for name in (*twice, *others, waiting):
        host.run("providers", "remove", name, "--yes")


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        (("--kind", "nonsense", "--no-key"), "", 2, "is not one of"),
        (("--kind", "azure", "--no-key"), "", 1, "have no common URL"),
        (("--kind", "openai", "--url", "https://127.1/v1", "--no-key"), "", 1, "neither a name nor an IP address"),
        (("--kind", "openai", "--url", "https://u:p@a.example", "--no-key"), "", 1, "user name or password"),
        (("--kind", "openai", "--tag", "region", "--no-key"), "", 1, "--tag wants two sides"),
        (("--kind", "openai", "--tag", "Region=EU", "--no-key"), "", 1, "can't be a tag"),
        (("--kind", "openai", "--path", "chat=/x", "--no-key"), "", 1, "no wire format"),
        (("--kind", "openai", "--path", "openai_chat=/../x", "--no-key"), "", 1, "stays below it"),
        (("--kind", "openai", "--key-stdin", "--no-key"), "", 1, "Either --key-stdin or --no-key"),
        (("--kind", "openai", "--key-stdin"), "", 1, "No key came on standard input"),
        (("--kind", "openai", "--key-stdin"), "sk with space\n", 1, "A key must be plain ASCII"),
        (("--kind", "openai", "--connect-timeout", "0", "--no-key"), "", 2, "--connect-timeout"),
        (("--kind", "openai", "--connect-timeout", "nan", "--no-key"), "", 1, "connect_s"),
    ],
)
def test_what_can_t_be_a_provider_is_refused_with_the_reason(
    host: Installation, arguments: tuple[str, ...], stdin: str, code: int, words: str
) -> None:
    before = host.listed("providers", "list")

    ended = host.run("providers", "add", "refused", *arguments, stdin=stdin)

    assert ended.code == code
    assert words in ended.errors
    assert "with space" not in ended.errors
    assert host.listed("providers", "list") == before


def test_a_name_that_is_taken_is_refused_before_a_key_is_asked_for(host: Installation, far_end: Provider) -> None:
    name = add(host, far_end.base_url)

    again = host.run("providers", "add", name, "--kind", "openai")

    assert again.code == 1
    assert f"A provider {name} stands as prv_" in again.errors
    assert "Key" not in again.errors


@pytest.mark.parametrize(
    "command", [("remove", "--yes"), ("change-url", "https://a.example", "--yes"), ("set-key", "--no-key"), ("test",)]
)
def test_a_provider_that_nobody_knows_is_said_to_be_none(host: Installation, command: tuple[str, ...]) -> None:
    ended = host.run("providers", command[0], "nobody", *command[1:])

    assert ended.code == 1
    assert "'nobody'" in ended.errors


def test_in_production_no_key_crosses_the_network_in_clear(short_folder: Path) -> None:
    with installation_in(
        short_folder / "cli-providers-strict",
        FLASK_ENV="production",
        LLM_API_URL="https://llm.example.org/v1",
        AUDIT_ENCRYPTION_ENABLED="true",
        WORKERS="1",
    ) as strict:
        arguments = ("providers", "add", "inside", "--kind", "openai_compatible", "--url", "http://10.0.0.7/v1")

        refused = strict.run(*arguments, "--key-stdin", stdin=KEY)
        keyless = strict.run(*arguments, "--no-key")

    assert (refused.code, keyless.code) == (1, 0), keyless.errors
    assert "in clear" in refused.errors


def test_the_doctor_asks_stored_providers_too_and_tells_which_want_a_key(host: Installation, far_end: Provider) -> None:
    for left in host.listed("providers", "list"):
        host.run("providers", "remove", str(left["name"]), "--yes")
    works = add(host, far_end.base_url)
    waits = add(host, far_end.base_url)
    host.run("providers", "change-url", waits, "https://waits.example/v1", "--yes")
    other_key = replace(host, environment={**host.environment, "ENCRYPTION_KEY": "another key of a test" * 2})
    without = {check["what"]: check for check in json.loads(other_key.run("doctor", "--json").output)}
    broken = add(host, f"http://127.0.0.1:{free_port()}/v1")

    checks = {check["what"]: check for check in json.loads(host.run("doctor", "--json").output)}
    status = host.told("show-status")
    for name in (works, waits, broken):
        host.run("providers", "remove", name, "--yes")

    assert "provider" not in checks
    assert (status["provider"], host.told("show-status")["provider"]) == (
        "stored in the database",
        "none, the demo model answers",
    )
    assert without["provider"]["found"] == "none: the demo model answers"
    assert without[f"provider {works}"]["found"] == "not asked: its key is unreadable"
    assert (checks[f"provider {works}"]["level"], checks[f"provider {works}"]["found"]) == ("ok", "answers, 2 models")
    assert checks[f"provider {waits}"]["level"] == "warning"
    assert checks[f"provider {waits}"]["fix"] == f"give it one: manage.py providers set-key {waits}"
    assert checks[f"provider {broken}"]["level"] == "FAILED"
