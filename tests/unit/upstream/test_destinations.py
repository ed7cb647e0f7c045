"""Where a provider's name may lead: no way of writing a forbidden address makes it another one."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.upstream.destinations import Destinations, OwnHosts, Reach, reach_of, read_own_hosts
from secure_llm_proxy.upstream.name_lookup import Address

GLOBAL = ["8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.1", "100.63.255.255", "192.0.1.1", "223.255.255.255"]
OWN = ["10.0.0.1", "127.0.0.1", "127.255.0.9", "172.16.0.1", "172.31.255.254", "192.168.7.7", "100.64.0.1"]
SPECIAL = ["192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "192.88.99.1", "240.0.0.1"]
NEVER = [
    "0.0.0.0", "0.1.2.3", "169.254.0.1", "169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200",  # noqa: S104
    "192.0.0.192", "224.0.0.1", "239.1.1.1", "255.255.255.255",
]  # fmt: skip
GLOBAL_V6 = ["2606:4700::1111", "2a00:1450:4001::200e", "2400:cb00::1", "2620:4f:8000::1"]
OWN_V6 = ["::1", "fc00::1", "fd12:3456::1"]
SPECIAL_V6 = ["2001:db8::1", "3fff::1", "2001:2::1", "100::1", "5f00::1", "fec0::1", "4000::1", "2001:10::1"]
NEVER_V6 = ["::", "fe80::1", "febf::1", "ff02::1", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"]


@pytest.mark.parametrize("reach", Reach)
def test_each_range_lies_where_the_registries_say(reach: Reach) -> None:
    addresses = {
        Reach.GLOBAL: GLOBAL + GLOBAL_V6,
        Reach.OWN: OWN + OWN_V6,
        Reach.SPECIAL: SPECIAL + SPECIAL_V6,
        Reach.NEVER: NEVER + NEVER_V6,
    }[reach]

    assert {address: reach_of(ip_address(address)) for address in addresses} == dict.fromkeys(addresses, reach)


def in_ipv6(address: IPv4Address) -> dict[str, IPv6Address]:
    """Every standard form in which an IPv6 address carries this one."""
    number = int(address)
    client = number ^ 0xFFFFFFFF
    teredo = 0x20010000 << 96
    return {
        "mapped": IPv6Address(0xFFFF << 32 | number),
        "compatible": IPv6Address(number),
        "translated": IPv6Address(0xFFFF << 48 | number),
        "nat64": IPv6Address(0x64FF9B << 96 | number),
        "nat64 of one's own": IPv6Address(0x64FF9B0001 << 80 | number),
        "6to4": IPv6Address(0x2002 << 112 | number << 80 | 1),
        "teredo client": IPv6Address(teredo | int(IPv4Address("65.54.227.120")) << 64 | client),
        "teredo server": IPv6Address(teredo | number << 64 | int(IPv4Address("8.8.8.8")) ^ 0xFFFFFFFF),
    }


@settings(max_examples=500)
@given(
    st.one_of(st.ip_addresses(v=4), st.sampled_from([IPv4Address(text) for text in [*OWN, *SPECIAL, *NEVER, *GLOBAL]]))
)
def test_an_address_inside_ipv6_is_never_better_than_by_itself(address: IPv4Address) -> None:
    by_itself = reach_of(address)
    inside = in_ipv6(address)

    assert reach_of(inside["mapped"]) is by_itself
    assert reach_of(inside["nat64"]) is by_itself
    if int(address) > 1:  # :: and ::1 are those themselves
        assert all(reach_of(form) >= by_itself for form in inside.values())
    assert all(reach_of(form) >= Reach.OWN for name, form in inside.items() if name not in ("mapped", "nat64"))


@given(st.ip_addresses())
def test_every_address_has_a_place(address: IPv4Address | IPv6Address) -> None:
    assert reach_of(address) in Reach


def found(*addresses: str) -> list[Address]:
    return [
        (socket.AF_INET6, (address, 443, 0, 3 if "%" in address else 0))
        if ":" in address
        else (socket.AF_INET, (address, 443))
        for address in addresses
    ]


def texts(addresses: list[Address]) -> list[str]:
    return [where[0] for _, where in addresses]


@pytest.mark.parametrize("address", [*OWN, *OWN_V6, *SPECIAL, *SPECIAL_V6, *NEVER, *NEVER_V6, "fe80::1%eth0"])
def test_a_name_of_the_world_leads_to_nothing_but_the_world(address: str) -> None:
    good, refusal = Destinations("api.example.com", plain=False).checked(found(address))

    assert good == []
    assert refusal is not None
    assert address.partition("%")[0] in refusal


@pytest.mark.parametrize("address", [*GLOBAL, *GLOBAL_V6])
def test_a_name_of_the_world_leads_anywhere_in_it(address: str) -> None:
    good, refusal = Destinations("api.example.com", plain=False).checked(found(address))

    assert (texts(good), refusal) == ([address], None)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "api.localhost",
        "vllm",
        "my_gpu",
        "gpu.internal",
        "gpu.local",
        "gpu.lan",
        "gpu.home.arpa",
        "gpu.lan.",
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_a_name_of_one_s_own_network_may_lead_into_it(host: str, *, plain: bool) -> None:
    good, _ = Destinations(host, plain=plain).checked(found(*OWN, *SPECIAL, *NEVER, *OWN_V6, *SPECIAL_V6, *NEVER_V6))

    assert texts(good) == [*OWN, *OWN_V6]


@pytest.mark.parametrize(
    "host", ["localhost.example.com", "internal", "gpu.internal.example", "notlocalhost.com", "a.xlan"]
)
def test_only_the_whole_last_label_makes_a_name_one_s_own(host: str) -> None:
    assert OwnHosts().holds_name(host) is (host == "internal")


def test_of_several_addresses_only_the_good_ones_are_used_in_their_order() -> None:
    good, refusal = Destinations("api.example.com", plain=False).checked(
        found("10.0.0.1", "8.8.8.8", "169.254.169.254", "2606:4700::1111", "::ffff:127.0.0.1")
    )

    assert good == [(socket.AF_INET, ("8.8.8.8", 443)), (socket.AF_INET6, ("2606:4700::1111", 443, 0, 0))]
    assert refusal is not None
    assert "10.0.0.1" in refusal


def test_a_zone_never_reaches_the_kernel() -> None:
    good, _ = Destinations("gpu.lan", plain=False).checked(found("fd00::7%eth0"))

    assert good == [(socket.AF_INET6, ("fd00::7", 443, 0, 0))]


def test_listed_names_and_domains_may_lead_into_one_s_own_network() -> None:
    own = read_own_hosts(["GPU.corp.example", "*.ai.corp.example", " other.example. "])

    for host in ("gpu.corp.example", "gpu.corp.example.", "a.ai.corp.example", "a.b.ai.corp.example", "other.example"):
        assert texts(Destinations(host, plain=False, own=own).checked(found("10.0.0.1"))[0]) == ["10.0.0.1"]
    for host in (
        "corp.example",
        "x.gpu.corp.example",
        "ai.corp.example",
        "evilai.corp.example",
        "gpu.corp.example.evil",
    ):
        assert Destinations(host, plain=False, own=own).checked(found("10.0.0.1"))[0] == []


def test_any_name_may_lead_into_a_listed_network() -> None:
    own = read_own_hosts(["10.20.0.0/16", "198.18.0.0/15", "2001:db8:7::/48", "192.168.7.7", "fd00:1::5"])
    destinations = Destinations("api.example.com", plain=False, own=own)

    good, _ = destinations.checked(
        found("10.20.3.4", "10.21.0.1", "198.19.0.1", "2001:db8:7::1", "2001:db8:8::1", "192.168.7.7", "192.168.7.8")
    )

    assert texts(good) == ["10.20.3.4", "198.19.0.1", "2001:db8:7::1", "192.168.7.7"]
    assert texts(destinations.checked(found("::ffff:10.20.3.4", "fd00:1::5"))[0]) == ["::ffff:a14:304", "fd00:1::5"]


def test_no_list_lets_a_name_lead_to_a_metadata_service() -> None:
    own = read_own_hosts(
        ["metadata.google.internal", "169.254.0.0/16", "fe80::/10", "100.64.0.0/10", "fd00::/8", "168.0.0.0/7"]
    )

    for host in ("metadata.google.internal", "localhost", "api.example.com"):
        good, refusal = Destinations(host, plain=False, own=own).checked(found(*NEVER, *NEVER_V6))
        assert good == []
        assert refusal is not None


def test_without_tls_a_name_leads_nowhere_outside_unless_it_is_listed() -> None:
    own = read_own_hosts(["llm.campus.example", "131.159.0.0/16"])

    assert Destinations("gpu.internal", plain=True).checked(found("8.8.8.8"))[0] == []
    assert Destinations("api.example.com", plain=True, own=own).checked(found("8.8.8.8"))[0] == []
    assert texts(Destinations("llm.campus.example", plain=True, own=own).checked(found("8.8.8.8"))[0]) == ["8.8.8.8"]
    assert texts(Destinations("x.example", plain=True, own=own).checked(found("131.159.1.1"))[0]) == ["131.159.1.1"]


@pytest.mark.parametrize(
    "entry",
    [
        "", "*", "*.", "a b", "a..b", "-a.example", "https://a.example", "a.example:443", "10.0.0.1/8", "10.0.0.0/33",
        "10.0.0.0/255.0.0.0", "fe80::1%eth0", "0.0.0.0/0", "::/0", "10.1", "0x7f.1", "2130706433", "bücher.example",
    ],
)  # fmt: skip
def test_an_entry_that_means_nothing_is_refused_by_name(entry: str) -> None:
    with pytest.raises(OperatorError, match="LLM_PRIVATE_HOSTS") as caught:
        read_own_hosts([entry])

    assert repr(entry) in str(caught.value)
