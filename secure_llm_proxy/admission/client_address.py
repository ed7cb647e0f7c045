"""Whose request is it? The one function that both HTTP stacks ask for the client's address."""

from __future__ import annotations

from secure_llm_proxy.admission.addresses import UNKNOWN_ADDRESS, Address, parse_address
from secure_llm_proxy.admission.networks import NetworkSet

HOPS_MAX = 32
"""So many hops of X-Forwarded-For are read, from the right."""

_LOOPBACK = Address(4, 0x7F000001)
_ZONE_MAX = 64
_PORT_MAX = 65535
_PORT_DIGITS_MAX = 5


def client_address(peer: str, forwarded_for: str | None, trusted: NetworkSet) -> str:
    """The nearest address that no trusted proxy stands behind, canonical.

    `peer` is the socket's address, "" for a unix socket, which counts as a trusted proxy (only nginx can open it).
    X-Forwarded-For is walked from the right, because each proxy vouches only for the entry it wrote itself; what lies
    left of the first untrusted address is the client's own invention. An entry that is no address ends the walk at the
    last verified one. A unix peer without a usable header is 127.0.0.1; a peer that can't be read is `UNKNOWN_ADDRESS`,
    and no header is believed from it.
    """
    if peer:
        verified = _hop(peer)
        if verified is None:
            return UNKNOWN_ADDRESS
        if not forwarded_for or trusted.find(verified) is None:
            return verified.text
    else:
        verified = _LOOPBACK
        if not forwarded_for:
            return verified.text
    # one piece more than is read: it holds all that lies further left, and stays unread
    for piece in reversed(forwarded_for.rsplit(",", HOPS_MAX)[-HOPS_MAX:]):
        hop = _hop(piece.strip(" \t"))
        if hop is None:
            break
        verified = hop
        if trusted.find(hop) is None:
            break
    return verified.text


def _hop(text: str) -> Address | None:
    """Read `1.2.3.4`, `1.2.3.4:55`, `::1`, `fe80::1%eth0`, `[::1]` or `[::1]:55`."""
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in inner or (rest and not _is_port(rest)):
            return None
        return parse_address(_without_zone(inner))
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return parse_address(host) if _is_port(":" + port) else None
    return parse_address(_without_zone(text))


def _without_zone(text: str) -> str:
    """Leave out the zone of an IPv6 address (RFC 4007 §11): it names an interface of somebody else's machine."""
    address, percent, zone = text.partition("%")
    if not percent or ":" not in address or not 0 < len(zone) <= _ZONE_MAX:
        return text
    named = zone.replace("-", "").replace("_", "").replace(".", "")
    return address if named.isascii() and named.isalnum() else text


def _is_port(text: str) -> bool:
    digits = text[1:]
    if text[:1] != ":" or len(digits) > _PORT_DIGITS_MAX or not (digits.isascii() and digits.isdigit()):
        return False
    return int(digits) <= _PORT_MAX
