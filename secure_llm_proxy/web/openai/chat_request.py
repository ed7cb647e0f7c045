"""A chat completion request in the neutral model, read strictly: what it asks for is kept, told as left out, or refused.

Asked only where the provider speaks another format; else the payload passes as it came.

Source: OpenAI API reference, "Create chat completion", read 2026-11.
"""

from __future__ import annotations

from typing import Literal

from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.vocabulary.conversation import (
    Audio,
    Conversation,
    File,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Refusal,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from secure_llm_proxy.vocabulary.providers import Capability
from secure_llm_proxy.web.openai.fields import (
    flag_or_none,
    integer_or_none,
    invalid_value,
    list_of,
    missing,
    note_others,
    number_or_none,
    object_of,
    object_or_none,
    stop_of,
    stream_options_of,
    text_of,
    text_or_none,
    unsupported,
    word_of,
)

REASONING_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh"})

# Fields of a `Conversation`, or of our own door, with their readers below; every other parameter is `further`.
_READ = frozenset(
    {
        "audio", "frequency_penalty", "function_call", "functions", "logprobs", "max_completion_tokens", "max_tokens",
        "messages", "modalities", "model", "n", "parallel_tool_calls", "presence_penalty", "reasoning_effort",
        "response_format", "safety_identifier", "seed", "stop", "stream", "stream_options", "temperature", "tool_choice",
        "tools", "top_k", "top_logprobs", "top_p", "user", "web_search_options",
    }
)  # fmt: skip
_NEEDING = frozenset(
    {"tools", "functions", "response_format", "n", "logprobs", "top_logprobs", "modalities"}
)  # fmt: skip
_NEED_OF_PART = {
    "image_url": Capability.IMAGES,
    "file": Capability.FILES,
    "input_audio": Capability.AUDIO,
}
_NOTHING: frozenset[str] = frozenset()


def needs_of(payload: JsonObject) -> frozenset[str]:
    """The capabilities without which a model can't answer this request (`Capability`). Never raises: `payload` need not be
    well-formed. Runs for every request: 0.3 µs for the usual one (2026-11).
    """
    messages = payload.get("messages")
    needs: set[str] | None = None
    if type(messages) is list:
        for message in messages:
            if type(message) is dict and type(content := message.get("content")) is list:
                needs = needs or set()
                for part in content:
                    if type(part) is dict and type(kind := part.get("type")) is str and kind in _NEED_OF_PART:
                        needs.add(_NEED_OF_PART[kind])
    if not _NEEDING.isdisjoint(payload):
        needs = needs or set()
        _add_needs_of_parameters(payload, needs)
    return frozenset(needs) if needs else _NOTHING


def _add_needs_of_parameters(payload: JsonObject, needs: set[str]) -> None:
    if payload.get("tools") or payload.get("functions"):
        needs.add(Capability.TOOLS)
    output = payload.get("response_format")
    if isinstance(output, dict) and output.get("type") == "json_schema":
        needs.add(Capability.JSON_SCHEMA)
    if payload.get("logprobs") or payload.get("top_logprobs"):
        needs.add(Capability.LOGPROBS)
    number = payload.get("n")
    if type(number) is int and number > 1:
        needs.add(Capability.SEVERAL_CHOICES)
    modalities = payload.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        needs.add(Capability.AUDIO)


def read_conversation(payload: JsonObject) -> Conversation:
    """What is asked, in neutral form. Raises `InvalidRequest` that names the parameter: for what is wrong, and with
    `unsupported_parameter` for what changes the answer and only OpenAI's format can say (audio answers, web search, tools
    that are no functions). A parameter that is null is one that was left out.
    """
    further: JsonObject = {name: value for name, value in payload.items() if name not in _READ and value is not None}
    further.update(stream_options_of(payload))
    _refuse_what_only_openai_offers(payload)
    tools, choice = _tools_of(payload, further)
    user = text_or_none(payload, "user")
    safety_identifier = text_or_none(payload, "safety_identifier")
    if user is not None and safety_identifier is not None:
        further["safety_identifier"] = safety_identifier
    return Conversation(
        messages=_messages_of(payload, further),
        tools=tools,
        tool_choice=choice,
        output=_output_of(payload),
        max_tokens=_max_tokens_of(payload),
        temperature=number_or_none(payload, "temperature"),
        top_p=number_or_none(payload, "top_p"),
        top_k=integer_or_none(payload, "top_k"),
        stop=stop_of(payload),
        seed=integer_or_none(payload, "seed"),
        presence_penalty=number_or_none(payload, "presence_penalty"),
        frequency_penalty=number_or_none(payload, "frequency_penalty"),
        n=integer_or_none(payload, "n"),
        logprobs=flag_or_none(payload, "logprobs"),
        top_logprobs=integer_or_none(payload, "top_logprobs"),
        reasoning_effort=_effort_of(payload),
        user=safety_identifier if user is None else user,
        stream=flag_or_none(payload, "stream") or False,
        further=further,
    )


def _refuse_what_only_openai_offers(payload: JsonObject) -> None:
    modalities = payload.get("modalities")
    if modalities is not None and modalities != ["text"]:
        unsupported("modalities", "it answers in text only.")
    for name in ("audio", "web_search_options"):
        if payload.get(name) is not None:
            unsupported(name, "it is known to OpenAI's own models only.")


def _max_tokens_of(payload: JsonObject) -> int | None:
    old = integer_or_none(payload, "max_tokens")
    new = integer_or_none(payload, "max_completion_tokens")
    if old is not None and new is not None and old != new:
        invalid_value("max_completion_tokens", "it differs from `max_tokens`, which means the same.")
    return new if new is not None else old


def _effort_of(payload: JsonObject) -> str | None:
    effort = text_or_none(payload, "reasoning_effort")
    if effort is not None and effort not in REASONING_EFFORTS:
        invalid_value("reasoning_effort", f"it must be one of {', '.join(sorted(REASONING_EFFORTS))}.")
    return effort


def _output_of(payload: JsonObject) -> OutputFormat | None:
    output = object_or_none(payload, "response_format")
    if output is None:
        return None
    kind = text_of(output.get("type"), "response_format.type")
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputFormat("json")
    if kind != "json_schema":
        unsupported("response_format", "its type is known to OpenAI's own models only.")
    at = "response_format.json_schema"
    wanted = object_of(output.get("json_schema"), at)
    return OutputFormat(
        "schema",
        object_or_none(wanted, "schema", at),
        text_of(wanted.get("name"), f"{at}.name"),
        text_or_none(wanted, "description", at),
        flag_or_none(wanted, "strict", at),
    )


# Tools


def _tools_of(payload: JsonObject, further: JsonObject) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    """`functions` and `function_call` are the older names of the same."""
    tools: list[Tool] = []
    for at, item in enumerate(list_of(payload.get("tools"), "tools", empty=True)):
        path = f"tools.{at}"
        tool = object_of(item, path)
        if tool.get("type") != "function":
            unsupported("tools", "only tools of type `function` can be offered to it.", path)
        tools.append(_function(object_of(tool.get("function"), f"{path}.function"), f"{path}.function", further))
        note_others(tool, _TOOL, "tools", further)
    for at, item in enumerate(list_of(payload.get("functions"), "functions", empty=True)):
        tools.append(_function(object_of(item, f"functions.{at}"), f"functions.{at}", further))
    names = [tool.name for tool in tools]
    for at, name in enumerate(names):
        if name in names[:at]:
            invalid_value("tools", "two of them have the same name.")
    parallel = flag_or_none(payload, "parallel_tool_calls")
    if payload.get("tool_choice") is not None:
        return _choose(tuple(tools), payload["tool_choice"], parallel=parallel)
    if payload.get("function_call") is not None:
        return tuple(tools), _legacy_choice(names, payload["function_call"], parallel=parallel)
    return tuple(tools), ToolChoice(parallel=parallel) if parallel is not None and tools else None


_TOOL = frozenset({"type", "function"})
_FUNCTION = frozenset({"name", "description", "parameters", "strict"})


def _function(function: JsonObject, path: str, further: JsonObject) -> Tool:
    note_others(function, _FUNCTION, "tools.function", further)
    return Tool(
        word_of(function.get("name"), f"{path}.name"),
        text_or_none(function, "description", path),
        object_or_none(function, "parameters", path),
        flag_or_none(function, "strict", path),
    )


def _choose(
    tools: tuple[Tool, ...], wish: JsonValue, *, parallel: bool | None
) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    """The tools on offer and the choice among them; `allowed_tools` offers these only."""
    if isinstance(wish, str):
        return tools, _mode(wish, "tool_choice", tools, parallel=parallel)
    choice = object_of(wish, "tool_choice")
    kind = choice.get("type")
    if kind == "function":
        name = _chosen_name(choice, "tool_choice")
        _require_known(name, [tool.name for tool in tools], "tool_choice")
        return tools, ToolChoice("named", name, parallel)
    if kind != "allowed_tools":
        unsupported("tool_choice", "only tools of type `function` can be offered to it.")
    allowed = object_of(choice.get("allowed_tools"), "tool_choice.allowed_tools")
    offered = set()
    for at, item in enumerate(list_of(allowed.get("tools"), "tool_choice.allowed_tools.tools")):
        path = f"tool_choice.allowed_tools.tools.{at}"
        name = _chosen_name(object_of(item, path), path)
        _require_known(name, [tool.name for tool in tools], path)
        offered.add(name)
    left = tuple(tool for tool in tools if tool.name in offered)
    mode = text_of(allowed.get("mode"), "tool_choice.allowed_tools.mode")
    return left, _mode(mode, "tool_choice.allowed_tools.mode", left, parallel=parallel)


def _mode(word: str, path: str, tools: tuple[Tool, ...], *, parallel: bool | None) -> ToolChoice | None:
    if word not in {"auto", "none", "required"}:
        invalid_value(path, "it must be `auto`, `none`, `required` or an object.")
    if not tools:
        if word == "required":
            invalid_value(path, "there are no tools.")
        return None
    mode: Literal["auto", "none", "required"] = "auto" if word == "auto" else "none" if word == "none" else "required"
    return ToolChoice(mode, parallel=parallel)


def _chosen_name(choice: JsonObject, path: str) -> str:
    function = object_of(choice.get("function"), f"{path}.function")
    return word_of(function.get("name"), f"{path}.function.name")


def _legacy_choice(names: list[str], wish: JsonValue, *, parallel: bool | None) -> ToolChoice | None:
    if wish in ("auto", "none"):
        return ToolChoice("auto" if wish == "auto" else "none", parallel=parallel) if names else None
    name = word_of(object_of(wish, "function_call").get("name"), "function_call.name")
    _require_known(name, names, "function_call")
    return ToolChoice("named", name, parallel)


def _require_known(name: str, names: list[str], path: str) -> None:
    if name not in names:
        invalid_value(path, "it names a tool that is not among `tools`.")


# Messages

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.DEVELOPER,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}
_MESSAGE = frozenset({"role", "content", "name"})
_ANSWER = _MESSAGE | {"refusal", "tool_calls", "function_call", "audio", "reasoning_content", "reasoning"}
_RESULT = _MESSAGE | {"tool_call_id"}
_CALL = frozenset({"id", "type", "function", "index"})


def _messages_of(payload: JsonObject, further: JsonObject) -> tuple[Message, ...]:
    messages: list[Message] = []
    legacy_calls: dict[str, str] = {}
    for at, item in enumerate(list_of(payload.get("messages"), "messages")):
        path = f"messages.{at}"
        message = object_of(item, path)
        told = text_of(message.get("role"), f"{path}.role")
        role = _ROLES.get(told)
        if role is None:
            invalid_value(f"{path}.role", f"it must be one of {', '.join(_ROLES)}.")
        if role is Role.TOOL:
            note_others(message, _RESULT, "messages", further)
            messages.append(_result(message, told, path, legacy_calls, further))
            continue
        name = text_or_none(message, "name", path)
        if role is Role.ASSISTANT:
            note_others(message, _ANSWER, "messages", further)
            messages.append(Message(role, _said(message, path, at, legacy_calls, further), name))
            continue
        note_others(message, _MESSAGE, "messages", further)
        content = message.get("content")
        if content is None:
            missing(f"{path}.content")
        messages.append(Message(role, _content(content, f"{path}.content", further), name))
    if not messages:
        invalid_value("messages", "there must be at least one.")
    return tuple(messages)


def _said(
    message: JsonObject, path: str, at: int, legacy_calls: dict[str, str], further: JsonObject
) -> tuple[Part, ...]:
    """What the model said earlier. A call of the older kind has no id: it gets one that its result will find."""
    if message.get("audio") is not None:
        unsupported("messages", "it does not know the audio that it is reminded of.", f"{path}.audio")
    parts: list[Part] = []
    for name in ("reasoning_content", "reasoning"):
        thought = message.get(name)
        if isinstance(thought, str) and thought:
            parts.append(Reasoning(thought))
            break
    content = message.get("content")
    if content is not None:
        parts += _content(content, f"{path}.content", further)
    refusal = text_or_none(message, "refusal", path)
    if refusal:
        parts.append(Refusal(refusal))
    for number, item in enumerate(list_of(message.get("tool_calls"), f"{path}.tool_calls", empty=True)):
        where = f"{path}.tool_calls.{number}"
        call = object_of(item, where)
        if call.get("type", "function") != "function":
            unsupported("messages", "only tools of type `function` can be offered to it.", where)
        name, arguments = _called(call.get("function"), f"{where}.function")
        parts.append(ToolCall(word_of(call.get("id"), f"{where}.id"), name, arguments))
        note_others(call, _CALL, "messages.tool_calls", further)
    if message.get("function_call") is not None:
        name, arguments = _called(message["function_call"], f"{path}.function_call")
        legacy_calls[name] = f"call_{at}"
        parts.append(ToolCall(legacy_calls[name], name, arguments))
    if not parts and content is None:
        missing(f"{path}.content")
    return tuple(parts)


def _called(value: JsonValue, path: str) -> tuple[str, str]:
    function = object_of(value, path)
    return word_of(function.get("name"), f"{path}.name"), text_of(function.get("arguments"), f"{path}.arguments")


def _result(message: JsonObject, told: str, path: str, legacy_calls: dict[str, str], further: JsonObject) -> Message:
    content = message.get("content")
    parts: list[Text | Image | File] = []
    for part in _content("" if content is None else content, f"{path}.content", further):
        if not isinstance(part, Text | Image | File):
            invalid_value(f"{path}.content", "a tool's result is text.")
        parts.append(part)
    if told == "tool":
        call = word_of(message.get("tool_call_id"), f"{path}.tool_call_id")
        name = text_or_none(message, "name", path)
    else:
        name = word_of(message.get("name"), f"{path}.name")
        if name not in legacy_calls:
            invalid_value(f"{path}.name", "no message before it called this function.")
        call = legacy_calls[name]
    return Message(Role.TOOL, (ToolResult(call, tuple(parts), name=name),))


def _content(content: JsonValue, path: str, further: JsonObject) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    return tuple(_part(part, f"{path}.{at}", further) for at, part in enumerate(list_of(content, path)))


_FIELD_OF_PART = {
    "text": "text",
    "image_url": "image_url",
    "input_audio": "input_audio",
    "file": "file",
    "refusal": "refusal",
}


def _part(value: JsonValue, path: str, further: JsonObject) -> Part:
    part = object_of(value, path)
    kind = text_of(part.get("type"), f"{path}.type")
    if kind not in _FIELD_OF_PART:
        invalid_value(f"{path}.type", f"it must be one of {', '.join(_FIELD_OF_PART)}.")
    field = _FIELD_OF_PART[kind]
    note_others(part, frozenset({"type", field}), "messages.content", further)
    where, held = f"{path}.{field}", part.get(field)
    if kind == "text":
        return Text(text_of(held, where))
    if kind == "refusal":
        return Refusal(text_of(held, where))
    if kind == "image_url":
        return _image(held, where)
    if kind == "file":
        return _file(object_of(held, where), where)
    audio = object_of(held, where)
    return Audio(word_of(audio.get("data"), f"{where}.data"), word_of(audio.get("format"), f"{where}.format"))


def _image(value: JsonValue, path: str) -> Image:
    # Mistral's own form is the bare link.
    image: JsonObject = {"url": value} if isinstance(value, str) else object_of(value, path)
    url = word_of(image.get("url"), f"{path}.url")
    detail = text_or_none(image, "detail", path)
    if url[:5].lower() == "data:":
        media_type, data = _data_url(url, f"{path}.url")
        return Image(data=data, media_type=media_type, detail=detail)
    if not url.lower().startswith(("https://", "http://")):
        invalid_value(f"{path}.url", "it must be a link (https://…) or a data URL.")
    return Image(url=url, detail=detail)


def _file(file: JsonObject, path: str) -> File:
    name = text_or_none(file, "filename", path)
    data, file_id = text_or_none(file, "file_data", path), text_or_none(file, "file_id", path)
    if (data is None) == (file_id is None):
        invalid_value(path, "give either `file_data` or `file_id`.")
    if data is None:
        return File(file_id=file_id, name=name)
    if data[:5].lower() == "data:":
        media_type, data = _data_url(data, f"{path}.file_data")
        return File(data=data, media_type=media_type, name=name)
    if data[:8].lower().startswith(("https://", "http://")):
        return File(url=data, name=name)
    is_pdf = name is not None and name.lower().endswith(".pdf")
    return File(data=data, media_type="application/pdf" if is_pdf else None, name=name)


def _data_url(url: str, path: str) -> tuple[str, str]:
    """Media type and base64 of a data URL (RFC 2397)."""
    head, comma, data = url[5:].partition(",")
    media_type, *parameters = head.split(";")
    if not comma or not parameters or parameters[-1].strip().lower() != "base64" or "/" not in media_type:
        invalid_value(path, "a data URL must look like `data:image/png;base64,…`.")
    return media_type.strip().lower(), data
