"""A running answer sent from the event loop: inspected, recorded in parts, slow clients waited for, ended exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import orjson
import pytest
from gevent import GreenletExit

from secure_llm_proxy.foundation.errors import ClientGone, ErrorCode, PermissionDenied, ProxyError, UpstreamFailed
from secure_llm_proxy.gateway import RelayedStream, chat
from secure_llm_proxy.gateway.streaming import PART_BYTES
from secure_llm_proxy.vocabulary.chat import StreamEvent
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.inspection import StreamInspector
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import LogCapture, SmallHouse, event_of, make_house, make_inbound, stop_recording_at

READ = partial(read_chat_completion, messages_max=512)


@pytest.fixture
def logs() -> Iterator[LogCapture]:
    with LogCapture() as capture:
        yield capture


class Client:
    """Reads what is sent; is `slow` after the events of these numbers, and gone from the event `gone_at` on."""

    def __init__(
        self, slow: Sequence[int] = (), gone_at: int | None = None, flush_error: BaseException | None = None
    ) -> None:
        self.got: list[StreamEvent] = []
        self.flushes = 0
        self._slow = slow
        self._gone_at = gone_at
        self._flush_error = flush_error
        self._blocked = False

    def send(self, event: StreamEvent) -> bool:
        assert not self._blocked, "sent before the client was waited for"
        if self._gone_at is not None and len(self.got) >= self._gone_at:
            raise BrokenPipeError
        self.got.append(event)
        self._blocked = len(self.got) in self._slow
        return not self._blocked

    def flush(self) -> None:
        self.flushes += 1
        if self._flush_error is not None:
            raise self._flush_error
        self._blocked = False

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.got)


class HoldBack:
    """An inspector that lets an event go only when two more have come, and marks what it lets go."""

    def __init__(self) -> None:
        self._held: list[StreamEvent] = []

    def feed(self, event: StreamEvent) -> Sequence[StreamEvent]:
        self._held.append(event)
        return [self._marked(self._held.pop(0))] if len(self._held) > 2 else ()

    def finish(self) -> Sequence[StreamEvent]:
        held, self._held = self._held, []
        return [self._marked(event) for event in held]

    @staticmethod
    def _marked(event: StreamEvent) -> StreamEvent:
        return event_of(f"<{event.text}>")


class Blocker:
    """An inspector that stops the stream at a word."""

    def feed(self, event: StreamEvent) -> Sequence[StreamEvent]:
        if "forbidden" in event.text:
            raise PermissionDenied("The answer was stopped.")
        return (event,)

    def finish(self) -> Sequence[StreamEvent]:
        return ()


def stream_of(
    small: SmallHouse, *script: StreamEvent | BaseException, inspector: StreamInspector | None = None
) -> RelayedStream:
    small.upstream.script = script
    body = {"messages": [{"role": "user", "content": "Hi."}], "stream": True}
    outcome = chat(small.house, make_inbound(body), READ).outcome
    assert isinstance(outcome, RelayedStream)
    if inspector is not None:
        outcome._inspector = inspector
    return outcome


def send_all(stream: RelayedStream, client: Client, way: str) -> None:
    if way == "relay":
        stream.relay(client.send, client.flush)
    else:
        client.got.extend(iter(stream))


def recorded_text(small: SmallHouse) -> str:
    (end,) = small.journal.of(AuditType.LLM_END)
    parts = [event.body.decode() for event in small.journal.of(AuditType.LLM_PART)]
    return "".join(parts) + str(orjson.loads(end.body)["text"])


def end_status(small: SmallHouse) -> object:
    (end,) = small.journal.of(AuditType.LLM_END)
    return end.clear["st"]


def assert_closed_once(small: SmallHouse, logs: LogCapture) -> None:
    assert small.in_flight() == []
    assert len(small.throttle.released) == len(small.throttle.taken) == 1
    assert len(small.metrics.facts) == 1
    assert len(logs.of_exchanges()) == 1
    assert small.upstream.streams[0].closed >= 1


def test_every_event_reaches_the_client_and_the_end_is_durable_when_relay_returns(logs: LogCapture) -> None:
    small = make_house()
    events = [event_of(f"{number} ") for number in range(50)]
    client = Client()

    stream_of(small, *events).relay(client.send, client.flush)

    assert client.got == events
    assert client.flushes == 0
    assert small.journal.durable[-1].type is AuditType.LLM_END
    assert recorded_text(small) == client.text
    assert_closed_once(small, logs)


@pytest.mark.parametrize("slow", [(1,), (3,), (1, 2, 3), (2, 3)])
def test_a_slow_client_is_waited_for_and_misses_nothing(slow: tuple[int, ...], logs: LogCapture) -> None:
    small = make_house()
    client = Client(slow)

    stream_of(small, event_of("a"), event_of("b"), event_of("c")).relay(client.send, client.flush)

    assert client.text == "abc"
    assert client.flushes == len(slow)
    assert end_status(small) == "complete"
    assert_closed_once(small, logs)


def test_what_was_said_is_durable_every_32_kib_before_it_is_passed_on(logs: LogCapture) -> None:
    small = make_house()
    text = "some words " * 1000
    unrecorded: list[int] = []

    class Watching(Client):
        def send(self, event: StreamEvent) -> bool:
            keeps_up = super().send(event)
            durable = sum(len(part.body) for part in small.journal.durable if part.type is AuditType.LLM_PART)
            unrecorded.append(len(self.text) - durable)
            return keeps_up

    client = Watching(slow=(3, 6, 9))

    stream_of(small, *[event_of(text)] * 12).relay(client.send, client.flush)

    assert client.text == text * 12 == recorded_text(small)
    assert max(unrecorded) < PART_BYTES
    assert len(small.journal.of(AuditType.LLM_PART)) == 4
    assert_closed_once(small, logs)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("slow", [(), (1,), (1, 2, 3, 4, 5, 6, 7)])
@pytest.mark.parametrize("way", ["relay", "iterate"])
def test_an_inspector_may_hold_back_and_change_what_leaves(
    count: int, slow: tuple[int, ...], way: str, logs: LogCapture
) -> None:
    small = make_house()
    stream = stream_of(small, *[event_of(str(number)) for number in range(count)], inspector=HoldBack())
    client = Client(slow)

    send_all(stream, client, way)

    assert client.text == "".join(f"<{number}>" for number in range(count))
    assert end_status(small) == "complete"
    assert_closed_once(small, logs)


@pytest.mark.parametrize("way", ["relay", "iterate"])
def test_an_inspector_can_end_the_stream_and_its_event_never_leaves(way: str, logs: LogCapture) -> None:
    small = make_house()
    stream = stream_of(small, event_of("fine"), event_of("forbidden"), event_of("never"), inspector=Blocker())
    client = Client()

    with pytest.raises(PermissionDenied):
        send_all(stream, client, way)

    assert "forbidden" not in client.text
    assert "forbidden" in recorded_text(small)
    assert_closed_once(small, logs)


@pytest.mark.parametrize(
    "client",
    [
        Client(gone_at=0),
        Client(gone_at=2),
        Client(slow=(2,), flush_error=TimeoutError()),
        Client(slow=(1,), flush_error=ConnectionResetError()),
    ],
    ids=["at once", "in the middle", "stopped reading", "reset while waited for"],
)
def test_a_client_that_leaves_ends_the_providers_work(client: Client, logs: LogCapture) -> None:
    small = make_house()
    stream = stream_of(small, *[event_of(str(number)) for number in range(9)])

    with pytest.raises(ClientGone):
        stream.relay(client.send, client.flush)
    stream.close()

    assert end_status(small) == "client_abort"
    assert small.upstream.streams[0].given <= 3
    assert_closed_once(small, logs)


ENDINGS: Sequence[BaseException | None] = [
    None,
    UpstreamFailed("x"),
    ClientGone("x"),
    RuntimeError("x"),
    OSError("x"),
    GreenletExit(),
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "refused", [(), (AuditType.LLM_PART,), (AuditType.LLM_END,), (AuditType.LLM_PART, AuditType.LLM_END)]
)
@pytest.mark.parametrize("slow", [(), (1, 2, 3)])
def test_whatever_happens_the_slot_comes_back_exactly_once(
    ending: BaseException | None, refused: tuple[AuditType, ...], slow: tuple[int, ...], logs: LogCapture
) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(*refused)
    script = [event_of("x" * 20_000), event_of("y" * 20_000), event_of("z")]
    stream = stream_of(small, *script, *([ending] if ending is not None else []))
    client = Client(slow)
    raised: BaseException | None = None

    try:
        stream.relay(client.send, client.flush)
    except (ProxyError, GreenletExit) as error:
        raised = error
    stream.close()

    assert_closed_once(small, logs)
    if AuditType.LLM_PART in refused:
        assert isinstance(raised, ProxyError)
        assert raised.code is ErrorCode.AUDIT_UNAVAILABLE
        assert "y" not in client.text
    elif ending is None and not refused:
        assert raised is None
    else:
        assert raised is not None
