"""An installed host's places in a folder: what looks at a host finds this one there, through the SLP_ variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.nginx import PrivateNginx

ROOT = Path(__file__).resolve().parents[2]
_PLACES = {
    "SLP_CODE": "opt/secure_llm_proxy",
    "SLP_RELEASES": "opt/secure_llm_proxy.releases",
    "SLP_SETTINGS": "etc/secure_llm_proxy",
    "SLP_STATE": "var/lib/secure_llm_proxy",
    "SLP_AUDIT_STATE": "var/lib/secure-llm-audit",
    "SLP_AUDIT_RUN": "run/secure-llm-audit",
    "SLP_LOGS": "var/log/secure_llm_proxy",
    "SLP_BACKUPS": "var/backups/secure_llm_proxy",
    "SLP_WEB_SOCKET": "run/secure_llm_proxy.sock",
    "SLP_ANCHORS": "var/lib/secure-llm-anchors",
}


@dataclass(frozen=True, slots=True)
class MovedHost:
    """`machine` is its root folder."""

    machine: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHON": sys.executable,
            "SLP_MACHINE": str(self.machine),
            **{name: str(self.machine / place) for name, place in _PLACES.items()},
        }

    def path(self, place: str) -> Path:
        """Its parent folder is there."""
        path = self.machine / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, place: str, content: str = "", *, mode: int = 0o644) -> Path:
        path = self.path(place)
        path.write_text(content, "utf-8")
        path.chmod(mode)
        return path

    def take_site_of(self, nginx: PrivateNginx) -> None:
        """That nginx's site is this host's."""
        self.write("etc/nginx/sites-enabled/secure_llm_proxy.conf", (nginx.directory / "site.conf").read_text("utf-8"))
        self.write("etc/nginx/nginx.conf", (nginx.directory / "nginx.conf").read_text("utf-8"))

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_script(script, *arguments, **{**self.environment, **environment})


def run_script(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One of scripts/, in an environment of its own."""
    return subprocess.run(
        [str(ROOT / "scripts" / script), *arguments],
        env={"PATH": os.environ.get("PATH", os.defpath), "PYTHON": sys.executable, **environment},
        cwd="/", capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def checks_in(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """By what was checked; the document must have been printed by `--json`."""
    assert done.stderr == "", done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
    return {check["what"]: check for check in told}
