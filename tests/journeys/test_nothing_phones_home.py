"""The only outbound connections are the configured provider's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_product_speaks_to_the_provider_and_to_nobody_else(short_folder: Path) -> None:
    for program in ("unshare", "nsenter", "ip", "sysctl"):
        assert shutil.which(program), f"{program} is missing: install the packages util-linux, iproute2 and procps"
    folder = short_folder / "isolated"
    folder.mkdir()
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]

    done = subprocess.run(
        ["unshare", *as_root, "--net", "--mount", sys.executable, "-m", "tests.support.isolated_network", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["session"]["chat"] == told["session"]["demo"] == 200
    assert told["session"]["stream"] > 1
    assert told["session"]["ready"] == told["session"]["metrics"] == told["session"]["status"] == 200
    assert told["session"]["doctor"] == told["session"]["verify"] == 0
    assert told["session"]["refused"] == 401
    assert told["to_provider"] > 0
    assert told["strangers"] == []
    assert len(told["control"]) >= 2, "the listener hears nothing, so its silence proves nothing"
