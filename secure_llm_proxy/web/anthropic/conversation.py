"""A request of Anthropic's Messages API in neutral form, for providers that speak another format. Pure.

What only Anthropic can do (its own tools, MCP servers, containers, citations, files kept there) is refused; what only tunes, and
every mark for its cache, is kept by name in `further`, so that its loss is told. What it means where the neutral model has no
field of its own:
- A plain-text document, its title and what is said about it are text; so are the parts of a search result.
- `thinking` with a budget is a budget; what else it says, and how it is shown, is told as left out.
- `output_config.effort` is the effort, but for `high`, which is what saying nothing means; `max` is the most that others know.
- A `user_id` of more than 64 characters is left out: OpenAI refuses longer ones, and some clients make them of three ids.

Source: Claude API reference (Create a Message), with the types of the official Python SDK 2.11, read 2026-11-21.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.vocabulary.conversation import (
    Conversation,
    File,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    Role,
    Text,
    TokenCountRequest,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from secure_llm_proxy.web.openai.fields import (
    flag_or_none,
    integer_or_none,
    invalid_value,
    list_of,
    note_others,
    number_or_none,
    object_of,
    object_or_none,
    text_of,
    text_or_none,
    unsupported,
    word_of,
)

if TYPE_CHECKING:
    from typing import Literal

    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.vocabulary.conversation import Part

_PARAMETERS: Final = frozenset(
    {
        "model", "messages", "system", "max_tokens", "stream", "temperature", "top_p", "top_k", "stop_sequences", "tools",
        "tool_choice", "thinking", "output_config", "output_format", "metadata", "container", "mcp_servers", "service_tier",
    }
)  # fmt: skip
_USER_ID_MAX: Final = 64
_EFFORTS: Final = {"low": "low", "medium": "medium", "high": None, "xhigh": "xhigh", "max": "xhigh"}
# OpenAI has a parameter of the same name.
_TIERS: Final = {"standard_only": "default"}
_ONLY_ITS_OWN: Final = "only Anthropic's own models can do that."


def read_conversation(payload: JsonObject) -> Conversation:
    """Raises `InvalidRequest`, which names the parameter by its path."""
    for name in ("container", "mcp_servers"):
        if payload.get(name):
            unsupported(name, _ONLY_ITS_OWN)
    further: JsonObject = {}
    tier = text_or_none(payload, "service_tier")
    if tier is not None:
        further["service_tier"] = _TIERS.get(tier, tier)
    tools = _tools_of(payload, further)
    effort, output = _output_of(payload, further)
    return Conversation(
        messages=(*_system_of(payload, further), *_messages_of(payload, further)),
        tools=tools,
        tool_choice=_choice_of(payload, tools),
        output=output,
        max_tokens=integer_or_none(payload, "max_tokens"),
        temperature=number_or_none(payload, "temperature"),
        top_p=number_or_none(payload, "top_p"),
        top_k=integer_or_none(payload, "top_k"),
        stop=tuple(
            text_of(word, f"stop_sequences.{at}")
            for at, word in enumerate(list_of(payload.get("stop_sequences"), "stop_sequences", empty=True))
        ),
        reasoning_effort=effort,
        reasoning_tokens=_budget_of(payload, further),
        user=_user_of(payload, further),
        stream=payload.get("stream") is True,
        further={**further, **_unknown(payload)},
    )


def read_token_count(payload: JsonObject) -> TokenCountRequest:
    """As `read_conversation`, of a request of Anthropic's token counting."""
    return TokenCountRequest(read_conversation(payload))


def _unknown(payload: JsonObject) -> JsonObject:
    return {
        name: value for name, value in payload.items() if name not in _PARAMETERS and value not in (None, [], {}, "")
    }


def _user_of(payload: JsonObject, further: JsonObject) -> str | None:
    metadata = object_or_none(payload, "metadata")
    if metadata is None:
        return None
    note_others(metadata, frozenset({"user_id"}), "metadata", further)
    user = text_or_none(metadata, "user_id", "metadata")
    if user is not None and len(user) > _USER_ID_MAX:
        further["metadata.user_id"] = user
        return None
    return user or None


def _budget_of(payload: JsonObject, further: JsonObject) -> int | None:
    thinking = object_or_none(payload, "thinking")
    if thinking is None:
        return None
    if text_of(thinking.get("type"), "thinking.type") != "enabled":
        further["thinking"] = thinking
        return None
    note_others(thinking, frozenset({"type", "budget_tokens"}), "thinking", further)
    return integer_or_none(thinking, "budget_tokens")


def _output_of(payload: JsonObject, further: JsonObject) -> tuple[str | None, OutputFormat | None]:
    config = object_or_none(payload, "output_config") or {}
    note_others(config, frozenset({"effort", "format"}), "output_config", further)
    effort = text_or_none(config, "effort", "output_config")
    if effort is not None and effort not in _EFFORTS:
        invalid_value("output_config.effort", f"it must be one of {', '.join(_EFFORTS)}.")
    # `output_format` is where the format stood in the beta, and still may.
    path = "output_config.format" if config.get("format") is not None else "output_format"
    form = object_or_none(config, "format", "output_config") or object_or_none(payload, "output_format")
    output = None
    if form is not None:
        if form.get("type") != "json_schema":
            unsupported("output_config", "only `json_schema` is known.", f"{path}.type")
        output = OutputFormat("schema", object_of(form.get("schema"), f"{path}.schema"), name="answer", strict=True)
    return _EFFORTS[effort] if effort is not None else None, output


# Tools

_TOOL = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})


def _tools_of(payload: JsonObject, further: JsonObject) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for at, item in enumerate(list_of(payload.get("tools"), "tools", empty=True)):
        path = f"tools.{at}"
        tool = object_of(item, path)
        if tool.get("type", "custom") not in (None, "custom"):
            unsupported("tools", "only tools of the client's own can be offered to it.", path)
        if tool.get("defer_loading") is True:
            unsupported("tools", _ONLY_ITS_OWN, f"{path}.defer_loading")
        _note_cache(tool, further)
        note_others(tool, _TOOL, "tools", further)
        tools.append(
            Tool(
                word_of(tool.get("name"), f"{path}.name"),
                text_or_none(tool, "description", path),
                object_of(tool.get("input_schema"), f"{path}.input_schema"),
                flag_or_none(tool, "strict", path),
            )
        )
    return tuple(tools)


def _choice_of(payload: JsonObject, tools: tuple[Tool, ...]) -> ToolChoice | None:
    choice = object_or_none(payload, "tool_choice")
    if choice is None:
        return None
    parallel = False if flag_or_none(choice, "disable_parallel_tool_use", "tool_choice") else None
    kind = text_of(choice.get("type"), "tool_choice.type")
    modes: dict[str, Literal["auto", "none", "required"]] = {"auto": "auto", "none": "none", "any": "required"}
    if kind in modes:
        if modes[kind] == "required" and not tools:
            invalid_value("tool_choice", "there are no tools.")
        return ToolChoice(modes[kind], parallel=parallel) if tools else None
    if kind != "tool":
        invalid_value("tool_choice.type", "it must be `auto`, `any`, `tool` or `none`.")
    name = word_of(choice.get("name"), "tool_choice.name")
    if name not in {tool.name for tool in tools}:
        invalid_value("tool_choice.name", "it names a tool that is not among `tools`.")
    return ToolChoice("named", name, parallel)


# Messages

_CACHED = frozenset({"type", "cache_control"})
_MESSAGE = frozenset({"role", "content"})


def _note_cache(told: JsonObject, further: JsonObject) -> None:
    if told.get("cache_control") is not None:
        further.setdefault("cache_control", told["cache_control"])


def _system_of(payload: JsonObject, further: JsonObject) -> tuple[Message, ...]:
    system = payload.get("system")
    if system is None or system in ("", []):
        return ()
    return (Message(Role.SYSTEM, _texts(system, "system", further)),)


def _texts(content: JsonValue, path: str, further: JsonObject) -> tuple[Text, ...]:
    if isinstance(content, str):
        return (Text(content),)
    said: list[Text] = []
    for at, item in enumerate(list_of(content, path)):
        block = object_of(item, f"{path}.{at}")
        if block.get("type") != "text":
            invalid_value(f"{path}.{at}.type", "it must be `text`.")
        said.append(_text(block, f"{path}.{at}", further))
    return tuple(said)


def _messages_of(payload: JsonObject, further: JsonObject) -> list[Message]:
    messages: list[Message] = []
    names: dict[str, str] = {}
    for at, item in enumerate(list_of(payload.get("messages"), "messages")):
        path = f"messages.{at}"
        message = object_of(item, path)
        note_others(message, _MESSAGE, "messages", further)
        role, content = text_of(message.get("role"), f"{path}.role"), message.get("content")
        match role:
            case "system":
                messages.append(Message(Role.SYSTEM, _texts(content, f"{path}.content", further)))
            case "user":
                messages += _of_user(_blocks(content, f"{path}.content", names, further))
            case "assistant":
                messages.append(Message(Role.ASSISTANT, _blocks(content, f"{path}.content", names, further)))
            case _:
                invalid_value(f"{path}.role", "it must be `user`, `assistant` or `system`.")
    if not messages:
        invalid_value("messages", "there must be at least one.")
    return messages


def _of_user(parts: tuple[Part, ...]) -> list[Message]:
    """Results of tools are messages of their own in the neutral model; the order stays."""
    messages: list[Message] = []
    run: list[Part] = []
    for part in parts:
        if run and isinstance(part, ToolResult) is not isinstance(run[-1], ToolResult):
            messages.append(_run_of(run))
            run = []
        run.append(part)
    messages.append(_run_of(run))
    return messages


def _run_of(parts: list[Part]) -> Message:
    return Message(Role.TOOL if parts and isinstance(parts[0], ToolResult) else Role.USER, tuple(parts))


def _blocks(content: JsonValue, path: str, names: dict[str, str], further: JsonObject) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    parts: list[Part] = []
    for at, item in enumerate(list_of(content, path)):
        where = f"{path}.{at}"
        block = object_of(item, where)
        _note_cache(block, further)
        kind = text_of(block.get("type"), f"{where}.type")
        match kind:
            case "thinking":
                signature = text_or_none(block, "signature", where)
                parts.append(Reasoning(text_of(block.get("thinking"), f"{where}.thinking"), signature or None))
            case "redacted_thinking":
                parts.append(Reasoning("", redacted=text_of(block.get("data"), f"{where}.data")))
            case "tool_use":
                parts.append(_tool_use(block, where, names, further))
            case "tool_result":
                parts.append(_tool_result(block, where, names, further))
            case _:
                parts += _shown(kind, block, where, further)
    return tuple(parts)


_TOOL_USE = _CACHED | {"id", "name", "input", "caller"}
_TOOL_RESULT = _CACHED | {"tool_use_id", "content", "is_error"}


def _tool_use(block: JsonObject, path: str, names: dict[str, str], further: JsonObject) -> ToolCall:
    note_others(block, _TOOL_USE, "messages.content", further)
    id_, name = word_of(block.get("id"), f"{path}.id"), word_of(block.get("name"), f"{path}.name")
    names[id_] = name
    given = strict_json.dumps(object_of(block.get("input"), f"{path}.input")).decode()
    return ToolCall(id_, name, given)


def _tool_result(block: JsonObject, path: str, names: dict[str, str], further: JsonObject) -> ToolResult:
    note_others(block, _TOOL_RESULT, "messages.content", further)
    call = word_of(block.get("tool_use_id"), f"{path}.tool_use_id")
    content = block.get("content")
    parts: list[Text | Image | File] = []
    if isinstance(content, str):
        parts.append(Text(content))
    else:
        for at, item in enumerate(list_of(content, f"{path}.content", empty=True)):
            where = f"{path}.content.{at}"
            inner = object_of(item, where)
            _note_cache(inner, further)
            parts += _shown(text_of(inner.get("type"), f"{where}.type"), inner, where, further)
    is_error = flag_or_none(block, "is_error", path) is True
    return ToolResult(call, tuple(parts), is_error, names.get(call))


def _shown(kind: str, block: JsonObject, path: str, further: JsonObject) -> list[Text | Image | File]:
    """What may stand in a message and in the result of a tool alike."""
    match kind:
        case "text":
            return [_text(block, path, further)]
        case "image":
            return [_image(block, path, further)]
        case "document":
            return _document(block, path, further)
        case "search_result":
            return _search_result(block, path, further)
    return unsupported("messages", f"{_ONLY_ITS_OWN} (`{kind[:64]}`)", path)


_TEXT = _CACHED | {"text"}
_IMAGE = _CACHED | {"source"}
_DOCUMENT = _CACHED | {"source", "title", "context", "citations"}
_SEARCH_RESULT = _CACHED | {"source", "title", "content", "citations"}


def _text(block: JsonObject, path: str, further: JsonObject) -> Text:
    _note_cache(block, further)
    note_others(block, _TEXT, "messages.content", further)
    return Text(text_of(block.get("text"), f"{path}.text"))


def _image(block: JsonObject, path: str, further: JsonObject) -> Image:
    note_others(block, _IMAGE, "messages.content", further)
    source = object_of(block.get("source"), f"{path}.source")
    match source.get("type"):
        case "base64":
            media_type = word_of(source.get("media_type"), f"{path}.source.media_type")
            return Image(data=word_of(source.get("data"), f"{path}.source.data"), media_type=media_type)
        case "url":
            return Image(url=word_of(source.get("url"), f"{path}.source.url"))
    return _unknown_source(path)


def _document(block: JsonObject, path: str, further: JsonObject) -> list[Text | Image | File]:
    _refuse_citations(block, path)
    note_others(block, _DOCUMENT, "messages.content", further)
    title, context = text_or_none(block, "title", path), text_or_none(block, "context", path)
    where = f"{path}.source"
    source = object_of(block.get("source"), where)
    about: list[Text | Image | File] = [Text(context)] if context else []
    match source.get("type"):
        case "base64":
            media_type = word_of(source.get("media_type"), f"{where}.media_type")
            data = word_of(source.get("data"), f"{where}.data")
            return [*about, File(data=data, media_type=media_type, name=title)]
        case "url":
            return [*about, File(url=word_of(source.get("url"), f"{where}.url"), name=title)]
        case "text":
            told = (title, context, text_of(source.get("data"), f"{where}.data"))
            return [Text("\n\n".join(words for words in told if words))]
        case "content":
            content = source.get("content")
            said: list[Text | Image | File] = [Text(title), *about] if title else about
            if isinstance(content, str):
                return [*said, Text(content)]
            for at, item in enumerate(list_of(content, f"{where}.content")):
                inner = object_of(item, f"{where}.content.{at}")
                _note_cache(inner, further)
                kind = text_of(inner.get("type"), f"{where}.content.{at}.type")
                said += _shown(kind, inner, f"{where}.content.{at}", further)
            return said
    return _unknown_source(path)


def _search_result(block: JsonObject, path: str, further: JsonObject) -> list[Text | Image | File]:
    _refuse_citations(block, path)
    note_others(block, _SEARCH_RESULT, "messages.content", further)
    head = (text_of(block.get("title"), f"{path}.title"), text_of(block.get("source"), f"{path}.source"))
    return [
        Text("\n".join(words for words in head if words)),
        *_texts(block.get("content"), f"{path}.content", further),
    ]


def _refuse_citations(block: JsonObject, path: str) -> None:
    citations = object_or_none(block, "citations", path)
    if citations is not None and citations.get("enabled") is True:
        unsupported("messages", "only Anthropic's own models give citations.", f"{path}.citations")


def _unknown_source(path: str) -> NoReturn:
    unsupported("messages", "files that Anthropic keeps are known to it alone.", f"{path}.source")
