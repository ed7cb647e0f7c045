"""Where an installed host keeps what. The same names, and the same variables to move them for a trial, as scripts/lib/host.sh."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WEB_USER, AUDIT_USER = "secure_llm_proxy", "secure-llm-audit"
WEB_UNIT, WEB_SOCKET_UNIT, AUDIT_UNIT = (
    "secure_llm_proxy.service",
    "secure_llm_proxy.socket",
    "secure-llm-audit.service",
)
_SETTINGS_BYTES_MAX = 1 << 20
_EMBEDDED = (
    "HOST", "PORT", "BIND", "INSTANCE_DIR", "LOG_DIR", "DATABASE_URL", "AUDIT_DIR", "AUDIT_FALLBACK_DIR", "AUDIT_HOST_ID",
    "AUDIT_ANCHOR_FILE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Places:
    """`machine` is the root of everything that is not ours to move: nginx, PostgreSQL, Redis (tests move it)."""

    code: Path
    releases: Path
    settings: Path
    state: Path
    audit_state: Path
    audit_run: Path
    logs: Path
    backups: Path
    web_socket: Path
    anchors: Path
    machine: Path

    @property
    def is_installed(self) -> bool:
        return self.settings.is_dir()


def places_of(environ: Mapping[str, str] | None = None) -> Places:
    environ = os.environ if environ is None else environ

    def place(name: str, default: str) -> Path:
        return Path(environ.get(name) or default)

    return Places(
        code=place("SLP_CODE", "/opt/secure_llm_proxy"),
        releases=place("SLP_RELEASES", "/opt/secure_llm_proxy.releases"),
        settings=place("SLP_SETTINGS", "/etc/secure_llm_proxy"),
        state=place("SLP_STATE", "/var/lib/secure_llm_proxy"),
        audit_state=place("SLP_AUDIT_STATE", "/var/lib/secure-llm-audit"),
        audit_run=place("SLP_AUDIT_RUN", "/run/secure-llm-audit"),
        logs=place("SLP_LOGS", "/var/log/secure_llm_proxy"),
        backups=place("SLP_BACKUPS", "/var/backups/secure_llm_proxy"),
        web_socket=place("SLP_WEB_SOCKET", "/run/secure_llm_proxy.sock"),
        anchors=place("SLP_ANCHORS", "/var/lib/secure-llm-anchors"),
        machine=place("SLP_MACHINE", "/"),
    )


def variables_in(path: Path) -> dict[str, str]:
    """The `NAME=value` lines of an environment file; quotes around a value do not belong to it. Raises `OSError`."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        text = stream.read(_SETTINGS_BYTES_MAX)
    found = {}
    for line in text.splitlines():
        name, sign, value = line.strip().partition("=")
        if sign and name and not name.startswith("#"):
            value = value.strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            found[name.removeprefix("export ").strip()] = value
    return found


def embedded_settings(root: Path) -> Mapping[str, str]:
    """Where a clone keeps what: `.env`, and the environment over it."""
    try:
        found = variables_in(Path(os.environ.get("ENV_FILE") or root / ".env"))
    except OSError:
        found = {}
    return {**found, **{name: value for name in _EMBEDDED if (value := os.environ.get(name))}}
