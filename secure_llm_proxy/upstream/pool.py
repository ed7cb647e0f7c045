"""Connections that have carried a whole exchange and wait for the next one."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from secure_llm_proxy.upstream.wire import Wire

if TYPE_CHECKING:
    import ssl

    from secure_llm_proxy.upstream.endpoint import Endpoint

# shorter than the 60 s or more after which load balancers hang up on a silent connection
IDLE_S = 30.0


class ConnectionPool:
    """At most `idle_max` idle connections, the one used last taken first. Any greenlet or thread may use it.

    How many are in use at once is bounded by throttling, not here.
    """

    def __init__(self, endpoint: Endpoint, tls_context: ssl.SSLContext | None, *, idle_max: int) -> None:
        self._endpoint = endpoint
        self._tls_context = tls_context
        self._idle_max = idle_max
        self._idle: list[Wire] = []
        self._lock = threading.Lock()
        self._closed = False

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    def take(self) -> Wire:
        """Return an idle connection that looks alive, or a new one that is not open yet."""
        while True:
            with self._lock:
                wire = self._idle.pop() if self._idle else None
            if wire is None:
                return self.new()
            if time.monotonic() - wire.idle_since_s < IDLE_S and wire.is_quiet():
                return wire
            wire.close()

    def new(self) -> Wire:
        return Wire(self._endpoint, self._tls_context)

    def give_back(self, wire: Wire) -> None:
        """Keep `wire` for another exchange. Only for one whose answer ended exactly as it announced."""
        now_s = time.monotonic()
        wire.reused = True
        wire.idle_since_s = now_s
        with self._lock:
            surplus = [kept for kept in self._idle if now_s - kept.idle_since_s >= IDLE_S]
            if surplus:
                self._idle = [kept for kept in self._idle if now_s - kept.idle_since_s < IDLE_S]
            if self._closed or len(self._idle) >= self._idle_max:
                surplus.append(wire)
            else:
                self._idle.append(wire)
        for old in surplus:
            old.close()

    def close(self) -> None:
        """Hang up every idle connection, and each that is given back from now on."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for wire in idle:
            wire.close()
