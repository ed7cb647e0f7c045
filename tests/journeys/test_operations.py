"""Health, status and metrics."""

from __future__ import annotations

import secrets

from tests.support.clients import ask
from tests.support.programs import wait_until
from tests.support.running_proxy import RunningProxy

# more than workers have turns
ROUNDS = 12


def _recover(proxy: RunningProxy, key: str) -> None:
    """Every worker remembers for a minute that its last request to the provider failed; it may have been another test's.
    Whichever is asked next is well.
    """

    def all_is_well() -> bool:
        ask(proxy, "POST", "/chat", key=key, body={"prompt": "hi"})
        return all(ask(proxy, "GET", "/health").json["status"] == "healthy" for _ in range(ROUNDS))

    wait_until(all_is_well, what="all is well", seconds=90)


def test_health_tells_a_stranger_no_more_than_it_must(proxy: RunningProxy, api_key: str) -> None:
    _recover(proxy, api_key)

    health = ask(proxy, "GET", "/health")
    api_health = ask(proxy, "GET", "/api/health")
    live = ask(proxy, "GET", "/health/live")
    ready = ask(proxy, "GET", "/health/ready")

    assert health.status == api_health.status == live.status == ready.status == 200
    assert health.json["status"] == "healthy"
    assert {"service", "version", "timestamp"} <= set(health.json)
    assert {"mode", "responseTimeMs", "dependencies"} <= set(api_health.json)
    assert ready.json["status"] == "ready"
    told = health.body + api_health.body + ready.body
    assert b"127.0.0.1" not in told
    assert str(proxy.home).encode() not in told


def test_status_shows_counts_limits_and_relaxed_settings(proxy: RunningProxy, api_key: str) -> None:
    _recover(proxy, api_key)

    def processed() -> object:
        metrics = ask(proxy, "GET", "/security/status").json["security_metrics"]
        assert isinstance(metrics, dict)
        return metrics["total_requests_processed"]

    # Each worker counts up to 0.1 s late, and another one may be asked.
    wait_until(lambda: processed() != 0, what="the request is counted")
    status = ask(proxy, "GET", "/security/status")

    assert status.status == 200
    assert status.json["relaxed_settings"] == []
    assert status.json["troubles"] == {}


def test_metrics_count_exchanges_and_label_nothing_that_a_client_wrote(proxy: RunningProxy, api_key: str) -> None:
    canary = "canary-" + secrets.token_hex(8)
    ask(proxy, "POST", "/chat", key=api_key, body={"prompt": canary})
    ask(
        proxy,
        "POST",
        "/v1/chat/completions",
        key=api_key,
        body={"model": canary, "messages": [{"role": "user", "content": "x"}]},
    )

    counted = (
        b'http_requests_total{endpoint="/chat",status="200"}',
        b'slp_refusals_total{code="model_not_found"}',
        b"slp_overhead_seconds_bucket",
    )
    # Each worker counts up to 0.1 s late, and another one may be asked.
    wait_until(lambda: all(name in ask(proxy, "GET", "/metrics").body for name in counted), what="both are counted")
    metrics = ask(proxy, "GET", "/metrics")

    text = metrics.body.decode()
    assert metrics.status == 200
    assert canary not in text
    assert api_key not in text
