"""A stream of the Responses API as OpenAI documents it, in the pieces that are given. Written from the API reference, 2026-11."""

from __future__ import annotations

import json

Event = dict[str, object]
USAGE: Event = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 10},
    "total_tokens": 123,
}


def response(*output: Event, status: str = "completed", **fields: object) -> Event:
    """A whole answer."""
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": status,
        "model": "served-model",
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None if status == "in_progress" else USAGE,
        **fields,
    }


def message(text: str, *, at: int = 0) -> Event:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": f"msg_{at}", "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def function_call(name: str, arguments: str, *, at: int = 0) -> Event:
    return {
        "id": f"fc_{at}",
        "type": "function_call",
        "status": "completed",
        "call_id": f"call_{at}",
        "name": name,
        "arguments": arguments,
    }


def message_events(*pieces: str, at: int = 0) -> list[Event]:
    whole = message("".join(pieces), at=at)
    place = {"item_id": f"msg_{at}", "output_index": at, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    begun = {**whole, "status": "in_progress", "content": []}
    return [
        {"type": "response.output_item.added", "output_index": at, "item": begun},
        {"type": "response.content_part.added", **place, "part": empty},
        *({"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []} for piece in pieces),
        {"type": "response.output_text.done", **place, "text": "".join(pieces), "logprobs": []},
        {"type": "response.content_part.done", **place, "part": {**empty, "text": "".join(pieces)}},
        {"type": "response.output_item.done", "output_index": at, "item": whole},
    ]


def function_call_events(name: str, *pieces: str, at: int = 0) -> list[Event]:
    whole = function_call(name, "".join(pieces), at=at)
    place = {"item_id": f"fc_{at}", "output_index": at}
    begun = {**whole, "status": "in_progress", "arguments": ""}
    return [
        {"type": "response.output_item.added", "output_index": at, "item": begun},
        *({"type": "response.function_call_arguments.delta", **place, "delta": piece} for piece in pieces),
        {"type": "response.function_call_arguments.done", **place, "name": name, "arguments": "".join(pieces)},
        {"type": "response.output_item.done", "output_index": at, "item": whole},
    ]


def whole_stream(*between: list[Event], last: str = "response.completed") -> list[Event]:
    """All events of an answer, numbered."""
    middle = [event for events in between for event in events]
    items = [event["item"] for event in middle if event["type"] == "response.output_item.done"]
    status = last.removeprefix("response.")
    begun = response(status="in_progress")
    events: list[Event] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        *middle,
        {"type": last, "response": {**response(status=status), "output": items}},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def frames(events: list[Event]) -> bytes:
    """As the service writes them: each with its name, and no end mark."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), dump(event)) for event in events)


def dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
