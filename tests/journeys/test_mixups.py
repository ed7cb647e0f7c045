"""Nobody gets what is somebody else's: a small mix-up hunt in each run of the tests; `bench/hunt` does the large one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bench.hunt_clients import Door, Findings, hunt
from bench.hunting import check_audit
from bench.marked_provider import MARKER, completion
from bench.plants import plant_audit_log, plant_keys
from bench.processes import choose_cores
from bench.upstream import MarkedUpstream
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.running_proxy import RunningProxy

ROOT = Path(__file__).resolve().parents[2]
_KEYS = 4
_ROOMY = {"RATE_LIMIT_PER_MINUTE": "600000", "RATE_LIMIT_BURST": "100000"}
_ROOMY |= {f"ADDRESS_{name}": value for name, value in _ROOMY.items()}
_IMPATIENT = {"UPSTREAM_FIRST_BYTE_TIMEOUT_S": "1.5", "UPSTREAM_IDLE_TIMEOUT_S": "1.5"}
# So little patience may end for all clients at once, before many were answered: the provider is asked on all the same.
_IMPATIENT |= {"CIRCUIT_FAILURES": "0"}


def _hunt(proxy: RunningProxy, *, requests: int) -> Findings:
    keys = plant_keys(proxy.environment, _KEYS)
    proxy.start()
    door = Door("127.0.0.1", int(proxy.base_url.rpartition(":")[2]), keys)
    return asyncio.run(hunt(door, requests=requests, clients=24, seed=7))


@pytest.mark.parametrize(("upstream", "requests"), [("plain", 2_000), ("tls", 1_000)])
def test_no_answer_and_no_record_holds_what_is_anothers(
    upstream: str, requests: int, short_folder: Path, certificate: Certificate
) -> None:
    tls = certificate if upstream == "tls" else None
    home = short_folder / f"mixups-{upstream}"
    home.mkdir()
    with MarkedUpstream(choose_cores(), home, tls=tls) as provider:
        settings = {
            **_ROOMY,
            **_IMPATIENT,
            "LLM_API_URL": provider.provider.url,
            "LLM_API_KEY": "sk-test-provider",
            "LLM_MODELS": "gpt-4o-mini",
        }
        if tls is not None:
            settings["LLM_CA_FILE"] = str(tls.authority)
        proxy = RunningProxy(home, settings)
        proxy.prepare()

        try:
            findings = _hunt(proxy, requests=requests)
        finally:
            proxy.stop()
        audit = check_audit(proxy.instance / "audit", proxy.environment["AUDIT_KEK"], findings.answered)

    assert findings.mixups == []
    assert audit.mixups == []
    assert audit.unpaired == []
    assert audit.missing == []
    assert findings.asked >= requests
    assert len(findings.answered) > requests / 2
    assert audit.exchanges >= len(findings.answered)


@asynccontextmanager
async def _server_that_answers_the_one_before() -> AsyncIterator[int]:
    """What the hunt must find: each request is answered with the marker of the last one, whoever sent it."""
    last = [b"mk-0000000000000000"]
    served = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
                [marker] = MARKER.findall(body)
                marker, last[0] = last[0], marker
                served[0] += 1
                told = completion(marker.decode(), f"{marker.decode()} n=0")
                writer.write(
                    b"HTTP/1.1 200 OK\r\nX-Request-Id: exc_%d\r\nContent-Length: %d\r\n\r\n%s"
                    % (served[0], len(told), told)
                )
        except (OSError, EOFError):
            writer.close()

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield port
    finally:
        server.close()


def test_the_hunt_finds_an_answer_that_is_anothers() -> None:
    async def against_a_broken_server() -> Findings:
        async with _server_that_answers_the_one_before() as port:
            return await hunt(Door("127.0.0.1", port, ["key"]), requests=50, clients=1, seed=1)

    findings = asyncio.run(against_a_broken_server())

    assert any(mixup.what.startswith("holds mk-") for mixup in findings.mixups)


def test_the_hunt_finds_records_that_hold_no_marker_and_answers_without_a_record(tmp_path: Path) -> None:
    proxy = RunningProxy(tmp_path, {"LLM_API_URL": "http://127.0.0.1:9/v1", "LLM_API_KEY": "sk-test-provider"})
    proxy.prepare()
    plant_audit_log(proxy.environment, proxy.instance, 0.002)
    verified = proxy.command("audit", "verify")

    audit = check_audit(proxy.instance / "audit", proxy.environment["AUDIT_KEK"], {"exc_unheard_of": "mk-0"})

    assert verified.stdout.startswith("OK: ")
    assert audit.exchanges > 10
    assert audit.unpaired == []
    assert len(audit.mixups) == audit.exchanges
    assert audit.missing == ["exc_unheard_of"]


def test_the_hunt_tells_what_it_did(tmp_path: Path) -> None:
    told = tmp_path / "outcome.json"

    done = subprocess.run(
        [str(ROOT / "bench" / "hunt"), "--quick", "--requests", "200", "--clients", "8", "--json", str(told)],
        env={**os.environ, "BENCH_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(told.read_text("utf-8"))
    assert outcome["clean"] is True
    assert outcome["asked"] >= 200
    assert outcome["audit"]["exchanges"] >= outcome["answered"]
    assert "| **mix-ups in answers** | 0 |" in done.stdout
