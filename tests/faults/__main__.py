"""The long form of the fault tests: `python -m tests.faults SCENARIO --rounds N --seed S --json FILE`.

Exit status: 0 every bar was met, 1 one was not (each on a line of its own), 2 usage. README.md lists the scenarios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.faults import disks, erasure, everything, honest_logs, kills, tampering, upstream
from tests.faults.outcome import Outcome, Say

SCENARIOS: Mapping[str, tuple[Callable[[Outcome, Path, Say], None], int]] = {
    "kill-writer": (kills.kill_writer, 100),
    "kill-workers": (kills.kill_workers, 100),
    "cut-power": (kills.cut_power, 50),
    "soak": (kills.soak, 1000),
    "fail-syncs": (disks.fail_syncs, 50),
    "fill-disk": (disks.fill_disk, 20),
    "deny-disk": (disks.deny_disk, 20),
    "hang-writer": (disks.hang_writer, 10),
    "slow-disk": (disks.slow_disk, 20),
    "shorten-writes": (disks.shorten_writes, 200),
    "jump-clock": (disks.jump_clock, 60),
    "erase": (erasure.erase, 60),
    "everything": (everything.everything, 60),
    "honest-logs": (honest_logs.honest_logs, 1000),
    "flip-bits": (tampering.flip_bits, 0),
    "tamper": (tampering.tamper, 0),
    "upstream": (upstream.upstream, 200),
    "leave": (upstream.leave, 2000),
    "requests": (upstream.requests, 100_000),
}
_NEEDS_OWN_MOUNTS = frozenset({"fill-disk"})


def main(arguments: Sequence[str]) -> int:
    given = _parse(arguments)
    if given.scenario in _NEEDS_OWN_MOUNTS and not disks.has_own_mounts():
        return subprocess.run(
            [*disks.own_mounts_command(), sys.executable, "-m", "tests.faults", *arguments],
            env={**os.environ, disks.OWN_MOUNTS: "yes"},
            check=False,
        ).returncode
    run, rounds = SCENARIOS[given.scenario]
    # A short path, for unix sockets.
    folder = Path(tempfile.mkdtemp(prefix="slp-", dir=given.directory))
    outcome = Outcome(
        given.scenario, given.seed, rounds if given.rounds is None else given.rounds, judges_times=not given.busy
    )
    began_s = time.monotonic()
    try:
        run(outcome, folder, _say)
    finally:
        if given.keep:
            _say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    told = {**asdict(outcome), "seconds": round(time.monotonic() - began_s, 1)}
    text = json.dumps(told, indent=1, ensure_ascii=False)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", "utf-8")
    for sentence in outcome.broken:
        _say(f"NOT MET: {sentence}")
    return 1 if outcome.broken else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--rounds", type=int, help="default: what the README's table says")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary here too")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="on the disk that is meant; default: the temporary one"
    )
    parser.add_argument("--busy", action="store_true", help="judge no times: the machine has other work")
    parser.add_argument("--keep", action="store_true", help="leave the logs there to be looked at")
    return parser.parse_args(arguments)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
