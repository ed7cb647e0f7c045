"""The whole product over a disk that hangs, or refuses everything, and under a clock that jumps (R08, R09, R12): nothing leaves
without a durable start, clients get 503 and not an error of another kind, and it comes back without a restart.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOMY
from tests.support.clients import Answer, ask, audit_lines
from tests.support.fault_shim import FaultShim
from tests.support.programs import wait_until
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy

_CLIENTS = 8
_HOUR_NS = 3_600 * 10**9


@pytest.fixture(scope="module")
def shim(short_folder: Path) -> Iterator[FaultShim]:
    home = short_folder / "faulty"
    with FaultShim(home / "faults", home / "instance" / "audit") as made:
        yield made


@pytest.fixture(scope="module")
def faulty(shim: FaultShim, provider: Provider, short_folder: Path) -> Iterator[tuple[RunningProxy, str]]:
    """The product with every process of it under the shim, and an API key."""
    # Each refusal takes as long, and a real disk that is busy must not be taken for one that hangs.
    settings = {**ROOMY, "LLM_API_URL": provider.base_url, "AUDIT_PATIENCE_S": "5", **shim.environment()}
    with RunningProxy(short_folder / "faulty", settings) as proxy:
        yield proxy, proxy.create_api_key()


def _ask(proxy: RunningProxy, key: str, prompt: str) -> Answer:
    return ask(proxy, "POST", "/chat", key=key, body={"prompt": prompt})


def _serves_again(proxy: RunningProxy, key: str) -> None:
    wait_until(lambda: _ask(proxy, key, "after").status == 200, what="it serves again", seconds=60)
    wait_until(lambda: ask(proxy, "GET", "/health/ready").status == 200, what="it is ready again", seconds=60)


def _verified(proxy: RunningProxy) -> None:
    done = proxy.command("audit", "verify", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_while_the_disk_hangs_nothing_is_sent_upstream_and_every_request_is_refused(
    faulty: tuple[RunningProxy, str], shim: FaultShim, provider: Provider
) -> None:
    proxy, key = faulty
    _serves_again(proxy, key)
    writer = proxy.writer_pid()
    provider.clear()
    shim.set(sync_delay_us=60_000_000)

    with ThreadPoolExecutor(_CLIENTS) as clients:
        refused = list(clients.map(lambda number: _ask(proxy, key, f"unrecorded {number}"), range(_CLIENTS)))
    sent = list(provider.chats)

    assert {(answer.status, answer.error_code) for answer in refused} == {(503, "audit_unavailable")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert sent == []
    assert ask(proxy, "GET", "/health/ready").status == 503
    shim.heal()
    _serves_again(proxy, key)
    assert proxy.writer_pid() == writer
    _verified(proxy)


def test_a_disk_that_refuses_everything_is_no_disk_and_comes_back(
    faulty: tuple[RunningProxy, str], shim: FaultShim, provider: Provider
) -> None:
    proxy, key = faulty
    _serves_again(proxy, key)
    writer = proxy.writer_pid()
    for create, write in ((errno.EROFS, errno.EROFS), (errno.ENFILE, errno.EIO)):
        provider.clear()
        shim.set(create_errno=create)
        shim.fail_writes(error=write)

        with ThreadPoolExecutor(3) as clients:
            refused = list(clients.map(lambda number: _ask(proxy, key, f"unrecorded {number}"), range(3)))
        sent = list(provider.chats)
        ready = ask(proxy, "GET", "/health/ready")
        shim.heal()

        assert {(answer.status, answer.error_code) for answer in refused} == {(503, "audit_unavailable")}
        assert sent == []
        assert ready.status == 503
        _serves_again(proxy, key)
    assert proxy.writer_pid() == writer
    _verified(proxy)


def test_a_clock_that_jumps_refuses_nobody_and_leaves_the_log_in_order(
    faulty: tuple[RunningProxy, str], shim: FaultShim
) -> None:
    proxy, key = faulty
    _serves_again(proxy, key)

    for offset_ns in (-_HOUR_NS, 24 * _HOUR_NS, 0):
        shim.set(clock_offset_ns=offset_ns)
        began_s = time.monotonic()
        answers = [_ask(proxy, key, "what time is it?") for _ in range(3)]
        took_ms = (time.monotonic() - began_s) * 1000

        assert [answer.status for answer in answers] == [200] * 3
        assert all(0 <= float(answer.headers["x-slp-overhead-ms"]) < took_ms for answer in answers)
    shim.set(clock_offset_ns=0)

    times = [str(line["t"]) for line in audit_lines(proxy)]
    assert times != sorted(times)
    _verified(proxy)
