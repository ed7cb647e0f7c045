"""From Anthropic's words to OpenAI's and back: nothing that was said is lost, whole, streamed, and however it is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.gateway import Reply, ReplyFacts
from secure_llm_proxy.upstream.formats.anthropic_messages import AnthropicMessages
from secure_llm_proxy.upstream.formats.face import StreamReader
from secure_llm_proxy.upstream.formats.openai_chat import OpenAiChat
from secure_llm_proxy.upstream.server_sent_events import ServerSentEventParser
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion, Usage
from secure_llm_proxy.vocabulary.conversation import Conversation, Role, Text, ToolCall, ToolResult
from secure_llm_proxy.vocabulary.providers import provider_kinds
from secure_llm_proxy.web.anthropic.conversation import read_conversation as read_message_request
from secure_llm_proxy.web.anthropic.message import MessageStream, message_of
from secure_llm_proxy.web.generation import StreamWriter
from secure_llm_proxy.web.openai.chat_answer import ChatStream, chat_completion
from secure_llm_proxy.web.openai.chat_request import read_conversation as read_chat_request
from tests.support.anthropic_events import assemble
from tests.support.provider_formats.playing import named_event

_ANTHROPIC, _OPENAI = AnthropicMessages(), OpenAiChat()
_KIND = provider_kinds()["openai"]
_FACTS = ReplyFacts("exc_1", None, None, "tested", "small", None, 0.0)
_ASKED = ChatRequest("small", True, {"stream_options": {"include_usage": True}})

_words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda text: bool(text.strip()))
_values: st.SearchStrategy[JsonValue] = st.one_of(_words, st.integers(-9, 9), st.lists(_words, max_size=2).map(list))
_arguments: st.SearchStrategy[JsonObject] = st.dictionaries(_words, _values, max_size=2)
_blocks = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, _words),
    st.builds(lambda given: {"type": "tool_use", "name": "weather", "input": given}, _arguments),
)


def _reply(completion: Completion) -> Reply:
    return Reply(_FACTS, completion, _ASKED)


def _message(blocks: list[JsonObject]) -> JsonObject:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "small",
        "content": [
            {**block, "id": f"toolu_{at}"} if block["type"] == "tool_use" else block for at, block in enumerate(blocks)
        ],
        "stop_reason": "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 3,
            "output_tokens": 2,
        },
    }


def _said(message: Any) -> tuple[str, list[tuple[str, str, object]], str, Any]:  # noqa: ANN401  any message
    """Text, calls, why it ended, and what it cost."""
    blocks = message["content"]
    usage = message["usage"]
    counts = [usage[name] for name in sorted(usage) if name.endswith("tokens")]
    calls = [(block["id"], block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    return "".join(block["text"] for block in blocks if block["type"] == "text"), calls, message["stop_reason"], counts


def _through(stream: bytes, reader: StreamReader, writer: StreamWriter, cuts: list[int]) -> bytes:
    parser = ServerSentEventParser(event_bytes_max=1 << 20)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    said = b""
    for start, end in pairwise(edges):
        for sent in parser.feed(stream[start:end]):
            if (event := reader.read(sent)) is not None:
                said += writer.event(event)
    assert reader.finished
    return said + writer.end()


@settings(max_examples=150, deadline=None)
@given(st.lists(_blocks, min_size=1, max_size=5))
def test_a_whole_answer_comes_back_as_it_was(blocks: list[JsonObject]) -> None:
    message = _message(blocks)

    first = _ANTHROPIC.read(json.dumps(message).encode(), model="small", translated=True)
    chat = chat_completion(first, _reply(first))
    second = _OPENAI.read(json.dumps(chat).encode(), model="small", translated=True)
    back = message_of(second, _reply(second))

    assert _said(back) == _said(message)


@settings(max_examples=150, deadline=None)
@given(st.lists(_blocks, min_size=1, max_size=5), st.lists(st.integers(0, 1 << 20), max_size=8), st.integers(1, 7))
def test_a_stream_comes_back_as_it_was(blocks: list[JsonObject], cuts: list[int], size: int) -> None:
    message = _message(blocks)
    nothing = Completion({}, "", Usage(), "small")

    chat = _through(
        _events(message, size), _ANTHROPIC.stream(translated=True, shows_usage=True), ChatStream(_reply(nothing)), cuts
    )
    back = _through(chat, _OPENAI.stream(translated=True, shows_usage=True), MessageStream(_reply(nothing)), cuts)

    assembled = assemble(back)
    assert assembled.ended
    content = [
        {**block, "input": json.loads(block["written"] or "{}")} if block["type"] == "tool_use" else block
        for block in assembled.blocks
    ]
    assert _said({**assembled.told, "content": content}) == _said(message)


def _events(message: JsonObject, size: int) -> bytes:
    """A message as a stream of pieces of so many characters, calls as Anthropic writes them."""
    usage = message["usage"]
    assert isinstance(usage, dict)
    content = message["content"]
    assert isinstance(content, list)
    begun = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    frames = [named_event("message_start", {"type": "message_start", "message": begun})]
    for at, block in enumerate(content):
        assert isinstance(block, dict)
        is_text = block["type"] == "text"
        whole = str(block["text"]) if is_text else json.dumps(block["input"], ensure_ascii=False)
        empty = {**block, "text": ""} if is_text else {**block, "input": {}}
        name = "text" if is_text else "partial_json"
        kind = "text_delta" if is_text else "input_json_delta"
        frames.append(
            named_event("content_block_start", {"type": "content_block_start", "index": at, "content_block": empty})
        )
        frames += [
            named_event(
                "content_block_delta",
                {
                    "type": "content_block_delta",
                    "index": at,
                    "delta": {"type": kind, name: whole[start : start + size]},
                },
            )
            for start in range(0, len(whole), size)
        ]
        frames.append(named_event("content_block_stop", {"type": "content_block_stop", "index": at}))
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    frames.append(named_event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage}))
    frames.append(named_event("message_stop", {"type": "message_stop"}))
    return b"".join(frames)


@st.composite
def _requests(draw: st.DrawFn) -> JsonObject:
    messages: list[JsonValue] = []
    if draw(st.booleans()):
        messages.append({"role": "user", "content": draw(_words)})
    messages.append(
        {
            "role": "user",
            "content": [{"type": "text", "text": text} for text in draw(st.lists(_words, min_size=1, max_size=2))],
        }
    )
    for at in range(draw(st.integers(0, 3))):
        calls: list[JsonObject] = [
            {"type": "tool_use", "id": f"t{at}_{number}", "name": "weather", "input": draw(_arguments)}
            for number in range(draw(st.integers(1, 2)))
        ]
        said: list[JsonObject] = [{"type": "text", "text": draw(_words)}]
        results: list[JsonObject] = [
            {"type": "tool_result", "tool_use_id": call["id"], "content": draw(_words), "is_error": draw(st.booleans())}
            for call in calls
        ]
        messages.append({"role": "assistant", "content": [*said, *calls]})
        messages.append({"role": "user", "content": [*results, {"type": "text", "text": draw(_words)}]})
    properties: JsonObject = {draw(_words): {"type": "string"}}
    schema: JsonObject = {"type": "object", "properties": properties}
    stop: list[JsonValue] = [*draw(st.lists(_words, max_size=2))]
    tools: list[JsonValue] = [{"name": "weather", "description": draw(_words), "input_schema": schema}]
    return {
        "model": "small",
        "max_tokens": draw(st.integers(1, 9000)),
        "messages": messages,
        "system": draw(_words),
        "tools": tools,
        "stop_sequences": stop,
        "temperature": draw(st.sampled_from([0, 0.5, 1])),
    }


@settings(max_examples=150, deadline=None)
@given(_requests())
def test_a_request_comes_back_as_it_was_from_openai_s_words(payload: JsonObject) -> None:
    neutral = read_message_request(payload)

    chat = _OPENAI.write(neutral, "small", _KIND, ask_usage=True).payload
    back = read_chat_request(chat)
    again = read_message_request(_ANTHROPIC.write(back, "small", _KIND, ask_usage=True).payload)

    for other in (back, again):
        assert _turns(other) == _turns(neutral)
        assert [(tool.name, tool.description, tool.parameters) for tool in other.tools] == [
            (tool.name, tool.description, tool.parameters) for tool in neutral.tools
        ]
        assert (other.max_tokens, other.stop, other.temperature) == (
            neutral.max_tokens,
            neutral.stop,
            neutral.temperature,
        )


def _turns(conversation: Conversation) -> list[tuple[str, str]]:
    """Who said what, in order: neighbouring texts of one side as one, calls and results with their ids."""
    turns: list[tuple[str, str]] = []
    for message in conversation.messages:
        role = "system" if message.role is Role.DEVELOPER else message.role.value
        for part in message.parts:
            match part:
                case Text(text):
                    if turns and turns[-1][0] == role:
                        turns[-1] = role, turns[-1][1] + text
                    else:
                        turns.append((role, text))
                case ToolCall():
                    turns.append((f"call {part.id}", json.dumps(json.loads(part.arguments), sort_keys=True)))
                case ToolResult():
                    turns.append(
                        (
                            f"result {part.call_id}",
                            "".join(piece.text for piece in part.parts if isinstance(piece, Text)),
                        )
                    )
                case _:
                    raise AssertionError(part)
    return turns
