"""What stands at the edge of an installed machine: its TLS, as a scanner sees it, and its log, held to the audit log."""

from __future__ import annotations

import http.client
import json
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from scripts.lib.render_nginx import requests_at_once
from tests.support.clients import connection_to
from tests.support.host_world import MACHINES
from tests.support.installed_host import InstalledHost
from tests.support.programs import find_program, wait_until
from tests.support.provider import Provider
from tests.support.steady_load import SteadyLoad

_SCAN_PATIENCE_S = 600
_SCANS_MOST = 3
# What the certificate of these tests is: of an authority that nobody knows, for two days, without a place to revoke it.
_OF_THE_CERTIFICATE = ("cert_", "DNS_CAArecord", "OCSP_", "engine_problem")
_NOBODY_LISTENS = ("ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected", "SSLEOFError")
_CONNECTIONS = 24
_AT_ONCE = requests_at_once(_CONNECTIONS)
_ACCESS_LOG = "/var/log/nginx/secure_llm_proxy.access.jsonl"


def test_a_scanner_finds_no_weak_protocol_cipher_or_header(host: InstalledHost, tmp_path: Path) -> None:
    found = scanned_whole(host, tmp_path)

    by_id = {str(each["id"]): str(each["finding"]) for each in found}
    assert by_id["TLS1_2"].startswith("offered")
    assert by_id["TLS1_3"].startswith("offered")
    assert [by_id[name] for name in ("SSLv2", "SSLv3", "TLS1", "TLS1_1")] == ["not offered"] * 4
    assert by_id["ALPN_HTTP2"] == "h2"
    assert "days" in by_id["HSTS_time"]
    weak = [each for each in found if each["severity"] not in {"OK", "INFO"}]
    assert [each for each in weak if not of_the_certificate(each)] == []


def scanned_whole(host: InstalledHost, folder: Path) -> list[dict[str, object]]:
    """A scan without a check that could not be made (severity WARN); on a busy machine one or the other can't: openssl
    s_client leaves before the server's session ticket has come, and testssl.sh calls that a connect problem.
    """
    for number in range(1, _SCANS_MOST + 1):
        found = scanned(host, folder / f"scan{number}.json")
        not_made = [each for each in found if each["severity"] == "WARN" and not of_the_certificate(each)]
        if not not_made:
            return found
    raise AssertionError(not_made)


def of_the_certificate(finding: dict[str, object]) -> bool:
    return str(finding["id"]).startswith(_OF_THE_CERTIFICATE)


def scanned(host: InstalledHost, told: Path) -> list[dict[str, object]]:
    """Everything that testssl.sh says about protocols, cipher suites, forward secrecy, headers and known holes."""
    testssl = find_program("testssl", package="testssl.sh")
    done = subprocess.run(
        [
            testssl, "--warnings", "off", "--quiet", "--color", "0", "--ip", MACHINES[host.domain], "--add-ca",
            str(host.certificate.authority), "-p", "-s", "-f", "-S", "-h", "-U", "--jsonfile", str(told),
            f"{host.base_url}:443/health",
        ],
        capture_output=True, text=True, check=False, timeout=_SCAN_PATIENCE_S,
    )  # fmt: skip
    assert told.exists(), done.stdout + done.stderr
    found: list[dict[str, object]] = json.loads(told.read_text("utf-8"))
    return found


def test_nginxs_log_and_the_audit_log_of_the_machine_tell_of_the_same_requests(host: InstalledHost) -> None:
    assert [host.chat().status for _ in range(5)] == [200] * 5
    assert host.ask("POST", "/v1/chat/completions", key="slp_live_none", body={}).status == 401

    # nginx writes its line behind the answer, and a refusal's record is not waited for.
    wait_until(lambda: reconciled(host)["agreeing"] >= 6, what="the requests are in both logs", seconds=60)

    assert reconciled(host)["differences"] == []


def reconciled(host: InstalledHost) -> dict[str, Any]:
    command = (
        f"cat {shlex.quote(_ACCESS_LOG)} | secure-llm-proxy audit reconcile --access-log - --all-through-nginx --json"
    )
    done = host.machine.run("sh", "-c", command, check=False, timeout=180)
    told: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if told["differences"] else 0)
    return told


def test_with_nginxs_connections_used_up_and_while_it_reloads_and_restarts_nothing_is_cut_or_unrecorded(
    host: InstalledHost,
) -> None:
    key = host.key
    with ExitStack() as running:
        running.enter_context(operators_own_connections(host, _CONNECTIONS))
        processes = len(nginx_processes(host))
        # Long enough that the first one still runs when the last one has begun.
        running.enter_context(streams_of(host.world.provider, pieces=40, pause_s=0.5))
        answers = [running.enter_context(begun(host, key)) for _ in range((_AT_ONCE + 2) * processes)]
        statuses = Counter(answer.status for answer in answers)
        turned_away = [answer for answer in answers if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE]
        refusals = {
            (answer.getheader("Retry-After"), json.loads(answer.read())["error"]["code"]) for answer in turned_away
        }
        host.machine.run("systemctl", "reload", "nginx.service")
        ends = [answer.read()[-14:] for answer in answers if answer.status == http.HTTPStatus.OK]
    with SteadyLoad(host, key, plain=2, streams=1, pause_s=0.05) as load:
        host.machine.run("systemctl", "restart", "nginx.service")
        answered = load.outcome.answered
        wait_until(lambda: load.outcome.answered > answered + 5, what="requests are answered again", seconds=120)

    # The processes share clients as it happens; at least one has all that it may take.
    assert _AT_ONCE <= statuses[200] <= _AT_ONCE * processes
    assert statuses == {200: statuses[200], 503: len(answers) - statuses[200]}
    assert refusals == {("1", "service_unavailable")}
    assert ends == [b"data: [DONE]\n\n"] * statuses[200]
    # Whom nobody listened to in the moment of the restart was not answered, and reached no worker.
    assert [each for each in load.outcome.failed if not any(word in each for word in _NOBODY_LISTENS)] == []
    assert reconciled(host)["differences"] == []


@contextmanager
def operators_own_connections(host: InstalledHost, number: int) -> Iterator[None]:
    """`worker_connections` as an operator might set it: it is respected, and the site follows it."""
    main, services = "/etc/nginx/nginx.conf", "/opt/secure_llm_proxy/scripts/install"
    shipped = "worker_connections 768;"
    host.machine.run("sed", "-i", f"s/worker_connections .*/worker_connections {number};/", main)
    before = nginx_processes(host)
    host.machine.run(services, "--services-only", timeout=180)
    # Who still serves by the old number would take more clients.
    wait_until(lambda: not nginx_processes(host) & before, what="nginx's old processes have left", seconds=120)
    assert f"worker_connections {number};" in host.machine.told("cat", main)
    try:
        yield
    finally:
        host.machine.run("sed", "-i", f"s/worker_connections .*/{shipped}/", main)
        said = host.machine.run(services, "--services-only", timeout=180).stderr
    assert "raise worker_connections in /etc/nginx/nginx.conf from 768 to 16384" in said


def nginx_processes(host: InstalledHost) -> set[str]:
    """Those that serve, the ones that a reload has told to leave included."""
    return set(host.machine.told("sh", "-c", "pgrep -P $(cat /run/nginx.pid)").split())


@contextmanager
def streams_of(provider: Provider, *, pieces: int, pause_s: float) -> Iterator[None]:
    usual = provider.stream_chunks, provider.stream_pause_s
    provider.stream_chunks, provider.stream_pause_s = pieces, pause_s
    try:
        yield
    finally:
        provider.stream_chunks, provider.stream_pause_s = usual


@contextmanager
def begun(host: InstalledHost, key: str) -> Iterator[http.client.HTTPResponse]:
    """The head of a stream, or of a refusal; the connection stays open."""
    body = json.dumps(
        {"model": "test-model", "messages": [{"role": "user", "content": "Is all well?"}], "stream": True}
    )
    with connection_to(host) as connection:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", "/v1/chat/completions", body=body, headers=headers)
        yield connection.getresponse()
