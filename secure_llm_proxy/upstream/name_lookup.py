"""Addresses of a provider's name: one lookup at a time, however many connections wait for it.

The resolver knows no timeout. Were each connection to ask by itself, every request would leave a thread (a greenlet under
gevent's patch) behind while the resolver is silent.
"""

from __future__ import annotations

import os
import socket
import threading

# The host's egress filter keeps as many of a name.
_ADDRESSES_MAX = 256

Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]

# Those under way. Each step on it, and on a lookup's `waiting`, is one step of the interpreter: no lock.
_lookups: dict[tuple[str, int], Lookup] = {}
# A forked child has none of its parent's threads: nobody would ever answer there.
os.register_at_fork(after_in_child=_lookups.clear)


class Lookup:
    """After it is `done`: the addresses in the resolver's order, or why there are none (for the operator)."""

    __slots__ = ("done", "failure", "found", "waiting")

    def __init__(self) -> None:
        self.done = False
        self.found: list[Address] = []
        self.failure: str | None = None
        self.waiting: dict[threading.Event, None] = {}

    def tell(self, event: threading.Event) -> None:
        """Have `event` set once it is done; whoever stops waiting takes it out of `waiting`."""
        self.waiting[event] = None
        if self.done:
            event.set()

    def run(self, host: str, port: int) -> None:
        try:
            for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                if family in (socket.AF_INET, socket.AF_INET6) and len(self.found) < _ADDRESSES_MAX:
                    self.found.append((family, address))  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            self.failure = str(error)
        finally:
            _lookups.pop((host, port), None)
            self.done = True
            while self.waiting:
                self.waiting.popitem()[0].set()


def lookup_of(host: str, port: int) -> Lookup:
    """The lookup of this name that is under way, or a new one. It goes on when nobody waits any more."""
    mine = Lookup()
    lookup = _lookups.setdefault((host, port), mine)
    if lookup is mine:
        try:
            threading.Thread(target=mine.run, args=(host, port), name="upstream-name-lookup", daemon=True).start()
        except BaseException:
            _lookups.pop((host, port), None)
            raise
    return lookup
