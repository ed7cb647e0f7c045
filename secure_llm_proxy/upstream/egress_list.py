"""What the host's egress filter lets through, as the filter itself publishes it (scripts/egress, docs/egress.md).

The filter looks names up by itself, once a minute. A name that leads to other addresses with each answer would show us some
that it does not know yet, and refuses. So what it lets through is tried first, and where a name leads to nothing of that,
what it led to within the last hours.

Believed for one thing: which addresses to try, and in which order. Whether a connection may be made is judged by
`destinations`, for these addresses as for all others. No list (no filter, a container), or one that can't be read or was not
written by root: nothing is known, and our own lookups alone count.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from secure_llm_proxy.upstream.destinations import Destinations
    from secure_llm_proxy.upstream.name_lookup import Address

log = logging.getLogger(__name__)

# Watched by secure-llm-egress-wanted.path, in the runtime folder of the web service.
_WANTED = Path("/run/secure_llm_proxy/egress-wanted")
_WANTED_EACH_S = 1.0
_BYTES_MAX = 262_144
_FORMAT = 1
# The filter publishes each minute. Who has missed five does not keep up: our own lookups know more.
_OLD_S = 300.0
_OTHERS_MAX = 4
# How its rules (`reject`) and the unit's IPAddressDeny= refuse a connection; a provider's own refusal may look the same.
_REFUSALS = frozenset({errno.ECONNREFUSED, errno.EPERM, errno.EACCES, errno.EHOSTUNREACH})
_OWN_REFUSALS = frozenset({errno.EPERM, errno.EACCES})


@dataclass(frozen=True, slots=True)
class _Published:
    """By name and port the addresses that are let through, with the end of that (monotonic), the one answered last first."""

    looked_s: float
    places: Mapping[tuple[str, int], Mapping[str, float]]

    def holds(self, host: str, port: int, address: str, now_s: float) -> bool:
        return self.places.get((host, port), {}).get(_plain(address), 0.0) > now_s

    def age_s(self, now_s: float) -> float:
        """Another clock than ours (a copied file) makes it old."""
        return now_s - self.looked_s if self.looked_s <= now_s else inf


_Mark = tuple[int, int, int]


class EgressList:
    """Asks the file again when it has changed: one `stat` for each connection that is opened to a name.

    Any thread may use it: each step on what is kept is one step of the interpreter.
    """

    def __init__(self, file: Path | None, *, wanted: Path = _WANTED) -> None:
        self._file = file
        self._wanted = wanted
        self._wanted_at_s = -inf
        self._kept: tuple[_Mark | None, _Published | None] = (None, None)

    def ordered(self, destinations: Destinations, port: int, found: list[Address]) -> list[Address]:
        """The addresses `found` for the name, all of them allowed, with those first that are let through.

        Where none of them is, others follow or come before them to which the name led lately, and the filter is told to look
        the name up again.
        """
        published = self._published()
        listed = None if published is None else published.places.get((destinations.host, port))
        if published is None or not listed:
            return found
        now_s = monotonic()
        known: list[Address] = []
        unknown: list[Address] = []
        for address in found:
            (known if listed.get(_plain(address[1][0]), 0.0) > now_s else unknown).append(address)
        if known:
            return known + unknown
        self._want(now_s)
        lately = [text for text, until_s in listed.items() if until_s > now_s][:_OTHERS_MAX]
        others, _ = destinations.checked([(socket.AF_UNSPEC, (text, port)) for text in lately])
        rest = found[:_OTHERS_MAX]
        return [*others, *rest] if published.age_s(now_s) < _OLD_S else [*rest, *others]

    def remark(self, host: str, port: int, address: str, failure: int) -> str | None:
        """What the operator should know of a connection to `address` that failed with this error number; None: nothing."""
        if failure not in _REFUSALS:
            return None
        published = self._published()
        if published is None or not published.places:
            return "refused by a packet filter of this host (scripts/egress show)" if failure in _OWN_REFUSALS else None
        now_s = monotonic()
        if published.holds(host, port, address, now_s) or ip_address(address).is_loopback:
            return None
        age_s = published.age_s(now_s)
        if age_s < _OLD_S:
            return "refused by the egress filter (scripts/egress show: what it lets through)"
        age = f"is {age_s / 60:.0f} minutes old" if age_s < inf else "is of another boot"
        return f"perhaps refused by the egress filter, whose list {age} (scripts/egress show; secure-llm-egress.timer)"

    def _published(self) -> _Published | None:
        if self._file is None:
            return None
        mark, published = self._kept
        try:
            now = _mark(os.lstat(self._file))
        except OSError:
            now = None
        if now != mark:
            published = None if now is None else self._read(self._file)
            self._kept = (now, published)
        return published

    def _read(self, file: Path) -> _Published | None:
        try:
            return _parse(_content(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            log.warning("the egress filter's list is not used", extra={"file": str(file), "cause": str(error)})
            return None

    def _want(self, now_s: float) -> None:
        """Have the filter look names up now. That is all it hears from us; without its watcher, nothing happens."""
        if now_s - self._wanted_at_s < _WANTED_EACH_S:
            return
        self._wanted_at_s = now_s
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with suppress(OSError):
            os.close(os.open(self._wanted, flags, 0o600))


NO_EGRESS_LIST = EgressList(None)


def _mark(status: os.stat_result) -> _Mark:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _content(file: Path) -> bytes:
    """Raises `ValueError` for what root can't have put there whole."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ValueError("others than root may write it")
        content = opened.read(_BYTES_MAX + 1)
    if len(content) > _BYTES_MAX:
        raise ValueError(f"it is larger than {_BYTES_MAX} bytes")
    return content


def _parse(content: bytes) -> _Published:
    told = json.loads(content)
    if told["format"] != _FORMAT:
        raise ValueError("it has another format than this release reads")
    places = {}
    for row in told["places"]:
        host, port = row["host"], row["port"]
        if not isinstance(host, str) or type(port) is not int:
            raise ValueError("a place in it has no name or port")
        places[host, port] = {str(ip_address(text)): _time(until_s) for text, until_s in row["until_s"].items()}
    return _Published(_time(told["looked_s"]), places)


def _plain(text: str) -> str:
    """As the filter writes an address; the kernel sends to an IPv4 address inside IPv6 as IPv4."""
    if text.startswith("::ffff:"):
        address = ip_address(text)
        return str(address.ipv4_mapped or address) if isinstance(address, IPv6Address) else text
    return text


def _time(told: object) -> float:
    if told is None:
        return inf
    if type(told) not in (int, float):
        raise ValueError("a time in it is none")
    return float(told)  # type: ignore[arg-type]
