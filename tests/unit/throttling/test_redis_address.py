"""What REDIS_URL means, without connecting anywhere."""

from __future__ import annotations

import socket
import ssl

import pytest

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.throttling.redis_address import redis_address
from secure_llm_proxy.throttling.resp import packed


def test_a_url_without_anything_is_the_usual_place() -> None:
    address = redis_address("redis://")

    assert (address.host, address.port, address.path, address.greeting, address.tls) == (
        "localhost",
        6379,
        None,
        (packed("PING"),),
        None,
    )


@pytest.mark.parametrize(
    ("url", "greeting"),
    [
        ("redis://:se%40cret@h/0", [("AUTH", "se@cret")]),
        ("redis://anna:se%2Fcret@h:1/3", [("AUTH", "anna", "se/cret"), ("SELECT", 3)]),
        ("redis://anna@h", [("AUTH", "anna", "")]),
        ("redis://h/0?db=7", [("PING",), ("SELECT", 7)]),
        ("redis://h?client_name=proxy", [("PING",), ("CLIENT", "SETNAME", "proxy")]),
        ("unix://:pw@/run/redis.sock?db=2", [("AUTH", "pw"), ("SELECT", 2)]),
        ("redis://h?max_connections=5&socket_timeout=9", [("PING",)]),
    ],
)
def test_a_connection_begins_with_what_the_url_says(url: str, greeting: list[tuple[str | int, ...]]) -> None:
    assert redis_address(url).greeting == tuple(packed(*words) for words in greeting)


def test_a_unix_socket_is_not_looked_up() -> None:
    address = redis_address("unix:///run/redis/redis%20one.sock")

    assert address.resolved() == [(socket.AF_UNIX, "/run/redis/redis one.sock")]


def test_numbers_are_not_looked_up() -> None:
    assert redis_address("redis://127.0.0.1:1").resolved() == [(socket.AF_INET, ("127.0.0.1", 1))]
    assert redis_address("redis://[::1]").resolved() == [(socket.AF_INET6, ("::1", 6379, 0, 0))]


def test_tls_verifies_certificate_and_name() -> None:
    context = redis_address("rediss://redis.example").tls

    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_tls_can_be_told_not_to_verify() -> None:
    context = redis_address("rediss://redis.example?ssl_cert_reqs=none").tls
    nameless = redis_address("rediss://redis.example?ssl_check_hostname=false").tls

    assert context is not None
    assert nameless is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    assert (nameless.verify_mode, nameless.check_hostname) == (ssl.CERT_REQUIRED, False)


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis://u:hunter2@h:port",
        "redis://:hunter2@h?db=two",
        "unix://",
        "rediss://:hunter2@h?ssl_validate_ocsp=true",
        "rediss://:hunter2@h?ssl_cert_reqs=perhaps",
        "rediss://:hunter2@h?ssl_ca_certs=/nowhere/hunter2.pem",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(OperatorError, match="REDIS_URL") as caught:
        redis_address(url)

    assert "hunter2" not in str(caught.value)
