"""Units as the service manager tells of them; every user may ask."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_PATIENCE_S = 20


def is_here() -> bool:
    """Whether systemd runs this machine (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def run(command: Sequence[str], *, timeout_s: float = _PATIENCE_S) -> tuple[int, str]:
    """A program's exit status and what it printed, both streams. 127: there is no such program; 124: it took too long."""
    environment: Mapping[str, str] = {**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    path = os.pathsep.join([environment.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    try:
        done = subprocess.run(  # noqa: S603  a list, of names written here
            list(command),
            env={**environment, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except (FileNotFoundError, PermissionError):
        return 127, ""
    except subprocess.TimeoutExpired:
        return 124, ""
    return done.returncode, done.stdout.decode("utf-8", "replace")


def show(unit: str, *properties: str) -> dict[str, str]:
    """The unit's properties; {} where the manager does not answer."""
    status, said = run(["systemctl", "show", "--no-pager", f"--property={','.join(properties)}", "--", unit])
    if status:
        return {}
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def units_like(*patterns: str) -> list[tuple[str, str, str]]:
    """(name, active state, sub state) of every loaded unit that a pattern fits; [] where the manager does not answer."""
    status, said = run(
        ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "--full", "--", *patterns]
    )
    if status:
        return []
    rows = [line.split(None, 4) for line in said.splitlines()]
    return [(row[0], row[2], row[3]) for row in rows if len(row) >= 4 and row[1] != "not-found"]  # noqa: PLR2004
