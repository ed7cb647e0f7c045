"""bench/audit does what its help says. Nothing here judges a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 600


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(_ROOT / "bench" / "audit"), *arguments],
        env={**os.environ, "BENCH_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
    )


def test_a_quick_run_measures_every_case_and_verifies_what_it_wrote(tmp_path: Path) -> None:
    told = tmp_path / "figures.json"

    # A disk that stands still for a moment acknowledges nothing, which would make the run invalid.
    done = _bench("--quick", "--seconds", "1", "--json", str(told))

    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads(told.read_text("utf-8"))
    assert figures["valid"] is True
    assert [(each["place"], each["present_gib"], each["clients"], each["paced"]) for each in figures["records"]] == [
        ("disk", 0.0, 1, False),
        ("disk", 0.0, 64, False),
        ("disk", 0.0, 64, True),
        ("tmpfs", 0.0, 1, False),
        ("tmpfs", 0.0, 64, False),
        ("tmpfs", 0.0, 64, True),
        ("disk", 0.02, 64, False),
    ]
    for each in figures["records"]:
        assert each["records"] > 0
        assert 0 < each["p50_ms"] <= each["p99_ms"]
    assert [each["lines"] > 0 for each in figures["logs"]] == [True] * 3
    assert len(figures["bars"]) == 5
    assert "| disk | empty | 64 |" in done.stdout
    assert "append 3 kB, fdatasync" in done.stdout


def test_help_tells_every_option() -> None:
    done = _bench("--help")

    assert done.returncode == 0
    assert "usage: bench/audit" in done.stdout
    for option in ("--quick", "--present-gb", "--clients", "--directory", "--json FILE"):
        assert option in done.stdout


def test_clients_that_are_no_numbers_are_refused() -> None:
    done = _bench("--quick", "--clients", "1,many")

    assert done.returncode == 2
    assert "1,many" in done.stderr
