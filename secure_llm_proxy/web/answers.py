"""From the corridor's reply to an answer: plain, error or server-sent events. No web framework: both stacks send it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import orjson
from werkzeug.http import HTTP_STATUS_CODES

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import ClientGone, ProxyError
from secure_llm_proxy.gateway import RelayedStream, Reply
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent
from secure_llm_proxy.vocabulary.connection import StreamSink
from secure_llm_proxy.vocabulary.inbound import Inbound
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.errors import error_body, error_headers
from secure_llm_proxy.web.generation import ClientFormat, StreamWriter
from secure_llm_proxy.web.headers import reply_headers
from secure_llm_proxy.web.inbound import inbound_of
from secure_llm_proxy.web.presence import Presence, watch_client

_OK = "200 OK"
_JSON = ("Content-Type", "application/json")


@dataclass(slots=True)
class Answer:
    """`status` is the status line without the version, as werkzeug words it. Whoever sends it adds what every answer
    carries (`Arrival.missing_headers`), and the length of a body that is bytes.
    """

    status: str
    headers: list[tuple[str, str]]
    body: bytes | EventStream


@cache
def status_line(status: int) -> str:
    return f"{status} {HTTP_STATUS_CODES.get(status, 'unknown').upper()}"


class EventStream:
    """The body of a stream, as its door writes it: its end only after the exchange is recorded, an error when it breaks off,
    `ConnectionResetError` when its client is gone. Our worker asks it to `relay` itself, any other server
    iterates it; both call `close()` whatever happens, also when the client left.
    """

    def __init__(
        self,
        stream: RelayedStream,
        writer: StreamWriter,
        presence: Presence,
    ) -> None:
        self._stream = stream
        self._writer = writer
        self._presence = presence
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        try:
            while not (frames := self._writer.event(next(self._stream))):
                pass
            return frames
        except StopIteration:
            self._ended = True
            return self._writer.end()
        except ClientGone:
            self._ended = True
            raise _cut_short() from None
        except ProxyError as error:
            self._ended = True
            return self._writer.error(error)

    def relay(self, sink: StreamSink) -> None:
        """Send everything, each event from the event loop, without a greenlet switch for it.

        Raises what `sink` raised (`OSError`, `TimeoutError`) when the client left or stopped reading, so that the server
        hangs up; the exchange is recorded by then.
        """
        if self._ended:
            return
        self._ended = True
        writer = self._writer
        write = writer.event
        broken: OSError | None = None

        def send(event: StreamEvent) -> bool:
            nonlocal broken
            try:
                return sink.send(write(event))
            except OSError as error:
                broken = error
                raise

        def flush() -> None:
            nonlocal broken
            try:
                sink.flush()
            except OSError as error:
                broken = error
                raise

        try:
            self._stream.relay(send, flush)
            last = writer.end()
        except ClientGone:
            raise broken or _cut_short() from None
        except ProxyError as error:
            last = writer.error(error)
        if not sink.send(last):
            sink.flush()

    def close(self) -> None:
        self._presence.stop()
        self._stream.close()


def ask_corridor(arrival: Arrival, door: str, ask: Callable[[Inbound], Reply]) -> tuple[Reply, Presence]:
    """Let the corridor answer. Until a plain reply is there, or its stream is closed, the client's leaving is noticed."""
    cancellation = Cancellation()
    presence = watch_client(arrival.environ, cancellation)
    try:
        reply = ask(inbound_of(arrival, door, presence, cancellation))
    except BaseException:
        presence.stop()
        raise
    if type(reply.outcome) is not RelayedStream:
        presence.stop()
    return reply, presence


def answer_chat(arrival: Arrival, door: str, ask: Callable[[Inbound], Reply], client_format: ClientFormat) -> Answer:
    """Ask the corridor; the door's format says how its answers, events and errors look."""
    reply, presence = ask_corridor(arrival, door, ask)
    headers = reply_headers(reply.facts)
    outcome = reply.outcome
    if type(outcome) is Completion:
        headers += (_JSON,)
        return Answer(_OK, headers, orjson.dumps(client_format.whole(outcome, reply)))
    if isinstance(outcome, RelayedStream):
        headers += [("Content-Type", "text/event-stream; charset=utf-8"), ("X-Accel-Buffering", "no")]
        return Answer(
            _OK, headers, EventStream(outcome, client_format.stream(reply, translated=outcome.translated), presence)
        )
    if isinstance(outcome, ProxyError):
        return refused(outcome, headers, client_format.error_body)
    raise TypeError("a list of models is answered by its own door")


def answer_json(body: object, headers: list[tuple[str, str]]) -> Answer:
    return Answer(_OK, [*headers, _JSON], orjson.dumps(body))


def refused(
    error: ProxyError, headers: list[tuple[str, str]], body_of: Callable[[ProxyError], bytes] = error_body
) -> Answer:
    """An error after what is known of the exchange."""
    return Answer(status_line(error.status), headers + error_headers(error), body_of(error))


def _cut_short() -> OSError:
    """For the server: hang up. A last chunk would say that the answer is whole, to one who only said that he asks no more."""
    return ConnectionResetError(errno.ECONNRESET, "the client left before its answer was whole")
