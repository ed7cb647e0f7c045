"""Whatever a provider says, reading it gives an answer or the error that says that it could not be understood."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import FailureKind, UpstreamFailed
from secure_llm_proxy.upstream.formats import FORMATS
from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent
from secure_llm_proxy.vocabulary.chat import StreamEvent
from secure_llm_proxy.vocabulary.conversation import Answer, Embeddings, TokenCount
from secure_llm_proxy.vocabulary.wire_formats import OPERATION_OF, Operation, WireFormat

_FORMATS = (
    WireFormat.GEMINI_GENERATE,
    WireFormat.GEMINI_EMBED,
    WireFormat.GEMINI_COUNT_TOKENS,
    WireFormat.COHERE_CHAT,
    WireFormat.COHERE_EMBED,
)
_STREAMED = tuple(known for known in _FORMATS if OPERATION_OF[known] is Operation.GENERATE)

# Names and words of both formats, so that what is generated often looks right at first.
_GEMINI_NAMES = """candidates content parts text thought thoughtSignature functionCall name args id index finishReason
logprobsResult chosenCandidates topCandidates token logProbability usageMetadata promptTokenCount promptFeedback blockReason
error status details retryDelay embeddings values totalTokens responseId"""
_COHERE_NAMES = """message tool_calls function arguments tool_plan thinking finish_reason usage tokens billed_units
input_tokens output_tokens logprobs delta type float meta"""
_KNOWN_WORDS = """STOP MAX_TOKENS SAFETY MALFORMED_FUNCTION_CALL FINISH_REASON_UNSPECIFIED COMPLETE TOOL_CALL ERROR
message-start content-start content-delta tool-plan-delta tool-call-start tool-call-delta tool-call-end message-end
citation-start text thinking f 5s"""
_NAMES = st.sampled_from(_GEMINI_NAMES.split() + _COHERE_NAMES.split())
_WORDS = st.sampled_from(_KNOWN_WORDS.split())
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.just(0.5) | _WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=25,
)
_OBJECTS = st.dictionaries(_NAMES, _ANYTHING, max_size=5)


def _part() -> st.SearchStrategy[object]:
    return st.dictionaries(
        st.sampled_from(("text", "thought", "functionCall", "thoughtSignature")), _ANYTHING, max_size=2
    )


def _answers_of_gemini() -> st.SearchStrategy[dict[str, object]]:
    content = st.fixed_dictionaries({"parts": st.lists(_part(), max_size=3)}) | _ANYTHING
    candidate = st.fixed_dictionaries(
        {"content": content}, optional={"finishReason": _WORDS, "logprobsResult": _OBJECTS}
    )
    return st.fixed_dictionaries({"candidates": st.lists(candidate, max_size=2)}, optional={"usageMetadata": _OBJECTS})


def _answers_of_cohere() -> st.SearchStrategy[dict[str, object]]:
    calls = st.lists(st.fixed_dictionaries({"id": _WORDS, "function": _OBJECTS}), max_size=2)
    message = st.fixed_dictionaries(
        {}, optional={"content": _ANYTHING, "tool_calls": calls | _ANYTHING, "tool_plan": _WORDS}
    )
    answer: dict[str, st.SearchStrategy[object]] = {"message": message}
    ended = st.fixed_dictionaries({}, optional={"finish_reason": _WORDS, "usage": _OBJECTS, "message": message})
    whole = st.fixed_dictionaries(answer, optional={"finish_reason": _WORDS, "usage": _OBJECTS, "logprobs": _ANYTHING})
    return whole | st.fixed_dictionaries({"type": _WORDS, "delta": ended}, optional={"logprobs": _OBJECTS})


_SAID = _OBJECTS | _answers_of_gemini() | _answers_of_cohere()


@pytest.mark.parametrize("known", _FORMATS)
@given(said=_SAID)
def test_any_answer_is_read_or_refused(known: WireFormat, said: dict[str, object]) -> None:
    try:
        completion = FORMATS[known].read(json.dumps(said).encode(), model="m", translated=True)
    except UpstreamFailed:
        return

    assert isinstance(completion.answer, Answer | Embeddings | TokenCount)
    assert completion.payload == said


@pytest.mark.parametrize("known", _STREAMED)
@given(events=st.lists(_SAID, max_size=4))
def test_any_stream_is_read_or_refused(known: WireFormat, events: list[dict[str, object]]) -> None:
    reader = FORMATS[known].stream(translated=True, shows_usage=True)
    read: list[StreamEvent | None] = []

    for event in events:
        try:
            read.append(reader.read(ServerSentEvent(json.dumps(event).encode())))
        except UpstreamFailed:
            break

    visible = "".join(delta.text for event in read if event for delta in event.deltas if delta.kind == "text")
    assert visible == "".join(event.text for event in read if event)


@pytest.mark.parametrize("known", _FORMATS)
@given(said=_OBJECTS)
def test_any_refusal_is_read(known: WireFormat, said: dict[str, object]) -> None:
    reported = FORMATS[known].read_error(json.loads(json.dumps(said)))

    assert reported.kind is None or isinstance(reported.kind, FailureKind)
