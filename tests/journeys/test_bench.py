"""bench/run does what its help says. Nothing here judges a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.profiling import read_stacks

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 240
_REQUESTS_AT_LEAST = 10


def _bench(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "bench" / program), *arguments],
        env={**os.environ, "BENCH_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
    )


def test_a_quick_run_completes_and_its_counts_add_up(tmp_path: Path) -> None:
    told = tmp_path / "figures.json"

    done = _bench("run", "--quick", "--only", "nginx,embedded", "--json", str(told), "--cache", str(tmp_path / "cache"))

    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads(told.read_text("utf-8"))
    assert figures["valid"] is True
    assert figures["problems"] == []
    assert {(each["target"], each["clients"]) for each in figures["plain"]} == {
        (target, clients) for target in ("nginx", "embedded") for clients in (1, 8)
    }
    for each in figures["plain"]:
        assert each["requests"] > _REQUESTS_AT_LEAST
        assert each["refused"] == each["broken"] == 0
        assert each["requests"] <= each["asked_upstream"] <= each["requests"] + each["clients"]
    for each in figures["plain"]:
        if each["target"] == "embedded":
            # a client that left before its request was sent upstream is recorded all the same
            assert each["audit_records"] % 2 == 0
            assert each["asked_upstream"] <= each["audit_records"] / 2 <= each["requests"] + each["clients"]
            assert set(each["cpu_us"]) == {"worker", "master", "audit writer", "supervisor"}
    for each in figures["streams"]:
        assert each["refused"] == each["broken"] == 0
    assert {each["target"] for each in figures["starts"]} == {"nginx", "embedded"}
    assert any("TLS to the provider" in each["what"] for each in figures["not_measured"])
    assert "| nginx proxy_pass | 1 |" in done.stdout
    assert "**Not measured**" in done.stdout


@pytest.mark.parametrize("program", ["run", "profile"])
def test_help_tells_every_option(program: str) -> None:
    done = _bench(program, "--help")

    assert done.returncode == 0
    assert f"usage: bench/{program}" in done.stdout
    assert "--quick" in done.stdout
    assert "--json FILE" in done.stdout


def test_an_unknown_target_is_refused_by_name() -> None:
    done = _bench("run", "--quick", "--only", "nginx,apache")

    assert done.returncode == 2
    assert "unknown: apache" in done.stderr


def test_a_profile_gives_each_sample_to_the_step_that_caused_it() -> None:
    door = f"view ({ROOT}/secure_llm_proxy/web/openai/views.py:30)"
    stacks = "\n".join(
        [
            f"handle (/lib/gunicorn/workers/base_async.py:10);{door};run (/lib/flask/app.py:9) 2",
            f"{door};take ({ROOT}/secure_llm_proxy/throttling/process.py:5);acquire (/lib/gevent/thread.py:1) 3",
            "run (/lib/gevent/hub.py:647) 4",
            " 1",
        ]
    )

    profile = read_stacks("worker", 500.0, stacks)

    assert profile.samples == 10
    assert dict(profile.steps) == {
        "gevent loop and switches": 200.0,
        "throttling": 150.0,
        "Flask and Werkzeug": 100.0,
        "(not readable when sampled)": 50.0,
    }
    assert profile.functions["view (web/openai/views.py)"] == 250.0
    assert profile.innermost["throttling"] == {"acquire gevent/thread.py:1": 150.0}
