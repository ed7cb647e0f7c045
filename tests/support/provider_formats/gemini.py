"""Google Gemini, played: generateContent, streamGenerateContent, embedContent, batchEmbedContents, countTokens, models.

Source, read 2026-11-21: Gemini API reference (Generating content, Embeddings, Counting tokens, Models), the guides on
function calling, thought signatures and structured output, the table of API errors, with the types of the official Python
SDK 3.4 as the list of fields. Written by us; no answer is a recording.

Kept to strictly: one kind of data per part; `parameters` and `responseSchema` take the API's own subset of
OpenAPI, while JSON Schema has fields of its own (`parametersJsonSchema`, `responseJsonSchema`). Models of generation 3 and
later want the signature of a step's first function call back in the turn that is still open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.support.provider_formats.playing import Arrived, Failure, Reply, dumped, failure_of, json_reply, misfit_of
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
    View,
    either,
    fields,
    words,
)
from tests.support.provider_formats.speaking import COUNTS, SIGNATURE, Asked, Finish, Offer, Said, Seen, speak, vector

MODELS = ("gemini-2.5-flash", "gemini-2.5-flash-thinking", "gemini-3-pro", "gemini-embedding-001")
FUNCTION_NAME = Name(r"[a-zA-Z_][a-zA-Z0-9_.:-]*", 128)
_DATA = ("text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult")
_PART = fields(
    text=STRING,
    inlineData=fields({"mimeType": STRING, "data": STRING}, displayName=STRING),
    fileData=fields({"fileUri": STRING}, mimeType=STRING, displayName=STRING),
    functionCall=fields({"name": FUNCTION_NAME}, id=STRING, args=MapOf(ANY)),
    functionResponse=fields(
        {"name": FUNCTION_NAME, "response": MapOf(ANY)},
        id=STRING,
        parts=ListOf(OBJECT),
        willContinue=BOOLEAN,
        scheduling=STRING,
    ),
    executableCode=OBJECT,
    codeExecutionResult=OBJECT,
    thought=BOOLEAN,
    thoughtSignature=STRING,
    videoMetadata=OBJECT,
    mediaResolution=OBJECT,
    partMetadata=OBJECT,
)


@dataclass(frozen=True, slots=True)
class PartShape:
    """A part holds exactly one kind of data."""

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if found := _PART.misfit(value, path):
            return found
        held = [name for name in _DATA if isinstance(value, dict) and name in value]
        return None if len(held) == 1 else Misfit(path, "value", "exactly one kind of data in a part")


@dataclass(frozen=True, slots=True)
class SchemaShape:
    """The API's subset of OpenAPI's schema object, walked through its nested schemas."""

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if isinstance(value, dict) and "type" not in value and "anyOf" not in value:
            return Misfit((*path, "type"), "missing", "a type")
        return _SCHEMA.misfit(value, path)


_TYPES = ("STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL")
_NESTED = SchemaShape()
_SCHEMA = fields(
    type=words(*_TYPES, *(name.lower() for name in _TYPES)),
    format=STRING,
    title=STRING,
    description=STRING,
    nullable=BOOLEAN,
    enum=ListOf(STRING),
    maxItems=either(STRING, INTEGER),
    minItems=either(STRING, INTEGER),
    properties=MapOf(_NESTED),
    required=ListOf(STRING),
    minProperties=either(STRING, INTEGER),
    maxProperties=either(STRING, INTEGER),
    minLength=either(STRING, INTEGER),
    maxLength=either(STRING, INTEGER),
    pattern=STRING,
    example=ANY,
    anyOf=ListOf(_NESTED),
    propertyOrdering=ListOf(STRING),
    default=ANY,
    items=_NESTED,
    minimum=NUMBER,
    maximum=NUMBER,
)
CONTENT = fields({"parts": ListOf(PartShape(), 1)}, role=words("user", "model"))
SYSTEM = fields({"parts": ListOf(PartShape(), 1)}, role=STRING)
TOOLS = ListOf(
    fields(
        functionDeclarations=ListOf(
            fields(
                {"name": FUNCTION_NAME},
                description=STRING,
                behavior=STRING,
                parameters=_NESTED,
                parametersJsonSchema=ANY,
                response=_NESTED,
                responseJsonSchema=ANY,
            )
        ),
        googleSearch=OBJECT,
        googleSearchRetrieval=OBJECT,
        codeExecution=OBJECT,
        urlContext=OBJECT,
        googleMaps=OBJECT,
        fileSearch=OBJECT,
        computerUse=OBJECT,
        mcpServers=ListOf(OBJECT),
    )
)
TOOL_CONFIG = fields(
    functionCallingConfig=fields(mode=words("AUTO", "ANY", "NONE", "VALIDATED"), allowedFunctionNames=ListOf(STRING)),
    retrievalConfig=OBJECT,
    includeServerSideToolInvocations=BOOLEAN,
)
GENERATION_CONFIG = fields(
    stopSequences=ListOf(STRING),
    responseMimeType=words("text/plain", "application/json", "text/x.enum"),
    responseSchema=_NESTED,
    responseJsonSchema=ANY,
    responseFormat=ANY,
    responseModalities=ListOf(words("TEXT", "IMAGE", "AUDIO")),
    candidateCount=Kind("integer", 1, 8),
    maxOutputTokens=COUNT,
    temperature=Kind("number", 0, 2),
    topP=Kind("number", 0, 1),
    topK=NUMBER,
    seed=INTEGER,
    presencePenalty=NUMBER,
    frequencyPenalty=NUMBER,
    responseLogprobs=BOOLEAN,
    logprobs=Kind("integer", 0, 20),
    enableEnhancedCivicAnswers=BOOLEAN,
    speechConfig=OBJECT,
    thinkingConfig=fields(
        includeThoughts=BOOLEAN,
        thinkingBudget=INTEGER,
        thinkingLevel=words("MINIMAL", "LOW", "MEDIUM", "HIGH", "minimal", "low", "medium", "high"),
    ),
    imageConfig=OBJECT,
    mediaResolution=STRING,
)
_GENERATE: dict[str, Shape] = {
    "tools": TOOLS,
    "toolConfig": TOOL_CONFIG,
    "safetySettings": ListOf(fields({"category": STRING, "threshold": STRING})),
    "systemInstruction": SYSTEM,
    "generationConfig": GENERATION_CONFIG,
    "cachedContent": STRING,
    "serviceTier": STRING,
    "store": BOOLEAN,
}
CONTENTS = ListOf(CONTENT, 1)
GENERATE = Fields({"contents": CONTENTS}, _GENERATE)
COUNT_TOKENS = fields(
    contents=CONTENTS, generateContentRequest=Fields({"model": STRING, "contents": CONTENTS}, _GENERATE)
)
_EMBED: dict[str, Shape] = {
    "taskType": STRING,
    "title": STRING,
    "outputDimensionality": Kind("integer", 1),
    "embedContentConfig": OBJECT,
}
EMBED = Fields({"content": CONTENT}, {**_EMBED, "model": STRING})
BATCH_EMBED = fields({"requests": ListOf(Fields({"model": STRING, "content": CONTENT}, _EMBED), 1)})
SHAPES = {
    "generateContent": GENERATE,
    "streamGenerateContent": GENERATE,
    "countTokens": COUNT_TOKENS,
    "embedContent": EMBED,
    "batchEmbedContents": BATCH_EMBED,
}

FINISH = {Finish.STOP: "STOP", Finish.STOP_SEQUENCE: "STOP", Finish.LENGTH: "MAX_TOKENS", Finish.TOOLS: "STOP"}


# What is the caller's own: names in it are left alone.
_FREE = {
    "args",
    "response",
    "parametersJsonSchema",
    "parameters_json_schema",
    "responseJsonSchema",
    "response_json_schema",
}


def proto_names(value: object) -> object:
    """Names in camelCase: the API reads its fields' snake_case names too, as every protocol buffer does."""
    if isinstance(value, list):
        return [proto_names(item) for item in value]
    if not isinstance(value, dict):
        return value
    named: dict[str, object] = {}
    for name, item in value.items():
        said = re.sub(r"(?<=[a-z])_([a-z])", lambda found: found[1].upper(), name)
        if name in _FREE:
            named[said] = item
        elif name == "properties" and isinstance(item, dict):
            named[said] = {own: proto_names(schema) for own, schema in item.items()}
        else:
            named[said] = proto_names(item)
    return named


class Gemini:
    name = "gemini"
    base_path = "/v1beta"

    def authorised(self, arrived: Arrived, key: str) -> bool:
        return arrived.headers.get("x-goog-api-key") == key

    def fail(self, failure: Failure, arrived: Arrived) -> Reply:
        return refuse(failure, *_target(arrived.path), streamed="streamGenerateContent" in arrived.path)

    def answer(self, arrived: Arrived) -> Reply:
        if arrived.method == "GET" and arrived.path.removeprefix("/v1") == "/models":
            return json_reply(_models())
        model, method = _target(arrived.path)
        shape = SHAPES.get(method)
        if shape is None or arrived.method != "POST":
            return refuse(Failure.NOT_FOUND, model, method)
        arrived = replace(arrived, body=proto_names(arrived.body))
        found = misfit_of(shape, arrived.body) or further_misfit(arrived.view, model, method)
        if found is not None:
            return replace(refuse_misfit(found), misfit=found)
        failure, view = failure_of(model), arrived.view
        streamed = method == "streamGenerateContent"
        if failure is not None and not (failure is Failure.MID_STREAM and streamed):
            return refuse(failure, model, method, streamed=streamed)
        match method:
            case "countTokens":
                counted = [{"modality": "TEXT", "tokenCount": COUNTS.prompt}]
                return json_reply({"totalTokens": COUNTS.prompt, "promptTokensDetails": counted})
            case "embedContent":
                return json_reply({"embedding": {"values": _vector(view)}})
            case "batchEmbedContents":
                return json_reply({"embeddings": [{"values": _vector(one)} for one in view["requests"]]})
        said = speak(asked_in(view, model))
        if not streamed:
            return json_reply(answer_of(view, said, model, parts_of(said, model, view), FINISH[said.finish]))
        chunks = list(chunks_of(view, said, model))
        if arrived.query.get("alt") != "sse":
            return json_reply(chunks)
        if failure is Failure.MID_STREAM:
            chunks = [*chunks[: len(chunks) // 2], json.loads(refuse(Failure.OVERLOADED, model, method).body)]
        return Reply(events=[b"data: " + dumped(chunk) + b"\r\n\r\n" for chunk in chunks])


def asked_in(view: View, model: str) -> Asked:
    contents = list(view["contents"])
    results = [
        _told(part["functionResponse"]["response"])
        for part in (contents[-1]["parts"] if contents else ())
        if part["functionResponse"]
    ]
    seen: list[Seen] = []
    for content in contents:
        for part in content["parts"]:
            if blob := part["inlineData"]:
                media_type = blob["mimeType"].text
                seen.append(Seen(_kind(media_type), media_type, data=blob["data"].text))
            elif link := part["fileData"]:
                seen.append(Seen(_kind(link["mimeType"].text), link["mimeType"].text, url=link["fileUri"].text))
    config, calling = view["generationConfig"], view["toolConfig"]["functionCallingConfig"]
    allowed = calling["allowedFunctionNames"].texts
    schema = config["responseJsonSchema"].names or config["responseSchema"].names
    return Asked(
        model=model,
        offers=tuple(
            Offer(declared["name"].text, declared["parametersJsonSchema"].names or declared["parameters"].names)
            for tool in view["tools"]
            for declared in tool["functionDeclarations"]
            if not allowed or declared["name"].text in allowed
        ),
        silent=calling["mode"].text == "NONE",
        results=tuple(results),
        seen=tuple(seen),
        schema=schema or None,
        json_mode=config["responseMimeType"].text == "application/json",
        stop=tuple(config["stopSequences"].texts),
        max_tokens=config["maxOutputTokens"].number,
        thinking=config["thinkingConfig"]["includeThoughts"].flag is True,
    )


def _told(response: View) -> str:
    """The reference: output under `output`, errors under `error`; without them the whole object is the output."""
    for name in ("output", "result", "error"):
        if response[name].word is not None:
            return response[name].text
    return json.dumps(response.value)


def _kind(media_type: str) -> str:
    return media_type.partition("/")[0] if media_type.startswith(("image/", "audio/", "video/")) else "file"


def further_misfit(view: View, model: str, method: str) -> Misfit | None:
    """Rules between fields, as the reference and its refusals state them."""
    if method == "batchEmbedContents":
        for at, one in enumerate(view["requests"]):
            if one["model"].text != f"models/{model}":
                return Misfit(("requests", at, "model"), "value", f"models/{model}")
        return None
    if method not in ("generateContent", "streamGenerateContent"):
        return None
    config, calling = view["generationConfig"], view["toolConfig"]["functionCallingConfig"]
    schemas = [name for name in ("responseSchema", "responseJsonSchema") if config[name].value is not None]
    if schemas and config["responseMimeType"].text != "application/json":
        return Misfit(("generationConfig", "responseMimeType"), "value", "application/json where a schema is set")
    if len(schemas) > 1:
        return Misfit(("generationConfig", "responseSchema"), "value", "one schema of the two")
    if calling["allowedFunctionNames"] and calling["mode"].text not in ("ANY", "VALIDATED"):
        return Misfit(
            ("toolConfig", "functionCallingConfig", "allowedFunctionNames"), "value", "the mode ANY or VALIDATED"
        )
    for at, tool in enumerate(view["tools"]):
        for position, declared in enumerate(tool["functionDeclarations"]):
            if declared["parameters"].value is not None and declared["parametersJsonSchema"].value is not None:
                return Misfit(("tools", at, "functionDeclarations", position), "value", "one of the two schemas")
    return unanswered_calls(list(view["contents"])) or unsigned_calls(list(view["contents"]), model)


def unanswered_calls(contents: list[View]) -> Misfit | None:
    """As many function responses, in the turn right behind, as there were function calls."""
    calls = 0
    for at, content in enumerate(contents):
        responses = sum(1 for part in content["parts"] if part["functionResponse"])
        if responses != calls:
            return Misfit(("contents", at), "value", "as many function responses as function calls before them")
        calls = sum(1 for part in content["parts"] if part["functionCall"])
    return Misfit(("contents",), "value", "a function response behind a function call") if calls else None


def unsigned_calls(contents: list[View], model: str) -> Misfit | None:
    """The first function call of each step since the user last spoke carries a signature."""
    generation = re.search(r"gemini-(\d+)", model)
    if generation is None or int(generation[1]) < 3:
        return None
    spoke = [
        at
        for at, content in enumerate(contents)
        if content["role"].text != "model" and not any(part["functionResponse"] for part in content["parts"])
    ]
    for at in range(spoke[-1] if spoke else 0, len(contents)):
        calls = [(place, part) for place, part in enumerate(contents[at]["parts"]) if part["functionCall"]]
        if calls and not calls[0][1]["thoughtSignature"]:
            return Misfit(("contents", at, "parts", calls[0][0], "thoughtSignature"), "value", "a thought_signature")
    return None


def parts_of(said: Said, model: str, view: View) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = []
    if said.thought and view["generationConfig"]["thinkingConfig"]["includeThoughts"].flag:
        parts.append({"text": said.thought, "thought": True})
    if said.text:
        parts.append({"text": said.text})
    later = not model.startswith("gemini-2")
    for at, call in enumerate(said.calls):
        made: dict[str, object] = {"name": call.name, "args": call.arguments}
        part: dict[str, object] = {"functionCall": {**({"id": call.id} if later else {}), **made}}
        if at == 0 and (later or said.thought):
            part["thoughtSignature"] = SIGNATURE
        parts.append(part)
    return parts


def answer_of(
    view: View, said: Said, model: str, parts: list[dict[str, object]], finish: str | None
) -> dict[str, object]:
    count = view["generationConfig"]["candidateCount"].number or 1
    candidate: dict[str, object] = {"content": {"parts": parts, "role": "model"}}
    if finish:
        candidate["finishReason"] = finish
    return {
        "candidates": [{**candidate, "index": at} for at in range(count)],
        "usageMetadata": usage_of(said),
        "modelVersion": model,
        "responseId": "played-response",
    }


def usage_of(said: Said) -> dict[str, object]:
    """Cached tokens are among the prompt's; thoughts are counted beside what is said."""
    thought = COUNTS.thought if said.thought else 0
    counted: dict[str, object] = {
        "promptTokenCount": COUNTS.prompt,
        "candidatesTokenCount": COUNTS.said - thought,
        "totalTokenCount": COUNTS.total,
        "cachedContentTokenCount": COUNTS.cached,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": COUNTS.prompt}],
        "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": COUNTS.cached}],
    }
    return {**counted, "thoughtsTokenCount": thought} if thought else counted


def chunks_of(view: View, said: Said, model: str) -> Iterator[dict[str, object]]:
    """Thoughts, then the text word by word or each call whole; the last one says why it ended."""
    pieces: list[list[dict[str, object]]] = []
    for part in parts_of(said, model, view):
        if part.get("text") == said.text and "thought" not in part:
            pieces += [[{"text": piece}] for piece in said.pieces()]
        else:
            pieces.append([part])
    for at, parts in enumerate(pieces):
        yield answer_of(view, said, model, parts, FINISH[said.finish] if at == len(pieces) - 1 else None)


def _target(path: str) -> tuple[str, str]:
    """Model and method of `/models/MODEL:METHOD`, in the stable API (`/v1`) as in the one that the base path names."""
    model, _, method = path.removeprefix("/v1").removeprefix("/models/").rpartition(":")
    return model, method


def _vector(view: View) -> list[float]:
    text = "".join(part["text"].text for part in view["content"]["parts"])
    return vector(text, view["outputDimensionality"].number or 8)


def _models() -> dict[str, object]:
    return {
        "models": [
            {
                "name": f"models/{model}",
                "version": "001",
                "displayName": model,
                "inputTokenLimit": 1_048_576,
                "outputTokenLimit": 65_536,
                "supportedGenerationMethods": (
                    ["embedContent"] if "embedding" in model else ["generateContent", "countTokens"]
                ),
            }
            for model in MODELS
        ]
    }


_REFUSALS: dict[Failure, tuple[int, str, str]] = {
    Failure.AUTHENTICATION: (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
    Failure.PERMISSION: (403, "PERMISSION_DENIED", "Your API key doesn't have the required permissions."),
    Failure.NOT_FOUND: (
        404,
        "NOT_FOUND",
        "models/{model} is not found for API version v1beta, or is not supported for {method}.",
    ),
    Failure.RATE_LIMITED: (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota. Please retry in 2s."),
    Failure.QUOTA: (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing."),
    Failure.CONTEXT_LENGTH: (
        400,
        "INVALID_ARGUMENT",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    ),
    Failure.TOO_LARGE: (400, "INVALID_ARGUMENT", "Request payload size exceeds the limit: 20971520 bytes."),
    Failure.OVERLOADED: (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    Failure.SERVER: (500, "INTERNAL", "An internal error has occurred. Please retry."),
}
_DETAILS: dict[Failure, list[object]] = {
    Failure.AUTHENTICATION: [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "API_KEY_INVALID",
            "domain": "googleapis.com",
            "metadata": {"service": "generativelanguage.googleapis.com"},
        }
    ],
    Failure.RATE_LIMITED: [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "PerMinute"}]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"},
    ],
}


def refuse(failure: Failure, model: str, method: str, *, streamed: bool = False) -> Reply:
    """Google's error object; a blocked prompt is no error but an answer without candidates."""
    if failure is Failure.CONTENT_POLICY:
        blocked = {
            "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
            "usageMetadata": {"promptTokenCount": COUNTS.prompt, "totalTokenCount": COUNTS.prompt},
            "modelVersion": model,
        }
        return Reply(events=[b"data: " + dumped(blocked) + b"\r\n\r\n"]) if streamed else json_reply(blocked)
    kind = Failure.SERVER if failure is Failure.MID_STREAM else failure
    code, status, message = _REFUSALS[kind]
    return _error(code, status, message.replace("{model}", model).replace("{method}", method), _DETAILS.get(kind))


def refuse_misfit(found: Misfit) -> Reply:
    *before, last = found.path
    place = Misfit(tuple(before), found.kind, found.expected).indexed
    at = f" at '{place}'" if place else ""
    said = {
        "unknown": f'Invalid JSON payload received. Unknown name "{last}"{at}: Cannot find field.',
        "missing": f"* {found.indexed}: {last} is not specified",
        "type": f"Invalid value{at} ({last}): expected {found.expected}",
        "value": f"* {found.indexed}: expected {found.expected}",
    }[found.kind]
    violation = {"field": place, "description": said}
    details = [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}]
    return _error(400, "INVALID_ARGUMENT", said, list(details))


def _error(code: int, status: str, message: str, details: list[object] | None) -> Reply:
    error: dict[str, object] = {"code": code, "message": message, "status": status}
    return json_reply({"error": {**error, "details": details} if details else error}, status=code)


PROVIDER = Gemini()
