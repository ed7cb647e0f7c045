"""A conversation in Gemini's words: contents, tools and the generation's settings. Pure.

Source: Gemini API reference (generateContent, Content, GenerationConfig, ToolConfig), its guides "Function calling",
"Structured outputs", "Thinking", "Thought signatures", "File input methods" and "OpenAI compatibility", read 2026-11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.upstream.formats.face import unsupported
from secure_llm_proxy.upstream.formats.parameters import Losses, check_limit, described_schema, said
from secure_llm_proxy.upstream.formats.turns import arguments_of, instructions_first, names_of_calls
from secure_llm_proxy.vocabulary.conversation import (
    SEALED_BY_GEMINI,
    Audio,
    Conversation,
    File,
    Image,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
    ToolResult,
)
from secure_llm_proxy.vocabulary.providers import Limit

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.vocabulary.conversation import Message, Part
    from secure_llm_proxy.vocabulary.providers import ProviderKind

# Gemini 3 and later refuse a call that comes back without the signature it left with. The documented stand-in, for calls
# that another model made, or whose client keeps no signatures.
_NO_SIGNATURE = "skip_thought_signature_validator"
_INT32 = range(-(2**31), 2**31)
_AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mp3", "aac": "audio/aac", "flac": "audio/flac", "ogg": "audio/ogg"}
# A file behind a link needs its type said; of what the model reads, this is what a link tells by its end.
_TYPES_BY_END = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "heic": "image/heic",
    "heif": "image/heif",
    "pdf": "application/pdf",
    "txt": "text/plain",
}
# As Google's own endpoint for OpenAI's clients understands the efforts, for the models that count thinking in tokens.
_THINKING_BUDGETS = {"none": 0, "minimal": 1_024, "low": 1_024, "medium": 8_192, "high": 24_576}
_THINKING_LEVELS = frozenset({"minimal", "low", "medium", "high"})
_COUNTS_THINKING_IN_TOKENS = ("gemini-1", "gemini-2")


def contents_of(conversation: Conversation, model: str, lost: Losses) -> JsonObject:
    """`systemInstruction` and `contents`.

    System messages in front are the instruction, a later one is a user's turn. Neighbours of one role are one content, but
    results of tools stand in one of their own, as the reference has it.
    """
    instruction, messages = instructions_first(conversation.messages)
    names = names_of_calls(messages)
    later = not model.startswith(_COUNTS_THINKING_IN_TOKENS)
    contents: list[JsonValue] = []
    before: tuple[str, bool] | None = None
    parts: list[JsonValue] = []
    for message in messages:
        if message.name is not None:
            lost.drop("messages.name")
        for results in (True, False):
            written = _parts_of(message, names, lost, results=results, later=later)
            if not written:
                continue
            kind = ("model" if message.role is Role.ASSISTANT else "user", results)
            if kind != before:
                parts = []
                contents.append({"role": kind[0], "parts": parts})
                before = kind
            parts.extend(written)
    payload: JsonObject = {}
    if instruction:
        payload["systemInstruction"] = {"parts": [{"text": instruction}]}
    payload["contents"] = contents
    return payload


def tools_of(conversation: Conversation, lost: Losses) -> JsonObject:
    """`tools` and `toolConfig`; {} where there are none. Functions that must obey their schema are called VALIDATED."""
    if not conversation.tools:
        return {}
    declarations: list[JsonValue] = [
        said(name=tool.name, description=tool.description, parametersJsonSchema=tool.parameters)
        for tool in conversation.tools
    ]
    payload: JsonObject = {"tools": [{"functionDeclarations": declarations}]}
    choice = conversation.tool_choice
    strict = any(tool.strict for tool in conversation.tools)
    mode = choice.mode if choice is not None else "auto"
    if choice is not None and choice.parallel is False:
        lost.drop("parallel_tool_calls")
    config: JsonObject
    if mode == "none":
        config = {"mode": "NONE"}
    elif mode == "auto":
        if choice is None and not strict:
            return payload
        config = {"mode": "VALIDATED" if strict else "AUTO"}
    else:
        config = {"mode": "ANY"}
        if choice is not None and choice.name is not None:
            config["allowedFunctionNames"] = [choice.name]
    payload["toolConfig"] = {"functionCallingConfig": config}
    return payload


def generation_config_of(conversation: Conversation, model: str, kind: ProviderKind, lost: Losses) -> JsonObject:
    """`generationConfig`, {} where nothing was said."""
    check_limit(kind, Limit.STOP_SEQUENCES, len(conversation.stop), "stop")
    check_limit(kind, Limit.CHOICES, conversation.n or 1, "n")
    check_limit(kind, Limit.TOP_LOGPROBS, conversation.top_logprobs or 0, "top_logprobs")
    seed = conversation.seed
    if seed is not None and seed not in _INT32:
        lost.drop("seed")
        seed = None
    stop: list[JsonValue] = list(conversation.stop)
    config = said(
        maxOutputTokens=conversation.max_tokens,
        temperature=conversation.temperature,
        topP=conversation.top_p,
        topK=conversation.top_k,
        stopSequences=stop or None,
        seed=seed,
        presencePenalty=conversation.presence_penalty,
        frequencyPenalty=conversation.frequency_penalty,
        candidateCount=conversation.n,
    )
    if conversation.logprobs:
        config["responseLogprobs"] = True
        if conversation.top_logprobs:
            config["logprobs"] = conversation.top_logprobs
    output = conversation.output
    if output is not None:
        config["responseMimeType"] = "application/json"
        if output.kind == "schema" and output.schema is not None:
            config["responseJsonSchema"] = described_schema(output, lost)
    thinking = _thinking_of(conversation, model, lost)
    if thinking:
        config["thinkingConfig"] = thinking
    return config


def _thinking_of(conversation: Conversation, model: str, lost: Losses) -> JsonObject:
    """Whoever asks for thought is shown what there is of it."""
    effort, budget = conversation.reasoning_effort, conversation.reasoning_tokens
    if budget is None and effort is not None and model.startswith(_COUNTS_THINKING_IN_TOKENS):
        budget = _THINKING_BUDGETS.get(effort)
    if budget is not None:
        return {"thinkingBudget": budget, "includeThoughts": True} if budget else {"thinkingBudget": 0}
    if effort is None:
        return {}
    if effort not in _THINKING_LEVELS or model.startswith(_COUNTS_THINKING_IN_TOKENS):
        lost.drop("reasoning_effort")
        return {}
    return {"thinkingLevel": effort.upper(), "includeThoughts": True}


def _parts_of(message: Message, names: dict[str, str], lost: Losses, *, results: bool, later: bool) -> list[JsonValue]:
    """Either what a message holds of results of tools, or all else. Of calls made at once, the first carries the signature."""
    written: list[JsonValue] = []
    sealed: str | None = None
    called = False
    for part in message.parts:
        if isinstance(part, ToolResult):
            if results:
                written.append(_result(part, names, shows_media=later))
            continue
        if results:
            continue
        if isinstance(part, Reasoning):
            if part.redacted is not None:
                if part.redacted.startswith(SEALED_BY_GEMINI):
                    sealed = part.redacted.removeprefix(SEALED_BY_GEMINI)
                continue
            if part.text:
                written.append({"text": part.text, "thought": True})
        elif isinstance(part, ToolCall):
            call: JsonObject = {
                "functionCall": said(id=part.id or None, name=part.name, args=arguments_of(part)),
            }
            if sealed is not None:
                call["thoughtSignature"] = sealed
            elif later and not called:
                call["thoughtSignature"] = _NO_SIGNATURE
            sealed, called = None, True
            written.append(call)
        else:
            written.append(_part_of(part, lost))
    return written


def _part_of(part: Part, lost: Losses) -> JsonObject:
    match part:
        case Text() | Refusal():
            return {"text": part.text}
        case Image():
            if part.detail not in (None, "auto"):
                lost.drop("messages.content.image_url.detail")
            return _media(part.data, part.url, part.media_type, "image/jpeg")
        case File():
            if part.file_id is not None:
                raise unsupported("messages", "a file by its id is known only to the provider that keeps it.")
            if part.name is not None:
                lost.drop("messages.content.file.filename")
            return _media(part.data, part.url, part.media_type, "application/pdf")
        case Audio():
            return {
                "inlineData": {"mimeType": _AUDIO_TYPES.get(part.format, f"audio/{part.format}"), "data": part.data}
            }
        case _:
            raise AssertionError(f"{type(part).__name__} has a place of its own")


def _media(data: str | None, url: str | None, media_type: str | None, otherwise: str) -> JsonObject:
    if url is not None:
        guessed = media_type or _TYPES_BY_END.get(url.partition("?")[0].rpartition(".")[2].lower())
        return {"fileData": said(mimeType=guessed, fileUri=url)}
    return {"inlineData": {"mimeType": media_type or otherwise, "data": data or ""}}


def _result(result: ToolResult, names: dict[str, str], *, shows_media: bool) -> JsonObject:
    name = names.get(result.call_id) or result.name
    if not name:
        raise unsupported("messages", "a tool's result belongs to no call that stands before it.")
    texts: list[str] = []
    media: list[JsonValue] = []
    for part in result.parts:
        if isinstance(part, Text):
            texts.append(part.text)
        elif part.data is None or not shows_media:
            raise unsupported(
                "messages", "in a tool's result this model reads texts alone, later ones inline media too."
            )
        else:
            otherwise = "image/jpeg" if isinstance(part, Image) else "application/pdf"
            media.append(_media(part.data, None, part.media_type, otherwise))
    response: JsonObject = {"error" if result.is_error else "output": "".join(texts)}
    told = said(id=result.call_id or None, name=name, response=response, parts=media or None)
    return {"functionResponse": told}
