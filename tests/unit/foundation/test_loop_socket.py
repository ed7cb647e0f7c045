"""Cheap waits on sockets: what arrives, deadlines, interruptions, slow readers."""

from __future__ import annotations

import _socket
import socket
import threading
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from secure_llm_proxy.foundation.loop_socket import LoopSocket

SOON_S = 0.2
LONG_S = 30.0


def deadline(seconds: float = LONG_S) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def pair() -> Iterator[tuple[LoopSocket, LoopSocket]]:
    one, other = _socket.socketpair()
    ours, theirs = LoopSocket(one), LoopSocket(other)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_what_is_sent_arrives_in_order(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, theirs = pair
    received = bytearray()

    def read() -> None:
        while piece := theirs.receive(7, deadline()):
            received.extend(piece)

    reader = gevent.spawn(read)
    for number in range(200):
        ours.send(b"%d " % number, deadline())
    ours.close()
    reader.join(LONG_S)

    assert received == b"".join(b"%d " % number for number in range(200))


def test_more_than_the_kernel_takes_waits_for_the_reader(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, theirs = pair
    content = bytes(range(256)) * 40_000
    sender = gevent.spawn(ours.send, content, deadline())

    received = bytearray()
    while len(received) < len(content):
        received.extend(theirs.receive(65_536, deadline()))

    sender.get(timeout=LONG_S)
    assert received == content


def test_a_wait_ends_at_its_deadline_and_the_socket_still_works(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, theirs = pair

    with pytest.raises(TimeoutError):
        ours.receive(10, deadline(SOON_S))
    theirs.send(b"late", deadline())

    assert ours.receive(10, deadline()) == b"late"


def test_a_reader_that_stalls_ends_the_sending_at_its_deadline(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, _theirs = pair

    with pytest.raises(TimeoutError):
        ours.send(b"x" * 10_000_000, deadline(SOON_S))


def test_an_interruption_from_another_thread_ends_the_wait(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, _theirs = pair
    interrupter = threading.Timer(SOON_S, ours.interrupt)
    interrupter.start()

    assert ours.receive(10, deadline()) == b""
    interrupter.join()


def test_closing_wakes_whoever_waits(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, _theirs = pair
    waiting = gevent.spawn(ours.receive, 10, deadline())
    gevent.sleep(0)

    ours.close()
    ours.close()

    with pytest.raises(OSError, match="closed"):
        waiting.get(timeout=LONG_S)
    with pytest.raises(OSError, match="closed"):
        ours.receive(1, deadline())


def test_a_killed_waiter_leaves_the_socket_usable(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, theirs = pair
    waiting = gevent.spawn(ours.receive, 10, deadline())
    gevent.sleep(0)

    waiting.kill()
    theirs.send(b"x", deadline())

    assert ours.receive(10, deadline()) == b"x"


def test_stirring_is_told_once_while_nobody_waits(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, theirs = pair
    told: list[str] = []
    ours.on_stir = lambda: told.append("stirred")

    ours.watch()
    theirs.send(b"x", deadline())
    turns_until(lambda: bool(told))

    assert told == ["stirred"]
    assert ours.receive(10, deadline()) == b"x"
    theirs.close()
    turns_until(lambda: len(told) > 1)
    assert told == ["stirred", "stirred"]


def turns_until(fact: Callable[[], bool]) -> None:
    """Let the loop turn until it is so, and some more turns."""
    until_s = deadline()
    while not fact() and time.monotonic() < until_s:
        gevent.sleep(0.01)
    for _ in range(10):
        gevent.sleep(0.005)


def test_a_handler_gets_what_arrives_without_waking_the_greenlet_until_it_says_so(
    pair: tuple[LoopSocket, LoopSocket],
) -> None:
    ours, theirs = pair
    received: list[bytes] = []

    def handle() -> bool:
        received.append(ours.raw.recv(1))
        ours.postpone(deadline())
        return received[-1] != b"."

    waiting = gevent.spawn(ours.wait, deadline(), handle)
    for letter in (b"a", b"b", b"."):
        theirs.send(letter, deadline())
    waiting.get(timeout=LONG_S)

    assert received == [b"a", b"b", b"."]


def test_what_a_handler_raises_reaches_whoever_waits(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, theirs = pair

    def handle() -> bool:
        ours.raw.recv(1)
        message = "no good"
        raise ValueError(message)

    waiting = gevent.spawn(ours.wait, deadline(), handle)
    theirs.send(b"x", deadline())

    with pytest.raises(ValueError, match="no good"):
        waiting.get(timeout=LONG_S)


def test_a_handlers_wait_ends_at_its_deadline(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, _theirs = pair

    with pytest.raises(TimeoutError):
        ours.wait(deadline(SOON_S), lambda: True)


def test_a_socket_belongs_to_the_thread_that_made_it(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, _theirs = pair
    told: list[bool] = []

    elsewhere = threading.Thread(target=lambda: told.append(ours.belongs_here))
    elsewhere.start()
    elsewhere.join()

    assert ours.belongs_here
    assert told == [False]


def test_a_detached_socket_can_be_used_otherwise(pair: tuple[LoopSocket, LoopSocket]) -> None:
    ours, theirs = pair

    raw = ours.detach()
    theirs.send(b"x", deadline())
    plain = socket.socket(fileno=raw.detach())

    with plain:
        plain.settimeout(LONG_S)
        assert plain.recv(1) == b"x"
