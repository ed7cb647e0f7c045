"""Cohere, played: chat and embed of API v2, models.

Source, read 2026-11-21: Cohere API reference v2 (Chat, Chat with Streaming, Embed, Errors), v1 (List models), the guides on
streaming, tool use and structured outputs, with the types of the official Python SDK 7.3 as the list of fields. Written by
us; no answer is a recording.

Cohere documents no refusal of its own for contents that break its policy and none for too large a request: both are played
as its general 400.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from tests.support.provider_formats.openai import seen_data
from tests.support.provider_formats.playing import (
    Arrived,
    Failure,
    Reply,
    bearer,
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
    OBJECT,
    STRING,
    Kind,
    ListOf,
    MapOf,
    Misfit,
    Tagged,
    View,
    either,
    fields,
    words,
)
from tests.support.provider_formats.speaking import COUNTS, Asked, Finish, Offer, Said, speak, vector

MODELS = ("command-a-03-2025", "command-a-reasoning-thinking", "embed-v4.0")
FRACTION = Kind("number", 0, 1)
TEXT = fields({"type": words("text"), "text": STRING})
IMAGE = fields({"type": words("image_url"), "image_url": fields({"url": STRING}, detail=words("auto", "low", "high"))})
DOCUMENT = fields({"data": either(STRING, MapOf(ANY))}, id=STRING)
CALL = fields({"id": STRING, "type": words("function"), "function": fields({"name": STRING, "arguments": STRING})})
MESSAGES = ListOf(
    Tagged(
        "role",
        {
            "system": fields({"role": words("system"), "content": either(STRING, ListOf(TEXT, 1))}),
            "user": fields(
                {
                    "role": words("user"),
                    "content": either(STRING, ListOf(Tagged("type", {"text": TEXT, "image_url": IMAGE}), 1)),
                }
            ),
            "assistant": fields(
                {"role": words("assistant")},
                content=either(
                    STRING,
                    ListOf(
                        Tagged(
                            "type",
                            {"text": TEXT, "thinking": fields({"type": words("thinking"), "thinking": STRING})},
                        )
                    ),
                ),
                tool_calls=ListOf(CALL),
                tool_plan=STRING,
                citations=ListOf(OBJECT),
            ),
            "tool": fields(
                {
                    "role": words("tool"),
                    "tool_call_id": STRING,
                    "content": either(
                        STRING,
                        ListOf(
                            Tagged(
                                "type",
                                {"text": TEXT, "document": fields({"type": words("document"), "document": DOCUMENT})},
                            ),
                            1,
                        ),
                    ),
                }
            ),
        },
    ),
    1,
)
CHAT = fields(
    {"model": STRING, "messages": MESSAGES},
    stream=BOOLEAN,
    tools=ListOf(
        fields(
            {
                "type": words("function"),
                "function": fields({"name": STRING, "parameters": MapOf(ANY)}, description=STRING),
            }
        )
    ),
    strict_tools=BOOLEAN,
    documents=ListOf(either(STRING, DOCUMENT)),
    citation_options=fields(mode=words("ENABLED", "DISABLED", "FAST", "ACCURATE", "OFF")),
    response_format=Tagged(
        "type",
        {
            "text": fields({"type": words("text")}),
            "json_object": fields({"type": words("json_object")}, json_schema=MapOf(ANY)),
        },
    ),
    safety_mode=words("CONTEXTUAL", "STRICT", "OFF"),
    max_tokens=COUNT,
    stop_sequences=ListOf(STRING),
    temperature=Kind("number", 0),
    seed=INTEGER,
    frequency_penalty=FRACTION,
    presence_penalty=FRACTION,
    k=Kind("integer", 0, 500),
    p=Kind("number", 0.01, 0.99),
    logprobs=BOOLEAN,
    tool_choice=words("REQUIRED", "NONE"),
    thinking=fields({"type": words("enabled", "disabled")}, token_budget=Kind("integer", 1)),
    priority=INTEGER,
)
EMBEDDING_TYPE = words("float", "int8", "uint8", "binary", "ubinary", "base64")
EMBED = fields(
    {
        "model": STRING,
        "input_type": words("search_document", "search_query", "classification", "clustering", "image"),
    },
    texts=ListOf(STRING, 1),
    images=ListOf(STRING, 1),
    inputs=ListOf(OBJECT, 1),
    max_tokens=COUNT,
    output_dimension=COUNT,
    embedding_types=ListOf(EMBEDDING_TYPE, 1),
    truncate=words("NONE", "START", "END"),
    priority=INTEGER,
)
FINISH = {
    Finish.STOP: "COMPLETE",
    Finish.STOP_SEQUENCE: "STOP_SEQUENCE",
    Finish.LENGTH: "MAX_TOKENS",
    Finish.TOOLS: "TOOL_CALL",
}
PLAN = "I will use the tools on offer."


class Cohere:
    name = "cohere"
    base_path = ""

    def authorised(self, arrived: Arrived, key: str) -> bool:
        return bearer(arrived, key)

    def fail(self, failure: Failure, arrived: Arrived) -> Reply:
        return refuse(failure, arrived.view["model"].text)

    def answer(self, arrived: Arrived) -> Reply:
        if arrived.method == "GET" and arrived.path == "/v1/models":
            return json_reply(_models())
        shape = {"/v2/chat": CHAT, "/v2/embed": EMBED}.get(arrived.path)
        view = arrived.view
        if shape is None or arrived.method != "POST":
            return refuse(Failure.NOT_FOUND, arrived.path)
        if (found := misfit_of(shape, arrived.body) or further_misfit(arrived)) is not None:
            return replace(refuse_misfit(found), misfit=found)
        failure, streamed = failure_of(view["model"].text), view["stream"].flag is True
        if failure is not None and not (failure is Failure.MID_STREAM and streamed):
            return refuse(failure, view["model"].text)
        if arrived.path == "/v2/embed":
            return json_reply(embeddings_of(view))
        said = speak(asked_in(view))
        if not streamed:
            return json_reply(answer_of(said))
        events = list(events_of(said))
        if failure is Failure.MID_STREAM:
            broken = {"error": "upstream failed", "finish_reason": "ERROR"}
            last = named_event("message-end", {"type": "message-end", "delta": broken})
            events = [*events[: len(events) // 2], last]
        return Reply(events=events)


def asked_in(view: View) -> Asked:
    messages = list(view["messages"])
    results: list[str] = []
    for message in reversed(messages):
        if message["role"].text != "tool":
            break
        content = message["content"]
        results.insert(0, content.text or "".join(_told(part) for part in content))
    seen = [
        seen_data(part["image_url"]["url"].text, "image")
        for message in messages
        for part in message["content"]
        if part["type"].text == "image_url"
    ]
    form = view["response_format"]
    return Asked(
        model=view["model"].text,
        offers=tuple(
            Offer(tool["function"]["name"].text, tool["function"]["parameters"].names) for tool in view["tools"]
        ),
        silent=view["tool_choice"].text == "NONE",
        results=tuple(results),
        seen=tuple(seen),
        schema=form["json_schema"].names or None,
        json_mode=form["type"].text == "json_object",
        stop=tuple(view["stop_sequences"].texts),
        max_tokens=view["max_tokens"].number,
        thinking=view["thinking"]["type"].text == "enabled",
    )


def _told(part: View) -> str:
    if part["type"].text == "text":
        return part["text"].text
    data = part["document"]["data"]
    return data.text or json.dumps(data.value)


def further_misfit(arrived: Arrived) -> Misfit | None:
    """Rules between fields, as the reference and the table of errors state them."""
    view = arrived.view
    if arrived.path == "/v2/embed":
        given = [name for name in ("texts", "images", "inputs") if view[name]]
        return None if len(given) == 1 else Misfit(("texts",), "value", "one of texts, images and inputs")
    if view["frequency_penalty"] and view["presence_penalty"]:
        return Misfit(("presence_penalty",), "value", "cannot specify both frequency_penalty and presence_penalty")
    if view["tool_choice"] and not view["tools"]:
        return Misfit(("tool_choice",), "value", "tools where tool_choice is given")
    if view["response_format"]["type"].text == "json_object" and (view["tools"] or view["documents"]):
        return Misfit(("response_format",), "value", "response_format is not supported with RAG or tools")
    open_calls: set[str] = set()
    for at, message in enumerate(view["messages"]):
        if message["role"].text == "tool":
            if message["tool_call_id"].text not in open_calls:
                return Misfit(("messages", at, "tool_call_id"), "value", "an id of the tool calls before it")
            open_calls.discard(message["tool_call_id"].text)
            continue
        if open_calls:
            return Misfit(("messages", at), "value", "results of all tool calls")
        if message["role"].text == "assistant":
            open_calls = {call["id"].text for call in message["tool_calls"]}
            if not open_calls and not message["content"]:
                return Misfit(("messages", at, "content"), "value", "a message that is not empty")
    return Misfit(("messages",), "value", "results of all tool calls") if open_calls else None


def usage_of() -> dict[str, object]:
    """Billed are the fresh tokens; `tokens` has all of them."""
    return {
        "billed_units": {"input_tokens": COUNTS.prompt - COUNTS.cached, "output_tokens": COUNTS.said},
        "tokens": {"input_tokens": COUNTS.prompt, "output_tokens": COUNTS.said},
        "cached_tokens": COUNTS.cached,
    }


def answer_of(said: Said) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant"}
    content: list[dict[str, object]] = []
    if said.thought:
        content.append({"type": "thinking", "thinking": said.thought})
    if said.text:
        content.append({"type": "text", "text": said.text})
    if content:
        message["content"] = content
    if said.calls:
        message["tool_plan"] = PLAN
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.written}}
            for call in said.calls
        ]
    return {"id": "played-chat", "finish_reason": FINISH[said.finish], "message": message, "usage": usage_of()}


def events_of(said: Said) -> Iterator[bytes]:
    def event(kind: str, /, **told: object) -> bytes:
        return named_event(kind, {"type": kind, **told})

    def message(**told: object) -> dict[str, object]:
        return {"message": told}

    yield event(
        "message-start",
        id="played-chat",
        delta=message(role="assistant", content=[], tool_plan="", tool_calls=[], citations=[]),
    )
    at = 0
    for kind, pieces in (("thinking", [said.thought] if said.thought else []), ("text", said.pieces())):
        if not pieces:
            continue
        yield event("content-start", index=at, delta=message(content={"type": kind, kind: ""}))
        for piece in pieces:
            yield event("content-delta", index=at, delta=message(content={kind: piece}))
        yield event("content-end", index=at)
        at += 1
    if said.calls:
        for word in PLAN.split(" "):
            yield event("tool-plan-delta", delta=message(tool_plan=f"{word} "))
    for position, call in enumerate(said.calls):
        begun = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield event("tool-call-start", index=position, delta=message(tool_calls=begun))
        for start in range(0, len(call.written), 5):
            fragment = {"function": {"arguments": call.written[start : start + 5]}}
            yield event("tool-call-delta", index=position, delta=message(tool_calls=fragment))
        yield event("tool-call-end", index=position)
    yield event("message-end", delta={"finish_reason": FINISH[said.finish], "usage": usage_of()})
    yield b"data: [DONE]\n\n"


def embeddings_of(view: View) -> dict[str, object]:
    texts = view["texts"].texts or ["".join(part["text"].text for part in one["content"]) for one in view["inputs"]]
    vectors = [vector(text, view["output_dimension"].number or 8) for text in texts]
    kinds = view["embedding_types"].texts or ["float"]
    return {
        "id": "played-embed",
        "embeddings": {kind: vectors for kind in kinds if kind == "float"},
        "texts": texts,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": COUNTS.prompt}},
        "response_type": "embeddings_by_type",
    }


def _models() -> dict[str, object]:
    return {
        "models": [
            {
                "name": model,
                "endpoints": ["embed"] if model.startswith("embed") else ["chat"],
                "finetuned": False,
                "context_length": 256_000,
                "is_deprecated": False,
            }
            for model in MODELS
        ],
        "next_page_token": "",
    }


_REFUSALS: dict[Failure, tuple[int, str]] = {
    Failure.AUTHENTICATION: (401, "invalid api token"),
    Failure.PERMISSION: (403, "this API key may not use this endpoint"),
    Failure.NOT_FOUND: (404, "model '{model}' not found, make sure the correct model ID was used"),
    Failure.RATE_LIMITED: (429, "You are using a Trial key, which is limited to 20 API calls / minute."),
    Failure.QUOTA: (402, "Please add or update your payment method to continue"),
    Failure.CONTEXT_LENGTH: (
        400,
        "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4292.",
    ),
    Failure.CONTENT_POLICY: (400, "invalid request: the request was blocked"),
    Failure.TOO_LARGE: (400, "too many tokens: size limit exceeded by 11326 tokens."),
    Failure.OVERLOADED: (503, "service unavailable"),
    Failure.SERVER: (500, "internal server error, this has been reported to our developers. id played"),
}


def refuse(failure: Failure, model: str) -> Reply:
    status, message = _REFUSALS[Failure.SERVER if failure is Failure.MID_STREAM else failure]
    return json_reply({"id": "played-error", "message": message.replace("{model}", model)}, status=status)


def refuse_misfit(found: Misfit) -> Reply:
    place = found.dotted
    status, said = {
        "unknown": (422, f"unknown field: parameter '{place}' is not a valid field"),
        "missing": (400, f"invalid request: a {place} parameter is required for this endpoint."),
        "type": (422, f"invalid type: parameter '{place}' is of type other than {found.expected}"),
        "value": (400, f"invalid request: {place}: {found.expected}"),
    }[found.kind]
    return json_reply({"id": "played-error", "message": said}, status=status)


PROVIDER = Cohere()
