"""A request as it stands at the door, free of any web framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.identifiers import ExchangeId

Headers = tuple[tuple[str, str], ...]
"""Names in lower case with their values."""
Tags = tuple[tuple[str, str], ...]
"""Names and values that a provider must be tagged with."""


def _nobody_is_there() -> None:
    """There is no connection."""


@dataclass(frozen=True, slots=True)
class Inbound:
    """What the corridor may know of a request before it reads the body.

    `credentials` are the values of every header that may carry one, in order of precedence, without "Bearer ".
    `key_in_url` says that something like a key of ours stands in the URL; `keys_in_url` are those that are well-formed.
    `read_body` returns the body or raises (too large, too slow, compressed); it is called once, after throttling.
    `person` is who the application says is asking (`X-User-ID`), if it says so. `hang_up` ends the client's connection;
    only before the exchange is closed, since the next one may come over the same. `passed_headers` are those of the client's
    that may go on to a provider of the right kind; `tags` what it asks of the provider (`X-SLP-Require`), None where that can't
    be understood. `edge_id` is nginx's own id of the request, where nginx brought it.
    """

    exchange_id: ExchangeId
    door: str
    address: str
    user_agent: str
    credentials: tuple[str, ...]
    key_in_url: bool
    started_s: float
    read_body: Callable[[], bytes]
    cancellation: Cancellation = field(default_factory=Cancellation)
    person: str | None = None
    session: str | None = None
    correlation_id: str | None = None
    keys_in_url: tuple[str, ...] = field(default=(), repr=False)
    passed_headers: Headers = ()
    tags: Tags | None = ()
    hang_up: Callable[[], None] = _nobody_is_there
    edge_id: str | None = None
