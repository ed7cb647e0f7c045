"""The beat that keeps the number of hosts known and the debts to Redis small."""

from __future__ import annotations

from typing import Protocol

from secure_llm_proxy.throttling.holds import Throttle

HEARTBEAT_S = 5.0


class Stop(Protocol):
    """`threading.Event` or `gevent.event.Event`."""

    def wait(self, timeout: float) -> bool | None:
        """Return after `timeout` seconds or when set; true when set."""
        ...


def run_heartbeat(throttle: Throttle, stop: Stop, *, every_s: float = HEARTBEAT_S) -> None:
    """Beat at once and then every `every_s` until `stop` is set. Runs in a greenlet or thread of its own."""
    throttle.heartbeat()
    while not stop.wait(every_s):
        throttle.heartbeat()
