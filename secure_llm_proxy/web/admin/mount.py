"""Where the management application hangs beside the data plane's: made at the first request to it, once in a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from gevent.lock import RLock

_PLACES = ("/auth", "/api/v1", "/audit")
_BELOW = tuple(place + "/" for place in _PLACES)


class ManagementMount:
    """A WSGI application around the data plane's: whatever is asked of `/auth`, `/api/v1` and `/audit` goes to the other one.

    Loading it takes 75 ms and 6 MB (2026-11-21). The first to ask waits for it, and so does whoever is served by the same worker.
    """

    def __init__(self, others: WSGIApplication, make: Callable[[], WSGIApplication]) -> None:
        self._others = others
        self._make = make
        self._made: WSGIApplication | None = None
        self._lock = RLock()

    @property
    def application(self) -> WSGIApplication:
        """The management application; made when it is asked for first."""
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = self._make()
        return self._made

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        if path.startswith(_BELOW) or path in _PLACES:
            return self.application(environ, start_response)
        return self._others(environ, start_response)
