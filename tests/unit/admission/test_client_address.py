"""Whose request is it, whatever the client writes into its headers?"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.admission import HOPS_MAX, UNKNOWN_ADDRESS, NetworkSet, client_address, parse_address

NOBODY = NetworkSet(())
PROXIES = NetworkSet(("10.0.0.0/8", "fd00::/8"))
CLIENT = "203.0.113.9"

SPOOFED = [
    "127.0.0.1",
    "10.0.0.1",
    "1.2.3.4",
    "1.2.3.4, 5.6.7.8",
    "10.0.0.1, 10.0.0.2, 10.0.0.3",
    "::1",
    "[::1]",
    "[::1]:443",
    "::ffff:127.0.0.1",
    "[::ffff:127.0.0.1]:80",
    "::127.0.0.1",
    "fe80::1%eth0",
    "127.0.0.1:80",
    "127.0.0.1:",
    "127.0.0.1:99999",
    "127.1",
    "0177.0.0.1",
    "0x7f.0.0.1",
    "0x7f000001",
    "2130706433",
    "127.0.0.1%00",
    "127.0.0.1\x00",
    "127.0.0.1 ",
    "\t127.0.0.1",
    "127.0.0.1\u00a0",
    "\u0661\u0662\u0667.0.0.1",
    "\uff11\uff12\uff17.0.0.1",
    "localhost",
    "unknown",
    "_hidden",
    "unix:",
    "for=127.0.0.1",
    'for="[::1]:443"',
    '"127.0.0.1"',
    "<script>",
    "",
    ",",
    ",,,,127.0.0.1",
    "127.0.0.1,",
    "127.0.0.1;10.0.0.1",
    "127.0.0.1 10.0.0.1",
    "127.0.0.0/8",
    "256.0.0.1",
    "1.2.3.4.5",
    "::1::2",
    "[1.2.3.4]:80",
    "[::1",
    "::1]",
    "[]",
    "-1",
    "10.0.0.1, " * 500,
    "," * 8000,
    "9" * 8000,
    ":" * 8000,
    "\ud800",
]


@pytest.mark.parametrize("header", SPOOFED)
def test_an_untrusted_peer_cannot_choose_its_address(header: str) -> None:
    assert client_address(CLIENT, header, NOBODY) == CLIENT
    assert client_address(CLIENT, header, PROXIES) == CLIENT


@pytest.mark.parametrize("header", SPOOFED)
@pytest.mark.parametrize("peer", ["", "10.0.0.1", "fd00::1", "::ffff:10.0.0.1"])
def test_what_a_client_sends_through_an_appending_proxy_changes_nothing(peer: str, header: str) -> None:
    appended = f"{header}, {CLIENT}"

    assert client_address(peer, appended, PROXIES) == CLIENT


@pytest.mark.parametrize("header", SPOOFED)
def test_the_answer_is_always_a_canonical_address(header: str) -> None:
    seen = client_address("", header, PROXIES)

    assert str(ip_address(seen)) == seen


@pytest.mark.parametrize(
    ("peer", "header", "seen"),
    [
        ("", None, "127.0.0.1"),
        ("", "", "127.0.0.1"),
        ("", "garbage", "127.0.0.1"),
        ("", "203.0.113.9", "203.0.113.9"),
        ("", "203.0.113.9, 10.0.0.5", "203.0.113.9"),
        ("", "1.1.1.1, garbage, 10.0.0.5", "10.0.0.5"),
        ("", "1.1.1.1, , 10.0.0.5", "10.0.0.5"),
        ("", "1.1.1.1, 10.0.0.5,", "127.0.0.1"),
        ("", "10.0.0.4, 10.0.0.5", "10.0.0.4"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "garbage", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8::9]:4711", "2001:db8::9"),
        ("10.0.0.1", "[2001:DB8:0::0009]", "2001:db8::9"),
        ("10.0.0.1", "fe80::9%eth0", "fe80::9"),
        ("10.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "  203.0.113.9\t", "203.0.113.9"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "1.1.1.1", "203.0.113.9"),
        ("fe80::1%eth0", None, "fe80::1"),
        ("nonsense", "1.1.1.1", UNKNOWN_ADDRESS),
        ("unix:", "1.1.1.1", UNKNOWN_ADDRESS),
    ],
)
def test_the_walk_ends_at_the_last_verified_address(peer: str, header: str | None, seen: str) -> None:
    assert client_address(peer, header, PROXIES) == seen


def test_only_so_many_hops_are_read() -> None:
    hops = [f"10.0.0.{number}" for number in range(HOPS_MAX + 10)]

    seen = client_address("", ", ".join(["203.0.113.9", *hops]), PROXIES)

    assert seen == hops[-HOPS_MAX]


def test_trusting_every_address_reads_the_leftmost_within_the_bound() -> None:
    everyone = NetworkSet(("0.0.0.0/0", "::/0"))

    assert client_address("192.0.2.1", "2001:db8::1, 198.51.100.7", everyone) == "2001:db8::1"


_any_address = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(address=_any_address)
def test_addresses_are_read_as_the_standard_library_reads_them(address: IPv4Address | IPv6Address) -> None:
    parsed = parse_address(str(address))

    canonical: IPv4Address | IPv6Address = address
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        canonical = address.ipv4_mapped
    assert parsed is not None
    assert (parsed.version, parsed.number) == (canonical.version, int(canonical))
    assert parsed.text == str(canonical)


@given(text=st.text(alphabet="0123456789abcdefABCDEFx:.%[]/ ,\x00é\u0661", max_size=48))
def test_what_the_standard_library_refuses_is_refused(text: str) -> None:
    try:
        expected = None if "%" in text else ip_address(text)
    except ValueError:
        expected = None

    assert (parse_address(text) is None) == (expected is None)


@given(
    peer=st.one_of(st.just(""), _any_address.map(str)),
    hops=st.lists(st.one_of(_any_address.map(str), st.text(max_size=12)), max_size=12),
)
def test_the_seen_address_is_the_peer_or_stands_right_of_trusted_hops_only(peer: str, hops: list[str]) -> None:
    header = ",".join(hops)

    seen = client_address(peer, header, PROXIES)

    pieces = [piece.strip(" \t") for piece in header.split(",")]
    readable = [parsed.text for piece in pieces if (parsed := parse_address(piece.partition("%")[0])) is not None]
    peer_address = parse_address(peer or "127.0.0.1")
    assert peer_address is not None
    assert (
        seen == peer_address.text or seen in readable or any(piece.startswith("[") or ":" in piece for piece in pieces)
    )
    if peer and PROXIES.find(peer_address) is None:
        assert seen == peer_address.text
