"""What both worker classes keep to: bounds on time and writes, replacement, stopping; and what the hot one hears of clients."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.gunicorn_server import HOT, STOCK, GunicornServer, answer_of, get, post, rest_of
from tests.support.programs import wait_until

IDS = {HOT: "hot", STOCK: "stock"}


@pytest.fixture(params=[HOT, STOCK], ids=IDS.__getitem__)
def worker(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture(params=[False, True], ids=["tcp", "unix"])
def hot(request: pytest.FixtureRequest, tmp_path: Path, short_folder: Path) -> Iterator[GunicornServer]:
    with GunicornServer(short_folder / tmp_path.name, HOT, on_unix_socket=request.param) as server:
        yield server


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/big?30000", "/relay?big"])
def test_a_client_that_stops_reading_is_hung_up_on(worker: str, path: str, tmp_path: Path) -> None:
    with GunicornServer(tmp_path, worker, send_timeout_s=1.0) as server, server.connect() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(get(path))
        assert line.recv(100).startswith(b"HTTP/1.1 200 OK")

        wait_until(lambda: "client hung up on: it stopped reading" in server.log_text(), what="it is hung up on")

        assert server.exchange(get("/ignore")).endswith(b"ignored")


def test_a_head_that_does_not_come_to_its_end_is_not_waited_for(worker: str, tmp_path: Path) -> None:
    heads = (b"", b"G", b"GET /echo HTT", b"GET /echo HTTP/1.1\r\nHost: a", b"GET /a%20b HTTP/1.1\r\nHo")
    with GunicornServer(tmp_path, worker, keepalive=2) as server, ExitStack() as opened:
        lines = [opened.enter_context(server.connect()) for _ in heads]
        for line, begun in zip(lines, heads, strict=True):
            line.sendall(begun)

        assert [rest_of(line) for line in lines] == [b""] * len(heads)


def test_a_head_that_trickles_is_not_waited_for(worker: str, tmp_path: Path) -> None:
    with GunicornServer(tmp_path, worker, keepalive=2) as server, server.connect() as line:
        line.sendall(b"GET /echo HTTP/1.1\r\nHost: a.example\r\nX-A: ")
        line.settimeout(0.1)
        received = None
        deadline = time.monotonic() + 30
        while received is None and time.monotonic() < deadline:
            try:
                line.sendall(b"b")
                received = line.recv(100)
            except TimeoutError:
                continue
            except OSError:
                received = b""

        assert received == b""


def test_an_idle_connection_is_closed_and_one_in_use_is_not(worker: str, tmp_path: Path) -> None:
    with GunicornServer(tmp_path, worker, keepalive=5) as server, server.connect() as line:
        for _ in range(11):
            line.sendall(get("/ignore"))
            assert answer_of(line).endswith(b"ignored")
            time.sleep(0.5)

        assert rest_of(line) == b""


def test_a_client_that_leaves_within_its_body_harms_nobody(worker: str, tmp_path: Path) -> None:
    with GunicornServer(tmp_path, worker) as server:
        for sent in (0, 3):
            with server.connect() as line:
                line.sendall(post("/echo", b"x" * 10)[: -10 + sent])
                line.shutdown(socket.SHUT_WR)

                answer = rest_of(line)
                assert b'"body": "%b"' % (b"x" * sent) in answer

        assert server.exchange(get("/ignore")).endswith(b"ignored")
        assert "Traceback" not in server.log_text()


# --- replacement and stop ---------------------------------------------------------------------------------------------


def test_a_worker_is_replaced_after_its_number_of_requests(worker: str, tmp_path: Path) -> None:
    # one request goes to the question whether it is up
    with GunicornServer(tmp_path, worker, max_requests=4) as server, server.connect() as line:
        [first] = server.worker_pids()
        answers = []
        for _ in range(3):
            line.sendall(get("/ignore"))
            answers.append(answer_of(line))

        assert [b"Connection: close" in answer for answer in answers] == [False, False, True]
        assert rest_of(line) == b""
        wait_until(lambda: set(server.worker_pids()) not in ({first}, set()), what="another worker has come")
        assert server.exchange(get("/ignore")).endswith(b"ignored")
        assert "Autorestarting worker after current request." in server.log_text()


def test_a_stop_answers_what_runs_and_what_still_comes_and_closes_what_is_idle(worker: str, tmp_path: Path) -> None:
    with (
        GunicornServer(tmp_path, worker, graceful_timeout=90) as server,
        server.connect() as running,
        server.connect() as used,
        server.connect() as idle,
        server.connect() as fresh,
    ):
        for line in (used, idle):
            line.sendall(get("/ignore"))
            answer_of(line)
        running.sendall(get("/sleep?3"))
        wait_until(lambda: "asleep" in server.told(), what="it runs")

        os.kill(server.pid, signal.SIGTERM)
        answer = b""
        while b"Connection: close" not in answer:  # until the worker has heard of it
            used.sendall(get("/ignore"))
            answer = answer_of(used)
            assert answer.endswith(b"ignored")

        assert rest_of(used) == b""
        assert rest_of(idle) == b""
        assert rest_of(fresh) == b""
        assert answer_of(running).endswith(b"slept")
        # Long before the time is up that running requests have.
        wait_until(server.has_ended, what="the server has ended")


def test_a_stop_does_not_wait_longer_than_it_may(worker: str, tmp_path: Path) -> None:
    with GunicornServer(tmp_path, worker, graceful_timeout=4) as server, server.connect() as line:
        line.sendall(get("/sleep?60"))
        wait_until(lambda: "asleep" in server.told(), what="it runs")

        os.kill(server.pid, signal.SIGTERM)

        assert rest_of(line) == b""
        wait_until(server.has_ended, what="the server has ended")
        assert "Traceback" not in server.log_text()


# --- the client's presence --------------------------------------------------------------------------------------------


def all_told(server: GunicornServer, before: list[str]) -> list[str]:
    """`before` with what was told since: the application forgets what it told, and it may tell two things at once."""
    before += server.told()
    return before


def test_a_client_that_leaves_is_noticed(hot: GunicornServer) -> None:
    for request in (get("/await"), post("/await", b"body"), post("/await", b"b" * 200_000)):
        with hot.connect() as line:
            line.sendall(request)
            wait_until(lambda: "waiting" in hot.told(), what="it waits")

        wait_until(lambda: "gone" in hot.told(), what="the leaving is noticed")


def test_a_client_that_leaves_on_a_used_connection_is_noticed(hot: GunicornServer) -> None:
    with hot.connect() as line:
        for _ in range(3):
            line.sendall(get("/echo"))
            answer_of(line)
        line.sendall(get("/await"))
        wait_until(lambda: "waiting" in hot.told(), what="it waits")

    wait_until(lambda: "gone" in hot.told(), what="the leaving is noticed")


def test_bytes_of_a_body_are_no_sign_of_leaving_and_the_end_after_it_is(hot: GunicornServer) -> None:
    with hot.connect() as line:
        line.sendall(post("/await?early", b"x" * 5)[:-5])
        told: list[str] = []
        wait_until(lambda: "waiting" in all_told(hot, told), what="it waits")
        line.sendall(b"xxxxx")
        wait_until(lambda: "body read" in all_told(hot, told), what="the body is read")
        assert "before the body: False" in told

    wait_until(lambda: "gone" in hot.told(), what="the leaving is noticed")


def test_a_client_that_sends_its_next_request_is_still_there_and_is_answered(hot: GunicornServer) -> None:
    with hot.connect() as line:
        line.sendall(get("/await?briefly"))
        told: list[str] = []
        wait_until(lambda: "waiting" in all_told(hot, told), what="it waits")
        line.sendall(post("/echo", b"second", b"Connection: close"))

        first, _, second = rest_of(line).partition(b"awaited")
        assert first.startswith(b"HTTP/1.1 200 OK")
        assert b'"body": "second"' in second
        assert all_told(hot, told) == ["waiting", "still there"]


def test_a_client_that_sends_its_next_request_and_leaves_is_noticed_over_tcp(tmp_path: Path) -> None:
    with GunicornServer(tmp_path, HOT) as server:
        with server.connect() as line:
            line.sendall(get("/await"))
            wait_until(lambda: "waiting" in server.told(), what="it waits")
            line.sendall(get("/echo"))
            wait_until(lambda: server.exchange(get("/ignore")).endswith(b"ignored"), what="the bytes have been seen")

        wait_until(lambda: "gone" in server.told(), what="the leaving is noticed")


# --- nobody gets another's answer ---------------------------------------------------------------------------------------


def test_answers_reach_who_asked_whoever_leaves(hot: GunicornServer) -> None:
    def client(number: int) -> Counter[str]:
        chance, seen = random.Random(number), Counter[str]()
        line = hot.connect()
        for turn in range(150):
            mark = f"mark-{number}-{turn}-end"
            request = post(f"/echo?{mark}", mark.encode() * chance.choice((1, 1, 1, 3000)))
            if chance.random() < 0.15:
                line.sendall(request[: chance.randrange(len(request))])
                line.close()
                line = hot.connect()
                seen["left"] += 1
                continue
            place = chance.randrange(len(request))
            line.sendall(request[:place])
            line.sendall(request[place:])
            if chance.random() < 0.1:
                line.close()
                line = hot.connect()
                seen["left"] += 1
                continue
            answer = answer_of(line).decode("latin-1")
            own = f'"QUERY_STRING": "{mark}"' in answer and f'"body": "{mark}' in answer
            seen[
                "own" if own and answer.count("mark-") == answer.count(f"mark-{number}-{turn}-end") else "foreign"
            ] += 1
        line.close()
        return seen

    with ThreadPoolExecutor(8) as pool:
        seen = sum(pool.map(client, range(8)), Counter[str]())

    assert seen["foreign"] == 0
    assert seen["own"] > 700
    assert "Traceback" not in hot.log_text()


def test_a_client_that_never_pauses_does_not_stop_the_others(worker: str, tmp_path: Path) -> None:
    with GunicornServer(tmp_path, worker) as server, server.connect() as greedy:
        over = threading.Event()

        def until_over(step: Callable[[], object]) -> None:
            try:
                while not over.is_set():
                    assert step() != b"" or over.is_set(), "the server hung up"
            except OSError:  # cut below
                assert over.is_set()

        threads = [
            threading.Thread(target=until_over, args=[lambda: greedy.sendall(get("/ignore") * 300)]),
            threading.Thread(target=until_over, args=[lambda: greedy.recv(1 << 18)]),
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                assert server.exchange(get("/ignore")).endswith(b"ignored")
        finally:
            over.set()
            # Whoever waits to send or to receive would wait on: nobody reads any more, nothing comes.
            with suppress(OSError):
                greedy.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(30)
