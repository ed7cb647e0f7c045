"""From the corridor's reply to bytes: plain, error or server-sent events, with the headers that every answer carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import orjson
from flask import Response, g

from secure_llm_proxy.foundation.errors import ClientGone, ProxyError
from secure_llm_proxy.gateway import RelayedStream, Reply
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent
from secure_llm_proxy.web.errors import error_body, error_headers
from secure_llm_proxy.web.headers import reply_headers
from secure_llm_proxy.web.presence import ClientWatch

DONE = b"data: [DONE]\n\n"


class EventStream:
    """The WSGI body of a stream: one `data:` line per event, `[DONE]` after the exchange is recorded, an `error` event
    when it breaks off. The server calls `close()` whatever happens, also when the client left.
    """

    def __init__(
        self,
        stream: RelayedStream,
        present: Callable[[StreamEvent], bytes],
        present_end: Callable[[], bytes],
        presence: ClientWatch,
    ) -> None:
        self._stream = stream
        self._present = present
        self._present_end = present_end
        self._presence = presence
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        try:
            return b"data: %s\n\n" % self._present(next(self._stream))
        except StopIteration:
            self._ended = True
            return self._present_end() + DONE
        except ClientGone:
            self._ended = True
            raise StopIteration from None
        except ProxyError as error:
            self._ended = True
            return b"event: error\ndata: %s\n\n" % error_body(error)

    def close(self) -> None:
        self._presence.stop()
        self._stream.close()


def answer(
    reply: Reply,
    *,
    present: Callable[[Completion, Reply], object],
    present_event: Callable[[StreamEvent], bytes],
    present_end: Callable[[Reply], bytes] = lambda _reply: b"",
) -> Response:
    """The Flask answer to a reply; the door says how its completions and events look."""
    presence: ClientWatch = g.presence
    headers = reply_headers(reply.facts)
    outcome = reply.outcome
    if isinstance(outcome, RelayedStream):
        headers += [("Content-Type", "text/event-stream; charset=utf-8"), ("X-Accel-Buffering", "no")]
        body = EventStream(outcome, present_event, lambda: present_end(reply), presence)
        return Response(body, status=200, headers=headers, direct_passthrough=True)
    presence.stop()
    if isinstance(outcome, ProxyError):
        return Response(error_body(outcome), status=outcome.status, headers=headers + error_headers(outcome))
    if isinstance(outcome, Completion):
        headers.append(("Content-Type", "application/json"))
        return Response(orjson.dumps(present(outcome, reply)), status=200, headers=headers)
    raise TypeError("a list of models is answered by its own view")
