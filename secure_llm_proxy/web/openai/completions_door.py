"""`POST /v1/completions`: a prompt and its continuation, as clients of OpenAI's older endpoint know it."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import orjson

from secure_llm_proxy.gateway import Reply, chat
from secure_llm_proxy.vocabulary.conversation import Answer as NeutralAnswer
from secure_llm_proxy.vocabulary.conversation import DeltaKind, Finish, Refusal, Text
from secure_llm_proxy.web.answers import Answer, answer_chat
from secure_llm_proxy.web.errors import error_body
from secure_llm_proxy.web.generation import DONE, PassedOn, StreamWriter, error_event
from secure_llm_proxy.web.openai.chat_answer import FINISH_REASONS, usage_object, wants_usage
from secure_llm_proxy.web.openai.completions_request import read_completion_request

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.errors import ProxyError
    from secure_llm_proxy.foundation.strict_json import JsonObject
    from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
    from secure_llm_proxy.web.arrival import Arrival


class CompletionsFormat:
    """What came in this format leaves as it came; an answer of a chat is written as a continuation: its text alone, without
    the model's thoughts.
    """

    def whole(self, completion: Completion, reply: Reply) -> object:
        answer = completion.answer
        if answer is None:
            return completion.payload
        if not isinstance(answer, NeutralAnswer):
            raise TypeError("a continuation was asked for")
        told: JsonObject = {
            "id": answer.id or f"cmpl-{reply.facts.exchange_id}",
            "object": "text_completion",
            "created": answer.created if answer.created is not None else int(time.time()),
            "model": reply.facts.model or completion.model,
            "choices": [
                {
                    "text": "".join([part.text for part in choice.parts if isinstance(part, Text | Refusal)]),
                    "index": at,
                    "logprobs": None,
                    "finish_reason": _reason(choice.finish),
                }
                for at, choice in enumerate(answer.choices)
            ],
        }
        usage = usage_object(completion.usage)
        if usage is not None:
            told["usage"] = usage
        return told

    def stream(self, reply: Reply, *, translated: bool) -> StreamWriter:
        return _Continuation(reply) if translated else PassedOn()

    def error_body(self, error: ProxyError) -> bytes:
        return error_body(error)


class _Continuation:
    """Writes the deltas of a stream: the text of each, why a choice ended, and the usage last where it was asked for."""

    __slots__ = ("_asked", "_id", "_known", "_usage")

    def __init__(self, reply: Reply) -> None:
        self._id = f"cmpl-{reply.facts.exchange_id}"
        self._known: JsonObject = {
            "object": "text_completion",
            "created": int(time.time()),
            "model": reply.facts.model or "",
        }
        self._asked = wants_usage(reply)
        self._usage: Usage | None = None

    def event(self, event: StreamEvent) -> bytes:
        if event.usage is not None:
            self._usage = event.usage
        frames = []
        for delta in event.deltas:
            if delta.kind is DeltaKind.START:
                self._id = delta.id or self._id
            elif delta.kind in (DeltaKind.TEXT, DeltaKind.REFUSAL):
                frames.append(self._chunk(delta.choice, delta.text, None))
            elif delta.kind is DeltaKind.FINISH:
                frames.append(self._chunk(delta.choice, "", _reason(delta.finish)))
        return b"".join(frames)

    def end(self) -> bytes:
        usage = usage_object(self._usage) if self._asked and self._usage is not None else None
        return DONE if usage is None else self._frame([], usage) + DONE

    def error(self, error: ProxyError) -> bytes:
        return error_event(error)

    def _chunk(self, choice: int, text: str, reason: str | None) -> bytes:
        return self._frame([{"text": text, "index": choice, "logprobs": None, "finish_reason": reason}], None)

    def _frame(self, choices: list[JsonObject], usage: JsonObject | None) -> bytes:
        chunk = {"id": self._id, **self._known, "choices": choices}
        if self._asked:
            chunk["usage"] = usage
        return b"data: %b\n\n" % orjson.dumps(chunk)


def _reason(finish: Finish | None) -> str:
    """OpenAI's words for a continuation, which calls no tools."""
    if finish is None or finish is Finish.TOOL_CALLS:
        return "stop"
    return FINISH_REASONS[finish]


_COMPLETIONS = CompletionsFormat()


def create_completion(arrival: Arrival) -> Answer:
    web = arrival.web
    read = partial(read_completion_request, prompts_max=web.settings.limits.messages_max)
    ask = partial(chat, web.house, read_request=read)
    return answer_chat(arrival, "/v1/completions", ask, _COMPLETIONS)
