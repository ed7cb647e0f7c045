"""A response object (OpenAI's Responses API) from the neutral model: the items of its output, its end, its usage, and what was
asked, which it repeats.

Source: OpenAI API reference, "The response object", read 2026-11.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.gateway import Reply
from secure_llm_proxy.vocabulary.chat import Completion, Usage
from secure_llm_proxy.vocabulary.conversation import Answer, Finish, Image, Part, Reasoning, Refusal, Text, ToolCall
from secure_llm_proxy.vocabulary.sealed_reasoning import sealed

COMPLETED, INCOMPLETE, IN_PROGRESS = "completed", "incomplete", "in_progress"

# Why an answer is not whole, in the words of the reference.
_REASONS = {
    Finish.LENGTH: "max_output_tokens",
    # Whoever sends it back gets the rest.
    Finish.PAUSE: "max_output_tokens",
    Finish.CONTENT_FILTER: "content_filter",
}
# What a response repeats of its request, with what stands there when it was not asked.
_REPEATED: dict[str, JsonValue] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


class Names(NamedTuple):
    """The names of one response and its items: they end as the request's own id does (`X-Request-Id`)."""

    ending: str

    @property
    def response(self) -> str:
        return f"resp_{self.ending}"

    def item(self, kind: str, at: int) -> str:
        """`kind` is OpenAI's beginning: msg, rs, fc, ig."""
        return f"{kind}_{self.ending}_{at}"


def names_of(reply: Reply) -> Names:
    return Names(reply.facts.exchange_id.rpartition("_")[2])


class Ending(NamedTuple):
    """How an answer ended. `reason` is why it is incomplete."""

    status: str
    reason: str | None = None


def ending_of(finish: Finish | None, *, refused_in_words: bool) -> Ending:
    """A refusal in the model's own words is a whole answer; without words, something else has cut it."""
    if finish is Finish.REFUSAL and not refused_in_words:
        return Ending(INCOMPLETE, "content_filter")
    reason = None if finish is None else _REASONS.get(finish)
    return Ending(COMPLETED) if reason is None else Ending(INCOMPLETE, reason)


def response_of(completion: Completion, reply: Reply) -> JsonObject:
    """The whole answer. It has one choice; there is no way to ask for more. Its model is our name of it, under which it can be
    asked again.
    """
    answer = completion.answer
    if not isinstance(answer, Answer) or not answer.choices:
        raise TypeError("the neutral form of an answer to a conversation")
    choice, names = answer.choices[0], names_of(reply)
    ending = ending_of(choice.finish, refused_in_words=any(isinstance(part, Refusal) for part in choice.parts))
    output = _items_of(choice.parts, names, ending.status, logprobs_of(choice.logprobs))
    frame = Frame(reply, names, reply.facts.model or completion.model, answer.created)
    return frame.ended(ending, output, completion.usage)


class Frame:
    """What all response objects of one exchange have in common."""

    __slots__ = ("_common", "_names")

    def __init__(self, reply: Reply, names: Names, model: str, created_s: int | None = None) -> None:
        asked = reply.request.payload if reply.request is not None else {}
        repeated: JsonObject = {
            name: value if (told := asked.get(name)) is None else told for name, value in _REPEATED.items()
        }
        self._names = names
        self._common: JsonObject = {
            "created_at": int(time.time()) if created_s is None else created_s,
            "background": False,
            "error": None,
            "model": model,
            "previous_response_id": None,
            # Whatever was asked: nothing is kept.
            "store": False,
            **repeated,
        }

    def begun(self) -> JsonObject:
        return self._response(IN_PROGRESS, None, [], None)

    def ended(self, ending: Ending, output: list[JsonValue], usage: Usage) -> JsonObject:
        details: JsonObject | None = None if ending.reason is None else {"reason": ending.reason}
        return self._response(ending.status, details, output, _usage_of(usage))

    def _response(
        self, status: str, incomplete: JsonObject | None, output: list[JsonValue], usage: JsonObject | None
    ) -> JsonObject:
        return {
            "id": self._names.response,
            "object": "response",
            "status": status,
            **self._common,
            "incomplete_details": incomplete,
            "output": output,
            "usage": usage,
        }


def text_part(text: str, logprobs: list[JsonValue]) -> JsonObject:
    return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": text}


def refusal_part(text: str) -> JsonObject:
    return {"type": "refusal", "refusal": text}


def message_item(item_id: str, status: str, parts: list[JsonValue]) -> JsonObject:
    return {"id": item_id, "type": "message", "status": status, "content": parts, "role": "assistant"}


def reasoning_item(item_id: str, text: str, encrypted_content: str | None) -> JsonObject:
    summary: list[JsonValue] = [{"type": "summary_text", "text": text}] if text else []
    return {"id": item_id, "type": "reasoning", "summary": summary, "encrypted_content": encrypted_content}


def call_item(item_id: str, status: str, call: ToolCall) -> JsonObject:
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "arguments": call.arguments,
        "call_id": call.id,
        "name": call.name,
    }


def _image_item(item_id: str, data: str) -> JsonObject:
    """An image that a model made by itself: the nearest that the reference has."""
    return {"id": item_id, "type": "image_generation_call", "status": COMPLETED, "result": data}


def logprobs_of(value: JsonValue) -> list[JsonValue]:
    """From the object of chat completions to the list of responses; entries are alike."""
    content = value.get("content") if isinstance(value, dict) else None
    return content if isinstance(content, list) else []


def _items_of(parts: tuple[Part, ...], names: Names, status: str, logprobs: list[JsonValue]) -> list[JsonValue]:
    """Text and refusals in a row are one message. Only the last item can be incomplete."""
    items: list[JsonValue] = []
    message: list[JsonValue] = []
    last = len(parts) - 1
    for at, part in enumerate(parts):
        ended = status if at == last else COMPLETED
        if isinstance(part, Text | Refusal):
            if not message:
                items.append(message_item(names.item("msg", len(items)), ended, message))
            message.append(text_part(part.text, logprobs) if isinstance(part, Text) else refusal_part(part.text))
            if isinstance(part, Text):
                # They are those of all of the text, and stand where it begins.
                logprobs = []
            if ended != COMPLETED:
                items[-1] = message_item(names.item("msg", len(items) - 1), ended, message)
            continue
        message = []
        if isinstance(part, Reasoning):
            proof = sealed(part.signature, part.redacted)
            items.append(reasoning_item(names.item("rs", len(items)), part.text, proof))
        elif isinstance(part, ToolCall):
            call = part if part.arguments or ended != COMPLETED else ToolCall(part.id, part.name, "{}")
            items.append(call_item(names.item("fc", len(items)), ended, call))
        elif isinstance(part, Image) and part.data is not None:
            items.append(_image_item(names.item("ig", len(items)), part.data))
        elif isinstance(part, Image):
            linked: list[JsonValue] = [text_part(part.url or "", [])]
            items.append(message_item(names.item("msg", len(items)), ended, linked))
    return items


def _usage_of(usage: Usage) -> JsonObject | None:
    """None where the provider has told nothing; a count that it did not tell beside others is 0, as no field may lack."""
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return None
    asked, answered = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return {
        "input_tokens": asked,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": asked + answered if usage.total_tokens is None else usage.total_tokens,
    }
