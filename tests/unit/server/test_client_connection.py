"""Is the client still there? Heard on the connection's own watcher, on a real socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import gevent
import pytest

from secure_llm_proxy.foundation.loop_socket import LoopSocket
from secure_llm_proxy.server.client_connection import ArrivingBytes, WatchedClient


class Line:
    """The server's end, watched, and the client's."""

    def __init__(self, server: socket.socket, client: socket.socket) -> None:
        self.client = client
        self.socket = LoopSocket(server)
        self.watched = WatchedClient(self.socket)
        self.gone: list[str] = []

    def watch(self) -> None:
        self.watched.watch(lambda: self.gone.append("gone"))


@pytest.fixture(params=["tcp", "unix"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    if request.param == "unix":
        server, client = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
    made = Line(server, client)
    yield made
    made.watched.watch(None)
    made.socket.close()
    client.close()


def soon(holds: Callable[[], bool]) -> bool:
    """Let the event loop run until it holds, for about 10 s at most."""
    for _ in range(2000):
        if holds():
            return True
        gevent.sleep(0.005)
    return False


def loop_turns() -> None:
    for _ in range(10):
        gevent.sleep(0.002)


def test_leaving_is_told_once(line: Line) -> None:
    line.watch()

    line.client.close()

    assert soon(lambda: line.gone == ["gone"])
    loop_turns()
    assert line.gone == ["gone"]


def test_who_left_before_the_watch_is_told_of_at_it(line: Line) -> None:
    line.socket.watch()
    line.client.close()
    loop_turns()
    assert line.gone == []

    line.watch()

    assert soon(lambda: line.gone == ["gone"])


def test_nothing_is_told_after_the_watch(line: Line) -> None:
    line.watch()
    line.watched.watch(None)

    line.client.close()
    loop_turns()

    assert line.gone == []


def test_bytes_of_a_next_request_are_no_leaving_and_stay(line: Line) -> None:
    line.watch()

    line.client.sendall(b"GET /")
    loop_turns()
    gevent.sleep(0.6)

    assert line.gone == []
    line.watched.watch(None)
    assert line.socket.raw.recv(100) == b"GET /"


def test_the_end_behind_bytes_is_seen_over_tcp_alone(line: Line) -> None:
    line.watch()
    line.client.sendall(b"GET /")
    loop_turns()

    line.client.close()

    if line.socket.raw.family == socket.AF_UNIX:
        gevent.sleep(0.6)
        assert line.gone == []
    else:
        assert soon(lambda: line.gone == ["gone"])


def test_a_reset_counts_as_leaving(line: Line) -> None:
    line.watch()
    line.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    line.client.close()

    assert soon(lambda: line.gone == ["gone"])


def test_while_a_body_is_awaited_nothing_is_heard_and_then_the_leaving_is(line: Line) -> None:
    body = ArrivingBytes(line.socket, line.watched, begun=b"ab", length=6, read_timeout_s=30)
    line.watch()
    line.client.sendall(b"cd")
    loop_turns()
    assert line.gone == []
    assert body.read(4) == b"abcd"
    line.client.sendall(b"efnext")
    assert body.read(2) == b"ef"
    assert body.surplus() == b"next"

    line.client.close()

    assert soon(lambda: line.gone == ["gone"])


def test_a_body_that_does_not_come_is_not_waited_for(line: Line) -> None:
    body = ArrivingBytes(line.socket, line.watched, begun=b"", length=6, read_timeout_s=0.2)

    with pytest.raises(TimeoutError):
        body.read(6)


def test_a_body_that_ends_early_is_short(line: Line) -> None:
    body = ArrivingBytes(line.socket, line.watched, begun=b"ab", length=6, read_timeout_s=30)
    line.client.shutdown(socket.SHUT_WR)

    assert body.read(6) == b"ab"
