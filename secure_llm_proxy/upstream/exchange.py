"""One request and its answer: four patiences, caps, cancellation, and the fate of the connection.

A body is read by waiting (`read`) or, for streams, from the event loop (`sleep` and `read_now`), which saves two greenlet
switches per piece.
"""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation.errors import ClientGone, FailureKind, ProxyError, UpstreamFailed, UpstreamTimeout
from secure_llm_proxy.upstream.http1 import (
    HEAD_BYTES_MAX,
    AnswerHead,
    BodyFraming,
    BrokenAnswer,
    HeadReader,
    SizedBody,
    body_framing,
    parse_head,
)
from secure_llm_proxy.upstream.wire import Wire, WireBroken, WireTimedOut

if TYPE_CHECKING:
    from collections.abc import Callable

    from secure_llm_proxy.foundation.cancellation import Cancellation
    from secure_llm_proxy.settings import UpstreamSettings
    from secure_llm_proxy.upstream.health import ProviderHealth
    from secure_llm_proxy.upstream.pool import ConnectionPool

UNREACHABLE = "The provider could not be reached."
BROKE_OFF = "The provider's answer broke off."
UNREADABLE = "The provider's answer could not be understood."
TOO_LARGE = "The provider's answer is larger than the proxy allows."
TOO_SLOW = "The provider did not answer in time."
STOPPED = "The proxy stopped this request before the provider's answer was whole."

_KIND_OF = {
    UNREACHABLE: FailureKind.UNREACHABLE,
    BROKE_OFF: FailureKind.BROKE_OFF,
    UNREADABLE: FailureKind.UNREADABLE,
    TOO_LARGE: FailureKind.TOO_LARGE,
}

# what one turn of a stream takes from the kernel: small, so that no stream holds much or keeps others waiting
_TURN_BYTES = 16_384
# a provider that sends its last chunk a moment after the last event must not cost us the connection
_STALE_S = 1.0
_REST_PATIENCE_S = 0.05
# the lowest status of a final answer
_OK = 200


class Exchange:
    """Open it, read until b"" comes, and `close()` it in every case.

    `body_over` is True when `read` would return b"" without waiting. `close()` gives the connection back when the answer
    ended as announced and hangs up otherwise, which ends the provider's work. Errors that it raises are of transport and
    framing: `UpstreamFailed`, `UpstreamTimeout`, and `ClientGone` when the cancellation says so.
    """

    __slots__ = (
        "_answer_bytes",
        "_began_s",
        "_cancellation",
        "_deadline_s",
        "_framing",
        "_health",
        "_keeps_alive",
        "_patience",
        "_pool",
        "_received",
        "_sent_whole",
        "_silent",
        "_wire",
        "body_over",
    )

    def __init__(
        self, pool: ConnectionPool, patience: UpstreamSettings, cancellation: Cancellation, health: ProviderHealth
    ) -> None:
        self._pool = pool
        self._patience = patience
        self._cancellation = cancellation
        self._health = health
        self._began_s = began_s = monotonic()
        self._deadline_s = began_s + patience.total_timeout_s
        self._wire: Wire | None = None
        self._framing: BodyFraming | None = None
        self._keeps_alive = False
        self._sent_whole = False
        self._received = b""
        self._answer_bytes = 0
        self._silent = False
        self.body_over = True

    def open(self, request: bytes) -> AnswerHead:
        """Send `request` and return the head of the answer.

        A pooled connection that turns out to be closed before a byte of an answer is replaced once by a new one.
        """
        head = self._attempt(self._pool.take(), request)
        if head is None:
            head = self._attempt(self._pool.new(), request)
        if head is None:  # only a reused wire answers None
            raise self._failed(UNREACHABLE, "the connection was lost twice")
        self._health.answered()
        return head

    def read(self) -> bytes:
        """Return the next bytes of the body, b"" at its announced end."""
        return self._read(self._patience.idle_timeout_s, self._patience.answer_bytes_max)

    def sleep(self, on_readable: Callable[[], bool]) -> None:
        """Wait, with the patiences of `read`, while `on_readable` answers True in the event loop.

        It takes what has come with `read_now`, and must not raise. For a body whose first bytes were read with `read`.
        Returns as well when the exchange is closed meanwhile.
        """
        wire, patience_s = self._wire, self._patience.idle_timeout_s
        if wire is None:
            return
        try:
            wire.wait(self._until(patience_s), on_readable)
        except WireTimedOut:
            self._check_cancelled()
            raise self._timed_out("between two bytes", patience_s) from None
        except WireBroken as error:
            self._check_cancelled()
            if self._wire is wire:
                raise self._failed(BROKE_OFF, str(error)) from None

    def read_now(self) -> bytes:
        """Return what has come of the body, without waiting; b"" when that is nothing, or the end (`body_over`).

        The patience for the next bytes begins anew.
        """
        wire, framing = self._wire, self._framing
        if wire is None or framing is None:
            return b""
        try:
            received = wire.receive_now(_TURN_BYTES)
        except WireBroken as error:
            self._check_cancelled()
            raise self._failed(BROKE_OFF, str(error)) from None
        if received is None:
            return b""
        if not received:
            # an interrupted connection looks like one that ended in good order
            self._check_cancelled()
            return self._unframe(framing, received, 0)
        patience = self._patience
        until_s = monotonic() + patience.idle_timeout_s
        wire.postpone(min(self._deadline_s, until_s))
        # as `_unframe` does, once for each chunk of every stream
        try:
            body = framing.feed(received)
        except BrokenAnswer as error:
            raise self._failed(BROKE_OFF, str(error)) from None
        self.body_over = framing.done
        self._answer_bytes += len(body)
        if self._answer_bytes > patience.answer_bytes_max:
            raise self._too_large(patience.answer_bytes_max)
        return body

    def read_excerpt(self, bytes_max: int, patience_s: float) -> bytes:
        """Return the body of an error answer if it comes whole, small and soon, else what came of it; never fail."""
        self._silent = True
        until_s = monotonic() + patience_s
        pieces: list[bytes] = []
        with contextlib.suppress(UpstreamFailed):
            while piece := self._read(max(until_s - monotonic(), 0.001), bytes_max):
                pieces.append(piece)
        return b"".join(pieces)

    def finish_early(self) -> None:
        """Nothing more is of interest: let the announced end arrive if it is there or about to be, so that the
        connection can serve again. Waits at most 50 ms and the tick of the deadlines (0.1 s); raises nothing but
        `ClientGone`.
        """
        self._silent = True
        with contextlib.suppress(UpstreamFailed):
            while self._read(_REST_PATIENCE_S, self._answer_bytes):
                pass

    def close(self) -> None:
        """Let go of the connection. May be called twice."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        self.body_over = True
        cancellation, framing = self._cancellation, self._framing
        cancellation.unlisten(wire.interrupt)
        whole = framing is not None and framing.done and not framing.surplus and not self._received
        if whole and self._keeps_alive and self._sent_whole and cancellation.reason is None:
            self._pool.give_back(wire)
        else:
            wire.close()

    def _attempt(self, wire: Wire, request: bytes) -> AnswerHead | None:
        """Return the head, or None when a reused connection was gone already: it broke at once, before any answer.

        What breaks later may have been worked on, so sending it again could be paid for twice under one record.
        """
        self._wire = wire
        self._received = b""
        self._cancellation.listen(wire.interrupt)
        try:
            if not wire.reused:
                self._connect(wire)
            self._send_and_await(wire, request)
        except WireBroken as error:
            self.close()
            self._check_cancelled()
            # only the first attempt is with a reused one, so it began with the exchange
            if wire.reused and monotonic() - self._began_s < _STALE_S:
                return None
            raise self._failed(UNREACHABLE, str(error)) from None
        except BaseException:
            self.close()
            raise
        try:
            return self._read_head(wire)
        except BaseException:
            self.close()
            raise

    def _connect(self, wire: Wire) -> None:
        self._check_cancelled()
        try:
            wire.open(self._until(self._patience.connect_timeout_s))
        except WireTimedOut:
            self._check_cancelled()
            raise self._timed_out("connect", self._patience.connect_timeout_s) from None

    def _send_and_await(self, wire: Wire, request: bytes) -> None:
        """Leave the first bytes of the answer in `_received`. The patience for them covers the sending too."""
        until_s = self._until(self._patience.first_byte_timeout_s)
        broken: WireBroken | None = None
        try:
            wire.send(request, until_s)
        except WireBroken as error:
            # it may have answered (413, 401 …) and hung up without reading the rest
            broken = error
        except WireTimedOut:
            self._check_cancelled()
            raise self._timed_out("sending the request", self._patience.first_byte_timeout_s) from None
        try:
            self._received = wire.receive(until_s)
        except WireTimedOut:
            self._check_cancelled()
            raise self._timed_out("first byte", self._patience.first_byte_timeout_s) from None
        if not self._received:
            raise broken or WireBroken("the provider hung up without an answer")
        self._sent_whole = broken is None

    def _read_head(self, wire: Wire) -> AnswerHead:
        received = self._received
        try:
            # mostly all of it is there at once, and no interim head comes before it
            at = received.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
            head = parse_head(received[:at]) if at >= 0 else None
            if head is not None and head.status >= _OK:
                self._received = received[at + 4 :]
            else:
                head = self._read_head_in_pieces(wire)
            self._framing = framing = body_framing(head)
        except BrokenAnswer as error:
            raise self._failed(UNREADABLE, str(error)) from None
        self._keeps_alive = head.keeps_alive
        self.body_over = framing.done
        return head

    def _read_head_in_pieces(self, wire: Wire) -> AnswerHead:
        reader = HeadReader()
        while (head := reader.feed(self._received)) is None:
            self._received = self._receive(wire, self._patience.idle_timeout_s)
            if not self._received:
                raise self._failed(BROKE_OFF, "the provider hung up within the answer's head")
        self._received = reader.rest
        return head

    def _read(self, patience_s: float, bytes_max: int) -> bytes:
        wire, framing = self._wire, self._framing
        if wire is None or framing is None:
            return b""
        if type(framing) is SizedBody and self._answer_bytes + framing.left_bytes > bytes_max:
            raise self._failed(TOO_LARGE, f"the answer announces more than {bytes_max} bytes")
        while not framing.done:
            received, self._received = self._received, b""
            body = self._unframe(framing, received or self._receive(wire, patience_s), bytes_max)
            if body:
                return body
        return b""

    def _unframe(self, framing: BodyFraming, received: bytes, bytes_max: int) -> bytes:
        """Return what `received` holds of the body; b"" received is the end of the connection in good order."""
        try:
            if not received:
                framing.end()
                # a closed connection can't serve again
                self._keeps_alive = False
                self.body_over = framing.done
                return b""
            body = framing.feed(received)
        except BrokenAnswer as error:
            raise self._failed(BROKE_OFF, str(error)) from None
        self.body_over = framing.done
        self._answer_bytes += len(body)
        if self._answer_bytes > bytes_max:
            raise self._too_large(bytes_max)
        return body

    def _too_large(self, bytes_max: int) -> ProxyError:
        return self._failed(TOO_LARGE, f"the answer holds more than {bytes_max} bytes")

    def _receive(self, wire: Wire, patience_s: float) -> bytes:
        try:
            received = wire.receive(self._until(patience_s))
        except WireTimedOut:
            self._check_cancelled()
            raise self._timed_out("between two bytes", patience_s) from None
        except WireBroken as error:
            self._check_cancelled()
            raise self._failed(BROKE_OFF, str(error)) from None
        if not received:
            # an interrupted connection looks like one that ended in good order
            self._check_cancelled()
        return received

    def _until(self, patience_s: float) -> float:
        """When a wait that starts now must end: after `patience_s`, and never after the deadline over everything."""
        now_s, deadline_s = monotonic(), self._deadline_s
        if now_s >= deadline_s:
            self._check_cancelled()
            raise self._timed_out("total", self._patience.total_timeout_s)
        return min(deadline_s, now_s + patience_s)

    def _check_cancelled(self) -> None:
        reason = self._cancellation.reason
        if reason == "client_gone":
            raise ClientGone("The client closed the connection.")
        if reason is not None:
            raise UpstreamFailed(STOPPED, failure=FailureKind.STOPPED, detail=f"cancelled: {reason}")

    def _failed(self, public: str, detail: str) -> ProxyError:
        if not self._silent:
            self._health.failed(public)
        return UpstreamFailed(public, failure=_KIND_OF[public], detail=detail)

    def _timed_out(self, phase: str, patience_s: float) -> ProxyError:
        if not self._silent:
            self._health.failed(TOO_SLOW)
        if monotonic() >= self._deadline_s:
            phase, patience_s = "total", self._patience.total_timeout_s
        return UpstreamTimeout(TOO_SLOW, detail=f"timeout: {phase}, {patience_s:g} s")
