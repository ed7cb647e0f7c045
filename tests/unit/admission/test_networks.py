"""Sets of networks."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.admission import NetworkSet
from secure_llm_proxy.foundation.errors import OperatorError

Network = IPv4Network | IPv6Network


def _network(address: int, prefix: int, version: int) -> Network:
    bits = 32 if version == 4 else 128
    prefix = min(prefix, bits)
    number = (address & ((1 << bits) - 1)) >> (bits - prefix) << (bits - prefix)
    return ip_network((IPv4Address(number) if version == 4 else IPv6Address(number), prefix))


# few high bits, so that networks overlap and addresses hit them
_numbers = st.one_of(
    st.integers(min_value=0, max_value=(1 << 128) - 1),
    st.builds(lambda high, low: high << 28 | low, st.integers(0, 15), st.integers(0, 7)),
)
_networks = st.builds(_network, _numbers, st.integers(min_value=0, max_value=128), st.sampled_from([4, 6]))


def _address(number: int, version: int) -> IPv4Address | IPv6Address:
    return IPv4Address(number & 0xFFFFFFFF) if version == 4 else IPv6Address(number)


@given(
    networks=st.lists(_networks, max_size=20),
    number=_numbers,
    version=st.sampled_from([4, 6]),
    inside=st.integers(min_value=0, max_value=19),
)
def test_membership_is_that_of_the_standard_library(
    networks: list[Network], number: int, version: int, inside: int
) -> None:
    address = _address(number, version)
    if inside < len(networks):
        address = networks[inside].broadcast_address

    entry = NetworkSet([str(network) for network in networks]).match(str(address))

    meant: IPv4Address | IPv6Address = address
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        meant = address.ipv4_mapped
    expected = any(meant in _as_meant(network) for network in networks)
    assert (entry is not None) == expected
    if entry is not None:
        assert meant in _as_meant(ip_network(entry))


def _as_meant(network: Network) -> Network:
    if isinstance(network, IPv6Network) and network.subnet_of(IPv6Network("::ffff:0:0/96")):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def test_thousands_of_networks_keep_their_edges() -> None:
    networks = [f"10.{high}.{low}.16/28" for high in range(64) for low in range(256)]

    compiled = NetworkSet(networks)

    assert len(compiled) == 16384
    for high in (0, 31, 63):
        for low in (0, 128, 255):
            name = f"10.{high}.{low}.16/28"
            assert compiled.match(f"10.{high}.{low}.15") is None
            assert compiled.match(f"10.{high}.{low}.16") == name
            assert compiled.match(f"10.{high}.{low}.31") == name
            assert compiled.match(f"10.{high}.{low}.32") is None


def test_the_entry_is_named_as_the_operator_wrote_it() -> None:
    networks = NetworkSet((" 10.0.0.0/8", "192.0.2.7", "2001:DB8::/32", "::1"))

    assert networks.match("10.200.0.1") == "10.0.0.0/8"
    assert networks.match("192.0.2.7") == "192.0.2.7"
    assert networks.match("2001:db8:ffff::1") == "2001:DB8::/32"
    assert networks.match("::1") == "::1"
    assert networks.match("192.0.2.8") is None


def test_a_network_inside_another_is_named_by_the_wider_one() -> None:
    networks = NetworkSet(("10.1.0.0/16", "10.0.0.0/8", "10.1.2.3"))

    assert networks.match("10.1.2.3") == "10.0.0.0/8"


def test_a_mapped_address_or_network_is_the_ipv4_one() -> None:
    by_v4 = NetworkSet(("10.0.0.0/8",))
    by_mapped = NetworkSet(("::ffff:10.0.0.0/104", "::ffff:192.0.2.1"))

    assert by_v4.match("::ffff:10.1.2.3") == "10.0.0.0/8"
    assert by_mapped.match("10.1.2.3") == "::ffff:10.0.0.0/104"
    assert by_mapped.match("192.0.2.1") == "::ffff:192.0.2.1"


def test_all_ipv6_is_not_all_ipv4() -> None:
    networks = NetworkSet(("::/0",))

    assert networks.match("::ffff:10.0.0.1") is None
    assert networks.match("2001:db8::1") == "::/0"


@pytest.mark.parametrize("address", ["", "nonsense", "10.0.0.1/32", "10.0.0.1:80", "010.0.0.1", "fe80::1%eth0"])
def test_what_is_no_address_matches_nothing(address: str) -> None:
    assert NetworkSet(("0.0.0.0/0", "::/0")).match(address) is None


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "nonsense",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/",
        "10.0.0.0/8/8",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/0.255.255.255",
        "10.0.0.0/+8",
        "10.0.0.0/٨",
        "10.0.0",
        "10",
        "010.0.0.0/8",
        "fc00::/129",
        "fe80::1%eth0",
        "fe80::%eth0/64",
        "*",
        "10.*",
        "::ffff:10.0.0.0/8",
    ],
)
def test_an_entry_that_cannot_be_read_stops_the_start_and_is_named(entry: str) -> None:
    with pytest.raises(OperatorError) as caught:
        NetworkSet(("192.0.2.0/24", entry), setting="ALLOWED_IPS")

    assert repr(entry) in str(caught.value)
    assert "ALLOWED_IPS" in str(caught.value)


def test_an_entry_with_bits_behind_its_prefix_gets_both_readings_offered() -> None:
    with pytest.raises(OperatorError, match=r"10\.0\.0\.0/8 for it, 10\.0\.0\.5 for one address"):
        NetworkSet(("10.0.0.5/8",))
