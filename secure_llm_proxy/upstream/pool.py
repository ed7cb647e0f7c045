"""Connections that have carried a whole exchange and wait for the next one."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from gevent import get_hub

from secure_llm_proxy.upstream.egress_list import NO_EGRESS_LIST, EgressList
from secure_llm_proxy.upstream.wire import Wire

if TYPE_CHECKING:
    import ssl

    from secure_llm_proxy.upstream.endpoint import Endpoint

# shorter than the 60 s or more after which load balancers hang up on a silent connection
IDLE_S = 30.0
_SWEEP_S = 1.0


class ConnectionPool:
    """At most `idle_max` idle connections, the one used last taken first. Any greenlet or thread may use it; each gets
    connections of its own thread's event loop only.

    One on which anything arrives while it is idle (a close, an answer that nobody asked for) is closed at once; what
    that can't see is told at `Wire.wake`. How many are in use at once is bounded by throttling, not here. No lock:
    each step on the dict is one step of the interpreter, and two threads at once may at worst open one connection more.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tls_context: ssl.SSLContext | None,
        *,
        idle_max: int,
        egress_list: EgressList = NO_EGRESS_LIST,
    ) -> None:
        self._endpoint = endpoint
        self._tls_context = tls_context
        self._egress_list = egress_list
        self._idle_max = idle_max
        # the one given back last stands last
        self._idle: dict[Wire, None] = {}
        self._sweep_due_s = 0.0
        self._closed = False

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    def take(self) -> Wire:
        """Return an idle connection that looks alive, or a new one that is not open yet."""
        here, now_s = get_hub(), monotonic()
        foreign: list[Wire] = []
        taken: Wire | None = None
        while taken is None:
            try:
                wire, _ = self._idle.popitem()
            except KeyError:
                taken = self.new()
                break
            if wire.hub is not here:
                foreign.append(wire)
            elif now_s - wire.idle_since_s < IDLE_S and wire.wake():
                taken = wire
            else:
                wire.close()
        if foreign:
            for wire in reversed(foreign):
                self._keep(wire)
        return taken

    def new(self) -> Wire:
        return Wire(self._endpoint, self._tls_context, self._egress_list)

    def give_back(self, wire: Wire) -> None:
        """Keep `wire` for another exchange. Only for one whose answer ended exactly as it announced."""
        now_s = monotonic()
        if now_s >= self._sweep_due_s:
            self._sweep_due_s = now_s + _SWEEP_S
            self._close_older_than(now_s - IDLE_S)
        if wire.hub is not get_hub() or len(self._idle) >= self._idle_max:
            wire.close()
            return
        wire.reused = True
        wire.idle_since_s = now_s
        wire.idle(self._let_go)
        self._keep(wire)

    def close(self) -> None:
        """Hang up every idle connection, and each that is given back from now on."""
        self._closed = True
        while self._idle:
            self._close_older_than(float("inf"))

    def _keep(self, wire: Wire) -> None:
        self._idle[wire] = None
        if self._closed:
            # `close` may have looked before
            self._let_go(wire)

    def _let_go(self, wire: Wire) -> None:
        self._idle.pop(wire, None)
        wire.close()

    def _close_older_than(self, before_s: float) -> None:
        while (oldest := self._oldest()) is not None and oldest.idle_since_s <= before_s:
            self._idle.pop(oldest, None)
            oldest.close()

    def _oldest(self) -> Wire | None:
        try:
            return next(iter(self._idle), None)
        except RuntimeError:
            # another thread changed the dict between the two steps
            return None
