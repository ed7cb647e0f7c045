"""Gemini's generateContent and streamGenerateContent (`alt=sse`). Pure: no socket here.

No door speaks it, so every request is translated. A signature that stands at a function call is kept as a sealed thought in
front of that call, marked as Gemini's: a client that gives it back (Anthropic's do) gets the model to think on.

Source: Gemini API reference (GenerateContentResponse, Candidate, Part, LogprobsResult, UsageMetadata) and its guide
"Thought signatures", read 2026-11.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import FailureKind, InvalidRequest, UpstreamFailed
from secure_llm_proxy.upstream.formats.face import (
    REPORTED_ERROR,
    ReportedError,
    Written,
    read_object,
    unreadable,
    unsupported,
)
from secure_llm_proxy.upstream.formats.gemini_contents import contents_of, generation_config_of, tools_of
from secure_llm_proxy.upstream.formats.gemini_errors import raise_reported, reported_error
from secure_llm_proxy.upstream.formats.parameters import Losses
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    SEALED_BY_GEMINI,
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

_UNSPECIFIED = "FINISH_REASON_UNSPECIFIED"
_ENDED_WELL = {"STOP": Finish.STOP, "MAX_TOKENS": Finish.LENGTH}
# The model failed at what it was asked for: nothing that a client could use as an answer.
_FAILED = frozenset(
    {
        "MALFORMED_FUNCTION_CALL",
        "MALFORMED_RESPONSE",
        "MISSING_THOUGHT_SIGNATURE",
        "TOO_MANY_TOOL_CALLS",
        "UNEXPECTED_TOOL_CALL",
    }
)
_MARKS = frozenset({"thought", "thoughtSignature", "partMetadata"})


class GeminiGenerate:
    format = WireFormat.GEMINI_GENERATE

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        del payload, model, kind, stream, ask_usage
        raise unsupported("model", "no endpoint of this proxy speaks its wire format.")

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del ask_usage  # the last event of a stream always tells it
        if not isinstance(neutral, Conversation):
            raise unsupported("model", "it answers conversations alone.")
        lost = Losses()
        payload = contents_of(neutral, model, lost) | tools_of(neutral, lost)
        if config := generation_config_of(neutral, model, kind, lost):
            payload["generationConfig"] = config
        if neutral.user is not None:
            lost.drop("user")
        lost.drop_further(neutral.further)
        return Written(payload, lost.names)

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        payload = read_object(body)
        raise_reported(payload)
        response_id = _string(payload, "responseId")
        choices: dict[int, Choice] = {}
        for at, candidate in enumerate(_candidates(payload)):
            index = _index(candidate, at)
            parts = _choice_parts(candidate, response_id, index)
            called = any(isinstance(part, ToolCall) for part in parts)
            finish = _finish(candidate.get("finishReason"), called=called)
            choices[index] = Choice(parts, finish, logprobs=_logprobs(candidate))
        if not choices:
            raise unreadable("the answer has no candidates")
        ordered = tuple(choice for _, choice in sorted(choices.items()))
        return Completion(
            payload,
            "\n".join(["".join([part.text for part in choice.parts if isinstance(part, Text)]) for choice in ordered]),
            _usage(payload) or Usage(),
            _string(payload, "modelVersion") or model,
            self.format,
            Answer(ordered, response_id) if translated else None,
        )

    def stream(self, *, translated: bool, shows_usage: bool) -> GeminiStream:
        del shows_usage  # its usage is never asked for, so the writer says whether it is shown
        return GeminiStream(translated=translated)

    def read_error(self, payload: JsonObject) -> ReportedError:
        return reported_error(payload)


class GeminiStream:
    """The events of one stream. Each is a whole answer's shape with what is new in it; nothing marks the end but that every
    candidate that has begun has ended.
    """

    __slots__ = ("_calls", "_ended", "_open", "_response_id", "_started", "_translated", "done", "finished")

    def __init__(self, *, translated: bool) -> None:
        self._translated = translated
        self._started = False
        self._response_id: str | None = None
        self._calls: dict[int, int] = {}
        self._open: set[int] = set()
        self._ended: set[int] = set()
        self.finished = False
        self.done = False

    def read(self, sent: ServerSentEvent) -> StreamEvent | None:
        data = sent.data.strip()
        return self.read_object(data) if data else None

    def read_object(self, data: bytes) -> StreamEvent | None:
        try:
            payload = strict_json.loads_object(data)
        except InvalidRequest as error:
            raise unreadable(f"JSON: {error.code}") from None
        if b"\n" in data:
            data = strict_json.dumps(payload)
        if 0 in self._open and (text := _only_text(payload)) is not None:
            deltas = (Delta(DeltaKind.TEXT, 0, 0, text),) if self._translated else ()
            return StreamEvent(data, payload, text, None, True, b"", deltas)
        raise_reported(payload)
        return self._read_slowly(data, payload)

    def _read_slowly(self, data: bytes, payload: JsonObject) -> StreamEvent:
        steps: list[Delta] = []
        if not self._started:
            self._started = True
            self._response_id = _string(payload, "responseId")
            steps.append(Delta(DeltaKind.START, id=self._response_id))
        text, plain, ended = "", True, False
        candidates = _candidates(payload)
        for at, candidate in enumerate(candidates):
            index = _index(candidate, at)
            for part in _parts(candidate):
                step = self._step(part, index)
                steps.extend(step)
                if len(step) == 1 and step[0].kind is DeltaKind.TEXT:
                    text += step[0].text
                elif step:
                    plain = False
            if (logprobs := _logprobs(candidate)) is not None:
                steps.append(Delta(DeltaKind.LOGPROBS, index, value=logprobs))
            finish = _finish(candidate.get("finishReason"), called=index in self._calls)
            if finish is not None:
                ended = True
                self._open.discard(index)
                if index not in self._ended:
                    self._ended.add(index)
                    steps.append(Delta(DeltaKind.FINISH, index, finish=finish))
            elif index not in self._ended:
                self._open.add(index)
        self.finished = bool(self._ended) and not self._open
        # Every event counts the tokens so far; only the last count is the answer's.
        usage = _usage(payload) if ended or not candidates else None
        return StreamEvent(data, payload, text, usage, plain, b"", tuple(steps) if self._translated else ())

    def _step(self, part: JsonObject, choice: int) -> list[Delta]:
        call = part.get("functionCall")
        if isinstance(call, dict):
            at = self._calls.get(choice, 0)
            self._calls[choice] = at + 1
            read = _tool_call(call, self._response_id, choice, at)
            steps = [
                Delta(DeltaKind.TOOL_CALL, choice, at, id=read.id, name=read.name),
                Delta(DeltaKind.TOOL_ARGUMENTS, choice, at, read.arguments),
            ]
            sealed = _sealed(part)
            return steps if sealed is None else [Delta(DeltaKind.REDACTED_REASONING, choice, text=sealed), *steps]
        text = _text_of(part)
        if not text:
            return []
        return [Delta(DeltaKind.REASONING if part.get("thought") is True else DeltaKind.TEXT, choice, 0, text)]


def _only_text(payload: JsonObject) -> str | None:
    """The text of the usual event: one candidate, still running, whose one part is visible text. None for any other."""
    candidates = payload.get("candidates")
    if type(candidates) is not list or len(candidates) != 1 or type(candidate := candidates[0]) is not dict:
        return None
    if "finishReason" in candidate or "logprobsResult" in candidate or candidate.get("index", 0) != 0:
        return None
    content = candidate.get("content")
    if type(content) is not dict or type(parts := content.get("parts")) is not list or len(parts) != 1:
        return None
    part = parts[0]
    if type(part) is not dict or len(part) != 1 or "error" in payload or "promptFeedback" in payload:
        return None
    text = part.get("text")
    return text if type(text) is str else None


def _candidates(payload: JsonObject) -> list[JsonObject]:
    value = payload.get("candidates")
    if value is None:
        return []
    if not isinstance(value, list):
        raise unreadable("candidates is not a list")
    return [_object(candidate, "a candidate") for candidate in value]


def _parts(candidate: JsonObject) -> list[JsonObject]:
    content = candidate.get("content")
    if content is None:
        return []
    parts = _object(content, "the content of a candidate").get("parts")
    if parts is None:
        return []
    if not isinstance(parts, list):
        raise unreadable("parts is not a list")
    return [_object(part, "a part") for part in parts]


def _choice_parts(candidate: JsonObject, response_id: str | None, choice: int) -> tuple[Part, ...]:
    """What a candidate says. Neighbouring pieces of text are one, as they are in a stream."""
    said: list[Part] = []
    calls = 0
    for part in _parts(candidate):
        call = part.get("functionCall")
        if isinstance(call, dict):
            sealed = _sealed(part)
            if sealed is not None:
                said.append(Reasoning("", redacted=sealed))
            said.append(_tool_call(call, response_id, choice, calls))
            calls += 1
            continue
        text = _text_of(part)
        last = said[-1] if said else None
        if not text:
            continue
        if part.get("thought") is True:
            if isinstance(last, Reasoning) and last.redacted is None:
                said[-1] = Reasoning(last.text + text)
            else:
                said.append(Reasoning(text))
        elif isinstance(last, Text):
            said[-1] = Text(last.text + text)
        else:
            said.append(Text(text))
    return tuple(said)


def _text_of(part: JsonObject) -> str:
    """The text of a part that is no call. Raises `UpstreamFailed` for media, code and whatever comes unasked: what can't be
    inspected is not passed on.
    """
    text = part.get("text")
    if isinstance(text, str):
        return text
    if text is not None or not _MARKS.issuperset(part):
        raise unreadable("a part of the answer is neither text nor a call")
    return ""


def _tool_call(call: JsonObject, response_id: str | None, choice: int, at: int) -> ToolCall:
    name, arguments = call.get("name"), call.get("args")
    if not isinstance(name, str) or not (arguments is None or isinstance(arguments, dict)):
        raise unreadable("a function call without a name, or with arguments that are no object")
    written = strict_json.dumps(arguments or {}).decode()
    return ToolCall(_string(call, "id") or _made_up_id(response_id, choice, at, name, written), name, written)


def _made_up_id(response_id: str | None, choice: int, at: int, name: str, arguments: str) -> str:
    """Models before Gemini 3 give their calls no id, and clients need one: the same for the same answer, another for another."""
    told = "\0".join([response_id or "", str(choice), str(at), name, arguments])
    return f"call_{hashlib.sha256(told.encode()).hexdigest()[:24]}"


def _sealed(part: JsonObject) -> str | None:
    signature = part.get("thoughtSignature")
    return SEALED_BY_GEMINI + signature if isinstance(signature, str) and signature else None


def _finish(reason: JsonValue, *, called: bool) -> Finish | None:
    """Every filter of the provider, and what it has no reason for, is a content filter: an end that is not the model's."""
    if reason is None or reason == _UNSPECIFIED:
        return None
    if not isinstance(reason, str):
        raise unreadable("finishReason is no word")
    if reason in _FAILED:
        raise UpstreamFailed(REPORTED_ERROR, failure=FailureKind.UNREADABLE, detail=f"finishReason {reason}")
    finish = _ENDED_WELL.get(reason, Finish.CONTENT_FILTER)
    return Finish.TOOL_CALLS if called and finish is Finish.STOP else finish


def _logprobs(candidate: JsonObject) -> JsonObject | None:
    """As OpenAI writes them."""
    result = candidate.get("logprobsResult")
    if not isinstance(result, dict):
        return None
    chosen, top = result.get("chosenCandidates"), result.get("topCandidates")
    if not isinstance(chosen, list):
        return None
    alternatives = top if isinstance(top, list) else []
    content: list[JsonValue] = []
    for at, token in enumerate(chosen):
        beside = alternatives[at] if at < len(alternatives) else None
        listed = beside.get("candidates") if isinstance(beside, dict) else None
        others: list[JsonValue] = [_token(other) for other in listed] if isinstance(listed, list) else []
        content.append({**_token(token), "top_logprobs": others})
    return {"content": content, "refusal": None}


def _token(value: JsonValue) -> JsonObject:
    token = _object(value, "a token")
    text, logprob = token.get("token", ""), token.get("logProbability", 0.0)
    if not isinstance(text, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise unreadable("a token without text or probability")
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _usage(payload: JsonObject) -> Usage | None:
    """Thought is counted apart and belongs to the answer; numbers that are 0 are left out by the provider."""
    value = payload.get("usageMetadata")
    if not isinstance(value, dict):
        return None
    thought = _count(value, "thoughtsTokenCount")
    return Usage(
        _count(value, "promptTokenCount") + _count(value, "toolUsePromptTokenCount"),
        _count(value, "candidatesTokenCount") + thought,
        _count(value, "totalTokenCount") or None,
        _count(value, "cachedContentTokenCount"),
        None,
        thought,
    )


def _count(usage: JsonObject, name: str) -> int:
    value = usage.get(name)
    return value if type(value) is int and value > 0 else 0


def _index(candidate: JsonObject, at: int) -> int:
    index = candidate.get("index")
    return index if type(index) is int and index >= 0 else at


def _string(payload: JsonObject, name: str) -> str | None:
    value = payload.get(name)
    return value if isinstance(value, str) and value else None


def _object(value: JsonValue, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise unreadable(f"{what} is not an object")
    return value
