"""One request as it came to a door, read from its WSGI environ and nothing else: the same for both HTTP stacks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final
from wsgiref.types import WSGIEnvironment

from secure_llm_proxy.foundation.identifiers import ExchangeId, new_exchange_id
from secure_llm_proxy.web.headers import safe_id
from secure_llm_proxy.web.house import Lacking, WebHouse

_FORWARDED_KEPT: Final = 64
"""A longer X-Forwarded-For is worked out each time, so that nobody fills the memory with them."""
_LACKING_KEPT: Final = 128


class Arrival:
    """Its address and id are worked out at their first use and stay.

    `person` is set where somebody says who they are before that is known; it is sealed in records of a refusal, by the key
    of that person. `person_id` is the user's id, set where that is known.
    """

    __slots__ = ("_address", "_exchange_id", "environ", "person", "person_id", "started_s", "web")

    person: str
    person_id: str

    def __init__(self, environ: WSGIEnvironment, web: WebHouse) -> None:
        self.environ = environ
        self.web = web
        self.started_s = time.monotonic()
        self._exchange_id: ExchangeId | None = None
        self._address: str | None = None

    @property
    def exchange_id(self) -> ExchangeId:
        """The `X-Request-Id` of the answer, whoever gives it."""
        if self._exchange_id is None:
            self._exchange_id = new_exchange_id()
        return self._exchange_id

    @property
    def address(self) -> str:
        """The client's, behind the proxies that are trusted."""
        if self._address is None:
            environ = self.environ
            peer = (environ["REMOTE_ADDR"] or "") if "REMOTE_ADDR" in environ else ""
            if "HTTP_X_FORWARDED_FOR" not in environ:
                self._address = self.web.known_address_of(peer, None)
            else:
                forwarded = environ["HTTP_X_FORWARDED_FOR"]
                known = len(forwarded) <= _FORWARDED_KEPT
                self._address = (self.web.known_address_of if known else self.web.address_of)(peer, forwarded)
        return self._address

    @property
    def edge_id(self) -> str | None:
        """The id under which the proxy in front of us has logged the request, if one that is trusted brought it."""
        environ = self.environ
        if "HTTP_X_EDGE_REQUEST_ID" not in environ or not self.web.is_proxy(environ.get("REMOTE_ADDR") or ""):
            return None
        return safe_id(environ["HTTP_X_EDGE_REQUEST_ID"])

    @property
    def method(self) -> str:
        method: str = self.environ["REQUEST_METHOD"]
        return method

    @property
    def user_agent(self) -> str:
        agent: str = self.environ.get("HTTP_USER_AGENT", "")
        return agent

    @property
    def correlation_id(self) -> str | None:
        """The client's own id, if it is one."""
        environ = self.environ
        return safe_id(environ["HTTP_X_CORRELATION_ID"]) if "HTTP_X_CORRELATION_ID" in environ else None

    def missing_headers(self, given: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """What every answer carries and `given` lacks, in the order in which it is sent."""
        names: tuple[str, ...] = next(zip(*given, strict=True), ())
        kept = self.web.lacking
        lacking = kept[names] if names in kept else self._lacking(names)
        missing = [*lacking.headers]
        if lacking.request_id:
            missing.append(("X-Request-Id", self.exchange_id))
        if lacking.correlation_id and "HTTP_X_CORRELATION_ID" in self.environ and (correlation := self.correlation_id):
            missing.append(("X-Correlation-ID", correlation))
        return missing

    def _lacking(self, names: tuple[str, ...]) -> Lacking:
        """Worked out, and kept: names of headers come in a few combinations, all of them ours."""
        web = self.web
        given = {name.lower() for name in names}
        lacking = Lacking(
            tuple(pair for pair in web.headers if pair[0].lower() not in given),
            request_id="x-request-id" not in given,
            correlation_id="x-correlation-id" not in given,
        )
        if len(web.lacking) < _LACKING_KEPT:
            web.lacking[names] = lacking
        return lacking
