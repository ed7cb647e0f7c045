"""One OpenAI-compatible provider."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from secure_llm_proxy import __version__
from secure_llm_proxy.foundation.clock import Clock, SystemClock
from secure_llm_proxy.foundation.errors import OperatorError, UpstreamFailed
from secure_llm_proxy.upstream.endpoint import parse_endpoint, tls_context
from secure_llm_proxy.upstream.exchange import BROKE_OFF, TOO_LARGE, UNREADABLE, Exchange
from secure_llm_proxy.upstream.health import ProviderHealth
from secure_llm_proxy.upstream.http1 import request_head
from secure_llm_proxy.upstream.openai_format import (
    DONE,
    REPORTED_ERROR,
    error_of,
    read_completion,
    read_models,
    read_stream_event,
)
from secure_llm_proxy.upstream.pool import ConnectionPool
from secure_llm_proxy.upstream.server_sent_events import EventTooLarge, ServerSentEvent, ServerSentEventParser
from secure_llm_proxy.upstream.wording import Scrubber

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from secure_llm_proxy.foundation.cancellation import Cancellation
    from secure_llm_proxy.settings import UpstreamSettings
    from secure_llm_proxy.upstream.http1 import AnswerHead
    from secure_llm_proxy.vocabulary.chat import Completion, CompletionStream, Route, StreamEvent

_CHAT_PATH = "/chat/completions"
_MODELS_PATH = "/models"
_ERROR_BYTES_MAX = 65_536
_ERROR_PATIENCE_S = 5.0
_OK = 200
_KEY = re.compile(r"[!-~]+")


class OpenAiCompatibleProvider:
    """Speaks to the provider of the settings and to nobody else: no proxy of the environment, no redirect.

    Shared by all greenlets and threads of one process; make it after the fork. Raises `OperatorError` for settings
    with which no provider can be reached.
    """

    name = "openai_compatible"

    def __init__(self, settings: UpstreamSettings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._endpoint = parse_endpoint(settings.api_url)
        context = tls_context(verify=settings.ssl_verify, ca_file=settings.ca_file) if self._endpoint.secure else None
        self._pool = ConnectionPool(self._endpoint, context, idle_max=settings.connections_max)
        self._health = ProviderHealth(self._clock)
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        if key and not _KEY.fullmatch(key):
            raise OperatorError("LLM_API_KEY must be plain ASCII without spaces; a header can't carry anything else.")
        self._scrubber = Scrubber(self._endpoint, key or None)
        headers = {
            "Host": self._endpoint.authority,
            "User-Agent": f"secure-llm-proxy/{__version__}",
            "Accept-Encoding": "identity",
        }
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # all of a chat request but the number of its bytes and these; a request is then one formatting and one send
        self._chat_prefix = self._prefix(headers, "application/json")
        self._stream_prefix = self._prefix(headers, "text/event-stream")
        self._models_request = request_head(
            "GET", self._endpoint.target(_MODELS_PATH), {**headers, "Accept": "application/json"}
        )

    def complete(self, route: Route, payload: bytes, cancellation: Cancellation) -> Completion:
        """Return the whole answer to `payload`, which is a plain (not streamed) chat request."""
        body = self._ask(b"%b%d\r\n\r\n%b" % (self._chat_prefix, len(payload), payload), cancellation)
        return read_completion(body, model=route.model)

    def stream(self, route: Route, payload: bytes, cancellation: Cancellation) -> CompletionStream:
        """Return the running answer to `payload`, a streamed chat request, once its first event has arrived."""
        del route  # the model stands in the payload already
        exchange = self._exchange(cancellation)
        try:
            head = exchange.open(b"%b%d\r\n\r\n%b" % (self._stream_prefix, len(payload), payload))
            self._check(head, exchange)
            _check_is_event_stream(head)
            return _EventStream(exchange, event_bytes_max=self._settings.event_bytes_max)
        except BaseException:
            exchange.close()
            raise

    def list_models(self, cancellation: Cancellation) -> tuple[str, ...]:
        """Return the names of the provider's models."""
        return read_models(self._ask(self._models_request, cancellation))

    def trouble(self) -> str | None:
        """A sentence for the operator when the last exchange of the last 60 s failed in transport, else None.

        A provider that answers with an error status is reachable, so that is no trouble here.
        """
        return self._health.trouble()

    @property
    def idle_connections(self) -> int:
        return self._pool.idle_count

    def close(self) -> None:
        """Hang up idle connections; exchanges that run now end undisturbed and hang up then."""
        self._pool.close()

    def _exchange(self, cancellation: Cancellation) -> Exchange:
        return Exchange(self._pool, self._settings, cancellation, self._health)

    def _ask(self, request: bytes, cancellation: Cancellation) -> bytes:
        exchange = self._exchange(cancellation)
        try:
            self._check(exchange.open(request), exchange)
            body = exchange.read()
            if exchange.body_over:
                return body
            pieces = [body]
            while piece := exchange.read():
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            exchange.close()

    def _check(self, head: AnswerHead, exchange: Exchange) -> None:
        if head.status != _OK:
            body = b"" if head.is_compressed else exchange.read_excerpt(_ERROR_BYTES_MAX, _ERROR_PATIENCE_S)
            raise error_of(head, body, scrubber=self._scrubber, now=self._clock.now())
        if "content-encoding" in head.headers and head.is_compressed:
            raise UpstreamFailed(UNREADABLE, detail="the answer is compressed, though identity was asked for")

    def _prefix(self, headers: Mapping[str, str], accept: str) -> bytes:
        """The head of a chat request up to the value of its Content-Length, which stands last."""
        fields = {**headers, "Accept": accept, "Content-Type": "application/json", "Content-Length": ""}
        return request_head("POST", self._endpoint.target(_CHAT_PATH), fields).removesuffix(b"\r\n\r\n")


def _check_is_event_stream(head: AnswerHead) -> None:
    if head.content_type != "text/event-stream":
        raise UpstreamFailed(UNREADABLE, detail="a stream was asked for, and something else came")


class _EventStream:
    """A `CompletionStream`: its first event is there when the constructor returns.

    Of what has come, it holds the events of one piece (at most 16 KiB from the kernel) and the beginning of the next.
    """

    __slots__ = (
        "_done",
        "_ended",
        "_exchange",
        "_failure",
        "_finish_seen",
        "_first",
        "_parser",
        "_paused",
        "_waiting",
    )

    def __init__(self, exchange: Exchange, *, event_bytes_max: int) -> None:
        self._exchange = exchange
        self._parser = ServerSentEventParser(event_bytes_max=event_bytes_max)
        # the next one stands last
        self._waiting: list[ServerSentEvent] = []
        self._failure: BaseException | None = None
        self._finish_seen = False
        self._paused = False
        self._done = False
        self._ended = False
        self._first: StreamEvent | None = None
        self._first = self._next()
        if self._first is None:
            raise UpstreamFailed(BROKE_OFF, detail="the stream ended before its first event")

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        try:
            event = self._next()
        except BaseException:
            self.close()
            raise
        if event is None:
            raise StopIteration
        return event

    def pump(self, take: Callable[[StreamEvent], bool]) -> bool:
        """Give each event to `take` from the event loop; True when it asked for a pause, False at the end.

        Measured 2026-11 with 100 streams at 50 chunks a second: 18 µs a chunk, 23 over TLS, strict JSON included; iteration
        on gevent's sockets took 31 and 45. The kernel and the loop alone take 13.
        """
        exchange = self._exchange
        read_now, whole_object = exchange.read_now, self._parser.whole_object

        def take_what_came() -> bool:
            try:
                piece = read_now()
                if piece:
                    # nothing waits, or nobody would have slept
                    data = whole_object(piece)
                    if data is None:
                        if not self._take_all(piece, take):
                            return False
                    else:
                        event, finished = read_stream_event(data)
                        if finished:
                            self._finish_seen = True
                        if not take(event):
                            self._paused = True
                            return False
                return not (exchange.body_over or self._done or self._ended)
            except BaseException as error:  # noqa: BLE001  it belongs to the greenlet that waits
                self._failure = error
                return False

        try:
            while not self._ended:
                if (event := self._read_waiting()) is not None:
                    if not take(event):
                        return True
                elif self._done or exchange.body_over:
                    # decides whether the answer is whole
                    self._fetch()
                else:
                    self._sleep(take_what_came)
                    if self._paused:
                        self._paused = False
                        return True
        except BaseException:
            self.close()
            raise
        return False

    def close(self) -> None:
        self._ended = True
        self._first = None
        self._waiting = []
        self._exchange.close()

    def _sleep(self, take_what_came: Callable[[], bool]) -> None:
        self._exchange.sleep(take_what_came)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _take_all(self, piece: bytes, take: Callable[[StreamEvent], bool]) -> bool:
        """Give the events that `piece` completes; False when `take` asked for a pause."""
        self._parse(piece)
        while (event := self._read_waiting()) is not None:
            if not take(event):
                self._paused = True
                return False
        return True

    def _next(self) -> StreamEvent | None:
        while not self._ended:
            event = self._read_waiting()
            if event is not None:
                return event
            self._fetch()
        return None

    def _read_waiting(self) -> StreamEvent | None:
        """Return the next event of those that have arrived, None when there is none left, or at [DONE]."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        waiting = self._waiting
        while waiting:
            sent = waiting.pop()
            data = sent.data.strip()
            if data == DONE:
                waiting.clear()
                self._done = True
                return None
            if sent.name == b"error":
                raise UpstreamFailed(REPORTED_ERROR, detail="an event named error in the stream")
            if data:
                event, finished = read_stream_event(data)
                self._finish_seen = self._finish_seen or finished
                return event
        return None

    def _fetch(self) -> None:
        """Wait for the next bytes; at [DONE] or the end of the body, decide whether the answer is whole."""
        if self._done:
            self._exchange.finish_early()
            self.close()
            return
        piece = self._exchange.read()
        self._parse(piece)
        if piece or self._waiting:
            return
        self.close()
        if not self._finish_seen:
            raise UpstreamFailed(BROKE_OFF, detail="the stream ended without [DONE] and without a finish_reason")

    def _parse(self, piece: bytes) -> None:
        """Have the events that `piece` completes wait; b"" is the end of the body."""
        try:
            events = self._parser.feed(piece) if piece else self._parser.finish()
        except EventTooLarge as error:
            raise UpstreamFailed(TOO_LARGE, detail=str(error)) from None
        events.reverse()
        self._waiting = events
