"""A running answer on its way to the client: each event as it comes, inspected, recorded in parts, ended once.

What was said is kept as text and made durable every 32 KiB, so that a crash can lose the record of at most that much
delivered text, and never the fact of the request. The caller sends its own end mark (`[DONE]`) after the stream has
ended, and it ends only when `llm.end` is durable.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import ClientGone, ErrorCode, NotQueued, ProxyError, UpstreamFailed
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.gateway import closing
from secure_llm_proxy.gateway.provenance import clear_identity
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.chat import CompletionStream, StreamEvent
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus, EventName
from secure_llm_proxy.vocabulary.inspection import PassThrough, StreamInspector
from secure_llm_proxy.vocabulary.text_fields import Direction, says_only, table_of
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.gateway.docket import Docket, House

PART_BYTES = 32 * 1024
_PLAIN_DELTA = frozenset({"role", "content"})
_TABLE = table_of(WireFormat.OPENAI_CHAT, Direction.EVENT)


class RelayedStream:
    """Iterate it to its end, or call `relay`, and in every case `close()`; the docket is closed exactly once.

    Raises `ProxyError` in mid-stream when the provider breaks off or a part can't be recorded; the exchange is
    recorded by then. `close()` before the end means that the client left.
    """

    def __init__(
        self,
        house: House,
        docket: Docket,
        stream: CompletionStream,
        started_s: float,
        inspector: StreamInspector | None = None,
        *,
        translated: bool = False,
    ) -> None:
        self.translated = translated
        self._house = house
        self._docket = docket
        self._stream = stream
        self._events = iter(stream)
        self._started_s = started_s
        self._inspector: StreamInspector = inspector or PassThrough()
        self._safe: deque[StreamEvent] = deque()
        self._drained = False
        self._said: list[bytes] = []
        self._said_bytes = 0
        self._said_events = 0
        self._parts = 0

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        """The next event that may leave. One greenlet switch for each: `relay` is the cheaper way."""
        try:
            while not self._safe:
                if self._drained:
                    raise StopIteration  # noqa: TRY301  one place ends the exchange
                self._fetch()
        except StopIteration:
            self._end(EndStatus.COMPLETE, None)
            raise
        except Exception as error:
            told = self._fail(error)
            raise told from error
        except BaseException:
            self._interrupt()
            raise
        return self._safe.popleft()

    def relay(self, send: Callable[[StreamEvent], bool], flush: Callable[[], None]) -> None:
        """Give every event that may leave to `send`, from the event loop; return when the end is on record.

        `send` must not wait: it answers False when the client is slower than the provider, and then `flush` is called,
        which may. Either's `OSError` (`TimeoutError` is one) means that the client has left. Raises as iteration does.
        Measured (one core, 500 streams): see docs/performance.md, "per chunk".
        """
        keeps_up = True
        safe, said, inspector = self._safe, self._said, self._inspector
        inspects = type(inspector) is not PassThrough

        def take(event: StreamEvent) -> bool:
            nonlocal keeps_up
            if event.only_text and event.usage is None:
                # as `_note` does
                text = event.text.encode()
                said.append(text)
                self._said_bytes += len(text)
            else:
                self._note(event)
            if inspects or safe or self._said_bytes >= PART_BYTES:
                safe.extend(inspector.feed(event))
                if self._said_bytes >= PART_BYTES:
                    return False
                keeps_up = self._send_safe(send)
                return keeps_up
            # the usual case, without a detour: it leaves as it came
            try:
                keeps_up = send(event)
            except OSError:
                raise ClientGone("The client closed the connection.") from None
            return keeps_up

        try:
            while True:
                more = self._stream.pump(take)
                if self._said_bytes >= PART_BYTES:
                    self._record_part()
                if not more:
                    self._safe.extend(self._inspector.finish())
                while self._safe or not keeps_up:
                    if not keeps_up:
                        _wait_for_client(flush)
                    keeps_up = self._send_safe(send)
                if not more:
                    break
        except Exception as error:
            told = self._fail(error)
            raise told from error
        except BaseException:
            self._interrupt()
            raise
        self._end(EndStatus.COMPLETE, None)

    def close(self) -> None:
        """End the provider's work; a stream that had not ended is recorded as left by the client."""
        if not self._docket.closed:
            try:
                self._fail(ClientGone("The client left."))
            except ProxyError:
                # Nobody is left to be told; the record stays queued.
                return
        self._stream.close()

    def _send_safe(self, send: Callable[[StreamEvent], bool]) -> bool:
        """Send what may leave until nothing is left or the client falls behind (False)."""
        safe = self._safe
        try:
            while safe:
                if not send(safe.popleft()):
                    return False
        except OSError:
            raise ClientGone("The client closed the connection.") from None
        return True

    def _fetch(self) -> None:
        """Take the provider's next event, or at its end what the inspector has held back."""
        event = next(self._events, None)
        if event is None:
            self._drained = True
            self._safe.extend(self._inspector.finish())
            return
        self._note(event)
        self._safe.extend(self._inspector.feed(event))
        if self._said_bytes >= PART_BYTES:
            self._record_part()

    def _note(self, event: StreamEvent) -> None:
        if event.usage is not None:
            self._docket.usage = event.usage
        only_text = event.only_text or not _carries_more_than_text(event)
        said = event.text.encode() if only_text else b"\n%s\n" % event.data
        if said:
            self._said.append(said)
            self._said_bytes += len(said)

    def _record_part(self) -> None:
        clear: dict[str, ClearValue] = {"sid": self._docket.started_record, "dir": "out", "seq": self._parts}
        subject = clear_identity(self._house, self._docket).get("sub")
        if subject is not None:
            clear["sub"] = subject
        said = self._take_said()
        part = AuditEvent(new_record_id(), AuditType.LLM_PART, self._docket.inbound.exchange_id, None, clear, said)
        self._parts += 1
        try:
            self._house.journal.record(part)
        except NotQueued:
            # It will never stand in the log by itself: the end record takes it along.
            self._parts -= 1
            self._said.append(said)
            self._said_bytes = len(said)
            raise

    def _last_body(self, detail: str | None) -> bytes:
        """What the end record seals: the text since the last part."""
        text = self._take_said().decode("utf-8", "replace")
        return strict_json.dumps({"text": text, "parts": self._parts, "detail": detail})

    def _take_said(self) -> bytes:
        said = b"".join(self._said)
        self._said_events += len(self._said)
        self._said.clear()
        self._said_bytes = 0
        return said

    def _fail(self, error: Exception) -> ProxyError:
        docket = self._docket
        told = closing.told_of(docket, error)
        if told is error and isinstance(error, UpstreamFailed) and docket.target is not None and not docket.closed:
            # An answer had begun, so nobody else is asked; but what breaks off often is left alone.
            self._house.routing.failed(docket.target, error.failure)
        self._end(closing.end_status_of(docket, told), told)
        return told

    def _interrupt(self) -> None:
        """The worker is being stopped: whatever there is goes on record without waiting."""
        self._docket.upstream_s = time.monotonic() - self._started_s
        self._stream.close()
        closing.close_interrupted(self._house, self._docket, self._last_body(None))

    def _end(self, end: EndStatus, error: ProxyError | None) -> None:
        docket, house = self._docket, self._house
        if docket.closed:
            return
        docket.upstream_s = time.monotonic() - self._started_s
        self._stream.close()
        status = 200 if error is None else error.status
        code = None if error is None else error.code
        body = self._last_body(None if error is None else error.detail)
        docket.said_events = self._said_events
        waits = error is None or error.code is not ErrorCode.AUDIT_UNAVAILABLE
        try:
            closing.record_end(house, docket, end, status=status, code=code, body=body, wait=waits)
        except Exception as failure:
            unrecorded = closing.as_proxy_error(failure)
            closing.finish(house, docket, status=unrecorded.status, code=unrecorded.code, event=EventName.CHAT_REQUEST)
            raise unrecorded from failure
        closing.finish(
            house,
            docket,
            status=status,
            code=code,
            event=EventName.CHAT_REQUEST,
            detail=None if error is None else error.detail,
        )


def _wait_for_client(flush: Callable[[], None]) -> None:
    try:
        flush()
    except OSError:
        raise ClientGone("The client closed the connection, or stopped reading.") from None


def _carries_more_than_text(event: StreamEvent) -> bool:
    """Tool calls, refusals and reasoning are kept as they came, and so is an event that has texts where none belong; role marks,
    finish marks, usage and log probabilities are not content.

    Of OpenAI's chat events; readers of other formats say `only_text` of all that add nothing else.
    """
    choices = event.payload.get("choices")
    if not isinstance(choices, list):
        return bool(event.payload) and bool(event.data)
    for choice in choices:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict) or _PLAIN_DELTA.issuperset(delta):
            continue
        if any(value for name, value in delta.items() if name not in _PLAIN_DELTA):
            return True
    return not says_only(event.payload, _TABLE, event.text)
