"""A set of networks that answers in logarithmic time, however many there are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from secure_llm_proxy.admission.addresses import Address, parse_address
from secure_llm_proxy.foundation.errors import OperatorError

_MAPPED_SPACE = IPv6Network("::ffff:0:0/96")


class NetworkSet:
    """Addresses and CIDR networks, v4 and v6, compiled to sorted disjoint ranges of integers.

    A network inside another is merged into the wider one, which then is the entry named. Networks of IPv4-mapped
    addresses are the IPv4 networks. Raises `OperatorError` naming the first entry that can't be read; `setting` is the
    variable it came from.
    """

    __slots__ = ("_first", "_last", "_names", "_size")

    def __init__(self, entries: Iterable[str], *, setting: str = "") -> None:
        self._first: dict[int, list[int]] = {4: [], 6: []}
        self._last: dict[int, list[int]] = {4: [], 6: []}
        self._names: dict[int, list[str]] = {4: [], 6: []}
        networks = [(read_network(entry, setting=setting), entry.strip()) for entry in entries]
        self._size = len(networks)
        # widest first among equals, so that whatever lies inside comes after it
        networks.sort(key=lambda item: (item[0].version, int(item[0].network_address), item[0].prefixlen))
        for network, name in networks:
            first, last, names = self._first[network.version], self._last[network.version], self._names[network.version]
            # CIDR networks are nested or disjoint, never partly overlapping
            if last and int(network.network_address) <= last[-1]:
                continue
            first.append(int(network.network_address))
            last.append(int(network.broadcast_address))
            names.append(name)

    def __len__(self) -> int:
        """How many entries it was made of."""
        return self._size

    def match(self, address: str) -> str | None:
        """The entry that holds `address`, as the operator wrote it; None when there is none or it is no address."""
        parsed = parse_address(address)
        return None if parsed is None else self.find(parsed)

    def find(self, address: Address) -> str | None:
        """`match` for an address that was read already."""
        index = bisect_right(self._first[address.version], address.number) - 1
        if index < 0 or address.number > self._last[address.version][index]:
            return None
        return self._names[address.version][index]


def read_network(entry: str, *, setting: str = "") -> IPv4Network | IPv6Network:
    """The network that `entry` names, IPv4 for one of mapped addresses. Raises `OperatorError`, naming the entry."""
    text = entry.strip()
    where = f" in {setting}" if setting else ""
    address, slash, prefix = text.partition("/")
    # ip_network also takes netmasks, host masks and zones: two of them can be misread, none is needed
    if parse_address(address) is None or (slash and not (prefix.isascii() and prefix.isdigit())):
        raise OperatorError(f"{entry!r}{where} is not an IP address or CIDR network such as 10.0.0.0/8 or fc00::/7.")
    try:
        loose = ip_network(text, strict=False)
    except ValueError:
        raise OperatorError(f"{entry!r}{where} is not a CIDR network: the prefix /{prefix} is out of range.") from None
    try:
        network = ip_network(text)
    except ValueError:
        raise OperatorError(
            f"{entry!r}{where} has bits set behind its prefix; write {loose} for it, {address} for one address."
        ) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED_SPACE):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network
