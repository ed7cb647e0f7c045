"""Stopping and reloading in the middle of work."""

from __future__ import annotations

import http.client
import json
import os
import signal
from pathlib import Path

from redis import Redis

from tests.support.clients import ask
from tests.support.programs import wait_until
from tests.support.provider import Mode, Provider
from tests.support.redis_server import PrivateRedis
from tests.support.running_proxy import RunningProxy


def test_a_stream_that_a_stop_ends_says_so_and_its_slots_come_back(provider: Provider, short_folder: Path) -> None:
    settings = {"LLM_API_URL": provider.base_url, "LLM_MODELS": "test-model", "GRACEFUL_TIMEOUT_S": "10"}
    with (
        PrivateRedis(password="battery-horse") as redis_server,
        RunningProxy(short_folder / "stopped", {**settings, "REDIS_URL": redis_server.url}) as proxy,
        Redis.from_url(redis_server.url) as redis,
    ):
        connection = http.client.HTTPConnection(proxy.base_url.removeprefix("http://"), timeout=30)
        headers = {"Authorization": f"Bearer {proxy.create_api_key()}", "Content-Type": "application/json"}
        provider.script(Mode.HANG_MID_STREAM, times=1)
        connection.request("POST", "/chat", json.dumps({"prompt": "hi", "stream": True}), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        assert len(list(redis.scan_iter("slp:rate_limit:in_flight:*"))) == 2

        status = proxy.stop()

        last_event = answer.read().strip().rpartition(b"data: ")[2]
        connection.close()
        lines = [json.loads(line) for line in proxy.command("audit", "cat").stdout.splitlines()]
        assert status == 0
        assert [line["st"] for line in lines if line.get("ty") == "llm.end"] == ["server_stop"]
        assert json.loads(last_event)["error"]["code"] == "server_stop"
        assert list(redis.scan_iter("slp:rate_limit:in_flight:*")) == []


def test_a_reload_with_a_misspelt_setting_changes_nothing(provider: Provider, short_folder: Path) -> None:
    settings = {"LLM_API_URL": provider.base_url, "LLM_MODELS": "test-model"}
    with RunningProxy(short_folder / "reloaded", settings) as proxy:
        key, workers = proxy.create_api_key(), proxy.worker_pids()
        wait_until(lambda: f"Ready at {proxy.base_url}" in proxy.log_text(), what="it says that it is ready")
        (proxy.home / ".env").write_text("LOG_LEVLE=DEBUG\n")

        os.kill(proxy.pid, signal.SIGHUP)
        wait_until(lambda: "did you mean LOG_LEVEL?" in proxy.log_text(), what="the mistake is told")

        assert ask(proxy, "POST", "/chat", key=key, body={"prompt": "hi"}).status == 200
        assert proxy.worker_pids() == workers

        (proxy.home / ".env").write_text("LOG_LEVEL=DEBUG\n")
        os.kill(proxy.pid, signal.SIGHUP)
        wait_until(lambda: bool(set(proxy.worker_pids()) - set(workers)), what="a new worker has come")
