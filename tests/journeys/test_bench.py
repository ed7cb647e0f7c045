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
_PATIENCE_S = 600


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

    done = _bench(
        "run", "--quick", "--only", "nginx,embedded,nginx-tls,embedded-tls",
        "--json", str(told), "--cache", str(tmp_path / "cache"),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads(told.read_text("utf-8"))
    assert figures["valid"] is True
    assert figures["problems"] == []
    targets = {"nginx", "embedded", "nginx-tls", "embedded-tls"}
    assert {(each["target"], each["clients"]) for each in figures["plain"]} == {
        (target, clients) for target in targets for clients in (1, 8)
    }
    for each in figures["plain"]:
        assert each["requests"] > 0
        assert each["refused"] == each["broken"] == 0
        assert each["requests"] <= each["asked_upstream"] <= each["requests"] + each["clients"]
    for each in figures["plain"]:
        if each["target"].startswith("embedded"):
            # a client that left before its request was sent upstream is recorded all the same
            assert each["audit_records"] % 2 == 0
            assert each["asked_upstream"] <= each["audit_records"] / 2 <= each["requests"] + each["clients"]
            assert set(each["cpu_us"]) == {"worker", "master", "audit writer", "supervisor"}
    for each in figures["streams"]:
        assert each["refused"] == each["broken"] == 0
    assert {each["target"] for each in figures["starts"]} == targets
    left_out = [each["what"] for each in figures["not_measured"]]
    assert "own time against an outside clock" in left_out
    assert "growth: keys, clients, audit log, workers" in left_out
    assert "TLS to the provider" not in left_out
    assert "| nginx proxy_pass | 1 |" in done.stdout
    assert "**Not measured**" in done.stdout


def test_our_own_account_of_our_time_agrees_with_an_outside_clock_and_growth_is_measured(tmp_path: Path) -> None:
    told = tmp_path / "figures.json"

    done = _bench(
        "run", "--quick", "--only", "direct", "--clients", "1", "--own-time", "--growth", "audit", "--audit-gib", "0.02",
        "--json", str(told), "--cache", str(tmp_path / "cache"),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads(told.read_text("utf-8"))
    own = figures["own_time"]
    assert own["counted"] == own["requests"]
    assert own["header_least_ms"] > 0
    # what the product reports lies within what a client sees, provider excluded, in each single request
    assert own["header_above_outside"] == 0
    assert 0 < own["counted_ms"] < own["outside_ms"]
    # header and histogram are the same account, read at two moments of the same requests
    assert own["header_mean_ms"] / 3 < own["counted_ms"] < own["header_mean_ms"] * 3
    assert [(each["case"], each["base"]) for each in figures["growth"]] == [("empty", True), ("0.02 GiB", False)]
    assert all(each["plain"]["requests"] > 0 for each in figures["growth"])
    assert "| X-SLP-Overhead-Ms |" in done.stdout
    assert "| audit directory | 0.02 GiB |" in done.stdout


@pytest.mark.parametrize("program", ["run", "profile", "hunt"])
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


_PACKAGES = "/srv/gevent/venv/lib/python3.11/site-packages"


def _ours(module: str) -> str:
    return f"function ({ROOT}/secure_llm_proxy/{module}:30)"


def test_a_profile_gives_each_sample_to_the_step_that_caused_it() -> None:
    door = f"view ({ROOT}/secure_llm_proxy/web/openai/views.py:30)"
    take = f"take ({ROOT}/secure_llm_proxy/throttling/process.py:5)"
    stacks = "\n".join(
        [
            f"handle ({_PACKAGES}/gunicorn/workers/base_async.py:10);{door};run ({_PACKAGES}/flask/app.py:9) 2",
            f"{door};{take};acquire ({_PACKAGES}/gevent/thread.py:1) 3",
            f"run ({_PACKAGES}/gevent/hub.py:647) 4",
            " 1",
            "a frame that was torn",
            "",
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


@pytest.mark.parametrize(
    ("frames", "step"),
    [
        ([_ours("server/hot_worker.py")], "worker class"),
        ([_ours("server/hot_worker.py"), _ours("server/request_reader.py")], "worker class: reading requests"),
        ([_ours("server/hot_worker.py"), f"feed ({_PACKAGES}/httptools/parser/parser.py:4)"], "worker class"),
        ([_ours("server/hot_worker.py"), _ours("web/hot_doors.py")], "web: hot doors"),
        ([_ours("web/hot_doors.py"), _ours("web/guards.py")], "web: doors, inbound, answers"),
        ([_ours("upstream/wire.py"), _ours("foundation/loop_socket.py")], "upstream"),
        ([f"run ({_PACKAGES}/gevent/hub.py:6)", _ours("foundation/loop_socket.py")], "loop sockets"),
        ([_ours("foundation/loop_socket.py"), _ours("gateway/streaming.py")], "gateway"),
        ([_ours("throttling/redis_link.py"), f"gets ({_PACKAGES}/hiredis/reader.py:7)"], "throttling: Redis"),
        ([_ours("gateway/chat.py"), _ours("foundation/strict_json.py")], "strict JSON"),
        ([_ours("gateway/chat.py"), _ours("vocabulary/chat.py")], "gateway"),
        ([_ours("policies/rules.py")], "policies"),
        ([_ours("gateway/closing.py"), "info (/usr/lib/python3.11/logging/__init__.py:1477)"], "logging"),
        ([_ours("gateway/chat.py"), "sleep (/usr/lib/python3.11/threading.py:300)"], "gateway"),
        ([f"<module> ({ROOT}/gunicorn.conf.py:3)"], "worker class"),
    ],
)
def test_every_module_of_the_route_has_its_step(frames: list[str], step: str) -> None:
    profile = read_stacks("worker", 100.0, ";".join(frames) + " 1")

    assert list(profile.steps) == [step]
