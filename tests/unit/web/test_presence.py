"""Is the client still there? Seen on a real socket, also while nothing is written."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import gevent
import pytest

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.vocabulary.connection import CONNECTION
from secure_llm_proxy.web.presence import ClientWatch, LentWatch, watch_client

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


# --- as our worker tells it -------------------------------------------------------------------------------------------


class LentConnection:
    """A worker's side of one request; `on_gone` is what it would call."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None] | None] = []

    @property
    def on_gone(self) -> Callable[[], None] | None:
        return self.calls[-1] if self.calls else None

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        self.calls.append(on_gone)


def test_our_workers_own_watcher_is_used_where_there_is_one(pair: Pair) -> None:
    lent = watch_client({CONNECTION: LentConnection(), "gunicorn.socket": pair[0]}, Cancellation())
    own = watch_client({"gunicorn.socket": pair[0]}, Cancellation())

    assert isinstance(lent, LentWatch)
    assert isinstance(own, ClientWatch)


def test_a_lent_watcher_raises_the_flag_while_it_watches() -> None:
    connection, cancellation = LentConnection(), Cancellation()
    presence = watch_client({CONNECTION: connection}, cancellation)
    presence.start()
    presence.start()

    assert connection.on_gone is not None
    connection.on_gone()

    assert cancellation.reason == "client_gone"
    assert len(connection.calls) == 1


def test_a_lent_watcher_is_given_back_once_and_not_taken_again() -> None:
    connection = LentConnection()
    presence = watch_client({CONNECTION: connection}, Cancellation())
    presence.start()

    presence.stop()
    presence.stop()
    presence.start()

    assert len(connection.calls) == 2
    assert connection.on_gone is None


def test_a_lent_watcher_that_never_began_is_left_alone() -> None:
    connection = LentConnection()
    presence = watch_client({CONNECTION: connection}, Cancellation())

    presence.stop()
    presence.start()

    assert connection.calls == []
