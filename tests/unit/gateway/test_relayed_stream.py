"""A running answer: each event as it comes, made durable in parts, ended exactly once whoever ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import orjson
import pytest
from gevent import GreenletExit

from secure_llm_proxy.foundation.errors import (
    ClientGone,
    ErrorCode,
    FailureKind,
    InternalError,
    NotQueued,
    ProxyError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from secure_llm_proxy.gateway import RelayedStream, chat
from secure_llm_proxy.gateway.streaming import PART_BYTES
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.chat import StreamEvent, Usage
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import (
    LogCapture,
    SmallHouse,
    WatchedRouting,
    audit_unavailable,
    event_of,
    make_house,
    make_inbound,
    stop_recording_at,
)

READ = partial(read_chat_completion, messages_max=512)


@pytest.fixture
def logs() -> Iterator[LogCapture]:
    with LogCapture() as capture:
        yield capture


def stream_of(small: SmallHouse, *script: StreamEvent | BaseException) -> RelayedStream:
    small.upstream.script = script
    body = {"messages": [{"role": "user", "content": "Hi."}], "stream": True}
    outcome = chat(small.house, make_inbound(body), READ).outcome
    assert isinstance(outcome, RelayedStream)
    return outcome


def end_of(small: SmallHouse) -> AuditEvent:
    (end,) = small.journal.of(AuditType.LLM_END)
    return end


def failures_of(small: SmallHouse) -> list[FailureKind]:
    routing = small.house.routing
    assert isinstance(routing, WatchedRouting)
    return routing.failures


def recorded_text(small: SmallHouse) -> str:
    """Everything said, as the parts and the end have it."""
    parts = [event.body.decode() for event in small.journal.of(AuditType.LLM_PART)]
    return "".join(parts) + str(orjson.loads(end_of(small).body)["text"])


def assert_closed_once(small: SmallHouse, logs: LogCapture) -> None:
    assert small.in_flight() == []
    assert len(small.throttle.released) == len(small.throttle.taken) == 1
    assert len(small.metrics.facts) == 1
    assert small.metrics.own.security_counts().in_progress == 0
    assert len(logs.of_exchanges()) == 1
    assert small.upstream.streams[0].closed >= 1
    assert len(small.journal.of(AuditType.LLM_END)) == 1


def test_events_are_given_as_they_come(logs: LogCapture) -> None:
    small = make_house()
    events = [event_of("Hel"), event_of("lo"), event_of("", usage=Usage(3, 2, 5))]
    stream = stream_of(small, *events)

    for number, event in enumerate(events, 1):
        assert next(stream) is event
        assert small.upstream.streams[0].given == number
    assert small.in_flight() != []
    with pytest.raises(StopIteration):
        next(stream)

    assert_closed_once(small, logs)
    end = end_of(small)
    assert (end.clear["st"], end.clear["http"], end.clear["tin"], end.clear["tout"]) == ("complete", 200, 3, 2)
    assert orjson.loads(end.body) == {"text": "Hello", "parts": 0, "detail": None}


def test_the_end_is_durable_before_the_iteration_ends(logs: LogCapture) -> None:
    small = make_house()
    stream = stream_of(small, event_of("x"))

    seen = [small.journal.durable[-1].type for _ in stream]
    assert seen == [AuditType.LLM_START]

    assert small.journal.durable[-1].type is AuditType.LLM_END
    assert_closed_once(small, logs)


def test_an_ended_stream_stays_ended(logs: LogCapture) -> None:
    small = make_house()
    stream = stream_of(small, event_of("x"))
    list(stream)

    stream.close()
    stream.close()

    assert_closed_once(small, logs)
    assert end_of(small).clear["st"] == "complete"


# --- parts ------------------------------------------------------------------------------------------------------------


def test_parts_are_sealed_by_the_key_of_the_person_of_their_exchange() -> None:
    small = make_house()
    stream = stream_of(small, *[event_of("x" * 20_000) for _ in range(4)])

    list(stream)

    (start,) = small.journal.of(AuditType.LLM_START)
    parts = small.journal.of(AuditType.LLM_PART)
    assert parts
    assert {part.clear["sub"] for part in parts} == {start.clear["sub"]}
    assert start.indexed["ipx"]


@pytest.mark.parametrize("piece", ["x", "ä", "😀", "some words "])
def test_what_was_said_is_made_durable_every_32_kib_before_it_is_passed_on(piece: str, logs: LogCapture) -> None:
    small = make_house()
    text = piece * 1000
    size = len(text.encode())
    count = 4 * PART_BYTES // size + 3
    stream = stream_of(small, *[event_of(text) for _ in range(count)])

    passed_on = 0
    for _ in stream:
        passed_on += size
        durable = sum(len(event.body) for event in small.journal.durable if event.type is AuditType.LLM_PART)
        assert passed_on - durable < PART_BYTES

    parts = small.journal.of(AuditType.LLM_PART)
    assert len(parts) >= 3
    assert all(PART_BYTES <= len(part.body) < PART_BYTES + size for part in parts)
    assert [part.clear["seq"] for part in parts] == list(range(len(parts)))
    start = small.journal.of(AuditType.LLM_START)[0]
    assert all(part.clear["sid"] == start.id and part.clear["dir"] == "out" for part in parts)
    assert recorded_text(small) == text * count
    assert orjson.loads(end_of(small).body)["parts"] == len(parts)
    assert_closed_once(small, logs)


def test_exactly_32_kib_make_a_part_and_one_byte_less_does_not(logs: LogCapture) -> None:
    for size, parts in ((PART_BYTES - 1, 0), (PART_BYTES, 1), (PART_BYTES + 1, 1)):
        small = make_house()
        list(stream_of(small, event_of("x" * size)))
        assert len(small.journal.of(AuditType.LLM_PART)) == parts
        assert recorded_text(small) == "x" * size
    assert len(logs.of_exchanges()) == 3


def test_tool_calls_refusals_and_reasoning_are_recorded_as_they_came(logs: LogCapture) -> None:
    small = make_house()
    call = event_of("", tool_calls=[{"index": 0, "function": {"arguments": '{"city":"Bern"}'}}])
    refusal = event_of("", refusal="I can't.")
    reasoning = event_of("", reasoning_content="Let me think.")
    role = event_of("", role="assistant")

    list(stream_of(small, role, event_of("Hi"), call, refusal, reasoning))

    said = recorded_text(small)
    for event in (call, refusal, reasoning):
        assert event.data.decode() in said
    assert role.data.decode() not in said
    assert_closed_once(small, logs)


# --- the client leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 1, 2])
def test_close_before_the_end_means_that_the_client_left(read: int, logs: LogCapture) -> None:
    small = make_house()
    stream = stream_of(small, event_of("one "), event_of("two "), event_of("three "))

    for _ in range(read):
        next(stream)
    stream.close()
    stream.close()

    end = end_of(small)
    assert (end.clear["st"], end.clear["http"], end.clear["code"]) == ("client_abort", 499, "client_gone")
    assert recorded_text(small) == "".join(["one ", "two "][:read])
    assert_closed_once(small, logs)
    assert small.effects.index("close stream") < small.effects.index("record llm.end")


def test_a_client_that_leaves_while_the_provider_is_silent_ends_it_too(logs: LogCapture) -> None:
    small = make_house()
    stream = stream_of(small, event_of("one "), ClientGone("x"))

    next(stream)
    with pytest.raises(ClientGone):
        next(stream)
    stream.close()

    assert end_of(small).clear["st"] == "client_abort"
    assert_closed_once(small, logs)


@pytest.mark.parametrize("error", [audit_unavailable, partial(InternalError, detail="x"), partial(OSError, "x")])
def test_a_leaving_that_cannot_be_recorded_raises_nothing_and_frees_the_slot(
    error: Callable[[], Exception], logs: LogCapture
) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(AuditType.LLM_END, error=error)
    stream = stream_of(small, event_of("one "), event_of("two "))

    next(stream)
    stream.close()
    stream.close()

    assert_closed_once(small, logs)


# --- the provider breaks off ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "end_status"),
    [
        (UpstreamFailed("x", detail="reset"), ErrorCode.UPSTREAM_ERROR, "upstream_error"),
        (UpstreamTimeout("x"), ErrorCode.UPSTREAM_TIMEOUT, "upstream_timeout"),
        (RuntimeError("canary"), ErrorCode.INTERNAL_ERROR, "internal_error"),
        (UnicodeEncodeError("utf-8", "canary", 0, 1, "x"), ErrorCode.INTERNAL_ERROR, "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
@pytest.mark.parametrize("read", [0, 2])
def test_an_error_in_mid_stream_is_told_once_and_recorded_with_what_was_said(
    error: Exception, code: ErrorCode, end_status: str, read: int, logs: LogCapture
) -> None:
    small = make_house()
    stream = stream_of(small, *[event_of("said ")] * read, error)

    for _ in range(read):
        next(stream)
    with pytest.raises(ProxyError) as told:
        next(stream)
    stream.close()

    assert told.value.code is code
    assert "canary" not in told.value.public
    assert (end_of(small).clear["st"], end_of(small).clear["code"]) == (end_status, code)
    assert recorded_text(small) == "said " * read
    assert_closed_once(small, logs)


# --- the audit writer is away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [audit_unavailable, partial(InternalError, detail="x")])
def test_a_part_that_cannot_be_recorded_stops_the_stream_before_its_text_is_passed_on(
    error: Callable[[], ProxyError], logs: LogCapture
) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(AuditType.LLM_PART, error=error)
    stream = stream_of(small, event_of("first"), event_of("x" * PART_BYTES), event_of("never"))

    assert next(stream).text == "first"
    with pytest.raises(ProxyError) as told:
        next(stream)
    stream.close()

    assert told.value.code is error().code
    assert small.upstream.streams[0].given == 2
    # Something had been sent and said: the log must not claim otherwise.
    assert end_of(small).clear["st"] == "internal_error"
    assert_closed_once(small, logs)


def test_what_was_said_before_a_part_that_was_not_queued_is_in_the_end_record(logs: LogCapture) -> None:
    small = make_house()
    full = partial(NotQueued, "x", code=ErrorCode.AUDIT_UNAVAILABLE)
    small.journal.refusal = stop_recording_at(AuditType.LLM_PART, error=full)
    stream = stream_of(small, event_of("first "), event_of("x" * PART_BYTES), event_of("never"))

    assert next(stream).text == "first "
    with pytest.raises(NotQueued):
        next(stream)
    stream.close()

    sealed = orjson.loads(end_of(small).body)
    assert (sealed["text"], sealed["parts"]) == ("first " + "x" * PART_BYTES, 0)
    assert_closed_once(small, logs)


def test_an_unrecorded_part_costs_one_patience(logs: LogCapture) -> None:
    small = make_house()
    stream = stream_of(small, event_of("x" * PART_BYTES))
    small.journal.refusal = lambda _event: audit_unavailable()

    with pytest.raises(Unavailable):
        next(stream)

    assert [effect for effect in small.effects if "llm.end" in effect] == ["post llm.end"]
    assert_closed_once(small, logs)


@pytest.mark.parametrize("error", [audit_unavailable, partial(InternalError, detail="x"), partial(OSError, "x")])
def test_an_end_that_cannot_be_recorded_withholds_the_end_mark(
    error: Callable[[], Exception], logs: LogCapture
) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(AuditType.LLM_END, error=error)
    stream = stream_of(small, event_of("x"))

    next(stream)
    with pytest.raises(ProxyError) as told:
        next(stream)
    stream.close()

    assert told.value.status in {500, 503}
    assert_closed_once(small, logs)
    assert vars(logs.of_exchanges()[0])["status"] == told.value.status


def test_an_error_and_an_absent_writer_together_still_free_the_slot(logs: LogCapture) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(AuditType.LLM_END)
    stream = stream_of(small, event_of("x"), UpstreamFailed("x"))

    next(stream)
    with pytest.raises(Unavailable):
        next(stream)
    stream.close()

    assert end_of(small).clear["st"] == "upstream_error"
    assert_closed_once(small, logs)


# --- the worker is stopped --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [GreenletExit, KeyboardInterrupt, SystemExit])
def test_a_stop_in_mid_stream_queues_what_was_said_without_waiting(stop: type[BaseException], logs: LogCapture) -> None:
    small = make_house()
    stream = stream_of(small, event_of("said "), stop())

    next(stream)
    with pytest.raises(stop):
        next(stream)
    stream.close()

    assert [effect for effect in small.effects if "llm.end" in effect] == ["post llm.end"]
    assert end_of(small).clear["st"] == "server_stop"
    assert recorded_text(small) == "said "
    assert_closed_once(small, logs)


@pytest.mark.parametrize("kind", [AuditType.LLM_PART, AuditType.LLM_END])
def test_a_stop_while_a_record_is_waited_for_is_cleaned_up_by_close(kind: AuditType, logs: LogCapture) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(kind, error=GreenletExit)
    stream = stream_of(small, event_of("x" * PART_BYTES))

    with pytest.raises(GreenletExit):
        list(stream)
    stream.close()  # as the server does, whatever happened

    assert_closed_once(small, logs)


def test_a_stop_with_a_full_queue_frees_the_slot(logs: LogCapture) -> None:
    small = make_house()
    small.journal.post_refusal = lambda _event: audit_unavailable()
    stream = stream_of(small, GreenletExit())

    with pytest.raises(GreenletExit):
        next(stream)
    stream.close()

    assert small.in_flight() == []
    assert len(logs.of_exchanges()) == 1


# --- all of it at once ------------------------------------------------------------------------------------------------

ENDINGS: Sequence[BaseException | None] = [
    None,
    UpstreamFailed("x"),
    ClientGone("x"),
    RuntimeError("x"),
    GreenletExit(),
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "refused", [(), (AuditType.LLM_PART,), (AuditType.LLM_END,), (AuditType.LLM_PART, AuditType.LLM_END)]
)
@pytest.mark.parametrize("read", [0, 1, 2, 99])
def test_whatever_happens_the_slot_comes_back_exactly_once(
    ending: BaseException | None, refused: tuple[AuditType, ...], read: int, logs: LogCapture
) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(*refused)
    script = [event_of("x" * 20_000), event_of("y" * 20_000), event_of("z")]
    stream = stream_of(small, *script, *([ending] if ending is not None else []))

    for _ in range(read):
        try:
            next(stream)
        except (StopIteration, ProxyError, GreenletExit):
            break
    stream.close()

    assert_closed_once(small, logs)


def test_an_answer_that_breaks_off_counts_against_its_provider_and_a_client_that_leaves_does_not() -> None:
    breaking, leaving, whole = make_house(), make_house(), make_house()

    with pytest.raises(UpstreamFailed):
        list(stream_of(breaking, event_of("x"), UpstreamFailed("x", failure=FailureKind.BROKE_OFF)))
    stream_of(leaving, event_of("x"), event_of("y")).close()
    list(stream_of(whole, event_of("x")))

    assert failures_of(breaking) == [FailureKind.BROKE_OFF]
    assert failures_of(leaving) == failures_of(whole) == []
