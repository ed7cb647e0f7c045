"""Providers added, moved and removed while the product runs: every worker heeds it, and no key goes where it was not given for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.clients import Answer, ask
from tests.support.programs import wait_until
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy

KEY, NEW_KEY = "sk-stored-canary-7Q2xW9", "sk-stored-canary-new-5R"
DOOR = "/v1/chat/completions"
# more than workers have turns: each of them was asked
ROUNDS = 12


@pytest.fixture(params=["embedded_proxy", "clustered_proxy"])
def changed(request: pytest.FixtureRequest) -> Iterator[RunningProxy]:
    """One worker with SQLite, and three with PostgreSQL behind nginx. Afterwards it is as it was."""
    running = request.getfixturevalue(request.param)
    assert isinstance(running, RunningProxy)
    yield running
    running.command("providers", "remove", "second", "--yes", check=False)


def chat(proxy: RunningProxy, model: str) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return ask(proxy, "POST", DOOR, key=proxy.shared_api_key, body=body)


def everywhere(proxy: RunningProxy, model: str, status: int) -> None:
    """Return when each of many requests in a row, each over a connection of its own, was answered so."""
    wait_until(
        lambda: all(chat(proxy, model).status == status for _ in range(ROUNDS)),
        what=f"{model} is answered with {status} everywhere",
    )


def test_a_provider_comes_moves_and_goes_while_the_product_runs(changed: RunningProxy, provider: Provider) -> None:
    proxy = changed
    with (
        Provider(reply_text="from the second", models=("second-model",)) as second,
        Provider(reply_text="from the third", models=("second-model",)) as third,
    ):
        everywhere(proxy, "second-model", 404)

        proxy.command(
            "providers", "add", "second", "--kind", "openai_compatible", "--url", second.base_url, "--model", "second-model",
            "--key-stdin", stdin=f"{KEY}\n",
        )  # fmt: skip
        everywhere(proxy, "second-model", 200)
        answer = chat(proxy, "second-model")
        assert b"from the second" in answer.body
        assert answer.headers["x-slp-provider"] == "second"
        assert {request.headers["authorization"] for request in second.received} == {f"Bearer {KEY}"}

        proxy.command("providers", "change-url", "second", third.base_url, "--yes")
        wait_until(lambda: _is_refused_everywhere(proxy), what="nobody asks a provider without its key")
        before = len(second.received)
        assert _is_refused_everywhere(proxy)
        assert len(second.received) == before
        assert third.received == []

        proxy.command("providers", "set-key", "second", "--key-stdin", stdin=f"{NEW_KEY}\n")
        everywhere(proxy, "second-model", 200)
        assert b"from the third" in chat(proxy, "second-model").body
        assert {request.headers["authorization"] for request in third.received} == {f"Bearer {NEW_KEY}"}
        assert len(second.received) == before

        proxy.command("providers", "remove", "second", "--yes")
        everywhere(proxy, "second-model", 404)
        after = len(third.received)
        assert chat(proxy, "test-model").status == 200
        assert (len(second.received), len(third.received)) == (before, after)
        assert not any("canary" in request.headers.get("authorization", "") for request in provider.received)
        assert "canary" not in proxy.log_text()


def _is_refused_everywhere(proxy: RunningProxy) -> bool:
    return all(chat(proxy, "second-model").status in {404, 503} for _ in range(ROUNDS))
