"""Any conversation and any answer that OpenAI's chat completions can say, made by Hypothesis."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st

from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Audio,
    Choice,
    Conversation,
    Delta,
    DeltaKind,
    File,
    Finish,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Refusal,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)

CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(CHARACTERS, max_size=12)
SAID = st.text(CHARACTERS, min_size=1, max_size=12)
NAMES = st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True)
CALL_IDS = st.from_regex(r"call_[a-zA-Z0-9]{1,12}", fullmatch=True)
BASE64 = st.from_regex(r"[A-Za-z0-9+/]{4,12}", fullmatch=True)
LINKS = st.from_regex(r"https://[a-z]{1,8}\.example/[a-z0-9]{0,8}", fullmatch=True)
SCHEMAS: st.SearchStrategy[JsonObject] = st.fixed_dictionaries(
    {
        "type": st.just("object"),
        "properties": st.dictionaries(NAMES, st.fixed_dictionaries({"description": TEXTS}), max_size=2),
    }
)
FRACTIONS = st.floats(0, 1)

_TEXT_PARTS = st.builds(Text, TEXTS)
_IMAGES = st.one_of(
    st.builds(Image, url=LINKS, detail=st.sampled_from([None, "auto", "low", "high"])),
    st.builds(Image, data=BASE64, media_type=st.sampled_from(["image/png", "image/jpeg"])),
)
_FILES = st.one_of(
    st.builds(File, data=BASE64, media_type=st.just("application/pdf"), name=NAMES),
    st.builds(File, file_id=NAMES),
)
_AUDIO = st.builds(Audio, BASE64, st.sampled_from(["wav", "mp3"]))
_NAMED = st.one_of(st.none(), NAMES)


def _as_tuple(values: list[Part]) -> tuple[Part, ...]:
    return tuple(values)


_SYSTEM = st.builds(
    Message,
    st.sampled_from([Role.SYSTEM, Role.DEVELOPER]),
    st.lists(_TEXT_PARTS, min_size=1, max_size=3).map(tuple),
    _NAMED,
)


def _users(media: bool) -> st.SearchStrategy[Message]:  # noqa: FBT001  one of two
    parts = st.one_of(_TEXT_PARTS, _IMAGES, _FILES, _AUDIO) if media else _TEXT_PARTS
    return st.builds(Message, st.just(Role.USER), st.lists(parts, min_size=1, max_size=3).map(tuple), _NAMED)


_CALLS = st.builds(ToolCall, CALL_IDS, NAMES, st.one_of(st.just('{"city":"Rome"}'), SAID.filter(str.strip)))


@st.composite
def _assistants(draw: st.DrawFn) -> Message:
    texts: list[Part] = list(draw(st.lists(_TEXT_PARTS, max_size=2)))
    refusals: list[Part] = list(draw(st.lists(st.builds(Refusal, SAID), max_size=1)))
    calls: list[Part] = list(draw(st.lists(_CALLS, max_size=2)))
    parts = _as_tuple([*texts, *refusals, *calls]) or (Text(draw(TEXTS)),)
    return Message(Role.ASSISTANT, parts, draw(_NAMED))


_RESULTS = st.builds(
    Message,
    st.just(Role.TOOL),
    st.builds(ToolResult, CALL_IDS, st.lists(_TEXT_PARTS, min_size=1, max_size=2).map(tuple)).map(lambda one: (one,)),
)
_TOOLS = st.lists(
    st.builds(Tool, NAMES, st.one_of(st.none(), TEXTS), st.one_of(st.none(), SCHEMAS), st.sampled_from([None, True])),
    max_size=3,
    unique_by=lambda tool: tool.name,
).map(tuple)
_OUTPUTS = st.one_of(
    st.none(),
    st.just(OutputFormat("json")),
    st.builds(
        OutputFormat,
        st.just("schema"),
        SCHEMAS,
        NAMES,
        st.one_of(st.none(), TEXTS),
        st.sampled_from([None, True, False]),
    ),
)


_Value = TypeVar("_Value")


def _perhaps(values: st.SearchStrategy[_Value]) -> st.SearchStrategy[_Value | None]:
    return st.one_of(st.none(), values)


@st.composite
def conversations(draw: st.DrawFn, *, media: bool = True) -> Conversation:
    """Whatever has a place in both the neutral model and OpenAI's chat completions. `media`: also images, files, audio."""
    tools = draw(_TOOLS)
    is_chosen = draw(st.booleans())
    choice = None
    if tools and is_chosen:
        parallel = draw(st.sampled_from([None, True, False]))
        choices = [
            ToolChoice(parallel=parallel),
            ToolChoice("none", None, parallel),
            ToolChoice("required", None, parallel),
        ]
        choice = draw(st.sampled_from([*choices, *(ToolChoice("named", tool.name, parallel) for tool in tools)]))

    return Conversation(
        messages=tuple(
            draw(st.lists(st.one_of(_SYSTEM, _users(media), _assistants(), _RESULTS), min_size=1, max_size=5))
        ),
        tools=tools,
        tool_choice=choice,
        output=draw(_OUTPUTS),
        max_tokens=draw(_perhaps(st.integers(1, 4096))),
        temperature=draw(_perhaps(FRACTIONS)),
        top_p=draw(_perhaps(FRACTIONS)),
        stop=tuple(draw(st.lists(SAID, max_size=4))),
        seed=draw(_perhaps(st.integers(0, 2**31))),
        presence_penalty=draw(_perhaps(FRACTIONS)),
        frequency_penalty=draw(_perhaps(FRACTIONS)),
        n=draw(_perhaps(st.integers(1, 3))),
        logprobs=draw(_perhaps(st.booleans())),
        top_logprobs=draw(_perhaps(st.integers(0, 20))),
        reasoning_effort=draw(_perhaps(st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh"]))),
        user=draw(_perhaps(NAMES)),
        stream=draw(st.booleans()),
    )


_ANSWER_CALLS = st.builds(ToolCall, CALL_IDS, NAMES, TEXTS)


@st.composite
def _choices(draw: st.DrawFn) -> Choice:
    thought: list[Part] = list(draw(st.lists(st.builds(Reasoning, SAID), max_size=1)))
    text: list[Part] = list(draw(st.lists(st.builds(Text, SAID), max_size=1)))
    refusal: list[Part] = list(draw(st.lists(st.builds(Refusal, SAID), max_size=1)))
    made = draw(st.lists(_ANSWER_CALLS, max_size=3, unique_by=lambda call: call.id))
    calls: list[Part] = list(made)
    finish = Finish.TOOL_CALLS if calls else draw(st.sampled_from([Finish.STOP, Finish.LENGTH, Finish.CONTENT_FILTER]))
    return Choice(_as_tuple([*thought, *text, *refusal, *calls]), finish)


ANSWERS = st.builds(
    Answer, st.lists(_choices(), min_size=1, max_size=2).map(tuple), st.just("msg_1"), st.just(1_795_219_200)
)


def steps_of(answer: Answer, piece: int) -> list[Delta]:
    """A stream of that answer, its texts in pieces of `piece` characters, one choice after the other."""

    def pieces(text: str) -> list[str]:
        return [text[start : start + piece] for start in range(0, len(text), piece)]

    steps = [Delta(DeltaKind.START, id=answer.id)]
    for at, choice in enumerate(answer.choices):
        number = 0
        for part in choice.parts:
            match part:
                case Text(text):
                    steps += [Delta(DeltaKind.TEXT, at, text=said) for said in pieces(text)]
                case Reasoning(text):
                    steps += [Delta(DeltaKind.REASONING, at, text=said) for said in pieces(text)]
                case Refusal(text):
                    steps += [Delta(DeltaKind.REFUSAL, at, text=said) for said in pieces(text)]
                case ToolCall(id_, name, arguments):
                    steps.append(Delta(DeltaKind.TOOL_CALL, at, number, id=id_, name=name))
                    steps += [Delta(DeltaKind.TOOL_ARGUMENTS, at, number, said) for said in pieces(arguments)]
                    number += 1
        steps.append(Delta(DeltaKind.FINISH, at, finish=choice.finish))
    return steps


def answer_of_steps(steps: list[Delta], created: int | None = 1_795_219_200) -> Answer:
    """What a client puts together from a stream: neighbouring pieces of one kind joined."""
    parts: dict[int, list[Part]] = {}
    finishes: dict[int, Finish | None] = {}
    id_: str | None = None
    for step in steps:
        said = parts.setdefault(step.choice, [])
        last = said[-1] if said else None
        match step.kind:
            case DeltaKind.START:
                id_ = step.id
            case DeltaKind.TEXT:
                said[-1:] = [Text(last.text + step.text)] if isinstance(last, Text) else [*said[-1:], Text(step.text)]
            case DeltaKind.REASONING:
                joined = isinstance(last, Reasoning)
                said[-1:] = [Reasoning(last.text + step.text)] if joined else [*said[-1:], Reasoning(step.text)]  # type: ignore[union-attr]  # `joined`
            case DeltaKind.REFUSAL:
                joined = isinstance(last, Refusal)
                said[-1:] = [Refusal(last.text + step.text)] if joined else [*said[-1:], Refusal(step.text)]  # type: ignore[union-attr]  # `joined`
            case DeltaKind.TOOL_CALL:
                said.append(ToolCall(step.id or "", step.name or "", ""))
            case DeltaKind.TOOL_ARGUMENTS:
                calls = [at for at, part in enumerate(said) if isinstance(part, ToolCall)]
                call = said[calls[step.call]]
                assert isinstance(call, ToolCall)
                said[calls[step.call]] = ToolCall(call.id, call.name, call.arguments + step.text)
            case DeltaKind.FINISH:
                finishes[step.choice] = step.finish
            case _:
                pass
    return Answer(tuple(Choice(tuple(said), finishes.get(at)) for at, said in sorted(parts.items())), id_, created)
