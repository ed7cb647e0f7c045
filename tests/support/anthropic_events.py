"""What a client makes of a stream of Anthropic's events, held to the documented order: one block open at a time, numbered
from 0, the message begun before and ended after all of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Message:
    """The message as far as it has come; `ended` when its last event was there."""

    told: dict[str, Any] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    @property
    def text(self) -> str:
        return "".join(block["text"] for block in self.blocks if block["type"] == "text")

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        """Id, name and the arguments as they were written."""
        return [(block["id"], block["name"], block["written"]) for block in self.blocks if block["type"] == "tool_use"]


def assemble(stream: bytes) -> Message:
    """Raises AssertionError where the stream is none of Anthropic's."""
    message = Message()
    is_open = False
    assert stream.endswith(b"\n\n")
    for frame in stream.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert not message.ended
        assert bool(message.told) is (event["type"] != "message_start")
        match event["type"]:
            case "message_start":
                message.told = event["message"]
                assert message.told["content"] == []
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(message.blocks)
                message.blocks.append({**event["content_block"], "written": ""})
                is_open = True
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(message.blocks) - 1
                _add(message.blocks[-1], event["delta"])
            case "content_block_stop":
                assert is_open
                assert event["index"] == len(message.blocks) - 1
                is_open = False
            case "message_delta":
                assert not is_open
                message.told |= {**event["delta"], "usage": {**message.told["usage"], **event["usage"]}}
            case "message_stop":
                assert message.told["stop_reason"] is not None
                message.ended = True
            case other:
                raise AssertionError(other)
    return message


def _add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    kind = {
        "text_delta": "text",
        "thinking_delta": "thinking",
        "signature_delta": "thinking",
        "input_json_delta": "tool_use",
    }
    assert block["type"] == kind[delta["type"]]
    match delta["type"]:
        case "text_delta":
            block["text"] += delta["text"]
        case "thinking_delta":
            assert not block["signature"]
            block["thinking"] += delta["thinking"]
        case "signature_delta":
            block["signature"] += delta["signature"]
        case _:
            block["written"] += delta["partial_json"]
