"""Networks blocked while the product runs: by a command, and after too many violations; alone and over two workers."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.clients import ask, audit_lines
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.programs import wait_until
from tests.support.provider import Provider
from tests.support.redis_server import PrivateRedis
from tests.support.running_proxy import RunningProxy, UnixConnection

# Waiting here is asking until the answer is another: no limit may be met by that, which would be a violation too.
UNLIMITED = {
    "RATE_LIMIT_PER_MINUTE": "1000000",
    "RATE_LIMIT_BURST": "100000",
    "ADDRESS_RATE_LIMIT_PER_MINUTE": "1000000",
    "ADDRESS_RATE_LIMIT_BURST": "100000",
}
AFTER = 6
# Long enough to be seen by a machine that is slow, and the test waits for its end.
BLOCK_S = 20
HONEST, NEIGHBOUR = "203.0.113.7", "198.51.100.7"


@pytest.fixture(scope="module")
def embedded(provider: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    """One worker that believes the addresses that this machine's clients tell."""
    settings = {
        **UNLIMITED,
        "LLM_API_URL": provider.base_url,
        "TRUSTED_PROXIES": "127.0.0.1/32",
        "BLOCK_AFTER_VIOLATIONS": str(AFTER),
        "BLOCK_DURATION_S": str(BLOCK_S),
    }
    with RunningProxy(short_folder / "rules", settings) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def clustered(
    provider: Provider, postgresql: PrivatePostgreSQL, redis_server: PrivateRedis, short_folder: Path
) -> Iterator[RunningProxy]:
    """Two workers on a unix socket, whose clients are believed as nginx would be."""
    settings = {
        **UNLIMITED,
        "LLM_API_URL": provider.base_url,
        "DATABASE_URL": postgresql.create_database(),
        "REDIS_URL": redis_server.url,
        "WORKERS": "2",
        "BLOCK_AFTER_VIOLATIONS": str(AFTER),
    }
    with RunningProxy(short_folder / "shared-rules", settings, on_unix_socket=True) as proxy:
        yield proxy


def connection_to(proxy: RunningProxy) -> http.client.HTTPConnection:
    """Where it listens itself, with nothing in front that would overwrite what a client says of its address."""
    if proxy.base_url:
        return http.client.HTTPConnection(proxy.base_url.removeprefix("http://"), timeout=60)
    return UnixConnection(proxy.socket, timeout=60)


def ask_from(proxy: RunningProxy, address: str, key: str | None, *, agent: str = "openai") -> tuple[int, str | None]:
    """Status and error code of a question for the models, asked on a connection of its own."""
    with closing(connection_to(proxy)) as connection:
        headers = {"X-Forwarded-For": address, "User-Agent": agent}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        connection.request("GET", "/v1/models", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body)["error"]["code"] if answer.status != 200 else None


def ask_health(proxy: RunningProxy, address: str) -> int:
    with closing(connection_to(proxy)) as connection:
        connection.request("GET", "/health", headers={"X-Forwarded-For": address})
        return connection.getresponse().status


def is_answered(proxy: RunningProxy, address: str, key: str, *, refused: bool) -> bool:
    """Whether every worker, as far as several connections meet all, answers so. Asks a few times a second."""
    time.sleep(0.2)
    expected = (403, "address_blocked") if refused else (200, None)
    return all(ask_from(proxy, address, key) == expected for _ in range(8))


def events_of(lines: list[dict[str, object]], rule: str) -> set[object]:
    """Under which event refusals by a rule of that beginning are recorded, each with the rule."""
    return {
        (line["ev"], line["rule"])
        for line in lines
        if line.get("ty") == "llm.refused" and str(line.get("rule")).startswith(rule)
    }


def blocks_in(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    return [line for line in lines if line.get("act") == "address_rule.block" and line["ty"] == "admin.intent"]


@pytest.mark.parametrize("shape", ["embedded", "clustered"])
def test_a_network_blocked_by_the_command_is_refused_in_every_worker_until_it_is_removed(
    request: pytest.FixtureRequest, shape: str
) -> None:
    proxy: RunningProxy = request.getfixturevalue(shape)
    key = proxy.shared_api_key
    before = ask_from(proxy, HONEST, key)

    added = proxy.command("address-rules", "add", "--list", "blocked", "203.0.113.0/24", "--note", "journey", "--json")
    rule = json.loads(added.stdout)["id"]
    wait_until(lambda: is_answered(proxy, HONEST, key, refused=True), what="the rule is in force")
    neighbour = ask_from(proxy, NEIGHBOUR, key)
    health = ask_health(proxy, HONEST)
    proxy.command("address-rules", "remove", rule, "--yes")
    wait_until(lambda: is_answered(proxy, HONEST, key, refused=False), what="the rule is lifted")

    assert before == neighbour == (200, None)
    assert health == 200
    assert events_of(audit_lines(proxy), "address_rule:") == {("BLOCKED_IP", f"address_rule:{rule}:203.0.113.0/24")}


def test_violations_block_an_address_for_a_while_and_no_other(embedded: RunningProxy) -> None:
    attacker, key = "203.0.113.66", embedded.shared_api_key
    for _ in range(AFTER - 1):
        assert ask_from(embedded, attacker, "slp_live_wrong") == (401, "invalid_api_key")

    below = ask_from(embedded, attacker, key)
    last = ask_from(embedded, attacker, None)
    wait_until(lambda: is_answered(embedded, attacker, key, refused=True), what="the address is blocked")
    others = ask_from(embedded, NEIGHBOUR, key)
    metrics = ask(embedded, "GET", "/security/status").json["security_metrics"]
    loopback = [ask_from(embedded, "127.0.0.1", None) for _ in range(2 * AFTER)]
    wait_until(lambda: is_answered(embedded, attacker, key, refused=False), what="the block has ended", seconds=90)

    assert below == others == (200, None)
    assert last == (401, "missing_api_key")
    assert ask_from(embedded, "127.0.0.1", key) == (200, None)
    assert loopback == [(401, "missing_api_key")] * (2 * AFTER)
    assert isinstance(metrics, dict)
    assert (metrics["blocked_ips_count"], metrics["temporary_blocks_count"]) == (1, 1)
    lines = audit_lines(embedded)
    (made,) = blocks_in(lines)
    assert (made["ev"], made["by"], made["count"]) == ("BLOCKED_IP", "violations", AFTER)
    assert events_of(lines, "temporary_block:") == {("BLOCKED_IP", made["rule"])}


def test_two_workers_share_the_count_and_the_block(clustered: RunningProxy) -> None:
    attacker, key = "2001:db8:66:1::7", clustered.shared_api_key
    assert len(clustered.worker_pids()) == 2

    statuses = [ask_from(clustered, f"2001:db8:66:1::{number:x}", "slp_live_wrong")[0] for number in range(AFTER)]
    wait_until(lambda: is_answered(clustered, attacker, key, refused=True), what="both workers refuse the network")
    listed = json.loads(clustered.command("address-rules", "list", "--json").stdout)
    (block,) = [rule for rule in listed if rule["source"] == "violations"]
    clustered.command("address-rules", "remove", block["id"], "--yes")
    wait_until(lambda: is_answered(clustered, attacker, key, refused=False), what="an operator lifted it")

    assert statuses == [401] * AFTER
    assert block["network"] == "2001:db8:66:1::/64"
    assert block["note"] == f"{AFTER} violations within 300 s"
    assert len(blocks_in(audit_lines(clustered))) == 1
