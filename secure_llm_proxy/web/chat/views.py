"""`POST /chat`: the same corridor as `/v1/chat/completions`, in the origin's shape."""

from __future__ import annotations

from functools import partial

import orjson
from flask import Blueprint, Response

from secure_llm_proxy.foundation.clock import SystemClock, rfc3339
from secure_llm_proxy.gateway import Reply, chat
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.web.answers import answer
from secure_llm_proxy.web.chat.wire import envelope, read_prompt
from secure_llm_proxy.web.house import the_house
from secure_llm_proxy.web.inbound import inbound_of_request


def make_chat_door() -> Blueprint:
    door = Blueprint("chat", __name__)

    @door.post("/chat", endpoint="answer")
    def answer_prompt() -> Response:
        web = the_house()
        reply = chat(web.house, inbound_of_request("/chat"), partial(read_prompt, limits=web.settings.limits))
        told = _Told()
        return answer(reply, present=_whole, present_event=told.delta, present_end=told.end)

    return door


class _Told:
    """What a stream has said so far; its last event before `[DONE]` is the envelope of a plain answer."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._usage = Usage()

    def delta(self, event: StreamEvent) -> bytes:
        self._text.append(event.text)
        self._usage = event.usage or self._usage
        return orjson.dumps({"type": "delta", "text": event.text})

    def end(self, reply: Reply) -> bytes:
        whole = _envelope(reply, "".join(self._text), self._usage)
        return b"data: %s\n\n" % orjson.dumps({"type": "done", **whole})


def _whole(completion: Completion, reply: Reply) -> object:
    return _envelope(reply, completion.text, completion.usage)


def _envelope(reply: Reply, text: str, usage: Usage) -> dict[str, object]:
    return envelope(
        request_id=reply.facts.exchange_id,
        audit_id=reply.facts.audit_id,
        model=reply.facts.model or "",
        response=text,
        timestamp=rfc3339(SystemClock().now()),
        usage=usage,
    )
