"""The kill switch: who is stopped is refused and cut everywhere within seconds, in every shape of the product."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOMY
from tests.support.clients import Answer, ask, audit_lines, connection_to
from tests.support.programs import wait_until
from tests.support.provider import Mode, Provider
from tests.support.running_proxy import RunningProxy

# A kill acts within 5 s; a machine that is busy with other things gets more.
PATIENCE_S = 20.0
PROMPT = {"messages": [{"role": "user", "content": "tell me everything"}]}


class RunningStream:
    """A stream that a thread reads; `text` is what has come so far."""

    def __init__(self, proxy: RunningProxy, key: str) -> None:
        self._body = json.dumps({**PROMPT, "stream": True})
        self._proxy, self._key = proxy, key
        self.begun, self.underway, self.ended = (threading.Event() for _ in range(3))
        self.request_id, self.text = "", ""
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def last_error(self) -> dict[str, object]:
        head, _, last = self.text.rpartition("event: error\ndata: ")
        assert head, f"no error event: {self.text[-200:]!r}"
        error = json.loads(last)["error"]
        assert isinstance(error, dict)
        return error

    def _read(self) -> None:
        try:
            with connection_to(self._proxy) as connection:
                headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
                connection.request("POST", "/v1/chat/completions", body=self._body, headers=headers)
                answer = connection.getresponse()
                self.request_id = answer.headers["X-Request-Id"]
                while line := answer.readline():
                    self.text += line.decode()
                    self.begun.set()
                    if self.text.count("word") > 2:
                        self.underway.set()
        finally:
            self.ended.set()


@contextmanager
def endless_answers(provider: Provider) -> Iterator[None]:
    """Streams that go on for a minute: a chunk each 50 ms."""
    text, chunks, pause_s = provider.reply_text, provider.stream_chunks, provider.stream_pause_s
    provider.reply_text, provider.stream_chunks, provider.stream_pause_s = "word " * 1200, 1200, 0.05
    try:
        yield
    finally:
        provider.reply_text, provider.stream_chunks, provider.stream_pause_s = text, chunks, pause_s


def chat(proxy: RunningProxy, key: str) -> Answer:
    return ask(proxy, "POST", "/v1/chat/completions", key=key, body=PROMPT)


def wait_for_answer(proxy: RunningProxy, key: str, status: int) -> None:
    """Until several requests in a row, which any worker may take, are answered so."""
    until_s = time.monotonic() + PATIENCE_S
    while any(chat(proxy, key).status != status for _ in range(6)):
        assert time.monotonic() < until_s, f"no {status} in time"


def test_whoever_is_killed_is_cut_and_refused_until_let_go(proxy: RunningProxy, provider: Provider) -> None:
    user = proxy.create_user()
    key, second = proxy.create_api_key(user), proxy.create_api_key(user)
    kid = key.split("_")[2]
    streams: list[RunningStream] = []
    # subject, and what the same user's second key is told meanwhile
    for subject, seconds in ((kid, 200), (user, 403), ("prj_00000000000000000000000000", 403), ("everything", 403)):
        with endless_answers(provider):
            running, other = RunningStream(proxy, key), RunningStream(proxy, second)
            assert running.underway.wait(PATIENCE_S)
            assert other.underway.wait(PATIENCE_S)

            proxy.command("kill", subject, "--reason", "an exercise", "--yes")

            try:
                assert running.ended.wait(PATIENCE_S), subject
                wait_for_answer(proxy, key, 403)
                wait_for_answer(proxy, second, seconds)
                assert chat(proxy, key).error_code == "killed"
                assert seconds == 200 or other.ended.wait(PATIENCE_S)
                if subject == kid:
                    assert not other.ended.is_set(), "the user's other key goes on"
                    (listed,) = json.loads(proxy.command("kill-switches", "--json").stdout)
            finally:
                proxy.command("unkill", subject)
            streams += [running] if seconds == 200 else [running, other]
        wait_for_answer(proxy, key, 200)
        wait_for_answer(proxy, second, 200)

    assert (listed["name"], listed["kind"], listed["reason"]) == (kid, "key", "an exercise")
    for stream in streams:
        assert (stream.last_error["code"], stream.last_error["type"]) == ("killed", "permission_error")
        assert "[DONE]" not in stream.text
    lines = audit_lines(proxy)
    for stream in streams:
        start, end = (line for line in lines if line.get("rid") == stream.request_id and line["ty"] != "llm.part")
        assert (start["ty"], end["ty"], end["st"], end["code"]) == ("llm.start", "llm.end", "killed", "killed")
    shown = proxy.command("audit", "show", str(end["id"])).stdout
    assert "word word" in shown, "what was delivered stands in the record"
    acts = [(line["act"], line["ty"]) for line in lines if line.get("subject") == listed["subject"]]
    assert acts == [(act, kind) for act in ("kill", "unkill") for kind in ("admin.intent", "admin.result")]


def test_a_provider_that_says_nothing_more_is_no_shelter_from_a_revocation(
    proxy: RunningProxy, provider: Provider
) -> None:
    key = proxy.create_api_key()
    kid = key.split("_")[2]
    ask(proxy, "GET", "/v1/models", key=key)
    provider.clear()
    with ThreadPoolExecutor(1) as pool:
        provider.script(Mode.HANG_MID_STREAM, times=1)
        stream = RunningStream(proxy, key)
        assert stream.begun.wait(PATIENCE_S)
        provider.script(Mode.HANG_BEFORE_HEADERS, times=1)
        silent = pool.submit(chat, proxy, key)
        # Chats alone: a worker that does not know the models yet asks for their list besides.
        wait_until(lambda: len(provider.chats) >= 2, what="the provider has both")

        proxy.command("revoke-api-key", kid, "--yes")

        answer = silent.result(PATIENCE_S)
        assert stream.ended.wait(PATIENCE_S)
    assert (answer.status, answer.error_code) == (401, "api_key_revoked")
    assert stream.last_error["code"] == "api_key_revoked"
    ends = [line for line in audit_lines(proxy) if line.get("ak") == kid and line["ty"] == "llm.end"]
    assert [(end["st"], end["code"]) for end in ends] == [("killed", "api_key_revoked")] * 2


@pytest.mark.parametrize("hot_path", ["true", "false"])
def test_a_client_that_does_not_read_is_hung_up_on(short_folder: Path, hot_path: str) -> None:
    # more than the kernel holds for a connection (tcp_wmem is 4 MiB at most by default)
    with Provider(reply_text="word " * 2_400_000, stream_chunks=4_000) as provider:
        settings = {**ROOMY, "LLM_API_URL": provider.base_url, "SEND_TIMEOUT_S": "120", "HOT_PATH": hot_path}
        with RunningProxy(short_folder / f"deaf-{hot_path}", settings) as proxy, socket.socket() as client:
            key = proxy.create_api_key()
            ask(proxy, "GET", "/v1/models", key=key)
            body = json.dumps({**PROMPT, "stream": True}).encode()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", int(proxy.base_url.rpartition(":")[2])))
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s" % (key.encode(), len(body), body)
            )
            assert client.recv(1024).startswith(b"HTTP/1.1 200")
            provider.wait_for_requests(1)

            proxy.command("kill", "everything", "--reason", "an exercise", "--yes")

            assert provider.wait_for_disconnect(PATIENCE_S)
            until_s = time.monotonic() + PATIENCE_S
            while '"st":"killed"' not in proxy.command("audit", "cat").stdout:
                assert time.monotonic() < until_s
