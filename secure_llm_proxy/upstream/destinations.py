"""Which addresses a provider's name may lead to, judged anew for every connection.

Whoever answers for a name decides where our keys and prompts go. So a name out in the world leads to addresses out in the
world only; names of the operator's own network may also lead into it; and no name leads to a link-local address or to
where a cloud hands out its machines' credentials: an operator who means those writes the address itself into the URL.

Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries; RFC 1918, 4193, 6598; RFC 6052 and 8215 (NAT64), 3056
(6to4), 4380 §4 (Teredo), 4291 §2.5.5 (IPv4 inside IPv6); RFC 6761, 6762, 8375 and ICANN's `.internal` (names of one's own);
vendor pages of the metadata services (AWS, Azure, Google, Alibaba, Oracle). All as of 2026-11. Python's `is_global` is not
asked: its tables differ from one patch release to the next.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secure_llm_proxy.upstream.name_lookup import Address

_SETTING = "LLM_PRIVATE_HOSTS"
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NAME_CHARACTERS_MAX = 253
# The last label of what the system's resolver takes for an IPv4 address: 127.1, 0x7f.0x1, 017700000001 (WHATWG URL §3.5).
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_OWN_DOMAINS = (".localhost", ".internal", ".local", ".lan", ".home.arpa")


class Reach(IntEnum):
    """Where an address lies. The larger, the fewer names may lead there."""

    GLOBAL = 0
    """Anywhere in the Internet."""
    OWN = 1
    """In the operator's network: RFC 1918, loopback, unique local (ULA), shared (CGNAT)."""
    SPECIAL = 2
    """Reserved, for documentation, for tests, multicast: no provider lives there, but networks were built with some."""
    NEVER = 3
    """Link-local, a metadata service, or no host at all."""


_V4: tuple[tuple[IPv4Network, Reach], ...] = tuple(
    (IPv4Network(network), reach)
    for network, reach in (
        ("0.0.0.0/8", Reach.NEVER),
        ("10.0.0.0/8", Reach.OWN),
        ("100.100.100.200/32", Reach.NEVER),  # metadata of Alibaba Cloud, inside the shared space
        ("100.64.0.0/10", Reach.OWN),
        ("127.0.0.0/8", Reach.OWN),
        ("168.63.129.16/32", Reach.NEVER),  # Azure's WireServer, a public address
        ("169.254.0.0/16", Reach.NEVER),
        ("172.16.0.0/12", Reach.OWN),
        ("192.0.0.192/32", Reach.NEVER),  # metadata of Oracle Cloud's older generation
        ("192.0.0.0/24", Reach.SPECIAL),
        ("192.0.2.0/24", Reach.SPECIAL),
        ("192.88.99.0/24", Reach.SPECIAL),
        ("192.168.0.0/16", Reach.OWN),
        ("198.18.0.0/15", Reach.SPECIAL),
        ("198.51.100.0/24", Reach.SPECIAL),
        ("203.0.113.0/24", Reach.SPECIAL),
        ("224.0.0.0/4", Reach.NEVER),
        ("255.255.255.255/32", Reach.NEVER),
        ("240.0.0.0/4", Reach.SPECIAL),
    )
)
_V6: tuple[tuple[IPv6Network, Reach], ...] = tuple(
    (IPv6Network(network), reach)
    for network, reach in (
        ("::/128", Reach.NEVER),
        ("::1/128", Reach.OWN),
        ("64:ff9b::/96", Reach.GLOBAL),  # NAT64; judged by the address inside
        ("64:ff9b:1::/48", Reach.OWN),  # NAT64 of the operator's own
        ("2001::/23", Reach.SPECIAL),  # Teredo among others
        ("2001:db8::/32", Reach.SPECIAL),
        ("2002::/16", Reach.SPECIAL),  # 6to4
        ("3fff::/20", Reach.SPECIAL),
        ("2000::/3", Reach.GLOBAL),
        ("fd00:ec2::/32", Reach.NEVER),  # AWS: metadata, pod identity, time and names
        ("fd20:ce::/32", Reach.NEVER),  # Google: metadata
        ("fc00::/7", Reach.OWN),
        ("fe80::/10", Reach.NEVER),
        ("ff00::/8", Reach.NEVER),
        # last: whatever else there is was given to nobody
        ("::/0", Reach.SPECIAL),
    )
)
_MAPPED, _COMPATIBLE, _TRANSLATED = (IPv6Network(text) for text in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96"))
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))


@lru_cache(maxsize=1024)
def reach_of(address: IPv4Address | IPv6Address) -> Reach:
    """Where `address` lies; one that carries IPv4 addresses inside is as bad as the worst of them and itself."""
    if isinstance(address, IPv4Address):
        return next((reach for network, reach in _V4 if address in network), Reach.GLOBAL)
    if address in _MAPPED:
        # the kernel connects it as IPv4
        return reach_of(_last_four(address))
    own = next(reach for network, reach in _V6 if address in network)
    return max([own, *map(reach_of, _inside(address))])


def _inside(address: IPv6Address) -> list[IPv4Address]:
    number = int(address)
    if any(address in network for network in (*_NAT64, _COMPATIBLE, _TRANSLATED)):
        # of ::/96 all but the unspecified address and loopback are such
        return [_last_four(address)] if number > 1 else []
    if address.sixtofour is not None:
        return [address.sixtofour]
    return list(address.teredo or ())


def _last_four(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class OwnHosts:
    """The names and networks of `LLM_PRIVATE_HOSTS`, beside those that are always the operator's own.

    `domains` begin with a dot and hold every name below them.
    """

    names: frozenset[str] = frozenset()
    domains: tuple[str, ...] = ()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def lists_name(self, host: str) -> bool:
        """Whether the operator listed `host`, a name in lower case."""
        name = host.removesuffix(".")
        return name in self.names or (bool(self.domains) and name.endswith(self.domains))

    def holds_name(self, host: str) -> bool:
        """Whether `host`, a name in lower case, is one of the operator's own network."""
        name = host.removesuffix(".")
        return "." not in name or name.endswith(_OWN_DOMAINS) or self.lists_name(host)

    def holds_address(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether the operator listed a network with `address` in it."""
        if isinstance(address, IPv6Address) and address in _MAPPED:
            address = _last_four(address)
        return any(address.version == network.version and address in network for network in self.networks)


def read_own_hosts(entries: Iterable[str]) -> OwnHosts:
    """Read `LLM_PRIVATE_HOSTS`: names, `*.domain`, addresses and CIDR networks. Raises `OperatorError`, naming the entry."""
    names: set[str] = set()
    domains: list[str] = []
    networks: list[IPv4Network | IPv6Network] = []
    for entry in entries:
        text = entry.strip().lower()
        name = text.removeprefix("*.").removesuffix(".")
        if "/" in text or ":" in text or _ends_in_a_number(name):
            networks.append(_read_network(entry, text))
        elif not _is_well_formed(name):
            raise OperatorError(
                f"{entry!r} in {_SETTING} is no host name, `*.domain` or CIDR network. "
                "Examples: gpu.corp.example, *.corp.example, 10.20.0.0/16."
            )
        elif text.startswith("*."):
            domains.append(f".{name}")
        else:
            names.add(name)
    return OwnHosts(frozenset(names), tuple(domains), tuple(networks))


def _read_network(entry: str, text: str) -> IPv4Network | IPv6Network:
    prefix = text.partition("/")[2]
    try:
        if "%" in text or (prefix and not (prefix.isascii() and prefix.isdigit())):
            raise ValueError  # noqa: TRY301  zones and netmasks, which could be misread
        network = ip_network(text)
    except ValueError:
        raise OperatorError(
            f"{entry!r} in {_SETTING} is no IP address or CIDR network, such as 10.20.0.0/16 (no bits set behind its prefix)."
        ) from None
    if network.prefixlen == 0:
        raise OperatorError(f"{entry!r} in {_SETTING} would let every name lead anywhere; list your own networks.")
    return network


def is_name(host: str) -> bool:
    """Whether `host`, in lower case, is a name that no resolver takes for an address in another spelling."""
    name = host.removesuffix(".")
    return _is_well_formed(name) and not _ends_in_a_number(name)


def _is_well_formed(name: str) -> bool:
    labels = name.split(".")
    return len(name) <= _NAME_CHARACTERS_MAX and all(
        _LABEL.fullmatch(label) and not label.startswith("-") and not label.endswith("-") for label in labels
    )


def _ends_in_a_number(name: str) -> bool:
    return _NUMBER.fullmatch(name.rpartition(".")[2]) is not None


@dataclass(frozen=True, slots=True)
class Destinations:
    """What one endpoint's host may lead to. `plain` says that nothing protects what is sent on the way (no TLS)."""

    host: str
    plain: bool
    own: OwnHosts = OwnHosts()

    def checked(self, found: list[Address]) -> tuple[list[Address], str | None]:
        """Those of the addresses `found` for the host to which a connection may be made, in their order and as numbers
        that are looked up by nobody again; with the reason, for the operator, why one of the others may not.
        """
        good: list[Address] = []
        refusal: str | None = None
        for _, (text, port, *_rest) in found:
            # a zone behind it could only lead to another interface than was judged
            address = ip_address(text.partition("%")[0])
            reason = self.refusal(address)
            if reason is not None:
                refusal = refusal or reason
            elif isinstance(address, IPv4Address):
                good.append((socket.AF_INET, (str(address), port)))
            else:
                good.append((socket.AF_INET6, (str(address), port, 0, 0)))
        return good, refusal

    def refusal(self, address: IPv4Address | IPv6Address) -> str | None:
        """Why the name may not lead to `address`, for the operator; None when it may."""
        reach = reach_of(address)
        if reach is Reach.NEVER:
            return (
                f"its name leads to {_shown(address)}, which is link-local, a metadata service, or no host; "
                "only a URL with the address itself may lead there"
            )
        listed = self.own.holds_address(address)
        if reach is Reach.GLOBAL:
            if self.plain and not listed and not self.own.lists_name(self.host):
                return (
                    f"its name leads to {_shown(address)}, outside your network, and the URL is http; "
                    f"use https, or list the name or the network in {_SETTING}"
                )
            return None
        if listed or (reach is Reach.OWN and self.own.holds_name(self.host)):
            return None
        kind, remedy = ("private", "the name or the network") if reach is Reach.OWN else ("reserved", "the network")
        return f"its name leads to {_shown(address)}, a {kind} address; if that is meant, list {remedy} in {_SETTING}"


def _shown(address: IPv4Address | IPv6Address) -> str:
    return str(_last_four(address) if isinstance(address, IPv6Address) and address in _MAPPED else address)
