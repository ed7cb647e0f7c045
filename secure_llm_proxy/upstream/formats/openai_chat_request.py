"""The neutral conversation as a request of OpenAI's chat completions, for every kind of server that speaks it. Pure.

What differs from the neutral model, and what becomes of it:
- The role `developer` and refusals are OpenAI's own: elsewhere they are `system`, and text.
- Contents of several texts: a list of parts at OpenAI; elsewhere one text, joined by an empty line in system prompts, by a
  line break in results of tools, by nothing in what the model said; users' stay parts.
- Results of tools hold text only: their images and files follow in a message of the user's behind the last result of a turn.
- That a tool failed stands in its result's text alone.
- Thoughts have no place: they are left out.

Source: OpenAI API reference (Create chat completion); Mistral, Groq, Together AI and OpenRouter API references; the servers of
vLLM, llama.cpp and Ollama; read 2026-11-21.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from secure_llm_proxy.upstream.formats.face import Written, unsupported
from secure_llm_proxy.upstream.formats.openai_dialect import call_id
from secure_llm_proxy.upstream.formats.parameters import Losses, check_limit
from secure_llm_proxy.vocabulary.conversation import (
    Audio,
    Conversation,
    File,
    Image,
    Message,
    Reasoning,
    Refusal,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolResult,
)
from secure_llm_proxy.vocabulary.providers import Capability, Limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.vocabulary.providers import ProviderKind

# Parameters without a field of their own that OpenAI's other formats have under the same name, with the same meaning.
_SHARED: Final = frozenset(
    {
        "logit_bias", "metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
        "service_tier", "store", "verbosity",
    }
)  # fmt: skip
_SCHEMA_NAME: Final = "answer"
_FILE_NAME: Final = "document.pdf"
_TEXT_JOINS: Final = {Role.SYSTEM: "\n\n", Role.DEVELOPER: "\n\n", Role.TOOL: "\n", Role.ASSISTANT: ""}


def write_conversation(neutral: Conversation, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
    """Raises `InvalidRequest(unsupported_parameter)` for what this kind can't be told and what changes the answer."""
    losses = Losses()
    payload: JsonObject = {"model": model, "messages": _messages(neutral.messages, kind, losses)}
    _put_tools(payload, neutral, kind)
    _put_output(payload, neutral, kind)
    _put_choices(payload, neutral, kind)
    check_limit(kind, Limit.STOP_SEQUENCES, len(neutral.stop), "stop")
    tuning: dict[str, JsonValue] = {
        kind.bound: neutral.max_tokens,
        "temperature": neutral.temperature,
        "top_p": neutral.top_p,
        "stop": list(neutral.stop) or None,
        "seed": neutral.seed,
        "presence_penalty": neutral.presence_penalty,
        "frequency_penalty": neutral.frequency_penalty,
        "user": neutral.user,
    }
    for name, value in tuning.items():
        if value is None:
            continue
        if name in kind.drops:
            losses.drop(name)
        else:
            payload[kind.renames.get(name, name)] = value
    if neutral.top_k is not None:
        if "top_k" in kind.adds:
            payload["top_k"] = neutral.top_k
        else:
            losses.drop("top_k")
    _put_reasoning(payload, neutral, kind, losses)
    shared = {name: value for name, value in neutral.further.items() if kind.original and name in _SHARED}
    payload.update(shared)
    losses.drop_further({name: value for name, value in neutral.further.items() if name not in shared})
    payload["stream"] = neutral.stream
    if neutral.stream and ask_usage and kind.usage == "asked":
        payload["stream_options"] = {"include_usage": True}
    return Written(payload, losses.names)


def _put_tools(payload: JsonObject, neutral: Conversation, kind: ProviderKind) -> None:
    if not neutral.tools:
        if neutral.tool_choice is not None and neutral.tool_choice.mode in ("required", "named"):
            raise unsupported("tool_choice", "there are no tools to choose from.")
        return
    if Capability.TOOLS in kind.lacks:
        raise unsupported("tools", "it calls none.")
    payload["tools"] = [_tool(tool, kind) for tool in neutral.tools]
    choice = neutral.tool_choice
    if choice is None:
        return
    if choice.mode == "named":
        payload["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        payload["tool_choice"] = kind.tool_choices.get(choice.mode, choice.mode)
    if choice.parallel is None:
        return
    if "parallel_tool_calls" not in kind.refuses:
        payload["parallel_tool_calls"] = choice.parallel
    elif not choice.parallel:
        raise unsupported("parallel_tool_calls", "it can't be held to one call at a time.")


def _tool(tool: Tool, kind: ProviderKind) -> JsonObject:
    function: JsonObject = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    elif not kind.original:
        # Mistral demands them, and templates of open models read them.
        function["parameters"] = {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _put_output(payload: JsonObject, neutral: Conversation, kind: ProviderKind) -> None:
    output = neutral.output
    if output is None:
        return
    if output.kind == "json":
        payload["response_format"] = {"type": "json_object"}
        return
    if Capability.JSON_SCHEMA in kind.lacks:
        raise unsupported("response_format", "it follows no schema.")
    wanted: JsonObject = {"name": output.name or _SCHEMA_NAME}
    if output.description is not None:
        wanted["description"] = output.description
    if output.schema is not None:
        wanted["schema"] = output.schema
    if output.strict is not None:
        wanted["strict"] = output.strict
    payload["response_format"] = {"type": "json_schema", "json_schema": wanted}


def _put_choices(payload: JsonObject, neutral: Conversation, kind: ProviderKind) -> None:
    if neutral.n is not None:
        if neutral.n != 1 and Capability.SEVERAL_CHOICES in kind.lacks:
            raise unsupported("n", "it gives one choice.")
        payload["n"] = neutral.n
    for name, value in (("logprobs", neutral.logprobs), ("top_logprobs", neutral.top_logprobs)):
        if value is None:
            continue
        if Capability.LOGPROBS not in kind.lacks:
            payload[name] = value
        elif value:
            raise unsupported(name, "it tells none.")


def _put_reasoning(payload: JsonObject, neutral: Conversation, kind: ProviderKind, losses: Losses) -> None:
    effort = neutral.reasoning_effort
    if effort is not None:
        told = kind.efforts.get(effort, effort)
        if told:
            payload["reasoning_effort"] = told
        else:
            losses.drop("reasoning_effort")
    if neutral.reasoning_tokens is None:
        return
    if not kind.reasoning_budget:
        losses.drop("reasoning_tokens")
    elif neutral.reasoning_tokens > 0:
        payload["reasoning"] = {"max_tokens": neutral.reasoning_tokens}
    else:
        payload["reasoning"] = {"enabled": False}


# Messages


def _messages(messages: Iterable[Message], kind: ProviderKind, losses: Losses) -> list[JsonValue]:
    written: list[JsonValue] = []
    shown: list[JsonValue] = []
    """Images and files of the results of this turn."""
    for message in messages:
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        if shown and not results:
            written.append({"role": "user", "content": shown})
            shown = []
        written += [_result(result, kind, shown, losses) for result in results]
        if results and len(results) == len(message.parts):
            continue
        told = _assistant(message, kind) if message.role is Role.ASSISTANT else _asked(message, kind, losses)
        if message.name:
            if "messages.name" in kind.drops:
                losses.drop("name")
            else:
                told["name"] = message.name
        written.append(told)
    if shown:
        written.append({"role": "user", "content": shown})
    return written


def _asked(message: Message, kind: ProviderKind, losses: Losses) -> JsonObject:
    """What the user or the application said."""
    role = message.role
    if role is Role.DEVELOPER and not kind.original:
        role = Role.SYSTEM
    parts = [part for part in message.parts if not isinstance(part, ToolResult)]
    texts = [part.text for part in parts if isinstance(part, Text)]
    content: JsonValue
    if len(texts) == len(parts) and (len(parts) == 1 or (role is not Role.USER and not kind.original)):
        content = _TEXT_JOINS.get(role, "").join(texts)
    elif role is Role.USER or len(texts) == len(parts):
        content = [_part(part, kind, losses) for part in parts]
    else:
        raise unsupported("messages", "its system prompt is text.")
    return {"role": role.value, "content": content or ""}


def _assistant(message: Message, kind: ProviderKind) -> JsonObject:
    texts: list[str] = []
    refusals: list[str] = []
    calls: list[JsonValue] = []
    for part in message.parts:
        match part:
            case Text(text):
                texts.append(text)
            case Refusal(text):
                (refusals if kind.original else texts).append(text)
            case ToolCall(id_, name, arguments):
                function: JsonObject = {"name": name, "arguments": arguments if arguments.strip() else "{}"}
                calls.append({"id": call_id(id_, kind), "type": "function", "function": function})
            case Reasoning():
                pass
            case Image() | File() | Audio() | ToolResult():
                raise unsupported("messages", "what the model said is text.")
    said: JsonValue = "".join(texts)
    if kind.original and len(texts) > 1:
        said = [{"type": "text", "text": text} for text in texts]
    elif not texts and (calls or refusals):
        said = None
    told: JsonObject = {"role": "assistant", "content": said}
    if refusals:
        told["refusal"] = "".join(refusals)
    if calls:
        told["tool_calls"] = calls
    return told


def _result(result: ToolResult, kind: ProviderKind, shown: list[JsonValue], losses: Losses) -> JsonObject:
    texts: list[str] = []
    for part in result.parts:
        if isinstance(part, Text):
            texts.append(part.text)
        else:
            shown.append(_part(part, kind, losses))
    if result.is_error:
        losses.drop("is_error")
    content: JsonValue = _TEXT_JOINS[Role.TOOL].join(texts)
    if kind.original and len(texts) > 1:
        content = [{"type": "text", "text": text} for text in texts]
    return {"role": "tool", "tool_call_id": call_id(result.call_id, kind), "content": content}


def _part(part: object, kind: ProviderKind, losses: Losses) -> JsonObject:
    match part:
        case Text(text) | Refusal(text):
            return {"type": "text", "text": text}
        case Image():
            return _image(part, kind, losses)
        case File():
            return _file(part, kind)
        case Audio(data, format_):
            if Capability.AUDIO in kind.lacks:
                raise unsupported("messages", "it does not take audio.")
            if kind.media == "mistral":
                return {"type": "input_audio", "input_audio": data}
            return {"type": "input_audio", "input_audio": {"data": data, "format": format_}}
        case _:
            raise unsupported("messages", "a part of a message is not what the user can say.")


def _image(image: Image, kind: ProviderKind, losses: Losses) -> JsonObject:
    if Capability.IMAGES in kind.lacks:
        raise unsupported("messages", "it does not take images.")
    if image.url is None and (image.data is None or image.media_type is None):
        raise unsupported("messages", "it takes images by link, or with their media type.")
    told: JsonObject = {"url": image.url or f"data:{image.media_type};base64,{image.data}"}
    if image.detail is not None:
        if kind.original or image.detail in ("auto", "low", "high"):
            told["detail"] = image.detail
        else:
            losses.drop("detail")
    return {"type": "image_url", "image_url": told}


def _file(file: File, kind: ProviderKind) -> JsonObject:
    if Capability.FILES in kind.lacks:
        raise unsupported("messages", "it does not take files.")
    link = file.url
    if file.data is not None:
        link = f"data:{file.media_type or 'application/pdf'};base64,{file.data}"
    if kind.media == "mistral":
        if link is None:
            return {"type": "file", "file_id": file.file_id}
        document: JsonObject = {"type": "document_url", "document_url": link}
        if file.name is not None:
            document["document_name"] = file.name
        return document
    if file.file_id is not None:
        return {"type": "file", "file": {"file_id": file.file_id}}
    if file.data is None and kind.original:
        raise unsupported("messages", "it does not take files by link.")
    return {"type": "file", "file": {"filename": file.name or _FILE_NAME, "file_data": link}}
