"""Further attempts: on record before they are made, told as what they were, and never after something was delivered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import orjson
import pytest

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    FailureKind,
    InvalidRequest,
    ProxyError,
    Unavailable,
    UpstreamFailed,
    UpstreamRefused,
)
from secure_llm_proxy.gateway import RelayedStream, chat
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.chat import (
    Attempt,
    ChatRequest,
    Completion,
    CompletionStream,
    Failure,
    Route,
    Target,
    UpstreamRequest,
)
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.inbound import Headers, Tags
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import (
    ScriptedUpstream,
    SmallHouse,
    code_of,
    completion_of,
    event_of,
    make_caller,
    make_house,
    make_inbound,
    stop_recording_at,
)

READ = partial(read_chat_completion, messages_max=512)
A, B, C = Target("a", "small"), Target("b", "small-b", "large"), Target("c", "small-c")
STREAMED = {"model": "small", "messages": [{"role": "user", "content": "Hi."}], "stream": True}


class Chain:
    """A routing room that goes through the given targets, one after each failure."""

    def __init__(self, *targets: Target, pause_s: float = 0.0) -> None:
        self.targets = targets
        self.pause_s = pause_s
        self.open: list[Target] = []
        self.told: list[tuple[str, FailureKind | None]] = []

    def plan(self, request: ChatRequest, tags: Tags) -> Route:
        return Route("small", self.targets[:1])

    def next_attempt(self, route: Route, failures: Sequence[Failure]) -> Attempt | None:
        if len(failures) >= len(self.targets):
            return None
        return Attempt(self.targets[len(failures)], self.pause_s)

    def began(self, target: Target) -> None:
        self.open.append(target)

    def ended(self, target: Target) -> None:
        self.open.remove(target)

    def answered(self, target: Target) -> None:
        self.told.append((target.provider, None))

    def failed(self, target: Target, kind: FailureKind) -> None:
        self.told.append((target.provider, kind))

    def listed(self) -> tuple[str, ...]:
        return ("small",)


class Providers(ScriptedUpstream):
    """Each target's outcome by its provider's name; `mute` ones can't be told what is asked."""

    def __init__(self, effects: list[str], outcomes: dict[str, BaseException | None], mute: str = "") -> None:
        super().__init__(effects)
        self.outcomes = outcomes
        self.mute = mute

    def write(self, target: Target, request: ChatRequest, headers: Headers) -> UpstreamRequest:
        if target.provider == self.mute:
            raise InvalidRequest("It can't be said.", code=ErrorCode.UNSUPPORTED_PARAMETER, param="n")
        return super().write(target, request, headers)

    def complete(self, request: UpstreamRequest, cancellation: Cancellation) -> Completion:
        self.answer = self.outcomes.get(request.target.provider) or completion_of()
        return super().complete(request, cancellation)

    def stream(self, request: UpstreamRequest, cancellation: Cancellation) -> CompletionStream:
        self.script = self.outcomes.get(request.target.provider) or (event_of("Hel"), event_of("lo."))
        return super().stream(request, cancellation)


def overloaded() -> UpstreamFailed:
    return UpstreamFailed("The provider failed.", failure=FailureKind.OVERLOADED, detail="the provider answered 500")


def house_of(chain: Chain, outcomes: dict[str, BaseException | None], mute: str = "") -> tuple[SmallHouse, Providers]:
    small = make_house()
    providers = Providers(small.effects, outcomes, mute)
    object.__setattr__(small.house, "routing", chain)
    object.__setattr__(small.house, "upstream", providers)
    return small, providers


def records(small: SmallHouse) -> list[AuditEvent]:
    return small.journal.handed_over


@pytest.mark.parametrize("body", [None, STREAMED], ids=["plain", "stream"])
def test_the_next_target_answers_and_the_client_learns_who_it_was(body: object) -> None:
    chain = Chain(A, B)
    small, providers = house_of(chain, {"a": overloaded()})

    reply = chat(small.house, make_inbound(body), READ)
    if isinstance(reply.outcome, RelayedStream):
        assert "".join(event.text for event in reply.outcome) == "Hello."
    else:
        assert isinstance(reply.outcome, Completion)

    assert (reply.facts.provider, reply.facts.model) == ("b", "large")
    assert [request.target for request in providers.received] == [A, B]
    assert small.journal.types() == [AuditType.LLM_START, AuditType.LLM_RETRY, AuditType.LLM_END]
    start, retry, end = records(small)
    assert (start.clear["up"], retry.clear["up"], end.clear["up"]) == ("a", "b", "b")
    assert (retry.clear["sid"], retry.clear["why"], retry.clear["try"]) == (start.id, "overloaded", 2)
    assert (end.clear["st"], end.clear["try"]) == ("complete", 2)
    assert retry.body == b'{"request":' + providers.received[1].body + b"}"
    assert chain.told == [("a", FailureKind.OVERLOADED), ("b", None)]
    assert chain.open == []
    assert small.in_flight() == []


def test_a_further_attempt_is_on_record_before_it_is_made() -> None:
    small, _ = house_of(Chain(A, B), {"a": overloaded()})

    chat(small.house, make_inbound(), READ)

    done = [effect for effect in small.effects if effect == "complete" or effect.startswith("record")]
    assert done[1:4] == ["complete", "record llm.retry", "complete"]


def test_an_attempt_that_can_t_be_recorded_is_not_made() -> None:
    chain = Chain(A, B)
    small, providers = house_of(chain, {"a": overloaded()})
    small.journal.refusal = stop_recording_at(AuditType.LLM_RETRY)

    reply = chat(small.house, make_inbound(), READ)

    assert code_of(reply.outcome) is ErrorCode.AUDIT_UNAVAILABLE
    assert isinstance(reply.outcome, Unavailable)
    assert [request.target for request in providers.received] == [A]
    assert chain.open == []


def test_when_nobody_is_left_the_last_failure_is_told_and_recorded() -> None:
    limited = UpstreamRefused(
        "Busy.", status=429, failure=FailureKind.RATE_LIMITED, code=ErrorCode.UPSTREAM_RATE_LIMITED, retry_after_s=3
    )
    chain = Chain(A, B)
    small, _ = house_of(chain, {"a": overloaded(), "b": limited})

    reply = chat(small.house, make_inbound(), READ)

    assert isinstance(reply.outcome, ProxyError)
    assert (reply.outcome.status, reply.outcome.retry_after_s) == (429, 3)
    (end,) = small.journal.of(AuditType.LLM_END)
    assert (end.clear["st"], end.clear["up"], end.clear["try"]) == ("upstream_error", "b", 2)
    assert chain.told == [("a", FailureKind.OVERLOADED), ("b", FailureKind.RATE_LIMITED)]
    assert chain.open == []


def test_a_target_that_can_t_be_told_the_request_is_passed_over() -> None:
    small, providers = house_of(Chain(A, B, C), {"a": overloaded()}, mute="b")

    reply = chat(small.house, make_inbound(), READ)

    assert reply.facts.provider == "c"
    assert [request.target for request in providers.received] == [A, C]
    (retry,) = small.journal.of(AuditType.LLM_RETRY)
    assert retry.clear["try"] == 2


def test_a_fallback_to_a_model_that_the_key_may_not_use_is_passed_over() -> None:
    small, providers = house_of(Chain(A, B, C), {"a": overloaded()})
    small.identity.keys["given"] = make_caller(models=("small",))

    reply = chat(small.house, make_inbound(credentials=("given",)), READ)

    assert reply.facts.provider == "c"
    assert [request.target for request in providers.received] == [A, C]


def test_a_stream_that_has_begun_is_never_begun_anew() -> None:
    broken = UpstreamFailed("The answer broke off.", failure=FailureKind.BROKE_OFF)
    small, providers = house_of(Chain(A, B), {})
    providers.outcomes = {}
    providers.script = (event_of("Hel"), broken)

    class Breaking(Providers):
        def stream(self, request: UpstreamRequest, cancellation: Cancellation) -> CompletionStream:
            self.script = (event_of("Hel"), broken)
            return ScriptedUpstream.stream(self, request, cancellation)

    object.__setattr__(small.house, "upstream", breaking := Breaking(small.effects, {}))
    reply = chat(small.house, make_inbound(STREAMED), READ)
    assert isinstance(reply.outcome, RelayedStream)

    with pytest.raises(UpstreamFailed):
        list(reply.outcome)

    assert len(breaking.received) == 1
    assert small.journal.types() == [AuditType.LLM_START, AuditType.LLM_END]
    assert small.journal.of(AuditType.LLM_END)[0].clear["evs"] == 1


def test_a_client_that_leaves_while_an_attempt_waits_ends_the_exchange() -> None:
    cancellation = Cancellation()

    class Leaving(Chain):
        def failed(self, target: Target, kind: FailureKind) -> None:
            cancellation.raise_("client_gone")

    chain = Leaving(A, B, pause_s=60.0)
    small, providers = house_of(chain, {"a": overloaded()})

    reply = chat(small.house, make_inbound(cancellation=cancellation), READ)

    assert code_of(reply.outcome) is ErrorCode.CLIENT_GONE
    assert [request.target for request in providers.received] == [A]
    (end,) = small.journal.of(AuditType.LLM_END)
    assert end.clear["st"] == "client_abort"
    assert chain.open == []


def test_a_request_that_no_target_can_be_told_is_refused_before_anything_is_sent() -> None:
    small, providers = house_of(Chain(B), {}, mute="b")

    reply = chat(small.house, make_inbound(), READ)

    assert code_of(reply.outcome) is ErrorCode.UNSUPPORTED_PARAMETER
    assert providers.received == []
    assert small.journal.types() == [AuditType.REFUSED]


BETA = (("anthropic-beta", "context-1m-2025-08-07"), ("anthropic-version", "2026-10-21"))


def test_headers_of_the_client_that_go_along_are_on_record_with_the_bytes() -> None:
    small, providers = house_of(Chain(A, B), {"a": overloaded()})

    chat(small.house, make_inbound(passed_headers=BETA), READ)

    sent, start, retry = providers.received, *records(small)[:2]
    assert [request.headers for request in sent] == [BETA, BETA]
    assert [orjson.loads(event.body)["headers"] for event in (start, retry)] == [dict(BETA), dict(BETA)]
