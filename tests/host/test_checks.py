"""What an installed host says about itself: health, daily check, timers, log rotation, and the production checklist."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import make_certificate
from tests.support.installed_host import DOMAIN, InstalledHost
from tests.support.programs import wait_until

TIMERS = ("health", "daily-check", "cleanup", "anchors", "certificates")
SETTINGS = "etc/secure_llm_proxy"
# So that every worker has answered, as far as chance shows them.
ASKED_IN_A_ROW = 16
# Nothing leaves a throw-away machine, and its clock is its host's.
NOT_HERE = {"evidence", "audit anchors", "time synchronised"}

DROP_IN = "/run/systemd/system/secure_llm_proxy.service.d"
DAILY_CHECK_DROP_IN = "/run/systemd/system/secure-llm-daily-check.service.d"
# They put the filter back within seconds.
WATCHERS = (
    "secure-llm-egress-places.path secure-llm-egress-places.timer secure-llm-egress.timer secure-llm-egress-wanted.path"
)
# Those of them that are at it would finish.
AT_IT = "secure-llm-egress.service secure-llm-egress-places.service secure-llm-egress-wanted.service"
OPENED = (
    r"ProtectSystem=no\nCapabilityBoundingSet=~\nSystemCallFilter=\nRestrictNamespaces=no\nPrivateUsers=no\n"
    r"NoNewPrivileges=no\nPrivateDevices=no\n"
)


def look(host: InstalledHost, *command: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status and checks of a command that prints JSON."""
    done = host.machine.run(*command, "--json", check=False, timeout=180)
    told = json.loads(done.stdout)
    checks = told["checks"] if isinstance(told, dict) else told
    return done.returncode, {check["what"]: check for check in checks}


def not_ok(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {what: check["level"] for what, check in checks.items() if check["level"] != "ok"}


def start(host: InstalledHost, name: str) -> subprocess.CompletedProcess[str]:
    """A run of its own: not one that a timer has begun before, and not one start too many within ten seconds."""
    unit = f"secure-llm-{name}.service"
    host.machine.wait_for(
        "sh", "-c", f"! systemctl show -P ActiveState {unit} | grep -qx activating", what=f"{unit} does not run", seconds=300
    )  # fmt: skip
    host.machine.run("systemctl", "reset-failed", unit, check=False)
    return host.machine.run("systemctl", "start", unit, check=False, timeout=300)


def as_nobody(*command: str) -> tuple[str, ...]:
    return ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", *command)


def test_health_is_told_alike_to_root_and_to_anybody(host: InstalledHost) -> None:
    wait_until_failures_are_forgotten(host)

    root, seen_by_root = look(host, "secure-llm-health-check")
    nobody, seen_by_nobody = look(host, *as_nobody("secure-llm-health-check"))

    # Degraded: no checkpoint of the log has left the machine.
    assert (root, nobody) == (1, 1)
    assert not_ok(seen_by_root) == not_ok(seen_by_nobody) == {"evidence": "warning"}
    assert seen_by_root.keys() == seen_by_nobody.keys()
    assert {"unit secure_llm_proxy.service", "unit nginx.service", "certificate", "database"} <= seen_by_nobody.keys()
    assert "unix:/run/secure_llm_proxy.sock" in seen_by_root["web service"]["found"]
    assert "nginx at 127.0.0.1" in seen_by_nobody["web service"]["found"]


def wait_until_failures_are_forgotten(host: InstalledHost) -> None:
    """Each worker remembers for a minute that the provider failed, as other tests let it, or until it is asked again itself."""

    def all_is_well() -> bool:
        told = [host.ask("GET", "/health/ready").json.get("dependencies") for _ in range(ASKED_IN_A_ROW)]
        return all(isinstance(each, dict) and each.get("upstream") == "ok" for each in told)

    host.chat()
    wait_until(all_is_well, what="no worker remembers a failure of the provider", seconds=120)


def test_by_url_a_client_that_does_not_trust_the_certificate_finds_the_host_down(host: InstalledHost) -> None:
    authority = host.machine.files / "srv" / "authority.pem"
    authority.write_bytes(host.certificate.authority.read_bytes())
    host.machine.run("sh", "-c", f"grep -q ' {DOMAIN}$' /etc/hosts || echo '127.0.0.1 {DOMAIN}' >>/etc/hosts")
    wait_until_failures_are_forgotten(host)

    distrusting, told = look(host, "secure-llm-health-check", "--url", host.base_url)
    trusting, checks = look(host, "secure-llm-health-check", "--url", host.base_url, "--ca", "/srv/authority.pem")

    assert (distrusting, trusting) == (2, 1)
    assert "its certificate is refused" in told["web service"]["found"]
    assert not_ok(checks) == {"evidence": "warning"}


@pytest.mark.parametrize("unit", ["secure-llm-audit.service", "nginx.service"])
def test_with_a_part_stopped_it_is_down_and_names_the_part(host: InstalledHost, unit: str) -> None:
    with stopped(host, unit):
        status, checks = look(host, "secure-llm-health-check")
        by_timer = start(host, "health")

    assert status == 2
    assert f"unit {unit}" in not_ok(checks)
    assert by_timer.returncode != 0
    # One worker may see a moment later than another that the part is back.
    wait_until(
        lambda: start(host, "health").returncode == 0, what="with the part back the health check is well", seconds=60
    )


@contextmanager
def stopped(host: InstalledHost, unit: str) -> Iterator[None]:
    host.machine.run("systemctl", "stop", unit)
    try:
        yield
    finally:
        host.machine.run("systemctl", "start", unit)
        host.wait_until_ready()


def test_every_timer_waits_and_its_service_does_its_work(host: InstalledHost) -> None:
    for name in TIMERS:
        assert host.machine.told("systemctl", "is-active", f"secure-llm-{name}.timer") == "active"
        assert host.machine.told("systemctl", "is-enabled", f"secure-llm-{name}.timer") == "enabled"
    wait_for_checkpoint(host)

    # The anchors before the daily check, which holds the log to them.
    with any_share_of_failed_requests(host):
        for name in ("health", "cleanup", "anchors", "certificates", "daily-check"):
            assert start(host, name).returncode == 0, host.machine.journal(f"secure-llm-{name}.service")

    kept = host.machine.told("cat", "/var/lib/secure-llm-anchors/anchors.jsonl").splitlines()
    journal = host.machine.journal("secure-llm-anchors.service")
    assert kept[-1] in journal
    assert len(set(kept)) == len(kept)
    table = host.machine.journal("secure-llm-daily-check.service")
    assert "anchors met" in table
    assert " 0 anchors met" not in table.splitlines()[-20:]
    assert "unknown" not in table


@contextmanager
def any_share_of_failed_requests(host: InstalledHost) -> Iterator[None]:
    """The day that the daily check judges holds every outage that other tests of this machine made, in whatever order."""
    host.machine.run(
        "sh", "-c",
        f"mkdir -p {DAILY_CHECK_DROP_IN} && printf '[Service]\\nExecStart=\\nExecStart=/opt/secure_llm_proxy/scripts/daily_check"
        f" --server-errors-failed 101\\n' >{DAILY_CHECK_DROP_IN}/share.conf && systemctl daemon-reload",
    )  # fmt: skip
    try:
        yield
    finally:
        host.machine.run("sh", "-c", f"rm -r {DAILY_CHECK_DROP_IN}; systemctl daemon-reload")


def wait_for_checkpoint(host: InstalledHost) -> None:
    state = "/run/secure-llm-audit/audit-state.json"
    wait_until(
        lambda: json.loads(host.machine.told("cat", state))["note"] is not None, what="a checkpoint is told", seconds=60
    )


def test_what_a_timer_keeps_is_neither_the_writers_nor_the_services_to_change(host: InstalledHost) -> None:
    wait_for_checkpoint(host)
    assert start(host, "anchors").returncode == 0

    for user in ("secure-llm-audit", "secure_llm_proxy", "www-data"):
        tried = host.machine.run(
            "runuser", "-u", user, "--", "sh", "-c", "echo >>/var/lib/secure-llm-anchors/anchors.jsonl", check=False
        )
        assert tried.returncode != 0, user


def test_a_renewed_certificate_is_in_use_after_the_timers_next_turn(host: InstalledHost, tmp_path: Path) -> None:
    tls = host.machine.files / SETTINGS / "tls"
    before = {name: (tls / name).read_bytes() for name in ("certificate.pem", "key.pem")}
    renewed = make_certificate(tmp_path / "renewed", names=f"DNS:{DOMAIN}", days=60)
    (tls / "certificate.pem").write_bytes(renewed.certificate.read_bytes())
    (tls / "key.pem").write_bytes(renewed.key.read_bytes())

    done = start(host, "certificates")
    try:
        said = host.machine.journal("secure-llm-certificates.service")
        # A reload of nginx is over some time after it was asked for.
        wait_until(
            lambda: served_by(host) == renewed.certificate.read_text().split(), what="the new certificate is served"
        )
    finally:
        for name, content in before.items():
            (tls / name).write_bytes(content)
        start(host, "certificates")

    assert done.returncode == 0, said
    assert "nginx was reloaded" in said
    host.wait_until_ready()


def served_by(host: InstalledHost) -> list[str]:
    command = f"openssl s_client -connect 127.0.0.1:443 -servername {DOMAIN} </dev/null 2>/dev/null | openssl x509"
    return host.machine.told("sh", "-c", command).split()


def test_logs_are_rotated_and_written_on_by_those_who_wrote_them(host: InstalledHost) -> None:
    host.chat()
    logs = ["/var/log/secure_llm_proxy/app.log", "/var/log/secure_llm_proxy/app.jsonl",
            "/var/log/nginx/secure_llm_proxy.access.jsonl"]  # fmt: skip
    checked = host.machine.run("logrotate", "--debug", "/etc/logrotate.conf")

    # With every rule of the host: two for one file are refused.
    host.machine.run("logrotate", "--force", "/etc/logrotate.conf", timeout=300)
    host.chat()

    assert "error:" not in checked.stderr
    for log in logs:
        # nginx opens its new file some time after it was told to; what it answers until then stands in the old one.
        wait_until(
            lambda log=log: host.chat().status == 200 and size_of(host, log) > 0,  # type: ignore[misc]  # mypy#12557
            what=f"{log} is written on",
            seconds=60,
        )
        assert host.machine.told("sh", "-c", f"ls {log}-* | wc -l") != "0"
    assert host.machine.told("stat", "-c", "%U %a", logs[0]) == "secure_llm_proxy 640"
    # The day's requests are counted across both files.
    _, checks = look(host, "secure-llm-daily-check", "--no-audit")
    assert checks["requests" if "requests" in checks else "answers 5xx"]["level"] != "unknown"


def size_of(host: InstalledHost, path: str) -> int:
    return int(host.machine.told("stat", "-c", "%s", path))


def test_the_checklist_of_a_fresh_host_lacks_only_what_this_machine_cannot_have(host: InstalledHost) -> None:
    wait_for_checkpoint(host)
    start(host, "anchors")

    _, checks = look(host, "secure-llm-proxy", "doctor", "--production")

    # A backup is made in the first night; the firewall is offered, the administrator has not signed in.
    later = {
        "backup",
        "backup, apart from the log",
        "firewall",
        "setup tokens",
        "certificate's authority",
        "unit secure-llm-backup.timer",
    }
    assert set(not_ok(checks)) - NOT_HERE <= later
    assert "unknown" not in not_ok(checks).values()
    for what in (
        "profile", "secrets in env", "credentials", "files in /etc/secure_llm_proxy", "code in /opt/secure_llm_proxy",
        "audit log and keys, for the web user", "sandboxes", "TLS protocols", "HSTS", "plain HTTP", "PostgreSQL's passwords",
        "PostgreSQL's addresses", "PostgreSQL's pg_hba.conf", "Redis' memory", "Redis' addresses", "Redis' password",
        "open ports", "egress filter", "backup recipient", "kept anchors", "log rotation",
    ):  # fmt: skip
        assert checks[what]["level"] == "ok", checks[what]


@pytest.mark.parametrize(
    ("spoil", "cure", "what"),
    [
        ("chmod 755 /etc/secure_llm_proxy/credentials", "chmod 700 /etc/secure_llm_proxy/credentials",
         "file /etc/secure_llm_proxy/credentials"),
        ("chmod o+w /opt/secure_llm_proxy/app.py", "chmod o-w /opt/secure_llm_proxy/app.py", "code in /opt/secure_llm_proxy"),
        ("chmod 755 /var/lib/secure-llm-audit /var/lib/secure-llm-audit/keys",
         "chmod 700 /var/lib/secure-llm-audit /var/lib/secure-llm-audit/keys", "audit log and keys, for the web user"),
        ("systemctl disable -q --now secure-llm-health.timer", "systemctl enable -q --now secure-llm-health.timer",
         "unit secure-llm-health.timer"),
        (f"systemctl stop {WATCHERS} {AT_IT}; nft list table inet slp_egress >/run/kept && nft delete table inet slp_egress",
         f"nft -f /run/kept; systemctl reset-failed {AT_IT}; systemctl start {WATCHERS}", "egress filter"),
        ("echo 'host all all 192.0.2.0/24 md5' >>$(ls /etc/postgresql/*/main/pg_hba.conf)",
         "sed -i '/192.0.2.0/d' $(ls /etc/postgresql/*/main/pg_hba.conf)", "PostgreSQL's pg_hba.conf"),
        (f"mkdir -p {DROP_IN}; printf '[Service]\\n{OPENED}' >{DROP_IN}/open.conf; systemctl daemon-reload",
         f"rm -r {DROP_IN}; systemctl daemon-reload", "sandbox of secure_llm_proxy.service"),
    ],
    ids=["credentials", "code", "audit keys", "timer", "egress", "md5", "sandbox"],
)  # fmt: skip
def test_what_is_spoilt_is_named_with_its_cure(host: InstalledHost, spoil: str, cure: str, what: str) -> None:
    host.machine.run("sh", "-c", spoil)
    try:
        status, checks = look(host, "secure-llm-proxy", "doctor", "--production")
    finally:
        host.machine.run("sh", "-c", cure)

    assert status == 1
    assert not_ok(checks)[what] in {"FAILED", "warning"}
    assert checks[what]["fix"]


def test_what_another_user_may_not_see_is_unknown_to_the_daily_check(host: InstalledHost) -> None:
    status, checks = look(host, *as_nobody("secure-llm-daily-check"))

    assert status in {1, 2}
    assert {"audit log", "database size", "log growth"} <= {
        what for what, level in not_ok(checks).items() if level == "unknown"
    }
