"""A request for a response (OpenAI's Responses API): checked at the door, and read into the neutral model where the provider
speaks another format.

Only the provider that keeps responses can honour what refers to them, and only OpenAI runs its built-in tools: in front of
any other provider these are refused. Nothing that is asked here is ever kept by us, so `store` false is what always happens.

Source: OpenAI API reference, "Create a model response", read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.vocabulary.chat import ChatRequest
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
from secure_llm_proxy.vocabulary.sealed_reasoning import is_ours, opened
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
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
    text_of,
    text_or_none,
    unsupported,
    word_of,
    wrong_type,
)
from secure_llm_proxy.web.wire import ModelName, Number, invalid

_TOOLS_MAX = 128
_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh"})
LOGPROBS = "message.output_text.logprobs"
# What we always do, whether it is asked for or not.
_GIVEN = frozenset({LOGPROBS, "reasoning.encrypted_content"})
_STATEFUL = {
    "previous_response_id": "it keeps no earlier response; send the whole conversation as `input`.",
    "conversation": "it keeps no conversations; send the whole one as `input`.",
    "prompt": "it keeps no prompt templates; send `instructions` and `input`.",
}
# Parameters of chat completions that change the answer and that the Responses API has no place for.
_OF_CHAT = frozenset(
    {
        "audio", "function_call", "functions", "max_completion_tokens", "max_tokens", "messages", "modalities", "n",
        "prediction", "response_format", "stop", "web_search_options",
    }
)  # fmt: skip
# Read below, or without meaning where nothing is kept.
_READ = frozenset(
    {
        "background", "include", "input", "instructions", "max_output_tokens", "model", "parallel_tool_calls", "reasoning",
        "safety_identifier", "store", "stream", "stream_options", "temperature", "text", "tool_choice", "tools",
        "top_logprobs", "top_p", "truncation", "user", *_STATEFUL, *_OF_CHAT,
    }
)  # fmt: skip


class ResponseRequest(BaseModel):
    """Parameters whose types the reference fixes; the provider judges their ranges."""

    model_config = ConfigDict(extra="allow")

    model: ModelName | None = None
    stream: StrictBool | None = None
    instructions: StrictStr | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=_TOOLS_MAX)] | None = None
    parallel_tool_calls: StrictBool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    background: StrictBool | None = None
    store: StrictBool | None = None
    previous_response_id: StrictStr | None = None
    user: StrictStr | None = None
    safety_identifier: StrictStr | None = None


_validated: Callable[[object], ResponseRequest] = ResponseRequest.__pydantic_validator__.validate_python


def read_response_request(body: JsonObject, *, items_max: int) -> ChatRequest:
    """Raises `InvalidRequest` naming the parameter. The payload keeps every parameter as it came."""
    items = body.get("input")
    if type(items) is list:
        if len(items) > items_max:
            invalid_value("input", f"{len(items)} items are too many; at most {items_max}.")
        for at, item in enumerate(items):
            if type(item) is not dict:
                wrong_type(f"input.{at}", "an object")
    elif items is not None and type(items) is not str:
        wrong_type("input", "a string or a list of items")
    try:
        request = _validated(body)
    except ValidationError as error:
        raise invalid(error) from None
    if request.background:
        raise InvalidRequest(
            "Responses can't be made in the background here: nothing is kept, so there would be nowhere to fetch them.",
            code=ErrorCode.UNSUPPORTED_PARAMETER,
            param="background",
        )
    return ChatRequest(
        model=request.model,
        stream=bool(request.stream),
        payload=body,
        format=WireFormat.OPENAI_RESPONSES,
        read=read_conversation,
        needs=needs_of(body),
    )


_NEED_OF_PART = {
    "input_image": Capability.IMAGES,
    "input_file": Capability.FILES,
    "input_audio": Capability.AUDIO,
}
_NOTHING: frozenset[str] = frozenset()


def needs_of(payload: JsonObject) -> frozenset[str]:
    """The capabilities without which a model can't answer this request (`Capability`). Never raises."""
    needs: set[str] = set()
    items = payload.get("input")
    if isinstance(items, list):
        for item in items:
            if isinstance(item, dict):
                for parts in (item.get("content"), item.get("output")):
                    if isinstance(parts, list):
                        needs.update(_needs_of_parts(parts))
    if payload.get("tools"):
        needs.add(Capability.TOOLS)
    text = payload.get("text")
    if isinstance(text, dict):
        wanted = text.get("format")
        if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
            needs.add(Capability.JSON_SCHEMA)
    include = payload.get("include")
    if payload.get("top_logprobs") or (isinstance(include, list) and LOGPROBS in include):
        needs.add(Capability.LOGPROBS)
    return frozenset(needs) if needs else _NOTHING


def _needs_of_parts(parts: list[JsonValue]) -> set[str]:
    kinds = [part.get("type") for part in parts if isinstance(part, dict)]
    return {_NEED_OF_PART[kind] for kind in kinds if isinstance(kind, str) and kind in _NEED_OF_PART}


def read_conversation(payload: JsonObject) -> Conversation:
    """What is asked, in neutral form. Raises `InvalidRequest` that names the parameter: for what is wrong, and with
    `unsupported_parameter` for what refers to something that is kept, and for tools that are no functions.

    A parameter that is null is one that was left out. `instructions` stand first, as a system message.
    """
    _refuse_what_no_other_can(payload)
    further: JsonObject = {
        name: value for name, value in payload.items() if name not in _READ and value not in (None, [], {})
    }
    if payload.get("store"):
        further["store"] = True
    if payload.get("truncation") not in (None, "disabled"):
        further["truncation"] = payload["truncation"]
    options = object_or_none(payload, "stream_options") or {}
    further |= {f"stream_options.{name}": value for name, value in options.items() if value not in (None, False)}
    include = [text_of(name, f"include.{at}") for at, name in enumerate(_several(payload, "include"))]
    if others := [name for name in include if name not in _GIVEN]:
        further["include"] = [*others]
    top_logprobs = integer_or_none(payload, "top_logprobs")
    tools, choice = _tools_of(payload, further)
    user, safety_identifier = text_or_none(payload, "user"), text_or_none(payload, "safety_identifier")
    if user is not None and safety_identifier is not None:
        further["safety_identifier"] = safety_identifier
    return Conversation(
        messages=_messages_of(payload, further),
        tools=tools,
        tool_choice=choice,
        output=_output_of(payload, further),
        max_tokens=integer_or_none(payload, "max_output_tokens"),
        temperature=number_or_none(payload, "temperature"),
        top_p=number_or_none(payload, "top_p"),
        logprobs=True if top_logprobs or LOGPROBS in include else None,
        top_logprobs=top_logprobs or None,
        reasoning_effort=_effort_of(payload, further),
        user=safety_identifier if user is None else user,
        stream=flag_or_none(payload, "stream") or False,
        further=further,
    )


def _refuse_what_no_other_can(payload: JsonObject) -> None:
    for name, why in _STATEFUL.items():
        if payload.get(name) is not None:
            unsupported(name, why)
    for name in _OF_CHAT:
        if payload.get(name) is not None:
            unsupported(name, "it is a parameter of chat completions, not of responses.")


def _several(holder: JsonObject, name: str) -> list[JsonValue]:
    return list_of(holder.get(name), name, empty=True)


def _effort_of(payload: JsonObject, further: JsonObject) -> str | None:
    """A summary of the reasoning needs no asking: what the provider shows of it is given."""
    reasoning = object_or_none(payload, "reasoning")
    if reasoning is None:
        return None
    note_others(reasoning, frozenset({"effort", "summary", "generate_summary"}), "reasoning", further)
    effort = text_or_none(reasoning, "effort", "reasoning")
    if effort is not None and effort not in _EFFORTS:
        invalid_value("reasoning.effort", f"it must be one of {', '.join(sorted(_EFFORTS))}.")
    return effort


def _output_of(payload: JsonObject, further: JsonObject) -> OutputFormat | None:
    text = object_or_none(payload, "text")
    if text is None:
        return None
    note_others(text, frozenset({"format", "verbosity"}), "text", further)
    verbosity = text_or_none(text, "verbosity", "text")
    if verbosity is not None:
        further["verbosity"] = verbosity
    wanted = object_or_none(text, "format", "text")
    if wanted is None:
        return None
    kind = text_of(wanted.get("type"), "text.format.type")
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputFormat("json")
    if kind != "json_schema":
        unsupported("text.format", "its type is known to OpenAI's own models only.")
    return OutputFormat(
        "schema",
        object_of(wanted.get("schema"), "text.format.schema"),
        word_of(wanted.get("name"), "text.format.name"),
        text_or_none(wanted, "description", "text.format"),
        flag_or_none(wanted, "strict", "text.format"),
    )


# Tools

_TOOL = frozenset({"type", "name", "description", "parameters", "strict"})


def _tools_of(payload: JsonObject, further: JsonObject) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    tools: list[Tool] = []
    for at, item in enumerate(_several(payload, "tools")):
        path = f"tools.{at}"
        tool = object_of(item, path)
        if tool.get("type") != "function":
            _only_functions("tools", path)
        note_others(tool, _TOOL, "tools", further)
        tools.append(
            Tool(
                word_of(tool.get("name"), f"{path}.name"),
                text_or_none(tool, "description", path),
                object_or_none(tool, "parameters", path),
                flag_or_none(tool, "strict", path),
            )
        )
    if len({tool.name for tool in tools}) != len(tools):
        invalid_value("tools", "two of them have the same name.")
    return _choose(tuple(tools), payload.get("tool_choice"), parallel=flag_or_none(payload, "parallel_tool_calls"))


def _only_functions(param: str, path: str | None = None) -> NoReturn:
    unsupported(param, "only tools of type `function` can be offered to it; OpenAI alone runs its built-in ones.", path)


def _choose(
    tools: tuple[Tool, ...], wish: JsonValue, *, parallel: bool | None
) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    """The tools on offer and the choice among them; `allowed_tools` offers these only."""
    if wish is None:
        return tools, ToolChoice(parallel=parallel) if tools and parallel is not None else None
    if isinstance(wish, str):
        return tools, _mode(wish, "tool_choice", tools, parallel=parallel)
    choice = object_of(wish, "tool_choice")
    kind = choice.get("type")
    if kind == "function":
        return tools, ToolChoice("named", _known_name(choice, tools, "tool_choice"), parallel)
    if kind != "allowed_tools":
        _only_functions("tool_choice")
    names = set()
    for at, item in enumerate(list_of(choice.get("tools"), "tool_choice.tools")):
        allowed = object_of(item, f"tool_choice.tools.{at}")
        if allowed.get("type") != "function":
            _only_functions("tool_choice", f"tool_choice.tools.{at}")
        names.add(_known_name(allowed, tools, f"tool_choice.tools.{at}"))
    left = tuple(tool for tool in tools if tool.name in names)
    mode = text_of(choice.get("mode"), "tool_choice.mode")
    return left, _mode(mode, "tool_choice.mode", left, parallel=parallel)


def _mode(word: str, path: str, tools: tuple[Tool, ...], *, parallel: bool | None) -> ToolChoice | None:
    modes: dict[str, Literal["auto", "none", "required"]] = {"auto": "auto", "none": "none", "required": "required"}
    if word not in modes:
        invalid_value(path, "it must be `auto`, `none`, `required` or an object.")
    if not tools:
        if word == "required":
            invalid_value(path, "there are no tools.")
        return None
    return ToolChoice(modes[word], parallel=parallel)


def _known_name(choice: JsonObject, tools: tuple[Tool, ...], path: str) -> str:
    name = word_of(choice.get("name"), f"{path}.name")
    if all(tool.name != name for tool in tools):
        invalid_value(f"{path}.name", "it names a tool that is not among `tools`.")
    return name


# Input

_ROLES = {"user": Role.USER, "system": Role.SYSTEM, "developer": Role.DEVELOPER, "assistant": Role.ASSISTANT}
_ITEM = frozenset({"type", "id", "status"})
_MESSAGE = _ITEM | {"role", "content"}
_CALL = _ITEM | {"call_id", "name", "arguments"}
_RESULT = _ITEM | {"call_id", "output"}
_THOUGHT = _ITEM | {"summary", "content", "encrypted_content"}


def _messages_of(payload: JsonObject, further: JsonObject) -> tuple[Message, ...]:
    messages: list[Message] = []
    instructions = text_or_none(payload, "instructions")
    if instructions:
        messages.append(Message(Role.SYSTEM, (Text(instructions),)))
    told = payload.get("input")
    if isinstance(told, str):
        return (*messages, Message(Role.USER, (Text(told),)))
    items = list_of(told, "input")
    if not items:
        invalid_value("input", "there must be at least one item.")
    return (*messages, *_Turns(further).read(items))


class _Turns:
    """From items to messages. What a model said in one turn (thoughts, text, calls) is several items and one message."""

    def __init__(self, further: JsonObject) -> None:
        self._further = further
        self._messages: list[Message] = []
        self._turn: list[Part] = []
        self._ends_in_message = False
        self._names: dict[str, str] = {}

    def read(self, items: list[JsonValue]) -> list[Message]:
        for at, value in enumerate(items):
            path = f"input.{at}"
            item = object_of(value, path)
            kind = item.get("type")
            if kind is None and item.get("role") is not None:
                kind = "message"
            match kind:
                case "message":
                    self._message(item, path)
                case "function_call":
                    self._call(item, path)
                case "function_call_output":
                    self._result(item, path)
                case "reasoning":
                    self._thought(item, path)
                case "image_generation_call":
                    self._image_made(item, path)
                case "item_reference" if is_ours(item):
                    # A thought can be missing, as those that nobody signed are.
                    note_others({"item_reference": item.get("id")}, frozenset(), "input", self._further)
                case "item_reference" | None:
                    unsupported("input", "it keeps no items; send the whole item, as SDKs do with `store` false.", path)
                case _:
                    unsupported("input", "items of this type are known to OpenAI's own models only.", path)
        self._end_turn()
        return self._messages

    def _end_turn(self) -> None:
        if self._turn:
            self._messages.append(Message(Role.ASSISTANT, tuple(self._turn)))
            self._turn = []
        self._ends_in_message = False

    def _message(self, item: JsonObject, path: str) -> None:
        note_others(item, _MESSAGE, "input", self._further)
        role = _ROLES.get(text_of(item.get("role"), f"{path}.role"))
        if role is None:
            invalid_value(f"{path}.role", f"it must be one of {', '.join(_ROLES)}.")
        content = item.get("content")
        parts = self._content(missing(f"{path}.content") if content is None else content, f"{path}.content")
        if role is not Role.ASSISTANT:
            self._end_turn()
            self._messages.append(Message(role, parts))
            return
        if self._ends_in_message:
            # Two messages in a row stay two.
            self._end_turn()
        self._turn += parts or (Text(""),)
        self._ends_in_message = True

    def _call(self, item: JsonObject, path: str) -> None:
        note_others(item, _CALL, "input", self._further)
        call_id = word_of(item.get("call_id"), f"{path}.call_id")
        name = word_of(item.get("name"), f"{path}.name")
        self._names[call_id] = name
        self._turn.append(ToolCall(call_id, name, text_of(item.get("arguments"), f"{path}.arguments")))
        self._ends_in_message = False

    def _result(self, item: JsonObject, path: str) -> None:
        note_others(item, _RESULT, "input", self._further)
        call_id = word_of(item.get("call_id"), f"{path}.call_id")
        output = item.get("output")
        parts: list[Text | Image | File] = []
        for part in self._content(missing(f"{path}.output") if output is None else output, f"{path}.output"):
            if not isinstance(part, Text | Image | File):
                invalid_value(f"{path}.output", "it must be text, images and files.")
            parts.append(part)
        self._end_turn()
        result = ToolResult(call_id, tuple(parts), name=self._names.get(call_id))
        self._messages.append(Message(Role.TOOL, (result,)))

    def _thought(self, item: JsonObject, path: str) -> None:
        """Its text, with the proof that came through this door. Sealed by OpenAI, it is nothing to another provider."""
        note_others(item, _THOUGHT, "input", self._further)
        said = [
            text_of(object_of(part, f"{path}.{field}.{at}").get("text"), f"{path}.{field}.{at}.text")
            for field in ("content", "summary")
            for at, part in enumerate(list_of(item.get(field), f"{path}.{field}", empty=True))
        ]
        sealed = opened(text_or_none(item, "encrypted_content", path))
        if sealed.redacted is not None:
            self._turn.append(Reasoning("", redacted=sealed.redacted))
        elif said:
            self._turn.append(Reasoning("\n\n".join(said), sealed.signature))
        self._ends_in_message = False

    def _image_made(self, item: JsonObject, path: str) -> None:
        """By the model itself, not by a tool that was offered to it: those are refused."""
        note_others(item, _ITEM | {"result"}, "input", self._further)
        self._turn.append(Image(data=word_of(item.get("result"), f"{path}.result"), media_type="image/png"))
        self._ends_in_message = False

    def _content(self, content: JsonValue, path: str) -> tuple[Part, ...]:
        if isinstance(content, str):
            return (Text(content),)
        return tuple(self._part(part, f"{path}.{at}") for at, part in enumerate(list_of(content, path)))

    def _part(self, value: JsonValue, path: str) -> Part:
        part = object_of(value, path)
        kind = text_of(part.get("type"), f"{path}.type")
        known = _FIELDS_OF_PART.get(kind)
        if known is None:
            invalid_value(f"{path}.type", f"it must be one of {', '.join(_FIELDS_OF_PART)}.")
        note_others(part, known, "input.content", self._further)
        match kind:
            case "input_image":
                return _image(part, path)
            case "input_file":
                return _file(part, path)
            case "input_audio":
                audio = object_of(part.get("input_audio"), f"{path}.input_audio")
                data = word_of(audio.get("data"), f"{path}.input_audio.data")
                return Audio(data, word_of(audio.get("format"), f"{path}.input_audio.format"))
            case "refusal":
                return Refusal(text_of(part.get("refusal"), f"{path}.refusal"))
            case _:
                return Text(text_of(part.get("text"), f"{path}.text"))


_FIELDS_OF_PART = {
    "input_text": frozenset({"type", "text"}),
    "output_text": frozenset({"type", "text", "logprobs"}),
    "text": frozenset({"type", "text"}),
    "refusal": frozenset({"type", "refusal"}),
    "input_image": frozenset({"type", "image_url", "file_id", "detail"}),
    "input_file": frozenset({"type", "file_data", "file_id", "file_url", "filename"}),
    "input_audio": frozenset({"type", "input_audio"}),
}


def _image(part: JsonObject, path: str) -> Image:
    if part.get("file_id") is not None:
        unsupported("input", "it keeps no files; send the image itself.", f"{path}.file_id")
    url = word_of(part.get("image_url"), f"{path}.image_url")
    detail = text_or_none(part, "detail", path)
    if url[:5].lower() == "data:":
        media_type, data = _data_url(url, f"{path}.image_url")
        return Image(data=data, media_type=media_type, detail=detail)
    return Image(url=_link(url, f"{path}.image_url"), detail=detail)


def _file(part: JsonObject, path: str) -> File:
    name = text_or_none(part, "filename", path)
    data, url = text_or_none(part, "file_data", path), text_or_none(part, "file_url", path)
    file_id = text_or_none(part, "file_id", path)
    if [data, url, file_id].count(None) != 2:  # noqa: PLR2004  one of three
        invalid_value(path, "give one of `file_data`, `file_url` and `file_id`.")
    if url is not None:
        return File(url=_link(url, f"{path}.file_url"), name=name)
    if data is None:
        return File(file_id=file_id, name=name)
    if data[:5].lower() == "data:":
        media_type, data = _data_url(data, f"{path}.file_data")
        return File(data=data, media_type=media_type, name=name)
    is_pdf = name is not None and name.lower().endswith(".pdf")
    return File(data=data, media_type="application/pdf" if is_pdf else None, name=name)


def _link(url: str, path: str) -> str:
    if not url.lower().startswith(("https://", "http://")):
        invalid_value(path, "it must be a link (https://…) or a data URL.")
    return url


def _data_url(url: str, path: str) -> tuple[str, str]:
    """Media type and base64 of a data URL (RFC 2397)."""
    head, comma, data = url[5:].partition(",")
    media_type, *parameters = head.split(";")
    if not comma or not parameters or parameters[-1].strip().lower() != "base64" or "/" not in media_type:
        invalid_value(path, "a data URL must look like `data:image/png;base64,…`.")
    return media_type.strip().lower(), data
