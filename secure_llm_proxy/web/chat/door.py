"""`POST /chat`: the same corridor as `/v1/chat/completions`, in the origin's shape."""

from __future__ import annotations

from functools import partial

import orjson

from secure_llm_proxy.foundation.clock import SystemClock, rfc3339
from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.gateway import Reply, chat
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.web.answers import Answer, answer_chat
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.chat.wire import envelope, read_prompt
from secure_llm_proxy.web.errors import error_body
from secure_llm_proxy.web.generation import DONE, StreamWriter, error_event


def answer_prompt(arrival: Arrival) -> Answer:
    web = arrival.web
    # Bound by partial, whose calls make no Python frame.
    read = partial(read_prompt, limits=web.settings.limits)
    ask = partial(chat, web.house, read_request=read)
    return answer_chat(arrival, "/chat", ask, _CHAT)


class _Told:
    """What a stream has said so far; its last event before `[DONE]` is the envelope of a plain answer."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._text: list[str] = []
        self._usage = Usage()

    def event(self, event: StreamEvent) -> bytes:
        self._text.append(event.text)
        self._usage = event.usage or self._usage
        return b"data: %b\n\n" % orjson.dumps({"type": "delta", "text": event.text})

    def end(self) -> bytes:
        whole = _envelope(self._reply, "".join(self._text), self._usage)
        return b"data: %b\n\n%b" % (orjson.dumps({"type": "done", **whole}), DONE)

    def error(self, error: ProxyError) -> bytes:
        return error_event(error)


class _PromptFormat:
    """The origin's envelope. Whatever the provider spoke: it is made of the text and the usage alone."""

    def whole(self, completion: Completion, reply: Reply) -> object:
        return _envelope(reply, completion.text, completion.usage)

    def stream(self, reply: Reply, *, translated: bool) -> StreamWriter:
        del translated
        return _Told(reply)

    def error_body(self, error: ProxyError) -> bytes:
        return error_body(error)


_CHAT = _PromptFormat()


def _envelope(reply: Reply, text: str, usage: Usage) -> dict[str, object]:
    return envelope(
        request_id=reply.facts.exchange_id,
        audit_id=reply.facts.audit_id,
        model=reply.facts.model or "",
        response=text,
        timestamp=rfc3339(SystemClock().now()),
        usage=usage,
    )
