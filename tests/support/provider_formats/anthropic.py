"""Anthropic, played: messages, count_tokens, models; both API versions in force.

Source, read 2026-11-21: Claude API reference (Create a Message, Count tokens in a Message, Streaming messages, Errors,
Versions, Migrating to API version 2026-10-21, Structured outputs, Extended thinking), with the types of the official
Python SDK 2.12 as the list of fields. Written by us; no answer is a recording.

Version 2026-10-21 differs from 2023-06-01 in what it refuses: `temperature`, `top_p` and `top_k` at any value, a document
block in an assistant message, citations on text blocks of user messages. A key comes in `x-api-key`, or else as Bearer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

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
from tests.support.provider_formats.speaking import COUNTS, SIGNATURE, Asked, Finish, Offer, Said, Seen, speak

MODELS = ("claude-opus-5-5", "claude-opus-5-5-thinking")
VERSIONS = ("2023-06-01", "2026-10-21")
FRACTION = Kind("number", 0, 1)
CACHE = nullable(fields({"type": words("ephemeral")}, ttl=words("5m", "1h")))
WRITTEN = Name(r"(?s).*\S.*", 10_000_000)
CALL_ID = Name(r"[a-zA-Z0-9_-]+", 256)
TOOL_NAME = Name(r"[a-zA-Z0-9_-]+", 128)

TEXT_BLOCK = fields({"type": words("text"), "text": WRITTEN}, cache_control=CACHE, citations=nullable(ListOf(OBJECT)))
IMAGE_BLOCK = fields(
    {
        "type": words("image"),
        "source": Tagged(
            "type",
            {
                "base64": fields(
                    {
                        "type": words("base64"),
                        "media_type": words("image/jpeg", "image/png", "image/gif", "image/webp"),
                        "data": STRING,
                    }
                ),
                "url": fields({"type": words("url"), "url": STRING}),
                "file": fields({"type": words("file"), "file_id": STRING}),
            },
        ),
    },
    cache_control=CACHE,
    transformations=nullable(OBJECT),
)
DOCUMENT_BLOCK = fields(
    {
        "type": words("document"),
        "source": Tagged(
            "type",
            {
                "base64": fields({"type": words("base64"), "media_type": words("application/pdf"), "data": STRING}),
                "text": fields({"type": words("text"), "media_type": words("text/plain"), "data": STRING}),
                "url": fields({"type": words("url"), "url": STRING}),
                "file": fields({"type": words("file"), "file_id": STRING}),
                "content": fields({"type": words("content"), "content": either(STRING, ListOf(OBJECT))}),
            },
        ),
    },
    cache_control=CACHE,
    citations=nullable(fields(enabled=BOOLEAN)),
    context=nullable(STRING),
    title=nullable(STRING),
)
SEARCH_RESULT = fields(
    {"type": words("search_result"), "content": ListOf(TEXT_BLOCK), "source": STRING, "title": STRING},
    cache_control=CACHE,
    citations=fields(enabled=BOOLEAN),
)
THINKING_BLOCK = fields({"type": words("thinking"), "thinking": STRING, "signature": STRING})
REDACTED_BLOCK = fields({"type": words("redacted_thinking"), "data": STRING})
TOOL_USE = fields(
    {"type": words("tool_use"), "id": CALL_ID, "name": TOOL_NAME, "input": MapOf(ANY)},
    cache_control=CACHE,
    caller=OBJECT,
    toolset_name=nullable(STRING),
)
TOOL_RESULT = fields(
    {"type": words("tool_result"), "tool_use_id": CALL_ID},
    cache_control=CACHE,
    content=either(
        STRING,
        ListOf(
            Tagged(
                "type",
                {"text": TEXT_BLOCK, "image": IMAGE_BLOCK, "document": DOCUMENT_BLOCK, "search_result": SEARCH_RESULT},
            )
        ),
    ),
    is_error=BOOLEAN,
    toolset_name=nullable(STRING),
)
USER_BLOCKS = {
    "text": TEXT_BLOCK,
    "image": IMAGE_BLOCK,
    "document": DOCUMENT_BLOCK,
    "search_result": SEARCH_RESULT,
    "tool_result": TOOL_RESULT,
}
ASSISTANT_BLOCKS = {
    "text": TEXT_BLOCK,
    "document": DOCUMENT_BLOCK,
    "thinking": THINKING_BLOCK,
    "redacted_thinking": REDACTED_BLOCK,
    "tool_use": TOOL_USE,
}
SYSTEM = either(WRITTEN, ListOf(TEXT_BLOCK, 1))
MESSAGES = ListOf(
    Tagged(
        "role",
        {
            "user": fields({"role": words("user"), "content": either(WRITTEN, ListOf(Tagged("type", USER_BLOCKS), 1))}),
            "assistant": fields(
                {"role": words("assistant"), "content": either(STRING, ListOf(Tagged("type", ASSISTANT_BLOCKS)))}
            ),
            "system": fields({"role": words("system"), "content": SYSTEM}),
        },
    ),
    1,
)


@dataclass(frozen=True, slots=True)
class ToolShape:
    """A tool of the client's own, `custom` unless it says otherwise; any other type is one of Anthropic's."""

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if isinstance(value, dict) and value.get("type", "custom") not in (None, "custom"):
            return OBJECT.misfit(value, path)
        return CUSTOM_TOOL.misfit(value, path)


CUSTOM_TOOL = fields(
    {"name": TOOL_NAME, "input_schema": MapOf(ANY)},
    type=nullable(words("custom")),
    description=STRING,
    strict=BOOLEAN,
    cache_control=CACHE,
    allowed_callers=ListOf(STRING),
    defer_loading=BOOLEAN,
    eager_input_streaming=nullable(BOOLEAN),
    input_examples=ListOf(OBJECT),
)
TOOL_CHOICE = Tagged(
    "type",
    {
        "auto": fields({"type": words("auto")}, disable_parallel_tool_use=BOOLEAN),
        "any": fields({"type": words("any")}, disable_parallel_tool_use=BOOLEAN),
        "tool": fields({"type": words("tool"), "name": TOOL_NAME}, disable_parallel_tool_use=BOOLEAN),
        "none": fields({"type": words("none")}),
    },
)
DISPLAY = nullable(words("summarized", "omitted"))
THINKING = Tagged(
    "type",
    {
        "enabled": fields({"type": words("enabled"), "budget_tokens": Kind("integer", 1024)}, display=DISPLAY),
        "disabled": fields({"type": words("disabled")}),
        "adaptive": fields({"type": words("adaptive")}, display=DISPLAY),
        "between_tools": fields({"type": words("between_tools")}),
    },
)
COUNTED: dict[str, Shape] = {
    "cache_control": CACHE,
    "output_config": fields(
        effort=nullable(words("low", "medium", "high", "xhigh", "max")),
        format=nullable(fields({"type": words("json_schema"), "schema": MapOf(ANY)})),
    ),
    "speed": nullable(words("standard", "fast")),
    "system": SYSTEM,
    "thinking": THINKING,
    "tool_choice": TOOL_CHOICE,
    "tools": ListOf(ToolShape()),
    "user_profile_id": STRING,
    "workspace_id": STRING,
}
COUNT_TOKENS = Fields({"model": STRING, "messages": MESSAGES}, COUNTED)
CREATE = Fields(
    {"model": STRING, "messages": MESSAGES, "max_tokens": COUNT},
    {
        **COUNTED,
        "container": nullable(either(STRING, OBJECT)),
        "diagnostics": nullable(OBJECT),
        "inference_geo": nullable(STRING),
        "metadata": fields(user_id=nullable(STRING)),
        "service_tier": words("auto", "standard_only"),
        "stop_sequences": ListOf(WRITTEN),
        "stream": BOOLEAN,
    },
)
SAMPLING: dict[str, Shape] = {"temperature": FRACTION, "top_p": FRACTION, "top_k": NUMBER}
CREATE_2023 = Fields(CREATE.required, {**CREATE.optional, **SAMPLING})

STOP_REASON = {
    Finish.STOP: "end_turn",
    Finish.STOP_SEQUENCE: "stop_sequence",
    Finish.LENGTH: "max_tokens",
    Finish.TOOLS: "tool_use",
}


class Anthropic:
    name = "anthropic"
    base_path = "/v1"

    def authorised(self, arrived: Arrived, key: str) -> bool:
        given = arrived.headers.get("x-api-key")
        return bearer(arrived, key) if given is None else given == key

    def fail(self, failure: Failure, arrived: Arrived) -> Reply:
        return refuse(failure, arrived.view["model"].text)

    def answer(self, arrived: Arrived) -> Reply:
        version = arrived.headers.get("anthropic-version")
        if version not in VERSIONS:
            return _invalid("anthropic-version: header is required")
        if arrived.method == "GET" and arrived.path == "/models":
            return json_reply(_models())
        shapes = {
            "/messages": CREATE if version == VERSIONS[1] else CREATE_2023,
            "/messages/count_tokens": COUNT_TOKENS,
        }
        shape = shapes.get(arrived.path)
        if shape is None or arrived.method != "POST":
            return refuse(Failure.NOT_FOUND, arrived.path)
        found = misfit_of(shape, arrived.body) or further_misfit(arrived.view, version)
        if found is not None:
            return replace(refuse_misfit(found), misfit=found)
        view = arrived.view
        failure = failure_of(view["model"].text)
        if failure is not None and not (failure is Failure.MID_STREAM and view["stream"].flag):
            return refuse(failure, view["model"].text)
        if arrived.path == "/messages/count_tokens":
            return json_reply({"input_tokens": COUNTS.prompt})
        said = speak(asked_in(view))
        if not view["stream"].flag:
            return json_reply(message_of(view, said), headers={"request-id": "req_played"})
        events = list(events_of(view, said))
        if failure is Failure.MID_STREAM:
            events = [*events[: len(events) // 2], _error_event()]
        return Reply(events=events, headers={"request-id": "req_played"})


def asked_in(view: View) -> Asked:
    messages = [message for message in view["messages"] if message["role"].text != "system"]
    results: list[str] = []
    if messages and messages[-1]["role"].text == "user":
        results = [_told(block) for block in messages[-1]["content"] if block["type"].text == "tool_result"]
    seen: list[Seen] = []
    for message in messages:
        for block in message["content"]:
            source = block["source"]
            if block["type"].text in ("image", "document"):
                kind = "image" if block["type"].text == "image" else "file"
                seen.append(Seen(kind, source["media_type"].text, source["data"].word, source["url"].word))
    choice = view["tool_choice"]
    form = view["output_config"]["format"]
    return Asked(
        model=view["model"].text,
        offers=tuple(Offer(tool["name"].text, tool["input_schema"].names) for tool in view["tools"]),
        forced=choice["name"].word,
        silent=choice["type"].text == "none",
        parallel=choice["disable_parallel_tool_use"].flag is not True,
        results=tuple(results),
        seen=tuple(seen),
        schema=form["schema"].names if form else None,
        stop=tuple(view["stop_sequences"].texts),
        max_tokens=view["max_tokens"].number,
        thinking=view["thinking"]["type"].text in ("enabled", "adaptive"),
    )


def _told(block: View) -> str:
    content = block["content"]
    return content.text or "".join(part["text"].text for part in content)


def further_misfit(view: View, version: str) -> Misfit | None:
    """Rules between fields, as the reference and its refusals state them."""
    messages = list(view["messages"])
    if messages[0]["role"].text == "assistant":
        return Misfit(("messages",), "value", 'first message must use the "user" role')
    if version == VERSIONS[1]:
        for at, message in enumerate(messages):
            for position, block in enumerate(message["content"]):
                kind, role = block["type"].text, message["role"].text
                if (role == "assistant" and kind == "document") or (role == "user" and block["citations"].value):
                    return Misfit(("messages", at, "content", position), "value", f"no such {kind} block here")
    thinking, choice = view["thinking"], view["tool_choice"]
    if thinking["type"].text == "enabled":
        budget, most = thinking["budget_tokens"].number or 0, view["max_tokens"].number
        if most is not None and budget >= most:
            return Misfit(("max_tokens",), "value", "must be greater than `thinking.budget_tokens`")
        if choice["type"].text in ("any", "tool"):
            return Misfit(("tool_choice",), "value", "thinking may not be enabled when tool_choice forces tool use")
        if view["temperature"].value not in (None, 1, 1.0):
            return Misfit(("temperature",), "value", "may only be set to 1 when thinking is enabled")
    if choice and not view["tools"]:
        return Misfit(("tool_choice",), "value", "may only be specified while providing tools")
    form = view["output_config"]["format"]
    if form and (place := open_object(form["schema"].value, ("output_config", "format", "schema"))):
        return Misfit(place, "value", "for 'object' type, 'additionalProperties' must be explicitly set to false")
    for at, tool in enumerate(view["tools"]):
        if tool["strict"].flag and (place := open_object(tool["input_schema"].value, ("tools", at, "input_schema"))):
            return Misfit(place, "value", "for 'object' type, 'additionalProperties' must be explicitly set to false")
    return unanswered_calls(messages)


def open_object(schema: object, path: Path) -> Path | None:
    """Where a schema has an object that allows further properties."""
    if isinstance(schema, list):
        return next((place for at, one in enumerate(schema) if (place := open_object(one, (*path, at)))), None)
    if not isinstance(schema, dict):
        return None
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        return path
    return next((place for name, one in schema.items() if (place := open_object(one, (*path, name)))), None)


def unanswered_calls(messages: list[View]) -> Misfit | None:
    """The results of every tool use stand first in the user message right behind it; consecutive turns of one role are one."""
    open_calls: set[str] = set()
    for at, message in enumerate(messages):
        blocks = list(message["content"])
        if message["role"].text == "assistant":
            if open_calls and message["content"]:
                return Misfit(("messages", at), "value", f"tool_result blocks for {', '.join(sorted(open_calls))}")
            open_calls = {block["id"].text for block in blocks if block["type"].text == "tool_use"}
            continue
        for position, block in enumerate(blocks):
            if block["type"].text != "tool_result":
                if open_calls:
                    return Misfit(("messages", at, "content", position), "value", "tool_result blocks first")
                continue
            if (answered := block["tool_use_id"].text) not in open_calls:
                return Misfit(
                    ("messages", at, "content", position), "value", f"a tool_use with the id {answered} before it"
                )
            open_calls.discard(answered)
        if open_calls and not blocks:
            return Misfit(("messages", at), "value", f"tool_result blocks for {', '.join(sorted(open_calls))}")
    if open_calls:
        return Misfit(
            ("messages", len(messages) - 1), "value", f"tool_result blocks for {', '.join(sorted(open_calls))}"
        )
    return None


def usage_of(said: Said) -> dict[str, object]:
    """Anthropic counts the parts of the prompt apart: fresh, read from the cache, written to it."""
    return {
        "input_tokens": COUNTS.fresh,
        "cache_creation_input_tokens": COUNTS.written,
        "cache_read_input_tokens": COUNTS.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": COUNTS.written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": COUNTS.said,
        "output_tokens_details": {"thinking_tokens": COUNTS.thought if said.thought else 0},
        "service_tier": "standard",
    }


def blocks_of(said: Said) -> list[dict[str, object]]:
    blocks: list[dict[str, object]] = []
    if said.thought:
        blocks.append({"type": "thinking", "thinking": said.thought, "signature": SIGNATURE})
    if said.text:
        blocks.append({"type": "text", "text": said.text})
    blocks += [
        {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": call.arguments}
        for call in said.calls
    ]
    return blocks


def message_of(view: View, said: Said) -> dict[str, object]:
    return {
        "id": "msg_played",
        "type": "message",
        "role": "assistant",
        "model": view["model"].text,
        "content": blocks_of(said),
        "stop_reason": STOP_REASON[said.finish],
        "stop_sequence": said.stopped_at,
        "usage": usage_of(said),
    }


def events_of(view: View, said: Said) -> Iterator[bytes]:
    def event(name: str, /, **told: object) -> bytes:
        return named_event(name, {"type": name, **told})

    usage = usage_of(said)
    begun = {**message_of(view, said), "content": [], "stop_reason": None, "stop_sequence": None}
    yield event("message_start", message={**begun, "usage": {**usage, "output_tokens": 1}})
    for at, block in enumerate(blocks_of(said)):
        empty = {
            "thinking": {"type": "thinking", "thinking": "", "signature": ""},
            "text": {"type": "text", "text": ""},
            "tool_use": {**block, "input": {}},
        }[str(block["type"])]
        yield event("content_block_start", index=at, content_block=empty)
        if at == 0:
            yield event("ping")
        for delta in _deltas(block, said):
            yield event("content_block_delta", index=at, delta=delta)
        yield event("content_block_stop", index=at)
    counted = {name: usage[name] for name in usage if name not in ("cache_creation", "service_tier")}
    yield event(
        "message_delta",
        delta={"stop_reason": STOP_REASON[said.finish], "stop_sequence": said.stopped_at},
        usage=counted,
    )
    yield event("message_stop")


def _deltas(block: dict[str, object], said: Said) -> Iterator[dict[str, object]]:
    match block["type"]:
        case "thinking":
            yield {"type": "thinking_delta", "thinking": said.thought}
            yield {"type": "signature_delta", "signature": SIGNATURE}
        case "text":
            for piece in said.pieces():
                yield {"type": "text_delta", "text": piece}
        case _:
            written = next(call.written for call in said.calls if f"toolu_{call.id}" == block["id"])
            yield {"type": "input_json_delta", "partial_json": ""}
            for start in range(0, len(written), 5):
                yield {"type": "input_json_delta", "partial_json": written[start : start + 5]}


def _models() -> dict[str, object]:
    listed = [
        {"type": "model", "id": model, "display_name": model.title(), "created_at": "2026-10-21T00:00:00Z"}
        for model in MODELS
    ]
    return {"data": listed, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}


_REFUSALS: dict[Failure, tuple[int, str, str]] = {
    Failure.AUTHENTICATION: (401, "authentication_error", "invalid x-api-key"),
    Failure.PERMISSION: (
        403,
        "permission_error",
        "Your API key does not have permission to use the specified resource.",
    ),
    Failure.NOT_FOUND: (404, "not_found_error", "model: {model}"),
    Failure.RATE_LIMITED: (429, "rate_limit_error", "This request would exceed your organization's rate limit."),
    Failure.QUOTA: (402, "billing_error", "Your credit balance is too low to access the Claude API."),
    Failure.CONTEXT_LENGTH: (400, "invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum"),
    Failure.CONTENT_POLICY: (400, "invalid_request_error", "Output blocked by content filtering policy"),
    Failure.TOO_LARGE: (413, "request_too_large", "Request exceeds the maximum allowed number of bytes."),
    Failure.OVERLOADED: (529, "overloaded_error", "Overloaded"),
    Failure.SERVER: (500, "api_error", "Internal server error"),
}


def refuse(failure: Failure, model: str) -> Reply:
    status, kind, message = _REFUSALS[Failure.SERVER if failure is Failure.MID_STREAM else failure]
    headers = {"retry-after": "2"} if failure is Failure.RATE_LIMITED else {}
    return _error(status, kind, message.replace("{model}", model), headers)


def refuse_misfit(found: Misfit) -> Reply:
    said = {
        "unknown": "Extra inputs are not permitted",
        "missing": "Field required",
        "type": f"Input should be a valid {found.expected}",
        "value": found.expected,
    }
    return _invalid(f"{found.dotted}: {said[found.kind]}")


def _invalid(message: str) -> Reply:
    return _error(400, "invalid_request_error", message, {})


def _error(status: int, kind: str, message: str, headers: dict[str, str]) -> Reply:
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_played"}
    return json_reply(body, status=status, headers={"request-id": "req_played", **headers})


def _error_event() -> bytes:
    return named_event("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})


PROVIDER = Anthropic()
