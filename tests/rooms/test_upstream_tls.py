"""The upstream room over TLS: who is believed, what is refused, and that nothing leaves before."""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import ClientGone, ProxyError, UpstreamFailed, UpstreamTimeout
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Provider as ProviderClient
from tests.support.certificates import Certificate, make_certificate, make_faulty_certificate
from tests.support.compatible_provider import chat_request, compatible_provider
from tests.support.provider import Mode, Provider

PLAIN = json.dumps({"model": "test-model", "messages": []}).encode()
STREAMED = json.dumps({"model": "test-model", "messages": [], "stream": True}).encode()


def server_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def client_of(url: str, **overrides: object) -> ProviderClient:
    fields: dict[str, object] = {
        "api_url": url,
        "connect_timeout_s": 20.0,
        "first_byte_timeout_s": 20.0,
        "idle_timeout_s": 20.0,
        "total_timeout_s": 40.0,
    }
    return compatible_provider(UpstreamSettings.model_validate(fields | overrides))


def failure(client: ProviderClient, payload: bytes = PLAIN) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        client.complete(chat_request(payload), Cancellation())
    assert "localhost" not in caught.value.public
    return caught.value


@pytest.fixture
def far_end(certificate: Certificate) -> Iterator[Provider]:
    with Provider(tls=server_context(certificate)) as server:
        yield server


@pytest.fixture
def client(far_end: Provider, certificate: Certificate) -> Iterator[ProviderClient]:
    trusting = client_of(far_end.base_url, ca_file=certificate.authority)
    yield trusting
    trusting.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_exchanges_over_tls_share_one_connection(certificate: Certificate, version: ssl.TLSVersion) -> None:
    context = server_context(certificate)
    context.minimum_version = context.maximum_version = version
    body = json.dumps({"model": "test-model", "messages": [], "note": "x" * 2**20}).encode()

    with Provider(tls=context) as far_end:
        client = client_of(far_end.base_url, ca_file=certificate.authority)
        for _ in range(3):
            assert client.complete(chat_request(body), Cancellation()).text == far_end.reply_text
            events = list(client.stream(chat_request(STREAMED, stream=True), Cancellation()))
            assert "".join(event.text for event in events) == far_end.reply_text
        client.close()

        assert far_end.connections == 1
        assert far_end.received[0].body == body


def test_an_answer_of_many_records_is_read_whole(far_end: Provider, client: ProviderClient) -> None:
    far_end.reply_text = "ä" * 300_000

    assert client.complete(chat_request(PLAIN), Cancellation()).text == far_end.reply_text


def test_a_certificate_of_an_unknown_authority_is_refused_before_anything_is_sent(far_end: Provider) -> None:
    error = failure(client_of(far_end.base_url))

    assert type(error) is UpstreamFailed
    assert (error.status, error.public) == (502, "The provider could not be reached.")
    assert "certificate not accepted" in (error.detail or "")
    assert far_end.received == []


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    other = make_certificate(tmp_path, names="DNS:elsewhere.example")
    with Provider(tls=server_context(other)) as far_end:
        error = failure(client_of(far_end.base_url, ca_file=other.authority))

        assert "certificate not accepted" in (error.detail or "")
        assert far_end.received == []


FAULTS: dict[str, dict[str, object]] = {
    "expired": {"days": (-9, -1)},
    "not valid yet": {"days": (1, 9)},
    "its authority expired": {"authority_days": (-9, -1)},
    "for another name": {"names": ("elsewhere.example",)},
    "for a name below": {"names": ("*.localhost",)},
    "for a name that only begins so": {"names": ("localhost.example",)},
    "for an address": {"names": ("127.0.0.1",)},
    "without names, though its subject says localhost": {"names": ()},
    "for clients": {"for_servers": False},
    "signed by one that is no authority": {"signed_by_leaf": True},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_faulty_certificate_gets_nothing_and_only_the_operator_hears_why(
    tmp_path: Path, fault: str, version: ssl.TLSVersion
) -> None:
    faulty = make_faulty_certificate(tmp_path, **FAULTS[fault])  # type: ignore[arg-type]
    context = server_context(faulty)
    context.minimum_version = context.maximum_version = version
    with Provider(tls=context) as far_end:
        client = client_of(far_end.base_url, ca_file=faulty.authority)
        error = failure(client)
        with pytest.raises(UpstreamFailed):
            client.stream(chat_request(STREAMED), Cancellation())

        assert (error.status, error.public) == (502, "The provider could not be reached.")
        assert (error.detail or "").startswith("TLS: certificate not accepted: ")
        assert re.fullmatch(r"The provider could not be reached\. \(\d+ s ago\)", client.trouble() or "")
        assert client.idle_connections == 0
        assert far_end.received == []


def test_the_certificate_without_a_fault_is_accepted(tmp_path: Path) -> None:
    good = make_faulty_certificate(tmp_path)
    with Provider(tls=server_context(good)) as far_end:
        client = client_of(far_end.base_url, ca_file=good.authority)

        assert client.complete(chat_request(PLAIN), Cancellation()).text == far_end.reply_text
        client.close()


def test_a_client_that_is_refused_by_its_server_s_protocol_has_sent_a_greeting_and_no_more(
    certificate: Certificate,
) -> None:
    """A server of TLS 1.1 or older, one that answers in clear, one that hangs up: none of them ever sees key or prompt."""
    answers = [
        b"\x15\x03\x01\x00\x02\x02\x46",  # the alert protocol_version
        b"\x16\x03\x00\x00\x31\x02\x00\x00\x2d\x03\x00" + b"\x00" * 43,  # a greeting of SSL 3
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"",
    ]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen: list[bytes] = []

        def serve() -> None:
            for answer in answers:
                raw, _ = listener.accept()
                raw.settimeout(20)
                with raw:
                    received = raw.recv(65_536)
                    raw.sendall(answer)
                    raw.shutdown(socket.SHUT_WR)
                    while more := raw.recv(65_536):
                        received += more
                    seen.append(received)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}/v1"
        client = client_of(url, ca_file=certificate.authority, api_key="sk-canary-7Q2xW9")
        body = json.dumps({"model": "test-model", "messages": [], "note": "a canary in the prompt"}).encode()
        errors = [failure(client, body) for _ in answers]
        thread.join(20)

    assert [type(error) for error in errors] == [UpstreamFailed] * len(answers)
    assert all(received[:1] == b"\x16" for received in seen)
    assert not any(b"canary" in received for received in seen)


def test_an_address_in_the_url_is_verified_too(certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, names="DNS:localhost,IP:127.0.0.9")
    with Provider(tls=server_context(certificate)) as good, Provider(tls=server_context(other)) as bad:
        good_client = client_of(f"https://127.0.0.1:{good.port}/v1", ca_file=certificate.authority)
        bad_client = client_of(f"https://127.0.0.1:{bad.port}/v1", ca_file=other.authority)

        assert good_client.complete(chat_request(PLAIN), Cancellation()).text == good.reply_text
        assert "certificate not accepted" in (failure(bad_client).detail or "")
        good_client.close()


def test_verification_is_off_only_when_the_setting_says_so(far_end: Provider) -> None:
    lax = client_of(far_end.base_url, ssl_verify=False)

    assert lax.complete(chat_request(PLAIN), Cancellation()).text == far_end.reply_text
    lax.close()


def test_a_server_of_old_protocols_is_refused(certificate: Certificate) -> None:
    context = server_context(certificate)
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with Provider(tls=context) as far_end:
        error = failure(client_of(far_end.base_url, ca_file=certificate.authority))

        assert type(error) is UpstreamFailed
        assert (error.detail or "").startswith("TLS: ")
        assert far_end.received == []


def test_a_server_without_tls_is_refused(certificate: Certificate) -> None:
    with Provider() as far_end:
        error = failure(client_of(f"https://localhost:{far_end.port}/v1", ca_file=certificate.authority))

        assert type(error) is UpstreamFailed
        assert far_end.received == []


def test_a_handshake_that_never_comes_ends_the_patience_for_connecting(certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}/v1"
        error = failure(client_of(url, ca_file=certificate.authority, connect_timeout_s=0.3))

    assert type(error) is UpstreamTimeout
    assert "connect" in (error.detail or "")


def test_a_body_until_close_needs_the_goodbye_of_tls(far_end: Provider, client: ProviderClient) -> None:
    """Without close_notify anybody on the line could end an answer where they like."""
    far_end.script(Mode.UNTIL_CLOSE)

    error = failure(client)

    assert error.public == "The provider's answer broke off."
    assert "close_notify" in (error.detail or "")


def test_a_body_until_close_is_read_when_tls_says_goodbye(certificate: Certificate) -> None:
    body = b'{"choices":[{"message":{"content":"bye"}}]}'
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            raw, _ = listener.accept()
            raw.settimeout(20)
            with server_context(certificate).wrap_socket(raw, server_side=True) as connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + body)
                connection.unwrap().close()

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}/v1"
        completion = client_of(url, ca_file=certificate.authority).complete(chat_request(PLAIN), Cancellation())
        thread.join(20)

    assert completion.text == "bye"


def test_a_reset_in_the_midst_of_a_stream_is_a_failure(far_end: Provider, client: ProviderClient) -> None:
    far_end.script(Mode.RESET_AT_BYTE, at_byte=400)

    with pytest.raises(UpstreamFailed):
        list(client.stream(chat_request(STREAMED, stream=True), Cancellation()))

    assert client.idle_connections == 0


def test_a_client_that_leaves_ends_the_provider_s_work(far_end: Provider, client: ProviderClient) -> None:
    far_end.script(Mode.HANG_MID_STREAM)
    cancellation = Cancellation()
    stream = client.stream(chat_request(STREAMED, stream=True), cancellation)
    timer = threading.Timer(0.1, cancellation.raise_, ["client_gone"])
    timer.start()

    with pytest.raises(ClientGone):
        list(stream)

    timer.join()
    assert far_end.wait_for_disconnect()


def test_a_second_answer_that_waits_in_the_same_segment_is_never_taken_for_the_next_one(
    certificate: Certificate,
) -> None:
    def answer(text: bytes) -> bytes:
        body = b'{"choices":[{"message":{"content":"%b"}}]}' % text
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for texts in ([b"first", b"forged"], [b"second"]):
                raw, _ = listener.accept()
                raw.settimeout(20)
                with raw:
                    incoming, outgoing, tls = _shake_hands(raw, certificate)
                    _read(raw, incoming, tls)
                    # each write is a record of its own; all leave in one segment
                    for text in texts:
                        tls.write(answer(text))
                    raw.sendall(outgoing.read())
                    raw.recv(65_536)

        thread = threading.Thread(target=serve)
        thread.start()
        client = client_of(f"https://localhost:{listener.getsockname()[1]}/v1", ca_file=certificate.authority)
        texts = [client.complete(chat_request(PLAIN), Cancellation()).text for _ in range(2)]
        client.close()
        thread.join(20)

    assert texts == ["first", "second"]


def _shake_hands(raw: socket.socket, certificate: Certificate) -> tuple[ssl.MemoryBIO, ssl.MemoryBIO, ssl.SSLObject]:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = server_context(certificate).wrap_bio(incoming, outgoing, server_side=True)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(65_536))
    raw.sendall(outgoing.read())
    return incoming, outgoing, tls


def _read(raw: socket.socket, incoming: ssl.MemoryBIO, tls: ssl.SSLObject) -> bytes:
    while True:
        try:
            return tls.read(65_536)
        except ssl.SSLWantReadError:
            incoming.write(raw.recv(65_536))


def test_garbage_within_the_tls_stream_is_a_failure(certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def garble() -> None:
            raw, _ = listener.accept()
            raw.settimeout(20)
            with raw:
                _shake_hands(raw, certificate)
                # an application record that nobody can decrypt
                raw.sendall(b"\x17\x03\x03" + struct.pack("!H", 64) + b"\x00" * 64)
                raw.recv(65_536)

        thread = threading.Thread(target=garble)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}/v1"
        error = failure(client_of(url, ca_file=certificate.authority))
        thread.join(20)

    assert type(error) is UpstreamFailed
    assert (error.detail or "").startswith("TLS: ")
