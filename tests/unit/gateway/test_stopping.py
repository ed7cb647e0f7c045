"""Running exchanges whose caller may not go on: cut, told, recorded, hung up on when nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import pytest

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ErrorCode,
    PermissionDenied,
    ProxyError,
    Unavailable,
    UpstreamFailed,
)
from secure_llm_proxy.gateway import RelayedStream, Watch, chat
from secure_llm_proxy.vocabulary.caller import KIND_SESSION, Caller
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, UpstreamRequest
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.vocabulary.inbound import Inbound
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import (
    KEY,
    ScriptedUpstream,
    SmallHouse,
    code_of,
    completion_of,
    event_of,
    make_caller,
    make_house,
    make_inbound,
)

READ = partial(read_chat_completion, messages_max=512)
STREAMED = {"messages": [{"role": "user", "content": "x"}], "stream": True}
KILLED = PermissionDenied("Requests like this one have been stopped by an operator.", code=ErrorCode.KILLED)


class Judge:
    """The identity room as the watch sees it."""

    def __init__(self) -> None:
        self.heard = 0
        self.told: dict[str, ProxyError] = {}
        self.asked: list[set[str]] = []
        self.away = False

    def hear_of_changes(self) -> int:
        if self.away:
            raise Unavailable("away", code=ErrorCode.DATABASE_UNAVAILABLE)
        return self.heard

    def stopped(self, callers: Collection[Caller]) -> dict[str, ProxyError]:
        kids = {caller.key_id for caller in callers}
        self.asked.append(kids)
        return {kid: error for kid, error in self.told.items() if kid in kids}


class Interruptible(ScriptedUpstream):
    """An upstream whose waits the cancellation ends, as the real one's; `meanwhile` is what happens while it waits."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__([])
        self._meanwhile = meanwhile

    def complete(self, request: UpstreamRequest, cancellation: Cancellation) -> Completion:
        self._meanwhile()
        if cancellation.raised:
            raise UpstreamFailed("The proxy stopped this request.", detail=f"cancelled: {cancellation.reason}")
        return completion_of()


def stopped_while(small: SmallHouse, judge: Judge, **inbound: object) -> tuple[RelayedStream, Watch, Inbound]:
    """A stream that has given one event, whose provider's connection breaks when it is cancelled."""
    broken = UpstreamFailed("The proxy stopped this request.", detail="cancelled: stopped")
    small.upstream.script = (event_of("Hel"), event_of("lo"), broken)
    asked = make_inbound(STREAMED, **inbound)
    reply = chat(small.house, asked, READ)
    assert isinstance(reply.outcome, RelayedStream)
    return reply.outcome, Watch(small.house.running, judge, small.clock), asked


def end_of(small: SmallHouse) -> dict[str, object]:
    (event,) = small.journal.of(AuditType.LLM_END)
    return {**event.clear, "body": event.body.decode()}


def test_a_plain_request_is_answered_with_the_reason() -> None:
    small, judge = make_house(), Judge()
    watch = Watch(small.house.running, judge, small.clock)
    judge.told["key_test"] = KILLED
    object.__setattr__(small.house, "upstream", Interruptible(watch.look))

    reply = chat(small.house, make_inbound(), READ)

    assert code_of(reply.outcome) is ErrorCode.KILLED
    assert getattr(reply.outcome, "status", None) == 403
    end = end_of(small)
    assert (end["st"], end["code"], end["http"]) == ("killed", "killed", 403)
    assert small.in_flight() == []
    assert small.house.running == {}


def test_a_stream_ends_with_the_reason_and_what_was_delivered_is_recorded() -> None:
    small, judge = make_house(), Judge()
    stream, watch, _ = stopped_while(small, judge)
    judge.told["key_test"] = AuthenticationFailed("It has been revoked.", code=ErrorCode.API_KEY_REVOKED)
    got: list[StreamEvent] = [next(stream)]

    assert watch.look() == 1
    with pytest.raises(AuthenticationFailed) as caught:
        got += stream

    assert caught.value.code is ErrorCode.API_KEY_REVOKED
    end = end_of(small)
    assert (end["st"], end["code"]) == ("killed", "api_key_revoked")
    assert "Hello" in str(end["body"])
    assert watch.look() == 0
    assert small.house.running == {}


def test_whatever_runs_when_the_server_stops_is_told_so() -> None:
    small, judge = make_house(), Judge()
    stream, watch, _ = stopped_while(small, judge)
    got: list[StreamEvent] = [next(stream)]

    watch.end_all()
    watch.end_all()
    with pytest.raises(Unavailable) as caught:
        got += stream

    assert (caught.value.code, caught.value.retry_after_s) == (ErrorCode.SERVER_STOP, 1)
    end = end_of(small)
    assert (end["st"], end["code"]) == ("server_stop", "server_stop")
    assert "Hello" in str(end["body"])
    assert judge.asked == []
    assert small.house.running == {}


def test_a_client_that_left_before_is_recorded_as_such() -> None:
    small, judge = make_house(), Judge()
    stream, watch, inbound = stopped_while(small, judge)
    judge.told["key_test"] = KILLED
    inbound.cancellation.raise_("client_gone")

    assert watch.look() == 0
    stream.close()

    assert end_of(small)["st"] == "client_abort"


def test_who_does_not_read_is_hung_up_on_after_a_moment_and_recorded_as_stopped() -> None:
    small, judge = make_house(), Judge()
    hung_up: list[str] = []
    stream, watch, _ = stopped_while(small, judge, hang_up=lambda: hung_up.append("now"))
    judge.told["key_test"] = KILLED
    next(stream)
    watch.look()
    at_once = list(hung_up)

    small.clock.advance(1.5)
    watch.look()
    stream.close()
    watch.look()

    assert (at_once, hung_up) == ([], ["now"])
    assert end_of(small)["st"] == "killed"


def test_those_who_run_are_judged_only_after_something_was_heard_of() -> None:
    small, judge = make_house(), Judge()
    watch = Watch(small.house.running, judge, small.clock)
    watch.look()
    stream, _, _ = stopped_while(small, judge)

    for _ in range(3):
        watch.look()
    judge.heard += 1
    watch.look()
    stream.close()
    judge.heard += 1
    watch.look()

    assert judge.asked == [{"key_test"}] * 2


def test_sessions_are_judged_each_time() -> None:
    small, judge = make_house(), Judge()
    small.identity.keys[KEY] = make_caller(key_id="ses_1", kind=KIND_SESSION)
    stream, watch, _ = stopped_while(small, judge)

    for _ in range(3):
        watch.look()
    stream.close()

    assert judge.asked == [{"ses_1"}] * 3


def test_while_the_database_is_away_nobody_is_stopped_and_afterwards_all_are_judged() -> None:
    small, judge = make_house(), Judge()
    stream, watch, _ = stopped_while(small, judge)
    watch.look()
    judge.told["key_test"], judge.away, judge.heard = KILLED, True, 1

    with pytest.raises(Unavailable):
        watch.look()
    judge.away = False

    assert watch.look() == 1
    stream.close()


def test_others_go_on() -> None:
    small, judge = make_house(), Judge()
    small.identity.keys["other"] = make_caller(key_id="key_other")
    stream, watch, _ = stopped_while(small, judge)
    small.upstream.script = (event_of("still "), event_of("here"))
    other = chat(small.house, make_inbound(STREAMED, credentials=("other",)), READ).outcome
    judge.told["key_test"] = KILLED

    assert watch.look() == 1
    assert isinstance(other, RelayedStream)
    assert "".join(event.text for event in other) == "still here"
    stream.close()


def test_a_refusal_of_a_killed_key_is_a_security_event() -> None:
    small = make_house()
    small.identity.keys[KEY] = KILLED

    reply = chat(small.house, make_inbound(), READ)

    assert code_of(reply.outcome) is ErrorCode.KILLED
    (event,) = small.journal.of(AuditType.REFUSED)
    assert event.event is EventName.SECURITY_EVENT
