"""One exchange on its way through the corridor: what is known of it so far, and what the door is told at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import ErrorCode, FailureKind, ProxyError
from secure_llm_proxy.foundation.identifiers import RecordId
from secure_llm_proxy.throttling import Hold, Throttle
from secure_llm_proxy.vocabulary.audit import AuditJournal, ClearValue
from secure_llm_proxy.vocabulary.caller import Caller, RateClass
from secure_llm_proxy.vocabulary.chat import (
    Attempt,
    ChatRequest,
    Completion,
    CompletionStream,
    Failure,
    Route,
    Target,
    UpstreamRequest,
    Usage,
)
from secure_llm_proxy.vocabulary.decisions import RateDecision, Verdict
from secure_llm_proxy.vocabulary.inbound import Headers, Inbound, Tags
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
    def plan(self, request: ChatRequest, tags: Tags) -> Route: ...

    def next_attempt(self, route: Route, failures: Sequence[Failure]) -> Attempt | None: ...

    def began(self, target: Target) -> None: ...

    def ended(self, target: Target) -> None: ...

    def answered(self, target: Target) -> None: ...

    def failed(self, target: Target, kind: FailureKind) -> None: ...

    def listed(self) -> tuple[str, ...]: ...


class UpstreamRoom(Protocol):
    def write(self, target: Target, request: ChatRequest, headers: Headers) -> UpstreamRequest: ...

    def complete(self, request: UpstreamRequest, cancellation: Cancellation) -> Completion: ...

    def stream(self, request: UpstreamRequest, cancellation: Cancellation) -> CompletionStream: ...


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
    written: UpstreamRequest | None = None
    """What was sent last."""
    target: Target | None = None
    """Whom it was sent to: the one who answers, or who failed last."""
    failures: list[Failure] = field(default_factory=list)
    attempts: int = 1
    rule: str | None = None
    audit_id: RecordId | None = None
    started_record: RecordId | None = None
    clear_identity: dict[str, ClearValue] | None = None
    """Who asked, as the intent has it; its other records say the same."""
    usage: Usage = field(default_factory=Usage)
    said_events: int | None = None
    """Events of a stream that said something, told when it ends: about the tokens, where the provider has not counted."""
    upstream_s: float | None = None
    sent: bool = False
    """The provider has been asked, or may have been."""
    ended: bool = False
    """`llm.end` was handed to the journal: there is one for each exchange, also when it becomes durable late."""
    closed: bool = False
    stopped: ProxyError | None = None
    """Why the exchange was ended from our side, where it was: what its client is told instead of a broken connection."""

    @property
    def served_model(self) -> str | None:
        """Our name of the model that answers, or was asked for."""
        if self.target is not None and self.target.served_as:
            return self.target.served_as
        return self.route.model if self.route is not None else None

    def may_ask(self, target: Target) -> bool:
        """False where the target stands for another model than was asked for, and this caller's key may not use that one."""
        if not target.served_as or self.caller is None or self.caller.models is None:
            return True
        return target.served_as in self.caller.models

    def elapsed_s(self) -> float:
        return time.monotonic() - self.inbound.started_s

    def add_upstream_s(self, waited_s: float) -> None:
        self.upstream_s = (self.upstream_s or 0.0) + waited_s

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
    dropped: tuple[str, ...] = ()
    """Parameters of the client's that the provider could not be told."""


class Reply(NamedTuple):
    """The answer as a value; the door gives it a wire shape. `request` is what was read, None where nothing was."""

    facts: ReplyFacts
    outcome: Completion | RelayedStream | ProxyError | tuple[str, ...]
    request: ChatRequest | None = None


def open_docket(house: House, inbound: Inbound) -> Docket:
    house.metrics.opened()
    return Docket(inbound=inbound)


def reply_to(docket: Docket, outcome: Completion | RelayedStream | ProxyError | tuple[str, ...]) -> Reply:
    inbound, target, written = docket.inbound, docket.target, docket.written
    facts = ReplyFacts(
        inbound.exchange_id,
        inbound.correlation_id,
        docket.audit_id,
        target.provider if target is not None else None,
        docket.served_model,
        docket.decision,
        docket.overhead_s() * 1000,
        written.dropped if written is not None else (),
    )
    return Reply(facts, outcome, docket.request)
