"""Stopping exchanges that run already, when their caller may not go on: killed, revoked, quarantined, locked, logged out;
or all of them, when the worker's time to end is nearly over.

An exchange is entered in `House.running` when its caller is known and taken out when it is closed, which is all that it
pays (0.1 µs). While any run, the identity room is asked whether it has heard of a change, which costs one row of the
database every `_LOOK_S` unless requests have asked already; only after a change, or an announcement over Redis, are those
who run judged again, by one query. Database away: nobody is stopped until it is back.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Protocol

import gevent
from gevent.event import Event

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import ErrorCode, ProxyError, Unavailable
from secure_llm_proxy.gateway.docket import Docket
from secure_llm_proxy.vocabulary.caller import KIND_SESSION, Caller

log = logging.getLogger(__name__)

# With the query and the grace behind it less than the 5 s in which a kill has to act.
_LOOK_S = 1.25
# So long a client that reads has for taking its error; one that doesn't is hung up on then.
_GRACE_S = 1.0
# Announcements may come in any number.
_PAUSE_S = 0.1
_STOPPED = "stopped"
_SERVER_STOP = Unavailable(
    "The server is stopping and could not wait for the end of this answer. Ask again.",
    code=ErrorCode.SERVER_STOP,
    retry_after_s=1,
)


class StandingRoom(Protocol):
    """The identity room, as far as it is asked here."""

    def hear_of_changes(self) -> int: ...

    def stopped(self, callers: Collection[Caller]) -> dict[str, ProxyError]: ...


class Watch:
    """Looks after the running exchanges of one worker."""

    def __init__(self, running: dict[str, Docket], identity: StandingRoom, clock: Clock) -> None:
        self._running = running
        self._identity = identity
        self._clock = clock
        self._judged: int | None = None
        self._stopped_s: dict[str, float] = {}
        self._woken = Event()

    def wake(self) -> None:
        """Look now. Called when a change is announced."""
        self._woken.set()

    def run(self) -> None:
        """Look for ever. For a greenlet of its own."""
        while True:
            self._woken.wait(_GRACE_S if self._stopped_s else _LOOK_S)
            self._woken.clear()
            try:
                self.look()
            except ProxyError as error:
                log.warning("running exchanges could not be judged", extra={"cause": error.detail})
            except Exception:
                log.exception("looking after running exchanges failed")
            gevent.sleep(_PAUSE_S)

    def look(self) -> int:
        """Stop those who may not go on, hang up on those who were stopped a while ago; how many were stopped now.

        Raises `Unavailable` when the database is away.
        """
        self._hang_up()
        running = [docket for docket in self._running.values() if docket.stopped is None]
        if not running:
            return 0
        heard = self._identity.hear_of_changes()
        callers = {docket.caller.key_id: docket.caller for docket in running if docket.caller is not None}
        if heard == self._judged:
            # Nothing is heard of a session's end.
            callers = {key_id: caller for key_id, caller in callers.items() if caller.kind == KIND_SESSION}
        if not callers:
            return 0
        told = self._identity.stopped(callers.values())
        self._judged = heard
        stopped = 0
        # Those who began meanwhile with the same key are judged as well.
        for docket in list(self._running.values()):
            caller = docket.caller
            if caller is not None and caller.key_id in told and docket.stopped is None:
                stopped += self._stop(docket, told[caller.key_id])
        return stopped

    def end_all(self) -> None:
        """Whatever runs is told that the server stops. Asked again, it tells those that began meanwhile."""
        for docket in list(self._running.values()):
            if docket.stopped is None:
                self._stop(docket, _SERVER_STOP)
        self._woken.set()

    def _stop(self, docket: Docket, error: ProxyError) -> bool:
        """The provider's work ends at once; the exchange's own greenlet tells the client and records the end."""
        cancellation = docket.inbound.cancellation
        if cancellation.raised:
            # The client has left: it ends already.
            return False
        docket.stopped = type(error)(
            error.public, code=error.code, detail="stopped while it ran", retry_after_s=error.retry_after_s
        )
        self._stopped_s[docket.inbound.exchange_id] = self._clock.monotonic_s()
        cancellation.raise_(_STOPPED)
        return True

    def _hang_up(self) -> None:
        """Who was stopped and is not closed yet waits for a client, most likely one that doesn't read."""
        due_s = self._clock.monotonic_s() - _GRACE_S
        for exchange_id, stopped_s in list(self._stopped_s.items()):
            docket = self._running.get(exchange_id)
            if docket is None:
                del self._stopped_s[exchange_id]
            elif stopped_s <= due_s:
                docket.inbound.hang_up()
