"""One OpenAI-compatible provider."""

from __future__ import annotations

import re
from collections import deque
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
    from collections.abc import Iterator

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
        self._headers = {
            "Host": self._endpoint.authority,
            "User-Agent": f"secure-llm-proxy/{__version__}",
            "Accept-Encoding": "identity",
        }
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def complete(self, route: Route, payload: bytes, cancellation: Cancellation) -> Completion:
        """Return the whole answer to `payload`, which is a plain (not streamed) chat request."""
        body = self._ask(self._request("POST", _CHAT_PATH, payload, accept="application/json"), cancellation)
        return read_completion(body, model=route.model)

    def stream(self, route: Route, payload: bytes, cancellation: Cancellation) -> CompletionStream:
        """Return the running answer to `payload`, a streamed chat request, once its first event has arrived."""
        del route  # the model stands in the payload already
        exchange = self._exchange(cancellation)
        try:
            head = exchange.open(self._request("POST", _CHAT_PATH, payload, accept="text/event-stream"))
            self._check(head, exchange)
            _check_is_event_stream(head)
            return _EventStream(exchange, event_bytes_max=self._settings.event_bytes_max)
        except BaseException:
            exchange.close()
            raise

    def list_models(self, cancellation: Cancellation) -> tuple[str, ...]:
        """Return the names of the provider's models."""
        return read_models(self._ask(self._request("GET", _MODELS_PATH, None, accept="application/json"), cancellation))

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
            body = bytearray()
            while piece := exchange.read():
                body += piece
            return bytes(body)
        finally:
            exchange.close()

    def _check(self, head: AnswerHead, exchange: Exchange) -> None:
        if head.status != _OK:
            body = b"" if head.is_compressed else exchange.read_excerpt(_ERROR_BYTES_MAX, _ERROR_PATIENCE_S)
            raise error_of(head, body, scrubber=self._scrubber, now=self._clock.now())
        if head.is_compressed:
            raise UpstreamFailed(UNREADABLE, detail="the answer is compressed, though identity was asked for")

    def _request(self, method: str, path: str, payload: bytes | None, *, accept: str) -> bytes:
        headers = {**self._headers, "Accept": accept}
        if payload is None:
            payload = b""
        else:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(payload))}
        return request_head(method, self._endpoint.target(path), headers) + payload


def _check_is_event_stream(head: AnswerHead) -> None:
    if head.content_type != "text/event-stream":
        raise UpstreamFailed(UNREADABLE, detail="a stream was asked for, and something else came")


class _EventStream:
    """A `CompletionStream`: its first event is there when the constructor returns."""

    __slots__ = ("_ended", "_exchange", "_finish_seen", "_parser", "_waiting")

    def __init__(self, exchange: Exchange, *, event_bytes_max: int) -> None:
        self._exchange = exchange
        self._parser = ServerSentEventParser(event_bytes_max=event_bytes_max)
        self._waiting: deque[ServerSentEvent | StreamEvent] = deque()
        self._finish_seen = False
        self._ended = False
        first = self._next()
        if first is None:
            raise UpstreamFailed(BROKE_OFF, detail="the stream ended before its first event")
        self._waiting.appendleft(first)

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

    def close(self) -> None:
        self._ended = True
        self._exchange.close()

    def _next(self) -> StreamEvent | None:
        while not self._ended:
            while self._waiting:
                event = self._waiting.popleft()
                if not isinstance(event, ServerSentEvent):
                    return event
                data = event.data.strip()
                if data == DONE:
                    self._waiting.clear()
                    self._exchange.finish_early()
                    self.close()
                    return None
                if event.name == b"error":
                    raise UpstreamFailed(REPORTED_ERROR, detail="an event named error in the stream")
                if not data:
                    continue
                read, finished = read_stream_event(data)
                self._finish_seen = self._finish_seen or finished
                return read
            self._fetch()
        return None

    def _fetch(self) -> None:
        """Wait for the next bytes; at the end of the body, decide whether the answer is whole."""
        try:
            piece = self._exchange.read()
            self._waiting.extend(self._parser.feed(piece) if piece else self._parser.finish())
        except EventTooLarge as error:
            raise UpstreamFailed(TOO_LARGE, detail=str(error)) from None
        if piece or self._waiting:
            return
        self.close()
        if not self._finish_seen:
            raise UpstreamFailed(BROKE_OFF, detail="the stream ended without [DONE] and without a finish_reason")
