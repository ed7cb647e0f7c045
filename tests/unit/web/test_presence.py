"""Is the client still there? Seen on a real socket, also while nothing is written."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import gevent
import pytest

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.web.presence import ClientWatch

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The server's end and the client's."""
    server, client = socket.socketpair()
    with server, client:
        yield server, client


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


def watch(server: socket.socket) -> tuple[ClientWatch, Cancellation]:
    cancellation = Cancellation()
    return ClientWatch({"gunicorn.socket": server}, cancellation), cancellation


def test_a_client_that_leaves_raises_the_flag(pair: Pair) -> None:
    presence, cancellation = watch(pair[0])
    presence.start()

    pair[1].close()

    assert soon(lambda: cancellation.raised)
    assert cancellation.reason == "client_gone"
    presence.stop()


def test_a_client_that_sends_its_next_request_is_still_there(pair: Pair) -> None:
    presence, cancellation = watch(pair[0])
    presence.start()

    pair[1].sendall(b"GET / HTTP/1.1\r\n")
    loop_turns()

    assert not cancellation.raised
    presence.stop()
    assert pair[0].recv(100) == b"GET / HTTP/1.1\r\n"


def test_a_quiet_client_is_there(pair: Pair) -> None:
    presence, cancellation = watch(pair[0])
    presence.start()

    loop_turns()

    assert not cancellation.raised
    presence.stop()


def test_nothing_is_seen_before_the_start_and_after_the_stop(pair: Pair) -> None:
    presence, cancellation = watch(pair[0])
    pair[1].close()
    loop_turns()
    assert not cancellation.raised

    presence.stop()
    presence.stop()
    presence.start()
    loop_turns()

    assert not cancellation.raised


def test_a_client_that_left_before_the_start_is_seen_at_it(pair: Pair) -> None:
    presence, cancellation = watch(pair[0])
    pair[1].close()

    presence.start()

    assert soon(lambda: cancellation.raised)
    presence.stop()


def test_a_reset_connection_counts_as_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with server:
        presence, cancellation = watch(server)
        presence.start()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()

        assert soon(lambda: cancellation.raised)
        presence.stop()


def test_without_a_socket_there_is_nothing_to_watch() -> None:
    presence = ClientWatch({}, Cancellation())

    presence.start()
    presence.stop()
