"""A running answer on its way to the client: each event as it comes, recorded in parts, ended once.

What was said is kept as text and made durable every 32 KiB, so that a crash can lose the record of at most that much
delivered text, and never the fact of the request. The caller sends its own end mark (`[DONE]`) after the iteration has
ended, and the iteration ends only when `llm.end` is durable.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import ClientGone, ErrorCode, ProxyError
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.gateway import closing
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.chat import CompletionStream, StreamEvent
from secure_llm_proxy.vocabulary.events import AuditType, EndStatus, EventName

if TYPE_CHECKING:
    from secure_llm_proxy.gateway.docket import Docket, House

PART_BYTES = 32 * 1024


class RelayedStream:
    """Iterate it to its end or call `close()`; either closes the docket exactly once.

    Raises `ProxyError` in mid-stream when the provider breaks off or a part can't be recorded; the exchange is
    recorded by then. `close()` before the end means that the client left.
    """

    def __init__(self, house: House, docket: Docket, stream: CompletionStream, started_s: float) -> None:
        self._house = house
        self._docket = docket
        self._stream = stream
        self._events = iter(stream)
        self._started_s = started_s
        self._said: list[bytes] = []
        self._said_bytes = 0
        self._parts = 0

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        try:
            event = next(self._events)
            self._note(event)
        except StopIteration:
            self._end(EndStatus.COMPLETE, None)
            raise
        except Exception as error:
            told = closing.as_proxy_error(error)
            self._end(closing.end_status_of(told, sent=True), told)
            raise told from error
        except BaseException:
            self._docket.upstream_s = time.monotonic() - self._started_s
            self._stream.close()
            closing.close_interrupted(self._house, self._docket, self._last_body(None))
            raise
        return event

    def close(self) -> None:
        """End the provider's work; a stream that had not ended is recorded as left by the client."""
        if not self._docket.closed:
            try:
                self._end(EndStatus.CLIENT_ABORT, ClientGone("The client left."))
            except ProxyError:
                # Nobody is left to be told; the record stays queued.
                return
        self._stream.close()

    def _note(self, event: StreamEvent) -> None:
        if event.usage is not None:
            self._docket.usage = event.usage
        said = b"\n%s\n" % event.data if _carries_more_than_text(event) else event.text.encode()
        if said:
            self._said.append(said)
            self._said_bytes += len(said)
        if self._said_bytes >= PART_BYTES:
            clear = {"sid": self._docket.started_record, "dir": "out", "seq": self._parts}
            event_of_part = AuditEvent(
                new_record_id(), AuditType.LLM_PART, self._docket.inbound.exchange_id, None, clear, self._take_said()
            )
            self._parts += 1
            self._house.journal.record(event_of_part)

    def _last_body(self, detail: str | None) -> bytes:
        """What the end record seals: the text since the last part."""
        text = self._take_said().decode("utf-8", "replace")
        return strict_json.dumps({"text": text, "parts": self._parts, "detail": detail})

    def _take_said(self) -> bytes:
        said = b"".join(self._said)
        self._said.clear()
        self._said_bytes = 0
        return said

    def _end(self, end: EndStatus, error: ProxyError | None) -> None:
        docket, house = self._docket, self._house
        if docket.closed:
            return
        docket.upstream_s = time.monotonic() - self._started_s
        self._stream.close()
        status = 200 if error is None else error.status
        code = None if error is None else error.code
        body = self._last_body(None if error is None else error.detail)
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


def _carries_more_than_text(event: StreamEvent) -> bool:
    """Tool calls, refusals and reasoning are kept as they came; role marks, finish marks and usage are not content."""
    choices = event.payload.get("choices")
    if not isinstance(choices, list):
        return False
    for choice in choices:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if isinstance(delta, dict) and any(value for name, value in delta.items() if name not in {"role", "content"}):
            return True
    return False
