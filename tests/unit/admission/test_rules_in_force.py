"""Rules kept in mind: found by prefix, however many there are, and gone at their end."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.admission import HeldRule, RuleTable, parse_address
from tests.support.house import ManualClock

Network = IPv4Network | IPv6Network


def table_of(*networks: str) -> RuleTable:
    return RuleTable((network, HeldRule(network, None)) for network in networks)


def found(table: RuleTable, address: str, clock: ManualClock | None = None) -> str | None:
    parsed = parse_address(address)
    assert parsed is not None
    rule = table.find(parsed, clock or ManualClock())
    return None if rule is None else rule.name


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.4", "10.1.2.0/24"),
        ("10.1.3.4", "10.0.0.0/8"),
        ("::ffff:10.1.3.4", "10.0.0.0/8"),
        ("11.0.0.0", None),
        ("9.255.255.255", None),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8::/32"),
        ("2001:db9::", None),
        ("::a01:203", None),
    ],
)
def test_the_narrowest_rule_that_holds_an_address_is_named(address: str, network: str | None) -> None:
    table = table_of("10.0.0.0/8", "2001:db8::/32", "10.1.2.3/32", "10.1.2.0/24", "2001:db8::/64")

    assert found(table, address) == network
    assert len(table) == 5


def test_rules_for_everybody_hold_everybody_of_their_version() -> None:
    assert found(table_of("0.0.0.0/0"), "203.0.113.9") == "0.0.0.0/0"
    assert found(table_of("0.0.0.0/0"), "2001:db8::1") is None
    assert found(table_of("::/0"), "2001:db8::1") == "::/0"


def test_a_rule_ends_by_itself_and_the_wider_one_behind_it_stands() -> None:
    clock = ManualClock()
    table = table_of("10.0.0.0/8")
    table.add("10.1.2.3/32", HeldRule("short", clock.now() + timedelta(seconds=60)))
    table.add("10.1.0.0/16", HeldRule("shorter", clock.now() + timedelta(seconds=30)))

    before = found(table, "10.1.2.3", clock)
    clock.advance(59.9)
    almost = found(table, "10.1.2.3", clock), found(table, "10.1.2.4", clock)
    clock.advance(0.1)
    after = found(table, "10.1.2.3", clock)

    assert before == "short"
    assert almost == ("short", "10.0.0.0/8")
    assert after == "10.0.0.0/8"


@pytest.mark.parametrize("text", ["nonsense/8", "10.0.0.0/", "10.0.0.0/33", "/8"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        table_of(text)


# Few bits, so that networks and addresses really meet.
_v4 = st.builds(
    lambda number, length: ip_network((number << 24 | number << 4, length), strict=False),
    st.integers(0, 255),
    st.integers(0, 32),
)
_v6 = st.builds(
    lambda number, length: ip_network((number << 120 | number << 60, length), strict=False),
    st.integers(32, 63),
    st.integers(0, 128),
)
_networks = st.sets(st.one_of(_v4, _v6), max_size=12)


@given(networks=_networks, picked=st.integers(0, 255), low=st.integers(0, 4095))
def test_it_answers_as_a_walk_over_all_rules_does(networks: set[Network], picked: int, low: int) -> None:
    table = table_of(*(str(network) for network in networks))
    addresses: list[IPv4Address | IPv6Address] = [
        IPv4Address(picked << 24 | picked << 4 & 0xFFF | low),
        IPv6Address(picked << 120 | picked << 60 | low),
        *(network.network_address for network in networks),
        *(network.broadcast_address for network in networks),
    ]

    for address in addresses:
        holding = [network for network in networks if address.version == network.version and address in network]
        expected = max(holding, key=lambda network: network.prefixlen, default=None)
        if address.version == 4 or address.ipv4_mapped is None:
            assert found(table, str(address)) == (None if expected is None else str(expected))
