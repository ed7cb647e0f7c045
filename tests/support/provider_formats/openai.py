"""OpenAI, played: chat completions, completions, embeddings, responses, models.

Source, read 2026-11-21: OpenAI API reference (Create chat completion, The chat completion chunk object, Create completion,
Create embeddings, Create a model response, Streaming events, Error codes), with the types of the official Python SDK 3.52
as the list of fields. Written by us; no answer is a recording.

Groq, Mistral, OpenRouter, Together AI and Azure say most of it the same way: `OpenAIFamily` is what they share.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from tests.support.provider_formats.playing import (
    CREATED_S,
    Arrived,
    Failure,
    Reply,
    bearer,
    data_event,
    failure_of,
    json_reply,
    misfit_of,
    named_event,
)
from tests.support.provider_formats.shapes import (
    ANY,
    BOOLEAN,
    COUNT,
    INTEGER,
    NUMBER,
    OBJECT,
    STRING,
    Fields,
    Kind,
    ListOf,
    MapOf,
    Misfit,
    Name,
    Path,
    Shape,
    Tagged,
    View,
    either,
    fields,
    nullable,
    words,
)
from tests.support.provider_formats.speaking import COUNTS, Asked, Finish, Offer, Said, Seen, speak, vector

DONE = b"data: [DONE]\n\n"
MODELS = ("gpt-6", "gpt-6-thinking", "text-embedding-3-small")
TEMPERATURE = Kind("number", 0, 2)
PENALTY = Kind("number", -2, 2)
FRACTION = Kind("number", 0, 1)
STOP = nullable(either(STRING, ListOf(STRING)))
EFFORT = nullable(words("none", "minimal", "low", "medium", "high", "xhigh", "max"))
FUNCTION_NAME = Name(r"[a-zA-Z0-9_-]+")
CALL_ID = Name(longest=40)
CACHE_BREAKPOINT = fields({"mode": words("explicit")}, ttl=words("30m", "12h"))

TEXT_PART = fields({"type": words("text"), "text": STRING}, prompt_cache_breakpoint=CACHE_BREAKPOINT)
IMAGE_PART = fields(
    {
        "type": words("image_url"),
        "image_url": fields({"url": STRING}, detail=words("auto", "low", "high", "original")),
    },
    prompt_cache_breakpoint=CACHE_BREAKPOINT,
)
AUDIO_PART = fields(
    {"type": words("input_audio"), "input_audio": fields({"data": STRING, "format": words("wav", "mp3")})},
    prompt_cache_breakpoint=CACHE_BREAKPOINT,
)
FILE_PART = fields(
    {"type": words("file"), "file": fields(file_data=STRING, file_id=STRING, filename=STRING)},
    prompt_cache_breakpoint=CACHE_BREAKPOINT,
)
REFUSAL_PART = fields({"type": words("refusal"), "refusal": STRING})
TEXTS = either(STRING, ListOf(Tagged("type", {"text": TEXT_PART}), 1))
FUNCTION_CALL = fields(
    {"id": CALL_ID, "type": words("function"), "function": fields({"name": FUNCTION_NAME, "arguments": STRING})}
)
CUSTOM_CALL = fields({"id": CALL_ID, "type": words("custom"), "custom": fields({"name": STRING, "input": STRING})})
MESSAGES = ListOf(
    Tagged(
        "role",
        {
            "system": fields({"role": words("system"), "content": TEXTS}, name=STRING),
            "developer": fields({"role": words("developer"), "content": TEXTS}, name=STRING),
            "user": fields(
                {
                    "role": words("user"),
                    "content": either(
                        STRING,
                        ListOf(
                            Tagged(
                                "type",
                                {
                                    "text": TEXT_PART,
                                    "image_url": IMAGE_PART,
                                    "input_audio": AUDIO_PART,
                                    "file": FILE_PART,
                                },
                            ),
                            1,
                        ),
                    ),
                },
                name=STRING,
            ),
            "assistant": fields(
                {"role": words("assistant")},
                content=nullable(either(STRING, ListOf(Tagged("type", {"text": TEXT_PART, "refusal": REFUSAL_PART})))),
                refusal=nullable(STRING),
                # an answer's message may be sent back as it came
                annotations=ListOf(OBJECT),
                name=STRING,
                audio=nullable(fields({"id": STRING})),
                tool_calls=ListOf(Tagged("type", {"function": FUNCTION_CALL, "custom": CUSTOM_CALL}), 1),
                function_call=nullable(fields({"name": STRING, "arguments": STRING})),
            ),
            "tool": fields({"role": words("tool"), "content": TEXTS, "tool_call_id": CALL_ID}),
        },
    ),
    1,
)
FUNCTION_TOOL = fields(
    {
        "type": words("function"),
        "function": fields(
            {"name": FUNCTION_NAME}, description=STRING, parameters=MapOf(ANY), strict=nullable(BOOLEAN)
        ),
    }
)
CUSTOM_TOOL = fields({"type": words("custom"), "custom": fields({"name": STRING}, description=STRING, format=OBJECT)})
TOOL_CHOICE = either(
    words("none", "auto", "required"),
    Tagged(
        "type",
        {
            "function": fields({"type": words("function"), "function": fields({"name": FUNCTION_NAME})}),
            "custom": fields({"type": words("custom"), "custom": fields({"name": STRING})}),
            "allowed_tools": fields(
                {
                    "type": words("allowed_tools"),
                    "allowed_tools": fields({"mode": words("auto", "required"), "tools": ListOf(OBJECT)}),
                }
            ),
        },
    ),
)
RESPONSE_FORMAT = Tagged(
    "type",
    {
        "text": fields({"type": words("text")}),
        "json_object": fields({"type": words("json_object")}),
        "json_schema": fields(
            {
                "type": words("json_schema"),
                "json_schema": fields(
                    {"name": FUNCTION_NAME}, description=STRING, schema=MapOf(ANY), strict=nullable(BOOLEAN)
                ),
            }
        ),
    },
)
STREAM_OPTIONS = nullable(fields(include_usage=BOOLEAN, include_obfuscation=BOOLEAN))
METADATA = nullable(MapOf(STRING))

CHAT = fields(
    {"model": STRING, "messages": MESSAGES},
    audio=nullable(OBJECT),
    frequency_penalty=nullable(PENALTY),
    function_call=ANY,
    functions=ListOf(OBJECT),
    logit_bias=nullable(MapOf(NUMBER)),
    logprobs=nullable(BOOLEAN),
    max_completion_tokens=nullable(COUNT),
    max_tokens=nullable(COUNT),
    metadata=METADATA,
    modalities=nullable(ListOf(words("text", "audio"))),
    moderation=nullable(OBJECT),
    n=nullable(Kind("integer", 1, 128)),
    parallel_tool_calls=BOOLEAN,
    prediction=nullable(OBJECT),
    presence_penalty=nullable(PENALTY),
    prompt_cache_key=nullable(STRING),
    prompt_cache_options=OBJECT,
    prompt_cache_retention=nullable(words("in_memory", "24h")),
    reasoning_effort=EFFORT,
    response_format=RESPONSE_FORMAT,
    safety_identifier=nullable(STRING),
    seed=nullable(INTEGER),
    service_tier=nullable(words("auto", "default", "flex", "scale", "priority", "fast")),
    stop=STOP,
    store=nullable(BOOLEAN),
    stream=nullable(BOOLEAN),
    stream_options=STREAM_OPTIONS,
    temperature=nullable(TEMPERATURE),
    tool_choice=TOOL_CHOICE,
    tools=ListOf(Tagged("type", {"function": FUNCTION_TOOL, "custom": CUSTOM_TOOL}), 1),
    top_logprobs=nullable(Kind("integer", 0, 20)),
    top_p=nullable(FRACTION),
    user=STRING,
    verbosity=nullable(words("low", "medium", "high")),
    web_search_options=OBJECT,
)
COMPLETIONS = fields(
    {"model": STRING, "prompt": either(STRING, ListOf(either(STRING, INTEGER, ListOf(INTEGER)), 1))},
    best_of=nullable(COUNT),
    echo=nullable(BOOLEAN),
    frequency_penalty=nullable(PENALTY),
    logit_bias=nullable(MapOf(NUMBER)),
    logprobs=nullable(Kind("integer", 0, 5)),
    max_tokens=nullable(COUNT),
    n=nullable(Kind("integer", 1, 128)),
    presence_penalty=nullable(PENALTY),
    seed=nullable(INTEGER),
    stop=STOP,
    stream=nullable(BOOLEAN),
    stream_options=STREAM_OPTIONS,
    suffix=nullable(STRING),
    temperature=nullable(TEMPERATURE),
    top_p=nullable(FRACTION),
    user=STRING,
)
EMBEDDINGS = fields(
    {"model": STRING, "input": either(STRING, ListOf(either(STRING, INTEGER, ListOf(INTEGER)), 1))},
    dimensions=Kind("integer", 1),
    encoding_format=words("float", "base64"),
    user=STRING,
)

INPUT_TEXT = fields({"type": words("input_text"), "text": STRING}, prompt_cache_breakpoint=CACHE_BREAKPOINT)
INPUT_PARTS = {
    "input_text": INPUT_TEXT,
    "input_image": fields(
        {"type": words("input_image")},
        detail=words("auto", "low", "high", "original"),
        file_id=nullable(STRING),
        image_url=nullable(STRING),
        prompt_cache_breakpoint=CACHE_BREAKPOINT,
    ),
    "input_file": fields(
        {"type": words("input_file")},
        detail=words("auto", "low", "high"),
        file_data=STRING,
        file_id=nullable(STRING),
        file_url=STRING,
        filename=STRING,
        prompt_cache_breakpoint=CACHE_BREAKPOINT,
    ),
}
OUTPUT_PARTS = {
    "output_text": fields(
        {"type": words("output_text"), "text": STRING}, annotations=ListOf(OBJECT), logprobs=ListOf(OBJECT)
    ),
    "refusal": REFUSAL_PART,
}
STATUS = words("in_progress", "completed", "incomplete")
INPUT_ITEMS: Mapping[str, Shape] = {
    "message": Tagged(
        "role",
        {
            **{
                role: fields(
                    {"role": words(role), "content": either(STRING, ListOf(Tagged("type", INPUT_PARTS)))},
                    type=words("message"),
                    status=STATUS,
                )
                for role in ("user", "system", "developer")
            },
            "assistant": fields(
                {"role": words("assistant"), "content": either(STRING, ListOf(Tagged("type", OUTPUT_PARTS)))},
                type=words("message"),
                id=STRING,
                status=STATUS,
                phase=nullable(words("commentary", "final_answer")),
            ),
        },
    ),
    "function_call": fields(
        {"type": words("function_call"), "arguments": STRING, "call_id": STRING, "name": FUNCTION_NAME},
        id=STRING,
        status=STATUS,
        namespace=STRING,
        caller=nullable(OBJECT),
    ),
    "function_call_output": fields(
        {
            "type": words("function_call_output"),
            "call_id": STRING,
            "output": either(STRING, ListOf(Tagged("type", INPUT_PARTS))),
        },
        id=nullable(STRING),
        status=nullable(STATUS),
        name=nullable(STRING),
    ),
    "reasoning": fields(
        {
            "type": words("reasoning"),
            "id": STRING,
            "summary": ListOf(fields({"type": words("summary_text"), "text": STRING})),
        },
        content=ListOf(fields({"type": words("reasoning_text"), "text": STRING})),
        encrypted_content=nullable(STRING),
        status=STATUS,
    ),
}
RESPONSE_TOOL = Tagged(
    "type",
    {
        "function": fields(
            {"type": words("function"), "name": FUNCTION_NAME},
            parameters=nullable(MapOf(ANY)),
            strict=nullable(BOOLEAN),
            description=nullable(STRING),
            defer_loading=BOOLEAN,
            allowed_callers=nullable(ListOf(STRING)),
            output_schema=nullable(OBJECT),
        ),
        "web_search": MapOf(ANY),
        "file_search": MapOf(ANY),
        "custom": MapOf(ANY),
    },
)


@dataclass(frozen=True, slots=True)
class InputItem:
    """An item of `input`; one without `type` is a message."""

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if not isinstance(value, dict):
            return Misfit(path, "type", "object")
        shape = INPUT_ITEMS.get(str(value.get("type", "message")))
        return shape.misfit(value, path) if shape else Misfit((*path, "type"), "value", " or ".join(INPUT_ITEMS))


RESPONSES = fields(
    {"model": STRING, "input": either(STRING, ListOf(InputItem(), 1))},
    background=nullable(BOOLEAN),
    context_management=nullable(ListOf(OBJECT)),
    conversation=nullable(either(STRING, OBJECT)),
    include=nullable(ListOf(STRING)),
    instructions=nullable(STRING),
    max_output_tokens=nullable(COUNT),
    max_tool_calls=nullable(COUNT),
    metadata=METADATA,
    moderation=nullable(OBJECT),
    parallel_tool_calls=nullable(BOOLEAN),
    previous_response_id=nullable(STRING),
    prompt=nullable(OBJECT),
    prompt_cache_key=nullable(STRING),
    prompt_cache_options=OBJECT,
    prompt_cache_retention=nullable(words("in_memory", "24h")),
    reasoning=nullable(
        fields(
            effort=EFFORT,
            summary=nullable(words("auto", "concise", "detailed")),
            generate_summary=nullable(words("auto", "concise", "detailed")),
            context=nullable(words("auto", "current_turn", "all_turns")),
            mode=STRING,
        )
    ),
    safety_identifier=nullable(STRING),
    service_tier=nullable(STRING),
    store=nullable(BOOLEAN),
    stream=nullable(BOOLEAN),
    stream_options=nullable(fields(include_obfuscation=BOOLEAN)),
    temperature=nullable(TEMPERATURE),
    text=fields(
        format=Tagged(
            "type",
            {
                "text": fields({"type": words("text")}),
                "json_object": fields({"type": words("json_object")}),
                "json_schema": fields(
                    {"type": words("json_schema"), "name": FUNCTION_NAME, "schema": MapOf(ANY)},
                    description=STRING,
                    strict=nullable(BOOLEAN),
                ),
            },
        ),
        verbosity=nullable(words("low", "medium", "high")),
    ),
    tool_choice=either(
        words("none", "auto", "required"),
        Tagged(
            "type",
            {
                "function": fields({"type": words("function"), "name": FUNCTION_NAME}),
                "allowed_tools": OBJECT,
                "custom": OBJECT,
            },
        ),
    ),
    tools=ListOf(RESPONSE_TOOL),
    top_logprobs=nullable(Kind("integer", 0, 20)),
    top_p=nullable(FRACTION),
    truncation=nullable(words("auto", "disabled")),
    user=STRING,
)

FINISH = {Finish.STOP: "stop", Finish.STOP_SEQUENCE: "stop", Finish.LENGTH: "length", Finish.TOOLS: "tool_calls"}


@dataclass(frozen=True, slots=True)
class Manner:
    """How a member of the family differs from OpenAI in what it answers.

    `usage_when` tells when a stream brings its usage; `usage_at` whether that is an event of its own, as OpenAI has it, or
    stands in the last event with a choice. `reasoning` names the fields of thoughts, where they are told;
    `thoughts_in_content` tells them as Mistral does, as a part of the content. `comment` opens every stream.
    """

    usage_when: str = "asked"
    usage_at: str = "own event"
    reasoning: tuple[str, ...] = ()
    chunk_extras: Mapping[str, object] | None = None
    answer_extras: Mapping[str, object] | None = None
    comment: bytes = b""
    thoughts_in_content: bool = False
    choice_extras: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class OpenAIFamily:
    """A provider that speaks OpenAI's formats under `base_path`, with its own shapes, manner and refusals."""

    name: str
    base_path: str
    chat: Fields
    refuse: Callable[[Failure, str], Reply]
    refuse_misfit: Callable[[Misfit], Reply]
    completions: Fields | None = None
    embeddings: Fields | None = None
    responses: Fields | None = None
    manner: Manner = Manner()
    models: tuple[str, ...] = MODELS
    dimensions_field: str = "dimensions"
    bare_models: bool = False
    ignores_unknown: bool = False
    refuse_mid_stream: Callable[[str], bytes] | None = None

    def authorised(self, arrived: Arrived, key: str) -> bool:
        return bearer(arrived, key)

    def fail(self, failure: Failure, arrived: Arrived) -> Reply:
        return self.refuse(failure, arrived.view["model"].text)

    def answer(self, arrived: Arrived) -> Reply:
        doors = {
            "/chat/completions": (self.chat, self.say_chat),
            "/completions": (self.completions, self.say_completion),
            "/embeddings": (self.embeddings, self.say_embeddings),
            "/responses": (self.responses, self.say_response),
        }
        if arrived.method == "GET" and arrived.path == "/models":
            return self.say_models()
        shape, say = doors.get(arrived.path, (None, None))
        if shape is None or say is None or arrived.method != "POST":
            return self.refuse(Failure.NOT_FOUND, arrived.path)
        if self.ignores_unknown:
            arrived = replace(arrived, body=known_part(shape, arrived.body))
        if (found := misfit_of(shape, arrived.body) or further_misfit(arrived, self.name)) is not None:
            return replace(self.refuse_misfit(found), misfit=found)
        model = arrived.view["model"].text
        failure = failure_of(model)
        if failure is Failure.MID_STREAM and arrived.view["stream"].flag:
            return self.break_off(say(arrived.view), model)
        return self.refuse(failure, model) if failure else say(arrived.view)

    def break_off(self, whole: Reply, model: str) -> Reply:
        """The first half of the events, and then the error as this provider reports it in a stream."""
        refused = self.refuse(Failure.SERVER, model).body
        last = self.refuse_mid_stream(model) if self.refuse_mid_stream else b"data: " + refused + b"\n\n"
        return Reply(events=[*whole.events[: len(whole.events) // 2], last])

    def say_models(self) -> Reply:
        listed = [
            {"id": model, "object": "model", "created": CREATED_S, "owned_by": self.name} for model in self.models
        ]
        return json_reply(listed if self.bare_models else {"object": "list", "data": listed})

    def say_chat(self, view: View) -> Reply:
        said = speak(asked_in_chat(view))
        if view["stream"].flag:
            return Reply(events=list(self.chat_events(view, said)))
        message: dict[str, object] = {"role": "assistant", "content": self.content(said)}
        if self.name in ("openai", "azure"):
            message |= {"refusal": None, "annotations": []}
        message |= self.thoughts(said)
        if said.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.written}}
                for call in said.calls
            ]
        choice = {
            "message": message,
            "logprobs": logprobs(view, said),
            "finish_reason": FINISH[said.finish],
            **(self.manner.choice_extras or {}),
        }
        return json_reply(
            {
                "id": "chatcmpl-played",
                "object": "chat.completion",
                "created": CREATED_S,
                "model": view["model"].text,
                "choices": [{"index": at, **choice} for at in range(view["n"].number or 1)],
                "usage": self.usage(said),
                **(self.manner.answer_extras or {}),
            }
        )

    def content(self, said: Said) -> object:
        if said.thought and self.manner.thoughts_in_content:
            text = [{"type": "text", "text": said.text}] if said.text else []
            return [thinking_part(said.thought), *text]
        return said.text or None

    def thoughts(self, said: Said) -> dict[str, object]:
        return dict.fromkeys(self.manner.reasoning, said.thought) if said.thought else {}

    def usage(self, said: Said) -> dict[str, object]:
        return usage_of(said)

    def chat_events(self, view: View, said: Said) -> Iterator[bytes]:
        asked_usage = view["stream_options"]["include_usage"].flag or False
        tells_usage = self.manner.usage_when == "always" or asked_usage
        own_event = tells_usage and self.manner.usage_at == "own event"
        count = view["n"].number or 1

        def event(choices: list[object], usage: object = None) -> bytes:
            chunk: dict[str, object] = {
                "id": "chatcmpl-played",
                "object": "chat.completion.chunk",
                "created": CREATED_S,
                "model": view["model"].text,
                "choices": choices,
                **(self.manner.chunk_extras or {}),
            }
            if usage is not None or (own_event and self.name in ("openai", "azure")):
                chunk["usage"] = usage
            if self.name == "openai" and choices and view["stream_options"]["include_obfuscation"].flag is not False:
                chunk["obfuscation"] = "aZ3"
            return data_event(chunk)

        def delta(part: dict[str, object], reason: str | None = None, usage: object = None) -> Iterator[bytes]:
            for at in range(count):
                choice = {"index": at, "delta": part, "logprobs": None, "finish_reason": reason}
                yield event([choice], usage if at == count - 1 else None)

        if self.manner.comment:
            yield self.manner.comment
        yield from delta({"role": "assistant", "content": None if said.calls else ""})
        if thoughts := self.thoughts(said):
            yield from delta(thoughts)
        if said.thought and self.manner.thoughts_in_content:
            yield from delta({"content": [thinking_part(said.thought)]})
        for piece in said.pieces():
            yield from delta({"content": piece})
        for at, call in enumerate(said.calls):
            head = {"index": at, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
            yield from delta({"tool_calls": [head]})
            for fragment in fragments(call.written):
                yield from delta({"tool_calls": [{"index": at, "function": {"arguments": fragment}}]})
        closing_usage = self.usage(said) if tells_usage and not own_event else None
        yield from delta({}, FINISH[said.finish], closing_usage)
        if own_event:
            yield event([], self.usage(said))
        yield DONE

    def say_completion(self, view: View) -> Reply:
        said = speak(
            Asked(
                model=view["model"].text,
                stop=tuple(view["stop"].texts),
                max_tokens=view["max_tokens"].number,
            )
        )
        prompts = view["prompt"].texts or [""]
        head = {"id": "cmpl-played", "object": "text_completion", "created": CREATED_S, "model": view["model"].text}
        count = len(prompts) * (view["n"].number or 1)
        usage = self.usage(said)
        if not view["stream"].flag:
            texts = [
                (prompts[at * len(prompts) // count] if view["echo"].flag else "") + said.text for at in range(count)
            ]
            choices = [
                {"text": text, "index": at, "logprobs": None, "finish_reason": FINISH[said.finish]}
                for at, text in enumerate(texts)
            ]
            return json_reply({**head, "choices": choices, "usage": usage})
        events = [
            data_event({**head, "choices": [{"text": piece, "index": at, "logprobs": None, "finish_reason": None}]})
            for piece in said.pieces()
            for at in range(count)
        ]
        last = [
            {"text": "", "index": at, "logprobs": None, "finish_reason": FINISH[said.finish]} for at in range(count)
        ]
        events += [data_event({**head, "choices": [choice]}) for choice in last]
        if view["stream_options"]["include_usage"].flag:
            events.append(data_event({**head, "choices": [], "usage": usage}))
        return Reply(events=[*events, DONE])

    def say_embeddings(self, view: View) -> Reply:
        texts = view["input"].texts
        size = view[self.dimensions_field].number or 8
        vectors: list[object] = []
        for text in texts:
            numbers = vector(text, size)
            packed = base64.b64encode(struct.pack(f"<{size}f", *numbers)).decode()
            vectors.append(packed if view["encoding_format"].text == "base64" else numbers)
        return json_reply(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": at, "embedding": made} for at, made in enumerate(vectors)],
                "model": view["model"].text,
                "usage": {"prompt_tokens": COUNTS.prompt, "total_tokens": COUNTS.prompt},
                **({} if self.name in ("openai", "azure") else {"id": "embd-played"}),
            }
        )

    def say_response(self, view: View) -> Reply:
        said = speak(asked_in_response(view))
        if view["stream"].flag:
            return Reply(events=list(response_events(view, said)))
        return json_reply(response_object(view, said, output_items(said)))


def thinking_part(thought: str) -> dict[str, object]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": thought}]}


def known_part(shape: Fields, body: object) -> object:
    """The fields of `body` that the documentation names; some providers look at no others."""
    if not isinstance(body, dict):
        return body
    return {name: value for name, value in body.items() if name in shape.required or name in shape.optional}


def usage_of(said: Said) -> dict[str, object]:
    """OpenAI's usage: thinking tokens are among the completion's, cached ones among the prompt's."""
    return {
        "prompt_tokens": COUNTS.prompt,
        "completion_tokens": COUNTS.said,
        "total_tokens": COUNTS.total,
        "prompt_tokens_details": {
            "cached_tokens": COUNTS.cached,
            "cache_write_tokens": COUNTS.written,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": COUNTS.thought if said.thought else 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def fragments(text: str) -> list[str]:
    """Arguments as a stream brings them: a few characters at a time, cut without regard to JSON."""
    return [text[at : at + 5] for at in range(0, len(text), 5)]


def logprobs(view: View, said: Said) -> object:
    if not view["logprobs"].flag:
        return None
    likely = view["top_logprobs"].number or 0
    tokens = [{"token": piece, "logprob": -0.25, "bytes": list(piece.encode())} for piece in said.pieces()]
    return {"content": [{**token, "top_logprobs": [token] * min(likely, 1)} for token in tokens], "refusal": None}


def seen_data(url: str, kind: str) -> Seen:
    """An address, or a `data:` URL with its media type and base64."""
    if not url.startswith("data:"):
        return Seen(kind, "", url=url)
    media_type, _, data = url.removeprefix("data:").partition(";base64,")
    return Seen(kind, media_type, data=data)


def asked_in_chat(view: View) -> Asked:
    messages = list(view["messages"])
    results: list[str] = []
    for message in reversed(messages):
        if message["role"].text != "tool":
            break
        content = message["content"]
        results.insert(0, content.text or "".join(part["text"].text for part in content))
    seen: list[Seen] = []
    for message in messages:
        for part in message["content"]:
            match part["type"].text:
                case "image_url":
                    image = part["image_url"]
                    seen.append(seen_data(image.text or image["url"].text, "image"))
                case "file" if part["file"]["file_data"]:
                    seen.append(seen_data(part["file"]["file_data"].text, "file"))
                case "document_url":
                    # Mistral's way
                    seen.append(seen_data(part["document_url"].text, "file"))
                case "input_audio":
                    sound = part["input_audio"]
                    seen.append(Seen("audio", sound["format"].text, data=sound["data"].text))
    choice, form = view["tool_choice"], view["response_format"]
    schema = form["json_schema"]["schema"].names if form["type"].text == "json_schema" else None
    return Asked(
        model=view["model"].text,
        offers=tuple(
            Offer(tool["function"]["name"].text, tool["function"]["parameters"].names)
            for tool in view["tools"]
            if tool["type"].text == "function"
        ),
        forced=choice["function"]["name"].word,
        silent=choice.text == "none",
        parallel=view["parallel_tool_calls"].flag is not False,
        results=tuple(results),
        seen=tuple(seen),
        schema=schema,
        json_mode=form["type"].text == "json_object",
        stop=tuple(view["stop"].texts),
        max_tokens=view["max_completion_tokens"].number or view["max_tokens"].number,
        thinking=view["reasoning_effort"].text in ("low", "medium", "high", "xhigh", "max"),
    )


def further_misfit(arrived: Arrived, provider: str) -> Misfit | None:
    """Rules between fields, as OpenAI's refusals state them."""
    view = arrived.view
    if view["stream_options"] and not view["stream"].flag:
        return Misfit(("stream_options",), "value", "only allowed when 'stream' is enabled")
    if arrived.path == "/responses":
        return unasked_outputs(list(view["input"]))
    if arrived.path != "/chat/completions":
        return None
    for name in ("tool_choice", "parallel_tool_calls"):
        if view[name].value is not None and not view["tools"]:
            return Misfit((name,), "value", f"'{name}' is only allowed when 'tools' are specified")
    wants_the_word = provider in ("openai", "azure", "groq") and view["response_format"]["type"].text == "json_object"
    if wants_the_word and "json" not in str(view["messages"].value).lower():
        return Misfit(("messages",), "value", "'messages' must contain the word 'json' in some form")
    return unanswered_calls(list(view["messages"]))


def unanswered_calls(messages: list[View]) -> Misfit | None:
    """Every call is answered by the tool messages right behind it, and nothing else is."""
    open_calls: set[str] = set()
    for at, message in enumerate(messages):
        role = message["role"].text
        if role == "tool":
            if (answered := message["tool_call_id"].text) not in open_calls:
                return Misfit(("messages", at, "tool_call_id"), "value", "an answer to a call of the message before")
            open_calls.discard(answered)
            continue
        if open_calls:
            return Misfit(("messages", at), "value", f"tool messages for {', '.join(sorted(open_calls))}")
        if role == "assistant":
            open_calls = {call["id"].text for call in message["tool_calls"]}
            if not open_calls and not message["content"] and not message["refusal"]:
                return Misfit(("messages", at, "content"), "value", "a content or calls of tools")
    if open_calls:
        return Misfit(("messages",), "value", f"tool messages for {', '.join(sorted(open_calls))}")
    return None


def unasked_outputs(items: list[View]) -> Misfit | None:
    """Every output of a function answers a call that stands before it."""
    called: set[str] = set()
    for at, item in enumerate(items):
        if item["type"].text == "function_call":
            called.add(item["call_id"].text)
        elif item["type"].text == "function_call_output" and item["call_id"].text not in called:
            return Misfit(("input", at, "call_id"), "value", "the call of a function that stands before it")
    return None


def asked_in_response(view: View) -> Asked:
    items = list(view["input"])
    results: list[str] = []
    for item in reversed(items):
        if item["type"].text != "function_call_output":
            break
        output = item["output"]
        results.insert(0, output.text or "".join(part["text"].text for part in output))
    seen: list[Seen] = []
    for item in items:
        for part in item["content"]:
            if part["type"].text == "input_image" and part["image_url"]:
                seen.append(seen_data(part["image_url"].text, "image"))
            elif part["type"].text == "input_file" and part["file_data"]:
                seen.append(seen_data(part["file_data"].text, "file"))
    form, choice = view["text"]["format"], view["tool_choice"]
    return Asked(
        model=view["model"].text,
        offers=tuple(
            Offer(tool["name"].text, tool["parameters"].names)
            for tool in view["tools"]
            if tool["type"].text == "function"
        ),
        forced=choice["name"].word if choice["type"].text == "function" else None,
        silent=choice.text == "none",
        parallel=view["parallel_tool_calls"].flag is not False,
        results=tuple(results),
        seen=tuple(seen),
        schema=form["schema"].names if form["type"].text == "json_schema" else None,
        json_mode=form["type"].text == "json_object",
        max_tokens=view["max_output_tokens"].number,
        thinking=view["reasoning"]["effort"].text in ("low", "medium", "high", "xhigh", "max"),
    )


def output_items(said: Said, status: str = "completed") -> list[dict[str, object]]:
    items: list[dict[str, object]] = []
    if said.thought:
        summary = [{"type": "summary_text", "text": said.thought}]
        items.append({"id": "rs_played", "type": "reasoning", "summary": summary})
    if said.text:
        part = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
        items.append({"id": "msg_played", "type": "message", "status": status, "role": "assistant", "content": [part]})
    items += [
        {
            "id": f"fc_{at}",
            "type": "function_call",
            "status": status,
            "call_id": call.id,
            "name": call.name,
            "arguments": call.written,
        }
        for at, call in enumerate(said.calls)
    ]
    return items


def response_object(view: View, said: Said, output: list[dict[str, object]], status: str = "") -> dict[str, object]:
    """The whole response; `status` other than finished leaves usage out."""
    finished = "incomplete" if said.finish is Finish.LENGTH else "completed"
    usage = {
        "input_tokens": COUNTS.prompt,
        "input_tokens_details": {"cached_tokens": COUNTS.cached, "cache_write_tokens": COUNTS.written},
        "output_tokens": COUNTS.said,
        "output_tokens_details": {"reasoning_tokens": COUNTS.thought if said.thought else 0},
        "total_tokens": COUNTS.total,
    }
    cut = finished == "incomplete" and not status
    return {
        "id": "resp_played",
        "object": "response",
        "created_at": CREATED_S,
        "status": status or finished,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": view["instructions"].word,
        "max_output_tokens": view["max_output_tokens"].number,
        "metadata": view["metadata"].names,
        "model": view["model"].text,
        "output": output,
        "parallel_tool_calls": view["parallel_tool_calls"].flag is not False,
        "previous_response_id": view["previous_response_id"].word,
        "reasoning": {"effort": view["reasoning"]["effort"].word, "summary": None},
        "store": view["store"].flag is not False,
        "temperature": view["temperature"].value if view["temperature"].value is not None else 1.0,
        "text": {"format": view["text"]["format"].value or {"type": "text"}},
        "tool_choice": view["tool_choice"].value or "auto",
        "tools": view["tools"].value or [],
        "top_p": view["top_p"].value if view["top_p"].value is not None else 1.0,
        "truncation": "disabled",
        "usage": None if status else usage,
    }


def response_events(view: View, said: Said) -> Iterator[bytes]:
    number = 0

    def event(name: str, /, **told: object) -> bytes:
        nonlocal number
        number += 1
        return named_event(name, {"type": name, "sequence_number": number - 1, **told})

    begun = response_object(view, said, [], "in_progress")
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for at, item in enumerate(output_items(said)):
        place = {"item_id": item["id"], "output_index": at}
        match item["type"]:
            case "reasoning":
                yield event("response.output_item.added", output_index=at, item={**item, "summary": []})
                part = {"type": "summary_text", "text": ""}
                yield event("response.reasoning_summary_part.added", **place, summary_index=0, part=part)
                yield event("response.reasoning_summary_text.delta", **place, summary_index=0, delta=said.thought)
                yield event("response.reasoning_summary_text.done", **place, summary_index=0, text=said.thought)
                part = {"type": "summary_text", "text": said.thought or ""}
                yield event("response.reasoning_summary_part.done", **place, summary_index=0, part=part)
            case "message":
                yield event(
                    "response.output_item.added",
                    output_index=at,
                    item={**item, "status": "in_progress", "content": []},
                )
                empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield event("response.content_part.added", **place, content_index=0, part=empty)
                for piece in said.pieces():
                    yield event("response.output_text.delta", **place, content_index=0, delta=piece, logprobs=[])
                yield event("response.output_text.done", **place, content_index=0, text=said.text, logprobs=[])
                full = {**empty, "text": said.text}
                yield event("response.content_part.done", **place, content_index=0, part=full)
            case _:
                begun_item = {**item, "status": "in_progress", "arguments": ""}
                yield event("response.output_item.added", output_index=at, item=begun_item)
                for fragment in fragments(str(item["arguments"])):
                    yield event("response.function_call_arguments.delta", **place, delta=fragment)
                yield event(
                    "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
                )
        yield event("response.output_item.done", output_index=at, item=item)
    whole = response_object(view, said, output_items(said))
    yield event(f"response.{whole['status']}", response=whole)


_REFUSALS: dict[Failure, tuple[int, str, str, str | None, str | None]] = {
    Failure.AUTHENTICATION: (
        401, "Incorrect API key provided: sk-wrong. Find your API key in your account.",
        "invalid_request_error", "invalid_api_key", None,
    ),
    Failure.PERMISSION: (
        403, "Country, region, or territory not supported", "request_forbidden",
        "unsupported_country_region_territory", None,
    ),
    Failure.NOT_FOUND: (
        404, "The model `{model}` does not exist or you do not have access to it.",
        "invalid_request_error", "model_not_found", None,
    ),
    Failure.RATE_LIMITED: (
        429, "Rate limit reached for {model} on requests per min (RPM): Limit 3, Used 3, Requested 1.",
        "requests", "rate_limit_exceeded", None,
    ),
    Failure.QUOTA: (
        429, "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota", "insufficient_quota", None,
    ),
    Failure.CONTEXT_LENGTH: (
        400, "This model's maximum context length is 128000 tokens. However, your messages resulted in 200000 tokens.",
        "invalid_request_error", "context_length_exceeded", "messages",
    ),
    Failure.CONTENT_POLICY: (
        400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
        "invalid_request_error", "invalid_prompt", None,
    ),
    Failure.TOO_LARGE: (413, "The request is too large.", "invalid_request_error", None, None),
    Failure.OVERLOADED: (503, "The engine is currently overloaded, please try again later", "server_error", None, None),
    Failure.SERVER: (
        500, "The server had an error while processing your request. Sorry about that!", "server_error", None, None,
    ),
}  # fmt: skip


def refuse(failure: Failure, model: str) -> Reply:
    """OpenAI's error object."""
    status, message, kind, code, param = _REFUSALS[Failure.SERVER if failure is Failure.MID_STREAM else failure]
    headers = {"Retry-After": "2", "x-ratelimit-limit-requests": "3"} if failure is Failure.RATE_LIMITED else {}
    error = {"message": message.replace("{model}", model), "type": kind, "param": param, "code": code}
    return json_reply({"error": error}, status=status, headers=headers)


def refuse_misfit(found: Misfit) -> Reply:
    place = found.indexed
    said = {
        "unknown": (f"Unknown parameter: '{place}'.", "unknown_parameter"),
        "missing": (f"Missing required parameter: '{place}'.", "missing_required_parameter"),
        "type": (f"Invalid type for '{place}': expected {found.expected}.", "invalid_type"),
        "value": (f"Invalid value for '{place}': expected {found.expected}.", "invalid_value"),
    }
    message, code = said[found.kind]
    error = {"message": message, "type": "invalid_request_error", "param": place, "code": code}
    return json_reply({"error": error}, status=400)


PROVIDER = OpenAIFamily(
    name="openai",
    base_path="/v1",
    chat=CHAT,
    completions=COMPLETIONS,
    embeddings=EMBEDDINGS,
    responses=RESPONSES,
    refuse=refuse,
    refuse_misfit=refuse_misfit,
    manner=Manner(
        chunk_extras={"service_tier": "default", "system_fingerprint": "fp_played"},
        answer_extras={"service_tier": "default", "system_fingerprint": "fp_played"},
    ),
)
