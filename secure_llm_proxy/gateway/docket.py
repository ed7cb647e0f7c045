"""One exchange on its way through the corridor: what is known of it so far, and what the door is told at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import ErrorCode, ProxyError
from secure_llm_proxy.foundation.identifiers import RecordId
from secure_llm_proxy.throttling import Hold, Throttle
from secure_llm_proxy.vocabulary.audit import AuditJournal, ClearValue
from secure_llm_proxy.vocabulary.caller import Caller, RateClass
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion, CompletionStream, Route, Usage
from secure_llm_proxy.vocabulary.decisions import RateDecision, Verdict
from secure_llm_proxy.vocabulary.inbound import Inbound
from secure_llm_proxy.vocabulary.leaks import LeakedKey

if TYPE_CHECKING:
    from secure_llm_proxy.gateway.streaming import RelayedStream
    from secure_llm_proxy.telemetry import ExchangeFacts


class AdmissionRoom(Protocol):
    def admit(self, address: str, user_agent: str) -> Verdict: ...


class ViolationsRoom(Protocol):
    def note_refusal(self, address: str, code: ErrorCode) -> None: ...


class IdentityRoom(Protocol):
    def identify(self, credentials: tuple[str, ...]) -> Caller: ...


class LeakedKeysRoom(Protocol):
    def ours(self, credentials: Sequence[str]) -> tuple[LeakedKey, ...]: ...

    def quarantine(self, kid: str, reason: str) -> None: ...


class RoutingRoom(Protocol):
    def plan(self, model: str | None) -> Route: ...

    def listed(self) -> tuple[str, ...]: ...


class UpstreamRoom(Protocol):
    def complete(self, route: Route, payload: bytes, cancellation: Cancellation) -> Completion: ...

    def stream(self, route: Route, payload: bytes, cancellation: Cancellation) -> CompletionStream: ...


class MetricsRoom(Protocol):
    def opened(self) -> None: ...

    def closed(self, facts: ExchangeFacts) -> None: ...

    def leaked(self, where: str) -> None: ...


@dataclass(frozen=True, slots=True)
class House:
    """The rooms as the corridor sees them. `person_key` makes pseudonyms of persons (HMAC-SHA256)."""

    admission: AdmissionRoom
    violations: ViolationsRoom
    identity: IdentityRoom
    leaked_keys: LeakedKeysRoom
    throttle: Throttle
    key_class: RateClass
    address_class: RateClass
    routing: RoutingRoom
    upstream: UpstreamRoom
    journal: AuditJournal
    metrics: MetricsRoom
    person_key: bytes
    running: dict[str, Docket] = field(default_factory=dict)
    """Exchanges whose caller is known and that are not closed yet, by their id."""


@dataclass(slots=True)
class Docket:
    """Filled from left to right by the steps; closed once, by `closing`."""

    inbound: Inbound
    caller: Caller | None = None
    hold: Hold | None = None
    decision: RateDecision | None = None
    request: ChatRequest | None = None
    route: Route | None = None
    rule: str | None = None
    audit_id: RecordId | None = None
    started_record: RecordId | None = None
    clear_identity: dict[str, ClearValue] | None = None
    """Who asked, as the intent has it; its other records say the same."""
    usage: Usage = field(default_factory=Usage)
    upstream_s: float | None = None
    sent: bool = False
    """The provider has been asked, or may have been."""
    ended: bool = False
    """`llm.end` was handed to the journal: there is one for each exchange, also when it becomes durable late."""
    closed: bool = False
    stopped: ProxyError | None = None
    """Why the exchange was ended from our side, where it was: what its client is told instead of a broken connection."""

    @property
    def planned_route(self) -> Route:
        if self.route is None:
            raise AssertionError("a step that needs the route ran before it was planned")
        return self.route

    def elapsed_s(self) -> float:
        return time.monotonic() - self.inbound.started_s

    def overhead_s(self) -> float:
        """Our own time so far: everything but waiting for the provider."""
        return max(0.0, self.elapsed_s() - (self.upstream_s or 0.0))


class ReplyFacts(NamedTuple):
    """What every answer's headers are made of."""

    exchange_id: str
    correlation_id: str | None
    audit_id: str | None
    provider: str | None
    model: str | None
    decision: RateDecision | None
    overhead_ms: float


class Reply(NamedTuple):
    """The answer as a value; the door gives it a wire shape."""

    facts: ReplyFacts
    outcome: Completion | RelayedStream | ProxyError | tuple[str, ...]


def open_docket(house: House, inbound: Inbound) -> Docket:
    house.metrics.opened()
    return Docket(inbound=inbound)


def reply_to(docket: Docket, outcome: Completion | RelayedStream | ProxyError | tuple[str, ...]) -> Reply:
    inbound, route = docket.inbound, docket.route
    facts = ReplyFacts(
        inbound.exchange_id,
        inbound.correlation_id,
        docket.audit_id,
        route.provider if route is not None else None,
        route.model if route is not None else None,
        docket.decision,
        docket.overhead_s() * 1000,
    )
    return Reply(facts, outcome)
