"""Several providers behind one door: what fails is answered by another, and nothing crosses what must not be crossed."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import Answer, ask, connection_to, records_of
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.programs import wait_until
from tests.support.provider import Mode, Provider
from tests.support.redis_server import PrivateRedis
from tests.support.running_proxy import RunningProxy

TOO_LONG = b'{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}'
FILE = """
providers:
  first:
    kind: openai_compatible
    base_url: {first}
    api_keys: [env:FIRST_KEYS]
    tags: {{region: us}}
  second:
    kind: openai_compatible
    base_url: {second}
    tags: {{region: eu}}
models:
  plain: &fallen
    routes: [{{provider: first, model: fallen}}]
    fallbacks: [small]
    context_fallbacks: [long]
  streamed: {{routes: [{{provider: first, model: streamed}}], fallbacks: [small]}}
  refused: *fallen
  keyed: {{routes: [{{provider: first, model: keyed}}], fallbacks: [small]}}
  pair: {{routes: [{{provider: first, model: pair}}, {{provider: second, model: pair}}]}}
  tagged: {{routes: [{{provider: first, model: tagged}}, {{provider: second, model: tagged}}]}}
  fragile: {{routes: [{{provider: first, model: fragile}}], fallbacks: [small]}}
  limited: {{routes: [{{provider: first, model: limited}}]}}
  alone: {{routes: [{{provider: first, model: alone}}]}}
  moved: {{routes: [{{provider: first, model: moved}}]}}
  careful:
    routes: [{{provider: second, model: careful}}, {{provider: second, model: other}}]
    require: {{region: eu}}
    fallbacks: [tagged]
  weighted:
    strategy: weighted
    routes: [{{provider: first, model: weighted, weight: 1}}, {{provider: second, model: weighted, weight: 3}}]
  small: {{aliases: [tiny], routes: [{{provider: second, model: small-one}}]}}
  long: {{routes: [{{provider: second, model: long-one}}]}}
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """A proxy with the models of FILE and its two providers."""

    proxy: RunningProxy
    key: str
    first: Provider
    second: Provider

    def ask(self, model: str, *, stream: bool = False, **headers: str) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": "Is all well?"}], "stream": stream}
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.proxy, "POST", "/v1/chat/completions", key=self.key, body=body, headers=sent)

    def status_over(self, connection: http.client.HTTPConnection, model: str) -> int:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Is all well?"}]})
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def report(self) -> list[dict[str, Any]]:
        """What `/security/status` tells of the providers."""
        told: list[dict[str, Any]] = json.loads(ask(self.proxy, "GET", "/security/status").body)["providers"]
        return told

    def circuits(self) -> list[dict[str, Any]]:
        return [circuit for provider in self.report() for circuit in provider["circuits"]]


@pytest.fixture(scope="module")
def started(short_folder: Path) -> Iterator[Scene]:
    home = short_folder / "several"
    home.mkdir()
    with Provider() as first, Provider() as second:
        (home / "config").mkdir()
        (home / "config" / "models.yaml").write_text(FILE.format(first=first.base_url, second=second.base_url))
        settings = {
            "FIRST_KEYS": "key-one,key-two",
            "RATE_LIMIT_PER_MINUTE": "6000",
            "RATE_LIMIT_BURST": "1000",
            "LLM_RETRIES": "1",
            "CIRCUIT_FAILURES": "6",
            # Long enough for another request while it is open, on a busy machine too.
            "CIRCUIT_OPEN_S": "5",
        }
        with RunningProxy(home, settings) as proxy:
            yield Scene(proxy, proxy.create_api_key(), first, second)


@pytest.fixture
def scene(started: Scene) -> Scene:
    started.first.clear()
    started.second.clear()
    return started


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_provider_is_not_the_users_problem(scene: Scene, stream: bool) -> None:  # noqa: FBT001  pytest's way
    scene.first.script(Mode.ERROR, status=500)

    model = "streamed" if stream else "plain"

    answer = scene.ask(model, stream=stream)

    assert answer.status == 200
    assert (answer.headers["x-slp-provider"], answer.headers["x-slp-model"]) == ("second", "small")
    assert len(scene.first.chats) == 2
    assert [request.model for request in scene.second.chats] == ["small-one"]
    kinds = [line["ty"] for line in records_of(scene.proxy, answer.headers["x-request-id"])]
    assert kinds == ["llm.start", "llm.retry", "llm.retry", "llm.end"]


def test_a_conversation_that_is_too_long_goes_where_it_fits(scene: Scene) -> None:
    scene.first.script(Mode.ERROR, status=400, body=TOO_LONG)

    answer = scene.ask("refused")

    assert (answer.status, answer.headers["x-slp-model"]) == (200, "long")
    assert len(scene.first.chats) == 1


def test_a_refusal_of_the_request_is_the_answer(scene: Scene) -> None:
    scene.first.script(Mode.ERROR, status=400, body=b'{"error":{"message":"No.","type":"invalid_request_error"}}')

    answer = scene.ask("refused")

    assert (answer.status, answer.error_code) == (400, "upstream_rejected")
    assert scene.second.chats == []


def test_the_next_route_answers_for_the_same_model(scene: Scene) -> None:
    scene.first.script(Mode.RESET_AT_BYTE, at_byte=0)

    answer = scene.ask("pair")

    assert (answer.status, answer.headers["x-slp-provider"], answer.headers["x-slp-model"]) == (200, "second", "pair")


def test_what_the_client_requires_is_never_crossed(scene: Scene) -> None:
    inside = scene.ask("tagged", X_SLP_Require="region=eu")
    scene.second.script(Mode.ERROR, status=500)
    failing = scene.ask("tagged", X_SLP_Require="region=eu")
    nowhere = scene.ask("tagged", X_SLP_Require="region=mars")

    assert (inside.status, inside.headers["x-slp-provider"]) == (200, "second")
    assert (failing.status, failing.error_code) == (502, "upstream_error")
    assert (nowhere.status, nowhere.error_code) == (400, "no_route")
    assert scene.first.chats == []


def test_what_the_model_requires_is_never_crossed_by_a_fallback(scene: Scene) -> None:
    scene.second.script(Mode.ERROR, status=500)

    answer = scene.ask("careful")

    assert answer.status == 502
    assert {request.model for request in scene.second.chats} == {"careful", "other", "tagged"}
    assert scene.first.chats == []


def test_a_key_for_one_model_is_not_answered_by_the_fallback_of_another(scene: Scene) -> None:
    scene.first.script(Mode.ERROR, status=500)
    key = scene.proxy.create_api_key(None, "--models", "keyed")

    answer = Scene(scene.proxy, key, scene.first, scene.second).ask("keyed")

    assert answer.status == 502
    assert scene.second.chats == []


def test_weights_share_the_requests(scene: Scene) -> None:
    providers = [scene.ask("weighted").headers["x-slp-provider"] for _ in range(100)]

    # Of 100, one in four: fewer than 7 or more than 48 come once in a million runs.
    assert 7 <= providers.count("first") <= 48


def test_a_limited_key_rests_and_the_other_one_answers(scene: Scene) -> None:
    scene.first.script(Mode.RATE_LIMITED, retry_after="600", times=1)

    limited = scene.ask("limited")
    answers = [scene.ask("limited").status for _ in range(4)]

    used = [request.headers["authorization"] for request in scene.first.chats]
    assert limited.status == 429
    assert answers == [200] * 4
    assert {used[0], *used[1:]} == {"Bearer key-one", "Bearer key-two"}
    assert len(set(used[1:])) == 1
    first, second = scene.report()
    assert (first["name"], first["keys"], first["resting_keys"]) == ("first", 2, 1)
    assert (second["name"], second["keys"], second["resting_keys"]) == ("second", 0, 0)


def test_a_circuit_opens_and_closes_again(scene: Scene) -> None:
    scene.first.script(Mode.ERROR, status=500)
    for _ in range(3):
        assert scene.ask("fragile").status == 200
    asked = len(scene.first.chats)

    answer = scene.ask("fragile")

    assert asked == 6
    assert answer.headers["x-slp-provider"] == "second"
    assert len(scene.first.chats) == 6, "left alone"
    assert ask(scene.proxy, "GET", "/health/ready").json["providers"] == {"first": "degraded", "second": "ok"}
    [circuit] = [one for one in scene.circuits() if one["model"] == "fragile"]
    assert circuit["state"] in {"open", "half_open"}
    shown = re.compile(rb'slp_circuits_open\{provider="first"\} [1-9]')
    wait_until(lambda: bool(shown.search(ask(scene.proxy, "GET", "/metrics").body)), what="it is shown")
    assert str(scene.first.port).encode() not in ask(scene.proxy, "GET", "/security/status").body

    scene.first.clear()
    wait_until(lambda: scene.ask("fragile").headers["x-slp-provider"] == "first", what="it is tried again")
    assert "fragile" not in {one["model"] for one in scene.circuits()}
    metrics = ask(scene.proxy, "GET", "/metrics").body
    assert b'slp_upstream_failures_total{kind="overloaded",provider="first"}' in metrics


def test_without_another_route_an_open_circuit_says_when_to_come_back(scene: Scene) -> None:
    scene.first.script(Mode.ERROR, status=500)
    answers = [scene.ask("alone") for _ in range(12)]

    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} == {502, 503}
    assert {answer.error_code for answer in refused} == {"provider_unavailable"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert b"127.0.0.1" not in b"".join(answer.body for answer in answers)
    scene.first.clear()
    wait_until(lambda: scene.ask("alone").status == 200, what="it is tried again")


def test_the_list_of_models_is_the_files(scene: Scene) -> None:
    listed = json.loads(ask(scene.proxy, "GET", "/v1/models", key=scene.key).body)["data"]

    names = [model["id"] for model in listed]
    assert names[:3] == ["plain", "streamed", "refused"]
    assert names[-1] == "tiny"
    assert scene.ask("tiny").headers["x-slp-model"] == "small"
    assert scene.ask("first/pair").status == 404


def test_a_provider_that_is_stored_while_it_runs_answers_and_is_gone_when_removed(scene: Scene) -> None:
    named = ("--model", "kept-model", "--no-key", "--tag", "region=eu")
    url = scene.second.base_url
    scene.proxy.command("providers", "add", "kept", "--kind", "openai_compatible", "--url", url, *named)

    wait_until(lambda: scene.ask("kept-model").status == 200, what="the workers know it")
    answer = scene.ask("kept/kept-model", X_SLP_Require="region=eu")
    scene.proxy.command("providers", "remove", "kept", "--yes")

    assert (answer.status, answer.headers["x-slp-provider"]) == (200, "kept")
    wait_until(lambda: scene.ask("kept-model").status == 404, what="the workers know that it is gone")


def test_the_file_is_read_anew_on_sighup_and_a_broken_one_changes_nothing(scene: Scene) -> None:
    proxy, place = scene.proxy, scene.proxy.home / "config" / "models.yaml"
    good = place.read_text()

    place.write_text(good.replace("provider: first, model: moved", "provider: frist, model: moved"))
    os.kill(proxy.pid, signal.SIGHUP)
    wait_until(lambda: "did you mean first?" in proxy.log_text(), what="the mistake is told")
    assert "not reloaded" in proxy.log_text()
    assert scene.ask("moved").headers["x-slp-provider"] == "first"

    place.write_text(good.replace("provider: first, model: moved", "provider: second, model: moved"))
    os.kill(proxy.pid, signal.SIGHUP)
    wait_until(lambda: scene.ask("moved").headers.get("x-slp-provider") == "second", what="the new route is taken")


def test_what_one_worker_learned_costs_the_others_nothing(
    short_folder: Path, postgresql: PrivatePostgreSQL, redis_server: PrivateRedis
) -> None:
    with Provider() as provider:
        settings = {
            "LLM_API_URL": provider.base_url,
            "LLM_MODELS": "only-here",
            "DATABASE_URL": postgresql.create_database(),
            "REDIS_URL": redis_server.url,
            "WORKERS": "2",
            "LLM_RETRIES": "0",
            "CIRCUIT_FAILURES": "6",
            "CIRCUIT_OPEN_S": "300",
            "RATE_LIMIT_PER_MINUTE": "6000",
        }
        with RunningProxy(short_folder / "shared", settings) as proxy, connection_to(proxy) as kept:
            scene = Scene(proxy, proxy.create_api_key(), provider, provider)
            provider.script(Mode.ERROR, status=500)
            # A connection stays with its worker: the other one has met no failure yet when it hears of this.
            wait_until(lambda: scene.status_over(kept, "only-here") == 503, what="one worker's circuit opens")

            wait_until(lambda: all(scene.circuits() for _ in range(8)), what="the other one has heard of it")
            wait_until(
                lambda: [scene.ask("only-here").status for _ in range(8)] == [503] * 8, what="so does the other's"
            )

            # Each by itself would have needed six failures.
            assert 6 <= len(provider.chats) < 12
            explained = proxy.command("models", "explain", "only-here", "--json", check=False)
            [place] = json.loads(explained.stdout)["places"]
            assert (explained.returncode, place["state"]) == (1, "left alone")
            assert json.loads(explained.stdout)["refused"]["code"] == "provider_unavailable"


def test_a_file_with_mistakes_starts_nothing(short_folder: Path) -> None:
    home = short_folder / "mistaken"
    home.mkdir()
    (home / "models.yaml").write_text("providers:\n  groq: {api_keys: [gsk-canary-5c1e]}\n  own: {kind: grok}\n")
    proxy = RunningProxy(home, {"MODELS_FILE": str(home / "models.yaml")})
    proxy.prepare()

    served = proxy.command("serve", check=False)
    examined = proxy.command("doctor", "--json", check=False)

    assert (served.returncode, examined.returncode) == (1, 1)
    for told in (served.stderr, " ".join(check["found"] for check in json.loads(examined.stdout))):
        assert "providers.groq.api_keys[0] must say where the key is" in told
        assert "did you mean groq?" in told
        assert "canary" not in told
