"""What leaves by syslog, over each transport, and what happens when the receiver does not take it."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from secure_llm_proxy.audit.syslog import Message, SyslogAddress, SyslogAway, SyslogLink, Transport
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import wait_until
from tests.support.syslog_receiver import SyslogReceiver

T = "2026-11-21T00:12:03.104233Z"


@pytest.mark.parametrize(
    ("text", "expected", "where"),
    [
        ("/dev/log", SyslogAddress(Transport.UNIX, "/dev/log", 0), "here"),
        ("tcp://siem.example:601", SyslogAddress(Transport.TCP, "siem.example", 601), "elsewhere"),
        ("udp://192.0.2.7:514", SyslogAddress(Transport.UDP, "192.0.2.7", 514), "elsewhere"),
        ("tcp://[2001:db8::1]:601", SyslogAddress(Transport.TCP, "2001:db8::1", 601), "elsewhere"),
        ("tcp://localhost:601", SyslogAddress(Transport.TCP, "localhost", 601), "here"),
        ("udp://127.0.0.53:514", SyslogAddress(Transport.UDP, "127.0.0.53", 514), "here"),
        ("tcp://[::1]:601", SyslogAddress(Transport.TCP, "::1", 601), "here"),
        (f"tcp://{socket.gethostname()}:601", SyslogAddress(Transport.TCP, socket.gethostname(), 601), "here"),
    ],
)
def test_an_address_is_a_path_or_a_host_with_port(text: str, expected: SyslogAddress, where: str) -> None:
    address = SyslogAddress.parse(text, "AUDIT_SINK")

    assert address == expected
    assert str(address) == text
    assert address.leaves_host is (where == "elsewhere")


@pytest.mark.parametrize(
    "text", ["", "dev/log", "tcp://host", "tcp://host:0", "tcp://host:65536", "tls://host:1", "udp://a b:1"]
)
def test_what_is_no_address_is_refused_by_the_name_of_its_setting(text: str) -> None:
    with pytest.raises(OperatorError, match="AUDIT_SINK"):
        SyslogAddress.parse(text, "AUDIT_SINK")


@pytest.mark.parametrize("transport", ["unix", "tcp", "udp"])
def test_messages_arrive_as_rfc_5424_says(tmp_path: Path, transport: str) -> None:
    with SyslogReceiver(transport, path=tmp_path / "log") as receiver:
        link = SyslogLink(SyslogAddress.parse(receiver.address, "X"), "host-1")

        link.send([Message(T, "llm.start", b'{"n":1,"x":"a\nb"}'), Message(T, "cp", b'{"n":2}')])
        wait_until(lambda: len(receiver.raw) == 2)
        link.close()

        assert receiver.raw[0].startswith(f"<110>1 {T} host-1 secure-llm-audit ".encode())
        assert [(message["kind"], message["text"]) for message in receiver.messages] == [
            (b"llm.start", b'{"n":1,"x":"a\nb"}'),
            (b"cp", b'{"n":2}'),
        ]


def test_what_is_too_long_for_a_datagram_is_sent_in_brief(tmp_path: Path) -> None:
    with SyslogReceiver("udp") as receiver:
        link = SyslogLink(SyslogAddress.parse(receiver.address, "X"), "host")

        link.send([Message(T, "seg", bytes(70_000), b'{"n":1}')])
        wait_until(lambda: bool(receiver.raw))
        link.close()

        assert receiver.told == [{"n": 1}]


@pytest.mark.parametrize("address", ["/nowhere/log", "tcp://127.0.0.1:1"])
def test_an_absent_receiver_is_told_by_its_address(address: str) -> None:
    with pytest.raises(SyslogAway, match=address):
        SyslogLink(SyslogAddress.parse(address, "X"), "host").send([Message(T, "cp", b"{}")])


def test_a_tcp_receiver_that_stops_reading_costs_a_bounded_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = SyslogAddress(Transport.TCP, "127.0.0.1", deaf.getsockname()[1])
        link = SyslogLink(address, "host", patience_s=0.3)
        began = time.monotonic()

        _send_until_it_is_away(link, bytes(1 << 20))

        assert time.monotonic() - began < 20


def test_a_tcp_receiver_that_has_gone_is_noticed_and_found_again() -> None:
    with SyslogReceiver("tcp") as first:
        link = SyslogLink(SyslogAddress.parse(first.address, "X"), "host")
        link.send([Message(T, "cp", b'{"n":1}')])
        wait_until(lambda: len(first.raw) == 1)
    _send_until_it_is_away(link, b'{"n":2}')

    with SyslogReceiver("tcp", port=first.port) as second:
        link.send([Message(T, "cp", b'{"n":3}')])
        wait_until(lambda: len(second.raw) == 1)
        link.close()

        assert second.told == [{"n": 3}]


def _send_until_it_is_away(link: SyslogLink, text: bytes) -> None:
    for _ in range(100):
        try:
            link.send([Message(T, "cp", text)])
        except SyslogAway:
            return
    pytest.fail("nobody reads, and nobody noticed")
