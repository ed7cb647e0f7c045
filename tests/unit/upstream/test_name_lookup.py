"""A silent resolver: whoever waits, one lookup."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from secure_llm_proxy.upstream.endpoint import Endpoint, parse_endpoint
from secure_llm_proxy.upstream.name_lookup import lookup_of
from secure_llm_proxy.upstream.wire import Wire, WireBroken, WireTimedOut

ADDRESS = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9))


class Resolver:
    """Stands where the system's resolver does, and says nothing until it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = threading.Event()
        self.fails = False
        self.answer: list[object] = [ADDRESS]

    def getaddrinfo(self, *_: object, **__: object) -> list[object]:
        self.asked += 1
        assert self.may_answer.wait(60)
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return self.answer


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    standing_in = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", standing_in.getaddrinfo)
    yield standing_in
    standing_in.may_answer.set()


def opened(endpoint: Endpoint, patience_s: float) -> type[Exception] | None:
    wire = Wire(endpoint, None)
    try:
        wire.open(time.monotonic() + patience_s)
    except (WireBroken, WireTimedOut) as error:
        return type(error)
    finally:
        wire.close()
    return None


def test_while_the_resolver_is_silent_one_lookup_waits_and_no_thread_piles_up(resolver: Resolver) -> None:
    endpoint = parse_endpoint("http://silent.test:9/v1")
    before = set(threading.enumerate())

    with ThreadPoolExecutor(8, thread_name_prefix="asks") as pool:
        ended = list(pool.map(lambda _: opened(endpoint, 0.05), range(40)))
        # The provider that this run shares has a thread for each of its connections, which come when they like.
        piled_up = [
            thread
            for thread in set(threading.enumerate()) - before
            if not thread.name.startswith(("asks", "test-provider"))
        ]
        assert len(piled_up) <= 1

    assert ended == [WireTimedOut] * 40
    assert resolver.asked == 1


def test_a_forked_child_does_not_wait_for_its_parents_lookup(resolver: Resolver) -> None:
    under_way = lookup_of("forked.test", 9)

    child = os.fork()
    if child == 0:
        status = 1
        try:
            resolver.may_answer = threading.Event()
            resolver.may_answer.set()
            told = threading.Event()
            lookup_of("forked.test", 9).tell(told)
            status = 0 if told.wait(30) else 1
        finally:
            # Whatever goes wrong here, this copy of the test run must not go on.
            os._exit(status)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert not under_way.done


def test_its_answer_is_everybodys_and_the_next_lookup_is_a_new_one(resolver: Resolver) -> None:
    lookup = lookup_of("slow.test", 9)
    events = [threading.Event() for _ in range(5)]
    for event in events:
        lookup_of("slow.test", 9).tell(event)

    resolver.may_answer.set()

    assert all(event.wait(60) for event in events)
    late = threading.Event()
    lookup.tell(late)
    assert late.is_set()
    assert lookup.found == [(socket.AF_INET, ("127.0.0.1", 9))]
    assert lookup.failure is None
    again = threading.Event()
    lookup_of("slow.test", 9).tell(again)
    assert again.wait(60)
    assert resolver.asked == 2


def test_a_failure_is_everybodys_too_and_not_kept(resolver: Resolver) -> None:
    resolver.fails = True
    resolver.may_answer.set()

    assert opened(parse_endpoint("http://nobody.test:9/v1"), 60) is WireBroken
    assert opened(parse_endpoint("http://nobody.test:9/v1"), 60) is WireBroken
    assert resolver.asked == 2


def test_of_a_name_that_leads_to_thousands_of_addresses_the_first_are_looked_at(resolver: Resolver) -> None:
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:2800::1", 9, 0, 0))
    resolver.answer = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", "/a/path"), ADDRESS, *[six] * 4000]
    resolver.may_answer.set()
    told = threading.Event()

    lookup = lookup_of("thousands.test", 9)
    lookup.tell(told)

    assert told.wait(60)
    assert len(lookup.found) == 256
    assert lookup.found[:2] == [(socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_INET6, ("2606:2800::1", 9, 0, 0))]
