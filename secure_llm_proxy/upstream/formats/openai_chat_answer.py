"""What a server of OpenAI's chat completions answered, in neutral form: whole, and event by event. Pure.

Thoughts are read from `reasoning_content` (DeepSeek, vLLM, llama.cpp), `reasoning` (OpenRouter, Groq, Ollama, Together AI) and
parts of type `thinking` (Mistral). Servers differ in how they number the calls of a stream, and some send one at a piece:
`CallsOfAStream` knows them apart.

Source: OpenAI API reference (The chat completion object, The chat completion chunk object), those of the named providers, and
the sources of vLLM and Ollama, read 2026-11-21.
"""

from __future__ import annotations

from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import FailureKind, UpstreamFailed
from secure_llm_proxy.upstream.formats.face import REPORTED_ERROR, unreadable
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Choice,
    Delta,
    DeltaKind,
    Finish,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
)

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.vocabulary.conversation import Part

_FINISH: Final = {
    "stop": Finish.STOP,
    "eos": Finish.STOP,
    "length": Finish.LENGTH,
    "model_length": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
}
_PLAIN_DELTA: Final = frozenset({"content", "role"})


def answer_of(payload: JsonObject) -> Answer:
    """The answer with every choice. Raises `UpstreamFailed` for what is none."""
    id_, created = payload.get("id"), payload.get("created")
    choices = _objects(payload.get("choices"), "choices")
    if not choices:
        raise unreadable("the answer has no choice")
    return Answer(
        tuple(_choice(choice) for choice in sorted(choices, key=_index)),
        id_ if isinstance(id_, str) and id_ else None,
        created if type(created) is int else None,
    )


def _index(choice: JsonObject) -> int:
    index = choice.get("index")
    return index if type(index) is int and index >= 0 else 0


def _choice(choice: JsonObject) -> Choice:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise unreadable("a message is not an object")
    parts: list[Part] = []
    if thought := _thought(message):
        parts.append(Reasoning(thought))
    for is_thought, text in _said(message.get("content")):
        parts.append(Reasoning(text) if is_thought else Text(text))
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        parts.append(Refusal(refusal))
    calls = CallsOfAStream()
    for delta in calls.read(message, 0):
        if delta.kind is DeltaKind.TOOL_CALL:
            parts.append(ToolCall(delta.id or "", delta.name or "", ""))
        else:
            call = parts[-1]
            assert isinstance(call, ToolCall)
            parts[-1] = ToolCall(call.id, call.name, call.arguments + delta.text)
    calls.require_names(0)
    finish, stop_sequence = _finish(choice)
    return Choice(tuple(parts), finish, stop_sequence, choice.get("logprobs"))


def deltas_of(payload: JsonObject, calls: CallsOfAStream) -> tuple[Delta, ...]:
    """What one event of a stream adds. `calls` are those of the stream so far. Raises `UpstreamFailed`."""
    choices = payload.get("choices")
    if choices is None:
        return ()
    found: list[Delta] = []
    for choice in _objects(choices, "choices"):
        at = _index(choice)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            _add(delta, at, calls, found)
        logprobs = choice.get("logprobs")
        if logprobs is not None:
            found.append(Delta(DeltaKind.LOGPROBS, at, value=logprobs))
        if choice.get("finish_reason") is not None:
            calls.require_names(at)
            finish, stop_sequence = _finish(choice)
            found.append(Delta(DeltaKind.FINISH, at, text=stop_sequence or "", finish=finish))
    return tuple(found)


def _add(delta: JsonObject, at: int, calls: CallsOfAStream, found: list[Delta]) -> None:
    content = delta.get("content")
    if _PLAIN_DELTA.issuperset(delta) and not isinstance(content, list):
        if isinstance(content, str) and content:
            found.append(Delta(DeltaKind.TEXT, at, text=content))
        return
    if thought := _thought(delta):
        found.append(Delta(DeltaKind.REASONING, at, text=thought))
    for is_thought, text in _said(content):
        found.append(Delta(DeltaKind.REASONING if is_thought else DeltaKind.TEXT, at, text=text))
    refusal = delta.get("refusal")
    if isinstance(refusal, str) and refusal:
        found.append(Delta(DeltaKind.REFUSAL, at, text=refusal))
    found += calls.read(delta, at)


@dataclass(slots=True)
class _Call:
    """One call of a stream. `number` is None until its name is known; its arguments wait so long."""

    id: str | None
    number: int | None = None
    waiting: str = ""


class CallsOfAStream:
    """Which piece belongs to which call.

    A piece with an id that its place does not have yet begins a call, so that servers that number all calls alike are
    understood; a piece without a place continues the last call.
    """

    __slots__ = ("_counts", "_last", "_places", "_unnamed")

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], _Call] = {}
        self._counts: dict[int, int] = {}
        self._last: dict[int, _Call] = {}
        self._unnamed: dict[int, list[_Call]] = {}

    def read(self, told: JsonObject, choice: int) -> list[Delta]:
        """The deltas of a message's or delta's `tool_calls`, or of its `function_call`, their older name."""
        found: list[Delta] = []
        calls = told.get("tool_calls")
        if calls is not None:
            for piece in _objects(calls, "tool_calls"):
                self._take(piece, piece.get("function"), choice, found)
        legacy = told.get("function_call")
        if isinstance(legacy, dict):
            self._take({"index": 0}, legacy, choice, found)
        return found

    def require_names(self, choice: int) -> None:
        """Raises `UpstreamFailed` when the choice ends with a call that says of no function that it is called."""
        if self._unnamed and any(call.number is None for call in self._unnamed.get(choice, ())):
            raise unreadable("a tool call without a name")

    def _take(self, piece: JsonObject, function: JsonValue, choice: int, found: list[Delta]) -> None:
        if not isinstance(function, dict):
            raise unreadable("a tool call without a function")
        id_, name, arguments = piece.get("id"), function.get("name"), function.get("arguments")
        told_id = id_ if isinstance(id_, str) and id_ else None
        is_named = isinstance(name, str) and bool(name)
        call = self._call(piece.get("index"), told_id, choice, named=is_named)
        text = _arguments(arguments)
        if call.number is not None:
            if text:
                found.append(Delta(DeltaKind.TOOL_ARGUMENTS, choice, call.number, text))
            return
        call.waiting += text
        if not isinstance(name, str) or not name:
            self._unnamed.setdefault(choice, []).append(call)
            return
        call.number = self._counts.get(choice, 0)
        self._counts[choice] = call.number + 1
        call.id = call.id or f"call_{token_hex(12)}"
        found.append(Delta(DeltaKind.TOOL_CALL, choice, call.number, id=call.id, name=name))
        if call.waiting:
            found.append(Delta(DeltaKind.TOOL_ARGUMENTS, choice, call.number, call.waiting))
            call.waiting = ""

    def _call(self, index: JsonValue, id_: str | None, choice: int, *, named: bool) -> _Call:
        """The call to which a piece belongs."""
        call = self._places.get((choice, index)) if type(index) is int else self._last.get(choice)
        is_other = call is not None and id_ is not None and call.id is not None and call.id != id_
        if call is not None and type(index) is not int and id_ is None and named and call.number is not None:
            # Neither place nor id: whole calls, side by side.
            is_other = True
        if call is None or is_other:
            call = _Call(id_)
            if type(index) is int:
                self._places[choice, index] = call
        elif call.id is None:
            call.id = id_
        self._last[choice] = call
        return call


def _arguments(told: JsonValue) -> str:
    """Arguments as text; some servers send the object itself."""
    if isinstance(told, str):
        return told
    if told is None:
        return ""
    if not isinstance(told, dict):
        raise unreadable("the arguments of a tool call are neither text nor an object")
    return strict_json.dumps(told).decode()


def _thought(told: JsonObject) -> str:
    for name in ("reasoning_content", "reasoning"):
        text = told.get(name)
        if isinstance(text, str) and text:
            return text
    return ""


def _said(content: JsonValue) -> list[tuple[bool, str]]:
    """The texts of a content, each with whether it is a thought."""
    if isinstance(content, str):
        return [(False, content)] if content else []
    if not isinstance(content, list):
        return []
    found: list[tuple[bool, str]] = []
    for part in content:
        if not isinstance(part, dict):
            continue
        text, thinking = part.get("text"), part.get("thinking")
        if isinstance(text, str) and text:
            found.append((False, text))
        elif isinstance(thinking, str) and thinking:
            found.append((True, thinking))
        elif isinstance(thinking, list):
            found += [(True, text) for _, text in _said(thinking)]
    return found


def _finish(choice: JsonObject) -> tuple[Finish | None, str | None]:
    """Why it ended, and the stop sequence that was met where the server tells it (vLLM's `stop_reason`)."""
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or not reason:
        return None, None
    if reason == "error":
        raise UpstreamFailed(REPORTED_ERROR, failure=FailureKind.OVERLOADED, detail="a choice that ended with an error")
    met = choice.get("stop_reason")
    if reason == "stop" and isinstance(met, str) and met:
        return Finish.STOP_SEQUENCE, met
    return _FINISH.get(reason, Finish.STOP), None


def _objects(value: JsonValue, what: str) -> list[JsonObject]:
    if not isinstance(value, list):
        raise unreadable(f"{what} is not a list")
    objects: list[JsonObject] = []
    for item in value:
        if not isinstance(item, dict):
            raise unreadable(f"one of {what} is not an object")
        objects.append(item)
    return objects
