"""Streams that are given from the event loop: the same events and ends as by iteration, with pauses at will."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import ClientGone, ProxyError, UpstreamFailed, UpstreamTimeout
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Provider as ProviderClient
from secure_llm_proxy.vocabulary.chat import CompletionStream, StreamEvent
from tests.support.certificates import Certificate
from tests.support.compatible_provider import chat_request, compatible_provider
from tests.support.provider import Mode, Provider

ROOT = Path(__file__).parents[2]
PLAIN = json.dumps({"model": "test-model", "messages": []}).encode()
STREAMED = json.dumps({"model": "test-model", "messages": [], "stream": True}).encode()

Connect = Callable[..., ProviderClient]

# over TCP or TLS, as the test's parameter says
TRANSPORTS = pytest.mark.parametrize("far_end", ["tcp", "tls"], indirect=True)


@pytest.fixture
def far_end(certificate: Certificate, request: pytest.FixtureRequest) -> Iterator[Provider]:
    tls = server_context(certificate) if getattr(request, "param", "tcp") == "tls" else None
    with Provider(reply_text="Grüße, Welt: all is well.", stream_chunks=9, tls=tls) as server:
        yield server


@pytest.fixture
def connect(far_end: Provider, certificate: Certificate) -> Iterator[Connect]:
    """Makes the client under test; every patience is long unless a test says otherwise."""
    made: list[ProviderClient] = []

    def make(**overrides: object) -> ProviderClient:
        fields: dict[str, object] = {
            "api_url": far_end.base_url,
            "connect_timeout_s": 20.0,
            "first_byte_timeout_s": 20.0,
            "idle_timeout_s": 20.0,
            "total_timeout_s": 40.0,
            "answer_bytes_max": 2**20,
            "event_bytes_max": 2**16,
        }
        if far_end.base_url.startswith("https"):
            fields["ca_file"] = certificate.authority
        client = compatible_provider(UpstreamSettings.model_validate(fields | overrides))
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


def server_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def start(client: ProviderClient, cancellation: Cancellation | None = None) -> CompletionStream:
    return client.stream(chat_request(STREAMED, stream=True), cancellation or Cancellation())


def pumped(stream: CompletionStream, *, pause_after: int | None = None) -> list[StreamEvent]:
    """All events; the pump is asked to pause after each `pause_after` of them."""
    events: list[StreamEvent] = []

    def take(event: StreamEvent) -> bool:
        events.append(event)
        return pause_after is None or len(events) % pause_after != 0

    while stream.pump(take):
        assert pause_after is not None
        assert len(events) % pause_after == 0
    return events


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events)


# --- good streams -----------------------------------------------------------------------------------------------------

TOLERABLE = [
    *[Mode.OK, Mode.INTERIM, Mode.NO_DONE, Mode.NO_LAST_NEWLINE, Mode.COMMENTS],
    *[Mode.CRLF_EVENTS, Mode.LATE_LAST_CHUNK, Mode.SLOW_DRIP],
]


@TRANSPORTS
@pytest.mark.parametrize("pause_after", [None, 1, 3])
@pytest.mark.parametrize("mode", TOLERABLE)
def test_a_pumped_stream_has_the_events_of_an_iterated_one_whatever_the_pauses(
    far_end: Provider, connect: Connect, mode: Mode, pause_after: int | None
) -> None:
    client = connect()
    far_end.script(mode, pause_s=0.0)
    iterated = list(start(client))

    events = pumped(start(client), pause_after=pause_after)

    assert events == iterated
    assert text_of(events) == far_end.reply_text


@pytest.mark.parametrize("pause_after", [None, 1])
def test_a_body_that_ends_with_the_connection_is_pumped_to_its_end(
    far_end: Provider, connect: Connect, pause_after: int | None
) -> None:
    far_end.script(Mode.UNTIL_CLOSE)

    events = pumped(start(connect()), pause_after=pause_after)

    assert text_of(events) == far_end.reply_text


@TRANSPORTS
def test_one_connection_carries_one_pumped_stream_after_the_other(far_end: Provider, connect: Connect) -> None:
    client = connect()

    for _ in range(5):
        stream = start(client)
        assert text_of(pumped(stream)) == far_end.reply_text
        assert client.idle_connections == 1
        stream.close()
        client.complete(chat_request(PLAIN), Cancellation())

    assert far_end.connections == 1


def test_a_stream_may_be_begun_by_iteration_and_go_on_by_the_pump_and_back(far_end: Provider, connect: Connect) -> None:
    stream = start(connect())
    events = [next(iter(stream)), next(iter(stream))]

    def take(event: StreamEvent) -> bool:
        events.append(event)
        return len(events) < 5

    paused = stream.pump(take)
    events += list(stream)

    assert paused
    assert text_of(events) == far_end.reply_text
    assert not stream.pump(take)


@TRANSPORTS
def test_a_pause_holds_the_provider_back_and_loses_nothing(far_end: Provider, connect: Connect) -> None:
    # more than the kernel's buffers of both sides hold
    far_end.reply_text, far_end.stream_chunks = "0123456789" * 1_600_000, 400
    stream = start(connect(answer_bytes_max=2**25, event_bytes_max=2**20))
    texts: list[str] = []

    def take(event: StreamEvent) -> bool:
        texts.append(event.text)
        return len(texts) % 100 != 0

    pauses = 0
    while stream.pump(take):
        pauses += 1
        if pauses == 1:
            gevent.sleep(0.3)
            held_back = far_end.active

    assert held_back == 1
    assert pauses == 4
    assert "".join(texts) == far_end.reply_text


# --- bad streams ------------------------------------------------------------------------------------------------------

BROKEN = [
    *[Mode.BAD_CHUNK_SIZE, Mode.INVALID_JSON, Mode.NOT_AN_OBJECT, Mode.DUPLICATE_KEYS, Mode.LONE_SURROGATE],
    *[Mode.BAD_UTF8, Mode.HUGE_EVENT, Mode.NO_END, Mode.ERROR_EVENT, Mode.NAMED_ERROR_EVENT],
]


@TRANSPORTS
@pytest.mark.parametrize("mode", BROKEN)
def test_a_broken_stream_fails_in_the_pump_as_it_does_in_iteration(
    far_end: Provider, connect: Connect, mode: Mode
) -> None:
    client = connect()
    far_end.script(mode)

    by_pump, pump_error = until_failure(lambda events: start(client).pump(collector(events)))
    by_iteration, iteration_error = until_failure(lambda events: events.extend(start(client)))

    assert type(pump_error) is type(iteration_error) is UpstreamFailed
    assert (pump_error.public, pump_error.detail) == (iteration_error.public, iteration_error.detail)
    assert by_pump == by_iteration


def collector(events: list[StreamEvent]) -> Callable[[StreamEvent], bool]:
    def take(event: StreamEvent) -> bool:
        events.append(event)
        return True

    return take


def until_failure(read: Callable[[list[StreamEvent]], object]) -> tuple[list[StreamEvent], ProxyError]:
    events: list[StreamEvent] = []
    with pytest.raises(ProxyError) as caught:
        read(events)
    return events, caught.value


@TRANSPORTS
@pytest.mark.parametrize("mode", [Mode.RESET_AT_BYTE, Mode.CLOSE_AT_BYTE])
def test_a_stream_cut_at_any_byte_is_a_failure_and_never_a_shorter_stream(
    far_end: Provider, connect: Connect, mode: Mode
) -> None:
    client = connect()
    for at_byte in range(150, 700, 61):
        far_end.script(mode, at_byte=at_byte)

        _, error = until_failure(lambda events: start(client).pump(collector(events)))

        assert type(error) is UpstreamFailed
        assert client.idle_connections == 0


def test_what_came_before_a_failure_is_given_and_nothing_afterwards(far_end: Provider, connect: Connect) -> None:
    client = connect()
    far_end.script(Mode.INVALID_JSON)
    stream = start(client)
    events: list[StreamEvent] = []

    with pytest.raises(UpstreamFailed):
        stream.pump(collector(events))

    assert len(events) == 2
    assert not stream.pump(collector(events))
    assert len(events) == 2


@pytest.mark.parametrize("mode", [Mode.OK, Mode.HANG_MID_STREAM])
@pytest.mark.parametrize("error", [OSError(32, "gone"), TimeoutError("slow"), ValueError("x"), SystemExit()])
def test_what_the_taker_raises_comes_out_unchanged_and_ends_the_stream(
    far_end: Provider, connect: Connect, error: BaseException, mode: Mode
) -> None:
    client = connect()
    far_end.script(mode)
    stream = start(client)
    seen = 0

    def take(_: StreamEvent) -> bool:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise error
        return True

    with pytest.raises(type(error)) as caught:
        stream.pump(take)

    assert caught.value is error
    # an answer that is there to its end leaves a connection that may serve again
    assert client.idle_connections == 0 or mode is Mode.OK
    assert not stream.pump(take)
    assert seen == 4


# --- patience ---------------------------------------------------------------------------------------------------------


@TRANSPORTS
@pytest.mark.parametrize(
    ("mode", "patience", "phase"),
    [
        (Mode.HANG_MID_STREAM, {"idle_timeout_s": 0.3}, "between two bytes"),
        # the whole patience covers the handshake, which must be over by then
        (Mode.HANG_MID_STREAM, {"total_timeout_s": 2.0, "idle_timeout_s": 300.0}, "total"),
        # bytes come all the time, events seldom
        (Mode.SLOW_DRIP, {"total_timeout_s": 2.0}, "total"),
    ],
)
def test_each_patience_ends_a_pumped_stream_with_a_gateway_timeout(
    far_end: Provider, connect: Connect, mode: Mode, patience: dict[str, float], phase: str
) -> None:
    far_end.script(mode, pause_s=0.001)
    far_end.reply_text = "word " * 400
    client = connect(**patience)

    with pytest.raises(UpstreamTimeout) as caught:
        pumped(start(client))

    assert phase in (caught.value.detail or "")
    assert far_end.wait_for_disconnect()
    assert client.idle_connections == 0


def test_each_piece_begins_the_patience_for_the_next_one_anew(far_end: Provider, connect: Connect) -> None:
    far_end.stream_pause_s = 0.4
    client = connect(idle_timeout_s=4.0)

    began_s = time.monotonic()
    events = pumped(start(client))

    assert text_of(events) == far_end.reply_text
    assert time.monotonic() - began_s > 4.0


# --- the client leaves, the stream is closed --------------------------------------------------------------------------


@TRANSPORTS
@pytest.mark.parametrize("by", ["greenlet", "thread"])
def test_a_cancellation_ends_a_pump_that_sleeps(far_end: Provider, connect: Connect, by: str) -> None:
    client, cancellation = connect(), Cancellation()
    far_end.script(Mode.HANG_MID_STREAM)
    stream = start(client, cancellation)
    if by == "thread":
        canceller = threading.Timer(0.2, cancellation.raise_, ["client_gone"])
        canceller.start()
    else:
        gevent.spawn_later(0.2, cancellation.raise_, "client_gone")

    with pytest.raises(ClientGone):
        stream.pump(lambda _: True)

    if by == "thread":
        canceller.join()
    assert far_end.wait_for_disconnect()
    assert client.idle_connections == 0
    assert client.trouble() is None


def test_a_cancellation_by_the_taker_itself_ends_the_pump(far_end: Provider, connect: Connect) -> None:
    client, cancellation = connect(), Cancellation()
    far_end.script(Mode.HANG_MID_STREAM)
    stream = start(client, cancellation)

    def take(_: StreamEvent) -> bool:
        cancellation.raise_("client_gone")
        return True

    with pytest.raises(ClientGone):
        stream.pump(take)

    assert client.idle_connections == 0


def test_a_cancellation_in_a_pause_is_heard_by_the_next_pump(far_end: Provider, connect: Connect) -> None:
    client, cancellation = connect(), Cancellation()
    # the end never comes, however long the pause
    far_end.script(Mode.HANG_MID_STREAM)
    stream = start(client, cancellation)

    paused = stream.pump(lambda _: False)
    cancellation.raise_("client_gone")

    assert paused
    with pytest.raises(ClientGone):
        stream.pump(lambda _: True)


@pytest.mark.parametrize("closer", ["another greenlet", "the taker", "the taker at the last event"])
def test_closing_a_stream_ends_its_pump(far_end: Provider, connect: Connect, closer: str) -> None:
    client = connect()
    if closer == "another greenlet":
        far_end.script(Mode.HANG_MID_STREAM, times=1)
    elif closer == "the taker":
        far_end.stream_pause_s = 0.05
    stream = start(client)
    if closer == "another greenlet":
        gevent.spawn_later(0.2, stream.close)

    def take(event: StreamEvent) -> bool:
        finished = '"finish_reason":"stop"' in event.data.decode().replace(" ", "")
        if closer == "the taker" or (closer == "the taker at the last event" and finished):
            stream.close()
        return True

    assert not stream.pump(take)
    assert not stream.pump(take)
    assert client.trouble() is None
    assert client.complete(chat_request(PLAIN), Cancellation()).text


def test_no_event_is_given_after_the_taker_closed_the_stream(far_end: Provider, connect: Connect) -> None:
    # everything comes in one piece
    far_end.script(Mode.UNTIL_CLOSE)
    stream = start(connect())
    events: list[StreamEvent] = []

    def take(event: StreamEvent) -> bool:
        events.append(event)
        stream.close()
        return True

    assert not stream.pump(take)
    assert len(events) == 1


def test_a_greenlet_that_is_killed_while_it_pumps_lets_go_of_the_provider(far_end: Provider, connect: Connect) -> None:
    client = connect()
    far_end.script(Mode.HANG_MID_STREAM)
    pumping = gevent.spawn(lambda: start(client).pump(lambda _: True))
    hangs = comes(lambda: far_end.active == 1)
    gevent.sleep(0.1)

    pumping.kill()

    assert hangs
    assert far_end.wait_for_disconnect()
    assert client.idle_connections == 0


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goodbye", [True, False])
def test_an_end_behind_the_last_event_in_the_same_segment_counts_only_with_a_goodbye(
    certificate: Certificate, *, goodbye: bool
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    first = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    last = b'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            raw, _ = listener.accept()
            raw.settimeout(20)
            with raw:
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = server_context(certificate).wrap_bio(incoming, outgoing, server_side=True)
                exchange(raw, incoming, outgoing, tls.do_handshake)
                exchange(raw, incoming, outgoing, lambda: tls.read(65_536))
                tls.write(head + first)
                raw.sendall(outgoing.read())
                time.sleep(0.1)
                tls.write(last)
                if goodbye:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        tls.unwrap()
                # one segment: the last event, and with a goodbye the alert; then the connection stays open or ends
                raw.sendall(outgoing.read())
                if goodbye:
                    with contextlib.suppress(ConnectionResetError):
                        raw.recv(65_536)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}/v1"
        settings = UpstreamSettings(api_url=url, ca_file=certificate.authority, idle_timeout_s=15)
        stream = start(compatible_provider(settings))
        if goodbye:
            events, error = pumped(stream), None
        else:
            events, error = until_failure(lambda events: stream.pump(collector(events)))
        thread.join(20)

    assert text_of(events) == "ab"
    assert error is None or "close_notify" in (error.detail or "")


def exchange(raw: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, step: Callable[[], object]) -> None:
    while True:
        try:
            step()
            break
        except ssl.SSLWantReadError:
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(65_536))
    raw.sendall(outgoing.read())


# --- connections ------------------------------------------------------------------------------------------------------


@TRANSPORTS
def test_an_idle_connection_that_the_provider_closes_is_let_go_at_once(far_end: Provider, connect: Connect) -> None:
    client = connect()
    client.complete(chat_request(PLAIN), Cancellation())
    kept = client.idle_connections

    far_end.hang_up()

    assert kept == 1
    assert comes(lambda: client.idle_connections == 0)


@TRANSPORTS
def test_an_idle_connection_that_speaks_unasked_is_let_go_at_once(far_end: Provider, connect: Connect) -> None:
    client = connect()
    far_end.script(Mode.UNASKED_ANSWER, times=1)

    client.complete(chat_request(PLAIN), Cancellation())

    assert comes(lambda: client.idle_connections == 0)


@TRANSPORTS
def test_a_thread_is_never_given_a_connection_of_another_thread_s_loop(far_end: Provider, connect: Connect) -> None:
    client = connect()
    client.complete(chat_request(PLAIN), Cancellation())
    thread = threading.Thread(target=client.complete, args=[chat_request(PLAIN), Cancellation()])
    thread.start()
    thread.join(20)

    kept = client.idle_connections
    client.complete(chat_request(PLAIN), Cancellation())
    of_main = [request.connection for request in far_end.chats]
    client.close()

    assert kept == 2
    assert of_main == [1, 2, 1]
    assert client.idle_connections == 0
    # that of the thread that is no more was hung up as well
    assert comes(lambda: not far_end._open)


@TRANSPORTS
def test_closing_the_client_hangs_up_what_another_thread_keeps_and_leaves_what_it_uses(
    far_end: Provider, connect: Connect
) -> None:
    client, cancellation = connect(), Cancellation()
    far_end.script(Mode.HANG_MID_STREAM, times=1)

    def use() -> None:
        running = start(client, cancellation)
        client.complete(chat_request(PLAIN), Cancellation())
        with contextlib.suppress(ClientGone):
            running.pump(lambda _: True)

    thread = threading.Thread(target=use)
    thread.start()
    kept = comes(lambda: client.idle_connections == 1)
    client.close()
    let_go = comes(lambda: len(far_end._open) == 1)
    used_still = thread.is_alive()
    cancellation.raise_("client_gone")
    thread.join(20)

    assert (kept, let_go, used_still) == (True, True, True)
    assert not thread.is_alive()
    assert comes(lambda: not far_end._open)


def comes(true: Callable[[], bool]) -> bool:
    """True as soon as `true` is; the event loop of this thread runs meanwhile."""
    until_s = time.monotonic() + 30
    while not true() and time.monotonic() < until_s:
        gevent.sleep(0.01)
    return true()


# Ten greenlets, patched as in a worker; prints open files and active watchers before and after.
PROGRAM = """
from gevent import monkey
monkey.patch_all()
import json, os, sys
import gevent
from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Provider as ProviderClient
from tests.support.compatible_provider import chat_request, compatible_provider

settings = json.loads(sys.argv[1])
wrong = []

def state():
    gevent.sleep(0.5)
    return [len(os.listdir("/proc/self/fd")), gevent.get_hub().loop.activecnt]

def exchange(client, number):
    model, cancellation = f"model-{number}", Cancellation()
    body = {"model": model, "messages": []}
    form = number % 5
    if form == 0:
        if client.complete(chat_request(json.dumps(body).encode(), model=model), cancellation).model != model:
            wrong.append(model)
        return
    if form == 1 and number % 3 == 0:
        body["model"] = "invalid_json"
    stream = client.stream(chat_request(json.dumps(body | {"stream": True}).encode(), stream=True, model=model), cancellation)
    seen = []
    def take(event):
        seen.append(event.payload["model"])
        if form == 2 and len(seen) == 2:
            cancellation.raise_("client_gone")
        return form != 3
    try:
        if form != 4:
            while stream.pump(take):
                pass
    finally:
        stream.close()
    if form in (1, 3) and set(seen) != {model}:
        wrong.append([model, seen])

def run(client, first):
    for number in range(first, 1000, 10):
        try:
            exchange(client, number)
        except ProxyError:
            pass

def all_exchanges():
    client = compatible_provider(UpstreamSettings.model_validate(settings))
    gevent.joinall([gevent.spawn(run, client, first) for first in range(10)], timeout=150, raise_error=True)
    client.close()

warm = compatible_provider(UpstreamSettings.model_validate(settings))
exchange(warm, 0)
warm.close()
before = state()
all_exchanges()
print(json.dumps([before, state(), wrong]))
"""


@TRANSPORTS
def test_a_thousand_exchanges_of_all_kinds_leave_no_file_and_no_watcher_behind(
    far_end: Provider, certificate: Certificate
) -> None:
    settings: dict[str, object] = {"api_url": far_end.base_url}
    if far_end.base_url.startswith("https"):
        settings["ca_file"] = str(certificate.authority)

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert (done.returncode, done.stderr) == (0, "")
    before, after, wrong = json.loads(done.stdout)
    assert after == before
    assert wrong == []
    assert len(far_end.chats) >= 1_000
