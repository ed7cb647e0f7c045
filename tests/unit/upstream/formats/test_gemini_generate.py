"""Gemini's generateContent: what is written, and what is read of answers, streams and refusals."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    FailureKind,
    InvalidRequest,
    ProxyError,
    UpstreamFailed,
    UpstreamRefused,
)
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.upstream.endpoint import parse_endpoint
from secure_llm_proxy.upstream.formats.face import Written
from secure_llm_proxy.upstream.formats.gemini_generate import GeminiGenerate, GeminiStream
from secure_llm_proxy.upstream.http1 import AnswerHead
from secure_llm_proxy.upstream.refusals import error_of
from secure_llm_proxy.upstream.server_sent_events import ServerSentEvent, ServerSentEventParser
from secure_llm_proxy.upstream.wording import Scrubber
from secure_llm_proxy.vocabulary.chat import Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Answer,
    Audio,
    Choice,
    Conversation,
    Delta,
    DeltaKind,
    EmbeddingRequest,
    File,
    Finish,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    texts,
)
from secure_llm_proxy.vocabulary.providers import provider_kinds
from tests.support.conversations import (
    WEATHER,
    assistant,
    called_two_tools,
    conversations,
    system,
    talk,
    user,
)
from tests.support.wire_texts import strings_in

_FORMAT = GeminiGenerate()
_KIND = provider_kinds()["gemini"]
_NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
_SCRUBBER = Scrubber(parse_endpoint("https://generativelanguage.googleapis.com/v1beta"), "AIza-secret")


def write(conversation: Conversation, model: str = "gemini-2.5-flash") -> Written:
    return _FORMAT.write(conversation, model, _KIND, ask_usage=True)


def generation(**fields: object) -> JsonObject:
    config = write(talk(**fields)).payload["generationConfig"]
    assert isinstance(config, dict)
    return config


def candidate(*parts: JsonObject, finish: str | None = "STOP", index: int = 0, **fields: object) -> dict[str, object]:
    made: dict[str, object] = {"content": {"parts": list(parts), "role": "model"}, "index": index, **fields}
    return made if finish is None else {**made, "finishReason": finish}


def body(*candidates: dict[str, object], **fields: object) -> bytes:
    return json.dumps({"candidates": list(candidates), "responseId": "r-1", **fields}).encode()


def read(*candidates: dict[str, object], **fields: object) -> Completion:
    return _FORMAT.read(body(*candidates, **fields), model="asked", translated=True)


def parts_read(*parts: JsonObject) -> tuple[Part, ...]:
    answer = read(candidate(*parts)).answer
    assert isinstance(answer, Answer)
    return answer.choices[0].parts


def stream_of(*bodies: bytes) -> tuple[list[StreamEvent], GeminiStream]:
    reader = _FORMAT.stream(translated=True, shows_usage=True)
    events = [reader.read(ServerSentEvent(data)) for data in bodies]
    return [event for event in events if event is not None], reader


def deltas(*bodies: bytes) -> list[Delta]:
    return [delta for event in stream_of(*bodies)[0] for delta in event.deltas]


def test_instructions_tools_calls_and_results_are_written_in_their_places() -> None:
    written = write(called_two_tools(), "gemini-3-pro")

    assert written.dropped == ()
    assert written.payload["systemInstruction"] == {"parts": [{"text": "You are brief.\n\nAnswer in German."}]}
    assert written.payload["contents"] == [
        {
            "role": "user",
            "parts": [
                {"text": "Is this Paris?"},
                {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
            ],
        },
        {
            "role": "model",
            "parts": [
                {"text": "Let me see."},
                {
                    "functionCall": {"id": "call_1", "name": "get_weather", "args": {"town": "Paris"}},
                    "thoughtSignature": "skip_thought_signature_validator",
                },
                {"functionCall": {"id": "call_2", "name": "get_time", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {
                    "functionResponse": {
                        "id": "call_1",
                        "name": "get_weather",
                        "response": {"output": "22 degrees"},
                    }
                },
                {
                    "functionResponse": {
                        "id": "call_2",
                        "name": "get_time",
                        "response": {"error": "no clock there"},
                    }
                },
            ],
        },
    ]
    assert written.payload["tools"] == [
        {
            "functionDeclarations": [
                {
                    "name": "get_weather",
                    "description": "The weather of a town",
                    "parametersJsonSchema": WEATHER.parameters,
                },
                {"name": "get_time", "description": "The time there"},
            ]
        }
    ]


def test_models_that_sign_nothing_get_no_signature() -> None:
    calls = json.dumps(write(called_two_tools(), "gemini-2.5-flash").payload)

    assert "thoughtSignature" not in calls


def test_a_signature_that_came_with_a_call_goes_back_with_it_and_a_stranger_s_does_not() -> None:
    def signed(redacted: str) -> object:
        turn = Message(Role.ASSISTANT, (Reasoning("", redacted=redacted), ToolCall("c", "get_weather", "{}")))
        results = Message(Role.TOOL, (ToolResult("c", (Text("fine"),)),))
        contents = write(talk(user("hi"), turn, results), "gemini-3-pro").payload["contents"]
        assert isinstance(contents, list)
        return contents[1]

    answer = read(candidate({"functionCall": {"name": "get_weather", "id": "c"}, "thoughtSignature": "c2lnbmVk"}))
    assert isinstance(answer.answer, Answer)
    sealed = answer.answer.choices[0].parts[0]
    assert isinstance(sealed, Reasoning)

    assert sealed.redacted is not None
    assert signed(sealed.redacted) == {
        "role": "model",
        "parts": [
            {"functionCall": {"id": "c", "name": "get_weather", "args": {}}, "thoughtSignature": "c2lnbmVk"},
        ],
    }
    assert "c2lnbmVk" not in json.dumps(signed("c2lnbmVk"))


def test_media_in_a_tool_s_result_go_inline_to_the_models_that_see_them_there() -> None:
    call = Message(Role.ASSISTANT, (ToolCall("c", "photo", "{}"),))
    result = ToolResult("c", (Text("here"), Image(data="iVBORw0KGgo=", media_type="image/png")))
    conversation = talk(user("hi"), call, Message(Role.TOOL, (result,)))

    contents = write(conversation, "gemini-3-pro").payload["contents"]

    assert isinstance(contents, list)
    assert contents[2] == {
        "role": "user",
        "parts": [
            {
                "functionResponse": {
                    "id": "c",
                    "name": "photo",
                    "response": {"output": "here"},
                    "parts": [{"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}],
                }
            }
        ],
    }
    with pytest.raises(InvalidRequest):
        write(conversation, "gemini-2.5-flash")


def test_a_later_instruction_stays_in_its_place_as_the_user_s() -> None:
    written = write(talk(system("first"), user("a"), assistant("b"), system("later"), user("c")))

    assert written.payload["systemInstruction"] == {"parts": [{"text": "first"}]}
    assert written.payload["contents"] == [
        {"role": "user", "parts": [{"text": "a"}]},
        {"role": "model", "parts": [{"text": "b"}]},
        {"role": "user", "parts": [{"text": "later"}, {"text": "c"}]},
    ]


def test_instructions_alone_are_asked_as_the_user() -> None:
    assert write(talk(system("Say hi."))).payload == {"contents": [{"role": "user", "parts": [{"text": "Say hi."}]}]}


@pytest.mark.parametrize(
    ("part", "written"),
    [
        (
            Image(url="https://example.org/a/b.PNG?v=1"),
            {"mimeType": "image/png", "fileUri": "https://example.org/a/b.PNG?v=1"},
        ),
        (
            File(url="https://example.org/report.pdf"),
            {"mimeType": "application/pdf", "fileUri": "https://example.org/report.pdf"},
        ),
        (
            File(data="JVBERg==", media_type="application/pdf", name="a.pdf"),
            {"mimeType": "application/pdf", "data": "JVBERg=="},
        ),
        (Audio("UklGRg==", "wav"), {"mimeType": "audio/wav", "data": "UklGRg=="}),
    ],
)
def test_media_are_inline_or_behind_their_link(part: Part, written: JsonObject) -> None:
    contents = write(talk(Message(Role.USER, (part,)))).payload["contents"]

    told = json.dumps(contents)
    assert all(f'"{name}": "{value}"' in told for name, value in written.items())


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        (ToolChoice("auto"), {"mode": "AUTO"}),
        (ToolChoice("none"), {"mode": "NONE"}),
        (ToolChoice("required"), {"mode": "ANY"}),
        (ToolChoice("named", "get_weather"), {"mode": "ANY", "allowedFunctionNames": ["get_weather"]}),
    ],
)
def test_the_choice_of_tools_has_its_mode(choice: ToolChoice, config: JsonObject) -> None:
    payload = write(talk(tools=(WEATHER,), tool_choice=choice)).payload

    assert payload["toolConfig"] == {"functionCallingConfig": config}


def test_strict_tools_are_validated_and_parallel_calls_cannot_be_forbidden() -> None:
    strict = Tool("get_weather", strict=True)

    written = write(talk(tools=(strict,), tool_choice=ToolChoice("auto", parallel=False)))

    assert written.payload["toolConfig"] == {"functionCallingConfig": {"mode": "VALIDATED"}}
    assert written.dropped == ("parallel_tool_calls",)


def test_settings_have_their_names() -> None:
    config = generation(
        max_tokens=10,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop=("END",),
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        n=2,
        logprobs=True,
        top_logprobs=3,
        output=OutputFormat("schema", {"type": "object"}, "answer", "What is asked"),
        reasoning_effort="low",
    )

    assert config == {
        "maxOutputTokens": 10,
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 40,
        "stopSequences": ["END"],
        "seed": 7,
        "presencePenalty": 0.1,
        "frequencyPenalty": -0.2,
        "candidateCount": 2,
        "responseLogprobs": True,
        "logprobs": 3,
        "responseMimeType": "application/json",
        "responseJsonSchema": {"title": "answer", "description": "What is asked", "type": "object"},
        "thinkingConfig": {"thinkingBudget": 1024, "includeThoughts": True},
    }


@pytest.mark.parametrize(
    ("model", "fields", "config", "dropped"),
    [
        ("gemini-2.5-flash", {"reasoning_effort": "none"}, {"thinkingBudget": 0}, ()),
        ("gemini-2.5-pro", {"reasoning_effort": "high"}, {"thinkingBudget": 24576, "includeThoughts": True}, ()),
        ("gemini-3-pro", {"reasoning_effort": "high"}, {"thinkingLevel": "HIGH", "includeThoughts": True}, ()),
        ("gemini-3-pro", {"reasoning_tokens": 2000}, {"thinkingBudget": 2000, "includeThoughts": True}, ()),
        ("gemini-3-pro", {"reasoning_effort": "none"}, None, ("reasoning_effort",)),
        ("gemini-2.5-pro", {"reasoning_effort": "xhigh"}, None, ("reasoning_effort",)),
    ],
)
def test_thought_is_asked_for_in_the_words_of_the_model_s_generation(
    model: str, fields: dict[str, object], config: JsonObject | None, dropped: tuple[str, ...]
) -> None:
    written = write(talk(**fields), model)

    assert written.payload.get("generationConfig", {}) == ({"thinkingConfig": config} if config else {})
    assert written.dropped == dropped


def test_what_only_tunes_is_dropped_by_name() -> None:
    parts = (
        Text("hi"),
        Image(url="https://example.org/a.png", detail="low"),
        File(data="JVBERg==", media_type="application/pdf", name="a.pdf"),
    )
    named = Message(Role.USER, parts, name="ann")
    output = OutputFormat("schema", {"title": "another", "type": "object"}, "answer")

    written = write(talk(named, user="u", seed=2**40, output=output, further={"logit_bias": {}, "store": None, "x": 1}))

    assert written.dropped == (
        "messages.name",
        "messages.content.image_url.detail",
        "messages.content.file.filename",
        "seed",
        "response_format.json_schema.name",
        "user",
        "logit_bias",
        "x",
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ("a", "b", "c", "d", "e", "f")}, "stop"),
        ({"n": 9}, "n"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"further": {"modalities": ["text", "audio"]}}, "modalities"),
        ({"further": {"web_search_options": {}}}, "web_search_options"),
    ],
)
def test_what_changes_the_answer_and_cannot_be_said_is_refused(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        write(talk(**fields))

    assert (refused.value.code, refused.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, param)


@pytest.mark.parametrize(
    "messages",
    [
        (Message(Role.USER, (File(file_id="file-1"),)),),
        (Message(Role.TOOL, (ToolResult("nobody", (Text("x"),)),)),),
        (Message(Role.ASSISTANT, (ToolCall("c", "f", "[1]"),)),),
        (Message(Role.ASSISTANT, (ToolCall("c", "f", '{"a": '),)),),
        (Message(Role.SYSTEM, (Image(url="https://example.org/a.png"),)), user("hi")),
    ],
)
def test_messages_that_cannot_be_said_are_refused(messages: tuple[Message, ...]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        write(talk(*messages))

    assert (refused.value.code, refused.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "messages")


def test_nothing_but_a_conversation_is_written_and_no_client_speaks_this_format() -> None:
    with pytest.raises(InvalidRequest):
        _FORMAT.write(EmbeddingRequest(("a",)), "m", _KIND, ask_usage=True)
    with pytest.raises(InvalidRequest):
        _FORMAT.adapt({}, "m", _KIND, stream=False, ask_usage=True)


@given(conversations())
def test_every_text_of_a_conversation_is_written(conversation: Conversation) -> None:
    written = write(conversation, "gemini-3-pro").payload

    there = strings_in(written)
    instruction = "".join(text for text in there if "\n\n" in text)
    for path, text in texts(conversation):
        if path[-1] == "arguments":
            assert all(part in there for part in strings_in(json.loads(text)))
        else:
            assert text in there or text in instruction


def test_an_answer_is_read_with_its_thought_its_calls_and_its_usage() -> None:
    completion = read(
        candidate(
            {"text": "Hm.", "thought": True},
            {"text": "It is "},
            {"text": "fine.", "thoughtSignature": "c2ln"},
            {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2lnbmVk"},
            {"functionCall": {"name": "g", "id": "own"}},
        ),
        modelVersion="gemini-2.5-flash-001",
        usageMetadata={
            "promptTokenCount": 10,
            "candidatesTokenCount": 4,
            "thoughtsTokenCount": 3,
            "totalTokenCount": 17,
            "cachedContentTokenCount": 8,
        },
    )

    assert completion.text == "It is fine."
    assert completion.model == "gemini-2.5-flash-001"
    assert completion.usage == Usage(10, 7, 17, 8, None, 3)
    assert isinstance(completion.answer, Answer)
    assert completion.answer.id == "r-1"
    (choice,) = completion.answer.choices
    assert choice.finish is Finish.TOOL_CALLS
    thought, said, sealed, first, second = choice.parts
    assert (thought, said) == (Reasoning("Hm."), Text("It is fine."))
    assert sealed == Reasoning("", redacted="gemini/c2lnbmVk")
    assert isinstance(first, ToolCall)
    assert (first.name, first.arguments) == ("f", '{"a":1}')
    assert first.id.startswith("call_")
    assert second == ToolCall("own", "g", "{}")


def test_several_candidates_are_choices_in_their_order() -> None:
    completion = read(candidate({"text": "b"}, index=1), candidate({"text": "a"}, index=0, finish="MAX_TOKENS"))

    assert isinstance(completion.answer, Answer)
    assert completion.answer.choices == (Choice((Text("a"),), Finish.LENGTH), Choice((Text("b"),), Finish.STOP))
    assert completion.text == "a\nb"


def test_calls_without_an_id_get_one_that_differs_from_call_to_call_and_from_answer_to_answer() -> None:
    call: JsonObject = {"functionCall": {"name": "f", "args": {}}}

    def ids(response: str) -> list[str]:
        answer = read(candidate(call, call), responseId=response).answer
        assert isinstance(answer, Answer)
        return [part.id for part in answer.choices[0].parts if isinstance(part, ToolCall)]

    assert ids("one") == ids("one")
    assert len({*ids("one"), *ids("two")}) == 4


def test_log_probabilities_are_told_as_openai_does() -> None:
    token = {"token": "Grüß", "tokenId": 5, "logProbability": -0.5}
    result = {"chosenCandidates": [token], "topCandidates": [{"candidates": [token]}]}

    answer = read(candidate({"text": "Grüß"}, logprobsResult=result)).answer

    assert isinstance(answer, Answer)
    told = {"token": "Grüß", "logprob": -0.5, "bytes": list("Grüß".encode())}
    assert answer.choices[0].logprobs == {"content": [{**told, "top_logprobs": [told]}], "refusal": None}


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII", "OTHER", "SOMETHING_NEW"])
def test_an_end_that_is_not_the_model_s_own_is_a_content_filter(reason: str) -> None:
    answer = read(candidate({"text": "Half"}, finish=reason)).answer

    assert isinstance(answer, Answer)
    assert answer.choices == (Choice((Text("Half"),), Finish.CONTENT_FILTER),)


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"])
def test_a_model_that_failed_has_given_no_answer(reason: str) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        read(candidate(finish=reason))

    assert failed.value.failure is FailureKind.UNREADABLE


def test_a_blocked_prompt_is_refused_under_the_content_policy() -> None:
    blocked = json.dumps({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}).encode()

    with pytest.raises(UpstreamRefused) as plain:
        _FORMAT.read(blocked, model="m", translated=True)
    with pytest.raises(UpstreamRefused) as streamed:
        stream_of(blocked)

    for refused in (plain, streamed):
        assert (refused.value.status, refused.value.failure) == (400, FailureKind.CONTENT_POLICY)
        assert refused.value.code is ErrorCode.CONTENT_POLICY_VIOLATION


@pytest.mark.parametrize(
    "broken",
    [
        b"[]",
        b"{}",
        b'{"candidates": {}}',
        b'{"candidates": [7]}',
        b'{"candidates": [{"content": 7}]}',
        b'{"candidates": [{"content": {"parts": {}}}]}',
        b'{"candidates": [{"content": {"parts": ["text"]}}]}',
        b'{"candidates": [{"content": {"parts": [{"text": 7}]}}]}',
        b'{"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": ""}}]}}]}',
        b'{"candidates": [{"content": {"parts": [{"executableCode": {"code": "1"}}]}}]}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"args": {}}}]}}]}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": []}}]}}]}',
        b'{"candidates": [{"finishReason": 7}]}',
        b'{"error": {"code": 500, "message": "AIza-secret", "status": "INTERNAL"}}',
    ],
)
def test_what_cannot_be_understood_is_no_answer(broken: bytes) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        _FORMAT.read(broken, model="m", translated=True)

    assert "AIza" not in failed.value.public + str(failed.value.detail)


def test_a_stream_is_read_step_by_step() -> None:
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "thoughtsTokenCount": 1, "totalTokenCount": 6}

    events, reader = stream_of(
        body(candidate({"text": "Hm.", "thought": True}, finish=None), usageMetadata={"promptTokenCount": 3}),
        body(candidate({"text": "It is "}, finish=None), usageMetadata={"promptTokenCount": 3}),
        body(candidate({"text": "fine."}, finish=None)),
        body(candidate({"functionCall": {"name": "f", "id": "c", "args": {"a": 1}}, "thoughtSignature": "c2ln"})),
        body(candidate({"text": ""}, finish="STOP"), usageMetadata=usage),
    )

    assert [delta for event in events for delta in event.deltas] == [
        Delta(DeltaKind.START, id="r-1"),
        Delta(DeltaKind.REASONING, text="Hm."),
        Delta(DeltaKind.TEXT, text="It is "),
        Delta(DeltaKind.TEXT, text="fine."),
        Delta(DeltaKind.REDACTED_REASONING, text="gemini/c2ln"),
        Delta(DeltaKind.TOOL_CALL, id="c", name="f"),
        Delta(DeltaKind.TOOL_ARGUMENTS, text='{"a":1}'),
        Delta(DeltaKind.FINISH, finish=Finish.TOOL_CALLS),
    ]
    assert [event.text for event in events] == ["", "It is ", "fine.", "", ""]
    assert [event.only_text for event in events] == [False, True, True, False, True]
    assert events[1].usage is None
    assert events[-1].usage == Usage(3, 3, 6, 0, None, 1)
    assert (reader.finished, reader.done) == (True, False)


def test_a_stream_that_did_not_say_why_it_ended_is_not_whole() -> None:
    _, reader = stream_of(body(candidate({"text": "It is"}, finish=None)))

    assert not reader.finished


def test_what_a_stream_says_is_told_without_neutral_steps_when_nobody_translates() -> None:
    reader = _FORMAT.stream(translated=False, shows_usage=True)

    events = [reader.read_object(body(candidate({"text": text}, finish=None))) for text in ("a", "b")]

    told = [(event.text, event.only_text, event.deltas) for event in events if event]
    assert told == [("a", True, ()), ("b", True, ())]


def test_an_error_within_a_stream_ends_it_by_its_kind() -> None:
    error = {"error": {"code": 429, "message": "AIza-secret", "status": "RESOURCE_EXHAUSTED"}}

    with pytest.raises(UpstreamFailed) as failed:
        stream_of(body(candidate({"text": "It"}, finish=None)), json.dumps(error).encode())

    assert failed.value.failure is FailureKind.RATE_LIMITED
    assert "AIza" not in failed.value.public + str(failed.value.detail)


_RECORDED = b"".join(
    b"data: " + one + b"\r\n\r\n"
    for one in (
        body(candidate({"text": "Grüße, "}, finish=None)),
        body(candidate({"text": "Welt \u2028 {}"}, finish=None)),
        body(candidate({"functionCall": {"name": "f", "args": {"ä": "\n"}}}, finish=None)),
        body(candidate(finish="STOP"), usageMetadata={"promptTokenCount": 1}),
    )
)


def events_in(pieces: list[bytes]) -> list[StreamEvent]:
    parser, reader = ServerSentEventParser(event_bytes_max=65_536), _FORMAT.stream(translated=True, shows_usage=True)
    sent = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    events = [reader.read(event) for event in sent]
    return [event for event in events if event is not None]


@given(st.sets(st.integers(1, len(_RECORDED) - 1)))
def test_a_stream_cut_anywhere_says_the_same(cuts: set[int]) -> None:
    at = [0, *sorted(cuts), len(_RECORDED)]

    events = events_in([_RECORDED[begin:end] for begin, end in pairwise(at)])

    assert events == events_in([_RECORDED])
    assert "".join(event.text for event in events) == "Grüße, Welt \u2028 {}"


def refusal(status: int, text: str, reason: str, *details: JsonObject, listed: bool = False) -> ProxyError:
    said: object = {"error": {"code": status, "message": text, "status": reason, "details": list(details)}}
    head = AnswerHead(status, {}, keeps_alive=True)
    sent = json.dumps([said] if listed else said).encode()
    return error_of(head, sent, wire_format=_FORMAT, scrubber=_SCRUBBER, now=_NOW)


def test_a_prompt_that_is_too_long_is_told_as_such() -> None:
    told = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."

    for listed in (False, True):
        error = refusal(400, told, "INVALID_ARGUMENT", listed=listed)

        assert isinstance(error, UpstreamRefused)
        assert (error.failure, error.code) == (FailureKind.CONTEXT_LENGTH, ErrorCode.CONTEXT_LENGTH_EXCEEDED)
        assert error.public == told


def test_a_limit_says_when_to_come_again() -> None:
    wait: JsonObject = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}

    error = refusal(429, "Quota exceeded.", "RESOURCE_EXHAUSTED", {"@type": "x"}, wait)

    assert isinstance(error, UpstreamRefused)
    assert (error.failure, error.retry_after_s) == (FailureKind.RATE_LIMITED, 35)


def test_a_key_that_is_refused_is_the_operator_s_matter_though_it_is_told_as_a_bad_request() -> None:
    invalid: JsonObject = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}

    error = refusal(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", invalid)

    assert isinstance(error, UpstreamFailed)
    assert (error.status, error.failure) == (502, FailureKind.CREDENTIALS)
    assert "API key not valid" not in error.public


def test_any_other_refusal_is_passed_on() -> None:
    error = refusal(400, "Request payload size exceeds the limit: 20971520 bytes.", "INVALID_ARGUMENT")

    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.failure) == (400, FailureKind.REJECTED)
    assert _FORMAT.read_error({"error": "so"}).message is None
