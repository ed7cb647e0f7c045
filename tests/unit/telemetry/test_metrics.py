"""Metrics count what happened, in a text that Prometheus reads, with labels from closed sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gevent
from prometheus_client.parser import text_string_to_metric_families

from secure_llm_proxy.telemetry import ExchangeFacts, Metrics, render_metrics

PROGRAM = """
import os, sys
from secure_llm_proxy.telemetry import ExchangeFacts, Metrics, render_metrics
metrics = Metrics()
if sys.argv[1] == "work":
    metrics.opened()
    metrics.opened()
    metrics.closed(ExchangeFacts("/chat", 429, "rate_limit_exceeded", None, 0.1, None, 0.1, None, None))
    os._exit(0) if sys.argv[2] == "die" else None
else:
    sys.stdout.write(render_metrics(metrics)[0].decode())
    print("#", metrics.security_counts())
"""


def facts(**overrides: object) -> ExchangeFacts:
    fields: dict[str, object] = {
        "door": "/chat", "status": 200, "code": None, "model": "small", "duration_s": 0.2, "upstream_s": 0.15,
        "overhead_s": 0.05, "prompt_tokens": 3, "completion_tokens": 2, **overrides,
    }  # fmt: skip
    return ExchangeFacts(**fields)  # type: ignore[arg-type]  # a maker: the fields' types are ExchangeFacts' own


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_text_parses_and_counts() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.opened()
    metrics.closed(facts())
    metrics.closed(facts(status=429, code="rate_limit_exceeded", model=None, upstream_s=None, prompt_tokens=None))
    metrics.limited_locally()

    body, content_type = render_metrics(metrics)
    told = samples(body.decode())

    assert content_type.startswith("text/plain")
    assert told["http_requests_total", (("endpoint", "/chat"), ("status", "200"))] == 1
    assert told["http_requests_total", (("endpoint", "/chat"), ("status", "429"))] == 1
    assert told["http_requests_in_progress", ()] == 1
    assert told["slp_refusals_total", (("code", "rate_limit_exceeded"),)] == 1
    assert told["slp_tokens_total", (("kind", "prompt"), ("model", "small"))] == 3
    assert told["slp_tokens_total", (("kind", "completion"), ("model", "small"))] == 2
    assert told["http_request_duration_seconds_count", (("endpoint", "/chat"),)] == 2
    assert told["slp_upstream_duration_seconds_count", ()] == 1
    assert told["slp_overhead_seconds_count", ()] == 2
    assert told["slp_limiter_local_total", ()] == 1


def test_providers_are_counted_by_name_and_kind_of_failure() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.attempted("openai")
    metrics.failed("openai", "timeout")
    metrics.show_circuits({"openai": 2, "groq": 1})

    told = samples(render_metrics(metrics)[0].decode())

    assert told["slp_upstream_attempts_total", (("provider", "openai"),)] == 3
    assert told["slp_upstream_failures_total", (("kind", "timeout"), ("provider", "openai"))] == 1
    assert told["slp_circuits_open", (("provider", "openai"),)] == 2
    metrics.show_circuits({"groq": 1})
    assert samples(render_metrics(metrics)[0].decode())["slp_circuits_open", (("provider", "openai"),)] == 0


def test_security_counts_are_sums_of_the_same_figures() -> None:
    metrics = Metrics()
    for code in (
        None,
        "rate_limit_exceeded",
        "concurrency_limit_exceeded",
        "address_blocked",
        "agent_blocked",
        "invalid_json",
    ):
        metrics.opened()
        metrics.closed(facts(code=code, status=200 if code is None else 400))
    metrics.opened()

    counts = metrics.security_counts()

    assert (counts.requests, counts.in_progress, counts.rate_limited, counts.blocked) == (6, 1, 2, 2)


def test_two_metrics_in_one_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()

    one.opened()

    assert (one.security_counts().in_progress, other.security_counts().in_progress) == (1, 0)


def test_several_workers_are_summed_and_a_dead_ones_requests_are_no_longer_in_progress(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def run(*arguments: str) -> tuple[str, int]:
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], env=environment, stdout=subprocess.PIPE, text=True
        ) as program:
            told, _ = program.communicate(timeout=60)
            assert program.returncode == 0
            return told, program.pid

    _, first = run("work", "die")
    run("work", "live")
    alive = samples(run("read")[0])
    subprocess.run(
        [sys.executable, "-c", f"from prometheus_client import multiprocess as m; m.mark_process_dead({first})"],
        env=environment, check=True, timeout=60,
    )  # fmt: skip
    text, _ = run("read")
    told = samples(text)

    assert alive["http_requests_in_progress", ()] == 2
    assert told["http_requests_in_progress", ()] == 1
    assert told["http_requests_total", (("endpoint", "/chat"), ("status", "429"))] == 2
    assert "SecurityCounts(requests=2, in_progress=1, rate_limited=2, blocked=0)" in text


# --- counted together -------------------------------------------------------------------------------------------------


def test_what_is_counted_together_is_what_is_counted_one_by_one() -> None:
    times = [0.0, 0.0005, 0.00051, 0.001, 0.0024, 0.0025, 3.0, 600.0, 601.0, 1e9]
    all_facts = [
        ExchangeFacts(
            door=f"/door{number % 2}",
            status=200 + number % 3,
            code=[None, "rate_limit_exceeded", "invalid_api_key"][number % 3],
            model=[None, "small", "large"][number % 3],
            duration_s=times[number % 10],
            upstream_s=[None, times[(number + 3) % 10]][number % 2],
            overhead_s=times[(number + 5) % 10],
            prompt_tokens=[None, 0, 7][number % 3],
            completion_tokens=number,
        )
        for number in range(60)
    ]
    one_by_one, together = Metrics(), Metrics()
    together.hold_back()

    for metrics in (one_by_one, together):
        for facts in all_facts:
            metrics.opened()
            metrics.closed(facts)
        metrics.opened()

    assert _samples(one_by_one) == _samples(together)
    assert sum(value for name, value in _samples(together).items() if "requests_total" in name) == 60


def test_counts_that_are_held_back_appear_by_themselves() -> None:
    metrics = Metrics()
    metrics.hold_back()

    metrics.opened()
    before = metrics.registry.get_sample_value("http_requests_in_progress")
    gevent.sleep(0.5)

    assert before == 0
    assert metrics.registry.get_sample_value("http_requests_in_progress") == 1


def _samples(metrics: Metrics) -> dict[str, float]:
    lines = render_metrics(metrics)[0].decode().splitlines()
    return {
        line.rpartition(" ")[0]: round(float(line.rpartition(" ")[2]), 6)
        for line in lines
        if not line.startswith("#") and "_created" not in line
    }
