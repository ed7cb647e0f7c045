"""The upstream room against a real server that answers well, badly, late, or not at all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr

from secure_llm_proxy import __version__
from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import (
    ClientGone,
    ErrorCode,
    OperatorError,
    ProxyError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Provider as ProviderClient
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from tests.support.compatible_provider import chat_request, compatible_provider
from tests.support.ports import free_port
from tests.support.programs import wait_until
from tests.support.provider import Mode, Provider, error_body

KEY = "sk-canary-7Q2xW9"

UNREACHABLE = "The provider could not be reached."
BROKE_OFF = "The provider's answer broke off."
UNREADABLE = "The provider's answer could not be understood."
TOO_LARGE = "The provider's answer is larger than the proxy allows."
TOO_SLOW = "The provider did not answer in time."
REPORTED_ERROR = "The provider reported an error while it answered."
FAILED = "The provider failed to answer the request."

Connect = Callable[..., ProviderClient]


@pytest.fixture
def far_end() -> Iterator[Provider]:
    with Provider(reply_text="Grüße, Welt: all is well.") as server:
        yield server


@pytest.fixture
def connect(far_end: Provider) -> Iterator[Connect]:
    """Makes the client under test; every patience is long unless a test says otherwise."""
    made: list[ProviderClient] = []

    def make(**overrides: object) -> ProviderClient:
        fields: dict[str, object] = {
            "api_url": far_end.base_url,
            "api_key": SecretStr(KEY),
            "connect_timeout_s": 20.0,
            "first_byte_timeout_s": 20.0,
            "idle_timeout_s": 20.0,
            "total_timeout_s": 40.0,
            "answer_bytes_max": 2**20,
            "event_bytes_max": 2**16,
        }
        client = compatible_provider(UpstreamSettings.model_validate(fields | overrides))
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


def payload(*, stream: bool, **fields: object) -> bytes:
    request: dict[str, object] = {"model": "test-model", "messages": [{"role": "user", "content": "hi"}], **fields}
    if stream:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(request).encode()


def ask(client: ProviderClient, cancellation: Cancellation | None = None) -> Completion:
    return client.complete(chat_request(payload(stream=False)), cancellation or Cancellation())


def ask_streamed(client: ProviderClient, cancellation: Cancellation | None = None) -> list[StreamEvent]:
    stream = client.stream(chat_request(payload(stream=True), stream=True), cancellation or Cancellation())
    try:
        return list(stream)
    finally:
        stream.close()


def failure(client: ProviderClient, *, streamed: bool) -> ProxyError:
    """What asking raises; no text of it may tell key, host or port."""
    with pytest.raises(ProxyError) as caught:
        (ask_streamed if streamed else ask)(client)
    error = caught.value
    for text in (error.public, str(error), error.param or "", client.trouble() or ""):
        assert KEY not in text
        assert "127.0.0.1" not in text
        assert "localhost" not in text
    assert KEY not in (error.detail or "")
    return error


# --- good answers -----------------------------------------------------------------------------------------------------


def test_a_plain_answer_comes_back_whole(far_end: Provider, connect: Connect) -> None:
    completion = ask(connect())

    assert completion.text == far_end.reply_text
    assert completion.usage == Usage(11, 7, 18)
    assert completion.model == "test-model"
    assert completion.payload["id"] == "chatcmpl-test"


def test_a_streamed_answer_comes_event_by_event(far_end: Provider, connect: Connect) -> None:
    events = ask_streamed(connect())

    assert "".join(event.text for event in events) == far_end.reply_text
    assert len(events) == 1 + far_end.stream_chunks + 2
    assert [event.usage for event in events if event.usage] == [Usage(11, 7, 18)]
    assert all(json.loads(event.data) == event.payload for event in events)


def test_the_first_event_is_given_before_the_last_one_is_sent(far_end: Provider, connect: Connect) -> None:
    far_end.script(Mode.HANG_MID_STREAM)

    stream = connect().stream(chat_request(payload(stream=True), stream=True), Cancellation())
    first = next(iter(stream))
    stream.close()

    assert first.payload["object"] == "chat.completion.chunk"


def test_the_models_are_listed(far_end: Provider, connect: Connect) -> None:
    far_end.models = ("a", "b/c:latest")

    assert connect().list_models(Cancellation()) == ("a", "b/c:latest")
    assert [(request.method, request.path) for request in far_end.received] == [("GET", "/v1/models")]


def test_the_payload_arrives_byte_for_byte_with_our_headers_and_no_others(far_end: Provider, connect: Connect) -> None:
    client, body = connect(), payload(stream=False, note="ü\u2028")

    client.complete(chat_request(body), Cancellation())

    request = far_end.received[0]
    assert (request.method, request.path, request.body) == ("POST", "/v1/chat/completions", body)
    assert request.headers == {
        "host": f"127.0.0.1:{far_end.port}",
        "user-agent": f"secure-llm-proxy/{__version__}",
        "accept-encoding": "identity",
        "accept": "application/json",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }


def test_without_a_key_no_authorization_is_sent(far_end: Provider, connect: Connect) -> None:
    client = connect(api_key=None)

    ask_streamed(client)

    assert "authorization" not in far_end.received[0].headers
    assert far_end.received[0].headers["accept"] == "text/event-stream"


def test_a_url_that_names_the_chat_endpoint_is_understood(far_end: Provider, connect: Connect) -> None:
    client = connect(api_url=f"{far_end.base_url}/chat/completions/")

    ask(client)
    client.list_models(Cancellation())

    assert [request.path for request in far_end.received] == ["/v1/chat/completions", "/v1/models"]


def test_a_host_is_found_by_its_name(far_end: Provider, connect: Connect) -> None:
    # localhost may be ::1 first, where nobody listens: the next address is tried
    client = connect(api_url=f"http://localhost:{far_end.port}/v1")

    assert ask(client).text == far_end.reply_text


def test_a_large_request_arrives_whole(far_end: Provider, connect: Connect) -> None:
    body = payload(stream=False, note="x" * (8 * 2**20))

    connect().complete(chat_request(body), Cancellation())

    assert far_end.received[0].body == body


def test_proxies_of_the_environment_are_not_used(
    far_end: Provider, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")

    assert ask(connect()).text == far_end.reply_text


@pytest.mark.parametrize("mode", [Mode.INTERIM, Mode.CHUNKED, Mode.UNTIL_CLOSE])
def test_every_lawful_framing_of_a_plain_answer_is_read(far_end: Provider, connect: Connect, mode: Mode) -> None:
    far_end.script(mode)

    assert ask(connect()).text == far_end.reply_text


@pytest.mark.parametrize(
    "mode",
    [
        Mode.INTERIM,
        Mode.UNTIL_CLOSE,
        Mode.NO_DONE,
        Mode.NO_LAST_NEWLINE,
        Mode.COMMENTS,
        Mode.CRLF_EVENTS,
        Mode.LATE_LAST_CHUNK,
    ],
)
def test_every_tolerable_form_of_a_stream_is_read(far_end: Provider, connect: Connect, mode: Mode) -> None:
    far_end.script(mode)

    assert "".join(event.text for event in ask_streamed(connect())) == far_end.reply_text


def test_an_answer_in_single_bytes_is_read(far_end: Provider, connect: Connect) -> None:
    far_end.script(Mode.SLOW_DRIP, pause_s=0.0)
    client = connect()

    assert ask(client).text == far_end.reply_text
    assert "".join(event.text for event in ask_streamed(client)) == far_end.reply_text


# --- bad answers ------------------------------------------------------------------------------------------------------

BOTH = (False, True)
BROKEN_ANSWERS: list[tuple[Mode, tuple[bool, ...], str]] = [
    (Mode.EARLY_CLOSE, BOTH, UNREACHABLE),
    (Mode.RESET_AT_BYTE, BOTH, UNREACHABLE),
    (Mode.NOT_HTTP, BOTH, UNREADABLE),
    (Mode.HEADER_FLOOD, BOTH, UNREADABLE),
    (Mode.HEADER_ENDLESS, BOTH, UNREADABLE),
    (Mode.TWO_LENGTHS, BOTH, UNREADABLE),
    (Mode.GZIP, BOTH, UNREADABLE),
    (Mode.BAD_CHUNK_SIZE, BOTH, BROKE_OFF),
    (Mode.INVALID_JSON, BOTH, UNREADABLE),
    (Mode.NOT_AN_OBJECT, BOTH, UNREADABLE),
    (Mode.DUPLICATE_KEYS, BOTH, UNREADABLE),
    (Mode.LONE_SURROGATE, BOTH, UNREADABLE),
    (Mode.BAD_UTF8, BOTH, UNREADABLE),
    (Mode.REDIRECT, BOTH, FAILED),
    (Mode.NO_CONTENT, BOTH, FAILED),
    (Mode.LENGTH_TOO_LONG, (False,), BROKE_OFF),
    (Mode.LENGTH_TOO_SHORT, (False,), UNREADABLE),
    (Mode.NO_CHOICES, (False,), UNREADABLE),
    (Mode.ERROR_WITH_200, (False,), REPORTED_ERROR),
    (Mode.HUGE_BODY, (False,), TOO_LARGE),
    (Mode.HUGE_CHUNKED_BODY, BOTH, TOO_LARGE),
    (Mode.HUGE_EVENT, (True,), TOO_LARGE),
    (Mode.NO_END, (True,), BROKE_OFF),
    (Mode.ONLY_DONE, (True,), BROKE_OFF),
    (Mode.ERROR_EVENT, (True,), REPORTED_ERROR),
    (Mode.NAMED_ERROR_EVENT, (True,), REPORTED_ERROR),
    (Mode.PLAIN_FOR_A_STREAM, (True,), UNREADABLE),
]


@pytest.mark.parametrize(
    ("mode", "streamed", "public"),
    [(mode, streamed, public) for mode, forms, public in BROKEN_ANSWERS for streamed in forms],
)
def test_a_broken_answer_is_a_bad_gateway_and_the_next_one_is_well(
    far_end: Provider, connect: Connect, mode: Mode, *, streamed: bool, public: str
) -> None:
    client = connect()
    far_end.script(mode, times=1)

    error = failure(client, streamed=streamed)

    assert type(error) is UpstreamFailed
    assert (error.status, error.code) == (502, ErrorCode.UPSTREAM_ERROR)
    assert error.public == public
    assert error.detail
    assert ask(client).text == far_end.reply_text
    assert len(far_end.chats) == 2


@pytest.mark.parametrize("streamed", BOTH)
@pytest.mark.parametrize("mode", [Mode.RESET_AT_BYTE, Mode.CLOSE_AT_BYTE])
def test_an_answer_cut_at_any_byte_is_a_failure_and_never_a_shorter_answer(
    far_end: Provider, connect: Connect, mode: Mode, *, streamed: bool
) -> None:
    client = connect()
    for at_byte in [0, 1, 12, 17, 60, *range(90, 400, 31)]:
        far_end.script(mode, at_byte=at_byte)

        error = failure(client, streamed=streamed)

        assert type(error) is UpstreamFailed
        assert error.public in {UNREACHABLE, BROKE_OFF}
        assert client.idle_connections == 0
    assert client.trouble() is not None


def test_a_stream_that_breaks_gives_what_came_before_and_then_fails(far_end: Provider, connect: Connect) -> None:
    far_end.script(Mode.INVALID_JSON)
    stream = iter(connect().stream(chat_request(payload(stream=True), stream=True), Cancellation()))

    first, second = next(stream), next(stream)

    assert (first.text, bool(second.text)) == ("", True)
    with pytest.raises(UpstreamFailed):
        next(stream)
    assert list(stream) == []


def test_a_redirect_is_not_followed(far_end: Provider, connect: Connect) -> None:
    far_end.script(Mode.REDIRECT)

    failure(connect(), streamed=False)

    assert [request.path for request in far_end.received] == ["/v1/chat/completions"]


@pytest.mark.parametrize("streamed", BOTH)
def test_a_refused_key_is_our_fault_and_is_not_repeated(far_end: Provider, connect: Connect, *, streamed: bool) -> None:
    far_end.script(Mode.UNAUTHORIZED)

    error = failure(connect(), streamed=streamed)

    assert type(error) is UpstreamFailed
    assert (error.status, error.public) == (502, "The provider refused the proxy's credentials.")


@pytest.mark.parametrize("streamed", BOTH)
def test_a_rate_limit_of_the_provider_is_passed_on(far_end: Provider, connect: Connect, *, streamed: bool) -> None:
    far_end.script(Mode.RATE_LIMITED, retry_after="33")

    error = failure(connect(), streamed=streamed)

    assert type(error) is UpstreamRefused
    assert (error.status, error.code, error.retry_after_s) == (429, ErrorCode.UPSTREAM_RATE_LIMITED, 33)


@pytest.mark.parametrize("streamed", BOTH)
@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_a_refusal_of_the_request_is_passed_on_without_key_and_host(
    far_end: Provider, connect: Connect, status: int, *, streamed: bool
) -> None:
    message = f"n is too large\x1b[31m; key {KEY} at {far_end.base_url}, 127.0.0.1"
    far_end.script(Mode.ERROR, status=status, body=error_body(message, param="n", code="x"))

    error = failure(connect(), streamed=streamed)

    assert type(error) is UpstreamRefused
    assert (error.status, error.code, error.param) == (status, ErrorCode.UPSTREAM_REJECTED, "n")
    assert error.public == "n is too large[31m; key [removed] at [removed], [removed]"


def test_a_context_that_is_too_long_has_its_own_code(far_end: Provider, connect: Connect) -> None:
    far_end.script(Mode.ERROR, status=400, body=error_body("too long", code="context_length_exceeded"))

    assert failure(connect(), streamed=True).code == ErrorCode.CONTEXT_LENGTH_EXCEEDED


@pytest.mark.parametrize("headers", [{"Content-Encoding": "gzip"}, {}])
def test_the_status_of_a_refusal_counts_even_when_its_body_is_unreadable(
    far_end: Provider, connect: Connect, headers: dict[str, str]
) -> None:
    far_end.script(Mode.ERROR, status=400, body=b"\x1f\x8b\xff", headers=headers)

    error = failure(connect(), streamed=False)

    assert type(error) is UpstreamRefused
    assert (error.status, error.public) == (400, "The provider refused the request.")


@pytest.mark.parametrize(("status", "wait_s"), [(500, None), (502, None), (503, 9), (504, None)])
def test_a_failing_provider_is_a_bad_gateway(
    far_end: Provider, connect: Connect, status: int, wait_s: int | None
) -> None:
    far_end.script(Mode.ERROR, status=status, headers={"Retry-After": "9"})

    error = failure(connect(), streamed=False)

    assert type(error) is UpstreamFailed
    assert (error.status, error.public, error.retry_after_s) == (502, FAILED, wait_s)


def test_an_answer_that_comes_before_the_request_was_read_is_heard(connect: Connect) -> None:
    """A provider may refuse a large body by its head and hang up without reading the rest."""
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                connection.recv(1_000)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                # reads on until the client is done, so that no reset overtakes the answer
                while connection.recv(2**20):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        client = connect(api_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1")

        with pytest.raises(UpstreamRefused) as caught:
            client.complete(chat_request(payload(stream=False, note="x" * 2**20)), Cancellation())
        thread.join(20)

    assert caught.value.status == 413


# --- patience ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", BOTH)
@pytest.mark.parametrize(
    ("mode", "patience", "phase"),
    [
        (Mode.HANG_BEFORE_HEADERS, {"first_byte_timeout_s": 0.3}, "first byte"),
        (Mode.HANG_IN_HEADERS, {"idle_timeout_s": 0.3}, "between two bytes"),
        (Mode.HANG_MID_STREAM, {"idle_timeout_s": 0.3}, "between two bytes"),
        # the other patiences are longer than that of the far end, so that only the total can end the wait
        # (which it must have reached before)
        (Mode.HANG_BEFORE_HEADERS, {"total_timeout_s": 1.0, "first_byte_timeout_s": 300.0}, "total"),
        (Mode.HANG_MID_STREAM, {"total_timeout_s": 1.0, "idle_timeout_s": 300.0}, "total"),
        (Mode.SLOW_DRIP, {"total_timeout_s": 1.0}, "total"),
    ],
)
def test_each_patience_ends_with_a_gateway_timeout(
    far_end: Provider, connect: Connect, mode: Mode, patience: dict[str, float], phase: str, *, streamed: bool
) -> None:
    far_end.script(mode)
    client = connect(**patience)

    error = failure(client, streamed=streamed)

    assert type(error) is UpstreamTimeout
    assert (error.status, error.code, error.public) == (504, ErrorCode.UPSTREAM_TIMEOUT, TOO_SLOW)
    assert phase in (error.detail or "")
    assert far_end.wait_for_disconnect()
    assert client.idle_connections == 0


def test_a_provider_that_accepts_nothing_ends_the_patience_for_connecting(connect: Connect) -> None:
    # a full backlog: the kernel drops further attempts in silence, as a firewall does
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for attempt in waiting:
            attempt.setblocking(False)
            attempt.connect_ex(address)
        time.sleep(0.1)

        error = failure(connect(api_url=f"http://127.0.0.1:{address[1]}/v1", connect_timeout_s=0.3), streamed=False)

        for attempt in waiting:
            attempt.close()
    assert type(error) is UpstreamTimeout
    assert "connect" in (error.detail or "")


def test_a_provider_that_reads_nothing_ends_the_patience_for_the_first_byte(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client = connect(api_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", first_byte_timeout_s=0.3)

        with pytest.raises(UpstreamTimeout) as caught:
            client.complete(chat_request(payload(stream=False, note="x" * (16 * 2**20))), Cancellation())

    assert "sending" in (caught.value.detail or "")


def test_a_closed_port_is_unreachable_and_the_operator_learns_why(connect: Connect) -> None:
    error = failure(connect(api_url=f"http://127.0.0.1:{free_port()}/v1"), streamed=False)

    assert type(error) is UpstreamFailed
    assert (error.status, error.public) == (502, UNREACHABLE)
    assert "refused" in (error.detail or "")


def test_a_name_that_nobody_knows_is_unreachable(connect: Connect) -> None:
    error = failure(connect(api_url="http://provider.invalid/v1"), streamed=True)

    assert type(error) is UpstreamFailed
    assert error.public == UNREACHABLE
    assert "name lookup" in (error.detail or "")


def test_trouble_is_reported_until_an_answer_arrives(far_end: Provider, connect: Connect) -> None:
    client = connect()
    before = client.trouble()
    far_end.script(Mode.EARLY_CLOSE, times=1)
    failure(client, streamed=False)
    during = client.trouble()
    # an error status is an answer
    far_end.script(Mode.ERROR, status=500, times=1)
    failure(client, streamed=False)

    assert before is None
    assert during is not None
    assert during.startswith(UNREACHABLE)
    assert client.trouble() is None


# --- the client leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.HANG_BEFORE_HEADERS, Mode.HANG_IN_HEADERS, Mode.HANG_MID_STREAM])
@pytest.mark.parametrize("streamed", BOTH)
def test_a_client_that_leaves_ends_the_provider_s_work_at_once(
    far_end: Provider, connect: Connect, mode: Mode, *, streamed: bool
) -> None:
    client, cancellation = connect(), Cancellation()
    far_end.script(mode)
    raised: list[BaseException] = []

    def exchange() -> None:
        try:
            if streamed:
                ask_streamed(client, cancellation)
            else:
                ask(client, cancellation)
        except ProxyError as error:
            raised.append(error)

    thread = threading.Thread(target=exchange)
    thread.start()
    assert far_end.wait_for_requests(1)
    time.sleep(0.05)
    cancellation.raise_("client_gone")
    thread.join(30)

    assert not thread.is_alive()
    assert [type(error) for error in raised] == [ClientGone]
    assert far_end.wait_for_disconnect()
    assert client.idle_connections == 0
    assert client.trouble() is None


def test_a_client_that_left_before_is_not_asked_for(far_end: Provider, connect: Connect) -> None:
    client, cancellation = connect(), Cancellation()
    ask(client)
    cancellation.raise_("client_gone")

    for streamed in BOTH:
        with pytest.raises(ClientGone):
            (ask_streamed if streamed else ask)(client, cancellation)

    assert len(far_end.received) == 1


def test_a_client_that_leaves_while_we_connect_ends_the_wait(connect: Connect) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for attempt in waiting:
            attempt.setblocking(False)
            attempt.connect_ex(address)
        client, cancellation = connect(api_url=f"http://127.0.0.1:{address[1]}/v1"), Cancellation()
        timer = threading.Timer(0.2, cancellation.raise_, ["client_gone"])
        timer.start()

        with pytest.raises(ClientGone):
            ask(client, cancellation)

        timer.join()
        for attempt in waiting:
            attempt.close()


def test_another_reason_to_stop_is_not_blamed_on_the_client(far_end: Provider, connect: Connect) -> None:
    cancellation = Cancellation()
    far_end.script(Mode.HANG_MID_STREAM)
    stream = connect().stream(chat_request(payload(stream=True), stream=True), cancellation)
    cancellation.raise_("server_stop")

    with pytest.raises(UpstreamFailed) as caught:
        list(stream)

    assert caught.value.detail == "cancelled: server_stop"


def test_a_cancellation_after_the_answer_disturbs_nobody(far_end: Provider, connect: Connect) -> None:
    client, cancellation = connect(), Cancellation()
    ask(client, cancellation)
    ask_streamed(client, cancellation)

    cancellation.raise_("client_gone")

    assert ask(client).text == far_end.reply_text
    assert far_end.connections == 1


def test_closing_a_stream_hangs_up_and_may_be_done_twice(far_end: Provider, connect: Connect) -> None:
    client = connect()
    far_end.script(Mode.HANG_MID_STREAM)
    stream = client.stream(chat_request(payload(stream=True), stream=True), Cancellation())

    stream.close()
    stream.close()

    assert far_end.wait_for_disconnect()
    assert list(stream) == []
    assert client.idle_connections == 0


# --- connections ------------------------------------------------------------------------------------------------------


def test_one_connection_serves_many_exchanges(far_end: Provider, connect: Connect) -> None:
    client = connect()

    for _ in range(5):
        ask(client)
        ask_streamed(client)
        client.list_models(Cancellation())
    far_end.script(Mode.ERROR, status=400, times=1)
    failure(client, streamed=False)
    ask(client)

    assert far_end.connections == 1
    assert client.idle_connections == 1


@pytest.mark.parametrize("mode", [Mode.LENGTH_TOO_SHORT, Mode.HUGE_BODY, Mode.UNTIL_CLOSE, Mode.GZIP, Mode.TWO_LENGTHS])
def test_a_connection_whose_answer_did_not_end_as_announced_is_not_used_again(
    far_end: Provider, connect: Connect, mode: Mode
) -> None:
    client = connect()
    far_end.script(mode, times=1)
    if mode is Mode.UNTIL_CLOSE:
        ask(client)
    else:
        failure(client, streamed=False)

    assert client.idle_connections == 0
    assert ask(client).text == far_end.reply_text
    assert far_end.connections == 2


def test_a_provider_that_asks_to_close_is_obeyed(far_end: Provider, connect: Connect) -> None:
    client = connect()
    far_end.script(Mode.OK, headers={"Connection": "close"}, times=1)

    ask(client)

    assert client.idle_connections == 0


def test_an_idle_connection_that_the_provider_closed_is_noticed_before_it_is_used(
    far_end: Provider, connect: Connect
) -> None:
    client = connect()
    ask(client)
    far_end.hang_up()
    time.sleep(0.05)

    ask(client)

    assert far_end.connections == 2
    assert len(far_end.received) == 2


def test_an_answer_that_nobody_asked_for_is_never_taken_for_the_next_one(far_end: Provider, connect: Connect) -> None:
    client = connect()
    far_end.script(Mode.UNASKED_ANSWER, times=1)
    ask(client)
    wait_until(lambda: far_end.active == 0, what="the second answer is sent")

    assert ask(client).model == "test-model"
    assert far_end.connections == 2


def test_a_reused_connection_that_closes_before_any_answer_is_replaced_once(
    far_end: Provider, connect: Connect
) -> None:
    client = connect()
    ask(client)
    far_end.script(Mode.EARLY_CLOSE, times=1)

    assert ask(client).text == far_end.reply_text
    assert far_end.connections == 2
    # sent on the old connection, closed, sent again on a new one
    assert [request.connection for request in far_end.received] == [1, 1, 2]


def test_a_request_that_may_have_been_worked_on_is_not_sent_again(far_end: Provider, connect: Connect) -> None:
    client = connect()
    ask(client)
    far_end.clear()
    far_end.script(Mode.HANG_BEFORE_HEADERS, times=1)

    def hang_up_late() -> None:
        far_end.wait_for_requests(1)
        time.sleep(1.2)
        far_end.hang_up()

    hanging_up = threading.Thread(target=hang_up_late)
    hanging_up.start()

    error = failure(client, streamed=False)

    hanging_up.join()
    assert error.public == UNREACHABLE
    assert len(far_end.chats) == 1


def test_a_request_is_never_sent_a_third_time(far_end: Provider, connect: Connect) -> None:
    client = connect()
    ask(client)
    far_end.script(Mode.EARLY_CLOSE)

    assert failure(client, streamed=True).public == UNREACHABLE
    assert [request.connection for request in far_end.received] == [1, 1, 2]


@pytest.mark.parametrize(
    ("mode", "at_byte"), [(Mode.CLOSE_AT_BYTE, 1), (Mode.CLOSE_AT_BYTE, 100), (Mode.RESET_AT_BYTE, 100)]
)
def test_a_request_is_not_sent_again_once_an_answer_has_begun(
    far_end: Provider, connect: Connect, mode: Mode, at_byte: int
) -> None:
    client = connect()
    ask(client)
    far_end.script(mode, at_byte=at_byte)

    failure(client, streamed=False)

    assert len(far_end.received) == 2


def test_a_request_is_not_sent_again_after_a_timeout(far_end: Provider, connect: Connect) -> None:
    # long enough for the answer to the first one
    client = connect(first_byte_timeout_s=3.0)
    ask(client)
    far_end.script(Mode.HANG_BEFORE_HEADERS)

    failure(client, streamed=False)

    assert far_end.wait_for_requests(2)
    assert len(far_end.received) == 2


def test_no_more_idle_connections_are_kept_than_the_setting_allows(far_end: Provider, connect: Connect) -> None:
    client = connect(connections_max=2)
    far_end.stream_chunks = 1
    streams = [client.stream(chat_request(payload(stream=True), stream=True), Cancellation()) for _ in range(5)]

    for stream in streams:
        assert "".join(event.text for event in stream) == far_end.reply_text

    assert far_end.connections == 5
    assert client.idle_connections == 2


def test_answers_of_concurrent_exchanges_are_never_mixed_up(far_end: Provider, connect: Connect) -> None:
    client = connect()
    wrong: list[str | None] = []

    def exchange(number: int) -> None:
        for round_ in range(25):
            model = f"model-{number}-{round_}"
            if round_ % 5 == 4:
                # a client that leaves in the midst of an answer
                far = client.stream(
                    chat_request(payload(stream=True, model=model), stream=True, model=model), Cancellation()
                )
                far.close()
            body = payload(stream=False, model=model)
            answered = client.complete(chat_request(body, model=model), Cancellation()).model
            if answered != model:
                wrong.append(answered)

    threads = [threading.Thread(target=exchange, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert len(far_end.received) == 8 * (25 + 5)


def test_after_close_exchanges_still_work_and_nothing_stays_open(far_end: Provider, connect: Connect) -> None:
    client = connect()
    running = client.stream(chat_request(payload(stream=True), stream=True), Cancellation())

    client.close()

    assert "".join(event.text for event in running) == far_end.reply_text
    assert ask(client).text == far_end.reply_text
    assert client.idle_connections == 0


@pytest.mark.parametrize("key", ["two words", "line\r\nX-Injected: 1", "sch\u00fcssel", "nul\x00"])
def test_a_key_that_no_header_can_carry_is_refused_at_the_start(connect: Connect, key: str) -> None:
    with pytest.raises(OperatorError, match="LLM_API_KEY") as caught:
        connect(api_key=SecretStr(key))

    assert key not in str(caught.value)


def test_without_kept_connections_every_request_has_one_of_its_own(far_end: Provider, connect: Connect) -> None:
    client = connect(connections_max=0)

    for _ in range(3):
        ask(client)
        ask_streamed(client)

    assert far_end.connections == 6
    assert client.idle_connections == 0
