"""The supervisor's plan, what it is made of, and its log lines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from secure_llm_proxy.server.start import plan
from secure_llm_proxy.server.supervisor import Log
from secure_llm_proxy.settings import TelemetrySettings, load_settings
from secure_llm_proxy.telemetry import configure_logs

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {"SECRET_KEY": "s" * 40, "ENCRYPTION_KEY": "e" * 40, "AUDIT_KEK": "ab" * 32, "LLM_API_KEY": "sk-secret"}


def test_it_consists_of_the_standard_library_without_its_large_parts() -> None:
    program = "import secure_llm_proxy.server.supervisor, sys; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    loaded = set(done.stdout.split())
    heavy = {"pydantic", "click", "sqlalchemy", "gevent", "logging", "inspect", "typing", "asyncio", "pathlib", "ssl"}
    assert loaded & heavy == set()
    assert {name for name in loaded if name.startswith("secure_llm_proxy.")} == {
        "secure_llm_proxy.server",
        "secure_llm_proxy.server.supervisor",
    }


def test_only_the_writer_sees_the_key_to_what_was_recorded(tmp_path: Path) -> None:
    settings = load_settings({**ENVIRONMENT, "INSTANCE_DIR": str(tmp_path)}, env_file=tmp_path / "none")

    made = plan(settings, "Ready.")

    children = {child["name"]: child for child in made["children"]}
    assert list(children) == ["audit writer", "demo upstream", "server"]
    assert children["server"]["without"] == ["AUDIT_KEK", "AUDIT_KEK_PREVIOUS"]
    assert not set(ENVIRONMENT) & set(children["demo upstream"]["only"] or ENVIRONMENT)
    assert all(secret not in json.dumps(made) for secret in ENVIRONMENT.values())


def test_with_a_provider_there_is_no_demo(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "INSTANCE_DIR": str(tmp_path), "LLM_API_URL": "https://provider.invalid/v1"}
    settings = load_settings({**environment, "BIND": f"unix:{tmp_path}/web.sock"}, env_file=tmp_path / "none")

    made = plan(settings, "Ready.")

    assert [child["name"] for child in made["children"]] == ["audit writer", "server"]
    assert made["children"][-1]["address"] == f"{tmp_path}/web.sock"


@pytest.mark.parametrize("form", ["text", "json"])
def test_its_log_lines_are_those_of_the_workers(
    form: Literal["text", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    for handler in before:
        root.removeHandler(handler)
    fields = {"child": "server", "exit": -9, "why": "two\nlines \x1b[0m"}

    try:
        configure_logs(TelemetrySettings(log_format=form), to_files=False)
        logging.getLogger("secure_llm_proxy.server.supervisor").error("child ended", extra=fields)
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
    Log(form, "INFO").say("ERROR", "child ended", **fields)

    theirs, ours = capsys.readouterr().out.splitlines()
    assert len(_without_time(ours)) > 40
    assert _without_time(ours) == _without_time(theirs)


def test_its_log_is_as_quiet_as_the_setting_wants(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("text", "ERROR")

    log.say("WARNING", "did not stop in time, killed", child="server")
    log.say("ERROR", "child ended", child="server")

    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["ERROR"]


def _without_time(line: str) -> str:
    """The line behind its time stamp, which has the same form in both."""
    if line.startswith("{"):
        told = json.loads(line)
        assert len(told.pop("timestamp")) == len("2026-11-21T06:00:00.000Z")
        return json.dumps(told)
    stamp, _, rest = line.partition(" ")
    assert len(stamp) == len("2026-11-21T06:00:00.000Z")
    return rest
