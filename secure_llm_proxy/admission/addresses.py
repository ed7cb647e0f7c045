"""Reading an IP address in exactly one way.

`inet_pton` is strict where people cheat: no leading zeros (octal), no hexadecimal, no missing parts, no zone, no port.
An IPv4 address mapped into IPv6 (`::ffff:10.0.0.1`, RFC 4291 §2.5.5.2) is the IPv4 address, so that no list can be
walked around by writing it the other way.
"""

from __future__ import annotations

import socket
from ipaddress import IPv6Address
from typing import NamedTuple

UNKNOWN_ADDRESS = "0.0.0.0"  # noqa: S104 - a value that no client can have, not something to listen on
"""What stands for a peer whose address can't be read."""

_MAPPED = b"\x00" * 10 + b"\xff\xff"
_TEXT_MAX = 45
_V4 = 4
_V6 = 6


class Address(NamedTuple):
    """`version` is 4 or 6; `number` is the address as an unsigned integer."""

    version: int
    number: int

    @property
    def text(self) -> str:
        """The canonical form (RFC 5952 for IPv6), lower case, without zone."""
        if self.version == _V4:
            return socket.inet_ntoa(self.number.to_bytes(4, "big"))
        # not inet_ntop: glibc writes ::102:304 as ::1.2.3.4
        return str(IPv6Address(self.number))


def parse_address(text: str) -> Address | None:
    """Read a bare IPv4 or IPv6 address; None for anything else."""
    if len(text) > _TEXT_MAX:
        return None
    try:
        if ":" not in text:
            return Address(_V4, int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big"))
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        # ValueError: a NUL or a lone surrogate inside
        return None
    if packed.startswith(_MAPPED):
        return Address(_V4, int.from_bytes(packed[12:], "big"))
    return Address(_V6, int.from_bytes(packed, "big"))
