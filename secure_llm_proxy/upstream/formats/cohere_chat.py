"""Cohere's v2/chat, plain and streamed by named events. Pure: no socket here.

No door speaks it, so every request is translated. What the model plans before it calls tools is text that the user may see;
citations are not passed on, because no request of ours brings documents that they could point at.

Source: Cohere API v2 reference "Chat", "Chat with streaming" and its guides "Streaming", "Streaming for tool use", read
2026-11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import FailureKind, InvalidRequest, UpstreamFailed
from secure_llm_proxy.upstream.formats.cohere_errors import reported_error
from secure_llm_proxy.upstream.formats.cohere_messages import messages_of, settings_of, tools_of
from secure_llm_proxy.upstream.formats.face import (
    REPORTED_ERROR,
    ReportedError,
    Written,
    read_object,
    unreadable,
    unsupported,
)
from secure_llm_proxy.upstream.formats.parameters import Losses
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Choice,
    Conversation,
    Delta,
    DeltaKind,
    Finish,
    Reasoning,
    Text,
    ToolCall,
)
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent
    from secure_llm_proxy.vocabulary.conversation import Neutral, Part
    from secure_llm_proxy.vocabulary.providers import ProviderKind

_DONE = b"[DONE]"
_FINISH = {
    "COMPLETE": Finish.STOP,
    "STOP_SEQUENCE": Finish.STOP_SEQUENCE,
    "MAX_TOKENS": Finish.LENGTH,
    "TOOL_CALL": Finish.TOOL_CALLS,
    "ERROR_TOXIC": Finish.CONTENT_FILTER,
}
_FAILED = {"ERROR": FailureKind.OVERLOADED, "TIMEOUT": FailureKind.TIMEOUT, "ERROR_LIMIT": FailureKind.CONTEXT_LENGTH}


class CohereChat:
    format = WireFormat.COHERE_CHAT

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        del payload, model, kind, stream, ask_usage
        raise unsupported("model", "no endpoint of this proxy speaks its wire format.")

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del ask_usage  # the last event of a stream always tells it
        if not isinstance(neutral, Conversation):
            raise unsupported("model", "it answers conversations alone.")
        lost = Losses()
        payload: JsonObject = {
            "model": model,
            "messages": messages_of(neutral, lost),
            "stream": neutral.stream,
            **tools_of(neutral, lost),
            **settings_of(neutral, kind, lost),
        }
        lost.drop_further(neutral.further)
        return Written(payload, lost.names)

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        payload = read_object(body)
        message = payload.get("message")
        if not isinstance(message, dict):
            raise unreadable("the answer has no message")
        finish = _finish(payload.get("finish_reason"))
        parts = _parts(message)
        answer = None
        if translated:
            answer = Answer(
                (Choice(parts, finish, logprobs=_logprobs(payload.get("logprobs"))),), _string(payload, "id")
            )
        text = "".join([part.text for part in parts if isinstance(part, Text)])
        return Completion(payload, text, _usage(payload) or Usage(), model, self.format, answer)

    def stream(self, *, translated: bool, shows_usage: bool) -> CohereStream:
        del shows_usage  # its usage is never asked for, so the writer says whether it is shown
        return CohereStream(translated=translated)

    def read_error(self, payload: JsonObject) -> ReportedError:
        return reported_error(payload)


class CohereStream:
    """The events of one stream. Each says its kind in its data too; the name before it is not needed."""

    __slots__ = ("_calls", "_translated", "done", "finished")

    def __init__(self, *, translated: bool) -> None:
        self._translated = translated
        self._calls = 0
        self.finished = False
        self.done = False

    def read(self, sent: ServerSentEvent) -> StreamEvent | None:
        data = sent.data.strip()
        if data == _DONE:
            self.done = True
            return None
        return self.read_object(data) if data else None

    def read_object(self, data: bytes) -> StreamEvent | None:
        try:
            payload = strict_json.loads_object(data)
        except InvalidRequest as error:
            raise unreadable(f"JSON: {error.code}") from None
        if b"\n" in data:
            data = strict_json.dumps(payload)
        delta = payload.get("delta")
        message = delta.get("message") if isinstance(delta, dict) else None
        kind = payload.get("type")
        if kind == "content-delta" and type(message) is dict:
            content = message.get("content")
            if type(content) is dict and type(text := content.get("text")) is str and "logprobs" not in payload:
                # the usual event: a piece of visible text
                deltas = (Delta(DeltaKind.TEXT, 0, 0, text),) if self._translated else ()
                return StreamEvent(data, payload, text, None, True, b"", deltas)
        steps = self._steps(kind, payload, message if isinstance(message, dict) else {})
        text = "".join([step.text for step in steps if step.kind is DeltaKind.TEXT])
        plain = all(step.kind in _PLAIN for step in steps)
        usage = None
        if kind == "message-end" and isinstance(delta, dict):
            usage = _usage(delta)
        elif not steps:
            # where a block begins or ends, a citation: nothing to anybody
            return None
        return StreamEvent(data, payload, text, usage, plain, b"", tuple(steps) if self._translated else ())

    def _steps(self, kind: JsonValue, payload: JsonObject, message: JsonObject) -> list[Delta]:
        match kind:
            case "message-start":
                return [Delta(DeltaKind.START, id=_string(payload, "id"))]
            case "content-start" | "content-delta":
                return _content_steps(message.get("content")) + _logprob_steps(payload.get("logprobs"))
            case "tool-plan-delta":
                plan = message.get("tool_plan")
                return [Delta(DeltaKind.TEXT, text=plan)] if isinstance(plan, str) and plan else []
            case "tool-call-start":
                call = _call(message.get("tool_calls"))
                self._calls += 1
                at = self._calls - 1
                begun = Delta(DeltaKind.TOOL_CALL, 0, at, id=call.id, name=call.name)
                if not call.arguments:
                    return [begun]
                return [begun, Delta(DeltaKind.TOOL_ARGUMENTS, 0, at, call.arguments)]
            case "tool-call-delta":
                arguments = _arguments(message.get("tool_calls"))
                if self._calls == 0:
                    raise unreadable("arguments of no call")
                return [Delta(DeltaKind.TOOL_ARGUMENTS, 0, self._calls - 1, arguments)] if arguments else []
            case "message-end":
                delta = payload.get("delta")
                ended = delta if isinstance(delta, dict) else {}
                if ended.get("error"):
                    raise UpstreamFailed(
                        REPORTED_ERROR, failure=FailureKind.OVERLOADED, detail="an error ended the stream"
                    )
                finish = _finish(ended.get("finish_reason"))
                # Nothing follows, whether or not an end mark does.
                self.finished = self.done = True
                return [Delta(DeltaKind.FINISH, finish=finish)]
            case str():
                return []
            case _:
                # an event without a type is an error by its shape
                raise UpstreamFailed(
                    REPORTED_ERROR,
                    failure=reported_error(payload).kind or FailureKind.OVERLOADED,
                    detail="an event without a type in the stream",
                )


_PLAIN = frozenset({DeltaKind.START, DeltaKind.TEXT, DeltaKind.LOGPROBS, DeltaKind.FINISH})


def _content_steps(content: JsonValue) -> list[Delta]:
    if not isinstance(content, dict):
        return []
    steps: list[Delta] = []
    for name, kind in (("thinking", DeltaKind.REASONING), ("text", DeltaKind.TEXT)):
        value = content.get(name)
        if isinstance(value, str) and value:
            steps.append(Delta(kind, text=value))
    return steps


def _logprob_steps(value: JsonValue) -> list[Delta]:
    logprobs = _logprobs([value] if isinstance(value, dict) else value)
    return [] if logprobs is None else [Delta(DeltaKind.LOGPROBS, value=logprobs)]


def _parts(message: JsonObject) -> tuple[Part, ...]:
    """Thought, then the plan, then the calls; or thought and the text. Raises `UpstreamFailed` for what is neither."""
    parts: list[Part] = []
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    for piece in content if isinstance(content, list) else []:
        if not isinstance(piece, dict):
            raise unreadable("a piece of content is not an object")
        text = piece.get("text", piece.get("thinking"))
        if not isinstance(text, str):
            raise unreadable("a piece of content is neither text nor thought")
        if text:
            parts.append(Text(text) if "text" in piece else Reasoning(text))
    plan = message.get("tool_plan")
    if isinstance(plan, str) and plan:
        parts.append(Text(plan))
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        parts.extend([_call(call) for call in calls])
    return tuple(parts)


def _call(value: JsonValue) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    identifier = value.get("id") if isinstance(value, dict) else None
    if not isinstance(name, str) or not isinstance(identifier, str):
        raise unreadable("a tool call without an id or a name")
    return ToolCall(identifier, name, _arguments(value))


def _arguments(value: JsonValue) -> str:
    function = value.get("function") if isinstance(value, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if arguments is None:
        return ""
    if not isinstance(arguments, str):
        raise unreadable("the arguments of a call are no text")
    return arguments


def _finish(reason: JsonValue) -> Finish:
    """An end of a kind that is not known here is not the model's own, so it is told as a filter's."""
    if not isinstance(reason, str):
        raise unreadable("the answer has no finish_reason")
    failed = _FAILED.get(reason)
    if failed is not None:
        raise UpstreamFailed(REPORTED_ERROR, failure=failed, detail=f"finish_reason {reason}")
    return _FINISH.get(reason, Finish.CONTENT_FILTER)


def _logprobs(value: JsonValue) -> JsonObject | None:
    """As OpenAI writes them. A piece of text that is several tokens is told as one, with the probability of all of them."""
    if not isinstance(value, list):
        return None
    content: list[JsonValue] = []
    for piece in value:
        text = piece.get("text") if isinstance(piece, dict) else None
        listed = piece.get("logprobs") if isinstance(piece, dict) else None
        if not isinstance(text, str) or not isinstance(listed, list):
            raise unreadable("log probabilities without text or numbers")
        numbers = [number for number in listed if type(number) is int or type(number) is float]
        if len(numbers) != len(listed):
            raise unreadable("a log probability is no number")
        content.append({"token": text, "logprob": sum(numbers), "bytes": list(text.encode()), "top_logprobs": []})
    return {"content": content, "refusal": None}


def _usage(payload: JsonObject) -> Usage | None:
    """The tokens that the model saw and made; where only the billed ones are told, those. They come as decimal numbers."""
    value = payload.get("usage")
    if not isinstance(value, dict):
        return None
    counted = value.get("tokens")
    if not isinstance(counted, dict):
        counted = value.get("billed_units")
    if not isinstance(counted, dict):
        return None
    prompt, answer = whole(counted.get("input_tokens")), whole(counted.get("output_tokens"))
    total = None if prompt is None or answer is None else prompt + answer
    return Usage(prompt, answer, total, whole(value.get("cached_tokens")))


def whole(value: JsonValue) -> int | None:
    """A number of tokens, which may be written as 12.0; None for anything else."""
    if type(value) is int and value >= 0:
        return value
    return int(value) if type(value) is float and value >= 0 and value.is_integer() else None


def _string(payload: JsonObject, name: str) -> str | None:
    value = payload.get(name)
    return value if isinstance(value, str) and value else None
