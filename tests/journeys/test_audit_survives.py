"""What got an answer is in the log, whatever dies; and without the log nothing leaves."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import ROOMY
from tests.support.clients import Answer, ask, audit_lines, connection_to, records_of
from tests.support.programs import wait_until
from tests.support.provider import Mode, Provider
from tests.support.running_proxy import RunningProxy


def _verified(proxy: RunningProxy) -> None:
    done = proxy.command("audit", "verify", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_writer_is_killed_five_times_under_fifty_requests_and_nothing_answered_is_lost(
    proxy: RunningProxy, provider: Provider
) -> None:
    key = proxy.create_api_key()
    answers: list[Answer] = []
    under_way = set[int]()
    provider.clear()
    # So a stream lasts about 0.8 s and the kill hits it midway.
    provider.stream_pause_s = 0.12

    def ask_until(over: threading.Event, client: int) -> None:
        while not over.is_set():
            under_way.add(client)
            body = {"prompt": f"client {client}", "stream": client % 5 > 0}
            answers.append(ask(proxy, "POST", "/chat", key=key, body=body))
            under_way.discard(client)
            time.sleep(0.1)

    try:
        for _ in range(5):
            writer = proxy.writer_pid()
            over = threading.Event()
            with ThreadPoolExecutor(50) as pool:
                running = [pool.submit(ask_until, over, client) for client in range(50)]
                try:
                    wait_until(lambda: len(under_way) >= 30, what="most clients have asked")
                    time.sleep(0.3)
                    os.kill(writer, signal.SIGKILL)
                    hit = len(under_way)
                    assert hit >= 20, f"the kill must hit requests under way, not {hit}"
                    time.sleep(1.5)  # they go on asking while it is away and when it is back
                finally:
                    over.set()
                for future in running:
                    future.result()
            wait_until(
                lambda: ask(proxy, "POST", "/chat", key=key, body={"prompt": "back?"}).status == 200,
                what="the service came back by itself",
            )
    finally:
        provider.stream_pause_s = 0.0

    assert {answer.status for answer in answers} <= {200, 503}
    assert sum(answer.status == 200 for answer in answers) > 0
    _verified(proxy)
    kinds: dict[object, list[object]] = {}
    for line in audit_lines(proxy):
        if line["k"] == "rec":
            kinds.setdefault(line["rid"], []).append(line["ty"])
    for answer in answers:
        if answer.status == 200:
            assert kinds[answer.headers["x-request-id"]] == ["llm.start", "llm.end"]


def test_without_the_writer_nothing_reaches_the_provider(provider: Provider, short_folder: Path) -> None:
    settings = {**ROOMY, "LLM_API_URL": provider.base_url, "AUDIT_PATIENCE_S": "5"}
    with RunningProxy(short_folder / "no-writer", settings) as proxy:
        key = proxy.create_api_key()
        assert ask(proxy, "POST", "/chat", key=key, body={"prompt": "before"}).status == 200
        provider.clear()
        os.kill(proxy.writer_pid(), signal.SIGSTOP)

        refused = ask(proxy, "POST", "/chat", key=key, body={"prompt": "unrecorded"})
        ready = ask(proxy, "GET", "/health/ready")
        sent = list(provider.chats)
        os.kill(proxy.writer_pid(), signal.SIGCONT)
        wait_until(
            lambda: ask(proxy, "POST", "/chat", key=key, body={"prompt": "after"}).status == 200, what="it serves again"
        )

        assert (refused.status, refused.error_code) == (503, "audit_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert ready.status == 503
        assert sent == []
        late = records_of(proxy, refused.headers["x-request-id"])
        assert [record["ty"] for record in late] == ["llm.start", "llm.end"]
        assert late[1]["st"] == "not_sent"
        _verified(proxy)


def test_a_killed_worker_s_open_exchange_is_closed_as_an_orphan(provider: Provider, short_folder: Path) -> None:
    settings = {**ROOMY, "LLM_API_URL": provider.base_url, "AUDIT_ORPHAN_GRACE_S": "1"}
    with RunningProxy(short_folder / "orphan", settings) as proxy, ThreadPoolExecutor(1) as pool:
        key = proxy.create_api_key()
        ask(proxy, "GET", "/v1/models", key=key)
        provider.clear()
        provider.script(Mode.HANG_BEFORE_HEADERS, times=1)
        hanging = pool.submit(ask, proxy, "POST", "/chat", key=key, body={"prompt": "left alone"})
        wait_until(lambda: len(provider.chats) > 0, what="the provider has it")

        [worker] = proxy.worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert hanging.exception(60) is not None
        wait_until(lambda: len(_orphans(proxy)) > 0, what="its exchange is closed", seconds=60)

        assert len(_orphans(proxy)) == 1
        assert ask(proxy, "POST", "/chat", key=key, body={"prompt": "served again"}).status == 200
        _verified(proxy)


def _orphans(proxy: RunningProxy) -> list[dict[str, object]]:
    return [line for line in audit_lines(proxy) if line.get("st") == "orphan"]


def test_a_client_that_leaves_ends_the_provider_s_work_and_is_recorded(
    proxy: RunningProxy, provider: Provider, api_key: str
) -> None:
    for stream in (False, True):
        provider.clear()
        provider.script(Mode.HANG_MID_STREAM if stream else Mode.HANG_BEFORE_HEADERS, times=1)

        request_id = _ask_and_leave(proxy, api_key, stream=stream, provider=provider)

        assert provider.wait_for_disconnect(30)
        deadline = time.monotonic() + 30
        while not (ends := _ends(proxy, request_id)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert [end["st"] for end in ends] == ["client_abort"]


def _ends(proxy: RunningProxy, correlation: str) -> list[dict[str, object]]:
    lines = audit_lines(proxy)
    starts = [line["id"] for line in lines if line.get("ty") == "llm.start"]
    shown = next(
        (start for start in reversed(starts) if correlation in proxy.command("audit", "show", str(start)).stdout), None
    )
    return [line for line in lines if line.get("ty") == "llm.end" and line.get("sid") == shown]


def _ask_and_leave(proxy: RunningProxy, key: str, *, stream: bool, provider: Provider) -> str:
    correlation = f"leaver-{time.monotonic_ns()}"
    with connection_to(proxy) as connection:
        connection.request(
            "POST",
            "/v1/chat/completions",
            body=json.dumps({"messages": [{"role": "user", "content": "bye"}], "stream": stream}),
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Bearer {key}",
                "X-Correlation-ID": correlation,
            },
        )
        if stream:
            answer = connection.getresponse()
            assert answer.readline().startswith(b"data:")
        else:
            # A worker that knows no models yet asks for their list first.
            wait_until(lambda: len(provider.chats) > 0, what="the provider has it")
    return correlation


def test_admin_commands_leave_intent_and_result(proxy: RunningProxy) -> None:
    before = len(audit_lines(proxy))
    user = proxy.create_user()

    changes = [line for line in audit_lines(proxy)[before:] if line.get("act") == "user.create"]

    assert [change["ty"] for change in changes] == ["admin.intent", "admin.result"]
    assert changes[1]["ok"] is True
    assert changes[0]["ev"] == "ADMIN_CHANGE"
    assert user in proxy.command("audit", "show", str(changes[0]["rid"])).stdout
