"""scripts/health_check, scripts/daily_check and the timers' programs, at the product as it runs."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.moved_host import checks_in, run_script
from tests.support.programs import wait_until
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy


@pytest.fixture(scope="module")
def instance(provider: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    """An instance whose lists let no agent in that looks at hosts."""
    settings = {
        "LLM_API_URL": provider.base_url,
        "LLM_API_KEY": "sk-test-provider",
        "BLOCKED_USER_AGENTS": "curl,python*,secure-llm-health-check,bot",
    }
    with RunningProxy(short_folder / "looked-at", settings) as proxy:
        yield proxy


def looked_at(proxy: RunningProxy, script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    names = ("HOST", "PORT", "INSTANCE_DIR")
    environment = {name: proxy.environment[name] for name in names} | more
    # No host is installed where this points.
    return run_script(script, *arguments, SLP_SETTINGS=str(proxy.home / "none"), **environment)


@pytest.mark.parametrize("script", ["health_check", "daily_check"])
def test_the_scripts_explain_themselves_and_refuse_what_they_do_not_know(script: str) -> None:
    told, misused = run_script(script, "--help"), run_script(script, "--no-such-option")

    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"usage: scripts/{script}")
    assert (misused.returncode, misused.stdout) == (2, "")
    assert "--no-such-option" in misused.stderr


def test_a_running_instance_is_healthy_whatever_its_lists_say(instance: RunningProxy) -> None:
    table = looked_at(instance, "health_check")
    brief = looked_at(instance, "health_check", "--brief")
    document = looked_at(instance, "health_check", "--json")

    assert (table.returncode, brief.returncode, brief.stdout) == (0, 0, ""), table.stdout
    assert table.stdout.splitlines()[0].split() == ["CHECK", "STATE", "FOUND"]
    assert json.loads(document.stdout)["status"] == "healthy"
    checks = checks_in(document)
    assert {"web service", "audit", "database", "disk", "disk of instance"} <= checks.keys()
    assert {check["level"] for check in checks.values()} == {"ok"}


def test_it_is_asked_by_a_url_too_and_degraded_by_a_full_disk(instance: RunningProxy) -> None:
    by_url = looked_at(instance, "health_check", "--url", instance.base_url, "--json")
    full = looked_at(instance, "health_check", "--disk-warning", "0", "--json")

    assert by_url.returncode == 0
    assert (full.returncode, json.loads(full.stdout)["status"]) == (1, "degraded")
    assert checks_in(full)["disk of instance"]["level"] == "warning"


@pytest.mark.parametrize(("script", "more"), [("health_check", []), ("daily_check", ["--no-audit"])])
def test_a_look_needs_no_room_on_a_disk(instance: RunningProxy, script: str, more: list[str]) -> None:
    no_room = str(instance.home / "no-such-folder")

    told = looked_at(instance, script, *more, TMPDIR=no_room)

    assert (told.stderr, told.stdout.split()[:3]) == ("", ["CHECK", "STATE", "FOUND"])


def test_with_the_audit_writer_gone_it_is_down_and_says_why(instance: RunningProxy) -> None:
    writer = instance.writer_pid()
    # Its supervisor stands still, too, or it would be back within a moment.
    os.kill(instance.pid, 19)
    os.kill(writer, 9)
    try:
        wait_until(
            lambda: looked_at(instance, "health_check").returncode == 2, what="the absence is noticed", seconds=60
        )
        down = looked_at(instance, "health_check", "--json")
    finally:
        os.kill(instance.pid, 18)

    found = checks_in(down)["audit"]
    assert (json.loads(down.stdout)["status"], found["level"]) == ("down", "FAILED")
    assert found["found"] != "unavailable"
    wait_until(lambda: looked_at(instance, "health_check").returncode == 0, what="it is well again", seconds=60)


def test_where_nobody_answers_it_is_down(tmp_path: Path) -> None:
    nobody = run_script("health_check", "--url", "http://127.0.0.1:9", "--json")
    no_socket = run_script("health_check", "--socket", str(tmp_path / "none"), "--json")

    assert (nobody.returncode, no_socket.returncode) == (2, 2)
    assert "refused" in checks_in(nobody)["web service"]["found"]
    assert "No such file" in checks_in(no_socket)["web service"]["found"]


def test_the_daily_check_counts_verifies_and_remembers(instance: RunningProxy, tmp_path: Path) -> None:
    for _ in range(3):
        sign_in_in_vain(instance)
    log = instance.instance / "log" / "app.jsonl"
    wait_until(lambda: log.read_text("utf-8").count('"login_failed"') == 3, what="the log tells of all three")
    state = str(tmp_path)

    first = looked_at(instance, "daily_check", "--json", "--state", state, "--failed-logins-warning", "3")
    second = looked_at(instance, "daily_check", "--json", "--state", state)

    assert (first.returncode, second.returncode) == (1, 0), first.stdout + second.stdout
    checks = checks_in(first)
    assert {what for what, check in checks.items() if check["level"] != "ok"} == {"failed logins"}
    assert checks["failed logins"]["found"] == "3 in the last 24 h: 3 from 127.0.0.1"
    assert checks["audit log"]["found"].startswith("ok: ")
    assert "since the last look" not in checks["database size"]["found"]
    assert "since the last look" in checks_in(second)["database size"]["found"]


def test_the_mail_is_sent_where_something_is_to_be_looked_at(instance: RunningProxy, tmp_path: Path) -> None:
    mail = tmp_path / "mail"
    program = tmp_path / "sendmail"
    program.write_text(f"#!/bin/sh\ncat >{mail}\n")
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"

    names = ("HOST", "PORT", "INSTANCE_DIR")
    environment = {name: instance.environment[name] for name in names}
    given = {"SLP_SETTINGS": str(tmp_path / "none"), "PATH": path, **environment}
    well = run_script("daily_check", "--mail", "ops@example.org", **given)
    unsent = not mail.exists()
    full = run_script("daily_check", "--disk-failed", "0", "--mail", "ops@example.org", **given)
    refused = run_script("daily_check", "--mail", "-odd;", **given)

    assert (well.returncode, unsent, full.returncode, refused.returncode) == (0, True, 2, 2), well.stdout
    assert mail.read_text().startswith("To: ops@example.org\nSubject: Secure LLM Proxy on ")
    assert full.stdout in mail.read_text()


def sign_in_in_vain(instance: RunningProxy) -> None:
    body = json.dumps({"username": "nobody", "password": "wrong"}).encode()
    request = urllib.request.Request(
        f"{instance.base_url}/auth/login", data=body, headers={"Content-Type": "application/json", "User-Agent": "a"}
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=30)
