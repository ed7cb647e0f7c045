"""Answers of providers that speak another format, as chat completions: whole, and event by event.

What a model thought stands in `reasoning_content`, as DeepSeek, vLLM and llama.cpp have it: OpenAI's own format has no place
for it. Signatures of thoughts have none either. Images that a model made stand in `images`, as at OpenRouter.

Source: OpenAI API reference, "The chat completion object", "The chat completion chunk object", read 2026-11.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import orjson

from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Choice,
    DeltaKind,
    Finish,
    Image,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
)
from secure_llm_proxy.web.generation import DONE, error_event

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.errors import ProxyError
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.gateway import Reply

FINISH_REASONS: dict[Finish, str] = {
    Finish.STOP: "stop",
    Finish.STOP_SEQUENCE: "stop",
    Finish.LENGTH: "length",
    Finish.TOOL_CALLS: "tool_calls",
    Finish.CONTENT_FILTER: "content_filter",
    # The provider's own filter ended it.
    Finish.REFUSAL: "content_filter",
    # It is not whole: whoever asks again with it gets the rest.
    Finish.PAUSE: "length",
}


def chat_completion(completion: Completion, reply: Reply) -> JsonObject:
    """The whole answer. Its id is the provider's where it gives one, its model our name of it, under which it can be asked
    again.
    """
    answer = completion.answer
    if not isinstance(answer, Answer):
        raise TypeError("a chat was asked for")
    legacy = is_legacy(reply)
    told: JsonObject = {
        "id": answer.id or f"chatcmpl-{reply.facts.exchange_id}",
        "object": "chat.completion",
        "created": answer.created if answer.created is not None else int(time.time()),
        "model": reply.facts.model or completion.model,
        "choices": [_choice(choice, at, legacy=legacy) for at, choice in enumerate(answer.choices)],
    }
    usage = usage_object(completion.usage)
    if usage is not None:
        told["usage"] = usage
    return told


def is_legacy(reply: Reply) -> bool:
    """The client speaks of `functions`, and knows no `tool_calls`."""
    request = reply.request
    return request is not None and bool(request.payload.get("functions")) and not request.payload.get("tools")


def wants_usage(reply: Reply) -> bool:
    """The client asked for the usage event of its stream."""
    options = reply.request.payload.get("stream_options") if reply.request is not None else None
    return isinstance(options, dict) and options.get("include_usage") is True


def usage_object(usage: Usage) -> JsonObject | None:
    """None where the provider has not told both numbers: a guess would be taken for a count."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None or completion is None:
        return None
    total = usage.total_tokens
    told: JsonObject = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total if total is not None else prompt + completion,
    }
    cached, written = usage.cached_tokens, usage.cache_write_tokens
    if cached is not None or written is not None:
        details: JsonObject = {"cached_tokens": cached or 0}
        if written is not None:
            # OpenRouter's name: OpenAI's cache costs nothing to write.
            details["cache_write_tokens"] = written
        told["prompt_tokens_details"] = details
    if usage.reasoning_tokens is not None:
        told["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return told


def _choice(choice: Choice, at: int, *, legacy: bool) -> JsonObject:
    said: list[str] = []
    thought: list[str] = []
    refused: list[str] = []
    calls: list[JsonValue] = []
    images: list[JsonValue] = []
    for part in choice.parts:
        match part:
            case Text(text):
                said.append(text)
            case Reasoning(text):
                thought.append(text)
            case Refusal(text):
                refused.append(text)
            case ToolCall(id_, name, arguments):
                function: JsonObject = {"name": name, "arguments": arguments}
                calls.append(function if legacy else {"id": id_, "type": "function", "function": function})
            case Image(url, data, media_type):
                link = url if url is not None else f"data:{media_type};base64,{data}"
                images.append({"type": "image_url", "image_url": {"url": link}})
    message: JsonObject = {
        "role": "assistant",
        "content": "".join(said) if said else None if calls or refused else "",
        "refusal": "".join(refused) if refused else None,
    }
    if any(thought):
        message["reasoning_content"] = "".join(thought)
    if calls and legacy:
        # Its clients know one call for each answer.
        message["function_call"] = calls[0]
    elif calls:
        message["tool_calls"] = calls
    if images:
        message["images"] = images
    reason = _finish_reason(choice.finish, calls=bool(calls), legacy=legacy)
    return {"index": at, "message": message, "logprobs": choice.logprobs, "finish_reason": reason}


def _finish_reason(finish: Finish | None, *, calls: bool, legacy: bool) -> str:
    """Clients look at the reason to see whether tools are to be called; some providers say "stop" all the same."""
    if finish is Finish.TOOL_CALLS or (calls and finish in (Finish.STOP, None)):
        return "function_call" if legacy else "tool_calls"
    return "stop" if finish is None else FINISH_REASONS[finish]


class ChatStream:
    """Writes the deltas of a stream as chunks: for each choice its role first, then what it adds, then why it ended; the
    usage in a chunk without choices before the end mark, if the client asked for it.

    Measured (Python 3.11, 2026-11-21): 0.9 µs for an event that adds text.
    """

    __slots__ = ("_asked", "_begun", "_calling", "_head", "_id", "_legacy", "_model", "_tail", "_usage")

    def __init__(self, reply: Reply) -> None:
        self._id = f"chatcmpl-{reply.facts.exchange_id}"
        self._model = reply.facts.model or ""
        self._asked = wants_usage(reply)
        self._legacy = is_legacy(reply)
        self._usage: Usage | None = None
        self._begun: set[int] = set()
        self._calling: set[int] = set()
        # As far as all chunks are alike; made with the first one, which may know the provider's id.
        self._head = b""
        self._tail = b',"usage":null}\n\n' if self._asked else b"}\n\n"

    def event(self, event: StreamEvent) -> bytes:
        if event.usage is not None:
            self._usage = event.usage
        deltas = event.deltas
        if not deltas:
            return b""
        if len(deltas) == 1 and (delta := deltas[0]).kind is DeltaKind.TEXT and delta.choice in self._begun:
            # the usual event
            return b'%b{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}]%b' % (
                self._head,
                delta.choice,
                orjson.dumps(delta.text),
                self._tail,
            )
        frames: list[bytes] = []
        logprobs = {delta.choice: delta.value for delta in deltas if delta.kind is DeltaKind.LOGPROBS}
        for delta in deltas:
            choice = delta.choice
            if delta.kind is DeltaKind.START and delta.id and not self._head:
                self._id = delta.id
            if choice not in self._begun:
                self._begun.add(choice)
                frames.append(self._chunk(choice, {"role": "assistant", "content": "", "refusal": None}))
            match delta.kind:
                case DeltaKind.TEXT:
                    frames.append(self._chunk(choice, {"content": delta.text}, logprobs.pop(choice, None)))
                case DeltaKind.REASONING:
                    frames.append(self._chunk(choice, {"reasoning_content": delta.text}))
                case DeltaKind.REFUSAL:
                    frames.append(self._chunk(choice, {"refusal": delta.text}, logprobs.pop(choice, None)))
                case DeltaKind.TOOL_CALL:
                    self._calling.add(choice)
                    frames.append(self._chunk(choice, self._call(delta.call, delta.id, delta.name)))
                case DeltaKind.TOOL_ARGUMENTS:
                    frames.append(self._chunk(choice, self._arguments(delta.call, delta.text)))
                case DeltaKind.FINISH:
                    reason = _finish_reason(delta.finish, calls=choice in self._calling, legacy=self._legacy)
                    frames.append(self._chunk(choice, {}, logprobs.pop(choice, None), reason))
                case DeltaKind.START | DeltaKind.SIGNATURE | DeltaKind.REDACTED_REASONING | DeltaKind.LOGPROBS:
                    pass
        for choice, value in logprobs.items():
            frames.append(self._chunk(choice, {}, value))
        return b"".join(frames)

    def end(self) -> bytes:
        usage = usage_object(self._usage) if self._asked and self._usage is not None else None
        if usage is None:
            return DONE
        self._begin()
        # the head ends inside the list of choices
        return b'%b],"usage":%b}\n\n%b' % (self._head, orjson.dumps(usage), DONE)

    def error(self, error: ProxyError) -> bytes:
        return error_event(error)

    def _begin(self) -> None:
        if not self._head:
            known = {
                "id": self._id,
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": self._model,
            }
            self._head = b'data: %b,"choices":[' % orjson.dumps(known)[:-1]

    def _chunk(self, choice: int, delta: JsonObject, logprobs: JsonValue = None, reason: str | None = None) -> bytes:
        self._begin()
        told = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return b"%b%b]%b" % (self._head, orjson.dumps(told), self._tail)

    def _call(self, call: int, id_: str | None, name: str | None) -> JsonObject:
        function: JsonObject = {"name": name, "arguments": ""}
        if self._legacy:
            return {"function_call": function} if call == 0 else {}
        return {"tool_calls": [{"index": call, "id": id_, "type": "function", "function": function}]}

    def _arguments(self, call: int, text: str) -> JsonObject:
        if self._legacy:
            return {"function_call": {"arguments": text}} if call == 0 else {}
        return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}
