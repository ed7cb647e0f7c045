"""Conversations in the neutral model, to be written in a provider's words: one that says everything, and any."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from secure_llm_proxy.vocabulary.conversation import (
    Conversation,
    Image,
    Message,
    Reasoning,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)

WEATHER = Tool(
    "get_weather",
    "The weather of a town",
    {"type": "object", "properties": {"town": {"type": "string", "description": "Its name"}}, "required": ["town"]},
)
CLOCK = Tool("get_time", "The time there")
PIXEL = "iVBORw0KGgo="


def talk(*messages: Message, **fields: object) -> Conversation:
    return Conversation(messages or (user("How are you?"),), **fields)  # type: ignore[arg-type]  # the test's own


def system(text: str) -> Message:
    return Message(Role.SYSTEM, (Text(text),))


def user(text: str) -> Message:
    return Message(Role.USER, (Text(text),))


def assistant(text: str) -> Message:
    return Message(Role.ASSISTANT, (Text(text),))


def called_two_tools() -> Conversation:
    """Two calls at once, and their results as OpenAI's clients give them: a message each."""
    return talk(
        system("You are brief."),
        Message(Role.DEVELOPER, (Text("Answer in German."),)),
        Message(Role.USER, (Text("Is this Paris?"), Image(data=PIXEL, media_type="image/png"))),
        Message(
            Role.ASSISTANT,
            (
                Text("Let me see."),
                ToolCall("call_1", "get_weather", '{"town": "Paris"}'),
                ToolCall("call_2", "get_time", ""),
            ),
        ),
        Message(Role.TOOL, (ToolResult("call_1", (Text("22 degrees"),)),)),
        Message(Role.TOOL, (ToolResult("call_2", (Text("no clock there"),), is_error=True),)),
        tools=(WEATHER, CLOCK),
        tool_choice=ToolChoice("auto"),
    )


_texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
_names = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
_objects = st.dictionaries(_texts, _texts | st.integers(-5, 5) | st.lists(_texts, max_size=2), max_size=3)


@st.composite
def _exchanges(draw: st.DrawFn) -> tuple[Message, ...]:
    """A user's turn, perhaps with tools called and their results given, and an answer."""
    turn = [Message(Role.USER, tuple(Text(text) for text in draw(st.lists(_texts, min_size=1, max_size=3))))]
    calls = [
        ToolCall(f"call_{draw(st.uuids())}", draw(_names), json.dumps(draw(_objects)))
        for _ in range(draw(st.integers(0, 3)))
    ]
    if calls:
        thought = draw(st.none() | _texts)
        before = (Reasoning(thought),) if thought is not None else ()
        turn.append(Message(Role.ASSISTANT, (*before, Text(draw(_texts)), *calls)))
        results = tuple(ToolResult(call.id, (Text(draw(_texts)),)) for call in calls)
        together = draw(st.booleans())
        turn += [Message(Role.TOOL, results)] if together else [Message(Role.TOOL, (result,)) for result in results]
    turn.append(Message(Role.ASSISTANT, (Text(draw(_texts)),)))
    if draw(st.booleans()):
        turn.insert(0, Message(draw(st.sampled_from((Role.SYSTEM, Role.DEVELOPER))), (Text(draw(_texts)),)))
    return tuple(turn)


_tools = st.builds(Tool, _names, st.none() | _texts, st.none() | st.fixed_dictionaries({"properties": _objects}))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Any conversation of texts and tools, whose every text each provider of ours can be told."""
    messages = [message for turn in draw(st.lists(_exchanges(), min_size=1, max_size=3)) for message in turn]
    return Conversation(
        (*messages, user(draw(_texts))),
        tools=tuple(draw(st.lists(_tools, max_size=2, unique_by=lambda tool: tool.name))),
        stop=tuple(draw(st.lists(_texts, max_size=3))),
    )
