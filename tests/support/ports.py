"""Free TCP ports on loopback."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

_LOWEST = 20_000
_ROOM_MIN = 1000
# The kernel gives out ports of its own from this range: to whoever connects and to whoever binds to port 0.
_KERNEL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens; none is given twice in one test run.

    It lies below what the kernel gives out, so that nobody gets it until the server that is told of it listens, or while a
    server is down that will come back to it. (Where the kernel's range leaves no room, it is one of the kernel's.)
    """
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", _candidate()))
            except OSError:
                continue
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


def _candidate() -> int:
    room = int(_KERNEL_RANGE.read_text("ascii").split()[0]) - _LOWEST
    if room <= _ROOM_MIN:
        return 0
    # Not by `random`, which two runs at the same time may have seeded alike. The processes of one run (side_by_side.py) keep
    # apart altogether: what one has stopped for a while, no other must take.
    number, _, processes = os.environ.get("TEST_PROCESS", "0/1").partition("/")
    return _LOWEST + int(processes) * secrets.randbelow(room // int(processes)) + int(number)


def is_open(port: int) -> bool:
    """True when somebody accepts connections on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
