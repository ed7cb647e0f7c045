"""A small house for tests: real rooms where they cost nothing, other implementations of the small interfaces beyond.

Admission, throttling, routing and metrics are the product's own. Identity knows keys from a table, the journal records
in a list and can refuse, the upstream answers as told, and time stands still until it is moved. Every effect is written
into one list, `effects`, in the order in which it happened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import orjson
from flask import Flask

from secure_llm_proxy.admission import Admission
from secure_llm_proxy.admission.rules import NoViolations
from secure_llm_proxy.audit.journal import _frames_of
from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, FailureKind, ProxyError, Unavailable
from secure_llm_proxy.foundation.identifiers import new_exchange_id
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.gateway import House
from secure_llm_proxy.routing import Routing
from secure_llm_proxy.settings import AdmissionSettings, Settings, ThrottlingSettings, UpstreamSettings
from secure_llm_proxy.telemetry import ExchangeFacts, Metrics, render_metrics
from secure_llm_proxy.throttling import Hold, ProcessThrottle
from secure_llm_proxy.upstream.formats.openai_chat import OpenAiChat
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.caller import SCOPE_CHAT, SCOPE_MODELS, Caller, RateClass
from secure_llm_proxy.vocabulary.chat import (
    Attempt,
    ChatRequest,
    Completion,
    CompletionStream,
    Failure,
    Route,
    StreamEvent,
    Target,
    UpstreamRequest,
    Usage,
)
from secure_llm_proxy.vocabulary.decisions import Verdict
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.inbound import Headers, Inbound, Tags
from secure_llm_proxy.vocabulary.leaks import LeakedKey
from secure_llm_proxy.vocabulary.providers import ProviderDefinition, provider_kinds
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.anthropic.views import make_anthropic_doors
from secure_llm_proxy.web.chat.views import make_chat_door
from secure_llm_proxy.web.hooks import install_hooks
from secure_llm_proxy.web.house import WebHouse, attach
from secure_llm_proxy.web.openai.views import make_openai_doors
from secure_llm_proxy.web.operations.views import make_operations_doors

KEY = "slp_live_0123456789abcdef_for_tests"
ROOMY = RateClass(requests=6000, burst=1000, concurrent=1000)


class ManualClock:
    """Time that moves only when told."""

    def __init__(self) -> None:
        self._moment = datetime(2026, 11, 21, tzinfo=UTC)
        self._seconds = 1000.0

    def now(self) -> datetime:
        return self._moment

    def monotonic_s(self) -> float:
        return self._seconds

    def advance(self, seconds: float) -> None:
        self._moment += timedelta(seconds=seconds)
        self._seconds += seconds


def make_caller(**overrides: object) -> Caller:
    fields: dict[str, object] = {
        "user_id": "usr_test",
        "key_id": "key_test",
        "role": "member",
        "scopes": frozenset({SCOPE_CHAT, SCOPE_MODELS}),
        **overrides,
    }
    return Caller(**fields)  # type: ignore[arg-type]  # a maker: the fields' types are Caller's own


def audit_unavailable() -> Unavailable:
    return Unavailable("The audit log cannot be written now.", code=ErrorCode.AUDIT_UNAVAILABLE, retry_after_s=2)


def stop_recording_at(*types: AuditType, error: Callable[[], BaseException] = audit_unavailable) -> Refusal:
    """A journal's refusal of every event of these types."""
    return lambda event: error() if event.type in types else None


Refusal = Callable[[AuditEvent], BaseException | None]


class ListJournal:
    """`AuditJournal` in a list. `refusal` names the error that an event meets instead of becoming durable, as when the
    writer is away: the event itself stays queued, as the room promises. What may not enter the log is refused as there.
    """

    def __init__(self, effects: list[str]) -> None:
        self.handed_over: list[AuditEvent] = []
        self.durable: list[AuditEvent] = []
        self.refusal: Refusal = lambda _event: None
        self.post_refusal: Refusal = lambda _event: None
        self._effects = effects

    def record(self, event: AuditEvent) -> None:
        _frames_of(event)
        self._effects.append(f"record {event.type}")
        self.handed_over.append(event)
        if (error := self.refusal(event)) is not None:
            raise error
        self.durable.append(event)

    def post(self, event: AuditEvent) -> None:
        _frames_of(event)
        self._effects.append(f"post {event.type}")
        if (error := self.post_refusal(event)) is not None:
            raise error
        self.handed_over.append(event)

    def trouble(self) -> str | None:
        return None

    def close(self) -> None:
        self._effects.append("close journal")

    def of(self, kind: AuditType) -> list[AuditEvent]:
        return [event for event in self.handed_over if event.type is kind]

    def types(self) -> list[AuditType]:
        return [event.type for event in self.handed_over]


def completion_of(text: str = "Hello.", **overrides: JsonValue) -> Completion:
    payload: JsonObject = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "small",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        **overrides,
    }
    return Completion(payload=payload, text=text, usage=Usage(3, 2, 5), model="small")


def event_of(text: str, *, usage: Usage | None = None, **delta: JsonValue) -> StreamEvent:
    payload: JsonObject = {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text, **delta}}],
    }
    return StreamEvent(data=orjson.dumps(payload), payload=payload, text=text, usage=usage)


class ScriptedStream:
    """A `CompletionStream` that plays a script: events are given, exceptions raised, callables called."""

    def __init__(self, script: Sequence[StreamEvent | BaseException], effects: list[str]) -> None:
        self._script = iter(script)
        self._effects = effects
        self.closed = 0
        self.given = 0

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        if self.closed:
            raise AssertionError("read after close()")
        item = next(self._script)
        if isinstance(item, BaseException):
            raise item
        self.given += 1
        return item

    def pump(self, take: Callable[[StreamEvent], bool]) -> bool:
        return any(not take(event) for event in self)

    def close(self) -> None:
        self.closed += 1
        self._effects.append("close stream")


class ScriptedUpstream:
    """The upstream room, answering as told: `answer` and `script`, or raising them where they are exceptions. `translated`:
    it speaks another format than the client.
    """

    def __init__(self, effects: list[str]) -> None:
        self.answer: Completion | BaseException = completion_of()
        self.script: Sequence[StreamEvent | BaseException] | BaseException = (event_of("Hel"), event_of("lo."))
        self.translated = False
        self.received: list[UpstreamRequest] = []
        self.streams: list[ScriptedStream] = []
        self._effects = effects

    def write(self, target: Target, request: ChatRequest, headers: Headers) -> UpstreamRequest:
        written = OpenAiChat().adapt(
            request.payload, target.model, provider_kinds()["openai_compatible"], stream=request.stream, ask_usage=False
        )
        body = orjson.dumps(written.payload)
        return UpstreamRequest(target, request.format, body, request.stream, self.translated, headers=headers)

    def complete(self, request: UpstreamRequest, cancellation: Cancellation) -> Completion:
        self._effects.append("complete")
        self.received.append(request)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def stream(self, request: UpstreamRequest, cancellation: Cancellation) -> CompletionStream:
        self._effects.append("stream")
        self.received.append(request)
        if isinstance(self.script, BaseException):
            raise self.script
        self.streams.append(ScriptedStream(self.script, self._effects))
        return self.streams[-1]

    @property
    def payloads(self) -> list[JsonObject]:
        return [orjson.loads(request.body) for request in self.received]


class KeyTable:
    """The identity room with its keys in a table; a value that is an error is raised."""

    def __init__(self, effects: list[str]) -> None:
        self.keys: dict[str, Caller | BaseException] = {KEY: make_caller()}
        self._effects = effects

    def identify(self, credentials: tuple[str, ...]) -> Caller:
        self._effects.append("identify")
        if not credentials:
            raise AuthenticationFailed("You didn't provide an API key.", code=ErrorCode.MISSING_API_KEY)
        found = self.keys.get(credentials[0])
        if isinstance(found, Caller):
            return found
        raise found or AuthenticationFailed("Incorrect API key provided.")


class LeakTable:
    """Keys of this deployment in a table, by the whole key. `trouble` is raised whenever it is asked."""

    def __init__(self, effects: list[str]) -> None:
        self.keys: dict[str, LeakedKey] = {}
        self.quarantined: dict[str, str] = {}
        self.trouble: BaseException | None = None
        self._effects = effects

    def ours(self, credentials: Sequence[str]) -> tuple[LeakedKey, ...]:
        if credentials:
            self._effects.append("look for leaks")
            if self.trouble is not None:
                raise self.trouble
        return tuple(self.keys[credential] for credential in credentials if credential in self.keys)

    def quarantine(self, kid: str, reason: str) -> None:
        self._effects.append("quarantine")
        if self.trouble is not None:
            raise self.trouble
        self.quarantined[kid] = reason


class WatchedAdmission:
    """The product's own gate, with its effect noted."""

    def __init__(self, settings: AdmissionSettings, effects: list[str]) -> None:
        self.gate = Admission(settings)
        self._effects = effects

    def admit(self, address: str, user_agent: str) -> Verdict:
        self._effects.append("admit")
        return self.gate.admit(address, user_agent)


class WatchedThrottle:
    """The product's own throttle in process; `taken` and `released` hold the exchanges of allowed holds."""

    def __init__(self, clock: ManualClock, effects: list[str]) -> None:
        self._throttle = ProcessThrottle(ThrottlingSettings(), clock=clock)
        self._effects = effects
        self.taken: list[str] = []
        self.released: list[str] = []

    def take(
        self, *, key_id: str, key_class: RateClass, address: str, address_class: RateClass, exchange_id: str
    ) -> Hold:
        self._effects.append("take")
        hold = self._throttle.take(
            key_id=key_id, key_class=key_class, address=address, address_class=address_class, exchange_id=exchange_id
        )
        if hold.decision.allowed:
            self.taken.append(exchange_id)
        return hold

    def release(self, hold: Hold) -> None:
        self._effects.append("release")
        self.released.append(hold.exchange_id)
        self._throttle.release(hold)

    def heartbeat(self) -> None:
        self._throttle.heartbeat()

    def trouble(self) -> str | None:
        return self._throttle.trouble()

    def close(self) -> None:
        self._effects.append("close throttle")


class WatchedRouting:
    """The product's own routing room, with its effect noted."""

    def __init__(self, own: Routing, effects: list[str]) -> None:
        self.own = own
        self.failures: list[FailureKind] = []
        self._effects = effects

    def plan(self, request: ChatRequest, tags: Tags) -> Route:
        self._effects.append("plan")
        return self.own.plan(request, tags)

    def next_attempt(self, route: Route, failures: Sequence[Failure]) -> Attempt | None:
        return self.own.next_attempt(route, failures)

    def began(self, target: Target) -> None:
        self.own.began(target)

    def ended(self, target: Target) -> None:
        self.own.ended(target)

    def answered(self, target: Target) -> None:
        self.own.answered(target)

    def failed(self, target: Target, kind: FailureKind) -> None:
        self.failures.append(kind)
        self.own.failed(target, kind)

    def listed(self) -> tuple[str, ...]:
        self._effects.append("list")
        return self.own.listed()


class WatchedMetrics:
    """The product's own metrics; `facts` keeps what each closed exchange told."""

    def __init__(self, effects: list[str]) -> None:
        self.own = Metrics()
        self.facts: list[ExchangeFacts] = []
        self._effects = effects

    def opened(self) -> None:
        self._effects.append("open")
        self.own.opened()

    def closed(self, facts: ExchangeFacts) -> None:
        self._effects.append("count")
        self.facts.append(facts)
        self.own.closed(facts)

    def leaked(self, where: str) -> None:
        self._effects.append(f"alarm {where}")
        self.own.leaked(where)

    def text(self) -> str:
        return render_metrics(self.own)[0].decode()


@dataclass
class SmallHouse:
    """The house and the parts of it that a test looks into."""

    house: House
    clock: ManualClock
    admission: WatchedAdmission
    identity: KeyTable
    leaked_keys: LeakTable
    throttle: WatchedThrottle
    upstream: ScriptedUpstream
    journal: ListJournal
    metrics: WatchedMetrics
    effects: list[str]

    def in_flight(self) -> list[str]:
        """Exchanges that hold a slot still."""
        left = list(self.throttle.taken)
        for exchange in self.throttle.released:
            left.remove(exchange)
        return left


def make_house(
    *,
    admission: AdmissionSettings | None = None,
    models: tuple[str, ...] = ("small", "large"),
    list_models: Callable[[], tuple[str, ...]] | None = None,
    key_class: RateClass = ROOMY,
    address_class: RateClass = ROOMY,
) -> SmallHouse:
    effects: list[str] = []
    clock = ManualClock()
    gate = WatchedAdmission(admission or AdmissionSettings(), effects)
    identity = KeyTable(effects)
    leaked_keys = LeakTable(effects)
    throttle = WatchedThrottle(clock, effects)
    upstream = ScriptedUpstream(effects)
    journal = ListJournal(effects)
    metrics = WatchedMetrics(effects)
    # What fails, fails at once: repeating is the routing room's own matter.
    routing = Routing(
        UpstreamSettings(retries=0, circuit_failures=0), lambda _: list_models() if list_models else models, clock
    )
    own = () if list_models else models
    speaks = dict.fromkeys(WireFormat, "/everything")
    routing.configure(
        [ProviderDefinition("tested", "openai_compatible", "http://127.0.0.1:9", models=own, formats=speaks)]
    )
    house = House(
        admission=gate,
        violations=NoViolations(),
        identity=identity,
        leaked_keys=leaked_keys,
        throttle=throttle,
        key_class=key_class,
        address_class=address_class,
        routing=WatchedRouting(routing, effects),
        upstream=upstream,
        journal=journal,
        metrics=metrics,
        person_key=b"p" * 32,
    )
    return SmallHouse(house, clock, gate, identity, leaked_keys, throttle, upstream, journal, metrics, effects)


def make_inbound(body: bytes | BaseException | object = None, **overrides: object) -> Inbound:
    """An inbound request with a good key. `body` is bytes as they are, an exception that reading raises, or JSON."""
    wanted = {"messages": [{"role": "user", "content": "Hi."}]} if body is None else body

    def read_body() -> bytes:
        if isinstance(wanted, BaseException):
            raise wanted
        return wanted if isinstance(wanted, bytes) else orjson.dumps(wanted)

    fields: dict[str, object] = {
        "exchange_id": new_exchange_id(),
        "door": "/v1/chat/completions",
        "address": "127.0.0.1",
        "user_agent": "OpenAI/Python 2.0",
        "credentials": (KEY,),
        "key_in_url": False,
        "started_s": SystemClock().monotonic_s(),
        "read_body": read_body,
        **overrides,
    }
    return Inbound(**fields)  # type: ignore[arg-type]  # a maker: the fields' types are Inbound's own


def make_web_house(
    small: SmallHouse,
    settings: Settings | None = None,
    *,
    troubles: Mapping[str, Callable[[], str | None]] | None = None,
) -> WebHouse:
    settings = settings or Settings()
    gate = Admission(settings.admission)
    return WebHouse(
        house=small.house,
        settings=settings,
        address_of=gate.client_address,
        is_proxy=gate.is_proxy,
        troubles=troubles if troubles is not None else {"database": lambda: None, "audit": lambda: None},
        security_status=lambda: {"security_metrics": {}},
        render_metrics=lambda: render_metrics(small.metrics.own),
        relaxed=(),
    )


def make_app(
    small: SmallHouse,
    settings: Settings | None = None,
    *,
    troubles: Mapping[str, Callable[[], str | None]] | None = None,
) -> Flask:
    """The doors around a small house, put together as `create_app` does it."""
    app = Flask("secure_llm_proxy", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    attach(app, make_web_house(small, settings, troubles=troubles))
    install_hooks(app)
    for doors in (make_chat_door(), make_openai_doors(), make_anthropic_doors(), make_operations_doors()):
        app.register_blueprint(doors)
    return app


@dataclass
class LogCapture:
    """Every record that loggers get while it is open, before any formatter."""

    records: list[logging.LogRecord] = field(default_factory=list)
    _handler: logging.Handler | None = None
    _level: int = logging.NOTSET

    def __enter__(self) -> Self:
        records = self.records

        class Keeper(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                records.append(record)

        self._handler = Keeper()
        root = logging.getLogger()
        self._level = root.level
        root.setLevel(logging.DEBUG)
        root.addHandler(self._handler)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        root = logging.getLogger()
        assert self._handler is not None
        root.removeHandler(self._handler)
        root.setLevel(self._level)

    def of_exchanges(self) -> list[logging.LogRecord]:
        """The one line per exchange: those that carry PROCESSING_TIME."""
        return [record for record in self.records if hasattr(record, "PROCESSING_TIME")]


def code_of(outcome: object) -> ErrorCode:
    assert isinstance(outcome, ProxyError), outcome
    return outcome.code
